//! Brokers that a test has made, found by a URL as others are.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use anyqueue::{Drivers, Queues, Settings, TestClock};
use anyqueue_core::{Broker, Capabilities, ConnectOptions, Driver, Error};

/// Brokers made by tests, by the path of the URL that finds them.
pub(crate) static BROKERS: LazyLock<Mutex<HashMap<String, Arc<dyn Broker>>>> = LazyLock::new(Mutex::default);

const DRIVER: Driver = Driver {
    name: "staged",
    schemes: &["staged"],
    summary: "a broker that a test has made",
    example: "staged:name",
    options: &[],
    capabilities: Capabilities::FULL,
    connect: |options: ConnectOptions| {
        Box::pin(async move {
            let found = BROKERS.lock().unwrap().get(&options.url.path).cloned();
            found.ok_or_else(|| Error::unavailable("connection refused"))
        })
    },
};

/// Queues `q` and `r` on a staged broker, and `other` on the memory broker.
pub(crate) async fn staged(name: &str, broker: Option<Arc<dyn Broker>>, clock: TestClock) -> Queues {
    if let Some(broker) = broker {
        BROKERS.lock().unwrap().insert(name.into(), broker);
    }
    let text = format!(
        "default_broker = \"staged\"\n[brokers.staged]\nurl = \"staged:{name}\"\nsend_timeout = \"5s\"\n[brokers.memory]\nurl = \"memory:\"\n\
         [queues.q]\nttr = 10\n[queues.r]\n[queues.other]\nbroker = \"memory\"\n"
    );
    let drivers = Drivers::enabled().with(&DRIVER);
    let settings = Settings::builder().text("test", &text).environment([]).drivers(drivers).load().unwrap();
    Queues::builder(settings).clock(clock).connect().await.unwrap()
}
