//! What the benchmarks of all brokers share: the load, how it is measured, and how that is shown.
//!
//! W1: sends one after another. W2: 64 concurrent senders. W3: a backlog drained by 64 slots. W4: an idle worker's pick-up.

pub(crate) mod meter;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyqueue::{NewTask, Queue, Queues, Runner, Sender, Settings, Task};
use serde::{Deserialize, Serialize};

pub(crate) const SENDERS: usize = 64;
pub(crate) const SLOTS: usize = 64;
/// How often each is measured, by turns: a machine has slow minutes.
const ROUNDS: usize = 5;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    id: u64,
    t: u64,
    kind: String,
    to: String,
    body: String,
}

pub(crate) fn payload(id: u64) -> Payload {
    let (to, body) = ("someone@example.com".into(), "Lorem ipsum dolor sit amet, consect".into());
    Payload { id, t: 17_000_000_000_000, kind: "noop".into(), to, body }
}

/// A task's data as a raw client sends it; anyqueue makes the same of its own.
pub(crate) fn text(id: u64) -> String {
    serde_json::to_string(&payload(id)).expect("JSON")
}

/// The least that a client of the same broker must do to keep the same promise. Rates are tasks per second.
pub(crate) trait Raw {
    /// Sends one after another.
    async fn one_by_one(&mut self, tasks: usize) -> f64;

    /// Sends from 64 places at once, then takes all of it off the queue.
    async fn many(&mut self, tasks: usize) -> [f64; 2];
}

/// Queues with one queue `bench` on a broker with these settings.
pub(crate) async fn queues(broker: &str, more: &str) -> Queues {
    let text = format!("[brokers.default]\n{broker}\n[queues.bench]\n{more}");
    Queues::connect(Settings::builder().text("bench", &text).environment([]).load().expect("settings")).await.expect("connects")
}

pub(crate) fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// The commands in the command line: a number is how many tasks, others name sections.
pub(crate) fn wanted(name: &str) -> bool {
    let mut named = words().filter(|word| word.parse::<usize>().is_err()).peekable();
    named.peek().is_none() || named.any(|word| word == name)
}

/// How many tasks each measurement takes.
pub(crate) fn tasks(default: usize) -> usize {
    words().find_map(|word| word.parse().ok()).unwrap_or(default)
}

fn words() -> impl Iterator<Item = String> {
    std::env::args().skip(1).filter(|word| !word.starts_with('-'))
}

/// W1 to W3 beside a raw client, by turns. `server` says how many seconds of CPU the broker has used, if it is one.
pub(crate) async fn speed(queues: &Queues, raw: &mut impl Raw, tasks: usize, server: impl Fn() -> f64) {
    let sender = queues.queue("bench").expect("known");
    let few = tasks / 20;
    let mut ones = Vec::new();
    for _ in 0..ROUNDS {
        let theirs = raw.one_by_one(few).await;
        let ours = sends(&sender, 1, few).await;
        line("W1 one by one", theirs, ours, "");
        ones.push(ours / theirs);
    }
    drain(queues).await;
    let (mut ins, mut outs) = (Vec::new(), Vec::new());
    let (mut raw_client, mut raw_server) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        let before = (meter::cpu(), server());
        let [raw_in, raw_out] = raw.many(tasks).await;
        raw_client += meter::cpu() - before.0;
        raw_server += server() - before.1;
        let meter = Meter::start(queues, &server).await;
        let ours = sends(&sender, SENDERS, tasks).await;
        line("W2 64 senders", raw_in, ours, &meter.per_task(queues, &server, tasks).await);
        ins.push(ours / raw_in);
        let meter = Meter::start(queues, &server).await;
        let (count, ours) = drain(queues).await;
        line("W3 drain, 64 slots", raw_out, ours, &meter.per_task(queues, &server, count).await);
        outs.push(ours / raw_out);
    }
    println!("  median ratios: W1 {:.2}, W2 {:.2}, W3 {:.2}", median(ones), median(ins), median(outs));
    let [raw_client, raw_server] = [raw_client, raw_server].map(|used| used / (ROUNDS * tasks) as f64 * 1e4);
    println!("  raw, in and out: {raw_client:.3} s CPU/10k (server {raw_server:.3})");
    println!("  RSS {} MB, {} MB at the most so far", meter::rss_mb(), meter::peak_rss_mb());
}

