//! From a builder to running parts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use anyqueue_core::{Error, ErrorKind, PriorityRange, QueueName, Result};
use futures::future::join_all;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::finish::{self, Finished};
use super::health::Health;
use super::settle::SettleLine;
use super::shared::{Registered, Shared, Watched};
use super::state::State;
use super::{Runner, Source, Watch, keeper, limits, pump, settle, signals, slots};
use crate::brokers::BrokerSlot;
use crate::exec::ExecWorker;
use crate::queue::{Queue, Start};
use crate::queues::Queues;
use crate::settings::QueueSettings;

/// The running parts. They end when this is dropped.
pub(crate) struct Parts {
    pub(crate) pumps: Vec<JoinHandle<()>>,
    pub(crate) slots: Vec<JoinHandle<()>>,
    pub(crate) rest: Vec<JoinHandle<()>>,
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.pumps.iter().chain(&self.slots).chain(&self.rest).for_each(JoinHandle::abort);
    }
}

/// The task that waits for the end; a caller who drops [`PreparedRunner::run`] takes it and all parts with him.
struct Stopping(JoinHandle<Result<Finished>>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A runner whose queues, workers and brokers were looked at, before its first task.
pub struct PreparedRunner {
    runner: Runner,
    queues: Queues,
    /// Whether the connections are its own, and end with it.
    own: bool,
    watched: Vec<Arc<Watched>>,
    starts: Starts,
}

impl fmt::Debug for PreparedRunner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.watched.iter().map(|queue| queue.name().as_str()).collect();
        f.debug_struct("PreparedRunner").field("queues", &names).finish_non_exhaustive()
    }
}

pub(crate) async fn prepare(mut runner: Runner) -> Result<PreparedRunner> {
    let (queues, own) = match runner.source {
        Source::Settings(settings) => (Queues::connect(*settings).await?, true),
        Source::Queues(queues) => (queues, false),
    };
    runner.source = Source::Queues(queues.clone());
    let (watched, starts) = watched(&queues, std::mem::take(&mut runner.handlers), &runner.watch)?;
    check(&queues, &watched, &runner).await?;
    Ok(PreparedRunner { runner, queues, own, watched, starts })
}

impl PreparedRunner {
    /// Runs until it is told to stop, a limit is reached, or everything is drained.
    ///
    /// # Errors
    /// A start hook that fails, before the first task; and when no queue can be worked any more.
    pub async fn run(self) -> Result<Finished> {
        let Self { runner, queues, own, watched, starts } = self;
        for (name, start) in starts {
            start().await.map_err(|e| Error::config("the start hook failed").with("queue", name).because(e))?;
        }
        let options = &runner.options;
        let mut state = State::new(options.slots.max(1), options.prefetch, options.strategy, options.max_tasks);
        watched.iter().for_each(|queue| state.add_lane(queue.settings.slots, queue.settings.weight, queue.settings.ttr));
        let hooks = runner.hooks.clone();
        let shared = Arc::new(Shared::new(state, watched, queues.clock().clone(), hooks, runner.filter.clone(), runner.drain));
        runner.handle.attach(&shared);
        let io = &queues.0.io;
        let listen = runner.handle.clone();
        let signals = if runner.signals { Some(io.run(async move { signals::listen(listen) }).await?) } else { None };

        let mut parts = Parts { pumps: Vec::new(), slots: Vec::new(), rest: vec![io.spawn(keeper::run(shared.clone()))] };
        parts.rest.push(io.spawn(limits::run(shared.clone(), options.clone(), runner.handle.clone())));
        for queue in &shared.watched {
            let prefetch = options.slots + options.prefetch;
            let feed = pump::run(shared.clone(), queue.clone(), runner.range(queue), prefetch, queues.settings().strict);
            parts.pumps.push(io.spawn(feed));
            parts.rest.push(io.spawn(settle::run(shared.clone(), queue.clone())));
        }
        parts.slots.extend((0..options.slots.max(1)).map(|slot| tokio::spawn(slots::run(shared.clone(), slot))));

        // On the machinery's thread too: handlers that block all of the user's must not keep the runner from stopping.
        let mut stopping = Stopping(io.spawn(finish::wait_and_stop(shared.clone(), runner.handle.clone(), parts, options.grace)));
        let finished = (&mut stopping.0).await.unwrap_or_else(|e| Err(Error::unavailable("the runner ended early").because(e)));
        drop(signals);
        if own {
            queues.close().await?;
        }
        finished
    }
}

