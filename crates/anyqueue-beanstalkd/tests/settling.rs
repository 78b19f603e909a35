//! Settles that take their time.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy sees in functions marked as tests only")]

mod support;

use std::sync::Arc;

use anyqueue_core::{Broker, Consumer, Defaults, Delivery, Effect, Incoming, Settlement, State, Which};
use anyqueue_testkit::Server;
use anyqueue_testkit::servers::beanstalkd;
use support::gate::Gate;
use support::*;

fn job(id: u64, tube: &str, ttr: u64) -> String {
    with_body(&format!("---\nid: {id}\ntube: {tube}\nstate: reserved\npri: 1024\nage: 0\ndelay: 0\nttr: {ttr}\nreserves: 1\n"))
}

/// A server that has one job, and gives these answers besides.
fn with_job(id: u64, ttr: u64, more: &[(&str, &[&str])]) -> Fake {
    let (reserved, job) = (format!("RESERVED {id} 12\r\n{{\"task\":\"t\"}}"), job(id, "q", ttr));
    let given: [(&str, &[&str]); 2] = [("reserve-with-timeout", &[&reserved, "TIMED_OUT"]), ("stats-job", &[&job])];
    Fake::start(&[&given[..], more].concat())
}

/// Takes its job.
async fn reserved(fake: &Fake) -> (Arc<dyn Broker>, Box<dyn Consumer>, Delivery) {
    let broker = connect_to(fake.address).await;
    let mut consumer = consume(&*broker, &queue("q")).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    (broker, consumer, got)
}

/// A wait blocks all that is sent behind it.
fn is_wait(line: &str) -> bool {
    line.starts_with("reserve-with-timeout ") && !line.ends_with(" 0")
}

#[tokio::test]
async fn nobody_waits_on_a_connection_whose_settle_is_under_way() {
    let fake = with_job(5, 60, &[("put", &["later: INSERTED 6"])]);
    let broker = connect(&format!("beanstalkd://{}?connections=2", fake.address)).await.unwrap();
    let mut consumer = consume(&*broker, &queue("q")).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    let mut other = consume(&*broker, &queue("other")).await;
    let waiting = tokio::spawn(async move { reserve(&mut *other, SOON * 10).await });
    let waits = || fake.lines().iter().filter(|(_, line)| is_wait(line)).count();
    eventually("another consumer waits", || async { waits() > 0 }).await;
    let settler = consumer.settler();
    let settling = tokio::spawn(async move { settler.settle(&[(got.receipt, Settlement::Retry(task(1)))]).await });
    let put = || fake.lines().iter().position(|(_, line)| line.starts_with("put "));
    eventually("the copy is on its way", || async { put().is_some() }).await;
    let before = waits();
    eventually("waits begin anew meanwhile", || async { waits() > before + 3 }).await;
    fake.open();
    settling.await.unwrap().remove(0).unwrap();
    waiting.abort();
    let (lines, put) = (fake.lines(), put().unwrap());
    let on_link: Vec<_> = lines[put + 1..].iter().filter(|(link, _)| *link == lines[put].0).map(|(_, line)| line).collect();
    let deleted = on_link.iter().position(|line| *line == "delete 5").unwrap();
    assert!(!on_link[..deleted].iter().any(|line| is_wait(line)), "{on_link:?}");
}

#[tokio::test]
async fn a_task_without_room_for_its_reason_is_held_all_the_same() {
    let server = beanstalkd::start(&["-z", "2000"]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    let (large, grown) = (with_data(&"x".repeat(1500)), with_data(&"x".repeat(3000)));
    broker.send(&queue, &[large.clone(), large.clone()]).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    let mut consumer = consume(&*broker, &queue).await;
    let got = reserve(&mut *consumer, SOON).await;
    let ends = [Settlement::Hold(grown.clone(), "a long story".into()), Settlement::Retry(grown)];
    let batch: Vec<_> = got.iter().map(|delivery| delivery.receipt.clone()).zip(ends).collect();
    assert_eq!(batch.len(), 2);
    consumer.settler().settle(&batch).await.into_iter().for_each(Result::unwrap);
    let held = broker.admin().peek(&queue, State::Held, 10).await.unwrap();
    assert!(held.len() == 2 && held.iter().all(|task| task.raw == large.body), "as they were: {held:?}");
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 2);
    assert_eq!(reserve(&mut *consumer, SOON).await.len(), 2, "they run again once somebody says so");
}

