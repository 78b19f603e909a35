//! One pump per queue: it reserves what slots can take soon, reads it, and hands it to the slots.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyqueue_core::{
    ConsumeOptions, Consumer, Delivery, Error, ErrorKind, Incoming, PriorityRange, Requirements, Result, Settler, TaskId, chain,
};

use tokio::task::JoinSet;

use super::attempt::Attempt;
use super::decide::{self, Decision, Verdict};
use super::health;
use super::shared::{Shared, Watched};
use super::state::Alone;

/// An idle reserve waits so long before it looks again: a safety net, since wake-ups are pushed.
const IDLE: Duration = Duration::from_secs(30);

/// A drained queue waits so long, at the end, for what is otherwise than the settings say.
const COMPARE: Duration = Duration::from_secs(1);

/// A broker that does not say at once whether it has tasks is asked, each second time, with a wait.
const PROBE: Duration = Duration::from_secs(1);

/// A queue that is not there, or that this user may not look at, is compared with the settings again after this time.
const COMPARE_AGAIN: Duration = Duration::from_secs(60);

/// Parts of what may be in this process that are asked for one by one, so that one is settled while another is reserved
/// and a third one runs.
const SHARES: usize = 4;
/// How many tasks are read before they are handed to the slots.
const PART: usize = 64;

/// Feeds one queue's buffer until the runner is quiet. While what came is read, the next request is under way.
pub(crate) async fn run(shared: Arc<Shared>, watched: Arc<Watched>, priorities: PriorityRange, prefetch: usize, strict: bool) {
    let mut source = Source::default();
    let mut unread: Option<Unread> = None;
    // Ends with the pump. A queue that hangs, or one silent server of several, keeps no work from beginning.
    let mut comparing = JoinSet::new();
    comparing.spawn(compare(shared.clone(), watched.clone()));
    while let Some(demand) = demanded(&shared, &watched, prefetch, &mut unread, &mut source).await {
        // A broker that always answers at once would keep the thread from the other queues.
        tokio::task::yield_now().await;
        let request = reserve(&shared, &watched, &mut source.consumer, demand, &priorities, prefetch, strict);
        let (came, ()) = tokio::join!(request, take_in(&shared, &watched, unread.take()));
        match came {
            Ok(Some((_, deliveries))) if deliveries.is_empty() => {}
            // What the broken-off request may have claimed is given back at once.
            Ok(None) => source.close(&shared, &watched).await,
            Ok(came) => {
                shared.counters.idle_cycles.store(0, Ordering::Relaxed);
                unread = came;
            }
            Err(e) => {
                // What a broker has that does not answer is not waited for.
                shared.fetches_no_more(watched.lane);
                if !failed(&shared, &watched, &e).await {
                    break;
                }
            }
        }
    }
    take_in(&shared, &watched, unread).await;
    source.close(&shared, &watched).await;
    if shared.drain {
        tokio::select! {
            _ = comparing.join_next() => {}
            () = shared.clock.sleep_until(shared.clock.now() + COMPARE) => {}
        }
    }
    shared.state().lanes[watched.lane].dead = true;
    shared.activity.notify_one();
}

/// Where a queue's tasks come from.
#[derive(Default)]
struct Source {
    consumer: Option<Consuming>,
    /// Consumers that are still giving back what they fetched.
    closing: JoinSet<()>,
}

