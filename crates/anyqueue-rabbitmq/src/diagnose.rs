//! What an operator should know of the server and the settings.

use anyqueue_core::{Finding, Result, Severity, time};

use crate::config::Kind;
use crate::layout::{Ladder, NOTES};
use crate::shared::Shared;

/// Looks for what loses tasks, or keeps workers from working.
pub(crate) async fn findings(shared: &Shared) -> Result<Vec<Finding>> {
    let (config, version) = (&shared.config, &shared.version);
    let mut findings = Vec::new();
    let mut found = |severity, text: String| findings.push(Finding { severity, text });
    if version.major == 0 {
        let text = "the server does not tell its version; it is treated like RabbitMQ 3.10";
        found(Severity::Warning, text.into());
    } else if !version.at_least(3, 10) {
        let text = "3.10 or later is needed: older quorum queues know no time to live, so delays do not work";
        found(Severity::Problem, format!("the server is RabbitMQ {}; {text}", version.text));
    }
    for (what, style) in
        [(None, &config.style)].into_iter().chain(config.queues.iter().map(|(queue, style)| (Some(queue), style)))
    {
        let which = what.map_or_else(|| "queues".into(), |queue| format!("queue `{queue}`"));
        let (kind, limit, bands) = (style.kind.word(), time::show(style.max_ttr), style.bands());
        found(Severity::Note, format!("{which} on RabbitMQ {}: {kind}, priorities in {bands}", version.text));
        let text = "the server does not tell its `consumer_timeout`; by the option of that name a TTR, touches and `time_limit` \
                    included, is at most";
        found(Severity::Note, format!("{which}: {text} {limit}, two minutes less than it"));
        if style.kind == Kind::Classic {
            let text = "a server that dies while a delayed task changes rungs may lose it; `type = \"quorum\"` does not";
            found(Severity::Warning, format!("{which} of the type classic: {text}"));
        }
    }
    if let Some(management) = &config.management
        && let Err(e) = management.reserved(&config.vhost, NOTES, config.timeout).await
    {
        found(Severity::Warning, format!("{e}; what is reserved is not known"));
    }
    for kind in [Kind::Quorum, Kind::Classic] {
        let strays = shared.strays(Ladder(kind)).await?;
        if strays > 0 {
            let text = "delayed tasks fell due for queues that are not there; they go on when somebody uses these again";
            found(Severity::Problem, format!("{strays} {text}"));
        }
    }
    if shared.send.live().await?.status().blocked() {
        let text = "the server has raised an alarm, memory or disk, and takes no tasks; `rabbitmqctl status` says which";
        found(Severity::Problem, text.into());
    }
    Ok(findings)
}
