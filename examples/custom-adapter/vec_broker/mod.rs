//! A broker made of vectors: an adapter as short as it can be while it keeps every rule.
//!
//! `vec:name` is shared by all that connect with this name in one process. Every look at a queue walks through all of
//! its tasks, which is why it is an example and `anyqueue-memory` is not like it.

mod admin;
mod broker;
mod consumer;
mod tasks;

use std::sync::Arc;

use anyqueue::core::{Broker, Capabilities, Death, Driver};

use broker::VecBroker;

/// What is registered.
pub(crate) const DRIVER: Driver = Driver {
    name: "vec",
    schemes: &["vec"],
    summary: "tasks in a vector of this process; an example",
    example: "vec:name",
    options: &[],
    // What differs from the best that a broker can be. Whatever is claimed here is tried by the suite.
    capabilities: Capabilities { max_payload: Some(1 << 20), death: Death::WithBroker, ..Capabilities::FULL },
    connect: |options| Box::pin(async move { VecBroker::connect(options).map(|broker| Arc::new(broker) as Arc<dyn Broker>) }),
};
