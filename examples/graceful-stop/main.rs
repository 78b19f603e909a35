//! A worker process that stops without dropping anything.
//!
//! The first signal (TERM, INT or QUIT): nothing more is reserved, what runs may finish. A second one: what still runs is
//! cut short and given back, uncounted, for another process to take. The exit code says which of these happened.
//!
//! `cargo run -p anyqueue-examples --bin graceful-stop`, then press Ctrl-C, once or twice.

use std::process::ExitCode;
use std::time::Duration;

use anyqueue::{NewTask, Queue, Queues, Runner, Settings, Task};

#[tokio::main]
async fn main() -> anyqueue::Result<ExitCode> {
    let queues = Queues::connect(Settings::load()?).await?;
    let number = |n: u32| NewTask::new("slow", &n);
    for sent in queues.queue("default")?.send_all((1..=5).map(number).collect()).await {
        sent?;
    }

    let slow = Queue::new("default", ()).worker("slow", |_, task: Task<u32>| slow(task));
    let runner = Runner::new(queues.clone())
        .queue(slow)
        .slots(1)
        // `Runner::from_settings` listens to signals by itself; a runner over queues that the program has connected
        // leaves them to the program, unless it is asked.
        .signals(true)
        // An orchestrator that sends KILL after 30 s needs a grace time well below that.
        .grace(Duration::from_secs(20));
    let finished = runner.run().await?;
    println!("{finished}");
    queues.close().await?;
    Ok(ExitCode::from(finished.exit_code()))
}

async fn slow(task: Task<u32>) {
    println!("task {} begins", task.data);
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("task {} is done", task.data);
}
