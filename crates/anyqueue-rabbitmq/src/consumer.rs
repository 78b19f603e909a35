//! Reserving: who waits takes from what the line's keeper has fetched.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{ConsumeOptions, Consumer, Delivery, Error, ErrorKind, Result, Settler, async_trait};

use crate::bands;
use crate::error::closed;
use crate::keeper::Keeper;
use crate::layout::Layout;
use crate::line::Line;
use crate::settle::RabbitSettler;
use crate::shared::Shared;
use crate::withheld::{Fate, Withheld};

/// A server that hesitates to say whether it has tasks is waited for this long beyond the time that was given.
const HESITATION: Duration = Duration::from_secs(2);

/// Takes tasks from one queue. All I/O is the keeper's, so that a dropped `reserve` loses nothing.
#[derive(Debug)]
pub(crate) struct RabbitConsumer {
    shared: Arc<Shared>,
    layout: Arc<Layout>,
    line: Arc<Line>,
}

impl RabbitConsumer {
    pub(crate) fn new(shared: Arc<Shared>, layout: Arc<Layout>, options: &ConsumeOptions) -> Self {
        let max_ttr = layout.style.max_ttr;
        let line = Line::new(layout.queue.clone(), layout.bands.len(), options.prefetch, options.ttr, max_ttr);
        let line = Arc::new(line);
        shared.add_line(&line);
        let keeper = Keeper::new(shared.clone(), layout.clone(), line.clone(), &options.priorities);
        shared.runtime.spawn(keeper.run());
        shared.runtime.spawn(bands::watch(shared.clone(), layout.clone(), Arc::downgrade(&line)));
        Self { shared, layout, line }
    }

    async fn reserve_some(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let (line, clock) = (&self.line, &self.shared.clock);
        let until = clock.now() + wait;
        // A look takes one request after another, and who does not wait is told what it found, or what went wrong.
        let end = until + if wait.is_zero() { self.shared.config.timeout * 3 } else { HESITATION };
        let waiting = Waiting::begin(&self.shared, line, max, wait);
        loop {
            self.shared.check()?;
            let rung = line.bell.notified();
            let now = clock.now();
            let taken = line.take(max, now);
            if !taken.is_empty() {
                return Ok(taken);
            }
            let known = {
                let mut state = line.state();
                if let Some(fault) = state.fault.take() {
                    return Err(fault);
                }
                // What waits here for a note is there.
                let seen = state.looked && state.to_note.is_none();
                // Whoever has waited does not wait for a server that hesitates.
                let known = seen || !wait.is_zero() && state.hesitated.is_some();
                // Whoever does not wait is told at once when it stays unknown.
                let unsure = wait.is_zero() && !state.looked && state.hesitated >= Some(waiting.question);
                if !known && (unsure || now >= end) {
                    return Err(hesitates());
                }
                known
            };
            if known && now >= until {
                return Ok(taken);
            }
            line.wake.notify_one();
            tokio::select! {
                () = rung => {}
                () = clock.sleep_until(if now < until { until } else { end }) => {}
            }
            waiting.renew();
        }
    }
}

fn hesitates() -> Error {
    Error::new(ErrorKind::Timeout, "the server has not said in time whether it has tasks; ask again")
}

/// A reserve under way. However it ends, nothing is fetched for it any more a moment later.
struct Waiting<'a> {
    shared: &'a Shared,
    line: &'a Line,
    question: u64,
}

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared, line: &'a Line, max: usize, wait: Duration) -> Self {
        let mut state = line.state();
        if wait.is_zero() {
            state.ask(shared.clock.now());
        }
        state.demand = max.min(line.prefetch);
        state.waiting += 1;
        // What went wrong before somebody asked is tried again.
        state.fault = None;
        let question = state.question;
        drop(state);
        Self { shared, line, question }
    }

    fn renew(&self) {
        self.line.state().asked = self.shared.clock.now();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state();
        state.waiting -= 1;
        state.asked = self.shared.clock.now();
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        self.reserve_some(max.get(), wait).await.map_err(|e| e.during("reserve").with("queue", &self.line.queue))
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(RabbitSettler::new(self.shared.clone(), self.layout.clone(), self.line.clone()))
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.line.state().left = true;
        drop(Withheld::begin(&self.line, &self.shared, Fate::Back).await);
        Ok(())
    }
}

impl Drop for RabbitConsumer {
    fn drop(&mut self) {
        self.line.state().left = true;
        self.line.wake.notify_one();
    }
}

/// The error of reserving on a closed broker reaches who waits.
pub(crate) fn end(line: &Line) {
    line.state().fault = Some(closed());
    line.bell.notify_waiters();
    line.bell.notify_one();
}
