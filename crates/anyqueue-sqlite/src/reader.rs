//! A second connection, for looking: it never waits for the one that writes.

use std::path::PathBuf;

use anyqueue_core::Result;
use rusqlite::Connection;

use crate::config::Config;
use crate::error::{Fault, is_of_the_file};
use crate::file::Identity;
use crate::schema;

/// Opens the file when first used, and anew where it was replaced or could not be read.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    config: Config,
    open: Option<(Connection, Identity)>,
}

impl Reader {
    pub(crate) fn new(path: PathBuf, config: Config) -> Self {
        Self { path, config, open: None }
    }

    /// Closes the connection; the next look opens one anew.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }

    /// Looks at the file as it is at one moment.
    pub(crate) fn read<T>(&mut self, look: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T> {
        if self.open.as_ref().is_none_or(|(_, identity)| !identity.is_still(&self.path)) {
            self.open = None;
            self.open = Some((schema::open_reader(&self.path, &self.config)?, Identity::of(&self.path)?));
        }
        let (connection, _) = self.open.as_mut().expect("opened above");
        let looked = connection.transaction().map_err(Fault::from).and_then(|transaction| look(&transaction));
        if matches!(&looked, Err(Fault::Sqlite(e)) if is_of_the_file(e)) {
            self.open = None;
        }
        looked.map_err(|fault| fault.into_error(&self.path))
    }
}
