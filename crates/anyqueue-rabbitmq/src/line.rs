//! One consumer's state: what has been fetched, what is reserved, what the server may have more of.

mod open;

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Delivery, Error, Moment, QueueName, Receipt};
use lapin::Channel;
use tokio::sync::Notify;

use self::open::Open;
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
    pub(crate) deaths: u64,
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
    /// When it was consumed anew, or something came.
    pub(crate) heard: Moment,
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
    /// That of the session; 0 if there is none.
    pub(crate) epoch: u64,
    pub(crate) bands: Vec<Band>,
    pub(crate) leases: HashMap<u64, Lease>,
    /// Deliveries of the session that the server waits for a word on.
    pub(crate) unsettled: Open,
    /// Under way: the number of this run of consuming, and how much each band may have open.
    pub(crate) consuming: Option<(u64, usize)>,
    pub(crate) last_run: u64,
    /// What was fetched is on its way back.
    pub(crate) returning: bool,
    /// How many are asked for, and since when nobody waits any more.
    pub(crate) demand: usize,
    pub(crate) waiting: usize,
    pub(crate) asked: Moment,
    pub(crate) fault: Option<Error>,
    pub(crate) paused: bool,
    /// Until when that is believed without another look, and how often it was ended from here.
    pub(crate) paused_until: Moment,
    pub(crate) resumed: u64,
    /// All that was ready at the server has been seen.
    pub(crate) looked: bool,
    /// How often that was asked by somebody who does not wait: an older look is no answer.
    pub(crate) question: u64,
    /// The question at which the server said that it has tasks, and sent none.
    pub(crate) hesitated: Option<u64>,
    /// Settles under way.
    pub(crate) settling: usize,
    /// The consumer is gone.
    pub(crate) left: bool,
    /// So many want nothing to be fetched, and what was to be back at the server.
    pub(crate) withheld: usize,
    /// So many of them want it to be gone instead.
    pub(crate) purging: usize,
    /// How many tasks went that way.
    pub(crate) purged: u64,
    /// This one is on probation and waits here until it is noted that a worker gets it.
    pub(crate) to_note: Option<u64>,
    /// A queue was deleted. What the server tells of a queue that is made anew, on the channel that consumed the old one, is
    /// not to be relied on.
    pub(crate) renew: bool,
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
    /// How much the next consumer may have open is not changed before it is there. May be taken by who has the word, who
    /// has this one takes no other.
    pub(crate) allowing: tokio::sync::Mutex<()>,
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
            allowing: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out what may be handed out now, the most urgent first.
    pub(crate) fn take(&self, max: usize, now: Moment) -> Vec<Delivery> {
        let (mut state, mut taken) = (self.state(), Vec::new());
        let Some(epoch) = state.session.as_ref().map(|session| session.epoch) else { return taken };
        // What is on its way back is noted as unharmed already.
        if state.paused || state.returning || state.withheld > 0 {
            return taken;
        }
        let window = state.consuming.map_or(0, |(_, window)| window);
        while taken.len() < max && state.leases.len() < self.prefetch {
            let Some(at) = state.bands.iter().position(|band| !band.fetched.is_empty()) else { break };
            if state.bands[..at].iter().any(|band| band.precedes(window, self.prefetch)) {
                break;
            }
            let first = state.bands[at].fetched.front().map(|fetched| &fetched.message);
            let probation = first.is_some_and(|message| message.probation);
            // One on probation has no others beside it: what a worker dies of is one of those that it has.
            if probation && !taken.is_empty() {
                break;
            }
            if let Some(tag) = first.filter(|message| message.waits_for_note()).map(|message| message.tag) {
                state.to_note = Some(tag);
                break;
            }
            if let Some(fetched) = state.bands[at].fetched.pop_front() {
                taken.push(self.lease(&mut state, epoch, at, fetched, now));
            }
            if probation {
                break;
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
        state.leases.insert(message.tag, Lease { deadline, fetched: at, band, run, deaths: message.deaths() });
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
    /// Begins a run of consuming these bands, unless somebody wants none now.
    pub(crate) fn begin(&mut self, bands: &RangeInclusive<usize>, window: usize, now: Moment) -> bool {
        if self.withheld > 0 || self.left {
            return false;
        }
        self.last_run += 1;
        self.consuming = Some((self.last_run, window));
        self.look_again();
        for (at, band) in self.bands.iter_mut().enumerate() {
            // What a more urgent one has may be on its way still.
            (band.open, band.doubt, band.heard) = (0, bands.contains(&at), now);
        }
        true
    }

    /// Ends the run of consuming: none of what it brought counts for the next one.
    pub(crate) fn end_run(&mut self) {
        self.consuming = None;
        self.look_again();
        self.bands.iter_mut().for_each(|band| band.open = 0);
    }

    /// Allows these bands more in the run of consuming that is under way. Says how much.
    pub(crate) fn widen(&mut self, bands: &RangeInclusive<usize>, window: usize) -> usize {
        let Some((_, current)) = &mut self.consuming else { return 0 };
        let more = window.saturating_sub(*current);
        *current = window;
        self.look_again();
        self.bands[bands.clone()].iter_mut().for_each(|band| band.doubt = true);
        more
    }

    /// Whether a band has all that the server may send of it.
    pub(crate) fn is_full(&self, band: usize) -> bool {
        self.consuming.is_none_or(|(_, window)| self.bands[band].open >= window)
    }

    /// Whether there is nothing that a new channel would lose.
    pub(crate) fn is_empty_handed(&self) -> bool {
        self.unsettled.is_empty() && self.settling == 0
    }

    /// Whether the time of some task is up.
    pub(crate) fn is_over(&self, now: Moment) -> bool {
        self.leases.values().any(|lease| lease.deadline <= now)
    }

    /// Somebody who does not wait asks. What was seen before is no answer, but that the queue was paused a moment ago is.
    pub(crate) fn ask(&mut self, now: Moment) {
        self.question += 1;
        self.looked &= self.paused && now < self.paused_until;
    }

    /// A look that began when so many questions had been asked has seen all, or the server hesitates.
    pub(crate) fn answer(&mut self, question: u64, all: bool) {
        if all {
            self.looked |= self.question == question;
        } else {
            self.hesitated = Some(question);
        }
    }

    /// Whether there is no use in another look now.
    pub(crate) fn is_answered(&self) -> bool {
        self.looked || self.hesitated == Some(self.question)
    }

    fn look_again(&mut self) {
        (self.looked, self.hesitated) = (false, None);
    }

    /// The queue goes on: what was seen of it while it was paused says nothing any more.
    pub(crate) fn resume(&mut self) {
        self.resumed += 1;
        self.paused = false;
        self.look_again();
    }

    /// Takes in what came from the server.
    pub(crate) fn add(&mut self, band: usize, message: Message, at: Moment) {
        self.unsettled.add(message.tag);
        let Some((run, window)) = self.consuming else { return };
        let band = &mut self.bands[band];
        band.open += 1;
        band.heard = at;
        band.doubt |= band.open >= window;
        // A band may have several consumers, and the server numbers what it sends.
        let place = band.fetched.iter().rposition(|other| other.message.tag < message.tag).map_or(0, |before| before + 1);
        band.fetched.insert(place, Fetched { message, at, run });
    }

    /// The task that waits for a note.
    pub(crate) fn waits_for_note(&mut self) -> Option<&mut Message> {
        let tag = self.to_note?;
        let mut lying = self.bands.iter_mut().flat_map(|band| &mut band.fetched).map(|fetched| &mut fetched.message);
        lying.find(|message| message.tag == tag)
    }

    /// Ends a lease that is over. It may have been touched or settled meanwhile.
    pub(crate) fn end_lease(&mut self, tag: u64, now: Moment) -> bool {
        let over = self.leases.get(&tag).filter(|lease| lease.deadline <= now).map(|lease| (lease.band, lease.run));
        if let Some((band, run)) = over {
            self.leases.remove(&tag);
            self.settled(tag, band, run);
        }
        over.is_some()
    }

    /// Forgets a delivery that the server is told about.
    pub(crate) fn settled(&mut self, tag: u64, band: usize, run: u64) {
        self.unsettled.remove(tag);
        if self.consuming.is_some_and(|(current, _)| current == run) {
            self.bands[band].open = self.bands[band].open.saturating_sub(1);
        }
    }

    /// Forgets deliveries of one session, unless another one has begun.
    pub(crate) fn open_no_more(&mut self, epoch: u64, all: impl Iterator<Item = (u64, usize, u64)>) {
        if self.is_of(epoch) {
            all.for_each(|(tag, band, run)| self.settled(tag, band, run));
        }
    }

    /// Whether the session of these receipts is still the one.
    pub(crate) fn is_of(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    /// The fewest words that end these deliveries. `None`: their session is over, and what is open now are other ones.
    pub(crate) fn words(&mut self, epoch: u64, tags: &[u64]) -> Option<Vec<(u64, bool)>> {
        self.is_of(epoch).then(|| self.unsettled.words(tags))
    }

    /// Takes out everything that was fetched and not handed out.
    pub(crate) fn take_fetched(&mut self) -> Vec<u64> {
        let mut all = Vec::new();
        self.to_note = None;
        for band in 0..self.bands.len() {
            let fetched = std::mem::take(&mut self.bands[band].fetched);
            for one in fetched {
                self.settled(one.message.tag, band, one.run);
                all.push(one.message.tag);
            }
        }
        all
    }

    /// The channel is gone, and all that belonged to it.
    pub(crate) fn lose_session(&mut self) {
        self.session = None;
        self.epoch = 0;
        (self.consuming, self.returning, self.renew, self.to_note) = (None, false, false, None);
        self.look_again();
        self.leases.clear();
        self.unsettled = Open::default();
        for band in &mut self.bands {
            *band = Band::default();
        }
    }

    /// Whether nothing is being fetched, and nothing that was is here or on its way back.
    pub(crate) fn is_quiet(&self) -> bool {
        self.consuming.is_none() && !self.returning && self.bands.iter().all(|band| band.fetched.is_empty())
    }

    /// Whether somebody asks for tasks, or did a moment ago.
    pub(crate) fn wanted(&self, now: Moment) -> bool {
        !self.left && self.withheld == 0 && (self.waiting > 0 || now < self.asked + IDLE)
    }

    /// How much each band should be allowed: what is asked for, and what is out already.
    pub(crate) fn window(&self, prefetch: usize) -> usize {
        let open = self.bands.iter().map(|band| band.open - band.fetched.len().min(band.open)).max().unwrap_or(0);
        (open + self.demand.max(1)).next_power_of_two().min(prefetch)
    }
}

#[cfg(test)]
mod tests;
