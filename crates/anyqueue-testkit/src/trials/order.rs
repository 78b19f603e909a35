//! C4: order.

use std::time::Duration;

use anyqueue_core::{ConsumeOptions, Envelope, Levels, Order, Support, priority};

use crate::rig::{Rig, consume, drain, reserve, send};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

const QUIET: Duration = Duration::from_millis(400);
/// Levels that are distinct on every broker.
const DISTINCT: [u32; 3] = [100, 600, 2000];

fn script(count: u64) -> Vec<Envelope> {
    (0..count).map(|n| Sample::new(n).priority(DISTINCT[(n * 7 % 3) as usize]).envelope()).collect()
}

/// The script of a thousand tasks drains level by level; within a level in order where that is claimed.
pub(super) async fn c04_order_of_a_thousand(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("order").await?;
    send(&*broker, &queue, &script(1000)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let got = drain(&mut *consumer, QUIET).await?;
    let levels: Vec<u64> = got.iter().map(|n| n * 7 % 3).collect();
    assert_eq!(got.len(), 1000, "every task once");
    assert!(levels.is_sorted(), "a less urgent task came before a more urgent one");
    if capabilities.order == Order::Fifo {
        assert!(got.chunk_by(|a, b| a * 7 % 3 == b * 7 % 3).all(|level| level.is_sorted()), "not first in first out in a level");
    }
    passed()
}

/// Tasks of one level come in the order in which they were sent, one by one and in batches, and given-back ones keep
/// their place where the release is native.
pub(super) async fn c04_order_within_a_level(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("fifo").await?;
    let count = rig.size(500);
    for part in Sample::many(count).chunks(7) {
        send(&*broker, &queue, part).await?;
    }
    let mut consumer = consume(&*broker, &queue).await?;
    let got = drain(&mut *consumer, QUIET).await?;
    let expected: Vec<u64> = (0..count as u64).collect();
    match capabilities.order {
        Order::Fifo => assert_eq!(got, expected),
        Order::Loose => {
            let mut sorted = got;
            sorted.sort_unstable();
            assert_eq!(sorted, expected);
        }
    }
    passed()
}

/// Each number is a level of its own where that is claimed; where numbers fall into bands, the bands are those declared.
pub(super) async fn c04_every_number_or_its_band(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("levels").await?;
    let levels = capabilities.priority.limits();
    let numbers = [u32::MAX, 0, 1, 2, 340, 341, 512, 513, 682, 683, 1023, 1024, 1025, 2048, 2049, 4096, u32::MAX - 1];
    let tasks: Vec<_> = numbers.iter().map(|p| Sample::new(u64::from(*p)).priority(*p).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let got: Vec<u32> = drain(&mut *consumer, QUIET).await?.into_iter().map(|n| levels.of(n as u32)).collect();
    assert_eq!(got.len(), numbers.len(), "every task once");
    assert!(got.is_sorted(), "levels came as {got:?}");
    if levels == Levels::Every {
        assert!(got.windows(2).all(|pair| pair[0] < pair[1]));
    }
    passed()
}

/// A consumer of a range takes that range only, and is rung for a task that another consumer does not want.
pub(super) async fn c04_priority_ranges(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("range").await?;
    let narrow = ConsumeOptions { priorities: 0..=priority::HIGH, ..ConsumeOptions::default() };
    if let Support::Needs((), what) = capabilities.priority_ranges {
        let error = broker.consume(&queue, narrow).await.err().ok_or("a range was accepted without what it needs")?;
        return not_applicable(format!("priority_ranges needs {what}, and is refused: {error}"));
    }
    send(&*broker, &queue, &script(30)).await?;
    let mut urgent = broker.consume(&queue, narrow).await?;
    let wide = ConsumeOptions { priorities: priority::HIGH + 1..=u32::MAX, ..ConsumeOptions::default() };
    let mut rest = broker.consume(&queue, wide).await?;
    assert!(drain(&mut *urgent, QUIET).await?.iter().all(|n| n * 7 % 3 == 0), "a task outside the range came");
    assert_eq!(drain(&mut *rest, QUIET).await?.len(), 20);
    let sender = async {
        rig.pass(Duration::from_millis(100)).await;
        send(&*broker, &queue, &[Sample::new(1).priority(4000).envelope(), Sample::new(0).priority(3).envelope()]).await
    };
    let wait = Duration::from_secs(30);
    let began = rig.now();
    let (first, second, sent) = tokio::join!(reserve(&mut *urgent, 1, wait), reserve(&mut *rest, 1, wait), sender);
    sent?;
    assert_eq!((first?.len(), second?.len()), (1, 1));
    assert!(rig.now().since(began) < wait / 2, "a consumer of a range was not woken");
    passed()
}
