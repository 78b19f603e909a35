//! The lease keeper: renews leases well before they end, in batches; ends attempts whose time is up; gives back what
//! waited too long for a slot. It runs on the machinery's thread, so blocking handlers do not stop it.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Error, Moment, Touch, chain};

use super::attempt::{Attempt, Reason};
use super::decide;
use super::shared::Shared;
use super::state::{Phase, State, ttr_over};

/// What one look at the leases asks for.
#[derive(Default)]
struct Due {
    touch: Vec<Arc<Attempt>>,
    give_back: Vec<Arc<Attempt>>,
    /// Could not be alone in time, since others run long: those go on, and it comes again later.
    postpone: Vec<Arc<Attempt>>,
}

/// Keeps leases for as long as the runner lives.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let due = shared.state().keeper_due;
        tokio::select! {
            () = shared.keeper.notified() => continue,
            () = sleep(&shared, due) => {}
        }
        let due = look(&mut shared.state(), shared.clock.now());
        shared.give_back(due.give_back);
        if !due.postpone.is_empty() {
            shared.ring_all_pumps();
        }
        for task in due.postpone {
            let decision = decide::released(&task.incoming, task.incoming.ttr);
            shared.settle(task, decision);
        }
        for group in by_settler(due.touch) {
            tokio::spawn(touch(shared.clone(), group));
        }
    }
}

async fn sleep(shared: &Shared, due: Option<Moment>) {
    match due {
        Some(due) => shared.clock.sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn look(state: &mut State, now: Moment) -> Due {
    let mut due = Due::default();
    let mut stale = Vec::new();
    let mut next: Option<Moment> = None;
    for (_, held) in &mut state.leases {
        let attempt = &held.attempt;
        let at = match &mut held.phase {
            Phase::Buffered { until } if *until <= now => {
                stale.push(attempt.clone());
                continue;
            }
            Phase::Buffered { until } => *until,
            Phase::Running { touch, limit, touching } => {
                if attempt.cancel.is_set() {
                    continue;
                }
                if now >= attempt.deadline() {
                    attempt.cancel.set(Reason::LeaseLost);
                    continue;
                }
                if limit.is_some_and(|limit| limit <= now) {
                    attempt.cancel.set(Reason::TimeLimit);
                    continue;
                }
                if touch.is_none() && ttr_over(attempt) <= now {
                    attempt.cancel.set(Reason::TtrOver);
                    continue;
                }
                if !*touching && touch.is_some_and(|touch| touch <= now + attempt.incoming.ttr / 10) {
                    *touching = true;
                    due.touch.push(attempt.clone());
                }
                let renew = if *touching { Some(attempt.deadline()) } else { touch.or(Some(ttr_over(attempt))) };
                [renew, *limit].into_iter().flatten().min().unwrap_or(now)
            }
        };
        next = Some(next.map_or(at, |next| next.min(at)));
    }
    state.keeper_due = next;
    for attempt in stale {
        if state.take_buffered(&attempt) {
            due.give_back.push(attempt);
        } else if state.take_alone(&attempt) {
            due.postpone.push(attempt);
        }
    }
    due
}

fn by_settler(attempts: Vec<Arc<Attempt>>) -> Vec<Vec<Arc<Attempt>>> {
    let mut groups: Vec<Vec<Arc<Attempt>>> = Vec::new();
    for attempt in attempts {
        match groups.iter_mut().find(|group| Arc::ptr_eq(&group[0].settler, &attempt.settler)) {
            Some(group) => group.push(attempt),
            None => groups.push(vec![attempt]),
        }
    }
    groups
}

/// Renews leases of one broker. A request that takes longer than a third of the shortest TTR counts as failed.
async fn touch(shared: Arc<Shared>, attempts: Vec<Arc<Attempt>>) {
    let before = shared.clock.now();
    let shortest = attempts.iter().map(|attempt| attempt.incoming.ttr).min().unwrap_or_default();
    let batch: Vec<Touch> = attempts.iter().map(|attempt| attempt.as_touch()).collect();
    let mut answers = tokio::select! {
        answers = attempts[0].settler.touch(&batch) => answers,
        () = shared.clock.sleep_until(before + shortest / 3) => Vec::new(),
    };
    answers.resize_with(attempts.len(), || Err(Error::unavailable("no answer in time")));
    let mut state = shared.state();
    let now = shared.clock.now();
    for (attempt, answer) in attempts.iter().zip(answers) {
        let ttr = attempt.incoming.ttr;
        let next = match answer {
            Ok(left) => {
                attempt.set_deadline(before + left);
                before + left.min(ttr) / 3
            }
            Err(e) if e.is_lease_lost() => {
                attempt.cancel.set(Reason::LeaseLost);
                continue;
            }
            Err(e) => {
                let (queue, id) = (attempt.queue(), attempt.incoming.id);
                tracing::warn!(queue, %id, error = chain(&e), "cannot renew the lease; will try again until it ends");
                now + (ttr / 10).max(Duration::from_millis(50))
            }
        };
        let key = attempt.lease.load(std::sync::atomic::Ordering::Relaxed);
        let held = state.leases.get_mut(key).filter(|held| Arc::ptr_eq(&held.attempt, attempt));
        if let Some(Phase::Running { touch, touching, .. }) = held.map(|held| &mut held.phase) {
            (*touch, *touching) = (Some(next), false);
            state.keeper_due = Some(state.keeper_due.map_or(next, |due| due.min(next)));
        }
    }
    drop(state);
    shared.keeper.notify_one();
}
