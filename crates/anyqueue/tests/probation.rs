//! Tasks that kill their workers, and those that were near them.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]
#![cfg(feature = "memory")]

#[path = "support/staged.rs"]
mod staged;
#[path = "support/working.rs"]
mod working;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyqueue::testing::{drain, queues};
use anyqueue::{NewTask, Queue, Queues, Runner, Task, TestClock};
use anyqueue_core::{Bytes, ConsumeOptions, Figure, NativeFacts, Settlement, Wire};
use anyqueue_testkit::{Record, Scripted};
use staged::staged;
use working::{as_long_as, counting, q};

fn redelivered(queues: &Queues, scripted: &Scripted, body: Bytes) {
    let native = NativeFacts { redeliveries: Figure::Exact(1), ..NativeFacts::default() };
    scripted.feed_raw(&q(), body, native, queues.settings().queue("q").unwrap().ttr);
}

#[tokio::test(start_paused = true)]
async fn a_redelivered_task_is_marked_first_and_held_when_workers_died_with_it_alone() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("poison", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let runner = Runner::new(queues.clone()).queue(counting("q", &runs));
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    let mut body = queues.prepare("q", NewTask::new("w", &1)).unwrap().body;
    // The first death proves nothing; three on probation do.
    for crashed in [0, 1, 2] {
        redelivered(&queues, &scripted, body.clone());
        as_long_as(|| scripted.settled().len() <= crashed).await;
        let (_, settlement) = scripted.settled().pop().unwrap();
        let Settlement::Retry(next) = settlement else { panic!("{settlement:?}") };
        let wire = Wire::read(&next.body).unwrap();
        assert_eq!((wire.probation, wire.crashed as usize, wire.failed), (true, crashed, 0));
        body = next.body;
    }
    redelivered(&queues, &scripted, body);
    as_long_as(|| handle.progress().held == 0).await;
    handle.stop();
    run.await.unwrap().unwrap();
    let (_, settlement) = scripted.settled().pop().unwrap();
    let Settlement::Hold(_, reason) = settlement else { panic!("{settlement:?}") };
    assert_eq!((reason.as_str(), runs.load(Ordering::SeqCst)), ("3 workers died while running this task", 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_on_probation_runs_alone_in_its_process() {
    let queues = queues(["q"]).await;
    let sender = queues.queue("q").unwrap();
    for n in 0..20 {
        sender.send(NewTask::new("w", &n).ttr(Duration::from_secs(5))).await.unwrap();
    }
    // Another worker reserves six and dies.
    let broker = queues.broker(&q()).await.unwrap();
    let mut consumer = broker.consume(&q(), ConsumeOptions::default()).await.unwrap();
    let taken = consumer.reserve(NonZeroUsize::new(6).unwrap(), Duration::ZERO).await.unwrap();
    assert_eq!(taken.len(), 6);
    std::mem::forget(consumer);
    tokio::time::sleep(Duration::from_secs(6)).await;

    let (running, most, beside) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak, wrong) = (running.clone(), most.clone(), beside.clone());
    let handler = Queue::new("q", ()).worker("w", move |_, task: Task<u32>| {
        let (now, peak, wrong) = (now.clone(), peak.clone(), wrong.clone());
        async move {
            let count = now.fetch_add(1, Ordering::SeqCst) + 1;
            peak.fetch_max(count, Ordering::SeqCst);
            let alone = task.data < 6;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if alone && now.load(Ordering::SeqCst) != 1 {
                wrong.fetch_add(1, Ordering::SeqCst);
            }
            now.fetch_sub(1, Ordering::SeqCst);
        }
    });
    let progress = drain(&queues, [handler.into()]).await.unwrap();
    assert_eq!((progress.done, beside.load(Ordering::SeqCst)), (20, 0));
    assert!(most.load(Ordering::SeqCst) > 1, "the others run side by side");
}

/// Works on two queues, one of which has only a task on probation. How many consumers were closed when that began to run, and
/// how long after it was there, if consumers take so long to close; and when, after that, the runner had ended.
async fn consumers_closed_before_it(closing: Duration) -> (usize, Duration, Duration) {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    scripted.set_closing(closing);
    let name = format!("clearing-{}", closing.as_millis());
    let queues = staged(&name, Some(Arc::new(scripted.clone())), TestClock::start()).await;
    let (told, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let records = scripted.clone();
    let handler = Queue::new("q", ()).worker("w", move |_, _: Task<u64>| {
        let closed = records.records().iter().filter(|(_, record)| matches!(record, Record::ConsumerClosed(_))).count();
        let _ = told.send(closed);
        async {}
    });
    let runner = Runner::new(queues.clone()).queue(handler).queue(counting("r", &Arc::default()));
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    let count = |of: fn(&Record) -> bool| scripted.records().iter().filter(|(_, record)| of(record)).count();
    as_long_as(|| count(|record| matches!(record, Record::Reserved(..))) < 2).await;
    let mut suspect = Wire::read(&queues.prepare("q", NewTask::new("w", &1)).unwrap().body).unwrap();
    suspect.probation = true;
    let native = NativeFacts { redeliveries: Figure::Exact(0), ..NativeFacts::default() };
    let fed = tokio::time::Instant::now();
    scripted.feed_raw(&q(), suspect.write(), native, Duration::from_secs(60));
    let closed = begun.recv().await.unwrap();
    let took = fed.elapsed();
    scripted.set_closing(Duration::ZERO);
    as_long_as(|| handle.progress().done == 0).await;
    handle.stop();
    run.await.unwrap().unwrap();
    (closed, took, fed.elapsed())
}

/// What lies fetched in a consumer comes again when the process dies, and would be taken for what it died of.
#[tokio::test(start_paused = true)]
async fn a_task_on_probation_begins_when_all_consumers_have_given_back_what_they_had() {
    assert_eq!(consumers_closed_before_it(Duration::from_millis(700)).await.0, 2);
    let (closed, took, _) = consumers_closed_before_it(Duration::from_secs(3600)).await;
    assert!(closed == 0 && took.as_secs() == 1, "a broker that does not answer is not waited for for long: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_runner_ends_when_its_slowest_consumer_has_given_back_what_it_had() {
    let (closed, took, all) = consumers_closed_before_it(Duration::from_millis(1700)).await;
    assert_eq!((closed, took.as_secs()), (0, 1), "the run alone did not wait for it");
    assert!(all >= Duration::from_millis(1700), "the process may end now, after {all:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_on_probation_does_not_hold_up_a_process_whose_tasks_run_long() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("long", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    let handler = Queue::new("q", ()).worker("w", |_, task: Task<u64>| tokio::time::sleep(Duration::from_secs(task.data)));
    let runner = Runner::new(queues.clone()).queue(handler).slots(3);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &1800)).unwrap());
    as_long_as(|| handle.progress().running == 0).await;
    let mut suspect = Wire::read(&queues.prepare("q", NewTask::new("w", &1)).unwrap().body).unwrap();
    suspect.probation = true;
    scripted.feed_raw(
        &q(),
        suspect.write(),
        NativeFacts { redeliveries: Figure::Exact(0), ..NativeFacts::default() },
        Duration::from_secs(10),
    );
    as_long_as(|| scripted.settled().is_empty()).await;
    let (_, settlement) = scripted.settled().remove(0);
    assert!(matches!(&settlement, Settlement::Release(task) if !task.delay.is_zero()), "{settlement:?}");
    // The others go on beside the long one.
    scripted.feed(&q(), &queues.prepare("q", NewTask::new("w", &1)).unwrap());
    as_long_as(|| handle.progress().done == 0).await;
    assert_eq!(handle.progress().running, 1);
    handle.stop();
    handle.hurry();
    run.await.unwrap().unwrap();
}
