//! Waiting for a reason to stop, and stopping: quiet, grace, release, flush.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Moment, Result};
use tokio::task::{AbortHandle, JoinHandle};

use super::attempt::Reason;
use super::handle::{Progress, RunnerHandle};
use super::shared::{Shared, Watched};
use super::start::Parts;

/// How long results may take to be stored when the runner stops.
const FLUSH: Duration = Duration::from_secs(10);

/// Why a runner stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// A signal.
    Signal,
    /// The program asked for it.
    Asked,
    /// Nothing was ready any more.
    Drained,
    /// A limit was reached; the text says which.
    Limit(String),
    /// A worker asked for it.
    Worker,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal => f.write_str("stopped by a signal"),
            Self::Asked => f.write_str("stopped"),
            Self::Drained => f.write_str("drained"),
            Self::Limit(limit) => write!(f, "stopped at {limit}"),
            Self::Worker => f.write_str("stopped by a worker"),
        }
    }
}

/// How a runner ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Why it stopped.
    pub why: Why,
    /// What it did.
    pub progress: Progress,
    /// Handlers that were cut short, their tasks given back uncounted.
    pub cut_short: u64,
    /// Results that could not be stored: those tasks come again when their leases end.
    pub unstored: u64,
    /// Queues that could not be worked, or at some time no more, since their brokers cannot do what the settings ask for or
    /// were upgraded to what this version does not know.
    pub unworked: u64,
    /// Queues from which no tasks could be had in the end: their brokers did not answer, or with errors.
    pub out_of_reach: Vec<String>,
}

impl Finished {
    /// What a process should end with: 0 clean; 1 some queues could not be worked; 3 running handlers were cut short and their
    /// tasks given back; 4 results could not be stored and those tasks will come again.
    pub fn exit_code(&self) -> u8 {
        match (self.unstored, self.cut_short, self.unworked) {
            (1.., _, _) => 4,
            (0, 1.., _) => 3,
            (0, 0, 1..) => 1,
            (0, 0, 0) => 0,
        }
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress { done, discarded, retried, snoozed, held, late, .. } = self.progress;
        write!(f, "{}: {done} done", self.why)?;
        let others =
            [(discarded, "discarded"), (retried, "to be retried"), (snoozed, "waiting"), (held, "held"), (late, "too late")];
        for (count, word) in others.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {word}")?;
        }
        if self.cut_short > 0 {
            write!(f, ", {} cut short and given back", self.cut_short)?;
        }
        if self.unstored > 0 {
            write!(f, ", {} results not stored: those tasks will come again", self.unstored)?;
        }
        if self.unworked > 0 {
            write!(f, ", {} of the queues could not be worked", self.unworked)?;
        }
        if !self.out_of_reach.is_empty() {
            write!(f, "; out of reach in the end: {}", self.out_of_reach.join(", "))?;
        }
        Ok(())
    }
}

