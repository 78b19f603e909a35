//! Foreign errors become ours here.

use anyqueue_core::{Error, ErrorKind};
use lapin::ErrorKind as Foreign;

/// The code that the server closed a channel or a connection with.
pub(crate) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        Foreign::ProtocolError(said) => Some(said.get_id()),
        _ => None,
    }
}

/// What the server said.
pub(crate) fn said(error: &lapin::Error) -> String {
    match error.kind() {
        Foreign::ProtocolError(said) => said.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// The limit in `message size 2000 is larger than configured max size 1000`, and `… than max size 1000`.
pub(crate) fn size_limit(error: &lapin::Error) -> Option<u64> {
    let said = said(error);
    let (before, limit) = said.rsplit_once("max size ")?;
    before.contains("message size").then(|| limit.split_whitespace().next()?.parse().ok()).flatten()
}

/// Whether a queue is there, and nobody can have it: in a cluster a classic one is on one node, and that one is down.
pub(crate) fn node_is_down(error: &lapin::Error) -> bool {
    code(error) == Some(NOT_FOUND) && said(error).contains("is down or inaccessible")
}

pub(crate) const NOT_FOUND: u16 = 404;
pub(crate) const LOCKED: u16 = 405;
pub(crate) const OTHER_ARGUMENTS: u16 = 406;
pub(crate) const DENIED: u16 = 403;

/// What the codes mean that an operator can do something about.
const CODES: &[(u16, ErrorKind, &str)] = &[
    (311, ErrorKind::Full, "the server takes no message as large as this; see its `max_message_size`"),
    (320, ErrorKind::Unavailable, "the server closes its connections, since it stops or an operator wants it"),
    (402, ErrorKind::Denied, "the virtual host is not there, or closed to this user"),
    (DENIED, ErrorKind::Denied, "the server denies this user the access or the right"),
    (NOT_FOUND, ErrorKind::NotFound, "a queue or an exchange is not there; run `queue-runner init`"),
    (LOCKED, ErrorKind::Busy, "another connection has the queue for itself"),
    (OTHER_ARGUMENTS, ErrorKind::Unavailable, "the server closed the channel"),
    (506, ErrorKind::Full, "the server has run out of memory, disk or channels"),
    (530, ErrorKind::Denied, "the virtual host is not there, or closed to this user"),
    (541, ErrorKind::Unavailable, "the server met an error of its own"),
];

/// An error of a request that had no effect.
pub(crate) fn foreign(error: lapin::Error) -> Error {
    if node_is_down(&error) {
        let text = "the node of the cluster that has the queue is down; a quorum queue is on several of them";
        return Error::unavailable(text).because(said(&error));
    }
    let known = code(&error).and_then(|code| CODES.iter().find(|known| known.0 == code));
    match (known, error.kind()) {
        (Some((_, kind, text)), _) => Error::new(*kind, *text).because(said(&error)),
        (None, Foreign::ProtocolError(_) | Foreign::ParsingError(_) | Foreign::InvalidProtocolVersion(_)) => {
            Error::new(ErrorKind::Protocol, "the server and we do not understand each other").because(error)
        }
        (None, Foreign::ChannelsLimitReached) => {
            Error::new(ErrorKind::Full, "the connection has no channel left; raise the server's `channel_max`").because(error)
        }
        (None, _) => Error::unavailable("the connection broke").because(error),
    }
}

/// An error of a request that may have had an effect.
pub(crate) fn lost(error: lapin::Error) -> Error {
    foreign(error).effect_unknown()
}

/// The error of a request without an answer.
pub(crate) fn late(what: &str) -> Error {
    Error::new(ErrorKind::Timeout, format!("the server has not answered `{what}` in time")).effect_unknown()
}

/// The error of a settle that came too late for its channel, so that nothing was said.
pub(crate) fn session_over() -> Error {
    Error::unavailable("the channel that held the task was closed").effect_unknown()
}

/// The error of a handle that was closed.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this broker was closed; connect again")
}

/// The error of a queue that is not there, under settings that let nobody make it.
pub(crate) fn missing(queue: &str) -> Error {
    let text =
        format!("there is no queue `{queue}`, or a part of it is missing, and `create` is \"never\"; run `queue-runner init`");
    Error::new(ErrorKind::NotFound, text)
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn of(code: u16) -> Error {
        let said = AMQPError::from_id(code, "TEXT".into()).expect("a code of the protocol");
        foreign(Foreign::ProtocolError(said).into())
    }

    #[test]
    fn codes_become_kinds_with_what_to_do_next() {
        for (code, kind) in
            [(320, ErrorKind::Unavailable), (403, ErrorKind::Denied), (404, ErrorKind::NotFound), (405, ErrorKind::Busy)]
        {
            let error = of(code);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(anyqueue_core::chain(&error).contains("TEXT"));
        }
        let text = "NOT_FOUND - home node 'a@b' of durable queue 'q' in vhost '/' is down or inaccessible";
        let down = AMQPError::from_id(404, text.into()).expect("a code of the protocol");
        assert_eq!(foreign(Foreign::ProtocolError(down).into()).kind(), ErrorKind::Unavailable, "to make it anew is no help");
        assert!(foreign(Foreign::MissingHeartbeatError.into()).is_retryable());
        assert_eq!(lost(Foreign::MissingHeartbeatError.into()).effect(), anyqueue_core::Effect::Unknown);
    }
}
