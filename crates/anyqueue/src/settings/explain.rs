//! Resolved settings as lines: what `queue-runner check` prints.

use std::time::Duration;

use anyqueue_core::{Create, has_login, time};

use super::origin::{Origin, dotted};
use super::queue::QueueSettings;
use super::{BrokerSettings, Settings};
use crate::policy::{Lease, Policy};

/// One setting as it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The key, as TOML writes it.
    pub key: String,
    /// The value, as it could be written; never a secret.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

impl Settings {
    /// Every setting as it holds, with where it came from. Secrets are not shown.
    pub fn explain(&self) -> Vec<Line> {
        let mut lines = Lines { settings: self, lines: Vec::new() };
        lines.add(&["default_broker"], &self.default_broker);
        lines.add(&["strict"], self.strict);
        for (name, broker) in &self.brokers {
            lines.broker(name, broker);
        }
        for queue in self.queues.values() {
            lines.queue(queue);
        }
        for route in &self.routes {
            lines.add(&["routes", &route.pattern], &route.queue);
        }
        lines.runner();
        lines.lines
    }
}

struct Lines<'a> {
    settings: &'a Settings,
    lines: Vec<Line>,
}

impl Lines<'_> {
    fn add(&mut self, path: &[&str], value: impl ToString) {
        let key = dotted(path);
        let origin = self.settings.origin(&key);
        self.lines.push(Line { key, value: value.to_string(), origin });
    }

    fn broker(&mut self, name: &str, broker: &BrokerSettings) {
        let create = match broker.create {
            Create::Auto => "auto",
            Create::Never => "never",
        };
        self.add(&["brokers", name, "url"], &broker.url);
        self.add(&["brokers", name, "create"], create);
        self.add(&["brokers", name, "timeout"], time::show(broker.timeout));
        self.add(&["brokers", name, "send_timeout"], time::show(broker.send_timeout));
        for spec in broker.driver.options {
            let value = broker.options.shown(spec);
            self.add(&["brokers", name, spec.key], value.as_deref().unwrap_or(spec.default));
            let Some(line) = self.lines.last_mut().filter(|line| line.origin == Origin::Default && value.is_some()) else {
                continue;
            };
            // It stands in the URL.
            line.origin = self.settings.origin(&dotted(&["brokers", name, "url"]));
        }
    }

    fn queue(&mut self, queue: &QueueSettings) {
        let name = queue.name.as_str();
        self.add(&["queues", name, "broker"], &queue.broker);
        self.add(&["queues", name, "label"], &queue.label);
        self.add(&["queues", name, "slots"], or_none(queue.slots));
        self.add(&["queues", name, "weight"], queue.weight);
        self.add(&["queues", name, "priority"], queue.priority);
        self.add(&["queues", name, "delay"], time::show(queue.delay));
        self.add(&["queues", name, "ttr"], time::show(queue.ttr));
        self.add(&["queues", name, "priorities"], &queue.priorities);
        let longest = self.settings.brokers.get(&*queue.broker).and_then(|broker| broker.driver.capabilities.touch.limits());
        self.policy(&["queues", name], &queue.policy, None, longest);
        for key in queue.options.keys() {
            let broker = self.settings.brokers.get(&*queue.broker);
            let mut specs = broker.into_iter().flat_map(|broker| broker.driver.options);
            let value = specs.find(|spec| spec.key == key).and_then(|spec| queue.options.shown(spec));
            self.add(&["queues", name, key], value.unwrap_or_default());
        }
        let own = |task: &str| queue.workers.get(task).is_some_and(|worker| worker.elsewhere);
        let listed: Vec<_> = queue.elsewhere.iter().map(String::as_str).filter(|task| !own(task)).collect();
        if !listed.is_empty() {
            let list = self.settings.origin(&dotted(&["queues", name, "workers"]));
            self.add(&["queues", name, "elsewhere"], listed.join(", "));
            let line = self.lines.last_mut().filter(|line| line.origin == Origin::Default);
            line.into_iter().for_each(|line| line.origin = list.clone());
        }
        for (task, worker) in &queue.workers {
            let path = ["queues", name, "workers", task];
            let mut set = |key: &str, value: Option<String>| {
                if let Some(value) = value {
                    self.add(&[&path[..], &[key]].concat(), value);
                }
            };
            set("exec", worker.exec.as_ref().map(|words| command(words)));
            set("priority", worker.priority.map(|n| n.to_string()));
            set("delay", worker.delay.map(time::show));
            set("ttr", worker.ttr.map(time::show));
            set("elsewhere", worker.elsewhere.then(|| "true".into()));
            self.policy(&path, &worker.policy, Some(&queue.policy), longest);
        }
    }

    /// The keys of a policy on a broker where a task can be reserved so long; beside another one only those that differ.
    fn policy(&mut self, path: &[&str], policy: &Policy, beside: Option<&Policy>, longest: Option<Duration>) {
        let other = beside.map(|policy| policy_words(policy, longest));
        for (n, (key, value)) in policy_words(policy, longest).into_iter().enumerate() {
            if other.as_ref().is_none_or(|other| other[n].1 != value) {
                self.add(&[path, key].concat(), value);
            }
        }
    }

    fn runner(&mut self) {
        let runner = &self.settings.runner;
        self.add(&["runner", "slots"], runner.slots);
        self.add(&["runner", "strategy"], runner.strategy.word());
        self.add(&["runner", "prefetch"], runner.prefetch);
        self.add(&["runner", "grace"], time::show(runner.grace));
        self.add(&["runner", "max_tasks"], or_none(runner.max_tasks));
        self.add(&["runner", "max_idle_cycles"], or_none(runner.max_idle_cycles));
        self.add(&["runner", "max_time"], or_none(runner.max_time.map(time::show)));
        self.add(&["runner", "memory_limit"], or_none(runner.memory_limit));
    }
}

/// A command as it may be shown: without the URLs in it that have a login.
fn command(words: &[String]) -> String {
    let shown = |word: &String| if word.contains("://") && has_login(word) { "(not shown)".into() } else { word.clone() };
    format!("{:?}", words.iter().map(shown).collect::<Vec<_>>())
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "none".into(), |value| value.to_string())
}

fn policy_words(policy: &Policy, longest: Option<Duration>) -> [(&'static [&'static str], String); 10] {
    let backoff = &policy.backoff;
    let lease = match policy.lease {
        Lease::Auto => "auto",
        Lease::Manual => "manual",
    };
    [
        (&["max_attempts"], policy.max_attempts.to_string()),
        (&["backoff", "first"], time::show(backoff.first)),
        (&["backoff", "factor"], backoff.factor.to_string()),
        (&["backoff", "max"], time::show(backoff.max)),
        (&["backoff", "jitter"], backoff.jitter.to_string()),
        (&["max_crashes"], policy.max_crashes.to_string()),
        (&["lease"], lease.into()),
        (&["time_limit"], or_none(policy.time_limit.on(longest).map(time::show))),
        (&["notify_after"], or_none(policy.notify_after)),
        (&["unknown_for"], time::show(policy.unknown_for)),
    ]
}
