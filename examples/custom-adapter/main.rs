//! An adapter that is not part of anyqueue: one line registers it, one URL in the settings chooses it.
//!
//! The page "Building an adapter" of `anyqueue-testkit` walks through `vec_broker`; `conformance.rs` beside this file
//! runs the contract's rules on it: `cargo test -p anyqueue-examples`.
//!
//! `cargo run -p anyqueue-examples --bin custom-adapter`

mod vec_broker;

use anyqueue::settings::SettingsBuilder;
use anyqueue::{Drivers, NewTask, Queue, Queues, Runner, Settings, Task};

/// Stands in queue.toml in a real program.
const SETTINGS: &str = "[brokers.default]\nurl = \"vec:demo\"\n";

#[tokio::main]
async fn main() -> anyqueue::Result<()> {
    let drivers = Drivers::enabled().with(&vec_broker::DRIVER);
    let settings: SettingsBuilder = Settings::builder().text("queue.toml", SETTINGS).drivers(drivers);
    let queues = Queues::connect(settings.load()?).await?;
    let queue = queues.queue("default")?;
    for (name, priority) in [("late", 2000), ("soon", 100)] {
        queue.send(NewTask::new("print", name).priority(priority)).await?;
    }
    let prints = Queue::new("default", ()).worker("print", |_, task: Task<String>| async move { println!("{}", task.data) });
    let finished = Runner::new(queues.clone()).queue(prints).slots(1).drain().run().await?;
    println!("{finished}");
    queues.close().await
}