pub(crate) async fn wait_and_stop(
    shared: Arc<Shared>,
    handle: RunnerHandle,
    mut parts: Parts,
    grace: Duration,
) -> Result<Finished> {
    let (shared, handle) = (&shared, &handle);
    let broken = wait(shared, handle).await;
    {
        let mut state = shared.state();
        state.quiet = true;
        let tasks = state.give_back_buffered();
        drop(state);
        shared.give_back(tasks);
        shared.ring_all_pumps();
    }
    let give_up = shared.clock.now() + grace;
    let idle = |shared: &Shared| shared.state().running == 0;
    until(shared, handle, 2, give_up, idle).await;
    let cut_short = shared.state().cancel_running(Reason::Stop) as u64;
    if cut_short > 0 {
        tracing::warn!(cut_short, "running handlers are cut short and their tasks given back");
    }
    let flushed = |shared: &Shared| shared.watched.iter().all(|queue| queue.settle.open() == 0);
    // A blocking handler cannot be cut short, but its task is given back by the slot that waits for it.
    let released = |shared: &Shared| flushed(shared) && shared.state().cancelled_are_settled();
    let give_up = shared.clock.now() + FLUSH;
    until(shared, handle, 3, give_up, released).await;
    let pumps = std::mem::take(&mut parts.pumps);
    let aborts: Vec<_> = pumps.iter().map(JoinHandle::abort_handle).collect();
    let ended = futures::future::join_all(pumps);
    let patience = if handle.level() >= 3 { Duration::ZERO } else { Duration::from_secs(2) };
    tokio::select! {
        _ = ended => {}
        () = shared.clock.sleep_until(shared.clock.now() + patience) => aborts.iter().for_each(AbortHandle::abort),
    }
    until(shared, handle, 3, give_up, flushed).await;
    // Child processes have been asked to end; they get this long before they are killed.
    until(shared, handle, 3, shared.clock.now() + crate::exec::PATIENCE, idle).await;
    let slots = std::mem::take(&mut parts.slots);
    slots.iter().for_each(JoinHandle::abort);
    // A dropped slot kills its child process: that must have happened before the caller exits.
    tokio::select! {
        _ = futures::future::join_all(slots) => {}
        () = shared.clock.sleep_until(shared.clock.now() + Duration::from_millis(500)) => {}
    }
    let open: u64 = shared.watched.iter().map(|queue| queue.settle.open() as u64).sum();
    let unstored = open + shared.counters.unstored.load(Ordering::Relaxed);
    if let Some(error) = broken {
        return Err(error);
    }
    let unworked = shared.watched.iter().filter(|queue| is_unworked(queue)).count() as u64;
    let out_of_reach = shared.watched.iter().filter(|queue| queue.health().is_out_of_reach());
    let out_of_reach = out_of_reach.map(|queue| queue.name().to_string()).collect();
    let why = handle.why().unwrap_or(Why::Asked);
    Ok(Finished { why, progress: handle.progress(), cut_short, unstored, unworked, out_of_reach })
}

/// Waits for a reason to stop. An error: no queue can be worked at all.
async fn wait(shared: &Arc<Shared>, handle: &RunnerHandle) -> Option<Error> {
    loop {
        shared.step_alone();
        if handle.level() > 0 {
            return None;
        }
        if shared.asked_to_stop.load(Ordering::Acquire) {
            handle.stop_because(Why::Worker);
            return None;
        }
        let (drained, used_up) = {
            let state = shared.state();
            // Under the lock: a settlement is counted there before it leaves its line.
            let stored = shared.watched.iter().all(|queue| queue.settle.open() == 0);
            (shared.drain && stored && state.is_drained(), state.left == Some(0) && state.running == 0)
        };
        if let Some(error) = all_fatal(shared) {
            return Some(error);
        }
        if drained {
            handle.stop_because(Why::Drained);
            return None;
        }
        if used_up {
            handle.stop_because(Why::Limit("its number of tasks".into()));
            return None;
        }
        tokio::select! {
            () = shared.activity.notified() => {}
            () = handle.rung() => {}
        }
    }
}

/// What ended the work on a queue, unless the program itself closed its broker.
fn is_unworked(queue: &Watched) -> bool {
    let fatal = queue.health().fatal;
    fatal.is_some_and(|kind| kind != ErrorKind::Closed)
}

fn all_fatal(shared: &Shared) -> Option<Error> {
    let mut errors = Vec::new();
    for queue in &shared.watched {
        let health = queue.health();
        health.fatal?;
        errors.push(format!("queue `{}`: {}", queue.name(), health.error.as_deref().unwrap_or_default()));
    }
    Some(Error::new(ErrorKind::Unsupported, errors.join("\n")))
}

/// Waits until something holds, a moment has come, or somebody hurries.
async fn until(shared: &Shared, handle: &RunnerHandle, level: u8, give_up: Moment, holds: impl Fn(&Shared) -> bool) {
    let over = shared.clock.sleep_until(give_up);
    tokio::pin!(over);
    while !holds(shared) && handle.level() < level {
        tokio::select! {
            () = &mut over => return,
            () = shared.activity.notified() => {}
            () = handle.rung() => {}
        }
    }
}
