//! Requests that were carried out though their answer never came.

#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyqueue_core::{Effect, ErrorKind, Figure, Settlement};
use anyqueue_testkit::servers::redis;
use anyqueue_testkit::{Process, Proxy, Sample, Server};
use shared::{SOON, connect, consumer, operator, queue, reserve, send, send_one, settle_all, tell, url, work};

const NONE: [&str; 0] = [];
/// Long enough for a look at the server while an answer is on its way.
const SLOW: Duration = Duration::from_millis(700);

async fn proxied(server: &Process) -> (Proxy, String) {
    let proxy = Proxy::start(server.address()).await.unwrap();
    let url = format!("redis://{}", proxy.address());
    (proxy, url)
}

/// Waits until the server has done something.
async fn arrived(server: &Process, question: &str, answer: u64) {
    let (mut operator, began) = (operator(server).await, Instant::now());
    while tell::<u64>(&mut operator, question).await != answer {
        assert!(began.elapsed() < SOON, "`{question}` does not become {answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Cuts the connection once the server has done something and before its answer is through.
async fn cut_once(server: &Process, proxy: &Proxy, question: &str, answer: u64) {
    arrived(server, question, answer).await;
    proxy.delay(Duration::ZERO);
    proxy.cut();
}

#[tokio::test]
async fn what_a_claim_took_whose_answer_got_lost_comes_again_at_once_and_uncounted() {
    let server = redis::start(NONE).await.unwrap();
    let ((proxy, url), queue) = (proxied(&server).await, queue("claimed"));
    let broker = connect(&url).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let tasks = Sample::many(5);
    send(&*broker, &queue, &tasks).await.unwrap();
    proxy.delay(SLOW);
    let cut = cut_once(&server, &proxy, "ZCARD anyqueue:{claimed}:reserved", 5);
    let (got, ()) = tokio::join!(reserve(&mut *consumer, 5, SOON), cut);
    assert_eq!(got.unwrap_err().effect(), Effect::Unknown);
    let mut numbers = Vec::new();
    while numbers.len() < 5 {
        let got = reserve(&mut *consumer, 5, SOON).await.unwrap();
        assert!(!got.is_empty(), "they wait until their leases end");
        assert!(got.iter().all(|delivery| delivery.native.redeliveries == Figure::Exact(0)));
        settle_all(&*consumer.settler(), &got, Settlement::Done).await.unwrap();
        numbers.extend(got.iter().filter_map(Sample::number));
    }
    assert_eq!(numbers, [0, 1, 2, 3, 4], "in their old order");
}

#[tokio::test]
async fn who_closes_right_after_a_claim_got_lost_leaves_nothing_behind() {
    let server = redis::start(NONE).await.unwrap();
    let ((proxy, proxied), queue) = (proxied(&server).await, queue("closed"));
    let (broker, other) = (connect(&proxied).await.unwrap(), connect(&url(&server)).await.unwrap());
    let mut first = consumer(&*broker, &queue).await;
    send(&*other, &queue, &Sample::many(5)).await.unwrap();
    proxy.delay(SLOW);
    let cut = cut_once(&server, &proxy, "ZCARD anyqueue:{closed}:reserved", 5);
    let (got, ()) = tokio::join!(reserve(&mut *first, 5, SOON), cut);
    assert_eq!(got.unwrap_err().effect(), Effect::Unknown);
    first.close().await.unwrap();
    broker.close().await.unwrap();
    assert_eq!(work(&mut *consumer(&*other, &queue).await, 5, SOON).await, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn what_a_server_claims_after_it_was_frozen_comes_again_at_once() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&format!("{}?liveness=500ms", url(&server))).await.unwrap(), queue("frozen"));
    let mut consumer = consumer(&*broker, &queue).await;
    // The server knows the script by now: what it gets while it is frozen, it does.
    assert!(reserve(&mut *consumer, 5, Duration::ZERO).await.unwrap().is_empty());
    send(&*broker, &queue, &Sample::many(5)).await.unwrap();
    server.pause().unwrap();
    for _ in 0..3 {
        reserve(&mut *consumer, 5, SOON).await.unwrap_err();
    }
    server.resume().unwrap();
    assert_eq!(work(&mut *consumer, 5, SOON).await.len(), 5);
    assert_eq!(broker.admin().stats(&queue).await.unwrap().reserved, Figure::Exact(0));
}

#[tokio::test]
async fn a_reserve_does_not_wait_for_an_answer_much_longer_than_it_was_asked_to() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&format!("{}?liveness=30s", url(&server))).await.unwrap(), queue("late"));
    let mut consumer = consumer(&*broker, &queue).await;
    send_one(&*broker, &queue, 1).await.unwrap();
    server.pause().unwrap();
    let began = Instant::now();
    let error = reserve(&mut *consumer, 1, Duration::from_millis(100)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "after {:?}", began.elapsed());
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::None), "{error}");
    server.resume().unwrap();
    assert_eq!(work(&mut *consumer, 1, SOON).await, [1], "what it found comes with the next call");
}

