//! One task of a listing, for people and as JSON.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyqueue::core::{Data, Defaults, Incoming, Peeked, State, TaskId, time};
use anyqueue::settings::QueueSettings;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::out::{Out, ends, short};

/// A task as listings show it.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    id: TaskId,
    /// The broker's own id of the task; of several servers, it says which.
    native_id: Option<String>,
    queue: String,
    task: String,
    store: String,
    state: State,
    priority: u32,
    /// Seconds.
    ttr: f64,
    /// Seconds until a delayed task is due or a lease ends.
    remaining: Option<f64>,
    failed: u32,
    crashed: u32,
    /// Why it is held.
    reason: Option<String>,
    /// Milliseconds since 1970.
    held_at: Option<u64>,
    /// Attempts that failed before it was held.
    failed_before: Option<u32>,
    /// Why the body cannot be read.
    unreadable: Option<String>,
    /// As it is in the body: JSON, or what `data_encoding` says.
    data: Option<Box<RawValue>>,
    data_encoding: Option<Box<RawValue>>,
    #[serde(skip)]
    preview: String,
}

impl Shown {
    pub(crate) fn new(peeked: &Peeked, queue: &QueueSettings) -> Self {
        let defaults = Defaults { priority: queue.priority, ttr: queue.ttr };
        let read = Incoming::peeked(peeked, &queue.broker, queue.name.as_str(), defaults);
        let wire = &read.wire;
        // The wire form encodes data that is not JSON; what it writes is read back rather than encoded once more.
        let mut body: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&wire.write()).unwrap_or_default();
        let preview = match &wire.data {
            Data::Json(text) => String::from_utf8_lossy(text).into_owned(),
            Data::Binary(bytes) => format!("({} bytes)", bytes.len()),
            Data::Unreadable(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        };
        Self {
            id: read.id,
            native_id: peeked.native.id.as_deref().map(str::to_owned),
            queue: queue.name.to_string(),
            task: wire.task.clone(),
            store: wire.store.clone(),
            state: peeked.state,
            priority: read.priority,
            ttr: read.ttr.as_secs_f64(),
            remaining: peeked.remaining.map(|left| left.as_secs_f64()),
            failed: wire.failed,
            crashed: wire.crashed,
            reason: wire.held.as_ref().map(|note| note.reason.clone()),
            held_at: wire.held.as_ref().map(|note| note.at),
            failed_before: wire.held.as_ref().map(|note| note.failed),
            unreadable: read.unreadable,
            data: body.remove("data"),
            data_encoding: body.remove("data_encoding"),
            preview,
        }
    }

    fn name(&self) -> String {
        if self.unreadable.is_some() { "(unreadable)".into() } else { self.task.clone() }
    }
}

/// Writes tasks that wait or run.
pub(crate) fn tasks(out: &mut Out, tasks: &[Shown]) {
    if out.is_json() {
        return tasks.iter().for_each(|task| out.object(task));
    }
    let row = |task: &Shown| {
        let remaining = task.remaining.map_or_else(String::new, |left| time::show(Duration::from_secs_f64(left.round())));
        vec![
            task.id.to_string(),
            task.name(),
            task.store.clone(),
            task.priority.to_string(),
            time::show(Duration::from_secs_f64(task.ttr)),
            remaining,
            task.failed.to_string(),
            short(&task.preview, 60),
        ]
    };
    let rows: Vec<_> = tasks.iter().map(row).collect();
    out.table(&["ID", "TASK", "STORE", "PRIORITY", "TTR", "REMAINING", "FAILED", "DATA"], &rows);
}

/// Writes held tasks with their reasons.
pub(crate) fn held(out: &mut Out, tasks: &[Shown]) {
    if out.is_json() {
        return tasks.iter().for_each(|task| out.object(task));
    }
    let now = time::unix_millis(SystemTime::now());
    let row = |task: &Shown| {
        let since = task.held_at.map(|at| time::show(Duration::from_secs(now.saturating_sub(at) / 1000)));
        let reason = task.reason.as_deref().or(task.unreadable.as_deref()).unwrap_or("unknown");
        let failed = task.failed_before.unwrap_or(task.failed).to_string();
        let since = since.map_or_else(|| "unknown".into(), |since| format!("{since} ago"));
        vec![task.id.to_string(), task.name(), since, failed, ends(reason, 80), short(&task.preview, 40)]
    };
    let rows: Vec<_> = tasks.iter().map(row).collect();
    out.table(&["ID", "TASK", "HELD", "FAILED", "REASON", "DATA"], &rows);
}
