//! How an adapter is found and connected: driver, URL, options.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::broker::Broker;
use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::names::QueueName;
use crate::options::Options;
use crate::time::{BoxFuture, Clock};

/// An adapter, as a constant that is registered by name.
#[derive(Clone, Copy)]
pub struct Driver {
    /// Its name, which is also the name of the facade's feature.
    pub name: &'static str,
    /// The URL schemes that choose it.
    pub schemes: &'static [&'static str],
    /// One line about it.
    pub summary: &'static str,
    /// A URL to show in messages.
    pub example: &'static str,
    /// The options it knows, for a broker and for a queue alike.
    pub options: &'static [OptionSpec],
    /// What it can do before anything is known of the server: what the table shows.
    pub capabilities: Capabilities,
    /// Connects.
    pub connect: fn(ConnectOptions) -> Connecting,
}

/// A connection being made.
pub type Connecting = BoxFuture<'static, Result<Arc<dyn Broker>>>;

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("name", &self.name).field("schemes", &self.schemes).finish_non_exhaustive()
    }
}

/// One option of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its key, in the broker's table of `queue.toml` or after `?` in the URL.
    pub key: &'static str,
    /// What holds when it is not given, as it would be written.
    pub default: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
    /// Whether it may stand in a queue's table too.
    pub per_queue: bool,
    /// Whether its value is never shown.
    pub secret: bool,
}

/// Whether missing queues are created on the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Create {
    /// When first used, where the broker lets us.
    #[default]
    Auto,
    /// Never: a missing one is an error that names `queue-runner init`.
    Never,
}

/// All that an adapter gets to connect with.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The broker's name in the settings, for messages.
    pub name: Arc<str>,
    /// Where it is.
    pub url: BrokerUrl,
    /// The broker's options; those of the URL's query are in here.
    pub options: Options,
    /// Options of single queues.
    pub queues: BTreeMap<QueueName, Options>,
    /// Whether missing queues are created.
    pub create: Create,
    /// The clock to go by.
    pub clock: Arc<dyn Clock>,
    /// How long one request may take before it counts as failed.
    pub timeout: Duration,
}

impl ConnectOptions {
    /// Reads a URL, takes its query as options and leaves the rest at defaults.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a URL that cannot be read.
    pub fn new(url: &str, clock: Arc<dyn Clock>) -> Result<Self> {
        let url = BrokerUrl::parse(url)?;
        Ok(Self {
            name: "default".into(),
            options: Options::from_query(&url),
            url,
            queues: BTreeMap::new(),
            create: Create::Auto,
            clock,
            timeout: Duration::from_secs(10),
        })
    }
}

impl Driver {
    /// Checks the keys of all options, then connects.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for an unknown key, and whatever connecting meets.
    pub async fn open(&self, options: ConnectOptions) -> Result<Arc<dyn Broker>> {
        options.options.check(self, false).map_err(|e| e.with("broker", &options.name))?;
        for (queue, own) in &options.queues {
            own.check(self, true).map_err(|e| e.with("queue", queue))?;
        }
        let name = options.name.clone();
        (self.connect)(options).await.map_err(|e| e.during("connect").with("broker", name))
    }
}

/// A broker's address: `scheme://user:password@host:port,host:port/path?key=value`, or `scheme:path`.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// The scheme, which chooses the driver.
    pub scheme: String,
    /// The user, decoded.
    pub user: Option<String>,
    /// The password, decoded. Never shown.
    pub password: Option<String>,
    /// Hosts with their ports, in order.
    pub hosts: Vec<(String, Option<u16>)>,
    /// What follows the hosts, without the leading `/`; all that follows `scheme:`, or `scheme://`, where there are no hosts.
    pub path: String,
    /// Key and value, decoded, in order.
    pub query: Vec<(String, String)>,
}

