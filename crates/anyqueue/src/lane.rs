//! Sending with group commit: tasks that arrive while a request is in flight go out together in the next one.
//! There is no timer: an idle lane sends at once.

mod many;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{
    Accepted, Broker, Capabilities, Clock, Effect, Envelope, Error, ErrorKind, Link, Moment, QueueName, Result, Support,
};
use tokio::sync::oneshot;

use self::many::Many;
use crate::brokers::BrokerSlot;
use crate::io::Io;

/// The way of one queue's tasks to its broker.
#[derive(Debug)]
pub(crate) struct Lane {
    queue: QueueName,
    pub(crate) broker: Arc<BrokerSlot>,
    waiting: Mutex<Waiting>,
    /// The last send failed, and that was said.
    failing: AtomicBool,
    io: Io,
}

/// How many requests of one queue are under way at once over a network: with two, the broker has work while answers are
/// on their way. A broker in this process or in a file gathers what comes at once by itself.
const REQUESTS: usize = 2;
/// There are more, up to so many, where each is full: one that is half full costs a broker as much.
const MOST_REQUESTS: usize = 64;

/// How long a send that failed waits before its second try; twice as long before each next one.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The time that a send has.
#[derive(Debug, Clone, Copy)]
struct Span {
    began: Moment,
    give_up: Moment,
}

/// When a request goes out beside others of its queue.
#[derive(Debug, Clone, Copy)]
enum Room {
    /// At once: the broker gathers them by itself.
    Always,
    /// Two at once, and more where they have so many tasks.
    Full(usize),
}

impl Room {
    /// How many of the tasks that are ready go out in a request beside so many others; none if they have to wait. `all` are
    /// those that are ready or under way.
    fn takes(self, others: usize, ready: usize, all: usize) -> usize {
        match self {
            Self::Always => ready.min(all.div_ceil(MOST_REQUESTS)),
            // Two of equal size keep both sides busy.
            Self::Full(full) if others < REQUESTS && all < full.saturating_mul(REQUESTS) => ready.min(all.div_ceil(REQUESTS)),
            Self::Full(full) if others < REQUESTS => ready.min(full * Self::each(full, all)),
            Self::Full(full) if others < MOST_REQUESTS => (ready / full).min(Self::each(full, all)) * full,
            Self::Full(_) => 0,
        }
    }

    /// How many of the broker's own requests each of ours is.
    fn each(full: usize, all: usize) -> usize {
        (all / full).div_ceil(MOST_REQUESTS)
    }
}

#[derive(Debug, Default)]
struct Waiting {
    tasks: VecDeque<(Envelope, oneshot::Sender<Result<Accepted>>)>,
    /// Requests under way, and how many tasks they carry.
    requests: usize,
    carried: usize,
}

impl Lane {
    pub(crate) fn new(queue: QueueName, broker: Arc<BrokerSlot>, io: Io) -> Arc<Self> {
        Arc::new(Self { queue, broker, waiting: Mutex::default(), failing: AtomicBool::new(false), io })
    }

