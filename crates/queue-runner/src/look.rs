//! `peek`, `held`, `info`: looking without changing anything.

use std::collections::{BTreeMap, BTreeSet};

use anyqueue::core::{Error, ErrorKind, State, TaskId, TaskInfo, chain};
use serde_json::json;

use crate::context::Context;
use crate::failure::{OK, Result};
use crate::show::{self, Shown};

/// How many held tasks are asked for at once.
const PAGE: usize = 100;

pub(crate) async fn peek(context: &mut Context<'_>, queue: &str, state: State, limit: usize) -> Result<u8> {
    let opened = context.open(queue).await?;
    let found = opened.admin().peek(opened.name(), state, limit).await?;
    let tasks: Vec<_> = found.iter().map(|task| Shown::new(task, &opened.settings)).collect();
    if tasks.is_empty() {
        context.out.remark(format!("no {state} task in queue `{queue}`"));
    } else {
        show::tasks(context.out, &tasks);
    }
    opened.close().await?;
    Ok(OK)
}

pub(crate) async fn held(context: &mut Context<'_>, queue: &str, limit: usize) -> Result<u8> {
    let opened = context.open(queue).await?;
    let (mut tasks, mut after, mut more) = (Vec::new(), None, false);
    while tasks.len() < limit {
        let page = opened.admin().held(opened.name(), after.as_deref(), PAGE.min(limit - tasks.len())).await?;
        tasks.extend(page.tasks.iter().map(|task| Shown::new(task, &opened.settings)));
        after = page.next;
        more = after.is_some();
        if !more {
            break;
        }
    }
    if tasks.is_empty() {
        context.out.remark(format!("nothing is held in queue `{queue}`"));
    } else {
        show::held(context.out, &tasks);
    }
    if more {
        context.out.remark(format!("and more; --limit shows them, {limit} are shown"));
    }
    opened.close().await?;
    Ok(OK)
}

pub(crate) async fn info(context: &mut Context<'_>, id: TaskId, queue: Option<&str>) -> Result<u8> {
    let names = context.chosen(queue.map(str::to_owned).as_slice())?;
    let queues = context.connect().await?;
    let (mut found, mut silent, mut failed) = (None, BTreeMap::new(), Vec::new());
    for name in &names {
        let broker = &context.settings.queue(name.as_str())?.broker;
        // One that cannot be reached is tried once, not once per queue. Another queue may be on one that can.
        if silent.contains_key(broker) {
            continue;
        }
        let answer = match queues.broker(name).await {
            Ok(connected) => connected.admin().info(name, id).await,
            Err(e) => {
                silent.insert(broker.clone(), e);
                continue;
            }
        };
        match answer {
            // A queue that is not there has no task.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::Unavailable => drop(silent.insert(broker.clone(), e)),
            Err(e) => failed.push(e),
            Ok(answer) => found = answer,
        }
        if found.is_some() {
            break;
        }
    }
    queues.close().await?;
    if found.is_none()
        && let Some((error, others)) = silent.into_values().chain(failed).collect::<Vec<_>>().split_first()
    {
        // A file that is damaged is so for each of its queues.
        let others: BTreeSet<String> = others.iter().map(|other| chain(other)).filter(|other| *other != chain(error)).collect();
        others.iter().for_each(|other| context.complain(other));
        return Err(error.duplicate().into());
    }
    let place = queue.map_or_else(|| "any queue of the settings".into(), |queue| format!("queue `{queue}`"));
    let gone = format!("no task {id} in {place}; a task that is done is gone");
    let info = found.ok_or_else(|| Error::new(ErrorKind::NotFound, gone))?;
    if context.out.is_json() {
        let mut object = json!(info);
        object["id"] = json!(id);
        context.out.object(&object);
    } else {
        context.out.table(&["FACT", "VALUE"], &facts(&info));
    }
    Ok(OK)
}

/// The twelve facts. Unknown is said, and never shown as 0.
fn facts(info: &TaskInfo) -> Vec<Vec<String>> {
    let number = |n: Option<u64>, unit: &str| n.map_or_else(|| "unknown".into(), |n| format!("{n}{unit}"));
    let state = info.state.map_or_else(|| "unknown".into(), |state| state.to_string());
    let facts = [
        ("queue", info.queue.clone()),
        ("state", state),
        ("priority", number(info.priority.map(u64::from), "")),
        ("age", number(info.age, " s")),
        ("delay", number(info.delay, " s")),
        ("ttr", number(info.ttr, " s")),
        ("expiration", number(info.expiration, " s")),
        ("reserves", number(info.reserves, "")),
        ("timeouts", number(info.timeouts, "")),
        ("releases", number(info.releases, "")),
        ("holds", number(info.holds, "")),
        ("unholds", number(info.unholds, "")),
    ];
    facts.map(|(fact, value)| vec![fact.to_owned(), value]).into()
}
