//! Few connections serve many queues and many reserved tasks.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy sees in functions marked as tests only")]

mod support;

use std::time::{Duration, Instant};

use anyqueue_core::{Defaults, ErrorKind, Figure, Incoming, Settlement, Touch};
use anyqueue_testkit::servers::beanstalkd;
use anyqueue_testkit::{Sample, Server};
use support::*;

async fn waiting(server: &impl Server, count: &str) {
    eventually("workers wait", || {
        let waiting = Plain::connect(server.address()).figure("stats", "current-waiting");
        async move { waiting == count }
    })
    .await;
}

#[tokio::test]
async fn one_connection_waits_for_fifty_queues() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let broker = connect_to(server.address()).await;
    let mut workers = Vec::new();
    for n in 0..50 {
        let (queue, broker) = (queue(&format!("q{n}")), broker.clone());
        workers.push(tokio::spawn(async move {
            let mut consumer = consume(&*broker, &queue).await;
            let got = reserve(&mut *consumer, SOON * 10).await;
            done(&*consumer.settler(), &got).await;
            got.iter().filter_map(Sample::number).collect::<Vec<_>>()
        }));
    }
    waiting(&server, "1").await;
    assert!(broker.info().connections <= 5, "{:?}", broker.info());
    let before = broker.info().round_trips;
    tokio::time::sleep(SOON).await;
    let trips = broker.info().round_trips - before;
    assert!(trips < 50, "{trips} round trips in {SOON:?}: idle queues are asked after together");
    for n in (0..50).rev() {
        broker.send(&queue(&format!("q{n}")), &[task(n)]).await.remove(0).unwrap();
    }
    for (n, worker) in workers.into_iter().enumerate() {
        assert_eq!(worker.await.unwrap(), [n as u64], "each queue's own task");
    }
    assert!(broker.info().connections <= 5, "{:?}", broker.info());
}

#[tokio::test]
async fn a_worker_that_holds_tasks_on_its_connections_is_woken_all_the_same() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let broker = connect(&format!("beanstalkd://{}?connections=2", server.address())).await.unwrap();
    let (queue, mut kept) = (queue("q"), Vec::new());
    let mut consumer = consume(&*broker, &queue).await;
    for n in 0..6 {
        let sending = async {
            waiting(&server, "1").await;
            broker.send(&queue, &[task(n)]).await.remove(0).unwrap();
            Instant::now()
        };
        let (got, sent) = tokio::join!(reserve(&mut *consumer, SOON * 5), sending);
        assert_eq!(got.iter().filter_map(Sample::number).collect::<Vec<_>>(), [n]);
        assert!(sent.elapsed() < Duration::from_millis(900), "passed on at once, not after its delay");
        assert_eq!(got[0].native.redeliveries, Figure::Exact(0), "passing a task on is no death");
        kept.extend(got);
    }
    assert_eq!(broker.info().connections, 3, "two for tasks, one for sends");
    assert_eq!(broker.admin().stats(&queue).await.unwrap().reserved.value(), Some(6));
    done(&*consumer.settler(), &kept).await;
}

#[tokio::test]
async fn many_reserved_tasks_are_spread_over_the_connections() {
    let server = beanstalkd::start(&["-f", "50"]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    broker.send(&queue, &(0..1000).map(task).collect::<Vec<_>>()).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    let (mut consumer, mut kept) = (consume(&*broker, &queue).await, Vec::new());
    while kept.len() < 1000 {
        kept.extend(reserve(&mut *consumer, SOON).await);
    }
    assert!(kept.iter().filter_map(Sample::number).is_sorted(), "first in, first out, over whichever connection");
    let mut by_connection = std::collections::BTreeMap::<u64, usize>::new();
    kept.iter().for_each(|delivery| *by_connection.entry(delivery.receipt.epoch).or_default() += 1);
    assert!(by_connection.len() == 3 && by_connection.values().all(|held| *held < 600), "one waits: {by_connection:?}");
    done(&*consumer.settler(), &kept).await;
}

#[tokio::test]
async fn a_touch_for_longer_than_the_tasks_own_ttr_is_kept_up() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    Plain::connect(server.address()).ask("use q");
    let mut short = task(1);
    short.ttr = Duration::from_secs(1);
    broker.send(&queue, &[short.clone()]).await.remove(0).unwrap();
    let (mut holder, mut other) = (consume(&*broker, &queue).await, consume(&*broker, &queue).await);
    let got = reserve(&mut *holder, SOON).await.remove(0);
    let touch = Touch { receipt: got.receipt.clone(), ttr: Duration::from_secs(4), task: short };
    let left = holder.settler().touch(&[touch]).await.remove(0).unwrap();
    assert!(left > Duration::from_secs(3), "{left:?}");
    assert!(reserve(&mut *other, SOON).await.is_empty(), "three times its TTR later it is still reserved");
    assert_eq!(reserve(&mut *other, SOON * 2).await.len(), 1, "and not for ever");
}

