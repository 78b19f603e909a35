//! Leases of workers that are cut off, servers that were killed, and guards that nobody needs any more.

mod shared;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyqueue_core::{BoxFuture, Clock, ConnectOptions, ErrorKind, Figure, Moment, Settlement, State};
use anyqueue_testkit::servers::gearmand;
use anyqueue_testkit::{Proxy, Sample, Server, SystemClock};
use shared::{
    CAN_DO, COMPLETE, GRAB, Raw, SUBMIT_LATER, connect, connect_url, consume, done, jobs, one, reserve, send, settle, take, until,
};

const TTR: Duration = Duration::from_secs(1);

/// A worker that is cut off without a word, as a frozen one is: another one takes its place, and when it speaks again it
/// is late and brings nothing back.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_workers_task_comes_back_once() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (silent, other) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    send(&*other, &[Sample::new(1).ttr(TTR).envelope()]).await;
    let (mut first, mut second) = (consume(&*silent).await, consume(&*other).await);
    drop(second);
    let lost = one(&mut *first).await;
    proxy.black(true);
    second = consume(&*other).await;
    let again = one(&mut *second).await;
    assert_eq!((Sample::number(&again), again.native.redeliveries), (Some(1), Figure::Exact(1)));
    let reserved = other.admin().stats(&shared::queue()).await.unwrap().reserved;
    assert_eq!(reserved.value(), Some(1), "the silent worker's is counted beside the one that took its place");
    proxy.black(false);
    let late = settle(&*first.settler(), &lost.receipt, Settlement::Done).await;
    assert!(late.is_err_and(|e| e.is_lease_lost()), "it settled what another worker has");
    done(&*second, &again).await;
    drop((first, silent));
    assert!(reserve(&mut *second, 1, TTR * 4).await.unwrap().is_empty(), "the task came a third time");
}

/// A touch that the server answers after the lease's old end has renewed it: the worker's clock waits for the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_to_a_touch_costs_no_lease() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let broker = connect(proxy.address(), "").await;
    send(&*broker, &[Sample::new(1).ttr(TTR * 2).envelope()]).await;
    let mut consumer = consume(&*broker).await;
    let delivery = one(&mut *consumer).await;
    proxy.delay(TTR);
    tokio::time::sleep(TTR / 2).await;
    let task = shared::read(&delivery).unchanged(Duration::ZERO);
    let touch = anyqueue_core::Touch { receipt: delivery.receipt.clone(), ttr: Duration::from_secs(60), task };
    consumer.settler().touch(&[touch]).await.remove(0).unwrap();
    proxy.delay(Duration::ZERO);
    done(&*consumer, &delivery).await;
    assert!(reserve(&mut *consumer, 1, TTR * 3).await.unwrap().is_empty(), "a task came again that was touched in time");
}

/// Guards of settled tasks are cancelled at once, so that neither disk nor workers have to do with them any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_settled_tasks_guard_is_cancelled() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    send(&*broker, &Sample::many(5)).await;
    let mut consumer = consume(&*broker).await;
    for delivery in take(&mut *consumer, 5).await {
        assert!(jobs(server.address(), "orders;guard").0 > 0, "a reserved task has no guard");
        done(&*consumer, &delivery).await;
    }
    let is_cancelled = |line: &String| line.split('\t').nth(2) == Some("1");
    until("guards are left", || shared::ask(server.address(), "show jobs").iter().all(is_cancelled)).await;
    server.kill().await.unwrap();
    Server::start(&server).await.unwrap();
    assert_eq!(jobs(server.address(), "orders;guard").0, 0, "they were on the disk still");
}

/// Under `lease = "connection"` nothing is written beside the task, and the worker's own clock ends its leases.
#[tokio::test(flavor = "multi_thread")]
async fn without_guards_a_lease_is_the_workers_own() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "&lease=connection").await;
    send(&*broker, &[Sample::new(1).ttr(TTR).envelope()]).await;
    let mut consumer = consume(&*broker).await;
    assert_eq!(one(&mut *consumer).await.native.redeliveries, Figure::Unknown);
    assert_eq!(jobs(server.address(), "orders;guard").0, 0);
    let again = one(&mut *consumer).await;
    assert_eq!(again.native.redeliveries, Figure::AtLeast(1));
    done(&*consumer, &again).await;
}

