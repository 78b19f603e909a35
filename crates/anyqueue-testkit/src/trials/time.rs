//! C5, C6, C7: delays and leases.

use std::time::Duration;

use anyqueue_core::{Delivery, Moment, Settlement, time::MIN_TTR};

use crate::rig::{Rig, consume, done, drain, incoming, one, reserve, send, settle, take, touch};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

/// A delayed task is invisible until it is due, and then comes soon, to a consumer that has been waiting all the time.
pub(super) async fn c05_a_delay_is_never_early(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("delay").await?;
    if !capabilities.delay.works() {
        let error = broker.send(&queue, &[Sample::new(0).delay(MIN_TTR).envelope()]).await.remove(0);
        assert!(error.is_err(), "a delay was accepted without what it needs");
        return not_applicable(format!("delay needs {}", capabilities.delay.caveat().unwrap_or_default()));
    }
    let slack = rig.slack(capabilities.delay.limits().step);
    let mut consumer = consume(&*broker, &queue).await?;
    for delay in [Duration::from_millis(700), Duration::from_millis(1500)] {
        let sender = async {
            rig.pass(Duration::from_millis(100)).await;
            let sent = rig.now();
            send(&*broker, &queue, &[Sample::new(1).delay(delay).envelope()]).await.map(|()| sent)
        };
        let (delivery, sent) = tokio::join!(one(&mut *consumer, Duration::from_secs(60)), sender);
        let (delivery, after) = (delivery?, rig.now().since(sent?));
        assert!(after >= delay, "a delay of {delay:?} was over after {after:?}");
        assert!(after <= delay + slack, "a delay of {delay:?} was over only after {after:?}");
        done(consumer.settler().as_ref(), &[delivery]).await?;
    }
    passed()
}

/// Ten thousand different delays do not block each other: a short one behind long ones is in time.
pub(super) async fn c05_ten_thousand_delays(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("delays").await?;
    if !capabilities.delay.works() {
        return not_applicable(format!("delay needs {}", capabilities.delay.caveat().unwrap_or_default()));
    }
    let (count, slack) = (rig.size(10_000) as u64, rig.slack(capabilities.delay.limits().step));
    let limit = capabilities.delay.limits().max.min(Duration::from_secs(90 * 86_400));
    let long = |n: u64| Duration::from_millis(3_600_000 + n * 7919 % (limit.as_millis() as u64 - 3_600_000));
    let tasks: Vec<_> = (0..count).map(|n| Sample::new(n).delay(long(n)).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let (sent, spread) = (rig.now(), Duration::from_millis(1500));
    let short: Vec<_> =
        (0..20).map(|n| Sample::new(count + n).delay(spread - Duration::from_millis(n * 50)).envelope()).collect();
    send(&*broker, &queue, &short).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let got = take(&mut *consumer, 20, spread + slack).await?;
    let took = rig.now().since(sent);
    assert_eq!(crate::rig::numbers(&got), (count..count + 20).collect::<Vec<_>>(), "the short ones, and no long one");
    assert!(took < spread + slack * 2, "short delays behind long ones took {took:?}");
    done(consumer.settler().as_ref(), &got).await?;
    broker.admin().purge(&queue, &[anyqueue_core::State::Delayed]).await?;
    passed()
}

async fn comes_again(rig: &Rig, first: &Delivery, began: Moment, again: &Delivery, slack: Duration) {
    let after = rig.now().since(began);
    assert_eq!(Sample::number(first), Sample::number(again));
    assert!(after >= first.lease, "a lease of {:?} was over after {after:?}", first.lease);
    assert!(after <= first.lease + slack, "a lease of {:?} was over only after {after:?}", first.lease);
}

/// The lease of a task that nobody settles ends after its TTR, and the task comes again, to whoever waits.
pub(super) async fn c06_a_lease_ends_after_its_ttr(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("lease").await?;
    let slack = rig.slack(capabilities.ttr.limits().step);
    send(&*broker, &queue, &[Sample::new(5).ttr(MIN_TTR).envelope()]).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let before = rig.now();
    let first = one(&mut *consumer, slack).await?;
    let began = rig.now();
    assert!(first.lease >= MIN_TTR, "a TTR was rounded down to {:?}", first.lease);
    assert!(
        first.deadline >= before + first.lease && first.deadline <= began + first.lease,
        "the deadline counts from the request"
    );
    let mut other = consume(&*rig.connect().await?, &queue).await?;
    let again = one(&mut *other, first.lease + slack).await?;
    comes_again(rig, &first, before, &again, slack).await;
    assert_ne!(first.receipt, again.receipt, "a new reservation has a new receipt");
    done(other.settler().as_ref(), &[again]).await?;
    passed()
}

/// Tasks with different TTRs that were reserved together end their leases one by one.
pub(super) async fn c06_each_task_has_its_own_ttr(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("ttrs").await?;
    let slack = rig.slack(capabilities.ttr.limits().step);
    // Where the broker keeps no TTR of an hour, its longest one will do.
    let longest = capabilities.ttr.limits().max.as_secs().min(3600);
    let seconds = [longest, 1, 60, 2];
    let tasks: Vec<_> = seconds.iter().map(|s| Sample::new(*s).ttr(Duration::from_secs(*s)).envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let first = take(&mut *consumer, 4, slack).await?;
    let began = rig.now();
    assert_eq!(first.len(), 4);
    for expected in [1, 2] {
        let again = one(&mut *consumer, Duration::from_secs(expected) + slack).await?;
        assert_eq!(Sample::number(&again), Some(expected), "after {:?}", rig.now().since(began));
        done(consumer.settler().as_ref(), &[again]).await?;
    }
    let rest: Vec<_> = first.into_iter().filter(|d| Sample::number(d).is_some_and(|n| n >= 60)).collect();
    done(consumer.settler().as_ref(), &rest).await?;
    passed()
}

/// A task that is touched again and again for three times its TTR runs once; touching keeps its lease.
pub(super) async fn c07_touch_starts_the_ttr_anew(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("touch").await?;
    let ttr = Duration::from_secs(2);
    if !capabilities.touch.works() {
        return not_applicable(format!("touch needs {}", capabilities.touch.caveat().unwrap_or_default()));
    }
    send(&*broker, &queue, &[Sample::new(1).ttr(ttr).envelope()]).await?;
    let (mut holder, mut other) = (consume(&*broker, &queue).await?, consume(&*broker, &queue).await?);
    let task = one(&mut *holder, ttr).await?;
    let settler = holder.settler();
    let touching = async {
        for _ in 0..6 {
            rig.pass(ttr / 2).await;
            let left = touch(&*settler, &task, ttr).await?;
            assert!(left <= ttr + capabilities.ttr.limits().step && left > ttr / 2, "a touch left {left:?} of {ttr:?}");
        }
        Ok::<_, anyqueue_core::Error>(())
    };
    let (touched, stolen) = tokio::join!(touching, reserve(&mut *other, 1, ttr * 3));
    touched?;
    assert!(stolen?.is_empty(), "a touched task was given to somebody else");
    settle(&*settler, &task.receipt, Settlement::Retry(incoming(&task).snoozed(Duration::ZERO))).await?;
    assert_eq!(drain(&mut *other, rig.slack(Duration::ZERO)).await?, [1]);
    passed()
}
