//! What `queue.toml`, the environment and flags say, resolved before anybody sees it.
//!
//! Built-in defaults < the file < the environment (`ANYQUEUE__RUNNER__SLOTS=4`) < flags. A key that nobody knows is an
//! error that names the line and the nearest known key; all that is wrong with the values of all layers is reported at once.

mod broker;
mod builder;
mod explain;
mod layer;
mod origin;
mod queue;
mod runner;
mod table;
#[cfg(test)]
mod tests;
mod value;
mod variables;

use std::collections::BTreeMap;

use anyqueue_core::{Error, QueueName, Result, suggest};

pub use broker::BrokerSettings;
pub use builder::SettingsBuilder;
pub use explain::Line;
pub use origin::Origin;
pub use queue::{QueueSettings, Route, WorkerSettings};
pub use runner::{RunnerSettings, Strategy};

use crate::drivers::Drivers;
use origin::Origins;

/// Everything that can be set, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The brokers, by name.
    pub brokers: BTreeMap<String, BrokerSettings>,
    /// The queues, by name.
    pub queues: BTreeMap<QueueName, QueueSettings>,
    /// Which tasks go to which queue, in the order in which they are tried.
    pub routes: Vec<Route>,
    /// What holds for a runner.
    pub runner: RunnerSettings,
    /// Refuse to start where a queue needs something that its broker does not have by itself.
    pub strict: bool,
    /// The broker of queues that name none.
    pub default_broker: String,
    /// The file that was read, if there was one.
    pub file: Option<String>,
    /// What `[defaults]` say of a queue that has no table.
    base: QueueSettings,
    drivers: Drivers,
    origins: Origins,
}

impl Settings {
    /// Reads `queue.toml` of the current folder, if it is there, or the file that `ANYQUEUE_CONFIG` names, and the
    /// environment. With no file: the broker `default` is SQLite in `./queue.db`, and the queue `default` has the
    /// worker `test`.
    ///
    /// # Errors
    /// [`Config`](anyqueue_core::ErrorKind::Config), with one line per problem.
    pub fn load() -> Result<Self> {
        Self::builder().load()
    }

    /// Starts settings that are not just read from the usual places.
    pub fn builder() -> SettingsBuilder {
        SettingsBuilder::default()
    }

    /// Settings with one broker that lives in this process's memory, for tests. Reads neither file nor environment.
    #[cfg(feature = "memory")]
    pub fn memory() -> Self {
        let text = "[brokers.default]\nurl = \"memory:\"\n";
        Self::builder().text("memory", text).environment([]).load().expect("settings made of constants are right")
    }

    /// The settings of a queue.
    ///
    /// # Errors
    /// [`NotFound`](anyqueue_core::ErrorKind::NotFound) with the nearest name and the known ones.
    pub fn queue(&self, name: &str) -> Result<&QueueSettings> {
        self.queues.get(name).ok_or_else(|| {
            let known = suggest(name, self.queues.keys().map(QueueName::as_str));
            Error::new(anyqueue_core::ErrorKind::NotFound, format!("no queue `{name}` in the settings; {known}"))
        })
    }

    /// A queue's settings; those of a queue without a table are what `[defaults]` say.
    ///
    /// # Errors
    /// For a name that no queue can have.
    pub fn queue_or_default(&self, name: &str) -> Result<QueueSettings> {
        match self.queues.get(name) {
            Some(known) => Ok(known.clone()),
            None => Ok(self.base.named(QueueName::new(name)?)),
        }
    }

    /// The queue that a task's name is routed to.
    pub fn route(&self, task: &str) -> Option<&QueueName> {
        self.routes.iter().find(|route| route.matches(task)).map(|route| &route.queue)
    }

    /// The drivers that brokers were chosen from.
    pub fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    /// Where the value of a key came from. The key is written as in TOML: `queues."mail.Out".slots`. For what a queue or
    /// worker did not say itself, the origin of what it took over.
    pub fn origin(&self, key: &str) -> Origin {
        let Ok(path) = layer::parse_key(key) else { return Origin::Default };
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        let mut places = vec![path.clone()];
        if let ["queues", queue, "workers", _, rest @ ..] = parts.as_slice() {
            places.push(["queues", queue].iter().chain(rest).map(|s| (*s).to_owned()).collect());
            places.push(["defaults"].iter().chain(rest).map(|s| (*s).to_owned()).collect());
        } else if let ["queues", _, rest @ ..] = parts.as_slice() {
            places.push(["defaults"].iter().chain(rest).map(|s| (*s).to_owned()).collect());
            if let ["broker"] = rest {
                places.push(vec!["default_broker".into()]);
            }
        }
        places.iter().find(|path| self.origins.is_set(path)).map(|path| self.origins.of(path)).unwrap_or_default()
    }
}
