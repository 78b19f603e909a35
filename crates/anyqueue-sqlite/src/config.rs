//! Settings of a broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyqueue_core::{ConnectOptions, Create, Durability, Error, ErrorKind, OptionSpec, Options, Result, time};

/// The largest body by default: 64 MiB.
pub(crate) const MAX_PAYLOAD: u64 = 64 << 20;
/// Above this, SQLite itself refuses a row.
const MOST_PAYLOAD: u64 = 900_000_000;

/// The options that the driver knows.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        key: "durability",
        default: "power",
        help: "what an accepted task survives: `power` (a power loss; an fsync per group of sends) or `process` (any process's death)",
        per_queue: false,
        secret: false,
    },
    OptionSpec {
        key: "busy_timeout",
        default: "the request timeout",
        help: "how long to wait for a lock that another process holds",
        per_queue: false,
        secret: false,
    },
    OptionSpec { key: "max_payload", default: "67108864", help: "the largest body, in bytes", per_queue: false, secret: false },
    OptionSpec {
        key: "cache",
        default: "16777216",
        help: "memory for pages of the file, in bytes, of the connection that writes",
        per_queue: false,
        secret: false,
    },
];

/// Where the file is and how to treat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file, as it was written.
    pub(crate) path: PathBuf,
    /// What an accepted task survives.
    pub(crate) durability: Durability,
    /// How long to wait for a lock.
    pub(crate) busy_timeout: Duration,
    /// The largest body, in bytes.
    pub(crate) max_payload: u64,
    /// Page cache of the connection that writes, in bytes.
    pub(crate) cache: u64,
    /// Whether a missing file or queue is made.
    pub(crate) create: bool,
}

impl Config {
    /// Reads URL and options.
    pub(crate) fn read(options: &ConnectOptions) -> Result<Self> {
        let given = &options.options;
        let max_payload = given.number("max_payload")?.unwrap_or(MAX_PAYLOAD);
        if !(1..=MOST_PAYLOAD).contains(&max_payload) {
            let text = format!(
                "option `max_payload` is {max_payload}; it takes 1 to {MOST_PAYLOAD} bytes, the most SQLite keeps in a row"
            );
            return Err(Error::config(text));
        }
        Ok(Self {
            path: path(options)?,
            durability: given
                .choice("durability", &[("power", Durability::Power), ("process", Durability::Process)])?
                .unwrap_or(Durability::Power),
            busy_timeout: busy_timeout(given, options.timeout)?,
            max_payload,
            cache: given.number("cache")?.unwrap_or(16 << 20),
            create: options.create == Create::Auto,
        })
    }

    /// The same file has the same path, whatever it was called by. The file itself need not exist, its folder must.
    pub(crate) fn canonical(&self) -> Result<PathBuf> {
        if let Ok(found) = self.path.canonicalize() {
            return Ok(found);
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = folder.canonicalize().map_err(|e| {
            let text = format!("the folder of {} cannot be opened; create it first", self.path.display());
            Error::new(ErrorKind::NotFound, text).because(e)
        })?;
        let name = self.path.file_name().ok_or_else(|| not_a_file(&self.path))?;
        Ok(folder.join(name))
    }
}

/// A request that waits for a lock is over when its own time is.
fn busy_timeout(given: &Options, timeout: Duration) -> Result<Duration> {
    let busy_timeout = given.duration("busy_timeout")?.unwrap_or(timeout);
    if busy_timeout > timeout {
        let [busy_timeout, timeout] = [busy_timeout, timeout].map(time::show);
        return Err(Error::config(format!(
            "option `busy_timeout` is {busy_timeout}, longer than a request may take; raise `timeout`, now {timeout}, too"
        )));
    }
    Ok(busy_timeout)
}

fn path(options: &ConnectOptions) -> Result<PathBuf> {
    let url = &options.url;
    if let Some((host, _)) = url.hosts.first() {
        return Err(Error::config(format!(
            "`{url}` names a host, `{host}`, but SQLite is a file; write `{0}:{host}/{1}` or `{0}:///absolute/path`",
            url.scheme, url.path
        )));
    }
    let path = PathBuf::from(&url.path);
    if url.path.is_empty() || url.path == "/" || url.path.ends_with('/') || path.is_dir() {
        return Err(not_a_file(&path));
    }
    if url.path == ":memory:" {
        return Err(Error::config("`:memory:` lives in one connection only; use the `memory:` broker, or name a file"));
    }
    Ok(path)
}

fn not_a_file(path: &Path) -> Error {
    Error::config(format!(
        "`{}` is not the name of a file; write `sqlite:./queue.db` or `sqlite:///var/lib/queue.db`",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use anyqueue_core::{BoxFuture, Clock, Moment};

    use super::*;

    #[derive(Debug)]
    struct NoClock;

    impl Clock for NoClock {
        fn now(&self) -> Moment {
            Moment::default()
        }

        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn sleep_until(&self, _: Moment) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    fn read(url: &str) -> Result<Config> {
        Config::read(&ConnectOptions::new(url, Arc::new(NoClock)).unwrap())
    }

    #[test]
    fn a_url_names_a_file() {
        for (url, path) in [
            ("sqlite:queue.db", "queue.db"),
            ("sqlite:./queue.db", "./queue.db"),
            ("sqlite:/var/lib/q.db", "/var/lib/q.db"),
            ("sqlite:///var/lib/q%20x.db", "/var/lib/q x.db"),
        ] {
            assert_eq!(read(url).unwrap().path, Path::new(path), "{url}");
        }
        for (url, says) in [
            ("sqlite:", "name of a file"),
            ("sqlite:/tmp", "name of a file"),
            ("sqlite:queues/", "name of a file"),
            ("sqlite::memory:", "`memory:` broker"),
            ("sqlite://queue.db", "names a host"),
        ] {
            let error = read(url).unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn options_have_their_documented_defaults_and_bounds() {
        let config = read("sqlite:q.db").unwrap();
        assert_eq!((config.durability, config.max_payload), (Durability::Power, MAX_PAYLOAD));
        assert_eq!(config.busy_timeout, Duration::from_secs(10));
        let config = read("sqlite:q.db?durability=process&busy_timeout=2s&cache=1048576&max_payload=10").unwrap();
        assert_eq!((config.durability, config.max_payload, config.cache), (Durability::Process, 10, 1 << 20));
        assert_eq!(config.busy_timeout, Duration::from_secs(2));
        for bad in ["durability=always", "max_payload=0", "max_payload=2000000000", "busy_timeout=soon", "busy_timeout=11s"] {
            assert!(read(&format!("sqlite:q.db?{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_has_one_path_whatever_it_is_called_by() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let direct = read(&format!("sqlite:{}/q.db", folder.path().display())).unwrap();
        let around = read(&format!("sqlite:{}/../q.db", inner.display())).unwrap();
        assert_eq!(direct.canonical().unwrap(), around.canonical().unwrap());
        let error = read("sqlite:/no/such/folder/q.db").unwrap().canonical().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/no/such/folder/q.db"), "{error}");
    }
}
