//! The rules of the contract, on the machine's clock and on one that tests move.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyqueue_core::{BoxError, Driver, async_trait};
use anyqueue_testkit::{Harness, Isolation, Stage, Suite, Time};

static STAGES: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
struct Memory(Time);

#[async_trait]
impl Harness for Memory {
    fn driver(&self) -> &'static Driver {
        &anyqueue_memory::DRIVER
    }

    fn time(&self) -> Time {
        self.0
    }

    async fn stage(&self, _: Isolation) -> Result<Stage, BoxError> {
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        Ok(Stage::new(format!("memory:stage-{number}?max_payload=4194304")))
    }
}

fn main() {
    Suite::new().with("system", Memory(Time::System)).with("movable", Memory(Time::Movable)).run()
}
