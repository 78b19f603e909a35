//! Notes of tasks that came back unharmed.
//!
//! A quorum queue counts how often a message came back, which tells of dead workers. But a task that was looked at, or
//! fetched and not begun, comes back too. So whoever gives such tasks back writes down their names first.
//!
//! What was on its way to a worker that ended consuming at that moment comes back too, and nobody learns its name. For most
//! tasks that costs a run alone. For those that are on such a run it would count as a death, so whoever fetches one of them
//! writes that down before a worker gets it: nobody died of what nobody had.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::time::unix_millis;
use anyqueue_core::{Bytes, Moment, Result, chain};
use lapin::BasicProperties;
use lapin::types::ShortString;
use tokio::sync::watch;

use crate::layout::{Layout, MOST_NOTES, NOTE_LIFE};
use crate::message::Message;
use crate::publish::Post;
use crate::shared::Shared;

/// Names in one note.
const NAMES: usize = 1024;
/// More notes than are kept.
const MOST: usize = 4096;
/// Clocks of those who write notes differ by less than this.
const MARGIN: Duration = Duration::from_secs(10);
/// Tasks wait no longer than this for the notes of them, and for a note of theirs to be written. Without, they count as
/// crashed, which costs them a run alone.
const PATIENCE: Duration = Duration::from_secs(2);
/// Names are forgotten after one to two of these: the server keeps a note for a day.
const GENERATION: Duration = Duration::from_secs(12 * 3600);
/// A generation of more names than this is over early.
const CROWD: usize = 200_000;

/// What is known of the notes.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<Known>);

/// What the notes say of one copy of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    /// How often it came back unharmed.
    unharmed: u64,
    /// How often a worker was about to have it, while it was on probation, and how often that one gave it back.
    came: u64,
    left: u64,
}

/// What a note says of each of its names. The first letter tells in the server's notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Unharmed,
    Came,
    Left,
    /// Nothing: whether notes can be written.
    Seen,
}

impl Word {
    fn write(self, name: &str) -> String {
        match self {
            Self::Unharmed => name.to_owned(),
            Self::Came => format!("+{name}"),
            Self::Left => format!("-{name}"),
            Self::Seen => format!("={name}"),
        }
    }

    /// Of a task that was fetched and is given back.
    pub(crate) fn back(message: &Message) -> Self {
        if message.noted == Some(true) { Self::Left } else { Self::Unharmed }
    }

    fn read(line: &str) -> (Self, &str) {
        match line.split_at_checked(1) {
            Some(("+", name)) => (Self::Came, name),
            Some(("-", name)) => (Self::Left, name),
            Some(("=", name)) => (Self::Seen, name),
            _ => (Self::Unharmed, line),
        }
    }
}

impl Count {
    fn add(&mut self, word: Word) {
        match word {
            Word::Unharmed => self.unharmed += 1,
            Word::Came => self.came += 1,
            Word::Left => (self.unharmed, self.left) = (self.unharmed + 1, self.left + 1),
            Word::Seen => {}
        }
    }

    fn most(self, other: Self) -> Self {
        let (unharmed, came) = (self.unharmed.max(other.unharmed), self.came.max(other.came));
        Self { unharmed, came, left: self.left.max(other.left) }
    }
}

/// How far back a look saw all notes; nothing if it did not.
type Reach = Option<Duration>;

#[derive(Debug, Default)]
struct Known {
    young: HashMap<Arc<str>, Count>,
    old: HashMap<Arc<str>, Count>,
    since: Option<Moment>,
    /// Looks at the server's notes that are under way, by queue.
    looks: HashMap<String, watch::Receiver<Reach>>,
}

impl Known {
    fn of(&self, name: &str) -> Count {
        self.young.get(name).or_else(|| self.old.get(name)).copied().unwrap_or_default()
    }

    /// Forgets what is old.
    fn age(&mut self, now: Moment) {
        let since = *self.since.get_or_insert(now);
        if since + GENERATION <= now || self.young.len() > CROWD {
            self.old = std::mem::take(&mut self.young);
            self.since = Some(now);
        }
    }

    fn add(&mut self, name: &Arc<str>, word: Word, now: Moment) {
        self.age(now);
        let mut count = self.of(name);
        count.add(word);
        self.young.insert(name.clone(), count);
    }

    /// What was noted here and has not been seen at the server yet must not be forgotten.
    fn take_in(&mut self, name: Arc<str>, count: Count, now: Moment) {
        self.age(now);
        let count = count.most(self.of(&name));
        self.young.insert(name, count);
    }
}

impl Notes {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the notes say of this copy of a task, as far as it is known here.
    fn of(&self, message: &Message) -> Count {
        message.name.as_ref().map_or_else(Count::default, |name| self.known().of(name))
    }
}

