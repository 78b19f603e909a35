//! The tasks as users meet them: one to be sent, one to be worked.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyqueue_core::{Data, Result, TaskId, Wire};
use bytes_of::BytesOf;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::runner::Attempt;

/// A task to be sent.
///
/// What is not set comes from the worker's settings, then the queue's, then the built-in defaults.
#[derive(Debug, Clone)]
pub struct NewTask {
    pub(crate) wire: Wire,
    pub(crate) delay: Option<Duration>,
    pub(crate) group: Option<Arc<str>>,
    pub(crate) unique: Option<Arc<str>>,
    pub(crate) error: Option<Arc<anyqueue_core::Error>>,
}

impl NewTask {
    fn of(name: impl Into<String>, data: Result<Data>) -> Self {
        let (data, error) = match data {
            Ok(data) => (data, None),
            Err(e) => (Data::NULL, Some(Arc::new(e))),
        };
        Self { wire: Wire::new(name, data), delay: None, group: None, unique: None, error }
    }

    /// A task with data that becomes JSON. Data that cannot be JSON is an error of the send.
    pub fn new<T: Serialize + ?Sized>(name: impl Into<String>, data: &T) -> Self {
        Self::of(name, Data::json(data))
    }

    /// A task with JSON text as it is. Text that is not JSON is an error of the send.
    pub fn json(name: impl Into<String>, text: impl Into<anyqueue_core::Bytes>) -> Self {
        Self::of(name, Data::raw_json(text))
    }

    /// A task with any bytes. Its worker takes `Vec<u8>` or another type that reads bytes.
    pub fn binary(name: impl Into<String>, bytes: impl Into<anyqueue_core::Bytes>) -> Self {
        Self::of(name, Ok(Data::Binary(bytes.into())))
    }

    /// The name of the worker.
    pub fn name(&self) -> &str {
        &self.wire.task
    }

    /// The tenant or context to run as.
    #[must_use]
    pub fn store(mut self, store: impl Into<String>) -> Self {
        self.wire.store = store.into();
        self
    }

    /// 0 is most urgent.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.wire.priority = Some(priority);
        self
    }

    /// How long the task stays invisible: up to five years, kept by the broker.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// How long a reservation lasts.
    #[must_use]
    pub fn ttr(mut self, ttr: Duration) -> Self {
        self.wire.ttr = Some(ttr);
        self
    }

    /// The id, where the caller has one: sending the same id again does no harm on stores that recognise it.
    #[must_use]
    pub fn id(mut self, id: TaskId) -> Self {
        self.wire.id = Some(id);
        self
    }

    /// A header, such as `traceparent`.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        self.wire.headers.retain(|(key, _)| *key != name);
        self.wire.headers.push((name, value.into()));
        self
    }

    /// Tasks of one group are worked one after another. A broker that knows no groups refuses the task; see
    /// [`Capabilities::group`](crate::core::Capabilities::group).
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Asks the broker to take one task of those that wait under the same key. A broker that knows no keys refuses the
    /// task; see [`Capabilities::unique`](crate::core::Capabilities::unique).
    #[must_use]
    pub fn unique(mut self, key: &str) -> Self {
        self.unique = Some(key.into());
        self
    }
}

/// A task being worked, with its data as the worker's own type.
pub struct Task<T> {
    /// The data.
    pub data: T,
    pub(crate) attempt: Arc<Attempt>,
}

impl<T> Task<T> {
    /// The id: the same for the task's whole life.
    pub fn id(&self) -> TaskId {
        self.attempt.incoming.id
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.attempt.incoming.wire.task
    }

    /// The queue's name.
    pub fn queue(&self) -> &str {
        self.attempt.queue()
    }

    /// The tenant or context that the task runs as.
    pub fn store(&self) -> &str {
        &self.attempt.incoming.wire.store
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.incoming.attempt()
    }

    /// 0 is most urgent.
    pub fn priority(&self) -> u32 {
        self.attempt.incoming.priority
    }

    /// How long a reservation lasts.
    pub fn ttr(&self) -> Duration {
        self.attempt.incoming.ttr
    }

    /// When the lease ends, unless it is renewed before.
    pub fn deadline(&self) -> SystemTime {
        self.attempt.clock.wall() + self.attempt.remaining()
    }

    /// How long the lease still lasts.
    pub fn remaining(&self) -> Duration {
        self.attempt.remaining()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.attempt.incoming.wire.header(name)
    }

    /// Starts the lease anew, for handlers under `lease = "manual"`. Says how long it lasts now.
    ///
    /// # Errors
    /// [`LeaseLost`](anyqueue_core::ErrorKind::LeaseLost): another worker may have the task; stop working on it.
    pub async fn touch(&self) -> Result<Duration> {
        self.attempt.touch().await
    }

    /// Whether the attempt is over: its lease was lost, its time is up, or the runner stops.
    pub fn is_cancelled(&self) -> bool {
        self.attempt.cancel.is_set()
    }

    /// Waits until the attempt is over, for code that has to tidy up. An async handler need not: it is dropped.
    pub async fn cancelled(&self) {
        self.attempt.cancel.wait().await;
    }

    /// What an earlier attempt saved.
    pub fn checkpoint<C: DeserializeOwned>(&self) -> Option<C> {
        let saved = self.attempt.checkpoint.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        saved.as_ref().and_then(|json| serde_json::from_slice(json).ok())
    }

    /// Saves what the next attempt needs to go on from here. It travels with the task when it is put back or held.
    ///
    /// # Errors
    /// [`Invalid`](anyqueue_core::ErrorKind::Invalid) if the value cannot be JSON.
    pub fn set_checkpoint<C: Serialize>(&self, value: &C) -> Result<()> {
        let json = Data::json(value)?.bytes().clone();
        *self.attempt.checkpoint.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(json);
        Ok(())
    }
}

impl<T: fmt::Debug> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("queue", &self.queue())
            .field("name", &self.name())
            .field("id", &self.id())
            .field("attempt", &self.attempt())
            .field("data", &self.data)
            .finish()
    }
}

/// Reads the data into the worker's type.
pub(crate) fn decode<T: DeserializeOwned>(data: &Data) -> Result<T, String> {
    match data {
        Data::Json(text) => serde_json::from_slice(text).map_err(|e| e.to_string()),
        Data::Binary(bytes) => T::deserialize(BytesOf(bytes)).map_err(|e| e.to_string()),
        Data::Unreadable(_) => Err("the body cannot be read".into()),
    }
}

/// Lets types that take bytes, in any of serde's ways, be read from bytes.
mod bytes_of {
    use serde::de::value::{Error, SeqDeserializer};
    use serde::{Deserializer, de::Visitor, forward_to_deserialize_any};

    pub(super) struct BytesOf<'a>(pub(super) &'a [u8]);

    impl<'de> Deserializer<'de> for BytesOf<'_> {
        type Error = Error;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_byte_buf(self.0.to_vec())
        }

        fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_seq(SeqDeserializer::new(self.0.iter().copied()))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct tuple tuple_struct map struct enum identifier ignored_any
        }
    }
}
