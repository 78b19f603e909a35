//! Where the machinery runs: broker I/O, pumps, settling and the lease keeper have a thread of their own, so that
//! handlers that block every thread of the user's runtime starve neither touches nor heartbeats.

use std::future::Future;
use std::sync::Arc;

use anyqueue_core::{Error, Result};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A handle to the machinery's runtime. The thread ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(crate) struct Io {
    handle: Handle,
    _thread: Option<Arc<oneshot::Sender<()>>>,
}

impl Io {
    /// A thread of its own.
    pub(crate) fn thread() -> Result<Self> {
        let no_thread = |e: std::io::Error| Error::unavailable("cannot start the I/O thread").because(e);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("anyqueue-io".into())
            .spawn(move || {
                let _ = runtime.block_on(ended);
            })
            .map_err(no_thread)?;
        Ok(Self { handle, _thread: Some(Arc::new(alive)) })
    }

    /// The runtime that this is called on: for tests that move its clock.
    pub(crate) fn here() -> Self {
        Self { handle: Handle::current(), _thread: None }
    }

    /// Starts a task on it.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.handle.spawn(task)
    }

    /// Runs a task on it and waits for its result.
    pub(crate) async fn run<T: Send + 'static>(&self, task: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        match self.spawn(task).await {
            Ok(result) => result,
            Err(e) => Err(Error::unavailable("the I/O task ended early").because(e)),
        }
    }
}
