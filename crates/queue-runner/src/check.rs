//! `check`: what holds and where it came from, and whether every broker is there and can do what is asked.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyqueue::core::{Capabilities, Error, Finding, QueueName, Severity, chain, time::show};
use anyqueue::settings::BrokerSettings;
use anyqueue::{Queues, Settings};
use serde_json::json;

use crate::brokers::{capabilities, told};
use crate::context::Context;
use crate::failure::{ERROR, OK, Result};
use crate::out::Out;

pub(crate) async fn run(context: &mut Context<'_>) -> Result<u8> {
    settings(context.out, &context.settings);
    let queues = context.connect().await?;
    let (mut problems, mut warnings) = (0, 0);
    for broker in context.settings.brokers.values() {
        let used: Vec<_> = context.settings.queues.values().filter(|queue| queue.broker == broker.name).collect();
        let report = ask(&queues, broker, &used.iter().map(|queue| queue.name.clone()).collect::<Vec<_>>()).await;
        problems += report.count(Severity::Problem);
        warnings += report.count(Severity::Warning);
        report.show(context.out);
    }
    for missing in missing_programs(&context.settings) {
        problems += 1;
        match context.out.is_json() {
            true => context.out.object(&json!({ "finding": missing })),
            false => context.out.line(format!("\nproblem: {missing}")),
        }
    }
    queues.close().await?;
    context.out.remark(format!("\n{}", verdict(problems, warnings)));
    Ok(if problems == 0 { OK } else { ERROR })
}

fn verdict(problems: usize, warnings: usize) -> String {
    let counted = |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
    let told: Vec<_> = [counted(problems, "problem"), counted(warnings, "warning")].into_iter().flatten().collect();
    if told.is_empty() { "all is well".into() } else { told.join(", ") }
}

fn settings(out: &mut Out, settings: &Settings) {
    let lines = settings.explain();
    if out.is_json() {
        for line in lines {
            out.object(&json!({ "setting": line.key, "value": line.value, "origin": line.origin.to_string() }));
        }
        return;
    }
    let file = settings.file.as_deref().unwrap_or("none; this is what is built in");
    out.line(format!("settings file: {file}\n"));
    let rows: Vec<_> = lines.into_iter().map(|line| vec![line.key, line.value, line.origin.to_string()]).collect();
    out.table(&["SETTING", "VALUE", "FROM"], &rows);
}

/// The programs of workers that cannot be started from here.
fn missing_programs(settings: &Settings) -> Vec<String> {
    let mut missing = Vec::new();
    for queue in settings.queues.values() {
        for (task, worker) in &queue.workers {
            let Some(program) = worker.exec.iter().flatten().next() else { continue };
            if let Err(why) = find_program(program) {
                missing.push(format!("queue `{}`, worker `{task}`: `{program}` {why}", queue.name));
            }
        }
    }
    missing
}

/// Looks for a program as starting it would: a path from the current folder, a bare name in PATH.
fn find_program(program: &str) -> Result<(), &'static str> {
    let runs = |path: &Path| path.metadata().map(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return match runs(Path::new(program)) {
            Ok(true) => Ok(()),
            Ok(false) => Err("is no program; make it executable with `chmod +x`"),
            Err(_) => Err("is not there; a path starts at the current folder"),
        };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&folders).any(|folder| runs(&folder.join(program)).unwrap_or(false)) {
        true => Ok(()),
        false => Err("is not in PATH; write `./` before a program of the current folder"),
    }
}

/// What one broker said.
struct Report<'a> {
    broker: &'a BrokerSettings,
    info: Option<anyqueue::core::BrokerInfo>,
    /// What it can do, queue by queue.
    can: Vec<(QueueName, Arc<Capabilities>)>,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    fn show(self, out: &mut Out) {
        if out.is_json() {
            out.object(&json!({
                "broker": &*self.broker.name, "url": self.broker.url.to_string(), "driver": self.broker.driver.name,
                "info": self.info, "capabilities": self.can.first().map(|(_, can)| capabilities(can)), "findings": self.findings,
            }));
            return;
        }
        out.line(format!("\nbroker `{}`: {} at {}", self.broker.name, self.broker.driver.name, self.broker.url));
        if let Some(info) = &self.info {
            let version = info.version.as_deref().unwrap_or("unknown");
            let plural = if info.connections == 1 { "" } else { "s" };
            out.line(format!("  connected to {}, version {version}, {} connection{plural}", info.address, info.connections));
        }
        let told: Vec<_> = self.can.iter().map(|(queue, can)| (queue, told(can))).collect();
        for (n, (queue, lines)) in told.iter().enumerate() {
            let new: Vec<_> = lines.iter().filter(|line| n == 0 || !told[0].1.contains(line)).collect();
            if n > 0 && !new.is_empty() {
                out.line(format!("  but queue `{queue}`:"));
            }
            new.into_iter().for_each(|[what, how]| out.line(format!("  {what:23} {how}")));
        }
        for finding in &self.findings {
            let word = match finding.severity {
                Severity::Note => "note",
                Severity::Warning => "warning",
                Severity::Problem => "problem",
            };
            out.line(format!("  {word}: {}", finding.text));
        }
    }
}

async fn ask<'a>(queues: &Queues, broker: &'a BrokerSettings, used: &[QueueName]) -> Report<'a> {
    let mut report = Report { broker, info: None, can: Vec::new(), findings: Vec::new() };
    let problem = |e: &Error| Finding { severity: Severity::Problem, text: chain(e) };
    let connected = match queues.broker_named(&broker.name).await {
        Ok(connected) => connected,
        Err(e) => {
            report.findings.push(problem(&e));
            return report;
        }
    };
    if let Err(e) = connected.ping().await {
        report.findings.push(problem(&e));
    }
    report.info = Some(connected.info());
    match connected.diagnose().await {
        Ok(found) => report.findings.extend(found),
        Err(e) => report.findings.push(problem(&e)),
    }
    if used.is_empty() {
        report.findings.push(Finding { severity: Severity::Note, text: "no queue uses it".into() });
    }
    for name in used {
        let can = connected.capabilities(name);
        let Ok(queue) = queues.settings().queue(name.as_str()) else { continue };
        let limit = |can: &Capabilities| queue.policy.time_limit.on(can.touch.limits());
        if let Some(longest) = limit(&can).filter(|longest| limit(&broker.driver.capabilities) != Some(*longest)) {
            let text = format!("queue `{name}`: an attempt may run {}, since no `time_limit` is set", show(longest));
            report.findings.push(Finding { severity: Severity::Note, text });
        }
        let wanted = queue.requirements(queues.settings().strict);
        let lacks = wanted.check(&can).into_iter();
        report
            .findings
            .extend(lacks.map(|lack| Finding { severity: Severity::Problem, text: format!("queue `{name}`: {lack}") }));
        report.can.push((name.clone(), can));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_well_without_problems_and_warnings_only() {
        let said = [(0, 0), (0, 1), (1, 0), (2, 3)].map(|(problems, warnings)| verdict(problems, warnings));
        assert_eq!(said, ["all is well", "1 warning", "1 problem", "2 problems, 3 warnings"]);
    }
}
