//! `--watch`: works tasks until told to stop.

use std::time::Duration;

use anyqueue::core::{Paused, QueueName};
use anyqueue::{PreparedRunner, Queues, Runner, RunnerHandle, Watch, Why, test_queue};
use serde_json::json;

use crate::args::Work;
use crate::context::Context;
use crate::failure::{Failure, Result};

/// A runner that may begin, and what is shown of it.
pub(crate) struct Watching {
    runner: PreparedRunner,
    handle: RunnerHandle,
    watch: Watch,
    /// The queues with workers in Rust.
    here: Vec<String>,
}

/// Looks at what is to be watched, and refuses what cannot be.
pub(crate) async fn prepare(context: &mut Context<'_>, queues: &Queues, names: &str, work: &Work) -> Result<Watching> {
    let mut runner = Runner::new(queues.clone()).signals(true);
    let mut handlers = std::mem::take(&mut context.handlers);
    if has_test_worker(queues) && handlers.iter().all(|handler| handler.name() != "default") {
        handlers.push(test_queue());
    }
    let here: Vec<String> = handlers.iter().map(|handler| handler.name().to_owned()).collect();
    runner = handlers.into_iter().fold(runner, Runner::queue);
    let watch = chosen(names)?;
    runner = runner.watch(watch.clone());
    if work.drain {
        runner = runner.drain();
    }
    if let Some(range) = &work.priorities {
        runner = runner.priorities(range.clone());
    }
    let handle = runner.handle();
    Ok(Watching { runner: runner.prepare().await?, handle, watch, here })
}

/// Works until told to stop.
pub(crate) async fn run(context: &mut Context<'_>, queues: &Queues, watching: Watching) -> Result<u8> {
    let Watching { runner, handle, watch, here } = watching;
    if watch == Watch::All {
        let idle = without_worker(queues, &here);
        if !idle.is_empty() {
            tracing::info!("no worker here: {}", idle.join(", "));
        }
    }
    let showing = tokio::spawn(show(context.screen.progress(None), handle));
    let finished = runner.run().await;
    showing.abort();
    let finished = finished?;
    if context.out.is_json() {
        let p = finished.progress;
        context.out.object(&json!({
            "finished": finished.why.to_string(), "exit_code": finished.exit_code(), "started": p.started, "done": p.done,
            "discarded": p.discarded, "retried": p.retried, "snoozed": p.snoozed, "held": p.held, "released": p.released,
            "late": p.late, "cut_short": finished.cut_short, "unstored": finished.unstored, "unworked": finished.unworked,
            "out_of_reach": finished.out_of_reach,
        }));
    } else {
        context.out.remark(&finished);
        if finished.why == Why::Drained {
            remark_pauses(context, queues, &watch, &here).await;
        }
    }
    Ok(finished.exit_code())
}

/// A paused queue is drained while tasks wait in it, which nobody should have to guess.
async fn remark_pauses(context: &mut Context<'_>, queues: &Queues, watch: &Watch, here: &[String]) {
    let idle = without_worker(queues, here);
    let watched = |name: &&QueueName| match watch {
        Watch::Named(names) => names.iter().any(|one| one == name.as_str()),
        Watch::All => !idle.iter().any(|idle| idle == name.as_str()),
    };
    for name in queues.settings().queues.keys().filter(watched) {
        let Ok(broker) = queues.broker(name).await else { continue };
        if let Ok(Paused::Yes(_)) = broker.admin().paused(name).await {
            context.out.remark(format!("queue `{name}` is paused: what it has waits until `queue-runner resume {name}`"));
        }
    }
}

/// Reads `all` or `a,b`.
fn chosen(names: &str) -> Result<Watch> {
    if names.trim() == "all" {
        return Ok(Watch::All);
    }
    let names: Vec<String> = names.split(',').map(|name| name.trim().to_owned()).collect();
    if names.iter().any(String::is_empty) {
        return Err(Failure::usage("--watch has an empty queue name; write `all` or `images,mail`"));
    }
    Ok(Watch::Named(names))
}

/// Whether the queue `default` has the built-in worker `test`: a Rust one, since no program is named for it.
fn has_test_worker(queues: &Queues) -> bool {
    let Some(queue) = queues.settings().queues.get("default") else { return false };
    let here = queue.workers.get("test").is_some_and(|worker| worker.exec.is_none());
    here && !queue.elsewhere.iter().any(|task| task == "test")
}

/// The queues that nothing here works.
fn without_worker(queues: &Queues, here: &[String]) -> Vec<String> {
    let idle = queues.settings().queues.values().filter(|queue| {
        let programs = queue.workers.values().any(|worker| worker.exec.is_some());
        !programs && !here.iter().any(|name| name == queue.name.as_str())
    });
    idle.map(|queue| queue.name.to_string()).collect()
}

/// Shows what happens, on a terminal.
async fn show(bar: indicatif::ProgressBar, handle: RunnerHandle) {
    if bar.is_hidden() {
        return;
    }
    loop {
        let p = handle.progress();
        let failed = if p.retried > 0 { format!(", {} to be retried", p.retried) } else { String::new() };
        let held = if p.held > 0 { format!(", {} held", p.held) } else { String::new() };
        bar.set_message(format!("{} done, {} running{failed}{held}", p.done, p.running));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_named_with_commas() {
        assert_eq!(chosen("all").unwrap(), Watch::All);
        assert_eq!(chosen("a, b").unwrap(), Watch::Named(vec!["a".into(), "b".into()]));
        assert!(chosen("a,,b").is_err());
        assert!(chosen("").is_err());
    }
}
