//! The settings of a memory broker.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyqueue_core::{Capabilities, ConnectOptions, Create, Error, OptionSpec, QueueName, Result};

/// The options, as messages and tables show them.
pub(crate) const OPTIONS: &[OptionSpec] = &[OptionSpec {
    key: "max_payload",
    default: "none",
    help: "the largest task that is accepted, in bytes; what a test sets to see how a caller copes",
    per_queue: true,
    secret: false,
}];

/// A memory broker's settings, resolved.
#[derive(Debug)]
pub(crate) struct Config {
    /// The store's name; empty for a store of its own.
    pub(crate) store: String,
    pub(crate) create: Create,
    usual: Arc<Capabilities>,
    queues: BTreeMap<QueueName, Arc<Capabilities>>,
}

impl Config {
    pub(crate) fn read(options: &ConnectOptions, base: Capabilities) -> Result<Self> {
        if !options.url.hosts.is_empty() || options.url.path.starts_with('/') {
            let text = format!("`{}` names a host or a path; write `memory:` or `memory:name`", options.url);
            return Err(Error::config(text));
        }
        let usual = Capabilities { max_payload: options.options.number("max_payload")?, ..base };
        let own = |(queue, own): (&QueueName, &anyqueue_core::Options)| {
            let max_payload = own.number("max_payload")?.or(usual.max_payload);
            Ok((queue.clone(), Arc::new(Capabilities { max_payload, ..base })))
        };
        let queues = options.queues.iter().map(own).collect::<Result<_>>()?;
        Ok(Self { store: options.url.path.clone(), create: options.create, usual: Arc::new(usual), queues })
    }

    pub(crate) fn capabilities(&self, queue: &QueueName) -> &Arc<Capabilities> {
        self.queues.get(queue).unwrap_or(&self.usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyqueue_testkit::SystemClock;

    fn read(url: &str) -> Result<Config> {
        Config::read(&ConnectOptions::new(url, Arc::new(SystemClock)).unwrap(), Capabilities::FULL)
    }

    #[test]
    fn a_url_names_a_store_and_nothing_else() {
        assert_eq!(read("memory:").unwrap().store, "");
        assert_eq!(read("memory:shared").unwrap().store, "shared");
        for wrong in ["memory://host", "memory:///tmp/x", "memory:/tmp/x"] {
            assert!(read(wrong).unwrap_err().to_string().contains("write `memory:`"), "{wrong}");
        }
    }

    #[test]
    fn a_queue_may_have_its_own_largest_task() {
        let mut options = ConnectOptions::new("memory:?max_payload=100", Arc::new(SystemClock)).unwrap();
        let (small, other) = (QueueName::new("small").unwrap(), QueueName::new("other").unwrap());
        options.queues.insert(small.clone(), [("max_payload", 10)].into_iter().collect());
        let config = Config::read(&options, Capabilities::FULL).unwrap();
        assert_eq!(config.capabilities(&small).max_payload, Some(10));
        assert_eq!(config.capabilities(&other).max_payload, Some(100));
    }
}
