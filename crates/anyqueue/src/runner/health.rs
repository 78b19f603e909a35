//! Whether the brokers of the watched queues answer.

use std::time::Duration;

use anyqueue_core::{Clock, ErrorKind, Moment};

/// The state of one queue's line to its broker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    pub(crate) failures: u32,
    pub(crate) error: Option<String>,
    pub(crate) last_answer: Option<Moment>,
    /// What ended all tries.
    pub(crate) fatal: Option<ErrorKind>,
}

/// What is known of one watched queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueHealth {
    /// The queue.
    pub queue: String,
    /// The broker's name.
    pub broker: String,
    /// Requests in a row that failed. 0: all is well.
    pub failures: u32,
    /// The last error, while failures go on.
    pub error: Option<String>,
    /// How long ago the broker last answered; `None` if it never did.
    pub last_answer: Option<Duration>,
}

impl Health {
    pub(crate) fn answered(&mut self, clock: &dyn Clock) {
        self.last_answer = Some(clock.now());
        self.failures = 0;
        self.error = None;
    }

    pub(crate) fn failed(&mut self, error: String) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.error = Some(error);
        self.failures
    }
}

/// How long to wait after so many failures in a row: doubling from 100 ms to 30 s, half of it left to chance.
pub(crate) fn back_off(failures: u32) -> Duration {
    let most = Duration::from_millis(100).saturating_mul(1 << failures.saturating_sub(1).min(9)).min(Duration::from_secs(30));
    most.mul_f64(0.5 + 0.5 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_half_a_minute() {
        for (failures, most) in [(1, 0.1), (2, 0.2), (5, 1.6), (9, 25.6), (10, 30.0), (u32::MAX, 30.0)] {
            let wait = back_off(failures).as_secs_f64();
            assert!((most / 2.0..=most).contains(&wait), "{failures}: {wait}");
        }
    }
}
