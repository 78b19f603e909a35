//! Time: the clock that adapters and the facade share, steps, and durations as people write them.

use std::fmt;
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer};

use crate::error::{Error, ErrorKind, Result};

/// The longest delay: five years.
pub const MAX_DELAY: Duration = Duration::from_secs(5 * 365 * 86_400);
/// The shortest TTR.
pub const MIN_TTR: Duration = Duration::from_secs(1);
/// The longest TTR that every broker should reach; some go further, some stop earlier.
pub const MAX_TTR: Duration = Duration::from_secs(12 * 3600);
/// The TTR of a task for which nobody chose one.
pub const DEFAULT_TTR: Duration = Duration::from_secs(60);

/// A point in time of one [`Clock`]: what has passed since that clock's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(Duration);

impl Moment {
    /// A moment this long after the clock's origin.
    pub const fn since_origin(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// What `CLOCK_BOOTTIME` says: it goes on while the machine is suspended, as brokers' clocks do.
    pub fn boot_time() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// What has passed since the origin.
    pub fn elapsed_since_origin(self) -> Duration {
        self.0
    }
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

/// A boxed future, as object-safe traits return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The clock of one process, or of one test. Everything in anyqueue that waits or measures uses the one it was given.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The present moment. Never goes back; counts the time that the machine was suspended.
    fn now(&self) -> Moment;
    /// The time of day, for what other processes read. May jump.
    fn wall(&self) -> SystemTime;
    /// Waits until a moment has come.
    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()>;
}

/// Rounds a duration up to whole steps of a broker: the one place where that happens. Never down.
///
/// ```
/// use std::time::Duration;
/// use anyqueue_core::steps_up;
/// assert_eq!(steps_up(Duration::from_millis(1001), Duration::from_secs(1)), 2);
/// ```
pub fn steps_up(duration: Duration, step: Duration) -> u64 {
    let step = step.as_nanos().max(1);
    duration.as_nanos().div_ceil(step).min(u64::MAX as u128) as u64
}

/// Checks a delay against the contract's limit.
///
/// # Errors
/// [`ErrorKind::DelayTooLong`].
pub fn check_delay(delay: Duration) -> Result<Duration> {
    if delay > MAX_DELAY {
        let text = format!("a delay of {} is above the limit of 5 years", show(delay));
        return Err(Error::new(ErrorKind::DelayTooLong { limit: MAX_DELAY }, text));
    }
    Ok(delay)
}

/// Checks a TTR against bounds: a shorter one is an error, a longer one too.
///
/// # Errors
/// [`ErrorKind::Invalid`] below, [`ErrorKind::TtrTooLong`] above; `setting` says what sets the bound.
pub fn check_ttr(ttr: Duration, max: Duration, setting: &str) -> Result<Duration> {
    if ttr < MIN_TTR {
        return Err(Error::invalid(format!("a TTR of {} is below the least, 1s", show(ttr))));
    }
    if ttr > max {
        let text = format!("a TTR of {} is above {}, the limit set by {setting}", show(ttr), show(max));
        return Err(Error::new(ErrorKind::TtrTooLong { limit: max }, text));
    }
    Ok(ttr)
}

/// Reads a duration as people write it: `10m`, `1h 30m`, `500ms`, or a number of seconds.
///
/// # Errors
/// [`ErrorKind::Invalid`], with examples.
pub fn parse(text: &str) -> Result<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| unreadable(text));
    }
    humantime::parse_duration(text).map_err(|_| unreadable(text))
}

fn unreadable(text: &str) -> Error {
    Error::invalid(format!("`{text}` is not a duration; write `90` (seconds), `500ms`, `10m` or `1h 30m`"))
}

/// Writes a duration as people write it.
pub fn show(duration: Duration) -> String {
    let rounded = if duration < Duration::from_secs(1) {
        Duration::from_micros(duration.as_micros() as u64)
    } else if duration < Duration::from_secs(60) {
        Duration::from_millis(duration.as_millis() as u64)
    } else {
        Duration::from_secs(duration.as_secs())
    };
    humantime::format_duration(rounded).to_string()
}

/// Reads a duration in a serde structure: a number of seconds, or text as [`parse`] takes it.
///
/// # Errors
/// The text of [`parse`].
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Whole(u64),
        Part(f64),
        Text(String),
    }
    let parsed = match Written::deserialize(from)? {
        Written::Whole(seconds) => Ok(Duration::from_secs(seconds)),
        Written::Part(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| unreadable(&seconds.to_string())),
        Written::Text(text) => parse(&text),
    };
    parsed.map_err(serde::de::Error::custom)
}

/// Milliseconds since 1970, as the wire form has them.
pub fn unix_millis(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_rounded_up_never_down() {
        let second = Duration::from_secs(1);
        assert_eq!(steps_up(Duration::ZERO, second), 0);
        assert_eq!(steps_up(Duration::from_nanos(1), second), 1);
        assert_eq!(steps_up(second, second), 1);
        assert_eq!(steps_up(Duration::MAX, Duration::from_nanos(1)), u64::MAX);
    }

    #[test]
    fn durations_read_and_show_as_people_write_them() {
        for (text, seconds) in [("90", 90.0), ("0.5", 0.5), ("10m", 600.0), ("1h 30m", 5400.0), ("500ms", 0.5)] {
            assert_eq!(parse(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
        for bad in ["", "-1", "ten", "1 fortnight", "inf", "NaN"] {
            assert!(parse(bad).unwrap_err().to_string().contains("not a duration"), "{bad:?}");
        }
        assert_eq!(show(Duration::from_secs(5400)), "1h 30m");
    }

    #[test]
    fn bounds_are_named_in_the_error() {
        let error = check_ttr(Duration::from_secs(7200), Duration::from_secs(1680), "`consumer_timeout`").unwrap_err();
        assert_eq!(error.to_string(), "a TTR of 2h is above 28m, the limit set by `consumer_timeout`");
        assert!(check_ttr(Duration::from_millis(999), MAX_TTR, "").is_err());
        assert!(check_delay(MAX_DELAY).is_ok() && check_delay(MAX_DELAY + Duration::from_secs(1)).is_err());
    }
}
