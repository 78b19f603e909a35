//! Jobs that others parked in beanstalkd's own way, and what is left when an operator's process dies.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy sees in functions marked as tests only")]

mod support;

use std::sync::Arc;

use anyqueue_core::{Broker, ConnectOptions, Defaults, Effect, ErrorKind, Incoming, Options, QueueName, State, TaskId, Which};
use anyqueue_testkit::servers::beanstalkd;
use anyqueue_testkit::{Server, SystemClock};
use support::*;

fn bury(client: &mut Plain, tube: &str, body: &str) -> u64 {
    client.put(tube, body);
    let (id, _) = client.reserve(tube);
    assert_eq!(client.ask(&format!("bury {id} 7")).0, "BURIED");
    id
}

async fn held(broker: &dyn Broker, queue: &QueueName) -> Vec<(Option<String>, TaskId)> {
    let page = broker.admin().held(queue, None, 100).await.unwrap();
    assert!(page.next.is_none() && page.tasks.iter().all(|task| task.state == State::Held));
    let id = |task| Incoming::peeked(task, "default", queue.as_str(), Defaults::default()).id;
    page.tasks.iter().map(|task| (task.native.id.as_deref().map(str::to_owned), id(task))).collect()
}

#[tokio::test]
async fn jobs_buried_by_others_are_listed_kicked_and_deleted() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (mut other, queue) = (Plain::connect(server.address()), queue("q"));
    let buried: Vec<u64> = (0..3).map(|n| bury(&mut other, "q", &format!(r#"{{"task":"t{n}"}}"#))).collect();
    other.put("q", r#"{"task":"waiting"}"#);
    let broker = connect_to(server.address()).await;
    let listed = held(&*broker, &queue).await;
    let named: Vec<_> = listed.iter().filter_map(|(native, _)| native.clone()).collect();
    assert_eq!(named, buried.iter().map(u64::to_string).collect::<Vec<_>>(), "all three, and not the one that waits");
    assert_eq!(broker.admin().stats(&queue).await.unwrap().held.value(), Some(3));
    assert_eq!(broker.admin().kick(&queue, &Which::Ids(vec![listed[1].1])).await.unwrap(), 1);
    assert_eq!(other.figure(&format!("stats-job {}", buried[1]), "state"), "ready");
    broker.admin().delete(&queue, &[listed[0].1]).await.remove(0).unwrap();
    assert_eq!(other.ask(&format!("peek {}", buried[0])).0, "NOT_FOUND");
    assert_eq!(broker.admin().kick(&queue, &Which::First(5)).await.unwrap(), 1);
    assert_eq!(other.figure("stats-tube q", "current-jobs-ready"), "3");
}

#[tokio::test]
async fn a_listing_that_dies_changes_nothing() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (mut other, queue) = (Plain::connect(server.address()), queue("q"));
    let id = bury(&mut other, "q", r#"{"task":"t"}"#);
    let broker = connect_to(server.address()).await;
    assert_eq!(held(&*broker, &queue).await.len(), 1);
    let figures = |other: &mut Plain| ["state", "reserves", "kicks"].map(|key| other.figure(&format!("stats-job {id}"), key));
    assert_eq!(figures(&mut other), ["buried", "1", "0"], "while the lister lives: never reserved by it");
    drop(broker);
    eventually("the lister's connections are gone", || {
        let open = Plain::connect(server.address()).figure("stats", "current-connections");
        async move { open == "2" }
    })
    .await;
    assert_eq!(figures(&mut other), ["buried", "1", "0"], "and after it died");
}

#[tokio::test]
async fn kicking_delayed_tasks_is_not_what_a_kick_does() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    let mut later = task(1);
    later.delay = std::time::Duration::from_secs(3600);
    broker.send(&queue, &[later]).await.remove(0).unwrap();
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 0);
    assert_eq!(Plain::connect(server.address()).figure("stats-tube q", "current-jobs-delayed"), "1");
}

#[tokio::test]
async fn a_task_held_by_us_is_in_the_companion_tube_whoever_looks() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    broker.send(&queue, &[task(1)]).await.remove(0).unwrap();
    let mut consumer = consume(&*broker, &queue).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    let incoming = Incoming::read(&got, "default", Defaults::default());
    let parked = incoming.held("no disk", true, std::time::SystemTime::now());
    let settlement = anyqueue_core::Settlement::Hold(parked, "no disk".into());
    consumer.settler().settle(&[(got.receipt, settlement)]).await.remove(0).unwrap();
    let mut other = Plain::connect(server.address());
    assert_eq!(other.figure("stats-tube q", "current-jobs-ready"), "0");
    other.ask("use q;held");
    assert!(other.ask("peek-ready").1.contains("no disk"), "the reason is in the body");
}

