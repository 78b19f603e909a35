//! The rules of the contract: on ministack, whose clocks are exact; where the server is killed, on fauxqs, which keeps its
//! messages on disk; or on Amazon's own service, where `ANYQUEUE_TEST_SQS_URL` names a region.

use std::sync::{Arc, Weak};

use anyqueue_core::{BoxError, Driver, async_trait};
use anyqueue_testkit::servers::sqs;
use anyqueue_testkit::{Harness, Isolation, Process, Proxy, Server, Stage};
use tokio::sync::Mutex;

/// Goes with the last trial that uses it.
static SHARED: Mutex<Weak<Process>> = Mutex::const_new(Weak::new());

#[derive(Debug)]
struct Sqs;

async fn shared() -> Result<Arc<Process>, BoxError> {
    let mut shared = SHARED.lock().await;
    if let Some(server) = shared.upgrade() {
        return Ok(server);
    }
    let server = Arc::new(sqs::start(sqs::ministack()).await?);
    *shared = Arc::downgrade(&server);
    Ok(server)
}

#[async_trait]
impl Harness for Sqs {
    fn driver(&self) -> &'static Driver {
        &anyqueue_sqs::DRIVER
    }

    fn divisor(&self) -> usize {
        10
    }

    async fn stage(&self, isolation: Isolation) -> Result<Stage, BoxError> {
        if let (Isolation::Shared, Ok(url)) = (isolation, std::env::var(sqs::URL)) {
            return Ok(Stage::new(url));
        }
        let server = match isolation {
            Isolation::Shared => shared().await?,
            Isolation::Own => Arc::new(sqs::start(sqs::fauxqs(true)).await?),
        };
        let proxy = Proxy::start(server.address()).await?;
        let url = |address| format!("sqs://key:swordfish@{address}");
        let stage = Stage::new(url(server.address())).secret(url(server.address()), "swordfish");
        let stage = stage.proxied(url(proxy.address()), proxy).keep(server.clone());
        Ok(if isolation == Isolation::Own { stage.server(server) } else { stage })
    }
}

fn main() {
    anyqueue_testkit::run(Sqs)
}
