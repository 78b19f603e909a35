//! The four traits that an adapter implements.
//!
//! Object-safe, since the broker is chosen at run time, and batch-first, so that the price of that is paid once per
//! call. There are no default methods: what is missing must not compile.

use std::any::Any;
use std::fmt::{self, Debug};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use crate::admin::{Finding, Page, Paused, Peeked, State, Stats, TaskInfo, Which};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::names::{QueueName, TaskId};
use crate::task::{Accepted, ConsumeOptions, Delivery, Envelope, Receipt, Settlement, Touch};

/// What a connected broker says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BrokerInfo {
    /// The driver's name.
    pub driver: &'static str,
    /// Where it is, without secrets.
    pub address: String,
    /// The server's version, where it tells.
    pub version: Option<String>,
    /// Requests sent and answered so far, or transactions committed: what a benchmark divides by tasks.
    pub round_trips: u64,
    /// Connections open now.
    pub connections: u64,
    /// How often a connection was made anew.
    pub reconnects: u64,
}

/// What `declare` found or made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// Whether something was created.
    pub created: bool,
    /// What exists with other arguments than wanted.
    pub drift: Vec<Drift>,
}

/// One argument of an existing queue that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The argument.
    pub what: String,
    /// What the settings ask for.
    pub wanted: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, wanted, found } = self;
        write!(f, "{what}: wanted {wanted}, found {found}")
    }
}

/// A connected broker.
///
/// A call on a broken connection connects anew within its own time limit, or fails with a retryable error at once.
/// Nobody has to rebuild anything; backing off between calls is the caller's part.
#[async_trait]
pub trait Broker: Any + Debug + Send + Sync {
    /// What it is and what it has done so far.
    fn info(&self) -> BrokerInfo;

    /// What it can do for this queue, as resolved after connecting.
    fn capabilities(&self, queue: &QueueName) -> Arc<Capabilities>;

    /// Sets up a queue. Idempotent. Where the settings say `create = "never"`, a missing one is
    /// [`NotFound`](crate::ErrorKind::NotFound); using an existing one needs no right to create.
    async fn declare(&self, queue: &QueueName) -> Result<Declared>;

    /// Puts tasks on a queue: one answer per task, in order, `Ok` only once the broker has it as durably as it claims.
    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>>;

    /// Starts to take tasks from a queue.
    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>>;

    /// The operator's verbs.
    fn admin(&self) -> &dyn Admin;

    /// Asks the broker for a sign of life.
    async fn ping(&self) -> Result<()>;

    /// Looks for what an operator should know: settings of the server that lose tasks, missing rights, old versions.
    async fn diagnose(&self) -> Result<Vec<Finding>>;

    /// Gives everything back and closes. Idempotent; later calls answer [`Closed`](crate::ErrorKind::Closed).
    async fn close(&self) -> Result<()>;
}

/// A stream of reservations of one queue.
///
/// Dropping a consumer gives back what was fetched and not handed out, as far as that is possible without waiting;
/// [`close`](Consumer::close) waits for it.
#[async_trait]
pub trait Consumer: Debug + Send {
    /// Reserves up to `max` tasks, the most urgent first. Returns as soon as one is there, and with none after `wait`; a server
    /// that does not say whether it has some is a [`Timeout`](crate::ErrorKind::Timeout), not an empty queue.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: what had arrived comes with the next call.
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>>;

    /// What ends and renews the leases. Works while `reserve` waits, and after this consumer was closed.
    fn settler(&self) -> Arc<dyn Settler>;

    /// Gives back what was fetched and not handed out. Leases that were handed out live on.
    ///
    /// Once it has answered, this process has nothing reserved that nobody was handed: a run that must be alone in its
    /// process waits for this, since what lies here would seem to have died with it.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// Ends and renews leases.
#[async_trait]
pub trait Settler: Debug + Send + Sync {
    /// Ends leases: one answer per item, in order. A stale receipt is [`LeaseLost`](crate::ErrorKind::LeaseLost) and disturbs nobody.
    ///
    /// Where a retry or hold has to publish anew, the copy is confirmed first and the old one removed second; a crash
    /// in between makes a duplicate, never a loss.
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>>;

    /// Starts leases anew: what is left of each, counted from before the request.
    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>>;
}

/// The operator's verbs.
#[async_trait]
pub trait Admin: Debug + Send + Sync {
    /// The figures of a queue.
    async fn stats(&self, queue: &QueueName) -> Result<Stats>;

    /// What is known of one task; `None` if it is not there (any more).
    async fn info(&self, queue: &QueueName, id: TaskId) -> Result<Option<TaskInfo>>;

    /// The next tasks of a state, in the order in which they will come, without changing anything. `Unsupported` for a state
    /// that the broker shows to nobody: "none" would be a guess.
    async fn peek(&self, queue: &QueueName, state: State, limit: usize) -> Result<Vec<Peeked>>;

    /// Held tasks, longest held first, a page at a time.
    async fn held(&self, queue: &QueueName, after: Option<&str>, limit: usize) -> Result<Page>;

    /// Makes held tasks ready with the priority they have. Says how many.
    async fn kick(&self, queue: &QueueName, which: &Which) -> Result<u64>;

    /// Removes tasks that are not reserved: one answer per id, [`NotFound`](crate::ErrorKind::NotFound) for a missing one.
    async fn delete(&self, queue: &QueueName, ids: &[TaskId]) -> Vec<Result<()>>;

    /// Removes all tasks of these states. Says how many.
    async fn purge(&self, queue: &QueueName, states: &[State]) -> Result<u64>;

    /// Stops deliveries of a queue to all workers, for a time or until it is resumed. Sends go on.
    async fn pause(&self, queue: &QueueName, time: Option<Duration>) -> Result<()>;

    /// Ends a pause.
    async fn resume(&self, queue: &QueueName) -> Result<()>;

    /// Whether a queue is paused.
    async fn paused(&self, queue: &QueueName) -> Result<Paused>;
}

/// Looks at tasks between the broker and the workers. Cancelled ones are dropped here.
#[async_trait]
pub trait DeliveryFilter: Debug + Send + Sync {
    /// One answer per id, in order: whether the task is still wanted. An unwanted one is settled as done.
    ///
    /// # Errors
    /// On an error all are taken as wanted: a filter that is down stops nobody.
    async fn wanted(&self, queue: &QueueName, ids: &[TaskId]) -> Result<Vec<bool>>;
}