#[tokio::test]
async fn a_connection_that_breaks_at_one_delete_leaves_the_other_answers_true() {
    let (tasks, none) = ([task(1), task(2)], "NOT_FOUND");
    let job = |id: u64| {
        with_body(&format!("---\nid: {id}\ntube: q\nstate: ready\npri: 1024\nage: 0\ndelay: 0\nttr: 60\nreserves: 0\n"))
    };
    let body = |id: u64| {
        let text = String::from_utf8(tasks[id as usize - 1].body.to_vec()).unwrap();
        format!("FOUND {id} {}\r\n{text}", text.len())
    };
    let count = with_body("---\ncurrent-jobs-ready: 2\n");
    let fake = Fake::start(&[
        ("stats-tube", &[&count, none, &count, none]),
        ("put", &["INSERTED 3"]),
        ("stats-job", &[none, &job(2), &job(1)]),
        ("peek", &[&body(2), &body(1)]),
        ("delete", &["DELETED", "DELETED", "what is this?"]),
    ]);
    let broker = connect_to(fake.address).await;
    let answers =
        broker.admin().delete(&queue("q"), &[tasks[0].id, tasks[1].id, TaskId::new(std::time::SystemTime::now())]).await;
    let kinds: Vec<_> = answers.into_iter().map(|answer| answer.map_err(|e| (e.kind(), e.effect()))).collect();
    assert_eq!(
        kinds,
        [Ok(()), Err((ErrorKind::Protocol, Effect::Unknown)), Err((ErrorKind::NotFound, Effect::None))],
        "one is removed, one perhaps, and one is not there"
    );
}

#[tokio::test]
async fn a_task_that_comes_while_a_walk_begins_hides_no_older_one() {
    let job = |id: u64| {
        let figures = "state: ready\npri: 1024\nage: 0\ndelay: 0\nttr: 60\nreserves: 0";
        with_body(&format!("---\nid: {id}\ntube: q\n{figures}\n"))
    };
    let count = |n: u64| with_body(&format!("---\ncurrent-jobs-ready: {n}\n"));
    // The older one is number 1, the one that comes later has number 1500: a walk does not see both in one part.
    let (none, newer, older, one, two) = ("NOT_FOUND".to_owned(), job(1500), job(1), count(1), count(2));
    let mut figures: Vec<&str> = vec![&newer];
    figures.extend((1..1499).map(|_| none.as_str()));
    figures.push(&older);
    let fake = Fake::start(&[
        ("stats-tube", &[&one, &none, &two, &none]),
        ("put", &["INSERTED 1500"]),
        ("stats-job", &figures),
        ("peek", &["FOUND 1 2\r\n{}"]),
    ]);
    let broker = connect_to(fake.address).await;
    let seen = broker.admin().peek(&queue("q"), State::Ready, 10).await.unwrap();
    let ids: Vec<_> = seen.iter().filter_map(|task| task.native.id.as_deref()).collect();
    assert_eq!(ids, ["1", "1500"]);
}

#[tokio::test]
async fn bands_that_were_changed_are_reported_until_the_tubes_of_the_earlier_ones_are_empty() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let url = |bands: &str| format!("beanstalkd://{}{bands}", server.address());
    let (before, queue) = (connect(&url("?bands=512")).await.unwrap(), queue("q"));
    assert!(before.declare(&queue).await.unwrap().drift.is_empty());
    assert!(before.declare(&queue).await.unwrap().drift.is_empty());
    let mut urgent = task(1);
    urgent.priority = 7;
    before.send(&queue, &[urgent]).await.remove(0).unwrap();
    let after = connect(&url("?bands=100,2048")).await.unwrap();
    for _ in 0..2 {
        let [bands, left] = &after.declare(&queue).await.unwrap().drift[..] else { panic!("bands, and what is left") };
        assert_eq!(
            (bands.what.as_str(), bands.wanted.as_str(), bands.found.as_str()),
            ("bands", "[100, 2048]", "[512]"),
            "a task is still where only the earlier bands look for it"
        );
        assert_eq!((left.what.as_str(), left.wanted.as_str()), ("tasks in tube `q;p0-512`", "0"));
        assert!(left.found.starts_with("1,"), "{left}");
    }
    let mut consumer = consume(&*before, &queue).await;
    let got = reserve(&mut *consumer, SOON).await;
    done(&*consumer.settler(), &got).await;
    assert_eq!(after.declare(&queue).await.unwrap().drift.len(), 1, "once more, and from now on they are the queue's bands");
    assert!(after.declare(&queue).await.unwrap().drift.is_empty());
    let none = connect(&url("")).await.unwrap().declare(&queue).await.unwrap().drift;
    assert_eq!((none[0].wanted.as_str(), none[0].found.as_str()), ("none", "[100, 2048]"));
}

