//! The one place that reads a delivery and builds the body that comes next.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::admin::Peeked;
use crate::error::chain;
use crate::names::TaskId;
use crate::priority::NORMAL;
use crate::task::{Delivery, Envelope, NativeFacts};
use crate::time::{self, DEFAULT_TTR, unix_millis};
use crate::wire::{Data, HeldNote, Wire};

/// What holds for a task that does not say it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// The priority.
    pub priority: u32,
    /// The TTR.
    pub ttr: Duration,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { priority: NORMAL, ttr: DEFAULT_TTR }
    }
}

/// A delivery that has been read: never an error, since a task that cannot be read must be held, not lost.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The content. Of an unreadable body: the raw bytes, under an empty name.
    pub wire: Wire,
    /// Why the body could not be read.
    pub unreadable: Option<String>,
    /// The id: its own, or made from the broker's.
    pub id: TaskId,
    /// The priority that counts.
    pub priority: u32,
    /// The TTR that counts.
    pub ttr: Duration,
    raw: Bytes,
}

impl Incoming {
    /// Reads a delivery. `broker` is the name in the settings; it goes into the id of a payload that has none.
    pub fn read(delivery: &Delivery, broker: &str, defaults: Defaults) -> Self {
        Self::from_parts(&delivery.raw, &delivery.native, broker, delivery.queue.as_str(), defaults)
    }

    /// Reads a task of a listing.
    pub fn peeked(peeked: &Peeked, broker: &str, queue: &str, defaults: Defaults) -> Self {
        Self::from_parts(&peeked.raw, &peeked.native, broker, queue, defaults)
    }

    fn from_parts(raw: &Bytes, native: &NativeFacts, broker: &str, queue: &str, defaults: Defaults) -> Self {
        let (mut wire, mut unreadable) = match Wire::read(raw) {
            Ok(wire) => (wire, None),
            Err(e) => (Wire::unreadable(raw.clone()), Some(chain(e.as_ref()))),
        };
        // A body that was held as unreadable and kicked since: perhaps we can read it by now.
        if let Data::Unreadable(inner) = &wire.data {
            match Wire::read(inner) {
                Ok(mut read) => {
                    read.id = read.id.or(wire.id);
                    read.held = wire.held.take();
                    (read.priority, read.ttr) = (read.priority.or(wire.priority), read.ttr.or(wire.ttr));
                    (wire, unreadable) = (read, None);
                }
                Err(e) => unreadable = Some(chain(e.as_ref())),
            }
        }
        let id = wire.id.unwrap_or_else(|| match &native.id {
            Some(native) => TaskId::foreign(broker, queue, native),
            None => TaskId::foreign(broker, queue, &String::from_utf8_lossy(raw)),
        });
        let priority = wire.priority.or(native.priority).unwrap_or(defaults.priority);
        let ttr = wire.ttr.or(native.ttr).unwrap_or(defaults.ttr).clamp(time::MIN_TTR, time::MAX_TTR);
        Self { wire, unreadable, id, priority, ttr, raw: raw.clone() }
    }

    fn envelope(&self, body: Bytes, delay: Duration, probation: bool) -> Envelope {
        let (id, priority, ttr) = (self.id, self.priority, self.ttr);
        Envelope { id, body, priority, delay, ttr, group: None, unique: None, probation }
    }

    fn next(&self, delay: Duration, change: impl FnOnce(&mut Wire)) -> Envelope {
        let mut wire = self.wire.clone();
        (wire.id, wire.priority, wire.ttr) = (Some(self.id), Some(self.priority), Some(self.ttr));
        (wire.probation, wire.unknown_since) = (false, None);
        change(&mut wire);
        self.envelope(wire.write(), delay, wire.probation)
    }

    /// The task as it came, to be given back.
    pub fn unchanged(&self, delay: Duration) -> Envelope {
        self.envelope(self.raw.clone(), delay, self.wire.probation)
    }

    /// The task after a failed attempt: `failed` is one more.
    pub fn failed(&self, delay: Duration) -> Envelope {
        self.next(delay, |wire| wire.failed = wire.failed.saturating_add(1))
    }

    /// The task put back with nothing counted: a snooze.
    pub fn snoozed(&self, delay: Duration) -> Envelope {
        self.next(delay, |_| {})
    }

    /// The task put back because no worker of its name is here: remembers since when.
    pub fn without_worker(&self, delay: Duration, now: SystemTime) -> Envelope {
        self.next(delay, |wire| {
            wire.probation = self.wire.probation;
            wire.unknown_since = self.wire.unknown_since.or(Some(unix_millis(now)));
        })
    }

    /// The task marked for a run alone in its process. `died` says that a worker died on such a run already.
    pub fn on_probation(&self, died: bool) -> Envelope {
        self.next(Duration::ZERO, |wire| {
            (wire.probation, wire.unknown_since) = (true, self.wire.unknown_since);
            wire.crashed = wire.crashed.saturating_add(u32::from(died));
        })
    }

