//! Settings from other places than the usual ones.

use std::collections::{BTreeMap, BTreeSet};

use anyqueue_core::{BrokerUrl, Error, QueueName, Result, quoted, suggest};
use config::{Map, Value};

use super::broker::{BrokerSettings, Brokers};
use super::layer::{self, Layer};
use super::origin::{Origin, Origins};
use super::queue::{NO_TASK_NAME, QueueSettings, Route, is_task_name};
use super::runner::RunnerSettings;
use super::table::{Reader, Table};
use super::variables::{self, Below};
use super::{Settings, value};
use crate::drivers::Drivers;

/// The file that is read if it is there and no other is named.
const USUAL_FILE: &str = "queue.toml";

/// Collects where settings come from, and reads them.
///
/// ```
/// use anyqueue::Settings;
///
/// let file = "[queues.mail]\nttr = \"5m\"";
/// let settings = Settings::builder().text("queue.toml", file).environment([]).flag("runner.slots", 4).load()?;
/// assert_eq!(settings.queue("mail")?.ttr.as_secs(), 300);
/// assert_eq!(settings.origin("queues.mail.ttr").to_string(), "queue.toml:2");
/// assert_eq!(settings.origin("runner.slots").to_string(), "command line");
/// # Ok::<(), anyqueue::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct SettingsBuilder {
    file: Option<String>,
    text: Option<(String, String)>,
    environment: Option<Vec<(String, String)>>,
    flags: Vec<(String, String)>,
    broker: Option<String>,
    drivers: Option<Drivers>,
    /// Queues that the program has workers for, by name, with the names of their tasks.
    handlers: BTreeMap<String, Vec<String>>,
}

/// All layers in one.
struct Merged {
    values: Map<String, Value>,
    /// The file's name, if there is one.
    file: Option<String>,
    /// The queues that the file has.
    own: BTreeSet<String>,
}

impl SettingsBuilder {
    /// Reads this file instead of `queue.toml` or the one that `ANYQUEUE_CONFIG` names. It must be there.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Takes this text instead of a file; `name` stands in messages.
    #[must_use]
    pub fn text(mut self, name: impl Into<String>, toml: impl Into<String>) -> Self {
        self.text = Some((name.into(), toml.into()));
        self
    }

    /// Takes these variables instead of the process's environment.
    #[must_use]
    pub fn environment<const N: usize>(mut self, variables: [(&str, &str); N]) -> Self {
        self.environment = Some(variables.map(|(name, text)| (name.to_owned(), text.to_owned())).into());
        self
    }

    /// Sets one key over everything else. The key is written as in TOML: `queues."mail.Out".slots`.
    #[must_use]
    pub fn flag(mut self, key: impl Into<String>, value: impl ToString) -> Self {
        self.flags.push((key.into(), value.to_string()));
        self
    }

    /// Uses one broker for all queues: a name in the settings, or a URL.
    #[must_use]
    pub fn broker(mut self, name_or_url: impl Into<String>) -> Self {
        self.broker = Some(name_or_url.into());
        self
    }

    /// Chooses brokers from these drivers instead of [`Drivers::enabled`].
    #[must_use]
    pub fn drivers(mut self, drivers: Drivers) -> Self {
        self.drivers = Some(drivers);
        self
    }

    /// Makes a handler's queue and its tasks known, as tables in the file would; one may be there too.
    #[must_use]
    pub fn handler(mut self, handler: &crate::Queue) -> Self {
        let tasks = self.handlers.entry(handler.name().to_owned()).or_default();
        tasks.extend(handler.workers().map(str::to_owned));
        self
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`Config`](anyqueue_core::ErrorKind::Config), with one line per problem.
    pub fn load(self) -> Result<Settings> {
        self.read().0
    }

    /// Reads everything; also says which keys were asked for, with `*` for names.
    pub(super) fn read(self) -> (Result<Settings>, Vec<String>) {
        let mut origins = Origins::default();
        let Merged { values, file, own } = match self.merged(&mut origins) {
            Ok(merged) => merged,
            Err(e) => return (Err(e), Vec::new()),
        };
        let drivers = self.drivers.clone().unwrap_or_else(Drivers::enabled);
        let reader = Reader::new(&origins);
        let settings = resolve(Table::root(&reader, values), &reader, drivers, &self.handlers, &own);
        let (problems, asked) = reader.finish();
        let settings = match settings {
            Some(settings) if problems.is_empty() => Ok(Settings { file, origins, ..settings }),
            _ => Err(Error::config(problems.join("\n"))),
        };
        let settings = settings.and_then(|settings| match &self.broker {
            Some(broker) => only_broker(settings, broker),
            None => Ok(settings),
        });
        (settings, asked)
    }

