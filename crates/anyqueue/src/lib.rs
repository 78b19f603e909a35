//! Background tasks on the broker you run, or on none yet.
//!
//! Workers are written once; `queue.toml` says which broker carries the tasks. Priority, delay, time to run, touch,
//! retry, hold and kick mean the same on every one of them: where a broker lacks a verb, its adapter builds it.
//!
//! ```
//! use anyqueue::{NewTask, Queue, Queues, Runner, Settings, Task};
//!
//! # #[tokio::main]
//! # async fn main() -> anyqueue::Result<()> {
//! // What is in `queue.toml`; `Settings::load()` reads it from there.
//! let settings = Settings::builder().text("queue.toml", r#"
//!     [brokers.default]
//!     url = "memory:"
//!
//!     [queues.mail]
//!     max_attempts = 5
//! "#).environment([]).load()?;
//!
//! // A queue handler and its workers.
//! let mail = Queue::new("mail", ()).worker("welcome", |_, task: Task<String>| async move {
//!     println!("welcome, {}", task.data);
//! });
//!
//! // Send a task: it is on the broker when this returns.
//! let queues = Queues::connect(settings).await?;
//! queues.queue("mail")?.send(NewTask::new("welcome", "ann")).await?;
//!
//! // Work until nothing is left. Without `drain()`: until a signal comes.
//! let finished = Runner::new(queues).queue(mail).drain().run().await?;
//! assert_eq!(finished.progress.done, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # The guide
//!
//! 1. [States](guide::states): where a task can be, and what moves it, with a drawing
//! 2. [Semantics](guide::semantics): at least once; values and defaults; what each outcome does; what happens when
//!    something dies
//! 3. [Sending](guide::sending): when a send is safe; defaults; routes
//! 4. [Workers](guide::workers): in Rust, blocking, long, with a checkpoint, or in another language
//! 5. [Settings](guide::settings): `queue.toml`, the environment, flags
//! 6. [Brokers](guide::brokers): native, emulated, needed; SQLite; one of your own
//! 7. [Wire form](guide::wire_form): for producers in any language
//! 8. [Operating](guide::operating): `queue-runner`, figures, what to watch
//! 9. [Stopping](guide::stopping): signals, limits, exit codes
//! 10. [Testing](guide::testing): days in milliseconds
//!
//! # Where to look
//!
//! | to | there is |
//! |---|---|
//! | send tasks | [`Queues`], [`Sender`], [`NewTask`] |
//! | write workers | [`Queue`], [`Task`], [`Outcome`], [`Permanent`] |
//! | run them | [`Runner`], [`RunnerHandle`], [`Finished`], [`Hooks`] |
//! | set things | [`Settings`], [`Policy`], [`settings`] |
//! | test them | [`testing`] |
//! | look after queues, or write an adapter | [`core`], the contract |
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `sqlite` | yes | the broker `sqlite:`, one file and many processes |
//! | `memory` | yes | the broker `memory:`, and [`testing`] |
//! | `beanstalkd` | no | the broker `beanstalkd:`, beanstalkd 1.10 and later |
//! | `redis` | no | the brokers `redis:` and `rediss:`, Redis 6.2 and later and Valkey |
//! | `rabbitmq` | no | the brokers `amqp:` and `amqps:`, RabbitMQ 3.10 and later |
//! | `sqs` | no | the broker `sqs:`, Amazon SQS; a large dependency |
//! | `gearman` | no | the broker `gearman:`, gearmand 1.1 |
//!
//! A broker that was left out of a build is an error that names its feature.

mod brokers;
mod builtin;
mod clock;
mod drivers;
mod exec;
pub mod guide;
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

#[doc(inline)]
pub use anyqueue_core as core;
pub use anyqueue_core::{Bytes, Error, ErrorKind, PriorityRange, QueueName, Result, TaskId, priority};
pub use builtin::test_queue;
pub use clock::{SystemClock, TestClock};
pub use drivers::Drivers;
pub use hooks::{AttemptInfo, Hooks};
pub use outcome::{IntoOutcome, Outcome, Permanent};
pub use policy::{Backoff, Lease, Policy, TimeLimit};
pub use queue::{Queue, QueueOf};
pub use queues::{Queues, QueuesBuilder, Sender, Sent};
pub use runner::{Finished, PreparedRunner, Progress, QueueHealth, Runner, RunnerHandle, Verdict, Watch, Why};
pub use settings::Settings;
pub use task::{NewTask, Task};

/// The README's program must compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}
