//! What all parts of the runner share: buffers, slots and leases, behind one lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use anyqueue_core::{Clock, Moment};
use slab::Slab;

use super::attempt::{Attempt, Reason};
use crate::policy::Lease;
use crate::settings::Strategy;

/// A task whose handlers take longer than this is not prefetched: one more request between tasks is nothing to it.
const PREFETCHED_WORK: f64 = 0.02;

/// One watched queue.
#[derive(Debug)]
pub(crate) struct LaneState {
    pub(crate) buffer: VecDeque<Arc<Attempt>>,
    pub(crate) running: usize,
    pub(crate) cap: usize,
    pub(crate) weight: u32,
    /// Seconds in which a prefetched task must be able to start.
    patience: f64,
    /// Mean time of an attempt in seconds, recent ones counting more.
    mean: Option<f64>,
    /// At which count of settled tasks the queue was last found empty.
    empty_at: Option<u64>,
    /// No pump feeds it any more.
    pub(crate) dead: bool,
    /// Its pump waits to be rung.
    pub(crate) asking: bool,
    /// Its consumer may have tasks that are not here yet.
    pub(crate) fetching: bool,
    /// How much of its share it has used: attempts started, each counted as 1 / weight.
    used: f64,
}

/// A run that must be alone in its process.
#[derive(Debug, Default)]
pub(crate) enum Alone {
    /// Nothing of the kind.
    #[default]
    Nobody,
    /// Waits until nothing else runs, nothing is being fetched and nothing is left to be settled.
    Waiting(Arc<Attempt>),
    /// May be handed to a slot.
    Cleared(Arc<Attempt>),
    /// Runs.
    Running,
    /// Over, but its settlement is not stored yet.
    Settling,
}

/// A lease that the keeper looks after.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) attempt: Arc<Attempt>,
    pub(crate) phase: Phase,
}

#[derive(Debug)]
pub(crate) enum Phase {
    /// Given back at this moment if no slot took it.
    Buffered { until: Moment },
    Running {
        /// When to renew; never under `lease = "manual"`.
        touch: Option<Moment>,
        /// When `time_limit` is over.
        limit: Option<Moment>,
        touching: bool,
    },
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) lanes: Vec<LaneState>,
    pub(crate) leases: Slab<Held>,
    pub(crate) keeper_due: Option<Moment>,
    pub(crate) alone: Alone,
    pub(crate) paused: bool,
    pub(crate) quiet: bool,
    pub(crate) running: usize,
    pub(crate) buffered: usize,
    /// Reserved, and not read yet.
    pub(crate) unread: usize,
    pub(crate) settled: u64,
    /// How many more attempts may start.
    pub(crate) left: Option<u64>,
    slots: usize,
    prefetch: usize,
    strategy: Strategy,
    mean: Option<f64>,
    share_now: f64,
    cursor: usize,
    idle: Vec<usize>,
    wakers: Vec<Option<Waker>>,
}

impl State {
    pub(crate) fn new(slots: usize, prefetch: usize, strategy: Strategy, left: Option<u64>) -> Self {
        Self {
            lanes: Vec::new(),
            leases: Slab::new(),
            keeper_due: None,
            alone: Alone::Nobody,
            paused: false,
            quiet: false,
            running: 0,
            buffered: 0,
            unread: 0,
            settled: 0,
            left,
            slots,
            prefetch,
            strategy,
            mean: None,
            share_now: 0.0,
            cursor: 0,
            idle: Vec::new(),
            wakers: (0..slots).map(|_| None).collect(),
        }
    }

    pub(crate) fn add_lane(&mut self, cap: Option<usize>, weight: u32, ttr: Duration) {
        let (cap, patience) = (cap.unwrap_or(self.slots).min(self.slots), ttr.as_secs_f64() / 4.0);
        let lane = LaneState {
            buffer: VecDeque::new(),
            running: 0,
            cap,
            weight: weight.max(1),
            patience,
            mean: None,
            empty_at: None,
            dead: false,
            asking: false,
            fetching: false,
            used: 0.0,
        };
        self.lanes.push(lane);
    }

    /// How many tasks a queue's pump should ask for now, if so many are about to come into its buffer.
    pub(crate) fn demand(&self, lane: usize, coming: usize) -> usize {
        if !self.may_reserve() {
            return 0;
        }
        let of = &self.lanes[lane];
        let free = (self.slots - self.running.min(self.slots)).min(of.cap.saturating_sub(of.running));
        // Queues side by side share what is free, so that none reserves what only another could run.
        let share = if free == 0 { 0 } else { (free / self.lanes.len()).max(1) };
        let ahead = match of.mean.or(self.mean) {
            Some(mean) => {
                let soon = (of.cap as f64 * PREFETCHED_WORK / mean.max(1e-7)) as usize;
                // While all slots are busy every queue keeps one task at hand, or the strategy would have nothing to choose from.
                let choice = self.lanes.len() > 1 && mean * self.lanes.len() as f64 / (self.slots as f64) < of.patience;
                soon.clamp(usize::from(choice), self.prefetch.max(1))
            }
            None => 0,
        };
        let wanted = (share + ahead).saturating_sub(of.buffer.len() + coming);
        match self.left {
            Some(left) => wanted.min((left as usize).saturating_sub(self.buffered + self.unread)),
            None => wanted,
        }
    }