fn line(what: &str, raw: f64, ours: f64, more: &str) {
    println!("  {what:<24} raw {raw:>9.0}/s   anyqueue {ours:>9.0}/s   ratio {:.2}{more}", ours / raw);
}

pub(crate) fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_unstable_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// Requests and CPU since a moment.
struct Meter {
    trips: u64,
    cpu: f64,
    server: f64,
}

impl Meter {
    async fn start(queues: &Queues, server: impl Fn() -> f64) -> Self {
        Self { trips: round_trips(queues).await, cpu: meter::cpu(), server: server() }
    }

    async fn per_task(&self, queues: &Queues, server: impl Fn() -> f64, tasks: usize) -> String {
        let trips = (round_trips(queues).await - self.trips) as f64 / tasks as f64;
        let [cpu, server] = [meter::cpu() - self.cpu, server() - self.server].map(|used| used / tasks as f64 * 1e4);
        let server = if server > 0.0 { format!(" (server {server:.3})") } else { String::new() };
        format!("   {trips:.4} round trips/task, {cpu:.3} s CPU/10k{server}")
    }
}

/// Of SQLite: commits.
async fn round_trips(queues: &Queues) -> u64 {
    queues.broker_named("default").await.expect("connected").info().round_trips
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

/// A queue whose worker counts.
pub(crate) fn counting(done: Arc<AtomicUsize>) -> Queue {
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

/// A clock that all processes share, in microseconds.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// How many tasks are sent to measure a pick-up; the first few warm it up.
pub(crate) const PICKED: u64 = 205;

/// How long to wait before the nth of them is sent: about 20 per second, at no regular pace.
pub(crate) fn pause(n: u64) -> Duration {
    Duration::from_millis(30 + (n * 7919) % 40)
}

/// Sends tasks that say when.
pub(crate) async fn send_slowly(producer: &Queues) {
    let sender = producer.queue("bench").expect("known");
    for n in 0..PICKED {
        tokio::time::sleep(pause(n)).await;
        sender.send(NewTask::new("noop", &now())).await.expect("sends");
    }
}

/// From just before each send of `sending` to the handler's first line, in microseconds.
pub(crate) async fn picked_up(worker: &Queues, sending: impl Future<Output = ()>) -> Vec<u64> {
    let samples = Arc::new(Mutex::new(Vec::new()));
    let noted = samples.clone();
    let handler = Queue::new("bench", ()).worker("noop", move |_, task: Task<u64>| {
        noted.lock().expect("no panic").push(now() - task.data);
        async {}
    });
    let runner = Runner::new(worker.clone()).queue(handler).slots(10);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    sending.await;
    while handle.progress().done < PICKED {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    handle.stop();
    run.await.expect("no panic").expect("stops");
    std::mem::take(&mut samples.lock().expect("no panic"))
}

/// Without the first few, which warmed it up.
pub(crate) fn warm(samples: &[u64]) -> Vec<u64> {
    samples[5..].to_vec()
}

/// Prints what of samples in microseconds stands at which place.
pub(crate) fn quantiles(what: &str, samples: &[u64]) {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let quantile = |q: f64| sorted[((sorted.len() as f64 * q) as usize).min(sorted.len() - 1)] as f64 / 1000.0;
    println!("  {what:<26} p50 {:.2} ms   p95 {:.2} ms   p99 {:.2} ms", quantile(0.5), quantile(0.95), quantile(0.99));
}