#[tokio::test]
async fn a_settlement_whose_answer_got_lost_is_not_late_when_it_is_said_again() {
    let server = redis::start(NONE).await.unwrap();
    let ((proxy, url), queue) = (proxied(&server).await, queue("settled"));
    let broker = connect(&url).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let next = |number| Sample::new(number).delay(Duration::from_secs(60)).envelope();
    for (number, what, question, answer) in [
        (1, Settlement::Done, "HLEN anyqueue:{settled}:tasks", 0),
        (2, Settlement::Retry(next(2)), "ZCARD anyqueue:{settled}:delayed", 1),
        (3, Settlement::Hold(next(3), "look".into()), "ZCARD anyqueue:{settled}:held", 1),
    ] {
        send_one(&*broker, &queue, number).await.unwrap();
        let (got, settler) = (reserve(&mut *consumer, 1, SOON).await.unwrap(), consumer.settler());
        proxy.delay(SLOW);
        let cut = cut_once(&server, &proxy, question, answer);
        let (first, ()) = tokio::join!(settle_all(&*settler, &got, what.clone()), cut);
        assert_eq!(first.unwrap_err().effect(), Effect::Unknown);
        settle_all(&*settler, &got, what.clone()).await.unwrap();
        let error = settle_all(&*settler, &got, what).await.unwrap_err();
        assert!(error.is_lease_lost(), "only what was without an answer is good: {error}");
    }
}

#[tokio::test]
async fn a_settlement_that_never_arrived_is_late_once_another_has_the_task() {
    let server = redis::start(NONE).await.unwrap();
    let ((proxy, proxied), queue) = (proxied(&server).await, queue("swallowed"));
    let (broker, other) = (connect(&format!("{proxied}?liveness=1s")).await.unwrap(), connect(&url(&server)).await.unwrap());
    let mut first = consumer(&*broker, &queue).await;
    send(&*other, &queue, &[Sample::new(1).ttr(Duration::from_secs(1)).envelope()]).await.unwrap();
    let got = reserve(&mut *first, 1, SOON).await.unwrap();
    proxy.swallow();
    let settler = first.settler();
    assert_eq!(settle_all(&*settler, &got, Settlement::Done).await.unwrap_err().effect(), Effect::Unknown);
    let mut second = consumer(&*other, &queue).await;
    let again = reserve(&mut *second, 1, SOON).await.unwrap();
    assert!(settle_all(&*settler, &got, Settlement::Done).await.unwrap_err().is_lease_lost());
    settle_all(&*second.settler(), &again, Settlement::Done).await.unwrap();
}

#[tokio::test]
async fn one_part_of_a_send_that_fails_holds_up_no_other() {
    let server = redis::start(NONE).await.unwrap();
    let ((proxy, url), queue) = (proxied(&server).await, queue("parts"));
    let broker = connect(&url).await.unwrap();
    send_one(&*broker, &queue, 0).await.unwrap();
    let large = anyqueue_core::Data::json(&"x".repeat(1 << 20)).unwrap();
    let (before, after) = (Sample::new(1).envelope(), Sample::new(3).envelope());
    // The same id again begins a part of its own.
    let mut long = Sample::new(2).data(large).envelope();
    long.id = before.id;
    let again = before.clone();
    proxy.throttle(Some(200_000));
    let cut = async {
        arrived(&server, "HLEN anyqueue:{parts}:tasks", 2).await;
        // The large one takes seconds; the answer to the one before it gets through meanwhile.
        tokio::time::sleep(SLOW).await;
        proxy.throttle(None);
        proxy.cut();
    };
    let batch = [before, long, again, after];
    let (answers, ()) = tokio::join!(broker.send(&queue, &batch), cut);
    let effects: Vec<_> = answers.iter().map(|a| a.as_ref().err().map(|e| (e.kind(), e.effect()))).collect();
    assert_eq!(effects, [None, Some((ErrorKind::Unavailable, Effect::Unknown)), None, None]);
    let mut consumer = consumer(&*broker, &queue).await;
    assert_eq!(work(&mut *consumer, 3, SOON).await, [0, 1, 3]);
}