impl Runner {
    fn range(&self, queue: &Watched) -> PriorityRange {
        self.priorities.clone().unwrap_or_else(|| queue.settings.priorities.clone())
    }
}

type Starts = Vec<(String, Start)>;

/// Puts handlers and settings together.
fn watched(queues: &Queues, handlers: Vec<Queue>, watch: &Watch) -> Result<(Vec<Arc<Watched>>, Starts)> {
    let mut by_name: HashMap<String, Queue> = HashMap::new();
    for handler in handlers {
        queues.settings().queue(handler.name())?;
        if let Some(twice) = by_name.insert(handler.name.clone(), handler) {
            return Err(Error::config(format!("queue `{}` has two handlers; give all its workers to one", twice.name)));
        }
    }
    for settings in queues.settings().queues.values() {
        for (task, worker) in &settings.workers {
            if let Some(command) = &worker.exec {
                let handler = by_name.entry(settings.name.to_string()).or_insert_with(|| Queue::bare(settings.name.as_str()));
                handler.add(task, Arc::new(ExecWorker::new(command)?));
            }
        }
    }
    let mut chosen: Vec<&QueueSettings> = match watch {
        Watch::All => queues.settings().queues.values().filter(|queue| by_name.contains_key(queue.name.as_str())).collect(),
        Watch::Named(names) => names.iter().map(|name| queues.settings().queue(name)).collect::<Result<_>>()?,
    };
    let mut seen = HashSet::new();
    chosen.retain(|queue| seen.insert(&queue.name));
    if *watch == Watch::All {
        // A strict strategy goes by weight; queues named one by one keep the order they were named in.
        chosen.sort_by_key(|queue| std::cmp::Reverse(queue.weight));
    }
    let mut works: Vec<String> =
        by_name.values().filter(|queue| !queue.workers.is_empty()).map(|queue| queue.name.clone()).collect();
    works.sort();
    let (mut all, mut starts) = (Vec::new(), Vec::new());
    for (lane, settings) in chosen.into_iter().enumerate() {
        let Some(handler) = by_name.remove(settings.name.as_str()).filter(|handler| !handler.workers.is_empty()) else {
            return Err(no_worker(&settings.name, &works));
        };
        starts.extend(handler.start.map(|start| (settings.name.to_string(), start)));
        all.push(Arc::new(Watched {
            lane,
            slot: queues.slot(&settings.broker)?.clone(),
            workers: handler
                .workers
                .into_iter()
                .map(|(task, worker)| {
                    let policy = settings.workers.get(&task).map_or(&settings.policy, |own| &own.policy).clone();
                    (task, Registered { worker, policy })
                })
                .collect(),
            settings: settings.clone(),
            settle: SettleLine::default(),
            wanted: Notify::new(),
            health: Mutex::new(Health::default()),
            longest: AtomicU64::new(u64::MAX),
        }));
    }
    if all.is_empty() {
        return Err(Error::config("no queue has a worker in this process; add a handler, or `exec` workers to queue.toml"));
    }
    Ok((all, starts))
}

fn no_worker(name: &QueueName, works: &[String]) -> Error {
    let known = works.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none" } else { &known };
    Error::config(format!("queue `{name}` has no worker in this process; those that have one: {known}"))
}

/// Asks every broker that answers whether it can do what the settings want.
async fn check(queues: &Queues, watched: &[Arc<Watched>], runner: &Runner) -> Result<()> {
    let mut problems = Vec::new();
    // Side by side: one that does not answer keeps the others waiting once, not once per queue.
    let slots: BTreeMap<&str, &Arc<BrokerSlot>> = watched.iter().map(|queue| (&*queue.settings.broker, &queue.slot)).collect();
    let connecting = slots.into_iter().map(async |(name, slot)| (name, slot.connected().await));
    let connected: HashMap<&str, _> = join_all(connecting).await.into_iter().collect();
    for queue in watched {
        match &connected[&*queue.settings.broker] {
            Ok(broker) => {
                let wanted = pump::requirements(queue, &runner.range(queue), queues.settings().strict);
                let found = wanted.check(&broker.capabilities(queue.name()));
                let (name, broker_name) = (queue.name(), &queue.settings.broker);
                problems.extend(found.into_iter().map(|problem| format!("queue `{name}` on broker `{broker_name}`: {problem}")));
            }
            // The pump goes on trying.
            Err(e) if e.is_retryable() => {}
            Err(e) => return Err(e.duplicate().with("queue", queue.name())),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::new(ErrorKind::Unsupported, problems.join("\n"))) }
}
