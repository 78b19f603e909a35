//! The Amazon SQS broker of anyqueue: standard and FIFO queues.
//!
//! `sqs://eu-west-1`, or `sqs://eu-west-1/staging-` with a prefix for all names; `sqs:` takes the region from where the
//! credentials come from; `sqs://host:port` is another server that speaks SQS's protocol. Options, after `?` or in
//! `queue.toml`: `endpoint`, `profile`, `region`, `wait`, `requests`, `store`; and, for single queues too, `bands` and `fifo`.
//!
//! # Credentials
//! Found as the AWS SDK finds them: environment variables, profiles of `~/.aws` with assumed roles and credential
//! processes, web identity, the container's role, the machine's role. Left out, to keep the build lean: single sign-on and
//! `aws login` (both work by a profile's `credential_process = aws configure export-credentials`). rustls with ring is the
//! only TLS and crypto in it.
//!
//! # A queue on SQS
//! | SQS queue | what is in it |
//! |---|---|
//! | `invoices` | priorities 513 to 1024, the default among them; where other clients send and look |
//! | `invoices__p512` | priorities up to 512 |
//! | `invoices__rest` | priorities above 1024 |
//! | `invoices__held` | what is held |
//!
//! `bands = 5` has `__p0` and `__p2048` too, `bands = 1` only the plain one. A dot in a name is `__d` on SQS, and a name that
//! becomes too long ends in its digest. The name of a FIFO queue ends in `.fifo`. All are made with a retention of 14 days;
//! an existing one that differs is reported and used as it is. After a change of `bands`, workers move what is in bands of
//! the old settings to those of the new ones; after a change of `fifo`, such tasks are reported only: let workers with the
//! old setting finish them. Where the plain queue has a redrive policy, SQS itself
//! moves tasks to a dead-letter queue; those are listed, kicked and deleted with the held ones.
//!
//! The body of a message is the task. Beside it is one message attribute, `anyqueue`, with priority, TTR and what else must
//! be known without reading bodies (`slip.rs` has its form). A message without it is fine: it has the defaults of its queue.
//!
//! # How it works
//! A worker looks into the most urgent band first. Only when all bands are empty does it wait, for all of them at once, each
//! with a request of its own; so an empty queue delays no other, and a task is there as soon as SQS shows it. A receive hides
//! tasks for the queue's TTR; those of another TTR, and what came at the end of a long wait, are renewed in one request of
//! ten. What a waiting request takes is hidden for 3 seconds first: if the connection is dead, nobody learns of it. What
//! others put into a band without a priority has that of the band: 512 in `invoices__p512`, 2048 in `invoices__rest`.
//!
//! A retry, a hold and a release send a copy and then delete. (Showing the same message again would be cheaper by a request,
//! but it would count as a reception: to every other process it would look as if a worker had died with it, and after each
//! deploy all given-back tasks would run alone, one after another.) Delays beyond 15 minutes are made of legs of that length,
//! in the same queue: whoever receives a task too early sends it on. The last leg is SQS's own, so it is not early.
//!
//! A pause is a tag of the plain queue. It is read before the first task, then about every three seconds while tasks come,
//! once for all consumers of a process, and each second while the queue is paused; where it cannot be read within a second,
//! what was read last holds. A purge of delayed tasks is a tag too, since SQS shows them to nobody: workers drop them as
//! they come.
//!
//! # Larger data
//! `store = "file:/path"` names a folder for data that is too large for a message: more than 1 MiB, or the queue's own
//! `MaximumMessageSize`, up to 64 MiB. Smaller tasks do not touch it. All that send to a queue or work on it need the same folder:
//! on several machines, a shared file system (NFS, EFS). Its rights are what protects the data; where it is missing and what
//! it stands in is there, it is made for its owner alone.
//!
//! Before the message is sent, the data is in a file `<uuid>.task`, and file and folder are flushed to the disk. The message is
//! the task in its wire form with `{"file":"…","bytes":…}` as its data, which is what listings show; a word in the attribute
//! `anyqueue` makes it a claim on that file, so that no other client's task is ever taken for one. A worker reads the file when
//! it reserves the task. Retries, releases, holds, kicks and delays pass the file on to the next message; it is removed once SQS
//! has confirmed that the last one is deleted.
//!
//! * A send that fails removes its file. One that may have worked leaves it, as do a crash before the message is sent and SQS's
//!   own purge: workers remove files that were not used for 30 days. SQS keeps no message for more than 14, and each send of
//!   a message, a renewal of a held one too, renews the time of its file.
//! * A task whose file is gone, and any that a worker without `store` meets, is held with a reason that says what to set or
//!   to bring back; kick it then. Where SQS delivers a task twice and the first run is done, the second finds no file, and is
//!   held too. While the folder cannot be read at all, tasks are given back for 15 seconds, uncounted.
//! * Workers of other systems find the name of a file where they look for data: let only ours work on such a queue.
//!
//! # What SQS does not promise
//! * A message may be delivered twice. A settlement cannot be compared with a newer reservation; the local deadline decides.
//! * A receive without a wait asks some of SQS's servers only: for a moment an urgent task may be overlooked.
//! * Figures are approximate; the age of the oldest task is in CloudWatch only, so it is unknown here.
//! * SQS deletes what has waited for 14 days. Held tasks, and those of a dead-letter queue, are sent anew after seven by any
//!   worker of their queue, also by one that lives for moments only. Ready tasks are not: a queue without workers, or one
//!   that is paused for 14 days, loses them.
//! * A purge of all states is SQS's own, which may delete what is sent in the next minute too. Any other one takes what is
//!   there, ten at a time.
//! * A listing takes held tasks for as long as it walks. Another one at the same time sees fewer; a kick by id that finds
//!   nothing may be tried again.
//! * 120,000 tasks of one SQS queue may be reserved at once, 20,000 of a FIFO queue: beyond, reserving is an error that says so.
//! * The largest task has 8.5 KiB less than `MaximumMessageSize`: the attribute counts, and a retry or a hold writes counters
//!   and a reason into the body. What grows beyond that goes into the folder of `store`; without one it is held as it came, without
//!   a reason, and a warning says so.
//!
//! # FIFO queues
//! `fifo = true` for a queue. Tasks of one group (`group` of a new task, or each its own) come one after another; a task's id
//! is its deduplication id, or its unique key is, so a repeated send within five minutes is one task. A retry goes behind its
//! group. Of a batch, nothing is sent behind a request that failed. SQS delays no single message of such a queue: the first
//! worker that receives it hides it until it is due, and its group waits too; 13 days is the longest delay there.
//!
//! # Rights
//! A worker, on `arn:aws:sqs:REGION:ACCOUNT:PREFIX*`:
//!
//! ```json
//! {
//!   "Version": "2012-10-17",
//!   "Statement": [{
//!     "Effect": "Allow",
//!     "Action": ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ListQueueTags", "sqs:ReceiveMessage",
//!                "sqs:SendMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"],
//!     "Resource": "arn:aws:sqs:eu-west-1:123456789012:staging-*"
//!   }]
//! }
//! ```
//!
//! A dead-letter queue that has another name is a resource of its own. Who runs `queue-runner init` makes queues and needs
//! nothing of their tasks:
//!
//! ```json
//! {
//!   "Version": "2012-10-17",
//!   "Statement": [{
//!     "Effect": "Allow",
//!     "Action": ["sqs:CreateQueue", "sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ListQueueTags"],
//!     "Resource": "arn:aws:sqs:eu-west-1:123456789012:staging-*"
//!   }]
//! }
//! ```
//!
//! A sender needs `GetQueueUrl`, `GetQueueAttributes` and `SendMessage`. Operators need what a worker does, `sqs:TagQueue`
//! and `sqs:UntagQueue` to pause and to purge, and `sqs:PurgeQueue` to empty a queue with all that is reserved. Without `GetQueueAttributes` or `ListQueueTags` work goes on: figures, limits
//! and pauses are then not known, and `queue-runner check` says so. Queues that are encrypted with a key of your own need
//! `kms:GenerateDataKey` and `kms:Decrypt` on it.
//!
//! # What it costs to build
//! The SDK is 150 crates more, and 47 s more of a clean debug build of `queue-runner` on two cores (91 s with `memory` and `sqs`
//! alone, 44 s without). It is a feature like any other: `--no-default-features --features …` leaves it out.
//!
//! # Tests
//! They run on two servers that are not SQS, ministack and fauxqs. With `ANYQUEUE_TEST_SQS_URL=sqs://eu-west-1/try-` the
//! conformance suite runs on SQS itself, all but the trials that kill a server (those stay here) and the two that cut
//! connections: `cargo test -p anyqueue-sqs --test conformance -- --skip c15`. It creates queues and leaves them there.

mod admin;
mod api;
mod broker;
mod claim;
mod config;
mod consumer;
mod diagnose;
mod error;
mod feed;
mod folder;
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
mod skew;
mod slip;
mod strays;
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
    "a FIFO queue delays no single message: the task's group waits with it while a worker hides it, for 13 days at most";
/// A day less than SQS keeps a message.
pub(crate) const FIFO_LONGEST: Duration = Duration::from_secs(13 * 86_400);
pub(crate) const FIFO_UNIQUE: &str =
    "SQS takes a key once in five minutes, whether the first task still waits or is done; a later one is a new task";
pub(crate) const FIFO_SAME_ID: &str = "SQS knows an id again for five minutes, unless the task has a unique key";
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
    pause: Support::Emulated(
        (),
        "a tag of the queue, which our workers read every few seconds, and other clients do not; SQS deletes what waits for 14 days, paused or not",
    ),
    deaths: Support::Emulated((), "a look from another process counts as one"),
    order: Order::Loose,
    durability: Durability::Power,
    durability_caveat: None,
    batch: Batch { send: 160, together: 10, reserve: 160, settle: 160 },
    max_payload: Some(lines::LARGEST - slip::ROOM - lines::HEADROOM),
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
