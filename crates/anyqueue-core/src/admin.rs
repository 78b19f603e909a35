//! What an operator sees: figures, states, listings.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::names::{self, TaskId};
use crate::task::NativeFacts;

/// A number of which it is known how well it is known. Unknown is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Figure {
    /// This many.
    Exact(u64),
    /// About this many.
    Approximate(u64),
    /// This many or more.
    AtLeast(u64),
    /// The broker does not tell.
    #[default]
    Unknown,
}

impl Figure {
    /// The number, unless unknown.
    pub fn value(self) -> Option<u64> {
        match self {
            Self::Exact(n) | Self::Approximate(n) | Self::AtLeast(n) => Some(n),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(n) => f.pad(&n.to_string()),
            Self::Approximate(n) => f.pad(&format!("≈{n}")),
            Self::AtLeast(n) => f.pad(&format!("≥{n}")),
            Self::Unknown => f.pad("unknown"),
        }
    }
}

impl Serialize for Figure {
    /// A number, or null where unknown.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(to)
    }
}

/// Where a task is. A task settled as done is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waiting for a worker.
    Ready,
    /// Invisible until it is due.
    Delayed,
    /// Leased to a worker.
    Reserved,
    /// Parked until it is kicked.
    Held,
}

impl State {
    /// All states, in the order in which listings show them.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Delayed, Self::Reserved, Self::Held];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Delayed => "delayed",
            Self::Reserved => "reserved",
            Self::Held => "held",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for State {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.word() == text)
            .ok_or_else(|| Error::invalid(format!("no state `{text}`; {}", names::suggest(text, Self::ALL.map(Self::word)))))
    }
}

/// The figures of one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Tasks waiting for a worker.
    pub ready: Figure,
    /// Tasks not due yet.
    pub delayed: Figure,
    /// Tasks leased to workers.
    pub reserved: Figure,
    /// Tasks parked.
    pub held: Figure,
    /// How long the oldest ready task has been ready, in seconds.
    pub oldest: Figure,
}

/// One task as a listing shows it. The facade reads id, name and reason out of the body.
#[derive(Debug, Clone)]
pub struct Peeked {
    /// The body.
    pub raw: Bytes,
    /// What the broker knows.
    pub native: NativeFacts,
    /// Where the task is.
    pub state: State,
    /// Until a delayed task is due or a lease ends.
    pub remaining: Option<Duration>,
}

/// A page of a listing.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The tasks.
    pub tasks: Vec<Peeked>,
    /// What to pass to get the next page; none at the end.
    pub next: Option<String>,
}

/// Which held tasks to kick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// These.
    Ids(Vec<TaskId>),
    /// Up to so many, longest held first.
    First(u64),
    /// All that are held now.
    All,
}

/// The twelve facts of one task. `None` is unknown, never zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TaskInfo {
    /// The queue's name.
    pub queue: String,
    /// Where the task is.
    pub state: Option<State>,
    /// 0 is most urgent.
    pub priority: Option<u32>,
    /// Seconds since the broker got it.
    pub age: Option<u64>,
    /// The delay it was last put with, in seconds.
    pub delay: Option<u64>,
    /// Seconds that a reservation lasts.
    pub ttr: Option<u64>,
    /// Seconds until the lease ends or the delay is over.
    pub expiration: Option<u64>,
    /// How often it was reserved.
    pub reserves: Option<u64>,
    /// How often a lease ran out.
    pub timeouts: Option<u64>,
    /// How often it was put back.
    pub releases: Option<u64>,
    /// How often it was held.
    pub holds: Option<u64>,
    /// How often it was kicked.
    pub unholds: Option<u64>,
}

/// Whether a queue is paused, and for how long still. `None` inside: until it is resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    /// It is not paused.
    No,
    /// It is, for this long or until it is resumed.
    Yes(Option<Duration>),
}

/// How bad a finding of [`Broker::diagnose`](crate::Broker::diagnose) is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Something may be lost or slow.
    Warning,
    /// It will not work.
    Problem,
}

/// One thing to know about a broker as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is and what to do.
    pub text: String,
}
