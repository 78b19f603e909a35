//! What survives the end of the broker: parts of C1, C5, C11, C14, C21.

use std::time::Duration;

use anyqueue_core::{BoxError, Durability, Link, Paused, Settlement, State, Which};

use super::hold::{held, hold, read};
use crate::rig::{Rig, consume, done, drain, incoming, one, send, settle, take};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

const SOON: Duration = Duration::from_secs(3);

/// For a broker that claims nothing: once everybody has gone, the store must not pretend to be durable.
async fn nothing_survives(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("gone").await?;
    send(&*broker, &queue, &Sample::many(3)).await?;
    broker.close().await?;
    drop(broker);
    let broker = rig.connect().await?;
    let mut consumer = consume(&*broker, &queue).await?;
    assert!(drain(&mut *consumer, Duration::from_millis(100)).await?.is_empty(), "a store that is not durable kept tasks");
    not_applicable("durability is none: the store ends with its last client")
}

/// Accepted tasks are there after the broker was killed, in their order.
pub(super) async fn c01_accepted_tasks_survive(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("durable").await?;
    if !rig.survives_restart(&capabilities) {
        drop(broker);
        return nothing_survives(rig).await;
    }
    let count = rig.size(500);
    send(&*broker, &queue, &Sample::many(count)).await?;
    let broker = rig.restart(vec![broker]).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let got = drain(&mut *consumer, SOON).await?;
    assert_eq!(got.len(), count, "accepted tasks after a restart");
    assert!(capabilities.order != anyqueue_core::Order::Fifo || got.is_sorted(), "in their order");
    passed()
}

/// A delayed task is neither lost nor early after a restart, priority and TTR included.
pub(super) async fn c05_a_delay_survives_restart(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("later").await?;
    if !rig.survives_restart(&capabilities) {
        return not_applicable("durability is none: nothing survives");
    }
    // Where a delay is kept in steps, this one has several: what is left of them is gone through after the restart.
    let (delay, ttr) = (Duration::from_secs(7), Duration::from_secs(33));
    let sent = rig.now();
    send(&*broker, &queue, &[Sample::new(1).delay(delay).priority(600).ttr(ttr).envelope()]).await?;
    let broker = rig.restart(vec![broker]).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let delivery = match one(&mut *consumer, delay * 2 + rig.slack(capabilities.delay.limits().step)).await {
        Ok(delivery) => delivery,
        Err(e) => return Err(format!("{e}, and the queue has {:?}", broker.admin().stats(&queue).await?).into()),
    };
    // The time of day may be what the broker goes by across a restart.
    assert!(rig.now().since(sent) + Duration::from_millis(50) >= delay, "early after a restart");
    assert_eq!((incoming(&delivery).priority, incoming(&delivery).ttr), (600, ttr));
    assert!(delivery.lease >= ttr && delivery.lease < ttr * 2);
    done(consumer.settler().as_ref(), &[delivery]).await?;
    passed()
}

/// Held tasks are still held after a restart, with their reason, and can be kicked.
pub(super) async fn c11_a_hold_survives_restart(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("parked").await?;
    if !rig.survives_restart(&capabilities) {
        return not_applicable("durability is none: nothing survives");
    }
    send(&*broker, &queue, &Sample::many(5)).await?;
    let ids = hold(&*broker, &queue, 5).await?;
    rig.pass(capabilities.settle_window).await;
    let broker = rig.restart(vec![broker]).await?;
    let listed = held(broker.admin(), &queue, 10).await?;
    assert_eq!(listed.iter().map(|task| read(task, &queue).id).collect::<Vec<_>>(), ids);
    assert!(listed.iter().all(|task| read(task, &queue).wire.held.is_some_and(|note| note.reason == "no disk")));
    let mut consumer = consume(&*broker, &queue).await?;
    assert!(drain(&mut *consumer, Duration::from_millis(500)).await?.is_empty(), "a held task was delivered after a restart");
    assert_eq!(broker.admin().kick(&queue, &Which::All).await?, 5);
    assert_eq!(drain(&mut *consumer, SOON).await?.len(), 5);
    passed()
}

