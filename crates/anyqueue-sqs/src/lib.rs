//! The Amazon SQS broker of anyqueue.

mod admin;
mod api;
mod broker;
mod config;
mod consumer;
mod diagnose;
mod error;
mod feed;
mod held;
mod hub;
mod inbox;
mod lease;
mod lines;
mod marker;
mod message;
mod names;
mod send;
mod settle;
mod slip;
mod tend;
mod walk;

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::time::{MAX_DELAY, MAX_TTR};
use anyqueue_core::{
    Batch, Bounds, Broker, Capabilities, ConnectOptions, Counts, Death, Driver, Durability, Exactness, Fencing, Levels, Link,
    Order, Support, priority,
};

use crate::broker::Sqs;

/// SQS counts in seconds.
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) const PRIORITY: &str =
    "each band is an SQS queue; SQS may overlook an urgent task for a moment, since a receive asks some of its servers only";
pub(crate) const FIFO_DELAY: &str =
    "a FIFO queue delays no single message: the task's group waits with it while a worker hides it";
pub(crate) const FIFO_DEATHS: &str = "looks, releases and waits for a delay count too where another process made them";

pub(crate) const CAPABILITIES: Capabilities = Capabilities {
    priority: Support::Emulated(Levels::Bands(priority::THREE_BANDS), PRIORITY),
    priority_ranges: Support::Emulated((), "whole bands only, since each is a queue of its own"),
    delay: Support::Emulated(
        Bounds { max: MAX_DELAY, step: SECOND },
        "SQS itself counts up to 15 minutes; beyond, whoever works on the queue sends the task on four times an hour",
    ),
    ttr: Support::Native(Bounds { max: MAX_TTR, step: SECOND }),
    touch: Support::Native(Some(MAX_TTR)),
    retry: Support::Emulated((), "a new message is sent and then the old one deleted: a crash in between makes a duplicate"),
    release: Support::Emulated(
        (),
        "a copy is sent and then the old one deleted: showing it again would look like a worker's death",
    ),
    hold: Support::Emulated(
        (),
        "held tasks are in the SQS queue `<queue>__held`, which keeps them for 14 days, and longer while a worker runs to renew them",
    ),
    delete_held: Support::Emulated((), "all held tasks are taken in turn until the id is found, and put back"),
    delete_waiting: Support::Needs((), "a task log: SQS finds no message by an id"),
    peek: Support::Emulated(
        (),
        "a look takes ready tasks for a moment; other processes take it for a death, so their next run is alone; what is delayed or reserved is not seen",
    ),
    info: Support::Needs((), "a task log: SQS finds no message by an id"),
    pause: Support::Emulated((), "a tag of the queue, which our workers read before they hand out tasks; other clients do not"),
    deaths: Support::Emulated((), "a look from another process counts as one"),
    order: Order::Loose,
    durability: Durability::Power,
    batch: Batch { send: 160, reserve: 160, settle: 160 },
    max_payload: Some(lines::LARGEST - slip::ROOM),
    counts: Counts {
        ready: Exactness::Approximate,
        delayed: Exactness::Approximate,
        reserved: Exactness::Approximate,
        held: Exactness::Approximate,
        oldest: Exactness::Unknown,
    },
    fencing: Fencing::Deadline(
        "a settle that is on its way when the lease ends may delete a task that runs again, or leave it: it is done twice",
    ),
    // A request that waits for tasks is given up after this twice: until then, a dead connection looks like an empty queue.
    link: Link::Network { liveness: Duration::from_secs(15) },
    death: Death::AfterLease,
    frozen_bound: anyqueue_core::time::DEFAULT_TTR,
    settle_window: Duration::ZERO,
    same_id: Support::Needs((), "a task log: SQS takes every message of a standard queue as a new one"),
    group: Support::Needs((), "`fifo = true` for the queue"),
    unique: Capabilities::FULL.unique,
    max_queue_name: None,
};

/// The driver: `sqs://eu-west-1`.
pub const DRIVER: Driver = Driver {
    name: "sqs",
    schemes: &["sqs"],
    summary: "Amazon SQS, standard and FIFO queues, and servers that speak its protocol",
    example: "sqs://eu-west-1",
    options: config::OPTIONS,
    capabilities: CAPABILITIES,
    connect: |options: ConnectOptions| {
        Box::pin(async move { Sqs::connect(options).await.map(|broker| Arc::new(broker) as Arc<dyn Broker>) })
    },
};
