//! A beanstalkd with its binlog on.

use anyqueue_core::BoxError;

use crate::server::{Launch, Process};

/// How a private beanstalkd is started: each write is synced, and `options` come last, so that they win.
pub fn launch(options: &[&str]) -> Launch {
    Launch::new("beanstalkd").args(["-l", "127.0.0.1", "-p", "{port}", "-b", "{dir}", "-f", "0"]).args(options.iter().copied())
}

/// Starts a private beanstalkd.
///
/// # Errors
/// If it is not installed or does not start.
pub async fn start(options: &[&str]) -> Result<Process, BoxError> {
    Process::start(launch(options)).await
}
