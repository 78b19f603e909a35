//! The facade against brokers that misbehave: down, slow, forgetful.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]
#![cfg(feature = "memory")]

#[path = "support/staged.rs"]
mod staged;
#[path = "support/working.rs"]
mod working;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyqueue::testing::{all_sent, queues};
use anyqueue::{NewTask, Outcome, Queue, Queues, Runner, Settings, Task, TestClock};
use anyqueue_core::{Capabilities, Drift, Error, Settlement, Support, Wire};
use anyqueue_testkit::{Faults, Faulty, Record, Scripted, Verb};
use staged::{BROKERS, staged};
use working::{as_long_as, counting, q};

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_down_stops_no_other_and_is_taken_back() {
    let queues = staged("down", None, TestClock::start()).await;
    queues.queue("other").unwrap().send(NewTask::new("w", &1)).await.unwrap();
    let (q_runs, other_runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let runner = Runner::new(queues.clone()).queue(counting("q", &q_runs)).queue(counting("other", &other_runs));
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    as_long_as(|| other_runs.load(Ordering::SeqCst) == 0 || handle.health().iter().all(|queue| queue.failures < 3)).await;
    let health = handle.health();
    let down = health.iter().find(|queue| queue.queue == "q").unwrap();
    assert!(down.error.as_deref().unwrap().contains("connection refused") && down.last_answer.is_none(), "{down:?}");
    assert_eq!(health.iter().find(|queue| queue.queue == "other").unwrap().failures, 0);

    let early = Runner::new(queues.clone()).queue(counting("q", &q_runs)).queue(counting("other", &other_runs));
    let (asked, early) = (early.handle(), tokio::spawn(early.run()));
    as_long_as(|| asked.health().iter().all(|queue| queue.failures == 0)).await;
    asked.stop();
    let finished = early.await.unwrap().unwrap();
    assert_eq!((&finished.out_of_reach[..], finished.exit_code()), (&["q".to_owned()][..], 0));
    assert!(finished.to_string().ends_with("out of reach in the end: q"), "{finished}");

    let back = Scripted::new(Arc::new(TestClock::start()));
    back.feed(&q(), &queues.prepare("q", NewTask::new("w", &1)).unwrap());
    BROKERS.lock().unwrap().insert("down".into(), Arc::new(back.clone()));
    as_long_as(|| q_runs.load(Ordering::SeqCst) == 0).await;
    assert_eq!(handle.health().iter().map(|queue| queue.failures).sum::<u32>(), 0);
    back.fail_next(Verb::Reserve, Error::unavailable("reset"));
    as_long_as(|| handle.health().iter().all(|queue| queue.failures == 0)).await;
    let failed = tokio::time::Instant::now();
    as_long_as(|| handle.health().iter().any(|queue| queue.failures > 0)).await;
    assert!(failed.elapsed() < Duration::from_secs(3), "an idle queue does not look out of reach until a task comes");
    handle.stop();
    assert!(run.await.unwrap().unwrap().out_of_reach.is_empty());
    assert_eq!(back.settled().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_cannot_do_is_refused_at_the_start_all_at_once() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let hold = Support::Needs((), "a task log");
    let ranges = Support::Needs((), "`bands = […]`");
    scripted.set_capabilities(Capabilities { hold, priority_ranges: ranges, ..Capabilities::FULL });
    let queues = staged("poor", Some(Arc::new(scripted)), TestClock::start()).await;
    let runner = || Runner::new(queues.clone()).queue(counting("q", &Arc::default())).priorities("10".parse().unwrap());
    for runner in [runner(), runner().drain()] {
        let error = runner.run().await.unwrap_err().to_string();
        assert!(
            error.contains("hold needs a task log") && error.contains("taking priorities 10 only needs `bands = […]`"),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_has_otherwise_is_told_when_work_begins_and_keeps_nothing_from_running() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let drift = Drift { what: "bands".into(), wanted: "none".into(), found: "[512]".into() };
    scripted.set_drift(std::slice::from_ref(&drift));
    let queues = staged("other", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &1)).unwrap());
    // It is compared again when tries fail, and its work does not wait for that.
    for _ in 0..20 {
        scripted.fail_next(Verb::Declare, Error::unavailable("reset"));
    }
    let runner = Runner::new(queues.clone()).queue(counting("q", &Arc::default()));
    let (handle, began, run) = (runner.handle(), tokio::time::Instant::now(), tokio::spawn(runner.run()));
    as_long_as(|| handle.progress().done == 0).await;
    assert!(began.elapsed() < Duration::from_millis(50) && handle.health()[0].drift.is_none());
    // One that is not there, or whose owner is somebody else, is too, and later.
    scripted.fail_next(Verb::Declare, Error::new(anyqueue_core::ErrorKind::NotFound, "no queue"));
    as_long_as(|| handle.health()[0].drift.is_none()).await;
    assert_eq!((handle.health()[0].drift.clone(), handle.health()[0].failures), (Some(vec![drift.clone()]), 0));
    handle.stop();
    run.await.unwrap().unwrap();
    // A drain that is over at once waits for that, but not long.
    for (failures, least, most) in [(1, 50, 500), (50, 1000, 1500)] {
        scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &1)).unwrap());
        (0..failures).for_each(|_| scripted.fail_next(Verb::Declare, Error::unavailable("reset")));
        let began = tokio::time::Instant::now();
        let drained = Runner::new(queues.clone()).queue(counting("q", &Arc::default())).drain().run().await.unwrap();
        let took = began.elapsed().as_millis();
        assert!(drained.progress.done == 1 && (least..most).contains(&took), "{took} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_hangs_keeps_no_other_one_from_beginning() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("hangs", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    scripted.set_latency(Duration::from_secs(3600));
    queues.queue("other").unwrap().send(NewTask::new("w", &1)).await.unwrap();
    let runner = Runner::new(queues).queue(counting("q", &Arc::default())).queue(counting("other", &Arc::default()));
    let (handle, began, run) = (runner.handle(), tokio::time::Instant::now(), tokio::spawn(runner.run()));
    as_long_as(|| handle.progress().done == 0).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    handle.stop();
    run.await.unwrap().unwrap();
}

/// RabbitMQ does not know at once what a queue has whose only active consumer is another one.
#[tokio::test(start_paused = true)]
async fn a_broker_that_knows_only_after_a_while_what_it_has_is_not_taken_for_gone() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    scripted.hesitate();
    let queues = staged("unsure", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    scripted.fail_next(Verb::Consume, Error::unavailable("reset"));
    let runner = Runner::new(queues).queue(counting("q", &Arc::default()));
    let (handle, run) = (runner.handle(), tokio::spawn(runner.run()));
    let waits = |record: &Record| matches!(record, Record::Reserved(_, wait) if *wait > Duration::from_secs(10));
    as_long_as(|| !scripted.records().iter().any(|(_, record)| waits(record))).await;
    assert_eq!(handle.health()[0].failures, 0);
    handle.stop();
    assert_eq!(run.await.unwrap().unwrap().out_of_reach.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_cannot_be_consumed_ends_no_others_and_is_told_at_the_end() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("cut", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    let refuse = || scripted.fail_next(Verb::Consume, Error::new(anyqueue_core::ErrorKind::Unsupported, "a band is cut"));
    refuse();
    let error = Runner::new(queues.clone()).queue(counting("q", &Arc::default())).drain().run().await.unwrap_err();
    assert!(error.to_string().contains("a band is cut"), "{error}");
    refuse();
    queues.queue("other").unwrap().send(NewTask::new("w", &1)).await.unwrap();
    let both = Runner::new(queues).queue(counting("q", &Arc::default())).queue(counting("other", &Arc::default()));
    let finished = both.drain().run().await.unwrap();
    assert_eq!((finished.progress.done, finished.unworked, finished.exit_code()), (1, 1, 1), "{finished}");
}

#[tokio::test(start_paused = true)]
async fn a_result_is_stored_again_and_again_until_the_lease_is_over_and_then_it_counts_for_nothing() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("forgetful", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &1)).unwrap());
    scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &2)).unwrap());
    (0..3).for_each(|_| scripted.fail_next(Verb::Settle, Error::unavailable("reset")));
    let runs = Arc::new(AtomicUsize::new(0));
    let runner = Runner::new(queues.clone()).queue(counting("q", &runs)).slots(1);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    as_long_as(|| handle.progress().done < 2).await;
    assert_eq!((scripted.settled().len(), runs.load(Ordering::SeqCst)), (2, 2));
    // Now the broker is away for longer than the lease.
    (0..1000).for_each(|_| scripted.fail_next(Verb::Settle, Error::unavailable("reset")));
    scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &3)).unwrap());
    as_long_as(|| handle.progress().late < 1).await;
    handle.stop();
    run.await.unwrap().unwrap();
    assert_eq!(scripted.settled().len(), 2, "past the local deadline nothing is sent");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_cancels_the_attempt_and_nothing_is_sent() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("stolen", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &1)).unwrap());
    scripted.fail_next(Verb::Touch, Error::lease_lost());
    let handler = Queue::new("q", ()).worker("w", |_, task: Task<u32>| async move {
        task.cancelled().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(task.data > 1000, "a cancelled handler is dropped");
    });
    let runner = Runner::new(queues).queue(handler);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    as_long_as(|| handle.progress().late == 0).await;
    handle.stop();
    run.await.unwrap().unwrap();
    assert!(scripted.settled().is_empty());
}

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_in_batches_well_before_they_end() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("renewed", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    for n in 0..5 {
        scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &n)).unwrap());
    }
    let handler = Queue::new("q", ()).worker("w", |_, _: Task<u32>| tokio::time::sleep(Duration::from_secs(60)));
    let runner = Runner::new(queues).queue(handler).slots(5);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    as_long_as(|| handle.progress().done < 5).await;
    handle.stop();
    run.await.unwrap().unwrap();
    let touched: Vec<_> = scripted.records().into_iter().filter(|(_, record)| matches!(record, Record::Touched(..))).collect();
    let moments: std::collections::BTreeSet<_> = touched.iter().map(|(at, _)| at.elapsed_since_origin().as_secs()).collect();
    // A TTR of 10 s is renewed about every third of it, all five at once.
    assert!((14..=20).contains(&moments.len()) && touched.len() >= 5 * 14, "{} touches at {moments:?}", touched.len());
}