    /// The task as it is held: its counters are kept in the note and start anew, so that a kick only changes the state.
    ///
    /// `failed` says whether the attempt that ends here counts as a failed one.
    pub fn held(&self, reason: &str, failed: bool, now: SystemTime) -> Envelope {
        self.next(Duration::ZERO, |wire| {
            let failed = wire.failed.saturating_add(u32::from(failed));
            wire.held = Some(HeldNote { reason: reason.to_owned(), at: unix_millis(now), failed, crashed: wire.crashed });
            (wire.failed, wire.crashed) = (0, 0);
        })
    }

    /// Sets or removes what the worker saved to go on from; the next body carries it.
    pub fn set_checkpoint(&mut self, json: Option<Bytes>) {
        self.wire.checkpoint = json;
    }

    /// How many workers are known to have died with this task, this delivery's sign included.
    ///
    /// Only deaths on probation count: a first redelivery proves nothing, since the worker may have died of another task.
    pub fn crashes(&self, native: &NativeFacts) -> u32 {
        self.wire.crashed.saturating_add(u32::from(self.wire.probation && was_redelivered(native)))
    }

    /// Whether a worker may have died with this task, so that its next run must be alone, after being marked as such.
    pub fn needs_marking(&self, native: &NativeFacts) -> bool {
        was_redelivered(native)
    }

    /// Which attempt this is, from 1: failed ones and deaths count.
    pub fn attempt(&self) -> u32 {
        self.wire.failed.saturating_add(self.wire.crashed).saturating_add(1)
    }
}

fn was_redelivered(native: &NativeFacts) -> bool {
    native.redeliveries.value().is_some_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Figure;

    fn peek(raw: &'static [u8]) -> Peeked {
        let native = NativeFacts { id: Some("17".into()), ..NativeFacts::default() };
        Peeked { raw: Bytes::from_static(raw), native, state: crate::State::Ready, remaining: None }
    }

    fn read(raw: &'static [u8]) -> Incoming {
        Incoming::peeked(&peek(raw), "default", "images", Defaults::default())
    }

    fn reread(envelope: &Envelope) -> Incoming {
        Incoming::peeked(&Peeked { raw: envelope.body.clone(), ..peek(b"") }, "default", "images", Defaults::default())
    }

    #[test]
    fn a_first_system_payload_gets_an_id_that_stays() {
        let first = read(br#"{"task":"test","store":"0","data":{"message":"hello"}}"#);
        assert_eq!((first.wire.task.as_str(), first.wire.store.as_str(), first.priority), ("test", "0", 1024));
        assert_eq!(first.id, TaskId::foreign("default", "images", "17"));
        let second = reread(&first.failed(Duration::ZERO));
        assert_eq!((second.id, second.wire.failed, second.attempt()), (first.id, 1, 2));
    }

    #[test]
    fn counters_are_reset_by_a_hold_and_kept_in_its_note() {
        let task = read(br#"{"task":"t","failed":7,"crashed":2,"mine":[1, 2]}"#);
        let held = reread(&task.held("no disk", true, SystemTime::UNIX_EPOCH));
        assert_eq!((held.wire.failed, held.wire.crashed), (0, 0));
        let note = held.wire.held.unwrap();
        assert_eq!((note.reason.as_str(), note.failed, note.crashed), ("no disk", 8, 2));
        assert_eq!(held.wire.extra, [("mine".to_owned(), Bytes::from_static(b"[1, 2]"))]);
    }

    #[test]
    fn an_unreadable_body_keeps_its_bytes_through_hold_and_kick() {
        let task = read(b"\xff\x00 not json");
        assert!(task.unreadable.is_some());
        let held = reread(&task.held("cannot be read", false, SystemTime::UNIX_EPOCH));
        assert_eq!(held.wire.data, Data::Unreadable(Bytes::from_static(b"\xff\x00 not json")));
        assert!(held.unreadable.is_some());
        assert_eq!(held.id, task.id);
    }

    #[test]
    fn only_a_death_on_probation_counts() {
        let once = NativeFacts { redeliveries: Figure::AtLeast(1), ..NativeFacts::default() };
        let never = NativeFacts { redeliveries: Figure::Exact(0), ..NativeFacts::default() };
        let task = read(br#"{"task":"t"}"#);
        assert_eq!((task.crashes(&once), task.needs_marking(&once), task.needs_marking(&never)), (0, true, false));
        let marked = reread(&task.on_probation(false));
        assert_eq!((marked.crashes(&never), marked.needs_marking(&never), marked.wire.probation), (0, false, true));
        assert_eq!(marked.crashes(&once), 1);
        let again = reread(&marked.on_probation(true));
        assert_eq!((again.wire.crashed, again.crashes(&once)), (1, 2));
        assert!(!reread(&again.failed(Duration::ZERO)).wire.probation);
    }
}