impl Source {
    /// Gives back what was fetched. A run that must be alone waits for it if it does not take long; the end of the pump in any
    /// case, since a process that ends half-way leaves tasks out of everybody's sight.
    async fn close(&mut self, shared: &Shared, watched: &Watched) {
        if let Some((consumer, _)) = self.consumer.take() {
            let queue = watched.name().clone();
            self.closing.spawn(async move {
                if let Err(e) = consumer.close().await {
                    tracing::warn!(queue = queue.as_str(), error = chain(&e), "cannot give back what was fetched");
                }
            });
        }
        let clearing = shared.clearing();
        let enough = async {
            match clearing {
                Some(time) => shared.clock.sleep_until(shared.clock.now() + time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = async { while self.closing.join_next().await.is_some() {} } => {}
            () = enough => {}
        }
        shared.fetches_no_more(watched.lane);
    }
}

/// A consumer and its settler: one and the same for all deliveries, so that settlements go together.
type Consuming = (Box<dyn Consumer>, Arc<dyn Settler>);
/// What came, and who settles it.
type Unread = (Arc<dyn Settler>, Vec<Delivery>);

/// Waits until the queue runs low. `None` once the runner is quiet. What came and was not read yet is taken in where
/// there is nothing to ask for before.
///
/// No more than `most` tasks are in this process's hands: those whose results are not stored yet count too, since they
/// come again if it dies.
async fn demanded(
    shared: &Arc<Shared>,
    watched: &Watched,
    most: usize,
    unread: &mut Option<Unread>,
    source: &mut Source,
) -> Option<NonZeroUsize> {
    loop {
        let unread_count = unread.as_ref().map_or(0, |(_, deliveries)| deliveries.len());
        let beside = {
            let mut state = shared.state();
            if state.quiet {
                return None;
            }
            let lane = &state.lanes[watched.lane];
            let waiting = lane.buffer.len() + unread_count;
            let room = most.saturating_sub(lane.running + waiting + watched.settle.open());
            let demand = state.demand(watched.lane, unread_count).min(room).min((most / SHARES).max(PART));
            // Asking for a few at a time would make many small requests of one large one.
            if demand > 0 && (demand > waiting || demand >= most / SHARES) {
                return NonZeroUsize::new(demand);
            }
            // What lies in a consumer would be beside a run that must be alone, and would seem to have died with it.
            let beside = source.consumer.is_some() && !matches!(state.alone, Alone::Nobody);
            state.lanes[watched.lane].asking = unread.is_none() && !beside;
            beside
        };
        if beside {
            source.close(shared, watched).await;
            continue;
        }
        match unread.take() {
            Some(unread) => take_in(shared, watched, Some(unread)).await,
            None => watched.wanted.notified().await,
        }
    }
}

/// One request, and what came; `None` if it was broken off.
async fn reserve(
    shared: &Arc<Shared>,
    watched: &Arc<Watched>,
    consumer: &mut Option<Consuming>,
    demand: NonZeroUsize,
    priorities: &PriorityRange,
    prefetch: usize,
    strict: bool,
) -> Result<Option<Unread>> {
    let (consumer, settler) = match consumer {
        Some(consumer) => consumer,
        None => consumer.insert(connect(watched, priorities, prefetch, strict).await?),
    };
    let settled = {
        let mut state = shared.state();
        // A broker that was long in coming may come when nothing is to be reserved any more.
        if !state.may_reserve() {
            return Ok(None);
        }
        state.lanes[watched.lane].fetching = true;
        state.settled
    };
    // After a failure the first request is to show whether the broker is back, also where there is nothing to do: who does not
    // wait is told as soon as it answers, however slow that is. Some do not know at once what they have: who waits a little is
    // told that there is nothing.
    let wait = match watched.health().failures {
        _ if shared.drain => Duration::ZERO,
        0 => IDLE,
        failures if failures % 2 == 1 => Duration::ZERO,
        _ => PROBE,
    };
    let deliveries = tokio::select! {
        deliveries = consumer.reserve(demand, wait) => deliveries?,
        () = broken_off(shared, watched) => return Ok(None),
    };
    if let Some(outage) = watched.health().answered(&*shared.clock) {
        let (queue, broker) = (watched.name().as_str(), &*watched.settings.broker);
        tracing::info!(queue, broker, ?outage, "the broker answers again");
    }
    shared.state().unread += deliveries.len();
    if deliveries.is_empty() && shared.drain {
        // What was settled while the reserve was under way rang then, and its ring is gone: look again.
        let current = {
            let mut state = shared.state();
            state.found_empty(watched.lane, settled);
            state.settled == settled
        };
        shared.activity.notify_one();
        if current {
            watched.wanted.notified().await;
        }
    }
    Ok(Some((settler.clone(), deliveries)))
}

async fn connect(watched: &Watched, priorities: &PriorityRange, prefetch: usize, strict: bool) -> Result<Consuming> {
    let broker = watched.slot.connected().await?;
    let can = broker.capabilities(watched.name());
    watched.longest.store(can.touch.limits().map_or(u64::MAX, |longest| longest.as_millis() as u64), Ordering::Relaxed);
    let problems = requirements(watched, priorities, strict).check(&can);
    if !problems.is_empty() {
        let broker = &watched.settings.broker;
        return Err(Error::new(ErrorKind::Unsupported, problems.join("; ")).with("queue", watched.name()).with("broker", broker));
    }
    let options = ConsumeOptions { prefetch, priorities: priorities.0.clone(), ttr: watched.settings.ttr };
    let consumer = broker.consume(watched.name(), options).await?;
    let settler = consumer.settler();
    Ok((consumer, settler))
}

/// Warns, once, of what the queue has otherwise than the settings say: tasks may lie where nobody here looks for them.
async fn compare(shared: Arc<Shared>, watched: Arc<Watched>) {
    let (queue, mut failures, mut told) = (watched.name().as_str(), 0, false);
    loop {
        let declared = match watched.slot.connected().await {
            Ok(broker) => broker.declare(watched.name()).await,
            Err(e) => Err(e),
        };
        match declared {
            Ok(declared) => {
                declared.drift.iter().for_each(|drift| tracing::warn!(queue, "{drift}"));
                watched.health().drift = Some(declared.drift);
                return;
            }
            Err(e) if e.is_retryable() => {
                failures += 1;
                tracing::debug!(queue, error = chain(&e), "this queue cannot be compared with the settings now");
                shared.clock.sleep_until(shared.clock.now() + health::back_off(failures)).await;
            }
            // It is worked all the same: one that may not be changed by this user, or is made later.
            Err(e) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(queue, error = chain(&e), "this queue cannot be compared with the settings");
                }
                if shared.drain || !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) {
                    return;
                }
                shared.clock.sleep_until(shared.clock.now() + COMPARE_AGAIN).await;
            }
        }
    }
}

