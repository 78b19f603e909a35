//! What a server refuses, and what becomes of the task.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy sees in functions marked as tests only")]

mod support;

use anyqueue_core::{Effect, ErrorKind, Settlement, Severity};
use anyqueue_testkit::Server;
use anyqueue_testkit::servers::beanstalkd;
use support::*;

#[tokio::test]
async fn the_largest_task_is_the_servers_own() {
    let server = beanstalkd::start(&["-z", "2000"]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("small"));
    assert_eq!(broker.capabilities(&queue).max_payload, Some(2000), "read from the server");
    let big = with_data(&"x".repeat(3000));
    let size = big.body.len() as u64;
    let error = broker.send(&queue, &[big]).await.remove(0).unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::TooLarge { size, limit: 2000 }, Effect::None));
    assert_eq!(Plain::connect(server.address()).figure("stats", "cmd-put"), "0", "nothing was sent");
}

#[tokio::test]
async fn a_server_that_takes_less_than_it_said_is_believed() {
    let fake = Fake::start(&[("put", &["JOB_TOO_BIG", "INSERTED 1"])]);
    let (broker, queue) = (connect_to(fake.address).await, queue("q"));
    let answers = broker.send(&queue, &[with_data("a"), task(1)]).await;
    let kinds: Vec<_> = answers.into_iter().map(|answer| answer.map(drop).map_err(|e| e.kind())).collect();
    assert!(matches!(kinds[..], [Err(ErrorKind::TooLarge { limit: 65_535, .. }), Ok(())]), "{kinds:?}");
}

#[tokio::test]
async fn a_draining_server_is_full_and_another_one_takes_the_tasks() {
    let (draining, other) = (beanstalkd::start(&[]).await.unwrap(), beanstalkd::start(&[]).await.unwrap());
    drain(&draining);
    let (alone, queue) = (connect_to(draining.address()).await, queue("q"));
    eventually("the server drains", || async {
        let answer = alone.send(&queue, &[task(1)]).await.remove(0);
        answer.is_err_and(|e| e.kind() == ErrorKind::Full && e.is_retryable() && e.to_string().contains("DRAINING"))
    })
    .await;
    let fresh = connect_to(draining.address()).await;
    let findings = fresh.diagnose().await.unwrap();
    assert!(findings.iter().any(|f| f.severity == Severity::Problem && f.text.contains("draining")), "{findings:?}");
    let both = connect(&format!("beanstalkd://{},{}", draining.address(), other.address())).await.unwrap();
    for number in 0..4 {
        both.send(&queue, &[task(number)]).await.remove(0).unwrap();
    }
    assert_eq!(Plain::connect(other.address()).figure("stats-tube q", "current-jobs-ready"), "4");
}

#[tokio::test]
async fn a_queue_of_a_draining_server_can_be_looked_at() {
    let (draining, other) = (beanstalkd::start(&[]).await.unwrap(), beanstalkd::start(&[]).await.unwrap());
    let mut plain = Plain::connect(draining.address());
    plain.put("foreign", r#"{"task":"t"}"#);
    drain(&draining);
    eventually("the server drains", || {
        let answer = plain.ask("put 0 0 1 0\r\n").0;
        async move { answer == "DRAINING" }
    })
    .await;
    let alone = connect_to(draining.address()).await;
    assert!(!alone.declare(&queue("foreign")).await.unwrap().created, "its tasks say that it is there");
    let error = alone.declare(&queue("new")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Full && error.to_string().contains("draining"), "{error}");
    let both = connect(&format!("beanstalkd://{},{}", draining.address(), other.address())).await.unwrap();
    assert!(both.declare(&queue("new")).await.unwrap().created, "one mark is enough");
    assert!(!both.declare(&queue("new")).await.unwrap().created);
}

#[tokio::test]
async fn a_task_of_a_draining_server_is_retried_and_held_on_another_one() {
    let (draining, other) = (beanstalkd::start(&[]).await.unwrap(), beanstalkd::start(&[]).await.unwrap());
    let (alone, queue) = (connect_to(draining.address()).await, queue("q"));
    alone.send(&queue, &[task(1), task(2)]).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    let broker = connect(&format!("beanstalkd://{},{}", draining.address(), other.address())).await.unwrap();
    let mut consumer = consume(&*broker, &queue).await;
    let got = reserve(&mut *consumer, SOON).await;
    drain(&draining);
    eventually("the server drains", || async { alone.send(&queue, &[task(3)]).await.remove(0).is_err() }).await;
    let ends = [Settlement::Retry(task(1)), Settlement::Hold(task(2), "later".into())];
    let batch: Vec<_> = got.iter().map(|got| got.receipt.clone()).zip(ends).collect();
    assert_eq!(batch.len(), 2);
    consumer.settler().settle(&batch).await.into_iter().for_each(Result::unwrap);
    let mut there = Plain::connect(other.address());
    let ready = |there: &mut Plain, tube| there.figure(&format!("stats-tube {tube}"), "current-jobs-ready");
    assert_eq!((ready(&mut there, "q"), ready(&mut there, "q;held")), ("1".into(), "1".into()));
    assert_eq!(Plain::connect(draining.address()).figure("stats", "current-jobs-reserved"), "0", "the originals are removed");
}

#[tokio::test]
async fn a_task_that_no_server_has_room_for_again_comes_back_after_its_lease() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    let mut short = task(1);
    short.ttr = std::time::Duration::from_secs(2);
    broker.send(&queue, &[short.clone()]).await.remove(0).unwrap();
    let mut consumer = consume(&*broker, &queue).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    drain(&server);
    eventually("the server drains", || async { broker.send(&queue, &[task(2)]).await.remove(0).is_err() }).await;
    let error = consumer.settler().settle(&[(got.receipt, Settlement::Hold(short, "why".into()))]).await.remove(0).unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Full, Effect::None));
    assert!(error.to_string().contains("draining"), "{error}");
    assert_eq!(reserve(&mut *consumer, SOON * 2).await.len(), 1);
}

