//! Queues of other kinds, missing ones, many of them, and what is held for long.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyqueue_core::{ConnectOptions, ConsumeOptions, Create, ErrorKind, Settlement, State, Support, chain};
use anyqueue_testkit::{Sample, SystemClock};
use aws_sdk_sqs::types::QueueAttributeName;
use futures::future::join_all;
use shared::{Place, QUIET, SOON, consumer, incoming, millis, one, queue, reserve, send, settle};

/// A FIFO queue keeps groups in order, one task at a time each, through a give-back; a repeated id is one task.
#[tokio::test]
async fn a_fifo_queue_works_groups_in_order() {
    let (place, queue) = (Place::new().await, queue("orders"));
    let mut options = place.options();
    options.queues.insert(queue.clone(), [("fifo", true)].into_iter().collect());
    let broker = anyqueue_sqs::DRIVER.open(options).await.unwrap();
    broker.declare(&queue).await.unwrap();
    assert!(place.queue_url("orders.fifo").await.ends_with("orders.fifo"));
    assert_eq!(broker.capabilities(&queue).group, Support::Native(()));
    let mut tasks: Vec<_> = (0..6).map(|n| Sample::new(n).envelope()).collect();
    for (n, task) in tasks.iter_mut().enumerate() {
        task.group = Some(if n % 2 == 0 { "even" } else { "odd" }.into());
    }
    send(&*broker, &queue, &tasks).await.unwrap();
    send(&*broker, &queue, &tasks[..1]).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let (settler, mut expected) = (consumer.settler(), [0, 1]);
    for round in 0..4 {
        let (first, second) = (one(&mut *consumer).await, one(&mut *consumer).await);
        assert!(reserve(&mut *consumer, 10, QUIET).await.is_empty(), "two tasks of one group at a time");
        let mut got = [&first, &second].map(|delivery| Sample::number(delivery).unwrap());
        got.sort_unstable();
        assert_eq!(got, expected);
        for delivery in [first, second] {
            // In the first round both are given back, and come again before those behind them.
            let release = Settlement::Release(incoming(&delivery).unchanged(Duration::ZERO));
            settle(&*settler, &delivery, if round == 0 { release } else { Settlement::Done }).await.unwrap();
        }
        expected = expected.map(|n| if round == 0 { n } else { n + 2 });
    }
    assert!(reserve(&mut *consumer, 10, QUIET).await.is_empty(), "a repeated id is one task");
}

/// A retry on a FIFO queue waits for its delay, which SQS does not know there, and stays in its group.
#[tokio::test]
async fn a_fifo_queue_delays_retries() {
    let (place, queue) = (Place::new().await, queue("orders"));
    let mut options = place.options();
    options.queues.insert(queue.clone(), [("fifo", true)].into_iter().collect());
    let broker = anyqueue_sqs::DRIVER.open(options).await.unwrap();
    let mut task = Sample::new(1).envelope();
    task.group = Some("one group".into());
    send(&*broker, &queue, &[task]).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let first = one(&mut *consumer).await;
    let (delay, before) = (Duration::from_secs(2), millis());
    settle(&*consumer.settler(), &first, Settlement::Retry(incoming(&first).failed(delay))).await.unwrap();
    let again = one(&mut *consumer).await;
    assert!(millis() - before >= 2000, "after {} ms", millis() - before);
    assert_eq!((incoming(&again).wire.failed, again.native.redeliveries.value()), (1, Some(0)));
}

/// A purge also takes what a consumer of the same process received for somebody who asks no more, whatever else it takes.
#[tokio::test]
async fn a_purge_takes_what_was_received_and_not_handed_out() {
    for (name, states) in [("purged", &[State::Ready][..]), ("emptied", &State::ALL)] {
        let (place, queue) = (Place::new().await, queue(name));
        let broker = anyqueue_sqs::DRIVER.open(place.options()).await.unwrap();
        broker.declare(&queue).await.unwrap();
        let mut consumer = consumer(&*broker, &queue).await;
        let reserving = consumer.reserve(NonZeroUsize::MIN, Duration::from_secs(20));
        assert!(tokio::time::timeout(QUIET, reserving).await.is_err(), "there was nothing, and it was given up");
        send(&*broker, &queue, &[Sample::new(1).envelope()]).await.unwrap();
        let began = Instant::now();
        while broker.admin().stats(&queue).await.unwrap().reserved.value() != Some(1) {
            assert!(began.elapsed() < SOON, "the request that still waited takes it");
        }
        assert_eq!(broker.admin().purge(&queue, states).await.unwrap(), 1);
        assert!(reserve(&mut *consumer, 1, QUIET).await.is_empty(), "a purged task was delivered");
    }
}