    fn room(&self) -> Room {
        let Some(broker) = self.broker.if_connected() else { return Room::Full(usize::MAX) };
        let can = broker.capabilities(&self.queue);
        match can.link {
            Link::Memory | Link::File => Room::Always,
            Link::Network { .. } => Room::Full(can.batch.together.max(1)),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one task. Transient errors are retried with back-off for as long as the broker's settings say.
    ///
    /// # Cancel safety
    /// A dropped future may or may not have sent the task.
    pub(crate) async fn send(
        self: &Arc<Self>,
        envelope: Envelope,
        clock: &dyn Clock,
        patience: Option<Duration>,
    ) -> Result<Accepted> {
        let (span, mut wait, mut effect) = (self.span(clock, patience), FIRST_WAIT, Effect::None);
        loop {
            let error = match self.once(&envelope).await {
                Ok(accepted) => {
                    self.answered();
                    return Ok(accepted);
                }
                // What one try may have sent stays unknown, however the last one ends.
                Err(e) if effect == Effect::Unknown => e.effect_unknown(),
                Err(e) => e,
            };
            effect = error.effect();
            self.pause(error, clock, span, &mut wait).await?;
        }
    }

    fn span(&self, clock: &dyn Clock, patience: Option<Duration>) -> Span {
        let began = clock.now();
        Span { began, give_up: began + patience.unwrap_or(self.broker.settings.send_timeout) }
    }

    /// Waits before the next try. The last one is when the time to send is over.
    ///
    /// # Errors
    /// What went wrong, if there is no next try.
    async fn pause(&self, error: Error, clock: &dyn Clock, span: Span, wait: &mut Duration) -> Result<()> {
        let now = clock.now();
        if !error.is_retryable() {
            self.answered();
            return Err(error);
        }
        if now >= span.give_up {
            return Err(self.gave_up(error, now, span));
        }
        self.complain(&error, span.give_up.since(now));
        clock.sleep_until((now + wait.mul_f64(0.5 + fastrand::f64())).min(span.give_up)).await;
        *wait = (*wait * 2).min(LONGEST_WAIT);
        Ok(())
    }

    /// The last request under way may have taken longer than there was time.
    fn gave_up(&self, error: Error, now: Moment, span: Span) -> Error {
        let waited = anyqueue_core::time::show(in_seconds(now.since(span.began)).max(span.give_up.since(span.began)));
        error.during("send").with("queue", &self.queue).with("gave up after", waited)
    }

    /// Says once, for all who send meanwhile, what they wait for.
    fn complain(&self, error: &Error, left: Duration) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            let left = anyqueue_core::time::show(in_seconds(left));
            let (queue, broker) = (self.queue.as_str(), &*self.broker.settings.name);
            tracing::warn!(
                queue,
                broker,
                error = anyqueue_core::chain(error),
                "the broker takes no task; trying again for {left}"
            );
        }
    }

    /// The broker is there again: its next outage is said.
    fn answered(&self) {
        self.failing.store(false, Ordering::Relaxed);
    }

    /// Sends many tasks: one answer each, in order.
    pub(crate) async fn send_all(
        &self,
        envelopes: &[Envelope],
        clock: &dyn Clock,
        patience: Option<Duration>,
    ) -> Vec<Result<Accepted>> {
        if envelopes.is_empty() {
            return Vec::new();
        }
        let (span, mut wait) = (self.span(clock, patience), FIRST_WAIT);
        let broker = loop {
            let error = match self.broker.connected().await {
                Ok(broker) => break broker,
                Err(e) => e,
            };
            if let Err(e) = self.pause(error, clock, span, &mut wait).await {
                return envelopes.iter().map(|_| Err(e.duplicate())).collect();
            }
        };
        Many::new(self, &*broker, clock, span, envelopes).send().await
    }

    async fn once(self: &Arc<Self>, envelope: &Envelope) -> Result<Accepted> {
        let follow = {
            let mut waiting = self.waiting();
            let ready = waiting.tasks.len() + 1;
            let more = self.room().takes(waiting.requests, ready, ready + waiting.carried) > 0;
            waiting.requests += usize::from(more);
            if more && waiting.tasks.is_empty() {
                waiting.carried += 1;
                None
            } else {
                let (answer, answered) = oneshot::channel();
                waiting.tasks.push_back((envelope.clone(), answer));
                if more {
                    self.start_flush();
                }
                Some(answered)
            }
        };
        if let Some(answered) = follow {
            return answered.await.unwrap_or_else(|_| Err(Error::unavailable("the send was given up").effect_unknown()));
        }
        // The first of a burst sends itself; what has queued up meanwhile goes out when this guard falls.
        let _next = Next { lane: self, carried: 1 };
        let broker = self.broker.connected().await?;
        self.sent(&*broker, std::slice::from_ref(envelope)).await.pop().unwrap_or_else(|| Err(no_answer()))
    }

    fn start_flush(self: &Arc<Self>) {
        drop(self.io.spawn(self.clone().flush()));
    }

