//! What the tests of the runner share: queues in memory, sending, waiting.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses a part of it, and fails where something fails")]

use std::time::Duration;

use anyqueue::{NewTask, Queues, Settings};
use anyqueue_core::TaskId;

pub(crate) async fn queues(text: &str) -> Queues {
    let text = format!("[brokers.default]\nurl = \"memory:\"\n{text}");
    Queues::connect(Settings::builder().text("test", &text).environment([]).load().unwrap()).await.unwrap()
}

pub(crate) async fn send(queues: &Queues, queue: &str, task: NewTask) -> TaskId {
    queues.queue(queue).unwrap().send(task).await.unwrap().id
}

/// Waits while something holds, half a minute at the most.
pub(crate) async fn as_long_as(holds: impl Fn() -> bool) {
    let limit = Duration::from_secs(30);
    let over = async {
        while holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(limit, over).await.expect("it still holds");
}
