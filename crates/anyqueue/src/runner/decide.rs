//! What a settled attempt means: the worker semantics, as one function without side effects.

use std::time::{Duration, SystemTime};

use anyqueue_core::{Incoming, Settlement, time};

use super::attempt::Reason;
use crate::outcome::{Kind, Outcome};
use crate::policy::Policy;

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The task is done and gone.
    Done,
    /// The task is gone, on purpose and undone.
    Discarded(String),
    /// The attempt failed; the task comes again after the delay.
    Retried {
        /// Why.
        reason: String,
        /// When.
        delay: Duration,
    },
    /// The task waits, uncounted.
    Snoozed(Duration),
    /// The task is parked.
    Held(String),
    /// No worker of its name is here; the task waits, uncounted.
    NoWorker(Duration),
    /// The task was given back as it was.
    Released,
    /// It was marked to run alone in its process next, since a worker died near it.
    Probation,
    /// The lease was lost before the result could be stored: the result counts for nothing.
    Late,
}

/// A settlement and what it means.
#[derive(Debug)]
pub(crate) struct Decision {
    pub(crate) settlement: Settlement,
    pub(crate) verdict: Verdict,
}

impl Decision {
    fn new(settlement: Settlement, verdict: Verdict) -> Self {
        Self { settlement, verdict }
    }
}

/// The handler returned.
pub(crate) fn returned(outcome: Outcome, task: &Incoming, policy: &Policy, now: SystemTime) -> Decision {
    match outcome.kind {
        Kind::Done => Decision::new(Settlement::Done, Verdict::Done),
        Kind::Discard(reason) => Decision::new(Settlement::Done, Verdict::Discarded(reason)),
        Kind::Snooze(delay) => Decision::new(Settlement::Retry(task.snoozed(bounded(delay))), Verdict::Snoozed(delay)),
        Kind::Hold(reason) => hold(task, reason, false, now),
        Kind::Retry(delay) => failed(task, "the worker asked for a retry".into(), delay, policy, now),
        Kind::Failed { reason, permanent: true } => hold(task, reason, true, now),
        Kind::Failed { reason, permanent: false } => failed(task, reason, None, policy, now),
    }
}

/// The attempt was cancelled.
///
/// `limit` is how long it might have run.
pub(crate) fn cancelled(reason: Reason, task: &Incoming, policy: &Policy, limit: Option<Duration>, now: SystemTime) -> Decision {
    match reason {
        Reason::LeaseLost => Decision::new(Settlement::Done, Verdict::Late),
        Reason::Stop => released(task, Duration::ZERO),
        Reason::TtrOver => {
            let text = format!("the TTR of {} was over and the worker had not touched the task", time::show(task.ttr));
            failed(task, text, None, policy, now)
        }
        Reason::TimeLimit => {
            let limit = limit.map(time::show).unwrap_or_default();
            failed(task, format!("the attempt took longer than its time_limit of {limit}"), None, policy, now)
        }
    }
}

/// The data is not of the worker's type, or the body could not be read at all.
pub(crate) fn undecodable(why: &str, task: &Incoming, now: SystemTime) -> Decision {
    hold(task, format!("the data cannot be read: {why}"), true, now)
}

/// No worker of this name is registered in this process.
pub(crate) fn without_worker(task: &Incoming, queue: &str, elsewhere: bool, unknown_for: Duration, now: SystemTime) -> Decision {
    let since = task.wire.unknown_since.unwrap_or_else(|| time::unix_millis(now));
    let waited = Duration::from_millis(time::unix_millis(now).saturating_sub(since));
    if waited >= unknown_for && !elsewhere {
        return hold(task, format!("no worker `{}` in queue `{queue}`", task.wire.task), false, now);
    }
    // The longer it has been missing, the less often it is looked for.
    let delay = (waited / 4).clamp(Duration::from_secs(1), Duration::from_secs(60)).mul_f64(0.9 + 0.2 * fastrand::f64());
    Decision::new(Settlement::Retry(task.without_worker(delay, now)), Verdict::NoWorker(delay))
}

/// Workers died with it too often.
pub(crate) fn crashed(task: &Incoming, crashes: u32, now: SystemTime) -> Decision {
    hold(task, format!("{crashes} workers died while running this task"), false, now)
}

/// A worker died near it: its next run is alone.
pub(crate) fn probation(task: &Incoming, died: bool) -> Decision {
    Decision::new(Settlement::Retry(task.on_probation(died)), Verdict::Probation)
}

/// Given back as it came.
pub(crate) fn released(task: &Incoming, delay: Duration) -> Decision {
    Decision::new(Settlement::Release(task.unchanged(delay)), Verdict::Released)
}