    /// Whether anything may be reserved at all.
    pub(crate) fn may_reserve(&self) -> bool {
        !self.quiet && !self.paused && matches!(self.alone, Alone::Nobody) && self.left != Some(0)
    }

    /// Takes in reserved tasks. What it answers must be given back: no slot may have it now.
    pub(crate) fn push(&mut self, lane: usize, tasks: Vec<Arc<Attempt>>, now: Moment) -> Vec<Arc<Attempt>> {
        let mut refused = Vec::new();
        for task in tasks {
            if self.quiet || self.paused || !matches!(self.alone, Alone::Nobody) {
                refused.push(task);
                continue;
            }
            let until = (now + task.incoming.ttr / 4).min(task.deadline());
            self.hold(&task, Phase::Buffered { until }, until);
            if task.incoming.wire.probation {
                refused.extend(self.give_back_buffered());
                self.alone = Alone::Waiting(task);
            } else {
                self.buffered += 1;
                self.lanes[lane].buffer.push_back(task);
            }
        }
        self.wake(self.buffered);
        refused
    }

    fn hold(&mut self, task: &Arc<Attempt>, phase: Phase, due: Moment) {
        let key = self.leases.insert(Held { attempt: task.clone(), phase });
        task.lease.store(key, Ordering::Relaxed);
        self.due(due);
    }

    fn due(&mut self, at: Moment) {
        self.keeper_due = Some(self.keeper_due.map_or(at, |due| due.min(at)));
    }

    pub(crate) fn unhold(&mut self, task: &Attempt) {
        self.leases.try_remove(task.lease.swap(usize::MAX, Ordering::Relaxed));
    }

    /// Takes back all that no slot has yet.
    pub(crate) fn give_back_buffered(&mut self) -> Vec<Arc<Attempt>> {
        let mut tasks: Vec<_> = self.lanes.iter_mut().flat_map(|lane| lane.buffer.drain(..)).collect();
        self.buffered = 0;
        match std::mem::take(&mut self.alone) {
            Alone::Waiting(task) | Alone::Cleared(task) => tasks.push(task),
            other => self.alone = other,
        }
        tasks.iter().for_each(|task| self.unhold(task));
        tasks
    }

    /// Removes one buffered task that waited too long.
    pub(crate) fn take_buffered(&mut self, task: &Arc<Attempt>) -> bool {
        let buffer = &mut self.lanes[task.lane].buffer;
        let Some(at) = buffer.iter().position(|other| Arc::ptr_eq(other, task)) else { return false };
        buffer.remove(at);
        self.buffered -= 1;
        self.unhold(task);
        true
    }

    /// Takes back a task that waited too long to be alone.
    pub(crate) fn take_alone(&mut self, task: &Arc<Attempt>) -> bool {
        let found = matches!(&self.alone, Alone::Waiting(other) | Alone::Cleared(other) if Arc::ptr_eq(other, task));
        if found {
            self.alone = Alone::Nobody;
            self.unhold(task);
        }
        found
    }

    /// The next task for a free slot, or none: then the slot's waker is kept.
    pub(crate) fn next(
        &mut self,
        slot: usize,
        waker: &Waker,
        clock: &dyn Clock,
        policy: impl Fn(&Attempt) -> LeaseRules,
    ) -> Option<(Arc<Attempt>, Moment)> {
        let now = clock.now();
        let task = loop {
            match self.pick() {
                Some(task) if now < task.deadline() => break task,
                // The process was frozen while it waited: the lease is over and somebody else may have the task.
                Some(task) => {
                    self.unhold(&task);
                    self.settled += 1;
                    if matches!(self.alone, Alone::Running) {
                        self.alone = Alone::Nobody;
                    }
                }
                None => {
                    if self.wakers[slot].replace(waker.clone()).is_none() {
                        self.idle.push(slot);
                    }
                    return None;
                }
            }
        };
        self.running += 1;
        self.lanes[task.lane].running += 1;
        self.left = self.left.map(|left| left.saturating_sub(1));
        let policy = policy(&task);
        let limit = policy.limit.map(|limit| now + limit);
        let touch = (policy.lease == Lease::Auto).then(|| touch_at(&task));
        let due = [touch, limit, Some(ttr_over(&task))].into_iter().flatten().min();
        if let Some(held) = self.leases.get_mut(task.lease.load(Ordering::Relaxed)) {
            held.phase = Phase::Running { touch, limit, touching: false };
        }
        due.into_iter().for_each(|due| self.due(due));
        Some((task, now))
    }

