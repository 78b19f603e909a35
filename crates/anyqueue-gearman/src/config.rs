//! The settings of a Gearman broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::priority::{GEARMAN_BANDS, THREE_BANDS};
use anyqueue_core::{ConnectOptions, Create, Durability, Error, Levels, OptionSpec, Options, QueueName, Result};

/// The port that gearmand listens on unless told otherwise.
const PORT: u16 = 4730;

/// A connection that said nothing for so long while an answer was due is given up.
pub(crate) const LIVENESS: Duration = Duration::from_secs(8);

/// The largest body unless told otherwise, in bytes.
pub(crate) const MAX_BODY: u64 = 16 << 20;

/// A packet has at most 64 MiB, the names in it included.
const LARGEST: u64 = (64 << 20) - 1024;

/// The options, as messages and tables show them.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "queue_type",
        default: "unknown",
        help: "what gearmand was started with as `-q`, such as libsqlite3: it does not tell, and without one nothing is durable",
        per_queue: false,
        secret: false,
    },
    OptionSpec {
        key: "lease",
        default: "guard",
        help: "`guard` keeps a copy of each reserved task, so that a frozen worker's comes back; `connection` is faster and does not",
        per_queue: true,
        secret: false,
    },
    OptionSpec {
        key: "bands",
        default: "first",
        help: "how priorities become high, normal and low: `first` ends them at 340 and 682, `named` at 512 and 1024",
        per_queue: true,
        secret: false,
    },
    OptionSpec {
        key: "max_payload",
        default: "16777216",
        help: "the largest task in bytes, up to 67107840; all workers of a job server must take it",
        per_queue: false,
        secret: false,
    },
];

/// What a job server keeps its background jobs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Unknown,
    Builtin,
    Sqlite,
    Mysql,
    Postgres,
    Redis,
    Other,
}

const STORES: &[(&str, Store)] = &[
    ("unknown", Store::Unknown),
    ("builtin", Store::Builtin),
    ("libsqlite3", Store::Sqlite),
    ("MySQL", Store::Mysql),
    ("Postgres", Store::Postgres),
    ("redis", Store::Redis),
    ("libmemcached", Store::Other),
    ("libtokyocabinet", Store::Other),
];

impl Store {
    /// What an accepted task survives. A store that brings tasks back changed is no store.
    pub(crate) fn durability(self) -> Durability {
        match self {
            Self::Sqlite | Self::Mysql => Durability::Process,
            _ => Durability::None,
        }
    }
}

/// How a task is kept from being lost with a frozen worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// By a copy of it that falls due when its lease ends.
    Guard,
    /// By nothing: it comes back when the worker's connection ends.
    Connection,
}

/// The options of one queue, resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OfQueue {
    pub(crate) keeping: Keeping,
    pub(crate) levels: Levels,
}

/// One job server, as the URL names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl Host {
    /// As messages show it.
    pub(crate) fn address(&self) -> String {
        if self.name.contains(':') { format!("[{}]:{}", self.name, self.port) } else { format!("{}:{}", self.name, self.port) }
    }
}

/// A Gearman broker's settings, resolved.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) hosts: Vec<Host>,
    pub(crate) address: String,
    /// The broker's name in the settings: part of the ids of tasks that came without one.
    pub(crate) name: Arc<str>,
    pub(crate) create: Create,
    pub(crate) store: Store,
    pub(crate) max_body: u64,
    /// How long a connection may be silent while an answer is due.
    pub(crate) patience: Duration,
    usual: OfQueue,
    queues: BTreeMap<QueueName, OfQueue>,
}