/// What the settings of a queue ask of its broker, for the priorities that this worker takes.
pub(crate) fn requirements(watched: &Watched, priorities: &PriorityRange, strict: bool) -> Requirements {
    Requirements { priorities: priorities.clone(), ..watched.settings.requirements(strict) }
}

/// Notes a failure and waits. False if no further try can help.
async fn failed(shared: &Shared, watched: &Watched, error: &Error) -> bool {
    let text = chain(error);
    let (queue, broker) = (watched.name().as_str(), &*watched.settings.broker);
    let (told, failures) = {
        let mut health = watched.health();
        (health.failed(text.clone(), shared.clock.now()), health.failures)
    };
    if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Config | ErrorKind::TooNew | ErrorKind::Closed) {
        tracing::error!(queue, broker, error = text, "this queue cannot be worked");
        watched.health().fatal = Some(error.kind());
        return false;
    }
    let wait = health::back_off(failures);
    match told {
        Some(_) if failures == 1 => {
            tracing::warn!(queue, broker, error = text, "no tasks can be had from the broker; will try again and again")
        }
        Some(outage) => tracing::warn!(queue, broker, error = text, ?outage, "still no tasks can be had from the broker"),
        None => tracing::debug!(queue, broker, error = text, ?wait, failures, "still no tasks"),
    }
    tokio::select! {
        () = shared.clock.sleep_until(shared.clock.now() + wait) => {}
        () = quiet(shared, watched) => {}
    }
    true
}

async fn quiet(shared: &Shared, watched: &Watched) {
    while !shared.state().quiet {
        watched.wanted.notified().await;
    }
}

