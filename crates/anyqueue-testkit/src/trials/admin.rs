//! C16, C17, C21: what an operator sees and does.

use std::collections::BTreeSet;
use std::time::Duration;

use anyqueue_core::{ErrorKind, Exactness, Figure, Paused, Peeked, Result, Settlement, State, TaskId, Which};

use super::hold::{held, hold, read};
use crate::rig::{Rig, consume, done, drain, incoming, one, reserve, send, settle, take};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

const SOON: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(3600);

fn check(name: &str, figure: Figure, claimed: Exactness, expected: u64) {
    match claimed {
        Exactness::Exact => assert_eq!(figure, Figure::Exact(expected), "{name} is claimed to be exact"),
        Exactness::Approximate => {
            assert!(!matches!(figure, Figure::Unknown | Figure::Exact(_)), "{name} is claimed to be approximate: {figure:?}")
        }
        Exactness::Unknown => {
            assert_eq!(figure, Figure::Unknown, "{name} is claimed to be unknown, and unknown is never a number")
        }
    }
}

/// Each figure is as good as declared: exact ones are right, unknown ones are unknown and not zero.
pub(super) async fn c16_figures_are_what_is_claimed(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("stats").await?;
    let (admin, counts) = (broker.admin(), capabilities.counts);
    let empty = admin.stats(&queue).await?;
    for (name, figure, claimed) in [("ready", empty.ready, counts.ready), ("held", empty.held, counts.held)] {
        check(name, figure, claimed, 0);
    }
    send(&*broker, &queue, &Sample::many(9)).await?;
    hold(&*broker, &queue, 2).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let reserved = take(&mut *consumer, 3, SOON).await?;
    send(&*broker, &queue, &[Sample::new(50).delay(LONG).envelope()]).await?;
    rig.pass(Duration::from_millis(1100)).await;
    let stats = admin.stats(&queue).await?;
    check("ready", stats.ready, counts.ready, 4);
    check("delayed", stats.delayed, counts.delayed, 1);
    check("reserved", stats.reserved, counts.reserved, 3);
    check("held", stats.held, counts.held, 2);
    match counts.oldest {
        Exactness::Unknown => assert_eq!(stats.oldest, Figure::Unknown),
        _ => assert!(stats.oldest.value().is_some_and(|age| (1..30).contains(&age)), "oldest is {:?}", stats.oldest),
    }
    done(consumer.settler().as_ref(), &reserved).await?;
    admin.purge(&queue, &State::ALL).await?;
    check("ready", admin.stats(&queue).await?.ready, counts.ready, 0);
    passed()
}

/// The twelve facts of a task through its life; a missing task is `None`.
pub(super) async fn c16_facts_of_one_task(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("info").await?;
    let admin = broker.admin();
    let sent = Sample::new(1).priority(600).ttr(Duration::from_secs(1)).delay(Duration::from_secs(1)).envelope();
    if !capabilities.info.works() {
        let error = admin.info(&queue, sent.id).await.err().ok_or("info without what it needs")?;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        return not_applicable(format!("info needs {}", capabilities.info.caveat().unwrap_or_default()));
    }
    let slack = rig.slack(capabilities.ttr.limits().step);
    assert_eq!(admin.info(&queue, sent.id).await?, None);
    send(&*broker, &queue, std::slice::from_ref(&sent)).await?;
    let delayed = admin.info(&queue, sent.id).await?.ok_or("the task is there")?;
    let known = |value: Option<u64>, expected: u64| value.is_none_or(|value| value == expected);
    assert_eq!((delayed.queue.as_str(), delayed.state), (queue.as_str(), Some(State::Delayed)));
    assert!(delayed.priority.is_none_or(|p| p == 600) && known(delayed.delay, 1) && known(delayed.ttr, 1), "{delayed:?}");
    assert!(known(delayed.reserves, 0) && known(delayed.timeouts, 0) && known(delayed.holds, 0), "{delayed:?}");
    let mut consumer = consume(&*broker, &queue).await?;
    let first = one(&mut *consumer, Duration::from_secs(1) + slack).await?;
    let second = one(&mut *consumer, first.lease + slack).await?;
    let settler = consumer.settler();
    settle(&*settler, &second.receipt, Settlement::Release(incoming(&second).unchanged(Duration::ZERO))).await?;
    let third = one(&mut *consumer, slack).await?;
    let reserved = admin.info(&queue, sent.id).await?.ok_or("the task is there")?;
    assert_eq!(reserved.state, Some(State::Reserved));
    assert!(known(reserved.reserves, 3) && known(reserved.timeouts, 1) && known(reserved.releases, 1), "{reserved:?}");
    let body = incoming(&third).held("look", false, std::time::SystemTime::now());
    settle(&*settler, &third.receipt, Settlement::Hold(body, "look".into())).await?;
    admin.kick(&queue, &Which::Ids(vec![sent.id])).await?;
    let kicked = admin.info(&queue, sent.id).await?.ok_or("the task is there")?;
    assert_eq!(kicked.state, Some(State::Ready));
    assert!(known(kicked.holds, 1) && known(kicked.unholds, 1) && known(kicked.reserves, 3), "{kicked:?}");
    assert_eq!(drain(&mut *consumer, Duration::from_millis(300)).await?, [1]);
    assert_eq!(admin.info(&queue, sent.id).await?, None, "a task that is done is gone");
    passed()
}

