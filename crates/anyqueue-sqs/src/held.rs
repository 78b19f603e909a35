//! Held tasks: in a queue of their own, listed, kicked and deleted by walking through it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyqueue_core::{Error, ErrorKind, Page, Result, State, TaskId, Which};
use aws_sdk_sqs::types::QueueAttributeName;

use crate::hub::{Hub, Move};
use crate::lines::Lines;
use crate::message::{Post, word};
use crate::slip::Slip;
use crate::walk::{Found, MOST};

impl Hub {
    /// A page of held tasks. Its place in the list is how many come before it.
    pub(crate) async fn page(&self, lines: &Lines, after: Option<&str>, limit: usize) -> Result<Page> {
        let wrong = |text: &str| Error::invalid(format!("`{text}` is no place in the list of held tasks; begin without one"));
        let first = after.map_or(Ok(0), |text| text.parse::<usize>().map_err(|_| wrong(text)))?;
        let now = self.clock.now();
        let listing = match self.listings.get(&lines.queue, now).filter(|_| first > 0) {
            Some(listing) => listing,
            None => {
                let _walking = self.listings.walking(&lines.queue).await;
                let found = self.take_held(lines, false, MOST).await?;
                self.put_back(&found).await;
                let listing = Arc::new(found);
                self.listings.keep(&lines.queue, now, listing.clone());
                listing
            }
        };
        let tasks: Vec<_> = listing.iter().skip(first).take(limit).map(|found| self.peeked(found, State::Held)).collect();
        let reached = first + tasks.len();
        Ok(Page { next: (reached < listing.len() && !tasks.is_empty()).then(|| reached.to_string()), tasks })
    }

    pub(crate) async fn kick(&self, lines: &Lines, which: &Which) -> Result<u64> {
        let (wanted, sure) = match which {
            Which::First(0) => return Ok(0),
            Which::First(most) => (usize::try_from(*most).unwrap_or(usize::MAX), false),
            Which::All => (usize::MAX, false),
            Which::Ids(ids) => (ids.len(), true),
        };
        // What a worker holds again meanwhile is not kicked twice, and what it holds anew is no reason to go on.
        let (mut kicked, began, mut done) = (0, self.held_at(), HashSet::new());
        let _walking = self.listings.walking(&lines.queue).await;
        loop {
            let mut found = self.take_held(lines, sure, MOST).await?;
            let mut rest: Vec<_> = found.extract_if(.., |one| done.contains(&self.incoming(lines, one).id)).collect();
            let others = match which {
                Which::Ids(ids) => {
                    let ids: HashSet<TaskId> = ids.iter().copied().collect();
                    found.extract_if(.., |one| !ids.contains(&self.incoming(lines, one).id)).collect()
                }
                _ => found.split_off(found.len().min(wanted - kicked as usize)),
            };
            let (old, beyond) = (found.iter().any(|one| one.held_at() <= began), others.len());
            done.extend(found.iter().map(|one| self.incoming(lines, one).id));
            rest.extend(others);
            let (moved, ()) = futures::join!(self.make_ready(lines, found), self.put_back(&rest));
            kicked += moved?;
            // A walk takes so many at most; what is held beyond that comes with the next one.
            let more = !matches!(which, Which::Ids(_)) && old && beyond == 0 && (kicked as usize) < wanted;
            if !more {
                return Ok(kicked);
            }
        }
    }

    /// Sends held tasks to their bands, with the priority and TTR that they carry, and removes them where they were.
    async fn make_ready(&self, lines: &Lines, found: Vec<Found>) -> Result<u64> {
        let mut by_way: HashMap<(Arc<str>, Arc<str>), Vec<Move>> = HashMap::new();
        for one in found {
            let task = self.incoming(lines, &one);
            let arrived = one.arrived;
            let slip = Slip {
                priority: Some(task.priority),
                ttr: Some(anyqueue_core::steps_up(task.ttr, crate::SECOND)),
                native: task.wire.id.is_none().then(|| arrived.slip.native.unwrap_or_else(|| arrived.id.clone())),
                group: arrived.slip.group.as_deref().map(word),
                claim: arrived.slip.claim,
                ..Slip::default()
            };
            let post = Post { body: arrived.body, slip, delay: 0, once: None }.once("kick", &arrived.id);
            by_way.entry((one.url, lines.band(task.priority).clone())).or_default().push((arrived.handle, post));
        }
        let (mut moved, mut failed) = (0, Ok(()));
        for ((from, to), items) in by_way {
            let (count, answer) = self.moved_or_shown(lines, &from, &to, items).await;
            moved += count;
            failed = failed.and(answer);
        }
        failed.map(|()| moved)
    }

    /// Deletes held tasks by id. Others cannot be found by id on SQS, which is an error of its own where there are any.
    pub(crate) async fn delete_held(&self, lines: &Lines, ids: &[TaskId]) -> Result<Vec<Result<()>>> {
        let _walking = self.listings.walking(&lines.queue).await;
        let found = self.take_held(lines, true, MOST).await?;
        let mut wanted: HashMap<TaskId, Option<Found>> = ids.iter().map(|id| (*id, None)).collect();
        let mut rest = Vec::new();
        for one in found {
            match wanted.get_mut(&self.incoming(lines, &one).id) {
                Some(place @ None) => *place = Some(one),
                _ => rest.push(one),
            }
        }
        self.put_back(&rest).await;
        let missing = wanted.values().flatten().count() < ids.len();
        let waits = if missing { self.waits(lines).await } else { Ok(false) };
        let mut answers = Vec::with_capacity(ids.len());
        for id in ids {
            answers.push(match wanted.remove(id).flatten() {
                Some(found) => {
                    let deleted: Result<()> = self.delete_whole(&found.url, &[&found.arrived]).await.into_iter().collect();
                    if deleted.is_err() {
                        self.put_back(&[found]).await;
                    }
                    deleted
                }
                None => Err(waits.as_ref().map_or_else(Error::duplicate, |waits| not_held(*waits))),
            });
        }
        Ok(answers)
    }

    /// Whether the queue has tasks that are not held.
    async fn waits(&self, lines: &Lines) -> Result<bool> {
        for url in &lines.bands {
            let attributes = match self.api.attributes(url).await {
                Err(e) if e.kind() == ErrorKind::Denied => return Ok(true),
                answer => answer?,
            };
            let any = |key| attributes.get(&key).is_some_and(|text: &String| text != "0");
            if any(QueueAttributeName::ApproximateNumberOfMessages)
                || any(QueueAttributeName::ApproximateNumberOfMessagesDelayed)
                || any(QueueAttributeName::ApproximateNumberOfMessagesNotVisible)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn not_held(waits: bool) -> Error {
    if waits {
        let text = "the task is not held, and SQS finds no other one by its id; that needs a task log";
        Error::new(ErrorKind::Unsupported, text)
    } else {
        Error::new(ErrorKind::NotFound, "no such task is held, and the queue is empty")
    }
}
