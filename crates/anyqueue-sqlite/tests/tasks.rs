//! The life of a task in one process.

mod support;

use std::time::{Duration, Instant};

use anyqueue_core::{Figure, Settlement, State, Which};
use support::{bodies, consumer, open, queue, send, take, task};

#[tokio::test]
async fn sent_reserved_done() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(&folder.path().join("q.db")).await;
    let q = queue("a");
    let mut urgent = task("urgent");
    urgent.priority = 0;
    send(&*broker, &q, &[task("one"), task("two"), urgent]).await;
    let mut consumer = consumer(&*broker, &q).await;
    let got = take(&mut *consumer, 10).await.unwrap();
    assert_eq!(bodies(&got), ["urgent", "one", "two"]);
    let settler = consumer.settler();
    let batch: Vec<_> = got.iter().map(|d| (d.receipt.clone(), Settlement::Done)).collect();
    assert!(settler.settle(&batch).await.iter().all(Result::is_ok));
    assert!(settler.settle(&batch).await.iter().all(|answer| answer.as_ref().unwrap_err().is_lease_lost()));
    let stats = broker.admin().stats(&q).await.unwrap();
    assert_eq!((stats.ready, stats.reserved), (Figure::Exact(0), Figure::Exact(0)));
    broker.close().await.unwrap();
}

#[tokio::test]
async fn a_lease_that_ends_gives_the_task_to_the_next_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(&folder.path().join("q.db")).await;
    let q = queue("a");
    let mut short = task("short");
    short.ttr = Duration::from_secs(1);
    send(&*broker, &q, &[short.clone()]).await;
    let mut consumer = consumer(&*broker, &q).await;
    let first = take(&mut *consumer, 1).await.unwrap().remove(0);
    let start = Instant::now();
    let second = take(&mut *consumer, 1).await.unwrap().remove(0);
    let after = start.elapsed();
    assert!((Duration::from_millis(950)..Duration::from_millis(1500)).contains(&after), "{after:?}");
    assert_eq!((first.native.redeliveries, second.native.redeliveries), (Figure::Exact(0), Figure::Exact(1)));
    let settler = consumer.settler();
    let stale = settler.settle(&[(first.receipt, Settlement::Done)]).await.remove(0);
    assert!(stale.unwrap_err().is_lease_lost());
    let held = Settlement::Hold(task("held"), "why".into());
    settler.settle(&[(second.receipt, held)]).await.remove(0).unwrap();
    assert_eq!(broker.admin().peek(&q, State::Held, 10).await.unwrap().len(), 1);
    assert_eq!(broker.admin().kick(&q, &Which::All).await.unwrap(), 1);
    let third = take(&mut *consumer, 1).await.unwrap().remove(0);
    assert_eq!((&third.raw[..], third.native.redeliveries), (&b"held"[..], Figure::Exact(0)));
}

/// What this process remembers of a lease must not touch the lease that came after it.
#[tokio::test]
async fn each_lease_in_a_row_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(&folder.path().join("q.db")).await;
    let q = queue("a");
    let mut short = task("short");
    short.ttr = Duration::from_secs(1);
    send(&*broker, &q, &[short]).await;
    let mut consumer = consumer(&*broker, &q).await;
    for died in 0..4 {
        let got = take(&mut *consumer, 1).await.unwrap();
        assert_eq!(got[0].native.redeliveries, Figure::Exact(died));
    }
}
