//! Marks on a queue that all its workers heed: tags of the SQS queue with the plain name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::{ErrorKind, Moment, Paused, QueueName, Result};
use tokio::sync::Notify;

use crate::hub::Hub;
use crate::lines::Lines;

const PAUSED: &str = "anyqueue-paused";
const PURGED: &str = "anyqueue-purged-delayed";
/// Marks that are about this old are read anew when tasks come. SQS throttles who asks for tags with each of them.
pub(crate) const FRESH: Duration = Duration::from_secs(3);
/// Tasks that have come wait no longer for their queue's marks: their leases run.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the tags of a queue say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Until when it is paused, in milliseconds since 1970; `Some(None)`: until it is resumed.
    pub(crate) paused: Option<Option<u64>>,
    /// When what was delayed was purged, in milliseconds since 1970.
    pub(crate) purged: Option<u64>,
}

impl Marks {
    fn read(tags: &HashMap<String, String>) -> Self {
        let paused = tags.get(PAUSED).map(|text| text.strip_prefix("until ").and_then(|until| until.parse().ok()));
        Self { paused, purged: tags.get(PURGED).and_then(|text| text.parse().ok()) }
    }

    pub(crate) fn paused(&self, now: u64) -> Paused {
        match self.paused {
            Some(None) => Paused::Yes(None),
            Some(Some(until)) if until > now => Paused::Yes(Some(Duration::from_millis(until - now))),
            _ => Paused::No,
        }
    }

    /// Whether a task that was delayed until `due` and sent at `sent` is to be dropped.
    pub(crate) fn drops(&self, due: Option<u64>, sent: u64) -> bool {
        matches!((self.purged, due), (Some(purged), Some(due)) if sent < purged && purged < due)
    }
}

/// The marks of all queues as they were last read.
#[derive(Debug, Default)]
pub(crate) struct Markers {
    read: Mutex<HashMap<QueueName, (Moment, Marks)>>,
    /// Who reads a queue's marks: one at a time in this process.
    readers: Mutex<HashMap<QueueName, Arc<tokio::sync::Mutex<()>>>>,
    /// Rings when one is set in this process.
    pub(crate) changed: Notify,
}

impl Markers {
    fn known(&self, queue: &QueueName) -> Option<(Moment, Marks)> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).get(queue).copied()
    }

    /// Marks that are not older than about `age`.
    fn fresh(&self, queue: &QueueName, now: Moment, age: Duration) -> Option<Marks> {
        // Workers that began together need not ask together.
        let age = age.mul_f64(0.75 + fastrand::f64() / 2.0);
        self.known(queue).filter(|(at, _)| now.since(*at) < age).map(|(_, marks)| marks)
    }

    fn reader(&self, queue: &QueueName) -> Arc<tokio::sync::Mutex<()>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).entry(queue.clone()).or_default().clone()
    }

    fn note(&self, queue: &QueueName, at: Moment, marks: Marks) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.clone(), (at, marks));
    }

    fn forget(&self, queue: &QueueName) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
        self.changed.notify_waiters();
    }
}

impl Hub {
    /// The marks of a queue, not older than about `age`. While they cannot be read, or not soon, what was read last holds.
    pub(crate) async fn marks(&self, lines: &Lines, age: Duration) -> Result<Marks> {
        if let Some(marks) = self.markers.fresh(&lines.queue, self.clock.now(), age) {
            return Ok(marks);
        }
        let Some((_, old)) = self.markers.known(&lines.queue) else { return self.marks_now(lines).await };
        let read = async {
            let reader = self.markers.reader(&lines.queue);
            let _reading = reader.lock().await;
            match self.markers.fresh(&lines.queue, self.clock.now(), age) {
                Some(marks) => Ok(marks),
                None => self.marks_now(lines).await,
            }
        };
        let answer = tokio::select! {
            answer = read => answer.ok(),
            () = self.clock.sleep_until(self.clock.now() + PATIENCE) => None,
        };
        Ok(answer.unwrap_or_else(|| {
            self.markers.note(&lines.queue, self.clock.now(), old);
            old
        }))
    }

    /// The marks of a queue, if they were read at any time; they are read before the first task is.
    pub(crate) async fn marks_at_all(&self, lines: &Lines) -> Result<Marks> {
        match self.markers.known(&lines.queue) {
            Some((_, marks)) => Ok(marks),
            None => self.marks_now(lines).await,
        }
    }

    pub(crate) async fn marks_now(&self, lines: &Lines) -> Result<Marks> {
        let at = self.clock.now();
        let marks = match self.api.tags(lines.plain()).await {
            Ok(tags) => Marks::read(&tags),
            // Who may not read tags cannot be told to pause, and `check` says so; that is no reason not to work.
            Err(e) if e.kind() == ErrorKind::Denied => Marks::default(),
            Err(e) => return Err(e),
        };
        self.markers.note(&lines.queue, at, marks);
        Ok(marks)
    }

    pub(crate) async fn pause(&self, lines: &Lines, time: Option<Duration>) -> Result<()> {
        let until = |time: Duration| format!("until {}", self.wall() + u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2));
        let value = time.map_or_else(|| "until resumed".into(), until);
        let done = self.api.tag(lines.plain(), PAUSED, &value).await;
        self.markers.forget(&lines.queue);
        done
    }

    pub(crate) async fn resume(&self, lines: &Lines) -> Result<()> {
        let done = self.api.untag(lines.plain(), PAUSED).await;
        self.markers.forget(&lines.queue);
        done
    }

    /// Lets all workers drop what is delayed now.
    pub(crate) async fn purge_delayed(&self, lines: &Lines) -> Result<()> {
        // It is compared with when SQS says that messages were sent.
        let now = self.server_wall(lines.plain()).await?;
        let done = self.api.tag(lines.plain(), PURGED, &now.to_string()).await;
        self.markers.forget(&lines.queue);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_are_written() {
        let marks = |tags: &[(&str, &str)]| Marks::read(&tags.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect());
        assert_eq!(marks(&[("other", "x")]), Marks::default());
        assert_eq!(marks(&[(PAUSED, "until resumed")]).paused(5), Paused::Yes(None));
        assert_eq!(marks(&[(PAUSED, "until 7")]).paused(5), Paused::Yes(Some(Duration::from_millis(2))));
        assert_eq!(marks(&[(PAUSED, "until 7")]).paused(7), Paused::No);
    }

    #[test]
    fn a_purge_drops_what_was_delayed_at_that_moment_and_nothing_else() {
        let marks = Marks { purged: Some(100), paused: None };
        assert!(marks.drops(Some(101), 99));
        assert!(!marks.drops(Some(101), 100), "sent later");
        assert!(!marks.drops(Some(100), 50), "due already");
        assert!(!marks.drops(None, 50) && !Marks::default().drops(Some(101), 99));
    }
}
