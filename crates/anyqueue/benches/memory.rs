//! How much the runner itself costs: a backlog on the memory broker against a bare tokio channel and spawn loop.
//!
//! `cargo bench -p anyqueue --bench memory [-- TASKS]`. Both do the same work per task: read JSON, add to a counter.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyqueue::{NewTask, Queue, Queues, Runner, Settings, Task};
use serde::{Deserialize, Serialize};

const SLOTS: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
struct Payload {
    id: u64,
    kind: String,
    to: String,
    body: String,
}

fn payload(id: u64) -> Payload {
    Payload { id, kind: "noop".into(), to: "someone@example.com".into(), body: "Lorem ipsum dolor sit amet, consect".into() }
}

/// A channel, a spawn per task, at most `SLOTS` at once.
async fn bare(tasks: usize) -> Duration {
    let (send, mut receive) = tokio::sync::mpsc::channel::<Vec<u8>>(tasks);
    for id in 0..tasks {
        send.send(serde_json::to_vec(&payload(id as u64)).expect("JSON")).await.expect("open");
    }
    drop(send);
    let (done, slots) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(SLOTS)));
    let started = Instant::now();
    tokio::spawn({
        let (done, slots) = (done.clone(), slots.clone());
        async move {
            while let Some(body) = receive.recv().await {
                let slot = slots.clone().acquire_owned().await.expect("open");
                let done = done.clone();
                tokio::spawn(async move {
                    let payload: Payload = serde_json::from_slice(&body).expect("JSON");
                    done.fetch_add(usize::from(payload.id < u64::MAX), Ordering::Relaxed);
                    drop(slot);
                });
            }
        }
    })
    .await
    .expect("no panic");
    let _all = slots.acquire_many(SLOTS as u32).await.expect("open");
    assert_eq!(done.load(Ordering::Relaxed), tasks);
    started.elapsed()
}

async fn drained(tasks: usize) -> Duration {
    let text = "[brokers.default]\nurl = \"memory:\"\n[queues.bench]\n";
    let settings = Settings::builder().text("bench", text).environment([]).load().expect("settings");
    let queues = Queues::connect(settings).await.expect("memory");
    let sender = queues.queue("bench").expect("known");
    for first in (0..tasks).step_by(1000) {
        let batch = (first..(first + 1000).min(tasks)).map(|id| NewTask::new("noop", &payload(id as u64))).collect();
        assert!(sender.send_all(batch).await.iter().all(Result::is_ok));
    }
    let done = Arc::new(AtomicUsize::new(0));
    let count = done.clone();
    let handler = Queue::new("bench", ()).worker("noop", move |_, task: Task<Payload>| {
        count.fetch_add(usize::from(task.data.id < u64::MAX), Ordering::Relaxed);
        async {}
    });
    let started = Instant::now();
    let finished = Runner::new(queues).queue(handler).slots(SLOTS).drain().run().await.expect("drains");
    let took = started.elapsed();
    assert_eq!((finished.progress.done as usize, done.load(Ordering::Relaxed)), (tasks, tasks));
    took
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let tasks = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(400_000);
    runtime.block_on(async {
        for round in 1..=3 {
            let (bare, ours) =
                (tokio::spawn(bare(tasks)).await.expect("bare"), tokio::spawn(drained(tasks)).await.expect("ours"));
            let rate = |took: Duration| tasks as f64 / took.as_secs_f64();
            println!(
                "round {round}: bare channel + spawn {:>9.0}/s   memory drain {:>9.0}/s   ratio {:.2}",
                rate(bare),
                rate(ours),
                rate(ours) / rate(bare)
            );
        }
    });
}
