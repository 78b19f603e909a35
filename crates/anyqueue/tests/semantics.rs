//! What a worker's outcome does to its task, on the memory broker with a clock that stands still until nothing is left to do.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]
#![cfg(feature = "memory")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyqueue::testing::{all_sent, assert_sent, drain, perform, queues, refute_sent};
use anyqueue::{NewTask, Outcome, Permanent, Queue, QueueName, Queues, Runner, Task, Verdict};
use anyqueue_core::{State, Which};
use serde_json::{Value, json};

/// A handler whose worker `w` does what its data says, and notes when it ran.
#[derive(Default)]
struct Scripted {
    runs: Mutex<Vec<(u32, Duration)>>,
}

fn scripted(queues: &Queues) -> (Arc<Mutex<Vec<Duration>>>, Queue) {
    let runs = Arc::new(Mutex::new(Vec::new()));
    let (noted, clock) = (runs.clone(), queues.clock().clone());
    let queue = Queue::new("q", Scripted::default()).worker("w", move |state, task: Task<Value>| {
        noted.lock().unwrap().push(clock.now().elapsed_since_origin());
        state.runs.lock().unwrap().push((task.attempt(), task.remaining()));
        async move {
            let seconds = task.data["seconds"].as_f64().unwrap_or_default();
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            match task.data["do"].as_str() {
                Some("retry") => Outcome::retry(),
                Some("snooze") if task.checkpoint::<u32>().is_none() => {
                    task.set_checkpoint(&7).unwrap();
                    Outcome::snooze(Duration::from_secs(100))
                }
                Some("hold") => Outcome::hold("look at this"),
                Some("discard") => Outcome::discard("too old"),
                Some("error") => Outcome::failed("no disk"),
                Some("permanent") => {
                    Err::<(), _>(Permanent::new("no such font")).map_or_else(Outcome::failed, |()| Outcome::done())
                }
                Some("panic") => panic!("kaboom"),
                Some("stop") => Outcome::done().and_stop(),
                _ => Outcome::done(),
            }
        }
    });
    (runs, queue.into())
}

async fn send(queues: &Queues, data: Value) -> anyqueue::TaskId {
    queues.queue("q").unwrap().send(NewTask::new("w", &data).priority(77).store("nl")).await.unwrap().id
}

async fn held(queues: &Queues) -> Vec<Value> {
    all_sent(queues, "q").await.unwrap().into_iter().filter(|task| task["state"] == "held").collect()
}

