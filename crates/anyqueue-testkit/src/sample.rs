//! Tasks for tests.

use std::time::{Duration, SystemTime};

use anyqueue_core::{Data, Delivery, Envelope, TaskId, Wire, priority, time};

/// A task for tests, numbered so that it is known again. The body says all that a real one says.
#[derive(Debug, Clone)]
pub struct Sample {
    wire: Wire,
    id: TaskId,
    priority: u32,
    delay: Duration,
    ttr: Duration,
}

impl Sample {
    /// A task named `sample` with the number as its data.
    pub fn new(number: u64) -> Self {
        let data = Data::Json(number.to_string().into());
        Self {
            wire: Wire::new("sample", data),
            id: TaskId::new(SystemTime::now()),
            priority: priority::NORMAL,
            delay: Duration::ZERO,
            ttr: time::DEFAULT_TTR,
        }
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the delay.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets the TTR.
    #[must_use]
    pub fn ttr(mut self, ttr: Duration) -> Self {
        self.ttr = ttr;
        self
    }

    /// Sets the store.
    #[must_use]
    pub fn store(mut self, store: &str) -> Self {
        self.wire.store = store.to_owned();
        self
    }

    /// Sets other data than the number.
    #[must_use]
    pub fn data(mut self, data: Data) -> Self {
        self.wire.data = data;
        self
    }

    /// The task as it is sent.
    pub fn envelope(mut self) -> Envelope {
        (self.wire.id, self.wire.priority, self.wire.ttr) = (Some(self.id), Some(self.priority), Some(self.ttr));
        Envelope {
            id: self.id,
            body: self.wire.write(),
            priority: self.priority,
            delay: self.delay,
            ttr: self.ttr,
            group: None,
            unique: None,
            probation: false,
        }
    }

    /// So many tasks, numbered from 0.
    pub fn many(count: usize) -> Vec<Envelope> {
        (0..count as u64).map(|number| Self::new(number).envelope()).collect()
    }

    /// The number of a delivered sample; `None` if it is none.
    pub fn number(delivery: &Delivery) -> Option<u64> {
        std::str::from_utf8(Wire::read(&delivery.raw).ok()?.data.bytes()).ok()?.parse().ok()
    }
}
