//! The smallest program: one queue, one worker, one task.
//!
//! `cargo run -p anyqueue-examples --bin hello`

use anyqueue::{NewTask, Queue, Queues, Runner, Settings, Task};

#[tokio::main]
async fn main() -> anyqueue::Result<()> {
    // Without a queue.toml the built-in settings hold: SQLite in ./queue.db, and one queue called `default`.
    let queues = Queues::connect(Settings::load()?).await?;

    // `send` returns once the task is on disk. From here on no crash loses it.
    let sent = queues.queue("default")?.send(NewTask::new("greet", "world")).await?;
    println!("sent {} via {}", sent.id, sent.via);

    // The task's data is read as the worker's own type: a text here, usually a struct.
    let greetings = Queue::new("default", ()).worker("greet", |_, task: Task<String>| async move {
        println!("hello, {}!", task.data);
    });

    // A service leaves `drain` out and works until a signal stops it, in as many processes as it likes.
    let finished = Runner::new(queues.clone()).queue(greetings).drain().run().await?;
    println!("{finished}");
    queues.close().await
}
