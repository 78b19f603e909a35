//! What an operator does to many tasks holds nobody up.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use anyqueue_core::{Broker, Bytes, Figure, QueueName, Settlement, State, Which};
use support::{consumer, open, queue, send, take, task};

const MANY: usize = 20_000;

async fn hold_many(broker: &dyn Broker, q: &QueueName) {
    let mut consumer = consumer(broker, q).await;
    let settler = consumer.settler();
    for _ in 0..MANY / 1000 {
        let tasks: Vec<_> = (0..1000).map(|_| task("x")).collect();
        send(broker, q, &tasks).await;
        let got = take(&mut *consumer, 1000).await.unwrap();
        let hold = |id| Settlement::Hold(anyqueue_core::Envelope { id, ..task("held") }, "why".into());
        let batch: Vec<_> = got.into_iter().zip(&tasks).map(|(d, task)| (d.receipt, hold(task.id))).collect();
        assert!(settler.settle(&batch).await.iter().all(Result::is_ok));
    }
}

/// The longest that a single send took while something else was going on.
async fn longest_send(broker: &dyn Broker, q: &QueueName, meanwhile: impl Future<Output = u64>) -> (u64, usize, Duration) {
    let mut meanwhile = std::pin::pin!(meanwhile);
    let (mut sends, mut longest) = (0, Duration::ZERO);
    loop {
        let start = Instant::now();
        tokio::select! {
            biased;
            changed = &mut meanwhile => return (changed, sends, longest),
            () = async { send(broker, q, &[task("beside")]).await } => {}
        }
        (sends, longest) = (sends + 1, longest.max(start.elapsed()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_go_on_while_all_is_kicked_and_purged() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(&folder.path().join("q.db")).await;
    let (q, beside) = (queue("a"), queue("b"));
    hold_many(&*broker, &q).await;
    let kick = async { broker.admin().kick(&q, &Which::All).await.unwrap() };
    let (kicked, sends, longest) = longest_send(&*broker, &beside, kick).await;
    assert_eq!(kicked, MANY as u64);
    assert!(sends >= 3 && longest < Duration::from_secs(1), "{sends} sends beside the kick, the longest took {longest:?}");
    let purge = async { broker.admin().purge(&q, &State::ALL).await.unwrap() };
    let (purged, sends, longest) = longest_send(&*broker, &beside, purge).await;
    assert_eq!(purged, MANY as u64);
    assert!(sends >= 3 && longest < Duration::from_secs(1), "{sends} sends beside the purge, the longest took {longest:?}");
    assert_eq!(broker.admin().stats(&q).await.unwrap().ready, Figure::Exact(0));
}

#[tokio::test]
async fn a_drained_backlog_gives_its_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let broker = open(&path).await;
    let q = queue("a");
    let mut large = task("");
    large.body = Bytes::from(vec![b'x'; 1 << 20]);
    for _ in 0..48 {
        send(&*broker, &q, &[anyqueue_core::Envelope { id: task("").id, ..large.clone() }]).await;
    }
    assert_eq!(broker.admin().purge(&q, &[State::Ready]).await.unwrap(), 48);
    let start = Instant::now();
    loop {
        let size = std::fs::metadata(&path).unwrap().len();
        if size < 24 << 20 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the file still has {size} bytes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
