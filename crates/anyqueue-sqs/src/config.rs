//! The settings of an SQS broker.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{BrokerUrl, ConnectOptions, Create, Error, Levels, OptionSpec, Options, QueueName, Result, priority};

use crate::names::MAX_PREFIX;

/// The longest wait of a receive (`WaitTimeSeconds`).
const MAX_WAIT: Duration = Duration::from_secs(20);

const fn option(key: &'static str, default: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec { key, default, help, per_queue: false, secret: false }
}

/// The options that the driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    option("endpoint", "the region's", "the URL of the service: a VPC endpoint, or a server that speaks SQS's protocol"),
    option("profile", "AWS_PROFILE, or `default`", "the profile of `~/.aws/config` to take region and credentials from"),
    option("region", "the chain's", "the region, where the URL's host is a server"),
    option("wait", "20s", "how long a receive waits for a task, 1s to 20s; an idle queue costs a request per band each"),
    option("requests", "16", "how many requests of one batch are under way at once"),
    option("store", "none", "a folder for data that is too large for SQS, `file:/path`, the same for all that send or work"),
    OptionSpec {
        key: "bands",
        default: "3, of a FIFO queue 1",
        help: "into how many levels priorities fall, each an SQS queue of its own: 1, 3 or 5",
        per_queue: true,
        secret: false,
    },
    OptionSpec {
        key: "fifo",
        default: "false",
        help: "whether the queue is a FIFO queue: tasks of one group in order, dearer and slower",
        per_queue: true,
        secret: false,
    },
];

/// An access key, whose secret is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) key: String,
    pub(crate) secret: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("key", &self.key).finish_non_exhaustive()
    }
}

/// How one queue is kept on SQS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) fifo: bool,
    /// The last priority of each band.
    pub(crate) bands: &'static [u32],
}

impl Kind {
    fn read(options: &Options, usual: Option<&Self>) -> Result<Self> {
        let fifo = options.boolean("fifo")?.unwrap_or(usual.is_some_and(|usual| usual.fifo));
        let bands = match options.number("bands")? {
            Some(1) => priority::ONE_BAND,
            Some(3) => priority::THREE_BANDS,
            Some(5) => priority::FIVE_BANDS,
            Some(other) => return Err(Error::config(format!("option `bands` is {other}; it takes 1, 3 or 5"))),
            None => match usual {
                Some(usual) if usual.fifo == fifo => usual.bands,
                _ if fifo => priority::ONE_BAND,
                _ => priority::THREE_BANDS,
            },
        };
        Ok(Self { fifo, bands })
    }

    pub(crate) fn levels(self) -> Levels {
        Levels::Bands(self.bands)
    }
}

/// An SQS broker's settings, resolved.
#[derive(Debug)]
pub(crate) struct Config {
    /// The broker's name in the settings: part of the ids of tasks that came without one.
    pub(crate) name: Arc<str>,
    pub(crate) address: String,
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) profile: Option<String>,
    pub(crate) login: Option<Login>,
    /// What all names on SQS begin with.
    pub(crate) prefix: String,
    pub(crate) create: Create,
    pub(crate) timeout: Duration,
    pub(crate) wait: Duration,
    pub(crate) requests: usize,
    /// The folder for large data.
    pub(crate) store: Option<PathBuf>,
    usual: Kind,
    queues: BTreeMap<QueueName, Kind>,
}

impl Config {
    pub(crate) fn read(options: &ConnectOptions) -> Result<Self> {
        let (url, given) = (&options.url, &options.options);
        let (host, port) = match url.hosts.as_slice() {
            [] => (None, None),
            [(host, port)] => (Some(host.clone()).filter(|host| !host.is_empty()), *port),
            _ => return Err(Error::config(format!("`{url}` has several hosts; write one region, as in `sqs://eu-west-1`"))),
        };
        // A host with a port is a server; one without is a region.
        let (region, server) = match port {
            Some(port) => (None, host.map(|host| format!("http://{host}:{port}"))),
            None => (host, None),
        };
        let endpoint = given.text("endpoint")?.or(server.clone());
        if endpoint.as_ref().is_some_and(|endpoint| endpoint.contains('@')) {
            let text = "option `endpoint` has a login, and SQS takes none there; write `sqs://KEY:SECRET@region?endpoint=…`";
            return Err(Error::config(text));
        }
        let login = match (&url.user, &url.password) {
            (Some(key), Some(secret)) => Some(Login { key: key.clone(), secret: secret.clone() }),
            (None, None) if server.is_some() => Some(Login { key: "anyqueue".into(), secret: "anyqueue".into() }),
            (None, None) => None,
            _ => return Err(Error::config("an access key needs its secret: write `sqs://KEY:SECRET@region`, or use a profile")),
        };
        let region = region.or(given.text("region")?).or_else(|| server.is_some().then(|| "us-east-1".into()));
        let wait = given.duration("wait")?.unwrap_or(MAX_WAIT);
        if !(Duration::from_secs(1)..=MAX_WAIT).contains(&wait) {
            return Err(Error::config(format!("option `wait` is {}; it takes 1s to 20s", anyqueue_core::time::show(wait))));
        }
        let requests = given.number("requests")?.unwrap_or(16);
        if !(1..=256).contains(&requests) {
            return Err(Error::config(format!("option `requests` is {requests}; it takes 1 to 256")));
        }
        let usual = Kind::read(given, None)?;
        let own = |(queue, own): (&QueueName, &Options)| Ok((queue.clone(), Kind::read(own, Some(&usual))?));
        Ok(Self {
            name: options.name.clone(),
            address: url.to_string(),
            region,
            endpoint,
            profile: given.text("profile")?,
            login,
            prefix: prefix(&url.path)?,
            create: options.create,
            timeout: options.timeout,
            wait,
            requests: requests as usize,
            store: given.text("store")?.as_deref().map(store).transpose()?,
            queues: options.queues.iter().map(own).collect::<Result<_>>()?,
            usual,
        })
    }

