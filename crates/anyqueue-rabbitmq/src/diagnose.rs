//! What an operator should know of the server and the settings.

use anyqueue_core::{Finding, Result, Severity, chain, time};

use crate::config::{Kind, Style};
use crate::hello::Version;
use crate::layout::Ladder;
use crate::shared::Shared;

/// Looks for what loses tasks, or keeps workers from working.
pub(crate) async fn findings(shared: &Shared) -> Result<Vec<Finding>> {
    let mut findings = of_version(&shared.version);
    let config = &shared.config;
    let mut found = |severity, text: String| findings.push(Finding { severity, text });
    let text = format!(
        "heartbeats go each {}s; a dead connection is noticed within {}",
        config.heartbeat(),
        time::show(config.liveness * 2)
    );
    found(Severity::Note, text);
    for (queue, style) in
        [(None, &config.style)].into_iter().chain(config.queues.iter().map(|(queue, style)| (Some(queue), style)))
    {
        let who = queue.map_or_else(|| "queues".into(), |queue| format!("queue `{queue}`"));
        found(Severity::Note, format!("{who}: {}", resolved(style, &shared.version)));
        if style.kind == Kind::Classic {
            let text = "a server that dies while a delayed task changes rungs may lose it; `type = \"quorum\"` does not";
            found(Severity::Warning, format!("{who}, being classic: {text}"));
        }
    }
    for kind in [Kind::Quorum, Kind::Classic] {
        let strays = shared.strays(Ladder(kind)).await?;
        if strays > 0 {
            let text = "tasks fell due for queues that are not there, or were thrown out of the held ones by a policy's delivery \
                        limit; they go on when a process begins to use their queue";
            found(Severity::Problem, format!("{strays} {text}"));
        }
    }
    if shared.send.live().await?.status().blocked() {
        let text = "the server has raised an alarm, memory or disk, and takes no tasks; `rabbitmqctl status` says which";
        found(Severity::Problem, text.into());
    }
    findings.extend(of_queues(shared).await);
    Ok(findings)
}

fn of_version(version: &Version) -> Vec<Finding> {
    let said = |severity, text: String| Finding { severity, text };
    let tried =
        "releases from 4.4 on were never tried with this adapter, 3.10, 4.0 and 4.3 were; watch `crashed` counts and held tasks";
    vec![match (version.major, version.at_least(3, 10)) {
        (0, _) => said(Severity::Warning, "the server does not tell its version; it is treated like RabbitMQ 3.10".into()),
        (_, false) => {
            let text = "3.10 or later is needed: older quorum queues know no time to live, so delays do not work";
            said(Severity::Problem, format!("the server is RabbitMQ {}; {text}", version.text))
        }
        (4.., _) if version.at_least(4, 4) => {
            said(Severity::Warning, format!("the server is RabbitMQ {}; {tried}", version.text))
        }
        _ => said(Severity::Note, format!("the server is RabbitMQ {}", version.text)),
    }]
}

/// What the settings of a queue come to.
fn resolved(style: &Style, version: &Version) -> String {
    let text = match style.own_timeout {
        Some(_) if version.at_least(3, 12) => {
            "queues are made with the `consumer_timeout` of the settings; a TTR, touches and `time_limit` included, is at most"
        }
        _ => {
            "the server does not tell its `consumer_timeout`; by the option of that name a TTR, touches and `time_limit` \
             included, is at most"
        }
    };
    let (kind, bands, limit) = (style.kind.word(), style.bands(), time::show(style.max_ttr));
    format!("{kind}, priorities in {bands}; {text} {limit}, two minutes less than it")
}

/// What is to be said of the queues that have settings of their own, and of the management API.
async fn of_queues(shared: &Shared) -> Vec<Finding> {
    let mut findings = Vec::new();
    for queue in shared.config.queues.keys() {
        // A queue that cannot be looked at is told by whoever uses it.
        for (band, count) in shared.other_bands(&shared.layout(queue)).await.unwrap_or_default() {
            let text = format!(
                "queue `{queue}`: `{band}`, with {count} tasks, is a band of other settings; workers move what is in it, senders \
                 should have the same `bands`"
            );
            findings.push(Finding { severity: Severity::Warning, text });
        }
    }
    if let Some(management) = &shared.config.management
        && let Err(e) = management.hello(shared.config.timeout).await
    {
        findings.push(Finding { severity: Severity::Warning, text: format!("{}; reserved tasks are not counted", chain(&e)) });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_untried_servers_are_told() {
        for (version, severity) in [
            ("unknown", Severity::Warning),
            ("3.9.27", Severity::Problem),
            ("3.10.8", Severity::Note),
            ("3.13.0", Severity::Note),
            ("4.0.5", Severity::Note),
            ("4.3.6", Severity::Note),
            ("4.4.0", Severity::Warning),
            ("5.0.0", Severity::Warning),
        ] {
            let found = of_version(&Version::read(version));
            assert_eq!((found.len(), found[0].severity), (1, severity), "{version}: {found:?}");
        }
    }
}
