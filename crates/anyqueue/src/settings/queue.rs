//! `[queues.NAME]`, its workers, and `[defaults]` for all queues.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Options, PriorityRange, QueueName, Requirements, Result, time};

use super::broker::Brokers;
use super::table::Table;
use super::value;
use crate::policy::{Backoff, Lease, Policy, TimeLimit};

/// One queue, as `[queues.NAME]` describes it over `[defaults]`.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// Its name.
    pub name: QueueName,
    /// The name of its broker.
    pub broker: Arc<str>,
    /// What people call it. Default: its name.
    pub label: String,
    /// How many of the runner's slots it may use at most. `None`: all.
    pub slots: Option<usize>,
    /// Its share under the strategies fair and weighted. Default 1.
    pub weight: u32,
    /// The priority of tasks that name none. Default 1024.
    pub priority: u32,
    /// The delay of tasks that name none. Default 0.
    pub delay: Duration,
    /// The TTR of tasks that name none. Default 60 s.
    pub ttr: Duration,
    /// What happens to tasks that fail.
    pub policy: Policy,
    /// Workers with settings of their own, by task name.
    pub workers: BTreeMap<String, WorkerSettings>,
    /// Task names whose workers live in another binary.
    pub elsewhere: Vec<String>,
    /// Which priorities a runner takes from it. Default: all.
    pub priorities: PriorityRange,
    /// The driver's options for this queue.
    pub options: Options,
}

/// One worker, as `[queues.NAME.workers.TASK]` describes it.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// The program that works the task, with its arguments. `None`: a worker written in Rust.
    pub exec: Option<Vec<String>>,
    /// The priority of its tasks, if it differs from the queue's.
    pub priority: Option<u32>,
    /// The delay of its tasks, if it differs from the queue's.
    pub delay: Option<Duration>,
    /// The TTR of its tasks, if it differs from the queue's.
    pub ttr: Option<Duration>,
    /// The queue's policy with this worker's changes.
    pub policy: Policy,
    /// Whether it lives in another binary by its own word.
    pub elsewhere: bool,
}

impl QueueSettings {
    /// A queue with everything at its default.
    pub fn new(name: QueueName, broker: impl Into<Arc<str>>) -> Self {
        Self {
            label: name.to_string(),
            name,
            broker: broker.into(),
            slots: None,
            weight: 1,
            priority: anyqueue_core::priority::NORMAL,
            delay: Duration::ZERO,
            ttr: time::DEFAULT_TTR,
            policy: Policy::default(),
            workers: BTreeMap::new(),
            elsewhere: Vec::new(),
            priorities: PriorityRange::ALL,
            options: Options::default(),
        }
    }

    /// The same for a queue of this name.
    pub(super) fn named(&self, name: QueueName) -> Self {
        Self { label: name.to_string(), name, ..self.clone() }
    }

    /// A worker of which the settings say nothing, unless they do.
    pub(super) fn add_worker(&mut self, task: &str) {
        let policy = self.policy.clone();
        let worker = WorkerSettings { exec: None, priority: None, delay: None, ttr: None, policy, elsewhere: false };
        self.workers.entry(task.to_owned()).or_insert(worker);
    }

