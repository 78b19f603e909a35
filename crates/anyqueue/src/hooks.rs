//! Plain functions that are told what happens. They never change a result; one that panics is logged and ignored.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::TaskId;

use crate::runner::{Attempt, Verdict};

/// What hooks are told of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttemptInfo {
    /// The queue.
    pub queue: String,
    /// The task's name.
    pub task: String,
    /// The task's id.
    pub id: TaskId,
    /// The tenant or context.
    pub store: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// 0 is most urgent.
    pub priority: u32,
    /// The process.
    pub pid: u32,
    /// The headers that came with the task.
    pub headers: Vec<(String, String)>,
}

impl AttemptInfo {
    pub(crate) fn of(attempt: &Attempt) -> Self {
        let task = &attempt.incoming;
        Self {
            queue: attempt.queue().to_owned(),
            task: task.wire.task.clone(),
            id: task.id,
            store: task.wire.store.clone(),
            attempt: task.attempt(),
            priority: task.priority,
            pid: std::process::id(),
            headers: task.wire.headers.clone(),
        }
    }
}

type Before = dyn Fn(&AttemptInfo) + Send + Sync;
type After = dyn Fn(&AttemptInfo, &Verdict, Duration) + Send + Sync;
type OnError = dyn Fn(&AttemptInfo, &str) + Send + Sync;
type OnChange = dyn Fn(&AttemptInfo, &Verdict) + Send + Sync;
type OnNotice = dyn Fn(&AttemptInfo, u32) + Send + Sync;

/// The hooks of a runner.
#[derive(Clone, Default)]
pub struct Hooks {
    before: Option<Arc<Before>>,
    after: Option<Arc<After>>,
    error: Option<Arc<OnError>>,
    notice: Option<Arc<OnNotice>>,
    change: Option<Arc<OnChange>>,
}

impl Hooks {
    /// No hooks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Before an attempt.
    #[must_use]
    pub fn before_attempt(mut self, hook: impl Fn(&AttemptInfo) + Send + Sync + 'static) -> Self {
        self.before = Some(Arc::new(hook));
        self
    }

    /// After an attempt, with what is to become of it and how long it took; not stored yet.
    #[must_use]
    pub fn after_attempt(mut self, hook: impl Fn(&AttemptInfo, &Verdict, Duration) + Send + Sync + 'static) -> Self {
        self.after = Some(Arc::new(hook));
        self
    }

    /// After a failed attempt, with the reason. A hold that the worker asked for is no failure.
    #[must_use]
    pub fn on_error(mut self, hook: impl Fn(&AttemptInfo, &str) + Send + Sync + 'static) -> Self {
        self.error = Some(Arc::new(hook));
        self
    }

    /// Once per task, when as many attempts have failed as the policy's `notify_after` says.
    #[must_use]
    pub fn on_notice(mut self, hook: impl Fn(&AttemptInfo, u32) + Send + Sync + 'static) -> Self {
        self.notice = Some(Arc::new(hook));
        self
    }

    /// When the broker has stored what became of a task. It runs on the runner's own thread, which also renews leases: it
    /// must not block.
    #[must_use]
    pub fn on_change(mut self, hook: impl Fn(&AttemptInfo, &Verdict) + Send + Sync + 'static) -> Self {
        self.change = Some(Arc::new(hook));
        self
    }

    pub(crate) fn before(&self, info: impl FnOnce() -> AttemptInfo) {
        if let Some(hook) = &self.before {
            guarded("before_attempt", || hook(&info()));
        }
    }

    pub(crate) fn after(
        &self,
        info: impl Fn() -> AttemptInfo,
        verdict: &Verdict,
        took: Duration,
        deliberate: bool,
        failed: impl Fn() -> u32,
        notify_after: Option<u32>,
    ) {
        if let Some(hook) = &self.after {
            guarded("after_attempt", || hook(&info(), verdict, took));
        }
        let reason = match verdict {
            Verdict::Retried { reason, .. } | Verdict::Held(reason) if !deliberate => reason,
            _ => return,
        };
        if let Some(hook) = &self.error {
            guarded("on_error", || hook(&info(), reason));
        }
        let failures = failed().saturating_add(1);
        if notify_after == Some(failures) {
            let info = info();
            tracing::warn!(queue = info.queue, task = info.task, id = %info.id, failures, reason, "failed as often as notify_after says");
            if let Some(hook) = &self.notice {
                guarded("on_notice", || hook(&info, failures));
            }
        }
    }

    pub(crate) fn changed(&self, info: impl FnOnce() -> AttemptInfo, verdict: &Verdict) {
        if let Some(hook) = &self.change {
            guarded("on_change", || hook(&info(), verdict));
        }
    }
}

fn guarded(name: &'static str, hook: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(hook)).is_err() {
        tracing::error!(hook = name, "a hook panicked; the task goes on");
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("before_attempt", &self.before.is_some())
            .field("after_attempt", &self.after.is_some())
            .field("on_error", &self.error.is_some())
            .field("on_notice", &self.notice.is_some())
            .field("on_change", &self.change.is_some())
            .finish()
    }
}
