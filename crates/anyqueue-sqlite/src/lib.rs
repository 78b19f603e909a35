//! The SQLite broker of anyqueue: one file, many processes, nothing to install.

mod admin;
mod broker;
mod config;
mod consumer;
mod error;
mod file;
mod reader;
mod schema;
mod shared;
mod store;
mod wake;
mod writer;

use anyqueue_core::{Capabilities, Driver, Durability, Link};

/// The driver: `sqlite:./queue.db`.
pub const DRIVER: Driver = Driver {
    name: "sqlite",
    schemes: &["sqlite"],
    summary: "one file, many processes, nothing to install",
    example: "sqlite:./queue.db",
    options: config::OPTIONS,
    capabilities: Capabilities {
        durability: Durability::Power,
        link: Link::File,
        max_payload: Some(config::MAX_PAYLOAD),
        ..Capabilities::FULL
    },
    connect: |options| Box::pin(broker::SqliteBroker::connect(options)),
};
