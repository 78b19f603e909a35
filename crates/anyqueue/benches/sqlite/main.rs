//! The whole of anyqueue on SQLite beside raw rusqlite doing the same durable work, in one run.
//!
//! `cargo bench -p anyqueue --bench sqlite [-- TASKS] [SECTION …]`; sections: `speed`, `latency`, `idle`, `backlog`, `memory`.
//! W1: sends one after another. W2: 64 concurrent senders. W3: a backlog drained by 64 slots. W4: an idle worker's pick-up.
//! Ratios are anyqueue's to the raw one's of the same run and the same `synchronous`. Raw SQLite works in a process of its
//! own: the bundled build has one page cache for all connections of a process, and two that are busy spoil each other's.

mod meter;
mod raw;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyqueue::core::Envelope;
use anyqueue::{NewTask, Queue, QueueName, Queues, Runner, Sender, Settings, Task};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

const SENDERS: usize = 64;
const SLOTS: usize = 64;
/// How often each is measured, by turns: a machine has slow minutes.
const ROUNDS: usize = 5;
const BODY: &str =
    r#"{"id":1,"t":17000000000000,"kind":"noop","to":"someone@example.com","body":"Lorem ipsum dolor sit amet, consect"}"#;

#[derive(Debug, Serialize, Deserialize)]
struct Payload {
    id: u64,
    t: u64,
    kind: String,
    to: String,
    body: String,
}

fn payload(id: u64) -> Payload {
    Payload {
        id,
        t: 17_000_000_000_000,
        kind: "noop".into(),
        to: "someone@example.com".into(),
        body: "Lorem ipsum dolor sit amet, consect".into(),
    }
}

async fn queues(path: &Path, durability: &str, more: &str) -> Queues {
    let path = path.display();
    let text = format!("[brokers.default]\nurl = \"sqlite:{path}\"\ndurability = \"{durability}\"\n[queues.bench]\n{more}");
    Queues::connect(Settings::builder().text("bench", &text).environment([]).load().expect("settings")).await.expect("connects")
}

