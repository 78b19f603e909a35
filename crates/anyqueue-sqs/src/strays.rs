//! Tasks where no worker looks any more, since `bands` or `fifo` were changed: found, reported, and moved where that is safe.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyqueue_core::{Clock, Drift, ErrorKind, Result, priority};
use aws_sdk_sqs::types::QueueAttributeName::{
    ApproximateNumberOfMessages as Visible, ApproximateNumberOfMessagesDelayed as Delayed,
    ApproximateNumberOfMessagesNotVisible as Hidden,
};
use futures::future::join_all;

use crate::api::BATCH;
use crate::hub::{Hub, Move};
use crate::lines::Lines;
use crate::names::{self, Part};

/// What is moved and lost on the way is there again after so many seconds.
const HIDDEN: u64 = 60;
/// How soon is looked again: where something was moved, where there is an old queue, and where there is none.
const SOON: Duration = Duration::from_secs(30);
const NOW_AND_THEN: Duration = Duration::from_secs(300);
const SELDOM: Duration = Duration::from_secs(3600);

/// An SQS queue of a queue that its settings leave out.
#[derive(Debug)]
pub(crate) struct Stray {
    name: String,
    url: Arc<str>,
    /// The last priority of the band that it was.
    end: u32,
    fifo: bool,
    tasks: u64,
}

/// Moves what is in bands of other settings, for as long as the broker is open.
pub(crate) async fn run(hub: Weak<Hub>, clock: Arc<dyn Clock>, lines: Arc<Lines>) {
    loop {
        let Some(open) = hub.upgrade().filter(|hub| hub.check().is_ok()) else { return };
        let pause = match open.move_strays(&lines).await {
            Ok(Some(0)) => NOW_AND_THEN,
            Ok(Some(moved)) => {
                tracing::info!(queue = lines.queue.as_str(), moved, "tasks of bands that the settings leave out were moved");
                SOON
            }
            Ok(None) => SELDOM,
            Err(error) => {
                tracing::warn!(queue = lines.queue.as_str(), %error, "cannot look for tasks of other `bands`; will try again");
                NOW_AND_THEN
            }
        };
        drop(open);
        clock.sleep_until(clock.now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

impl Hub {
    /// SQS queues of other settings that are there, with or without tasks.
    async fn strays(&self, lines: &Lines, fifo: bool) -> Result<Vec<Stray>> {
        let (kind, prefix) = (lines.kind, &self.config.prefix);
        let plain = kind.levels().plain() as usize;
        let own: Vec<u32> =
            kind.bands.iter().enumerate().map(|(at, end)| if at == plain { priority::NORMAL } else { *end }).collect();
        let ends = priority::FIVE_BANDS.iter().copied().filter(|end| fifo != kind.fifo || !own.contains(end));
        let look = async |end: u32| {
            let part = if end == priority::NORMAL { Part::Plain } else { Part::Band(end) };
            let name = names::name(prefix, &lines.queue, part, fifo);
            let Some(url) = self.api.url(&name).await? else { return Ok::<_, anyqueue_core::Error>(None) };
            let attributes = self.api.attributes(&url).await?;
            let number = |key| attributes.get(&key).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
            Ok(Some(Stray { name, url, end, fifo, tasks: number(Visible) + number(Hidden) + number(Delayed) }))
        };
        let mut strays = Vec::new();
        for found in join_all(ends.map(look)).await {
            match found {
                Ok(found) => strays.extend(found),
                // Rights are often for the queues in use only.
                Err(e) if e.kind() == ErrorKind::Denied => {}
                Err(e) => return Err(e),
            }
        }
        Ok(strays)
    }

    /// Where tasks are that the settings leave out.
    pub(crate) async fn strayed(&self, lines: &Lines) -> Result<Vec<Drift>> {
        let (bands, twin) = futures::try_join!(self.strays(lines, lines.kind.fifo), self.strays(lines, !lines.kind.fifo))?;
        let drift = |stray: Stray| {
            let setting = if stray.fifo == lines.kind.fifo {
                format!("bands = {}", lines.kind.bands.len())
            } else {
                format!("fifo = {}", lines.kind.fifo)
            };
            let what = format!("tasks in `{}`, which `{setting}` leaves out,", stray.name);
            Drift { what, wanted: "0".into(), found: stray.tasks.to_string() }
        };
        Ok(bands.into_iter().chain(twin).filter(|stray| stray.tasks > 0).map(drift).collect())
    }

    /// Moves what is visible in bands of other settings to the bands of these: how many, or `None` if there are no such bands.
    /// The other kind of queue is left alone: while two versions of a program run, each would take from the other.
    async fn move_strays(&self, lines: &Lines) -> Result<Option<u64>> {
        let strays = self.strays(lines, lines.kind.fifo).await?;
        let (there, mut moved) = (!strays.is_empty(), 0);
        for stray in strays.iter().filter(|stray| stray.tasks > 0) {
            while self.check().is_ok() {
                let came = self.api.receive(&stray.url, BATCH, HIDDEN, Duration::ZERO).await?;
                if came.is_empty() {
                    break;
                }
                let mut by_band: HashMap<Arc<str>, Vec<Move>> = HashMap::new();
                for one in came {
                    let band = lines.band(one.slip.priority.unwrap_or(stray.end));
                    by_band.entry(band.clone()).or_default().push((one.handle.clone(), one.again(self.looks(&one.id))));
                }
                for (band, items) in by_band {
                    let (count, answer) = self.moved_or_shown(lines, &stray.url, &band, items).await;
                    moved += count;
                    answer?;
                }
            }
        }
        Ok(there.then_some(moved))
    }
}
