//! The clocks: the system's, and one that tests can move.

use std::time::{Duration, SystemTime};

use anyqueue_core::{BoxFuture, Clock, Moment};

/// The machine's clock. It goes on while the machine is suspended, as brokers' clocks do.
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
            // Tokio's timers stand still while the machine is suspended, so the time left is looked at again.
            while let left @ 1.. = until.since(Moment::boot_time()).as_nanos() {
                tokio::time::sleep(Duration::from_nanos(left.min(60_000_000_000) as u64)).await;
            }
        })
    }
}

/// The clock of a tokio runtime, which tests pause and move: `#[tokio::test(start_paused = true)]`,
/// `tokio::time::advance`. A paused runtime jumps to the next timer when nothing else is left to do.
#[derive(Debug, Clone, Copy)]
pub struct TestClock {
    origin: tokio::time::Instant,
    wall: SystemTime,
}

impl TestClock {
    /// A clock that starts now. Call it inside a runtime.
    pub fn start() -> Self {
        Self { origin: tokio::time::Instant::now(), wall: SystemTime::now() }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        Moment::since_origin(self.origin.elapsed())
    }

    fn wall(&self) -> SystemTime {
        self.wall + self.origin.elapsed()
    }

    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(self.origin + until.elapsed_since_origin()))
    }
}
