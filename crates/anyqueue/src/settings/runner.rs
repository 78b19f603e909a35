//! `[runner]`: how one process works.

use std::time::Duration;

use super::queue::MOST_SLOTS;
use super::table::Table;
use super::value;

/// What holds for one runner, whatever its queues.
#[derive(Debug, Clone, PartialEq)]
pub struct RunnerSettings {
    /// How many tasks run at the same time. Default 10.
    pub slots: usize,
    /// Which queue gets a freed slot. Default: fair.
    pub strategy: Strategy,
    /// How many tasks are fetched ahead of free slots at most. Default 1024.
    pub prefetch: usize,
    /// How long running tasks may go on when the runner stops. Default 30 s.
    pub grace: Duration,
    /// Stop after so many tasks.
    pub max_tasks: Option<u64>,
    /// Stop after so many seconds in a row with nothing to do.
    pub max_idle_cycles: Option<u64>,
    /// Stop after so long.
    pub max_time: Option<Duration>,
    /// Stop when the process uses more memory than this, in bytes.
    pub memory_limit: Option<u64>,
}

/// Which queue gets a freed slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The one that has used the least of its share so far.
    #[default]
    Fair,
    /// One at random, in proportion to the weights.
    Weighted,
    /// The first one that has a task, in the order in which they were named; of all, the heaviest first.
    Strict,
}

impl Strategy {
    /// All strategies with their words in the settings.
    pub const ALL: [(&'static str, Self); 3] = [("fair", Self::Fair), ("weighted", Self::Weighted), ("strict", Self::Strict)];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fair => "fair",
            Self::Weighted => "weighted",
            Self::Strict => "strict",
        }
    }
}

impl Default for RunnerSettings {
    fn default() -> Self {
        Self {
            slots: 10,
            strategy: Strategy::Fair,
            prefetch: 1024,
            grace: Duration::from_secs(30),
            max_tasks: None,
            max_idle_cycles: None,
            max_time: None,
            memory_limit: None,
        }
    }
}

impl RunnerSettings {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let base = Self::default();
        let number = |v: &_| value::optional(v, |v| value::whole(v, 1..=u64::MAX));
        let runner = Self {
            slots: table.take("slots", |v| value::count(v, 1..=MOST_SLOTS)).unwrap_or(base.slots),
            strategy: table.take("strategy", |v| value::choice(v, &Strategy::ALL)).unwrap_or(base.strategy),
            prefetch: table.take("prefetch", |v| value::count(v, 0..=MOST_SLOTS)).unwrap_or(base.prefetch),
            grace: table.take("grace", value::duration).unwrap_or(base.grace),
            max_tasks: table.take("max_tasks", number).flatten(),
            max_idle_cycles: table.take("max_idle_cycles", number).flatten(),
            max_time: table.take("max_time", |v| value::optional(v, value::period)).flatten(),
            memory_limit: table.take("memory_limit", |v| value::optional(v, value::size)).flatten(),
        };
        table.finish();
        runner
    }
}
