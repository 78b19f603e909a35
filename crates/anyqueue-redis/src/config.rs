//! Settings of a broker.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyqueue_core::{ConnectOptions, Create, Error, OptionSpec, Options, Result};

/// The largest body by default: 16 MiB.
pub(crate) const MAX_PAYLOAD: u64 = 16 << 20;
/// Half of what Redis takes as one argument (`proto-max-bulk-len`).
const MOST_PAYLOAD: u64 = 256 << 20;
/// How often a connection is asked for a sign of life by default.
pub(crate) const LIVENESS: Duration = Duration::from_secs(5);
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

const fn option(key: &'static str, default: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec { key, default, help, per_queue: false, secret: false }
}

/// The options that the driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    option("prefix", "anyqueue", "what all keys begin with"),
    option("master", "none", "the name of the master that the hosts, which are sentinels, watch"),
    option("sentinel_user", "none", "the user to log in to the sentinels with"),
    OptionSpec { secret: true, ..option("sentinel_password", "none", "the password to log in to the sentinels with") },
    option("max_payload", "16777216", "the largest body, in bytes"),
    option(
        "liveness",
        "5s",
        "how often an idle connection is asked for a sign of life; no answer for twice as long is a broken one",
    ),
    option("tls_ca", "the system's", "a file with the certificates to trust, for `rediss:`"),
    option("tls_certificate", "none", "a file with the certificate that we show, for `rediss:`"),
    option("tls_key", "none", "the file with the key of that certificate"),
];

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Reads `host:port` as servers write it; without a host, it is the one that was asked.
    pub(crate) fn parse(text: &str, asked: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() || host == "?" { &asked.host } else { host.trim_matches(['[', ']']) };
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A user and a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Which certificates to trust and to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) ca: Option<PathBuf>,
    /// Certificate and key.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

/// Where the servers are and how to treat them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The URL without secrets.
    pub(crate) url: String,
    pub(crate) hosts: Vec<Address>,
    pub(crate) login: Login,
    pub(crate) database: i64,
    pub(crate) prefix: String,
    /// The name of the master, where the hosts are sentinels.
    pub(crate) master: Option<String>,
    pub(crate) sentinel_login: Login,
    pub(crate) tls: Option<Tls>,
    /// How long one request may take.
    pub(crate) timeout: Duration,
    pub(crate) liveness: Duration,
    pub(crate) max_payload: u64,
    pub(crate) create: bool,
}

impl Config {
    /// Reads URL and options.
    pub(crate) fn read(options: &ConnectOptions) -> Result<Self> {
        let (url, given) = (&options.url, &options.options);
        let master = given.text("master")?;
        let liveness = given.duration("liveness")?.unwrap_or(LIVENESS);
        if liveness < Duration::from_millis(100) {
            return Err(Error::config("option `liveness` is below 100ms; a network alone may take as long"));
        }
        let max_payload = given.number("max_payload")?.unwrap_or(MAX_PAYLOAD);
        if !(1..=MOST_PAYLOAD).contains(&max_payload) {
            let text = format!("option `max_payload` is {max_payload}; it takes 1 to {MOST_PAYLOAD} bytes");
            return Err(Error::config(text));
        }
        let prefix = given.text("prefix")?.unwrap_or_else(|| "anyqueue".into());
        if prefix.is_empty() || prefix.contains(['{', '}']) {
            return Err(Error::config(format!("option `prefix` is `{prefix}`; it takes a text without braces")));
        }
        Ok(Self {
            url: url.to_string(),
            hosts: hosts(options, master.is_some())?,
            login: Login { user: url.user.clone(), password: url.password.clone() },
            database: database(options)?,
            prefix,
            master,
            sentinel_login: Login { user: given.text("sentinel_user")?, password: given.text("sentinel_password")? },
            tls: tls(&url.scheme, given)?,
            timeout: options.timeout.min(liveness * 2),
            liveness,
            max_payload,
            create: options.create == Create::Auto,
        })
    }
}

fn hosts(options: &ConnectOptions, sentinels: bool) -> Result<Vec<Address>> {
    let url = &options.url;
    if url.hosts.is_empty() {
        return Err(Error::config(format!("`{url}` names no host; write it like `redis://localhost:6379`")));
    }
    let port = if sentinels { SENTINEL_PORT } else { PORT };
    Ok(url.hosts.iter().map(|(host, given)| Address { host: host.clone(), port: given.unwrap_or(port) }).collect())
}

fn database(options: &ConnectOptions) -> Result<i64> {
    match options.url.path.trim_matches('/') {
        "" => Ok(0),
        path => path.parse::<u32>().map(i64::from).map_err(|_| {
            let url = &options.url;
            Error::config(format!("`{url}` has the path `{path}`; it is the number of a database, as in `redis://localhost/0`"))
        }),
    }
}

fn tls(scheme: &str, given: &Options) -> Result<Option<Tls>> {
    let file = |key| Ok::<_, Error>(given.text(key)?.map(PathBuf::from));
    let (ca, certificate, key) = (file("tls_ca")?, file("tls_certificate")?, file("tls_key")?);
    if scheme != "rediss" {
        return match (ca, certificate, key) {
            (None, None, None) => Ok(None),
            _ => Err(Error::config("options `tls_…` are for `rediss:` addresses; this one begins with `redis:`")),
        };
    }
    if !cfg!(feature = "tls") {
        return Err(Error::config("`rediss:` was left out of this build; build anyqueue-redis with its feature `tls`"));
    }
    match (certificate, key) {
        (None, None) => Ok(Some(Tls { ca, own: None })),
        (Some(certificate), Some(key)) => Ok(Some(Tls { ca, own: Some((certificate, key)) })),
        _ => Err(Error::config("options `tls_certificate` and `tls_key` go together; give both or none")),
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

    fn shown(config: &Config) -> Vec<String> {
        config.hosts.iter().map(Address::to_string).collect()
    }

    #[test]
    fn a_url_names_servers_login_and_database() {
        let config = read("redis://me:secret@a,[::1]:7000/3?prefix=jobs&liveness=1s").unwrap();
        assert_eq!(shown(&config), ["a:6379", "[::1]:7000"]);
        assert_eq!((config.database, config.prefix.as_str(), config.timeout), (3, "jobs", Duration::from_secs(2)));
        assert_eq!(config.login.password.as_deref(), Some("secret"));
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(shown(&read("redis://a?master=mymaster").unwrap()), ["a:26379"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (url, says) in [
            ("redis:", "names no host"),
            ("redis://a/zero", "number of a database"),
            ("redis://a?prefix={x}", "without braces"),
            ("redis://a?max_payload=0", "`max_payload` is 0"),
            ("redis://a?liveness=1ms", "`liveness`"),
            ("redis://a?tls_ca=x.pem", "`rediss:`"),
            ("rediss://a?tls_key=x.pem", "go together"),
        ] {
            let error = read(url).unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn an_address_without_a_host_is_on_the_server_that_said_it() {
        let asked = Address { host: "h".into(), port: 1 };
        let read = |text| Address::parse(text, &asked).map(|address| address.to_string());
        assert_eq!(read("10.0.0.1:7001").as_deref(), Some("10.0.0.1:7001"));
        assert_eq!(read(":7001").as_deref(), Some("h:7001"));
        assert_eq!(read("::1:7001").as_deref(), Some("[::1]:7001"));
        assert_eq!(read("nonsense"), None);
    }
}