/// What a look found; `None` if the broker shows tasks of that state to nobody, and says so.
pub(super) fn unless_hidden(looked: Result<Vec<Peeked>>) -> Result<Option<Vec<Peeked>>> {
    match looked {
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(None),
        looked => looked.map(Some),
    }
}

/// Peeking shows the next tasks and changes neither order nor counts nor attempts.
pub(super) async fn c17_peek_changes_nothing(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("peek").await?;
    let admin = broker.admin();
    let tasks: Vec<_> = (0..12).map(|n| Sample::new(n).priority(if n == 11 { 100 } else { 600 }).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    send(&*broker, &queue, &[Sample::new(99).delay(LONG).envelope()]).await?;
    if !capabilities.peek.works() {
        let error = admin.peek(&queue, State::Ready, 1).await.err().ok_or("peek without what it needs")?;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        return not_applicable(format!("peek needs {}", capabilities.peek.caveat().unwrap_or_default()));
    }
    let native = capabilities.peek.caveat().is_none();
    for _ in 0..3 {
        let ready = admin.peek(&queue, State::Ready, 10).await?;
        assert!(!ready.is_empty() && ready.len() <= 10 && ready.iter().all(|task| task.state == State::Ready));
        let ids: Vec<_> = ready.iter().map(|task| read(task, &queue).id).collect();
        assert!(!native || (ids.len() == 10 && ids[0] == tasks[11].id && ids[1] == tasks[0].id), "the next ones, in order");
        match unless_hidden(admin.peek(&queue, State::Delayed, 10).await)? {
            Some(delayed) => assert!(delayed.len() <= 1 && (!native || delayed.len() == 1), "one task is delayed"),
            None => assert!(!native, "a look that hides something has a caveat"),
        }
        assert!(admin.peek(&queue, State::Ready, 0).await?.is_empty());
    }
    rig.pass(if native { Duration::ZERO } else { Duration::from_secs(1) }).await;
    let mut consumer = consume(&*broker, &queue).await?;
    let got = take(&mut *consumer, 12, SOON).await?;
    assert_eq!(crate::rig::numbers(&got), (0..12).collect::<Vec<_>>());
    assert_eq!(Sample::number(&got[0]), Some(11), "the most urgent first, as if nobody had looked");
    assert!(got.iter().all(|d| d.native.redeliveries.value().is_none_or(|n| n == 0)), "a look was counted as a death");
    assert!(got.iter().all(|d| incoming(d).attempt() == 1));
    match unless_hidden(admin.peek(&queue, State::Reserved, 100).await)? {
        Some(reserved) => assert_eq!(reserved.len(), 12),
        None => assert!(!native, "a look that hides something has a caveat"),
    }
    done(consumer.settler().as_ref(), &got).await?;
    passed()
}

/// A walk through all held tasks ends, shows each once and leaves them all held.
pub(super) async fn c17_a_walk_through_the_held_is_bounded(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("walk").await?;
    let count = rig.size(60);
    send(&*broker, &queue, &Sample::many(count)).await?;
    let ids = hold(&*broker, &queue, count).await?;
    for limit in [7, 1000] {
        let seen: Vec<TaskId> = held(broker.admin(), &queue, limit).await?.iter().map(|task| read(task, &queue).id).collect();
        assert_eq!(seen.len(), count, "each once, {limit} at a time");
        assert_eq!(seen.iter().collect::<BTreeSet<_>>(), ids.iter().collect::<BTreeSet<_>>());
    }
    assert_eq!(broker.admin().kick(&queue, &Which::All).await?, count as u64);
    let mut consumer = consume(&*broker, &queue).await?;
    assert_eq!(drain(&mut *consumer, SOON).await?.len(), count);
    passed()
}

/// Delete takes waiting tasks where that is claimed, never a reserved one; purge takes the states it is told.
pub(super) async fn c17_delete_and_purge_by_state(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("purge").await?;
    let admin = broker.admin();
    let tasks = Sample::many(6);
    send(&*broker, &queue, &tasks).await?;
    let far = Sample::new(50).delay(LONG).envelope();
    send(&*broker, &queue, std::slice::from_ref(&far)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let reserved = one(&mut *consumer, SOON).await?;
    let mine = incoming(&reserved).id;
    let waiting = tasks.iter().map(|task| task.id).find(|id| *id != mine).ok_or("a waiting task")?;
    if capabilities.delete_waiting.works() {
        let answers = admin.delete(&queue, &[waiting, far.id, mine, waiting]).await;
        let fine: Vec<bool> = answers.iter().map(Result::is_ok).collect();
        assert_eq!(fine, [true, true, false, false], "waiting, delayed, reserved, gone: {answers:?}");
        assert_eq!(answers[3].as_ref().map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    } else {
        let error = admin.delete(&queue, &[waiting]).await.remove(0).err().ok_or("delete without what it needs")?;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    done(consumer.settler().as_ref(), &[reserved]).await?;
    send(&*broker, &queue, &[Sample::new(51).delay(LONG).envelope()]).await?;
    admin.purge(&queue, &[State::Ready]).await?;
    assert!(reserve(&mut *consumer, 9, Duration::from_millis(300)).await?.is_empty(), "a purged task was delivered");
    let delayed = admin.stats(&queue).await?.delayed;
    assert!(delayed.value().is_none_or(|n| n >= 1), "a purge of ready tasks took delayed ones: {delayed:?}");
    let purged = admin.purge(&queue, &[State::Delayed, State::Held]).await?;
    assert!(purged >= 1, "{purged} were purged");
    passed()
}

/// A paused queue delivers nothing, takes sends, and goes on at once when it is resumed, for every client.
pub(super) async fn c21_pause_and_resume(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("pause").await?;
    let (other, admin) = (rig.connect().await?, broker.admin());
    assert_eq!(admin.paused(&queue).await?, Paused::No);
    admin.pause(&queue, None).await?;
    assert_eq!(other.admin().paused(&queue).await?, Paused::Yes(None));
    send(&*other, &queue, &Sample::many(3)).await?;
    let mut consumer = consume(&*other, &queue).await?;
    assert!(reserve(&mut *consumer, 5, Duration::from_millis(700)).await?.is_empty(), "a paused queue delivered");
    let resumer = async {
        rig.pass(Duration::from_millis(200)).await;
        admin.resume(&queue).await.map(|()| rig.now())
    };
    let (got, resumed) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(30)), resumer);
    let (got, late) = (got?, rig.now().since(resumed?));
    assert_eq!(got.len(), 1);
    assert!(late < SOON, "a resumed queue delivered after {late:?}");
    done(consumer.settler().as_ref(), &got).await?;
    assert_eq!(drain(&mut *consumer, SOON).await?.len(), 2);
    admin.resume(&queue).await?;
    assert_eq!(admin.paused(&queue).await?, Paused::No);
    passed()
}

/// A pause for a time ends by itself, and not before; pausing again sets the time anew.
pub(super) async fn c21_a_pause_ends_by_time(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("nap").await?;
    let admin = broker.admin();
    let time = Duration::from_millis(1500);
    admin.pause(&queue, Some(LONG)).await?;
    let began = rig.now();
    admin.pause(&queue, Some(time)).await?;
    let left = admin.paused(&queue).await?;
    assert!(matches!(left, Paused::Yes(Some(left)) if left <= time), "{left:?}");
    send(&*broker, &queue, &Sample::many(1)).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let got = one(&mut *consumer, time + rig.slack(Duration::ZERO)).await?;
    let after = rig.now().since(began);
    assert!(after + Duration::from_millis(20) >= time, "a pause of {time:?} was over after {after:?}");
    assert_eq!(admin.paused(&queue).await?, Paused::No);
    done(consumer.settler().as_ref(), &[got]).await?;
    passed()
}