fn hold(task: &Incoming, reason: String, failed: bool, now: SystemTime) -> Decision {
    Decision::new(Settlement::Hold(task.held(&reason, failed, now), reason.clone()), Verdict::Held(reason))
}

fn failed(task: &Incoming, reason: String, delay: Option<Duration>, policy: &Policy, now: SystemTime) -> Decision {
    let failed = task.wire.failed.saturating_add(1);
    if failed >= policy.max_attempts.max(1) {
        return hold(task, format!("{failed} of {} attempts failed; the last: {reason}", policy.max_attempts), true, now);
    }
    let delay = bounded(delay.unwrap_or_else(|| policy.backoff.delay(task.wire.failed)));
    Decision::new(Settlement::Retry(task.failed(delay)), Verdict::Retried { reason, delay })
}

fn bounded(delay: Duration) -> Duration {
    delay.min(time::MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyqueue_core::{Bytes, Defaults, NativeFacts, Peeked, State, Wire};

    fn task(body: &str) -> Incoming {
        let raw = Bytes::copy_from_slice(body.as_bytes());
        let peeked = Peeked { raw, native: NativeFacts::default(), state: State::Reserved, remaining: None };
        Incoming::peeked(&peeked, "default", "q", Defaults::default())
    }

    fn decided(outcome: Outcome, body: &str) -> (String, Verdict) {
        let policy = Policy { backoff: crate::Backoff { jitter: 0.0, ..Default::default() }, ..Policy::default() };
        let decision = returned(outcome, &task(body), &policy, SystemTime::UNIX_EPOCH);
        let written = match decision.settlement {
            Settlement::Done => "done".to_owned(),
            Settlement::Release(_) => "release".to_owned(),
            Settlement::Retry(next) => format!("retry {:?} failed {}", next.delay, Wire::read(&next.body).unwrap().failed),
            Settlement::Hold(next, reason) => {
                let note = Wire::read(&next.body).unwrap().held.unwrap();
                assert_eq!(note.reason, reason);
                format!("hold after {}", note.failed)
            }
        };
        (written, decision.verdict)
    }

    #[test]
    fn each_outcome_has_its_effect() {
        let failed_twice = r#"{"task":"t","failed":2}"#;
        let minute = Duration::from_secs(60);
        assert_eq!(decided(Outcome::done(), failed_twice), ("done".into(), Verdict::Done));
        assert_eq!(decided(Outcome::discard("old"), failed_twice), ("done".into(), Verdict::Discarded("old".into())));
        assert_eq!(decided(Outcome::snooze(minute), failed_twice), ("retry 60s failed 2".into(), Verdict::Snoozed(minute)));
        assert_eq!(decided(Outcome::retry_in(minute), failed_twice).0, "retry 60s failed 3");
        assert_eq!(decided(Outcome::failed("boom"), failed_twice).0, "retry 16s failed 3");
        assert_eq!(decided(Outcome::hold("look"), failed_twice), ("hold after 2".into(), Verdict::Held("look".into())));
        assert_eq!(
            decided(Outcome::permanent("no font"), failed_twice),
            ("hold after 3".into(), Verdict::Held("no font".into()))
        );
        let last = decided(Outcome::failed("boom"), r#"{"task":"t","failed":7}"#);
        assert_eq!(last, ("hold after 8".into(), Verdict::Held("8 of 8 attempts failed; the last: boom".into())));
    }

    #[test]
    fn a_task_without_worker_waits_and_is_held_in_the_end() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let hour = Duration::from_secs(3600);
        let fresh = without_worker(&task(r#"{"task":"t","failed":1}"#), "q", false, hour, now);
        let Settlement::Retry(next) = fresh.settlement else { panic!("{fresh:?}") };
        let wire = Wire::read(&next.body).unwrap();
        assert_eq!((wire.failed, wire.unknown_since), (1, Some(10_000_000)));
        let old = r#"{"task":"t","unknown_since":6400000}"#;
        let held = without_worker(&task(old), "q", false, hour, now);
        assert_eq!(held.verdict, Verdict::Held("no worker `t` in queue `q`".into()));
        assert!(matches!(without_worker(&task(old), "q", true, hour, now).verdict, Verdict::NoWorker(_)));
    }

    #[test]
    fn a_cancelled_attempt_counts_unless_the_runner_stops() {
        let policy = Policy::default();
        let verdict = |reason| {
            cancelled(reason, &task(r#"{"task":"t"}"#), &policy, policy.time_limit.on(None), SystemTime::UNIX_EPOCH).verdict
        };
        assert!(matches!(verdict(Reason::TtrOver), Verdict::Retried { .. }));
        assert!(matches!(verdict(Reason::TimeLimit), Verdict::Retried { .. }));
        assert_eq!(verdict(Reason::Stop), Verdict::Released);
        assert_eq!(verdict(Reason::LeaseLost), Verdict::Late);
    }
}
