//! A task that nobody can finish for now is held with a reason. When the reason is gone, it is kicked.
//!
//! `queue-runner held default` and `queue-runner kick default --all` do the same from the command line.
//!
//! `cargo run -p anyqueue-examples --bin hold-and-kick`

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use anyqueue::core::{Defaults, Incoming, Which};
use anyqueue::{NewTask, Outcome, Queue, QueueName, Queues, Runner, Settings, Task};

type Addresses = Arc<RwLock<HashMap<u32, &'static str>>>;

#[tokio::main]
async fn main() -> anyqueue::Result<()> {
    let queues = Queues::connect(Settings::load()?).await?;
    let addresses = Addresses::default();
    queues.queue("default")?.send(NewTask::new("deliver", &7)).await?;

    work(&queues, &addresses).await?;

    // The operator's verbs are the broker's. A held task keeps its data, and the reason is in it.
    let name = QueueName::new("default")?;
    let broker = queues.broker(&name).await?;
    for held in broker.admin().held(&name, None, 10).await?.tasks {
        let task = Incoming::peeked(&held, "default", name.as_str(), Defaults::default());
        println!("held: task {} because {}", task.wire.task, task.wire.held.unwrap_or_default().reason);
    }

    addresses.write().expect("no writer panics").insert(7, "12 Hill Street");
    println!("kicked: {}", broker.admin().kick(&name, &Which::All).await?);

    work(&queues, &addresses).await?;
    queues.close().await
}

async fn work(queues: &Queues, addresses: &Addresses) -> anyqueue::Result<()> {
    let orders =
        Queue::new("default", addresses.clone()).worker("deliver", |addresses, task| async move { deliver(&addresses, &task) });
    let finished = Runner::new(queues.clone()).queue(orders).drain().run().await?;
    println!("{finished}");
    Ok(())
}

fn deliver(addresses: &Addresses, task: &Task<u32>) -> Outcome {
    match addresses.read().expect("no writer panics").get(&task.data) {
        Some(address) => {
            println!("order {} goes to {address}", task.data);
            Outcome::done()
        }
        // Trying again would not help, so this is no error: a person has to look.
        None => Outcome::hold(format!("order {} has no address", task.data)),
    }
}
