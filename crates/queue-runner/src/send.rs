//! `--send`: one task, or the same one many times.

use std::io::Read;

use anyqueue::core::{Effect, Error, chain, suggest};
use anyqueue::{NewTask, Queues, Settings};
use serde_json::json;

use crate::args::Work;
use crate::context::Context;
use crate::failure::{Failure, Result, of_many};
use crate::out::tasks;

/// How many go to the broker in one call.
const BATCH: u64 = 1000;

/// What is to be sent.
#[derive(Debug)]
pub(crate) struct Plan {
    queue: String,
    task: NewTask,
    count: u64,
}

/// Reads and checks all that `--send` was given. `None`: nothing is to be sent.
pub(crate) fn plan(work: &Work, context: &mut Context<'_>) -> Result<Option<Plan>> {
    let Some(typed) = &work.send else { return Ok(None) };
    let (queue, task, message) = target(typed)?;
    match context.unchecked {
        true => context.adopt(queue)?,
        false => known(&context.settings, queue, task)?,
    }
    let new = match (message, &work.data) {
        (Some(_), Some(_)) => return Err(Failure::usage("the data is given twice; use either a message or --data")),
        (None, None) => {
            return Err(Failure::usage(format!("`{typed}` has no message; write `{queue}:{task}:hello`, or add --data")));
        }
        (Some(message), None) => NewTask::new(task, &json!({ "message": message })),
        (None, Some(data)) => NewTask::json(task, data_text(data)?),
    };
    Ok(Some(Plan { queue: queue.to_owned(), task: dressed(new, work), count: work.count.unwrap_or(1) }))
}

/// Takes `queue:task` or `queue:task:message` apart; the message may have colons.
fn target(typed: &str) -> Result<(&str, &str, Option<&str>)> {
    let mut parts = typed.splitn(3, ':');
    let (queue, task, message) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let wrong = |what: &str| Failure::usage(format!("`{typed}`: {what}; write QUEUE:TASK:MESSAGE, as in `default:test:hello`"));
    let task = task.ok_or_else(|| wrong("the task is missing"))?;
    for (name, part) in [("queue", Some(queue)), ("task", Some(task)), ("message", message)] {
        if part.is_some_and(|part| part.trim().is_empty()) {
            return Err(wrong(&format!("the {name} is empty")));
        }
    }
    for (name, part) in [("queue", queue), ("task", task)] {
        if part.contains(char::is_whitespace) {
            return Err(wrong(&format!("the {name} has a blank in it")));
        }
    }
    Ok((queue, task, message))
}

/// Refuses a queue or task that the settings do not know.
pub(crate) fn known(settings: &Settings, queue: &str, task: &str) -> Result<(), Error> {
    let unknown = |e: Error| Error::new(e.kind(), format!("{}; --unchecked sends it all the same", e.message()));
    let tasks = settings.queue(queue).map_err(unknown)?.tasks();
    if tasks.contains(&task) {
        return Ok(());
    }
    let known = suggest(task, tasks);
    Err(Error::config(format!("queue `{queue}` has no worker `{task}`; {known}; --unchecked sends it all the same")))
}

fn data_text(data: &str) -> Result<String> {
    let unreadable = |from: String| move |e: std::io::Error| Failure::Error(format!("the data cannot be read from {from}: {e}"));
    let text = match data.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(unreadable(format!("`{path}`")))?,
        None if data == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(unreadable("standard input".into()))?;
            text
        }
        None => data.to_owned(),
    };
    match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
        Ok(_) => Ok(text),
        Err(e) => Err(Failure::usage(format!("the data is not JSON: {e}; a text needs its quotes, as in --data '\"hello\"'"))),
    }
}

/// Puts on what the flags say.
pub(crate) fn dressed(mut task: NewTask, work: &Work) -> NewTask {
    if let Some(priority) = work.priority {
        task = task.priority(priority);
    }
    if let Some(delay) = work.delay {
        task = task.delay(delay);
    }
    if let Some(ttr) = work.ttr {
        task = task.ttr(ttr);
    }
    match &work.store {
        Some(store) => task.store(store),
        None => task,
    }
}

pub(crate) async fn run(context: &mut Context<'_>, queues: &Queues, plan: Plan) -> Result<u8> {
    let sender = queues.queue(&plan.queue)?;
    let name = plan.task.name().to_owned();
    if plan.count == 1 {
        let sent = sender.send(plan.task).await?;
        match context.out.is_json() {
            true => context.out.object(&json!({ "id": sent.id, "queue": plan.queue, "task": name, "via": &*sent.via })),
            false => context.out.remark(format!("sent {}:{name} {} via {}", plan.queue, sent.id, sent.via)),
        }
        return Ok(0);
    }
    let bar = context.screen.progress(Some(plan.count));
    let (mut left, mut failed, mut said) = (plan.count, 0, String::new());
    while left > 0 {
        let batch = left.min(BATCH);
        left -= batch;
        let (before, mut unsure) = (failed, false);
        for answer in sender.send_all(vec![plan.task.clone(); batch as usize]).await {
            match answer {
                Ok(sent) if context.out.is_json() => {
                    context.out.object(&json!({ "id": sent.id, "queue": plan.queue, "task": name, "via": &*sent.via }));
                }
                Ok(_) => {}
                Err(e) => {
                    failed += 1;
                    unsure |= e.effect() == Effect::Unknown;
                    // Many tasks tend to fail for one reason, which is said once.
                    let text = chain(&e);
                    if text != said {
                        context.complain(&text);
                        said = text;
                    }
                }
            }
        }
        bar.inc(batch);
        if failed - before == batch && left > 0 {
            let first = if unsure { "it is not known whether any were" } else { "none were" };
            context.complain(&format!("of {}, {first} sent; {left} more were not tried", tasks(batch)));
            break;
        }
    }
    bar.finish_and_clear();
    summary(context, plan.count - failed - left, failed);
    Ok(of_many(failed + left, plan.count))
}

pub(crate) fn summary(context: &mut Context<'_>, sent: u64, failed: u64) {
    match failed {
        0 => context.out.remark(format!("sent {}", tasks(sent))),
        _ => context.out.remark(format!("sent {}, {failed} failed", tasks(sent))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_may_have_colons_and_parts_may_not_be_empty() {
        assert!(matches!(target("a:b:c:d "), Ok(("a", "b", Some("c:d ")))));
        assert!(matches!(target("a:b"), Ok(("a", "b", None))));
        for (typed, wanted) in [
            ("a", "the task is missing"),
            (":b:c", "the queue is empty"),
            ("a: :c", "the task is empty"),
            ("a:b:", "the message is empty"),
            ("a b:c:d", "the queue has a blank"),
            (" a:c:d", "the queue has a blank"),
        ] {
            let Err(Failure::Usage(text)) = target(typed) else { panic!("{typed:?} should be refused") };
            assert!(text.contains(wanted), "{text}");
        }
    }
}