    async fn flush(self: Arc<Self>) {
        let mut next = Next { lane: &self, carried: 0 };
        let broker = match self.broker.connected().await {
            Ok(broker) => broker,
            Err(e) => {
                let tasks = std::mem::take(&mut self.waiting().tasks);
                tasks.into_iter().for_each(|(_, answer)| drop(answer.send(Err(e.duplicate()))));
                return;
            }
        };
        let most = broker.capabilities(&self.queue).batch.send.max(1);
        loop {
            let (batch, answers): (Vec<_>, Vec<_>) = {
                let mut waiting = self.waiting();
                waiting.carried -= std::mem::take(&mut next.carried);
                let (room, ready) = (self.room(), waiting.tasks.len());
                let count = room.takes(waiting.requests - 1, ready, ready + waiting.carried).min(most);
                if count == 0 {
                    // What is ready goes once fewer than two others are left, or as soon as it fills a request.
                    return;
                }
                waiting.carried += count;
                next.carried = count;
                let batch = waiting.tasks.drain(..count).unzip();
                if room.takes(waiting.requests, ready - count, ready - count + waiting.carried) > 0 {
                    // What came before it was connected, and nobody else comes for.
                    waiting.requests += 1;
                    self.start_flush();
                }
                batch
            };
            let results = self.sent(&*broker, &batch).await;
            results.into_iter().zip(answers).for_each(|(result, answer)| drop(answer.send(result)));
        }
    }

    /// One request, on whichever way its tasks came here.
    async fn sent(&self, broker: &dyn Broker, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let is_plain = |envelope: &Envelope| envelope.group.is_none() && envelope.unique.is_none();
        let refused: Vec<Result<()>> = if batch.iter().all(is_plain) {
            Vec::new()
        } else {
            let can = broker.capabilities(&self.queue);
            batch.iter().map(|envelope| refuse(envelope, &self.broker.settings.name, &can)).collect()
        };
        if refused.iter().all(Result::is_ok) {
            let mut answers = broker.send(&self.queue, batch).await;
            answers.resize_with(batch.len(), || Err(no_answer()));
            return answers;
        }
        let good = batch.iter().zip(&refused).filter(|(_, refused)| refused.is_ok());
        let good: Vec<Envelope> = good.map(|(envelope, _)| envelope.clone()).collect();
        let mut sent = if good.is_empty() { Vec::new() } else { broker.send(&self.queue, &good).await }.into_iter();
        let answer = |refused: Result<()>| refused.and_then(|()| sent.next().unwrap_or_else(|| Err(no_answer())));
        refused.into_iter().map(answer).collect()
    }
}

/// Hands the lane on when a request is over, even one that was dropped half-way.
struct Next<'a> {
    lane: &'a Arc<Lane>,
    carried: usize,
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        let mut waiting = self.lane.waiting();
        waiting.carried -= self.carried;
        waiting.requests -= 1;
        let ready = waiting.tasks.len();
        if self.lane.room().takes(waiting.requests, ready, ready + waiting.carried) > 0 {
            waiting.requests += 1;
            self.lane.start_flush();
        }
    }
}

fn in_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs_f64().round() as u64)
}

/// Refuses what the broker would have to ignore.
fn refuse(envelope: &Envelope, broker: &str, can: &Capabilities) -> Result<()> {
    for (asked, what, support) in
        [(envelope.group.is_some(), "a group", can.group), (envelope.unique.is_some(), "a unique key", can.unique)]
    {
        if let (true, Support::Needs((), needed)) = (asked, support) {
            let text = format!("the task has {what}, and broker `{broker}` ignores it; it needs {needed}");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    }
    Ok(())
}

fn no_answer() -> Error {
    Error::new(anyqueue_core::ErrorKind::Protocol, "the adapter gave no answer for this task").effect_unknown()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_share_what_there_is_and_others_are_full() {
        let tens = Room::Full(10);
        let beside = |others, ready, under_way| tens.takes(others, ready, ready + under_way);
        assert_eq!([beside(0, 1, 0), beside(1, 1, 1), beside(1, 11, 1), beside(1, 18, 1), beside(1, 62, 1)], [1, 1, 6, 10, 10]);
        assert_eq!([beside(2, 9, 2), beside(2, 10, 2), beside(2, 15, 3), beside(6, 34, 60)], [0, 10, 10, 10]);
        assert_eq!([beside(2, 13, 700), beside(2, 60, 700), beside(MOST_REQUESTS, 60, 700)], [10, 20, 0]);
        assert_eq!([1, 64, 65, 640].map(|ready| Room::Always.takes(100, ready, ready)), [1, 1, 2, 10]);
    }

    #[test]
    fn before_it_is_known_what_fills_a_request_there_are_two() {
        let unknown = Room::Full(usize::MAX);
        assert_eq!([unknown.takes(0, 64, 64), unknown.takes(1, 32, 64), unknown.takes(2, 64, 128)], [32, 32, 0]);
    }
}
