//! C12 to C15: workers, writers and connections that die.

use std::time::Duration;

use anyqueue_core::{BoxError, Death, Delivery, Fencing, Link, Settlement, Settler, Support, time::MIN_TTR};
use rustix::process::Signal;

use crate::child::Child;
use crate::rig::{Rig, consume, done, drain, incoming, one, reserve, send, settle, take};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

/// The tasks of a worker that is killed come back, at once or after their lease, and nothing else is disturbed.
pub(super) async fn c12_a_killed_workers_task_comes_back(rig: &Rig) -> Outcome {
    if let Some(why) = rig.no_children() {
        return not_applicable(why);
    }
    let (broker, queue, capabilities) = rig.open("kill").await?;
    let ttr = match capabilities.death {
        Death::AtOnce => Duration::from_secs(300),
        Death::AfterLease => MIN_TTR,
        Death::WithBroker => return not_applicable("death is with the broker: they are one process"),
    };
    let tasks: Vec<_> = (0..6).map(|n| Sample::new(n).ttr(ttr).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let mut child = rig.child().await?;
    let taken = child.reserve(&queue, 4, Duration::from_secs(5)).await?;
    assert!(taken > 0, "the child got nothing");
    child.kill().await?;
    let step = capabilities.ttr.limits().step;
    let bound = if capabilities.death == Death::AtOnce { Duration::ZERO } else { ttr.max(capabilities.frozen_bound) };
    let mut consumer = consume(&*broker, &queue).await?;
    let (began, mut back) = (rig.now(), Vec::new());
    while back.len() < 6 {
        let delivery = one(&mut *consumer, bound + rig.slack(step)).await?;
        done(consumer.settler().as_ref(), std::slice::from_ref(&delivery)).await?;
        back.push(delivery);
    }
    assert_eq!(crate::rig::numbers(&back), (0..6).collect::<Vec<_>>(), "after {:?}", rig.now().since(began));
    if capabilities.deaths.works() {
        let redelivered = back.iter().filter(|d| incoming(d).needs_marking(&d.native)).count();
        assert!(redelivered >= taken, "{redelivered} of {taken} tasks of the killed worker say that it died");
    }
    passed()
}

/// A task whose lease ended without a word says so at its next delivery; put back for probation it starts at zero, and a
/// death on probation counts as one.
pub(super) async fn c12_deaths_are_reported(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("death").await?;
    if let Support::Needs((), what) = capabilities.deaths {
        return not_applicable(format!("deaths needs {what}"));
    }
    let slack = rig.slack(capabilities.ttr.limits().step);
    send(&*broker, &queue, &[Sample::new(1).ttr(MIN_TTR).envelope()]).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let settler = consumer.settler();
    let first = one(&mut *consumer, slack).await?;
    assert!(!incoming(&first).needs_marking(&first.native), "a first delivery is no redelivery: {:?}", first.native);
    let again = one(&mut *consumer, first.lease + slack).await?;
    let task = incoming(&again);
    assert!(task.needs_marking(&again.native) && task.crashes(&again.native) == 0, "{:?}", again.native);
    settle(&*settler, &again.receipt, Settlement::Retry(task.on_probation(false))).await?;
    let alone = one(&mut *consumer, slack).await?;
    let task = incoming(&alone);
    assert!(task.wire.probation && !task.needs_marking(&alone.native), "marked and counted anew: {:?}", alone.native);
    let dead = one(&mut *consumer, alone.lease + slack).await?;
    let task = incoming(&dead);
    assert_eq!((task.crashes(&dead.native), task.wire.failed), (1, 0), "a crash, not a failure: {:?}", dead.native);
    done(&*settler, &[dead]).await?;
    passed()
}

/// Who is given a task after a worker has died learns of it, also if others have given it back meanwhile, unread or read.
pub(super) async fn c12_a_death_is_told_until_somebody_notes_it(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("told").await?;
    if let Support::Needs((), what) = capabilities.deaths {
        return not_applicable(format!("deaths needs {what}"));
    }
    let dies = rig.no_children().is_none() && capabilities.death != Death::WithBroker;
    let ttr = if dies && capabilities.death == Death::AtOnce { Duration::from_secs(300) } else { MIN_TTR };
    let wait = MIN_TTR.max(capabilities.frozen_bound.min(ttr)) + rig.slack(capabilities.ttr.limits().step);
    let tasks: Vec<_> = (0..4).map(|n| Sample::new(n).ttr(ttr).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    if dies {
        let mut child = rig.child().await?;
        assert_eq!(child.reserve(&queue, 4, Duration::from_secs(5)).await?, 4);
        child.kill().await?;
    } else {
        assert_eq!(take(&mut *consumer, 4, wait).await?.len(), 4, "and their leases end without a word");
    }
    for tries in [12, 3, 3] {
        for _ in 0..tries {
            let patience = Duration::from_micros(fastrand::u64(..8000));
            let reserving = reserve(&mut *consumer, 4, wait);
            let read = tokio::time::timeout(patience, reserving).await.unwrap_or_else(|_| Ok(Vec::new()))?;
            let settler = consumer.settler();
            consumer.close().await?;
            release(&*settler, &read).await?;
            consumer = consume(&*broker, &queue).await?;
        }
        let back = take(&mut *consumer, 4, wait).await?;
        let untold: Vec<_> = back.iter().filter(|delivery| !incoming(delivery).needs_marking(&delivery.native)).collect();
        assert!(back.len() == 4 && untold.is_empty(), "four tasks whose worker died, and these do not say so: {untold:?}");
        release(consumer.settler().as_ref(), &back).await?;
    }
    let last = take(&mut *consumer, 4, wait).await?;
    done(consumer.settler().as_ref(), &last).await?;
    passed()
}

async fn release(settler: &dyn Settler, all: &[Delivery]) -> Result<(), BoxError> {
    for delivery in all {
        settle(settler, &delivery.receipt, Settlement::Release(incoming(delivery).unchanged(Duration::ZERO))).await?;
    }
    Ok(())
}

/// A worker that was stopped past its lease settles late: the second attempt's result stands.
pub(super) async fn c13_a_stopped_workers_settle_is_late(rig: &Rig) -> Outcome {
    if let Some(why) = rig.no_children() {
        return not_applicable(why);
    }
    let (broker, queue, capabilities) = rig.open("stop").await?;
    send(&*broker, &queue, &[Sample::new(1).ttr(MIN_TTR).envelope()]).await?;
    let mut child = rig.child().await?;
    assert_eq!(child.reserve(&queue, 1, Duration::from_secs(5)).await?, 1);
    child.signal(Signal::STOP)?;
    let mut consumer = consume(&*broker, &queue).await?;
    let bound = rig.lease_bound(&capabilities);
    let second = one(&mut *consumer, bound).await;
    child.signal(Signal::CONT)?;
    let second = match second {
        // The lease is over all the same: what the stopped worker says now is late.
        Err(_) if capabilities.frozen_bound == Duration::MAX => one(&mut *consumer, bound).await?,
        second => second?,
    };
    let (accepted, lost) = child.done().await?;
    if capabilities.fencing == Fencing::Compared {
        assert_eq!((accepted, lost), (0, 1), "the late settle of a stopped worker is refused");
    }
    // Where receipts are not compared the late settle may have been taken: then the second worker has nothing to settle.
    if accepted == 0 {
        done(consumer.settler().as_ref(), &[second]).await?;
    }
    assert!(drain(&mut *consumer, bound).await?.is_empty(), "a task that is done came back");
    passed()
}

/// How far a child has got with its sends.
async fn progress(child: &mut Child, at_least: usize) -> Result<usize, BoxError> {
    let mut accepted = 0;
    while accepted < at_least {
        accepted = child.answer().await?.parse()?;
    }
    Ok(accepted)
}

/// A process that is killed while it sends: all that it was told is accepted is there, once.
pub(super) async fn c14_a_killed_writer_loses_nothing(rig: &Rig) -> Outcome {
    if let Some(why) = rig.no_children() {
        return not_applicable(why);
    }
    let (broker, queue, _) = rig.open("writer").await?;
    for round in 1..=3 {
        let mut child = rig.child().await?;
        child.tell(&format!("send {queue} 100000")).await?;
        let mut accepted = progress(&mut child, rig.size(100 * round)).await?;
        for line in child.kill().await? {
            accepted = line.parse()?;
        }
        let mut consumer = consume(&*broker, &queue).await?;
        let mut got = drain(&mut *consumer, Duration::from_secs(1)).await?;
        got.sort_unstable();
        assert!(got.len() >= accepted, "round {round}: {accepted} tasks were accepted and {} are there", got.len());
        assert_eq!(got, (0..got.len() as u64).collect::<Vec<_>>(), "round {round}: without gaps, each once");
    }
    passed()
}

fn no_connection(link: Link) -> Option<String> {
    match link {
        Link::Memory => Some("link is memory: no connection to cut".into()),
        Link::File => Some("link is file: no connection to cut".into()),
        Link::Network { .. } => None,
    }
}

async fn works_again(rig: &Rig, cut: impl FnOnce(&crate::proxy::Proxy), label: &str, bound: Duration) -> Result<(), BoxError> {
    let (url, proxy) = rig.stage.proxied.as_ref().ok_or("this harness must give a proxied URL, since its link is a network")?;
    let (direct, queue, _) = rig.open(label).await?;
    let broker = rig.connect_with(url, anyqueue_core::Create::Auto).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    send(&*broker, &queue, &Sample::many(1)).await?;
    assert_eq!(drain(&mut *consumer, Duration::from_secs(1)).await?, [0]);
    cut(proxy);
    let began = rig.now();
    send(&*direct, &queue, &[Sample::new(7).envelope()]).await?;
    loop {
        // A call on a broken connection may fail; calling again is all that a caller has to do.
        if let Ok(got) = crate::rig::reserve(&mut *consumer, 1, Duration::from_secs(1)).await
            && !got.is_empty()
        {
            assert_eq!(Sample::number(&got[0]), Some(7));
            break;
        }
        let late = rig.now().since(began);
        assert!(late < bound, "no work after {late:?}");
        rig.pass(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A connection that goes dead without a word is noticed within twice the declared interval, and work goes on.
pub(super) async fn c15_a_black_hole_is_noticed(rig: &Rig) -> Outcome {
    let Link::Network { liveness } = rig.driver.capabilities.link else {
        return not_applicable(no_connection(rig.driver.capabilities.link).unwrap_or_default());
    };
    let slack = rig.slack(Duration::from_secs(1));
    works_again(rig, |proxy| proxy.swallow(), "black", liveness * 2 + slack).await?;
    passed()
}

/// While the server is silent, for new connections too, no reserve says that there is nothing: once one has failed, all do
/// until the server is back. Without a wait too, for whoever drains a queue takes "nothing" for its end.
pub(super) async fn c15_silence_is_no_empty_queue(rig: &Rig) -> Outcome {
    let Link::Network { liveness } = rig.driver.capabilities.link else {
        return not_applicable(no_connection(rig.driver.capabilities.link).unwrap_or_default());
    };
    let (url, proxy) = rig.stage.proxied.as_ref().ok_or("this harness must give a proxied URL, since its link is a network")?;
    let (_direct, queue, _) = rig.open("silence").await?;
    let broker = rig.connect_with(url, anyqueue_core::Create::Auto).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    assert!(drain(&mut *consumer, Duration::from_millis(100)).await?.is_empty());
    let wait = Duration::from_secs(1);
    proxy.black(true);
    let began = rig.now();
    // What was seen a moment before, and a server that says by itself when something comes, are believed until it is noticed.
    while crate::rig::reserve(&mut *consumer, 1, wait).await.is_ok() {
        let late = rig.now().since(began);
        assert!(late < liveness * 2 + rig.slack(wait), "silent for {late:?}, and the queue is still said to be empty");
        rig.pass(Duration::from_millis(50)).await;
    }
    for wait in [wait, wait, Duration::ZERO, wait, Duration::ZERO] {
        let got = crate::rig::reserve(&mut *consumer, 1, wait).await.map(|got| got.len());
        assert!(got.is_err(), "{got:?} tasks with a wait of {wait:?}, {:?} after the server fell silent", rig.now().since(began));
        // As a worker that failed does: what is fetched for nobody ends meanwhile.
        rig.pass(Duration::from_millis(500)).await;
    }
    proxy.black(false);
    let began = rig.now();
    while let Err(e) = crate::rig::reserve(&mut *consumer, 1, wait).await {
        let late = rig.now().since(began);
        assert!(late < liveness + rig.slack(wait), "{late:?} after the server was back: {e}");
        rig.pass(Duration::from_millis(50)).await;
    }
    passed()
}

/// A connection that is reset is made anew, and work goes on at once.
pub(super) async fn c15_a_reset_is_noticed(rig: &Rig) -> Outcome {
    if let Some(why) = no_connection(rig.driver.capabilities.link) {
        return not_applicable(why);
    }
    works_again(rig, crate::proxy::Proxy::cut, "reset", rig.slack(Duration::from_secs(2))).await?;
    passed()
}
