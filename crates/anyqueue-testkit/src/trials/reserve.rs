//! C3, C9: reserving.

use std::time::Duration;

use anyqueue_core::{Broker, Figure, QueueName, Result, Settlement};

use crate::rig::{Rig, consume, done, drain, incoming, one, reserve, send, settle, take, touch};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

const SOON: Duration = Duration::from_secs(2);

/// A waiting reserve returns as soon as a task is sent, long before its wait is over.
pub(super) async fn c03_a_send_ends_a_long_wait(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("wait").await?;
    let mut consumer = consume(&*broker, &queue).await?;
    for number in 0..5 {
        let sender = async {
            rig.pass(Duration::from_millis(100)).await;
            let sent = rig.now();
            send(&*broker, &queue, &[Sample::new(number).envelope()]).await.map(|()| sent)
        };
        let receiver = async {
            let delivery = one(&mut *consumer, Duration::from_secs(60)).await?;
            let late = rig.now();
            done(consumer.settler().as_ref(), &[delivery]).await?;
            Ok::<_, anyqueue_core::BoxError>(late)
        };
        let (sent, got) = tokio::join!(sender, receiver);
        let late = got?.since(sent?);
        assert!(late < SOON, "a waiting reserve took {late:?} to see a task");
    }
    passed()
}

/// An empty wait lasts as long as asked for, is not an error and gives nothing. No wait at all returns at once.
pub(super) async fn c03_an_empty_wait_is_empty(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("empty").await?;
    let mut consumer = consume(&*broker, &queue).await?;
    for wait in [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(1200)] {
        let began = rig.now();
        assert!(reserve(&mut *consumer, 3, wait).await?.is_empty(), "an empty queue gave something");
        let took = rig.now().since(began);
        assert!(took + Duration::from_millis(20) >= wait && took < wait + SOON, "a wait of {wait:?} took {took:?}");
    }
    passed()
}

/// A consumer that waits in another process uses next to no processor time.
pub(super) async fn c03_an_empty_wait_costs_nothing(rig: &Rig) -> Outcome {
    if rig.time == crate::harness::Time::Movable {
        return not_applicable("the clock is movable: processor time has no meaning");
    }
    let queue = rig.queue("idle");
    let mut child = rig.child().await?;
    // The first wait pays for setting up.
    child.reserve(&queue, 8, Duration::from_millis(200)).await?;
    let before: u64 = child.ask("cpu").await?.parse()?;
    child.reserve(&queue, 8, Duration::from_secs(3)).await?;
    let used = child.ask("cpu").await?.parse::<u64>()? - before;
    assert!(used < 60_000, "3 s of waiting used {used} µs of processor time");
    passed()
}

