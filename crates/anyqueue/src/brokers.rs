//! The brokers of the settings, each connected when first needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyqueue_core::{Broker, Clock, ConnectOptions, Driver, Error, QueueName, Result};
use tokio::sync::OnceCell;

use crate::io::Io;
use crate::settings::{BrokerSettings, Settings};

/// One broker of the settings.
#[derive(Debug)]
pub(crate) struct BrokerSlot {
    pub(crate) settings: BrokerSettings,
    driver: Driver,
    options: ConnectOptions,
    connected: OnceCell<Arc<dyn Broker>>,
    io: Io,
}

impl BrokerSlot {
    /// The connected broker. A failure is not kept: the next call tries again.
    pub(crate) async fn connected(&self) -> Result<Arc<dyn Broker>> {
        if let Some(broker) = self.connected.get() {
            return Ok(broker.clone());
        }
        let connect = || {
            let (driver, options) = (self.driver, self.options.clone());
            self.io.run(async move { driver.open(options).await })
        };
        self.connected.get_or_try_init(connect).await.cloned()
    }

    /// The broker, if it was ever needed.
    pub(crate) fn if_connected(&self) -> Option<&Arc<dyn Broker>> {
        self.connected.get()
    }
}

/// Prepares all brokers of the settings without connecting.
pub(crate) fn slots(settings: &Settings, clock: &Arc<dyn Clock>, io: &Io) -> Result<BTreeMap<Arc<str>, Arc<BrokerSlot>>> {
    let slot = |broker: &BrokerSettings| -> Result<_> {
        let driver = *settings.drivers().find(&broker.url.scheme).map_err(|e| e.with("broker", &broker.name))?;
        let own = settings.queues.values().filter(|queue| queue.broker == broker.name);
        let queues: BTreeMap<QueueName, _> = own.map(|queue| (queue.name.clone(), queue.options.clone())).collect();
        let options = ConnectOptions {
            name: broker.name.clone(),
            url: broker.url.clone(),
            options: broker.options.clone(),
            queues,
            create: broker.create,
            clock: clock.clone(),
            timeout: broker.timeout,
        };
        let slot = BrokerSlot { settings: broker.clone(), driver, options, connected: OnceCell::new(), io: io.clone() };
        Ok((broker.name.clone(), Arc::new(slot)))
    };
    settings.brokers.values().map(slot).collect()
}

/// Finds the slot of a queue's broker.
pub(crate) fn slot_of<'a>(slots: &'a BTreeMap<Arc<str>, Arc<BrokerSlot>>, broker: &str) -> Result<&'a Arc<BrokerSlot>> {
    let known = || slots.keys().map(AsRef::as_ref).collect::<Vec<&str>>();
    slots.get(broker).ok_or_else(|| Error::config(format!("no broker `{broker}`; {}", anyqueue_core::suggest(broker, known()))))
}
