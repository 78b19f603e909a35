//! Two clocks for tests: the machine's, and one that moves as fast as the test can.

use std::time::{Duration, SystemTime};

use anyqueue_core::{BoxFuture, Clock, Moment};
use tokio::time::Instant;

/// So far ahead that no test gets there, and still within what timers can hold.
const FAR: Duration = Duration::from_secs(20 * 365 * 86_400);

/// The machine's clock; it goes on while the machine is suspended.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment::boot_time()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let left = until.since(Moment::boot_time());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(FAR)).await;
            }
        })
    }
}

/// A clock over tokio's paused time: in a runtime made with `start_paused`, it jumps to the next moment that somebody
/// waits for as soon as nothing else is left to do.
#[derive(Debug, Clone, Copy)]
pub struct TestClock {
    origin: Instant,
}

impl TestClock {
    /// The time of day at the clock's origin.
    const ORIGIN: Duration = Duration::from_secs(1_700_000_000);

    /// A clock that starts now. Call it inside the runtime.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        Moment::since_origin(self.origin.elapsed())
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Self::ORIGIN + self.origin.elapsed()
    }

    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()> {
        let until = self.origin + until.elapsed_since_origin().min(FAR);
        Box::pin(async move {
            // Timers have steps of a millisecond; looking again makes sure that nobody wakes early.
            while Instant::now() < until {
                tokio::time::sleep_until(until).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_test_clock_jumps_over_hours() {
        let (clock, began) = (TestClock::start(), std::time::Instant::now());
        let (first, day) = (clock.now(), clock.wall());
        clock.sleep_until(first + Duration::from_secs(7200)).await;
        assert!(clock.now().since(first) >= Duration::from_secs(7200));
        assert!(clock.wall().duration_since(day).unwrap() >= Duration::from_secs(7200));
        assert!(began.elapsed() < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn the_system_clock_is_never_early() {
        let until = SystemClock.now() + Duration::from_millis(20);
        SystemClock.sleep_until(until).await;
        assert!(SystemClock.now() >= until);
    }
}