    fn pick(&mut self) -> Option<Arc<Attempt>> {
        if self.paused || self.quiet || self.left == Some(0) {
            return None;
        }
        match std::mem::take(&mut self.alone) {
            Alone::Nobody => {}
            Alone::Cleared(task) => {
                self.alone = Alone::Running;
                return Some(task);
            }
            other => {
                self.alone = other;
                return None;
            }
        }
        let can = |lane: &LaneState| !lane.buffer.is_empty() && lane.running < lane.cap;
        let count = self.lanes.len();
        let lane = match self.strategy {
            _ if self.buffered == 0 => None,
            Strategy::Fair => {
                let able = (1..=count).map(|n| (self.cursor + n) % count).filter(|n| can(&self.lanes[*n]));
                able.min_by(|a, b| self.lanes[*a].used.total_cmp(&self.lanes[*b].used))
            }
            Strategy::Strict => (0..count).find(|n| can(&self.lanes[*n])),
            Strategy::Weighted => {
                let total: u32 = self.lanes.iter().filter(|lane| can(lane)).map(|lane| lane.weight).sum();
                let mut mark = if total == 0 { 0 } else { fastrand::u32(..total) };
                (0..count).filter(|n| can(&self.lanes[*n])).find(|n| {
                    let weight = self.lanes[*n].weight;
                    let hit = mark < weight;
                    mark = mark.saturating_sub(weight);
                    hit
                })
            }
        }?;
        self.cursor = lane;
        self.use_share(lane);
        self.buffered -= 1;
        self.lanes[lane].buffer.pop_front()
    }

    /// A queue that had nothing for a while has no claim to what it left to the others.
    fn use_share(&mut self, lane: usize) {
        let now = self.lanes[lane].used.max(self.share_now);
        self.share_now = now;
        self.lanes[lane].used = now + 1.0 / f64::from(self.lanes[lane].weight);
    }

    /// A slot is free again.
    pub(crate) fn finish(&mut self, task: &Attempt, took: Duration) {
        self.unhold(task);
        self.running -= 1;
        let lane = &mut self.lanes[task.lane];
        lane.running -= 1;
        let took = took.as_secs_f64();
        let smooth = |mean: Option<f64>| Some(mean.map_or(took, |mean| mean * 0.9 + took * 0.1));
        (lane.mean, self.mean) = (smooth(lane.mean), smooth(self.mean));
        if matches!(self.alone, Alone::Running) {
            self.alone = Alone::Settling;
        }
    }

    /// Wakes up to so many idle slots.
    pub(crate) fn wake(&mut self, count: usize) {
        for slot in self.idle.split_off(self.idle.len().saturating_sub(count)) {
            self.wakers[slot].take().inspect(|waker| waker.wake_by_ref());
        }
    }

    /// Cancels all that runs.
    pub(crate) fn cancel_running(&self, reason: Reason) -> usize {
        let running = self.leases.iter().filter(|(_, held)| matches!(held.phase, Phase::Running { .. }));
        running.map(|(_, held)| held.attempt.cancel.set(reason)).count()
    }

    /// Whether every cancelled attempt is in line to be stored: only then may the runner wait for that line.
    pub(crate) fn cancelled_are_settled(&self) -> bool {
        self.leases.iter().all(|(_, held)| !matches!(held.phase, Phase::Running { .. }))
    }

    /// Notes that a queue was empty when so many tasks had been settled.
    pub(crate) fn found_empty(&mut self, lane: usize, settled: u64) {
        self.lanes[lane].empty_at = Some(settled);
    }

    /// Whether nothing is ready, reserved, running or left to be settled.
    pub(crate) fn is_drained(&self) -> bool {
        let idle = self.running + self.buffered + self.unread == 0 && matches!(self.alone, Alone::Nobody);
        idle && self.lanes.iter().all(|lane| lane.dead || lane.empty_at == Some(self.settled))
    }
}

/// The part of a policy that a lease depends on.
#[derive(Debug)]
pub(crate) struct LeaseRules {
    pub(crate) lease: Lease,
    pub(crate) limit: Option<Duration>,
}

/// When to renew a lease: a third of it has passed.
pub(crate) fn touch_at(task: &Attempt) -> Moment {
    task.deadline() - task.incoming.ttr / 3 * 2
}

/// When an attempt nobody touches is cancelled: early enough to store that it failed.
pub(crate) fn ttr_over(task: &Attempt) -> Moment {
    task.deadline() - (task.incoming.ttr / 10).min(Duration::from_secs(1))
}
