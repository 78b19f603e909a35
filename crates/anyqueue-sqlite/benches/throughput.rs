//! The adapter beside the least that SQLite must do for the same durable work, in one run.
//!
//! `cargo bench -p anyqueue-sqlite`; a number after `--` is how many tasks each measurement takes (100,000 by default).
//! Figures are tasks per second; the ratio is the adapter's to the raw one's under the same `synchronous`.

#[path = "../tests/support/mod.rs"]
mod support;

mod raw;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyqueue_core::{Broker, Envelope, Options, Settlement};
use support::{consumer, options, queue, send, take, task};

const SENDERS: usize = 64;
const BATCH: usize = 64;
const BODY: &str = r#"{"task":"render","store":"nl","data":{"order":7},"id":"0190f0f0-0000-7000-8000-000000000000","priority":1024,"ttr":60,"sent_at":1790000000000}"#;

fn main() {
    let tasks = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    let runtime = tokio::runtime::Runtime::new().expect("threads are there");
    for durability in ["process", "power"] {
        println!("durability = {durability}");
        runtime.block_on(run(durability, tasks));
    }
    println!("a backlog of {} beside an empty file", tasks * 10);
    runtime.block_on(backlog(tasks));
}

async fn connect(path: &Path, durability: &str) -> Arc<dyn Broker> {
    let mut options = options(path);
    options.options = Options::from_iter([("durability", durability)]);
    anyqueue_sqlite::DRIVER.open(options).await.expect("a file in a temp folder opens")
}

async fn run(durability: &str, tasks: usize) {
    let folder = tempfile::tempdir().expect("a temp folder");
    let full = durability == "power";
    let few = if full { tasks / 50 } else { tasks / 10 };
    let broker = connect(&folder.path().join("q.db"), durability).await;
    let mut raw = raw::Raw::open(&folder.path().join("raw.db"), full);

    let mine = one_by_one(&*broker, few).await;
    line("sends one after another", few, raw.one_by_one(few), mine);
    // Alternating, so that a busy neighbour on the machine meets both.
    for _ in 0..2 {
        let (group, tasks) = (raw::Group::start(raw), tasks);
        let theirs = group.senders(SENDERS, tasks).await;
        raw = group.end();
        line("64 senders", tasks, theirs, senders(&broker, tasks).await);
        line("sends in batches of 64", tasks, raw.batches(BATCH, tasks), batches(&*broker, tasks).await);
        let before = broker.info().round_trips;
        let theirs = raw.drain(BATCH);
        let (count, mine) = drain(&*broker).await;
        line("drain in batches of 64", count, theirs, (count, mine));
        let commits = (broker.info().round_trips - before) as f64;
        println!("  {:<28} {:.4}", "  commits per task", commits / count as f64);
    }
    broker.close().await.expect("closes");
}

fn line(what: &str, _count: usize, raw: (usize, Duration), mine: (usize, Duration)) {
    let rate = |(count, time): (usize, Duration)| count as f64 / time.as_secs_f64();
    println!("  {what:<28} raw {:>9.0}/s   adapter {:>9.0}/s   ratio {:.2}", rate(raw), rate(mine), rate(mine) / rate(raw));
}

async fn one_by_one(broker: &dyn Broker, count: usize) -> (usize, Duration) {
    let start = Instant::now();
    for _ in 0..count {
        send(broker, &queue("bench"), &[task(BODY)]).await;
    }
    (count, start.elapsed())
}

async fn senders(broker: &Arc<dyn Broker>, count: usize) -> (usize, Duration) {
    let start = Instant::now();
    let each = count / SENDERS;
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let broker = broker.clone();
            tokio::spawn(async move { one_by_one(&*broker, each).await })
        })
        .collect();
    for sender in senders {
        sender.await.expect("no sender panics");
    }
    (each * SENDERS, start.elapsed())
}

async fn batches(broker: &dyn Broker, count: usize) -> (usize, Duration) {
    let start = Instant::now();
    for _ in 0..count / BATCH {
        let batch: Vec<Envelope> = (0..BATCH).map(|_| task(BODY)).collect();
        send(broker, &queue("bench"), &batch).await;
    }
    (count / BATCH * BATCH, start.elapsed())
}

/// One consumer; what was reserved is settled while the next tasks are reserved.
async fn drain(broker: &dyn Broker) -> (usize, Duration) {
    let mut consumer = consumer(broker, &queue("bench")).await;
    let settler = consumer.settler();
    let mut left = broker.admin().stats(&queue("bench")).await.expect("stats").ready.value().expect("known") as usize;
    let count = left;
    let start = Instant::now();
    let mut done: Vec<_> = Vec::new();
    while left > 0 || !done.is_empty() {
        let settle = settler.settle(&done);
        if left == 0 {
            settle.await;
            break;
        }
        let (answers, got) = tokio::join!(settle, take(&mut *consumer, BATCH));
        assert!(answers.iter().all(Result::is_ok));
        let got = got.expect("tasks are there");
        left -= got.len();
        done = got.into_iter().map(|delivery| (delivery.receipt, Settlement::Done)).collect();
    }
    (count, start.elapsed())
}

/// Claims beside a large backlog, of ready tasks and of delayed and held ones, and beside none.
async fn backlog(tasks: usize) {
    let folder = tempfile::tempdir().expect("a temp folder");
    let mut rates = Vec::new();
    for (name, ready, delayed) in [("empty", 0, 0), ("delayed", 0, tasks * 10), ("ready", tasks * 10, 0)] {
        let broker = connect(&folder.path().join(format!("{name}.db")), "process").await;
        batches_of(&*broker, ready, Duration::ZERO).await;
        batches_of(&*broker, delayed, Duration::from_secs(86_400)).await;
        batches(&*broker, tasks).await;
        let mut consumer = consumer(&*broker, &queue("bench")).await;
        let settler = consumer.settler();
        let start = Instant::now();
        for _ in 0..tasks / BATCH {
            let got = take(&mut *consumer, BATCH).await.expect("tasks are there");
            let done: Vec<_> = got.into_iter().map(|delivery| (delivery.receipt, Settlement::Done)).collect();
            settler.settle(&done).await;
        }
        let rate = (tasks / BATCH * BATCH) as f64 / start.elapsed().as_secs_f64();
        rates.push(rate);
        println!("  {name:<28} {rate:>9.0}/s   ratio {:.2}", rate / rates[0]);
        broker.close().await.expect("closes");
    }
}

async fn batches_of(broker: &dyn Broker, count: usize, delay: Duration) {
    for _ in 0..count / 1000 {
        let mut batch: Vec<Envelope> = (0..1000).map(|_| task(BODY)).collect();
        batch.iter_mut().for_each(|task| task.delay = delay);
        send(broker, &queue("bench"), &batch).await;
    }
}
