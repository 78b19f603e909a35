//! One connection, made anew when it is needed and broken.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result, chain, quoted};
use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, ConnectionState};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::config::Config;
use crate::error;
use crate::hello::{self, Version};

/// What `info` shows.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) round_trips: AtomicU64,
    pub(crate) reconnects: AtomicU64,
}

/// How often who waits for an answer looks whether the connection lives.
const GLANCE: Duration = Duration::from_millis(100);

/// A connection, whatever becomes of it.
pub(crate) struct Link {
    config: Arc<Config>,
    what: &'static str,
    tally: Arc<Tally>,
    live: Mutex<Option<Arc<Connection>>>,
    /// Taken by who makes it.
    making: tokio::sync::Mutex<()>,
    /// The host that answered last.
    host: AtomicUsize,
    /// Where connections are made and live, whoever needs them first: another runtime may be blocked, or end.
    runtime: Handle,
}

/// Does something to its end in this runtime, whoever waits for it and however long that one is blocked: it may take a lock
/// for which others wait.
pub(crate) async fn at<T: Send + 'static>(
    runtime: &Handle,
    something: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    runtime.spawn(something).await.unwrap_or_else(|_| Err(error::closed()))
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("what", &self.what).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(config: Arc<Config>, what: &'static str, tally: Arc<Tally>) -> Self {
        let (live, making) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { config, what, tally, live, making, host: AtomicUsize::new(0), runtime: Handle::current() }
    }

    fn kept(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Arc<Connection>> {
        self.kept().clone().filter(|connection| connection.status().connected())
    }

    /// Waits for an answer of the server, for as long as one request may take and the connection lives.
    pub(crate) async fn call<T>(&self, what: &str, request: impl Future<Output = lapin::Result<T>>) -> Result<T> {
        self.tally.round_trips.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            biased;
            answer = timeout(self.config.timeout, request) => match answer {
                Ok(answer) => answer.map_err(error::lost),
                Err(_) => Err(error::late(what)),
            },
            // The client crate forgets a request that is made at the moment in which the connection breaks.
            () = self.gone() => Err(Error::unavailable("the connection broke").effect_unknown()),
        }
    }

    /// Waits until there is no connection, and a moment more.
    async fn gone(&self) {
        while self.is_open() {
            tokio::time::sleep(GLANCE).await;
        }
        tokio::time::sleep(GLANCE).await;
    }

    /// The connection, made anew if it is broken.
    pub(crate) async fn live(self: &Arc<Self>) -> Result<Arc<Connection>> {
        match self.current() {
            Some(connection) => Ok(connection),
            None => at(&self.runtime, self.clone().made()).await,
        }
    }

    async fn made(self: Arc<Self>) -> Result<Arc<Connection>> {
        let _one = self.making.lock().await;
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let again = self.kept().take().is_some();
        let connection = Arc::new(self.connect().await?);
        if again {
            self.tally.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        *self.kept() = Some(connection.clone());
        Ok(connection)
    }

    /// A channel of its own.
    pub(crate) async fn channel(self: &Arc<Self>) -> Result<Channel> {
        let connection = self.live().await?;
        self.call("channel.open", connection.create_channel())
            .await
            .map_err(|e| Error::new(e.kind(), e.message().to_owned()).because(chain(&e)))
    }

    /// Whether there is a connection now.
    pub(crate) fn is_open(&self) -> bool {
        self.current().is_some()
    }

    /// Whether the server has said that it takes nothing now.
    pub(crate) fn is_blocked(&self) -> bool {
        self.kept().as_ref().is_some_and(|connection| connection.status().blocked())
    }

    pub(crate) async fn close(&self) {
        let _one = self.making.lock().await;
        let last = self.kept().take().filter(|connection| connection.status().connected());
        if let Some(connection) = last {
            // A server that is gone needs no farewell.
            drop(timeout(self.config.timeout, connection.close(200, "bye".into())).await);
        }
    }

    async fn connect(&self) -> Result<Connection> {
        let (hosts, first) = (&self.config.hosts, self.host.load(Ordering::Relaxed));
        let mut last = None;
        for at in (0..hosts.len()).map(|turn| (first + turn) % hosts.len()) {
            let (host, port) = &hosts[at];
            match self.connect_to(host, *port).await {
                Ok(connection) => {
                    self.host.store(at, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(e) => last = Some(e.with("server", format!("{host}:{port}"))),
            }
        }
        Err(last.unwrap_or_else(|| Error::unavailable("there is no server to connect to")))
    }

    async fn connect_to(&self, host: &str, port: u16) -> Result<Connection> {
        let uri = uri(&self.config, host, port);
        let properties = ConnectionProperties::default().with_connection_name(format!("anyqueue {}", self.what).into());
        let (tls, patience) = (tls(&self.config)?, self.config.timeout);
        let runtime = lapin::runtime::default_runtime().map_err(error::foreign)?;
        match timeout(patience, Connection::connect_uri_with_config(uri, properties, tls, runtime)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(e)) => Err(refused(e)),
            Err(_) => Err(Error::unavailable("the server cannot be reached in time")),
        }
    }
}

/// Greets the first server that answers.
pub(crate) async fn greet(config: &Config) -> Result<Option<Version>> {
    let mut last = None;
    for (host, port) in &config.hosts {
        let tls = tls(config)?;
        let runtime = lapin::runtime::default_runtime().map_err(error::foreign)?;
        let uri = uri(config, host, *port);
        let greeted = async {
            let stream = uri.connect_with_config_async(tls.as_ref(), &runtime).await;
            hello::version(stream.map_err(|e| refused(e.into()))?, config.timeout).await
        };
        match timeout(config.timeout, greeted).await {
            Ok(Ok(version)) => return Ok(version),
            Ok(Err(e)) => last = Some(e.with("server", format!("{host}:{port}"))),
            Err(_) => {
                last = Some(Error::unavailable("the server cannot be reached in time").with("server", format!("{host}:{port}")))
            }
        }
    }
    Err(last.unwrap_or_else(|| Error::unavailable("there is no server to connect to")))
}

/// Why a connection could not be made. A server that does not let us in is no reason to wait.
fn refused(e: lapin::Error) -> Error {
    match (error::code(&e), e.kind()) {
        (Some(error::DENIED), _) => {
            Error::new(ErrorKind::Denied, "the server does not know this user and password").because(error::said(&e))
        }
        (None, lapin::ErrorKind::InvalidConnectionState(ConnectionState::Closed)) => {
            Error::unavailable("the server closed the connection while it was made").because(e)
        }
        (None, lapin::ErrorKind::IOError(_)) => Error::unavailable("the server cannot be reached").because(e),
        _ => error::foreign(e),
    }
}

fn uri(config: &Config, host: &str, port: u16) -> AMQPUri {
    AMQPUri {
        scheme: if config.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: config.user.clone(), password: config.password.clone() },
            host: host.to_owned(),
            port,
        },
        vhost: config.vhost.clone(),
        query: AMQPQueryString { heartbeat: Some(config.heartbeat()), ..AMQPQueryString::default() },
    }
}

fn tls(config: &Config) -> Result<OwnedTLSConfig> {
    let Some(tls) = &config.tls else { return Ok(OwnedTLSConfig::default()) };
    let read = |option: &str, file: &std::path::Path| {
        std::fs::read(file).map_err(|e| {
            Error::config(format!("option `{option}`: {} cannot be read", quoted(&file.to_string_lossy()))).because(e)
        })
    };
    let cert_chain = match &tls.ca {
        Some(file) => Some(String::from_utf8_lossy(&read("tls_ca", file)?).into_owned()),
        None => None,
    };
    let identity = match &tls.own {
        Some((certificate, key)) => {
            Some(OwnedIdentity::PKCS8 { pem: read("tls_certificate", certificate)?, key: read("tls_key", key)? })
        }
        None => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}
