//! A gearmand that keeps its background jobs in a file.

use anyqueue_core::BoxError;

use crate::server::{Launch, Process};

/// How a private gearmand is started: with its libsqlite3 module, unless `options` say another.
pub fn launch(options: &[&str]) -> Launch {
    let place = ["--config-file=/dev/null", "-L", "127.0.0.1", "-p", "{port}", "-l", "stderr", "-P", "{dir}/pid"];
    let store = ["-q", "libsqlite3", "--libsqlite3-db={dir}/queue.sqlite"];
    let own = options.iter().any(|option| *option == "-q" || option.starts_with("--queue-type"));
    Launch::new("gearmand").args(place).args(store.into_iter().filter(|_| !own)).args(options.iter().copied())
}

/// The arguments of a gearmand that keeps everything in memory.
pub const BUILTIN: &[&str] = &["--queue-type=builtin"];

/// Starts a private gearmand.
///
/// # Errors
/// If it is not installed or does not start.
pub async fn start(options: &[&str]) -> Result<Process, BoxError> {
    Process::start(launch(options)).await
}
