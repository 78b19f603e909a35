//! Queue handlers and their workers.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use anyqueue_core::{BoxError, BoxFuture, Data};
use serde::de::DeserializeOwned;

use crate::outcome::{IntoOutcome, Outcome};
use crate::runner::Attempt;
use crate::task::{Task, decode};

/// A queue handler: one value whose workers share its resources.
///
/// ```
/// use std::sync::Arc;
/// use anyqueue::{Queue, Task};
///
/// struct Invoices { currency: &'static str }
///
/// impl Invoices {
///     async fn render(self: Arc<Self>, task: Task<u32>) -> Result<(), std::io::Error> {
///         println!("invoice {} in {}", task.data, self.currency);
///         Ok(())
///     }
/// }
///
/// let invoices = Queue::new("invoices", Invoices { currency: "EUR" })
///     .label("Invoices")
///     .worker("render", Invoices::render);
/// ```
pub struct Queue {
    pub(crate) name: String,
    pub(crate) label: Option<String>,
    pub(crate) workers: BTreeMap<String, Arc<dyn Worker>>,
    pub(crate) start: Option<Start>,
    state: StateOf,
}

type StateOf = Arc<dyn std::any::Any + Send + Sync>;
pub(crate) type Start = Box<dyn FnOnce() -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;

/// A queue handler whose state is of type `S`, while workers are added to it.
pub struct QueueOf<S> {
    queue: Queue,
    state: Arc<S>,
}

impl Queue {
    /// Starts a queue handler with its shared value.
    #[allow(clippy::new_ret_no_self, reason = "the type of the value is known only while workers are added")]
    pub fn new<S: Send + Sync + 'static>(name: impl Into<String>, state: S) -> QueueOf<S> {
        let state = Arc::new(state);
        let queue = Self { name: name.into(), label: None, workers: BTreeMap::new(), start: None, state: state.clone() };
        QueueOf { queue, state }
    }

    /// The queue's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of its workers.
    pub fn workers(&self) -> impl Iterator<Item = &str> {
        self.workers.keys().map(String::as_str)
    }

    pub(crate) fn add(&mut self, name: impl Into<String>, worker: Arc<dyn Worker>) {
        self.workers.insert(name.into(), worker);
    }

    /// An empty handler, for queues whose workers come from the settings.
    pub(crate) fn bare(name: impl Into<String>) -> Self {
        Self { name: name.into(), label: None, workers: BTreeMap::new(), start: None, state: Arc::new(()) }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers: Vec<_> = self.workers().collect();
        let shared = Arc::strong_count(&self.state);
        f.debug_struct("Queue").field("name", &self.name).field("workers", &workers).field("shared", &shared).finish()
    }
}

impl<S: Send + Sync + 'static> QueueOf<S> {
    /// What listings show beside the name.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.queue.label = Some(label.into());
        self
    }

    /// Registers an async function under a task name.
    #[must_use]
    pub fn worker<T, F, Fut>(mut self, name: impl Into<String>, work: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Arc<S>, Task<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoOutcome> + Send + 'static,
    {
        let state = self.state.clone();
        let work = move |data: T, attempt: Arc<Attempt>| -> BoxFuture<'static, Outcome> {
            let future = work(state.clone(), Task { data, attempt });
            Box::pin(async move { future.await.into_outcome() })
        };
        self.queue.add(name, Arc::new(Typed { decode, work, blocks: false }));
        self
    }

    /// Registers a synchronous function under a task name. It runs on a thread for blocking code, so that it may
    /// compute or wait as long as it likes. It cannot be stopped from outside: let it look at
    /// [`is_cancelled`](Task::is_cancelled) now and then.
    #[must_use]
    pub fn worker_blocking<T, F, O>(mut self, name: impl Into<String>, work: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Arc<S>, Task<T>) -> O + Send + Sync + 'static,
        O: IntoOutcome,
    {
        let (state, work) = (self.state.clone(), Arc::new(work));
        let work = move |data: T, attempt: Arc<Attempt>| -> BoxFuture<'static, Outcome> {
            let (state, work) = (state.clone(), work.clone());
            let thread = tokio::task::spawn_blocking(move || work(state, Task { data, attempt }).into_outcome());
            Box::pin(async move {
                match thread.await {
                    Ok(outcome) => outcome,
                    Err(e) => match e.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(e) => Outcome::failed(e),
                    },
                }
            })
        };
        self.queue.add(name, Arc::new(Typed { decode, work, blocks: true }));
        self
    }

    /// Runs once per process, in a process that works this queue, before its first task. An error stops the start.
    #[must_use]
    pub fn on_start<F, Fut, E>(mut self, hook: F) -> Self
    where
        F: FnOnce(Arc<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let state = self.state.clone();
        self.queue.start = Some(Box::new(move || {
            let future = hook(state);
            Box::pin(async move { future.await.map_err(Into::into) })
        }));
        self
    }
}

impl<S> From<QueueOf<S>> for Queue {
    fn from(of: QueueOf<S>) -> Self {
        of.queue
    }
}

impl<S> fmt::Debug for QueueOf<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue.fmt(f)
    }
}

/// A worker whose types are hidden.
pub(crate) trait Worker: Send + Sync {
    /// Starts an attempt; an error is one of decoding.
    fn start(&self, attempt: Arc<Attempt>) -> Result<BoxFuture<'static, Outcome>, String>;
    /// Whether it goes on after its future was dropped, and so needs its slot until it returns.
    fn blocks(&self) -> bool;
}

struct Typed<T, W> {
    decode: fn(&Data) -> Result<T, String>,
    work: W,
    blocks: bool,
}

impl<T, W> Worker for Typed<T, W>
where
    W: Fn(T, Arc<Attempt>) -> BoxFuture<'static, Outcome> + Send + Sync,
{
    fn start(&self, attempt: Arc<Attempt>) -> Result<BoxFuture<'static, Outcome>, String> {
        let data = (self.decode)(&attempt.incoming.wire.data)?;
        Ok((self.work)(data, attempt))
    }

    fn blocks(&self) -> bool {
        self.blocks
    }
}
