//! The Gearman broker of anyqueue.
//!
//! `gearman://host:4730`, or several job servers in one URL: `gearman://a,b:4731`. A queue is the function of its name, so
//! background jobs that any other client submits run like ours, and its workers can read ours. gearmand 1.1.20 or later,
//! started with `-q libsqlite3`; it does not tell, so `queue_type = "libsqlite3"` says it here.
//!
//! A job server gives jobs to whoever is connected and takes them back when the connection ends. All else is built on that:
//!
//! * Delayed tasks are jobs for later (`SUBMIT_JOB_EPOCH`) in the function `<queue>;delay`. No server of version 1.1 wakes
//!   anybody when one falls due, so each process that works on the queue looks once a second and moves what is due.
//! * A lease is kept by the worker's own clock. For the case that the worker is frozen, a copy of each reserved task, its
//!   *guard*, is in `<queue>;guard` and falls due when the lease ends. While the task runs, the lease's end is noted with
//!   it as its progress, so a touch costs one small packet. The task of a worker that ended finds the old guard: that is
//!   how deaths are noticed. `lease = "connection"` does without guards: two writes less for each task, and a frozen
//!   worker keeps its tasks until its connection ends.
//! * A retry, release or hold submits a new job and then ends the old one. Held tasks are in `<queue>;held`, for which
//!   there are no workers. Whoever looks at tasks reserves them for a moment.
//! * The server tells a worker nothing of priority and TTR, so they are in the unique id; the unique key of a caller is
//!   used in its place where one is asked for, and then the body is read.
//!
//! Good to know:
//! * Within one function high comes before normal and normal before low. Jobs for later would hide low ones, and are
//!   therefore kept in functions of their own.
//! * A cancelled job stays in the server's memory until it would have been due, at most twenty seconds for a guard, and is
//!   counted meanwhile. What is submitted with its unique id is taken for it and lost: so no guard has a name that others
//!   may use, and a keyed task is sent under its own id while a frozen worker has an old job of its key. Other clients do
//!   not know of that.
//! * A client that waits for a result (a foreground job) gets an empty one when its task is settled in any way.
//! * A job that somebody submitted with the unique id `-` or none at all is known by its handle, which is another one when
//!   the server has been restarted: its guard is then of no use, and a body without an id has another one.
//! * Delayed tasks with a unique key are not found by `delete` and `purge`: the server lists keys without their functions.
//! * Leases of frozen workers and delays are kept by the machines' clocks, which must agree; `queue-runner check` tells when
//!   the server's is 2 s off. A lease that ended is seen in the next second: up to 2.03 s after its end.
//! * Of several servers one that does not answer at all delays who finds nothing at the others by the connection's patience.
//! * A frozen worker's task is marked in `<queue>;late` when another takes its place, since the server counts it as running
//!   until that worker goes on or ends.
//! * Whoever is frozen or cut off in the moment in which it moves a due task, or between getting a task and guarding it,
//!   keeps it until its connection ends.
//!
//! # Who brings a task back
//!
//! A task whose lease is over is made ready by its worker, or, if that is frozen, by whoever gets its guard: submit the copy,
//! mark the task, cancel it, end the guard. If both made a copy, the second might come after the first is done, and bring
//! back a task that is. So a worker first renews the lease and then looks at the guards: who gets one afterwards sees that
//! the worker lives, who has one already is waited for, and who is through has left the mark. A guard that is gone says
//! nothing by itself. What remains is a death: of who moves a task between the copy and the end of what it was copied from,
//! or of the server there. Then the task runs twice, and is never lost.
//!
//! # What a guard costs
//!
//! Three writes for a task that is worked (guard, its end, the task's end) in place of one, each of them a transaction of
//! its own in gearmand: about a third of the speed of `lease = "connection"` where the disk decides. Cheaper ones were
//! thought through:
//!
//! * *One guard for all tasks of a reservation.* For frozen workers it would do: the server tells which of its tasks are
//!   gone, and until when the others are leased. But the guard is also how the next worker learns that the one before died.
//!   It knows the task alone, the server forgets a job's progress when it gives the job back and tells of its retries only in
//!   a list of all jobs, and so the trace must be found by the task's own name. Without it a task that ends its worker
//!   would do so for ever.
//! * *A guard only for tasks that run longer than a moment.* A worker that was frozen, or ended by its task, in that moment
//!   would have none; both are what guards are for.
//! * *Traces as foreground jobs*, which are not written to the disk and stay when their client has gone. The server throws
//!   them away with the first job that is taken from their function, and keeps them in its memory until then.
//!
//! What can be had is had: all guards of a reservation are on their way before the first is answered, they are cancelled
//! in one write, and nobody waits for that. As many tasks are reserved at once as are guarded within 0.2 s, so that leases
//! are not over before they are guarded.
//!
//! # Beside the `gearman` crate
//!
//! Of it we use packets, codec and `AdminClient`, and its `Connection` in the benchmark. What had to be added, and could be
//! of use there:
//!
//! * Requests in flight on one connection, of a client and of a worker (`link`): its `Connection` sends and receives by turns
//!   of its user, its `Client` has no `GRAB_JOB`. Could be its own; upstream the worker's loop would have to be built on it.
//! * TCP_NODELAY, a line in its `connect`: without it its `Worker` does some twenty jobs a second on a connection.
//! * An end of a job after its handler (`keeper`), several jobs on a connection, and looking again while asleep (`line`):
//!   for its `Worker`, with an answer to give later.
//! * `cancel job` for many in one write (`server`): for its `AdminClient`, which makes two writes and a wait of each.
//! * `CAN_DO_TIMEOUT` in milliseconds, as gearmand reads it; we do without. A mend there.
//! * Guards, delays, holds and marks are conventions of ours, and belong to no client.
//!
//! The rooms: `packet` and `link` (one connection, many requests under way, on the codec of the `gearman` crate), `server`
//! (the connections to one job server), `hub` (what all parts share), `names` (functions and unique ids), `send`, `line`,
//! `feed` and `consumer` (reserving), `lease` and `keeper` (what is reserved, and its end), `guard` and `mover` (what falls
//! due), `settle`, `mark` (declaring and pausing), `walk`, `admin` and `diagnose` (the operator's verbs).

