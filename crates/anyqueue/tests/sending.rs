//! Sending: how tasks share requests, how long they wait for a broker, and what an error says of them.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]
#![cfg(feature = "memory")]

#[path = "support/staged.rs"]
mod staged;

use std::sync::Arc;
use std::time::Duration;

use anyqueue::{NewTask, QueueName, TestClock};
use anyqueue_core::{Batch, Capabilities, Effect, Error, ErrorKind, Link};
use anyqueue_testkit::{Scripted, Verb};
use staged::staged;

fn q() -> QueueName {
    QueueName::new("q").unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_one_try_may_have_sent_stays_unknown_however_the_last_one_ends() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("doubtful", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    let sender = queues.queue("q").unwrap();
    for many in [false, true] {
        scripted.fail_next(Verb::Send, Error::unavailable("reset").effect_unknown());
        scripted.fail_next(Verb::Send, Error::new(ErrorKind::Busy, "somebody else has it"));
        scripted.fail_next(Verb::Send, Error::new(ErrorKind::Denied, "no such user"));
        let error = match many {
            false => sender.send(NewTask::new("w", &1)).await.unwrap_err(),
            true => sender.send_all(vec![NewTask::new("w", &1)]).await.remove(0).unwrap_err(),
        };
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Denied, Effect::Unknown), "{error}");
    }
    scripted.fail_next(Verb::Send, Error::new(ErrorKind::Denied, "no such user"));
    assert_eq!(sender.send(NewTask::new("w", &1)).await.unwrap_err().effect(), Effect::None);
}

#[tokio::test(start_paused = true)]
async fn sending_to_a_broker_that_is_down_gives_up_with_a_clear_error() {
    let queues = staged("nobody", None, TestClock::start()).await;
    let sender = queues.queue("q").unwrap();
    for many in [false, true] {
        let started = tokio::time::Instant::now();
        let errors = match many {
            false => vec![sender.send(NewTask::new("w", &1)).await.unwrap_err()],
            true => {
                let answers = sender.send_all((0..3).map(|n| NewTask::new("w", &n)).collect()).await;
                answers.into_iter().map(Result::unwrap_err).collect()
            }
        };
        let waited = started.elapsed();
        assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&waited), "{waited:?}, many: {many}");
        for error in errors {
            let text = error.to_string();
            assert!(
                text.contains("connection refused") && text.contains("queue q") && text.contains("gave up after 5s"),
                "{text}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_tasks_wait_for_a_broker_that_is_not_up_yet() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("late", None, TestClock::start()).await;
    let sender = queues.queue("q").unwrap();
    let comes_up = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        staged::BROKERS.lock().unwrap().insert("late".into(), Arc::new(scripted.clone()));
    };
    let (answers, ()) = tokio::join!(sender.send_all((0..3).map(|n| NewTask::new("w", &n)).collect()), comes_up);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(scripted.sent().len(), 3);
}

/// Many tasks meet an outage of a broker that they were connected to: it ends while the first of them waits for its last try.
#[tokio::test(start_paused = true)]
async fn many_tasks_are_all_tried_once_more_when_an_outage_ends_late() {
    for down in [4_900, 60_000].map(Duration::from_millis) {
        let scripted = Scripted::new(Arc::new(TestClock::start()));
        let queues = staged(&format!("outage {down:?}"), Some(Arc::new(scripted.clone())), TestClock::start()).await;
        let sender = queues.queue("q").unwrap();
        queues.broker(&q()).await.unwrap();
        scripted.set_latency(Duration::from_millis(100));
        (0..200).for_each(|_| scripted.fail_next(Verb::Send, Error::unavailable("reset")));
        let ends = async {
            tokio::time::sleep(down).await;
            scripted.stop_failing();
        };
        let sends = sender.send_all((0..50).map(|n| NewTask::new("w", &n)).collect());
        let began = tokio::time::Instant::now();
        let answers = tokio::select! {
            answers = sends => answers,
            () = async { ends.await; std::future::pending().await } => unreachable!(),
        };
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(6), "{waited:?}: each was waited for by itself");
        if down < Duration::from_secs(5) {
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            assert_eq!(scripted.sent().len(), 50);
        } else {
            assert!(
                answers.iter().all(|answer| answer.as_ref().is_err_and(|e| e.to_string().contains("gave up after 5s"))),
                "{answers:?}"
            );
        }
    }
}

/// How long 500 sends at once take that a broker with such limits answers after 10 ms each, connected before or by them.
async fn burst(name: &str, batch: Batch, link: Link, connected: bool) -> Duration {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    scripted.set_latency(Duration::from_millis(10));
    scripted.set_capabilities(Capabilities { batch, link, ..Capabilities::FULL });
    let queues = staged(name, Some(Arc::new(scripted.clone())), TestClock::start()).await;
    let sender = queues.queue("q").unwrap();
    if connected {
        queues.broker(&q()).await.unwrap();
    }
    let started = tokio::time::Instant::now();
    let sends = (0..500).map(|n| {
        let sender = sender.clone();
        tokio::spawn(async move { sender.send(NewTask::new("w", &n)).await })
    });
    for send in sends.collect::<Vec<_>>() {
        send.await.unwrap().unwrap();
    }
    assert_eq!(scripted.sent().len(), 500);
    started.elapsed()
}

const NETWORK: Link = Link::Network { liveness: Duration::from_secs(10) };

#[tokio::test(start_paused = true)]
async fn concurrent_sends_share_requests() {
    for (name, link, connected) in [("one", NETWORK, true), ("two", NETWORK, false), ("three", Link::File, false)] {
        let took = burst(name, Capabilities::FULL.batch, link, connected).await;
        assert!(took <= Duration::from_millis(100), "500 sends took {took:?} in case {name}: each had a request of its own");
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_sends_have_as_many_requests_under_way_as_they_fill() {
    for (name, connected) in [("parts", true), ("first parts", false)] {
        let took = burst(name, Batch { send: 10, together: 10, ..Capabilities::FULL.batch }, NETWORK, connected).await;
        assert!(took <= Duration::from_millis(50), "500 sends took {took:?}: few requests of ten were under way at once");
    }
}

#[tokio::test(start_paused = true)]
async fn who_sends_again_and_again_is_never_left_waiting_for_a_request_to_be_full() {
    for senders in [1, 7, 23, 64] {
        let scripted = Scripted::new(Arc::new(TestClock::start()));
        scripted.set_latency(Duration::from_millis(10));
        let batch = Batch { send: 160, together: 10, ..Capabilities::FULL.batch };
        scripted.set_capabilities(Capabilities { batch, link: NETWORK, ..Capabilities::FULL });
        let queues = staged(&format!("again {senders}"), Some(Arc::new(scripted.clone())), TestClock::start()).await;
        let sender = queues.queue("q").unwrap();
        let one = || {
            let sender = sender.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    sender.send(NewTask::new("w", &n)).await.unwrap();
                }
            })
        };
        let all: Vec<_> = (0..senders).map(|_| one()).collect();
        for sending in all {
            // Each waits for two requests at the most: one that has just left, and its own.
            tokio::time::timeout(Duration::from_millis(20 * 2 * 10 + 100), sending).await.expect("is answered").unwrap();
        }
        assert_eq!(scripted.sent().len(), 20 * senders);
    }
}
