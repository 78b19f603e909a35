//! The runner with real threads and real time: blocking handlers, stopping, strategies, shares, hooks, child processes.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]
#![cfg(feature = "memory")]

mod support;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyqueue::testing::all_sent;
use anyqueue::{Hooks, NewTask, Outcome, Queue, Queues, Runner, Settings, Task, Verdict, Watch, Why};
use anyqueue_core::{DeliveryFilter, QueueName, TaskId, async_trait};
use support::{as_long_as, queues, send};
use tokio::sync::Semaphore;

#[test]
fn handlers_that_block_every_thread_lose_no_lease() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let queues = queues("[queues.q]\nttr = 1\n").await;
        let runs = Arc::new(AtomicU32::new(0));
        let count = runs.clone();
        let handler = Queue::new("q", ()).worker("w", move |_, _: Task<u32>| {
            count.fetch_add(1, Ordering::SeqCst);
            // Three times the TTR, without a single await: both threads of the runtime are stuck meanwhile.
            std::thread::sleep(Duration::from_secs(3));
            async {}
        });
        for n in 0..2 {
            send(&queues, "q", NewTask::new("w", &n)).await;
        }
        let run = tokio::spawn(Runner::new(queues).queue(handler).slots(2).drain().run());
        let finished = run.await.unwrap().unwrap();
        assert_eq!((runs.load(Ordering::SeqCst), finished.progress.done, finished.progress.late), (2, 2, 0));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synchronous_workers_leave_the_others_free_and_see_that_they_are_cancelled() {
    let queues = queues("[queues.q]\n[queues.q.workers.slow]\ntime_limit = \"300ms\"\nmax_attempts = 1\n").await;
    let (saw, quick) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (seen, counted) = (saw.clone(), quick.clone());
    let handler = Queue::new("q", ())
        .worker_blocking("slow", move |_, task: Task<u32>| {
            while !task.is_cancelled() {
                std::thread::sleep(Duration::from_millis(5));
            }
            seen.fetch_add(1, Ordering::SeqCst);
        })
        .worker("quick", move |_, _: Task<u32>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async {}
        });
    for n in 0..4 {
        send(&queues, "q", NewTask::new("slow", &n)).await;
    }
    send(&queues, "q", NewTask::new("quick", &0)).await;
    let started = Instant::now();
    let finished = Runner::new(queues).queue(handler).slots(5).drain().run().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "the keeper slept over the time limit: {:?}", started.elapsed());
    assert_eq!((saw.load(Ordering::SeqCst), quick.load(Ordering::SeqCst)), (4, 1));
    assert_eq!((finished.progress.held, finished.progress.done), (4, 1));
}

/// Workers that wait for a gate, and note that they run.
fn gated(name: &str, gate: &Arc<Semaphore>, running: &Arc<Semaphore>) -> Queue {
    let (gate, running) = (gate.clone(), running.clone());
    let queue = Queue::new(name, ()).worker("w", move |_, _: Task<u32>| {
        let (gate, running) = (gate.clone(), running.clone());
        async move {
            running.add_permits(1);
            gate.acquire().await.unwrap().forget();
        }
    });
    queue.into()
}

#[tokio::test]
async fn stopping_lets_running_handlers_finish_and_leaves_the_rest() {
    let queues = queues("[queues.q]\n").await;
    for n in 0..10 {
        send(&queues, "q", NewTask::new("w", &n)).await;
    }
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let runner = Runner::new(queues.clone()).queue(gated("q", &gate, &running)).slots(3);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    running.acquire_many(3).await.unwrap().forget();
    handle.stop();
    gate.add_permits(3);
    let finished = run.await.unwrap().unwrap();
    assert_eq!((finished.why, finished.progress.done, finished.cut_short), (Why::Asked, 3, 0));
    let left = all_sent(&queues, "q").await.unwrap();
    assert_eq!(left.iter().filter(|task| task["state"] == "ready" && task["failed"] == 0).count(), 7);
}

#[tokio::test]
async fn when_the_grace_is_over_handlers_are_cut_short_and_their_tasks_given_back_uncounted() {
    let queues = queues("[queues.q]\n").await;
    send(&queues, "q", NewTask::new("w", &1)).await;
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let runner = Runner::new(queues.clone()).queue(gated("q", &gate, &running)).grace(Duration::from_millis(50));
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    running.acquire().await.unwrap().forget();
    handle.stop();
    let finished = run.await.unwrap().unwrap();
    assert_eq!((finished.cut_short, finished.exit_code(), finished.progress.released), (1, 3, 1));
    let left = all_sent(&queues, "q").await.unwrap();
    assert_eq!((left.len(), &left[0]["state"], &left[0]["failed"]), (1, &"ready".into(), &0.into()));
}

