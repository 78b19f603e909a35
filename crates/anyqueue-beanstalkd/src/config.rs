//! The settings of a beanstalkd broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{ConnectOptions, Create, Error, OptionSpec, Options, QueueName, Result, priority, quoted};

/// The port that beanstalkd listens on unless told otherwise.
const PORT: u16 = 11300;

/// A connection that said nothing for so long while an answer was due is given up.
pub(crate) const LIVENESS: Duration = Duration::from_secs(5);

/// The options, as messages and tables show them.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "connections",
        default: "4",
        help: "how many connections to each server may hold or await tasks; sends and questions have one more",
        per_queue: false,
        secret: false,
    },
    OptionSpec {
        key: "bands",
        default: "none",
        help: "the last priority of each range that workers may take alone, such as [512, 2048]; each range is a tube",
        per_queue: true,
        secret: false,
    },
];

/// One server, as the URL names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl Host {
    /// As messages and ids show it.
    pub(crate) fn address(&self) -> String {
        if self.name.contains(':') { format!("[{}]:{}", self.name, self.port) } else { format!("{}:{}", self.name, self.port) }
    }
}

/// A beanstalkd broker's settings, resolved.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) hosts: Vec<Host>,
    pub(crate) address: String,
    /// The broker's name in the settings: part of the ids of tasks that came without one.
    pub(crate) name: Arc<str>,
    pub(crate) create: Create,
    pub(crate) connections: usize,
    /// How long a connection may be silent while an answer is due.
    pub(crate) patience: Duration,
    bands: Vec<u32>,
    /// The bands of the queues that the settings name.
    pub(crate) queues: BTreeMap<QueueName, Vec<u32>>,
}

impl Config {
    pub(crate) fn read(options: &ConnectOptions) -> Result<Self> {
        let url = &options.url;
        if url.user.is_some() || url.password.is_some() {
            return Err(Error::config("beanstalkd has no users and no passwords; write `beanstalkd://host:11300`"));
        }
        if !matches!(url.path.as_str(), "" | "/") || (url.hosts.is_empty() && url.path.is_empty()) {
            let text = format!("`{url}` is more or less than hosts; write `beanstalkd://host:11300` or `beanstalkd://a,b:11301`");
            return Err(Error::config(text));
        }
        let mut hosts: Vec<Host> =
            url.hosts.iter().map(|(name, port)| Host { name: name.clone(), port: port.unwrap_or(PORT) }).collect();
        if hosts.is_empty() {
            hosts.push(Host { name: "127.0.0.1".into(), port: PORT });
        }
        let connections = options.options.number("connections")?.unwrap_or(4);
        if !(2..=256).contains(&connections) {
            let text = format!("`connections` is {connections}; it takes 2 to 256, since one waits while another holds tasks");
            return Err(Error::config(text));
        }
        let usual = bands(&options.options)?.unwrap_or_else(|| vec![u32::MAX]);
        let own = |(queue, own): (&QueueName, &Options)| Ok((queue.clone(), bands(own)?.unwrap_or_else(|| usual.clone())));
        Ok(Self {
            address: url.to_string(),
            name: options.name.clone(),
            create: options.create,
            connections: connections as usize,
            patience: options.timeout.clamp(Duration::from_secs(1), LIVENESS),
            queues: options.queues.iter().map(own).collect::<Result<_>>()?,
            bands: usual,
            hosts,
        })
    }

    /// The last priority of each band of a queue.
    pub(crate) fn bands(&self, queue: &QueueName) -> &[u32] {
        self.queues.get(queue).unwrap_or(&self.bands)
    }
}

fn bands(options: &Options) -> Result<Option<Vec<u32>>> {
    let Some(list) = options.list("bands")? else { return Ok(None) };
    let mut ends = list.iter().map(|text| priority::parse(text)).collect::<Result<Vec<_>>>()?;
    if ends.last() != Some(&u32::MAX) {
        ends.push(u32::MAX);
    }
    if !ends.is_sorted_by(|a, b| a < b) {
        return Err(Error::config(format!(
            "`bands` is {}; write the last priority of each band, rising: [512, 2048]",
            quoted(&list.join(","))
        )));
    }
    Ok(Some(ends))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyqueue_testkit::SystemClock;

    fn read(url: &str) -> Result<Config> {
        Config::read(&ConnectOptions::new(url, Arc::new(SystemClock)).unwrap())
    }

    #[test]
    fn a_url_names_servers() {
        let config = read("beanstalkd://a,b:11301,[::1]?connections=8").unwrap();
        assert_eq!(config.hosts.iter().map(Host::address).collect::<Vec<_>>(), ["a:11300", "b:11301", "[::1]:11300"]);
        assert_eq!((config.connections, config.address.as_str()), (8, "beanstalkd://a,b:11301,[::1]"));
        assert_eq!(read("beanstalk://").unwrap().hosts[0].address(), "127.0.0.1:11300");
        for (wrong, named) in [
            ("beanstalkd://user:secret@a", "no passwords"),
            ("beanstalkd://a/path", "write `beanstalkd://host"),
            ("beanstalkd:a", "write `beanstalkd://host"),
            ("beanstalkd://a?connections=1", "2 to 256"),
            ("beanstalkd://a?connections=x", "a whole number"),
            ("beanstalkd://a?bands=512,100", "rising"),
            ("beanstalkd://a?bands=hgih", "did you mean `high`"),
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(named) && !error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[test]
    fn bands_end_at_numbers_or_names_and_a_queue_may_have_its_own() {
        let mut options = ConnectOptions::new("beanstalkd://a?bands=high,2048", Arc::new(SystemClock)).unwrap();
        let (own, other) = (QueueName::new("own").unwrap(), QueueName::new("other").unwrap());
        options.queues.insert(own.clone(), [("bands", vec![7])].into_iter().collect());
        let config = Config::read(&options).unwrap();
        assert_eq!(config.bands(&other), [512, 2048, u32::MAX]);
        assert_eq!(config.bands(&own), [7, u32::MAX]);
        assert_eq!(read("beanstalkd://a").unwrap().bands(&own), [u32::MAX]);
    }
}
