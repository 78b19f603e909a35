//! What happens to a task that fails, dies, or runs too long.

use std::time::Duration;

/// The policy of a worker: call > worker > queue > built-in default.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// After so many failed attempts the task is held. At least 1. Default 8.
    pub max_attempts: u32,
    /// How long a failed task waits before its next attempt.
    pub backoff: Backoff,
    /// After so many workers that died with it the task is held. At least 1. Default 3.
    pub max_crashes: u32,
    /// Whether the runner renews leases. Default: it does.
    pub lease: Lease,
    /// The longest time of one attempt; automatic renewal stops there.
    pub time_limit: TimeLimit,
    /// Raise an event once, when so many attempts have failed.
    pub notify_after: Option<u32>,
    /// How long tasks wait for a worker of their name before they are held. Default 1 h.
    pub unknown_for: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_attempts: 8,
            backoff: Backoff::default(),
            max_crashes: 3,
            lease: Lease::Auto,
            time_limit: TimeLimit::Unset,
            notify_after: None,
            unknown_for: Duration::from_secs(3600),
        }
    }
}

/// How long one attempt may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeLimit {
    /// An hour, or what the broker can do if that is less.
    #[default]
    Unset,
    /// No limit.
    Off,
    /// So long. A broker that cannot reserve a task that long refuses the queue.
    At(Duration),
}

impl TimeLimit {
    /// The limit on a broker where a task can be reserved for `longest` at most; `None`: there is none.
    pub fn on(self, longest: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Unset => Some(longest.unwrap_or(Duration::MAX).min(Duration::from_secs(3600))),
            Self::Off => None,
            Self::At(limit) => Some(limit),
        }
    }
}

/// Who renews leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lease {
    /// The runner, well before they end, for as long as the handler runs and `time_limit` allows.
    #[default]
    Auto,
    /// The handler, by calling `touch`. Without it, an attempt ends when the TTR is over.
    Manual,
}

/// Exponential back-off: `first × factorⁿ`, at most `max`, give or take `jitter`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The wait after the first failure. Default 1 s.
    pub first: Duration,
    /// What each further wait is multiplied by. Default 4.
    pub factor: f64,
    /// The longest wait. Default 16 min.
    pub max: Duration,
    /// By which share the wait may be shorter or longer, 0 to 1. Default 0.1.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), factor: 4.0, max: Duration::from_secs(16 * 60), jitter: 0.1 }
    }
}

impl Backoff {
    /// The wait before the next attempt, when `failed` attempts have failed before this one.
    pub fn delay(&self, failed: u32) -> Duration {
        let exact = self.first.as_secs_f64() * self.factor.powf(f64::from(failed.min(1000)));
        let bounded = exact.min(self.max.as_secs_f64());
        let factor = 1.0 + self.jitter.clamp(0.0, 1.0) * (fastrand::f64() * 2.0 - 1.0);
        Duration::try_from_secs_f64(bounded * factor).unwrap_or(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_cap_within_the_jitter() {
        let backoff = Backoff::default();
        for (failed, seconds) in [(0, 1.0), (1, 4.0), (2, 16.0), (4, 256.0), (5, 960.0), (u32::MAX, 960.0)] {
            let delay = backoff.delay(failed).as_secs_f64();
            assert!((0.9 * seconds..=1.1 * seconds).contains(&delay), "{failed} failed: {delay} s");
        }
        let still = Backoff { jitter: 0.0, ..backoff };
        assert_eq!(still.delay(1), Duration::from_secs(4));
    }
}
