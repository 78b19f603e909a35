//! Pauses that servers have forgotten, and pauses of several servers.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy sees in functions marked as tests only")]

mod support;

use std::time::{Duration, Instant};

use anyqueue_core::{Consumer, Effect, Paused};
use anyqueue_testkit::servers::beanstalkd;
use anyqueue_testkit::{Process, Proxy, Server};
use support::*;

const TASK: &str = r#"{"task":"t"}"#;

async fn two() -> (Process, Process, String) {
    let (a, b) = (beanstalkd::start(&[]).await.unwrap(), beanstalkd::start(&[]).await.unwrap());
    let url = format!("beanstalkd://{},{}", a.address(), b.address());
    (a, b, url)
}

/// Looks again and again for a while, as a worker does, and gets nothing. Until it has connected to a restarted server a look
/// may fail; the last ones must not.
async fn gets_nothing(consumer: &mut dyn Consumer) {
    let (until, mut last) = (Instant::now() + SOON, None);
    while Instant::now() < until {
        let got = consumer.reserve(std::num::NonZeroUsize::MIN, Duration::from_millis(50)).await;
        assert!(got.as_ref().map_or(true, Vec::is_empty), "a paused queue delivered");
        last = Some(got);
    }
    last.expect("it has looked").expect("its looks do not fail for ever");
}

#[tokio::test]
async fn a_pause_that_the_server_forgot_is_kept_up_by_the_workers() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    let mut consumer = consume(&*broker, &queue).await;
    broker.admin().pause(&queue, None).await.unwrap();
    server.kill().await.unwrap();
    Server::start(&server).await.unwrap();
    let mut other = Plain::connect(server.address());
    other.put("q", r#"{"task":"t"}"#);
    assert_eq!(other.figure("stats-tube q", "pause"), "0", "the server knows nothing of it any more");
    gets_nothing(&mut *consumer).await;
    assert_ne!(other.figure("stats-tube q", "pause"), "0", "it was told again");
    broker.admin().resume(&queue).await.unwrap();
    assert_eq!(reserve(&mut *consumer, SOON).await.len(), 1);
}

#[tokio::test]
async fn a_paused_tube_that_is_no_more_gives_nothing_when_it_comes_back() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue, elsewhere) = (connect_to(server.address()).await, queue("q"), queue("elsewhere"));
    let mut plain = Plain::connect(server.address());
    let (mut consumer, mut other) = (consume(&*broker, &queue).await, consume(&*broker, &elsewhere).await);
    assert!(reserve(&mut *consumer, Duration::ZERO).await.is_empty());
    // Said by a process that goes at once. From now on nobody watches the tube, nobody uses it, and nothing is in it.
    connect_to(server.address()).await.admin().pause(&queue, None).await.unwrap();
    let until = Instant::now() + SOON * 7;
    while plain.ask("stats-tube q").0 != "NOT_FOUND" {
        assert!(Instant::now() < until, "somebody still uses the tube");
        reserve(&mut *other, Duration::ZERO).await;
    }
    plain.put("q", TASK);
    assert_eq!(plain.figure("stats-tube q", "pause"), "0", "the server knows nothing of it any more");
    gets_nothing(&mut *consumer).await;
    assert_ne!(plain.figure("stats-tube q", "pause"), "0", "it was told again");
    broker.admin().resume(&queue).await.unwrap();
    assert_eq!(reserve(&mut *consumer, SOON).await.len(), 1);
}

