//! C11: hold and kick.

use std::time::{Duration, SystemTime};

use anyqueue_core::{
    Admin, ErrorKind, Figure, Incoming, Peeked, QueueName, Result, Settlement, State, TaskId, Which, time::MIN_TTR,
};

use crate::rig::{Rig, consume, done, drain, incoming, one, reserve, send, settle, take};
use crate::run::{Outcome, passed};
use crate::sample::Sample;

const SOON: Duration = Duration::from_secs(2);

/// Reserves `count` tasks and holds them, in order.
pub(super) async fn hold(broker: &dyn anyqueue_core::Broker, queue: &QueueName, count: usize) -> Result<Vec<TaskId>> {
    let mut consumer = consume(broker, queue).await?;
    let deliveries = take(&mut *consumer, count, SOON).await?;
    assert_eq!(deliveries.len(), count, "tasks to hold");
    let mut ids = Vec::new();
    for delivery in &deliveries {
        let task = incoming(delivery);
        let body = task.held("no disk", true, SystemTime::now());
        settle(&*consumer.settler(), &delivery.receipt, Settlement::Hold(body, "no disk".into())).await?;
        ids.push(task.id);
    }
    consumer.close().await?;
    Ok(ids)
}

/// Reads a listed task as the facade does.
pub(super) fn read(peeked: &Peeked, queue: &QueueName) -> Incoming {
    Incoming::peeked(peeked, "default", queue.as_str(), anyqueue_core::Defaults::default())
}

/// All held tasks, page by page.
pub(super) async fn held(admin: &dyn Admin, queue: &QueueName, limit: usize) -> Result<Vec<Peeked>> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..10_000 {
        let page = admin.held(queue, after.as_deref(), limit).await?;
        assert!(page.tasks.len() <= limit, "a page of {limit} has {} tasks", page.tasks.len());
        all.extend(page.tasks);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert!(after.is_none(), "the walk through the held tasks has no end");
    Ok(all)
}

/// Held tasks are listed with their reason, not delivered, kicked by id and deleted by id.
pub(super) async fn c11_hold_list_kick_delete(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("hold").await?;
    let admin = broker.admin();
    let tasks: Vec<_> = (0..4).map(|n| Sample::new(n).ttr(MIN_TTR).priority(600).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let ids = hold(&*broker, &queue, 4).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let nothing = reserve(&mut *consumer, 4, MIN_TTR * 2).await?;
    assert!(nothing.is_empty(), "a held task was delivered");
    let listed = held(admin, &queue, 3).await?;
    assert_eq!(listed.iter().map(|task| read(task, &queue).id).collect::<Vec<_>>(), ids, "longest held first");
    for task in &listed {
        let note = read(task, &queue).wire.held.ok_or("a held task without its note")?;
        assert_eq!((task.state, note.reason.as_str(), note.failed), (State::Held, "no disk", 1));
    }
    assert_eq!(admin.kick(&queue, &Which::Ids(vec![ids[2], TaskId::foreign("a", "b", "c")])).await?, 1);
    let kicked = one(&mut *consumer, rig.slack(Duration::ZERO)).await?;
    assert_eq!((Sample::number(&kicked), incoming(&kicked).priority), (Some(2), 600));
    done(&*consumer.settler(), &[kicked]).await?;
    let answers = admin.delete(&queue, &[ids[0], ids[2]]).await;
    let kinds: Vec<_> = answers.into_iter().map(|answer| answer.map_err(|e| e.kind())).collect();
    // Without a way to find waiting tasks, nobody can tell one that is done from one that waits.
    let blind = !capabilities.delete_waiting.works();
    assert_eq!(kinds[0], Ok(()), "one is held");
    assert!(kinds[1] == Err(ErrorKind::NotFound) || blind && kinds[1] == Err(ErrorKind::Unsupported), "one is done: {kinds:?}");
    let left: Vec<_> = held(admin, &queue, 10).await?.iter().map(|task| read(task, &queue).id).collect();
    assert_eq!(left, [ids[1], ids[3]]);
    passed()
}

/// Kick by number takes those held longest; kick all takes all, and says how many.
pub(super) async fn c11_kick_by_number_and_all(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("kick").await?;
    let sent = Sample::many(30);
    send(&*broker, &queue, &sent).await?;
    // They come, and are held, in whatever order the broker has.
    let held = hold(&*broker, &queue, 30).await?;
    let mut longest: Vec<_> = (0..).zip(&sent).filter(|(_, task)| held[..4].contains(&task.id)).map(|(n, _)| n).collect();
    longest.sort_unstable();
    let admin = broker.admin();
    assert_eq!(admin.kick(&queue, &Which::First(0)).await?, 0);
    assert_eq!(admin.kick(&queue, &Which::First(4)).await?, 4);
    let mut consumer = consume(&*broker, &queue).await?;
    let mut got = drain(&mut *consumer, rig.slack(Duration::ZERO)).await?;
    got.sort_unstable();
    assert_eq!(got, longest, "those held longest");
    assert_eq!(admin.kick(&queue, &Which::All).await?, 26);
    assert_eq!(drain(&mut *consumer, rig.slack(Duration::ZERO)).await?.len(), 26);
    assert_eq!((admin.kick(&queue, &Which::All).await?, admin.kick(&queue, &Which::First(5)).await?), (0, 0));
    passed()
}

/// What was counted against a task is gone after a kick, the broker's own count included; the note of it stays.
pub(super) async fn c11_a_kick_resets_the_counts(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("counts").await?;
    let slack = rig.slack(capabilities.ttr.limits().step);
    send(&*broker, &queue, &[Sample::new(1).ttr(MIN_TTR).envelope()]).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let lost = one(&mut *consumer, SOON).await?;
    let again = one(&mut *consumer, lost.lease + slack).await?;
    let task = incoming(&again);
    let body = task.held("broken", true, SystemTime::now());
    settle(&*consumer.settler(), &again.receipt, Settlement::Hold(body, "broken".into())).await?;
    assert_eq!(broker.admin().kick(&queue, &Which::Ids(vec![task.id])).await?, 1);
    let kicked = one(&mut *consumer, slack).await?;
    let task = incoming(&kicked);
    assert_eq!((task.wire.failed, task.wire.crashed, task.attempt()), (0, 0, 1));
    assert_eq!(task.wire.held.as_ref().map(|note| note.failed), Some(1));
    assert!(matches!(kicked.native.redeliveries, Figure::Exact(0) | Figure::Unknown), "{:?}", kicked.native.redeliveries);
    done(&*consumer.settler(), &[kicked]).await?;
    passed()
}