/// Neither one call nor several give more than was asked for.
pub(super) async fn c03_never_more_than_asked_for(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("max").await?;
    send(&*broker, &queue, &Sample::many(10)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let mut all = Vec::new();
    for max in [1, 3, 100] {
        all.extend(reserve(&mut *consumer, max, SOON).await?);
    }
    all.extend(take(&mut *consumer, 10 - all.len(), SOON).await?);
    assert_eq!(crate::rig::numbers(&all), (0..10).collect::<Vec<_>>());
    done(consumer.settler().as_ref(), &all).await?;
    passed()
}

/// Settling and touching get through while a reserve of the same consumer waits.
pub(super) async fn c09_settle_while_reserve_waits(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("both").await?;
    send(&*broker, &queue, &Sample::many(3)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let held = take(&mut *consumer, 3, SOON).await?;
    assert_eq!(held.len(), 3);
    let settler = consumer.settler();
    let wait = Duration::from_secs(4);
    let ends = async {
        rig.pass(Duration::from_millis(200)).await;
        let began = rig.now();
        if capabilities.touch.works() {
            touch(&*settler, &held[0], Duration::from_secs(60)).await?;
        }
        done(&*settler, &held).await?;
        Ok::<_, anyqueue_core::Error>(rig.now().since(began))
    };
    let (ended, nothing) = tokio::join!(ends, reserve(&mut *consumer, 1, wait));
    let took = ended?;
    assert!(took < SOON, "settling took {took:?} while a reserve was waiting");
    assert!(nothing?.is_empty(), "settled tasks came again");
    passed()
}

/// Sends so many tasks one by one, with less than so many microseconds between them.
async fn trickle(rig: &Rig, broker: &dyn Broker, queue: &QueueName, count: usize, most: u64) -> Result<()> {
    for task in Sample::many(count) {
        send(broker, queue, &[task]).await?;
        rig.pass(Duration::from_micros(fastrand::u64(..most))).await;
    }
    Ok(())
}

/// Reserves dropped at random moments lose nothing: every task is worked once.
pub(super) async fn c09_dropped_reserves_lose_nothing(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("drop").await?;
    let count = rig.size(400);
    let mut consumer = consume(&*broker, &queue).await?;
    let (settler, mut seen) = (consumer.settler(), Vec::new());
    let sender = trickle(rig, &*broker, &queue, count, 1500);
    let receiver = async {
        let mut dropped = 0;
        while dropped < count * 2 {
            let patience = Duration::from_micros(fastrand::u64(..2000));
            let reserving = reserve(&mut *consumer, 1 + fastrand::usize(..8), SOON);
            match tokio::time::timeout(patience, reserving).await {
                Ok(deliveries) => {
                    let deliveries = deliveries?;
                    seen.extend(deliveries.iter().filter_map(Sample::number));
                    done(&*settler, &deliveries).await?;
                }
                Err(_) => dropped += 1,
            }
        }
        Ok::<_, anyqueue_core::Error>(())
    };
    let (sent, received) = tokio::join!(sender, receiver);
    sent?;
    received?;
    seen.extend(drain(&mut *consumer, rig.slack(Duration::ZERO)).await?);
    seen.sort_unstable();
    assert_eq!(seen, (0..count as u64).collect::<Vec<_>>(), "each task exactly once");
    passed()
}

/// A consumer that is dropped or closed keeps nothing back, and what it handed out can still be settled.
pub(super) async fn c09_a_dropped_consumer_gives_back(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("back").await?;
    send(&*broker, &queue, &Sample::many(40)).await?;
    let mut closed = consume(&*broker, &queue).await?;
    let first = one(&mut *closed, SOON).await?;
    let first_settler = closed.settler();
    closed.close().await?;
    let mut dropped = consume(&*broker, &queue).await?;
    let second = one(&mut *dropped, SOON).await?;
    let second_settler = dropped.settler();
    drop(dropped);
    settle(&*first_settler, &first.receipt, Settlement::Done).await?;
    settle(&*second_settler, &second.receipt, Settlement::Done).await?;
    let mut last = consume(&*broker, &queue).await?;
    let rest = drain(&mut *last, rig.slack(Duration::ZERO)).await?;
    assert_eq!(rest.len(), 38, "what a closed and a dropped consumer had fetched came back: {rest:?}");
    passed()
}

/// Once a consumer is closed, nothing that it fetched is left in its process: whoever ends then harms no task. None of what
/// went back looks as if a worker had died with it.
pub(super) async fn c09_a_closed_consumer_has_nothing_left(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("left").await?;
    let (count, mut seen, mut harmed) = (rig.size(200), Vec::new(), Vec::new());
    let sender = trickle(rig, &*broker, &queue, count, 3000);
    let receiver = async {
        for _ in 0..rig.size(100) {
            let mut consumer = consume(&*broker, &queue).await?;
            let patience = Duration::from_micros(fastrand::u64(..20_000));
            let reserving = reserve(&mut *consumer, 1 + fastrand::usize(..8), SOON);
            let got = tokio::time::timeout(patience, reserving).await.unwrap_or_else(|_| Ok(Vec::new()))?;
            let settler = consumer.settler();
            consumer.close().await?;
            if let Figure::Exact(reserved) = broker.admin().stats(&queue).await?.reserved {
                assert_eq!(reserved, got.len() as u64, "reserved by nobody after the consumer was closed");
            }
            seen.extend(got.iter().filter_map(Sample::number));
            done(&*settler, &got).await?;
        }
        Ok::<_, anyqueue_core::BoxError>(())
    };
    let (sent, received) = tokio::join!(sender, receiver);
    sent?;
    received?;
    let mut consumer = consume(&*broker, &queue).await?;
    loop {
        let rest = reserve(&mut *consumer, 100, rig.slack(Duration::ZERO)).await?;
        if rest.is_empty() {
            break;
        }
        harmed
            .extend(rest.iter().filter(|delivery| incoming(delivery).needs_marking(&delivery.native)).filter_map(Sample::number));
        seen.extend(rest.iter().filter_map(Sample::number));
        done(consumer.settler().as_ref(), &rest).await?;
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..count as u64).collect::<Vec<_>>(), "each task exactly once");
    assert!(!capabilities.deaths.works() || harmed.is_empty(), "nobody has died, and these say so: {harmed:?}");
    passed()
}
