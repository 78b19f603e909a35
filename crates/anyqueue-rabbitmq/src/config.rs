//! Settings of a broker and of single queues.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::time::MAX_TTR;
use anyqueue_core::{ConnectOptions, Create, Error, Levels, OptionSpec, Options, QueueName, Result, priority, quoted, time};

use crate::management::Management;

/// The largest body by default: 16 MiB.
pub(crate) const MAX_PAYLOAD: u64 = 16 << 20;
/// What RabbitMQ 3.10 takes as one message (`max_message_size`).
pub(crate) const MOST_PAYLOAD: u64 = 128 << 20;
/// How soon a dead connection is noticed by default: within twice this.
pub(crate) const LIVENESS: Duration = Duration::from_secs(8);
/// What RabbitMQ takes for `consumer_timeout` if nobody sets it.
pub(crate) const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// The server looks at this each minute only, and so late that a task is settled in time.
const MARGIN: Duration = Duration::from_secs(2 * 60);

const fn option(key: &'static str, default: &'static str, help: &'static str, per_queue: bool) -> OptionSpec {
    OptionSpec { key, default, help, per_queue, secret: false }
}

/// The options that the driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    option("type", "quorum", "the type of queues: `quorum` or `classic`", true),
    option(
        "bands",
        "0,512,1024,2048",
        "the last priority of each band; a queue each, one more for the rest; `none`: one for all",
        true,
    ),
    option("x_max_priority", "false", "classic queues only: all bands in one queue, made with `x-max-priority`", true),
    option(
        "consumer_timeout",
        "30m",
        "the server's `consumer_timeout`, from 3.12 on the queue's own; a task may be reserved for two minutes less",
        true,
    ),
    option("max_payload", "16777216", "the largest body, in bytes", false),
    option("liveness", "8s", "a dead connection is noticed within twice this; heartbeats are sent accordingly", false),
    OptionSpec {
        secret: true,
        ..option(
            "management",
            "none",
            "`http://user:password@host:15672`: the management API, which counts what is reserved",
            false,
        )
    },
    option("tls_ca", "the system's", "a file with the certificates to trust, for `amqps:`", false),
    option("tls_certificate", "none", "a file with the certificate that we show, for `amqps:`", false),
    option("tls_key", "none", "the file with the key of that certificate", false),
];

/// The type of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Quorum,
    Classic,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// What is set for one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) kind: Kind,
    pub(crate) levels: Levels,
    /// Whether the server keeps all levels in one queue, in order.
    pub(crate) native: bool,
    /// How long a task may be reserved in all.
    pub(crate) max_ttr: Duration,
    /// The `consumer_timeout` of the settings, for a server that takes one for each queue.
    pub(crate) own_timeout: Option<Duration>,
}

/// Where the servers are and how to treat them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The broker's name in the settings.
    pub(crate) name: String,
    /// The URL without secrets.
    pub(crate) url: String,
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) vhost: String,
    pub(crate) tls: Option<Tls>,
    pub(crate) management: Option<Management>,
    pub(crate) style: Style,
    pub(crate) queues: BTreeMap<QueueName, Style>,
    pub(crate) max_payload: u64,
    pub(crate) liveness: Duration,
    /// How long one request may take.
    pub(crate) timeout: Duration,
    pub(crate) create: Create,
}

/// Which certificates to trust and to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) ca: Option<PathBuf>,
    /// Certificate and key.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("url", &self.url).field("style", &self.style).finish_non_exhaustive()
    }
}

