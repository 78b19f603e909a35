//! Replies, read from whatever has arrived so far.

use std::fmt;

use bytes::{Bytes, BytesMut};

/// The longest first line of a reply: `USING` and a tube's name of 200 bytes, with room to spare.
const MAX_LINE: usize = 256;

/// The largest body that a server can be told to take: `-z` stops at 1 GiB. Larger figures are noise.
const MAX_BODY: u64 = 1 << 30;

/// A reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The job was put, under this number.
    Inserted(u64),
    /// The job was buried: as asked for, or, with its number, because a put found no memory for its place in line.
    Buried(Option<u64>),
    /// The tube that puts go to.
    Using(Bytes),
    /// A job and its body.
    Reserved(u64, Bytes),
    /// No job within the time given.
    TimedOut,
    /// No job, and one that this connection holds is about to run out of time.
    DeadlineSoon,
    /// The job is gone.
    Deleted,
    /// The job was put back.
    Released,
    /// The job's time starts anew.
    Touched,
    /// So many tubes are watched.
    Watching(u64),
    /// The last tube watched cannot be ignored.
    NotIgnored,
    /// A job that was looked at, and its body.
    Found(u64, Bytes),
    /// So many jobs were kicked; no number for a single one.
    Kicked(Option<u64>),
    /// Figures or a list, as YAML.
    Ok(Bytes),
    /// The tube is paused.
    Paused,
    /// There is no such job or tube, or it is not this connection's.
    NotFound,
    /// The server did not do what it was asked to.
    Refused(Refusal),
}

/// Why the server did not do what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has no memory left, or no room in its binlog.
    OutOfMemory,
    /// It found a bug in itself.
    InternalError,
    /// It was asked in a way it does not understand.
    BadFormat,
    /// It does not know the command: an older version.
    UnknownCommand,
    /// A body had another length than announced.
    ExpectedCrlf,
    /// The body is larger than `-z` allows.
    JobTooBig,
    /// It takes no jobs any more, since somebody is about to stop it.
    Draining,
}

impl Refusal {
    /// The word of the protocol.
    pub const fn word(self) -> &'static str {
        match self {
            Self::OutOfMemory => "OUT_OF_MEMORY",
            Self::InternalError => "INTERNAL_ERROR",
            Self::BadFormat => "BAD_FORMAT",
            Self::UnknownCommand => "UNKNOWN_COMMAND",
            Self::ExpectedCrlf => "EXPECTED_CRLF",
            Self::JobTooBig => "JOB_TOO_BIG",
            Self::Draining => "DRAINING",
        }
    }

    const ALL: [Self; 7] = [
        Self::OutOfMemory,
        Self::InternalError,
        Self::BadFormat,
        Self::UnknownCommand,
        Self::ExpectedCrlf,
        Self::JobTooBig,
        Self::Draining,
    ];
}

/// What arrived is no reply: the connection cannot be used any further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(String);

impl Malformed {
    fn line(line: &[u8]) -> Self {
        Self(line[..line.len().min(80)].escape_ascii().to_string())
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no reply of beanstalkd", self.0)
    }
}

impl std::error::Error for Malformed {}

/// Takes one reply from the front of what has arrived; `None` if it is not all there yet.
///
/// # Errors
/// [`Malformed`], with the line.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Reply>, Malformed> {
    let Some(end) = memchr::memchr(b'\n', &buffer[..buffer.len().min(MAX_LINE)]) else {
        return if buffer.len() < MAX_LINE { Ok(None) } else { Err(Malformed::line(buffer)) };
    };
    let line = buffer[..end].strip_suffix(b"\r").ok_or_else(|| Malformed::line(&buffer[..end]))?;
    match head(line).ok_or_else(|| Malformed::line(line))? {
        Head::Whole(reply) => {
            drop(buffer.split_to(end + 1));
            Ok(Some(reply))
        }
        Head::Tube(start) => {
            let line = buffer.split_to(end + 1).freeze();
            Ok(Some(Reply::Using(line.slice(start..end - 1))))
        }
        Head::Body(kind, size) => body(buffer, end + 1, kind, size),
    }
}

