//! What is left after the last broker of a file: one file, no threads. Alone in its process, since it counts threads.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use anyqueue_core::ErrorKind;
use support::{consumer, open, queue, send, take, task};

fn threads() -> usize {
    let name = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.unwrap().path().join("comm"));
    let names = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|entry| name(entry).ok());
    names.filter(|name| name.starts_with("sqlite-")).count()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_closed_or_dropped_broker_leaves_one_file_and_no_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    let q = queue("a");
    for dropped in [false, true] {
        let broker = open(&path).await;
        send(&*broker, &q, &[task("one")]).await;
        let mut consumer = consumer(&*broker, &q).await;
        assert_eq!(take(&mut *consumer, 1).await.unwrap().len(), 1);
        let nothing = consumer.reserve(std::num::NonZeroUsize::MIN, Duration::from_millis(50)).await.unwrap();
        assert!(nothing.is_empty() && threads() == 2, "a thread that writes and one that watches");
        if dropped {
            drop((consumer, broker));
        } else {
            broker.close().await.unwrap();
            let closed = consumer.reserve(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap_err();
            assert_eq!(closed.kind(), ErrorKind::Closed);
            let closed = broker.send(&q, &[task("late")]).await.remove(0).unwrap_err();
            assert_eq!(closed.kind(), ErrorKind::Closed);
        }
        until("the end of the threads", || threads() == 0).await;
        until("one file", || files() == 1).await;
    }
}
