//! What SQS ends by itself: messages after fourteen days, reservations after twelve hours, bodies at a mebibyte.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::time::{Duration, SystemTime};

use anyqueue_core::{ErrorKind, Settlement, Support, Which};
use anyqueue_testkit::Sample;
use shared::stub::{Stub, message, ok, received, refused, usual, word, worked};
use shared::{SOON, consumer, eventually, incoming, millis, one, queue, settle};

const DAY: Duration = Duration::from_secs(86_400);

fn body() -> String {
    String::from_utf8(Sample::new(1).envelope().body.to_vec()).unwrap()
}

/// A FIFO queue refuses a delay that its message would not live to see, naming the limit, and takes the longest below it.
#[tokio::test]
async fn a_fifo_queue_refuses_a_delay_that_outlives_its_message() {
    let stub = Stub::start(|operation, _| if operation == "sendmessagebatch" { worked() } else { usual(operation) }).await;
    let (broker, queue) = (stub.connect_with("&fifo=true").await, queue("q"));
    assert_eq!(broker.capabilities(&queue).delay.limits().max, 13 * DAY);
    let tasks = [Sample::new(1).delay(14 * DAY).envelope(), Sample::new(2).delay(13 * DAY).envelope()];
    let mut answers = broker.send(&queue, &tasks).await;
    answers.pop().unwrap().unwrap();
    let error = answers.pop().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DelayTooLong { limit: 13 * DAY });
    assert!(error.to_string().contains("standard queue"), "{error}");
    let standard = stub.connect().await;
    standard.send(&queue, &tasks).await.into_iter().for_each(|answer| drop(answer.unwrap()));
}

