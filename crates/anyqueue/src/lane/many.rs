//! Sending many tasks: in large requests, and after one that failed from a small one on.

use std::collections::HashSet;

use anyqueue_core::{Accepted, Broker, Clock, Effect, Envelope, Error, ErrorKind, Result};

use super::{FIRST_WAIT, Lane, Span};

/// Tasks on their way through one lane.
pub(super) struct Many<'a> {
    lane: &'a Lane,
    broker: &'a dyn Broker,
    clock: &'a dyn Clock,
    span: Span,
    tasks: &'a [Envelope],
    /// The last answer for each task; none if it was not tried yet.
    answers: Vec<Option<Result<Accepted>>>,
    /// Those that are not settled, in order; behind them those that only they themselves are refused.
    open: Vec<usize>,
    /// Those that the broker refused, and took one behind them.
    overtaken: HashSet<usize>,
    /// How many tasks the next request has, and how many one has at the most.
    size: usize,
    most: usize,
}

impl<'a> Many<'a> {
    pub(super) fn new(lane: &'a Lane, broker: &'a dyn Broker, clock: &'a dyn Clock, span: Span, tasks: &'a [Envelope]) -> Self {
        let most = broker.capabilities(&lane.queue).batch.send.max(1);
        let answers = tasks.iter().map(|_| None).collect();
        let open = (0..tasks.len()).collect();
        Self { lane, broker, clock, span, tasks, answers, open, overtaken: HashSet::new(), size: most, most }
    }

    /// Sends until all are settled or the time is over.
    pub(super) async fn send(mut self) -> Vec<Result<Accepted>> {
        let mut wait = FIRST_WAIT;
        loop {
            let before = self.open.len();
            let (failed, of_one) = self.round().await;
            let Some(error) = self.open.first().and_then(|first| self.error(*first)) else {
                self.lane.answered();
                break;
            };
            if self.open.len() < before {
                wait = FIRST_WAIT;
            }
            // It failed once more, alone, while the broker takes others: these wait no longer, unless they are to follow it.
            let first = self.open[0];
            let by_itself = failed == 1 && of_one && self.overtaken.contains(&first) && self.tasks[first].group.is_none();
            if let Err(e) = self.lane.pause(error.duplicate(), self.clock, self.span, &mut wait).await {
                self.give_up(failed, &e);
                break;
            }
            if by_itself {
                self.open.rotate_left(1);
            }
        }
        self.answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(super::no_answer()))).collect()
    }

    /// Sends from the first on until a request fails, wholly or in part: what comes after it waits with it. How many of the
    /// open ones failed, the others behind them were not tried this time; and whether the last request was of one task, and
    /// what the broker said was of this task.
    async fn round(&mut self) -> (usize, bool) {
        let open = std::mem::take(&mut self.open);
        let (mut rest, mut of_one) = (open.as_slice(), false);
        while !rest.is_empty() {
            let (part, later) = rest.split_at(self.size.min(rest.len()));
            rest = later;
            match self.request(part).await {
                None => self.size = (self.size * 2).min(self.most),
                // Not the whole broker need be full: each task has its last try.
                Some((ErrorKind::Full, _)) if self.clock.now() >= self.span.give_up => self.size = self.most,
                Some((kind, effect)) => {
                    of_one = part.len() == 1 && is_of_one(kind, effect);
                    self.size = 1;
                    break;
                }
            }
        }
        let failed = self.open.len();
        self.open.extend(rest);
        (failed, of_one)
    }

    /// One request. What went wrong, if some of it may be tried again.
    async fn request(&mut self, part: &[usize]) -> Option<(ErrorKind, Effect)> {
        let answers = match part {
            // All of a kind: nothing is copied as long as nothing fails.
            [first, .., last] if part.is_sorted_by(|a, b| a + 1 == *b) => {
                self.lane.sent(self.broker, &self.tasks[*first..=*last]).await
            }
            _ => {
                let batch: Vec<Envelope> = part.iter().map(|at| self.tasks[*at].clone()).collect();
                self.lane.sent(self.broker, &batch).await
            }
        };
        let (mut failed, before) = (None, self.open.len());
        for (at, answer) in part.iter().zip(answers) {
            match &answer {
                Ok(_) => self.overtaken.extend(&self.open[before..]),
                Err(e) if e.is_retryable() => drop(failed.get_or_insert((e.kind(), e.effect()))),
                Err(_) => {}
            }
            let answer = answer.map_err(|e| self.with_effect(*at, e));
            if let Err(e) = &answer
                && e.is_retryable()
            {
                self.open.push(*at);
            }
            self.answers[*at] = Some(answer);
        }
        failed
    }

    /// The time is over. The first ones failed just now; why, is also why the others were not tried.
    fn give_up(&mut self, failed: usize, last: &Error) {
        for (number, at) in self.open.iter().enumerate() {
            let error = match self.error(*at) {
                Some(own) if number < failed => self.lane.gave_up(own.duplicate(), self.clock.now(), self.span),
                _ => self.with_effect(*at, last.duplicate().without_effect()),
            };
            self.answers[*at] = Some(Err(error));
        }
    }

    fn error(&self, at: usize) -> Option<&Error> {
        self.answers[at].as_ref().and_then(|answer| answer.as_ref().err())
    }

    /// What an earlier try may have sent stays unknown.
    fn with_effect(&self, at: usize, error: Error) -> Error {
        match self.error(at).map(Error::effect) {
            Some(Effect::Unknown) => error.effect_unknown(),
            _ => error,
        }
    }
}

/// Whether a broker that says this of one task may take another one.
fn is_of_one(kind: ErrorKind, effect: Effect) -> bool {
    effect == Effect::None && matches!(kind, ErrorKind::Full | ErrorKind::Throttled)
}
