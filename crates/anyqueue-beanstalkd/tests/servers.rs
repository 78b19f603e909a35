//! Several servers in one URL.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy sees in functions marked as tests only")]

mod support;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyqueue_core::{Accepted, Defaults, ErrorKind, Figure, Incoming, Settlement, Severity, State, Which};
use anyqueue_testkit::servers::beanstalkd;
use anyqueue_testkit::{Process, Sample, Server};
use support::*;

async fn two() -> (Process, Process, String) {
    let (a, b) = (beanstalkd::start(&[]).await.unwrap(), beanstalkd::start(&[]).await.unwrap());
    let url = format!("beanstalkd://{},{}", a.address(), b.address());
    (a, b, url)
}

fn servers(sent: &[Accepted]) -> BTreeSet<String> {
    sent.iter().map(|accepted| accepted.native_id.as_deref().unwrap().split_once('/').unwrap().0.to_owned()).collect()
}

#[tokio::test]
async fn sends_go_to_all_and_reserves_come_from_all() {
    let (a, b, url) = two().await;
    let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
    let mut sent = Vec::new();
    for number in 0..10 {
        sent.push(broker.send(&queue, &[task(number)]).await.remove(0).unwrap());
    }
    assert_eq!(servers(&sent), [a.address(), b.address()].map(|address| address.to_string()).into(), "ids say which");
    assert_eq!(broker.admin().stats(&queue).await.unwrap().ready.value(), Some(10));
    let shown = broker.admin().peek(&queue, State::Ready, 10).await.unwrap();
    assert!(shown.len() == 10 && shown.iter().all(|task| task.native.id.as_deref().unwrap().contains(':')));
    let (mut consumer, mut numbers) = (consume(&*broker, &queue).await, BTreeSet::new());
    while numbers.len() < 10 {
        let got = reserve(&mut *consumer, SOON).await;
        assert!(!got.is_empty(), "{numbers:?} came");
        numbers.extend(got.iter().filter_map(Sample::number));
        done(&*consumer.settler(), &got).await;
    }
    assert_eq!(broker.admin().stats(&queue).await.unwrap().reserved.value(), Some(0));
}

