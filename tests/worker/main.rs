//! The worker process of the end-to-end tests. What it does it notes in a file, one line per event, so that a test sees
//! what happened whether the process lived on or not.
//!
//! The file's name is in `TEST_JOURNAL`, the queue's in `TEST_QUEUE`; everything else comes from queue.toml and the
//! environment, as in any program.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyqueue::{Outcome, Queue, Runner, Settings, Task};
use serde::Deserialize;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The data of every test task.
#[derive(Debug, Deserialize)]
struct Data {
    /// Its number among the tasks of the test.
    n: u64,
    /// Ends as held.
    #[serde(default)]
    hold: bool,
}

#[derive(Debug)]
struct Journal(File);

impl Journal {
    /// One write of one line: it is there whole or not at all, whatever happens to the process.
    fn note(&self, event: &str, task: &Task<Data>) -> io::Result<()> {
        let line = format!("{event} {} {} {} {}\n", task.data.n, task.id(), task.attempt(), std::process::id());
        (&self.0).write_all(line.as_bytes())
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, AnyError> {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let journal = OpenOptions::new().create(true).append(true).open(std::env::var("TEST_JOURNAL")?)?;
    let handler = Queue::new(std::env::var("TEST_QUEUE")?, Journal(journal)).worker("note", note).worker("die", die);
    let handler = handler.worker("wait", wait).worker("block", block);
    let finished = Runner::from_settings(Settings::load()?).queue(handler).run().await?;
    println!("{finished}");
    Ok(ExitCode::from(finished.exit_code()))
}

/// Notes the task and is done with it.
async fn note(journal: Arc<Journal>, task: Task<Data>) -> io::Result<Outcome> {
    journal.note("done", &task)?;
    Ok(if task.data.hold { Outcome::hold("as its data asks") } else { Outcome::done() })
}

/// Keeps a thread of the runtime for three times the task's TTR, as no handler should and some do.
async fn block(journal: Arc<Journal>, task: Task<Data>) -> io::Result<()> {
    std::thread::sleep(Duration::from_secs(9));
    journal.note("done", &task)
}

/// Takes the whole process with it.
async fn die(journal: Arc<Journal>, task: Task<Data>) -> io::Result<()> {
    journal.note("died", &task)?;
    std::process::abort()
}

/// Waits until the test puts a file there for this process.
async fn wait(journal: Arc<Journal>, task: Task<Data>) -> io::Result<()> {
    journal.note("began", &task)?;
    let go = format!("go-{}", std::process::id());
    while !Path::new(&go).exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    journal.note("done", &task)
}
