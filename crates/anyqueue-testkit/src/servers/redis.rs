//! A redis-server with its append-only file on.

use std::path::PathBuf;

use anyqueue_core::BoxError;

use crate::server::{Launch, Process, Ready};

/// Names another server to test than the `redis-server` on the path: an older one, or a Valkey.
pub const SERVER: &str = "ANYQUEUE_TEST_REDIS_SERVER";

/// Starts a `redis-server` in a folder of its own, on a free port of this machine: no snapshots, and an append-only file
/// that is written before each answer. (With `appendfsync everysec`, Redis answers first while an earlier write is still on
/// its way to the disk; a kill at that moment loses what was answered.) What follows in `settings` wins over that:
/// `["--maxmemory", "10mb"]`, say.
///
/// # Errors
/// If there is no `redis-server` on the path, or it does not become ready; its output is in the text.
pub async fn start<T: Into<String>>(settings: impl IntoIterator<Item = T>) -> Result<Process, BoxError> {
    Process::start(launch().args(settings)).await
}

/// The command of [`start`]: for tests that change how it is started.
pub fn launch() -> Launch {
    let place = ["--bind", "127.0.0.1", "--port", "{port}", "--dir", "{dir}"];
    let durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
    Launch::new(program()).args(place).args(durable).ready(Ready::Output("Ready to accept connections".into()))
}

/// The server's program: what [`SERVER`] names, or `redis-server`.
pub fn program() -> PathBuf {
    std::env::var_os(SERVER).map_or_else(|| "redis-server".into(), PathBuf::from)
}
