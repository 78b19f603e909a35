//! What falls due: delayed tasks and guards, where a server takes only some of what follows them.

mod shared;

use std::time::Duration;

use anyqueue_core::{Figure, QueueName};
use anyqueue_testkit::servers::gearmand;
use anyqueue_testkit::{Proxy, Sample, Server};
use shared::{CAN_DO, GRAB, PROGRESS, Raw, ask, connect, consume, done, jobs, kill, one, queue, reserve, send, take, until};

const TTR: Duration = Duration::from_secs(1);

/// A queue that takes no more keeps its own delayed tasks waiting, and no other's; what was moved is not moved again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_keeps_no_other_waiting_and_moves_each_task_once() {
    let server = gearmand::start(&[]).await.unwrap();
    let broker = connect(server.address(), "").await;
    let other = QueueName::new("other").unwrap();
    send(&*broker, &[Sample::new(0).envelope()]).await;
    ask(server.address(), "maxqueue orders 1");
    let later = |n| Sample::new(n).delay(TTR).envelope();
    send(&*broker, &[later(1), later(2)]).await;
    broker.send(&other, &[later(3)]).await.remove(0).unwrap();
    let mut elsewhere = broker.consume(&other, Default::default()).await.unwrap();
    let mut consumer = consume(&*broker).await;
    let moved = one(&mut *elsewhere).await;
    done(&*elsewhere, &moved).await;
    assert!(reserve(&mut *elsewhere, 1, TTR * 4).await.unwrap().is_empty(), "a task was moved again and again");
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let delivery = take(&mut *consumer, 1).await.remove(0);
        numbers.extend(Sample::number(&delivery));
        done(&*consumer, &delivery).await;
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
    assert!(reserve(&mut *consumer, 1, TTR * 4).await.unwrap().is_empty());
}

/// A frozen worker's task whose copy is refused stays where it is until there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_workers_task_comes_back_once_there_is_room() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (silent, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    send(&*broker, &[Sample::new(1).ttr(TTR).envelope()]).await;
    let lost = one(&mut *consume(&*silent).await).await;
    proxy.black(true);
    ask(server.address(), "maxqueue orders 1");
    let mut consumer = consume(&*broker).await;
    assert!(reserve(&mut *consumer, 1, TTR * 4).await.unwrap().is_empty(), "there was no room for it");
    ask(server.address(), "maxqueue orders 0");
    let again = one(&mut *consumer).await;
    assert_eq!((again.raw.clone(), again.native.redeliveries), (lost.raw, Figure::Exact(1)));
    done(&*consumer, &again).await;
    assert!(reserve(&mut *consumer, 1, TTR * 4).await.unwrap().is_empty(), "it came twice");
}

/// A worker's death is noticed however late the next one gets the task.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_is_noticed_long_after_the_lease() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (doomed, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    send(&*broker, &[Sample::new(1).ttr(TTR).envelope()]).await;
    let taken = one(&mut *consume(&*doomed).await).await;
    broker.admin().pause(&queue(), None).await.unwrap();
    kill(&proxy);
    let mut consumer = consume(&*broker).await;
    assert!(reserve(&mut *consumer, 1, TTR * 4).await.unwrap().is_empty(), "it is paused");
    broker.admin().resume(&queue()).await.unwrap();
    let again = one(&mut *consumer).await;
    assert_eq!(again.raw, taken.raw);
    assert!(again.native.redeliveries.value() > Some(0), "nobody knows that its worker died: {:?}", again.native);
}

/// The progress that another client's worker notes is no lease, and is not ended.
#[tokio::test(flavor = "multi_thread")]
async fn the_progress_of_a_foreign_worker_is_no_lease() {
    let server = gearmand::start(&[]).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (doomed, broker) = (connect(proxy.address(), "").await, connect(server.address(), "").await);
    for n in 1..=2 {
        send(&*broker, &[Sample::new(n).ttr(TTR).envelope()]).await;
    }
    let mut first = consume(&*doomed).await;
    let _taken = take(&mut *first, 2).await;
    kill(&proxy);
    until("the server has not got the tasks back", || jobs(server.address(), "orders") == (2, 0)).await;
    let mut foreign = Raw::connect(server.address());
    foreign.say(CAN_DO, &["orders"]);
    for numbers in [["1", "100"], ["0", "0"]] {
        foreign.say(GRAB, &[]);
        let handle = foreign.hear().remove(0);
        foreign.say(PROGRESS, &[&handle, numbers[0], numbers[1]]);
    }
    foreign.settle();
    let mut consumer = consume(&*broker).await;
    assert!(reserve(&mut *consumer, 1, TTR * 6).await.unwrap().is_empty(), "a foreign worker's task was given to another one");
    drop(foreign);
    take(&mut *consumer, 2).await;
}

/// The guard that a killed worker has left is no guard of the next lease, which has another end.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_guard_does_not_hide_a_frozen_worker() {
    let server = gearmand::start(&[]).await.unwrap();
    let (killed, frozen) = (Proxy::start(server.address()).await.unwrap(), Proxy::start(server.address()).await.unwrap());
    let (doomed, silent) = (connect(killed.address(), "").await, connect(frozen.address(), "").await);
    let broker = connect(server.address(), "").await;
    let id = "0190e7a4-7d3b-7c3e-8a51-0123456789ab";
    Raw::connect(server.address()).submit("orders", "theirs", &format!(r#"{{"task":"t","id":"{id}","ttr":3}}"#));
    let _taken = one(&mut *consume(&*doomed).await).await;
    kill(&killed);
    until("the server has not got the task back", || jobs(server.address(), "orders") == (1, 0)).await;
    let again = one(&mut *consume(&*silent).await).await;
    assert!(again.native.redeliveries.value() > Some(0), "{:?}", again.native);
    assert_eq!(jobs(server.address(), "orders;guard").0, 2, "the second lease has no guard of its own");
    frozen.black(true);
    let third = one(&mut *consume(&*broker).await).await;
    assert_eq!(third.native.redeliveries, Figure::Exact(1));
}
