//! The rules of the contract, on private job servers that keep their jobs in a file.

use std::sync::Arc;

use anyqueue_core::{BoxError, Driver, async_trait};
use anyqueue_testkit::servers::gearmand;
use anyqueue_testkit::{Harness, Isolation, Proxy, Server, Stage, Suite};

/// Servers of which all options in the URL are the same.
#[derive(Debug)]
struct Gearmand(&'static str);

#[async_trait]
impl Harness for Gearmand {
    fn driver(&self) -> &'static Driver {
        &anyqueue_gearman::DRIVER
    }

    async fn stage(&self, _: Isolation) -> Result<Stage, BoxError> {
        let server = Arc::new(gearmand::start(&[]).await?);
        let proxy = Proxy::start(server.address()).await?;
        let url = |address| format!("gearman://{address}?queue_type=libsqlite3{}", self.0);
        let proxied = url(proxy.address());
        Ok(Stage::new(url(server.address())).server(server).proxied(proxied, proxy))
    }

    /// Each job is written to the disk by itself: some thousand a second, shared by all trials.
    fn divisor(&self) -> usize {
        10
    }
}

fn main() {
    Suite::new().with("guard", Gearmand("")).with("connection", Gearmand("&lease=connection&bands=named")).run()
}
