//! The protocol of beanstalkd 1.12: all its commands, all its replies.
//!
//! Source: `doc/protocol.txt` of beanstalkd. Nothing here does I/O, and no bytes that a server may send make it panic,
//! loop or ask for memory: what is no reply is [`Malformed`].

mod command;
mod reply;
mod stats;

pub use command::Command;
pub use reply::{Malformed, Refusal, Reply, decode};
pub use stats::{JobState, JobStats, Yaml};
