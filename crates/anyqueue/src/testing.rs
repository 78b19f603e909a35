//! Help for users' tests: a memory broker on a clock that the test moves, draining, assertions, single runs.
//!
//! ```
//! use std::time::Duration;
//! use anyqueue::{Outcome, Queue, Task, NewTask, testing};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! let mail = || Queue::new("mail", ()).worker("welcome", |_, task: Task<String>| async move {
//!     match task.attempt() {
//!         1 => Outcome::retry_in(Duration::from_secs(3600)),
//!         _ => Outcome::done(),
//!     }
//! });
//! let queues = testing::queues(["mail"]).await;
//! queues.queue("mail").unwrap().send(NewTask::new("welcome", "ann")).await.unwrap();
//! testing::assert_sent(&queues, "mail", serde_json::json!({"task": "welcome", "data": "ann"}), Duration::ZERO).await;
//!
//! // The hour passes in no time, on the paused clock.
//! let finished = testing::drain(&queues, [mail().into()]).await.unwrap();
//! assert_eq!((finished.done, finished.retried), (1, 1));
//! # });
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyqueue_core::{Bytes, ErrorKind, Incoming, QueueName, Result, State};
use serde::Serialize;
use serde_json::{Value, json};

pub use crate::clock::TestClock;
use crate::inline::{self, Recorder};
use crate::policy::Policy;
use crate::queue::Queue;
use crate::queues::Queues;
use crate::runner::{self, Progress, Ran, Runner, Verdict};
use crate::settings::Settings;
use crate::task::NewTask;

/// Queues on a memory broker of their own, on the clock of the runtime: pause it, and time passes only when nothing
/// else is left to do.
///
/// # Panics
/// If a name is not a queue name.
pub async fn queues<'a>(names: impl IntoIterator<Item = &'a str>) -> Queues {
    let tables: String = names.into_iter().map(|name| format!("[queues.\"{name}\"]\n")).collect();
    let text = format!("[brokers.default]\nurl = \"memory:\"\n{tables}");
    let settings = Settings::builder().text("test", &text).environment([]).load().expect("the names are queue names");
    Queues::builder(settings).clock(TestClock::start()).connect().await.expect("a memory broker is always there")
}

/// Works until nothing is ready or delayed any more; delays pass on the runtime's clock.
///
/// # Errors
/// As [`Runner::run`].
pub async fn drain(queues: &Queues, handlers: impl IntoIterator<Item = Queue>) -> Result<Progress> {
    let handlers: Vec<Queue> = handlers.into_iter().collect();
    let names: Vec<QueueName> = handlers.iter().map(|queue| QueueName::new(queue.name())).collect::<Result<_>>()?;
    let runner = handlers.into_iter().fold(Runner::new(queues.clone()), Runner::queue);
    let handle = runner.handle();
    let watcher = {
        let (queues, handle) = (queues.clone(), handle.clone());
        async move {
            loop {
                let mut open = handle.progress().running + handle.progress().buffered;
                for name in &names {
                    if let Ok(stats) = queues.broker(name).await?.admin().stats(name).await {
                        open += [stats.ready, stats.delayed, stats.reserved]
                            .into_iter()
                            .filter_map(|figure| figure.value())
                            .sum::<u64>();
                    }
                }
                if open == 0 {
                    handle.stop();
                    return Ok::<_, anyqueue_core::Error>(());
                }
                let clock = queues.clock();
                clock.sleep_until(clock.now() + Duration::from_millis(100)).await;
            }
        }
    };
    let run = runner.run();
    tokio::pin!(run, watcher);
    tokio::select! {
        finished = &mut run => return Ok(finished?.progress),
        watched = &mut watcher => watched?,
    }
    Ok(run.await?.progress)
}

/// Everything that a queue holds, as JSON: `state`, `task`, `store`, `data`, `id`, `priority`, `ttr`, `failed`, `headers`, `held`.
/// What a broker shows to nobody, delayed tasks on some and reserved ones, is left out; the memory broker shows all.
///
/// # Errors
/// For an unknown queue, or if the broker cannot be reached.
pub async fn all_sent(queues: &Queues, queue: &str) -> Result<Vec<Value>> {
    let settings = queues.settings().queue(queue)?;
    let broker = queues.broker(&settings.name).await?;
    let mut all = Vec::new();
    for state in State::ALL {
        let looked = match broker.admin().peek(&settings.name, state, usize::MAX).await {
            Err(e) if e.kind() == ErrorKind::Unsupported && matches!(state, State::Delayed | State::Reserved) => continue,
            looked => looked?,
        };
        for peeked in looked {
            let task = Incoming::peeked(&peeked, &settings.broker, queue, anyqueue_core::Defaults::default());
            let data =
                serde_json::from_slice(task.wire.data.bytes()).unwrap_or_else(|_| json!({"bytes": &task.wire.data.bytes()[..]}));
            let headers: serde_json::Map<_, _> = task.wire.headers.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            all.push(json!({
                "state": state, "task": task.wire.task, "store": task.wire.store, "data": data, "id": task.id, "priority": task.priority,
                "ttr": task.ttr.as_secs_f64(), "failed": task.wire.failed, "headers": headers, "held": task.wire.held,
            }));
        }
    }
    Ok(all)
}