/// Says of a message how often it came back from the dead. `whole`: the notes say all that there is to say of this copy.
fn settle(message: &mut Message, Count { unharmed, came, left }: Count, whole: bool) {
    let deaths = came.saturating_sub(left);
    message.returns = match (whole && message.probation, message.exact) {
        (true, true) => message.returns.saturating_sub(unharmed).min(deaths),
        (true, false) => deaths,
        (false, true) => message.returns.saturating_sub(unharmed),
        (false, false) => message.returns.saturating_sub(unharmed.min(1)),
    };
    message.exact |= message.returns == 0;
}

impl Shared {
    /// Writes something down of tasks. To be done before it is.
    pub(crate) async fn note(&self, layout: &Layout, notes: &[(Word, Arc<str>)]) -> Result<()> {
        for part in notes.chunks(NAMES) {
            {
                // Before the server can show it to a look of ours, which would count it as another one.
                let (now, mut known) = (self.clock.now(), self.notes.known());
                part.iter().for_each(|(word, name)| known.add(name, *word, now));
            }
            let lines: Vec<String> = part.iter().map(|(word, name)| word.write(name)).collect();
            let properties = BasicProperties::default().with_delivery_mode(2).with_content_type("text/plain".into());
            let post = Post {
                exchange: ShortString::default(),
                key: layout.notes.clone(),
                properties: properties.with_timestamp(unix_millis(self.clock.wall()) / 1000),
                body: Bytes::from(lines.join("\n")),
            };
            self.publish(std::slice::from_ref(&post)).await.remove(0)?;
        }
        Ok(())
    }

