//! The contract between anyqueue and its brokers.
//!
//! This crate holds the words (task, queue, receipt, settlement, state, priority), the four traits that an adapter
//! implements ([`Broker`], [`Consumer`], [`Settler`], [`Admin`]), what a broker can do ([`Capabilities`]), the wire
//! form ([`Wire`]) and the errors. It has no runtime and does no I/O, so an adapter is free in both.
//!
//! An adapter never looks into a body: [`Incoming`] is the one place that reads a delivery and builds the body that
//! comes next. That is why a [`Settlement`] carries a whole [`Envelope`]: a broker that has to publish anew has all of it
//! at hand and keeps no copy.

mod admin;
mod broker;
mod capabilities;
mod driver;
mod error;
mod incoming;
mod names;
mod options;
pub mod priority;
mod requirements;
mod task;
pub mod time;
mod wire;

pub use admin::{Figure, Finding, Page, Paused, Peeked, Severity, State, Stats, TaskInfo, Which};
pub use async_trait::async_trait;
pub use broker::{Admin, Broker, BrokerInfo, Consumer, Declared, DeliveryFilter, Drift, Settler};
pub use bytes::Bytes;
pub use capabilities::{Batch, Bounds, Capabilities, Counts, Death, Durability, Exactness, Fencing, Link, Order, Support};
pub use driver::{BrokerUrl, ConnectOptions, Connecting, Create, Driver, OptionSpec, has_login, is_address, quoted};
pub use error::{BoxError, Effect, Error, ErrorKind, Result, chain};
pub use incoming::{Defaults, Incoming};
pub use names::{QueueName, TaskId, nearest, suggest};
pub use options::Options;
pub use priority::{Levels, PriorityRange};
pub use requirements::Requirements;
pub use task::{Accepted, ConsumeOptions, Delivery, Envelope, NativeFacts, Receipt, Settlement, Touch};
pub use time::{BoxFuture, Clock, Moment, steps_up};
pub use wire::{Data, HeldNote, Wire};
