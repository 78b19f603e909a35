//! The whole of anyqueue on servers beside the least that a client must do for the same promise, in one run.
//!
//! `cargo bench -p anyqueue --all-features --bench servers [-- TASKS] [BROKER …]`; brokers: `redis`, `beanstalkd`.
//! Each server is started for this, with its tasks on disk as an operator would keep them: Redis with its append-only file
//! flushed each second, beanstalkd with its binlog and its own default of a flush each 50 ms.

mod beanstalkd;
#[path = "../load/mod.rs"]
mod load;
mod redis;

use anyqueue_testkit::{Launch, Process, Server};
use load::{Raw, latency, queues, speed, wanted};

async fn measured(name: &str, server: &Process, raw: &mut impl Raw, tasks: usize) {
    println!("{name}");
    let broker = format!("url = \"{name}://{}\"", server.address());
    let (ours, other) = (queues(&broker, "").await, queues(&broker, "").await);
    let used = || server.id().map_or(0.0, load::meter::cpu_of);
    speed(&ours, raw, tasks, used).await;
    latency("W4 by another connection", &ours, load::send_slowly(&other)).await;
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
        let connection = client.get_multiplexed_async_connection().await.expect("connects");
        measured("redis", &server, &mut redis::RawRedis(connection), tasks).await;
    }
    if wanted("beanstalkd") {
        let server = start("beanstalkd", &["-l", "127.0.0.1", "-p", "{port}", "-b", "{dir}"]).await;
        measured("beanstalkd", &server, &mut beanstalkd::RawBeanstalkd(server.address()), tasks).await;
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(run(load::tasks(200_000)));
}
