//! What one consumer wants, and what has come for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Delivery, Error, Result};
use tokio::sync::{Notify, watch};

use crate::hub::Queue;

/// Whether somebody waits, and since which call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stage {
    pub(crate) round: u64,
    pub(crate) waiting: bool,
    pub(crate) closed: bool,
}

#[derive(Debug)]
struct State {
    ready: VecDeque<Delivery>,
    wanted: usize,
    /// What the present call asked for: lines may look for more than that, and never give back more.
    asked: usize,
    /// Of each server: the call for which it was looked at last, and what went wrong.
    looked: Vec<(u64, Option<Error>)>,
    closed: Option<Error>,
    /// Lines that have tasks which are not here yet.
    bringing: usize,
}

/// The meeting place of a consumer and the lines that fetch for it.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) queue: Arc<Queue>,
    /// The TTR of tasks that say none.
    pub(crate) ttr: Duration,
    pub(crate) bell: Notify,
    pub(crate) stage: watch::Sender<Stage>,
    state: Mutex<State>,
}

/// How far the looks of the present call have come.
pub(crate) enum Looks {
    UnderWay,
    Done,
    Failed(Error),
}

impl Feed {
    pub(crate) fn new(queue: Arc<Queue>, ttr: Duration, servers: usize) -> Self {
        let looked = (0..servers).map(|_| (0, None)).collect();
        let state = State { ready: VecDeque::new(), wanted: 0, asked: 0, looked, closed: None, bringing: 0 };
        Self { queue, ttr, bell: Notify::new(), stage: watch::Sender::default(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that up to so many are wanted from now on, until what is returned is dropped.
    pub(crate) fn begin(&self, max: usize) -> Waiting<'_> {
        {
            let mut state = self.state();
            (state.wanted, state.asked) = (max, max);
        }
        self.stage.send_modify(|stage| (stage.round, stage.waiting) = (stage.round + 1, true));
        Waiting(self)
    }

    /// Takes what has come and is still reserved.
    pub(crate) fn take(&self, max: usize, mut still: impl FnMut(&Delivery) -> bool) -> Result<Vec<Delivery>> {
        let mut state = self.state();
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(delivery) = state.ready.pop_front()
        {
            if still(&delivery) {
                taken.push(delivery);
            }
        }
        match &state.closed {
            Some(e) if taken.is_empty() => Err(e.duplicate()),
            _ => Ok(taken),
        }
    }

    /// How many a line may fetch now; what it does not find it gives back with [`end_look`](Self::end_look). The lines of
    /// several servers share, and each may look once.
    pub(crate) fn claim(&self, place: usize, round: u64) -> usize {
        let mut state = self.state();
        let servers = state.looked.len();
        let least = usize::from(servers > 1 && state.looked[place].0 < round);
        let part = state.wanted.div_ceil(servers).max(least);
        state.wanted = state.wanted.saturating_sub(part);
        part
    }

    /// Says that a line has tasks, and will bring them: whoever waits may wait a little longer.
    pub(crate) fn bring(&self) -> Bringing<'_> {
        self.state().bringing += 1;
        Bringing(self)
    }

    /// Notes a look. What nobody takes any more is returned.
    pub(crate) fn end_look(&self, place: usize, round: u64, unused: usize, found: Result<Vec<Delivery>>) -> Vec<Delivery> {
        let stage = *self.stage.borrow();
        let mut state = self.state();
        if stage.waiting && stage.round == round {
            state.wanted = (state.wanted + unused).min(state.asked);
        }
        let refused = match found {
            Ok(deliveries) if state.closed.is_some() => deliveries,
            Ok(deliveries) => {
                state.looked[place] = (round, None);
                state.ready.extend(deliveries);
                Vec::new()
            }
            Err(e) => {
                state.looked[place] = (round, Some(e));
                Vec::new()
            }
        };
        drop(state);
        self.bell.notify_one();
        refused
    }

    /// How far the looks of a call have come. An error only if no server could be asked.
    pub(crate) fn looks(&self, round: u64) -> Looks {
        let state = self.state();
        if state.bringing > 0 || state.looked.iter().any(|(looked, _)| *looked < round) {
            return Looks::UnderWay;
        }
        match state.looked.iter().map(|(_, e)| e.as_ref()).collect::<Option<Vec<&Error>>>() {
            Some(errors) if !errors.is_empty() => Looks::Failed(errors[0].duplicate()),
            _ => Looks::Done,
        }
    }

    pub(crate) fn close(&self, why: Option<Error>) -> Vec<Delivery> {
        let mut state = self.state();
        state.closed.get_or_insert_with(|| why.unwrap_or_else(crate::error::closed));
        let left = state.ready.drain(..).collect();
        drop(state);
        self.stage.send_modify(|stage| stage.closed = true);
        self.bell.notify_one();
        left
    }
}

/// Tasks on their way from a line.
pub(crate) struct Bringing<'a>(&'a Feed);

impl Drop for Bringing<'_> {
    fn drop(&mut self) {
        self.0.state().bringing -= 1;
    }
}

/// A call of reserve under way. However it ends, nothing is fetched for it any more.
pub(crate) struct Waiting<'a>(&'a Feed);

impl Waiting<'_> {
    pub(crate) fn round(&self) -> u64 {
        self.0.stage.borrow().round
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().wanted = 0;
        self.0.stage.send_modify(|stage| stage.waiting = false);
    }
}