impl BrokerUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), without repeating a password.
    pub fn parse(text: &str) -> Result<Self> {
        let bad =
            |why: &str| Error::invalid(format!("broker URL: {why}; write it like `sqlite:./queue.db` or `redis://host:6379`"));
        let (scheme, rest) = text.split_once(':').ok_or_else(|| bad(&format!("{} has no scheme", quoted(text))))?;
        if scheme.is_empty() || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) {
            return Err(bad(&format!("{} is no scheme", quoted(scheme))));
        }
        let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "true")));
        let mut url = Self {
            scheme: scheme.to_ascii_lowercase(),
            user: None,
            password: None,
            hosts: Vec::new(),
            path: String::new(),
            query: query.map(|(key, value)| (decode(key), decode(value))).collect(),
        };
        let Some(rest) = rest.strip_prefix("//") else {
            url.path = decode(rest);
            return Ok(url);
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').map_or((None, authority), |(login, hosts)| (Some(login), hosts));
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
            url.user = Some(decode(user)).filter(|user| !user.is_empty());
            url.password = password.map(decode);
        }
        // A password is cut at one of these, and its rest would be read, and shown, as a path or an option.
        let is_cut = path.contains('@') && (!authority.is_empty() || path.contains(':'));
        if is_cut || text.split_once('?').is_some_and(|(_, query)| query.split('&').any(has_login_sign)) {
            return Err(bad("a `/`, `?` or `#` in a password is written %2F, %3F or %23, and an `@` behind the hosts %40"));
        }
        for (n, host) in hosts.split(',').filter(|host| !host.is_empty()).enumerate() {
            // What looks like a host may be a part of a password, so none is named before all are read.
            let place = n + 1;
            let (name, port) = match host.rsplit_once(':') {
                Some((name, port)) if !port.contains(']') => {
                    let wrong = |_| bad(&format!("the port of host {place} is not a number up to 65535"));
                    (name, Some(port.parse().map_err(wrong)?))
                }
                _ => (host, None),
            };
            let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
            // The zone of an address stands behind a `%`, which is written %25 (RFC 6874).
            let (name, more) = bracketed.map_or((name.to_owned(), "-._"), |address| (address.replace("%25", "%"), ":%-._"));
            if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || more.contains(c)) {
                let why = "a host is a name or an address, IPv6 in brackets; an `@` ends user and password";
                return Err(bad(&format!("host {place} is none: {why}")));
            }
            url.hosts.push((name, port));
        }
        let root = if url.hosts.is_empty() { "/" } else { "" };
        url.path = format!("{root}{}", decode(path));
        Ok(url)
    }
}

/// Whether there is an `@` in an option where none belongs: in its key, or in a value that is neither a file nor a URL.
fn has_login_sign(pair: &str) -> bool {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let is_file = ["/", ".", "file:"].iter().any(|start| value.starts_with(start));
    key.contains('@') || !is_file && value.split_once('@').is_some_and(|(before, _)| !before.contains("://"))
}

/// Whether a text looks like the URL of a broker, in which there may be a password.
pub fn is_address(text: &str) -> bool {
    text.contains("://") || has_login(text)
}

/// Whether a text may hold a user and a password.
pub fn has_login(text: &str) -> bool {
    ["@", "%40", "\u{ff20}"].iter().any(|sign| text.contains(sign))
}

/// Writes a text into a message, unless a password may be in it.
pub fn quoted(text: &str) -> String {
    match text {
        _ if text.contains("://") => "a URL".into(),
        _ if has_login(text) => "`…@…`".into(),
        _ => format!("`{text}`"),
    }
}

