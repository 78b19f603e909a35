//! The queues of one store, and the stores that are shared by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use anyqueue_core::{Clock, Create, Error, ErrorKind, QueueName, Result};

use crate::queue::Queue;

/// Named stores live as long as somebody in this process is connected to them.
static SHARED: Mutex<BTreeMap<String, Weak<Store>>> = Mutex::new(BTreeMap::new());

/// All queues of one memory broker, on one clock.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) clock: Arc<dyn Clock>,
    queues: RwLock<BTreeMap<QueueName, Arc<Queue>>>,
}

impl Store {
    /// The store of this name, or one of its own where the name is empty. The first to come brings the clock.
    pub(crate) fn open(name: &str, clock: Arc<dyn Clock>) -> Arc<Self> {
        let fresh = || Arc::new(Self { clock, queues: RwLock::default() });
        if name.is_empty() {
            return fresh();
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|_, store| store.strong_count() > 0);
        match shared.get(name).and_then(Weak::upgrade) {
            Some(store) => store,
            None => {
                let store = fresh();
                shared.insert(name.to_owned(), Arc::downgrade(&store));
                store
            }
        }
    }

    /// The queue, and whether it was made just now.
    pub(crate) fn queue(&self, name: &QueueName, create: Create) -> Result<(Arc<Queue>, bool)> {
        let known = self.queues.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        match (known, create) {
            (Some(queue), _) => Ok((queue, false)),
            (None, Create::Never) => {
                let text =
                    format!("there is no queue `{name}`, and the settings say create = \"never\"; run `queue-runner init`");
                Err(Error::new(ErrorKind::NotFound, text))
            }
            (None, Create::Auto) => {
                let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
                let mut created = false;
                let queue = queues.entry(name.clone()).or_insert_with(|| {
                    created = true;
                    Arc::new(Queue::new(name.clone()))
                });
                Ok((queue.clone(), created))
            }
        }
    }

    /// Lets every waiting consumer look again.
    pub(crate) fn wake_all(&self) {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).values().for_each(|queue| queue.wake_all());
    }
}
