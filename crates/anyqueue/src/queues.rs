//! The producer side.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{Broker, Clock, Envelope, Error, QueueName, Result, TaskId, time};

use crate::brokers::{self, BrokerSlot};
use crate::clock::{SystemClock, TestClock};
use crate::inline::Inline;
use crate::io::Io;
use crate::lane::Lane;
use crate::settings::{QueueSettings, Settings};
use crate::task::NewTask;
use crate::trace;

/// All queues of the settings, to send to and to look after. Cheap to clone.
#[derive(Clone)]
pub struct Queues(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) io: Io,
    slots: BTreeMap<Arc<str>, Arc<BrokerSlot>>,
    lanes: Mutex<HashMap<QueueName, Arc<Lane>>>,
    route: Option<Route>,
    pub(crate) inline: Option<Inline>,
}

type Route = Box<dyn Fn(&NewTask) -> Option<String> + Send + Sync>;

/// What `send` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The task's id, for its whole life.
    pub id: TaskId,
    /// The name of the broker that has it.
    pub via: Arc<str>,
}

/// Builds [`Queues`] with something other than the defaults.
pub struct QueuesBuilder {
    settings: Settings,
    clock: Option<TestClock>,
    route: Option<Route>,
    inline: Option<Inline>,
}

impl QueuesBuilder {
    /// Goes by a clock that the test moves. All machinery then runs on the runtime of the caller.
    #[must_use]
    pub fn clock(mut self, clock: TestClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Chooses a queue at run time for tasks that are sent without one; `None` leaves it to the settings' routes.
    #[must_use]
    pub fn route(mut self, route: impl Fn(&NewTask) -> Option<String> + Send + Sync + 'static) -> Self {
        self.route = Some(Box::new(route));
        self
    }

    /// Runs each task at once, inside `send`, by these handlers, instead of putting it on a broker. The payload is
    /// still encoded and decoded. There is nothing to wait in, so that priority, delay, group and unique key, which say
    /// how a task waits beside others, have no effect.
    #[must_use]
    pub fn inline(mut self, handlers: impl IntoIterator<Item = crate::Queue>) -> Self {
        self.inline = Some(Inline::new(handlers));
        self
    }

    /// Checks the settings against the drivers. Brokers are connected when first needed.
    ///
    /// # Errors
    /// [`Config`](anyqueue_core::ErrorKind::Config) for a broker that no driver serves.
    pub async fn connect(self) -> Result<Queues> {
        let (clock, io): (Arc<dyn Clock>, _) = match self.clock {
            Some(clock) => (Arc::new(clock), Io::here()),
            None => (Arc::new(SystemClock), Io::thread()?),
        };
        let slots = brokers::slots(&self.settings, &clock, &io)?;
        let (route, inline, lanes) = (self.route, self.inline, Mutex::default());
        Ok(Queues(Arc::new(Inner { settings: self.settings, clock, io, slots, lanes, route, inline })))
    }
}

impl fmt::Debug for QueuesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuesBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Queues {
    /// Takes settings and the compiled-in drivers. Brokers are connected when first needed.
    ///
    /// # Errors
    /// [`Config`](anyqueue_core::ErrorKind::Config) for a broker that no driver serves.
    pub async fn connect(settings: Settings) -> Result<Self> {
        Self::builder(settings).connect().await
    }

    /// Starts with settings, to choose a clock or a route.
    pub fn builder(settings: Settings) -> QueuesBuilder {
        QueuesBuilder { settings, clock: None, route: None, inline: None }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The clock that everything goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// A queue to send to.
    ///
    /// # Errors
    /// For an unknown name, with the known ones.
    pub fn queue(&self, name: &str) -> Result<Sender> {
        let settings = self.0.settings.queue(name)?.clone();
        let lane = self.lane(&settings)?;
        Ok(Sender { queues: self.clone(), settings, lane, patience: None })
    }

    /// Sends a task to the queue that its routes choose: the route given in code, then the settings' routes by task name, then `default`.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn send(&self, task: NewTask) -> Result<Sent> {
        let chosen = self.0.route.as_ref().and_then(|route| route(&task));
        let name = match &chosen {
            Some(name) => name.as_str(),
            None => self.0.settings.route(task.name()).map_or("default", QueueName::as_str),
        };
        self.queue(name)?.send(task).await
    }

    /// The connected broker of a queue: for the operator's verbs.
    ///
    /// # Errors
    /// For an unknown queue, or if the broker cannot be reached.
    pub async fn broker(&self, queue: &QueueName) -> Result<Arc<dyn Broker>> {
        let settings = self.0.settings.queue(queue.as_str())?;
        self.broker_named(&settings.broker).await
    }

    /// A broker by its name in the settings.
    ///
    /// # Errors
    /// For an unknown name, or if the broker cannot be reached.
    pub async fn broker_named(&self, name: &str) -> Result<Arc<dyn Broker>> {
        brokers::slot_of(&self.0.slots, name)?.connected().await
    }

    /// Resolves a task as `send` would, without sending it: for a send inside a transaction of the caller's own.
    ///
    /// # Errors
    /// For an unknown queue, data that is not JSON, a delay or TTR out of bounds.
    pub fn prepare(&self, queue: &str, task: NewTask) -> Result<Envelope> {
        let settings = self.0.settings.queue(queue)?;
        prepare(settings, task, &*self.0.clock).map_err(|e| e.during("send").with("queue", queue))
    }

