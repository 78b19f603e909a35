//! Several job servers, and what a server says of itself.

mod shared;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyqueue_core::{BoxFuture, Clock, ConnectOptions, Durability, ErrorKind, Moment, Paused, Severity, State};
use anyqueue_testkit::servers::gearmand;
use anyqueue_testkit::{Sample, Server, SystemClock};
use shared::{connect, connect_url, consume, done, jobs, one, queue, reserve, send, take};

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
    let is_gone = |line: &String| line.split('\t').nth(2) == Some("1");
    let left = shared::ask(server.address(), "show jobs");
    assert!(left.iter().all(is_gone), "jobs of a check are left: {left:?}");
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

/// A pause that somebody else put in the place of one with an end is the one that counts, for who knew the old one too.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_pause_is_not_taken_for_the_old_one() {
    let server = gearmand::start(&[]).await.unwrap();
    let (broker, operator) = (connect(server.address(), "").await, connect(server.address(), "").await);
    let (admin, second) = (operator.admin(), Duration::from_secs(1));
    let mut consumer = consume(&*broker).await;
    send(&*broker, &[Sample::new(1).envelope()]).await;
    admin.pause(&queue(), Some(second * 2)).await.unwrap();
    assert!(reserve(&mut *consumer, 1, second / 2).await.unwrap().is_empty());
    admin.resume(&queue()).await.unwrap();
    admin.pause(&queue(), None).await.unwrap();
    assert!(reserve(&mut *consumer, 1, second * 4).await.unwrap().is_empty(), "the queue is paused without an end");
    assert_eq!(broker.admin().paused(&queue()).await.unwrap(), Paused::Yes(None));
    admin.resume(&queue()).await.unwrap();
    one(&mut *consumer).await;
}

/// Marks that were left by whoever was killed while they paused do not swallow the next pause.
#[tokio::test(flavor = "multi_thread")]
async fn marks_that_were_left_behind_do_not_swallow_a_pause() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let mut client = shared::Raw::connect(server.address());
    for number in 0..4 {
        client.submit("orders;pause", &format!("p{number};orders"), "until 1000 since 500");
    }
    assert_eq!(broker.admin().paused(&queue()).await.unwrap(), Paused::No);
    for number in 0..4 {
        client.submit("orders;pause", &format!("p{number};orders"), "until 4000000000000 since 500");
    }
    broker.admin().pause(&queue(), None).await.unwrap();
    assert_eq!(broker.admin().paused(&queue()).await.unwrap(), Paused::Yes(None));
    broker.admin().resume(&queue()).await.unwrap();
    assert_eq!(broker.admin().paused(&queue()).await.unwrap(), Paused::No);
}

/// Each server has a pause of its own: that one has none says nothing of the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_one_server_is_not_forgotten_for_the_other() {
    let (first, second) = (gearmand::start(&[]).await.unwrap(), gearmand::start(&[]).await.unwrap());
    let mut alone = Vec::new();
    for server in [&first, &second] {
        let broker = connect(server.address(), "").await;
        send(&*broker, &Sample::many(100)).await;
        alone.push(broker);
    }
    let both = connect_url(&format!("gearman://{},{}", first.address(), second.address())).await;
    let mut consumer = consume(&*both).await;
    let mut left = Vec::new();
    for round in 0..40 {
        if round == 10 {
            alone[1].admin().pause(&queue(), None).await.unwrap();
        }
        for delivery in reserve(&mut *consumer, 2, Duration::ZERO).await.unwrap() {
            done(&*consumer, &delivery).await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
        left.push([&first, &second].map(|server| jobs(server.address(), "orders").0));
    }
    assert!(left[9][1] < 100 && left[39][0] < left[25][0], "the queue is not worked: {left:?}");
    assert_eq!(left[25][1], left[39][1], "its server is paused: {left:?}");
}

/// Whoever asks for a figure and goes away disturbs nobody: the connection and what was sent over it stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_was_broken_off_ends_no_connection() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    broker.declare(&queue()).await.unwrap();
    let queue = queue();
    for _ in 0..20 {
        let asked = broker.admin().stats(&queue);
        drop(tokio::time::timeout(Duration::ZERO, asked).await);
    }
    broker.admin().stats(&queue).await.unwrap();
    assert_eq!(broker.info().reconnects, 0);
}

/// A connection that is broken as soon as it was made is made again: only a server that takes none is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_connection_that_breaks_is_made_again() {
    let server = gearmand::start(&[]).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, behind) = (listener.local_addr().unwrap(), server.address());
    tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        while let Ok((mut client, _)) = listener.accept().await {
            let mut stream = tokio::net::TcpStream::connect(behind).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut stream).await });
        }
    });
    let broker = connect(address, "").await;
    send(&*broker, &Sample::many(1)).await;
}

/// A machine whose clock is wrong by so many seconds.
#[derive(Debug)]
struct Wrong(i64);

impl Clock for Wrong {
    fn now(&self) -> Moment {
        SystemClock.now()
    }

    fn wall(&self) -> SystemTime {
        let by = Duration::from_secs(self.0.unsigned_abs());
        if self.0 < 0 { SystemClock.wall() - by } else { SystemClock.wall() + by }
    }

    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()> {
        SystemClock.sleep_until(until)
    }
}

/// `check` says when the server has another time than this machine, and which one is ahead.
#[tokio::test(flavor = "multi_thread")]
async fn check_tells_that_the_clocks_differ() {
    let server = gearmand::start(gearmand::BUILTIN).await.unwrap();
    for (by, said) in [(0, None), (60, Some("behind this")), (-60, Some("ahead of this"))] {
        let options = ConnectOptions::new(&format!("gearman://{}", server.address()), Arc::new(Wrong(by))).unwrap();
        let findings = anyqueue_gearman::DRIVER.open(options).await.unwrap().diagnose().await.unwrap();
        let found = findings.iter().find(|found| found.text.contains("its clock is"));
        assert_eq!(found.is_some(), said.is_some(), "{by}: {findings:?}");
        assert!(said.is_none_or(|said| found.unwrap().text.contains(said)), "{by}: {findings:?}");
    }
}