/// A release for longer than SQS can hide a task is no earlier for it: a copy waits.
#[tokio::test]
async fn a_fifo_task_that_is_released_for_days_does_not_come_after_hours() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number == 1 => ok(&received(&body(), 1, "p1024 t60", r#","MessageGroupId":"one""#)),
        "sendmessagebatch" | "deletemessagebatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect_with("&fifo=true").await;
    let mut consumer = consumer(&*broker, &queue("q")).await;
    let task = one(&mut *consumer).await;
    let (released, before) = (Settlement::Release(incoming(&task).unchanged(2 * DAY)), millis());
    settle(&*consumer.settler(), &task, released).await.unwrap();
    let sent = stub.asked("sendmessagebatch").remove(0);
    let due: u64 = sent.split(" d").nth(1).unwrap().split([' ', '"']).next().unwrap().parse().unwrap();
    assert!(due >= before + 2 * 86_400_000, "{sent}");
    assert!(sent.contains(r#""MessageGroupId":"one""#), "{sent}");
}

/// SQS refuses to hide a task for more than twelve hours from its reception: the longest TTR is what is left of them.
#[tokio::test]
async fn a_ttr_of_twelve_hours_is_what_is_left_of_them() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number == 1 => ok(&received(&body(), 1, "p1024 t43200", "")),
        "changemessagevisibilitybatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    let mut consumer = consumer(&*broker, &queue("q")).await;
    let task = one(&mut *consumer).await;
    let seconds = |asked: &str| -> u64 {
        asked.split(r#""VisibilityTimeout":"#).nth(1).unwrap().split(['}', ',']).next().unwrap().parse().unwrap()
    };
    let hidden = seconds(&stub.asked("changemessagevisibilitybatch")[0]);
    assert!((43_000..43_200).contains(&hidden), "{hidden} s");
    let touch = anyqueue_core::Touch {
        receipt: task.receipt.clone(),
        ttr: Duration::from_secs(43_200),
        task: incoming(&task).unchanged(Duration::ZERO),
    };
    let left = consumer.settler().touch(&[touch]).await.remove(0).unwrap();
    assert!(left < Duration::from_secs(43_200) && left > Duration::from_secs(43_000), "{left:?}");
}

/// A retry that has grown beyond what a new task may have goes out; a hold that has grown beyond what SQS takes keeps the
/// task as it came.
#[tokio::test]
async fn the_largest_task_can_be_retried_and_held() {
    fn large(_: usize) -> String {
        let task = Sample::new(1).data(anyqueue_core::Data::json(&"x".repeat((1 << 20) - 9000)).unwrap()).envelope();
        received(std::str::from_utf8(&task.body).unwrap(), 1, "p1024 t60", "")
    }
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number < 3 => ok(&large(number)),
        "sendmessagebatch held" | "deletemessagebatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let (broker, queue) = (stub.connect().await, queue("q"));
    let most = broker.capabilities(&queue).max_payload.unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    let task = one(&mut *consumer).await;
    assert!(task.raw.len() as u64 <= most, "{} of {most}", task.raw.len());
    let held = |reason: &str| Settlement::Hold(incoming(&task).held(reason, true, SystemTime::now()), reason.into());
    settle(&*consumer.settler(), &task, held(&"y".repeat(4096))).await.unwrap();
    assert!(stub.asked("sendmessagebatch held")[0].contains("yyyy"), "the reason of a usual hold goes with it");
    let task = one(&mut *consumer).await;
    settle(&*consumer.settler(), &task, held(&"z".repeat(20_000))).await.unwrap();
    let sent = stub.asked("sendmessagebatch held").remove(1);
    assert!(sent.contains("xxxx") && !sent.contains("zzzz"), "it is held as it came");
    assert_eq!(stub.count("deletemessagebatch"), 2);
}

/// Where nobody may read how many are held, a listing and a kick walk until nothing comes any more.
#[tokio::test]
async fn held_tasks_are_found_without_the_right_to_count_them() {
    let stub = Stub::start(|operation, number| match operation {
        "getqueueattributes held" => refused("AccessDeniedException"),
        // A receive without a wait overlooks it.
        "receivemessage held" if number == 2 || number > 8 => ok(&message()),
        "sendmessagebatch" | "deletemessagebatch held" | "changemessagevisibilitybatch held" => worked(),
        _ => usual(operation),
    })
    .await;
    let (broker, queue) = (stub.connect().await, queue("q"));
    assert_eq!(broker.admin().held(&queue, None, 10).await.unwrap().tasks.len(), 1);
    let before = stub.count("receivemessage held");
    assert!(before >= 3, "{before}");
    assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 1);
}

/// A program that ends soon after its start renews what it finds old all the same.
#[tokio::test]
async fn a_short_lived_worker_renews_held_tasks() {
    let stub = Stub::start(|operation, number| match operation {
        "getqueueattributes held" => ok(r#"{"Attributes":{"ApproximateNumberOfMessages":"1"}}"#),
        "receivemessage held" if number == 1 => ok(&message()),
        "sendmessagebatch held" | "deletemessagebatch held" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    let consumer = consumer(&*broker, &queue("q")).await;
    consumer.close().await.unwrap();
    let sent = stub.asked("sendmessagebatch held");
    assert!(sent.iter().any(|sent| sent.contains(" k1000")), "{sent:?}");
    assert_eq!(stub.count("deletemessagebatch held"), 1);
}

/// A worker that ends does not wait long for its look at what is held, and the look puts back what it took all the same.
#[tokio::test]
async fn a_look_at_the_end_puts_back_what_it_took() {
    let stub = Stub::start(|operation, number| match operation {
        "getqueueattributes held" => ok(r#"{"Attributes":{"ApproximateNumberOfMessages":"5"}}"#),
        "receivemessage held" if number == 1 => ok(&message()),
        // The next answer never comes.
        "receivemessage held" => (0, String::new()),
        "changemessagevisibilitybatch held" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    let consumer = consumer(&*broker, &queue("q")).await;
    consumer.close().await.unwrap();
    let shown = async || stub.asked("changemessagevisibilitybatch held");
    eventually("it is shown again", SOON, async || shown().await.len() == 1).await;
    assert!(shown().await[0].contains(r#""VisibilityTimeout":0"#));
}

/// What SQS's own dead-letter queue took is not deleted there with age either: it goes to the held ones.
#[tokio::test]
async fn what_sqs_itself_took_away_is_renewed_too() {
    let stub = Stub::start(|operation, number| match operation {
        "getqueueattributes" => ok(
            r#"{"Attributes":{"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:x:0:q__dead\",\"maxReceiveCount\":3}"}}"#,
        ),
        "getqueueattributes dead" => ok(r#"{"Attributes":{"ApproximateNumberOfMessages":"1"}}"#),
        "receivemessage dead" if number == 1 => ok(&message()),
        "sendmessagebatch held" | "deletemessagebatch dead" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    consumer(&*broker, &queue("q")).await.close().await.unwrap();
    assert_eq!((stub.count("sendmessagebatch held"), stub.count("deletemessagebatch dead")), (1, 1));
}

/// What a delete cannot remove, and what it was not asked for, is shown again at once.
#[tokio::test]
async fn what_a_delete_leaves_is_shown_again() {
    let stub = Stub::start(|operation, _| match operation {
        "receivemessage held" => ok(&message()),
        "getqueueattributes" => refused("AccessDeniedException"),
        "deletemessagebatch held" => refused("OverLimit"),
        "changemessagevisibilitybatch held" => worked(),
        _ => usual(operation),
    })
    .await;
    let (broker, queue) = (stub.connect().await, queue("q"));
    let held = broker.admin().held(&queue, None, 1).await.unwrap().tasks.remove(0);
    let id = anyqueue_core::Incoming::peeked(&held, "default", "q", Default::default()).id;
    let shown = stub.count("changemessagevisibilitybatch held");
    let answers = broker.admin().delete(&queue, &[anyqueue_core::TaskId::foreign("a", "b", "c"), id]).await;
    let kinds: Vec<_> = answers.into_iter().map(|answer| answer.unwrap_err().kind()).collect();
    assert_eq!(kinds, [ErrorKind::Unsupported, ErrorKind::Full]);
    assert_eq!(stub.count("changemessagevisibilitybatch held"), shown + 1);
}

/// A kick of all ends although a worker holds the task again and again.
#[tokio::test]
async fn a_kick_ends_while_tasks_are_held_again() {
    let stub = Stub::start(|operation, _| match operation {
        "receivemessage held" => ok(&message()),
        "sendmessagebatch" | "deletemessagebatch held" | "changemessagevisibilitybatch held" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    let kick = tokio::time::timeout(SOON, async { broker.admin().kick(&queue("q"), &Which::All).await });
    assert_eq!(kick.await.expect("a kick ends").unwrap(), 1);
    assert_eq!(stub.count("sendmessagebatch"), 1);
}

/// What a kick could not send is shown again at once.
#[tokio::test]
async fn what_a_kick_cannot_send_is_shown_again() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage held" if number == 1 => ok(&message()),
        "sendmessagebatch" => (503, "{}".into()),
        "changemessagevisibilitybatch held" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    assert!(broker.admin().kick(&queue("q"), &Which::All).await.unwrap_err().is_retryable());
    let shown = stub.asked("changemessagevisibilitybatch held");
    assert!(shown.len() == 1 && shown[0].contains(r#""VisibilityTimeout":0"#), "{shown:?}");
}

/// What came before a walk failed is shown again at once.
#[tokio::test]
async fn what_a_broken_walk_took_is_shown_again() {
    let stub = Stub::start(|operation, number| match operation {
        "getqueueattributes" => ok(r#"{"Attributes":{"ApproximateNumberOfMessages":"5"}}"#),
        "receivemessage" if number == 1 => ok(&message()),
        "receivemessage" => refused("OverLimit"),
        "changemessagevisibilitybatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    let error = broker.admin().peek(&queue("q"), anyqueue_core::State::Ready, 5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    let shown = stub.asked("changemessagevisibilitybatch");
    assert!(shown.len() == 1 && shown[0].contains(r#""VisibilityTimeout":0"#), "{shown:?}");
    assert!(stub.asked("receivemessage").iter().all(|asked| asked.contains(r#""VisibilityTimeout":5"#)), "a look is short");
}

/// A look that nobody waits for any more shows again what it took.
#[tokio::test]
async fn a_look_that_is_given_up_puts_back_what_it_took() {
    let stub = Stub::start(|operation, number| match operation {
        "getqueueattributes" => ok(r#"{"Attributes":{"ApproximateNumberOfMessages":"5"}}"#),
        "receivemessage" if number == 1 => ok(&message()),
        "receivemessage" if number < 7 => refused("RequestThrottled"),
        "changemessagevisibilitybatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let (broker, queue) = (stub.connect().await, queue("q"));
    tokio::select! {
        _ = broker.admin().peek(&queue, anyqueue_core::State::Ready, 5) => panic!("the look ended before it was given up"),
        () = eventually("it has taken a task", SOON, || async { stub.count("receivemessage") > 1 }) => {}
    }
    eventually("it is shown again", SOON, || async { stub.count("changemessagevisibilitybatch") == 1 }).await;
}

/// A group's name of any characters is one group, and no word of it is read as something else.
#[tokio::test]
async fn a_group_with_spaces_is_a_group() {
    let stub = Stub::start(|operation, _| if operation == "sendmessagebatch" { worked() } else { usual(operation) }).await;
    let (broker, queue) = (stub.connect_with("&fifo=true").await, queue("q"));
    let capabilities = broker.capabilities(&queue);
    assert!(capabilities.group == Support::Native(()) && capabilities.unique.works());
    let mut task = Sample::new(1).envelope();
    (task.group, task.unique) = (Some("customer d1 h p0".into()), Some("a key".into()));
    broker.send(&queue, &[task.clone()]).await.remove(0).unwrap();
    task.unique = None;
    broker.send(&queue, &[task.clone()]).await.remove(0).unwrap();
    let sent = stub.asked("sendmessagebatch");
    assert!(sent.iter().all(|sent| !sent.contains("customer")), "{sent:?}");
    assert_eq!(word(&sent[0], "MessageGroupId"), word(&sent[1], "MessageGroupId"));
    assert_eq!(word(&sent[1], "MessageDeduplicationId").unwrap(), task.id.to_string());
    assert_ne!(word(&sent[0], "MessageDeduplicationId").unwrap(), task.id.to_string(), "a unique key is the deduplication id");
}

/// A retry on a FIFO queue that is settled twice, since its answer was lost, is one message.
#[tokio::test]
async fn a_fifo_retry_has_one_deduplication_id() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number == 1 => ok(&received(&body(), 1, "p1024 t60", r#","MessageGroupId":"one""#)),
        "sendmessagebatch" if number == 1 => (503, "{}".into()),
        "sendmessagebatch" | "deletemessagebatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect_with("&fifo=true").await;
    let mut consumer = consumer(&*broker, &queue("q")).await;
    let task = one(&mut *consumer).await;
    let retry = Settlement::Retry(incoming(&task).failed(Duration::ZERO));
    settle(&*consumer.settler(), &task, retry.clone()).await.unwrap_err();
    settle(&*consumer.settler(), &task, retry).await.unwrap();
    let ids: Vec<_> = stub.asked("sendmessagebatch").iter().map(|sent| word(sent, "MessageDeduplicationId").unwrap()).collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
}

/// Behind a request that failed, a FIFO queue is sent nothing: what is sent again would come behind.
#[tokio::test]
async fn a_fifo_send_stops_at_the_first_failure() {
    let stub = Stub::start(|operation, number| match operation {
        "sendmessagebatch" if number == 2 => (503, "{}".into()),
        "sendmessagebatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let answers = stub.connect_with("&fifo=true").await.send(&queue("q"), &Sample::many(30)).await;
    assert_eq!(stub.count("sendmessagebatch"), 2);
    assert!(answers[..10].iter().all(Result::is_ok));
    assert!(answers[10..].iter().all(|answer| answer.as_ref().is_err_and(anyqueue_core::Error::is_retryable)));
}

/// While the marks cannot be read, tasks come all the same, by what was known, and their leases do not wait for the answer.
#[tokio::test]
async fn leases_do_not_wait_for_marks() {
    let stub = Stub::start(|operation, number| match operation {
        "listqueuetags" if number > 1 => refused("RequestThrottled"),
        "receivemessage" => ok(&received(&body(), 1, "p1024 t61", "")),
        "changemessagevisibilitybatch" | "deletemessagebatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let broker = stub.connect().await;
    let mut consumer = consumer(&*broker, &queue("q")).await;
    let first = one(&mut *consumer).await;
    settle(&*consumer.settler(), &first, Settlement::Done).await.unwrap();
    assert_eq!(stub.count("listqueuetags"), 1);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = stub.operations().len();
    one(&mut *consumer).await;
    let asked = stub.operations().split_off(before);
    let hidden = asked.iter().position(|operation| operation == "changemessagevisibilitybatch").unwrap();
    let read = asked.iter().rposition(|operation| operation == "listqueuetags").unwrap();
    assert!(hidden < read, "{asked:?}");
    let tries = asked.iter().filter(|operation| *operation == "listqueuetags").count();
    assert!(tries < 8, "it is given up after a second, not after {tries} tries");
}
