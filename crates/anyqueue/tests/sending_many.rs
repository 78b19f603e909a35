//! Sending many tasks at once through a broker that takes some of them, or none.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]
#![cfg(feature = "memory")]

#[path = "support/staged.rs"]
mod staged;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyqueue::{NewTask, QueueName, Sender, TestClock};
use anyqueue_core::{Batch, Capabilities, Effect, Envelope, Error, ErrorKind, Link, Support};
use anyqueue_testkit::{Scripted, Verb};
use staged::staged;
use tokio::time::Instant;

/// What `send_timeout` is in these tests.
const TIME: Duration = Duration::from_secs(5);
const LATENCY: Duration = Duration::from_millis(10);

/// A broker that takes ten tasks in a request, and has been connected to.
async fn tens(name: &str) -> (Scripted, Sender) {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let (batch, link) = (Batch { send: 10, ..Capabilities::FULL.batch }, Link::Network { liveness: Duration::from_secs(10) });
    scripted.set_capabilities(Capabilities { batch, link, ..Capabilities::FULL });
    scripted.set_latency(LATENCY);
    let queues = staged(name, Some(Arc::new(scripted.clone())), TestClock::start()).await;
    queues.broker(&QueueName::new("q").unwrap()).await.unwrap();
    (scripted, queues.queue("q").unwrap())
}

/// Tasks whose priority is their number.
fn tasks(count: u32) -> Vec<NewTask> {
    (0..count).map(|n| NewTask::new("w", &n).priority(n)).collect()
}

fn taken(scripted: &Scripted) -> Vec<u32> {
    scripted.sent().iter().map(|(_, task)| task.priority).collect()
}

/// Fails each of these tasks the first time.
fn once(tasks: &'static [u32], error: fn() -> Error) -> impl Fn(&Envelope) -> Option<Error> {
    let met = Mutex::new(BTreeSet::new());
    move |task| (tasks.contains(&task.priority) && met.lock().unwrap().insert(task.priority)).then(error)
}

#[tokio::test(start_paused = true)]
async fn what_failed_goes_again_before_what_comes_after_it_and_nothing_goes_twice() {
    let (scripted, sender) = tens("some fail").await;
    scripted.judge(once(&[3, 17, 18], || Error::new(ErrorKind::Throttled, "slow down")));
    let answers = sender.send_all(tasks(30)).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    // After a failure requests have one task, two, four, eight.
    let expected =
        [&[0, 1, 2, 4, 5, 6, 7, 8, 9][..], &[3], &[10, 11], &[12, 13, 14, 15], &[16, 19, 20, 21, 22, 23], &[17], &[18, 24]];
    let rest = 25..30;
    assert_eq!(taken(&scripted), expected.concat().into_iter().chain(rest).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_that_of_its_task_and_what_one_try_may_have_sent_stays_unknown() {
    let (scripted, sender) = tens("doubtful ones").await;
    let lost = once(&[4, 17], || Error::unavailable("reset").effect_unknown());
    scripted.judge(move |task| match task.priority {
        4 | 5 | 17 => lost(task).or_else(|| Some(Error::new(ErrorKind::Denied, format!("not {}", task.priority)))),
        _ => None,
    });
    let answers = sender.send_all(tasks(30)).await;
    for (n, answer) in answers.iter().enumerate() {
        match answer {
            Err(e) => {
                assert_eq!((e.kind(), e.message()), (ErrorKind::Denied, &*format!("not {n}")));
                assert_eq!(e.effect(), if n == 5 { Effect::None } else { Effect::Unknown }, "{n}: {e}");
            }
            Ok(_) => assert!(![4, 5, 17].contains(&n)),
        }
    }
    assert_eq!(taken(&scripted).len(), 27);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_answers_nothing_is_given_up_after_the_time_to_send_however_many_tasks_there_are() {
    let (scripted, sender) = tens("silent").await;
    scripted.set_latency(Duration::from_secs(2));
    (0..20).for_each(|_| scripted.fail_next(Verb::Send, Error::new(ErrorKind::Timeout, "no answer").effect_unknown()));
    let began = Instant::now();
    let answers = sender.send_all(tasks(1000)).await;
    let waited = began.elapsed();
    assert!((TIME..TIME + Duration::from_secs(3)).contains(&waited), "{waited:?}");
    let errors: Vec<Error> = answers.into_iter().map(Result::unwrap_err).collect();
    let expected = format!("gave up after {}s", waited.as_secs_f64().round());
    assert!(errors.iter().all(|e| e.to_string().contains(&expected)), "{expected}: {}", errors[0]);
    let unknown = errors.iter().filter(|e| e.effect() == Effect::Unknown).count();
    assert_eq!(unknown, 10, "those that were in a request, and no others");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_a_task_now_and_then_is_not_flooded_with_all_the_others() {
    let (scripted, sender) = tens("trickle").await;
    let (tries, room) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(10)));
    let (tried, free) = (tries.clone(), room.clone());
    scripted.judge(move |_| {
        tried.fetch_add(1, Ordering::Relaxed);
        let has_room = free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        (!has_room).then(|| Error::new(ErrorKind::Full, "no room"))
    });
    let drained = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            room.store(1, Ordering::Relaxed);
        }
    };
    let answers = tokio::select! {
        answers = sender.send_all(tasks(1000)) => answers,
        () = drained => unreachable!(),
    };
    let (accepted, tried) = (answers.iter().filter(|answer| answer.is_ok()).count(), tries.load(Ordering::Relaxed));
    assert!(accepted >= 40, "{accepted} of about sixty for which there was room");
    // The last try of all comes on top.
    assert!(tried < 1000 + 10 * accepted as u32, "{tried} tries for {accepted} tasks");
}

