//! Connecting, declaring and sending.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{
    Accepted, Admin, Broker, BrokerInfo, Capabilities, Clock, ConnectOptions, ConsumeOptions, Consumer, Declared, Drift,
    Envelope, Error, ErrorKind, Finding, QueueName, Result, async_trait, time,
};
use redis::{Value, from_redis_value};
use tokio::runtime::Handle;

use crate::bells::Bells;
use crate::claim::Shelves;
use crate::config::Config;
use crate::consumer::RedisConsumer;
use crate::diagnose;
use crate::error::{closed, strange};
use crate::layout::{Keys, Rest, VERSION, tail};
use crate::script::Script;
use crate::servers::{Request, Servers};

/// Bytes that one request carries at most, unless a single task is larger.
pub(crate) const REQUEST: usize = 8 << 20;

/// What a broker, its consumers and its settlers share.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) servers: Arc<Servers>,
    pub(crate) bells: Bells,
    pub(crate) clock: Arc<dyn Clock>,
    /// Where tasks are given back by who is dropped outside of a runtime.
    pub(crate) runtime: Handle,
    /// Claims and returns under way.
    pub(crate) open: AtomicU64,
    pub(crate) shelves: Shelves,
    capabilities: Arc<Capabilities>,
    keys: Mutex<HashMap<QueueName, Arc<Keys>>>,
    closed: AtomicBool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    pub(crate) fn keys(&self, queue: &QueueName) -> Arc<Keys> {
        let mut known = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = known.get(queue) {
            return keys.clone();
        }
        let keys = Arc::new(Keys::new(&self.config.prefix, queue));
        known.insert(queue.clone(), keys.clone());
        keys
    }

    /// Runs a script on a queue.
    pub(crate) async fn run(&self, script: Script, keys: &Keys, fill: impl FnOnce(&mut Request)) -> Result<Value> {
        self.check()?;
        self.run_unchecked(script, keys, fill).await
    }

    /// Runs a script although the broker may have been closed: what it took is given back.
    pub(crate) async fn run_unchecked(&self, script: Script, keys: &Keys, fill: impl FnOnce(&mut Request)) -> Result<Value> {
        let mut request = self.servers.request(script, keys);
        fill(&mut request);
        self.servers.call(&request).await
    }

    fn refuse(&self, task: &Envelope) -> Result<()> {
        let (size, limit) = (task.body.len() as u64, self.config.max_payload);
        if size > limit {
            return Err(Error::too_large(size, limit));
        }
        self.check_times(task)
    }

    pub(crate) fn check_times(&self, task: &Envelope) -> Result<()> {
        time::check_delay(task.delay)?;
        time::check_ttr(task.ttr, self.capabilities.ttr.limits().max, "the contract of all brokers").map(drop)
    }
}

/// A connected broker.
#[derive(Debug)]
pub(crate) struct RedisBroker {
    pub(crate) shared: Arc<Shared>,
}

impl RedisBroker {
    pub(crate) async fn connect(options: ConnectOptions) -> Result<Arc<dyn Broker>> {
        let config = Arc::new(Config::read(&options)?);
        let servers = Arc::new(Servers::connect(config.clone()).await?);
        let (durability, durability_caveat) = diagnose::durability(&servers).await?;
        let link = anyqueue_core::Link::Network { liveness: config.liveness };
        let max_payload = Some(config.max_payload);
        let capabilities = Capabilities { durability, durability_caveat, link, max_payload, ..crate::DRIVER.capabilities };
        let shared = Shared {
            config,
            bells: Bells::new(servers.clone()),
            servers,
            clock: options.clock.clone(),
            runtime: Handle::current(),
            open: AtomicU64::new(0),
            shelves: Shelves::default(),
            capabilities: Arc::new(capabilities),
            keys: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        Ok(Arc::new(Self { shared: Arc::new(shared) }))
    }

    async fn send_part(&self, keys: &Keys, tasks: &[&Envelope]) -> Result<()> {
        let some_delayed = tasks.iter().any(|task| !task.delay.is_zero());
        if let ([task], true, false) = (tasks, self.shared.config.create, some_delayed) {
            let rest = Rest::new(0, task);
            if rest.is_small() {
                let (priority, tail) = (task.priority.to_be_bytes(), tail(0, task.id));
                let answer = self.shared.run(Script::One, keys, |request| {
                    request.arg(priority.as_slice()).arg(tail.as_slice()).arg(rest);
                });
                return answer.await.map(drop);
            }
        }
        let answer = self.shared.run(Script::Send, keys, |request| {
            request.arg(u8::from(self.shared.config.create)).arg(u8::from(some_delayed));
            match tasks.split_first() {
                Some((first, rest)) if rest.iter().all(|task| task.priority == first.priority) => {
                    request.arg(first.priority.to_be_bytes().as_slice())
                }
                _ => request.arg(""),
            };
            for (place, task) in tasks.iter().enumerate() {
                request.arg(tail(place, task.id).as_slice()).arg(Rest::new(place, task));
            }
        });
        answer.await.map(drop)
    }
}

/// Splits a batch where a request would become too large, and before an id that comes again.
fn parts<'a, 'b>(tasks: &'b [&'a Envelope], most: usize) -> Vec<&'b [&'a Envelope]> {
    let (mut parts, mut from, mut bytes) = (Vec::new(), 0, 0);
    if tasks.len() == 1 {
        return vec![tasks];
    }
    let mut ids = HashSet::with_capacity(tasks.len().min(most));
    for (at, task) in tasks.iter().enumerate() {
        let full = at > from && (bytes + task.body.len() > REQUEST || at - from == most);
        if full || !ids.insert(task.id) {
            parts.push(&tasks[from..at]);
            (from, bytes) = (at, 0);
            ids.clear();
            ids.insert(task.id);
        }
        bytes += task.body.len();
    }
    if from < tasks.len() {
        parts.push(&tasks[from..]);
    }
    parts
}

