//! The whole of anyqueue on SQLite beside raw rusqlite doing the same durable work, in one run.
//!
//! `cargo bench -p anyqueue --bench sqlite [-- TASKS] [SECTION …]`; sections: `speed`, `latency`, `idle`, `backlog`, `memory`.
//! Ratios are anyqueue's to the raw one's of the same run and the same `synchronous`. Raw SQLite works in a process of its
//! own: the bundled build has one page cache for all connections of a process, and two that are busy spoil each other's.

#[path = "../load/mod.rs"]
mod load;

mod raw;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyqueue::core::Envelope;
use anyqueue::{NewTask, Queue, QueueName, Queues, Runner, Task};
use load::{
    Payload, Raw, SENDERS, SLOTS, counting, median, meter, payload, picked_up, quantiles, rate, send_slowly, speed, wanted, warm,
};
use tokio::sync::Semaphore;

async fn queues(path: &Path, durability: &str, more: &str) -> Queues {
    load::queues(&format!("url = \"sqlite:{}\"\ndurability = \"{durability}\"", path.display()), more).await
}

/// Raw SQLite in a process of its own, a new file each time.
struct Apart<'a> {
    durability: &'a str,
}

impl Apart<'_> {
    fn run(&self, mode: &str, tasks: usize) -> [f64; 2] {
        let program = std::env::current_exe().expect("this program");
        let output =
            std::process::Command::new(program).args(["raw", self.durability, mode, &tasks.to_string()]).output().expect("runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let mut rates = text.split_whitespace().map(|rate| rate.parse().expect("a number"));
        [rates.next().expect("a rate"), rates.next().unwrap_or_default()]
    }
}

impl Raw for Apart<'_> {
    async fn one_by_one(&mut self, tasks: usize) -> f64 {
        self.run("one", tasks)[0]
    }

    async fn many(&mut self, tasks: usize) -> [f64; 2] {
        self.run("many", tasks)
    }
}

fn raw_process(arguments: &[String]) {
    let [_, durability, mode, tasks] = arguments else { panic!("{arguments:?}") };
    let tasks = tasks.parse().expect("a number");
    let folder = tempfile::tempdir().expect("a folder");
    let mut raw = raw::Raw::open(&folder.path().join("raw.db"), durability == "power");
    if mode == "one" {
        let (count, took) = raw.one_by_one(tasks);
        return println!("{}", rate(count, took));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let group = raw::Group::start(raw);
    let (count, took) = runtime.block_on(async { group.senders(SENDERS, tasks).await });
    let mut raw = group.end();
    let (drained, drain_took) = raw.drain(SLOTS);
    println!("{} {}", rate(count, took), rate(drained, drain_took));
}

async fn measured(tasks: usize) {
    for durability in ["process", "power"] {
        println!("durability = \"{durability}\"");
        let folder = tempfile::tempdir().expect("a folder");
        let queues = queues(&folder.path().join("ours.db"), durability, "").await;
        speed(&queues, &mut Apart { durability }, tasks, || 0.0).await;
    }
}

async fn latency(what: &str, worker: &Queues, sending: impl Future<Output = ()>) {
    quantiles(what, &warm(&picked_up(worker, sending).await));
}

async fn pick_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("q.db");
    let worker = queues(&path, "power", "").await;
    let unflushed = queues(&folder.path().join("unflushed.db"), "process", "").await;
    latency("W4 in process, no flushes", &unflushed, send_slowly(&unflushed)).await;
    latency("W4 in process", &worker, send_slowly(&worker)).await;
    // The same commits alone: what a disk that is slow now and then costs everybody.
    let mut raw = raw::Raw::open(&folder.path().join("raw.db"), true);
    let samples = tokio::task::spawn_blocking(move || raw.pick_up_slowly()).await.expect("no panic");
    quantiles("W4 of the raw ceiling", &warm(&samples));
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    let mut child = command.arg("send").arg(&path).spawn().expect("starts");
    let ended = tokio::task::spawn_blocking(move || child.wait());
    latency("W4 by another process", &worker, async { assert!(ended.await.expect("no panic").expect("ends").success()) }).await;
}

