//! Background tasks on the broker you run, or on none yet.
//!
//! Handlers are written once; `queue.toml` says which broker carries the tasks. Priority, delay, time to run, touch,
//! retry, hold and kick mean the same on every one of them: where a broker lacks a verb, its adapter builds it.

mod brokers;
mod builtin;
mod clock;
mod drivers;
mod exec;
mod hooks;
mod inline;
mod io;
mod lane;
mod outcome;
mod policy;
mod queue;
mod queues;
mod runner;
pub mod settings;
mod task;
#[cfg(feature = "memory")]
pub mod testing;
mod trace;

pub use anyqueue_core as core;
pub use anyqueue_core::{Bytes, Error, ErrorKind, PriorityRange, QueueName, Result, TaskId, priority};
pub use builtin::test_queue;
pub use clock::{SystemClock, TestClock};
pub use drivers::Drivers;
pub use hooks::{AttemptInfo, Hooks};
pub use outcome::{IntoOutcome, Outcome, Permanent};
pub use policy::{Backoff, Lease, Policy};
pub use queue::{Queue, QueueOf};
pub use queues::{Queues, QueuesBuilder, Sender, Sent};
pub use runner::{Finished, Progress, QueueHealth, Runner, RunnerHandle, Verdict, Watch, Why};
pub use settings::Settings;
pub use task::{NewTask, Task};
