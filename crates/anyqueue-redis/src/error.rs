//! Foreign errors become ours here.

use anyqueue_core::{Error, ErrorKind};
use redis::RedisError;

/// Why a request to one server got no good answer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// There is no connection: nothing was sent.
    Down(Error),
    /// The connection broke, or the answer is late: it may have happened.
    Lost(RedisError),
    /// The server answered with an error.
    Refused(RedisError),
}

impl Fault {
    /// The code that the server's answer begins with; scripts of Redis 6 hide it in the text.
    pub(crate) fn code(&self) -> Option<&str> {
        let Self::Refused(error) = self else { return None };
        let code = error.code()?;
        let hidden = || error.detail().and_then(|text| CODES.iter().find(|code| text.contains(&format!("-{} ", code.0))));
        if code == "ERR" { hidden().map(|code| code.0).or(Some(code)) } else { Some(code) }
    }

    /// Whether the server is no master (any more).
    pub(crate) fn is_of_a_replica(&self) -> bool {
        matches!(self.code(), Some("READONLY" | "MASTERDOWN"))
    }

    /// Says what happened at which server, and what to do next.
    pub(crate) fn explain(self, server: &dyn std::fmt::Display) -> Error {
        let code = self.code().map(str::to_owned);
        match self {
            Self::Down(error) => error,
            Self::Lost(error) if error.is_timeout() => {
                let text = format!("{server} does not answer in time");
                Error::new(ErrorKind::Timeout, text).effect_unknown().because(error)
            }
            Self::Lost(error) => Error::unavailable(format!("the connection to {server} broke")).effect_unknown().because(error),
            Self::Refused(error) => refused(code.as_deref().unwrap_or_default(), error, server),
        }
    }
}

/// What the codes mean that an operator can do something about. Nothing has happened with any of them; with another error
/// a script may have done a part of its work.
const CODES: &[(&str, ErrorKind, &str)] = &[
    ("OOM", ErrorKind::Full, "is out of memory; raise its `maxmemory`, or let the workers empty the queues"),
    ("READONLY", ErrorKind::ReadOnly, "is a replica and takes no writes; name the master, or its sentinels and `master`"),
    ("LOADING", ErrorKind::Unavailable, "loads its data still; it goes on once that is done"),
    ("MISCONF", ErrorKind::Full, "cannot write its data to disk and takes no writes; see its log, free some room"),
    ("NOREPLICAS", ErrorKind::Unavailable, "has fewer replicas than its `min-replicas-to-write`; bring them back"),
    ("MASTERDOWN", ErrorKind::Unavailable, "is a replica without its master; bring that back"),
    ("CLUSTERDOWN", ErrorKind::Unavailable, "says that the cluster is down; bring back the nodes that are missing"),
    ("TRYAGAIN", ErrorKind::Unavailable, "moves the queue to another node just now; it goes on once that is done"),
    ("MOVED", ErrorKind::Unavailable, "sends us from node to node; the cluster does not agree on who has the queue"),
    ("ASK", ErrorKind::Unavailable, "still gives the queue to another node; requests go on once that is done"),
    ("NOSCRIPT", ErrorKind::Unavailable, "forgets our scripts as fast as it learns them"),
    ("BUSY", ErrorKind::Busy, "is kept busy by somebody's script; `SCRIPT KILL` ends it"),
    ("NOAUTH", ErrorKind::Denied, "wants a password; write it into the URL, `redis://:password@host`"),
    ("WRONGPASS", ErrorKind::Denied, "does not know this user and password"),
    ("NOPERM", ErrorKind::Denied, "denies this user a right; the crate's documentation lists those that are needed"),
    ("WRONGTYPE", ErrorKind::Config, "has other things under our keys; choose another `prefix`"),
    ("NOPROTO", ErrorKind::Unsupported, "is older than Redis 6; 6.2 or later is needed"),
];

