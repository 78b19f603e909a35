//! What a queue's settings and workers ask of a broker, checked all at once.

use std::time::Duration;

use crate::capabilities::{Capabilities, Support};
use crate::priority::PriorityRange;
use crate::time::show;

/// What one queue needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirements {
    /// Which priorities the worker takes.
    pub priorities: PriorityRange,
    /// The longest TTR in use.
    pub ttr: Duration,
    /// The longest time that somebody lets an attempt run under automatic touch, nought if nobody says; `None` if leases are not
    /// renewed.
    pub reserved: Option<Duration>,
    /// The longest delay in use.
    pub delay: Duration,
    /// Refuse what is emulated.
    pub strict: bool,
}

impl Default for Requirements {
    fn default() -> Self {
        Self {
            priorities: PriorityRange::ALL,
            ttr: crate::time::DEFAULT_TTR,
            reserved: None,
            delay: Duration::ZERO,
            strict: false,
        }
    }
}

impl Requirements {
    /// All that a broker cannot do for this queue, one sentence each. Empty: it can be used.
    pub fn check(&self, capabilities: &Capabilities) -> Vec<String> {
        let mut problems = Vec::new();
        let mut needs = |verb: &str, support: Support| match support {
            Support::Native(()) => {}
            Support::Emulated((), caveat) if self.strict => {
                problems.push(format!("{verb} is emulated and the settings say strict: {caveat}"))
            }
            Support::Emulated(..) => {}
            Support::Needs((), what) => problems.push(format!("{verb} needs {what}")),
        };
        // Retry, release and hold are what the runner itself does to any task.
        for (verb, support) in [("retry", capabilities.retry), ("release", capabilities.release), ("hold", capabilities.hold)] {
            needs(verb, support);
        }
        needs("priority", capabilities.priority.plain());
        needs("ttr", capabilities.ttr.plain());
        if !self.priorities.is_all() {
            needs(&format!("taking priorities {} only", self.priorities), capabilities.priority_ranges);
        }
        // A retry is delayed by its back-off, so every queue needs delays.
        needs("delay", capabilities.delay.plain());
        let limits = capabilities.delay.limits();
        if self.delay > limits.max {
            problems.push(format!("a delay of {} is above the broker's {}", show(self.delay), show(limits.max)));
        }
        let limits = capabilities.ttr.limits();
        if self.ttr > limits.max {
            problems.push(format!("a TTR of {} is above the broker's {}", show(self.ttr), show(limits.max)));
        }
        if let Some(reserved) = self.reserved {
            if let Some(caveat) = capabilities.touch.caveat().filter(|_| self.strict) {
                problems.push(format!("touch is emulated and the settings say strict: {caveat}"));
            }
            if let Some(max) = capabilities.touch.limits().filter(|max| reserved > *max) {
                problems.push(format!(
                    "an attempt may run {}, but a task can be reserved for {max} at most; set `time_limit` to {max} or less",
                    show(reserved),
                    max = show(max)
                ));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Bounds;

    #[test]
    fn all_mismatches_are_listed_at_once() {
        let hour = Duration::from_secs(3600);
        let capabilities = Capabilities {
            priority_ranges: Support::Needs((), "`bands = […]`"),
            ttr: Support::Emulated(Bounds { max: hour, step: hour }, "the runner's clock"),
            touch: Support::Native(Some(hour)),
            ..Capabilities::FULL
        };
        let wanted = Requirements {
            priorities: "10".parse().unwrap(),
            ttr: hour * 2,
            reserved: Some(hour * 2),
            ..Requirements::default()
        };
        assert_eq!(
            wanted.check(&capabilities),
            [
                "taking priorities 10 only needs `bands = […]`",
                "a TTR of 2h is above the broker's 1h",
                "an attempt may run 2h, but a task can be reserved for 1h at most; set `time_limit` to 1h or less",
            ]
        );
        let strict = Requirements { strict: true, ..Requirements::default() };
        assert_eq!(strict.check(&capabilities), ["ttr is emulated and the settings say strict: the runner's clock"]);
        assert!(Requirements::default().check(&Capabilities::FULL).is_empty());
    }
}
