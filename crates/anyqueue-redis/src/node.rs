//! One server: connections that are shared, made when first needed, and made anew after they broke.
//!
//! Each runtime has one of its own. A request then stays on the threads of who makes it, which takes half the time of one
//! that is handed to another thread and back; and a runtime that ends takes nobody else's connection with it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyqueue_core::Error;
use redis::{Cmd, Pipeline, RedisError, Value, cmd};
use tokio::runtime::{Handle, Id};

use crate::config::Address;
use crate::dial::{Dial, Link};
use crate::error::{Fault, closed};
use crate::script::Script;

/// The first pause after a connection could not be made; it doubles, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A server.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) address: Address,
    dial: Arc<Dial>,
    links: Mutex<Vec<Shared>>,
    /// Whoever connects holds that of its runtime; the others there wait for it. Those of other runtimes do not: it may be
    /// blocked.
    connecting: Mutex<HashMap<Id, Arc<tokio::sync::Mutex<()>>>>,
    failures: Mutex<Failures>,
    connected: AtomicU64,
    broken: AtomicU64,
    closed: AtomicBool,
}

/// A connection and the runtime that it lives on.
#[derive(Debug, Clone)]
struct Shared {
    runtime: Id,
    number: u64,
    link: Link,
}

/// Tries that have failed since the last success.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    last: Option<(Error, Instant)>,
}

impl Node {
    pub(crate) fn new(address: Address, dial: Arc<Dial>) -> Self {
        Self {
            address,
            dial,
            links: Mutex::default(),
            connecting: Mutex::default(),
            failures: Mutex::default(),
            connected: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn links(&self) -> MutexGuard<'_, Vec<Shared>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, runtime: Id) -> Option<Shared> {
        self.links().iter().find(|shared| shared.runtime == runtime && !shared.link.ended()).cloned()
    }

    /// This runtime's connection as it is, or a new one. During the pause after a failure the answer is that failure.
    async fn open(&self) -> Result<Shared, Error> {
        let runtime = Handle::current().id();
        if let Some(shared) = self.of(runtime) {
            return Ok(shared);
        }
        let connecting = self.connecting(runtime);
        let _one = connecting.lock().await;
        if let Some(shared) = self.of(runtime) {
            return Ok(shared);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        if let Some((error, _)) = self.failures().last.as_ref().filter(|(_, until)| Instant::now() < *until) {
            return Err(error.duplicate());
        }
        match self.dial.server(&self.address).await {
            Ok(link) => {
                *self.failures() = Failures::default();
                Ok(self.opened(runtime, link))
            }
            Err(error) => {
                let mut failures = self.failures();
                let pause = pause(failures.count);
                *failures = Failures { count: failures.count + 1, last: Some((error.duplicate(), Instant::now() + pause)) };
                Err(error)
            }
        }
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connecting(&self, runtime: Id) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds or waits for.
        all.retain(|_, one| Arc::strong_count(one) > 1);
        all.entry(runtime).or_default().clone()
    }

    fn opened(&self, runtime: Id, link: Link) -> Shared {
        let shared = Shared { runtime, number: self.connected.fetch_add(1, Ordering::Relaxed), link };
        let mut links = self.links();
        // Those whose runtime has ended are of no use to anybody.
        let gone = links.iter().filter(|other| other.runtime == runtime && other.link.ended()).count();
        self.broken.fetch_add(gone as u64, Ordering::Relaxed);
        links.retain(|other| !other.link.ended());
        links.push(shared.clone());
        let before = self.broken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |broken| broken.checked_sub(1));
        if before.is_ok() {
            self.dial.tally.reconnects.fetch_add(1, Ordering::Relaxed);
            tracing::info!(server = %self.address, "connected again");
            self.dial.upset.notify_one();
        }
        shared
    }

    /// Lets go of a connection that broke.
    fn broke(&self, number: u64) {
        let mut links = self.links();
        let before = links.len();
        links.retain(|shared| shared.number != number);
        self.broken.fetch_add((before - links.len()) as u64, Ordering::Relaxed);
        self.dial.upset.notify_one();
    }

    /// Whether a request from here needs no new connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.of(Handle::current().id()).is_some()
    }