impl Config {
    /// Reads URL and options.
    pub(crate) fn read(options: &ConnectOptions) -> Result<Self> {
        let (url, given) = (&options.url, &options.options);
        if url.hosts.is_empty() {
            return Err(Error::config(format!("`{url}` names no host; write it like `amqp://localhost:5672`")));
        }
        let secure = url.scheme == "amqps";
        let port = if secure { 5671 } else { 5672 };
        let liveness = given.duration("liveness")?.unwrap_or(LIVENESS);
        if !(Duration::from_secs(2)..=Duration::from_secs(600)).contains(&liveness) {
            let text =
                format!("option `liveness` is {}; it takes 2s to 10m: heartbeats go by whole seconds", time::show(liveness));
            return Err(Error::config(text));
        }
        let max_payload = given.number("max_payload")?.unwrap_or(MAX_PAYLOAD);
        if !(1..=MOST_PAYLOAD).contains(&max_payload) {
            return Err(Error::config(format!("option `max_payload` is {max_payload}; it takes 1 to {MOST_PAYLOAD} bytes")));
        }
        let standard = Style {
            kind: Kind::Quorum,
            levels: Levels::Bands(priority::FIVE_BANDS),
            native: false,
            max_ttr: max_ttr(CONSUMER_TIMEOUT),
            own_timeout: None,
        };
        let style = standard.with(given)?;
        let of_queue = |(queue, own): (&QueueName, &Options)| style.with(own).map(|style| (queue.clone(), style));
        let (user, password) = (url.user.as_deref().unwrap_or("guest"), url.password.as_deref().unwrap_or("guest"));
        // What goes to the broker in secret does not go to the API in the clear.
        let shared = (!secure).then_some((user, password));
        let management = given.text("management")?.map(|text| Management::read(&text, shared)).transpose()?;
        Ok(Self {
            name: options.name.to_string(),
            url: url.to_string(),
            hosts: url.hosts.iter().map(|(host, given)| (host.clone(), given.unwrap_or(port))).collect(),
            user: user.to_owned(),
            password: password.to_owned(),
            vhost: if url.path.is_empty() { "/".into() } else { url.path.clone() },
            tls: tls(secure, given)?,
            management,
            style,
            queues: options.queues.iter().map(of_queue).collect::<Result<_>>()?,
            max_payload,
            liveness,
            timeout: options.timeout,
            create: options.create,
        })
    }

    pub(crate) fn style(&self, queue: &QueueName) -> Style {
        self.queues.get(queue).copied().unwrap_or(self.style)
    }

    /// In whole seconds. The server gives a silent client up after three of them, at the latest.
    pub(crate) fn heartbeat(&self) -> u16 {
        (self.liveness.as_secs() * 2 / 3).max(1) as u16
    }
}

impl Style {
    /// Where the priorities are, in words.
    pub(crate) fn bands(&self) -> String {
        match self.count() {
            1 => "one queue, first in first out".into(),
            count if self.native => format!("one queue with `x-max-priority` {}", count - 1),
            count => format!("{count} queues"),
        }
    }

    /// Takes what is given; the rest stays.
    fn with(self, given: &Options) -> Result<Self> {
        let words = [("quorum", Kind::Quorum), ("classic", Kind::Classic)];
        let timeout = given.duration("consumer_timeout")?;
        if let Some(timeout) = timeout.filter(|timeout| *timeout < MARGIN + Duration::from_secs(60)) {
            let text = format!("option `consumer_timeout` is {}; below 3m no task has the time to run", time::show(timeout));
            return Err(Error::config(text));
        }
        let style = Self {
            kind: given.choice("type", &words)?.unwrap_or(self.kind),
            levels: bands(given)?.unwrap_or(self.levels),
            native: given.boolean("x_max_priority")?.unwrap_or(self.native),
            max_ttr: timeout.map_or(self.max_ttr, max_ttr),
            own_timeout: timeout.or(self.own_timeout),
        };
        match style.native {
            true if style.kind != Kind::Classic => Err(Error::config(
                "option `x_max_priority` is for classic queues; quorum queues have no such order: add `type = \"classic\"`",
            )),
            true if style.count() < 2 => Err(Error::config("option `x_max_priority` needs more than one band; see `bands`")),
            _ => Ok(style),
        }
    }

    /// How many levels there are.
    pub(crate) fn count(&self) -> usize {
        match self.levels {
            Levels::Bands(ends) => ends.len(),
            Levels::Every => 1,
        }
    }

    /// The queue of a priority, counted from the most urgent.
    pub(crate) fn place(&self, priority: u32) -> usize {
        if self.native { 0 } else { self.levels.of(priority) as usize }
    }

    /// What the server takes for a priority: more is more urgent.
    pub(crate) fn native_priority(&self, priority: u32) -> Option<u8> {
        self.native.then(|| (self.count() - 1).saturating_sub(self.levels.of(priority) as usize) as u8)
    }
}

fn max_ttr(consumer_timeout: Duration) -> Duration {
    consumer_timeout.saturating_sub(MARGIN).min(MAX_TTR)
}

/// Bands that were asked for, once each: they live as long as the process, and so does what names them.
static BANDS: Mutex<Vec<&'static [u32]>> = Mutex::new(Vec::new());