#[tokio::test]
async fn a_server_without_memory_keeps_nothing_and_says_so() {
    let fake = Fake::start(&[("put", &["OUT_OF_MEMORY", "BURIED 77", "INSERTED 78"])]);
    let (broker, queue) = (connect_to(fake.address).await, queue("q"));
    let answers = broker.send(&queue, &[task(0), task(1), task(2)]).await;
    let kinds: Vec<_> = answers.into_iter().map(|answer| answer.map_err(|e| (e.kind(), e.effect()))).collect();
    assert_eq!(kinds[0], Err((ErrorKind::Full, Effect::None)));
    assert_eq!(kinds[1], Err((ErrorKind::Full, Effect::None)), "a buried put is none");
    assert_eq!(kinds[2].as_ref().unwrap().native_id.as_deref(), Some("78"));
    eventually("the buried job is removed", || async { fake.heard("delete 77") }).await;
}

#[tokio::test]
async fn a_tube_that_cannot_be_chosen_ends_the_connection() {
    let fake = Fake::start(&[("use", &["USING q;p0-512", "OUT_OF_MEMORY", "USING q"]), ("put", &["INSERTED 1"])]);
    let (broker, queue) = (connect(&format!("beanstalkd://{}?bands=512", fake.address)).await.unwrap(), queue("q"));
    let mut urgent = task(1);
    urgent.priority = 0;
    for answer in broker.send(&queue, &[urgent, task(2)]).await {
        let error = answer.unwrap_err();
        assert_eq!(error.effect(), Effect::Unknown, "the second one may be among the urgent ones now: {error}");
        assert!(error.to_string().contains("(use: OUT_OF_MEMORY)"), "{error}");
    }
    broker.send(&queue, &[task(3)]).await.remove(0).unwrap();
    let connections: Vec<_> = fake.lines().iter().filter(|(_, line)| line.starts_with("put ")).map(|(link, _)| *link).collect();
    assert_eq!(connections, [0, 0, 1], "what is used there now nobody knows");
}

#[tokio::test]
async fn a_server_with_a_fault_may_have_taken_the_task() {
    let faulty = Fake::start(&[("put", &["INTERNAL_ERROR"])]);
    let (broker, queue) = (connect(&format!("beanstalkd://{0},{0}", faulty.address)).await.unwrap(), queue("q"));
    let error = broker.send(&queue, &[task(1)]).await.remove(0).unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Protocol, Effect::Unknown));
    assert_eq!(faulty.lines().iter().filter(|(_, line)| line.starts_with("put ")).count(), 1, "nor is it sent once more");
}

#[tokio::test]
async fn a_deadline_that_is_near_is_no_task_and_no_error() {
    let stats = with_body("---\nid: 5\ntube: q\nstate: reserved\npri: 1024\nage: 0\ndelay: 0\nttr: 60\nreserves: 1\n");
    let fake = Fake::start(&[
        (
            "reserve-with-timeout",
            &["DEADLINE_SOON", "DEADLINE_SOON", "DEADLINE_SOON", "DEADLINE_SOON", "RESERVED 5 2\r\n{}", "TIMED_OUT"],
        ),
        ("stats-job", &[&stats]),
    ]);
    let broker = connect_to(fake.address).await;
    let mut consumer = consume(&*broker, &queue("q")).await;
    let got = reserve(&mut *consumer, SOON).await;
    assert_eq!((got.len(), got[0].native.id.as_deref()), (1, Some("5")));
}

#[tokio::test]
async fn a_retry_that_is_refused_removes_nothing_and_can_be_tried_again() {
    let stats = with_body("---\nid: 5\ntube: q\nstate: reserved\npri: 1024\nage: 0\ndelay: 0\nttr: 60\nreserves: 1\n");
    let fake = Fake::start(&[
        ("reserve-with-timeout", &["RESERVED 5 12\r\n{\"task\":\"t\"}", "TIMED_OUT"]),
        ("stats-job", &[&stats]),
        ("put", &["OUT_OF_MEMORY", "INSERTED 6"]),
    ]);
    let broker = connect_to(fake.address).await;
    let mut consumer = consume(&*broker, &queue("q")).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    let retry = [(got.receipt, anyqueue_core::Settlement::Retry(task(1)))];
    let error = consumer.settler().settle(&retry).await.remove(0).unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Full, Effect::None));
    assert!(!fake.heard("delete 5"), "the old one is removed only after the copy is confirmed");
    consumer.settler().settle(&retry).await.remove(0).unwrap();
    assert!(fake.heard("delete 5"));
}

#[tokio::test]
async fn what_is_not_beanstalkd_is_named() {
    let fake = Fake::start(&[("stats", &["+PONG"])]);
    let error = connect(&format!("beanstalkd://{}", fake.address)).await.unwrap_err();
    let text = anyqueue_core::chain(&error);
    assert!(error.kind() == ErrorKind::Protocol && text.contains("is not beanstalkd") && text.contains("+PONG"), "{text}");
    assert!(text.contains(&fake.address.to_string()), "{text}");
}
