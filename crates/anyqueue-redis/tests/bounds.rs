//! What a call costs the server and the network, counted: not timed.

#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::time::{Duration, Instant};

use anyqueue_core::{ConsumeOptions, Settlement, State, Which};
use anyqueue_testkit::servers::redis;
use anyqueue_testkit::{Sample, Server};
use shared::{
    SOON, connect, consumer, eventually, operator, queue, reserve, send, send_one, settle_all, somebody_waits, tell, url, work,
};

const NONE: [&str; 0] = [];
const LONG: Duration = Duration::from_secs(3600);

/// Commands that the server has run, those inside scripts included.
async fn commands(server: &dyn Server) -> u64 {
    let text: String = tell(&mut operator(server).await, "INFO commandstats").await;
    let calls = |line: &str| line.split_once("calls=")?.1.split(',').next()?.parse::<u64>().ok();
    let ours = |line: &&str| ["cmdstat_z", "cmdstat_h", "cmdstat_ex", "cmdstat_ev"].iter().any(|start| line.starts_with(start));
    text.lines().filter(ours).filter_map(calls).sum()
}

async fn seconds_in_scripts(server: &dyn Server) -> f64 {
    let text: String = tell(&mut operator(server).await, "INFO commandstats").await;
    let line = text.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
    line.split_once("usec=").unwrap().1.split(',').next().unwrap().parse::<f64>().unwrap() / 1e6
}

#[tokio::test]
async fn a_backlog_of_delayed_and_held_tasks_adds_nothing_to_a_call() {
    let server = redis::start(["--appendonly", "no"]).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("backlog"));
    let mut consumer = consumer(&*broker, &queue).await;
    let settler = consumer.settler();
    let mut costs = Vec::new();
    for round in 0..2u64 {
        if round == 1 {
            for part in 0..60 {
                let delayed: Vec<_> = (0..1000).map(|n| Sample::new(part * 1000 + n).delay(LONG).envelope()).collect();
                send(&*broker, &queue, &delayed).await.unwrap();
            }
            for _ in 0..10 {
                send(&*broker, &queue, &Sample::many(1000)).await.unwrap();
                let got = reserve(&mut *consumer, 1000, SOON).await.unwrap();
                let hold = Settlement::Hold(Sample::new(0).envelope(), "parked".into());
                settle_all(&*settler, &got, hold).await.unwrap();
            }
            let stats = broker.admin().stats(&queue).await.unwrap();
            assert_eq!((stats.delayed.value(), stats.held.value()), (Some(60_000), Some(10_000)));
        }
        let before = commands(&server).await;
        send(&*broker, &queue, &Sample::many(64)).await.unwrap();
        let got = reserve(&mut *consumer, 64, SOON).await.unwrap();
        assert_eq!(got.len(), 64);
        settle_all(&*settler, &got, Settlement::Done).await.unwrap();
        broker.admin().stats(&queue).await.unwrap();
        broker.admin().peek(&queue, State::Delayed, 10).await.unwrap();
        broker.admin().held(&queue, None, 10).await.unwrap();
        costs.push(commands(&server).await - before);
    }
    // One more to find that there are counts, one for those of each listed task.
    assert!(costs[1] <= costs[0] + 60, "commands for the same work: {costs:?}");
    let longest = seconds_in_scripts(&server).await;
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 10_000);
    assert_eq!(broker.admin().purge(&queue, &[State::Delayed, State::Ready]).await.unwrap(), 70_000);
    println!("kick and purge of 80,000 tasks: {:.2} s in scripts", seconds_in_scripts(&server).await - longest);
}

#[tokio::test]
async fn what_is_due_all_at_once_is_made_ready_a_part_at_a_time() {
    let server = redis::start(["--appendonly", "no"]).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("due"));
    let soon = Duration::from_millis(300);
    for part in 0..5 {
        let delayed: Vec<_> = (0..1000).map(|n| Sample::new(part * 1000 + n).delay(soon).envelope()).collect();
        send(&*broker, &queue, &delayed).await.unwrap();
    }
    let mut consumer = consumer(&*broker, &queue).await;
    let due = async || {
        let stats = broker.admin().stats(&queue).await.unwrap();
        let counts = (stats.ready.value(), stats.delayed.value());
        if counts == (Some(5000), Some(0)) { Ok(()) } else { Err(counts) }
    };
    // Tasks that are due count as ready, though nobody has moved them yet.
    eventually(due).await;
    assert_eq!(reserve(&mut *consumer, 1, SOON).await.unwrap().len(), 1);
    let waiting: u64 = tell(&mut operator(&server).await, "ZCARD anyqueue:{due}:delayed").await;
    assert_eq!(waiting, 4500, "one call moves 500");
    assert_eq!(work(&mut *consumer, 4999, SOON).await.len(), 4999);
}

#[tokio::test]
async fn fifty_queues_need_two_connections_and_a_drain_few_round_trips() {
    let server = redis::start(NONE).await.unwrap();
    let broker = connect(&url(&server)).await.unwrap();
    let mut consumers = Vec::new();
    for number in 0..50 {
        consumers.push(consumer(&*broker, &queue(&format!("q{number}"))).await);
    }
    for consumer in consumers.iter_mut() {
        assert!(reserve(&mut **consumer, 1, Duration::from_millis(20)).await.unwrap().is_empty());
    }
    assert_eq!(broker.info().connections, 2, "one for all requests, one to be rung");
    let tasks = Sample::many(1000);
    send(&*broker, &queue("q7"), &tasks).await.unwrap();
    let before = broker.info().round_trips;
    let (consumer, mut left) = (&mut consumers[7], 1000);
    while left > 0 {
        let got = reserve(&mut **consumer, 64, SOON).await.unwrap();
        settle_all(&*consumer.settler(), &got, Settlement::Done).await.unwrap();
        left -= got.len();
    }
    let used = broker.info().round_trips - before;
    assert!(used <= 40, "{used} round trips for 1000 tasks in batches of 64");
}