/// What a first line says.
enum Head {
    Whole(Reply),
    Tube(usize),
    Body(Kind, u64),
}

#[derive(Clone, Copy)]
enum Kind {
    Reserved(u64),
    Found(u64),
    Ok,
}

fn head(line: &[u8]) -> Option<Head> {
    let (word, rest) = match memchr::memchr(b' ', line) {
        Some(at) => (&line[..at], Some(&line[at + 1..])),
        None => (line, None),
    };
    let reply = match (word, rest) {
        (b"INSERTED", Some(id)) => Reply::Inserted(number(id)?),
        (b"DELETED", None) => Reply::Deleted,
        (b"TIMED_OUT", None) => Reply::TimedOut,
        (b"NOT_FOUND", None) => Reply::NotFound,
        (b"RESERVED", Some(rest)) => return two(rest).map(|(id, size)| Head::Body(Kind::Reserved(id), size)),
        (b"OK", Some(size)) => return number(size).map(|size| Head::Body(Kind::Ok, size)),
        (b"FOUND", Some(rest)) => return two(rest).map(|(id, size)| Head::Body(Kind::Found(id), size)),
        (b"USING", Some(tube)) if !tube.is_empty() => return Some(Head::Tube(line.len() - tube.len())),
        (b"RELEASED", None) => Reply::Released,
        (b"TOUCHED", None) => Reply::Touched,
        (b"BURIED", None) => Reply::Buried(None),
        (b"BURIED", Some(id)) => Reply::Buried(Some(number(id)?)),
        (b"DEADLINE_SOON", None) => Reply::DeadlineSoon,
        (b"WATCHING", Some(count)) => Reply::Watching(number(count)?),
        (b"NOT_IGNORED", None) => Reply::NotIgnored,
        (b"KICKED", None) => Reply::Kicked(None),
        (b"KICKED", Some(count)) => Reply::Kicked(Some(number(count)?)),
        (b"PAUSED", None) => Reply::Paused,
        (word, None) => Reply::Refused(Refusal::ALL.into_iter().find(|refusal| refusal.word().as_bytes() == word)?),
        _ => return None,
    };
    Some(Head::Whole(reply))
}

fn body(buffer: &mut BytesMut, start: usize, kind: Kind, size: u64) -> Result<Option<Reply>, Malformed> {
    if size > MAX_BODY {
        return Err(Malformed::line(&buffer[..start]));
    }
    let size = size as usize;
    if buffer.len() < start + size + 2 {
        return Ok(None);
    }
    if &buffer[start + size..start + size + 2] != b"\r\n" {
        return Err(Malformed::line(&buffer[..start]));
    }
    let whole = buffer.split_to(start + size + 2).freeze();
    let body = whole.slice(start..start + size);
    Ok(Some(match kind {
        Kind::Reserved(id) => Reply::Reserved(id, body),
        Kind::Found(id) => Reply::Found(id, body),
        Kind::Ok => Reply::Ok(body),
    }))
}

fn two(text: &[u8]) -> Option<(u64, u64)> {
    let at = memchr::memchr(b' ', text)?;
    Some((number(&text[..at])?, number(&text[at + 1..])?))
}

