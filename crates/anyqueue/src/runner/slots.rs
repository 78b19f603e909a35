//! The slots: each runs one handler at a time, on the user's runtime.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use anyqueue_core::Moment;
use tracing::Instrument;

use super::attempt::{self, Attempt, Ran};
use super::decide::{self, Verdict};
use super::shared::Shared;
use crate::hooks::AttemptInfo;
use crate::outcome::Kind;

/// Runs tasks until the runner aborts it.
pub(crate) async fn run(shared: Arc<Shared>, slot: usize) {
    loop {
        let (attempt, started) = next(&shared, slot).await;
        shared.counters.started.fetch_add(1, Ordering::Relaxed);
        work(&shared, attempt, started).await;
        // Handlers that never wait would keep the thread to themselves.
        tokio::task::coop::consume_budget().await;
    }
}

async fn next(shared: &Shared, slot: usize) -> (Arc<Attempt>, Moment) {
    let rules = |attempt: &Attempt| shared.watched[attempt.lane].rules(&attempt.incoming.wire.task);
    poll_fn(|cx| {
        let mut state = shared.state();
        let (due, settled) = (state.keeper_due, state.settled);
        let next = state.next(slot, cx.waker(), &*shared.clock, rules);
        if state.settled != settled {
            // Some were over before a slot took them, and the broker has them again.
            shared.activity.notify_one();
            shared.ring_all_pumps();
        }
        match next {
            Some(task) => {
                shared.ring_pump(&mut state, task.0.lane);
                if state.keeper_due != due {
                    shared.keeper.notify_one();
                }
                Poll::Ready(task)
            }
            None => {
                shared.ring_pumps(&mut state);
                Poll::Pending
            }
        }
    })
    .await
}

async fn work(shared: &Arc<Shared>, attempt: Arc<Attempt>, started: Moment) {
    let watched = &shared.watched[attempt.lane];
    let task = &attempt.incoming.wire.task;
    let Some(registered) = watched.workers.get(task) else { return };
    shared.hooks.before(|| AttemptInfo::of(&attempt));
    let (queue, id, number) = (attempt.queue(), attempt.incoming.id, attempt.incoming.attempt());
    let span = tracing::info_span!("task", queue, task = task.as_str(), %id, attempt = number, trace_id = tracing::field::Empty);
    if let Some(trace) = attempt.incoming.wire.header(crate::trace::TRACEPARENT).and_then(crate::trace::trace_id) {
        span.record("trace_id", trace);
    }
    let ran = attempt::run(&attempt, &*registered.worker).instrument(span).await;
    let now = shared.clock.now();
    let took = now.since(started);
    let wall = shared.clock.wall();
    let deliberate = matches!(&ran, Ran::Returned(outcome) if matches!(outcome.kind, Kind::Hold(_)));
    let (decision, rest) = match ran {
        Ran::Returned(outcome) => {
            if outcome.stop {
                shared.asked_to_stop.store(true, Ordering::Release);
                shared.state().left = Some(0);
                shared.activity.notify_one();
            }
            (decide::returned(outcome, &attempt.with_checkpoint(), &registered.policy, wall), None)
        }
        Ran::Undecodable(why) => (decide::undecodable(&why, &attempt.incoming, wall), None),
        Ran::Cancelled(reason, rest) => {
            let limit = watched.rules(task).limit;
            (decide::cancelled(reason, &attempt.with_checkpoint(), &registered.policy, limit, wall), rest)
        }
    };
    shared.hooks.after(
        || AttemptInfo::of(&attempt),
        &decision.verdict,
        took,
        deliberate,
        || attempt.incoming.wire.failed,
        registered.policy.notify_after,
    );
    if decision.verdict == Verdict::Late {
        // The lease is gone: nothing is sent.
        shared.settled(&attempt, &Verdict::Late);
        shared.state().settled += 1;
        if shared.drain {
            shared.ring_all_pumps();
        }
    } else {
        shared.settle(attempt.clone(), decision);
    }
    if let Some(rest) = rest {
        shared.state().unhold(&attempt);
        shared.activity.notify_one();
        rest.await;
    }
    shared.finish(&attempt, took);
}