/// A band that is missing is an error of its own where nothing may be created, and other queues are not touched by it.
#[tokio::test]
async fn a_missing_band_is_named() {
    let (place, queue) = (Place::new().await, queue("half"));
    place.raw.create_queue().queue_name("half").send().await.unwrap();
    let mut options = place.options();
    options.create = Create::Never;
    options.queues.insert(queue.clone(), Default::default());
    let broker = anyqueue_sqs::DRIVER.open(options).await.unwrap();
    let error = broker.declare(&queue).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(chain(&error).contains("`half__p512`") && chain(&error).contains("queue-runner init"), "{}", chain(&error));
    let findings = broker.diagnose().await.unwrap();
    assert!(findings.iter().any(|finding| finding.text.contains("queue-runner init")), "{findings:?}");
}

/// Tasks in bands that the settings leave out since they were changed are reported, and come to workers of the new ones, by
/// their priorities; those of the other kind of queue are reported.
#[tokio::test]
async fn tasks_of_other_bands_are_found() {
    let (place, queue) = (Place::new().await, queue("changed"));
    let connect = async |options: &str| {
        let options = ConnectOptions::new(&format!("{}?{options}", place.url()), Arc::new(SystemClock)).unwrap();
        anyqueue_sqs::DRIVER.open(options).await.unwrap()
    };
    let (five, one_band) = (connect("bands=5").await, connect("bands=1").await);
    let tasks: Vec<_> = [4096, 2000, 1024, 500, 0].into_iter().map(|n| Sample::new(n).priority(n as u32).envelope()).collect();
    send(&*five, &queue, &tasks).await.unwrap();
    let drift = one_band.declare(&queue).await.unwrap().drift;
    let mut names: Vec<_> = drift.iter().filter(|drift| drift.wanted == "0" && drift.found == "1").map(|d| &*d.what).collect();
    names.sort_unstable();
    assert_eq!(names.len(), 4, "{drift:?}");
    assert!(names[0].contains("`changed__p0`") && names[0].contains("`bands = 1`"), "{names:?}");
    let findings = connect("bands=5&fifo=true").await;
    findings.declare(&queue).await.unwrap();
    let findings = findings.diagnose().await.unwrap();
    assert!(findings.iter().any(|finding| finding.text.contains("`fifo = true`")), "{findings:?}");
    let three = connect("bands=3").await;
    let mut consumer = consumer(&*three, &queue).await;
    let mut got = Vec::new();
    while got.len() < 5 {
        let task = one(&mut *consumer).await;
        assert_eq!(task.native.redeliveries.value(), Some(0), "moved, not run before");
        settle(&*consumer.settler(), &task, Settlement::Done).await.unwrap();
        got.push(Sample::number(&task).unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, [0, 500, 1024, 2000, 4096]);
    assert!(three.declare(&queue).await.unwrap().drift.is_empty());
}

/// Workers take whole bands: another range is refused, naming the edges.
#[tokio::test]
async fn a_range_within_a_band_is_refused() {
    let (place, queue) = (Place::new().await, queue("ranges"));
    let broker = place.connect().await;
    for (range, whole) in [(0..=512, true), (513..=u32::MAX, true), (0..=511, false), (1..=512, false), (600..=700, false)] {
        let options = ConsumeOptions { priorities: range.clone(), ..ConsumeOptions::default() };
        match broker.consume(&queue, options).await {
            Ok(_) => assert!(whole, "{range:?}"),
            Err(e) => assert!(!whole && e.kind() == ErrorKind::Unsupported && e.to_string().contains("512, 1024"), "{e}"),
        }
    }
}

/// Of fifty queues that are watched, forty-nine are empty: the busy one's tasks come as if it were alone.
#[tokio::test]
async fn an_empty_queue_delays_no_other() {
    let place = Place::new().await;
    let url = format!("{}?bands=1", place.url());
    let options = ConnectOptions::new(&url, Arc::new(SystemClock)).unwrap();
    let broker = anyqueue_sqs::DRIVER.open(options).await.unwrap();
    let names: Vec<_> = (0..50).map(|n| queue(&format!("many-{n}"))).collect();
    join_all(names.iter().map(|name| broker.declare(name))).await.into_iter().for_each(|declared| drop(declared.unwrap()));
    let mut empty = Vec::new();
    for name in &names[1..] {
        empty.push(consumer(&*broker, name).await);
    }
    let mut busy = consumer(&*broker, &names[0]).await;
    let waiting = join_all(empty.iter_mut().map(|consumer| consumer.reserve(NonZeroUsize::MIN, SOON)));
    let work = async {
        let mut took = Vec::new();
        for number in 0..20 {
            let began = Instant::now();
            send(&*broker, &names[0], &[Sample::new(number).envelope()]).await.unwrap();
            let task = one(&mut *busy).await;
            settle(&*busy.settler(), &task, Settlement::Done).await.unwrap();
            took.push(began.elapsed());
        }
        took.sort_unstable();
        // Had each waited for one empty queue only, and that for five seconds, most would have taken as long.
        assert!(took[10] < Duration::from_secs(3), "{took:?}");
    };
    tokio::select! {
        _ = waiting => panic!("fifty waits ended before twenty tasks were done"),
        () = work => {}
    }
}

/// What an environment has at SQS is under its prefix, all of it, and is used there.
#[tokio::test]
async fn a_prefix_stands_before_every_name() {
    let (place, queue) = (Place::new().await, queue("orders"));
    let options = ConnectOptions::new(&format!("{}/staging-", place.url()), Arc::new(SystemClock)).unwrap();
    let broker = anyqueue_sqs::DRIVER.open(options).await.unwrap();
    broker.declare(&queue).await.unwrap();
    let names = place.raw.list_queues().send().await.unwrap().queue_urls.unwrap();
    assert!(
        names.len() > 1 && names.iter().all(|url| url.rsplit('/').next().unwrap().starts_with("staging-orders")),
        "{names:?}"
    );
    place.put("staging-orders", r#"{"task":"test","data":1}"#, None).await;
    assert_eq!(incoming(&one(&mut *consumer(&*broker, &queue).await).await).wire.task, "test");
}

/// A queue that takes less than SQS would is asked what it takes.
#[tokio::test]
async fn the_largest_message_of_a_queue_is_its_own() {
    let (place, queue) = (Place::new().await, queue("small"));
    for name in ["small", "small__p0", "small__p2"] {
        let most = (QueueAttributeName::MaximumMessageSize, "20480");
        place.raw.create_queue().queue_name(name).attributes(most.0, most.1).send().await.unwrap();
    }
    let broker = place.connect().await;
    broker.declare(&queue).await.unwrap();
    let task = |length: usize| Sample::new(1).data(anyqueue_core::Data::json(&"x".repeat(length)).unwrap()).envelope();
    let mut answers = broker.send(&queue, &[task(15_000), task(8_000)]).await;
    answers.pop().unwrap().unwrap();
    let error = answers.pop().unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { limit, .. } if limit < 20_480), "{error}");
}

