//! The server's version: the client crate keeps it to itself, so the server is greeted once by hand.

use std::time::Duration;

use anyqueue_core::{Error, Result};
use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// A version, as far as it decides anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) text: String,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Version {
    pub(crate) fn read(text: &str) -> Self {
        let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
        Self { text: text.to_owned(), major: numbers.next().unwrap_or(0), minor: numbers.next().unwrap_or(0) }
    }

    pub(crate) fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

/// More than any server says of itself.
const MOST: usize = 1 << 16;

/// Greets the server and reads what it says of itself.
pub(crate) async fn version<S>(mut stream: S, patience: Duration) -> Result<Option<Version>>
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    let conversation = async {
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        let mut head = [0; 7];
        stream.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut start = vec![0; size.min(MOST)];
        stream.read_exact(&mut start).await?;
        Ok::<_, std::io::Error>(start)
    };
    match timeout(patience, conversation).await {
        // Method 10.10, version 0.9, then the table.
        Ok(Ok(start)) => Ok(start.get(10..).and_then(|table| text_of(table, b"version")).map(|text| Version::read(&text))),
        Ok(Err(e)) => Err(Error::unavailable("the server does not speak with us").because(e)),
        Err(_) => Err(Error::unavailable("the server does not greet us in time")),
    }
}

/// The text under a key of a table; tables inside it are passed over.
fn text_of(mut table: &[u8], wanted: &[u8]) -> Option<String> {
    while let Some((&length, rest)) = table.split_first() {
        let (key, rest) = rest.split_at_checked(length.into())?;
        let (kind, rest) = rest.split_first()?;
        let size = match kind {
            b't' => 1,
            b'S' | b'F' => 4 + u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize,
            b'I' => 4,
            b'l' | b'T' => 8,
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(size)?;
        if key == wanted && *kind == b'S' {
            return Some(String::from_utf8_lossy(&value[4..]).into_owned());
        }
        table = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_behind_other_facts() {
        let table = b"\x0ccapabilitiesF\0\0\0\x03\x01at\x07versionS\0\0\0\x063.10.8\x01xt\x01";
        let version = Version::read(&text_of(table, b"version").unwrap());
        assert_eq!((version.major, version.minor), (3, 10));
        assert!(version.at_least(3, 10) && !version.at_least(3, 12) && Version::read("4.2.0-rc.1").at_least(4, 0));
        assert_eq!(text_of(table, b"x"), None);
        for end in 0..table.len() {
            text_of(&table[..end], b"none");
        }
    }
}
