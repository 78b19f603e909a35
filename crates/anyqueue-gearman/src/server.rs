//! One job server: how it is reached, and the pair of connections for everything but reserving.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use gearman::admin::{AdminClient, FunctionStatus};
use gearman::{GearmanError, protocol::Packet};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use crate::config::Host;
use crate::error;
use crate::link::Link;
use crate::packet::{Reply, client_id, echo};

/// The longest time that a server which refused is left alone.
const MAX_BACK_OFF: Duration = Duration::from_secs(2);

/// So often is a session begun: under load gearmand 1.1.20 now and then resets a connection that it has only just taken.
const TRIES: u32 = 3;

/// The longest answer to a command, in bytes.
const ANSWER: u64 = 256;

/// What `info` tells.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) round_trips: Arc<AtomicU64>,
    pub(crate) reconnects: AtomicU64,
}

/// One job server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) place: usize,
    pub(crate) address: String,
    host: Host,
    patience: Duration,
    runtime: Handle,
    counters: Arc<Counters>,
    session: Mutex<Option<Arc<Session>>>,
    /// Taken by who makes one.
    opening: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    links: Vec<std::sync::Weak<Link>>,
    version: Option<String>,
    refused: u32,
    alone_until: Option<(Instant, Error)>,
    connected_before: bool,
}

/// Two connections to one run of a job server, one for packets and one for the text protocol. Handles of jobs are numbered
/// anew when a server starts, so a handle is only good for cancelling over the session that it came from.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) link: Arc<Link>,
    text: tokio::sync::Mutex<Text>,
    address: String,
    patience: Duration,
    runtime: Handle,
    trips: Arc<AtomicU64>,
}

struct Text(TcpStream);

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Text")
    }
}

impl Server {
    pub(crate) fn new(place: usize, host: Host, patience: Duration, counters: Arc<Counters>) -> Self {
        Self {
            place,
            address: host.address(),
            host,
            patience,
            runtime: Handle::current(),
            counters,
            session: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn version(&self) -> Option<String> {
        self.state().version.clone()
    }

    pub(crate) fn open(&self) -> u64 {
        self.state().links.iter().filter(|link| link.upgrade().is_some_and(|link| !link.is_dead())).count() as u64
    }

    async fn stream(&self) -> Result<TcpStream> {
        // Whoever needs it first may be in another runtime, which may be blocked, or end.
        let (host, patience) = ((self.host.name.clone(), self.host.port), self.patience);
        let connecting =
            self.runtime.spawn(async move { timeout(patience, TcpStream::connect((host.0.as_str(), host.1))).await });
        let connected = match connecting.await {
            Ok(Ok(connected)) => connected,
            Ok(Err(_)) => Err(io::ErrorKind::TimedOut.into()),
            Err(_) => return Err(error::closed()),
        };
        // Without it each small packet waits for the acknowledgement of the one before: 22 jobs a second.
        connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)).map_err(|e| error::unreachable(e, &self.address))
    }

    /// Makes a connection. A server that refused is left alone for a while: until then the answer is the last one.
    pub(crate) async fn connect(&self, name: &str) -> Result<Arc<Link>> {
        if let Some((until, e)) = &self.state().alone_until
            && Instant::now() < *until
        {
            return Err(e.duplicate());
        }
        let stream = match self.stream().await {
            Ok(stream) => stream,
            Err(e) => {
                self.refused(&e);
                return Err(e);
            }
        };
        if self.closed.load(Ordering::Acquire) {
            return Err(error::closed());
        }
        let trips = self.counters.round_trips.clone();
        let link = Arc::new(Link::new(&self.runtime, self.address.clone(), stream, self.patience, trips));
        let mut state = self.state();
        (state.refused, state.alone_until) = (0, None);
        state.links.retain(|link| link.strong_count() > 0);
        state.links.push(Arc::downgrade(&link));
        drop(state);
        link.submit(vec![client_id(name)])?;
        Ok(link)
    }

    fn refused(&self, why: &Error) {
        let mut state = self.state();
        state.refused = (state.refused + 1).min(8);
        let most = Duration::from_millis(25 << state.refused).min(MAX_BACK_OFF);
        // Clients that were refused together come back one by one.
        let part = most.mul_f64(0.5 + fastrand::f64() / 2.0);
        state.alone_until = Some((Instant::now() + part, why.duplicate()));
    }

