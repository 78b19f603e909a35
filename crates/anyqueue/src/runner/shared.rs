//! The runner's parts around the shared state: watched queues, counters, hooks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Clock, Defaults, DeliveryFilter, QueueName};
use tokio::sync::Notify;

use super::attempt::Attempt;
use super::decide::{self, Decision, Verdict};
use super::health::Health;
use super::settle::SettleLine;
use super::state::{Alone, LeaseRules, State};
use crate::brokers::BrokerSlot;
use crate::hooks::{AttemptInfo, Hooks};
use crate::policy::Policy;
use crate::queue::Worker;
use crate::settings::QueueSettings;

/// Consumers are given this long to give back what they fetched, before a run that must be alone.
const CLEARING: Duration = Duration::from_secs(1);

/// A worker with the policy that holds for it.
pub(crate) struct Registered {
    pub(crate) worker: Arc<dyn Worker>,
    pub(crate) policy: Policy,
}

/// One queue that this process works.
pub(crate) struct Watched {
    pub(crate) lane: usize,
    pub(crate) settings: QueueSettings,
    pub(crate) slot: Arc<BrokerSlot>,
    pub(crate) workers: HashMap<String, Registered>,
    pub(crate) settle: SettleLine,
    /// Rung when the queue's pump may have something to ask for.
    pub(crate) wanted: Notify,
    pub(crate) health: Mutex<Health>,
    /// For how many milliseconds the broker can reserve a task, as it said when it was connected.
    pub(crate) longest: AtomicU64,
}

impl Watched {
    pub(crate) fn name(&self) -> &QueueName {
        &self.settings.name
    }

    pub(crate) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn defaults(&self) -> Defaults {
        Defaults { priority: self.settings.priority, ttr: self.settings.ttr }
    }

    pub(crate) fn policy(&self, task: &str) -> &Policy {
        self.workers.get(task).map_or(&self.settings.policy, |registered| &registered.policy)
    }

    /// What a lease of this task depends on.
    pub(crate) fn rules(&self, task: &str) -> LeaseRules {
        let policy = self.policy(task);
        let longest = Duration::from_millis(self.longest.load(Ordering::Relaxed));
        LeaseRules { lease: policy.lease, limit: policy.time_limit.on(Some(longest)) }
    }
}

/// What happened so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) started: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) discarded: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) snoozed: AtomicU64,
    pub(crate) held: AtomicU64,
    pub(crate) released: AtomicU64,
    pub(crate) late: AtomicU64,
    pub(crate) unstored: AtomicU64,
    pub(crate) idle_cycles: AtomicU64,
}

/// Everything that slots, pumps, keeper and settling share.
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) watched: Vec<Arc<Watched>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) hooks: Hooks,
    pub(crate) filter: Option<Arc<dyn DeliveryFilter>>,
    pub(crate) counters: Counters,
    /// Stop when nothing is ready.
    pub(crate) drain: bool,
    /// A worker asked for a clean stop.
    pub(crate) asked_to_stop: AtomicBool,
    /// Rung when leases were taken in.
    pub(crate) keeper: Notify,
    /// Rung when something ended: an attempt, a settlement, a pump's request.
    pub(crate) activity: Notify,
}