fn bands(given: &Options) -> Result<Option<Levels>> {
    let Some(list) = given.list("bands")? else { return Ok(None) };
    let bad = || {
        let text = format!(
            "option `bands` is {}; it takes up to 8 rising priorities, the last of each band, or `none`",
            quoted(&list.join(","))
        );
        Error::config(text)
    };
    let mut ends = match list.as_slice() {
        [word] if word == "none" => Vec::new(),
        list => list.iter().map(|text| priority::parse(text).map_err(|_| bad())).collect::<Result<Vec<_>>>()?,
    };
    if ends.last() != Some(&u32::MAX) {
        ends.push(u32::MAX);
    }
    if ends.len() > 9 || !ends.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(bad());
    }
    let mut known = BANDS.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = known.iter().copied().find(|kept| **kept == ends).unwrap_or_else(|| {
        let kept: &'static [u32] = ends.leak();
        known.push(kept);
        kept
    });
    Ok(Some(Levels::Bands(kept)))
}

fn tls(secure: bool, given: &Options) -> Result<Option<Tls>> {
    let path = |key| given.text(key).map(|text| text.map(PathBuf::from));
    let (ca, certificate, key) = (path("tls_ca")?, path("tls_certificate")?, path("tls_key")?);
    if !secure {
        return match [("tls_ca", &ca), ("tls_certificate", &certificate), ("tls_key", &key)].iter().find(|(_, set)| set.is_some())
        {
            Some((option, _)) => Err(Error::config(format!("option `{option}` is for `amqps:` addresses; this one is `amqp:`"))),
            None => Ok(None),
        };
    }
    if cfg!(not(feature = "tls")) {
        return Err(Error::config(
            "`amqps:` needs the feature `tls` of anyqueue-rabbitmq, and this program was built without it",
        ));
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(Tls { ca, own: Some((certificate, key)) })),
        (None, None) => Ok(Some(Tls { ca, own: None })),
        _ => Err(Error::config("options `tls_certificate` and `tls_key` go together")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anyqueue_testkit::SystemClock;

    use super::*;

    fn read(url: &str) -> Result<Config> {
        Config::read(&ConnectOptions::new(url, Arc::new(SystemClock)).unwrap())
    }

    #[test]
    fn an_address_is_read_and_shown_without_its_password() {
        let config = read("amqp://me:s3cret@a,b:5673/jobs?bands=none&consumer_timeout=2h").unwrap();
        assert_eq!((config.hosts.len(), &config.hosts[1], config.vhost.as_str()), (2, &("b".to_owned(), 5673), "jobs"));
        assert_eq!((config.style.levels.of(0), config.style.levels.of(5000)), (0, 0));
        assert_eq!(config.style.max_ttr, Duration::from_secs(2 * 3600 - 120));
        assert!(!format!("{config:?}").contains("s3cret"));
        let plain = read("amqp://h").unwrap();
        assert_eq!(
            (plain.vhost.as_str(), plain.user.as_str(), plain.style.max_ttr),
            ("/", "guest", Duration::from_secs(28 * 60))
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (url, says) in [
            ("amqp:", "names no host"),
            ("amqp://a?type=stream", "`type`"),
            ("amqp://a?bands=5,3", "`bands`"),
            ("amqp://a?bands=x", "`bands`"),
            ("amqp://a?x_max_priority=true", "classic"),
            ("amqp://a?type=classic&bands=none&x_max_priority=true", "more than one band"),
            ("amqp://a?liveness=1s", "`liveness`"),
            ("amqp://a?max_payload=0", "`max_payload`"),
            ("amqp://a?consumer_timeout=1m", "`consumer_timeout`"),
            ("amqp://a?tls_ca=x.pem", "`amqps:`"),
            ("amqps://a?tls_key=x.pem", "go together"),
        ] {
            let error = read(url).unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn a_queue_has_its_own_bands_and_one_memory_of_them() {
        let mut options = ConnectOptions::new("amqp://h", Arc::new(SystemClock)).unwrap();
        let queue = QueueName::new("images").unwrap();
        options.queues.insert(queue.clone(), [("bands", "high,normal"), ("type", "classic")].into_iter().collect());
        let (first, second) = (Config::read(&options).unwrap(), Config::read(&options).unwrap());
        let Levels::Bands(ends) = first.style(&queue).levels else { panic!("bands") };
        assert_eq!((ends, first.style(&queue).kind), ([512, 1024, u32::MAX].as_slice(), Kind::Classic));
        assert_eq!(second.style(&queue).levels, first.style(&queue).levels);
        assert_eq!(first.style(&QueueName::new("other").unwrap()), first.style);
    }
}
