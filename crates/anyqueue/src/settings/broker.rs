//! `[brokers.NAME]`: where tasks are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{BrokerUrl, Create, Driver, Options, is_address, quoted, suggest};

use super::table::{Reader, Table};
use super::value;
use crate::drivers::Drivers;

/// The URL of the broker `default` for which no URL is written: the embedded one, in the current folder.
pub(super) const DEFAULT_URL: &str = "sqlite:./queue.db";

/// One named broker, as `[brokers.NAME]` describes it.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// The name in the settings.
    pub name: Arc<str>,
    /// Where it is.
    pub url: BrokerUrl,
    /// The driver that the URL's scheme chose.
    pub driver: Driver,
    /// The driver's options, those of the URL's query included; the table's win.
    pub options: Options,
    /// Whether missing queues are created. Default: they are.
    pub create: Create,
    /// How long one request may take, at most an hour. Default 10 s.
    pub timeout: Duration,
    /// How long a send is tried again while the broker is down. Default 30 s.
    pub send_timeout: Duration,
}

impl BrokerSettings {
    /// A broker at a URL with everything else at its default.
    pub(super) fn at(name: &str, url: BrokerUrl, driver: Driver) -> Self {
        Self {
            name: name.into(),
            options: Options::from_query(&url),
            url,
            driver,
            create: Create::Auto,
            timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(30),
        }
    }

    /// Reads a table. `None` if it has no usable URL, which has been reported then.
    pub(super) fn read(name: &str, mut table: Table<'_>, drivers: &Drivers) -> Option<Self> {
        let url_key = "url";
        let has_url = table.has(url_key);
        let text = table.take(url_key, value::secret);
        let text = match text {
            None if !has_url && name == "default" => Some(DEFAULT_URL.to_owned()),
            None if !has_url => {
                table.problem(url_key, "it is missing; write it like `sqlite:./queue.db`");
                None
            }
            text => text,
        };
        let parsed = text.and_then(|text| {
            let url = BrokerUrl::parse(&text).map_err(|e| table.problem(url_key, &e.to_string())).ok()?;
            let driver = drivers.find(&url.scheme).map_err(|e| table.problem(url_key, &e.to_string())).ok()?;
            Some((url, *driver))
        });
        let create = table.take("create", |v| value::choice(v, &[("auto", Create::Auto), ("never", Create::Never)]));
        let timeout = table.take("timeout", value::request_time);
        let send_timeout = table.take("send_timeout", value::duration);
        let Some((url, driver)) = parsed else {
            // Which options are known depends on the driver, so they are not judged without one.
            return None;
        };
        let mut broker = Self::at(name, url, driver);
        for key in broker.options.keys().filter(|key| driver.options.iter().all(|spec| spec.key != *key)) {
            let known = suggest(key, driver.options.iter().map(|spec| spec.key));
            table.problem(url_key, &format!("{} has no option {}; {known}", driver.name, quoted(key)));
        }
        broker.create = create.unwrap_or(broker.create);
        broker.timeout = timeout.unwrap_or(broker.timeout);
        broker.send_timeout = send_timeout.unwrap_or(broker.send_timeout);
        table.finish_with(driver.options.iter().map(|spec| spec.key), &mut broker.options);
        Some(broker)
    }

    /// The broker that is there when the settings name none.
    pub(super) fn built_in(reader: &Reader<'_>, drivers: &Drivers) -> Option<Self> {
        let url = BrokerUrl::parse(DEFAULT_URL).expect("a constant");
        match drivers.find(&url.scheme) {
            Ok(driver) => Some(Self::at("default", url, *driver)),
            Err(e) => {
                reader.problem(&["brokers".to_owned()], format!("no broker is set, and the built-in one cannot be used: {e}"));
                None
            }
        }
    }
}

/// All brokers while the settings are read: the usable ones, and the names of those that were written down.
#[derive(Debug)]
pub(super) struct Brokers<'a> {
    pub(super) usable: BTreeMap<String, BrokerSettings>,
    written: BTreeSet<String>,
    drivers: &'a Drivers,
}

impl<'a> Brokers<'a> {
    pub(super) fn read<'r>(tables: Vec<(String, Table<'r>)>, reader: &'r Reader<'r>, drivers: &'a Drivers) -> Self {
        let mut brokers = Self { usable: BTreeMap::new(), written: BTreeSet::new(), drivers };
        if tables.is_empty() {
            brokers.written.insert("default".into());
            brokers.usable.extend(BrokerSettings::built_in(reader, drivers).map(|broker| ("default".to_owned(), broker)));
        }
        for (name, table) in tables {
            brokers.written.insert(name.clone());
            brokers.usable.extend(BrokerSettings::read(&name, table, drivers).map(|broker| (name, broker)));
        }
        brokers
    }

    /// Whether somebody wrote a broker of this name down. What is wrong with it has been reported.
    pub(super) fn check(&self, name: &str) -> Result<(), String> {
        match self.written.contains(name) {
            true => Ok(()),
            // It is not repeated: there may be a password in it.
            false if is_address(name) => Err("a URL stands where a broker's name goes; give it as `brokers.NAME.url`".into()),
            false => Err(format!("there is no broker `{name}`; {}", suggest(name, self.names()))),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.written.iter().map(String::as_str)
    }

    /// The options that a queue on this broker may have; those of all drivers if the broker cannot be used.
    pub(super) fn queue_options(&self, broker: &str) -> impl Iterator<Item = &'static str> {
        let one = self.usable.get(broker).map(|broker| broker.driver);
        let drivers = self.drivers.iter().copied().filter(move |driver| one.is_none_or(|one| one.name == driver.name));
        drivers.flat_map(|driver| driver.options).filter(|spec| spec.per_queue).map(|spec| spec.key)
    }
}