impl Config {
    pub(crate) fn read(options: &ConnectOptions) -> Result<Self> {
        let url = &options.url;
        if url.user.is_some() || url.password.is_some() {
            return Err(Error::config("a job server has no users and no passwords; write `gearman://host:4730`"));
        }
        if !matches!(url.path.as_str(), "" | "/") || (url.hosts.is_empty() && url.path.is_empty()) {
            let text = format!("`{url}` is more or less than hosts; write `gearman://host:4730` or `gearman://a,b:4731`");
            return Err(Error::config(text));
        }
        let mut hosts: Vec<Host> =
            url.hosts.iter().map(|(name, port)| Host { name: name.clone(), port: port.unwrap_or(PORT) }).collect();
        if hosts.is_empty() {
            hosts.push(Host { name: "127.0.0.1".into(), port: PORT });
        }
        let max_body = options.options.number("max_payload")?.unwrap_or(MAX_BODY);
        if !(1..=LARGEST).contains(&max_body) {
            return Err(Error::config(format!("`max_payload` is {max_body}; it takes 1 to {LARGEST} bytes")));
        }
        let plain = OfQueue { keeping: Keeping::Guard, levels: Levels::Bands(GEARMAN_BANDS) };
        let usual = of_queue(&options.options, plain)?;
        let own = |(queue, own): (&QueueName, &Options)| Ok((queue.clone(), of_queue(own, usual)?));
        Ok(Self {
            address: url.to_string(),
            name: options.name.clone(),
            create: options.create,
            store: options.options.choice("queue_type", STORES)?.unwrap_or(Store::Unknown),
            max_body,
            patience: options.timeout.clamp(Duration::from_secs(1), LIVENESS),
            queues: options.queues.iter().map(own).collect::<Result<_>>()?,
            usual,
            hosts,
        })
    }

    pub(crate) fn of(&self, queue: &QueueName) -> OfQueue {
        self.queues.get(queue).copied().unwrap_or(self.usual)
    }
}

fn of_queue(options: &Options, usual: OfQueue) -> Result<OfQueue> {
    let keeping = options.choice("lease", &[("guard", Keeping::Guard), ("connection", Keeping::Connection)])?;
    let levels = options.choice("bands", &[("first", GEARMAN_BANDS), ("named", THREE_BANDS)])?;
    Ok(OfQueue { keeping: keeping.unwrap_or(usual.keeping), levels: levels.map_or(usual.levels, Levels::Bands) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyqueue_testkit::SystemClock;

    fn read(url: &str) -> Result<Config> {
        Config::read(&ConnectOptions::new(url, Arc::new(SystemClock)).unwrap())
    }

    #[test]
    fn a_url_names_job_servers() {
        let config = read("gearman://a,b:4731,[::1]?queue_type=libsqlite3").unwrap();
        assert_eq!(config.hosts.iter().map(Host::address).collect::<Vec<_>>(), ["a:4730", "b:4731", "[::1]:4730"]);
        assert_eq!((config.store, config.address.as_str()), (Store::Sqlite, "gearman://a,b:4731,[::1]"));
        assert_eq!(read("gearman://").unwrap().hosts[0].address(), "127.0.0.1:4730");
        for (wrong, named) in [
            ("gearman://user:secret@a", "no passwords"),
            ("gearman://a/path", "write `gearman://host"),
            ("gearman:a", "write `gearman://host"),
            ("gearman://a?lease=gaurd", "did you mean `guard`"),
            ("gearman://a?queue_type=sqlite", "libsqlite3"),
            ("gearman://a?max_payload=67107841", "1 to 67107840"),
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(named) && !error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_queue_may_have_its_own_lease_and_bands() {
        let mut options = ConnectOptions::new("gearman://a?lease=connection", Arc::new(SystemClock)).unwrap();
        let (own, other) = (QueueName::new("own").unwrap(), QueueName::new("other").unwrap());
        options.queues.insert(own.clone(), [("lease", "guard"), ("bands", "named")].into_iter().collect());
        let config = Config::read(&options).unwrap();
        assert_eq!(config.of(&own), OfQueue { keeping: Keeping::Guard, levels: Levels::Bands(THREE_BANDS) });
        assert_eq!(config.of(&other), OfQueue { keeping: Keeping::Connection, levels: Levels::Bands(GEARMAN_BANDS) });
    }
}