    /// Takes the place of a node whose connections broke: that it is there means that they were made again.
    pub(crate) fn succeed(&self, other: &Self) {
        if other.broken.swap(0, Ordering::Relaxed) > 0 {
            self.dial.tally.reconnects.fetch_add(1, Ordering::Relaxed);
            self.dial.upset.notify_one();
        }
    }

    /// Sends one request and waits for its answer.
    pub(crate) async fn send(&self, request: &Cmd) -> Result<Value, Fault> {
        let mut shared = self.open().await.map_err(Fault::Down)?;
        let answer = shared.link.connection.send_packed_command(request).await;
        self.answered(shared.number, answer)
    }

    /// Sends one request for a slot that this server is about to get.
    pub(crate) async fn send_asking(&self, request: &Cmd) -> Result<Value, Fault> {
        let mut shared = self.open().await.map_err(Fault::Down)?;
        let mut pipeline = Pipeline::new();
        pipeline.add_command(cmd("ASKING")).add_command(request.clone());
        let answers = shared.link.connection.send_packed_commands(&pipeline, 0, 2).await;
        self.answered(shared.number, answers.map(|mut answers| answers.pop().unwrap_or(Value::Nil)))
    }

    fn answered(&self, number: u64, answer: Result<Value, RedisError>) -> Result<Value, Fault> {
        match answer {
            Ok(value) => {
                self.dial.tally.round_trips.fetch_add(1, Ordering::Relaxed);
                let answer = value.extract_error().map_err(Fault::Refused);
                if answer.as_ref().is_err_and(Fault::is_of_a_replica) {
                    // A master that was demoted keeps its clients. Behind the same address may be its successor by now.
                    self.broke(number);
                }
                answer
            }
            Err(error) => {
                self.broke(number);
                Err(Fault::Lost(error))
            }
        }
    }

    /// Gives the server a script that it does not know (any more).
    pub(crate) async fn teach(&self, script: Script) -> Result<(), Fault> {
        self.send(cmd("SCRIPT").arg("LOAD").arg(&script.text().code)).await.map(drop)
    }

    /// Asks for a sign of life.
    pub(crate) async fn ping(&self) -> Result<(), Fault> {
        let shared = self.open().await.map_err(Fault::Down)?;
        self.ping_over(shared).await
    }

    /// Asks for a sign of life over the connection of this runtime, if there is one.
    pub(crate) async fn watch(&self) {
        let runtime = Handle::current().id();
        let ended = |shared: &&Shared| shared.runtime == runtime && shared.link.ended();
        let gone: Vec<u64> = self.links().iter().filter(ended).map(|shared| shared.number).collect();
        gone.into_iter().for_each(|number| self.broke(number));
        if let Some(shared) = self.of(runtime) {
            // What matters is what becomes of the connection.
            drop(self.ping_over(shared).await);
        }
    }

    /// A connection that gives no sign of life is let go.
    async fn ping_over(&self, mut shared: Shared) -> Result<(), Fault> {
        let ping = cmd("PING");
        match tokio::time::timeout(self.dial.config.liveness, shared.link.connection.send_packed_command(&ping)).await {
            Ok(answer) => self.answered(shared.number, answer).map(drop),
            Err(_) => {
                self.broke(shared.number);
                Err(Fault::Lost(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
            }
        }
    }

    /// What the server says of itself: mode, role and version.
    pub(crate) async fn hello(&self) -> Result<Hello, Fault> {
        let answer = self.send(&cmd("HELLO")).await?;
        Ok(Hello::read(answer))
    }

    /// Ends the connections for good.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.links().clear();
    }
}

fn pause(failures: u32) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// A server's introduction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    /// `redis`, `valkey`, …
    pub(crate) server: String,
    pub(crate) version: String,
    /// `standalone`, `cluster` or `sentinel`.
    pub(crate) mode: String,
    /// `master` or `replica`.
    pub(crate) role: String,
}

impl Hello {
    pub(crate) fn read(answer: Value) -> Self {
        let mut hello = Self::default();
        for (key, value) in answer.into_map_iter().into_iter().flatten() {
            let (Ok(key), Ok(value)) = (redis::from_redis_value::<String>(key), redis::from_redis_value::<String>(value)) else {
                continue;
            };
            match key.as_str() {
                "server" => hello.server = value,
                "version" => hello.version = value,
                "mode" => hello.mode = value,
                "role" => hello.role = value,
                _ => {}
            }
        }
        hello
    }
}
