//! Servers that take no writes for a time, and servers that were emptied in the middle of something.

#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::time::{Duration, Instant};

use anyqueue_core::{Create, Effect, ErrorKind, Figure, Paused, Settlement, Which};
use anyqueue_testkit::servers::redis;
use anyqueue_testkit::{Process, Sample};
use shared::{
    SOON, connect, consumer, operator, options, queue, reserve, send_one, settle_all, somebody_waits, tell, url, words, work,
};

const NONE: [&str; 0] = [];

/// Breaks something and mends it: meanwhile sends and claims are refused with this kind and these words, nothing has
/// happened, and settling says the same; afterwards all goes on.
async fn refused(server: &Process, kind: ErrorKind, words: &str, spoil: impl AsyncFnOnce(), mend: impl AsyncFnOnce()) {
    let (broker, queue) = (connect(&url(server)).await.unwrap(), queue("refused"));
    let mut consumer = consumer(&*broker, &queue).await;
    for number in 0..2 {
        send_one(&*broker, &queue, number).await.unwrap();
    }
    let got = reserve(&mut *consumer, 1, SOON).await.unwrap();
    spoil().await;
    let sent = send_one(&*broker, &queue, 9).await.unwrap_err();
    let claimed = reserve(&mut *consumer, 1, SOON).await.unwrap_err();
    let settled = settle_all(&*consumer.settler(), &got, Settlement::Done).await.unwrap_err();
    for error in [sent, claimed, settled] {
        assert_eq!((error.kind(), error.effect(), error.is_retryable()), (kind, Effect::None, true), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(broker.admin().stats(&queue).await.unwrap().reserved, Figure::Exact(1));
    mend().await;
    settle_all(&*consumer.settler(), &got, Settlement::Done).await.unwrap();
    send_one(&*broker, &queue, 2).await.unwrap();
    assert_eq!(work(&mut *consumer, 2, SOON).await, [1, 2]);
}

/// Has the server write a snapshot and says how that went.
async fn snapshot(server: &Process) -> String {
    let (mut operator, began) = (operator(server).await, Instant::now());
    let _: String = tell(&mut operator, "BGSAVE").await;
    loop {
        let text: String = tell(&mut operator, "INFO persistence").await;
        let fact = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        if fact("rdb_bgsave_in_progress:") == "0" {
            return fact("rdb_last_bgsave_status:");
        }
        assert!(began.elapsed() < SOON, "the snapshot takes for ever");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_server_that_cannot_write_its_snapshot_is_named_and_goes_on_once_it_can() {
    let server = redis::start(["--stop-writes-on-bgsave-error", "yes"]).await.unwrap();
    let _: () = words("CONFIG SET save").arg("3600 1").query_async(&mut operator(&server).await).await.unwrap();
    let in_the_way = server.folder().join("dump.rdb");
    let spoil = async || {
        std::fs::create_dir(&in_the_way).unwrap();
        assert_eq!(snapshot(&server).await, "err");
    };
    let mend = async || {
        std::fs::remove_dir(&in_the_way).unwrap();
        assert_eq!(snapshot(&server).await, "ok");
    };
    refused(&server, ErrorKind::Full, "cannot write its data to disk", spoil, mend).await;
}

#[tokio::test]
async fn a_server_without_its_replicas_is_named_and_goes_on_once_they_are_no_more_needed() {
    let server = redis::start(NONE).await.unwrap();
    let set =
        async |count: u8| tell::<()>(&mut operator(&server).await, &format!("CONFIG SET min-replicas-to-write {count}")).await;
    refused(&server, ErrorKind::Unavailable, "`min-replicas-to-write`", async || set(1).await, async || set(0).await).await;
}

#[tokio::test]
async fn a_server_emptied_while_a_queue_is_paused_has_no_pause_any_more_and_workers_are_rung() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("paused"));
    let mut consumer = consumer(&*broker, &queue).await;
    send_one(&*broker, &queue, 1).await.unwrap();
    broker.admin().pause(&queue, None).await.unwrap();
    let emptying = async {
        somebody_waits(&server, &queue).await;
        let _: () = tell(&mut operator(&server).await, "FLUSHALL").await;
        assert_eq!(broker.admin().paused(&queue).await.unwrap(), Paused::No);
        send_one(&*broker, &queue, 2).await.unwrap();
        Instant::now()
    };
    let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(14)), emptying);
    assert_eq!(Sample::number(&got.unwrap()[0]), Some(2));
    assert!(sent.elapsed() < Duration::from_secs(5), "found only by looking, after {:?}", sent.elapsed());
}

#[tokio::test]
async fn a_server_emptied_while_tasks_are_held_holds_none_and_what_is_held_next_is_listed() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("held"));
    let mut consumer = consumer(&*broker, &queue).await;
    for number in [1, 2] {
        send_one(&*broker, &queue, number).await.unwrap();
        let got = reserve(&mut *consumer, 1, SOON).await.unwrap();
        let hold = Settlement::Hold(Sample::new(number).envelope(), "look".into());
        settle_all(&*consumer.settler(), &got, hold).await.unwrap();
        assert_eq!(broker.admin().held(&queue, None, 10).await.unwrap().tasks.len(), 1);
        if number == 1 {
            let _: () = tell(&mut operator(&server).await, "FLUSHALL").await;
            assert!(broker.admin().held(&queue, None, 10).await.unwrap().tasks.is_empty());
            assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 0);
        }
    }
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 1);
    assert_eq!(work(&mut *consumer, 1, SOON).await, [2]);
}

#[tokio::test]
async fn a_queue_that_was_emptied_away_is_missed_by_those_who_may_not_make_it_and_workers_go_on_once_it_is_made() {
    let server = redis::start(NONE).await.unwrap();
    let (maker, queue) = (connect(&url(&server)).await.unwrap(), queue("made"));
    assert!(maker.declare(&queue).await.unwrap().created);
    let never = anyqueue_core::ConnectOptions { create: Create::Never, ..options(&url(&server)) };
    let broker = anyqueue_redis::DRIVER.open(never).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let emptying = async {
        somebody_waits(&server, &queue).await;
        let _: () = tell(&mut operator(&server).await, "FLUSHALL").await;
        // Who waits is rung, looks, and leaves a mark: that makes no queue.
        broker.admin().pause(&queue, None).await.unwrap();
        broker.admin().resume(&queue).await.unwrap();
        somebody_waits(&server, &queue).await;
        for error in [send_one(&*broker, &queue, 1).await.unwrap_err(), broker.declare(&queue).await.unwrap_err()] {
            assert_eq!((error.kind(), error.effect()), (ErrorKind::NotFound, Effect::None), "{error}");
            assert!(error.to_string().contains("`queue-runner init`"), "{error}");
        }
        assert!(maker.declare(&queue).await.unwrap().created);
        send_one(&*broker, &queue, 2).await.unwrap();
        Instant::now()
    };
    let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(14)), emptying);
    assert_eq!(Sample::number(&got.unwrap()[0]), Some(2));
    assert!(sent.elapsed() < Duration::from_secs(5), "found only by looking, after {:?}", sent.elapsed());
}
