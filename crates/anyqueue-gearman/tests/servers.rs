//! Several job servers, and what a server says of itself.

mod shared;

use std::time::Duration;

use anyqueue_core::{Durability, ErrorKind, Severity, State};
use anyqueue_testkit::servers::gearmand;
use anyqueue_testkit::{Sample, Server};
use shared::{connect, connect_url, consume, done, jobs, queue, send, take};

/// Each server gets its part, workers take from both, and one that dies is left out until it is back.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_servers_may_die_and_come_back() {
    let (one, two) = (gearmand::start(&[]).await.unwrap(), gearmand::start(&[]).await.unwrap());
    let broker = connect_url(&format!("gearman://{},{}?queue_type=libsqlite3", one.address(), two.address())).await;
    for n in 0..10 {
        send(&*broker, &[Sample::new(n).envelope()]).await;
    }
    assert_eq!((jobs(one.address(), "orders").0, jobs(two.address(), "orders").0), (5, 5));
    one.kill().await.unwrap();
    for n in 10..16 {
        // What was on its way to the dead server may or may not have arrived: the sender repeats it.
        let task = [Sample::new(n).envelope()];
        while let Err(e) = broker.send(&queue(), &task).await.remove(0) {
            assert!(e.is_retryable(), "{e}");
        }
    }
    let mut consumer = consume(&*broker).await;
    let alive = take(&mut *consumer, 11).await;
    Server::start(&one).await.unwrap();
    let back = take(&mut *consumer, 5).await;
    let mut numbers: Vec<_> = alive.iter().chain(&back).filter_map(Sample::number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..16).collect::<Vec<_>>());
    for delivery in alive.iter().chain(&back) {
        done(&*consumer, delivery).await;
    }
}

/// Who asks without waiting is told what any of the servers has.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_without_waiting_looks_at_all_servers() {
    let (one, two) = (gearmand::start(&[]).await.unwrap(), gearmand::start(&[]).await.unwrap());
    let both = connect_url(&format!("gearman://{},{}", one.address(), two.address())).await;
    let mut consumer = consume(&*both).await;
    for n in 0..10 {
        let alone = connect(if n % 2 == 0 { one.address() } else { two.address() }, "").await;
        send(&*alone, &[Sample::new(n).envelope()]).await;
        let got = shared::reserve(&mut *consumer, 1, Duration::ZERO).await.unwrap();
        assert_eq!(got.iter().filter_map(Sample::number).collect::<Vec<_>>(), [n]);
        done(&*consumer, &got[0]).await;
    }
}

/// Only what the operator says of the server's store is known, and nothing is durable until it is said.
#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_a_store_loses() {
    let server = gearmand::start(gearmand::BUILTIN).await.unwrap();
    for (store, durability, worst, said) in [
        ("unknown", Durability::None, Severity::Warning, "it does not tell"),
        ("builtin", Durability::None, Severity::Warning, "memory alone"),
        ("Postgres", Durability::None, Severity::Problem, "forgets priorities and delays"),
        ("redis", Durability::None, Severity::Problem, "first zero byte"),
        ("MySQL", Durability::Process, Severity::Note, "is what you say"),
    ] {
        let broker = connect_url(&format!("gearman://{}?queue_type={store}", server.address())).await;
        assert_eq!(broker.capabilities(&queue()).durability, durability, "{store}");
        let findings = broker.diagnose().await.unwrap();
        assert!(findings.iter().any(|found| found.severity == worst && found.text.contains(said)), "{store}: {findings:?}");
    }
    nothing_is_left(&server);
}

/// What `check` submits to try the server is gone at once.
fn nothing_is_left(server: &anyqueue_testkit::Process) {
    let left = shared::ask(server.address(), "show jobs");
    assert!(left.is_empty(), "jobs of a check are left: {left:?}");
}

/// A function that is full refuses tasks, and says so as something that may be tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_function_says_so() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    broker.declare(&queue()).await.unwrap();
    shared::ask(server.address(), "create function orders");
    shared::ask(server.address(), "maxqueue orders 2");
    let answers = broker.send(&queue(), &Sample::many(3)).await;
    assert!(answers[0].is_ok() && answers[1].is_ok());
    let error = answers.into_iter().nth(2).unwrap().unwrap_err();
    assert!(error.kind() == ErrorKind::Full && error.is_retryable() && error.to_string().contains("maxqueue"), "{error}");
}

/// A delayed task that was deleted is not found a second time, by anybody, though the server has it in memory still.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_delayed_task_stays_deleted() {
    let server = gearmand::start(&[]).await.unwrap();
    let (broker, other) = (connect(server.address(), "").await, connect(server.address(), "").await);
    let later = Sample::new(1).delay(Duration::from_secs(3600)).envelope();
    send(&*broker, std::slice::from_ref(&later)).await;
    assert!(broker.admin().delete(&queue(), &[later.id]).await.remove(0).is_ok());
    let again = other.admin().delete(&queue(), &[later.id]).await.remove(0).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound, "{again}");
    assert_eq!(other.admin().purge(&queue(), &[State::Delayed]).await.unwrap(), 0);
    assert_eq!(other.admin().stats(&queue()).await.unwrap().delayed.value(), Some(0), "it is counted still");
    server.kill().await.unwrap();
    Server::start(&server).await.unwrap();
    assert_eq!(jobs(server.address(), "orders;delay").0, 0, "it was on the disk still");
}