    fn current(&self) -> Option<Arc<Session>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.clone().filter(|session| !session.link.is_dead())
    }

    /// The present session, or a new one. That one is made in the broker's own runtime: whoever needs it first may be in
    /// another one that is blocked, and others wait for the same.
    pub(crate) async fn session(self: &Arc<Self>) -> Result<Arc<Session>> {
        match self.current() {
            Some(live) => Ok(live),
            None => self.runtime.spawn(self.clone().opened()).await.unwrap_or_else(|_| Err(error::closed())),
        }
    }

    async fn opened(self: Arc<Self>) -> Result<Arc<Session>> {
        let _one = self.opening.lock().await;
        if let Some(live) = self.current() {
            return Ok(live);
        }
        let mut tries = 1;
        let fresh = loop {
            match self.fresh_session().await {
                // Who refuses is left alone meanwhile; this one took the connection.
                Err(e) if tries < TRIES && e.kind() == ErrorKind::Unavailable && self.state().alone_until.is_none() => tries += 1,
                made => break made?,
            }
        };
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        Ok(fresh)
    }

    async fn fresh_session(&self) -> Result<Arc<Session>> {
        let link = self.connect("anyqueue").await?;
        let text = self.stream().await?;
        // The link lives after the second connection was made: both are to the same run of the server.
        let answered = link.call(vec![echo()]).await?;
        if !matches!(answered.replies.as_slice(), [Reply::Echo]) {
            return Err(Error::unavailable(format!("the job server at {} does not answer an echo", self.address)));
        }
        let (address, patience, trips) = (self.address.clone(), self.patience, self.counters.round_trips.clone());
        let (text, runtime) = (tokio::sync::Mutex::new(Text(text)), self.runtime.clone());
        let fresh = Arc::new(Session { link, text, address, patience, runtime, trips });
        let version = fresh.version().await?;
        let mut state = self.state();
        state.version = Some(version);
        if std::mem::replace(&mut state.connected_before, true) {
            self.counters.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        drop(state);
        Ok(fresh)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for link in self.state().links.drain(..).filter_map(|link| link.upgrade()) {
            link.close(&error::closed());
        }
    }
}

impl Session {
    /// Sends a request and waits for its answers.
    pub(crate) async fn call(&self, packets: Vec<Packet>) -> Result<Vec<Reply>> {
        Ok(self.link.call(packets).await?.replies)
    }

    /// Asks in the text protocol, to the end though who asked may have gone: answers that nobody has read would be taken
    /// for the next ones. An error ends the session.
    async fn ask<T: Send + 'static>(self: &Arc<Self>, question: impl Question<T>) -> Result<T> {
        let own = self.clone();
        let asked = self.runtime.spawn(async move {
            let mut text = own.text.lock().await;
            if own.link.is_dead() {
                return Err(error::io(io::ErrorKind::ConnectionReset.into(), &own.address));
            }
            own.trips.fetch_add(1, Ordering::Relaxed);
            let asked = timeout(own.patience, question(&mut text.0)).await.unwrap_or(Err(GearmanError::Timeout));
            asked.map_err(|e| {
                let e = error::admin(e, &own.address);
                own.link.close(&e);
                e
            })
        });
        asked.await.unwrap_or_else(|_| Err(error::closed()))
    }

    /// Cancels jobs, all in one go; those that are gone already are no error.
    pub(crate) async fn cancel(self: &Arc<Self>, handles: Vec<String>) -> Result<()> {
        self.ask(move |stream| Box::pin(cancel(stream, handles))).await
    }

    /// What the server knows of its functions.
    pub(crate) async fn status(self: &Arc<Self>) -> Result<Vec<FunctionStatus>> {
        self.ask(|stream| Box::pin(async { AdminClient::from_stream(stream).status().await })).await
    }

    /// The unique ids of all jobs.
    pub(crate) async fn uniques(self: &Arc<Self>) -> Result<Vec<String>> {
        let jobs = self.ask(|stream| Box::pin(async { AdminClient::from_stream(stream).show_unique_jobs().await })).await?;
        Ok(jobs.into_iter().map(|job| job.unique).collect())
    }

    /// The handles of jobs that were cancelled and are there still.
    pub(crate) async fn cancelled(self: &Arc<Self>) -> Result<HashSet<String>> {
        let jobs = self.ask(|stream| Box::pin(async { AdminClient::from_stream(stream).show_jobs().await })).await?;
        Ok(jobs.into_iter().filter(|job| job.ignore_job).map(|job| job.handle).collect())
    }

    pub(crate) async fn version(self: &Arc<Self>) -> Result<String> {
        self.ask(|stream| Box::pin(async { AdminClient::from_stream(stream).version().await })).await
    }
}

/// The crate's `AdminClient` waits for each answer before it asks the next, in two writes each: four system calls for each
/// guard.
async fn cancel(stream: &mut TcpStream, handles: Vec<String>) -> gearman::Result<()> {
    let lines: String = handles.iter().map(|handle| format!("cancel job {handle}\r\n")).collect();
    stream.write_all(lines.as_bytes()).await?;
    let mut answers = BufReader::new(stream).take(ANSWER * handles.len() as u64).lines();
    for _ in handles {
        match answers.next_line().await?.ok_or(GearmanError::ConnectionClosed)? {
            line if line.starts_with("OK") || line.starts_with("ERR") => {}
            line => return Err(GearmanError::AdminProtocolError { line }),
        }
    }
    Ok(())
}

/// A question in the text protocol.
trait Question<T>: for<'c> FnOnce(&'c mut TcpStream) -> BoxFuture<'c, gearman::Result<T>> + Send + 'static {}

impl<T, Q> Question<T> for Q where Q: for<'c> FnOnce(&'c mut TcpStream) -> BoxFuture<'c, gearman::Result<T>> + Send + 'static {}
