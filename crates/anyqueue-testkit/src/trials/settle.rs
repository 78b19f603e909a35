//! C8, C10: settling.

use std::time::Duration;

use anyqueue_core::{Data, Delivery, Envelope, ErrorKind, Fencing, Order, Receipt, Settlement, Wire, time::MIN_TTR};

use crate::rig::{Rig, consume, done, drain, incoming, one, reserve, send, settle, take, touch};
use crate::run::{Outcome, passed};
use crate::sample::Sample;

const SOON: Duration = Duration::from_secs(2);

fn every_settlement(delivery: &Delivery) -> [Settlement; 4] {
    let task = incoming(delivery);
    [
        Settlement::Done,
        Settlement::Release(task.unchanged(Duration::ZERO)),
        Settlement::Retry(task.failed(Duration::ZERO)),
        Settlement::Hold(task.unchanged(Duration::ZERO), "late".into()),
    ]
}

/// Once a lease has ended and somebody else holds the task, every settle and touch of the first is `LeaseLost`, and the
/// second is not disturbed. Where receipts are not compared, nothing may be lost.
pub(super) async fn c08_stale_receipts_are_refused(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("stale").await?;
    let slack = rig.slack(capabilities.ttr.limits().step);
    let tasks: Vec<_> = (0..5).map(|n| Sample::new(n).ttr(MIN_TTR).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let (mut first, mut second) = (consume(&*broker, &queue).await?, consume(&*broker, &queue).await?);
    let stale = take(&mut *first, 5, slack).await?;
    rig.pass(MIN_TTR + capabilities.ttr.limits().step).await;
    let late = first.settler();
    let fresh = take(&mut *second, 5, slack).await?;
    assert_eq!((stale.len(), fresh.len()), (5, 5));
    let compared = capabilities.fencing == Fencing::Compared;
    for (delivery, what) in stale.iter().zip(every_settlement(&stale[0])) {
        let answer = settle(&*late, &delivery.receipt, what.clone()).await;
        assert!(!compared || answer.is_err_and(|e| e.is_lease_lost()), "{what:?} with a stale receipt was taken");
    }
    let answer = touch(&*late, &stale[4], MIN_TTR).await;
    assert!(!compared || answer.is_err_and(|e| e.is_lease_lost()), "a touch with a stale receipt was taken");
    let settler = second.settler();
    for delivery in &fresh {
        let answer = settle(&*settler, &delivery.receipt, Settlement::Done).await;
        assert!(!compared || answer.is_ok(), "the holder was disturbed: {answer:?}");
    }
    if compared {
        assert!(drain(&mut *second, MIN_TTR + slack).await?.is_empty(), "a task settled by its holder came back");
    }
    passed()
}

/// A receipt is good for one settlement; a made-up one for none.
pub(super) async fn c08_a_settled_receipt_is_stale(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("twice").await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let settler = consumer.settler();
    for n in 0..4 {
        send(&*broker, &queue, &[Sample::new(n).envelope()]).await?;
        let delivery = one(&mut *consumer, SOON).await?;
        settle(&*settler, &delivery.receipt, every_settlement(&delivery)[n as usize].clone()).await?;
        let again = settle(&*settler, &delivery.receipt, Settlement::Done).await;
        assert!(again.is_err_and(|e| e.is_lease_lost()), "a receipt was good for two settlements");
        if matches!(n, 1 | 2) {
            let back = one(&mut *consumer, rig.slack(capabilities.delay.limits().step)).await?;
            done(&*settler, &[back]).await?;
        }
    }
    let made_up = Receipt { epoch: u64::MAX >> 1, tag: u64::MAX >> 1, handle: None };
    assert!(settle(&*settler, &made_up, Settlement::Done).await.is_err_and(|e| e.is_lease_lost()));
    passed()
}

/// One stale receipt in a batch is refused alone.
pub(super) async fn c08_a_bad_settle_is_alone(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("alone").await?;
    send(&*broker, &queue, &Sample::many(5)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let deliveries = take(&mut *consumer, 5, SOON).await?;
    let settler = consumer.settler();
    done(&*settler, &deliveries[2..3]).await?;
    let batch: Vec<_> = deliveries.iter().map(|d| (d.receipt.clone(), Settlement::Done)).collect();
    let answers: Vec<_> = settler.settle(&batch).await.into_iter().map(|a| a.map_err(|e| e.kind())).collect();
    assert_eq!(answers, [Ok(()), Ok(()), Err(ErrorKind::LeaseLost), Ok(()), Ok(())]);
    assert!(settler.settle(&[]).await.is_empty() && settler.touch(&[]).await.is_empty(), "no items, no answers");
    passed()
}

fn rich() -> Envelope {
    let data = Data::raw_json(r#"{"a": [1, 2.50, "é"], "z":null}"#).expect("this is JSON");
    Sample::new(0).data(data).store("nl").priority(600).ttr(Duration::from_secs(90)).envelope()
}

/// A counted retry adds one to `failed` and keeps id, data, store, priority and TTR; a snooze adds nothing.
pub(super) async fn c10_retry_keeps_the_task(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("retry").await?;
    let sent = rich();
    send(&*broker, &queue, std::slice::from_ref(&sent)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let settler = consumer.settler();
    for (round, failed) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 2)] {
        let delivery = one(&mut *consumer, rig.slack(capabilities.delay.limits().step)).await?;
        let task = incoming(&delivery);
        let original = Wire::read(&sent.body)?;
        assert_eq!((task.id, task.priority, task.ttr), (sent.id, 600, Duration::from_secs(90)), "round {round}");
        assert_eq!((&task.wire.data, task.wire.store.as_str()), (&original.data, "nl"), "round {round}");
        assert_eq!((task.wire.failed, task.attempt()), (failed, failed + 1), "round {round}");
        assert!(delivery.lease >= Duration::from_secs(90), "the TTR was shortened to {:?}", delivery.lease);
        let next = match round {
            0 | 1 => Settlement::Retry(task.failed(Duration::ZERO)),
            2 => Settlement::Retry(task.snoozed(Duration::ZERO)),
            3 => Settlement::Release(task.unchanged(Duration::ZERO)),
            _ => Settlement::Done,
        };
        settle(&*settler, &delivery.receipt, next).await?;
    }
    assert!(reserve(&mut *consumer, 1, Duration::from_millis(200)).await?.is_empty());
    passed()
}

/// A retry with a delay waits for it, one without goes behind those that wait already; new priority and TTR are taken.
pub(super) async fn c10_retry_goes_behind_and_waits(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("behind").await?;
    send(&*broker, &queue, &Sample::many(3)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let settler = consumer.settler();
    if capabilities.order == Order::Fifo {
        let first = one(&mut *consumer, SOON).await?;
        settle(&*settler, &first.receipt, Settlement::Retry(incoming(&first).failed(Duration::ZERO))).await?;
        let order = take(&mut *consumer, 3, SOON).await?;
        assert_eq!(order.iter().filter_map(Sample::number).collect::<Vec<_>>(), [1, 2, 0], "behind those that wait");
        done(&*settler, &order).await?;
        send(&*broker, &queue, &Sample::many(3)).await?;
    }
    let first = take(&mut *consumer, 2, SOON).await?;
    let delay = Duration::from_millis(1200);
    let began = rig.now();
    settle(&*settler, &first[0].receipt, Settlement::Retry(incoming(&first[0]).failed(delay))).await?;
    let mut urgent = incoming(&first[1]);
    (urgent.priority, urgent.ttr) = (100, Duration::from_secs(33));
    settle(&*settler, &first[1].receipt, Settlement::Retry(urgent.failed(Duration::ZERO))).await?;
    let next = take(&mut *consumer, 2, SOON).await?;
    if capabilities.priority.works() {
        let order: Vec<_> = next.iter().filter_map(Sample::number).collect();
        assert_eq!(order, [Sample::number(&first[1]).ok_or("a sample")?, 2], "the more urgent one first");
        assert!(next[0].lease >= Duration::from_secs(33) && next[0].lease < Duration::from_secs(60));
    }
    done(&*settler, &next).await?;
    let last = one(&mut *consumer, delay + rig.slack(capabilities.delay.limits().step)).await?;
    assert!(rig.now().since(began) >= delay, "a delayed retry came early");
    assert_eq!(incoming(&last).wire.failed, 1);
    done(&*settler, &[last]).await?;
    passed()
}

/// A release changes nothing in the body; where order is kept, the task keeps its place; a delay is honoured.
pub(super) async fn c10_release_counts_nothing(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("release").await?;
    send(&*broker, &queue, &Sample::many(4)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let settler = consumer.settler();
    let first = take(&mut *consumer, 3, SOON).await?;
    for delivery in &first[1..] {
        settle(&*settler, &delivery.receipt, Settlement::Release(incoming(delivery).unchanged(Duration::ZERO))).await?;
    }
    let delay = Duration::from_millis(1100);
    let began = rig.now();
    settle(&*settler, &first[0].receipt, Settlement::Release(incoming(&first[0]).unchanged(delay))).await?;
    let slack = rig.slack(capabilities.delay.limits().step);
    let back = take(&mut *consumer, 3, slack).await?;
    for delivery in &back {
        let before = first.iter().find(|d| Sample::number(d) == Sample::number(delivery));
        assert!(before.is_none_or(|before| before.raw == delivery.raw), "a release changed the body");
        assert_ne!(delivery.native.redeliveries.value(), Some(1), "a release was counted as a death");
    }
    if capabilities.order == Order::Fifo && capabilities.release.caveat().is_none() {
        assert_eq!(back.iter().filter_map(Sample::number).collect::<Vec<_>>(), [1, 2, 3], "the place in line");
    }
    done(&*settler, &back).await?;
    let late = one(&mut *consumer, delay + slack).await?;
    assert!(rig.now().since(began) >= delay, "a delayed release came early");
    done(&*settler, &[late]).await?;
    passed()
}
