//! The same thousand tasks, of mixed priorities, delays, retries and holds, come to the same on every broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyqueue::core::{Order, State, Which, Wire};
use anyqueue::{NewTask, Outcome, Queue, QueueName, Queues, Runner, Settings, Task};

use crate::place::{PATIENCE, broker};

const TASKS: u64 = 1000;
/// Levels that are distinct on every broker.
const LEVELS: [u32; 3] = [100, 600, 2000];
const SHORT: Duration = Duration::from_millis(10);

/// What a worker saw of an attempt, and what it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    number: u32,
    priority: u32,
    ttr: Duration,
    store: String,
    answer: String,
}

/// All that became of the tasks, by their number.
#[derive(Debug, Default)]
struct Ledger {
    attempts: BTreeMap<u64, Vec<Attempt>>,
    /// In which order tasks were first seen.
    order: Vec<u64>,
    /// Tasks that need no further attempt, unless somebody kicks them.
    ended: BTreeSet<u64>,
    kicked: bool,
}

fn level(n: u64) -> u32 {
    LEVELS[(n % 3) as usize]
}

fn delay(n: u64) -> Duration {
    match n {
        n if n % 7 == 0 => Duration::from_secs(1),
        n if n % 11 == 0 => Duration::from_secs(2),
        _ => Duration::ZERO,
    }
}

/// What the worker answers: by the task and how often it has seen it. Whether that is the end of it.
fn answer(n: u64, seen: usize, kicked: bool) -> (Outcome, bool) {
    match (n % 10, seen) {
        _ if kicked => (Outcome::done(), true),
        (0, _) => (Outcome::hold(format!("{n} is for a human")), true),
        (1, 0) => (Outcome::failed("no luck"), false),
        (2, 0 | 1) => (Outcome::retry_in(SHORT), false),
        (3, 0 | 1) => (Outcome::snooze(SHORT), false),
        (4, _) => (Outcome::permanent("hopeless"), true),
        (5, _) => (Outcome::discard("nobody wants it"), true),
        (6, seen) => (Outcome::failed("never any luck"), seen == 2),
        _ => (Outcome::done(), true),
    }
}

async fn queues(url: &str, queue: &str) -> Queues {
    let backoff = "backoff = { first = \"10ms\", factor = 1, jitter = 0 }";
    let text = format!("[brokers.default]\nurl = {url:?}\n[queues.{queue}]\nmax_attempts = 3\nttr = \"30s\"\n{backoff}\n");
    Queues::connect(Settings::builder().text("queue.toml", text).environment([]).load().unwrap()).await.unwrap()
}

/// Works until every task has ended.
async fn work(queues: &Queues, queue: &str, ledger: &Arc<Mutex<Ledger>>) {
    let noted = ledger.clone();
    let handler = Queue::new(queue, ()).worker("play", move |_, task: Task<u64>| {
        let mut ledger = noted.lock().unwrap();
        let n = task.data;
        let attempts = ledger.attempts.get(&n).map_or(0, Vec::len);
        let (outcome, ends) = answer(n, attempts, ledger.kicked);
        if attempts == 0 {
            ledger.order.push(n);
        }
        let (priority, ttr, store) = (task.priority(), task.ttr(), task.store().to_owned());
        let attempt = Attempt { number: task.attempt(), priority, ttr, store, answer: outcome.to_string() };
        ledger.attempts.entry(n).or_default().push(attempt);
        if ends {
            ledger.ended.insert(n);
        }
        async move { outcome }
    });
    let runner = Runner::new(queues.clone()).queue(handler).slots(1);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    let ended = async {
        while ledger.lock().unwrap().ended.len() < TASKS as usize {
            tokio::time::sleep(SHORT).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, ended).await;
    handle.stop();
    run.await.unwrap().unwrap();
    assert!(in_time.is_ok(), "{} of {TASKS} tasks have ended", ledger.lock().unwrap().ended.len());
}

/// Number and reason of each held task.
async fn held(queues: &Queues, queue: &QueueName) -> BTreeMap<u64, (String, u32)> {
    let broker = queues.broker(queue).await.unwrap();
    let (mut held, mut after) = (BTreeMap::new(), None);
    loop {
        let page = broker.admin().held(queue, after.as_deref(), 100).await.unwrap();
        for task in page.tasks {
            let wire = Wire::read(&task.raw).unwrap();
            let note = wire.held.clone().unwrap();
            let n = serde_json::from_slice(wire.data.bytes()).unwrap();
            held.insert(n, (note.reason, note.failed));
        }
        after = page.next;
        if after.is_none() {
            return held;
        }
    }
}

/// What every task went through, what was held, in which order they first came.
struct Played {
    attempts: BTreeMap<u64, Vec<Attempt>>,
    held: BTreeMap<u64, (String, u32)>,
    order: Vec<u64>,
    is_fifo: bool,
}

/// Plays the script on a broker.
async fn play(url: &str) -> Played {
    let queue = format!("same{}", std::process::id());
    let (queues, name) = (queues(url, &queue).await, QueueName::new(&queue).unwrap());
    let sender = queues.queue(&queue).unwrap();
    let task = |n: u64| {
        let task = NewTask::new("play", &n).priority(level(n)).delay(delay(n)).store(["", "nl", "de"][(n % 5 % 3) as usize]);
        task.ttr(Duration::from_secs(20 + n % 4))
    };
    for answer in sender.send_all((0..TASKS).map(task).collect()).await {
        answer.unwrap();
    }
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    work(&queues, &queue, &ledger).await;

    let held = held(&queues, &name).await;
    let broker = queues.broker(&name).await.unwrap();
    assert_eq!(broker.admin().kick(&name, &Which::All).await.unwrap(), held.len() as u64);
    {
        let mut ledger = ledger.lock().unwrap();
        ledger.kicked = true;
        ledger.ended.retain(|n| !held.contains_key(n));
    }
    work(&queues, &queue, &ledger).await;
    assert!(self::held(&queues, &name).await.is_empty(), "all are done");
    assert!(broker.admin().peek(&name, State::Ready, 10).await.unwrap().is_empty(), "all are done");
    let is_fifo = broker.capabilities(&name).order == Order::Fifo;
    queues.close().await.unwrap();
    let ledger = std::mem::take(&mut *ledger.lock().unwrap());
    Played { attempts: ledger.attempts, held, order: ledger.order, is_fifo }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tasks_come_to_the_same_as_in_memory() {
    let memory = play("memory:").await;
    assert_eq!((memory.attempts.len(), memory.held.len()), (TASKS as usize, 300));
    let folder = tempfile::tempdir().unwrap();
    let url = broker().unwrap_or_else(|| format!("sqlite:{}", folder.path().join("queue.db").display()));
    let there = play(&url).await;

    assert_eq!(there.held, memory.held);
    for (n, seen) in &memory.attempts {
        assert_eq!(there.attempts.get(n), Some(seen), "task {n}");
    }
    // Nothing had to wait when the worker came: the more urgent ones were first, and within a level those sent earlier
    // where the broker says so.
    let at_once: Vec<(u32, u64)> = there.order.iter().filter(|n| delay(**n).is_zero()).map(|n| (level(*n), *n)).collect();
    assert!(at_once.is_sorted_by_key(|(level, _)| *level), "{at_once:?}");
    assert!(!there.is_fifo || at_once.is_sorted(), "{at_once:?}");
}
