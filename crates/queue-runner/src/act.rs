//! `kick`, `delete`, `purge`, `pause`, `resume`, `init`: what an operator changes.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyqueue::core::{Create, State, TaskId, Which, chain, time};
use serde_json::json;

use crate::context::Context;
use crate::failure::{Failure, OK, Result, of_many};
use crate::out::tasks;

/// What `purge` removes unless told otherwise. Reserved tasks belong to their workers.
const PURGED: [State; 3] = [State::Ready, State::Delayed, State::Held];

/// Kicks the named ones, or the first so many, or all.
pub(crate) async fn kick(context: &mut Context<'_>, queue: &str, ids: Vec<TaskId>, first: Option<u64>) -> Result<u8> {
    let which = match first {
        Some(first) => Which::First(first),
        None if ids.is_empty() => Which::All,
        None => Which::Ids(ids),
    };
    let opened = context.open(queue).await?;
    let kicked = opened.admin().kick(opened.name(), &which).await?;
    opened.close().await?;
    match context.out.is_json() {
        true => context.out.object(&json!({ "queue": queue, "kicked": kicked })),
        false => context.out.remark(format!("kicked {} in queue `{queue}`", tasks(kicked))),
    }
    match which {
        Which::Ids(ids) if kicked < ids.len() as u64 => {
            let missing = ids.len() as u64 - kicked;
            context.complain(&format!("{missing} of {} were not held in queue `{queue}`", ids.len()));
            Ok(of_many(missing, ids.len() as u64))
        }
        _ => Ok(OK),
    }
}

pub(crate) async fn delete(context: &mut Context<'_>, queue: &str, ids: &[TaskId]) -> Result<u8> {
    let opened = context.open(queue).await?;
    let answers = opened.admin().delete(opened.name(), ids).await;
    opened.close().await?;
    let mut failed = 0;
    for (id, answer) in ids.iter().zip(answers) {
        let error = answer.err().map(|e| chain(&e));
        failed += u64::from(error.is_some());
        if context.out.is_json() {
            context.out.object(&json!({ "id": id, "deleted": error.is_none(), "error": error }));
        } else if error.is_none() {
            context.out.remark(format!("deleted {id}"));
        }
        if let Some(error) = error {
            context.complain(&format!("{id}: {error}"));
        }
    }
    Ok(of_many(failed, ids.len() as u64))
}

pub(crate) async fn purge(context: &mut Context<'_>, queue: &str, states: &[State], yes: bool) -> Result<u8> {
    let states = if states.is_empty() { &PURGED[..] } else { states };
    if states.contains(&State::Reserved) {
        return Err(Failure::usage("reserved tasks belong to their workers and cannot be purged; stop the workers first"));
    }
    let opened = context.open(queue).await?;
    let words = states.iter().map(|state| state.word()).collect::<Vec<_>>().join(", ");
    if !yes {
        let stats = opened.admin().stats(opened.name()).await?;
        let figures = format!("{} ready, {} delayed, {} held", stats.ready, stats.delayed, stats.held);
        if !agreed(&format!("remove all {words} tasks of queue `{queue}` ({figures})?"))? {
            return Err(Failure::Error("nothing was removed".into()));
        }
    }
    let purged = opened.admin().purge(opened.name(), states).await?;
    opened.close().await?;
    match context.out.is_json() {
        true => context.out.object(&json!({ "queue": queue, "purged": purged })),
        false => context.out.remark(format!("removed {} ({words}) of queue `{queue}`", tasks(purged))),
    }
    Ok(OK)
}

/// Asks on a terminal; elsewhere nobody could answer.
fn agreed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("purge asks first, and there is no terminal to ask on; add --yes"));
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

pub(crate) async fn pause(context: &mut Context<'_>, queue: &str, time: Option<Duration>) -> Result<u8> {
    let opened = context.open(queue).await?;
    opened.admin().pause(opened.name(), time).await?;
    opened.close().await?;
    match (context.out.is_json(), time) {
        (true, _) => {
            context.out.object(&json!({ "queue": queue, "paused": true, "for": time.map(|time| time.as_secs_f64()) }));
        }
        (false, Some(time)) => context.out.remark(format!("queue `{queue}` is paused for {}", time::show(time))),
        (false, None) => context.out.remark(format!("queue `{queue}` is paused until it is resumed")),
    }
    Ok(OK)
}

pub(crate) async fn resume(context: &mut Context<'_>, queue: &str) -> Result<u8> {
    let opened = context.open(queue).await?;
    opened.admin().resume(opened.name()).await?;
    opened.close().await?;
    match context.out.is_json() {
        true => context.out.object(&json!({ "queue": queue, "paused": false })),
        false => context.out.remark(format!("queue `{queue}` is resumed")),
    }
    Ok(OK)
}

/// Sets up queues, those of brokers with `create = "never"` too: that is what the verb is for.
pub(crate) async fn init(context: &mut Context<'_>, names: &[String]) -> Result<u8> {
    let names = context.chosen(names)?;
    for broker in context.settings.brokers.values_mut() {
        broker.create = Create::Auto;
    }
    let queues = context.connect().await?;
    let mut failed = 0;
    for name in &names {
        let declared = match queues.broker(name).await {
            Ok(broker) => broker.declare(name).await,
            Err(e) => Err(e),
        };
        match declared {
            Ok(declared) if context.out.is_json() => {
                let drift: Vec<_> =
                    declared.drift.iter().map(|d| json!({ "what": d.what, "wanted": d.wanted, "found": d.found })).collect();
                context.out.object(&json!({ "queue": name, "created": declared.created, "drift": drift }));
            }
            Ok(declared) => {
                context.out.remark(format!("queue `{name}` {}", if declared.created { "was created" } else { "is there" }));
                context.out.flush();
                declared.drift.iter().for_each(|drift| tracing::warn!(queue = name.as_str(), "{drift}"));
            }
            Err(e) => {
                failed += 1;
                context.complain(&chain(&e));
            }
        }
    }
    queues.close().await?;
    Ok(of_many(failed, names.len() as u64))
}