/// A server that was killed with tasks reserved has them and their guards again. Each task comes once.
#[tokio::test(flavor = "multi_thread")]
async fn guards_that_survive_a_restart_bring_nothing_twice() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    send(&*broker, &(0..6).map(|n| Sample::new(n).ttr(TTR * 2).envelope()).collect::<Vec<_>>()).await;
    let mut consumer = consume(&*broker).await;
    let reserved = take(&mut *consumer, 6).await;
    done(&*consumer, &reserved[0]).await;
    server.kill().await.unwrap();
    Server::start(&server).await.unwrap();
    let lost = settle(&*consumer.settler(), &reserved[1].receipt, Settlement::Done).await;
    assert!(lost.is_err(), "a settle with a connection to a dead server was taken");
    let back = take(&mut *consumer, 5).await;
    let mut numbers: Vec<_> = back.iter().filter_map(Sample::number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    for delivery in &back {
        done(&*consumer, delivery).await;
    }
    assert!(reserve(&mut *consumer, 1, TTR * 5).await.unwrap().is_empty(), "a guard brought a task back that was done");
    until("guards are left", || jobs(server.address(), "orders;guard") == (0, 0)).await;
}

/// A task that was held, and ran and was held again since its worker died in between, is held once.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_held_twice_is_listed_and_kicked_once() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let task = Sample::new(1).envelope();
    for _ in 0..2 {
        send(&*broker, std::slice::from_ref(&task)).await;
        let mut consumer = consume(&*broker).await;
        let delivery = one(&mut *consumer).await;
        let body = shared::read(&delivery).held("look", false, std::time::SystemTime::now());
        settle(&*consumer.settler(), &delivery.receipt, Settlement::Hold(body, "look".into())).await.unwrap();
    }
    assert_eq!(broker.admin().held(&shared::queue(), None, 10).await.unwrap().tasks.len(), 1);
    assert_eq!(broker.admin().kick(&shared::queue(), &anyqueue_core::Which::All).await.unwrap(), 1);
    assert_eq!(jobs(server.address(), "orders;held").0, 0);
}

/// Where no guard can be written no task is handed out, none is lost, the error says why, and running tasks go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_guard_is_not_handed_out() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let warm = consume(&*broker).await;
    send(&*broker, &[Sample::new(1).envelope(), Sample::new(2).envelope()]).await;
    shared::ask(server.address(), "create function orders;guard");
    shared::ask(server.address(), "maxqueue orders;guard 1");
    let mut consumer = consume(&*broker).await;
    let first = one(&mut *consumer).await;
    let error = reserve(&mut *consumer, 2, Duration::from_millis(500)).await.expect_err("a task without a guard was handed out");
    assert!(matches!(error.kind(), ErrorKind::Full | ErrorKind::Unsupported), "{error}");
    done(&*consumer, &first).await;
    shared::ask(server.address(), "maxqueue orders;guard 0");
    let second = take(&mut *consumer, 1).await.remove(0);
    assert_eq!([&first, &second].map(Sample::number), [Some(1), Some(2)]);
    assert_eq!(second.native.redeliveries, Figure::Exact(0), "nobody has had it");
    drop(warm);
}

/// A task that waits for its guard goes back when its consumer is closed, though the connection has other tasks.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_guard_is_given_back_at_the_end() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    send(&*broker, &[Sample::new(1).envelope(), Sample::new(2).envelope()]).await;
    shared::ask(server.address(), "create function orders;guard");
    shared::ask(server.address(), "maxqueue orders;guard 1");
    let mut consumer = consume(&*broker).await;
    let first = one(&mut *consumer).await;
    let settler = consumer.settler();
    assert!(reserve(&mut *consumer, 2, Duration::from_millis(500)).await.is_err());
    consumer.close().await.unwrap();
    shared::ask(server.address(), "maxqueue orders;guard 0");
    let second = one(&mut *consume(&*broker).await).await;
    assert_eq!([&first, &second].map(Sample::number), [Some(1), Some(2)]);
    settle(&*settler, &first.receipt, Settlement::Done).await.unwrap();
}

