//! The rules of the contract, on real files.

use anyqueue_core::{BoxError, Driver, async_trait};
use anyqueue_testkit::{Harness, Isolation, Stage};

#[derive(Debug)]
struct File;

#[async_trait]
impl Harness for File {
    fn driver(&self) -> &'static Driver {
        &anyqueue_sqlite::DRIVER
    }

    async fn stage(&self, _: Isolation) -> Result<Stage, BoxError> {
        let folder = anyqueue_testkit::temp_dir()?;
        Ok(Stage::new(format!("sqlite:{}/queue.db", folder.path().display())).keep(folder))
    }
}

fn main() {
    anyqueue_testkit::run(File)
}
