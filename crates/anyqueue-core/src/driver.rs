//! How an adapter is found and connected: driver, URL, options.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::broker::Broker;
use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::names::{self, QueueName};
use crate::time::{self, BoxFuture, Clock};

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
        let (scheme, rest) = text.split_once(':').ok_or_else(|| bad(&format!("`{text}` has no scheme")))?;
        if scheme.is_empty() || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) {
            return Err(bad(&format!("`{scheme}` is no scheme")));
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
        for host in hosts.split(',').filter(|host| !host.is_empty()) {
            let (name, port) = match host.rsplit_once(':') {
                Some((name, port)) if !port.contains(']') => {
                    let number =
                        port.parse().map_err(|_| bad(&format!("port `{port}` of host `{name}` is not a number up to 65535")))?;
                    (name, Some(number))
                }
                _ => (host, None),
            };
            url.hosts.push((decode(name.trim_start_matches('[').trim_end_matches(']')), port));
        }
        let root = if url.hosts.is_empty() { "/" } else { "" };
        url.path = format!("{root}{}", decode(path));
        Ok(url)
    }
}

impl fmt::Display for BrokerUrl {
    /// Without user, password and query: what may be shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if self.hosts.is_empty() {
            return f.write_str(&self.path);
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

/// Options as they were written: from a table of `queue.toml` or from a URL's query.
#[derive(Clone, Default, PartialEq)]
pub struct Options(BTreeMap<String, Value>);

impl fmt::Debug for Options {
    /// Keys only: a value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Options {
    /// The query of a URL as options.
    pub fn from_query(url: &BrokerUrl) -> Self {
        Self(url.query.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect())
    }

    /// Sets one option.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(key.into(), value.into());
    }

    /// The keys that are set.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A value as it may be shown: not that of an option whose name says that it is a secret.
    pub fn shown(&self, key: &str) -> Option<String> {
        let secret = ["password", "secret", "token", "credential"].iter().any(|word| key.contains(word));
        match self.0.get(key)? {
            _ if secret => Some("(set)".into()),
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// Checks that the driver knows every key.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), with the nearest key and the known ones.
    pub fn check(&self, driver: &Driver, per_queue: bool) -> Result<()> {
        let known: Vec<&str> = driver.options.iter().filter(|spec| !per_queue || spec.per_queue).map(|spec| spec.key).collect();
        match self.keys().find(|key| !known.contains(key)) {
            Some(key) => {
                let place = if per_queue { " for a queue" } else { "" };
                Err(Error::config(format!("{} has no option `{key}`{place}; {}", driver.name, names::suggest(key, known))))
            }
            None => Ok(()),
        }
    }

    fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
        Error::config(format!("option `{key}` is {value}; it takes {wanted}"))
    }

    /// A text.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(Self::wrong(key, other, "a text")),
        }
    }

    /// A whole number, not negative.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        let wrong = |value| Self::wrong(key, value, "a whole number");
        match self.0.get(key) {
            None => Ok(None),
            Some(value @ Value::String(text)) => text.parse().map(Some).map_err(|_| wrong(value)),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(value)),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(Some(text == "true")),
            Some(other) => Err(Self::wrong(key, other, "true or false")),
        }
    }

    /// A duration: seconds, or text as [`time::parse`] takes it.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>> {
        let wrong = |value| Self::wrong(key, value, "a duration such as `10s`");
        match self.0.get(key) {
            None => Ok(None),
            Some(value @ Value::String(text)) => time::parse(text).map(Some).map_err(|_| wrong(value)),
            Some(value) => value.as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok()).map(Some).ok_or_else(|| wrong(value)),
        }
    }

    /// One of several words.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) with the words, if it is none of them.
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let known = || words.iter().map(|(word, _)| *word);
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                Err(Error::config(format!("option `{key}` is `{text}`; {}", names::suggest(&text, known().collect::<Vec<_>>()))))
            }
        }
    }

    /// A list of texts; one text counts as a list split at commas.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn list(&self, key: &str) -> Result<Option<Vec<String>>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.split(',').map(|part| part.trim().to_owned()).collect())),
            Some(value @ Value::Array(items)) => {
                let item = |item: &Value| match item {
                    Value::String(text) => Ok(text.clone()),
                    Value::Number(number) => Ok(number.to_string()),
                    _ => Err(Self::wrong(key, value, "a list of texts")),
                };
                items.iter().map(item).collect::<Result<_>>().map(Some)
            }
            Some(other) => Err(Self::wrong(key, other, "a list of texts")),
        }
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Options {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl<K: Into<String>, V: Into<Value>> Extend<(K, V)> for Options {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, pairs: I) {
        self.0.extend(pairs.into_iter().map(|(key, value)| (key.into(), value.into())));
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
        let error = BrokerUrl::parse("redis://u:secret@h:port").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
    }

    #[test]
    fn options_are_typed_whatever_they_were_written_in() {
        let mut options = Options::from_query(&BrokerUrl::parse("x:?n=5&on=true&wait=10s&mode=fast&list=a,b").unwrap());
        options.set("number", 7);
        assert_eq!((options.number("n").unwrap(), options.number("number").unwrap()), (Some(5), Some(7)));
        assert_eq!(options.boolean("on").unwrap(), Some(true));
        assert_eq!(options.duration("wait").unwrap(), Some(Duration::from_secs(10)));
        assert_eq!(options.choice("mode", &[("fast", 1), ("safe", 2)]).unwrap(), Some(1));
        assert_eq!(options.list("list").unwrap().unwrap(), ["a", "b"]);
        assert_eq!(options.text("none").unwrap(), None);
        let error = options.number("mode").unwrap_err().to_string();
        assert_eq!(error, "option `mode` is \"fast\"; it takes a whole number");
    }
}
