//! The Redis broker of anyqueue.

mod admin;
mod bells;
mod broker;
mod config;
mod consumer;
mod diagnose;
mod dial;
mod error;
mod layout;
mod node;
mod script;
mod servers;
mod settler;
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
