//! Clients of other languages on the same job server: the `gearman` command stands for them.

mod shared;

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyqueue_core::{Envelope, ErrorKind, Figure, Settlement, State, Touch};
use anyqueue_testkit::servers::gearmand;
use anyqueue_testkit::{Proxy, Sample, Server};
use shared::{Raw, connect, consume, done, one, queue, read, reserve, send, settle, take};

const THEIRS: &str = r#"{"task":"test","store":"0","data":{"message":"hello"}}"#;

fn gearman(server: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new("gearman");
    command.args(["-h", "127.0.0.1", "-p", &server.port().to_string(), "-f", "orders"]).args(arguments).stdin(Stdio::null());
    command
}

async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().expect("gearman-tools are installed")).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_another_client_runs_and_keeps_its_id() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let sent = output(gearman(server.address(), &["-b", THEIRS])).await;
    assert!(sent.status.success(), "{sent:?}");
    let mut consumer = consume(&*broker).await;
    let first = one(&mut *consumer).await;
    let task = read(&first);
    assert_eq!((task.wire.task.as_str(), task.wire.store.as_str(), first.raw.as_ref()), ("test", "0", THEIRS.as_bytes()));
    assert_eq!(first.lease, Duration::from_secs(60), "the queue's own, since theirs says none");
    settle(&*consumer.settler(), &first.receipt, Settlement::Retry(task.failed(Duration::ZERO))).await.unwrap();
    let again = one(&mut *consumer).await;
    assert_eq!((read(&again).id, read(&again).wire.failed), (task.id, 1));
    done(&*consumer, &again).await;
    assert_eq!(shared::jobs(server.address(), "orders"), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_ours_is_worked_by_another_worker() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let task = Sample::new(7).store("nl").envelope();
    send(&*broker, std::slice::from_ref(&task)).await;
    let worked = output(gearman(server.address(), &["-w", "-c", "1", "--", "tee", "/dev/stderr"])).await;
    assert_eq!(worked.stderr, task.body, "{worked:?}");
    assert_eq!(broker.admin().stats(&queue()).await.unwrap().ready.value(), Some(0));
}

/// A client that waits for a result is told when its task is settled, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_is_answered_when_its_task_is_done() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let mut waiting = gearman(server.address(), &[THEIRS]).stdout(Stdio::piped()).spawn().unwrap();
    let mut consumer = consume(&*broker).await;
    let delivery = one(&mut *consumer).await;
    assert!(waiting.try_wait().unwrap().is_none(), "it is answered before anything was done");
    done(&*consumer, &delivery).await;
    assert!(tokio::task::spawn_blocking(move || waiting.wait().unwrap()).await.unwrap().success());
}

/// What is no task is held with its bytes, listed and deleted; nothing of it is lost and nobody loops on it.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_task_are_held_and_listed() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    assert!(output(gearman(server.address(), &["-b", "no json at all"])).await.status.success());
    let mut consumer = consume(&*broker).await;
    let delivery = one(&mut *consumer).await;
    let task = read(&delivery);
    let why = task.unreadable.clone().expect("it is no JSON");
    let body = task.held(&why, false, std::time::SystemTime::now());
    settle(&*consumer.settler(), &delivery.receipt, Settlement::Hold(body, why)).await.unwrap();
    assert!(reserve(&mut *consumer, 1, Duration::from_millis(300)).await.unwrap().is_empty());
    let held = broker.admin().peek(&queue(), State::Held, 10).await.unwrap();
    assert!(held.len() == 1 && String::from_utf8_lossy(&held[0].raw).contains("unreadable"), "{held:?}");
    let hidden = broker.admin().peek(&queue(), State::Delayed, 10).await.unwrap_err();
    assert!(hidden.kind() == ErrorKind::Unsupported && hidden.to_string().contains("delayed"), "{hidden}");
    assert_eq!(broker.admin().delete(&queue(), &[task.id]).await.remove(0).map_err(|e| e.to_string()), Ok(()));
}

/// The unique key of a caller makes two sends one job; one that a job server cannot keep apart is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_unique_key_makes_one_task_of_two_sends() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let keyed = |n, key: &str| {
        let ttr = Duration::from_secs(7);
        anyqueue_core::Envelope { unique: Some(key.into()), ..Sample::new(n).ttr(ttr).envelope() }
    };
    send(&*broker, &[keyed(1, "nightly"), keyed(2, "nightly"), keyed(3, "other")]).await;
    let mut consumer = consume(&*broker).await;
    let got = shared::take(&mut *consumer, 2).await;
    assert_eq!(got.iter().filter_map(Sample::number).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(got[0].lease, Duration::from_secs(7), "the body says it where the unique id cannot");
    for key in ["", "-", "a\0b", &"x".repeat(64)] {
        let error = broker.send(&queue(), &[keyed(4, key)]).await.remove(0).unwrap_err();
        assert_eq!(error.kind(), anyqueue_core::ErrorKind::Invalid, "{error}");
    }
}

const TTR: Duration = Duration::from_secs(1);

