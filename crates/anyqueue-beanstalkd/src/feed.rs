//! What a consumer has got and not handed out yet.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyqueue_core::{Delivery, Error, Moment};
use tokio::sync::Notify;

use crate::error;
use crate::lease::Leases;
use crate::tubes::{Tube, Tubes};

/// The least that is asked for at once: what an idle queue costs the server at each look.
const LEAST: usize = 4;

/// The most that is asked for at once.
const MOST: usize = 512;

/// The meeting point of one consumer and the connections that bring its jobs.
#[derive(Debug)]
pub(crate) struct Feed {
    /// All tubes of its queue.
    pub(crate) source: Arc<Tubes>,
    /// Those of them that it takes from.
    pub(crate) tubes: Vec<Tube>,
    /// Rung when something came, failed or was found empty.
    pub(crate) bell: Notify,
    /// Which server comes first at the next look. Sends count their own turns: one that follows each look must not always meet
    /// the other server.
    pub(crate) turn: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    buffer: VecDeque<Delivery>,
    error: Option<Error>,
    fetching: bool,
    /// Somebody waits in `reserve`, until then.
    waits: Option<Moment>,
    /// Jobs may be awaited for it although nobody waits at the moment.
    lingers: bool,
    closed: bool,
    ask: usize,
    /// How many looks have ended.
    looks: u64,
}

impl Feed {
    pub(crate) fn new(source: Arc<Tubes>, tubes: Vec<Tube>) -> Self {
        let state = State {
            buffer: VecDeque::new(),
            error: None,
            fetching: false,
            waits: None,
            lingers: false,
            closed: false,
            ask: LEAST,
            looks: 0,
        };
        Self { source, tubes, bell: Notify::new(), turn: AtomicUsize::new(0), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn waits(&self) -> bool {
        self.state().waits.is_some()
    }

    /// Until when somebody waits.
    pub(crate) fn waits_until(&self) -> Option<Moment> {
        self.state().waits
    }

    pub(crate) fn lingers(&self) -> bool {
        let state = self.state();
        state.waits.is_some() || state.lingers
    }

    pub(crate) fn linger_no_more(&self) {
        self.state().lingers = false;
    }

    /// Begins or ends a wait.
    pub(crate) fn set_waits(&self, until: Option<Moment>) {
        let mut state = self.state();
        state.waits = until;
        state.lingers |= until.is_some();
    }

    /// Takes what is there and still reserved, or the error that came instead.
    pub(crate) fn take(&self, max: usize, now: Moment, leases: &Leases) -> Result<Vec<Delivery>, Error> {
        let mut state = self.state();
        state.buffer.retain(|delivery| leases.get(&delivery.receipt, now).is_some());
        if state.buffer.is_empty()
            && let Some(error) = state.error.take()
        {
            return Err(error);
        }
        let count = max.min(state.buffer.len());
        Ok(state.buffer.drain(..count).collect())
    }

    /// Begins a look for jobs unless one is under way.
    pub(crate) fn begin_look(self: &Arc<Self>, max: usize) -> Option<Look> {
        let mut state = self.state();
        if state.fetching {
            return None;
        }
        state.fetching = true;
        Some(Look { feed: self.clone(), asked: state.ask.min(max), has_ended: false })
    }

    pub(crate) fn is_looking(&self) -> bool {
        self.state().fetching
    }

    /// How many looks have ended so far.
    pub(crate) fn looks(&self) -> u64 {
        self.state().looks
    }

    /// Ends a look. As long as all that was asked for comes, more is asked for the next time.
    fn end_look(&self, asked: usize, result: Result<usize, Error>) {
        let mut state = self.state();
        (state.fetching, state.looks) = (false, state.looks + 1);
        match result {
            Ok(got) if got >= asked => state.ask = (state.ask * 2).clamp(LEAST, MOST),
            Ok(got) => state.ask = (got * 2).clamp(LEAST, MOST),
            Err(e) => state.error = Some(e),
        }
        drop(state);
        self.bell.notify_one();
    }

    /// Takes in what came. What nobody will take is returned.
    pub(crate) fn take_in(&self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let mut state = self.state();
        if state.closed {
            return deliveries;
        }
        state.buffer.extend(deliveries);
        state.waits = None;
        drop(state);
        self.bell.notify_one();
        Vec::new()
    }

    /// Wakes the consumer with an error.
    pub(crate) fn fail(&self, error: &Error) {
        let mut state = self.state();
        (state.error, state.waits) = (Some(error.duplicate()), None);
        drop(state);
        self.bell.notify_one();
    }

    /// Takes nothing in any more: what was left.
    pub(crate) fn close(&self) -> Vec<Delivery> {
        let mut state = self.state();
        (state.closed, state.waits, state.lingers) = (true, None, false);
        state.buffer.drain(..).collect()
    }
}

/// A look under way. It ends in whatever way its task does: a runtime that is shut down just drops it, and nobody would ever
/// wake those who wait for it.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) feed: Arc<Feed>,
    /// How many to ask for.
    pub(crate) asked: usize,
    has_ended: bool,
}

impl Look {
    pub(crate) fn end(mut self, result: Result<usize, Error>) {
        self.has_ended = true;
        self.feed.end_look(self.asked, result);
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if !self.has_ended {
            self.feed.end_look(self.asked, Err(error::closed()));
        }
    }
}