#[tokio::test]
async fn a_task_given_back_before_a_restart_is_not_taken_for_dead_after_it() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    broker.send(&queue, &[task(1)]).await.remove(0).unwrap();
    let mut consumer = consume(&*broker, &queue).await;
    for _ in 0..2 {
        let got = reserve(&mut *consumer, SOON).await.remove(0);
        let same = Incoming::read(&got, "default", Defaults::default()).unchanged(Duration::ZERO);
        consumer.settler().settle(&[(got.receipt, Settlement::Release(same))]).await.remove(0).unwrap();
    }
    server.kill().await.unwrap();
    Server::start(&server).await.unwrap();
    let broker = connect_to(server.address()).await;
    let mut consumer = consume(&*broker, &queue).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    assert_eq!(got.native.redeliveries, Figure::Exact(0), "{:?}", got.native);
    drop((got, consumer));
    // The process ends without a word: that is one death, whatever was counted before the restart.
    drop(broker);
    let broker = connect_to(server.address()).await;
    let mut consumer = consume(&*broker, &queue).await;
    let again = reserve(&mut *consumer, SOON).await.remove(0);
    assert_eq!(again.native.redeliveries, Figure::Exact(1), "{:?}", again.native);
}

#[test]
fn connections_live_where_the_broker_was_connected() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (home, guest) = (runtime(), runtime());
    let server = home.block_on(beanstalkd::start(&[])).unwrap();
    let broker = home.block_on(connect_to(server.address()));
    let queue = queue("q");
    let consumer = guest.block_on(async {
        broker.send(&queue, &[task(1)]).await.remove(0).unwrap();
        let mut consumer = consume(&*broker, &queue).await;
        let got = reserve(&mut *consumer, SOON).await;
        done(&*consumer.settler(), &got).await;
        consumer
    });
    drop(guest);
    home.block_on(async {
        let mut consumer = consumer;
        broker.send(&queue, &[task(2)]).await.remove(0).unwrap();
        assert_eq!(reserve(&mut *consumer, SOON).await.len(), 1);
        assert_eq!(broker.info().reconnects, 0, "the guest's end has closed nothing");
    });
}

#[test]
fn a_runtime_that_ends_keeps_no_reserve_waiting() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (home, guest) = (runtime(), runtime());
    let fake = Fake::start(&[("reserve-with-timeout", &["later: TIMED_OUT"])]);
    let mut consumer = home.block_on(async { consume(&*connect_to(fake.address).await, &queue("q")).await });
    let waiting = guest.spawn(async move {
        let one = std::num::NonZeroUsize::MIN;
        [consumer.reserve(one, SOON * 20).await, consumer.reserve(one, SOON * 20).await]
    });
    home.block_on(eventually("it looks", || async { fake.heard("reserve-with-timeout 0") }));
    drop(home);
    let both = guest.block_on(async { tokio::time::timeout(SOON * 3, waiting).await });
    for answer in both.expect("no endless wait").unwrap() {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Closed);
    }
}

#[tokio::test]
async fn tasks_cost_few_round_trips() {
    let server = beanstalkd::start(&["-f", "50"]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    let (mut consumer, begun) = (consume(&*broker, &queue).await, broker.info().round_trips);
    for part in 0..4 {
        let batch: Vec<_> = (0..1000).map(|n| task(part * 1000 + n)).collect();
        broker.send(&queue, &batch).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    }
    assert_eq!(broker.info().round_trips - begun, 4, "one for each batch");
    let (begun, mut left) = (broker.info().round_trips, 4000);
    while left > 0 {
        let got = consumer.reserve(std::num::NonZeroUsize::new(256).unwrap(), SOON).await.unwrap();
        done(&*consumer.settler(), &got).await;
        left -= got.len();
    }
    let trips = broker.info().round_trips - begun;
    assert!(trips < 4000 / 20, "{trips} round trips for 4000 tasks that were reserved and done");
    let begun = broker.info().round_trips;
    assert!(reserve(&mut *consumer, SOON).await.is_empty());
    let trips = broker.info().round_trips - begun;
    assert!(trips < 30, "{trips} round trips in {SOON:?} of waiting");
}
