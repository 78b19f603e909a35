//! One server: how connections to it are made, the one for sends and questions, and what becomes of it when it does not answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyqueue_core::{Error, Result};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::config::Host;
use crate::error;
use crate::hub::Hub;
use crate::link::Link;
use crate::pool::Pool;
use crate::request::Request;
use crate::wire::{Command, Reply, Yaml};

/// The longest time that a server which refused is left alone.
const MAX_BACK_OFF: Duration = Duration::from_secs(2);

/// Numbers connections, over all brokers of the process.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) version: String,
    pub(crate) max_body: u64,
    pub(crate) binlog: bool,
    pub(crate) draining: bool,
}

/// One server.
#[derive(Debug)]
pub(crate) struct Server {
    host: Host,
    pub(crate) address: String,
    /// How many of the pool's connections there may be.
    pub(crate) connections: usize,
    patience: Duration,
    hub: Weak<Hub>,
    standing: Mutex<Standing>,
    pub(crate) pool: Pool,
    /// One connection is made at a time.
    pub(crate) opening: tokio::sync::Mutex<()>,
    pub(crate) arming: tokio::sync::Mutex<()>,
}

/// How a server stands to this process.
#[derive(Debug, Default)]
struct Standing {
    asking: Option<Arc<Link>>,
    facts: Facts,
    failures: u32,
    /// Until when it is left alone.
    down: Option<Instant>,
    /// It is being tried in the background.
    probing: bool,
}

