//! Notes of tasks that came back unharmed.
//!
//! A quorum queue counts how often a message came back, which tells of dead workers. But a task that was looked at, or
//! fetched and not begun, comes back too. So whoever gives such tasks back writes down their names first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Bytes, Moment, Result, chain};
use lapin::BasicProperties;
use lapin::types::ShortString;
use tokio::sync::watch;

use crate::layout::Layout;
use crate::message::Message;
use crate::publish::Post;
use crate::shared::Shared;

/// Names in one note.
const NAMES: usize = 1024;
/// More notes than are kept.
const MOST: usize = 4096;
/// Tasks wait no longer than this for the notes of them; without, they count as crashed, which costs them a run alone.
const PATIENCE: Duration = Duration::from_secs(2);
/// Names are forgotten after one to two of these: the server keeps a note for a day.
const GENERATION: Duration = Duration::from_secs(12 * 3600);
/// A generation of more names than this is over early.
const CROWD: usize = 200_000;

/// What is known of the notes.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    young: HashMap<Arc<str>, u64>,
    old: HashMap<Arc<str>, u64>,
    since: Option<Moment>,
    /// Looks at the server's notes that are under way, by queue.
    looks: HashMap<String, watch::Receiver<()>>,
}

impl Known {
    fn of(&self, name: &str) -> u64 {
        self.young.get(name).or_else(|| self.old.get(name)).copied().unwrap_or(0)
    }

    /// Forgets what is old.
    fn age(&mut self, now: Moment) {
        let since = *self.since.get_or_insert(now);
        if since + GENERATION <= now || self.young.len() > CROWD {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
    }

    fn add(&mut self, name: &Arc<str>, now: Moment) {
        self.age(now);
        let count = self.of(name) + 1;
        self.young.insert(name.clone(), count);
    }

    /// What was noted here and has not been seen at the server yet must not be forgotten.
    fn take_in(&mut self, name: Arc<str>, count: u64, now: Moment) {
        self.age(now);
        let count = count.max(self.of(&name));
        self.young.insert(name, count);
    }
}

impl Notes {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often this copy of a task came back unharmed, as far as it is known here.
    fn of(&self, message: &Message) -> u64 {
        message.name.as_ref().map_or(0, |name| self.known().of(name))
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
    pub(crate) async fn note(&self, layout: &Layout, names: &[Arc<str>]) -> Result<()> {
        for part in names.chunks(NAMES) {
            let post = Post {
                exchange: ShortString::default(),
                key: layout.notes.clone(),
                properties: BasicProperties::default().with_delivery_mode(2).with_content_type("text/plain".into()),
                body: Bytes::from(part.join("\n")),
            };
            self.publish(std::slice::from_ref(&post)).await.remove(0)?;
            let (now, mut known) = (self.clock.now(), self.notes.known());
            part.iter().for_each(|name| known.add(name, now));
        }
        Ok(())
    }

    /// Takes unharmed returns off what the server counted.
    pub(crate) async fn forgive(self: &Arc<Self>, layout: &Arc<Layout>, messages: &mut [Message]) {
        let counted = |message: &&mut Message| message.returns > 0 && !message.harmed_only;
        let suspect = |message: &Message| message.returns > self.notes.of(message) && !message.harmed_only;
        if messages.iter().any(suspect) && tokio::time::timeout(PATIENCE, self.look_at_notes(layout)).await.is_err() {
            tracing::debug!(queue = layout.queue.as_str(), "notes take long; tasks that came back count as crashed");
        }
        for message in messages.iter_mut().filter(counted) {
            let unharmed = self.notes.of(message);
            settle(message, unharmed);
        }
    }

    /// Waits for a look that begins now. Whoever asks while one is under way waits for it and for the next, which all share.
    async fn look_at_notes(self: &Arc<Self>, layout: &Arc<Layout>) {
        let earlier = self.notes.known().looks.get(layout.queue.as_str()).cloned();
        if let Some(mut earlier) = earlier {
            // An error is its end.
            drop(earlier.changed().await);
        }
        let mut look = {
            let mut known = self.notes.known();
            match known.looks.get(layout.queue.as_str()) {
                Some(look) => look.clone(),
                None => {
                    let (end, look) = watch::channel(());
                    known.looks.insert(layout.queue.to_string(), look.clone());
                    self.runtime.spawn(self.clone().look(layout.clone(), end));
                    look
                }
            }
        };
        drop(look.changed().await);
    }

    /// Carried to its end, whoever waits for it.
    async fn look(self: Arc<Self>, layout: Arc<Layout>, end: watch::Sender<()>) {
        if let Err(e) = self.read_notes(&layout).await {
            tracing::debug!(queue = layout.queue.as_str(), error = chain(&e), "notes cannot be read");
        }
        self.notes.known().looks.remove(layout.queue.as_str());
        drop(end);
    }

    async fn read_notes(&self, layout: &Layout) -> Result<()> {
        let walk = self.walk(layout.notes.as_str()).await?;
        let mut read: HashMap<Arc<str>, u64> = HashMap::new();
        let mut notes = walk.slices(&layout.notes, MOST);
        loop {
            let slice = notes.next().await?;
            if slice.is_empty() {
                break;
            }
            for note in &slice {
                let names = std::str::from_utf8(&note.raw).unwrap_or_default();
                names.lines().for_each(|name| *read.entry(name.into()).or_default() += 1);
            }
        }
        walk.end().await?;
        let (now, mut known) = (self.clock.now(), self.notes.known());
        read.into_iter().for_each(|(name, count)| known.take_in(name, count, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_forgotten_in_time_and_not_before() {
        let (mut known, start) = (Known::default(), Moment::default());
        let name = |text: &str| Arc::<str>::from(text);
        known.add(&name("a"), start);
        known.add(&name("a"), start);
        assert_eq!(known.of("a"), 2);
        let later = start + GENERATION;
        known.add(&name("b"), later);
        assert_eq!((known.of("a"), known.of("b")), (2, 1), "a note of the last half day");
        known.add(&name("a"), later);
        assert_eq!(known.of("a"), 3, "what was known goes on");
        known.take_in(name("a"), 1, later);
        assert_eq!(known.of("a"), 3, "the server may not have our last note yet");
        known.age(later + GENERATION);
        known.age(later + GENERATION * 2);
        assert_eq!((known.of("a"), known.young.len() + known.old.len()), (0, 0));
        (0..3 * CROWD as u64).for_each(|number| known.add(&name(&number.to_string()), later));
        assert!(known.young.len() + known.old.len() <= 2 * CROWD + 2, "a crowd of names is bounded");
        assert_eq!(known.of(&(3 * CROWD - 1).to_string()), 1, "and the last ones are known");
    }
}
