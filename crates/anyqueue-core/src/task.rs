//! What travels between the facade and an adapter: envelopes, deliveries, receipts, settlements.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::admin::Figure;
use crate::names::{QueueName, TaskId};
use crate::time::Moment;

/// A task ready to be put on a broker: its body and all that a broker may want beside it. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The id. A store that can treats a repeated id as already sent.
    pub id: TaskId,
    /// The wire form. An adapter never looks into it.
    pub body: Bytes,
    /// 0 is most urgent.
    pub priority: u32,
    /// How long the task stays invisible, from now.
    pub delay: Duration,
    /// How long a reservation lasts.
    pub ttr: Duration,
    /// Tasks of one group are worked in order where the broker knows groups (an SQS FIFO queue's group id).
    pub group: Option<Arc<str>>,
    /// Asks the broker to coalesce tasks of the same key, where it can (Gearman's unique id). Not set unless the caller asked.
    pub unique: Option<Arc<str>>,
    /// A worker died near it and it is to run alone: the next sign of a death counts. For brokers that tell of redeliveries
    /// that were no deaths, whose adapter must look more closely.
    pub probation: bool,
}

/// The proof of one reservation. A value: it can be logged, copied and collected into batches.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Which connection, server or run of reservations it belongs to. A receipt of a past epoch is stale.
    pub epoch: u64,
    /// The broker's number for the delivery, within the epoch.
    pub tag: u64,
    /// The broker's text for the delivery, where a number is not enough.
    pub handle: Option<Arc<str>>,
}

impl Receipt {
    /// A receipt made of numbers alone.
    pub const fn new(epoch: u64, tag: u64) -> Self {
        Self { epoch, tag, handle: None }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.tag)?;
        match &self.handle {
            Some(handle) => write!(f, ".{handle}"),
            None => Ok(()),
        }
    }
}

/// One reservation, as the adapter hands it out: raw bytes, and what the broker knows beside them.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What settles it.
    pub receipt: Receipt,
    /// The queue it came from.
    pub queue: QueueName,
    /// The body, unread.
    pub raw: Bytes,
    /// What the broker knows.
    pub native: NativeFacts,
    /// How long the lease lasts from its start.
    pub lease: Duration,
    /// When the lease ends at the earliest: the moment *before* the reserve request, plus `lease`.
    pub deadline: Moment,
}

/// What the broker knows of a task beside its body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NativeFacts {
    /// The broker's own id.
    pub id: Option<Arc<str>>,
    /// The priority, where the broker keeps the number.
    pub priority: Option<u32>,
    /// The TTR, where the broker keeps it per task.
    pub ttr: Option<Duration>,
    /// How often the task was reserved before and neither settled nor given back: a sign of deaths.
    pub redeliveries: Figure,
    /// How long ago the broker got the task.
    pub age: Option<Duration>,
}

/// What to do with a reserved task. Every variant ends the lease.
///
/// The envelope carries the body that is to be kept, so that a broker which has to publish anew has it at hand;
/// its `delay` counts from now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The task is gone.
    Done,
    /// Give the task back as it is: the same body, nothing counted. Stores that can do so keep its place in line.
    Release(Envelope),
    /// Put the task back with a new body: its counters have changed.
    Retry(Envelope),
    /// Park the task with a reason until it is kicked. The reason is in the body too.
    Hold(Envelope, String),
}

/// One lease to start anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// The reservation.
    pub receipt: Receipt,
    /// The TTR that starts anew.
    pub ttr: Duration,
    /// The task, for brokers whose lease is a copy of it (Gearman's guard).
    pub task: Envelope,
}

/// How a consumer is set up.
#[derive(Debug, Clone)]
pub struct ConsumeOptions {
    /// How many tasks may be reserved or buffered by this consumer at most.
    pub prefetch: usize,
    /// Which priorities it takes.
    pub priorities: RangeInclusive<u32>,
    /// The queue's usual TTR, for brokers that must name one in the reserve request.
    pub ttr: Duration,
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        Self { prefetch: 64, priorities: 0..=u32::MAX, ttr: crate::time::DEFAULT_TTR }
    }
}

/// What a broker said to an accepted task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The broker's own id, and which of several servers has it, where that is known without another request.
    pub native_id: Option<Box<str>>,
}
