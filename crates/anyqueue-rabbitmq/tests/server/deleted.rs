//! Queues that are deleted, purged or refused while somebody works on them.

use super::*;

async fn delete(channel: &Channel, queue: &str) {
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

async fn send_one(broker: &dyn Broker, queue: &QueueName, number: u64) {
    broker.send(queue, &[Sample::new(number).envelope()]).await.remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_under_its_consumer_delivers_again() {
    let node = node().await;
    for kind in ["type=quorum", "type=classic"] {
        let (broker, operator, queue) = (connect(&node, kind).await, connect(&node, kind).await, name("deleted"));
        broker.declare(&queue).await.unwrap();
        let (_connection, channel) = other(&node).await;
        let mut consumer = consumer(&*broker, &queue).await;
        for round in 0..20 {
            let deleting = async {
                // Sometimes it has only begun to consume, sometimes it waits for long.
                tokio::time::sleep(Duration::from_millis(round * 7 % 60)).await;
                delete(&channel, queue.as_str()).await;
                // Made anew at once: by the one who sends, or by somebody else.
                if round % 2 == 0 {
                    send_one(&*broker, &queue, round).await;
                } else {
                    operator.declare(&queue).await.unwrap();
                    send_one(&*operator, &queue, round).await;
                }
            };
            let (delivery, ()) = tokio::join!(next(&mut *consumer), deleting);
            assert_eq!(Sample::number(&delivery), Some(round), "{kind}");
            settle(&*consumer, &delivery, Settlement::Done).await;
        }
    }
}

/// A server whose channel is slow consumes the new queue for a consumer of the old one, tells nobody, and sends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_made_anew_before_its_consumer_hears_of_it_delivers_again() {
    let node = node().await;
    let (broker, operator, queue) = (connect(&node, "").await, connect(&node, "").await, name("ghost"));
    broker.declare(&queue).await.unwrap();
    let (_connection, channel) = other(&node).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let behind = async {
        let find = format!("{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>))");
        let suspend = "Ps = [element(1, C) || C <- rabbit_amqqueue:consumers(Q)]";
        let eval = format!("{find}, {suspend}, persistent_term:put(anyqueue_test, Ps), [sys:suspend(P) || P <- Ps].");
        node.control(&["eval", &eval]).await.unwrap();
        delete(&channel, queue.as_str()).await;
        operator.declare(&queue).await.unwrap();
        node.control(&["eval", "[sys:resume(P) || P <- persistent_term:get(anyqueue_test)]."]).await.unwrap();
        send_one(&*operator, &queue, 1).await;
    };
    let waiting = async {
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            let came = consumer.reserve(NonZeroUsize::MIN, Duration::from_secs(5)).await;
            if let Some(delivery) = came.unwrap_or_default().pop() {
                return delivery;
            }
            assert!(Instant::now() < until, "nothing came any more");
        }
    };
    let (delivery, ()) = tokio::join!(waiting, behind);
    assert_eq!(Sample::number(&delivery), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_over_a_missing_band_those_tasks_fail_that_came_back() {
    let node = node().await;
    let queue = name("partly");
    connect(&node, "").await.declare(&queue).await.unwrap();
    let mut careful = options(&node, "");
    careful.create = Create::Never;
    let broker = anyqueue_rabbitmq::DRIVER.open(careful).await.unwrap();
    broker.declare(&queue).await.unwrap();
    let (_connection, channel) = other(&node).await;
    delete(&channel, &format!("{queue};0")).await;
    let mixed = |number: u64| Sample::new(number).priority(if number.is_multiple_of(3) { 0 } else { 1024 }).envelope();
    let batches = (0..4).map(|batch| {
        let (broker, queue) = (broker.clone(), queue.clone());
        async move { broker.send(&queue, &(batch * 50..batch * 50 + 50).map(mixed).collect::<Vec<_>>()).await }
    });
    let answers: Vec<_> = futures::future::join_all(batches).await.into_iter().flatten().collect();
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_ok(), !number.is_multiple_of(3), "task {number}: {answer:?}");
    }
    let error = answers.into_iter().next().unwrap().unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(";0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_takes_what_was_fetched_and_nothing_is_fetched_meanwhile() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("purge"));
    broker.declare(&queue).await.unwrap();
    let mut consumers = Vec::new();
    for _ in 0..4 {
        consumers.push(consumer(&*broker, &queue).await);
    }
    for _ in 0..5 {
        broker.send(&queue, &Sample::many(40)).await.into_iter().for_each(|sent| drop(sent.unwrap()));
        for consumer in &mut consumers {
            let delivery = next(&mut **consumer).await;
            settle(&**consumer, &delivery, Settlement::Done).await;
        }
        broker.admin().purge(&queue, &[State::Ready]).await.unwrap();
        for consumer in &mut consumers {
            let got = consumer.reserve(NonZeroUsize::new(9).unwrap(), Duration::from_millis(50)).await.unwrap();
            assert!(got.is_empty(), "{} purged tasks came", got.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_makes_the_queue_of_held_tasks_anew() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("unheld"));
    broker.declare(&queue).await.unwrap();
    send_one(&*broker, &queue, 1).await;
    let (_connection, channel) = other(&node).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let delivery = next(&mut *consumer).await;
    delete(&channel, &format!("{queue};held")).await;
    let held = Incoming::read(&delivery, "default", Defaults::default()).unchanged(Duration::ZERO);
    settle(&*consumer, &delivery, Settlement::Hold(held, "enough".into())).await;
    assert_eq!(broker.admin().peek(&queue, State::Held, 5).await.unwrap().len(), 1);
    let more = consumer.reserve(NonZeroUsize::MIN, Duration::from_millis(500)).await.unwrap();
    assert!(more.is_empty(), "it is held, and nowhere else");
}

#[tokio::test(flavor = "multi_thread")]
async fn settles_of_a_consumer_that_was_closed_are_carried_to_their_end() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("closing"));
    broker.declare(&queue).await.unwrap();
    for _ in 0..10 {
        broker.send(&queue, &Sample::many(2)).await.into_iter().for_each(|sent| drop(sent.unwrap()));
        let mut leaving = consumer(&*broker, &queue).await;
        let (first, second) = (next(&mut *leaving).await, next(&mut *leaving).await);
        let (one, two) = (leaving.settler(), leaving.settler());
        leaving.close().await.unwrap();
        let again = Incoming::read(&second, "default", Defaults::default()).unchanged(Duration::ZERO);
        let (done, retry) = ([(first.receipt.clone(), Settlement::Done)], [(second.receipt.clone(), Settlement::Retry(again))]);
        let (done, retry) = tokio::join!(one.settle(&done), two.settle(&retry));
        assert!(done[0].is_ok() && retry[0].is_ok(), "{done:?} {retry:?}");
        let mut staying = consumer(&*broker, &queue).await;
        let delivery = next(&mut *staying).await;
        assert_eq!((Sample::number(&delivery), delivery.native.redeliveries.value()), (Some(1), Some(0)));
        settle(&*staying, &delivery, Settlement::Done).await;
        let more = staying.reserve(NonZeroUsize::MIN, Duration::from_millis(100)).await.unwrap();
        assert!(more.is_empty(), "a task is there twice");
        // One that is only dropped may fetch a task of the next round and put it back behind the other.
        staying.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_make_nothing_can_work() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("rights"));
    broker.declare(&queue).await.unwrap();
    let user = format!("user{:08x}", fastrand::u32(..));
    node.control(&["add_user", &user, "pw"]).await.unwrap();
    node.control(&["set_permissions", &user, "^$", ".*", ".*"]).await.unwrap();
    let url = format!("amqp://{user}:pw@{}", node.address());
    let mut careful = ConnectOptions::new(&url, Arc::new(SystemClock)).unwrap();
    careful.create = Create::Never;
    let worker = anyqueue_rabbitmq::DRIVER.open(careful).await.unwrap();
    worker.declare(&queue).await.unwrap();
    send_one(&*worker, &queue, 1).await;
    worker.send(&queue, &[Sample::new(2).delay(Duration::from_secs(1)).envelope()]).await.remove(0).unwrap();
    let mut consumer = consumer(&*worker, &queue).await;
    for number in [1, 2] {
        let delivery = next(&mut *consumer).await;
        assert_eq!(Sample::number(&delivery), Some(number));
        let held = Incoming::read(&delivery, "default", Defaults::default()).unchanged(Duration::ZERO);
        settle(&*consumer, &delivery, Settlement::Hold(held, "enough".into())).await;
    }
    assert_eq!(worker.admin().kick(&queue, &Which::All).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_tasks_of_a_deleted_queue_are_kept_and_keep_nobody_waiting() {
    let node = node().await;
    for kind in ["type=quorum", "type=classic"] {
        let (broker, queue, lively) = (connect(&node, kind).await, name("retired"), name("lively"));
        broker.declare(&queue).await.unwrap();
        broker.declare(&lively).await.unwrap();
        let (_connection, channel) = other(&node).await;
        delete(&channel, queue.as_str()).await;
        let late = |number| Sample::new(number).delay(Duration::from_secs(1)).envelope();
        let sent = broker.send(&queue, &(0..40).map(late).collect::<Vec<_>>()).await;
        assert!(sent.iter().all(Result::is_ok), "{sent:?}");
        broker.send(&lively, &[late(50)]).await.remove(0).unwrap();
        let mut consumer_of = consumer(&*broker, &lively).await;
        assert_eq!(Sample::number(&next(&mut *consumer_of).await), Some(50));
        let until = Instant::now() + SOON;
        while !broker.diagnose().await.unwrap().iter().any(|finding| finding.text.starts_with("40 tasks")) {
            assert!(Instant::now() < until, "the tasks are gone");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let another = connect(&node, kind).await;
        another.declare(&queue).await.unwrap();
        let (mut consumer, mut came) = (consumer(&*another, &queue).await, Vec::new());
        while came.len() < 40 {
            let delivery = next(&mut *consumer).await;
            came.extend(Sample::number(&delivery));
            settle(&*consumer, &delivery, Settlement::Done).await;
        }
        came.sort_unstable();
        assert_eq!(came, (0..40).collect::<Vec<_>>());
    }
}