#[tokio::test]
async fn a_waiting_worker_is_woken_by_every_server() {
    let (a, b, url) = two().await;
    let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
    let mut consumer = consume(&*broker, &queue).await;
    for server in [&a, &b, &a] {
        let sender = connect_to(server.address()).await;
        let sending = async {
            eventually("the worker waits", || {
                let waiting = Plain::connect(server.address()).figure("stats", "current-waiting");
                async move { waiting == "1" }
            })
            .await;
            sender.send(&queue, &[task(7)]).await.remove(0).unwrap();
        };
        let (got, ()) = tokio::join!(reserve(&mut *consumer, SOON * 5), sending);
        assert_eq!(got.iter().filter_map(Sample::number).collect::<Vec<_>>(), [7]);
        done(&*consumer.settler(), &got).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_is_left_out_and_taken_back() {
    let (a, b, url) = two().await;
    let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
    let mut consumer = consume(&*broker, &queue).await;
    b.kill().await.unwrap();
    // What is on its way to a server while it dies may fail; nothing after that.
    for _ in 0..2 {
        drop(broker.send(&queue, &[task(100)]).await);
    }
    let mut sent = Vec::new();
    for number in 0..6 {
        sent.push(broker.send(&queue, &[task(number)]).await.remove(0).unwrap());
    }
    assert_eq!(servers(&sent), [a.address().to_string()].into());
    let findings = broker.diagnose().await.unwrap();
    assert!(
        findings.iter().any(|f| f.severity == Severity::Problem && f.text.contains(&b.address().to_string())),
        "{findings:?}"
    );
    let mut numbers = BTreeSet::new();
    while !(0..6).all(|number| numbers.contains(&number)) {
        let got = reserve(&mut *consumer, SOON).await;
        assert!(!got.is_empty(), "{numbers:?} came while one server is down");
        numbers.extend(got.iter().filter_map(Sample::number));
        done(&*consumer.settler(), &got).await;
    }
    Server::start(&b).await.unwrap();
    eventually("the server is taken back for sends", || async {
        let accepted = broker.send(&queue, &[task(200)]).await.remove(0).unwrap();
        servers(&[accepted]).contains(&b.address().to_string())
    })
    .await;
    Plain::connect(b.address()).put("q", r#"{"task":"sample","data":300}"#);
    eventually("and for reserves", || {
        let got = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(reserve(&mut *consumer, SOON)));
        async move { got.iter().any(|delivery| Sample::number(delivery) == Some(300)) }
    })
    .await;
    assert!(broker.info().reconnects > 0, "{:?}", broker.info());
}

#[tokio::test]
async fn one_dead_server_of_two_does_not_keep_us_from_connecting_but_two_do() {
    let (a, b, url) = two().await;
    b.kill().await.unwrap();
    let broker = connect(&url).await.unwrap();
    assert_eq!(broker.admin().stats(&queue("q")).await.unwrap().ready, Figure::AtLeast(0), "half of it is not known");
    a.kill().await.unwrap();
    let error = connect(&url).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    for server in [&a, &b] {
        assert!(error.to_string().contains(&server.address().to_string()), "{error}");
    }
}

#[tokio::test]
async fn processes_that_send_one_task_each_do_not_all_begin_with_the_same_server() {
    let (a, b, url) = two().await;
    for number in 0..40 {
        let sender = connect(&url).await.unwrap();
        sender.send(&queue("q"), &[task(number)]).await.remove(0).unwrap();
        sender.close().await.unwrap();
    }
    for server in [&a, &b] {
        let figures = connect_to(server.address()).await.admin().stats(&queue("q")).await.unwrap();
        assert!((1..40).contains(&figures.ready.value().unwrap()), "{}: {figures:?}", server.address());
    }
}

#[tokio::test]
async fn held_tasks_of_all_servers_are_listed_and_kicked() {
    let (_a, _b, url) = two().await;
    let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
    for number in 0..6 {
        broker.send(&queue, &[task(number)]).await.remove(0).unwrap();
    }
    let (mut consumer, mut ids) = (consume(&*broker, &queue).await, BTreeSet::new());
    while ids.len() < 6 {
        for delivery in reserve(&mut *consumer, SOON).await {
            let incoming = Incoming::read(&delivery, "default", Defaults::default());
            let parked = incoming.held("later", false, std::time::SystemTime::now());
            let hold = Settlement::Hold(parked, "later".into());
            consumer.settler().settle(&[(delivery.receipt, hold)]).await.remove(0).unwrap();
            ids.insert(incoming.id);
        }
    }
    let (mut listed, mut after) = (BTreeSet::new(), None);
    loop {
        let page = broker.admin().held(&queue, after.as_deref(), 2).await.unwrap();
        assert!(page.tasks.len() <= 2);
        listed.extend(page.tasks.iter().map(|task| Incoming::peeked(task, "default", "q", Defaults::default()).id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, ids);
    let one = *ids.first().unwrap();
    assert_eq!(broker.admin().kick(&queue, &Which::Ids(vec![one])).await.unwrap(), 1);
    assert_eq!(broker.admin().kick(&queue, &Which::First(4)).await.unwrap(), 4);
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 1);
    let stats = broker.admin().stats(&queue).await.unwrap();
    assert_eq!((stats.ready.value(), stats.held.value()), (Some(6), Some(0)));
}

#[tokio::test]
async fn what_only_a_dead_server_knows_is_unknown_and_not_nothing() {
    let (a, b, url) = two().await;
    let queue = queue("q");
    let there = connect_to(b.address()).await;
    let task = task(1);
    there.send(&queue, std::slice::from_ref(&task)).await.remove(0).unwrap();
    let broker = connect(&url).await.unwrap();
    b.kill().await.unwrap();
    let (admin, ids) = (broker.admin(), [task.id]);
    eventually("its end is noticed", || async {
        broker.admin().stats(&queue).await.is_ok_and(|stats| stats.ready != Figure::Exact(1))
    })
    .await;
    let kind = |e: anyqueue_core::Error| e.kind();
    assert_eq!(admin.info(&queue, task.id).await.map_err(kind), Err(ErrorKind::Unavailable));
    assert_eq!(admin.delete(&queue, &ids).await.remove(0).map_err(kind), Err(ErrorKind::Unavailable));
    assert_eq!(admin.peek(&queue, State::Ready, 10).await.map(drop).map_err(kind), Err(ErrorKind::Unavailable));
    assert_eq!(admin.held(&queue, None, 10).await.map(drop).map_err(kind), Err(ErrorKind::Unavailable));
    assert_eq!(admin.kick(&queue, &Which::Ids(ids.to_vec())).await.map_err(kind), Err(ErrorKind::Unavailable));
    assert_eq!(admin.purge(&queue, &[State::Ready]).await.map_err(kind), Err(ErrorKind::Unavailable));
    let error = admin.info(&queue, task.id).await.unwrap_err();
    assert!(error.to_string().contains(&b.address().to_string()), "{error}");
    a.kill().await.unwrap();
    eventually("no server answers", || async { broker.admin().held(&queue, None, 10).await.is_err() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_powered_off_keeps_nobody_waiting_while_another_one_is_up() {
    let (a, off) = (beanstalkd::start(&[]).await.unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    // Nobody accepts there: what is asked of it stays without an answer.
    let broker = connect(&format!("beanstalkd://{},{}", off.local_addr().unwrap(), a.address())).await.unwrap();
    let (queue, begun, mut longest) = (queue("q"), Instant::now(), Duration::ZERO);
    let mut consumer = consume(&*broker, &queue).await;
    while begun.elapsed() < Duration::from_secs(3) {
        let once = Instant::now();
        broker.send(&queue, &[task(1)]).await.remove(0).unwrap();
        let got = reserve(&mut *consumer, SOON).await;
        done(&*consumer.settler(), &got).await;
        broker.admin().stats(&queue).await.unwrap();
        longest = longest.max(once.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[tokio::test]
async fn a_task_for_a_server_that_came_back_mute_goes_to_another_one() {
    let (a, b, url) = two().await;
    let (broker, queue) = (connect(&url).await.unwrap(), queue("q"));
    a.kill().await.unwrap();
    let _mute = std::net::TcpListener::bind(a.address()).unwrap();
    eventually("its end is noticed", || async { broker.info().connections <= 1 }).await;
    for number in 0..4 {
        let accepted = broker.send(&queue, &[task(number)]).await.remove(0).unwrap();
        assert_eq!(servers(&[accepted]), [b.address().to_string()].into());
    }
}

#[tokio::test]
async fn a_worker_that_sends_a_task_for_each_one_it_gets_takes_from_all_servers() {
    let (a, b, url) = two().await;
    for server in [&a, &b] {
        let mut plain = Plain::connect(server.address());
        for _ in 0..10 {
            plain.put("q", r#"{"task":"t"}"#);
        }
    }
    let broker = connect(&url).await.unwrap();
    let (mut consumer, mut came) = (consume(&*broker, &queue("q")).await, BTreeSet::new());
    for number in 0..6 {
        let got = consumer.reserve(std::num::NonZeroUsize::MIN, SOON).await.unwrap();
        done(&*consumer.settler(), &got).await;
        came.extend(got.iter().map(|got| got.native.id.as_deref().unwrap().split_once('/').unwrap().0.to_owned()));
        broker.send(&queue("next"), &[task(number)]).await.remove(0).unwrap();
    }
    assert_eq!(came, [a.address(), b.address()].map(|address| address.to_string()).into());
}

#[tokio::test]
async fn a_server_that_is_slow_to_say_whether_a_queue_is_paused_keeps_no_task_of_another_one_back() {
    let quick = beanstalkd::start(&[]).await.unwrap();
    let slow = Fake::start(&[("peek-ready", &["later: NOT_FOUND"])]);
    Plain::connect(quick.address()).put("q", r#"{"task":"t"}"#);
    let broker = connect(&format!("beanstalkd://{},{}", quick.address(), slow.address)).await.unwrap();
    let mut consumer = consume(&*broker, &queue("q")).await;
    let (begun, got) = (Instant::now(), reserve(&mut *consumer, SOON * 5).await);
    assert_eq!(got.len(), 1);
    assert!(slow.heard("peek-ready") && begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    slow.open();
}

#[tokio::test]
async fn a_reserve_is_not_kept_waiting_by_a_server_that_is_silent() {
    let silent = Fake::start(&[("reserve-with-timeout", &["later: RESERVED 5 12\r\n{\"task\":\"t\"}", "TIMED_OUT"])]);
    let broker = connect_to(silent.address).await;
    let mut consumer = consume(&*broker, &queue("q")).await;
    let begun = Instant::now();
    let unheard = consumer.reserve(NonZeroUsize::MIN, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(unheard.kind(), ErrorKind::Timeout, "it is not known that the queue is empty: {unheard}");
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
}