#[tokio::test(start_paused = true)]
async fn done_and_discard_end_a_task() {
    let queues = queues(["q"]).await;
    send(&queues, json!({})).await;
    send(&queues, json!({"do": "discard"})).await;
    let progress = drain(&queues, [scripted(&queues).1]).await.unwrap();
    assert_eq!((progress.done, progress.discarded, all_sent(&queues, "q").await.unwrap().len()), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failing_task_backs_off_and_is_held_with_its_reason_in_the_end() {
    let queues = queues(["q"]).await;
    let id = send(&queues, json!({"do": "error"})).await;
    let (runs, handler) = scripted(&queues);
    let progress = drain(&queues, [handler]).await.unwrap();
    assert_eq!((progress.retried, progress.held), (7, 1));
    let waits: Vec<f64> = runs.lock().unwrap().windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    for (wait, expected) in waits.iter().zip([1.0, 4.0, 16.0, 64.0, 256.0, 960.0, 960.0]) {
        assert!((expected * 0.9..=expected * 1.1 + 1.0).contains(wait), "waits {waits:?}");
    }
    let held = held(&queues).await;
    assert_eq!(held.len(), 1);
    let task = &held[0];
    assert_eq!((&task["id"], &task["priority"], &task["store"]), (&json!(id), &json!(77), &json!("nl")));
    assert_eq!(task["held"]["reason"], "8 of 8 attempts failed; the last: no disk");
    assert_eq!((&task["held"]["failed"], &task["failed"]), (&json!(8), &json!(0)), "a kick starts the counting anew");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_attempt_and_the_worker_goes_on() {
    let queues = queues(["q"]).await;
    send(&queues, json!({"do": "panic"})).await;
    send(&queues, json!({})).await;
    let progress = drain(&queues, [scripted(&queues).1]).await.unwrap();
    assert_eq!((progress.done, progress.held), (1, 1));
    assert!(held(&queues).await[0]["held"]["reason"].as_str().unwrap().ends_with("the worker panicked: kaboom"));
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_hold_and_undecodable_data_are_held_at_once() {
    let queues = queues(["q"]).await;
    send(&queues, json!({"do": "permanent"})).await;
    send(&queues, json!({"do": "hold"})).await;
    let typed = Queue::new("q", ()).worker("number", |_, _: Task<u32>| async {});
    queues.queue("q").unwrap().send(NewTask::new("number", "not a number")).await.unwrap();
    let mut handler = scripted(&queues).1;
    let progress = drain(&queues, [typed.worker("w", |_, _: Task<Value>| async { Outcome::hold("x") }).into()]).await.unwrap();
    assert_eq!((progress.held, progress.retried), (3, 0));
    let reasons = held(&queues).await;
    assert!(reasons.iter().any(|task| task["held"]["reason"].as_str().unwrap().contains("invalid type: string")), "{reasons:?}");
    // Kicked with a worker that can do it, they run.
    let name = QueueName::new("q").unwrap();
    assert_eq!(queues.broker(&name).await.unwrap().admin().kick(&name, &Which::First(2)).await.unwrap(), 2);
    let progress = drain(&queues, [std::mem::replace(&mut handler, scripted(&queues).1)]).await.unwrap();
    assert_eq!((progress.held, progress.snoozed), (2, 0));
    assert_eq!(held(&queues).await.iter().filter(|task| task["held"]["reason"] == "no such font").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_snooze_counts_nothing_and_keeps_the_checkpoint() {
    let queues = queues(["q"]).await;
    send(&queues, json!({"do": "snooze"})).await;
    let (runs, handler) = scripted(&queues);
    let progress = drain(&queues, [handler]).await.unwrap();
    assert_eq!((progress.snoozed, progress.done, progress.retried), (1, 1, 0));
    let runs = runs.lock().unwrap();
    assert!((runs[1] - runs[0]).as_secs_f64() >= 100.0);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_says_stop_stops_the_runner_before_its_next_task() {
    let queues = queues(["q"]).await;
    send(&queues, json!({"do": "stop"})).await;
    for _ in 0..5 {
        send(&queues, json!({})).await;
    }
    let finished = Runner::new(queues.clone()).queue(scripted(&queues).1).slots(1).run().await.unwrap();
    assert_eq!((finished.why, finished.progress.started, finished.progress.done), (anyqueue::Why::Worker, 1, 1));
    assert_eq!(all_sent(&queues, "q").await.unwrap().iter().filter(|task| task["state"] == "ready").count(), 5);
}

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_for_as_long_as_the_handler_runs() {
    let queues = queues(["q"]).await;
    queues.queue("q").unwrap().send(NewTask::new("w", &json!({"seconds": 600})).ttr(Duration::from_secs(5))).await.unwrap();
    let (runs, handler) = scripted(&queues);
    let progress = drain(&queues, [handler]).await.unwrap();
    assert_eq!((progress.done, runs.lock().unwrap().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_time_limit_ends_an_attempt_that_is_renewed() {
    let queues = queues(["q"]).await;
    send(&queues, json!({"seconds": 100_000})).await;
    let (runs, handler) = scripted(&queues);
    let progress = drain(&queues, [handler]).await.unwrap();
    assert_eq!((progress.held, progress.late, runs.lock().unwrap().len()), (1, 0, 8));
    assert!(held(&queues).await[0]["held"]["reason"].as_str().unwrap().ends_with("longer than its time_limit of 1h"));
}

#[tokio::test(start_paused = true)]
async fn under_manual_leases_an_attempt_ends_with_its_ttr_unless_touched() {
    let text = "[brokers.default]\nurl = \"memory:\"\n[queues.q]\nlease = \"manual\"\nttr = 10\nmax_attempts = 2\n";
    let settings = anyqueue::Settings::builder().text("test", text).environment([]).load().unwrap();
    let queues = Queues::builder(settings).clock(anyqueue::TestClock::start()).connect().await.unwrap();
    let touched = Arc::new(AtomicU32::new(0));
    let count = touched.clone();
    let handler = Queue::new("q", ()).worker("w", move |_, task: Task<bool>| {
        let count = count.clone();
        async move {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(7)).await;
                if task.data {
                    assert!(task.touch().await.unwrap() > Duration::from_secs(9));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    for touches in [true, false] {
        queues.queue("q").unwrap().send(NewTask::new("w", &touches)).await.unwrap();
    }
    let progress = drain(&queues, [handler.into()]).await.unwrap();
    assert_eq!((progress.done, progress.held, touched.load(Ordering::Relaxed)), (1, 1, 5));
    assert!(held(&queues).await[0]["held"]["reason"].as_str().unwrap().contains("the TTR of 10s was over"));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_returns_because_its_time_is_up_has_no_result_of_its_own() {
    let text = "[brokers.default]\nurl = \"memory:\"\n[queues.q]\nlease = \"manual\"\nttr = 10\nmax_attempts = 1\n";
    let settings = anyqueue::Settings::builder().text("test", text).environment([]).load().unwrap();
    let queues = Queues::builder(settings).clock(anyqueue::TestClock::start()).connect().await.unwrap();
    let handler = Queue::new("q", ()).worker("w", |_, task: Task<bool>| async move {
        task.cancelled().await;
        if task.data { Ok(()) } else { Err("somebody stopped me") }
    });
    for fine in [true, false] {
        queues.queue("q").unwrap().send(NewTask::new("w", &fine)).await.unwrap();
    }
    let progress = drain(&queues, [handler.into()]).await.unwrap();
    assert_eq!((progress.done, progress.held), (0, 2));
    for task in held(&queues).await {
        assert!(task["held"]["reason"].as_str().unwrap().contains("the TTR of 10s was over"), "{task}");
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_without_a_worker_wait_uncounted_and_are_held_after_an_hour() {
    let queues = queues(["q"]).await;
    queues.queue("q").unwrap().send(NewTask::new("missing", &1)).await.unwrap();
    let progress = drain(&queues, [scripted(&queues).1]).await.unwrap();
    assert!(progress.snoozed > 50 && progress.held == 1 && progress.retried == 0, "{progress:?}");
    assert_eq!(held(&queues).await[0]["held"]["reason"], "no worker `missing` in queue `q`");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_read_is_held_with_its_bytes() {
    let queues = queues(["q"]).await;
    let mut envelope = queues.prepare("q", NewTask::new("w", &1)).unwrap();
    envelope.body = anyqueue::Bytes::from_static(b"\xff not json");
    let name = QueueName::new("q").unwrap();
    let broker = queues.broker(&name).await.unwrap();
    assert!(broker.send(&name, &[envelope]).await.remove(0).is_ok());
    let progress = drain(&queues, [scripted(&queues).1]).await.unwrap();
    assert_eq!(progress.held, 1);
    let peeked = broker.admin().peek(&name, State::Held, 1).await.unwrap().remove(0);
    let wire = anyqueue_core::Wire::read(&peeked.raw).unwrap();
    assert_eq!(&wire.data.bytes()[..], b"\xff not json");
    assert!(wire.held.unwrap().reason.starts_with("the data cannot be read"));
}

#[tokio::test(start_paused = true)]
async fn a_foreign_ttr_beyond_all_bounds_harms_nobody() {
    let queues = queues(["q"]).await;
    let name = QueueName::new("q").unwrap();
    let broker = queues.broker(&name).await.unwrap();
    for ttr in ["1e19", "0", "1e-9", "4000000"] {
        let mut envelope = queues.prepare("q", NewTask::new("w", &1)).unwrap();
        envelope.body = format!(r#"{{"task":"w","data":{{"do":"retry"}},"ttr":{ttr}}}"#).into();
        assert!(broker.send(&name, &[envelope]).await.remove(0).is_ok());
    }
    let progress = drain(&queues, [scripted(&queues).1]).await.unwrap();
    assert_eq!((progress.held, progress.retried), (4, 28));
}

#[tokio::test(start_paused = true)]
async fn bytes_and_texts_of_every_kind_reach_the_worker() {
    let queues = queues(["q"]).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let handler = Queue::new("q", ()).worker("bytes", move |_, task: Task<Vec<u8>>| {
        noted.lock().unwrap().push(task.data);
        async {}
    });
    let all: Vec<u8> = (0..=255).collect();
    let sender = queues.queue("q").unwrap();
    sender.send(NewTask::binary("bytes", all.clone())).await.unwrap();
    sender.send(NewTask::binary("bytes", Vec::new())).await.unwrap();
    sender.send(NewTask::new("bytes", &[1, 2])).await.unwrap();
    assert!(sender.send(NewTask::json("bytes", "{oops")).await.unwrap_err().to_string().contains("not JSON"));
    assert_eq!(drain(&queues, [handler.into()]).await.unwrap().done, 3);
    assert_eq!(*seen.lock().unwrap(), [all, vec![], vec![1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn the_start_hook_runs_once_before_the_first_task_and_its_error_stops_the_start() {
    let queues = queues(["q"]).await;
    send(&queues, json!({})).await;
    let starts = Arc::new(AtomicU32::new(0));
    let (counted, seen) = (starts.clone(), starts.clone());
    let handler = Queue::new("q", ())
        .on_start(move |_| async move {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::io::Error>(())
        })
        .worker("w", move |_, _: Task<Value>| {
            assert_eq!(seen.load(Ordering::SeqCst), 1);
            async {}
        });
    assert_eq!(drain(&queues, [handler.into()]).await.unwrap().done, 1);
    assert_eq!(starts.load(Ordering::SeqCst), 1);
    let broken = Queue::new("q", ()).on_start(|_| async { Err("no database") }).worker("w", |_, _: Task<Value>| async {});
    let error = Runner::new(queues).queue(broken).run().await.unwrap_err();
    assert_eq!(anyqueue_core::chain(&error), "the start hook failed (queue q): no database");
}

#[tokio::test(start_paused = true)]
async fn a_single_run_says_what_the_worker_asked_for() {
    let handler = || {
        Queue::new("q", ()).worker("w", |_, task: Task<u32>| async move {
            task.touch().await?;
            task.set_checkpoint(&json!({"page": task.data}))?;
            Ok::<_, anyqueue::Error>(Outcome::snooze(Duration::from_secs(task.data.into())))
        })
    };
    let performed = perform(handler(), "w", &30).await;
    assert_eq!((performed.verdict, performed.touches), (Verdict::Snoozed(Duration::from_secs(30)), 1));
    assert_eq!(performed.checkpoint, Some(json!({"page": 30})));
    assert!(matches!(perform(handler(), "w", "text").await.verdict, Verdict::Held(_)));
}

#[tokio::test(start_paused = true)]
async fn assertions_match_partly_and_wait() {
    let queues = queues(["q"]).await;
    let later = queues.clone();
    let sending = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        send(&later, json!({"a": 1, "b": 2})).await
    });
    assert_sent(&queues, "q", json!({"task": "w", "data": {"a": 1}}), Duration::from_secs(10)).await;
    refute_sent(&queues, "q", json!({"data": {"a": 2}})).await;
    sending.await.unwrap();
}

#[tokio::test]
async fn inline_mode_runs_the_worker_inside_send() {
    let settings = anyqueue::Settings::builder()
        .text("test", "[brokers.default]\nurl = \"memory:\"\n[queues.q]\n")
        .environment([])
        .load()
        .unwrap();
    let ran = Arc::new(AtomicU32::new(0));
    let count = ran.clone();
    let handler = Queue::new("q", ()).worker("w", move |_, task: Task<u32>| {
        count.fetch_add(task.data, Ordering::SeqCst);
        async move { if task.data > 5 { Err("too many") } else { Ok(()) } }
    });
    let queues = Queues::builder(settings).inline([handler.into()]).connect().await.unwrap();
    let sender = queues.queue("q").unwrap();
    assert_eq!(&*sender.send(NewTask::new("w", &3)).await.unwrap().via, "inline");
    assert!(sender.send(NewTask::new("w", &6)).await.unwrap_err().to_string().contains("too many"));
    assert!(sender.send(NewTask::new("w", "text")).await.unwrap_err().to_string().contains("invalid type"));
    assert!(sender.send(NewTask::new("v", &1)).await.unwrap_err().to_string().contains("no worker `v`"));
    assert_eq!(ran.load(Ordering::SeqCst), 9);
}