#[tokio::test]
async fn hurrying_skips_the_grace() {
    let queues = queues("[queues.q]\n").await;
    send(&queues, "q", NewTask::new("w", &1)).await;
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let runner = Runner::new(queues).queue(gated("q", &gate, &running)).grace(Duration::from_secs(600));
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    running.acquire().await.unwrap().forget();
    handle.hurry();
    handle.hurry();
    assert_eq!(run.await.unwrap().unwrap().cut_short, 1);
}

#[tokio::test]
async fn a_paused_runner_starts_nothing_until_it_is_resumed() {
    let queues = queues("[queues.q]\n").await;
    let (gate, running) = (Arc::new(Semaphore::new(100)), Arc::new(Semaphore::new(0)));
    let runner = Runner::new(queues.clone()).queue(gated("q", &gate, &running));
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    send(&queues, "q", NewTask::new("w", &1)).await;
    running.acquire().await.unwrap().forget();
    handle.pause();
    send(&queues, "q", NewTask::new("w", &2)).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(200), running.acquire()).await.is_err(),
        "a task started during the pause"
    );
    handle.resume();
    running.acquire().await.unwrap().forget();
    handle.stop();
    assert_eq!(run.await.unwrap().unwrap().progress.done, 2);
}

#[tokio::test]
async fn a_queue_keeps_to_its_share_of_the_slots() {
    let queues = queues("[queues.a]\nslots = 2\n[queues.b]\n").await;
    for n in 0..10 {
        send(&queues, "a", NewTask::new("w", &n)).await;
        send(&queues, "b", NewTask::new("w", &n)).await;
    }
    let (gate, a, b) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let runner = Runner::new(queues).queue(gated("a", &gate, &a)).queue(gated("b", &gate, &b)).slots(6);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    let _four = b.acquire_many(4).await.unwrap();
    let _two = a.acquire_many(2).await.unwrap();
    assert_eq!((handle.progress().running, a.available_permits(), b.available_permits()), (6, 0, 0));
    handle.stop();
    gate.add_permits(100);
    run.await.unwrap().unwrap();
}

/// In which order two queues of 300 tasks each are worked by one slot.
async fn order(strategy: &str) -> String {
    let text = format!("[queues.a]\nweight = 1\n[queues.b]\nweight = 5\n[runner]\nstrategy = \"{strategy}\"\nslots = 1\n");
    let queues = queues(&text).await;
    for n in 0..300 {
        send(&queues, "a", NewTask::new("w", &n)).await;
        send(&queues, "b", NewTask::new("w", &n)).await;
    }
    let order = Arc::new(Mutex::new(String::new()));
    let noting = |name: &'static str| {
        let order = order.clone();
        Queue::new(name, ()).worker("w", move |_, _: Task<u32>| {
            order.lock().unwrap().push_str(name);
            tokio::time::sleep(Duration::from_millis(1))
        })
    };
    let finished = Runner::new(queues).queue(noting("a")).queue(noting("b")).drain().run().await.unwrap();
    assert_eq!(finished.progress.done, 600);
    std::mem::take(&mut *order.lock().unwrap())
}

#[tokio::test]
async fn the_strategy_chooses_which_queue_gets_a_freed_slot() {
    let share_of_b = |order: &str| order[100..250].matches('b').count();
    let fair = order("fair").await;
    assert!((115..=135).contains(&share_of_b(&fair)), "{fair}");
    assert!(!fair[100..250].contains("aa") && !fair[100..250].contains("bbbbbbb"), "the shares are spread evenly: {fair}");
    let weighted = order("weighted").await;
    assert!((105..=145).contains(&share_of_b(&weighted)), "{weighted}");
    let strict = order("strict").await;
    assert!(share_of_b(&strict) >= 145, "{strict}");
}

#[tokio::test]
async fn a_worker_takes_only_the_priorities_it_is_told_to() {
    let queues = queues("[queues.q]\n").await;
    for priority in [5, 10, 20, 30, 40, 50] {
        send(&queues, "q", NewTask::new("w", &priority).priority(priority)).await;
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let handler = Queue::new("q", ()).worker("w", move |_, task: Task<u32>| {
        noted.lock().unwrap().push(task.data);
        async {}
    });
    Runner::new(queues).queue(handler).slots(1).priorities("20-40".parse().unwrap()).drain().run().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [20, 30, 40]);
}

