//! The rules of the contract, tried on the adapter of this example.

mod vec_broker;

use std::sync::atomic::{AtomicUsize, Ordering};

use anyqueue::core::{BoxError, Driver, async_trait};
use anyqueue_testkit::{Harness, Isolation, Stage};

static STAGES: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
struct Vecs;

#[async_trait]
impl Harness for Vecs {
    fn driver(&self) -> &'static Driver {
        &vec_broker::DRIVER
    }

    // A server would be started here; this broker lives in the process, and another name is another store.
    async fn stage(&self, _: Isolation) -> Result<Stage, BoxError> {
        Ok(Stage::new(format!("vec:stage-{}", STAGES.fetch_add(1, Ordering::Relaxed))))
    }
}

fn main() {
    anyqueue_testkit::run(Vecs)
}
