//! Whether the brokers of the watched queues answer.

use std::time::Duration;

use anyqueue_core::{Clock, Drift, ErrorKind, Moment};

/// The longest wait between two tries: a broker that is back is not left alone for longer.
const LONGEST: Duration = Duration::from_secs(5);

/// An outage is told again so often.
const TOLD_EACH: Duration = Duration::from_secs(60);

/// The state of one queue's line to its broker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    pub(crate) failures: u32,
    pub(crate) error: Option<String>,
    pub(crate) last_answer: Option<Moment>,
    /// When the failures in a row began, and when they were last told.
    outage: Option<(Moment, Moment)>,
    /// What the queue has otherwise than the settings say, once they were compared.
    pub(crate) drift: Option<Vec<Drift>>,
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
    /// What the broker has otherwise than the settings say, as it was found when work on the queue began; `None` until then, or
    /// if it may not be compared.
    pub drift: Option<Vec<Drift>>,
}

impl Health {
    /// Notes an answer; says for how long there was none, if that was told.
    pub(crate) fn answered(&mut self, clock: &dyn Clock) -> Option<Duration> {
        let now = clock.now();
        self.last_answer = Some(now);
        self.failures = 0;
        self.error = None;
        self.outage.take().map(|(began, _)| now.since(began))
    }

    /// Notes a failure; says since when there are failures if it is time to tell it.
    pub(crate) fn failed(&mut self, error: String, now: Moment) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        self.error = Some(error);
        let (began, told) = self.outage.unwrap_or((now, now));
        let tell = self.outage.is_none() || now.since(told) >= TOLD_EACH;
        self.outage = Some((began, if tell { now } else { told }));
        tell.then(|| now.since(began))
    }

    /// Whether the last that was heard of the broker is that it does not answer.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        self.failures > 0 && self.fatal.is_none()
    }
}

/// How long to wait after so many failures in a row: doubling from 100 ms to 5 s, half of it left to chance.
pub(crate) fn back_off(failures: u32) -> Duration {
    let most = Duration::from_millis(100).saturating_mul(1 << failures.saturating_sub(1).min(9)).min(LONGEST);
    most.mul_f64(0.5 + 0.5 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TestClock;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_when_it_begins_and_each_minute_and_when_it_ends() {
        let clock = TestClock::start();
        let (mut health, mut told) = (Health::default(), Vec::new());
        assert_eq!(health.answered(&clock), None);
        for _ in 0..48 {
            told.extend(health.failed("refused".into(), clock.now()));
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        assert_eq!(told, [0, 60, 120, 180].map(Duration::from_secs));
        assert!(health.is_out_of_reach());
        assert_eq!(health.answered(&clock), Some(Duration::from_secs(240)));
        assert!(!health.is_out_of_reach() && health.answered(&clock).is_none());
    }

    #[test]
    fn the_wait_doubles_up_to_five_seconds() {
        for (failures, most) in [(1, 0.1), (2, 0.2), (5, 1.6), (6, 3.2), (7, 5.0), (u32::MAX, 5.0)] {
            let wait = back_off(failures).as_secs_f64();
            assert!((most / 2.0..=most).contains(&wait), "{failures}: {wait}");
        }
    }
}
