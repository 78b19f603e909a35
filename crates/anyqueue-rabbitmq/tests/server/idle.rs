//! Consumers that nothing comes for: those who wait, and those who ask and do not.

use std::time::SystemTime;

use anyqueue_core::{BoxFuture, Clock, Moment};
use futures::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use tokio::sync::watch;

use super::*;

/// The machine's clock, and so much more.
#[derive(Debug, Clone)]
struct Ahead(Arc<watch::Sender<Duration>>);

impl Ahead {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Duration::ZERO)))
    }

    fn jump(&self, time: Duration) {
        self.0.send_modify(|ahead| *ahead += time);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Moment {
        SystemClock.now() + *self.0.borrow()
    }

    fn wall(&self) -> SystemTime {
        SystemClock.wall() + *self.0.borrow()
    }

    fn sleep_until(&self, until: Moment) -> BoxFuture<'static, ()> {
        let (clock, mut jumps) = (self.clone(), self.0.subscribe());
        Box::pin(async move {
            while clock.now() < until {
                tokio::select! {
                    () = tokio::time::sleep(until.since(clock.now())) => {}
                    _ = jumps.changed() => {}
                }
            }
        })
    }
}

async fn connect_ahead(node: &Node, clock: &Ahead) -> Arc<dyn Broker> {
    let options = ConnectOptions::new(&format!("amqp://{}", node.address()), Arc::new(clock.clone())).unwrap();
    anyqueue_rabbitmq::DRIVER.open(options).await.unwrap()
}

async fn send_one(broker: &dyn Broker, queue: &QueueName, number: u64) {
    broker.send(queue, &[Sample::new(number).envelope()]).await.remove(0).unwrap();
}

async fn ask(consumer: &mut dyn Consumer) -> Vec<Delivery> {
    consumer.reserve(NonZeroUsize::MIN, Duration::ZERO).await.unwrap()
}

/// A queue that was silent for half a minute is consumed over a new channel, unless a task comes just then.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_comes_while_a_silent_queue_is_consumed_anew_is_worked_on_once() {
    let node = node().await;
    let (clock, sender, queue) = (Ahead::new(), connect(&node, "").await, name("silent"));
    sender.declare(&queue).await.unwrap();
    let broker = connect_ahead(&node, &clock).await;
    let mut consumer = consumer(&*broker, &queue).await;
    for round in 0..30 {
        assert!(ask(&mut *consumer).await.is_empty(), "round {round}");
        let coming = async {
            clock.jump(Duration::from_secs(31));
            send_one(&*sender, &queue, round).await;
        };
        let (delivery, ()) = tokio::join!(next(&mut *consumer), coming);
        assert_eq!(Sample::number(&delivery), Some(round));
        // The answer comes after whatever was begun before.
        assert!(ask(&mut *consumer).await.is_empty(), "round {round}: it came twice");
        settle(&*consumer, &delivery, Settlement::Done).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_gets_what_a_resumed_queue_has() {
    let node = node().await;
    let (clock, other, queue) = (Ahead::new(), connect(&node, "").await, name("resumed"));
    let broker = connect_ahead(&node, &clock).await;
    broker.declare(&queue).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    for round in 0..6 {
        let (pauses, resumes) = if round % 2 == 0 { (&broker, &broker) } else { (&other, &other) };
        pauses.admin().pause(&queue, None).await.unwrap();
        // What another process does is seen a little later.
        clock.jump(SOON);
        assert!(ask(&mut *consumer).await.is_empty(), "it has none");
        send_one(&*other, &queue, round).await;
        assert!(ask(&mut *consumer).await.is_empty(), "it is paused");
        resumes.admin().resume(&queue).await.unwrap();
        if round % 2 == 1 {
            clock.jump(Duration::from_secs(1));
        }
        let came = ask(&mut *consumer).await;
        assert_eq!(came.iter().filter_map(Sample::number).collect::<Vec<_>>(), [round]);
        settle(&*consumer, &came[0], Settlement::Done).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_hears_of_nothing_when_another_worker_has_all() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "").await, name("elsewhere"));
    broker.declare(&queue).await.unwrap();
    broker.send(&queue, &Sample::many(5)).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    let (mut busy, mut idle) = (consumer(&*broker, &queue).await, consumer(&*broker, &queue).await);
    let mut held = Vec::new();
    while held.len() < 5 {
        held.push(next(&mut *busy).await);
    }
    let began = Instant::now();
    assert!(ask(&mut *idle).await.is_empty());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for delivery in &held {
        settle(&*busy, delivery, Settlement::Done).await;
    }
}

/// To ask for a queue that is not there costs the channel, and whoever asks on it too hears that its queue is not there.
#[tokio::test(flavor = "multi_thread")]
async fn looking_for_what_is_missing_takes_no_task_from_those_at_work() {
    let node = node().await;
    let (broker, queue, ill) = (connect(&node, "").await, name("healthy"), name("ill"));
    broker.declare(&queue).await.unwrap();
    broker.declare(&ill).await.unwrap();
    let (_connection, channel) = other(&node).await;
    channel.queue_delete(format!("{ill};held").into(), QueueDeleteOptions::default()).await.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    send_one(&*broker, &queue, 1).await;
    let delivery = next(&mut *consumer).await;
    let mut looks = Box::pin(async {
        for _ in 0..100 {
            // A server without classic queues has no ladder for them.
            broker.diagnose().await.unwrap();
            assert_eq!(broker.admin().stats(&ill).await.unwrap_err().kind(), ErrorKind::NotFound);
        }
    });
    loop {
        tokio::select! {
            () = &mut looks => break,
            more = consumer.reserve(NonZeroUsize::MIN, Duration::ZERO) => assert!(more.unwrap().is_empty(), "it came twice"),
        }
    }
    settle(&*consumer, &delivery, Settlement::Done).await;
}

/// A queue with a single active consumer keeps its tasks for that one. Who does not wait must not take that for its end.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_is_not_told_that_a_queue_with_tasks_has_none() {
    let node = node().await;
    let (broker, queue) = (connect(&node, "bands=none").await, name("single"));
    let (connection, channel) = other(&node).await;
    let mut single = FieldTable::default();
    single.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    single.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), single).await.unwrap();
    broker.declare(&queue).await.unwrap();
    broker.send(&queue, &Sample::many(3)).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut active = channel.basic_consume(queue.as_str().into(), "".into(), options, arguments).await.unwrap();
    active.next().await.unwrap().unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    for _ in 0..2 {
        let error = consumer.reserve(NonZeroUsize::MIN, Duration::ZERO).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Timeout && error.is_retryable(), "{error}");
    }
    let began = Instant::now();
    assert!(consumer.reserve(NonZeroUsize::MIN, Duration::from_millis(50)).await.unwrap().is_empty());
    assert!(began.elapsed() < Duration::from_secs(2), "who waits is not kept longer for that");
    connection.close(200, "bye".into()).await.unwrap();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut *consumer).await;
        numbers.extend(Sample::number(&delivery));
        settle(&*consumer, &delivery, Settlement::Done).await;
    }
    assert_eq!(numbers, [0, 1, 2]);
    assert!(ask(&mut *consumer).await.is_empty());
}