/// A waiting request is given up when nothing may be reserved any more.
async fn broken_off(shared: &Shared, watched: &Watched) {
    while shared.state().may_reserve() {
        watched.wanted.notified().await;
    }
}

/// Takes in what came, a part at a time: the first are at work while the last are read. A filter is asked once.
async fn take_in(shared: &Arc<Shared>, watched: &Watched, unread: Option<Unread>) {
    let Some((settler, deliveries)) = unread else { return };
    let part = if shared.filter.is_some() { deliveries.len() } else { PART };
    let mut deliveries = deliveries.into_iter();
    while deliveries.len() > 0 {
        // Requests and settlements that are ready go first: the broker works on them meanwhile.
        tokio::task::yield_now().await;
        let before = deliveries.len();
        take_in_part(shared, watched, &settler, deliveries.by_ref().take(part)).await;
        shared.state().unread -= before - deliveries.len();
        shared.activity.notify_one();
    }
}

/// Reads deliveries and sorts out those that no worker will see.
async fn take_in_part(
    shared: &Arc<Shared>,
    watched: &Watched,
    settler: &Arc<dyn Settler>,
    deliveries: impl Iterator<Item = Delivery>,
) {
    let broker = &*watched.settings.broker;
    let attempts = deliveries.map(|delivery| {
        let incoming = Incoming::read(&delivery, broker, watched.defaults());
        let Delivery { receipt, queue, native, deadline, .. } = delivery;
        Arc::new(Attempt::new(incoming, receipt, native, deadline, queue, watched.lane, settler.clone(), shared.clock.clone()))
    });
    let mut attempts: Vec<_> = attempts.collect();
    if let Some(filter) = &shared.filter {
        let ids: Vec<TaskId> = attempts.iter().map(|attempt| attempt.incoming.id).collect();
        let wanted = filter.wanted(watched.name(), &ids).await.unwrap_or_else(|e| {
            tracing::warn!(
                queue = watched.name().as_str(),
                error = chain(&e),
                "the delivery filter fails; all tasks are taken as wanted"
            );
            Vec::new()
        });
        let mut wanted = wanted.into_iter().chain(std::iter::repeat(true));
        attempts = keep(shared, attempts, |_| {
            let gone =
                || Decision { settlement: anyqueue_core::Settlement::Done, verdict: Verdict::Discarded("cancelled".into()) };
            (!wanted.next().unwrap_or(true)).then(gone)
        });
    }
    let attempts = keep(shared, attempts, |attempt| sorted_out(shared, watched, attempt));
    shared.push(watched.lane, attempts);
}

fn keep(shared: &Shared, attempts: Vec<Arc<Attempt>>, mut check: impl FnMut(&Attempt) -> Option<Decision>) -> Vec<Arc<Attempt>> {
    let mut kept = Vec::with_capacity(attempts.len());
    for attempt in attempts {
        match check(&attempt) {
            Some(decision) => shared.settle(attempt, decision),
            None => kept.push(attempt),
        }
    }
    kept
}

fn sorted_out(shared: &Shared, watched: &Watched, attempt: &Attempt) -> Option<Decision> {
    let (task, native) = (&attempt.incoming, &attempt.native);
    if let Some(why) = &task.unreadable {
        return Some(decide::undecodable(why, task, shared.clock.wall()));
    }
    let policy = watched.policy(&task.wire.task);
    let crashes = task.crashes(native);
    if crashes >= policy.max_crashes.max(1) {
        return Some(decide::crashed(task, crashes, shared.clock.wall()));
    }
    if task.needs_marking(native) {
        return Some(decide::probation(task, crashes > task.wire.crashed));
    }
    if !watched.workers.contains_key(&task.wire.task) {
        let elsewhere = watched.settings.elsewhere.contains(&task.wire.task);
        return Some(decide::without_worker(task, attempt.queue(), elsewhere, policy.unknown_for, shared.clock.wall()));
    }
    None
}