#[tokio::test]
async fn hooks_are_told_everything_and_change_nothing() {
    let queues = queues("[queues.q]\nmax_attempts = 3\nnotify_after = 2\nbackoff = { first = \"1ms\", factor = 1 }\n").await;
    let log = Arc::new(Mutex::new(Vec::new()));
    let note = |text: String| log.lock().unwrap().push(text);
    let [a, b, c, d, e] = std::array::from_fn(|_| {
        let log = log.clone();
        move |text: String| log.lock().unwrap().push(text)
    });
    let hooks = Hooks::new()
        .before_attempt(move |info| {
            a(format!("before {}", info.attempt));
            panic!("a hook that panics changes nothing");
        })
        .after_attempt(move |info, verdict, took| {
            b(format!("after {} {} {}", info.attempt, matches!(verdict, Verdict::Held(_)), took.as_secs()))
        })
        .on_error(move |info, reason| c(format!("error {} {reason}", info.attempt)))
        .on_notice(move |info, failures| d(format!("notice {} {failures}", info.attempt)))
        .on_change(move |info, verdict| e(format!("change {} {}", info.attempt, matches!(verdict, Verdict::Held(_)))));
    let handler = Queue::new("q", ())
        .worker("w", |_, _: Task<u32>| async { Err::<(), _>("no") })
        .worker("parked", |_, _: Task<u32>| async { Outcome::hold("on purpose") });
    send(&queues, "q", NewTask::new("w", &1)).await;
    send(&queues, "q", NewTask::new("parked", &1)).await;
    let runner = Runner::new(queues).queue(handler).hooks(hooks).slots(1);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    as_long_as(|| handle.progress().held < 2).await;
    handle.stop();
    run.await.unwrap().unwrap();
    note("end".into());
    let log = log.lock().unwrap();
    let count = |start: &str| log.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(["before", "after", "error", "notice", "change"].map(count), [4, 4, 3, 1, 4], "{log:?}");
    assert!(log.contains(&"notice 2 2".into()) && log.contains(&"change 3 true".into()), "{log:?}");
}

#[derive(Debug)]
struct Unwanted(TaskId);

#[async_trait]
impl DeliveryFilter for Unwanted {
    async fn wanted(&self, _: &QueueName, ids: &[TaskId]) -> anyqueue::Result<Vec<bool>> {
        Ok(ids.iter().map(|id| *id != self.0).collect())
    }
}

#[tokio::test]
async fn tasks_find_their_queue_by_code_then_by_name_then_by_default() {
    let text = "[brokers.default]\nurl = \"memory:\"\n[queues.default]\n[queues.mail]\n[queues.urgent]\n[routes]\n\"mail.*\" = \"mail\"\n";
    let settings = Settings::builder().text("test", text).environment([]).load().unwrap();
    let route = |task: &NewTask| task.name().ends_with("!").then(|| "urgent".to_owned());
    let queues = Queues::builder(settings).route(route).connect().await.unwrap();
    for (name, queue) in [("mail.welcome!", "urgent"), ("mail.welcome", "mail"), ("other", "default")] {
        queues.send(NewTask::new(name, &1)).await.unwrap();
        assert_eq!(all_sent(&queues, queue).await.unwrap()[0]["task"], name);
    }
}

#[tokio::test]
async fn a_filter_drops_what_is_not_wanted_before_any_worker_sees_it() {
    let queues = queues("[queues.q]\n").await;
    let unwanted = send(&queues, "q", NewTask::new("w", &1)).await;
    let wanted = send(&queues, "q", NewTask::new("w", &2)).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let handler = Queue::new("q", ()).worker("w", move |_, task: Task<u32>| {
        noted.lock().unwrap().push(task.id());
        async {}
    });
    let finished = Runner::new(queues).queue(handler).filter(Arc::new(Unwanted(unwanted))).drain().run().await.unwrap();
    assert_eq!((&*seen.lock().unwrap(), finished.progress.discarded), (&vec![wanted], 1));
}

