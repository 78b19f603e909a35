//! The memory broker: the reference adapter, and the folder to copy for a new one.
//!
//! `memory:` is a broker of its own for each connection; `memory:name` is shared by all that connect with this name in
//! one process, and lives as long as one of them does. Nothing survives the process.
//!
//! Every verb is native: each of the 2³² priorities is a level, order within a level is first in first out, receipts are
//! compared, figures are exact. All waiting goes by the [`Clock`](anyqueue_core::Clock) given at connect, so a test that
//! moves its clock sees delays, leases and pauses of hours in milliseconds. A store shared by name goes by the clock of
//! the first that connected.
//!
//! The rooms: `config` (settings), `broker` (connect, declare, send), `consumer` (reserve, settle, touch), `admin` (the
//! operator's verbs), `store` (queues by name), and for the tasks themselves `queue`, `ready`, `task`, `waiters`. A call
//! takes one lock for its whole batch and never waits while it holds it; waiting consumers are rung, nobody polls.

mod admin;
mod broker;
mod config;
mod consumer;
mod queue;
mod ready;
mod store;
mod task;
mod waiters;

use std::sync::Arc;

use anyqueue_core::{Broker, Capabilities, ConnectOptions, Death, Driver};

use crate::broker::Memory;

/// The memory broker.
pub const DRIVER: Driver = Driver {
    name: "memory",
    schemes: &["memory"],
    summary: "tasks live in this process and end with it; for tests and for work that may be lost",
    example: "memory:",
    options: config::OPTIONS,
    capabilities: Capabilities { death: Death::WithBroker, ..Capabilities::FULL },
    connect: |options: ConnectOptions| {
        Box::pin(async move { Memory::connect(&options).map(|broker| Arc::new(broker) as Arc<dyn Broker>) })
    },
};
