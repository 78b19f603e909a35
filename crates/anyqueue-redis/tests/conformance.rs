//! The rules of the contract, on a redis-server that the trials share or kill.
//!
//! `ANYQUEUE_TEST_REDIS_SERVER=/path/to/valkey-server cargo test -p anyqueue-redis` runs these and all other tests of this
//! crate on another server than the `redis-server` on the path.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use anyqueue_core::{BoxError, Driver, async_trait};
use anyqueue_testkit::servers::redis;
use anyqueue_testkit::{Harness, Isolation, Process, Proxy, Server, Stage};
use tokio::sync::Mutex;

/// Goes with the last trial that uses it.
static SHARED: Mutex<Weak<Process>> = Mutex::const_new(Weak::new());
static STAGES: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
struct Redis;

async fn shared() -> Result<Arc<Process>, BoxError> {
    let mut shared = SHARED.lock().await;
    if let Some(server) = shared.upgrade() {
        return Ok(server);
    }
    let server = Arc::new(redis::start(["--requirepass", "swordfish", "--appendfsync", "everysec"]).await?);
    *shared = Arc::downgrade(&server);
    Ok(server)
}

#[async_trait]
impl Harness for Redis {
    fn driver(&self) -> &'static Driver {
        &anyqueue_redis::DRIVER
    }

    async fn stage(&self, isolation: Isolation) -> Result<Stage, BoxError> {
        let server = match isolation {
            Isolation::Shared => shared().await?,
            Isolation::Own => Arc::new(redis::start(["--requirepass", "swordfish"]).await?),
        };
        let proxy = Proxy::start(server.address()).await?;
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let url = |address| format!("redis://:swordfish@{address}/{}?prefix=stage-{number}", number % 16);
        let stage = Stage::new(url(server.address())).secret(url(server.address()), "swordfish");
        let stage = stage.proxied(url(proxy.address()), proxy).keep(server.clone());
        Ok(if isolation == Isolation::Own { stage.server(server) } else { stage })
    }
}

fn main() {
    anyqueue_testkit::run(Redis)
}
