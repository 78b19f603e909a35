//! What SQLite says → [`Error`].

use std::path::Path;

use anyqueue_core::{Error, ErrorKind};
use rusqlite::ErrorCode;

/// Why a job ended without its result.
#[derive(Debug)]
pub(crate) enum Fault {
    /// SQLite failed: the transaction is rolled back.
    Sqlite(rusqlite::Error),
    /// The job refuses, having written nothing: its neighbours go on.
    Refused(Error),
    /// A statement for many tasks left some alone, and did not say which: to be done again, one by one.
    OneByOne,
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl Fault {
    pub(crate) fn into_error(self, path: &Path) -> Error {
        match self {
            Self::Sqlite(error) => explain(error, path),
            Self::Refused(error) => error,
            Self::OneByOne => Error::new(ErrorKind::Protocol, "tasks were looked for one by one, and in vain"),
        }
    }
}

/// Whether another connection holds the lock.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether a connection that met this should be opened anew, so that it sees the file as it is then.
pub(crate) fn is_of_the_file(error: &rusqlite::Error) -> bool {
    use ErrorCode::*;
    matches!(
        error.sqlite_error_code(),
        Some(ReadOnly | SystemIoFailure | DatabaseCorrupt | NotADatabase | CannotOpen | FileLockingProtocolFailed)
    )
}

/// A file that this user may not write.
pub(crate) fn read_only(path: &Path) -> Error {
    let text = format!("{} cannot be written; give this user the right to write the file and its folder", path.display());
    Error::new(ErrorKind::ReadOnly, text)
}

/// Says what happened to which file, and what to do next.
pub(crate) fn explain(error: rusqlite::Error, path: &Path) -> Error {
    use ErrorCode::*;
    let file = path.display();
    let kind_and_text = match error.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked) => (
            ErrorKind::Busy,
            format!(
                "another process keeps {file} locked; it goes on once that lock is gone; `busy_timeout`, at most `timeout`, says how long to wait for it"
            ),
        ),
        Some(DiskFull) => (ErrorKind::Full, format!("there is no room left to write {file}; free some and it goes on")),
        Some(ReadOnly) => return read_only(path).because(error),
        Some(CannotOpen) => (
            ErrorKind::Unavailable,
            format!("{file} cannot be opened; check that its folder exists and that this user may read and write there"),
        ),
        Some(NotADatabase) => (
            ErrorKind::Corrupt,
            format!("{file} is not an SQLite file, or its head is damaged; move it away or restore a backup"),
        ),
        Some(DatabaseCorrupt) => (
            ErrorKind::Corrupt,
            format!("{file} is damaged; stop all workers, save what `sqlite3 {file} .recover` finds, or restore a backup"),
        ),
        Some(SystemIoFailure) if out_of_room(&error) => {
            (ErrorKind::Full, format!("there is no room left to write {file}; free some and it goes on"))
        }
        Some(SystemIoFailure) => {
            (ErrorKind::Unavailable, format!("the disk failed to read or write {file}; look into the system's log"))
        }
        Some(TooBig) => (ErrorKind::Invalid, format!("a value is too large for {file}; send a reference to the data instead")),
        _ => (ErrorKind::Protocol, format!("SQLite refused a statement on {file}")),
    };
    let unknown = kind_and_text.0 == ErrorKind::Unavailable;
    let explained = Error::new(kind_and_text.0, kind_and_text.1).because(error);
    if unknown { explained.effect_unknown() } else { explained }
}

/// `SQLITE_IOERR_SHMSIZE` and `SQLITE_IOERR_TRUNCATE`: growing the index of the log failed, for want of room as a rule.
fn out_of_room(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error().map(|e| e.extended_code), Some(4874 | 1546))
}
