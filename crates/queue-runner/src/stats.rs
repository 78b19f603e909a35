//! `stats`: how many tasks are where.

use std::io::IsTerminal;
use std::time::Duration;

use anyqueue::Queues;
use anyqueue::core::{Error, ErrorKind, Figure, Paused, QueueName, Stats, chain, time};
use serde_json::json;

use crate::context::Context;
use crate::failure::{Result, of_many};

/// Looking more often would be work for the broker that nobody can follow.
const SHORTEST: Duration = Duration::from_millis(50);

pub(crate) async fn run(context: &mut Context<'_>, names: &[String], every: Option<Duration>) -> Result<u8> {
    let names = context.chosen(names)?;
    let queues = context.connect().await?;
    let clears = every.is_some() && !context.out.is_json() && std::io::stdout().is_terminal();
    loop {
        let failed = once(context, &queues, &names, clears).await;
        context.out.flush();
        let Some(every) = every else {
            queues.close().await?;
            return Ok(of_many(failed, names.len() as u64));
        };
        if context.out.is_closed() {
            return Ok(0);
        }
        tokio::time::sleep(every.max(SHORTEST)).await;
    }
}

/// Shows every queue once; says how many could not be asked.
async fn once(context: &mut Context<'_>, queues: &Queues, names: &[QueueName], clears: bool) -> u64 {
    let mut failed = 0;
    let mut rows = Vec::new();
    for name in names {
        match figures(queues, name).await {
            Ok((stats, paused)) if context.out.is_json() => {
                let (paused, left) = match paused {
                    Paused::No => (false, None),
                    Paused::Yes(left) => (true, left.map(|left| left.as_secs_f64())),
                };
                let mut object = json!(stats);
                object["queue"] = json!(name);
                object["exactness"] = exactness(&stats);
                object["paused"] = json!(paused);
                object["paused_for"] = json!(left);
                context.out.object(&object);
            }
            Ok((stats, paused)) => rows.push(row(name, &stats, paused)),
            Err(e) => {
                failed += 1;
                if context.out.is_json() {
                    context.out.object(&json!({ "queue": name, "error": chain(&e) }));
                }
                context.complain(&format!("queue `{name}`: {}", chain(&e)));
            }
        }
    }
    if !context.out.is_json() {
        if clears {
            // Home, and clear what is below: the table stays in its place.
            context.out.raw(b"\x1b[H\x1b[2J");
        }
        context.out.table(&["QUEUE", "READY", "DELAYED", "RESERVED", "HELD", "OLDEST", "PAUSED"], &rows);
    }
    failed
}

async fn figures(queues: &Queues, name: &QueueName) -> Result<(Stats, Paused), Error> {
    let broker = queues.broker(name).await?;
    let stats = match broker.admin().stats(name).await {
        // Not there yet: set up where that is allowed, and an error naming `init` where it is not.
        Err(e) if e.kind() == ErrorKind::NotFound => {
            broker.declare(name).await?;
            broker.admin().stats(name).await
        }
        answer => answer,
    };
    Ok((stats?, broker.admin().paused(name).await?))
}

/// How far each figure can be trusted.
fn exactness(stats: &Stats) -> serde_json::Value {
    let word = |figure: Figure| match figure {
        Figure::Exact(_) => "exact",
        Figure::Approximate(_) => "approximate",
        Figure::AtLeast(_) => "at least",
        Figure::Unknown => "unknown",
    };
    json!({
        "ready": word(stats.ready), "delayed": word(stats.delayed), "reserved": word(stats.reserved),
        "held": word(stats.held), "oldest": word(stats.oldest),
    })
}

fn row(name: &QueueName, stats: &Stats, paused: Paused) -> Vec<String> {
    let seconds = |figure: Figure| match figure {
        Figure::Exact(s) => time::show(Duration::from_secs(s)),
        Figure::Approximate(s) => format!("≈{}", time::show(Duration::from_secs(s))),
        Figure::AtLeast(s) => format!("≥{}", time::show(Duration::from_secs(s))),
        Figure::Unknown => figure.to_string(),
    };
    let paused = match paused {
        Paused::No => "no".to_owned(),
        Paused::Yes(None) => "yes".to_owned(),
        Paused::Yes(Some(left)) => format!("for {}", time::show(Duration::from_secs(left.as_secs()))),
    };
    let [ready, delayed, reserved, held] =
        [stats.ready, stats.delayed, stats.reserved, stats.held].map(|figure| figure.to_string());
    let oldest = if stats.ready.value() == Some(0) { "-".to_owned() } else { seconds(stats.oldest) };
    vec![name.to_string(), ready, delayed, reserved, held, oldest, paused]
}
