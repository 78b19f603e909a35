//! What ends the command early, and with which exit code.

use anyqueue::core::{Error, chain};

use crate::out::plain;

/// All went well.
pub(crate) const OK: u8 = 0;
/// An error.
pub(crate) const ERROR: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// Some of many failed.
pub(crate) const PARTLY: u8 = 3;

/// A reason to end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// Something failed.
    Error(String),
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// Prints it, one line per problem, and says the exit code.
    pub(crate) fn report(&self) -> u8 {
        let (text, code) = match self {
            Self::Usage(text) => (text, USAGE),
            Self::Error(text) => (text, ERROR),
        };
        report(text);
        code
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Error(chain(&e))
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self::Error(e.to_string())
    }
}

/// Prints problems on standard error, one `error:` line each. If nobody reads it, the exit code still tells.
pub(crate) fn report(text: &str) {
    use std::io::Write;
    let mut stderr = std::io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(stderr, "error: {}", plain(line));
    }
}

/// The exit code of `failed` failures among `all`.
pub(crate) fn of_many(failed: u64, all: u64) -> u8 {
    match failed {
        0 => OK,
        _ if failed == all => ERROR,
        _ => PARTLY,
    }
}