    /// Closes all brokers.
    ///
    /// # Errors
    /// The first failure; the others are closed all the same.
    pub async fn close(&self) -> Result<()> {
        let mut result = Ok(());
        for broker in self.0.slots.values().filter_map(|slot| slot.if_connected()) {
            result = result.and(broker.close().await);
        }
        result
    }

    pub(crate) fn slot(&self, broker: &str) -> Result<&Arc<BrokerSlot>> {
        brokers::slot_of(&self.0.slots, broker)
    }

    fn lane(&self, queue: &QueueSettings) -> Result<Arc<Lane>> {
        let mut lanes = self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&queue.name) {
            return Ok(lane.clone());
        }
        let lane = Lane::new(queue.name.clone(), self.slot(&queue.broker)?.clone(), self.0.io.clone());
        lanes.insert(queue.name.clone(), lane.clone());
        Ok(lane)
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

/// One queue to send to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sender {
    queues: Queues,
    settings: QueueSettings,
    lane: Arc<Lane>,
    patience: Option<Duration>,
}

impl Sender {
    /// The name of its broker in the settings.
    pub fn broker(&self) -> &str {
        &self.settings.broker
    }

    /// Tries for so long to send, instead of the broker's `send_timeout`; a request that is under way then is waited for.
    /// Zero: once.
    #[must_use]
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = Some(time);
        self
    }

    /// The queue's name.
    pub fn name(&self) -> &QueueName {
        &self.settings.name
    }

    /// Sends a task. Returns once the broker has it, as durably as it claims; tasks sent meanwhile share a request.
    ///
    /// # Errors
    /// [`TooLarge`](anyqueue_core::ErrorKind::TooLarge) and other bad input before anything is sent; a retryable
    /// error once the broker's `send_timeout` is over.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether the task was sent.
    pub async fn send(&self, task: NewTask) -> Result<Sent> {
        let envelope = prepare(&self.settings, task, &*self.queues.0.clock).map_err(|e| self.named(e))?;
        let id = envelope.id;
        if let Some(inline) = &self.queues.0.inline {
            inline.work(&self.queues, &self.settings, envelope).await.map_err(|e| self.named(e))?;
            return Ok(Sent { id, via: "inline".into() });
        }
        self.lane.send(envelope, &*self.queues.0.clock, self.patience).await.map_err(|e| self.named(e))?;
        Ok(Sent { id, via: self.settings.broker.clone() })
    }

    /// Sends many tasks in as few requests as the broker allows: one answer each, in order.
    ///
    /// What may go through another time is sent again for the broker's `send_timeout`, from a single task on and then in
    /// ever larger requests. What comes after the request that failed waits with it, so that the order holds; but a task that
    /// is refused once more, alone, after the broker took one behind it, goes last, unless it has a group.
    ///
    /// # Errors
    /// Each task has its own, as with [`send`](Self::send): one that was not tried before the time was over has the error of
    /// the task that the broker refused, without an effect.
    ///
    /// # Cancel safety
    /// A dropped future may have sent any of the tasks.
    pub async fn send_all(&self, tasks: Vec<NewTask>) -> Vec<Result<Sent>> {
        if self.queues.0.inline.is_some() {
            let mut answers = Vec::new();
            for task in tasks {
                answers.push(self.send(task).await);
            }
            return answers;
        }
        let prepared: Vec<_> = tasks.into_iter().map(|task| prepare(&self.settings, task, &*self.queues.0.clock)).collect();
        let good: Vec<Envelope> = prepared.iter().flatten().cloned().collect();
        let mut answers = self.lane.send_all(&good, &*self.queues.0.clock, self.patience).await.into_iter();
        let answer = |prepared: Result<Envelope>| {
            let id = prepared?.id;
            answers.next().unwrap_or_else(|| Err(Error::unavailable("no answer").effect_unknown()))?;
            Ok(Sent { id, via: self.settings.broker.clone() })
        };
        prepared.into_iter().map(answer).map(|result| result.map_err(|e| self.named(e))).collect()
    }

    fn named(&self, error: Error) -> Error {
        let named = error.context().iter().any(|(key, _)| *key == "queue");
        let error = error.during("send");
        if named { error } else { error.with("queue", &self.settings.name) }
    }
}

/// Call > worker > queue > built-in default.
fn prepare(queue: &QueueSettings, task: NewTask, clock: &dyn Clock) -> Result<Envelope> {
    let NewTask { mut wire, delay, group, unique, error } = task;
    if let Some(error) = error {
        return Err(error.duplicate());
    }
    if wire.task.is_empty() {
        return Err(Error::invalid("the task has no name; the name chooses its worker"));
    }
    let worker = queue.workers.get(&wire.task);
    let now = clock.wall();
    let priority = wire.priority.or(worker.and_then(|w| w.priority)).unwrap_or(queue.priority);
    let ttr = wire.ttr.or(worker.and_then(|w| w.ttr)).unwrap_or(queue.ttr);
    let delay = time::check_delay(delay.or(worker.and_then(|w| w.delay)).unwrap_or(queue.delay))?;
    let ttr = time::check_ttr(ttr, time::MAX_TTR, "the contract of all brokers; renew leases by touch instead")?;
    let id = *wire.id.get_or_insert_with(|| TaskId::new(now));
    (wire.priority, wire.ttr, wire.sent_at) = (Some(priority), Some(ttr), Some(time::unix_millis(now)));
    trace::continue_current(&mut wire);
    Ok(Envelope { id, body: wire.write(), priority, delay, ttr, group, unique, probation: false })
}
