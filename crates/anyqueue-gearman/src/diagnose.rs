//! What an operator should know of the job servers.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Finding, Severity, chain};
use bytes::Bytes;

use crate::config::Store;
use crate::hub::Hub;
use crate::names::PROBE;
use crate::packet::{Reply, submit_at};
use crate::server::Server;

/// The functions of jobs that find out what a server takes, and what time it has. Nobody announces them.
const FUNCTION: &str = ";probe";
const CLOCK: &str = ";clock";

/// Clocks that differ by more than this make delays and the leases of frozen workers end early or late.
const SKEW: Duration = Duration::from_secs(2);

/// So often is the time asked for before it is taken as another one.
const TRIES: usize = 3;

/// Looks at all servers.
pub(crate) async fn findings(hub: &Hub) -> Vec<Finding> {
    let mut findings = Vec::new();
    for server in &hub.servers {
        let mut add = |severity, text: String| {
            findings.push(Finding { severity, text: format!("job server at {}: {text}", server.address) });
        };
        match server.session().await {
            Err(e) => add(Severity::Problem, format!("it does not answer: {}", chain(&e))),
            Ok(_) => {
                of_store(hub.config.store, &mut add);
                if let Some(text) = takes_jobs_for_later(hub, server).await {
                    add(Severity::Problem, text);
                }
                let mut text = None;
                for _ in 0..TRIES {
                    // Somebody else who looks at the same moment takes our jobs, or leaves us his.
                    text = has_another_time(hub, server).await;
                    if text.is_none() {
                        break;
                    }
                }
                if let Some(text) = text {
                    add(Severity::Problem, text);
                }
                let version = server.version().unwrap_or_default();
                of_version(&version, &mut add);
            }
        }
    }
    findings
}

fn of_store(store: Store, add: &mut impl FnMut(Severity, String)) {
    let (severity, text) = match store {
        Store::Unknown => (
            Severity::Warning,
            "it does not tell whether it keeps jobs on disk, so nothing is taken as durable; start it with `-q libsqlite3` and \
             say `queue_type = \"libsqlite3\"` here",
        ),
        Store::Builtin => {
            (Severity::Warning, "it keeps jobs in memory alone: they are lost when it ends; start it with `-q libsqlite3`")
        }
        Store::Postgres => (
            Severity::Problem,
            "its Postgres module forgets priorities and delays when it is started again, so delayed and reserved tasks run at \
             once; use libsqlite3 or MySQL",
        ),
        Store::Redis => (
            Severity::Problem,
            "its redis module takes no jobs for later and cuts data at the first zero byte; use libsqlite3 or MySQL",
        ),
        Store::Other => (Severity::Warning, "its module has not been tried with anyqueue; libsqlite3 and MySQL have"),
        Store::Sqlite | Store::Mysql => {
            (Severity::Note, "`queue_type` is what you say: the server itself does not tell what it was started with")
        }
    };
    add(severity, text.into());
}

/// Submits a job for a second that is long over, and removes it: what is wrong if it is refused.
async fn takes_jobs_for_later(hub: &Hub, server: &Arc<Server>) -> Option<String> {
    let session = server.session().await.ok()?;
    let probe = submit_at(1, FUNCTION, &format!(";probe:{}", hub.second_after(Duration::ZERO)), Bytes::from_static(PROBE));
    match session.call(vec![probe]).await.ok()?.as_slice() {
        [Reply::Created(_)] => {
            // Whoever looks next removes it otherwise.
            hub.empty(server, FUNCTION).await.err().map(|e| format!("a job cannot be removed: {}", chain(&e)))
        }
        [Reply::Refused { code, text }] => Some(format!(
            "it takes no job for later ({code}, {text}), so there are neither delays nor guards; its redis module is known for that"
        )),
        _ => None,
    }
}

/// Submits jobs that were due a moment ago and that will be in a moment, and looks which ones the server gives out.
async fn has_another_time(hub: &Hub, server: &Arc<Server>) -> Option<String> {
    let session = server.session().await.ok()?;
    let now = hub.second_after(Duration::ZERO);
    let (before, after) = (now - 1 - SKEW.as_secs(), now + SKEW.as_secs());
    let job = |due: u64| {
        submit_at(due, CLOCK, &format!(";clock:{due}:{}", std::process::id()), Bytes::from_static(b"what time is it?"))
    };
    let handles = session.call(vec![job(before), job(after)]).await.ok()?.into_iter().filter_map(|reply| match reply {
        Reply::Created(handle) => Some(handle),
        _ => None,
    });
    let handles: Vec<_> = handles.collect();
    let given = hub.empty(server, CLOCK).await.ok()?;
    session.cancel(handles).await.ok()?;
    let (word, what) = match given {
        0 => ("behind", "delayed tasks come late"),
        1 => return None,
        _ => ("ahead of", "delayed tasks come early"),
    };
    Some(format!("its clock is {} s or more {word} this machine's, so {what}; set both by NTP", SKEW.as_secs()))
}

fn of_version(version: &str, add: &mut impl FnMut(Severity, String)) {
    if version.starts_with("1.") {
        let text = "wakes no worker when a job for later falls due: our workers look once a second";
        add(Severity::Note, format!("gearmand {version} {text}"));
    }
    let text = "with `--job-retries` it throws tasks away whose workers died, and a look at a task counts as one; leave it out";
    add(Severity::Note, text.into());
}
