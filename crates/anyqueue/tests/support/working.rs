//! What tests of runners need: a queue, a worker that counts, a wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyqueue::{Queue, QueueName, Task};

/// The name of the first queue.
pub(crate) fn q() -> QueueName {
    QueueName::new("q").unwrap()
}

/// A worker `w` that counts its runs.
pub(crate) fn counting(name: &str, count: &Arc<AtomicUsize>) -> Queue {
    let count = count.clone();
    let queue = Queue::new(name, ()).worker("w", move |_, _: Task<u32>| {
        count.fetch_add(1, Ordering::SeqCst);
        async {}
    });
    queue.into()
}

/// Waits while something holds; a day of the paused clock is too long.
pub(crate) async fn as_long_as(holds: impl Fn() -> bool) {
    let limit = Duration::from_secs(24 * 3600);
    let over = async {
        while holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, over).await.expect("it still holds");
}
