//! What a worker returns.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use anyqueue_core::{BoxError, chain};

/// What is to become of a task. Returning it is what counts; nothing called before changes it.
#[derive(Debug)]
pub struct Outcome {
    pub(crate) kind: Kind,
    pub(crate) stop: bool,
}

/// The outcomes, each of which the runner turns into one settlement.
#[derive(Debug)]
pub(crate) enum Kind {
    Done,
    /// Again, counted as a failed attempt; after the policy's back-off unless a time is given.
    Retry(Option<Duration>),
    Snooze(Duration),
    Hold(String),
    Discard(String),
    Failed {
        reason: String,
        permanent: bool,
    },
}

impl Outcome {
    const fn of(kind: Kind) -> Self {
        Self { kind, stop: false }
    }

    /// The task is done and gone.
    pub const fn done() -> Self {
        Self::of(Kind::Done)
    }

    /// Again after the policy's back-off. Counted.
    pub const fn retry() -> Self {
        Self::of(Kind::Retry(None))
    }

    /// Again after this time. Counted.
    pub const fn retry_in(delay: Duration) -> Self {
        Self::of(Kind::Retry(Some(delay)))
    }

    /// Again after this time, with nothing counted: the task waits for something.
    pub const fn snooze(delay: Duration) -> Self {
        Self::of(Kind::Snooze(delay))
    }

    /// Park the task until somebody looks.
    pub fn hold(reason: impl Into<String>) -> Self {
        Self::of(Kind::Hold(reason.into()))
    }

    /// The task is gone, recorded as discarded.
    pub fn discard(reason: impl Into<String>) -> Self {
        Self::of(Kind::Discard(reason.into()))
    }

    /// A failed attempt: again after the back-off, or held when the attempts are used up.
    pub fn failed(error: impl Into<BoxError>) -> Self {
        let error = error.into();
        let permanent = is_permanent(error.as_ref());
        Self::of(Kind::Failed { reason: chain(error.as_ref()), permanent })
    }

    /// A failure that no further attempt can mend: held at once.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self::of(Kind::Failed { reason: chain(error.into().as_ref()), permanent: true })
    }

    /// The same, and this runner stops cleanly before its next task.
    #[must_use]
    pub fn and_stop(mut self) -> Self {
        self.stop = true;
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Done => f.write_str("done"),
            Kind::Retry(None) => f.write_str("retry"),
            Kind::Retry(Some(delay)) => write!(f, "retry in {}", anyqueue_core::time::show(*delay)),
            Kind::Snooze(delay) => write!(f, "snooze {}", anyqueue_core::time::show(*delay)),
            Kind::Hold(reason) => write!(f, "hold: {reason}"),
            Kind::Discard(reason) => write!(f, "discard: {reason}"),
            Kind::Failed { reason, permanent: false } => write!(f, "failed: {reason}"),
            Kind::Failed { reason, permanent: true } => write!(f, "failed for good: {reason}"),
        }
    }
}

/// Marks an error as one that no further attempt can mend: `Err(Permanent::new(error).into())`.
#[derive(Debug)]
pub struct Permanent(BoxError);

impl Permanent {
    /// Marks an error.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Permanent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Permanent {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

fn is_permanent(error: &(dyn StdError + 'static)) -> bool {
    error.is::<Permanent>() || error.source().is_some_and(is_permanent)
}

/// What a worker may return: `()`, an [`Outcome`], or a `Result` of one of them with any error.
pub trait IntoOutcome {
    /// The outcome that it means.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::done()
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl IntoOutcome for Infallible {
    fn into_outcome(self) -> Outcome {
        match self {}
    }
}

impl<T: IntoOutcome, E: Into<BoxError>> IntoOutcome for Result<T, E> {
    fn into_outcome(self) -> Outcome {
        match self {
            Ok(value) => value.into_outcome(),
            Err(error) => Outcome::failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<R: IntoOutcome>(result: R) -> String {
        result.into_outcome().to_string()
    }

    #[test]
    fn results_become_outcomes_with_their_chain() {
        assert_eq!(reason(()), "done");
        assert_eq!(reason(Ok::<_, std::io::Error>(Outcome::snooze(Duration::from_secs(90)))), "snooze 1m 30s");
        assert_eq!(reason(Err::<(), _>("no disk")), "failed: no disk");
        let nested = anyqueue_core::Error::unavailable("cannot render").because(Permanent::new("no such font"));
        assert_eq!(reason(Err::<(), _>(nested)), "failed for good: cannot render: no such font");
    }
}