#[tokio::test(start_paused = true)]
async fn without_a_time_limit_an_attempt_may_take_what_the_broker_says_once_it_is_connected() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    scripted.set_capabilities(Capabilities { touch: Support::Native(Some(Duration::from_secs(60))), ..Capabilities::FULL });
    let queues = staged("brief", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    let handler = Queue::new("q", ()).worker("w", |_, _: Task<u32>| std::future::pending::<()>());
    let runner = Runner::new(queues.clone()).queue(handler);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    let (started, task) = (tokio::time::Instant::now(), queues.prepare("q", NewTask::new("w", &1)).unwrap());
    scripted.feed(&q(), &task);
    as_long_as(|| scripted.settled().is_empty()).await;
    assert_eq!(started.elapsed().as_secs(), 60);
    let (_, settlement) = scripted.settled().remove(0);
    let Settlement::Retry(next) = settlement else { panic!("{settlement:?}") };
    assert_eq!(Wire::read(&next.body).unwrap().failed, 1);
    handle.stop();
    run.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_on_a_broker_that_duplicates_forgets_and_fails() {
    let clock = TestClock::start();
    let text = "[brokers.default]\nurl = \"memory:chaos\"\n[queues.q]\n";
    let plain = Settings::builder().text("test", text).environment([]).load().unwrap();
    let inner = Queues::builder(plain).clock(clock).connect().await.unwrap();
    let faulty = Faulty::new(inner.broker(&q()).await.unwrap(), Arc::new(clock), 7);
    let queues = staged("chaos", Some(Arc::new(faulty.clone())), clock).await;
    let faults = Faults {
        duplicate: 0.05,
        lose_settle: 0.1,
        hide_settle: 0.1,
        hide_send: 0.1,
        fail: 0.1,
        lose_touch: 0.05,
        ..Faults::default()
    };
    faulty.set(faults);
    let runs: Arc<Vec<AtomicUsize>> = Arc::new((0..300).map(|_| AtomicUsize::new(0)).collect());
    let counted = runs.clone();
    let handler = Queue::new("q", ()).worker("w", move |_, task: Task<usize>| {
        counted[task.data].fetch_add(1, Ordering::SeqCst);
        async move { if task.data.is_multiple_of(5) && task.attempt() == 1 { Outcome::retry() } else { Outcome::done() } }
    });
    let sender = queues.queue("q").unwrap();
    for n in 0..300 {
        sender.send(NewTask::new("w", &n)).await.unwrap();
    }
    let runner = Runner::new(queues.clone()).queue(handler).slots(8);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    // A task whose settlement is lost four times in a row looks like one that kills its workers, and is held as such.
    let open = |task: &&serde_json::Value| task["state"] != "held";
    let emptied = async {
        while all_sent(&inner, "q").await.unwrap().iter().any(|task| open(&task)) {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(7 * 86_400), emptied).await.expect("all tasks come to an end");
    faulty.set(Faults::default());
    handle.stop();
    run.await.unwrap().unwrap();
    let missing: Vec<_> =
        runs.iter().enumerate().filter(|(_, count)| count.load(Ordering::SeqCst) == 0).map(|(n, _)| n).collect();
    assert!(missing.is_empty(), "never ran: {missing:?}");
    for task in all_sent(&inner, "q").await.unwrap() {
        assert_eq!(task["held"]["reason"], "3 workers died while running this task", "{task}");
    }
}

#[tokio::test]
async fn a_group_or_a_unique_key_is_refused_where_nobody_keeps_it() {
    let tasks_of = queues(["q"]).await;
    let sender = tasks_of.queue("q").unwrap();
    for task in [NewTask::new("w", &1).group("g"), NewTask::new("w", &1).unique("u")] {
        let error = sender.send(task).await.unwrap_err();
        assert_eq!(error.kind(), anyqueue_core::ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("ignores it"), "{error}");
    }
    // The broker is connected by the first of a burst; the others wait in line meanwhile.
    let fresh = queues(["q"]).await;
    let burst = fresh.queue("q").unwrap();
    let all = futures::future::join_all((0..10).map(|n| burst.send(NewTask::new("w", &n).group("g")))).await;
    assert!(all.iter().all(Result::is_err), "{all:?}");
    let many = vec![NewTask::new("w", &1), NewTask::new("w", &2).group("g"), NewTask::new("w", &3)];
    let answers: Vec<bool> = sender.send_all(many).await.iter().map(Result::is_ok).collect();
    assert_eq!(answers, [true, false, true]);
    assert_eq!(all_sent(&tasks_of, "q").await.unwrap().len(), 2);
}
