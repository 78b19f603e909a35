//! What the server says, as errors.

use std::io;

use anyqueue_core::{Error, ErrorKind};

use crate::wire::{Malformed, Refusal, Reply};

/// An answer that is none to this command.
pub(crate) fn unexpected(reply: &Reply, command: &'static str) -> Error {
    match reply {
        Reply::Refused(refusal) => refused(*refusal, command),
        Reply::Buried(_) => Error::new(
            ErrorKind::Full,
            format!("beanstalkd had no memory to put the job in line and buried it ({command}: BURIED)"),
        ),
        Reply::NotFound => {
            Error::new(ErrorKind::NotFound, format!("beanstalkd knows no such job or tube ({command}: NOT_FOUND)"))
        }
        other => Error::new(ErrorKind::Protocol, format!("beanstalkd answered {} to `{command}`", word(other))),
    }
}

fn refused(refusal: Refusal, command: &'static str) -> Error {
    let word = refusal.word();
    let (kind, text) = match refusal {
        Refusal::OutOfMemory => {
            (ErrorKind::Full, "beanstalkd has no memory or no room in its binlog left; let workers catch up or give it more")
        }
        Refusal::Draining => (ErrorKind::Full, "beanstalkd is draining: it takes no tasks until it is started anew"),
        Refusal::JobTooBig => (ErrorKind::Invalid, "the task is larger than beanstalkd takes; raise its `-z`"),
        Refusal::UnknownCommand => (ErrorKind::Unsupported, "this beanstalkd is too old; version 1.12 or later is needed"),
        Refusal::InternalError => (ErrorKind::Protocol, "beanstalkd found a fault in itself; see its log"),
        Refusal::BadFormat | Refusal::ExpectedCrlf => (ErrorKind::Protocol, "beanstalkd did not understand what it was sent"),
    };
    let error = Error::new(kind, format!("{text} ({command}: {word})"));
    // It is said after a job was changed in memory and could not be written down, say.
    if refusal == Refusal::InternalError { error.effect_unknown() } else { error }
}

fn word(reply: &Reply) -> &'static str {
    match reply {
        Reply::Inserted(_) => "INSERTED",
        Reply::Buried(_) => "BURIED",
        Reply::Using(_) => "USING",
        Reply::Reserved(..) => "RESERVED",
        Reply::TimedOut => "TIMED_OUT",
        Reply::DeadlineSoon => "DEADLINE_SOON",
        Reply::Deleted => "DELETED",
        Reply::Released => "RELEASED",
        Reply::Touched => "TOUCHED",
        Reply::Watching(_) => "WATCHING",
        Reply::NotIgnored => "NOT_IGNORED",
        Reply::Found(..) => "FOUND",
        Reply::Kicked(_) => "KICKED",
        Reply::Ok(_) => "OK",
        Reply::Paused => "PAUSED",
        Reply::NotFound => "NOT_FOUND",
        Reply::Refused(refusal) => refusal.word(),
    }
}

/// A connection that could not be made or broke.
pub(crate) fn io(error: io::Error, server: &str) -> Error {
    Error::unavailable(format!("no connection to beanstalkd at {server}")).because(error)
}

/// Bytes that are no reply: perhaps it is not beanstalkd at all.
pub(crate) fn malformed(error: &Malformed, server: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("what answers at {server} is not beanstalkd: {error}"))
}

/// A server that says nothing.
pub(crate) fn silent(server: &str, seconds: u64) -> Error {
    Error::new(ErrorKind::Timeout, format!("beanstalkd at {server} has been silent for {seconds} s; the connection is given up"))
}

/// Servers that may have tasks, or none.
pub(crate) fn unheard() -> Error {
    Error::new(ErrorKind::Timeout, "beanstalkd has not said in time whether it has tasks; ask again")
}

/// One of several servers could not be asked, and the others know of nothing.
pub(crate) fn not_asked(server: &str, why: &Error) -> Error {
    let text = format!(
        "beanstalkd at {server} does not answer, and the other servers have nothing of the kind; ask again when it is back"
    );
    Error::unavailable(text).because(why.duplicate())
}

/// A handle that was closed.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this broker was closed; connect again")
}

#[cfg(test)]
mod tests {
    use anyqueue_core::Effect;

    use super::*;

    #[test]
    fn a_refusal_says_what_to_do_and_whether_to_try_again() {
        let draining = unexpected(&Reply::Refused(Refusal::Draining), "put");
        assert!(draining.is_retryable() && draining.to_string().ends_with("(put: DRAINING)"), "{draining}");
        assert!(unexpected(&Reply::Refused(Refusal::OutOfMemory), "put").is_retryable());
        assert!(unexpected(&Reply::Buried(Some(3)), "put").is_retryable());
        let fault = unexpected(&Reply::Refused(Refusal::InternalError), "put");
        assert_eq!((draining.effect(), fault.effect()), (Effect::None, Effect::Unknown));
        assert_eq!(unexpected(&Reply::Refused(Refusal::UnknownCommand), "x").kind(), ErrorKind::Unsupported);
        assert_eq!(unexpected(&Reply::Deleted, "put").to_string(), "beanstalkd answered DELETED to `put`");
        assert_eq!(unexpected(&Reply::NotFound, "peek").kind(), ErrorKind::NotFound);
    }
}