#[tokio::test]
async fn a_server_that_takes_less_than_it_said_buries_what_it_refuses() {
    let fake = with_job(5, 60, &[("put", &["JOB_TOO_BIG"]), ("bury", &["BURIED"])]);
    let (_broker, consumer, got) = reserved(&fake).await;
    consumer.settler().settle(&[(got.receipt, Settlement::Hold(task(1), "why".into()))]).await.remove(0).unwrap();
    assert!(fake.heard("bury 5 1024") && !fake.heard("delete 5"), "{:?}", fake.lines());
}

#[tokio::test]
async fn a_task_that_is_somebody_elses_by_now_is_not_buried() {
    let fake = with_job(5, 60, &[("bury", &["NOT_FOUND"])]);
    let (_broker, consumer, got) = reserved(&fake).await;
    let grown = Settlement::Hold(with_data(&"x".repeat(70_000)), "why".into());
    let error = consumer.settler().settle(&[(got.receipt, grown)]).await.remove(0).unwrap_err();
    assert!(error.is_lease_lost(), "{error}");
}

#[tokio::test]
async fn a_copy_that_was_confirmed_too_late_removes_nothing() {
    let fake = with_job(5, 1, &[("put", &["later: INSERTED 6"])]);
    let (_broker, consumer, got) = reserved(&fake).await;
    let settler = consumer.settler();
    let settling = tokio::spawn(async move { settler.settle(&[(got.receipt, Settlement::Retry(task(1)))]).await });
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    fake.open();
    let error = settling.await.unwrap().remove(0).unwrap_err();
    assert!(error.is_lease_lost() && error.effect() == anyqueue_core::Effect::Unknown, "{error}");
    assert!(!fake.heard("delete 5"), "the job may be another worker's by now");
}

#[tokio::test]
async fn a_connection_that_is_slow_costs_the_settles_of_others_no_time() {
    let mute = with_job(5, 60, &[("delete", &["later: DELETED"])]);
    let quick = with_job(7, 60, &[("put", &["INSERTED 8"])]);
    let broker = connect(&format!("beanstalkd://{},{}", mute.address, quick.address)).await.unwrap();
    let (mut consumer, mut got) = (consume(&*broker, &queue("q")).await, Vec::new());
    while got.len() < 2 {
        got.extend(reserve(&mut *consumer, SOON).await);
    }
    let of_mute = |delivery: &anyqueue_core::Delivery| delivery.native.id.as_deref().unwrap().ends_with("/5");
    let end = |delivery: anyqueue_core::Delivery| {
        let end = if of_mute(&delivery) { Settlement::Done } else { Settlement::Retry(task(1)) };
        (delivery.receipt, end)
    };
    let (batch, settler) = (got.into_iter().map(end).collect::<Vec<_>>(), consumer.settler());
    let settling = tokio::spawn(async move { settler.settle(&batch).await });
    eventually("both steps on the quick one", || async { quick.heard("delete 7") }).await;
    mute.open();
    settling.await.unwrap().into_iter().for_each(Result::unwrap);
}

#[tokio::test]
async fn a_settle_that_nobody_waits_for_any_more_is_carried_to_its_end() {
    let fake = with_job(5, 60, &[("put", &["later: INSERTED 6"])]);
    let (broker, consumer, got) = reserved(&fake).await;
    let settler = consumer.settler();
    let settling = tokio::spawn(async move { settler.settle(&[(got.receipt, Settlement::Retry(task(1)))]).await });
    eventually("the copy is on its way", || async { fake.lines().iter().any(|(_, line)| line.starts_with("put ")) }).await;
    settling.abort();
    assert!(settling.await.unwrap_err().is_cancelled());
    let closing = tokio::spawn(async move { broker.close().await });
    fake.open();
    closing.await.unwrap().unwrap();
    assert!(fake.heard("delete 5"), "not both of them are left, even if the broker is closed meanwhile: {:?}", fake.lines());
}

