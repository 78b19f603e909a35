//! The rules of the contract, on a node that the trials share or kill.
//!
//! `ANYQUEUE_TEST_RABBITMQ_SCRIPTS=/path/to/bin cargo test -p anyqueue-rabbitmq` runs these and all other tests of this crate
//! on another release than the installed one: the folder has `rabbitmq-server` and `rabbitmqctl`.

use std::sync::{Arc, Weak};

use anyqueue_core::{BoxError, Driver, async_trait};
use anyqueue_testkit::servers::rabbitmq::{self, Node};
use anyqueue_testkit::{Harness, Isolation, Proxy, Server, Stage, Suite};
use tokio::sync::{Mutex, Semaphore};

/// Goes with the last trial that uses it.
static SHARED: Mutex<Weak<Node>> = Mutex::const_new(Weak::new());
/// A node takes 150 MB, and a processor for six seconds when it starts.
static OWN: Semaphore = Semaphore::const_new(2);

/// With these options in the URL.
#[derive(Debug)]
struct RabbitMq(&'static str);

async fn shared() -> Result<Arc<Node>, BoxError> {
    let mut shared = SHARED.lock().await;
    if let Some(node) = shared.upgrade() {
        return Ok(node);
    }
    let node = Arc::new(rabbitmq::start(SETTINGS).await?);
    *shared = Arc::downgrade(&node);
    Ok(node)
}

const SETTINGS: [&str; 2] = ["default_user = worker", "default_pass = swordfish"];

#[async_trait]
impl Harness for RabbitMq {
    fn driver(&self) -> &'static Driver {
        &anyqueue_rabbitmq::DRIVER
    }

    async fn stage(&self, isolation: Isolation) -> Result<Stage, BoxError> {
        let url = |address| format!("amqp://worker:swordfish@{address}{}", self.0);
        if isolation == Isolation::Own {
            let place = OWN.acquire().await?;
            let node = Arc::new(rabbitmq::start(SETTINGS).await?);
            return Ok(Stage::new(url(node.address())).server(node).keep(place));
        }
        let node = shared().await?;
        let proxy = Proxy::start(node.address()).await?;
        let stage = Stage::new(url(node.address())).secret(url(node.address()), "swordfish");
        Ok(stage.proxied(url(proxy.address()), proxy).keep(node))
    }
}

fn main() {
    Suite::new().with("", RabbitMq("")).with("classic", RabbitMq("?type=classic")).run()
}
