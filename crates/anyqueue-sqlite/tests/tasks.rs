//! The life of a task in one process.

mod support;

use std::time::{Duration, Instant};

use anyqueue_core::{Figure, Receipt, Settlement, State, Which};
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

/// Many tasks are settled by one statement, which does not say whom it did not find.
#[tokio::test]
async fn a_stale_receipt_in_a_batch_answers_for_itself_alone() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(&folder.path().join("q.db")).await;
    let q = queue("a");
    let tasks: Vec<_> = (0..50).map(|n| task(&n.to_string())).collect();
    send(&*broker, &q, &tasks).await;
    let mut consumer = consumer(&*broker, &q).await;
    let got = take(&mut *consumer, 50).await.unwrap();
    let settler = consumer.settler();
    let done = |range: std::ops::Range<usize>| -> Vec<(Receipt, Settlement)> {
        got[range].iter().map(|delivery| (delivery.receipt.clone(), Settlement::Done)).collect()
    };
    assert!(settler.settle(&done(7..9)).await.iter().all(Result::is_ok));
    // Receipt 3 twice, and 7 and 8 once more: all others end, and these say so.
    let batch = [done(0..40), done(3..4)].concat();
    let lost: Vec<usize> = settler
        .settle(&batch)
        .await
        .into_iter()
        .enumerate()
        .filter_map(|(n, answer)| answer.is_err_and(|e| e.is_lease_lost()).then_some(n))
        .collect();
    assert_eq!(lost, [7, 8, 40]);
    let stats = broker.admin().stats(&q).await.unwrap();
    assert_eq!((stats.ready, stats.reserved), (Figure::Exact(0), Figure::Exact(10)));
}

/// What is sent is written at the end of a transaction: a reservation that shares it must see it.
#[tokio::test]
async fn many_sends_and_a_waiting_consumer_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(&folder.path().join("q.db")).await;
    let q = queue("a");
    let mut consumer = consumer(&*broker, &q).await;
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let (broker, q) = (broker.clone(), q.clone());
            tokio::spawn(async move {
                for n in 0..50 {
                    send(&*broker, &q, &[task(&format!("{sender}-{n}"))]).await;
                }
            })
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    let mut last = [-1; 8];
    while seen.len() < 400 {
        let got = take(&mut *consumer, 100).await.unwrap();
        assert!(!got.is_empty(), "{} of 400 came", seen.len());
        for body in bodies(&got) {
            let (sender, n) =
                body.split_once('-').map(|(s, n)| (s.parse::<usize>().unwrap(), n.parse::<i32>().unwrap())).unwrap();
            assert_eq!(n, last[sender] + 1, "in the order in which sender {sender} sent them");
            last[sender] = n;
            assert!(seen.insert(body));
        }
    }
    for sender in senders {
        sender.await.unwrap();
    }
}

/// The number of a task is half of its receipt. That of a removed one must not come again.
#[tokio::test]
async fn the_number_of_a_task_that_was_removed_unseen_is_never_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(&folder.path().join("q.db")).await;
    let q = queue("a");
    let mut consumer = consumer(&*broker, &q).await;
    let mut numbers = Vec::new();
    for round in 0..3 {
        let (kept, gone) = (task("kept"), task("gone"));
        send(&*broker, &q, &[kept, gone.clone()]).await;
        if round == 1 {
            broker.admin().purge(&q, &[State::Ready]).await.unwrap();
            send(&*broker, &q, &[task("kept")]).await;
        } else {
            broker.admin().delete(&q, &[gone.id]).await.remove(0).unwrap();
        }
        let got = take(&mut *consumer, 10).await.unwrap();
        assert_eq!(bodies(&got), ["kept"]);
        numbers.push(got[0].receipt.tag);
        consumer.settler().settle(&[(got[0].receipt.clone(), Settlement::Done)]).await.remove(0).unwrap();
    }
    // Two were sent each time, and one more after the purge; a lease takes a number too.
    assert!(numbers[1] >= numbers[0] + 4 && numbers[2] >= numbers[1] + 2, "{numbers:?}");
}
