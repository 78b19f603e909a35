//! What lies between the requests that receive and the calls that reserve.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Bytes, Error, Moment};
use tokio::sync::{Notify, RwLock};

use crate::claim::Owned;
use crate::message::Arrived;

/// A task that is received and not handed out yet.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) arrived: Arrived,
    /// The whole body, where its data was in a file, and that file.
    pub(crate) fetched: Option<(Bytes, Owned)>,
    /// Receptions that were none of a worker.
    pub(crate) looks: u64,
    pub(crate) ttr: Duration,
    pub(crate) asked: Moment,
    pub(crate) deadline: Moment,
}

/// What one consumer wants and what has come for it.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// Rings when something has come, or failed.
    pub(crate) arrived: Notify,
    /// Rings when something is wanted, and at the end.
    pub(crate) wanted: Notify,
    /// Rings when all bands have been looked at.
    done: Notify,
    /// Held, to be read, while something that came is sorted: it must be given back before the process may end.
    pub(crate) sorting: RwLock<()>,
}

#[derive(Debug)]
struct State {
    /// By band, the most urgent one first.
    ready: Vec<VecDeque<Ready>>,
    /// How many tasks are asked for now.
    want: usize,
    error: Option<Error>,
    closed: bool,
    /// When something came last.
    came: Moment,
    /// Bands for which a request waits.
    waiting: Vec<bool>,
    /// Whether all bands have been looked at since somebody asked.
    looked: bool,
    /// Until when somebody waits.
    until: Moment,
}

impl Inbox {
    pub(crate) fn new(bands: usize) -> Self {
        let state = State {
            ready: (0..bands).map(|_| VecDeque::new()).collect(),
            want: 0,
            error: None,
            closed: false,
            came: Moment::default(),
            waiting: vec![false; bands],
            looked: false,
            until: Moment::default(),
        };
        Self {
            state: Mutex::new(state),
            arrived: Notify::new(),
            wanted: Notify::new(),
            done: Notify::new(),
            sorting: RwLock::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for tasks until the answer is dropped, and no longer than until a moment.
    pub(crate) fn demand(&self, count: usize, until: Moment) -> Demand<'_> {
        {
            let mut state = self.state();
            (state.want, state.looked, state.until) = (count, false, until);
        }
        self.wanted.notify_one();
        Demand(self)
    }

    /// How many tasks are asked for and not there.
    pub(crate) fn lacking(&self) -> usize {
        let state = self.state();
        let there: usize = state.ready.iter().map(VecDeque::len).sum();
        if state.closed || there > 0 { 0 } else { state.want }
    }

    /// Until when somebody waits.
    pub(crate) fn until(&self) -> Moment {
        self.state().until
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.wanted.notify_one();
    }

    /// Takes what came for a band. After the end it comes back, to be given back.
    pub(crate) fn put(&self, band: usize, tasks: Vec<Ready>, now: Moment) -> Vec<Ready> {
        if tasks.is_empty() {
            return tasks;
        }
        let mut state = self.state();
        if state.closed {
            return tasks;
        }
        state.came = now;
        state.ready[band].extend(tasks);
        drop(state);
        self.arrived.notify_one();
        Vec::new()
    }

    /// Tells whoever reserves that a request failed. Nothing more is asked for until somebody asks again.
    pub(crate) fn fail(&self, error: Error) {
        let mut state = self.state();
        state.error = Some(error);
        state.want = 0;
        drop(state);
        self.arrived.notify_one();
    }

    pub(crate) fn failure(&self) -> Option<Error> {
        self.state().error.take()
    }

    /// Up to so many tasks, the most urgent first, with the bands they are of. Those whose time is up are left out: they
    /// are on SQS again.
    pub(crate) fn take(&self, max: usize, now: Moment) -> Vec<(usize, Ready)> {
        let mut state = self.state();
        let mut taken = Vec::new();
        for (band, ready) in state.ready.iter_mut().enumerate() {
            while taken.len() < max
                && let Some(task) = ready.pop_front()
            {
                if now < task.deadline {
                    taken.push((band, task));
                }
            }
        }
        taken
    }

    /// All that came and that nobody has asked for in this time.
    pub(crate) fn unwanted(&self, patience: Duration, now: Moment) -> Vec<(usize, Ready)> {
        let stale = {
            let state = self.state();
            state.closed || (state.want == 0 && now.since(state.came) >= patience)
        };
        if stale { self.take(usize::MAX, now) } else { Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().ready.iter().all(VecDeque::is_empty)
    }

    /// Says that all bands have been looked at.
    pub(crate) fn set_looked(&self) {
        self.state().looked = true;
        self.done.notify_waiters();
    }

    /// Ends when all bands have been looked at since somebody asked.
    pub(crate) async fn looked(&self) {
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if self.state().looked {
                return;
            }
            done.await;
        }
    }

    /// Takes note that a request waits for a band. False if one does already.
    pub(crate) fn begin_waiting(&self, band: usize) -> bool {
        !std::mem::replace(&mut self.state().waiting[band], true)
    }

    pub(crate) fn end_waiting(&self, band: usize) {
        self.state().waiting[band] = false;
        self.wanted.notify_one();
    }

    /// Whether any request waits.
    pub(crate) fn anything_waits(&self) -> bool {
        self.state().waiting.contains(&true)
    }

    pub(crate) fn is_waiting(&self, band: usize) -> bool {
        self.state().waiting[band]
    }
}

/// Tasks that are asked for; dropped, they are not any more.
#[derive(Debug)]
pub(crate) struct Demand<'a>(&'a Inbox);

impl Drop for Demand<'_> {
    fn drop(&mut self) {
        self.0.state().want = 0;
    }
}