/// A retry of which the server has got the copy, and not the removal of the original.
async fn between_copy_and_removal(end: impl AsyncFnOnce(&Gate, &anyqueue_testkit::Process)) {
    let server = beanstalkd::start(&[]).await.unwrap();
    let gate = Gate::before("delete ", server.address());
    let (broker, queue) = (connect_to(gate.address).await, queue("q"));
    let sent = with_data("once");
    broker.send(&queue, std::slice::from_ref(&sent)).await.remove(0).unwrap();
    let mut consumer = consume(&*broker, &queue).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    let next = Incoming::read(&got, "default", Defaults::default()).failed(std::time::Duration::ZERO);
    let settler = consumer.settler();
    let settling = tokio::spawn(async move { settler.settle(&[(got.receipt, Settlement::Retry(next))]).await.remove(0) });
    eventually("the removal is asked for", || async { gate.reached() }).await;
    end(&gate, &server).await;
    let error = settling.await.unwrap().unwrap_err();
    assert_eq!(error.effect(), Effect::Unknown, "{error}");
    let (broker, mut tasks) = (connect_to(server.address()).await, Vec::new());
    let mut consumer = consume(&*broker, &queue).await;
    while tasks.len() < 2 {
        let got = reserve(&mut *consumer, SOON * 3).await;
        assert!(!got.is_empty(), "lost: {tasks:?}");
        done(&*consumer.settler(), &got).await;
        tasks.extend(got.iter().map(|got| Incoming::read(got, "default", Defaults::default())));
    }
    assert!(tasks.iter().all(|task| task.id == sent.id), "one task twice: {tasks:?}");
    let mut failed: Vec<_> = tasks.iter().map(|task| task.wire.failed).collect();
    failed.sort_unstable();
    assert_eq!(failed, [0, 1], "the original and its copy");
    let stats = broker.admin().stats(&queue).await.unwrap();
    assert_eq!((stats.ready.value(), stats.reserved.value(), stats.held.value()), (Some(0), Some(0), Some(0)));
}

#[tokio::test]
async fn a_connection_cut_between_copy_and_removal_makes_a_duplicate_and_loses_nothing() {
    between_copy_and_removal(async |gate, _| gate.cut()).await;
}

