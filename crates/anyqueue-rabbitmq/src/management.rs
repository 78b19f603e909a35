//! The server's management API, for what AMQP does not tell. One small request at a time, so it takes no HTTP library.

use std::fmt;
use std::time::Duration;

use anyqueue_core::{BrokerUrl, Error, ErrorKind, QueueName, Result};
use base64::Engine;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// More than an answer has.
const MOST: u64 = 8 << 20;
const PORT: u16 = 15672;

/// Where it is, and how to get in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Management {
    host: String,
    port: u16,
    /// The value of the header.
    authorization: String,
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// What it tells of one of the server's queues.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Absent from a queue of which the server has no figures yet.
    pub(crate) messages_unacknowledged: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Rows {
    items: Vec<Row>,
}

impl Management {
    /// Reads the option. User and password are those of the broker unless it has its own.
    pub(crate) fn read(text: &str, broker: Option<(&str, &str)>) -> Result<Self> {
        let bad =
            |why: &str| Error::config(format!("option `management`: {why}; write it like `http://user:password@host:15672`"));
        // What was written may hold a password, so no part of it is repeated.
        let url = BrokerUrl::parse(text).map_err(|_| bad("it is no URL"))?;
        if url.scheme != "http" {
            return Err(bad("only `http:` is spoken"));
        }
        let [(host, port)] = url.hosts.as_slice() else { return Err(bad("it takes one host")) };
        if !url.path.is_empty() || !url.query.is_empty() {
            return Err(bad("nothing follows host and port"));
        }
        let own = url.user.as_deref().zip(url.password.as_deref());
        let (user, password) = own.or(broker).ok_or_else(|| bad("beside `amqps:` it takes a user and a password of its own"))?;
        let authorization = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        Ok(Self { host: host.clone(), port: port.unwrap_or(PORT), authorization })
    }

    /// The server's queues of one of ours.
    pub(crate) async fn queues(&self, vhost: &str, queue: &QueueName, patience: Duration) -> Result<Vec<Row>> {
        let name = encode(&format!("^{}(;|$)", queue.as_str().replace('.', "[.]")));
        let path = format!(
            "/api/queues/{}?page=1&page_size=100&use_regex=true&columns=name,messages_unacknowledged&name={name}",
            encode(vhost)
        );
        let text = self.get(&path, patience).await?;
        let rows: Rows = serde_json::from_slice(&text).map_err(|e| strange("its answer cannot be read").because(e))?;
        Ok(rows.items)
    }

    /// Whether it lets us in.
    pub(crate) async fn hello(&self, patience: Duration) -> Result<()> {
        self.get("/api/whoami", patience).await.map(drop)
    }

    async fn get(&self, path: &str, patience: Duration) -> Result<Vec<u8>> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}:{}\r\nAuthorization: Basic {}\r\nAccept: application/json\r\nConnection: close\r\n\r\n",
            self.host, self.port, self.authorization
        );
        let asked = async {
            let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(MOST).read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let place = format!("{}:{}", self.host, self.port);
        let away = || Error::unavailable("the management API cannot be reached").with("management", &place);
        match timeout(patience, asked).await {
            Ok(Ok(answer)) => body(&answer).map_err(|e| e.with("management", &place)),
            Ok(Err(e)) => Err(away().because(e)),
            Err(_) => Err(away()),
        }
    }
}

fn strange(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("the management API is not understood: {what}"))
}

/// The body of a good answer.
fn body(answer: &[u8]) -> Result<Vec<u8>> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(|| strange("it ended early"))?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let rest = &answer[end + 4..];
    let code = head.split_whitespace().nth(1).unwrap_or("none");
    match code {
        "200" => {}
        "401" | "403" => {
            let text = "the management API denies this user; it takes the tag `management` or `monitoring`";
            return Err(Error::new(ErrorKind::Denied, text));
        }
        code => return Err(strange(&format!("status {code}"))),
    }
    let header = |wanted: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim().to_ascii_lowercase()).next()
    };
    if header("transfer-encoding").is_some_and(|value| value == "chunked") {
        return unchunked(rest).ok_or_else(|| strange("it ended early"));
    }
    match header("content-length").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => rest.get(..length).map(<[u8]>::to_vec).ok_or_else(|| strange("it ended early")),
        None => Ok(rest.to_vec()),
    }
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let line = std::str::from_utf8(&rest[..end]).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(all);
        }
        all.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size.checked_add(2)?..)?;
    }
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_read_and_its_password_never_shown() {
        let read = |text| Management::read(text, Some(("me", "s3cret")));
        let own = read("http://op:pw%40@node").unwrap();
        assert_eq!((own.port, own.authorization.as_str()), (15672, "b3A6cHdA"));
        assert_eq!(read("http://node:1").unwrap().authorization, "bWU6czNjcmV0");
        assert!(!format!("{own:?}").contains("b3A6"));
        assert!(Management::read("http://node", None).unwrap_err().to_string().contains("of its own"));
        for bad in ["https://op:pw0@node", "http://op:pw0@a,b", "http://op:pw0@a/api", "pw0"] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("`management`") && !error.contains("pw0"), "{error}");
        }
    }

    #[test]
    fn answers_are_read_whole_or_refused() {
        let plain = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(body(plain).unwrap(), b"{}");
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n";
        assert_eq!(body(chunked).unwrap(), b"{\"a\":1}");
        for end in 0..plain.len() {
            assert!(body(&plain[..end]).is_err(), "{end}");
        }
        let chunks = chunked.len() - 5;
        assert!((0..chunks).all(|end| body(&chunked[..end]).is_err()));
        let denied = body(b"HTTP/1.1 401 Unauthorized\r\n\r\n").unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Denied);
        assert_eq!(encode("/a b;"), "%2Fa%20b%3B");
    }
}
