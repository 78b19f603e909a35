//! What can be made to fail, and what is recorded.

use std::time::Duration;

use anyqueue_core::{Envelope, QueueName, Receipt, Settlement};

/// A verb that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `declare`.
    Declare,
    /// `send`, the whole call.
    Send,
    /// `consume`.
    Consume,
    /// `reserve`.
    Reserve,
    /// `settle`, the whole call.
    Settle,
    /// `touch`, the whole call.
    Touch,
    /// All verbs of the operator.
    Admin,
    /// `ping`.
    Ping,
}

/// One thing that was done to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A task was sent to a queue.
    Sent(QueueName, Envelope),
    /// A reservation was settled.
    Settled(Receipt, Settlement),
    /// A reservation was touched.
    Touched(Receipt, Duration),
    /// A reserve was asked for: how many, and how long it may wait.
    Reserved(usize, Duration),
    /// A consumer was closed or dropped.
    ConsumerClosed(QueueName),
    /// An operator's verb was called on a queue.
    Admin(&'static str, QueueName),
    /// The broker was closed.
    Closed,
}