/// One error for each item of a call that failed as a whole.
pub(crate) fn all_failed<T>(error: &Error, items: usize) -> impl Iterator<Item = Result<T>> {
    (0..items).map(move |_| Err(error.duplicate()))
}

#[async_trait]
impl Broker for RedisBroker {
    fn info(&self) -> BrokerInfo {
        let Shared { servers, config, .. } = &*self.shared;
        let (hello, tally) = (&servers.hello, &servers.dial().tally);
        BrokerInfo {
            driver: crate::DRIVER.name,
            address: config.url.clone(),
            version: Some(format!("{} {}", hello.server, hello.version)),
            round_trips: tally.round_trips.load(Ordering::Relaxed),
            connections: tally.connections.load(Ordering::Relaxed),
            reconnects: tally.reconnects.load(Ordering::Relaxed),
        }
    }

    fn capabilities(&self, _queue: &QueueName) -> Arc<Capabilities> {
        self.shared.capabilities.clone()
    }

    async fn declare(&self, queue: &QueueName) -> Result<Declared> {
        let explain = |e: Error| e.during("declare").with("queue", queue);
        let keys = self.shared.keys(queue);
        let answer = self.shared.run(Script::Declare, &keys, |request| {
            request.arg(u8::from(self.shared.config.create)).arg(VERSION);
        });
        let (made, layout) =
            from_redis_value::<(bool, u32)>(answer.await.map_err(explain)?).map_err(|_| explain(strange("declare")))?;
        if layout > VERSION {
            let text = format!("the queue has layout {layout}, of a newer anyqueue; this one knows up to {VERSION}: upgrade it");
            return Err(explain(Error::new(ErrorKind::TooNew, text)));
        }
        Ok(Declared { created: made, drift: Vec::<Drift>::new() })
    }

    async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let explain = |e: Error| e.during("send").with("queue", queue);
        let keys = self.shared.keys(queue);
        let refused: Vec<_> = batch.iter().map(|task| self.shared.refuse(task)).collect();
        let good: Vec<&Envelope> = batch.iter().zip(&refused).filter_map(|(task, no)| no.is_ok().then_some(task)).collect();
        let mut sent = Vec::with_capacity(good.len());
        for part in parts(&good, self.shared.capabilities.batch.send) {
            match self.send_part(&keys, part).await {
                Ok(()) => sent.extend(part.iter().map(|_| Ok(Accepted::default()))),
                Err(e) => sent.extend(all_failed(&explain(e), part.len())),
            }
        }
        let mut sent = sent.into_iter();
        let answer = |refused: Result<()>| match refused {
            Ok(()) => sent.next().unwrap_or_else(|| Err(strange("send"))),
            Err(error) => Err(explain(error)),
        };
        refused.into_iter().map(answer).collect()
    }

    async fn consume(&self, queue: &QueueName, options: ConsumeOptions) -> Result<Box<dyn Consumer>> {
        self.declare(queue).await.map_err(|e| e.during("consume"))?;
        Ok(Box::new(RedisConsumer::new(self.shared.clone(), queue.clone(), options)))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    async fn ping(&self) -> Result<()> {
        self.shared.check().map_err(|e| e.during("ping"))?;
        for node in self.shared.servers.masters() {
            node.ping().await.map_err(|fault| fault.explain(&node.address).during("ping"))?;
        }
        Ok(())
    }

    async fn diagnose(&self) -> Result<Vec<Finding>> {
        self.shared.check().map_err(|e| e.during("diagnose"))?;
        diagnose::findings(&self.shared.servers).await.map_err(|e| e.during("diagnose"))
    }

    async fn close(&self) -> Result<()> {
        let shared = &self.shared;
        if shared.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        shared.bells.ring_all();
        shared.shelves.close();
        let give_up = shared.clock.now() + shared.config.timeout;
        // What claims bring now, and what nobody has taken from the shelves, goes back first.
        while shared.open.load(Ordering::Acquire) > 0 && shared.clock.now() < give_up {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shared.bells.close();
        shared.servers.close();
        Ok(())
    }
}
