//! How fast the memory broker takes, gives and settles tasks, beside a bare channel in the same run.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyqueue_core::{Broker, ConnectOptions, ConsumeOptions, Envelope, QueueName, Result, Settlement};
use anyqueue_testkit::{Sample, SystemClock};

const TASKS: usize = 400_000;

fn rate(began: Instant) -> f64 {
    TASKS as f64 / began.elapsed().as_secs_f64()
}

async fn send(broker: &dyn Broker, queue: &QueueName, tasks: &[Envelope], batch: usize) -> Result<f64> {
    let began = Instant::now();
    for part in tasks.chunks(batch) {
        for answer in broker.send(queue, part).await {
            answer?;
        }
    }
    Ok(rate(began))
}

async fn drain(broker: Arc<dyn Broker>, queue: QueueName, batch: usize) -> Result<usize> {
    let mut consumer = broker.consume(&queue, ConsumeOptions::default()).await?;
    let (settler, mut count) = (consumer.settler(), 0);
    let max = NonZeroUsize::new(batch).expect("batches have tasks");
    loop {
        let deliveries = consumer.reserve(max, Duration::ZERO).await?;
        if deliveries.is_empty() {
            return Ok(count);
        }
        count += deliveries.len();
        let settlements: Vec<_> = deliveries.into_iter().map(|delivery| (delivery.receipt, Settlement::Done)).collect();
        for answer in settler.settle(&settlements).await {
            answer?;
        }
    }
}

/// What a runner without a broker would reach: a channel, and a task spawned for each message.
async fn channel(tasks: Vec<Envelope>) -> f64 {
    let began = Instant::now();
    let (to, mut from) = tokio::sync::mpsc::channel(1024);
    let sender = tokio::spawn(async move {
        for task in tasks {
            if to.send(task).await.is_err() {
                return;
            }
        }
    });
    let mut last = None;
    while let Some(task) = from.recv().await {
        last = Some(tokio::spawn(async move { task.body.len() }));
    }
    if let (Ok(()), Some(last)) = (sender.await, last) {
        drop(last.await);
    }
    rate(began)
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let tasks = Sample::many(TASKS);
    let bare = channel(tasks.clone()).await;
    println!("bare channel and spawn       {bare:>12.0}/s");
    for batch in [1, 64, 1024] {
        let broker = anyqueue_memory::DRIVER.open(ConnectOptions::new("memory:", Arc::new(SystemClock))?).await?;
        let queue = QueueName::new("bench")?;
        let sent = send(&*broker, &queue, &tasks, batch).await?;
        let began = Instant::now();
        let workers = [0; 2].map(|_| tokio::spawn(drain(broker.clone(), queue.clone(), batch)));
        let mut count = 0;
        for worker in workers {
            count += worker.await.map_err(|e| anyqueue_core::Error::unavailable(e.to_string()))??;
        }
        let drained = rate(began);
        assert_eq!(count, TASKS, "every task once");
        println!("batches of {batch:>4}: send       {sent:>12.0}/s");
        println!("batches of {batch:>4}: drain      {drained:>12.0}/s, {:.2} of the bare channel", drained / bare);
    }
    Ok(())
}
