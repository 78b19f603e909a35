//! A task that takes three times its TTR, and says itself that it is alive.
//!
//! Usually the runner renews leases while a worker is busy (`lease = "auto"`), and none of this is needed. Under
//! `lease = "manual"` the worker does: a worker that hangs then stops touching, and its task goes to somebody else.
//!
//! `cargo run -p anyqueue-examples --bin long-task`

use std::time::Duration;

use anyqueue::{NewTask, Queue, Queues, Runner, Settings, Task};

const TTR: Duration = Duration::from_secs(1);
const STEPS: u32 = 12;

#[tokio::main]
async fn main() -> anyqueue::Result<()> {
    // In a real program this line stands in queue.toml: `[queues.default]` and `lease = "manual"` below it.
    let settings = Settings::builder().flag("queues.default.lease", "manual").load()?;
    let queues = Queues::connect(settings).await?;
    queues.queue("default")?.send(NewTask::new("copy", &STEPS).ttr(TTR)).await?;

    let copies = Queue::new("default", ()).worker("copy", |_, task: Task<u32>| copy(task));
    let finished = Runner::new(queues.clone()).queue(copies).drain().run().await?;
    println!("{finished}");
    queues.close().await
}

async fn copy(task: Task<u32>) -> anyqueue::Result<()> {
    // An attempt that failed half-way left word of how far it came, and this one goes on from there.
    let first = task.checkpoint::<u32>().unwrap_or(0);
    for step in first..task.data {
        tokio::time::sleep(TTR / 4).await;
        task.set_checkpoint(&(step + 1))?;
        // An error here means that the lease is gone and another worker may have the task: `?` ends this attempt.
        let left = task.touch().await?;
        println!("attempt {}: step {} of {}, {left:?} left", task.attempt(), step + 1, task.data);
    }
    Ok(())
}