#[tokio::test]
async fn a_restarted_server_of_two_gives_nothing_of_a_paused_queue() {
    let (_a, b, url) = two().await;
    let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
    let (mut looks, mut waits) = (consume(&*broker, &queue).await, consume(&*broker, &queue).await);
    broker.admin().pause(&queue, None).await.unwrap();
    assert!(reserve(&mut *looks, Duration::ZERO).await.is_empty());
    let waiting = tokio::spawn(async move { reserve(&mut *waits, SOON * 10).await });
    b.kill().await.unwrap();
    Server::start(&b).await.unwrap();
    Plain::connect(b.address()).put("q", TASK);
    gets_nothing(&mut *looks).await;
    drop(looks);
    assert!(!waiting.is_finished(), "nor is anybody woken");
    broker.admin().resume(&queue).await.unwrap();
    assert_eq!(waiting.await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_pause_said_while_a_server_was_down_holds_there_once_it_is_back() {
    let (_a, b, url) = two().await;
    let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
    let mut consumer = consume(&*broker, &queue).await;
    assert!(reserve(&mut *consumer, Duration::ZERO).await.is_empty());
    let waits = connect(&url).await.unwrap();
    let mut waits = consume(&*waits, &queue).await;
    let waiting = tokio::spawn(async move { reserve(&mut *waits, SOON * 10).await });
    b.kill().await.unwrap();
    // Another process, so that the workers have to hear of it.
    connect(&url).await.unwrap().admin().pause(&queue, None).await.unwrap();
    Server::start(&b).await.unwrap();
    let mut plain = Plain::connect(b.address());
    plain.put("q", TASK);
    gets_nothing(&mut *consumer).await;
    assert!(!waiting.is_finished(), "nor is anybody woken");
    eventually("the server is told", || {
        let pause = plain.figure("stats-tube q", "pause");
        async move { pause != "0" }
    })
    .await;
    assert_eq!(connect_to(b.address()).await.admin().paused(&queue).await.unwrap(), Paused::Yes(None), "by itself too");
}

#[tokio::test]
async fn a_server_that_missed_a_resume_is_told_once_it_is_back() {
    for killed in [true, false] {
        let (a, b) = (beanstalkd::start(&[]).await.unwrap(), beanstalkd::start(&[]).await.unwrap());
        let proxy = Proxy::start(b.address()).await.unwrap();
        let url = format!("beanstalkd://{},{}", a.address(), proxy.address());
        let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
        let mut consumer = consume(&*broker, &queue).await;
        broker.admin().pause(&queue, None).await.unwrap();
        Plain::connect(b.address()).put("q", TASK);
        proxy.refuse(true);
        proxy.cut();
        if killed {
            b.kill().await.unwrap();
        }
        eventually("its end is noticed", || async { broker.admin().resume(&queue).await.is_ok() }).await;
        if killed {
            Server::start(&b).await.unwrap();
        }
        proxy.refuse(false);
        let until = Instant::now() + SOON * 5;
        while reserve(&mut *consumer, SOON).await.is_empty() {
            assert!(Instant::now() < until, "still paused (killed: {killed})");
        }
        assert_eq!(broker.admin().paused(&queue).await.unwrap(), Paused::No);
        assert_eq!(connect_to(b.address()).await.admin().paused(&queue).await.unwrap(), Paused::No, "nor by its own word");
    }
}

#[tokio::test]
async fn a_draining_server_that_cannot_note_a_pause_is_paused_all_the_same() {
    let (a, b, url) = two().await;
    let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
    let mut plain = Plain::connect(b.address());
    plain.put("q", TASK);
    drain(&b);
    eventually("the server drains", || {
        let answer = plain.ask("put 0 0 1 0\r\n").0;
        async move { answer == "DRAINING" }
    })
    .await;
    broker.admin().pause(&queue, None).await.unwrap();
    assert_ne!(plain.figure("stats-tube q", "pause"), "0");
    let mut consumer = consume(&*connect(&url).await.unwrap(), &queue).await;
    // As if it had forgotten it.
    plain.ask("pause-tube q 0");
    gets_nothing(&mut *consumer).await;
    assert_ne!(plain.figure("stats-tube q", "pause"), "0", "it was told again");
    broker.admin().resume(&queue).await.unwrap();
    assert_eq!(reserve(&mut *consumer, SOON).await.len(), 1);
    a.kill().await.unwrap();
    let error = connect_to(b.address()).await.admin().pause(&queue, None).await.unwrap_err();
    assert!(error.to_string().contains("draining"), "nobody would know of it: {error}");
}

#[tokio::test]
async fn a_connection_made_for_a_wait_may_be_to_a_server_that_forgot_a_pause() {
    let (a, b, direct) = two().await;
    let proxy = Proxy::start(b.address()).await.unwrap();
    let broker = connect(&format!("beanstalkd://{},{}", a.address(), proxy.address())).await.unwrap();
    let (queue, other) = (queue("q"), queue("other"));
    let wait_for = |of| {
        let broker = broker.clone();
        tokio::spawn(async move { reserve(&mut *consume(&*broker, &of).await, SOON * 10).await.len() })
    };
    let (awoken, waiting) = (wait_for(other), wait_for(queue.clone()));
    eventually("both wait", || {
        let waiting = [&a, &b].map(|server| Plain::connect(server.address()).figure("stats-tube q", "current-waiting"));
        async move { waiting == ["1", "1"] }
    })
    .await;
    // To those who wait all this is one broken connection.
    proxy.black(true);
    b.kill().await.unwrap();
    connect(&direct).await.unwrap().admin().pause(&queue, None).await.unwrap();
    Server::start(&b).await.unwrap();
    Plain::connect(b.address()).put("q", TASK);
    let before = broker.info().connections;
    proxy.cut();
    proxy.black(false);
    eventually("the cut is noticed", || async { broker.info().connections + 2 <= before }).await;
    // Whoever is served waits anew, and so does everybody else whose connection has broken.
    Plain::connect(a.address()).put("other", TASK);
    assert_eq!(awoken.await.unwrap(), 1);
    tokio::time::sleep(SOON).await;
    assert!(!waiting.is_finished(), "a paused queue delivered");
    broker.admin().resume(&queue).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 1);
}

/// As long as ours pause a tube for which no end was said.
const OURS: &str = "315360000";

#[tokio::test]
async fn a_tube_that_one_of_ours_left_paused_without_a_word_goes_on_and_another_clients_pause_stays() {
    let (a, b, url) = two().await;
    let (alone, both, queue) = (connect_to(a.address()).await, connect(&url).await.unwrap(), queue("q"));
    for (broker, server) in [(&alone, &a), (&both, &b)] {
        broker.admin().pause(&queue, None).await.unwrap();
        broker.admin().resume(&queue).await.unwrap();
        let mut plain = Plain::connect(server.address());
        plain.put("q", TASK);
        plain.ask("pause-tube q 86400");
        let mut consumer = consume(&**broker, &queue).await;
        gets_nothing(&mut *consumer).await;
        assert_eq!(plain.figure("stats-tube q", "pause"), "86400", "it is not ours");
        plain.ask(&format!("pause-tube q {OURS}"));
        let until = Instant::now() + SOON * 5;
        while reserve(&mut *consumer, SOON).await.is_empty() {
            assert!(Instant::now() < until, "still paused");
        }
    }
}

#[tokio::test]
async fn a_resume_that_nobody_waits_for_any_more_is_carried_to_its_end() {
    let paused = "FOUND 3 14\r\npaused since 1";
    let fake = Fake::start(&[("peek-ready", &[paused, paused, "NOT_FOUND"]), ("pause-tube", &["later: PAUSED"])]);
    let broker = connect_to(fake.address).await;
    let resuming = tokio::spawn(async move { broker.admin().resume(&queue("q")).await });
    eventually("the server is told", || async { fake.heard("pause-tube q 0") }).await;
    resuming.abort();
    assert!(resuming.await.unwrap_err().is_cancelled());
    fake.open();
    let told = || fake.lines().iter().filter(|(_, line)| line == "pause-tube q 0").count();
    eventually("its word is removed, and it is told again", || async { fake.heard("delete 3") && told() == 2 }).await;
}

#[tokio::test]
async fn a_pause_that_somebody_resumed_at_the_same_moment_leaves_no_tube_paused() {
    for (time, seconds) in [(None, OURS), (Some(Duration::from_secs(600)), "600")] {
        let shut = with_body(&format!("---\npause: {seconds}\n"));
        // Its word is there when the earlier ones are removed, and is gone when the tube is paused.
        let fake = Fake::start(&[
            ("peek-ready", &["NOT_FOUND", "FOUND 5 14\r\npaused since 1", "NOT_FOUND"]),
            ("put", &["INSERTED 5"]),
            ("stats-tube", &["NOT_FOUND", &shut, "NOT_FOUND"]),
            ("pause-tube", &["PAUSED"]),
        ]);
        connect_to(fake.address).await.admin().pause(&queue("q"), time).await.unwrap();
        let said: Vec<_> = fake.lines().into_iter().map(|(_, line)| line).filter(|line| line.starts_with("pause")).collect();
        assert_eq!(said, [format!("pause-tube q {seconds}"), "pause-tube q 0".into()]);
    }
}

#[tokio::test]
async fn a_pause_that_some_servers_have_noted_is_not_without_effect() {
    let took = Fake::start(&[("put", &["INSERTED 5"])]);
    let refused = Fake::start(&[("put", &["BAD_FORMAT"])]);
    let effect = async |first: &Fake, second: &Fake| {
        let broker = connect(&format!("beanstalkd://{},{}", first.address, second.address)).await.unwrap();
        broker.admin().pause(&queue("q"), None).await.unwrap_err().effect()
    };
    assert_eq!(effect(&took, &refused).await, Effect::Unknown);
    assert_eq!(effect(&refused, &took).await, Effect::None, "nothing was noted anywhere");
}

#[tokio::test]
async fn a_task_that_comes_to_a_wait_begun_before_a_pause_goes_back() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    let (mut consumer, mut plain) = (consume(&*broker, &queue).await, Plain::connect(server.address()));
    let waiting = tokio::spawn(async move { reserve(&mut *consumer, SOON * 10).await });
    eventually("it waits", || {
        let waiting = plain.figure("stats-tube q", "current-waiting");
        async move { waiting == "1" }
    })
    .await;
    broker.admin().pause(&queue, None).await.unwrap();
    let id = plain.put("q", TASK);
    // As if the server had forgotten it.
    plain.ask("pause-tube q 0");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "a paused queue delivered");
    assert_eq!(plain.figure(&format!("stats-job {id}"), "state"), "ready");
    broker.admin().resume(&queue).await.unwrap();
    assert_eq!(waiting.await.unwrap().len(), 1);
}