/// Consumers and senders that were there before the server was killed go on when it is back; nothing accepted is lost.
pub(super) async fn c14_a_killed_server_is_found_again(rig: &Rig) -> Outcome {
    match rig.driver.capabilities.link {
        Link::Memory => return not_applicable("link is memory: no server to kill"),
        Link::File => return not_applicable("link is file: no server to kill; c14_a_killed_writer_loses_nothing kills writers"),
        Link::Network { .. } => {}
    }
    let server = rig.stage.server.as_ref().ok_or("this harness must give a server, since its link is a network")?;
    let (broker, queue, capabilities) = rig.open("server").await?;
    let durable = capabilities.durability > Durability::None;
    let mut consumer = consume(&*broker, &queue).await?;
    send(&*broker, &queue, &Sample::many(20)).await?;
    let before = take(&mut *consumer, 5, SOON).await?;
    server.kill().await?;
    let refused = broker.send(&queue, &[Sample::new(50).envelope()]).await.remove(0);
    assert!(refused.is_err_and(|e| e.is_retryable()), "a send to a dead server fails, and can be repeated");
    server.start().await?;
    let began = rig.now();
    while broker.send(&queue, &[Sample::new(60).envelope()]).await.remove(0).is_err() {
        assert!(rig.now().since(began) < Duration::from_secs(60), "the sender does not find the server again");
        rig.pass(Duration::from_millis(100)).await;
    }
    drop(before);
    let mut got = std::collections::BTreeSet::new();
    while !(got.contains(&60) && (!durable || got.len() >= 21)) {
        assert!(rig.now().since(began) < Duration::from_secs(120), "after the restart only {got:?} came");
        // Reserves fail until the consumer has connected again.
        if let Ok(some) = crate::rig::reserve(&mut *consumer, 8, Duration::from_secs(1)).await {
            got.extend(some.iter().filter_map(Sample::number));
            done(consumer.settler().as_ref(), &some).await?;
        }
    }
    passed()
}

/// What was settled longer ago than the declared window does not come back after a restart.
pub(super) async fn c14_a_done_task_stays_done(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("settled").await?;
    if !rig.survives_restart(&capabilities) {
        return not_applicable("durability is none: nothing survives");
    }
    send(&*broker, &queue, &Sample::many(30)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let got = take(&mut *consumer, 20, SOON).await?;
    let settler = consumer.settler();
    done(&*settler, &got[..10]).await?;
    for delivery in &got[10..] {
        settle(&*settler, &delivery.receipt, Settlement::Retry(incoming(delivery).failed(Duration::ZERO))).await?;
    }
    consumer.close().await?;
    rig.pass(capabilities.settle_window).await;
    let finished = crate::rig::numbers(&got[..10]);
    let broker = rig.restart(vec![broker]).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let rest = take(&mut *consumer, 30, SOON).await?;
    let mut numbers = crate::rig::numbers(&rest);
    assert!(numbers.iter().all(|n| !finished.contains(n)), "a task that was done came back: {numbers:?}");
    numbers.dedup();
    assert_eq!(numbers.len(), 20, "all others are there: {numbers:?}");
    let failed = rest.iter().filter(|d| incoming(d).wire.failed == 1).count();
    assert_eq!(failed, 10, "the counts of retries survive");
    done(consumer.settler().as_ref(), &rest).await?;
    passed()
}

/// A pause holds through a restart of the broker.
pub(super) async fn c21_a_pause_survives_restart(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("paused").await?;
    if !rig.survives_restart(&capabilities) {
        return not_applicable("durability is none: nothing survives");
    }
    broker.admin().pause(&queue, None).await?;
    send(&*broker, &queue, &Sample::many(2)).await?;
    let broker = rig.restart(vec![broker]).await?;
    assert_eq!(broker.admin().paused(&queue).await?, Paused::Yes(None));
    let mut consumer = consume(&*broker, &queue).await?;
    assert!(drain(&mut *consumer, Duration::from_millis(500)).await?.is_empty(), "a pause was forgotten");
    broker.admin().resume(&queue).await?;
    assert_eq!(drain(&mut *consumer, SOON).await?.len(), 2);
    let end: Result<_, BoxError> = broker.admin().purge(&queue, &State::ALL).await.map_err(BoxError::from);
    assert_eq!(end?, 0);
    passed()
}
