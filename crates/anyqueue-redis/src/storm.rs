//! Rings that bring nothing: a queue is rung for all who wait, and most of them come too late, or want other priorities.
//! Whoever is rung in vain again and again lets some time go by before it looks, and leaves no mark until then.

use std::time::Duration;

use anyqueue_core::Moment;

/// Rings in vain that are further apart than this are no storm.
const APART: Duration = Duration::from_millis(20);
/// The longest pause is 2 to the power of this, in milliseconds.
const LONGEST: u32 = 6;

/// The rings of one consumer.
#[derive(Debug, Default)]
pub(crate) struct Storm {
    rung: bool,
    vain: u32,
    last: Option<Moment>,
}

impl Storm {
    /// A claim found something.
    pub(crate) fn over(&mut self) {
        *self = Self::default();
    }

    /// A claim found nothing.
    pub(crate) fn vain(&mut self, now: Moment) {
        if !std::mem::take(&mut self.rung) {
            return;
        }
        let near = self.last.is_some_and(|last| now < last + self.longest() + APART);
        self.vain = if near { (self.vain + 1).min(LONGEST + 1) } else { self.vain / 2 };
        self.last = Some(now);
    }

    /// How long to wait after a ring.
    pub(crate) fn rung(&mut self) -> Duration {
        self.rung = true;
        self.longest().mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn longest(&self) -> Duration {
        self.vain.checked_sub(1).map_or(Duration::ZERO, |doubled| Duration::from_millis(1 << doubled))
    }
}

#[cfg(test)]
mod tests {
    use anyqueue_core::Clock;
    use anyqueue_testkit::SystemClock;

    use super::*;

    /// Rings so many times in vain, this far apart besides the pauses; how long the last pause was.
    fn rings(storm: &mut Storm, now: &mut Moment, count: u32, apart: Duration) -> Duration {
        let mut pause = Duration::ZERO;
        for _ in 0..count {
            pause = storm.rung();
            *now = *now + pause + apart;
            storm.vain(*now);
        }
        pause
    }

    #[test]
    fn only_a_storm_makes_a_consumer_wait() {
        let (mut storm, mut now) = (Storm::default(), SystemClock.now());
        assert_eq!(rings(&mut storm, &mut now, 50, Duration::from_millis(50)), Duration::ZERO, "twenty a second are none");
        let pause = rings(&mut storm, &mut now, 50, Duration::from_millis(1));
        assert!((32..=64).contains(&pause.as_millis()), "{pause:?}");
        storm.over();
        assert_eq!(storm.rung(), Duration::ZERO, "a task ends it");
        rings(&mut storm, &mut now, 50, Duration::from_millis(1));
        let pause = rings(&mut storm, &mut now, 20, Duration::from_millis(100));
        assert_eq!(pause, Duration::ZERO, "and so does silence");
        storm.vain(now);
        storm.vain(now);
        assert_eq!(storm.rung(), Duration::ZERO, "who looks without being rung is no storm");
    }
}
