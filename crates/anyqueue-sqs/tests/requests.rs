//! What work costs in requests, each of which has a price.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{ConnectOptions, ConsumeOptions, Receipt, Settlement};
use anyqueue_testkit::servers::sqs;
use anyqueue_testkit::{Sample, Server, SystemClock};
use shared::stub::{Stub, ok, received, usual, worked};
use shared::{Place, SOON, consumer, incoming, one, queue, reserve, send};

const TASKS: usize = 2000;
const SLOTS: usize = 64;

/// A backlog that 64 slots work off: what they finish is settled in one call while the next tasks are reserved, as a runner
/// does it. Sends included, no task may cost more than 0.35 requests.
#[tokio::test]
async fn a_backlog_costs_a_third_of_a_request_for_each_task() {
    let server = sqs::start(sqs::fauxqs(false)).await.unwrap();
    let options = ConnectOptions::new(&format!("sqs://{}", server.address()), Arc::new(SystemClock)).unwrap();
    let (broker, queue) = (anyqueue_sqs::DRIVER.open(options).await.unwrap(), queue("backlog"));
    broker.declare(&queue).await.unwrap();
    let before = broker.info().round_trips;
    for part in Sample::many(TASKS).chunks(SLOTS) {
        send(&*broker, &queue, part).await.unwrap();
    }
    let sent = broker.info().round_trips - before;
    let mut consumer = broker.consume(&queue, ConsumeOptions { prefetch: SLOTS, ..ConsumeOptions::default() }).await.unwrap();
    let settler = consumer.settler();
    let (mut finished, mut batch): (usize, Vec<(Receipt, Settlement)>) = (0, Vec::new());
    while finished < TASKS {
        let reserve = async {
            let free = NonZeroUsize::new(SLOTS).unwrap();
            if finished + batch.len() < TASKS { consumer.reserve(free, SOON).await.unwrap() } else { Vec::new() }
        };
        let (came, settled) = futures::join!(reserve, settler.settle(&batch));
        finished += settled.into_iter().map(Result::unwrap).count();
        batch = came.into_iter().map(|delivery| (delivery.receipt, Settlement::Done)).collect();
    }
    let all = broker.info().round_trips - before;
    assert!(sent as f64 / TASKS as f64 <= 0.15, "{sent} requests to send {TASKS} tasks");
    assert!((all - sent) as f64 / TASKS as f64 <= 0.35, "{} requests to work off {TASKS} tasks", all - sent);
}

/// While nothing comes, a queue costs the requests that wait, one for each band at a time.
#[tokio::test]
async fn an_idle_queue_costs_what_waits() {
    let place = Place::new().await;
    for bands in [3, 1] {
        let url = format!("{}?wait=1s&bands={bands}", place.url());
        let options = ConnectOptions::new(&url, Arc::new(SystemClock)).unwrap();
        let (broker, queue) = (anyqueue_sqs::DRIVER.open(options).await.unwrap(), queue(&format!("idle-{bands}")));
        let mut consumer = consumer(&*broker, &queue).await;
        assert!(reserve(&mut *consumer, 1, Duration::from_secs(1)).await.is_empty());
        let before = broker.info().round_trips;
        assert!(reserve(&mut *consumer, 1, Duration::from_secs(4)).await.is_empty());
        let asked = broker.info().round_trips - before;
        // Of each band a look and up to five waits of a second; some for the marks of a pause, and for what is held.
        assert!(asked <= bands * 6 + 6, "{asked} requests in four seconds of nothing, {bands} bands");
    }
}

/// Ten tasks with a TTR of their own that came together are hidden for it by one request.
#[tokio::test]
async fn ten_ttrs_cost_one_request() {
    fn ten() -> String {
        let all: Vec<_> = (0..10)
            .map(|n| {
                let body = String::from_utf8(Sample::new(n).envelope().body.to_vec()).unwrap();
                let one = received(&body, 1, "p1024 t300", "").replace(r#""r""#, &format!(r#""r{n}""#));
                one[r#"{"Messages":["#.len()..one.len() - 2].to_owned()
            })
            .collect();
        format!(r#"{{"Messages":[{}]}}"#, all.join(","))
    }
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number == 1 => ok(&ten()),
        "changemessagevisibilitybatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    let mut consumer = consumer(&*broker, &queue("q")).await;
    let mut tasks = Vec::new();
    while tasks.len() < 10 {
        tasks.extend(reserve(&mut *consumer, 10, SOON).await);
    }
    assert!(tasks.iter().all(|task| task.lease == Duration::from_secs(300)));
    let asked = stub.asked("changemessagevisibilitybatch");
    assert_eq!((asked.len(), asked[0].matches(r#""VisibilityTimeout":300"#).count()), (1, 10), "{asked:?}");
}

/// Ten retries are a request that sends and one that deletes.
#[tokio::test]
async fn ten_retries_cost_two_requests() {
    let place = Place::new().await;
    let (broker, queue) = (place.connect().await, queue("settled"));
    send(&*broker, &queue, &Sample::many(10)).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let mut tasks = Vec::new();
    while tasks.len() < 10 {
        tasks.push(one(&mut *consumer).await);
    }
    let retry = |task| Settlement::Retry(incoming(task).failed(Duration::from_secs(600)));
    let batch: Vec<_> = tasks.iter().map(|task| (task.receipt.clone(), retry(task))).collect();
    let before = broker.info().round_trips;
    consumer.settler().settle(&batch).await.into_iter().for_each(|answer| answer.unwrap());
    assert_eq!(broker.info().round_trips - before, 2);
}