/// What a worker costs that has nothing to do.
async fn idle() {
    let folder = tempfile::tempdir().expect("a folder");
    let names: Vec<String> = (0..50).map(|n| format!("q{n}")).collect();
    let tables: String = names.iter().map(|name| format!("[queues.{name}]\n")).collect();
    let queues = queues(&folder.path().join("q.db"), "power", &tables).await;
    let handlers = names.iter().map(|name| Queue::new(name, ()).worker("w", |_, _: Task<u64>| async {}));
    let runner = handlers.fold(Runner::new(queues.clone()), |runner, queue| runner.queue(queue));
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = meter::cpu();
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("  watching 50 idle queues    {:.3} % of a core", (meter::cpu() - before) * 10.0);
    handle.stop();
    run.await.expect("no panic").expect("stops");
}

/// Claims from a file of a million tasks beside claims from one that has no more than those, by turns.
async fn backlog(tasks: usize) {
    const CLAIMED: usize = 20_000;
    let folder = tempfile::tempdir().expect("a folder");
    let [few, many] = ["few", "many"].map(|name| folder.path().join(name));
    let (few, many) = (queues(&few, "process", "").await, queues(&many, "process", "").await);
    fill(&many, tasks).await;
    let mut ratios = Vec::new();
    for _ in 0..3 {
        fill(&few, CLAIMED).await;
        let (from_few, from_many) = (claims(&few, CLAIMED).await, claims(&many, CLAIMED).await);
        println!("  {CLAIMED} tasks of {tasks:>9}    {from_many:.0}/s; of {CLAIMED} {from_few:.0}/s");
        ratios.push(from_many / from_few);
    }
    println!("  median ratio {:.2}", median(ratios));
}

async fn fill(queues: &Queues, tasks: usize) {
    let queue = QueueName::new("bench").expect("a name");
    let broker = queues.broker(&queue).await.expect("connected");
    for first in (0..tasks).step_by(1000) {
        let envelope = |id| queues.prepare("bench", NewTask::new("noop", &payload(id))).expect("prepares");
        let batch: Vec<Envelope> = (first as u64..first as u64 + 1000).map(envelope).collect();
        assert!(broker.send(&queue, &batch).await.iter().all(Result::is_ok));
    }
}

async fn claims(queues: &Queues, tasks: usize) -> f64 {
    let done = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let runner = Runner::new(queues.clone()).queue(counting(done.clone())).slots(SLOTS).max_tasks(tasks as u64);
    runner.run().await.expect("works");
    rate(done.load(Ordering::Relaxed), started.elapsed())
}

/// The memory of a worker with 10,000 tasks in flight.
async fn memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let queues = queues(&folder.path().join("q.db"), "process", "").await;
    let sender = queues.queue("bench").expect("known");
    for _ in 0..10 {
        let batch = (0..1000).map(|id| NewTask::new("noop", &payload(id))).collect();
        assert!(sender.send_all(batch).await.iter().all(Result::is_ok));
    }
    let (before, gate) = (meter::rss_mb(), Arc::new(Semaphore::new(0)));
    let waiting = gate.clone();
    let handler = Queue::new("bench", ()).worker("noop", move |_, _: Task<Payload>| {
        let gate = waiting.clone();
        async move { gate.acquire().await.expect("open").forget() }
    });
    let runner = Runner::new(queues).queue(handler).slots(10_000);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    while handle.progress().running < 10_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("  10,000 tasks in flight     RSS {} MB ({before} MB before)", meter::rss_mb());
    gate.add_permits(10_000);
    handle.stop();
    run.await.expect("no panic").expect("stops");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "raw") {
        return raw_process(&arguments);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    if let [mode, path] = arguments.as_slice()
        && mode == "send"
    {
        return runtime.block_on(async { send_slowly(&queues(Path::new(path), "power", "").await).await });
    }
    let tasks = load::tasks(200_000);
    runtime.block_on(async {
        if wanted("memory") {
            tokio::spawn(memory()).await.expect("no panic");
        }
        if wanted("latency") {
            pick_up().await;
        }
        if wanted("idle") {
            tokio::spawn(idle()).await.expect("no panic");
        }
        if wanted("speed") {
            measured(tasks).await;
        }
        if wanted("backlog") {
            tokio::spawn(backlog(tasks * 5)).await.expect("no panic");
        }
    });
}
