//! The rules of the contract, on private servers with their binlogs on.

use std::sync::Arc;

use anyqueue_core::{BoxError, Driver, async_trait};
use anyqueue_testkit::servers::beanstalkd;
use anyqueue_testkit::{Harness, Isolation, Proxy, Server, Stage, Suite};

/// Servers of which all options in the URL are the same.
#[derive(Debug)]
struct Beanstalkd(&'static str);

#[async_trait]
impl Harness for Beanstalkd {
    fn driver(&self) -> &'static Driver {
        &anyqueue_beanstalkd::DRIVER
    }

    async fn stage(&self, _: Isolation) -> Result<Stage, BoxError> {
        let server = Arc::new(beanstalkd::start(&[]).await?);
        let proxy = Proxy::start(server.address()).await?;
        let url = |address| format!("beanstalkd://{address}{}", self.0);
        let proxied = url(proxy.address());
        Ok(Stage::new(url(server.address())).server(server).proxied(proxied, proxy))
    }
}

fn main() {
    Suite::new().with("plain", Beanstalkd("")).with("bands", Beanstalkd("?bands=512&connections=2")).run()
}