    /// Defaults are what no layer says, so that three layers are merged: file < environment < flags.
    fn merged(&self, origins: &mut Origins) -> Result<Merged> {
        let environment = match &self.environment {
            Some(given) => given.clone(),
            None => process_environment()?,
        };
        let file = self.file_text(&environment)?;
        let written = match &file {
            Some((name, text)) => Layer::file(name, text, origins)?,
            None => Layer::default(),
        };
        let environment = variables::read(&environment, Below::new(&written, &self.handlers), origins)?;
        let flags = Layer::flags(&self.flags, [(&written, "the file"), (&environment, "a variable")], origins)?;
        let own = written.names("queues").cloned().collect();
        Ok(Merged { values: layer::merge([written, environment, flags])?, file: file.map(|(name, _)| name), own })
    }

    /// Name and text of the file, if there is one.
    fn file_text(&self, environment: &[(String, String)]) -> Result<Option<(String, String)>> {
        if let Some(text) = &self.text {
            return Ok(Some(text.clone()));
        }
        let named = environment.iter().find(|(name, path)| name == "ANYQUEUE_CONFIG" && !path.is_empty());
        let (path, is_named, by) = match (&self.file, named) {
            (Some(path), _) => (path.clone(), true, ""),
            (None, Some((_, path))) => (path.clone(), true, ", which ANYQUEUE_CONFIG names,"),
            (None, None) => (USUAL_FILE.to_owned(), false, ""),
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !is_named => Ok(None),
            Err(e) => Err(Error::config(format!("the settings file `{path}`{by} cannot be read")).because(e)),
        }
    }
}

/// The variables that may be ours. One that is not Unicode is an error only if it is.
fn process_environment() -> Result<Vec<(String, String)>> {
    let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("ANYQUEUE_");
    let read = |(name, text): (std::ffi::OsString, std::ffi::OsString)| {
        let name = name.to_string_lossy().into_owned();
        let text = text.into_string().map_err(|_| Error::config(format!("{name}: its value is not Unicode")))?;
        Ok((name, text))
    };
    std::env::vars_os().filter(|(name, _)| ours(name)).map(read).collect()
}

/// Reads the merged tables. `None` where what is missing has been reported.
fn resolve<'r>(
    mut root: Table<'r>,
    reader: &'r Reader<'r>,
    drivers: Drivers,
    handlers: &BTreeMap<String, Vec<String>>,
    own: &BTreeSet<String>,
) -> Option<Settings> {
    let strict = root.take("strict", value::boolean).unwrap_or(false);
    let named = root.take("default_broker", value::text);
    let brokers = Brokers::read(root.tables("brokers"), reader, &drivers);
    let default_broker = default_broker(&root, named, &brokers);
    let mut base = QueueSettings::new(QueueName::new("default").expect("a constant"), default_broker.clone().unwrap_or_default());
    if let Some(mut defaults) = root.table("defaults") {
        base.read_shared(&mut defaults);
        defaults.finish();
    }
    let queues = queues(&mut root, &base, &brokers, handlers, own);
    let routes = root.table("routes").map(|table| routes(table, &queues)).unwrap_or_default();
    let runner = root.table("runner").map(RunnerSettings::read).unwrap_or_default();
    root.finish();
    let (default_broker, brokers) = (default_broker?, brokers.usable);
    let origins = Origins::default();
    Some(Settings { brokers, queues, routes, runner, strict, default_broker, file: None, base, drivers, origins })
}

/// The broker of queues that name none: the one that is named so, `default`, or the only one.
fn default_broker(root: &Table<'_>, named: Option<String>, brokers: &Brokers<'_>) -> Option<String> {
    if let Some(name) = named {
        return brokers.check(&name).map_err(|e| root.problem("default_broker", &e)).ok().map(|()| name);
    }
    let mut names = brokers.names();
    match (brokers.check("default"), names.next(), names.next()) {
        (Ok(()), ..) => Some("default".into()),
        (_, Some(only), None) => Some(only.to_owned()),
        _ => {
            let known = suggest("default", brokers.names());
            root.problem("default_broker", &format!("set it, since none of the brokers is called `default`; {known}"));
            None
        }
    }
}

