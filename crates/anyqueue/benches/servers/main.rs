//! The whole of anyqueue on servers beside the least that a client must do for the same promise, in one run.
//!
//! `cargo bench -p anyqueue --all-features --bench servers [-- TASKS] [BROKER …]`; brokers: `redis`, `beanstalkd`, `sqs`,
//! `gearman`, `rabbitmq`.
//! Each server is started for this, with its tasks on disk as an operator would keep them: Redis with its append-only file
//! flushed each second, beanstalkd with its binlog and its own default of a flush each 50 ms, gearmand with its jobs in SQLite,
//! which is some hundred times slower, so that it gets a hundredth of the tasks; once more with that file in memory, where
//! the disk is not the ceiling; and once more without one.

mod beanstalkd;
mod gearman;
#[path = "../load/mod.rs"]
mod load;
mod rabbitmq;
mod redis;
mod sqs;

use anyqueue::Queues;
use anyqueue_testkit::{Launch, Process, Server};
use load::{Raw, picked_up, quantiles, queues, send_slowly, speed, wanted, warm};

/// A raw client whose pick-up is measured too, where it is one to compare with.
trait PickUp {
    /// Sends tasks at the pace of [`load::pause`] while another connection waits for them: from just before each send until a
    /// worker has the task, in microseconds.
    async fn pick_up(&mut self) -> Option<Vec<u64>> {
        None
    }
}

impl PickUp for gearman::RawGearman {}
impl PickUp for sqs::RawSqs {}

async fn measured(name: &str, server: &Process, raw: &mut (impl Raw + PickUp), tasks: usize) {
    measured_with(name, "", server, raw, tasks).await;
}

async fn measured_with(name: &str, options: &str, server: &Process, raw: &mut (impl Raw + PickUp), tasks: usize) {
    println!("{name}{options}");
    let broker = format!("url = \"{name}://{}{options}\"", server.address());
    let (ours, other) = (queues(&broker, "").await, queues(&broker, "").await);
    let used = || server.id().map_or(0.0, load::meter::cpu_of);
    speed(&ours, raw, tasks, used).await;
    latencies(&ours, &other, raw).await;
}

/// The pick-up of a worker beside a raw client's, by turns.
async fn latencies(worker: &Queues, producer: &Queues, raw: &mut impl PickUp) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        ours.extend(warm(&picked_up(worker, send_slowly(producer)).await));
        theirs.extend(raw.pick_up().await.iter().flat_map(|samples| warm(samples)));
    }
    quantiles("W4 by another connection", &ours);
    if !theirs.is_empty() {
        quantiles("W4 of the raw client", &theirs);
    }
}

async fn start(program: &str, arguments: &[&str]) -> Process {
    Process::start(Launch::new(program).args(arguments.iter().copied())).await.expect("starts")
}

async fn run(tasks: usize) {
    if wanted("redis") {
        let arguments =
            ["--port", "{port}", "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""];
        let server = start("redis-server", &arguments).await;
        let client = ::redis::Client::open(format!("redis://{}", server.address())).expect("an address");
        let mut raw = redis::RawRedis::connect(client).await;
        measured("redis", &server, &mut raw, tasks).await;
    }
    if wanted("beanstalkd") {
        let server = start("beanstalkd", &["-l", "127.0.0.1", "-p", "{port}", "-b", "{dir}"]).await;
        measured("beanstalkd", &server, &mut beanstalkd::RawBeanstalkd(server.address()), tasks).await;
    }
    if wanted("gearman") {
        for (place, store, tasks) in
            [("disk", "libsqlite3", tasks / 100), ("memory", "libsqlite3", tasks / 20), ("none", "builtin", tasks / 10)]
        {
            for lease in ["guard", "connection"] {
                let (server, _folder) = gearman::start(place).await;
                println!("a file of jobs: {place}");
                let options = format!("?queue_type={store}&lease={lease}");
                let mut raw = gearman::RawGearman::new(server.address());
                measured_with("gearman", &options, &server, &mut raw, tasks).await;
            }
        }
    }
}

async fn run_rabbitmq(tasks: usize) {
    if wanted("rabbitmq") {
        rabbitmq::run(tasks / 4).await;
    }
}

async fn run_sqs(tasks: usize) {
    if wanted("sqs") {
        let server = sqs::start().await;
        let mut raw = sqs::RawSqs::connect(server.address()).await;
        // A request costs this server a hundred times what it costs the others.
        let options = format!("?wait={}s", sqs::WAIT.as_secs());
        measured_with("sqs", &options, &server, &mut raw, tasks / 20).await;
        sqs::watching_many(&server).await;
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(run(load::tasks(200_000)));
    runtime.block_on(run_rabbitmq(load::tasks(200_000)));
    runtime.block_on(run_sqs(load::tasks(200_000)));
}
