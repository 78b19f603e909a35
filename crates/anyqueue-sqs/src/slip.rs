//! What travels beside a body: one message attribute, so that no adapter reads bodies.
//!
//! `p1024 t60 d1763769600000 h r2 i… k… g… f…`: priority, TTR in seconds, due in milliseconds since 1970, whether that is
//! further than SQS itself counts, earlier reservations without an end, SQS's first id of a payload that came without
//! ours, when it was held in microseconds, the group of a FIFO queue, and which file has the data, if one does (`claim.rs`).

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Envelope, steps_up};

use crate::SECOND;

/// The attribute's name.
pub(crate) const ATTRIBUTE: &str = "anyqueue";
/// Room that slips may take of the largest message: name, type and value count.
pub(crate) const ROOM: u64 = 512;

/// What a message says of itself beside its body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Slip {
    pub(crate) priority: Option<u32>,
    /// In seconds.
    pub(crate) ttr: Option<u64>,
    /// When it is due, in milliseconds since 1970.
    pub(crate) due: Option<u64>,
    /// Who receives it before it is due has to send it on.
    pub(crate) hop: bool,
    /// How often it was reserved, as an earlier message, without an end.
    pub(crate) redeliveries: u64,
    /// SQS's id of the message as which a foreign payload came.
    pub(crate) native: Option<Arc<str>>,
    /// When it was held, in microseconds since 1970.
    pub(crate) held: Option<u64>,
    pub(crate) group: Option<Arc<str>>,
    /// Which file has the task's data: copied as it came, and read only where the data is.
    pub(crate) claim: Option<Arc<str>>,
}

impl Slip {
    pub(crate) fn of(task: &Envelope) -> Self {
        Self { priority: Some(task.priority), ttr: Some(steps_up(task.ttr, SECOND)), ..Self::default() }
    }

    /// The TTR, if it says one.
    pub(crate) fn ttr(&self) -> Option<Duration> {
        self.ttr.map(Duration::from_secs)
    }

    pub(crate) fn write(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.priority.map(|n| format!("p{n}")));
        words.extend(self.ttr.map(|n| format!("t{n}")));
        words.extend(self.due.map(|n| format!("d{n}")));
        words.extend(self.hop.then(|| "h".to_owned()));
        words.extend((self.redeliveries > 0).then(|| format!("r{}", self.redeliveries)));
        words.extend(self.native.as_ref().map(|id| format!("i{id}")));
        words.extend(self.held.map(|n| format!("k{n}")));
        words.extend(self.group.as_ref().map(|group| format!("g{group}")));
        words.extend(self.claim.as_ref().map(|claim| format!("f{claim}")));
        words.join(" ")
    }

    /// Reads one. Words of later versions are passed over.
    pub(crate) fn read(text: &str) -> Self {
        let mut slip = Self::default();
        for word in text.split(' ').filter(|word| word.is_char_boundary(1)) {
            let (kind, value) = word.split_at(1.min(word.len()));
            match kind {
                "p" => slip.priority = value.parse().ok(),
                "t" => slip.ttr = value.parse().ok(),
                "d" => slip.due = value.parse().ok(),
                "h" => slip.hop = true,
                "r" => slip.redeliveries = value.parse().unwrap_or_default(),
                "i" => slip.native = Some(value.into()),
                "k" => slip.held = value.parse().ok(),
                "g" => slip.group = Some(value.into()),
                "f" => slip.claim = Some(value.into()),
                _ => {}
            }
        }
        slip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let full = Slip {
            priority: Some(u32::MAX),
            ttr: Some(43_200),
            due: Some(u64::MAX),
            hop: true,
            redeliveries: 7,
            native: Some("5f0e-1".into()),
            held: Some(1),
            group: Some("customer-7".into()),
            claim: Some("j5f0e.7".into()),
        };
        for slip in [full, Slip::default(), Slip { priority: Some(0), ..Slip::default() }] {
            assert_eq!(Slip::read(&slip.write()), slip);
        }
        assert_eq!(Slip::read("p7 zlater  é x"), Slip { priority: Some(7), ..Slip::default() });
    }

    #[test]
    fn the_longest_slip_has_room() {
        let slip = Slip {
            priority: Some(u32::MAX),
            ttr: Some(u64::MAX),
            due: Some(u64::MAX),
            hop: true,
            redeliveries: u64::MAX,
            native: Some("x".repeat(100).into()),
            held: Some(u64::MAX),
            group: Some("x".repeat(128).into()),
            claim: Some(format!("j{}.{}", "x".repeat(36), 64 << 20).into()),
        };
        assert!((slip.write().len() + ATTRIBUTE.len() + "String".len()) as u64 <= ROOM);
    }
}