/// A task that was fetched and that no worker has asked for is lost by nobody when its time is over.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_handed_out_does_not_count_as_lost() {
    let (one, two) = (gearmand::start(&[]).await.unwrap(), gearmand::start(&[]).await.unwrap());
    for (n, server) in [&one, &two].into_iter().enumerate() {
        send(&*connect(server.address(), "").await, &[Sample::new(n as u64).ttr(TTR).envelope()]).await;
    }
    let both = connect_url(&format!("gearman://{},{}", one.address(), two.address())).await;
    let mut consumer = consume(&*both).await;
    let first = shared::one(&mut *consumer).await;
    done(&*consumer, &first).await;
    let reserved = || jobs(one.address(), "orders").1 + jobs(two.address(), "orders").1;
    until("the second server was not asked", || reserved() == 1).await;
    until("what nobody wants is kept", || reserved() == 0).await;
    let second = take(&mut *consumer, 1).await.remove(0);
    assert_ne!(Sample::number(&first), Sample::number(&second));
    assert_eq!(second.native.redeliveries, Figure::Exact(0), "it counts as lost by a worker");
}

/// The job of the only task that is ready: its unique id.
async fn unique_of(broker: &dyn anyqueue_core::Broker) -> String {
    let ready = broker.admin().peek(&shared::queue(), State::Ready, 1).await.expect("a look");
    ready[0].native.id.as_deref().expect("each job has one").to_owned()
}

fn in_seconds(seconds: u64) -> String {
    (SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs() + seconds).to_string()
}

/// Gets the guard that is due next, as who looks at it: its handle, its function, and what it says of its task.
async fn guard_of(server: std::net::SocketAddr) -> (Raw, Vec<String>) {
    let mut looking = Raw::connect(server);
    looking.say(CAN_DO, &["orders;guard"]);
    loop {
        looking.say(GRAB, &[]);
        let answer = looking.hear();
        if answer.len() > 1 {
            return (looking, answer);
        }
        tokio::time::sleep(TTR / 10).await;
    }
}

/// That a guard is gone does not say that somebody has made a copy of its task: the worker makes it ready itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_is_gone_costs_no_task() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (silent, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    send(&*broker, &[Sample::new(1).ttr(TTR).envelope()]).await;
    let mut first = consume(&*silent).await;
    let taken = one(&mut *first).await;
    proxy.black(true);
    let (mut looking, guard) = guard_of(server.address()).await;
    looking.say(COMPLETE, &[&guard[0], ""]);
    looking.settle();
    proxy.black(false);
    let again = one(&mut *consume(&*broker).await).await;
    assert_eq!((again.raw, again.native.redeliveries), (taken.raw, Figure::Exact(1)));
}

/// While somebody looks at the guard of a worker that was frozen, and wakes, that worker leaves its task alone: the copy
/// of it may be done before a second one is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_waits_for_who_looks_at_its_guard() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (silent, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    send(&*broker, &[Sample::new(1).ttr(TTR).envelope()]).await;
    let mut first = consume(&*silent).await;
    let taken = one(&mut *first).await;
    proxy.black(true);
    let (mut looking, guard) = guard_of(server.address()).await;
    let [handle, _, unique, of_task, body] = &guard[..] else { panic!("{guard:?}") };
    proxy.black(false);
    tokio::time::sleep(TTR).await;
    assert_eq!(jobs(server.address(), "orders"), (1, 1), "it was made ready under the eyes of who looks at its guard");
    looking.submit("orders", &format!("{unique}~1"), body);
    let mut second = consume(&*broker).await;
    let again = one(&mut *second).await;
    assert_eq!((again.raw.clone(), again.native.redeliveries), (taken.raw, Figure::Exact(1)));
    done(&*second, &again).await;
    shared::ask(server.address(), &format!("cancel job {of_task}"));
    looking.say(COMPLETE, &[handle, ""]);
    looking.settle();
    until("the worker that was frozen keeps its task", || jobs(server.address(), "orders") == (0, 0)).await;
    assert!(reserve(&mut *second, 1, TTR * 3).await.unwrap().is_empty(), "a task that is done came back");
}