#[tokio::test]
async fn who_wants_urgent_tasks_only_is_not_kept_busy_by_the_others() {
    let server = redis::start(["--appendonly", "no"]).await.unwrap();
    let (broker, producer) = (connect(&url(&server)).await.unwrap(), connect(&url(&server)).await.unwrap());
    let queue = queue("urgent");
    let options = ConsumeOptions { priorities: 0..=100, ..ConsumeOptions::default() };
    let mut urgent = broker.consume(&queue, options).await.unwrap();
    let waiting = tokio::spawn(async move { reserve(&mut *urgent, 1, SOON * 3).await });
    somebody_waits(&server, &queue).await;
    let (before, began) = (broker.info().round_trips, Instant::now());
    for number in 0..2000 {
        send_one(&*producer, &queue, number).await.unwrap();
    }
    let (looks, limit) = (broker.info().round_trips - before, 100 + began.elapsed().as_millis() as u64 / 15);
    assert!(looks <= limit, "{looks} looks in {:?}", began.elapsed());
    send(&*producer, &queue, &[Sample::new(1).priority(7).envelope()]).await.unwrap();
    let sent = Instant::now();
    assert_eq!(waiting.await.unwrap().unwrap().len(), 1);
    assert!(sent.elapsed() < Duration::from_secs(2), "after {:?}", sent.elapsed());
}

#[tokio::test]
async fn a_large_task_does_not_come_with_all_its_neighbours() {
    let server = redis::start(["--appendonly", "no"]).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("large"));
    let data = anyqueue_core::Data::json(&"x".repeat(1 << 20)).unwrap();
    for number in 0..40 {
        send(&*broker, &queue, &[Sample::new(number).data(data.clone()).envelope()]).await.unwrap();
    }
    let mut consumer = consumer(&*broker, &queue).await;
    let got = reserve(&mut *consumer, 1000, SOON).await.unwrap();
    assert!((1..=8).contains(&got.len()), "{} tasks of 1 MiB in one answer", got.len());
    settle_all(&*consumer.settler(), &got, Settlement::Done).await.unwrap();
    assert_eq!(work(&mut *consumer, 40 - got.len(), SOON).await.len(), 40 - got.len());
}

#[tokio::test]
async fn small_tasks_in_front_of_large_ones_do_not_let_them_all_come() {
    let server = redis::start(["--appendonly", "no"]).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("mixed"));
    send(&*broker, &queue, &Sample::many(100)).await.unwrap();
    let data = anyqueue_core::Data::json(&"x".repeat(1 << 20)).unwrap();
    let large: Vec<_> = (100..140).map(|number| Sample::new(number).data(data.clone()).envelope()).collect();
    // Half of them become large only when they are tried again.
    send(&*broker, &queue, &large[..20]).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let got = reserve(&mut *consumer, 1000, SOON).await.unwrap();
    assert!((100..=108).contains(&got.len()), "{} tasks in one answer", got.len());
    settle_all(&*consumer.settler(), &got, Settlement::Done).await.unwrap();
    assert_eq!(work(&mut *consumer, 120 - got.len(), SOON).await.len(), 120 - got.len());
    // An empty queue forgets that it had large ones, and learns it anew from those that grow.
    assert!(reserve(&mut *consumer, 1, Duration::ZERO).await.unwrap().is_empty());
    let mark = "HEXISTS anyqueue:{mixed} large";
    assert!(!tell::<bool>(&mut operator(&server).await, mark).await);
    send(&*broker, &queue, &Sample::many(20)).await.unwrap();
    let got = reserve(&mut *consumer, 20, SOON).await.unwrap();
    let grown: Vec<_> =
        got.iter().zip(&large[20..]).map(|(d, next)| (d.receipt.clone(), Settlement::Retry(next.clone()))).collect();
    assert!(consumer.settler().settle(&grown).await.iter().all(Result::is_ok));
    let got = reserve(&mut *consumer, 1000, SOON).await.unwrap();
    assert!((1..=8).contains(&got.len()), "{} tasks of 1 MiB in one answer", got.len());
}

#[tokio::test]
async fn a_peek_shows_as_many_as_were_asked_for() {
    let server = redis::start([""; 0]).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("many"));
    let tasks: Vec<_> = (0..1300).map(|number| Sample::new(number).envelope()).collect();
    send(&*broker, &queue, &tasks).await.unwrap();
    let shown = async |state, limit| broker.admin().peek(&queue, state, limit).await.unwrap().len();
    assert_eq!((shown(State::Ready, 1200).await, shown(State::Ready, 5000).await), (1200, 1300));
    let mut consumer = consumer(&*broker, &queue).await;
    let mut got = Vec::new();
    while got.len() < 1100 {
        got.extend(reserve(&mut *consumer, 1100 - got.len(), SOON).await.unwrap());
    }
    assert_eq!((shown(State::Ready, 5000).await, shown(State::Reserved, 5000).await), (200, 1100));
    let hold = Settlement::Hold(Sample::new(1).envelope(), "why".into());
    settle_all(&*consumer.settler(), &got, hold).await.unwrap();
    assert_eq!((shown(State::Held, 700).await, shown(State::Held, 5000).await), (700, 1100));
}