#[tokio::test(start_paused = true)]
async fn tasks_for_which_there_is_room_are_not_given_up_with_those_for_which_there_is_none() {
    let (scripted, sender) = tens("half full").await;
    scripted.judge(|task| (task.priority < 15).then(|| Error::new(ErrorKind::Full, "this band has no room")));
    let answers = sender.send_all(tasks(100)).await;
    for (n, answer) in answers.iter().enumerate() {
        match answer {
            Err(e) => assert!(n < 15 && e.to_string().contains("gave up after 5s"), "{n}: {e}"),
            Ok(_) => assert!(n >= 15),
        }
    }
    assert_eq!(taken(&scripted), (15..100).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_the_broker_refuses_for_now_keeps_no_others_waiting() {
    let (scripted, sender) = tens("one of them").await;
    scripted.judge(|task| (task.priority == 0).then(|| Error::new(ErrorKind::Throttled, "slow down")));
    let answers = sender.send_all(tasks(30)).await;
    assert!(answers[0].as_ref().is_err_and(|e| e.to_string().contains("gave up after 5s")), "{:?}", answers[0]);
    assert!(answers[1..].iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(taken(&scripted), (1..30).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_nothing_for_a_while_gets_all_in_order_afterwards() {
    for kind in [ErrorKind::Full, ErrorKind::Throttled] {
        let (scripted, sender) = tens(&format!("{kind:?} for a while")).await;
        let open = Instant::now() + Duration::from_secs(2);
        scripted.judge(move |_| (Instant::now() < open).then(|| Error::new(kind, "not now")));
        let answers = sender.send_all(tasks(30)).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert_eq!(taken(&scripted), (0..30).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_may_have_been_sent_keeps_no_others_waiting_once_it_is_refused() {
    let (scripted, sender) = tens("doubtful first").await;
    let first = AtomicU32::new(0);
    scripted.judge(move |task| {
        let doubtful = || Error::new(ErrorKind::Timeout, "no answer").effect_unknown();
        let refused = || Error::new(ErrorKind::Throttled, "slow down");
        (task.priority == 0).then(|| if first.fetch_add(1, Ordering::SeqCst) == 0 { doubtful() } else { refused() })
    });
    let answers = sender.send_all(tasks(30)).await;
    assert!(answers[0].as_ref().is_err_and(|e| e.effect() == Effect::Unknown), "{:?}", answers[0]);
    assert_eq!(taken(&scripted), (1..30).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_before_a_task_of_its_group_that_is_refused_for_now() {
    let (scripted, sender) = tens("a group").await;
    let can = anyqueue_core::Broker::capabilities(&scripted, &QueueName::new("q").unwrap());
    scripted.set_capabilities(Capabilities { group: Support::Native(()), ..*can });
    let refused = AtomicU32::new(0);
    scripted.judge(move |task| {
        let begins = task.priority == 0 && refused.fetch_add(1, Ordering::SeqCst) < 4;
        begins.then(|| Error::new(ErrorKind::Throttled, "slow down"))
    });
    let answers = sender.send_all(tasks(30).into_iter().map(|task| task.group("g")).collect()).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(taken(&scripted)[..11], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 10], "what was taken with it, then it, then the others");
}
