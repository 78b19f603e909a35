//! C20: many at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{
    BoxError, Broker, Delivery, Error, ErrorKind, Fencing, Figure, QueueName, Result, Settlement, Settler, Stats, Which,
    time::MIN_TTR,
};

use crate::rig::{Rig, consume, done, incoming, reserve, send, settle, take, touch, touch_all};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

/// How often each number was accepted as done.
#[derive(Debug, Default)]
struct Tally {
    done: Mutex<BTreeMap<u64, usize>>,
    /// What was done last to each number, for the report of a failure.
    last: Mutex<BTreeMap<u64, String>>,
    late: AtomicUsize,
}

impl Tally {
    fn add(&self, number: u64) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner).entry(number).or_default() += 1;
    }

    fn add_late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    fn numbers(&self) -> usize {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn note(&self, number: u64, what: String) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(number, what);
    }

    /// The numbers that are missing, with what was done to them last.
    fn missing(&self, count: usize) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = (0..count as u64).filter(|n| !self.has(*n)).take(5);
        missing.map(|n| format!("{n}: {}", last.get(&n).map_or("never delivered", String::as_str))).collect::<Vec<_>>().join("; ")
    }

    fn has(&self, number: u64) -> bool {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&number)
    }

    fn repeated(&self) -> usize {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|times| **times > 1).count()
    }
}

/// Does one of the things that workers do to a task. Says whether it was forgotten: then its lease ends by itself.
async fn treat(rig: &Rig, settler: &dyn Settler, delivery: &Delivery, tally: &Tally) -> Result<bool> {
    let (task, number) = (incoming(delivery), Sample::number(delivery).unwrap_or(u64::MAX));
    tally.note(number, format!("{:?} delivered", delivery.receipt));
    if fastrand::u8(..10) == 0 {
        match touch(settler, delivery, task.ttr).await {
            Err(e) if !e.is_lease_lost() => return Err(e),
            _ => {}
        }
    }
    let soon = Duration::from_millis(fastrand::u64(..60));
    let what = match fastrand::u8(..100) {
        0..3 => return Ok(true),
        3..12 => Settlement::Retry(task.failed(soon)),
        12..16 => Settlement::Retry(task.snoozed(Duration::ZERO)),
        16..22 => Settlement::Release(task.unchanged(Duration::ZERO)),
        22..27 => Settlement::Hold(task.held("stress", false, rig.clock.wall()), "stress".into()),
        _ => Settlement::Done,
    };
    let finished = what == Settlement::Done;
    tally.note(number, format!("{:?} {what:?}", delivery.receipt));
    match settle(settler, &delivery.receipt, what).await {
        Ok(()) if finished => tally.add(number),
        Err(e) if e.is_lease_lost() => tally.add_late(),
        answer => answer?,
    }
    Ok(false)
}