async fn round_trips(queues: &Queues) -> u64 {
    queues.broker_named("default").await.expect("connected").info().round_trips
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn line(what: &str, raw: f64, ours: f64, more: &str) {
    println!("  {what:<24} raw {raw:>9.0}/s   anyqueue {ours:>9.0}/s   ratio {:.2}{more}", ours / raw);
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_unstable_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

async fn sends(sender: &Sender, producers: usize, tasks: usize) -> f64 {
    let each = tasks / producers;
    let started = Instant::now();
    let all = (0..producers).map(|_| {
        let sender = sender.clone();
        tokio::spawn(async move {
            for id in 0..each {
                sender.send(NewTask::new("noop", &payload(id as u64))).await.expect("sends");
            }
        })
    });
    for producer in all.collect::<Vec<_>>() {
        producer.await.expect("no panic");
    }
    rate(each * producers, started.elapsed())
}

fn counting(done: Arc<AtomicUsize>) -> Queue {
    let queue = Queue::new("bench", ()).worker("noop", move |_, task: Task<Payload>| {
        done.fetch_add(usize::from(task.data.id < u64::MAX), Ordering::Relaxed);
        async {}
    });
    queue.into()
}

async fn drain(queues: &Queues) -> (usize, f64) {
    let done = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let finished = Runner::new(queues.clone()).queue(counting(done.clone())).slots(SLOTS).drain().run().await.expect("drains");
    let count = done.load(Ordering::Relaxed);
    assert_eq!(finished.progress.done as usize, count, "nothing ran twice");
    (count, rate(count, started.elapsed()))
}

async fn speed(tasks: usize) {
    for durability in ["process", "power"] {
        println!("durability = \"{durability}\"");
        let folder = tempfile::tempdir().expect("a folder");
        let queues = queues(&folder.path().join("ours.db"), durability, "").await;
        let sender = queues.queue("bench").expect("known");
        let few = tasks / 40;
        let [raw, _] = raw_rates(&folder.path().join("one.db"), durability, "one", few);
        line("W1 one by one", raw, sends(&sender, 1, few).await, "");
        drain(&queues).await;
        let (mut ins, mut outs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let [raw_in, raw_out] = raw_rates(&folder.path().join(format!("raw{round}.db")), durability, "many", tasks);
            let (trips, cpu) = (round_trips(&queues).await, meter::cpu());
            let ours = sends(&sender, SENDERS, tasks).await;
            line("W2 64 senders", raw_in, ours, &cost(&queues, trips, cpu, tasks).await);
            ins.push(ours / raw_in);
            let (trips, cpu) = (round_trips(&queues).await, meter::cpu());
            let (count, ours) = drain(&queues).await;
            line("W3 drain, 64 slots", raw_out, ours, &cost(&queues, trips, cpu, count).await);
            outs.push(ours / raw_out);
        }
        println!("  median ratio of {ROUNDS} rounds: W2 {:.2}, W3 {:.2}", median(ins), median(outs));
    }
    println!("  peak RSS so far {} MB", meter::peak_rss_mb());
}

async fn cost(queues: &Queues, trips: u64, cpu: f64, tasks: usize) -> String {
    let (commits, cpu) = ((round_trips(queues).await - trips) as f64, meter::cpu() - cpu);
    format!("   {:.4} commits/task, {:.3} s CPU/10k", commits / tasks as f64, cpu / tasks as f64 * 1e4)
}

/// Runs raw SQLite in a process of its own: the rates of sending and, for `many`, of draining.
fn raw_rates(path: &Path, durability: &str, mode: &str, tasks: usize) -> [f64; 2] {
    let program = std::env::current_exe().expect("this program");
    let output =
        std::process::Command::new(program).args(["raw", durability, mode, &tasks.to_string()]).arg(path).output().expect("runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let mut rates = text.split_whitespace().map(|rate| rate.parse().expect("a number"));
    [rates.next().expect("a rate"), rates.next().unwrap_or_default()]
}

fn raw_process(arguments: &[String]) {
    let [_, durability, mode, tasks, path] = arguments else { panic!("{arguments:?}") };
    let tasks = tasks.parse().expect("a number");
    let mut raw = raw::Raw::open(Path::new(path), durability == "power");
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

/// From just before the send to the handler's first line, 200 times at about 20 per second.
async fn latency() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("q.db");
    let (worker, other) = (queues(&path, "power", "").await, queues(&path, "power", "").await);
    for (what, producer) in [("W4 in process", &worker), ("W4 by another connection", &other)] {
        let samples = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (noted, origin) = (samples.clone(), Instant::now());
        let handler = Queue::new("bench", ()).worker("noop", move |_, task: Task<u64>| {
            noted.lock().expect("no panic").push(origin.elapsed().as_micros() as u64 - task.data);
            async {}
        });
        let runner = Runner::new(worker.clone()).queue(handler).slots(10);
        let handle = runner.handle();
        let run = tokio::spawn(runner.run());
        let sender = producer.queue("bench").expect("known");
        for n in 0..205u64 {
            tokio::time::sleep(Duration::from_millis(30 + (n * 7919) % 40)).await;
            sender.send(NewTask::new("noop", &(origin.elapsed().as_micros() as u64))).await.expect("sends");
        }
        while handle.progress().done < 205 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        handle.stop();
        run.await.expect("no panic").expect("stops");
        let mut sorted = samples.lock().expect("no panic")[5..].to_vec();
        sorted.sort_unstable();
        let quantile = |q: f64| sorted[((sorted.len() as f64 * q) as usize).min(sorted.len() - 1)] as f64 / 1000.0;
        println!("  {what:<26} p50 {:.2} ms   p95 {:.2} ms   p99 {:.2} ms", quantile(0.5), quantile(0.95), quantile(0.99));
    }
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

/// Claims from a file of a million tasks beside claims from one of a thousand.
async fn backlog(tasks: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut rates = Vec::new();
    for (name, count) in [("few", 20_000), ("many", tasks)] {
        let queues = queues(&folder.path().join(name), "process", "").await;
        let queue = QueueName::new("bench").expect("a name");
        let broker = queues.broker(&queue).await.expect("connected");
        for first in (0..count).step_by(1000) {
            let envelope = |id| queues.prepare("bench", NewTask::new("noop", &payload(id))).expect("prepares");
            let batch: Vec<Envelope> = (first as u64..first as u64 + 1000).map(envelope).collect();
            assert!(broker.send(&queue, &batch).await.iter().all(Result::is_ok));
        }
        let done = Arc::new(AtomicUsize::new(0));
        let started = Instant::now();
        let runner = Runner::new(queues.clone()).queue(counting(done.clone())).slots(SLOTS).max_tasks(20_000);
        runner.run().await.expect("works");
        rates.push(rate(done.load(Ordering::Relaxed), started.elapsed()));
    }
    println!("  20,000 tasks of {tasks:>9}    {:.0}/s; of 20,000 {:.0}/s; ratio {:.2}", rates[1], rates[0], rates[1] / rates[0]);
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
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if arguments.first().is_some_and(|first| first == "raw") {
        return raw_process(&arguments);
    }
    let tasks = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(200_000);
    let wanted = |name: &str| {
        let named: Vec<_> = arguments.iter().filter(|argument| argument.parse::<usize>().is_err()).collect();
        named.is_empty() || named.iter().any(|argument| *argument == name)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(async {
        if wanted("memory") {
            tokio::spawn(memory()).await.expect("no panic");
        }
        if wanted("latency") {
            tokio::spawn(latency()).await.expect("no panic");
        }
        if wanted("idle") {
            tokio::spawn(idle()).await.expect("no panic");
        }
        if wanted("speed") {
            tokio::spawn(speed(tasks)).await.expect("no panic");
        }
        if wanted("backlog") {
            tokio::spawn(backlog(tasks * 5)).await.expect("no panic");
        }
    });
}
