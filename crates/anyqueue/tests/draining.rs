//! What a runner asks for and when it may end: slots without prefetch, filters that take their time, leases that ran out.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]
#![cfg(feature = "memory")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyqueue::{NewTask, Queue, Runner, Task, Why};
use anyqueue_core::{DeliveryFilter, QueueName, TaskId, async_trait};
use support::{as_long_as, queues, send};

/// A filter that takes its time.
#[derive(Debug)]
struct Slow;

#[async_trait]
impl DeliveryFilter for Slow {
    async fn wanted(&self, _: &QueueName, ids: &[TaskId]) -> anyqueue_core::Result<Vec<bool>> {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        Ok(vec![true; ids.len()])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_end_while_what_came_is_being_read() {
    let queues = queues("[queues.q]\n").await;
    // Fewer than half of the slots: the next request finds the queue empty while the filter still thinks.
    for n in 0..20 {
        send(&queues, "q", NewTask::new("w", &n)).await;
    }
    let handler = Queue::new("q", ()).worker("w", |_, _: Task<u32>| async {});
    let runner = Runner::new(queues).queue(handler).slots(64).filter(Arc::new(Slow));
    let finished = runner.drain().run().await.unwrap();
    assert_eq!((finished.why, finished.progress.done), (Why::Drained, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_without_prefetch_works_all_tasks() {
    for (slots, prefetch) in [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1)] {
        let queues = queues(&format!("[runner]\nprefetch = {prefetch}\n[queues.q]\n")).await;
        let sent = 5;
        for n in 0..sent {
            send(&queues, "q", NewTask::new("w", &n)).await;
        }
        let handler = || Queue::new("q", ()).worker("w", |_, _: Task<u64>| async {});
        let runner = Runner::new(queues.clone()).queue(handler()).slots(slots);
        let handle = runner.handle();
        let run = tokio::spawn(runner.run());
        as_long_as(|| handle.progress().done < sent).await;
        // Later ones too, once the queue was empty.
        send(&queues, "q", NewTask::new("w", &sent)).await;
        as_long_as(|| handle.progress().done < sent + 1).await;
        handle.stop();
        run.await.unwrap().unwrap();
        for n in 0..sent {
            send(&queues, "q", NewTask::new("w", &n)).await;
        }
        let finished = Runner::new(queues).queue(handler()).slots(slots).drain().run().await.unwrap();
        assert_eq!((finished.why, finished.progress.done), (Why::Drained, sent), "{slots} slots, {prefetch} ahead");
    }
}

/// A filter that takes longer than a lease, the first time.
#[derive(Debug, Default)]
struct TooSlow(AtomicU32);

#[async_trait]
impl DeliveryFilter for TooSlow {
    async fn wanted(&self, _: &QueueName, ids: &[TaskId]) -> anyqueue_core::Result<Vec<bool>> {
        if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1200)).await;
        }
        Ok(vec![true; ids.len()])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_takes_up_again_what_was_over_before_it_was_read() {
    let queues = queues("[queues.q]\nttr = 1\n").await;
    for n in 0..20 {
        send(&queues, "q", NewTask::new("w", &n)).await;
    }
    let handler = Queue::new("q", ()).worker("w", |_, _: Task<u32>| async {});
    let run = Runner::new(queues).queue(handler).slots(64).filter(Arc::new(TooSlow::default())).drain().run();
    let finished = tokio::time::timeout(Duration::from_secs(30), run).await.expect("it ends").unwrap();
    assert_eq!((finished.why, finished.progress.done), (Why::Drained, 20));
}
