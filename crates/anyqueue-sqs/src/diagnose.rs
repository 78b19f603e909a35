//! What an operator should know.

use std::sync::Arc;

use anyqueue_core::{Create, Drift, ErrorKind, Finding, QueueName, Result, Severity};
use aws_sdk_sqs::types::QueueAttributeName;

use crate::hub::Hub;
use crate::lines::{Lines, RETENTION};

/// How many tasks of one SQS queue may be reserved (quotas of SQS), less a sixth: time to do something about it.
const CROWDED: u64 = 100_000;
const CROWDED_FIFO: u64 = 17_000;

impl Hub {
    /// What there is to know of all queues that are set up or were used so far. Nothing is created.
    pub(crate) async fn findings(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        if let Some(endpoint) = &self.config.endpoint {
            findings.push(finding(Severity::Note, format!("requests go to {endpoint}, not to the region's own address")));
        }
        if let Some(folder) = &self.folder {
            let path = folder.path().display();
            findings.push(match folder.try_out().await {
                Ok(()) => {
                    let text = format!(
                        "data that is too large for SQS is in the folder {path}; all that send or work need the same one"
                    );
                    finding(Severity::Note, text)
                }
                Err(e) => finding(Severity::Problem, anyqueue_core::chain(&e)),
            });
        }
        let mut all = self.all_known();
        for queue in self.config.queues().filter(|queue| self.known(queue).is_none()) {
            match Lines::find(&self.api, &self.config, queue, Create::Never).await {
                Ok(lines) => all.push(Arc::new(lines)),
                Err(e) if e.kind() == ErrorKind::NotFound => findings.push(self.missing(queue)),
                Err(e) if e.kind() == ErrorKind::Denied => {
                    let text = format!("queue `{queue}` cannot be looked at: {}", anyqueue_core::chain(&e));
                    findings.push(finding(Severity::Problem, text));
                }
                Err(e) => return Err(e),
            }
        }
        for lines in all {
            findings.extend(drift(&lines, self.strayed(&lines).await?));
            findings.extend(self.rights(&lines).await?);
        }
        Ok(findings)
    }

    fn missing(&self, queue: &QueueName) -> Finding {
        match self.config.create {
            Create::Auto => finding(Severity::Note, format!("queue `{queue}` is not on SQS yet; its first use makes it")),
            Create::Never => {
                let text = format!("queue `{queue}` is not on SQS, and `create` is \"never\"; run `queue-runner init`");
                finding(Severity::Problem, text)
            }
        }
    }

    /// What is missing to work on a queue as it is now.
    async fn rights(&self, lines: &Lines) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        match self.api.tags(lines.plain()).await {
            Err(e) if e.kind() == ErrorKind::Denied => {
                let text =
                    format!("queue `{}` misses the right `sqs:ListQueueTags`: its workers do not heed pauses", lines.queue);
                findings.push(finding(Severity::Warning, text));
            }
            answer => drop(answer?),
        }
        for url in lines.bands.iter().filter(|_| lines.missing.is_empty()) {
            let hidden = self.figure(url, &QueueAttributeName::ApproximateNumberOfMessagesNotVisible).await?;
            let (crowded, most) = if lines.kind.fifo { (CROWDED_FIFO, 20_000) } else { (CROWDED, 120_000) };
            if hidden > crowded {
                let text = format!(
                    "queue `{}` has {hidden} tasks reserved in one band, and SQS hands out no more at {most}; use fewer slots or shorter tasks",
                    lines.queue
                );
                findings.push(finding(Severity::Warning, text));
            }
        }
        Ok(findings)
    }
}

fn finding(severity: Severity, text: String) -> Finding {
    Finding { severity, text }
}

fn drift(lines: &Lines, strayed: Vec<Drift>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for missing in &lines.missing {
        findings.push(finding(Severity::Warning, format!("queue `{}` misses the right {missing}", lines.queue)));
    }
    for drift in lines.drift.iter().chain(&strayed) {
        let why = if drift.what.starts_with("RedrivePolicy") {
            "SQS itself takes tasks away that were received often; they are listed as held, without a reason"
        } else if drift.what.starts_with("MessageRetentionPeriod") {
            "SQS deletes tasks that wait longer"
        } else if drift.what.contains("`fifo") {
            "nobody works on them; run workers with the old setting until they are done"
        } else if drift.what.contains("`bands") {
            "any worker of the queue moves them to where they belong"
        } else {
            "tasks come later than asked for"
        };
        let text = format!("{} is {}, not {}: {why}", drift.what, drift.found, drift.wanted);
        findings.push(finding(Severity::Warning, text));
    }
    if lines.retention < RETENTION / 14 {
        let text = format!(
            "queue `{}` keeps held tasks for {} s, and they are lost when no worker runs for half as long; raise `MessageRetentionPeriod`",
            lines.queue, lines.retention
        );
        findings.push(finding(Severity::Problem, text));
    }
    findings
}