impl Server {
    pub(crate) fn new(host: Host, connections: usize, patience: Duration, hub: Weak<Hub>) -> Self {
        let address = host.address();
        let (standing, pool, opening, arming) = Default::default();
        Self { host, address, connections, patience, hub, standing, pool, opening, arming }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn facts(&self) -> Facts {
        self.standing().facts.clone()
    }

    /// Whether it answered when it was tried last.
    pub(crate) fn is_up(&self) -> bool {
        self.standing().failures == 0
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        let asking = self.standing().asking.clone();
        self.pool.all().iter().chain(&asking).filter(|link| !link.is_dead()).count()
    }

    pub(crate) fn hub(&self) -> Result<Arc<Hub>> {
        self.hub.upgrade().filter(|hub| !hub.is_closed()).ok_or_else(error::closed)
    }

    /// Makes a connection. A server that refused is left alone for a while, longer each time.
    pub(crate) async fn connect(self: &Arc<Self>) -> Result<Arc<Link>> {
        let hub = self.hub()?;
        self.leave_to_probe(&hub)?;
        if let Some(left) =
            self.standing().down.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
        {
            let text = format!("beanstalkd at {} did not answer; it is tried again in {} ms", self.address, left.as_millis());
            return Err(Error::unavailable(text));
        }
        // A task of its own, so that a failure is noted even if nobody waits for it any more.
        let server = self.clone();
        hub.runtime.spawn(async move { server.attempt().await }).await.map_err(|_| error::closed())?
    }

    async fn attempt(&self) -> Result<Arc<Link>> {
        let connecting = async {
            let stream = timeout(self.patience, TcpStream::connect((self.host.name.as_str(), self.host.port))).await??;
            stream.set_nodelay(true).map(|()| stream)
        };
        let stream = connecting.await.map_err(|e| self.failed(error::io(e, &self.address)))?;
        let (hub, weak) = (self.hub()?, self.hub.clone());
        hub.counters.connected();
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let ended = move || {
            if let Some(hub) = weak.upgrade() {
                hub.leases().forget(number);
                hub.servers.iter().for_each(|server| server.pool.forget(number));
                hub.counters.lost();
            }
        };
        Ok(Arc::new(Link::new(&hub.runtime, number, self.address.clone(), stream, self.patience, ended)))
    }

    /// While another server answers, nobody waits for one that does not: it is tried in the background until it does.
    fn leave_to_probe(self: &Arc<Self>, hub: &Hub) -> Result<()> {
        if self.is_up() || !hub.servers.iter().any(|other| other.is_up()) {
            return Ok(());
        }
        if !std::mem::replace(&mut self.standing().probing, true) {
            let server = self.clone();
            hub.runtime.spawn(async move { server.probe().await });
        }
        Err(Error::unavailable(format!("beanstalkd at {} did not answer; the other servers serve until it does", self.address)))
    }

    async fn probe(&self) {
        while self.hub().is_ok() && !self.is_up() {
            let until = self.standing().down.unwrap_or_else(Instant::now);
            tokio::time::sleep_until(until).await;
            if let Ok(link) = self.attempt().await
                && let Err(e) = self.introduce(link).await
            {
                tracing::debug!(server = self.address, error = anyqueue_core::chain(&e), "a server is not taken back yet");
            }
        }
        self.standing().probing = false;
    }

    /// Asks a server what it is, and from then on by this connection.
    async fn introduce(&self, link: Arc<Link>) -> Result<Arc<Link>> {
        let asked = link.call(Request::of(&Command::Stats)).await.and_then(read_facts);
        // Nothing but this question was sent: whatever was to follow had no effect, and may go to another server.
        let told =
            |e: Error| Error::new(e.kind(), format!("beanstalkd at {} gave no account of itself", self.address)).because(e);
        let facts = asked.map_err(|e| self.failed(told(e)))?;
        let mut standing = self.standing();
        (standing.failures, standing.down, standing.facts) = (0, None, facts);
        standing.asking = Some(link.clone());
        Ok(link)
    }

    /// Notes that the server does not answer.
    fn failed(&self, error: Error) -> Error {
        let mut standing = self.standing();
        standing.failures = standing.failures.saturating_add(1);
        let back_off = Duration::from_millis(25).saturating_mul(1 << standing.failures.min(8)).min(MAX_BACK_OFF);
        standing.down = Some(Instant::now() + back_off.mul_f64(0.5 + fastrand::f64() / 2.0));
        error
    }

    /// The connection for sends and questions.
    pub(crate) async fn asking(self: &Arc<Self>) -> Result<Arc<Link>> {
        if let Some(link) = self.standing().asking.clone().filter(|link| !link.is_dead()) {
            self.hub()?;
            return Ok(link);
        }
        let hub = self.hub()?;
        self.leave_to_probe(&hub)?;
        // In the hub's runtime: whoever needs it first may be in one that is blocked, and others wait for the same.
        hub.runtime.spawn(self.clone().opened()).await.map_err(|_| error::closed())?
    }

    async fn opened(self: Arc<Self>) -> Result<Arc<Link>> {
        let _one = self.opening.lock().await;
        if let Some(link) = self.standing().asking.clone().filter(|link| !link.is_dead()) {
            return Ok(link);
        }
        let link = self.introduce(self.connect().await?).await?;
        self.hub()?;
        Ok(link)
    }

    /// A connection was found silent: the others that can be replaced at no cost are not trusted any more either.
    pub(crate) fn distrust(&self, hub: &Hub) {
        let why = Error::unavailable("another connection to this server was found dead");
        let (idle, asking) = (self.pool.take_idle(&hub.leases()), self.standing().asking.take());
        if hub.servers.len() > 1 && self.is_up() {
            self.failed(why.duplicate());
        }
        idle.iter().chain(&asking).for_each(|link| link.close(&why));
    }

    /// Closes all connections.
    pub(crate) fn close(&self) {
        let (links, asking) = (self.pool.take_all(), self.standing().asking.take());
        links.iter().chain(&asking).for_each(|link| link.close(&error::closed()));
    }
}

fn read_facts(mut replies: Vec<Reply>) -> Result<Facts> {
    let body = match replies.pop() {
        Some(Reply::Ok(body)) => body,
        Some(other) => return Err(error::unexpected(&other, "stats")),
        None => return Err(error::closed()),
    };
    let stats = Yaml::new(&body);
    Ok(Facts {
        version: stats.text("version").unwrap_or_default(),
        // A server that does not say has the default of all versions.
        max_body: stats.number("max-job-size").unwrap_or(65_535),
        binlog: stats.number("binlog-current-index").is_some_and(|index| index > 0),
        draining: stats.get("draining") == Some(b"true"),
    })
}
