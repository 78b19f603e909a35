//! Checksums of a tree: one task per file, hashed by as many worker processes as you like.
//!
//! ```text
//! checksum-tree --send ~/.cargo/registry/src    # one task per file
//! checksum-tree --work                          # until a signal stops it; start several
//! checksum-tree --drain                         # until nothing is left
//! checksum-tree --show                          # what is known so far, like sha256sum
//! ```
//!
//! A worker that dies in the middle loses nothing: its tasks come back when their leases end. Such a task may have been
//! finished already, so a file may be hashed twice. That is what *at least once* means, and it is why the results are
//! written so that doing it twice changes nothing.

mod sums;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyqueue::{NewTask, Queue, Queues, Runner, Settings, Task};
use sums::Sums;

const USAGE: &str = "write `checksum-tree --send DIR`, `--work`, `--drain` or `--show`";
/// Tasks sent in one request.
const BATCH: usize = 1000;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    run().await.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

async fn run() -> Result<ExitCode, AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--send", tree] => send(Path::new(tree)).await,
        ["--work"] => work(false).await,
        ["--drain"] => work(true).await,
        ["--show"] => {
            print!("{}", sums::show()?);
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(USAGE.into()),
    }
}

async fn send(tree: &Path) -> Result<ExitCode, AnyError> {
    let queues = Queues::connect(Settings::load()?).await?;
    let queue = queues.queue(&queue())?;
    let tree = tree.canonicalize().map_err(|e| format!("{} cannot be read: {e}", tree.display()))?;
    let files = sums::files(&tree)?;
    for batch in files.chunks(BATCH) {
        // A short time to run brings the tasks of a killed worker back soon. A file that takes longer is no problem:
        // the runner renews the lease for as long as the worker is alive.
        let task = |file: &String| NewTask::new("sum", file).ttr(Duration::from_secs(3));
        for sent in queue.send_all(batch.iter().map(task).collect()).await {
            sent?;
        }
    }
    println!("sent {} tasks", files.len());
    queues.close().await?;
    Ok(ExitCode::SUCCESS)
}

async fn work(drain: bool) -> Result<ExitCode, AnyError> {
    // Hashing keeps a core busy, so it belongs on a thread for blocking code: `worker_blocking`.
    let sums = Queue::new(queue(), Sums::open()?).worker_blocking("sum", hash);
    let runner = Runner::from_settings(Settings::load()?).queue(sums);
    let finished = if drain { runner.drain() } else { runner }.run().await?;
    println!("{finished}");
    Ok(ExitCode::from(finished.exit_code()))
}

/// The queue to use: `default`, unless the environment names another one of queue.toml.
fn queue() -> String {
    std::env::var("CHECKSUM_QUEUE").unwrap_or_else(|_| "default".into())
}

/// An error here is a failed attempt: the runner tries again with back-off, and holds the task when that does not help.
fn hash(sums: Arc<Sums>, task: Task<String>) -> std::io::Result<()> {
    let sum = sums::sum(Path::new(&task.data))?;
    sums.note(&sum, &task.data)
}
