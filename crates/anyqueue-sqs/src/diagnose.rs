//! What an operator should know.

use anyqueue_core::{Finding, Severity};

use crate::hub::Hub;
use crate::lines::RETENTION;

impl Hub {
    /// What was noticed of the queues that were used so far.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut add = |severity, text| findings.push(Finding { severity, text });
        if let Some(endpoint) = &self.config.endpoint {
            let safe = endpoint.split('@').next_back().unwrap_or_default();
            add(Severity::Note, format!("requests go to {safe}, not to the region's own address"));
        }
        for lines in self.all_known() {
            for missing in &lines.missing {
                add(Severity::Warning, format!("queue `{}` misses the right {missing}", lines.queue));
            }
            for drift in &lines.drift {
                let why = if drift.what.starts_with("RedrivePolicy") {
                    "SQS itself takes tasks away that were received often; they are listed as held, without a reason"
                } else if drift.what.starts_with("MessageRetentionPeriod") {
                    "SQS deletes tasks that wait longer"
                } else {
                    "tasks come later than asked for"
                };
                let text = format!("{} is {}, not {}: {why}", drift.what, drift.found, drift.wanted);
                add(Severity::Warning, text);
            }
            if lines.retention < RETENTION / 14 {
                let text = format!(
                    "queue `{}` keeps held tasks for {} s only; raise its MessageRetentionPeriod",
                    lines.queue, lines.retention
                );
                add(Severity::Problem, text);
            }
        }
        findings
    }
}
