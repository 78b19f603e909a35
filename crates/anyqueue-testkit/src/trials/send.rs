//! C1, C2: sending.

use std::time::Duration;

use anyqueue_core::{Effect, Envelope, ErrorKind, State, Support};

use crate::rig::{Rig, consume, drain, reserve};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

/// A repeated id is Ok and stored once, while the task is there and while it is reserved.
pub(super) async fn c01_a_repeated_id_is_one_task(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("id").await?;
    if let Support::Needs((), what) = capabilities.same_id {
        return not_applicable(format!("same_id needs {what}"));
    }
    let task = Sample::new(7).envelope();
    for answer in broker.send(&queue, &[task.clone(), task.clone()]).await {
        answer?;
    }
    let mut consumer = consume(&*broker, &queue).await?;
    let first = reserve(&mut *consumer, 5, rig.slack(Duration::ZERO)).await?;
    assert_eq!(first.len(), 1, "two sends of one id made {} tasks", first.len());
    for answer in broker.send(&queue, std::slice::from_ref(&task)).await {
        answer?;
    }
    let again = reserve(&mut *consumer, 5, Duration::from_millis(50)).await?;
    assert!(again.is_empty(), "a repeated id was delivered beside the reserved task");
    passed()
}

/// One bad item in a batch is reported alone, says that nothing happened, and the others arrive.
pub(super) async fn c02_a_bad_item_is_alone(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("bad").await?;
    let limit = capabilities.ttr.limits().max;
    let mut tasks = Sample::many(9);
    tasks[4].ttr = limit + Duration::from_secs(1);
    tasks[7].ttr = Duration::from_millis(1);
    let mut answers = broker.send(&queue, &tasks).await;
    assert_eq!(answers.len(), 9, "one answer per task");
    for (n, kind) in [(7, ErrorKind::Invalid), (4, ErrorKind::TtrTooLong { limit })] {
        let error = answers.remove(n).expect_err("a TTR out of bounds is refused");
        assert_eq!((error.kind(), error.effect()), (kind, Effect::None), "{error}");
    }
    for answer in answers {
        answer?;
    }
    let mut consumer = consume(&*broker, &queue).await?;
    let mut arrived = drain(&mut *consumer, Duration::from_millis(300)).await?;
    arrived.sort_unstable();
    assert_eq!(arrived, [0, 1, 2, 3, 5, 6, 8], "the good items of the batch");
    passed()
}

/// After close, calls answer `Closed`; closing again is fine, and other clients are not disturbed.
pub(super) async fn c02_a_closed_broker_says_so(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("closed").await?;
    let mut consumer = consume(&*broker, &queue).await?;
    broker.ping().await?;
    let began = rig.now();
    let closing = async {
        rig.pass(Duration::from_millis(100)).await;
        broker.close().await?;
        broker.close().await
    };
    let (under_way, closed) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(60)), closing);
    closed?;
    assert!(under_way.map_or_else(|e| e.kind() == ErrorKind::Closed, |got| got.is_empty()));
    assert!(rig.now().since(began) < Duration::from_secs(5), "a reserve goes on waiting on a closed broker");
    let task: Envelope = Sample::new(0).envelope();
    let error = broker.send(&queue, &[task]).await.remove(0).expect_err("a closed broker takes nothing");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Closed, Effect::None), "{error}");
    let error = reserve(&mut *consumer, 1, Duration::ZERO).await.expect_err("a closed broker gives nothing");
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    let error = broker.admin().peek(&queue, State::Ready, 1).await.expect_err("a closed broker shows nothing");
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    assert_eq!(broker.ping().await.expect_err("a closed broker gives no sign of life").kind(), ErrorKind::Closed);
    rig.connect().await?.ping().await?;
    passed()
}
