//! Looking at and steering a runner from elsewhere.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::Notify;

use super::health::QueueHealth;
use super::shared::Shared;

/// Pauses, resumes, stops and watches a runner. Cheap to clone; may be used before the runner runs.
#[derive(Debug, Clone, Default)]
pub struct RunnerHandle(Arc<Control>);

#[derive(Debug, Default)]
pub(crate) struct Control {
    /// 0: go on. 1: finish what runs. 2: release what runs. 3: leave at once.
    level: AtomicU8,
    why: OnceLock<super::finish::Why>,
    pub(crate) rung: Notify,
    shared: OnceLock<WeakShared>,
}

struct WeakShared(Weak<Shared>);

impl std::fmt::Debug for WeakShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// What a runner has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Attempts started.
    pub started: u64,
    /// Tasks done.
    pub done: u64,
    /// Tasks discarded.
    pub discarded: u64,
    /// Attempts that failed and come again.
    pub retried: u64,
    /// Tasks that wait, uncounted.
    pub snoozed: u64,
    /// Tasks held.
    pub held: u64,
    /// Tasks given back.
    pub released: u64,
    /// Results that came after the lease was lost.
    pub late: u64,
    /// Handlers running now.
    pub running: u64,
    /// Tasks waiting for a slot in this process.
    pub buffered: u64,
}

impl RunnerHandle {
    pub(crate) fn attach(&self, shared: &Arc<Shared>) {
        let _ = self.0.shared.set(WeakShared(Arc::downgrade(shared)));
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        self.0.shared.get()?.0.upgrade()
    }

    pub(crate) async fn rung(&self) {
        self.0.rung.notified().await;
    }

    pub(crate) fn level(&self) -> u8 {
        self.0.level.load(Ordering::Acquire)
    }

    pub(crate) fn why(&self) -> Option<super::finish::Why> {
        self.0.why.get().cloned()
    }

    pub(crate) fn stop_because(&self, why: super::finish::Why) {
        let _ = self.0.why.set(why);
        let _ = self.0.level.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
        self.0.rung.notify_one();
    }

    /// Reserves nothing more, lets running handlers finish within the grace time, then ends [`run`](super::Runner::run).
    pub fn stop(&self) {
        self.stop_because(super::finish::Why::Asked);
    }

    /// Skips ahead: from running to stopping, from stopping to giving back what runs, from there to leaving at once.
    pub fn hurry(&self) {
        let _ = self.0.why.set(super::finish::Why::Signal);
        let _ = self.0.level.fetch_update(Ordering::AcqRel, Ordering::Acquire, |level| (level < 3).then_some(level + 1));
        self.0.rung.notify_one();
    }

    /// Starts nothing more until it is resumed; what runs goes on.
    pub fn pause(&self) {
        if let Some(shared) = self.shared() {
            tracing::info!("paused: running handlers go on, nothing new starts");
            let tasks = {
                let mut state = shared.state();
                state.paused = true;
                state.give_back_buffered()
            };
            shared.give_back(tasks);
            shared.ring_all_pumps();
        }
    }

    /// Ends a pause.
    pub fn resume(&self) {
        if let Some(shared) = self.shared() {
            let mut state = shared.state();
            if std::mem::take(&mut state.paused) {
                tracing::info!("resumed");
                state.wake(usize::MAX);
                drop(state);
                shared.ring_all_pumps();
            }
        }
    }

    /// What has happened so far.
    pub fn progress(&self) -> Progress {
        let Some(shared) = self.shared() else { return Progress::default() };
        let counters = &shared.counters;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let state = shared.state();
        Progress {
            started: count(&counters.started),
            done: count(&counters.done),
            discarded: count(&counters.discarded),
            retried: count(&counters.retried),
            snoozed: count(&counters.snoozed),
            held: count(&counters.held),
            released: count(&counters.released),
            late: count(&counters.late),
            running: state.running as u64,
            buffered: state.buffered as u64,
        }
    }

    /// Whether the brokers answer, queue by queue.
    pub fn health(&self) -> Vec<QueueHealth> {
        let Some(shared) = self.shared() else { return Vec::new() };
        let now = shared.clock.now();
        let of = |watched: &Arc<super::shared::Watched>| {
            let health = watched.health().clone();
            QueueHealth {
                queue: watched.name().to_string(),
                broker: watched.settings.broker.to_string(),
                failures: health.failures,
                error: health.error,
                last_answer: health.last_answer.map(|at| now.since(at)),
                drift: health.drift,
            }
        };
        shared.watched.iter().map(of).collect()
    }
}
