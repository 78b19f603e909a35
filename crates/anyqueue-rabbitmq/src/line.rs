//! One consumer's state: what has been fetched, what is reserved, what the server may have more of.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Delivery, Error, Moment, QueueName, Receipt};
use lapin::Channel;
use tokio::sync::Notify;

use crate::message::Message;

/// A consumer that nobody asks for this long takes nothing more, and gives back what it has not handed out.
pub(crate) const IDLE: Duration = Duration::from_millis(250);
/// A fetched task that nobody takes is given back, long before the server would close the channel.
pub(crate) const STALE: Duration = Duration::from_secs(30);

/// One reservation.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) deadline: Moment,
    /// When the server counts the task as delivered, at the earliest.
    pub(crate) fetched: Moment,
    pub(crate) band: usize,
    pub(crate) run: u64,
}

/// A channel and all that belongs to it.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) channel: Channel,
    pub(crate) epoch: u64,
}

/// A fetched task.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) message: Message,
    pub(crate) at: Moment,
    pub(crate) run: u64,
}

/// A band as the consumer sees it.
#[derive(Debug, Default)]
pub(crate) struct Band {
    pub(crate) fetched: VecDeque<Fetched>,
    /// Unsettled tasks of the run of consuming that is under way.
    pub(crate) open: usize,
    /// The server may have had more than it was allowed to send.
    pub(crate) doubt: bool,
}

impl Band {
    /// Whether less urgent tasks wait until it is known that this band has none. One that holds all that it may hold is not
    /// waited for.
    pub(crate) fn precedes(&self, window: usize, prefetch: usize) -> bool {
        self.doubt && (self.open < window || window < prefetch)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) session: Option<Session>,
    pub(crate) bands: Vec<Band>,
    pub(crate) leases: HashMap<u64, Lease>,
    /// Deliveries of the session that the server waits for a word on.
    pub(crate) unsettled: BTreeSet<u64>,
    /// Under way: the number of this run of consuming, and how much each band may have open.
    pub(crate) consuming: Option<(u64, usize)>,
    pub(crate) last_run: u64,
    /// How many are asked for, and since when nobody waits any more.
    pub(crate) demand: usize,
    pub(crate) waiting: usize,
    pub(crate) asked: Moment,
    pub(crate) fault: Option<Error>,
    pub(crate) paused: bool,
    /// All that was ready at the server has been seen.
    pub(crate) looked: bool,
    /// The consumer is gone.
    pub(crate) left: bool,
    /// Somebody wants everything that was fetched to be back at the server.
    pub(crate) flush: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) queue: QueueName,
    pub(crate) prefetch: usize,
    pub(crate) ttr: Duration,
    pub(crate) max_ttr: Duration,
    state: Mutex<State>,
    /// Wakes who looks after the line.
    pub(crate) wake: Notify,
    /// Wakes who waits for tasks.
    pub(crate) bell: Notify,
    /// What is said to the server about deliveries is said in the order in which it was decided.
    pub(crate) saying: tokio::sync::Mutex<()>,
}

impl Line {
    pub(crate) fn new(queue: QueueName, bands: usize, prefetch: usize, ttr: Duration, max_ttr: Duration) -> Self {
        let state = State { bands: (0..bands).map(|_| Band::default()).collect(), ..State::default() };
        Self {
            queue,
            prefetch: prefetch.clamp(1, usize::from(u16::MAX)),
            ttr,
            max_ttr,
            state: Mutex::new(state),
            wake: Notify::new(),
            bell: Notify::new(),
            saying: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out what may be handed out now, the most urgent first.
    pub(crate) fn take(&self, max: usize, now: Moment) -> Vec<Delivery> {
        let (mut state, mut taken) = (self.state(), Vec::new());
        let Some(epoch) = state.session.as_ref().map(|session| session.epoch) else { return taken };
        if state.paused || state.flush {
            return taken;
        }
        let window = state.consuming.map_or(0, |(_, window)| window);
        while taken.len() < max && state.leases.len() < self.prefetch {
            let Some(at) = state.bands.iter().position(|band| !band.fetched.is_empty()) else { break };
            if state.bands[..at].iter().any(|band| band.precedes(window, self.prefetch)) {
                break;
            }
            if let Some(fetched) = state.bands[at].fetched.pop_front() {
                taken.push(self.lease(&mut state, epoch, at, fetched, now));
            }
        }
        taken
    }

    /// Whether it is clear what a band has to give, now that the server says how much more there is.
    pub(crate) fn is_sure(&self, band: usize, count: u32) -> bool {
        let mut state = self.state();
        let window = state.consuming.map_or(0, |(_, window)| window);
        let here = &mut state.bands[band];
        if count == 0 && here.open < window {
            here.doubt = false;
        }
        count == 0 || !here.fetched.is_empty() || here.open >= window
    }

    fn lease(&self, state: &mut State, epoch: u64, band: usize, fetched: Fetched, now: Moment) -> Delivery {
        let Fetched { message, at, run } = fetched;
        // Another client may have asked for more than the server lets us hold it.
        let lease = message.ttr.unwrap_or(self.ttr).min(self.max_ttr);
        let deadline = now + lease;
        state.leases.insert(message.tag, Lease { deadline, fetched: at, band, run });
        Delivery {
            receipt: Receipt::new(epoch, message.tag),
            queue: self.queue.clone(),
            native: message.facts(),
            raw: message.raw,
            lease,
            deadline,
        }
    }
}

impl State {
    /// Takes in what came from the server.
    pub(crate) fn add(&mut self, band: usize, message: Message, at: Moment) {
        let Some((run, window)) = self.consuming else { return };
        self.unsettled.insert(message.tag);
        let band = &mut self.bands[band];
        band.open += 1;
        band.doubt |= band.open >= window;
        band.fetched.push_back(Fetched { message, at, run });
    }

    /// Forgets a delivery that the server is told about.
    pub(crate) fn settled(&mut self, tag: u64, band: usize, run: u64) {
        self.unsettled.remove(&tag);
        if self.consuming.is_some_and(|(current, _)| current == run) {
            self.bands[band].open = self.bands[band].open.saturating_sub(1);
        }
    }

    /// Takes out everything that was fetched and not handed out.
    pub(crate) fn take_fetched(&mut self) -> Vec<Fetched> {
        let mut all = Vec::new();
        for band in 0..self.bands.len() {
            let fetched = std::mem::take(&mut self.bands[band].fetched);
            for one in fetched {
                self.settled(one.message.tag, band, one.run);
                all.push(one);
            }
        }
        all
    }

    /// The channel is gone, and all that belonged to it.
    pub(crate) fn lose_session(&mut self) {
        self.session = None;
        self.consuming = None;
        self.looked = false;
        self.leases.clear();
        self.unsettled.clear();
        for band in &mut self.bands {
            *band = Band::default();
        }
    }

    /// Whether somebody asks for tasks, or did a moment ago.
    pub(crate) fn wanted(&self, now: Moment) -> bool {
        !self.left && !self.flush && (self.waiting > 0 || now < self.asked + IDLE)
    }

    /// How much each band should be allowed: what is asked for, and what is out already.
    pub(crate) fn window(&self, prefetch: usize) -> usize {
        let open = self.bands.iter().map(|band| band.open - band.fetched.len().min(band.open)).max().unwrap_or(0);
        (open + self.demand.max(1)).next_power_of_two().min(prefetch)
    }
}