    /// The queues that are set up.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.queues.keys()
    }

    pub(crate) fn kind(&self, queue: &QueueName) -> Kind {
        *self.queues.get(queue).unwrap_or(&self.usual)
    }
}

/// The folder that a URL names.
fn store(text: &str) -> Result<PathBuf> {
    // What it is instead may have a password in it, so only its scheme is repeated.
    let scheme = text.split_once(':').map_or("no URL", |(scheme, _)| scheme);
    let wrong = || Error::config(format!("option `store` is {scheme}: it takes a folder with its whole path, `file:/path`"));
    let url = BrokerUrl::parse(text).map_err(|_| wrong())?;
    let whole = url.path.starts_with('/') && !url.path.contains('\0');
    if url.scheme == "file" && url.hosts.is_empty() && url.user.is_none() && url.query.is_empty() && whole {
        Ok(url.path.into())
    } else {
        Err(wrong())
    }
}

fn prefix(path: &str) -> Result<String> {
    let path = path.trim_matches('/');
    if let Some(c) = path.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_".contains(*c))) {
        let text = format!("the prefix `{path}` has the character {c:?}; SQS allows A-Z a-z 0-9 - _");
        return Err(Error::config(text));
    }
    if path.len() > MAX_PREFIX {
        let text = format!("the prefix `{path}` has {} characters; at most {MAX_PREFIX} leave room for names", path.len());
        return Err(Error::config(text));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyqueue_testkit::SystemClock;

    fn read(url: &str) -> Result<Config> {
        Config::read(&ConnectOptions::new(url, Arc::new(SystemClock)).unwrap())
    }

    #[test]
    fn a_url_names_a_region_or_a_server() {
        let config = read("sqs://eu-west-1/staging-?profile=jobs&wait=5s").unwrap();
        assert_eq!((config.region.as_deref(), config.prefix.as_str(), config.endpoint), (Some("eu-west-1"), "staging-", None));
        assert_eq!((config.profile.as_deref(), config.wait), (Some("jobs"), Duration::from_secs(5)));
        assert!(config.login.is_none(), "the chain finds the credentials");
        let config = read("sqs:").unwrap();
        assert!(config.region.is_none() && config.endpoint.is_none() && config.prefix.is_empty());
        let config = read("sqs://127.0.0.1:9324").unwrap();
        assert_eq!(config.endpoint.as_deref(), Some("http://127.0.0.1:9324"));
        assert_eq!((config.region.as_deref(), config.login.is_some()), (Some("us-east-1"), true));
        let config = read("sqs://KEY:SECRET@eu-west-1?endpoint=https://vpce.example").unwrap();
        assert_eq!(config.endpoint.as_deref(), Some("https://vpce.example"));
        assert!(!format!("{config:?}").contains("SECRET"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (url, says) in [
            ("sqs://a,b", "several hosts"),
            ("sqs://KEY@eu-west-1", "needs its secret"),
            ("sqs://eu-west-1/a.b", "'.'"),
            ("sqs://eu-west-1/012345678901234567890", "at most 20"),
            ("sqs://eu-west-1?wait=30s", "1s to 20s"),
            ("sqs://eu-west-1?bands=2", "1, 3 or 5"),
            ("sqs://eu-west-1?requests=0", "1 to 256"),
            ("sqs://eu-west-1?store=/var/x", "`file:/path`"),
            ("sqs://eu-west-1?store=file:x", "`file:/path`"),
            ("sqs://eu-west-1?store=file://host/x", "`file:/path`"),
            ("sqs://eu-west-1?store=postgres://u:swordfish@host/x", "is postgres: it takes a folder"),
        ] {
            let error = read(url).unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
            assert!(!error.contains("swordfish"), "{error}");
        }
        for url in ["sqs:?store=file:/var/tasks", "sqs:?store=file:///var/tasks"] {
            assert_eq!(read(url).unwrap().store, Some("/var/tasks".into()), "{url}");
        }
    }

    #[test]
    fn a_login_in_the_endpoint_is_refused_and_not_shown() {
        let error = read("sqs://eu-west-1?endpoint=https://user:swordfish@vpce.example").unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("`endpoint`") && !shown.contains("swordfish"), "{shown}");
    }

    #[test]
    fn a_queue_may_be_of_another_kind() {
        let mut options = ConnectOptions::new("sqs://eu-west-1?bands=5", Arc::new(SystemClock)).unwrap();
        let (fifo, other) = (QueueName::new("fifo").unwrap(), QueueName::new("other").unwrap());
        options.queues.insert(fifo.clone(), [("fifo", true)].into_iter().collect());
        let config = Config::read(&options).unwrap();
        assert_eq!(config.kind(&fifo), Kind { fifo: true, bands: priority::ONE_BAND });
        assert_eq!(config.kind(&other), Kind { fifo: false, bands: priority::FIVE_BANDS });
    }
}
