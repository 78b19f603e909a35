//! What an adapter brings to the suite.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use anyqueue_core::{BoxError, Clock, Driver, async_trait};
use tempfile::TempDir;

use crate::clock::{SystemClock, TestClock};
use crate::proxy::Proxy;
use crate::server::Server;

/// How an adapter is tested: its driver, and a fresh [`Stage`] for each trial.
#[async_trait]
pub trait Harness: fmt::Debug + Send + Sync + 'static {
    /// The driver under test. Child processes connect with it too.
    fn driver(&self) -> &'static Driver;

    /// A place for one trial. Trials run side by side, each on its own stage, and each uses queue names that no other
    /// trial uses; so stages of one harness may share a server unless [`Isolation::Own`] is asked for.
    ///
    /// # Errors
    /// Whatever keeps the stage from being set up; the trial then fails with it.
    async fn stage(&self, isolation: Isolation) -> Result<Stage, BoxError>;

    /// Which time the trials live in.
    fn time(&self) -> Time {
        Time::System
    }

    /// Sizes of the larger trials are divided by this: 1 for a fast local store, 10 for a slow emulator.
    fn divisor(&self) -> usize {
        1
    }
}

/// Whether a trial can share its server with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Others may use the server at the same time.
    Shared,
    /// The trial kills, pauses or fills the server: it needs one of its own.
    Own,
}

/// The time that trials live in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// The machine's. Runs on many threads.
    System,
    /// A time that jumps ahead whenever everybody waits. Only for brokers that live in the process and go by
    /// [`ConnectOptions::clock`](anyqueue_core::ConnectOptions::clock) alone; trials with other processes do not apply.
    Movable,
}

impl Time {
    pub(crate) fn clock(self) -> Arc<dyn Clock> {
        match self {
            Self::System => Arc::new(SystemClock),
            Self::Movable => Arc::new(TestClock::start()),
        }
    }
}

/// Where one trial takes place: a URL that leads to a store, and what can be done to it.
///
/// The URL must be complete, options in its query included, since child processes connect with it alone.
pub struct Stage {
    pub(crate) url: String,
    pub(crate) server: Option<Arc<dyn Server>>,
    pub(crate) proxied: Option<(String, Proxy)>,
    pub(crate) secret: Option<(String, String)>,
    keep: Vec<Box<dyn Any + Send + Sync>>,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("server", &self.server).field("proxied", &self.proxied).finish_non_exhaustive()
    }
}

impl Stage {
    /// A stage with a store at this URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), server: None, proxied: None, secret: None, keep: Vec::new() }
    }

    /// Adds the server, so that trials can kill, pause and restart it. Only for [`Isolation::Own`].
    #[must_use]
    pub fn server(mut self, server: Arc<dyn Server>) -> Self {
        self.server = Some(server);
        self
    }

    /// Adds a way to the same store through a proxy: the URL that leads there, and the proxy to cut.
    #[must_use]
    pub fn proxied(mut self, url: impl Into<String>, proxy: Proxy) -> Self {
        self.proxied = Some((url.into(), proxy));
        self
    }

    /// Adds a URL with a password in it, and the password, which must never be shown. It need not let us in.
    #[must_use]
    pub fn secret(mut self, url: impl Into<String>, password: impl Into<String>) -> Self {
        self.secret = Some((url.into(), password.into()));
        self
    }

    /// Keeps something alive for as long as the trial runs: a temporary folder, a guard.
    #[must_use]
    pub fn keep(mut self, thing: impl Any + Send + Sync) -> Self {
        self.keep.push(Box::new(thing));
        self
    }
}

/// Makes a folder that is removed when it is dropped.
///
/// # Errors
/// What the file system says.
pub fn temp_dir() -> std::io::Result<TempDir> {
    tempfile::Builder::new().prefix("anyqueue-").tempdir()
}