impl fmt::Display for BrokerUrl {
    /// Without user, password and query: what may be shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if self.hosts.is_empty() {
            // A login that was not written behind `//` would be here; a file has a right to its `@`.
            let is_file = self.path.starts_with(['/', '.']) && !self.path.contains(':');
            return f.write_str(if is_file || !has_login(&self.path) { &self.path } else { "(not shown)" });
        }
        f.write_str("//")?;
        for (n, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            match port {
                Some(port) => write!(f, "{comma}{host}:{port}")?,
                None => write!(f, "{comma}{host}")?,
            }
        }
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_whole_and_shown_without_secrets() {
        let url = BrokerUrl::parse("amqp://us%20er:p%40ss,:@a:5672,[::1]:5673,c/vhost?x=1&flag").unwrap();
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("us er"), Some("p@ss,:")));
        assert_eq!(url.hosts, [("a".into(), Some(5672)), ("::1".into(), Some(5673)), ("c".into(), None)]);
        assert_eq!(url.query, [("x".into(), "1".into()), ("flag".into(), "true".into())]);
        assert_eq!(format!("{url} {url:?}"), "amqp://a:5672,[::1]:5673,c/vhost amqp://a:5672,[::1]:5673,c/vhost");
        let file = BrokerUrl::parse("sqlite:./queue.db?durability=process").unwrap();
        assert_eq!((file.path.as_str(), file.to_string().as_str()), ("./queue.db", "sqlite:./queue.db"));
        assert_eq!(BrokerUrl::parse("sqlite:///var/q.db").unwrap().path, "/var/q.db");
        for bad in ["queue.db", ":x", "a b:c", "redis://h:99999"] {
            assert!(BrokerUrl::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(BrokerUrl::parse("sqlite:./a@b/q.db").unwrap().to_string(), "sqlite:./a@b/q.db");
        assert_eq!(BrokerUrl::parse("sqlite:///home/me@x/q.db").unwrap().to_string(), "sqlite:/home/me@x/q.db");
        assert_eq!(BrokerUrl::parse("redis://[fe80::1%25br-lan]:1/?tls_ca=/a@b").unwrap().hosts[0].0, "fe80::1%br-lan");
        let nested = BrokerUrl::parse("amqp://h?management=http://u:p@h:15672").unwrap();
        assert_eq!(nested.query, [("management".into(), "http://u:p@h:15672".into())]);
    }

    #[test]
    fn what_may_be_a_password_is_never_shown() {
        let cut = ["redis://u:sec/ret@h", "redis://u:sec?ret@h:6379", "sqs://A:sec#x/ret@eu-west-1", "amqp://u:12/ret@h"];
        let cut_after_a_login =
            ["redis://u:p@x/sec@h:6379", "redis://u:p@ss?sec@h", "redis://u:1?sec=x@h", "redis://u:p@ss?a=sec@h"];
        for text in cut.into_iter().chain(cut_after_a_login) {
            let error = format!("{:?}", BrokerUrl::parse(text).unwrap_err());
            assert!(error.contains("is written %2F") && !error.contains("sec") && !error.contains("ret"), "{error}");
        }
        let ports =
            ["redis://u:sec", "redis://u:sec@h:port", "redis://u:sec:r?et=x", "amqp://u:se@sec:x/rest", "amqp://u:12,sec:x"];
        for text in ports {
            let error = format!("{:?}", BrokerUrl::parse(text).unwrap_err());
            assert!(error.contains("the port of host ") && !error.contains("sec"), "{error}");
        }
        // Wrong in two ways: which one is told does not matter.
        for text in ["redis://h:sec/0?ca=a@b", "redis://u:sec:r?et=x@h", "amqp://u:se@sec:x/rest@h", "amqp://u:12,sec:x?a=b@h"] {
            let error = format!("{:?}", BrokerUrl::parse(text).unwrap_err());
            assert!(!error.contains("sec"), "{error}");
        }
        for text in
            ["redis://u:sec%40h:6379", "redis://u:sech:6379", "redis://u:sec\u{ff20}h:1", "redis://::1:6379", "redis://a b"]
        {
            let error = format!("{:?}", BrokerUrl::parse(text).unwrap_err());
            assert!(error.contains("IPv6 in brackets") && !error.contains("sec"), "{error}");
        }
        for text in ["u-sec@h:6379", "redis//u%3Asec@h", "u:sec@h"] {
            let shown = BrokerUrl::parse(text).map_or_else(|e| format!("{e:?}"), |url| format!("{url}"));
            assert!(!shown.contains("sec"), "{shown}");
        }
        for text in ["redis:/u:sec@h:6379", "amqp:u:sec@h", "redis:///u:sec@h", "redis:\\\\u:sec@h", "amqp:u%3Asec%40h"] {
            assert!(!format!("{:?}", BrokerUrl::parse(text)).contains("sec"), "{text}");
        }
    }
}
