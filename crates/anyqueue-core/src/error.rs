//! One error type for every broker: what failed, whether it may have had an effect, what to do next.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// A shorthand for results with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A boxed error of any origin.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What went wrong, as something code can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The broker cannot be reached, or the connection broke. Retryable.
    Unavailable,
    /// The broker answered later than the time given. Retryable.
    Timeout,
    /// The broker asks for fewer requests. Retryable after a pause.
    Throttled,
    /// Another process holds what is needed (a file lock, say). Retryable.
    Busy,
    /// No room left: a full disk, a broker out of memory, a draining server. Retryable once there is room.
    Full,
    /// The store refuses writes: a read-only file or a replica. Retryable once that has changed.
    ReadOnly,
    /// The receipt is stale: the lease ended, or somebody else holds the task by now.
    LeaseLost,
    /// The body is larger than the broker takes. Both in bytes.
    TooLarge {
        /// The size of the body.
        size: u64,
        /// The largest body that this broker takes.
        limit: u64,
    },
    /// The TTR is above what the broker can keep.
    TtrTooLong {
        /// The largest TTR that this broker can keep.
        limit: Duration,
    },
    /// The delay is above what the contract allows.
    DelayTooLong {
        /// The longest delay.
        limit: Duration,
    },
    /// The lease cannot be extended any further.
    TouchLimit {
        /// The longest time a task may be reserved in all.
        limit: Duration,
    },
    /// The queue or the task is not there.
    NotFound,
    /// The broker, as configured, cannot do this.
    Unsupported,
    /// The caller's input is wrong: a name, a number, a URL.
    Invalid,
    /// The settings are wrong.
    Config,
    /// The broker refuses the user or the right.
    Denied,
    /// The store is damaged.
    Corrupt,
    /// The store was written by a newer version.
    TooNew,
    /// This handle has been closed.
    Closed,
    /// The broker said something that the adapter does not understand.
    Protocol,
}

/// Whether a failed call may have had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing has happened: retry freely.
    None,
    /// It may have happened: retry only with the same task id.
    Unknown,
}

/// An error of a broker, an adapter or the facade.
///
/// Its text is lower case, starts with the operation, and carries the values that matter as fields.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    effect: Effect,
    operation: Option<&'static str>,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<BoxError>,
}

impl Error {
    /// Makes an error of a kind, without an effect.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            effect: Effect::None,
            operation: None,
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// Makes a [`ErrorKind::Unavailable`] error.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// Makes a [`ErrorKind::LeaseLost`] error.
    pub fn lease_lost() -> Self {
        Self::new(ErrorKind::LeaseLost, "the lease has ended; another worker may hold the task")
    }

    /// Makes a [`ErrorKind::Invalid`] error.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Makes a [`ErrorKind::Config`] error.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Makes a [`ErrorKind::TooLarge`] error; both sizes in bytes.
    pub fn too_large(size: u64, limit: u64) -> Self {
        Self::new(
            ErrorKind::TooLarge { size, limit },
            format!("the task is {size} bytes long and this broker takes at most {limit}; send a reference to the data instead"),
        )
    }

    /// Says that the call may have had an effect.
    #[must_use]
    pub fn effect_unknown(mut self) -> Self {
        self.0.effect = Effect::Unknown;
        self
    }

    /// Says that it had no effect: that of another task of the same request, which was not sent, say.
    #[must_use]
    pub fn without_effect(mut self) -> Self {
        self.0.effect = Effect::None;
        self
    }

    /// Names the operation (`send`, `reserve`, …), unless one is named already.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Adds a field, such as `queue` and its name.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        let fact = (key, value.to_string());
        if !self.0.context.contains(&fact) {
            self.0.context.push(fact);
        }
        self
    }

    /// Names the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the call may have had an effect.
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// The operation that failed, if it was named.
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The message alone, without operation, fields and cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The fields, in the order they were added.
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// Whether the same call may succeed later without anybody changing it.
    pub fn is_retryable(&self) -> bool {
        use ErrorKind::*;
        matches!(self.0.kind, Unavailable | Timeout | Throttled | Busy | Full | ReadOnly)
    }

    /// Whether this says that a receipt is stale.
    pub fn is_lease_lost(&self) -> bool {
        self.0.kind == ErrorKind::LeaseLost
    }

    /// Makes a second error that says the same, for callers that share one failed request.
    ///
    /// The cause becomes text.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let inner = &self.0;
        Self(Box::new(Inner {
            kind: inner.kind,
            effect: inner.effect,
            operation: inner.operation,
            message: inner.message.clone(),
            context: inner.context.clone(),
            source: inner.source.as_ref().map(|s| chain(s.as_ref()).into()),
        }))
    }
}

/// Writes an error and its causes in one line, `a: b: c`.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operation) = self.0.operation {
            write!(f, "{operation}: ")?;
        }
        f.write_str(&self.0.message)?;
        for (n, (key, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{key} {value}", if n == 0 { " (" } else { ", " })?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}: {self}", self.0.kind, self.0.effect)?;
        match &self.0.source {
            Some(source) => write!(f, ": {}", chain(source.as_ref())),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_operation_fields_and_cause() {
        let error = Error::unavailable("connection refused")
            .during("send")
            .during("connect")
            .with("queue", "images")
            .because("os error 111");
        assert_eq!(error.to_string(), "send: connection refused (queue images)");
        assert_eq!(chain(&error), "send: connection refused (queue images): os error 111");
        assert!(error.is_retryable());
        assert_eq!(error.duplicate().effect_unknown().effect(), Effect::Unknown);
    }
}
