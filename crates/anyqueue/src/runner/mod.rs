//! The runner: takes tasks from queues and runs their workers until it is told to stop.

mod attempt;
mod decide;
mod finish;
mod handle;
mod health;
mod keeper;
mod limits;
mod pump;
mod settle;
mod shared;
mod signals;
mod slots;
mod start;
mod state;

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{DeliveryFilter, PriorityRange, Result};

pub(crate) use attempt::{Attempt, Ran, run as run_attempt};
pub use decide::Verdict;
#[cfg(feature = "memory")]
pub(crate) use decide::{cancelled, returned, undecodable};
pub use finish::{Finished, Why};
pub use handle::{Progress, RunnerHandle};
pub use health::QueueHealth;
pub use start::PreparedRunner;

use crate::hooks::Hooks;
use crate::queue::Queue;
use crate::queues::Queues;
use crate::settings::{RunnerSettings, Settings};

/// Which queues a runner works.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Watch {
    /// All that have a worker in this process.
    #[default]
    All,
    /// These.
    Named(Vec<String>),
}

/// Runs workers.
///
/// ```no_run
/// # use anyqueue::{Queue, Runner, Settings, Task};
/// # async fn example() -> anyqueue::Result<()> {
/// let mail = Queue::new("mail", ()).worker("welcome", |_, task: Task<String>| async move {
///     println!("welcome, {}", task.data);
/// });
/// let finished = Runner::from_settings(Settings::load()?).queue(mail).run().await?;
/// std::process::exit(finished.exit_code().into());
/// # }
/// ```
#[derive(Debug)]
pub struct Runner {
    source: Source,
    handlers: Vec<Queue>,
    watch: Watch,
    hooks: Hooks,
    filter: Option<Arc<dyn DeliveryFilter>>,
    priorities: Option<PriorityRange>,
    drain: bool,
    signals: bool,
    handle: RunnerHandle,
    options: RunnerSettings,
}

#[derive(Debug)]
enum Source {
    Settings(Box<Settings>),
    Queues(Queues),
}

impl Runner {
    fn of(source: Source, options: RunnerSettings) -> Self {
        Self {
            source,
            handlers: Vec::new(),
            watch: Watch::All,
            hooks: Hooks::new(),
            filter: None,
            priorities: None,
            drain: false,
            signals: false,
            handle: RunnerHandle::default(),
            options,
        }
    }

    /// A runner that connects by itself when it is run, and listens to signals.
    pub fn from_settings(settings: Settings) -> Self {
        let options = settings.runner.clone();
        Self { signals: true, ..Self::of(Source::Settings(Box::new(settings)), options) }
    }

    /// A runner over queues that are connected already. It leaves signals alone.
    pub fn new(queues: Queues) -> Self {
        let options = queues.settings().runner.clone();
        Self::of(Source::Queues(queues), options)
    }

    /// Adds a queue handler.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<Queue>) -> Self {
        self.handlers.push(queue.into());
        self
    }

    /// Chooses the queues to work. Default: all that have a worker in this process.
    #[must_use]
    pub fn watch(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// How many handlers run at once.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.options.slots = slots.max(1);
        self
    }

    /// Stops when nothing is ready and nothing runs. Tasks that are delayed or held stay where they are.
    #[must_use]
    pub fn drain(mut self) -> Self {
        self.drain = true;
        self
    }

    /// Takes these priorities only. Refused at the start where a broker cannot do that.
    #[must_use]
    pub fn priorities(mut self, range: PriorityRange) -> Self {
        self.priorities = Some(range);
        self
    }

    /// How long running handlers get to finish when the runner stops.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.options.grace = grace;
        self
    }

    /// Stops after so many attempts.
    #[must_use]
    pub fn max_tasks(mut self, tasks: u64) -> Self {
        self.options.max_tasks = Some(tasks);
        self
    }

    /// Sets the hooks.
    #[must_use]
    pub fn hooks(mut self, hooks: Hooks) -> Self {
        self.hooks = hooks;
        self
    }

    /// Looks at tasks between the broker and the workers.
    #[must_use]
    pub fn filter(mut self, filter: Arc<dyn DeliveryFilter>) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Whether SIGTERM, SIGINT and SIGQUIT stop it, SIGUSR2 pauses and SIGCONT resumes it.
    #[must_use]
    pub fn signals(mut self, on: bool) -> Self {
        self.signals = on;
        self
    }

    /// Pauses, resumes, stops and watches the runner from elsewhere.
    pub fn handle(&self) -> RunnerHandle {
        self.handle.clone()
    }

    /// Runs until it is told to stop, a limit is reached, or everything is drained.
    ///
    /// # Errors
    /// Before the first task: an unknown queue, a queue without worker, a broker that cannot do what the settings ask (all
    /// mismatches at once), a start hook that fails. A broker that is down is no error: the others go on.
    pub async fn run(self) -> Result<Finished> {
        self.prepare().await?.run().await
    }

    /// Does what comes before the first task, for programs that have something to do between: connects, looks for the
    /// queues and their workers, and asks the brokers whether they can do what the settings want.
    ///
    /// # Errors
    /// An unknown queue, a queue without worker, a broker that cannot do what the settings ask (all mismatches at once). A
    /// broker that is down is no error: the others go on.
    pub async fn prepare(self) -> Result<PreparedRunner> {
        start::prepare(self).await
    }
}