#[tokio::test]
async fn limits_end_a_runner_cleanly() {
    let queues = queues("[queues.q]\n").await;
    for n in 0..20 {
        send(&queues, "q", NewTask::new("w", &n)).await;
    }
    let handler = || Queue::new("q", ()).worker("w", |_, _: Task<u32>| async {});
    let finished = Runner::new(queues.clone()).queue(handler()).max_tasks(7).run().await.unwrap();
    assert_eq!((finished.progress.started, finished.progress.done, finished.exit_code()), (7, 7, 0));
    let text = "[brokers.default]\nurl = \"memory:\"\n[queues.q]\n[runner]\n";
    for (limit, word) in [
        ("max_time = \"200ms\"", "time limit of 200ms"),
        ("memory_limit = \"1KiB\"", "memory limit"),
        ("max_idle_cycles = 1", "1 idle cycles"),
    ] {
        let settings = Settings::builder().text("test", format!("{text}{limit}\n")).environment([]).load().unwrap();
        let started = Instant::now();
        let finished = Runner::from_settings(settings).queue(handler()).run().await.unwrap();
        assert!(finished.why.to_string().contains(word), "{limit}: {}", finished.why);
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test]
async fn watching_what_nobody_works_is_refused_before_the_first_task() {
    let queues = queues("[queues.q]\n[queues.other]\n").await;
    let handler = || Queue::new("q", ()).worker("w", |_, _: Task<u32>| async {});
    let refused = |names: &[&str]| {
        let watch = Watch::Named(names.iter().map(|name| (*name).to_owned()).collect());
        let runner = Runner::new(queues.clone()).queue(handler()).watch(watch);
        async { runner.run().await.unwrap_err().to_string() }
    };
    assert!(refused(&["qq"]).await.contains("did you mean `q`?"));
    assert!(refused(&["other"]).await.starts_with("queue `other` has no worker in this process"));

    assert!(refused(&["q", "other"]).await.ends_with("those that have one: `q`"));

    let both = || Queue::new("other", ()).worker("w", |_, _: Task<u32>| async {});
    let twice = Watch::Named(["q", "other", "q"].map(str::to_owned).into());
    Runner::new(queues.clone()).queue(handler()).queue(both()).watch(twice).drain().run().await.unwrap();
}

#[tokio::test]
async fn a_task_sent_by_a_worker_continues_its_trace() {
    let queues = queues("[queues.q]\n").await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let sender = queues.queue("q").unwrap();
    let handler = Queue::new("q", ()).worker("w", move |_, task: Task<u32>| {
        let sender = sender.clone();
        async move {
            if task.data == 1 {
                tokio::task::yield_now().await;
                sender.send(NewTask::new("w", &2).delay(Duration::from_secs(60))).await?;
            }
            Ok::<_, anyqueue::Error>(())
        }
    });
    send(&queues, "q", NewTask::new("w", &1).header("traceparent", parent)).await;
    Runner::new(queues.clone()).queue(handler).drain().run().await.unwrap();
    let left = all_sent(&queues, "q").await.unwrap();
    let child = left[0]["headers"]["traceparent"].as_str().unwrap();
    assert!(child.starts_with(&parent[..36]) && child != parent, "{child}");
}

#[tokio::test]
async fn many_senders_and_workers_lose_and_double_nothing() {
    let queues = queues("[queues.q]\n").await;
    let seen: Arc<Vec<AtomicUsize>> = Arc::new((0..5000).map(|_| AtomicUsize::new(0)).collect());
    let counted = seen.clone();
    let handler = Queue::new("q", ()).worker("w", move |_, task: Task<usize>| {
        counted[task.data].fetch_add(1, Ordering::SeqCst);
        async move {
            if task.data.is_multiple_of(7) && task.attempt() == 1 { Outcome::retry_in(Duration::ZERO) } else { Outcome::done() }
        }
    });
    let runner = Runner::new(queues.clone()).queue(handler).slots(16);
    let handle = runner.handle();
    let run = tokio::spawn(runner.run());
    let sends = (0..50).map(|part| {
        let queues = queues.clone();
        tokio::spawn(async move {
            for n in 0..100 {
                send(&queues, "q", NewTask::new("w", &(part * 100 + n))).await;
            }
        })
    });
    for sending in sends.collect::<Vec<_>>() {
        sending.await.unwrap();
    }
    as_long_as(|| handle.progress().done < 5000).await;
    handle.stop();
    assert_eq!(run.await.unwrap().unwrap().unstored, 0);
    for (n, count) in seen.iter().enumerate() {
        assert_eq!(count.load(Ordering::SeqCst), if n.is_multiple_of(7) { 2 } else { 1 }, "task {n}");
    }
}
