//! Workers in any language: one child process per task.
//!
//! The data is on standard input: JSON, or the bytes of a binary task. The environment has `ANYQUEUE_ID`, `_QUEUE`,
//! `_TASK`, `_STORE`, `_ATTEMPT` and `_DEADLINE` (seconds since 1970, when the lease ends if it is not renewed). No shell is
//! involved and nothing of a task is ever on a command line. Exit code 0 is done, 75 (`EX_TEMPFAIL` of sysexits) retry, 69
//! (`EX_UNAVAILABLE`) hold; any other is an error whose reason is the end of standard error.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{BoxFuture, Bytes, Data, Error, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, Command};

use crate::outcome::Outcome;
use crate::queue::Worker;
use crate::runner::Attempt;

/// How long a child has between TERM and KILL.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How much of standard error becomes the reason.
const REASON: usize = 4096;
const RETRY: i32 = 75;
const HOLD: i32 = 69;

/// A worker that is a command.
pub(crate) struct ExecWorker {
    program: String,
    arguments: Vec<String>,
}

impl ExecWorker {
    pub(crate) fn new(command: &[String]) -> Result<Self> {
        match command.split_first() {
            Some((program, arguments)) if !program.is_empty() => {
                Ok(Self { program: program.clone(), arguments: arguments.to_vec() })
            }
            _ => Err(Error::config("`exec` is empty; write a program and its arguments, as in `exec = [\"./thumb.sh\"]`")),
        }
    }

    fn command(&self, attempt: &Attempt) -> Command {
        let task = &attempt.incoming;
        let deadline = attempt.clock.wall() + attempt.remaining();
        let deadline = deadline.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut command = Command::new(&self.program);
        // Settings may come from the environment, and passwords with them: they are the runner's and not the program's.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ANYQUEUE__")) {
            command.env_remove(name);
        }
        command
            .args(&self.arguments)
            .env("ANYQUEUE_ID", task.id.to_string())
            .env("ANYQUEUE_QUEUE", attempt.queue())
            // A NUL cannot be in an environment; the name that reached a worker has none, a store might.
            .env("ANYQUEUE_TASK", &task.wire.task)
            .env("ANYQUEUE_STORE", task.wire.store.replace('\0', "\u{FFFD}"))
            .env("ANYQUEUE_ATTEMPT", task.attempt().to_string())
            .env("ANYQUEUE_DEADLINE", deadline.to_string())
            .stdin(Stdio::piped())
            // Standard output is for what the runner itself says, `--json` above all.
            .stdout(Stdio::from(std::io::stderr()))
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

impl Worker for ExecWorker {
    fn start(&self, attempt: Arc<Attempt>) -> Result<BoxFuture<'static, Outcome>, String> {
        let data = match &attempt.incoming.wire.data {
            Data::Json(bytes) | Data::Binary(bytes) => bytes.clone(),
            Data::Unreadable(_) => return Err("the body cannot be read".into()),
        };
        let (mut command, program) = (self.command(&attempt), self.program.clone());
        Ok(Box::pin(async move {
            match command.spawn() {
                Ok(child) => run(child, data, attempt).await,
                Err(e) => Outcome::failed(format!("cannot start `{program}`: {e}")),
            }
        }))
    }

    fn blocks(&self) -> bool {
        true
    }
}

/// Kills the child's whole group if the future is dropped.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may have ended by itself: then there is nothing to do.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

async fn run(mut child: Child, data: Bytes, attempt: Arc<Attempt>) -> Outcome {
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let stdin = child.stdin.take();
    // A child that does not read its input is no error: feeding it goes on beside its run and ends with it.
    let feed = tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&data).await;
        }
    });
    let stderr = tokio::spawn(last_words(child.stderr.take()));
    let status = tokio::select! {
        status = child.wait() => Some(status),
        _ = attempt.cancel.wait() => None,
    };
    let status = match status {
        Some(status) => status,
        None => {
            group.signal(Signal::TERM);
            match tokio::time::timeout(PATIENCE, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    group.signal(Signal::KILL);
                    child.wait().await
                }
            }
        }
    };
    // What the child left behind in its group goes with it, so that standard error closes.
    group.signal(Signal::KILL);
    group.0 = None;
    feed.abort();
    // Something that left the group may hold standard error open: the task does not wait for it.
    let words = match tokio::time::timeout(Duration::from_secs(1), stderr).await {
        Ok(words) => words.unwrap_or_default(),
        Err(_) => String::new(),
    };
    match status {
        Ok(status) => outcome(status, &words),
        Err(e) => Outcome::failed(format!("cannot wait for the command: {e}")),
    }
}

async fn last_words(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut kept = Vec::new();
    let mut chunk = [0u8; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..count]);
        let surplus = kept.len().saturating_sub(REASON);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}

fn outcome(status: ExitStatus, words: &str) -> Outcome {
    let reason = |what: String| if words.is_empty() { what } else { format!("{what}: {words}") };
    match status.code() {
        Some(0) => Outcome::done(),
        Some(RETRY) => Outcome::failed(reason("the command asked for a retry".into())),
        Some(HOLD) => Outcome::hold(reason("the command asked to be held".into())),
        Some(code) => Outcome::failed(reason(format!("exit code {code}"))),
        None => Outcome::failed(reason(format!("ended by {status}"))),
    }
}
