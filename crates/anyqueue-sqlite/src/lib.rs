//! The SQLite broker of anyqueue: one file, many processes, nothing to install.
//!
//! `sqlite:./queue.db` or `sqlite:///var/lib/queue.db`; SQLite itself is compiled in. The file is in WAL mode, so it must
//! live on a local disk. Options, after `?` or in `queue.toml`: `durability`, `busy_timeout`, `max_payload`, `cache`.
//!
//! # How it writes
//! One thread per file and process owns the connection that writes. Sends, claims, settles and touches that queue up
//! while a transaction runs go into the next one together: no timer, an idle file answers at once and a busy one in large
//! groups. Sends of one transaction share statements of up to 32 rows, and so do claims and those settled as done: opening
//! each index for one row costs more than the row. Where such a statement finds fewer tasks than it names, the transaction
//! is done again one by one, to know whose lease was lost. Where a group fails, each of its jobs is tried alone, so that a
//! bad one fails by itself. While another process holds the lock the thread tries again after a pause that grows, with
//! jitter, until `busy_timeout`; then the answer is a retryable error without an effect. Listings and figures use a
//! connection of their own and hold nobody up; what an operator changes is changed 2,000 tasks at a time.
//!
//! rusqlite on a thread, not sqlx: in transactions of 64, in one run on two cores, rusqlite inserted 273,000 tasks a
//! second and claimed and deleted 143,000; sqlx 0.9 did 48,000 and 35,000 with the same schema and statements.
//!
//! # What it survives
//! `durability = "power"`, the default, waits for the disk (`synchronous = FULL`) in each transaction that holds a send,
//! a retry, a hold or an operator's change. Claims and settles as done do not wait: a power loss can bring a finished task
//! back, never lose one. `"process"` never waits: it survives the death of any process, and a power loss may take the
//! last sends. Groups share one wait, so 64 concurrent senders reach 117,000 tasks a second against 169,000; one
//! sender that awaits each send reaches 9,000 against 22,000. That is why the safe one is the default: who sends much sends
//! concurrently or in batches.
//!
//! # How waiting works
//! A consumer that finds nothing waits for the first of three: a signal, the next moment at which a delay, a lease or a
//! pause of its queue ends, or the end of its wait. Within the process the writing thread signals after each commit. To
//! other processes a commit that made something ready is announced by setting the file's times, which inotify reports
//! there to one thread for all queues; it asks once which queues have something (measured: 0.6 ms in the median, 5 ms at most). Should a process die
//! between commit and announcement, the others look within a second; without inotify they look every 25 ms. Nothing runs
//! while nobody waits, and 50 waiting queues use less than a hundredth of a core.
//!
//! # What a lease costs
//! A task has two index entries: one by its id, one by its state. A reserved task has none for its lease: one row lists
//! all that a claim took, and is looked at when the first of these leases may have ended. Receipts are (number of the
//! task, how often it was reserved), compared in the statement that settles. No pair is used twice.
//! Lease times are times of day in the file, since processes share no other clock: setting the machine's clock forward
//! ends leases early, which makes duplicates, and no loss.
//!
//! A file of an earlier version is upgraded when it is opened, in one transaction; a later one is refused.

mod admin;
mod broker;
mod config;
mod consumer;
mod error;
mod file;
mod reader;
mod reports;
mod schema;
mod shared;
mod store;
mod wake;
mod writer;

use anyqueue_core::{Capabilities, Driver, Durability, Link};

/// The driver: `sqlite:./queue.db`.
pub const DRIVER: Driver = Driver {
    name: "sqlite",
    schemes: &["sqlite"],
    summary: "one file, many processes, nothing to install",
    example: "sqlite:./queue.db",
    options: config::OPTIONS,
    capabilities: Capabilities {
        durability: Durability::Power,
        link: Link::File,
        max_payload: Some(config::MAX_PAYLOAD),
        ..Capabilities::FULL
    },
    connect: |options| Box::pin(broker::SqliteBroker::connect(options)),
};
