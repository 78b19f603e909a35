//! How much a claim asks for. An answer that does not come within the request's time is asked for in smaller portions.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyqueue_core::{Effect, Error, ErrorKind, time};

/// Tasks that one claim takes at most.
const MOST: usize = 1024;
/// After how many bytes a claim takes no more.
const ENOUGH: usize = 8 << 20;
/// Halved as often as this, a portion is one task.
const SMALLEST: u32 = MOST.ilog2();

/// What the next claim of a consumer asks for.
#[derive(Debug, Default)]
pub(crate) struct Portion(AtomicU32);

/// What one claim asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) tasks: usize,
    pub(crate) bytes: usize,
    halved: u32,
}

impl Portion {
    pub(crate) fn of(&self, most: usize) -> Asked {
        let halved = self.0.load(Ordering::Relaxed);
        Asked { tasks: (most.clamp(1, MOST) >> halved).max(1), bytes: ENOUGH >> halved, halved }
    }

    /// An answer came. One that took a small part of its time may be twice as large the next time.
    pub(crate) fn came(&self, asked: Asked, took: Duration, limit: Duration) {
        if asked.halved > 0 && took < limit / 4 {
            self.0.store(asked.halved - 1, Ordering::Relaxed);
        }
    }

    /// No answer came in time: less is asked for, down to one task. Where that was one already, the error says so.
    pub(crate) fn failed(&self, asked: Asked, error: Error, limit: Duration) -> Error {
        if error.kind() != ErrorKind::Timeout || error.effect() != Effect::Unknown {
            return error;
        }
        // What a claim of fewer tasks than a portion asked for is halved at once.
        let tasks = asked.tasks.ilog2();
        self.0.store((asked.halved + 1).max(SMALLEST - tasks + 1).min(SMALLEST), Ordering::Relaxed);
        if asked.tasks > 1 {
            return error;
        }
        let text = format!(
            "the answer with a single task did not come within {}; if the server is well, the task is too large for the \
             network: raise `liveness` (half of the time of a request) and the timeout, or send references instead of data",
            time::show(limit)
        );
        Error::new(ErrorKind::Timeout, text).effect_unknown().because(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(4);

    fn late() -> Error {
        Error::new(ErrorKind::Timeout, "late").effect_unknown()
    }

    #[test]
    fn a_portion_shrinks_to_one_task_and_grows_again() {
        let portion = Portion::default();
        let full = portion.of(5000);
        assert_eq!((full.tasks, full.bytes), (MOST, ENOUGH));
        portion.failed(full, late(), LIMIT);
        assert_eq!((portion.of(5000).tasks, portion.of(5000).bytes), (MOST / 2, ENOUGH / 2));
        for _ in 0..12 {
            portion.failed(portion.of(5000), late(), LIMIT);
        }
        assert_eq!(portion.of(5000).tasks, 1);
        assert!(portion.failed(portion.of(5000), late(), LIMIT).to_string().contains("single task did not come within 4s"));
        portion.came(portion.of(5000), LIMIT / 2, LIMIT);
        assert_eq!(portion.of(5000).tasks, 1, "twice as much would just not come in time");
        for _ in 0..12 {
            portion.came(portion.of(5000), LIMIT / 8, LIMIT);
        }
        assert_eq!(portion.of(5000), full);
    }

    #[test]
    fn few_tasks_are_halved_at_once_and_other_errors_halve_nothing() {
        let portion = Portion::default();
        portion.failed(portion.of(8), Error::unavailable("gone").effect_unknown(), LIMIT);
        assert_eq!(portion.of(8).tasks, 8);
        portion.failed(portion.of(8), late(), LIMIT);
        assert_eq!(portion.of(8).tasks, 1, "what is asked for is divided, whoever asks");
    }
}
