//! The declared bounds of delays and leases, from both sides.

use std::time::Duration;

use anyqueue_core::{Effect, ErrorKind, State, time::MAX_DELAY, time::MIN_TTR};

use super::admin::unless_hidden;
use crate::rig::{Rig, consume, done, one, send, take, touch};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

const SOON: Duration = Duration::from_secs(2);

/// The longest delay is kept, one above five years is refused before anything is sent.
pub(super) async fn c05_delay_bounds(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("far").await?;
    if !capabilities.delay.works() {
        return not_applicable(format!("delay needs {}", capabilities.delay.caveat().unwrap_or_default()));
    }
    let max = capabilities.delay.limits().max;
    assert!(max >= MAX_DELAY, "a delay of any length up to five years works on every broker; declared are {max:?}");
    let tasks = [Sample::new(0).delay(MAX_DELAY).envelope(), Sample::new(1).delay(MAX_DELAY + Duration::from_secs(1)).envelope()];
    let mut answers = broker.send(&queue, &tasks).await;
    let error = answers.remove(1).expect_err("a delay above five years is refused");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::DelayTooLong { limit: MAX_DELAY }, Effect::None), "{error}");
    answers.remove(0)?;
    let mut consumer = consume(&*broker, &queue).await?;
    assert!(take(&mut *consumer, 1, Duration::from_millis(300)).await?.is_empty(), "a delay of five years was over at once");
    if capabilities.peek.works() {
        // A broker that can only disturb may have no way to see what it delays itself; its caveat says so.
        let delayed = unless_hidden(broker.admin().peek(&queue, State::Delayed, 5).await)?.unwrap_or_default();
        assert!(delayed.len() == 1 || (delayed.is_empty() && capabilities.peek.caveat().is_some()), "one task is delayed");
        for task in delayed {
            let left = task.remaining.unwrap_or(MAX_DELAY);
            assert!(
                left + Duration::from_secs(60) > MAX_DELAY && left <= MAX_DELAY + Duration::from_secs(1),
                "{left:?} are left"
            );
        }
    }
    broker.admin().purge(&queue, &[State::Delayed]).await?;
    passed()
}

/// The declared longest TTR is kept, one above it is refused; the shortest is kept, one below is refused; rounding goes up.
pub(super) async fn c06_ttr_bounds(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("ttr").await?;
    let limits = capabilities.ttr.limits();
    let odd = MIN_TTR + Duration::from_millis(1);
    let good = [MIN_TTR, odd, limits.max].map(|ttr| Sample::new(ttr.as_millis() as u64).ttr(ttr).envelope());
    send(&*broker, &queue, &good).await?;
    for (ttr, kind) in [
        (MIN_TTR - Duration::from_millis(1), ErrorKind::Invalid),
        (limits.max + limits.step, ErrorKind::TtrTooLong { limit: limits.max }),
    ] {
        let error = broker.send(&queue, &[Sample::new(0).ttr(ttr).envelope()]).await.remove(0);
        let error = error.err().ok_or_else(|| format!("a TTR of {ttr:?} was taken"))?;
        assert_eq!((error.kind(), error.effect()), (kind, Effect::None), "{error}");
    }
    let mut consumer = consume(&*broker, &queue).await?;
    let deliveries = take(&mut *consumer, 3, SOON).await?;
    assert_eq!(deliveries.len(), 3);
    for delivery in &deliveries {
        let asked = Duration::from_millis(Sample::number(delivery).ok_or("a sample")?);
        let over =
            delivery.lease.checked_sub(asked).ok_or_else(|| format!("{asked:?} was rounded down to {:?}", delivery.lease))?;
        assert!(over < limits.step.max(Duration::from_millis(1)), "{asked:?} was rounded up to {:?}", delivery.lease);
    }
    done(consumer.settler().as_ref(), &deliveries).await?;
    passed()
}

/// A touch beyond the declared total is a named error; without a total, the longest TTR can be asked for.
pub(super) async fn c07_touch_bounds(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("touch").await?;
    send(&*broker, &queue, &[Sample::new(0).envelope()]).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let delivery = one(&mut *consumer, SOON).await?;
    let settler = consumer.settler();
    let longest = capabilities.ttr.limits().max;
    if !capabilities.touch.works() {
        let error = touch(&*settler, &delivery, Duration::from_secs(60)).await.err().ok_or("a touch without what it needs")?;
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        return not_applicable(format!("touch needs {}", capabilities.touch.caveat().unwrap_or_default()));
    }
    match capabilities.touch.limits() {
        Some(limit) if limit <= longest => {
            let error =
                touch(&*settler, &delivery, limit + Duration::from_secs(60)).await.err().ok_or("a touch above the total")?;
            assert!(matches!(error.kind(), ErrorKind::TouchLimit { .. } | ErrorKind::TtrTooLong { .. }), "{error}");
        }
        _ => {
            let left = touch(&*settler, &delivery, longest).await?;
            assert!(left > longest - Duration::from_secs(30), "a touch of {longest:?} left {left:?}");
        }
    }
    done(&*settler, &[delivery]).await?;
    passed()
}
