//! Opening the file: is it ours, of which version, and bringing an older one up to date.

use std::path::Path;
use std::time::{Duration, Instant};

use anyqueue_core::{Error, ErrorKind, Result};
use rusqlite::{Connection, OpenFlags};

use crate::config::Config;
use crate::error::{explain, is_busy};
use crate::file;

/// `anyq`: marks a file as ours (`PRAGMA application_id`).
const APPLICATION: i32 = i32::from_be_bytes(*b"anyq");
/// Step n brings a file from version n to n + 1 (`PRAGMA user_version`).
const STEPS: &[&str] = &[include_str!("sql/v1.sql"), include_str!("sql/v2.sql"), include_str!("sql/v3.sql")];
/// Prepared statements that stay in memory: all there are.
const STATEMENTS: usize = 64;
/// The log is written back into the file once it has so many pages of 4 KiB.
const CHECKPOINT_PAGES: u32 = 4000;

/// Opens the file for writing, and makes or upgrades it where needed.
pub(crate) fn open_writer(path: &Path, config: &Config) -> Result<Connection> {
    if !config.create && !path.exists() {
        let text = format!("there is no file {}; create it with `queue-runner init`", path.display());
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    // SQLite would open it for looking, and leave a `-shm` beside it that its owner cannot write.
    file::check_writable(path)?;
    let until = Instant::now() + config.busy_timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        match prepare_writer(path, config) {
            Err(Step::Sqlite(e)) if is_busy(&e) && Instant::now() < until => {
                std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64()));
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(Step::Sqlite(e)) => return Err(explain(e, path)),
            Err(Step::Refused(e)) => return Err(e),
            Ok(connection) => return Ok(connection),
        }
    }
}

/// Opens the file for looking only.
pub(crate) fn open_reader(path: &Path, config: &Config) -> Result<Connection> {
    let open = || {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(config.busy_timeout)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    };
    open().map_err(|e| explain(e, path))
}

enum Step {
    Sqlite(rusqlite::Error),
    Refused(Error),
}

impl From<rusqlite::Error> for Step {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn prepare_writer(path: &Path, config: &Config) -> Result<Connection, Step> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, config.create);
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::ZERO)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    if version(&connection, path)? < STEPS.len() as i32 {
        migrate(&mut connection, path)?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "cache_size", cache_size(config))?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// The file's version; 0 for an empty file. Refuses what is not ours and what is newer.
fn version(connection: &Connection, path: &Path) -> Result<i32, Step> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection.query_row(include_str!("sql/tables.sql"), [], |row| row.get(0))?;
    let file = path.display();
    if application != APPLICATION && (tables > 0 || application != 0) {
        let text = format!("{file} is the database of another program; name another file");
        return Err(Step::Refused(Error::config(text)));
    }
    if version as usize > STEPS.len() {
        let ours = STEPS.len();
        let text = format!(
            "{file} has schema version {version}, written by a newer anyqueue; this one knows versions up to {ours}: upgrade it"
        );
        return Err(Step::Refused(Error::new(ErrorKind::TooNew, text)));
    }
    Ok(version)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Step> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // Another process may have been quicker.
    let from = version(&transaction, path)?;
    for step in &STEPS[from as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", STEPS.len() as i32)?;
    transaction.commit()?;
    if from > 0 && (from as usize) < STEPS.len() {
        tracing::info!(file = %path.display(), from, to = STEPS.len(), "the file was upgraded");
    }
    Ok(())
}

/// Negative: SQLite reads it as KiB instead of pages.
fn cache_size(config: &Config) -> i64 {
    -((config.cache / 1024).clamp(64, 1 << 30) as i64)
}

/// Rewrites a file of which a drained backlog has left little but unused pages: three quarters or more, 16 MiB at least,
/// and no more than 16 MiB in use, so that it takes a moment only. (`auto_vacuum` would cost each send a fifth.)
pub(crate) fn shrink(connection: &Connection) -> rusqlite::Result<()> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (free, pages) = (number("freelist_count")?, number("page_count")?);
    if free >= 4096 && free * 4 >= pages * 3 && pages - free <= 4096 {
        connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")?;
    }
    Ok(())
}