    /// Whether it was written down in time.
    pub(crate) async fn note_in_time(&self, layout: &Layout, notes: &[(Word, Arc<str>)]) -> bool {
        let written = match tokio::time::timeout(PATIENCE, self.note(layout, notes)).await {
            Ok(Ok(())) => return true,
            Ok(Err(e)) => chain(&e),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::debug!(queue = layout.queue.as_str(), error = written, "a note could not be written");
        false
    }

    /// Takes unharmed returns off what the server counted.
    pub(crate) async fn forgive(self: &Arc<Self>, layout: &Arc<Layout>, messages: &mut [Message]) {
        let unharmed = |message: &Message| if message.harmed_only { 0 } else { self.notes.of(message).unharmed };
        // A classic queue does not say how often: one return that was noted may hide another.
        let hides = |message: &Message| message.probation && !message.exact;
        let counted = |message: &Message| message.returns > 0 && (message.probation || !message.harmed_only);
        let suspect = |message: &&Message| counted(message) && (message.returns > unharmed(message) || hides(message));
        let (mut reach, mut noted) = (None, false);
        let named = |message: &Message| message.name.clone().filter(|_| message.probation);
        let alone = messages.iter().filter(suspect).find_map(named);
        if messages.iter().any(|message| suspect(&message)) {
            reach = tokio::time::timeout(PATIENCE, self.look_at_notes(layout)).await.unwrap_or_default();
            if reach.is_none() {
                tracing::debug!(queue = layout.queue.as_str(), "no notes in time; tasks that came back count as crashed");
            }
        }
        if let Some(name) = alone.filter(|_| reach.is_some()) {
            // While no notes can be written, that there is none says nothing.
            noted = self.note_in_time(layout, &[(Word::Seen, name)]).await;
        }
        for message in messages.iter_mut().filter(|message| counted(message)) {
            let count = Count { unharmed: unharmed(message), ..self.notes.of(message) };
            let whole = noted && message.name.is_some() && message.age.is_some_and(|age| reach > Some(age + MARGIN));
            settle(message, count, whole);
        }
    }

    /// Waits for a look that begins now. Whoever asks while one is under way waits for it and for the next, which all share.
    async fn look_at_notes(self: &Arc<Self>, layout: &Arc<Layout>) -> Reach {
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
                    let (end, look) = watch::channel(None);
                    known.looks.insert(layout.queue.to_string(), look.clone());
                    self.runtime.spawn(self.clone().look(layout.clone(), end));
                    look
                }
            }
        };
        look.wait_for(Reach::is_some).await.ok().and_then(|reach| *reach)
    }

    /// Carried to its end, whoever waits for it.
    async fn look(self: Arc<Self>, layout: Arc<Layout>, end: watch::Sender<Reach>) {
        let read = self.read_notes(&layout).await;
        self.notes.known().looks.remove(layout.queue.as_str());
        match read {
            Ok(reach) => drop(end.send(reach)),
            Err(e) => tracing::debug!(queue = layout.queue.as_str(), error = chain(&e), "notes cannot be read"),
        }
    }

    async fn read_notes(&self, layout: &Layout) -> Result<Reach> {
        let walk = self.walk(layout.notes.as_str()).await?;
        let mut read: HashMap<Arc<str>, Count> = HashMap::new();
        let (mut notes, mut count, mut oldest) = (walk.slices(&layout.notes, MOST), 0, None);
        loop {
            let slice = notes.next().await?;
            if slice.is_empty() {
                break;
            }
            oldest = oldest.or(slice.first().map(|note| note.age.unwrap_or_default()));
            count += slice.len();
            for note in &slice {
                let names = std::str::from_utf8(&note.raw).unwrap_or_default();
                for (word, name) in names.lines().map(Word::read) {
                    read.entry(name.into()).or_default().add(word);
                }
            }
        }
        let alone = walk.is_alone();
        walk.end().await?;
        let (now, mut known) = (self.clock.now(), self.notes.known());
        read.into_iter().for_each(|(name, count)| known.take_in(name, count, now));
        // Where no more are kept, older ones are gone.
        let reach = if count < MOST_NOTES { NOTE_LIFE } else { oldest.unwrap_or_default() };
        Ok(alone.then_some(reach.min(NOTE_LIFE)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use lapin::message::Delivery;

    use super::*;

    #[test]
    fn names_are_forgotten_in_time_and_not_before() {
        let (mut known, start) = (Known::default(), Moment::default());
        let name = |text: &str| Arc::<str>::from(text);
        let of = |known: &Known, name: &str| known.of(name).unharmed;
        let (unharmed, once) = (Word::Unharmed, Count { unharmed: 1, ..Count::default() });
        known.add(&name("a"), unharmed, start);
        known.add(&name("a"), unharmed, start);
        assert_eq!(of(&known, "a"), 2);
        let later = start + GENERATION;
        known.add(&name("b"), unharmed, later);
        assert_eq!((of(&known, "a"), of(&known, "b")), (2, 1), "a note of the last half day");
        known.add(&name("a"), unharmed, later);
        assert_eq!(of(&known, "a"), 3, "what was known goes on");
        known.take_in(name("a"), once, later);
        assert_eq!(of(&known, "a"), 3, "the server may not have our last note yet");
        known.age(later + GENERATION);
        known.age(later + GENERATION * 2);
        assert_eq!((of(&known, "a"), known.young.len() + known.old.len()), (0, 0));
        (0..3 * CROWD as u64).for_each(|number| known.add(&name(&number.to_string()), unharmed, later));
        assert!(known.young.len() + known.old.len() <= 2 * CROWD + 2, "a crowd of names is bounded");
        assert_eq!(of(&known, &(3 * CROWD - 1).to_string()), 1, "and the last ones are known");
    }

    #[test]
    fn a_note_says_the_same_when_it_is_read() {
        for word in [Word::Unharmed, Word::Came, Word::Left, Word::Seen] {
            assert_eq!(Word::read(&word.write("01a2-7b.c0ffee")), (word, "01a2-7b.c0ffee"));
        }
    }

    /// What is left of so many returns by these notes, each its first letter. A classic queue only knows of one return.
    fn left(returns: Option<u64>, probation: bool, notes: &str, whole: bool) -> u64 {
        let mut message = Message::new(Delivery::mock(7, "".into(), "q".into(), true, b"{}".to_vec()), SystemTime::now());
        (message.returns, message.exact, message.probation) = (returns.unwrap_or(1), returns.is_some(), probation);
        let mut count = Count::default();
        for letter in notes.chars() {
            count.add(Word::read(&letter.to_string()).0);
        }
        settle(&mut message, count, whole);
        message.returns
    }

    #[test]
    fn on_probation_nobody_died_of_what_nobody_had() {
        assert_eq!(left(Some(1), true, "", true), 0, "it came back from the way");
        assert_eq!(left(Some(1), false, "", true), 1, "which of other tasks nobody knows");
        assert_eq!(left(Some(1), true, "+", true), 1, "a worker had it and died");
        assert_eq!(left(Some(2), true, "+-", true), 0, "one gave it back, to another it was on its way");
        assert_eq!(left(Some(2), true, "+-+", true), 1, "one gave it back, another died");
        assert_eq!(left(Some(3), true, "+-+", true), 1, "and to a third it was on its way");
        assert_eq!(left(Some(2), true, "+u", true), 1, "one died, and somebody looked at it");
        assert_eq!(left(Some(1), true, "", false), 1, "without all notes, a return is a death");
        assert_eq!(left(Some(2), true, "+-", false), 1, "unless it was noted");
    }

    #[test]
    fn a_classic_queue_that_only_knows_of_a_return_learns_the_rest_from_notes() {
        assert_eq!([left(None, false, "", true), left(None, false, "u", true)], [1, 0]);
        assert_eq!([left(None, true, "+-", true), left(None, true, "+-+", true)], [0, 1]);
        assert_eq!([left(None, true, "", false), left(None, true, "+-", false)], [1, 0]);
    }
}
