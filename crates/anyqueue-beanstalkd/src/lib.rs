//! The beanstalkd broker of anyqueue.
//!
//! `beanstalkd://host:11300`, or several servers in one URL: `beanstalkd://a,b:11301`. A queue is the tube of its name, so
//! tasks that any other client puts there run like ours, and its workers can read ours. beanstalkd 1.12 or later.
//!
//! The contract is beanstalkd's own model; what it lacks is built on it. Held tasks are in a companion tube, since a
//! bury cannot change the body that has the reason in it; a counted retry is a put and then a delete, for the same cause.
//! Jobs that others buried are listed, kicked and deleted too, without being reserved: a listing that dies changes
//! nothing. beanstalkd finds jobs by its own numbers only, so listings and searches by id ask for each number in turn.
//!
//! Good to know:
//! * A task's figures (`stats-job`) are asked for with each reservation: they tell its tube, its TTR and whether a worker
//!   died with it. That is one command more per task than the least, and what bounds the speed of a drain.
//! * `info` shows the server's own counts. A job that one connection passed to another was reserved and released once more.
//! * A connection that goes dead without a word while it waits may have been given a task, which is back when its TTR is
//!   over. The server may also keep the task of a *frozen* worker until that worker goes on or ends.
//! * A task that has no room left for its reason or its count, since it is as large as `-z` allows, is buried as it is: it
//!   counts as held, and why is in the log alone.
//! * A pause is the server's own, and is noted in the tube `<queue>;pause`: workers of ours keep to the note where the server has
//!   forgotten its pause, and pause it again. Of several servers' notes the latest holds. A pause without an end is one of ten
//!   years: a tube that is paused for just so long (`pause: 315360000`) goes on if no note says so. Others' pauses stay.
//! * With several servers each has its own line: workers take from them in turn. One that does not answer is tried in the
//!   background; a question to which the others know no answer fails meanwhile, since it may know one.
//!
//! The rooms: `wire` (the protocol), `request`, `link` and `stream` (one connection, many requests under way), `server` and
//! `pool` (the connections to one server), `hub` (what all parts share), `wait` (how a queue waits), `lease` (what is reserved), `feed` and
//! `consumer` (reserving), `settle`, `send`, `mark` (declaring), `pause` and `word`, `walk`, `first`, `held` and `admin` (the operator's verbs).

mod admin;
mod broker;
mod config;
mod consumer;
mod error;
mod feed;
mod first;
mod held;
mod hub;
mod lease;
mod link;
mod mark;
mod pause;
mod pool;
mod request;
mod send;
mod server;
mod settle;
mod stream;
mod touch;
mod tubes;
mod wait;
mod walk;
pub mod wire;
mod word;

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::time::{MAX_DELAY, MAX_TTR};
use anyqueue_core::{
    Batch, Bounds, Broker, Capabilities, ConnectOptions, Counts, Death, Driver, Durability, Exactness, Fencing, Levels, Link,
    Order, Support,
};

use crate::broker::Beanstalkd;

const STEP: Duration = Duration::from_secs(1);

pub(crate) const CAPABILITIES: Capabilities = Capabilities {
    priority: Support::Native(Levels::Every),
    priority_ranges: Support::Needs((), "`bands = [512, …]`, the last priority of each range: each is a tube of its own"),
    delay: Support::Native(Bounds { max: MAX_DELAY, step: STEP }),
    ttr: Support::Native(Bounds { max: MAX_TTR, step: STEP }),
    touch: Support::Native(None),
    retry: Support::Emulated((), "a new job is put and then the old one deleted: a crash in between makes a duplicate"),
    release: Support::Native(()),
    hold: Support::Emulated((), "held tasks are in the tube `<queue>;held`; a crash while one moves there makes a duplicate"),
    delete_held: Support::Emulated((), SEARCH),
    delete_waiting: Support::Emulated((), SEARCH),
    peek: Support::Emulated(
        (),
        "beyond the first task, jobs are asked for by number, newest first: slow in a server with a long past",
    ),
    info: Support::Emulated((), SEARCH),
    pause: Support::Emulated(
        (),
        "a restarted server forgets it until one of our workers connects; other clients' workers may be quicker",
    ),
    deaths: Support::Native(()),
    order: Order::Fifo,
    durability: Durability::Process,
    batch: Batch { send: 1024, together: 1024, reserve: 1024, settle: 1024 },
    max_payload: Some(65_535),
    counts: Counts { oldest: Exactness::Approximate, ..Counts::EXACT },
    fencing: Fencing::Deadline(
        "a settle that is on its way when the lease ends may remove a task that runs again: it is done twice",
    ),
    link: Link::Network { liveness: config::LIVENESS },
    death: Death::AtOnce,
    // About once in five times the server forgets that a lease ends on a connection that says nothing: `prottick` (prot.c, up to
    // 1.13 at least) takes the connection out of its heap, `conn_timeout` finds that the deadline, to the microsecond, is not
    // past but now, and only `connsched` puts it back. That is called for a connection's own input and output alone (and for
    // the oldest one that waits when a job comes), so no other worker's words can help, nor can anyone else release the job.
    // Ours speak each second; a frozen one does not.
    frozen_bound: Duration::MAX,
    settle_window: Duration::ZERO,
    same_id: Support::Needs((), "a task log: beanstalkd takes every job as a new one"),
    ..Capabilities::FULL
};

const SEARCH: &str = "beanstalkd knows its own job numbers only: the id is searched job by job, newest first";

/// The beanstalkd broker.
pub const DRIVER: Driver = Driver {
    name: "beanstalkd",
    schemes: &["beanstalkd", "beanstalk"],
    summary: "tasks in the tubes of one or several beanstalkd servers, shared with clients of any language",
    example: "beanstalkd://127.0.0.1:11300",
    options: config::OPTIONS,
    capabilities: CAPABILITIES,
    connect: |options: ConnectOptions| {
        Box::pin(async move { Beanstalkd::connect(options).await.map(|broker| Arc::new(broker) as Arc<dyn Broker>) })
    },
};