#[tokio::test]
async fn tasks_in_bands_that_nobody_noted_are_reported_too() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let url = |bands: &str| format!("beanstalkd://{}{bands}", server.address());
    let mut urgent = task(1);
    urgent.priority = 7;
    // Sending alone leaves no mark.
    connect(&url("?bands=512")).await.unwrap().send(&queue("q"), &[urgent, task(2)]).await.remove(0).unwrap();
    let mut options = ConnectOptions::new(&url(""), Arc::new(SystemClock)).unwrap();
    options.queues.insert(queue("q"), Options::default());
    let after = anyqueue_beanstalkd::DRIVER.open(options).await.unwrap();
    let warnings = || async {
        let found = after.diagnose().await.unwrap().into_iter();
        found.filter(|finding| finding.text.starts_with("queue `q`")).map(|finding| finding.text).collect::<Vec<_>>()
    };
    let [warning] = &warnings().await[..] else { panic!("one warning") };
    assert!(warning.contains("tasks in tube `q;p0-512`: wanted 0, found 1"), "{warning}");
    for _ in 0..2 {
        let [left] = &after.declare(&queue("q")).await.unwrap().drift[..] else { panic!("one drift") };
        assert_eq!(left.what, "tasks in tube `q;p0-512`");
    }
    let before = connect(&url("?bands=512")).await.unwrap();
    let mut consumer = consume(&*before, &queue("q")).await;
    let got = reserve(&mut *consumer, SOON).await;
    done(&*consumer.settler(), &got).await;
    assert!(warnings().await.is_empty());
}

/// A server with one held task, which gives the answer to its put later.
fn with_one_held(delete: &str) -> Fake {
    let one = with_body("---\ncurrent-jobs-ready: 1\n");
    Fake::start(&[
        ("stats-tube", &["NOT_FOUND", &one]),
        ("reserve-with-timeout", &["RESERVED 5 12\r\n{\"task\":\"t\"}", "TIMED_OUT"]),
        ("put", &["later: INSERTED 6"]),
        ("delete", &[delete]),
    ])
}

#[tokio::test]
async fn a_kick_that_nobody_waits_for_any_more_leaves_no_task_both_ready_and_held() {
    let fake = with_one_held("DELETED");
    let broker = connect_to(fake.address).await;
    let kicking = tokio::spawn(async move { broker.admin().kick(&queue("q"), &Which::All).await });
    eventually("the copy is on its way", || async { fake.lines().iter().any(|(_, line)| line.starts_with("put ")) }).await;
    kicking.abort();
    assert!(kicking.await.unwrap_err().is_cancelled());
    fake.open();
    eventually("the held one is removed", || async { fake.heard("delete 5") }).await;
}

#[tokio::test]
async fn a_task_that_is_still_held_was_not_kicked() {
    let fake = with_one_held("NOT_FOUND");
    fake.open();
    assert_eq!(connect_to(fake.address).await.admin().kick(&queue("q"), &Which::All).await.unwrap(), 0);
}

#[tokio::test]
async fn a_search_for_a_task_that_is_done_meanwhile_does_not_go_back_to_the_first_number() {
    let (one, none) = (with_body("---\ncurrent-jobs-ready: 1\n"), "NOT_FOUND");
    let fake = Fake::start(&[
        // What is counted when the walk begins, and what later: nothing.
        ("stats-tube", &[&one, none, &one, none, none]),
        ("put", &["INSERTED 100000"]),
    ]);
    let broker = connect_to(fake.address).await;
    assert!(broker.admin().peek(&queue("q"), State::Ready, 1).await.unwrap().is_empty());
    let asked = fake.lines().iter().filter(|(_, line)| line.starts_with("stats-job ")).count();
    assert!(asked < 10_000, "{asked} numbers");
}

#[tokio::test]
async fn a_search_for_one_of_two_tasks_ends_soon_if_that_one_is_done_and_the_other_is_still_there() {
    let (one, two, none) = (with_body("---\ncurrent-jobs-ready: 1\n"), with_body("---\ncurrent-jobs-ready: 2\n"), "NOT_FOUND");
    let figures = "state: ready\npri: 1024\nage: 0\ndelay: 0\nttr: 60\nreserves: 0";
    let there = with_body(&format!("---\nid: 100000\ntube: q\n{figures}\n"));
    // It is met first, and again after five parts, when it is asked whether it is still there.
    let mut jobs: Vec<&str> = vec![&there];
    jobs.extend((1..5 * 1024).map(|_| none));
    jobs.extend([there.as_str(), none]);
    let fake = Fake::start(&[
        ("stats-tube", &[&two, none, &two, none, &one, none, &one, none]),
        ("put", &["INSERTED 100000"]),
        ("stats-job", &jobs),
        ("peek", &["FOUND 100000 2\r\n{}"]),
    ]);
    let broker = connect_to(fake.address).await;
    assert_eq!(broker.admin().peek(&queue("q"), State::Ready, 10).await.unwrap().len(), 1);
    let asked = fake.lines().iter().filter(|(_, line)| line.starts_with("stats-job ")).count();
    assert!(asked < 10_000, "{asked} numbers");
}