fn refused(code: &str, error: RedisError, server: &dyn std::fmt::Display) -> Error {
    if code == "NOQUEUE" {
        return Error::new(ErrorKind::NotFound, "there is no such queue, and `create` is \"never\"; run `queue-runner init`");
    }
    match CODES.iter().find(|known| known.0 == code) {
        Some((_, kind, text)) => Error::new(*kind, format!("{server} {text}")).because(error),
        None if error.kind() == redis::ErrorKind::AuthenticationFailed => {
            Error::new(ErrorKind::Denied, format!("{server} does not know this user and password")).because(error)
        }
        None => Error::new(ErrorKind::Protocol, format!("{server} refused a request")).effect_unknown().because(error),
    }
}

/// The error of a connection that could not be made. A server that does not let us in is no reason to wait.
pub(crate) fn connecting(error: RedisError, server: &dyn std::fmt::Display) -> Error {
    if error.kind() == redis::ErrorKind::Parse {
        let text = format!("what answers at {server} is not Redis; is the port right, and does it speak TLS (`rediss://`)?");
        return Error::unavailable(text);
    }
    let denied = error.kind() == redis::ErrorKind::AuthenticationFailed;
    let fault = Fault::Refused(error);
    match (fault.code().map(str::to_owned), fault) {
        (Some(code), Fault::Refused(error)) => refused(&code, error, server),
        (None, Fault::Refused(error)) if denied => refused("WRONGPASS", error, server),
        (_, Fault::Refused(error)) => Error::unavailable(format!("{server} cannot be reached")).because(error),
        (_, fault) => fault.explain(server),
    }
}

/// The error of a connection without TLS that could not be made.
pub(crate) fn connecting_plainly(error: RedisError, server: &dyn std::fmt::Display) -> Error {
    if error.is_connection_dropped() {
        let text = format!("{server} cuts the connection as it begins; if it takes TLS alone, write `rediss://`");
        return Error::unavailable(text).because(error);
    }
    connecting(error, server)
}

/// The error of a handle that was closed.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this broker was closed; connect again")
}

/// An answer that no script of ours gives.
pub(crate) fn strange(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("the server's answer is not what `{what}` gives"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_server(code: &'static str, detail: &str) -> Error {
        let parsed = redis::parse_redis_value(format!("-{code} {detail}\r\n").as_bytes()).unwrap();
        Fault::Refused(parsed.extract_error().unwrap_err()).explain(&"redis://h:1")
    }

    #[test]
    fn who_is_no_redis_is_named_and_who_may_want_tls_is_hinted_at() {
        let parsed = redis::parse_redis_value(b"UNKNOWN_COMMAND\r\n").unwrap_err();
        let error = connecting_plainly(parsed, &"h:1");
        assert!(error.to_string().contains("what answers at h:1 is not Redis") && error.is_retryable(), "{error}");
        let cut = || RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert!(connecting_plainly(cut(), &"h:1").to_string().contains("`rediss://`"));
        assert!(!connecting(cut(), &"h:1").to_string().contains("`rediss://`") && connecting(cut(), &"h:1").is_retryable());
    }

    #[test]
    fn codes_become_kinds_with_what_to_do_next() {
        for (code, kind) in [
            ("OOM", ErrorKind::Full),
            ("READONLY", ErrorKind::ReadOnly),
            ("LOADING", ErrorKind::Unavailable),
            ("NOPERM", ErrorKind::Denied),
            ("NOQUEUE", ErrorKind::NotFound),
        ] {
            let error = from_server(code, "text");
            assert_eq!((error.kind(), error.effect()), (kind, anyqueue_core::Effect::None), "{error}");
        }
        let other = from_server("ERR", "Error running script");
        assert_eq!((other.kind(), other.effect()), (ErrorKind::Protocol, anyqueue_core::Effect::Unknown));
        assert!(from_server("OOM", "x").to_string().contains("redis://h:1 is out of memory; raise its `maxmemory`"));
    }

    #[test]
    fn a_code_inside_the_error_of_a_script_counts() {
        let text =
            "Error running script (call to f_ab): @user_script:7: @user_script: 7: -OOM command not allowed when used memory";
        assert_eq!(from_server("ERR", text).kind(), ErrorKind::Full);
    }
}
