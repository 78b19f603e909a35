//! What a job server says, as errors.

use std::io;

use anyqueue_core::{Error, ErrorKind};
use gearman::GearmanError;

use crate::packet::Reply;

/// An answer that is none to this request.
pub(crate) fn unexpected(reply: &Reply, request: &'static str) -> Error {
    match reply {
        Reply::Refused { code, text } => refused(code, text, request),
        other => Error::new(ErrorKind::Protocol, format!("the job server answered {} to `{request}`", word(other))),
    }
}

fn refused(code: &str, text: &str, request: &'static str) -> Error {
    let said = format!("({request}: {code}, {text})");
    if text.contains("full") {
        let help = "the function has as many jobs as `maxqueue` allows; let workers catch up, or raise it with `gearadmin`";
        return Error::new(ErrorKind::Full, format!("{help} {said}"));
    }
    if code.contains("QUEUE_ERROR") {
        return Error::new(ErrorKind::Full, format!("the job server cannot store the job; see its log {said}"));
    }
    if code.contains("TOO_LARGE") {
        return Error::invalid(format!("a unique key has at most 63 bytes {said}"));
    }
    Error::new(ErrorKind::Protocol, format!("the job server refused {said}"))
}

fn word(reply: &Reply) -> &'static str {
    match reply {
        Reply::Created(_) => "JOB_CREATED",
        Reply::Assigned(_) => "JOB_ASSIGN_UNIQ",
        Reply::NoJob => "NO_JOB",
        Reply::Status(_) => "STATUS_RES_UNIQUE",
        Reply::Echo => "ECHO_RES",
        Reply::Refused { .. } => "ERROR",
    }
}

/// A broken connection.
pub(crate) fn io(error: io::Error, server: &str) -> Error {
    Error::unavailable(format!("the connection to the job server at {server} is broken; the next call connects anew"))
        .because(error)
}

/// A job server that cannot be reached.
pub(crate) fn unreachable(error: io::Error, server: &str) -> Error {
    Error::unavailable(format!("no job server answers at {server}; is gearmand running there?")).because(error)
}

/// Bytes that are no packet.
pub(crate) fn malformed(error: GearmanError, server: &str) -> Error {
    let text = format!("what answers at {server} does not speak Gearman's protocol");
    Error::new(ErrorKind::Protocol, text).because(error)
}

/// An answer of the text protocol that does not come or makes no sense.
pub(crate) fn admin(error: GearmanError, server: &str) -> Error {
    match error {
        GearmanError::Io(e) => io(e, server),
        GearmanError::ConnectionClosed => io(io::ErrorKind::UnexpectedEof.into(), server),
        other => {
            Error::new(ErrorKind::Protocol, format!("the job server at {server} did not understand a question")).because(other)
        }
    }
}

/// A server that says nothing although an answer is due.
pub(crate) fn silent(server: &str, seconds: u64) -> Error {
    Error::new(ErrorKind::Timeout, format!("the job server at {server} has said nothing for {seconds} s; connecting anew"))
}

/// This handle was closed.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this broker has been closed; connect anew")
}
