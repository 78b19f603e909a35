//! Making connections: TCP, TLS, login.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyqueue_core::{Error, ErrorKind, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisConnectionInfo};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

use crate::config::{Address, Config, Login};
use crate::error::connecting_plainly;
#[cfg(feature = "tls")]
use crate::tls::Connector;

/// What has been done so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) round_trips: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) reconnects: AtomicU64,
}

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) config: Arc<Config>,
    pub(crate) tally: Arc<Tally>,
    /// A connection broke or was made anew, or a queue is elsewhere: marks of who waits may be gone.
    pub(crate) upset: Notify,
    #[cfg(feature = "tls")]
    tls: Option<Connector>,
}

/// A connection that many share. It ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) connection: MultiplexedConnection,
    open: Arc<Open>,
}

impl Link {
    /// Whether its task is over: it broke, or the runtime is gone.
    pub(crate) fn ended(&self) -> bool {
        self.open.0.is_finished()
    }
}

/// Counts a connection while it is open, and ends its task.
#[derive(Debug)]
struct Open(AbortHandle, Arc<Tally>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.abort();
        self.1.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Dial {
    pub(crate) fn new(config: Arc<Config>) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "tls")]
            tls: config.tls.as_ref().map(Connector::new).transpose()?,
            config,
            tally: Arc::default(),
            upset: Notify::new(),
        })
    }

    /// Connects to a server that keeps tasks.
    pub(crate) async fn server(&self, to: &Address) -> Result<Link> {
        self.within(to, self.connect(to, &self.config.login, self.config.database, None)).await
    }

    /// Connects to a server to be rung by it.
    pub(crate) async fn bells(&self, to: &Address, rung: UnboundedSender<PushInfo>) -> Result<Link> {
        self.within(to, self.connect(to, &self.config.login, self.config.database, Some(rung))).await
    }

    /// Connects to a sentinel.
    pub(crate) async fn sentinel(&self, to: &Address) -> Result<Link> {
        self.within(to, self.connect(to, &self.config.sentinel_login, 0, None)).await
    }

    async fn within(&self, to: &Address, connecting: impl Future<Output = Result<Link>>) -> Result<Link> {
        let limit = self.config.liveness.min(self.config.timeout);
        tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
            let tls = if self.config.tls.is_some() { "; does it speak TLS?" } else { "" };
            let text = format!("{to} cannot be reached: no answer within {}{tls}", anyqueue_core::time::show(limit));
            Err(Error::new(ErrorKind::Unavailable, text))
        })
    }

    async fn connect(&self, to: &Address, login: &Login, database: i64, rung: Option<UnboundedSender<PushInfo>>) -> Result<Link> {
        let failed = |e: std::io::Error| Error::unavailable(format!("{to} cannot be reached")).because(e);
        let stream = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(failed)?;
        stream.set_nodelay(true).and_then(|()| self.watch_over(&stream)).map_err(failed)?;
        let mut info =
            RedisConnectionInfo::default().set_db(database).set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(user) = &login.user {
            info = info.set_username(user);
        }
        if let Some(password) = &login.password {
            info = info.set_password(password);
        }
        let mut config = AsyncConnectionConfig::new().set_response_timeout(Some(self.config.timeout));
        if let Some(rung) = rung {
            config = config.set_push_sender(rung);
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let stream = tls.connect(to, stream).await?;
            let (connection, task) = MultiplexedConnection::new_with_config(&info, stream, config)
                .await
                .map_err(|e| crate::error::connecting(e, to))?;
            return Ok(self.opened(connection, tokio::spawn(task).abort_handle()));
        }
        let (connection, task) =
            MultiplexedConnection::new_with_config(&info, stream, config).await.map_err(|e| connecting_plainly(e, to))?;
        Ok(self.opened(connection, tokio::spawn(task).abort_handle()))
    }

    /// Has the system notice a network that swallows everything, on connections too that nobody asks for a sign of life.
    fn watch_over(&self, stream: &TcpStream) -> std::io::Result<()> {
        // The system counts whole seconds, and does not take none.
        let (socket, liveness) = (SockRef::from(stream), self.config.liveness.max(Duration::from_secs(1)));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(liveness).with_interval(liveness))?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(liveness * 2))?;
        Ok(())
    }

    fn opened(&self, connection: MultiplexedConnection, task: AbortHandle) -> Link {
        self.tally.connections.fetch_add(1, Ordering::Relaxed);
        Link { connection, open: Arc::new(Open(task, self.tally.clone())) }
    }
}