/// A held task outlives the time after which SQS deletes messages, and stays in its place in the list.
#[tokio::test]
async fn a_held_task_outlives_the_retention_of_sqs() {
    let (place, queue) = (Place::new().await, queue("parked"));
    let shortest = (QueueAttributeName::MessageRetentionPeriod, "60");
    place.raw.create_queue().queue_name("parked__held").attributes(shortest.0, shortest.1).send().await.unwrap();
    let broker = place.connect().await;
    let drift = broker.declare(&queue).await.unwrap().drift;
    assert!(drift.iter().any(|drift| drift.what.contains("`parked__held`") && drift.found == "60"), "{drift:?}");
    send(&*broker, &queue, &Sample::many(2)).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let task = one(&mut *consumer).await;
        let next = incoming(&task).held("look", false, SystemTime::now());
        ids.push(next.id);
        settle(&*consumer.settler(), &task, Settlement::Hold(next, "look".into())).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(75)).await;
    let held = broker.admin().held(&queue, None, 10).await.unwrap().tasks;
    let listed: Vec<_> =
        held.iter().map(|task| anyqueue_core::Incoming::peeked(task, "default", "parked", Default::default()).id).collect();
    assert_eq!(listed, ids);
}

/// A folder that is not there is made where the settings allow it, for its owner alone, and is an error otherwise.
#[tokio::test]
async fn a_missing_folder_is_made_or_named() {
    use std::os::unix::fs::PermissionsExt;
    use std::{fs, path::Path};
    let (stub, folder) =
        (shared::stub::Stub::start(|operation, _| shared::stub::usual(operation)).await, tempfile::TempDir::new().unwrap());
    let store = folder.path().join("store");
    stub.connect_with(&format!("&store=file:{}", store.display())).await;
    assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
    let open = async |store: &Path, create| {
        let url = format!("sqs://127.0.0.1:1?store=file:{}", store.display());
        let mut options = ConnectOptions::new(&url, Arc::new(SystemClock)).unwrap();
        options.create = create;
        anyqueue_sqs::DRIVER.open(options).await.unwrap_err().to_string()
    };
    let missing = folder.path().join("mount/store");
    for (path, create, says) in [
        (&missing, Create::Auto, "make or mount it"),
        (&missing, Create::Never, "`create` is \"never\""),
        (&"/etc/hostname".into(), Create::Auto, "is a file"),
    ] {
        let error = open(path, create).await;
        assert!(error.contains(says) && error.contains("`store`"), "{error}");
    }
}
