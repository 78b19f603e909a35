//! Notes of tasks that came back unharmed.
//!
//! A quorum queue counts how often a message came back, which tells of dead workers. But a task that was looked at, or
//! fetched and not begun, comes back too. So whoever gives such tasks back writes down their names first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{Bytes, Error, ErrorKind, Result};
use lapin::BasicProperties;
use lapin::types::ShortString;

use crate::layout::NOTES;
use crate::message::Message;
use crate::publish::Post;
use crate::shared::Shared;

/// What is known of the notes.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<HashMap<Arc<str>, u64>>);

/// How long reading them may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Names in one note.
const NAMES: usize = 1024;
/// More than are kept.
const MOST: usize = 4096;

impl Notes {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often this copy of a task came back unharmed, as far as it is known here.
    fn of(&self, message: &Message) -> u64 {
        message.name.as_ref().and_then(|name| self.known().get(name).copied()).unwrap_or(0)
    }
}

/// Says of a message how often it came back from the dead.
fn settle(message: &mut Message, unharmed: u64) {
    if unharmed > 0 {
        message.returns = message.returns.saturating_sub(unharmed.max(u64::from(!message.exact)));
        message.exact |= message.returns == 0;
    }
}

impl Shared {
    /// Writes down that these tasks are given back unharmed. To be done before they are.
    pub(crate) async fn note(&self, names: &[Arc<str>]) -> Result<()> {
        for part in names.chunks(NAMES) {
            let post = Post {
                exchange: ShortString::default(),
                key: NOTES.into(),
                properties: BasicProperties::default().with_delivery_mode(2).with_content_type("text/plain".into()),
                body: Bytes::from(part.join("\n")),
            };
            self.publish(std::slice::from_ref(&post)).await.remove(0)?;
            let mut known = self.notes.known();
            part.iter().for_each(|name| *known.entry(name.clone()).or_default() += 1);
        }
        Ok(())
    }

    /// Takes unharmed returns off what the server counted.
    pub(crate) async fn forgive(&self, messages: &mut [Message]) {
        let suspect = |message: &Message| message.returns > self.notes.of(message);
        if messages.iter().all(|message| message.returns == 0) {
            return;
        }
        if messages.iter().any(suspect)
            && let Err(e) = self.read_notes_in_time().await
        {
            tracing::debug!(error = anyqueue_core::chain(&e), "notes cannot be read; tasks that came back count as crashed");
        }
        for message in messages {
            let unharmed = self.notes.of(message);
            settle(message, unharmed);
        }
    }

    /// Leases are not looked after meanwhile, so that this must be short.
    async fn read_notes_in_time(&self) -> Result<()> {
        let late = || Error::new(ErrorKind::Timeout, "the notes are not read in time");
        tokio::time::timeout(PATIENCE, self.read_notes()).await.unwrap_or_else(|_| Err(late()))
    }

    async fn read_notes(&self) -> Result<()> {
        let walk = self.walk("notes").await?;
        let notes = walk.take(&NOTES.into(), MOST).await?;
        let mut known: HashMap<Arc<str>, u64> = HashMap::new();
        for note in &notes {
            let names = std::str::from_utf8(&note.raw).unwrap_or_default();
            names.lines().for_each(|name| *known.entry(name.into()).or_default() += 1);
        }
        walk.end().await?;
        let mut here = self.notes.known();
        // What was noted here meanwhile must not be forgotten.
        for (name, count) in here.iter() {
            let read = known.entry(name.clone()).or_default();
            *read = (*read).max(*count);
        }
        if known.len() > MOST * NAMES {
            known.clear();
        }
        *here = known;
        Ok(())
    }
}