/// Two guards of one task, left by a worker that died and by one that was frozen, bring it back once, whether that one
/// wakes before the second is due or not.
#[tokio::test(flavor = "multi_thread")]
async fn two_guards_bring_a_task_back_once() {
    for wakes in [false, true] {
        let server = gearmand::start(&[]).await.unwrap();
        let proxy = Proxy::start(server.address()).await.unwrap();
        let (silent, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
        send(&*broker, &[Sample::new(1).ttr(TTR).envelope()]).await;
        let unique = unique_of(&*broker).await;
        let mut first = consume(&*silent).await;
        let taken = one(&mut *first).await;
        proxy.black(true);
        let copy = format!("{unique}\0H:none:1\0{}", String::from_utf8_lossy(&taken.raw));
        let mut client = Raw::connect(server.address());
        client.say(SUBMIT_LATER, &["orders;guard", &unique.replacen(".r", ".j", 1), &in_seconds(6), &copy]);
        client.hear();
        let mut second = consume(&*broker).await;
        let again = one(&mut *second).await;
        done(&*second, &again).await;
        proxy.black(!wakes);
        assert!(reserve(&mut *second, 1, TTR * 7).await.unwrap().is_empty(), "a task that is done came back: {wakes}");
        until("the second guard is there still", || jobs(server.address(), "orders;guard") == (0, 0)).await;
    }
}

/// Guards that are put again at the same moment, each under the name of the other, are not both lost.
#[tokio::test(flavor = "multi_thread")]
async fn guards_that_are_due_together_do_not_swallow_one_another() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let task = Sample::new(1).ttr(TTR * 60).envelope();
    send(&*broker, std::slice::from_ref(&task)).await;
    let unique = unique_of(&*broker).await;
    broker.admin().pause(&shared::queue(), None).await.unwrap();
    let copy = |unique: &str| format!("{unique}\0H:none:1\0{}", String::from_utf8_lossy(&task.body));
    for (letter, data) in [("g", copy("gone")), ("g", copy(&unique)), ("k", copy(&unique))] {
        // One that is looked at alone comes first, and the other two are then got at once.
        let of = if data.starts_with("gone") { "gone.g".to_owned() } else { unique.replacen(".r", &format!(".{letter}"), 1) };
        let mut client = Raw::connect(server.address());
        client.say(SUBMIT_LATER, &["orders;guard", &of, &in_seconds(1), &data]);
        client.hear();
    }
    let mut consumer = consume(&*broker).await;
    assert!(reserve(&mut *consumer, 1, TTR * 4).await.unwrap().is_empty(), "it is paused");
    broker.admin().resume(&shared::queue()).await.unwrap();
    let delivery = one(&mut *consumer).await;
    assert!(delivery.native.redeliveries.value() > Some(0), "nobody knows that its worker died: {:?}", delivery.native);
}

/// A touch that came to the server when another worker had the task already renews nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_touch_that_comes_too_late_is_refused() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (silent, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    send(&*broker, &[Sample::new(1).ttr(TTR).envelope()]).await;
    let mut first = consume(&*silent).await;
    let delivery = one(&mut *first).await;
    proxy.black(true);
    let task = shared::read(&delivery).unchanged(Duration::ZERO);
    let touch = anyqueue_core::Touch { receipt: delivery.receipt.clone(), ttr: TTR * 60, task };
    let settler = first.settler();
    let touching = tokio::spawn(async move { settler.touch(&[touch]).await.remove(0) });
    let mut second = consume(&*broker).await;
    let again = one(&mut *second).await;
    proxy.black(false);
    let touched = touching.await.unwrap();
    assert!(touched.as_ref().is_err_and(anyqueue_core::Error::is_lease_lost), "two workers have one task: {touched:?}");
    done(&*second, &again).await;
}

/// A machine on which nothing happens by itself, as in a process that was frozen and does not know it yet.
#[derive(Debug)]
struct Asleep;

impl Clock for Asleep {
    fn now(&self) -> Moment {
        SystemClock.now()
    }

    fn wall(&self) -> SystemTime {
        SystemClock.wall()
    }

    fn sleep_until(&self, _: Moment) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// A worker that is closed right after it was frozen does not give back what others have done meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_frozen_and_is_closed_gives_nothing_back() {
    let server = gearmand::start(&[]).await.unwrap();
    let options = ConnectOptions::new(&format!("gearman://{}", server.address()), Arc::new(Asleep)).unwrap();
    let frozen = anyqueue_gearman::DRIVER.open(options).await.unwrap();
    let broker = connect(server.address(), "").await;
    send(&*broker, &[Sample::new(1).ttr(TTR).envelope()]).await;
    let mut first = consume(&*frozen).await;
    one(&mut *first).await;
    let mut second = consume(&*broker).await;
    let again = one(&mut *second).await;
    done(&*second, &again).await;
    frozen.close().await.unwrap();
    assert!(reserve(&mut *second, 1, TTR * 2).await.unwrap().is_empty(), "a task that is done came back");
}