/// Jobs without a unique id, or with the one that stands for none, are tasks of their own: neither is lost when their
/// leases end, and each keeps its id.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_without_unique_ids_are_not_taken_for_one() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let mut client = Raw::connect(server.address());
    for (n, unique) in ["", "", "-", "-"].into_iter().enumerate() {
        client.submit("orders", unique, &format!(r#"{{"task":"t{n}","ttr":1}}"#));
    }
    let mut consumer = consume(&*broker).await;
    let tasks = |got: Vec<anyqueue_core::Delivery>| {
        let mut tasks: Vec<_> = got.iter().map(|delivery| (read(delivery).wire.task, read(delivery).id)).collect();
        tasks.sort();
        tasks
    };
    let first = tasks(take(&mut *consumer, 4).await);
    assert!(first.windows(2).all(|two| two[0].1 != two[1].1), "two tasks have one id: {first:?}");
    let again = take(&mut *consumer, 4).await;
    assert!(again.iter().all(|delivery| delivery.native.redeliveries == Figure::Exact(1)), "{again:?}");
    assert_eq!(tasks(again), first, "a task was lost or has another id");
}

/// Two jobs that came one after the other under one unique id are two tasks, also when their leases end.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_job_of_a_unique_id_is_not_taken_for_the_one_before() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let mut client = Raw::connect(server.address());
    let mut consumer = consume(&*broker).await;
    client.submit("orders", "theirs", r#"{"task":"first","ttr":1}"#);
    let first = one(&mut *consumer).await;
    shared::until("its lease does not end", || shared::jobs(server.address(), "orders").1 == 0).await;
    let again = one(&mut *consumer).await;
    let task = read(&again).unchanged(Duration::ZERO);
    let touch = Touch { receipt: again.receipt.clone(), ttr: TTR * 60, task };
    consumer.settler().touch(&[touch]).await.remove(0).unwrap();
    client.submit("orders", "theirs", r#"{"task":"second","ttr":1}"#);
    for redeliveries in 0..2 {
        let second = one(&mut *consumer).await;
        assert_eq!((read(&second).wire.task.as_str(), second.native.redeliveries), ("second", Figure::Exact(redeliveries)));
    }
    assert_eq!(read(&first).id, read(&again).id);
    done(&*consumer, &again).await;
}

/// What came one after the other under one unique id and was held is held twice: neither is taken for a copy of the other.
#[tokio::test(flavor = "multi_thread")]
async fn held_jobs_of_one_unique_id_are_two() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let mut consumer = consume(&*broker).await;
    for name in ["first", "second"] {
        Raw::connect(server.address()).submit("orders", "theirs", &format!(r#"{{"task":"{name}"}}"#));
        let delivery = one(&mut *consumer).await;
        let body = read(&delivery).held("look", false, std::time::SystemTime::now());
        settle(&*consumer.settler(), &delivery.receipt, Settlement::Hold(body, "look".into())).await.unwrap();
    }
    assert_eq!(broker.admin().held(&queue(), None, 10).await.unwrap().tasks.len(), 2);
}

/// A frozen worker's task without a unique id is guarded too, and keeps its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_workers_task_without_a_unique_id_comes_back() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (silent, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    Raw::connect(server.address()).submit("orders", "", r#"{"task":"t","ttr":1}"#);
    let lost = one(&mut *consume(&*silent).await).await;
    proxy.black(true);
    let mut consumer = consume(&*broker).await;
    let again = one(&mut *consumer).await;
    assert_eq!(read(&again).id, read(&lost).id);
    done(&*consumer, &again).await;
    drop((proxy, silent));
    assert!(reserve(&mut *consumer, 1, TTR * 3).await.unwrap().is_empty(), "it came back when its worker ended");
}

/// While a frozen worker has the old job of a key, a new task of that key is not taken for it; and its first run is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_free_again_once_its_task_was_taken_over_and_done() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (silent, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    let keyed = |n, delay| Envelope { unique: Some("nightly".into()), ..Sample::new(n).ttr(TTR).delay(delay).envelope() };
    send(&*broker, &[keyed(1, Duration::ZERO)]).await;
    let _lost = one(&mut *consume(&*silent).await).await;
    proxy.black(true);
    let mut consumer = consume(&*broker).await;
    let again = one(&mut *consumer).await;
    done(&*consumer, &again).await;
    send(&*broker, &[keyed(2, Duration::ZERO), keyed(3, TTR)]).await;
    for n in 2..=3 {
        let next = one(&mut *consumer).await;
        assert_eq!((Sample::number(&next), next.native.redeliveries), (Some(n), Figure::Exact(0)));
        done(&*consumer, &next).await;
    }
}

/// The next task of a key is not taken for a redelivery of the one before.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_task_of_a_key_is_no_redelivery() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let mut consumer = consume(&*broker).await;
    for n in 1..=3 {
        send(&*broker, &[Envelope { unique: Some("nightly".into()), ..Sample::new(n).envelope() }]).await;
        let delivery = one(&mut *consumer).await;
        assert_eq!((Sample::number(&delivery), delivery.native.redeliveries), (Some(n), Figure::Exact(0)));
        done(&*consumer, &delivery).await;
    }
}

/// A foreign job for later beside one of low priority makes the server ring for nothing. Nobody runs in circles.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_rings_for_nothing_is_asked_now_and_then() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let mut client = Raw::connect(server.address());
    client.say(shared::SUBMIT_LATER, &["orders", "later", "4000000000", "{}"]);
    client.hear();
    client.say(shared::SUBMIT_LOW, &["orders", "low", "{}"]);
    client.hear();
    let mut consumer = consume(&*broker).await;
    let before = broker.info().round_trips;
    let _low_or_none = reserve(&mut *consumer, 1, TTR * 3).await.unwrap();
    let asked = broker.info().round_trips - before;
    assert!(asked < 100, "it was asked {asked} times in three seconds");
}