/// Asserts that a task like this is on the queue, or comes within a time. An object matches one that has at least its keys.
///
/// # Panics
/// If there is none, showing what is there.
pub async fn assert_sent(queues: &Queues, queue: &str, like: Value, within: Duration) {
    let give_up = queues.clock().now() + within;
    loop {
        let all = all_sent(queues, queue).await.expect("the queue can be looked at");
        if all.iter().any(|task| matches(task, &like)) {
            return;
        }
        let now = queues.clock().now();
        assert!(now < give_up, "no task like {like} in queue `{queue}`; there is: {all:#?}");
        queues.clock().sleep_until(now + Duration::from_millis(10)).await;
    }
}

/// Asserts that no task like this is on the queue now.
///
/// # Panics
/// If there is one.
pub async fn refute_sent(queues: &Queues, queue: &str, unlike: Value) {
    let all = all_sent(queues, queue).await.expect("the queue can be looked at");
    assert!(!all.iter().any(|task| matches(task, &unlike)), "there is a task like {unlike} in queue `{queue}`: {all:#?}");
}

fn matches(task: &Value, like: &Value) -> bool {
    match (task, like) {
        (Value::Object(task), Value::Object(like)) => {
            like.iter().all(|(key, value)| task.get(key).is_some_and(|own| matches(own, value)))
        }
        (Value::Number(task), Value::Number(like)) => task.as_f64() == like.as_f64(),
        _ => task == like,
    }
}

/// What a single run of a worker asked for.
#[derive(Debug)]
#[non_exhaustive]
pub struct Performed {
    /// What would become of the task under the default policy, without jitter.
    pub verdict: Verdict,
    /// How often the worker touched it.
    pub touches: u64,
    /// What it saved to go on from.
    pub checkpoint: Option<Value>,
    /// Whether it asked the runner to stop.
    pub stop: bool,
}

/// Runs one worker on one task, without broker and without runner, and says what it asked for.
///
/// # Panics
/// If the handler has no such worker, or the data cannot be JSON.
pub async fn perform<T: Serialize + ?Sized>(handler: impl Into<Queue>, worker: &str, data: &T) -> Performed {
    let handler = handler.into();
    let task = NewTask::new(worker, data);
    assert!(task.error.is_none(), "{:?}", task.error);
    let known: Vec<&str> = handler.workers().collect();
    let found = handler.workers.get(worker);
    let worker = found.unwrap_or_else(|| panic!("no worker `{worker}`; {}", anyqueue_core::suggest(worker, known)));
    let name = QueueName::new(handler.name()).expect("the handler's name is a queue name");
    let (recorder, clock) = (Arc::new(Recorder::default()), Arc::new(TestClock::start()));
    let attempt = inline::attempt(&name, task.wire.write(), anyqueue_core::time::DEFAULT_TTR, recorder.clone(), clock.clone());
    let policy = Policy { backoff: crate::Backoff { jitter: 0.0, ..Default::default() }, ..Policy::default() };
    let now = anyqueue_core::Clock::wall(&*clock);
    let (decision, stop) = match runner::run_attempt(&attempt, &**worker).await {
        Ran::Returned(outcome) => {
            let stop = outcome.stop;
            (runner::returned(outcome, &attempt.with_checkpoint(), &policy, now), stop)
        }
        Ran::Undecodable(why) => (runner::undecodable(&why, &attempt.incoming, now), false),
        Ran::Cancelled(reason, _) => {
            (runner::cancelled(reason, &attempt.incoming, &policy, policy.time_limit.on(None), now), false)
        }
    };
    let saved: Option<Bytes> = attempt.with_checkpoint().wire.checkpoint.clone();
    let checkpoint = saved.and_then(|json| serde_json::from_slice(&json).ok());
    Performed { verdict: decision.verdict, touches: recorder.touches.load(Ordering::Relaxed), checkpoint, stop }
}