/// Settles forgotten tasks whose leases are over by now: a late worker must not harm whoever has them.
async fn remember(rig: &Rig, forgotten: &mut Vec<(Arc<dyn Settler>, Delivery)>, tally: &Tally) -> Result<()> {
    let now = rig.now();
    for (settler, delivery) in forgotten.extract_if(.., |(_, delivery)| delivery.deadline < now) {
        match settle(&*settler, &delivery.receipt, Settlement::Done).await {
            Ok(()) => tally.add(Sample::number(&delivery).unwrap_or(u64::MAX)),
            Err(e) if e.is_lease_lost() => tally.add_late(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn work(rig: &Rig, broker: &dyn Broker, queue: &QueueName, tally: &Tally, count: usize) -> Result<()> {
    let mut consumer = consume(broker, queue).await?;
    let mut forgotten = Vec::new();
    while tally.numbers() < count {
        remember(rig, &mut forgotten, tally).await?;
        let settler = consumer.settler();
        let deliveries = reserve(&mut *consumer, 1 + fastrand::usize(..24), Duration::from_millis(200)).await?;
        for delivery in deliveries {
            if treat(rig, &*settler, &delivery, tally).await? {
                forgotten.push((settler.clone(), delivery));
            }
        }
        if fastrand::u8(..50) == 0 {
            // A worker that goes away and comes back.
            consumer = consume(broker, queue).await?;
        }
    }
    Ok(())
}

fn is_empty(stats: &Stats) -> bool {
    [stats.ready, stats.delayed, stats.reserved, stats.held].iter().all(|figure| *figure == Figure::Exact(0))
}

/// Kicks what is held. Ends early if the queue stays empty although not all is done: then tasks are lost.
async fn operate(rig: &Rig, broker: &dyn Broker, queue: &QueueName, tally: &Tally, count: usize) -> Result<()> {
    let mut empty = 0;
    while tally.numbers() < count {
        broker.admin().kick(queue, &Which::First(fastrand::u64(..20))).await?;
        let stats = broker.admin().stats(queue).await?;
        empty = if is_empty(&stats) { empty + 1 } else { 0 };
        if empty > 100 {
            let (done, late) = (tally.numbers(), tally.late.load(Ordering::Relaxed));
            let missing = tally.missing(count);
            let text = format!("the queue is empty, {done} of {count} tasks are done, {late} settles were late; {missing}");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        rig.pass(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Four senders, six workers that do all that workers do, and an operator: each task is done, none is lost, and where
/// receipts are compared none is done twice.
pub(super) async fn c20_parallel_stress(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("stress").await?;
    let (each, tally) = (rig.size(400), Tally::default());
    let count = each * 4;
    let second = rig.connect().await?;
    let sender = |n: usize| {
        let (broker, queue) = (if n.is_multiple_of(2) { &broker } else { &second }, &queue);
        async move {
            let tasks: Vec<_> = (0..each).map(|at| Sample::new((n * each + at) as u64).ttr(MIN_TTR * 2)).collect();
            for part in tasks.chunks(1 + n * 9) {
                let part: Vec<_> = part.iter().cloned().map(|task| task.priority(fastrand::u32(..3000)).envelope()).collect();
                send(&**broker, queue, &part).await?;
            }
            Ok::<_, anyqueue_core::Error>(())
        }
    };
    let worker = |n: usize| work(rig, if n.is_multiple_of(2) { &*broker } else { &*second }, &queue, &tally, count);
    let all = async {
        tokio::try_join!(
            async { tokio::try_join!(sender(0), sender(1), sender(2), sender(3)) },
            async { tokio::try_join!(worker(0), worker(1), worker(2), worker(3), worker(4), worker(5)) },
            operate(rig, &*broker, &queue, &tally, count),
        )
    };
    match tokio::time::timeout(Duration::from_secs(120), all).await {
        Ok(ended) => drop(ended?),
        Err(_) => {
            let (done, stats) = (tally.numbers(), broker.admin().stats(&queue).await?);
            return Err(format!("{done} of {count} tasks are done, and the rest does not come: {stats:?}").into());
        }
    }
    let (repeated, late) = (tally.repeated(), tally.late.load(Ordering::Relaxed));
    println!("stress: {count} tasks done, {repeated} more than once, {late} settles were late");
    if capabilities.fencing == Fencing::Compared {
        assert_eq!(repeated, 0, "a task was done twice although receipts are compared");
    }
    rig.pass(MIN_TTR * 2).await;
    let stats = broker.admin().stats(&queue).await?;
    let left = [stats.ready, stats.delayed, stats.reserved, stats.held];
    assert!(left.iter().all(|figure| !matches!(figure, Figure::Exact(1..))), "tasks are left: {stats:?}");
    passed()
}

/// Tasks that are touched in time are not lost to busy workers beside, not one of them.
pub(super) async fn c20_touched_while_others_work(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("keep").await?;
    if !capabilities.touch.works() {
        return not_applicable(format!("touch needs {}", capabilities.touch.caveat().unwrap_or_default()));
    }
    let (ttr, count) = (MIN_TTR * 2, 20);
    let tasks: Vec<_> = (0..count).map(|n| Sample::new(n).ttr(ttr).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let mut holder = consume(&*broker, &queue).await?;
    let kept = take(&mut *holder, count as usize, Duration::from_secs(5)).await?;
    assert_eq!(kept.len(), count as usize);
    let (settler, until) = (holder.settler(), rig.now() + ttr * 2);
    let keeper = async {
        while rig.now() < until {
            rig.pass(ttr / 5).await;
            touch_all(&*settler, &kept, ttr).await.into_iter().collect::<Result<Vec<_>>>()?;
        }
        done(&*settler, &kept).await
    };
    let busy = async {
        let mut consumer = consume(&*broker, &queue).await?;
        while rig.now() < until {
            send(&*broker, &queue, &[Sample::new(1000).envelope()]).await?;
            let got = reserve(&mut *consumer, 50, Duration::from_millis(20)).await?;
            assert!(got.iter().all(|d| Sample::number(d) == Some(1000)), "a touched task was given away");
            done(consumer.settler().as_ref(), &got).await?;
            rig.pass(Duration::from_millis(2)).await;
        }
        Ok::<_, anyqueue_core::Error>(())
    };
    tokio::try_join!(keeper, busy)?;
    passed()
}

/// Worker processes that are killed at random moments: every task is done, none is lost, none is done twice where
/// receipts are compared.
pub(super) async fn c20_workers_killed_at_random(rig: &Rig) -> Outcome {
    if let Some(why) = rig.no_children() {
        return not_applicable(why);
    }
    let (broker, queue, capabilities) = rig.open("soak").await?;
    let count = rig.size(10_000);
    let tasks: Vec<_> = (0..count as u64).map(|n| Sample::new(n).ttr(MIN_TTR).envelope()).collect();
    let (tally, mut tried) = (Tally::default(), BTreeSet::new());
    let sending = async { send(&*broker, &queue, &tasks).await.map_err(BoxError::from) };
    let mut killed = 0;
    let killing = async {
        while killed < 16 || (tally.numbers() < count / 2 && killed < 400) {
            killed += 2;
            let (mut one, mut two) = (rig.child().await?, rig.child().await?);
            one.tell(&format!("work {queue}")).await?;
            two.tell(&format!("work {queue}")).await?;
            rig.pass(Duration::from_millis(100 + fastrand::u64(..300))).await;
            for child in [one, two] {
                let lines = child.kill().await?;
                lines.iter().filter_map(|line| line.parse().ok()).for_each(|n| tally.add(n));
                tried.extend(lines.iter().filter_map(|line| line.strip_prefix("try ")?.parse::<u64>().ok()));
            }
        }
        Ok::<_, BoxError>(())
    };
    tokio::try_join!(sending, killing)?;
    let mut consumer = consume(&*broker, &queue).await?;
    let bound = rig.lease_bound(&capabilities);
    let by_children = tally.numbers();
    for number in crate::rig::drain(&mut *consumer, bound).await? {
        tally.add(number);
    }
    // A worker may have been killed between the broker's answer and its own word about it.
    let repeated = tally.repeated();
    let unheard: Vec<u64> = (0..count as u64).filter(|n| !tally.has(*n)).collect();
    println!(
        "kills: {count} tasks, {by_children} done by {killed} workers that were killed, {repeated} repeated, {} unheard of",
        unheard.len()
    );
    // A worker may have been killed between the broker's answer and its own word about it, once in its life.
    let lost: Vec<_> = unheard.iter().filter(|n| !tried.contains(n)).collect();
    assert!(lost.is_empty() && unheard.len() <= killed, "tasks are lost: {lost:?}, {} were not heard of", unheard.len());
    assert!(capabilities.fencing != Fencing::Compared || repeated == 0, "{repeated} tasks were done twice");
    passed()
}