mod admin;
mod broker;
mod config;
mod consumer;
mod diagnose;
mod error;
mod feed;
mod guard;
mod hub;
mod keeper;
mod lease;
mod line;
mod link;
mod mark;
mod mover;
mod names;
mod packet;
mod send;
mod server;
mod settle;
mod walk;

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::priority::GEARMAN_BANDS;
use anyqueue_core::time::{MAX_DELAY, MAX_TTR};
use anyqueue_core::{
    Batch, Bounds, Broker, Capabilities, ConnectOptions, Counts, Death, Driver, Durability, Exactness, Fencing, Levels, Link,
    Order, Support,
};

use crate::broker::Gearman;

const STEP: Duration = Duration::from_secs(1);

const COPY: &str = "a new job is submitted and then the old one ended: a crash in between makes a duplicate";

pub(crate) const CAPABILITIES: Capabilities = Capabilities {
    priority: Support::Native(Levels::Bands(GEARMAN_BANDS)),
    priority_ranges: Support::Needs(
        (),
        "a broker with more than three levels: a job server gives what is most urgent to anybody",
    ),
    delay: Support::Emulated(
        Bounds { max: MAX_DELAY, step: STEP },
        "workers look once a second for what is due by the server's clock; while none runs, nothing is moved",
    ),
    ttr: Support::Emulated(
        Bounds { max: MAX_TTR, step: STEP },
        "kept by the worker's clock; a frozen worker's task comes back by its guard, which another worker must be there to \
         see; one frozen before it could write its guard keeps its task until its connection ends",
    ),
    touch: Support::Emulated(None, "kept by the worker's clock and noted with the task"),
    retry: Support::Emulated((), COPY),
    release: Support::Emulated(
        (),
        "a new job is submitted and then the old one ended: the task goes behind the others of its level",
    ),
    hold: Support::Emulated((), "held tasks are in the function `<queue>;held`; a crash while one moves there makes a duplicate"),
    delete_held: Support::Emulated((), "all held tasks are reserved for a moment to find the one"),
    delete_waiting: Support::Emulated(
        (),
        "found in the list of all jobs of the server; only tasks that anyqueue has sent, and none with a unique key",
    ),
    peek: Support::Emulated(
        (),
        "the tasks are reserved for a moment and go behind the others of their level; delayed and reserved ones are counted and not shown",
    ),
    info: Support::Needs((), "a task log: a job server tells nothing of one task"),
    pause: Support::Emulated((), "our workers look for a mark, within half a second; other clients' workers go on"),
    deaths: Support::Emulated((), "known by the guard that was left behind; a connection that broke counts as one too"),
    unique: Support::Emulated((), "the server's unique id, until the task is put back, retried or held for the first time"),
    order: Order::Fifo,
    durability: Durability::Process,
    batch: Batch { send: 256, together: 256, reserve: 64, settle: 64 },
    max_payload: Some(config::MAX_BODY),
    counts: Counts {
        ready: Exactness::Approximate,
        delayed: Exactness::Approximate,
        reserved: Exactness::Approximate,
        held: Exactness::Exact,
        oldest: Exactness::Unknown,
    },
    fencing: Fencing::Deadline(
        "a retry or hold that is on its way when a frozen worker's lease ends leaves its copy beside the one that took over",
    ),
    link: Link::Network { liveness: config::LIVENESS },
    death: Death::AtOnce,
    frozen_bound: Duration::ZERO,
    settle_window: Duration::ZERO,
    same_id: Support::Emulated((), "recognised while the task is where it was first put, or reserved from there"),
    max_queue_name: None,
    ..Capabilities::FULL
};

/// What differs under `lease = "connection"`.
pub(crate) const CONNECTION: Capabilities = Capabilities {
    ttr: Support::Emulated(
        Bounds { max: MAX_TTR, step: STEP },
        "kept by the worker's clock; a frozen worker keeps its tasks until its connection ends",
    ),
    deaths: Support::Needs((), "`lease = \"guard\"`: without guards nobody knows that a worker ended with a task"),
    frozen_bound: Duration::MAX,
    ..CAPABILITIES
};

/// The Gearman broker.
pub const DRIVER: Driver = Driver {
    name: "gearman",
    schemes: &["gearman", "gearmand"],
    summary: "tasks as background jobs of one or several Gearman job servers, shared with clients of any language",
    example: "gearman://127.0.0.1:4730",
    options: config::OPTIONS,
    capabilities: CAPABILITIES,
    connect: |options: ConnectOptions| {
        Box::pin(async move { Gearman::connect(options).await.map(|broker| Arc::new(broker) as Arc<dyn Broker>) })
    },
};
