//! Inline mode: `send` runs the worker at once. The payload is still encoded and decoded.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{
    Bytes, Clock, Defaults, Delivery, Envelope, Error, ErrorKind, Incoming, NativeFacts, QueueName, Receipt, Result, Settlement,
    Settler, Touch, async_trait,
};

use crate::outcome::Kind;
use crate::queue::Queue;
use crate::queues::Queues;
use crate::runner::{Attempt, Ran, run_attempt};
use crate::settings::QueueSettings;

/// The handlers that inline sends run.
pub(crate) struct Inline(HashMap<String, Queue>);

impl Inline {
    pub(crate) fn new(handlers: impl IntoIterator<Item = Queue>) -> Self {
        Self(handlers.into_iter().map(|queue| (queue.name.clone(), queue)).collect())
    }

    /// Runs the task's worker. Anything but done and discard is an error of the send.
    pub(crate) async fn work(&self, queues: &Queues, queue: &QueueSettings, envelope: Envelope) -> Result<()> {
        let task = anyqueue_core::Wire::read(&envelope.body)
            .map_err(|e| Error::invalid("the task cannot be read back").because(e))?
            .task;
        let known = || self.0.get(queue.name.as_str()).map(|q| q.workers().collect::<Vec<_>>()).unwrap_or_default();
        let worker = self.0.get(queue.name.as_str()).and_then(|queue| queue.workers.get(&task)).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("no worker `{task}` to run inline; {}", anyqueue_core::suggest(&task, known())),
            )
        })?;
        let settler = Arc::new(Recorder::default());
        let attempt = attempt(&queue.name, envelope.body, envelope.ttr, settler, queues.clock().clone());
        let unfinished = |what: String| Err(Error::new(ErrorKind::Unsupported, what).with("task", &task));
        match run_attempt(&attempt, &**worker).await {
            Ran::Returned(outcome) => match outcome.kind {
                Kind::Done | Kind::Discard(_) => Ok(()),
                _ => unfinished(format!("the task ran inline and did not end as done: {outcome}")),
            },
            Ran::Undecodable(why) => unfinished(format!("the data cannot be read: {why}")),
            Ran::Cancelled(..) => unfinished("the inline run was cancelled".into()),
        }
    }
}

impl fmt::Debug for Inline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A reserved task without a broker.
pub(crate) fn attempt(
    queue: &QueueName,
    body: Bytes,
    ttr: Duration,
    settler: Arc<dyn Settler>,
    clock: Arc<dyn Clock>,
) -> Arc<Attempt> {
    let deadline = clock.now() + ttr;
    let (receipt, native) = (Receipt::new(0, 0), NativeFacts::default());
    let delivery =
        Delivery { receipt: receipt.clone(), queue: queue.clone(), raw: body, native: native.clone(), lease: ttr, deadline };
    let incoming = Incoming::read(&delivery, "inline", Defaults::default());
    Arc::new(Attempt::new(incoming, receipt, native, deadline, queue.clone(), 0, settler, clock))
}

/// A settler without a broker: it counts touches.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) touches: std::sync::atomic::AtomicU64,
}

#[async_trait]
impl Settler for Recorder {
    async fn settle(&self, batch: &[(Receipt, Settlement)]) -> Vec<Result<()>> {
        batch.iter().map(|_| Ok(())).collect()
    }

    async fn touch(&self, batch: &[Touch]) -> Vec<Result<Duration>> {
        self.touches.fetch_add(batch.len() as u64, std::sync::atomic::Ordering::Relaxed);
        batch.iter().map(|touch| Ok(touch.ttr)).collect()
    }
}
