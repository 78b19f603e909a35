//! What only the management API tells: how many tasks are reserved. One request of HTTP needs no client of it.

use std::fmt;
use std::time::Duration;

use anyqueue_core::{BrokerUrl, Error, ErrorKind, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// More than it says of one queue.
const MOST: u64 = 1 << 20;

/// Where it is, and who asks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Management {
    host: String,
    port: u16,
    authorization: String,
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Management {
    /// Reads `http://user:password@host:15672`.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let bad =
            |why: &str| Error::config(format!("option `management`: {why}; write it like `http://user:password@host:15672`"));
        let url = BrokerUrl::parse(text).map_err(|_| bad("it is no URL"))?;
        if url.scheme != "http" {
            return Err(bad(&format!("`{}:` is not understood, only `http:`", url.scheme)));
        }
        let Some((host, port)) = url.hosts.first() else { return Err(bad("it names no host")) };
        let (user, password) = (url.user.as_deref().unwrap_or("guest"), url.password.as_deref().unwrap_or("guest"));
        let authorization = STANDARD.encode(format!("{user}:{password}"));
        Ok(Self { host: host.clone(), port: port.unwrap_or(15672), authorization })
    }

    /// How many messages of a queue are with consumers. `None`: it knows no such queue.
    pub(crate) async fn reserved(&self, vhost: &str, queue: &str, patience: Duration) -> Result<Option<u64>> {
        let path = format!("/api/queues/{}/{}?columns=messages_unacknowledged", encode(vhost), encode(queue));
        let answer = match timeout(patience, self.get(&path)).await {
            Ok(answer) => answer.map_err(|e| self.explain("does not answer").because(e))?,
            Err(_) => return Err(self.explain("does not answer in time")),
        };
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some("200") => Ok(Some(count(body).unwrap_or(0))),
            Some("404") => Ok(None),
            Some("401" | "403") => Err(Error::new(ErrorKind::Denied, self.text("does not let this user in"))),
            other => Err(self.explain(&format!("answers with the code {}", other.unwrap_or("none")))),
        }
    }

    /// By HTTP 1.0, so that the answer comes in one piece and ends with the connection.
    async fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let Self { host, authorization, .. } = self;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Basic {authorization}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MOST).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn text(&self, what: &str) -> String {
        format!("the management API at {}:{} {what}", self.host, self.port)
    }

    fn explain(&self, what: &str) -> Error {
        Error::unavailable(self.text(what))
    }
}

/// Just after a queue was made nothing is said of it.
fn count(body: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(body).ok()?.get("messages_unacknowledged")?.as_u64()
}

fn encode(name: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    name.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_never_shown_with_its_password() {
        let management = Management::read("http://me:s3cret@rabbit").unwrap();
        assert_eq!((management.host.as_str(), management.port), ("rabbit", 15672));
        assert!(!format!("{management:?}").contains("s3cret") && !format!("{management:?}").contains(&management.authorization));
        for bad in ["https://me:s3cret@rabbit", "nonsense", "http:"] {
            let error = Management::read(bad).unwrap_err().to_string();
            assert!(error.contains("`management`") && !error.contains("s3cret"), "{error}");
        }
        assert_eq!((encode("/"), encode("a;b")), ("%2F".to_owned(), "a%3Bb".to_owned()));
        assert_eq!((count(r#"{"messages_unacknowledged":3}"#), count("[]")), (Some(3), None));
    }
}