/// The queues of the settings, `own` of which the file has, and those that the program brings.
fn queues(
    root: &mut Table<'_>,
    base: &QueueSettings,
    brokers: &Brokers<'_>,
    handlers: &BTreeMap<String, Vec<String>>,
    own: &BTreeSet<String>,
) -> BTreeMap<QueueName, QueueSettings> {
    let mut queues = BTreeMap::new();
    for (name, table) in root.tables("queues") {
        match QueueName::new(&name) {
            Ok(name) => {
                queues.insert(name.clone(), base.named(name).read(table, brokers));
            }
            Err(e) => table.wrong_name(&e.to_string()),
        }
    }
    // A variable or flag that tunes a queue of the program names no queue of the settings' own.
    if own.is_empty() && queues.keys().all(|name| handlers.contains_key(name.as_str())) {
        queues.entry(base.name.clone()).or_insert_with(|| base.clone());
    }
    for (name, tasks) in handlers {
        match QueueName::new(name) {
            Ok(name) => {
                for task in tasks.iter().filter(|task| !is_task_name(task)) {
                    root.program_problem(&format!("a handler of this program: `{task}` is no task name: {NO_TASK_NAME}"));
                }
                let queue = queues.entry(name.clone()).or_insert_with(|| base.named(name));
                tasks.iter().for_each(|task| queue.add_worker(task));
            }
            Err(e) => root.program_problem(&format!("a handler of this program: {e}")),
        }
    }
    // The queue `default` has the worker `test` as long as nobody gives it another.
    if let Some(queue) = queues.get_mut("default").filter(|queue| queue.tasks().is_empty()) {
        queue.add_worker("test");
    }
    queues
}

/// Exact names before patterns, longer patterns before shorter ones.
fn routes(mut table: Table<'_>, queues: &BTreeMap<QueueName, QueueSettings>) -> Vec<Route> {
    let mut routes = Vec::new();
    for (pattern, queue) in table.rest(value::text) {
        if !queues.contains_key(queue.as_str()) {
            let known = suggest(&queue, queues.keys().map(QueueName::as_str));
            table.problem(&pattern, &format!("there is no queue {}; {known}", quoted(&queue)));
        } else if let Ok(route) = Route::read(pattern, &queue) {
            routes.push(route);
        }
    }
    routes.sort_by(|a, b| b.rank().cmp(&a.rank()).then_with(|| a.pattern.cmp(&b.pattern)));
    routes
}

/// Leaves one broker, for all queues. Options that queues have for another driver are dropped.
fn only_broker(mut settings: Settings, name_or_url: &str) -> Result<Settings> {
    let broker = match settings.brokers.remove(name_or_url) {
        Some(broker) => broker,
        None if name_or_url.contains(':') => {
            let url = BrokerUrl::parse(name_or_url)?;
            let driver = *settings.drivers.find(&url.scheme)?;
            let broker = BrokerSettings::at("command-line", url, driver);
            broker.options.check(&driver, false)?;
            settings.origins.set(["brokers", "command-line", "url"].map(str::to_owned).into(), Origin::Flag);
            broker
        }
        None => {
            let known = suggest(name_or_url, settings.brokers.keys().map(String::as_str));
            return Err(Error::config(format!("no broker {} in the settings, and it is no URL; {known}", quoted(name_or_url))));
        }
    };
    for queue in settings.queues.values_mut() {
        let before = settings.brokers.get(&*queue.broker).map(|broker| broker.driver.name);
        if before.is_some_and(|driver| driver != broker.driver.name) {
            queue.options = Default::default();
        }
        queue.broker = broker.name.clone();
    }
    settings.base.broker = broker.name.clone();
    settings.default_broker = broker.name.to_string();
    settings.brokers = BTreeMap::from([(broker.name.to_string(), broker)]);
    settings.origins.set(vec!["default_broker".into()], Origin::Flag);
    for name in settings.queues.keys() {
        settings.origins.set(vec!["queues".into(), name.to_string(), "broker".into()], Origin::Flag);
    }
    Ok(settings)
}