impl Shared {
    pub(crate) fn new(
        state: State,
        watched: Vec<Arc<Watched>>,
        clock: Arc<dyn Clock>,
        hooks: Hooks,
        filter: Option<Arc<dyn DeliveryFilter>>,
        drain: bool,
    ) -> Self {
        Self {
            state: Mutex::new(state),
            watched,
            clock,
            hooks,
            filter,
            counters: Counters::default(),
            drain,
            asked_to_stop: AtomicBool::new(false),
            keeper: Notify::new(),
            activity: Notify::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a decision in line to be stored.
    pub(crate) fn settle(&self, attempt: Arc<Attempt>, decision: Decision) {
        self.watched[attempt.lane].settle.push(attempt, decision);
    }

    /// Gives tasks back as they came.
    pub(crate) fn give_back(&self, tasks: Vec<Arc<Attempt>>) {
        for task in tasks {
            let decision = decide::released(&task.incoming, Duration::ZERO);
            self.settle(task, decision);
        }
    }

    /// Takes in what a pump reserved.
    pub(crate) fn push(&self, lane: usize, tasks: Vec<Arc<Attempt>>) {
        let refused = self.state().push(lane, tasks, self.clock.now());
        self.keeper.notify_one();
        self.give_back(refused);
        if matches!(self.state().alone, Alone::Waiting(_)) {
            self.ring_all_pumps();
            self.activity.notify_one();
        }
    }

    /// Rings every pump: something has changed that is not a matter of demand.
    pub(crate) fn ring_all_pumps(&self) {
        self.watched.iter().for_each(|watched| watched.wanted.notify_one());
    }

    /// Lets a task that must run alone do so, once nothing else is in this process's hands.
    pub(crate) fn step_alone(&self) {
        let mut state = self.state();
        // Under the lock: a settlement is counted there before it leaves its line.
        let settled = self.watched.iter().all(|watched| watched.settle.open() == 0);
        let fetching = state.lanes.iter().any(|lane| lane.fetching);
        if !settled || fetching || state.running + state.unread > 0 {
            return;
        }
        match std::mem::take(&mut state.alone) {
            Alone::Waiting(task) => {
                state.alone = Alone::Cleared(task);
                state.wake(1);
            }
            Alone::Settling => self.ring_pumps(&mut state),
            other => state.alone = other,
        }
    }

    /// How long consumers may take to give back what they fetched, before a run that must be alone; `None` if there is none.
    /// Its lease ends meanwhile, so that one broker that is slow to answer is not waited for for long.
    pub(crate) fn clearing(&self) -> Option<Duration> {
        match &self.state().alone {
            Alone::Nobody => None,
            Alone::Waiting(task) | Alone::Cleared(task) => Some((task.incoming.ttr / 8).min(CLEARING)),
            Alone::Running | Alone::Settling => Some(CLEARING),
        }
    }

    /// A queue's consumer has nothing any more that is not here.
    pub(crate) fn fetches_no_more(&self, lane: usize) {
        if std::mem::take(&mut self.state().lanes[lane].fetching) {
            self.activity.notify_one();
        }
    }

    /// An attempt is over; its slot is free.
    pub(crate) fn finish(&self, attempt: &Attempt, took: Duration) {
        let mut state = self.state();
        state.finish(attempt, took);
        self.ring_pumps(&mut state);
        if state.running == 0 || state.quiet {
            self.activity.notify_one();
        }
    }

    /// Rings the pumps whose queues run low.
    pub(crate) fn ring_pumps(&self, state: &mut State) {
        (0..self.watched.len()).for_each(|lane| self.ring_pump(state, lane));
    }

    /// Rings a queue's pump if the queue runs low.
    pub(crate) fn ring_pump(&self, state: &mut State, lane: usize) {
        if state.lanes[lane].asking && state.demand(lane, 0) > state.lanes[lane].buffer.len() {
            state.lanes[lane].asking = false;
            self.watched[lane].wanted.notify_one();
        }
    }

    /// A settlement is stored, or it is known that it never will be.
    pub(crate) fn settled(&self, attempt: &Attempt, verdict: &Verdict) {
        let counters = &self.counters;
        let counter = match verdict {
            Verdict::Done => &counters.done,
            Verdict::Discarded(_) => &counters.discarded,
            Verdict::Retried { .. } => &counters.retried,
            Verdict::Snoozed(_) | Verdict::NoWorker(_) => &counters.snoozed,
            Verdict::Held(_) => &counters.held,
            Verdict::Released | Verdict::Probation => &counters.released,
            Verdict::Late => &counters.late,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.log(attempt, verdict);
        self.hooks.changed(|| AttemptInfo::of(attempt), verdict);
    }

    fn log(&self, attempt: &Attempt, verdict: &Verdict) {
        let (queue, task, id) = (attempt.queue(), attempt.incoming.wire.task.as_str(), attempt.incoming.id);
        match verdict {
            Verdict::Done | Verdict::Released => tracing::debug!(queue, task, %id, ?verdict, "settled"),
            Verdict::Discarded(reason) => tracing::info!(queue, task, %id, reason, "discarded"),
            Verdict::Retried { reason, delay } => tracing::warn!(queue, task, %id, reason, ?delay, "failed, will be retried"),
            Verdict::Snoozed(delay) => tracing::debug!(queue, task, %id, ?delay, "snoozed"),
            Verdict::NoWorker(delay) => tracing::warn!(queue, task, %id, ?delay, "no worker of this name here; the task waits"),
            Verdict::Held(reason) => tracing::warn!(queue, task, %id, reason, "held"),
            Verdict::Probation => tracing::warn!(queue, task, %id, "a worker may have died near this task; it will run alone"),
            Verdict::Late => tracing::warn!(queue, task, %id, "the lease was lost; the result counts for nothing"),
        }
    }
}
