//! The Redis broker of anyqueue: Redis 6.2 and later, Valkey; alone, behind Sentinel, or as a cluster.
//!
//! `redis://user:password@host:6379/0`, or `rediss://…` for TLS (the feature `tls`, on by default: rustls with ring). How
//! the servers stand is recognised: a cluster from any of its nodes; of several hosts that are neither cluster nor
//! sentinels, the first master counts; the hosts are sentinels where the option `master` names what they watch. Options,
//! after `?` or in `queue.toml`: `prefix`, `master`, `sentinel_user`, `sentinel_password`, `max_payload`, `liveness`,
//! `tls_ca`, `tls_certificate`, `tls_key`.
//!
//! # What it survives
//! What Redis writes down: its append-only file decides. `appendfsync always` keeps every accepted task through a power
//! loss. `everysec`, the usual choice, may lose the last second or two to a power loss, and also to a *kill of the server*
//! at a moment when the disk is busy: Redis then answers before it has written anything, and we have seen it lose what it
//! had accepted 20 times of 20 that way. Without the file a restart loses everything since the last snapshot. What is
//! found is in the capabilities and in `queue-runner check`, which also warns of a `maxmemory-policy` that throws queues
//! away. A server that has run out of memory refuses sends with a clear error and lets workers go on: that is how room is
//! made. A replication is as good as Redis makes it: what a master had not passed on is lost in a failover.
//!
//! # How it works
//! Every verb is one script on the server, by the server's clock, for a whole batch: a send of up to 1,024 tasks, a
//! claim, a settlement or a touch of as many is one round trip. Scripts are called by their hash and sent anew to a
//! server that does not know them. A claim first makes ready what is due and takes back leases that have ended, 500 each
//! at most, so no call takes longer because much is delayed or held. A claim stops after 8 MiB of bodies.
//!
//! One connection carries all requests; a second one, made when the first consumer is, is there to be rung. A claim that
//! finds nothing leaves a mark with the moment until which it can wait; whoever brings something earlier takes the mark
//! away and publishes on the queue's channel. So an idle queue costs nothing, a busy one publishes nothing, and a waiting
//! worker begins in less than a millisecond as a rule. All waiting processes of a queue are rung at once, the first one
//! gets the task. As a safety net, who waits looks each 15 seconds, and five times a second while it cannot be rung. An idle
//! connection is asked for a sign of life each `liveness`; requests that get no answer for twice as long have failed, and a
//! new connection is made, with pauses that grow from 50 ms to 2 s.
//!
//! # Answers that get lost
//! A request that a broken connection leaves open may have been carried out, and its error says so:
//!
//! * What a *claim* took is given back, uncounted, as soon as the server can be reached: the leases are looked through for
//!   the claim's number, 1,000 at a time. Nothing is written for that beforehand.
//! * A *settlement* that is repeated and finds its task settled is good: it was our own. Receipts are compared on the server.
//! * A *send* that is repeated with the same id makes no second task as long as the first one is there. If that was done
//!   meanwhile, the task runs a second time. Remembering the ids of tasks that have ended would prevent it; measured on
//!   Redis 7.0, it takes 70 % more of the server's time for each settlement and 127 bytes for each id, 60 MB for ten seconds
//!   of a busy queue. A worker that must not do a thing twice keeps the task's id with what it did.
//!
//! # Servers that stand together
//! In a cluster all keys of a queue are on one node; queues spread over the nodes. MOVED and ASK are followed, and while a
//! queue's keys are being moved (TRYAGAIN) requests wait, up to the request timeout. A node that is dead or silent holds up
//! its own queues only. Sentinels are all asked at once, and the first one that leads to a master counts.
//!
//! # Keys and memory
//! The keys of a queue begin with `anyqueue:{queue}`, where `anyqueue` is the option `prefix`:
//!
//! | key | what |
//! |---|---|
//! | `…` | hash: `layout`, number of the last `batch`, `paused` and `bell` (until when), in milliseconds, and `large` once a task was larger than 8 KiB; also the name of the channel |
//! | `…:tasks` | hash: 16 bytes of the id → 34 bytes (batch, when it was put and first sent, place, priority, TTR, delay) and the body |
//! | `…:ready` | sorted set of places: priority, batch, place in the batch, id; 28 bytes whose order is the order of tasks, all with score 0 |
//! | `…:delayed` | sorted set of places by the moment when they are due |
//! | `…:reserved` | sorted set of leases, a claim's number and a place, by the moment when they end |
//! | `…:held` | sorted set of places in the order in which they were held |
//! | `…:counts` | hash: id → how often it was lost, timed out, released, held, kicked; only of tasks to which that has happened |
//!
//! Numbers are big-endian. Priorities are exact, and order within a priority is that of the server's batch numbers. A
//! task takes its body and about 260 bytes while it waits, 310 while it is reserved (measured on Redis 7.0 with 200,000
//! tasks and bodies of 200 bytes; larger bodies are rounded up by the allocator, by a fifth at most). A task that is done
//! leaves nothing.
//!
//! # Rights
//! `~anyqueue:* resetchannels &anyqueue:* +@connection +@hash +@sortedset +@scripting +publish +subscribe +unsubscribe
//! +time +exists +info` are all that is needed, `+cluster|slots` in a cluster; `+config|get` lets `check` say how often the
//! disk is written.

mod admin;
mod bells;
mod broker;
mod claim;
mod config;
mod consumer;
mod diagnose;
mod dial;
mod discover;
mod error;
mod layout;
mod node;
mod orphans;
mod portion;
mod script;
mod servers;
mod settler;
mod storm;
#[cfg(feature = "tls")]
mod tls;

use anyqueue_core::{Capabilities, Counts, Driver, Durability, Exactness, Link};

/// The driver: `redis://localhost:6379`.
pub const DRIVER: Driver = Driver {
    name: "redis",
    schemes: &["redis", "rediss"],
    summary: "Redis 6.2 and later, Valkey; alone, behind Sentinel, or as a cluster",
    example: "redis://localhost:6379",
    options: config::OPTIONS,
    capabilities: Capabilities {
        durability: Durability::Process,
        max_payload: Some(config::MAX_PAYLOAD),
        link: Link::Network { liveness: config::LIVENESS },
        counts: Counts { oldest: Exactness::Approximate, ..Counts::EXACT },
        ..Capabilities::FULL
    },
    connect: |options| Box::pin(broker::RedisBroker::connect(options)),
};