/// Digits only: a sign or a space is noise.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| sum.checked_mul(10)?.checked_add(u64::from(digit))).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(reply: &Reply) -> Vec<u8> {
        let text = match reply {
            Reply::Inserted(id) => format!("INSERTED {id}"),
            Reply::Buried(None) => "BURIED".into(),
            Reply::Buried(Some(id)) => format!("BURIED {id}"),
            Reply::Using(tube) => format!("USING {}", String::from_utf8_lossy(tube)),
            Reply::Reserved(id, body) => return with_body(format!("RESERVED {id} {}", body.len()), body),
            Reply::Found(id, body) => return with_body(format!("FOUND {id} {}", body.len()), body),
            Reply::Ok(body) => return with_body(format!("OK {}", body.len()), body),
            Reply::TimedOut => "TIMED_OUT".into(),
            Reply::DeadlineSoon => "DEADLINE_SOON".into(),
            Reply::Deleted => "DELETED".into(),
            Reply::Released => "RELEASED".into(),
            Reply::Touched => "TOUCHED".into(),
            Reply::Watching(count) => format!("WATCHING {count}"),
            Reply::NotIgnored => "NOT_IGNORED".into(),
            Reply::Kicked(None) => "KICKED".into(),
            Reply::Kicked(Some(count)) => format!("KICKED {count}"),
            Reply::Paused => "PAUSED".into(),
            Reply::NotFound => "NOT_FOUND".into(),
            Reply::Refused(refusal) => refusal.word().into(),
        };
        [text.as_bytes(), b"\r\n"].concat()
    }

    fn with_body(head: String, body: &[u8]) -> Vec<u8> {
        [head.as_bytes(), b"\r\n", body, b"\r\n"].concat()
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let body = || proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            any::<u64>().prop_map(Reply::Inserted),
            any::<Option<u64>>().prop_map(Reply::Buried),
            "[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}".prop_map(|tube| Reply::Using(tube.into())),
            (any::<u64>(), body()).prop_map(|(id, body)| Reply::Reserved(id, body)),
            (any::<u64>(), body()).prop_map(|(id, body)| Reply::Found(id, body)),
            body().prop_map(Reply::Ok),
            any::<u64>().prop_map(Reply::Watching),
            any::<Option<u64>>().prop_map(Reply::Kicked),
            prop::sample::select(vec![
                Reply::TimedOut,
                Reply::DeadlineSoon,
                Reply::Deleted,
                Reply::Released,
                Reply::Touched,
                Reply::NotIgnored,
                Reply::Paused,
                Reply::NotFound,
            ]),
            prop::sample::select(Refusal::ALL.to_vec()).prop_map(Reply::Refused),
        ]
    }

    /// Reads what arrives in pieces of this size, as a connection does.
    fn read(bytes: &[u8], piece: usize) -> (Vec<Reply>, Result<usize, Malformed>) {
        let (mut buffer, mut replies) = (BytesMut::new(), Vec::new());
        for part in bytes.chunks(piece) {
            buffer.extend_from_slice(part);
            loop {
                let before = buffer.len();
                match decode(&mut buffer) {
                    Ok(Some(reply)) => {
                        assert!(buffer.len() < before, "a reply takes some of the bytes");
                        replies.push(reply);
                    }
                    Ok(None) => break,
                    Err(e) => return (replies, Err(e)),
                }
            }
        }
        (replies, Ok(buffer.len()))
    }

    proptest! {
        #[test]
        fn replies_are_read_however_they_are_cut(replies in prop::collection::vec(any_reply(), 0..8), piece in 1usize..64) {
            let bytes = replies.iter().flat_map(write).collect::<Vec<_>>();
            prop_assert_eq!(read(&bytes, piece), (replies, Ok(0)));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..2000), piece in 1usize..300) {
            prop_assert_eq!(read(&bytes, piece).0, read(&bytes, bytes.len().max(1)).0);
        }

        #[test]
        fn damaged_replies_are_survived(reply in any_reply(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = write(&reply);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            prop_assert!(read(&bytes, 7).0.len() <= bytes.len());
        }
    }

    #[test]
    fn noise_is_named_and_asks_for_no_memory() {
        for noise in ["HTTP/1.1 400 Bad Request\r\n", "INSERTED -1\r\n", "INSERTED\r\n", "RESERVED 1 99999999999\r\n", "OK\n"] {
            let (replies, rest) = read(noise.as_bytes(), 1000);
            assert!(replies.is_empty() && rest.is_err(), "{noise:?}");
        }
        let endless = vec![b'x'; 10_000];
        assert!(read(&endless, 100).1.is_err(), "a line without an end is given up");
        assert_eq!(read(b"RESERVED 1 3\r\nabcd\r", 100).1, Err(Malformed("RESERVED 1 3\\r\\n".into())));
    }
}