#[tokio::test]
async fn a_server_killed_between_copy_and_removal_makes_a_duplicate_and_loses_nothing() {
    between_copy_and_removal(async |_, server| {
        server.kill().await.unwrap();
        Server::start(server).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_copy_of_a_task_that_was_lost_with_its_connection_is_not_put_elsewhere() {
    let broken = with_job(5, 60, &[("put", &["DRAINING\r\nand no word of the protocol after it"])]);
    let other = Fake::start(&[("put", &["INSERTED 6"])]);
    let broker = connect(&format!("beanstalkd://{},{}", broken.address, other.address)).await.unwrap();
    let mut consumer = consume(&*broker, &queue("q")).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    let error = consumer.settler().settle(&[(got.receipt, Settlement::Retry(task(1)))]).await.remove(0).unwrap_err();
    assert!(error.is_lease_lost() && error.effect() == Effect::None, "{error}");
    assert!(!other.lines().iter().any(|(_, line)| line.starts_with("put ")), "{:?}", other.lines());
}

#[tokio::test]
async fn what_a_look_brings_after_its_consumer_or_broker_was_closed_is_given_back_before_that_ends() {
    for of_broker in [false, true] {
        let fake = Fake::start(&[
            ("reserve-with-timeout", &["later: RESERVED 5 12\r\n{\"task\":\"t\"}", "TIMED_OUT"]),
            ("stats-job", &[&job(5, "q", 60)]),
        ]);
        let broker = connect_to(fake.address).await;
        let mut consumer = consume(&*broker, &queue("q")).await;
        tokio::select! {
            _ = reserve(&mut *consumer, SOON * 10) => panic!("nothing can have come"),
            () = eventually("it looks", || async { fake.heard("reserve-with-timeout 0") }) => {}
        }
        let closing = tokio::spawn(async move {
            if of_broker {
                broker.close().await
            } else {
                let closed = consumer.close().await;
                drop(broker);
                closed
            }
        });
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        fake.open();
        closing.await.unwrap().unwrap();
        assert!(fake.heard("release 5 1024 0"), "of the broker: {of_broker}: {:?}", fake.lines());
    }
}

/// The server would delete a job whose TTR is over as long as nobody else has it: the deadline that the worker was told decides.
#[tokio::test]
async fn past_its_deadline_nothing_is_sent_although_the_server_would_take_it() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    let late = [
        Settlement::Done,
        Settlement::Release(task(1)),
        Settlement::Retry(task(2)),
        Settlement::Hold(task(3), "no paper".into()),
    ];
    for n in 0..late.len() as u64 {
        let mut short = task(n);
        short.ttr = std::time::Duration::from_secs(1);
        broker.send(&queue, &[short]).await.remove(0).unwrap();
    }
    let mut consumer = consume(&*broker, &queue).await;
    let mut got = Vec::new();
    while got.len() < late.len() {
        got.extend(reserve(&mut *consumer, SOON).await);
    }
    tokio::time::sleep(std::time::Duration::from_millis(1050)).await;
    let mut plain = Plain::connect(server.address());
    let mut figures = || ["cmd-delete", "cmd-release", "cmd-put", "cmd-bury"].map(|figure| plain.figure("stats", figure));
    let before = figures();
    let batch: Vec<_> = got.iter().map(|delivery| delivery.receipt.clone()).zip(late).collect();
    for (answer, (_, what)) in consumer.settler().settle(&batch).await.into_iter().zip(&batch) {
        assert!(answer.as_ref().is_err_and(anyqueue_core::Error::is_lease_lost), "{what:?}: {answer:?}");
    }
    assert_eq!(figures(), before);
}

#[tokio::test]
async fn a_release_that_the_server_answers_with_a_bury_is_kicked() {
    let fake = Fake::start(&[
        ("reserve-with-timeout", &["RESERVED 5 12\r\n{\"task\":\"t\"}", "RESERVED 6 12\r\n{\"task\":\"t\"}", "TIMED_OUT"]),
        ("stats-job", &[&job(5, "q", 60), &job(6, "q", 60)]),
        ("release", &["BURIED"]),
        ("kick-job", &["KICKED"]),
    ]);
    let broker = connect_to(fake.address).await;
    let mut consumer = consume(&*broker, &queue("q")).await;
    let one = std::num::NonZeroUsize::MIN;
    let (first, second) = (consumer.reserve(one, SOON).await.unwrap(), consumer.reserve(one, SOON).await.unwrap());
    let mut later = task(2);
    later.delay = std::time::Duration::from_secs(60);
    let ends = [Settlement::Release(task(1)), Settlement::Release(later)];
    let batch: Vec<_> = first.into_iter().chain(second).map(|got| got.receipt).zip(ends).collect();
    let answers = consumer.settler().settle(&batch).await;
    assert!(answers[0].is_ok() && fake.heard("kick-job 5"), "{answers:?}");
    let error = answers[1].as_ref().unwrap_err();
    assert!(error.effect() == Effect::Unknown && !fake.heard("kick-job 6"), "it is held, and not due yet: {error}");
}

#[tokio::test]
async fn a_task_given_back_that_the_server_buries_is_kicked() {
    let fake = with_job(5, 60, &[("release", &["BURIED"]), ("kick-job", &["KICKED"])]);
    let broker = connect_to(fake.address).await;
    let mut consumer = consume(&*broker, &queue("q")).await;
    assert_eq!(reserve(&mut *consumer, SOON).await.len(), 1);
    broker.close().await.unwrap();
    assert!(fake.heard("kick-job 5"), "{:?}", fake.lines());
}

#[tokio::test]
async fn a_server_that_is_slow_to_take_a_copy_keeps_no_original_of_another_copy_from_being_removed() {
    let own = Fake::start(&[
        ("reserve-with-timeout", &["RESERVED 5 12\r\n{\"task\":\"t\"}", "RESERVED 7 12\r\n{\"task\":\"t\"}", "TIMED_OUT"]),
        ("stats-job", &[&job(5, "q", 60), &job(7, "q", 60)]),
        ("put", &["INSERTED 8", "DRAINING"]),
    ]);
    let slow = Fake::start(&[("put", &["later: INSERTED 6"])]);
    let broker = connect(&format!("beanstalkd://{},{}", own.address, slow.address)).await.unwrap();
    let (mut consumer, mut got) = (consume(&*broker, &queue("q")).await, Vec::new());
    while got.len() < 2 {
        got.extend(reserve(&mut *consumer, SOON).await);
    }
    let batch: Vec<_> = got.into_iter().map(|got| (got.receipt, Settlement::Retry(task(1)))).collect();
    let settler = consumer.settler();
    let settling = tokio::spawn(async move { settler.settle(&batch).await });
    eventually("the other one is asked", || async { slow.lines().iter().any(|(_, line)| line.starts_with("put ")) }).await;
    eventually("the original of the first copy is removed", || async { own.heard("delete 5") }).await;
    assert!(!own.heard("delete 7"), "its copy is written nowhere yet");
    slow.open();
    settling.await.unwrap().into_iter().for_each(Result::unwrap);
    assert!(own.heard("delete 7"));
}