    /// The names of the tasks that have a worker here or elsewhere, in order.
    pub fn tasks(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.workers.keys().chain(&self.elsewhere).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The policy of a task: its worker's, or the queue's.
    pub fn policy_of(&self, task: &str) -> &Policy {
        self.workers.get(task).map_or(&self.policy, |worker| &worker.policy)
    }

    /// What the queue, its workers included, asks of its broker.
    pub fn requirements(&self, strict: bool) -> Requirements {
        let policies = || self.workers.values().map(|worker| &worker.policy).chain([&self.policy]);
        let ttrs = self.workers.values().filter_map(|worker| worker.ttr).chain([self.ttr]);
        let delays = self.workers.values().filter_map(|worker| worker.delay).chain([self.delay]);
        let waits = policies().map(|policy| policy.backoff.max);
        // One that nobody set asks for nothing: it is what the broker can do.
        let wanted = |limit| if let TimeLimit::At(limit) = limit { limit } else { Duration::ZERO };
        Requirements {
            priorities: self.priorities.clone(),
            ttr: ttrs.max().unwrap_or(self.ttr),
            reserved: policies().filter(|policy| policy.lease == Lease::Auto).map(|policy| wanted(policy.time_limit)).max(),
            delay: delays.chain(waits).max().unwrap_or(self.delay),
            strict,
        }
    }

    /// Reads the keys that `[defaults]` and `[queues.NAME]` share.
    pub(super) fn read_shared(&mut self, table: &mut Table<'_>) {
        self.slots = table.take("slots", |v| value::optional(v, |v| value::count(v, 1..=MOST_SLOTS))).unwrap_or(self.slots);
        self.weight = table.take("weight", |v| value::small(v, 1..=1_000_000)).unwrap_or(self.weight);
        self.priority = table.take("priority", value::priority).unwrap_or(self.priority);
        self.delay = table.take("delay", value::delay).unwrap_or(self.delay);
        self.ttr = table.take("ttr", value::ttr).unwrap_or(self.ttr);
        read_policy(table, &mut self.policy);
    }

    /// Reads `[queues.NAME]` over what `[defaults]` said.
    pub(super) fn read(mut self, mut table: Table<'_>, brokers: &Brokers<'_>) -> Self {
        if let Some(broker) = table.take("broker", value::text) {
            if let Err(e) = brokers.check(&broker) {
                table.problem("broker", &e);
            }
            self.broker = broker.into();
        }
        self.label = table.take("label", value::text).unwrap_or(self.label);
        self.priorities = table.take("priorities", value::priorities).unwrap_or(self.priorities);
        self.read_shared(&mut table);
        self.elsewhere = table.take("elsewhere", value::list).unwrap_or_default();
        if table.is_list("workers") {
            self.elsewhere.extend(table.take("workers", value::list).unwrap_or_default());
        } else {
            for (task, worker) in table.tables("workers") {
                self.read_worker(task, worker);
            }
        }
        for task in self.elsewhere.iter().filter(|task| !is_task_name(task)) {
            table.problem("elsewhere", &format!("`{task}` is no task name: {NO_TASK_NAME}"));
        }
        table.finish_with(brokers.queue_options(&self.broker), &mut self.options);
        self
    }

    fn read_worker(&mut self, task: String, mut table: Table<'_>) {
        if !is_task_name(&task) {
            table.wrong_name(&format!("`{task}` is no task name: {NO_TASK_NAME}"));
        }
        let mut worker = WorkerSettings {
            exec: table.take("exec", value::command),
            priority: table.take("priority", value::priority),
            delay: table.take("delay", value::delay),
            ttr: table.take("ttr", value::ttr),
            policy: self.policy.clone(),
            elsewhere: false,
        };
        read_policy(&mut table, &mut worker.policy);
        if table.take("elsewhere", value::boolean) == Some(true) {
            if worker.exec.is_some() {
                table.problem("elsewhere", "a worker with `exec` lives here; remove one of the two");
            }
            worker.elsewhere = true;
            self.elsewhere.push(task.clone());
        }
        table.finish();
        self.workers.insert(task, worker);
    }
}

/// More slots than any machine has use for; a typo rather than a wish.
pub(super) const MOST_SLOTS: usize = 65_536;

pub(super) const NO_TASK_NAME: &str = "it has at least one character that is no blank, and no control characters";

pub(super) fn is_task_name(name: &str) -> bool {
    !name.trim().is_empty() && !name.chars().any(char::is_control)
}

fn read_policy(table: &mut Table<'_>, policy: &mut Policy) {
    let lease = &[("auto", Lease::Auto), ("manual", Lease::Manual)];
    policy.max_attempts = table.take("max_attempts", |v| value::small(v, 1..=u32::MAX)).unwrap_or(policy.max_attempts);
    policy.max_crashes = table.take("max_crashes", |v| value::small(v, 1..=u32::MAX)).unwrap_or(policy.max_crashes);
    policy.lease = table.take("lease", |v| value::choice(v, lease)).unwrap_or(policy.lease);
    policy.time_limit = table.take("time_limit", value::time_limit).unwrap_or(policy.time_limit);
    let notify = table.take("notify_after", |v| value::optional(v, |v| value::small(v, 1..=u32::MAX)));
    policy.notify_after = notify.unwrap_or(policy.notify_after);
    policy.unknown_for = table.take("unknown_for", value::duration).unwrap_or(policy.unknown_for);
    if let Some(mut table) = table.table("backoff") {
        let backoff = &mut policy.backoff;
        *backoff = Backoff {
            first: table.take("first", value::duration).unwrap_or(backoff.first),
            factor: table.take("factor", |v| value::fraction(v, 1.0..=1000.0)).unwrap_or(backoff.factor),
            max: table.take("max", value::delay).unwrap_or(backoff.max),
            jitter: table.take("jitter", |v| value::fraction(v, 0.0..=1.0)).unwrap_or(backoff.jitter),
        };
        table.finish();
    }
}

/// One line of `[routes]`: tasks whose name fits the pattern go to the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// A task name, in which `*` stands for any characters, or none.
    pub pattern: String,
    /// Where they go.
    pub queue: QueueName,
}

impl Route {
    /// Whether a task name fits.
    pub fn matches(&self, task: &str) -> bool {
        fits(&self.pattern, task)
    }

    /// How much of the pattern is spelt out: the more, the earlier it is tried. Without `*` it comes before all.
    pub(super) fn rank(&self) -> (bool, usize) {
        (!self.pattern.contains('*'), self.pattern.len() - self.pattern.matches('*').count())
    }

    pub(super) fn read(pattern: String, queue: &str) -> Result<Self> {
        Ok(Self { pattern, queue: QueueName::new(queue)? })
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(head) else { return false };
    let cuts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    tail.is_empty() || cuts.into_iter().any(|at| fits(tail, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, task, wanted) in [
            ("mail.*", "mail.out", true),
            ("mail.*", "mail", false),
            ("*", "", true),
            ("*.pdf.*", "a.pdf.b", true),
            ("*é", "caffé", true),
            ("render", "render2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
        ] {
            assert_eq!(fits(pattern, task), wanted, "{pattern} {task}");
        }
    }
}