#[tokio::test]
async fn an_answer_too_large_for_the_network_is_asked_for_in_smaller_portions() {
    let server = redis::start(NONE).await.unwrap();
    let ((proxy, proxied), queue) = (proxied(&server).await, queue("slow"));
    let (broker, other) = (connect(&format!("{proxied}?liveness=1s")).await.unwrap(), connect(&url(&server)).await.unwrap());
    let data = anyqueue_core::Data::json(&"x".repeat(100_000)).unwrap();
    let tasks: Vec<_> = (0..24).map(|number| Sample::new(number).data(data.clone()).envelope()).collect();
    send(&*other, &queue, &tasks).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    // All of them take five seconds, and an answer has two.
    proxy.throttle(Some(500_000));
    let numbers = work(&mut *consumer, 24, Duration::from_secs(90)).await;
    assert_eq!(numbers.len(), 24);
    // One that does not fit alone is named, and so is what to do.
    proxy.throttle(Some(20_000));
    send(&*other, &queue, &tasks[..1]).await.unwrap();
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(60), "never said");
        match reserve(&mut *consumer, 1, Duration::from_secs(5)).await {
            Err(error) if error.to_string().contains("single task") => {
                assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::Unknown), "{error}");
                break assert!(error.to_string().contains("`liveness`"), "{error}");
            }
            answer => println!("{answer:?}"),
        }
    }
}

/// Whether a call that is looked at once and then given up had not ended yet.
async fn is_begun_and_dropped(call: impl Future) -> bool {
    let mut call = pin!(call);
    poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_pending())).await
}

#[tokio::test]
async fn a_broker_that_is_closed_gives_back_what_its_consumers_have_not_handed_out() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, other, queue) = (connect(&url(&server)).await.unwrap(), connect(&url(&server)).await.unwrap(), queue("shelf"));
    let (mut handing, mut waiting) = (consumer(&*broker, &queue).await, consumer(&*broker, &queue).await);
    send(&*other, &queue, &Sample::many(5)).await.unwrap();
    // What a call that was given up found lies there still, and nobody asks for it.
    assert!(is_begun_and_dropped(reserve(&mut *handing, 5, SOON)).await);
    arrived(&server, "ZCARD anyqueue:{shelf}:reserved", 5).await;
    assert!(reserve(&mut *waiting, 1, Duration::ZERO).await.unwrap().is_empty());
    broker.close().await.unwrap();
    let stats = other.admin().stats(&queue).await.unwrap();
    assert_eq!((stats.ready, stats.reserved), (Figure::Exact(5), Figure::Exact(0)));
    assert_eq!(reserve(&mut *handing, 5, SOON).await.unwrap_err().kind(), ErrorKind::Closed);
    let got = reserve(&mut *consumer(&*other, &queue).await, 5, SOON).await.unwrap();
    assert!(got.iter().all(|delivery| delivery.native.redeliveries == Figure::Exact(0)), "nobody has seen them");
}

#[tokio::test]
async fn what_cannot_be_given_back_at_once_is_given_back_later() {
    let server = redis::start(NONE).await.unwrap();
    let ((proxy, proxied), queue) = (proxied(&server).await, queue("returned"));
    let (broker, other) = (connect(&proxied).await.unwrap(), connect(&url(&server)).await.unwrap());
    for closes in [false, true] {
        let mut consumer = consumer(&*broker, &queue).await;
        send(&*other, &queue, &Sample::many(5)).await.unwrap();
        assert!(is_begun_and_dropped(reserve(&mut *consumer, 5, SOON)).await);
        arrived(&server, "ZCARD anyqueue:{returned}:reserved", 5).await;
        // The answer has time to come.
        broker.ping().await.unwrap();
        proxy.refuse(true);
        proxy.cut();
        if closes {
            // Nobody waits for the end of it.
            let _ = tokio::time::timeout(Duration::from_millis(1), consumer.close()).await;
        } else {
            drop(consumer);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.refuse(false);
        arrived(&server, "ZCARD anyqueue:{returned}:reserved", 0).await;
        let mut second = self::consumer(&*other, &queue).await;
        let got = reserve(&mut *second, 5, SOON).await.unwrap();
        assert!(got.len() == 5 && got.iter().all(|delivery| delivery.native.redeliveries == Figure::Exact(0)));
        settle_all(&*second.settler(), &got, Settlement::Done).await.unwrap();
    }
}
