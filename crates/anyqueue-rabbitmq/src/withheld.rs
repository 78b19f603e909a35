//! Keeping a line from fetching, for as long as somebody works on its queue.

use std::sync::Arc;
use std::time::Duration;

use crate::line::Line;
use crate::shared::Shared;

/// What becomes of tasks that were fetched and not handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They are back at the server.
    Back,
    /// They are gone, as if they had been there when the queue was purged.
    Gone,
}

/// Nothing is fetched and nothing handed out until this is dropped.
#[derive(Debug)]
pub(crate) struct Withheld {
    line: Arc<Line>,
    fate: Fate,
}

impl Withheld {
    /// Waits until nothing lies here any more. A server that is away has it anyway.
    pub(crate) async fn begin(line: &Arc<Line>, shared: &Shared, fate: Fate) -> Self {
        let give_up = shared.clock.now() + shared.config.timeout;
        {
            let mut state = line.state();
            state.withheld += 1;
            state.purging += usize::from(fate == Fate::Gone);
        }
        let withheld = Self { line: line.clone(), fate };
        while shared.clock.now() < give_up {
            line.wake.notify_one();
            let rung = line.bell.notified();
            if line.state().is_quiet() {
                break;
            }
            tokio::select! {
                () = rung => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        withheld
    }

    /// How many tasks were fetched, and are gone.
    pub(crate) fn purged(&self) -> u64 {
        std::mem::take(&mut self.line.state().purged)
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        let mut state = self.line.state();
        state.withheld -= 1;
        state.purging -= usize::from(self.fate == Fate::Gone);
        drop(state);
        self.line.wake.notify_one();
        self.line.bell.notify_one();
    }
}
