//! Marks of a queue: that it exists, and that it is paused.
//!
//! A job server forgets a function that has no jobs and no workers when it is restarted. So each queue has a job that
//! nobody works in a function of its own, and a paused one has another, whose data says until when.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyqueue_core::time::unix_millis;
use anyqueue_core::{Create, Declared, Error, ErrorKind, Moment, Paused, QueueName, Result};
use bytes::Bytes;

use crate::error;
use crate::hub::{Hub, Queue};
use crate::link::Link;
use crate::mover::assigned;
use crate::names::Band;
use crate::packet::{Job, Reply, Status, can_do, cant_do, complete, echo, grab, status, submit};
use crate::server::Server;

/// How long what is known of a pause is taken as true.
const FRESH: Duration = Duration::from_millis(400);

/// How often, and how long each time, a mark that somebody else is just reading is waited for.
const TRIES: u32 = 40;
const BETWEEN: Duration = Duration::from_millis(25);

/// A mark that was read some time ago is read again: another one may have its unique id by now.
const SAME: Duration = Duration::from_secs(5);

/// What is known of a queue's pause on one server.
#[derive(Debug)]
struct Known {
    checked: Moment,
    mark: Option<Mark>,
}

/// What is known of a queue's pause, by the servers' places.
#[derive(Debug, Default)]
pub(crate) struct Pause(HashMap<usize, Known>);

/// A mark, read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    unique: String,
    read: Moment,
    /// In milliseconds since 1970.
    until: Option<u64>,
    since: u64,
}

impl Mark {
    fn read(job: &Job, now: Moment) -> Self {
        let text = String::from_utf8_lossy(&job.data).into_owned();
        let number = |name| text.split(' ').skip_while(|word| *word != name).nth(1).and_then(|number| number.parse().ok());
        Self { unique: job.unique.clone(), read: now, until: number("until"), since: number("since").unwrap_or(0) }
    }

    fn is_over(&self, now: u64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

fn lock(pause: &Mutex<Pause>) -> std::sync::MutexGuard<'_, Pause> {
    pause.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) async fn statuses(&self, server: &Arc<Server>, uniques: &[String]) -> Result<Vec<Status>> {
        let replies = server.session().await?.call(uniques.iter().map(|unique| status(unique)).collect()).await?;
        let one = |reply| match reply {
            Reply::Status(status) => Ok(status),
            other => Err(error::unexpected(&other, "GET_STATUS_UNIQUE")),
        };
        replies.into_iter().map(one).collect()
    }

    /// The servers that answer. An error if there is none.
    pub(crate) async fn live(&self) -> Result<Vec<&Arc<Server>>> {
        let (mut live, mut missing) = (Vec::new(), None);
        for server in &self.servers {
            match server.session().await {
                Ok(_) => live.push(server),
                Err(e) => missing = Some(e),
            }
        }
        match missing {
            Some(e) if live.is_empty() => Err(e),
            _ => Ok(live),
        }
    }

    /// Sees to it that a queue exists on all servers.
    pub(crate) async fn declare(&self, name: &QueueName, create: Create) -> Result<Declared> {
        let (queue, live) = (self.queue(name), self.live().await?);
        let (mut known, mut unmarked) = (false, Vec::new());
        for server in live {
            let marked = self.statuses(server, &[queue.functions.mark_id()]).await?.iter().any(|status| status.known);
            let function = |name: &str| name == queue.functions.ready;
            known |= marked || server.session().await?.status().await?.iter().any(|of| function(&of.function));
            if !marked {
                unmarked.push(server);
            }
        }
        if create == Create::Never && !known {
            let text = format!("there is no queue `{name}`, and the settings say create = \"never\"; run `queue-runner init`");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        if create == Create::Auto {
            for server in unmarked {
                self.put_mark(server, &queue.functions.mark, &queue.functions.mark_id(), "declared").await?;
            }
        }
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Ok(Declared { created: !known, drift: Vec::new() })
    }

    pub(crate) fn is_declared(&self, name: &QueueName) -> bool {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    async fn put_mark(&self, server: &Arc<Server>, function: &str, unique: &str, text: &str) -> Result<()> {
        let mark = submit(Band::Normal, function, unique, Bytes::copy_from_slice(text.as_bytes()));
        self.put(server, vec![mark]).await.into_iter().collect::<Result<Vec<_>>>().map(drop)
    }

    /// Reserves the marks of a pause on a connection of its own: whoever drops it gives them back.
    async fn marks(&self, server: &Arc<Server>, queue: &Queue) -> Result<(Arc<Link>, Vec<Job>)> {
        let link = server.connect("anyqueue:pause").await?;
        for _ in 0..TRIES {
            let answered = link.call(vec![can_do(&queue.functions.pause), grab(), grab(), grab(), grab()]).await?;
            let marks: Vec<Job> = answered.replies.into_iter().filter_map(assigned).collect();
            let known = self.statuses(server, &queue.functions.pause_ids()).await?.iter().filter(|of| of.known).count();
            if marks.len() >= known {
                return Ok((link, marks));
            }
            // Somebody else is reading one.
            link.call(vec![cant_do(&queue.functions.pause), echo()]).await?;
            tokio::time::sleep(BETWEEN).await;
        }
        Err(Error::new(ErrorKind::Busy, "somebody else has the queue's mark of a pause; try again"))
    }

    /// The pause that is marked on one server. Of several marks, left by whoever died between two, the last one.
    async fn marked(&self, server: &Arc<Server>, queue: &Queue) -> Result<Option<Mark>> {
        let known = self.statuses(server, &queue.functions.pause_ids()).await?;
        let mut known =
            known.iter().zip(queue.functions.pause_ids()).filter(|(status, _)| status.known).map(|(_, unique)| unique);
        let Some(unique) = known.next() else { return Ok(None) };
        let (now, millis) = (self.clock.now(), unix_millis(self.clock.wall()));
        if let Some(Known { mark: Some(mark), .. }) = lock(&queue.pause).0.get(&server.place)
            && mark.unique == unique
            && known.next().is_none()
            && now.since(mark.read) < SAME
            && !mark.is_over(millis)
        {
            return Ok(Some(mark.clone()));
        }
        let (link, jobs) = self.marks(server, queue).await?;
        let marks: Vec<_> = jobs.iter().map(|job| Mark::read(job, now)).collect();
        // One whose time is over is in nobody's way, and is read again and again while it is there.
        let over = jobs.iter().zip(&marks).filter(|(_, mark)| mark.is_over(millis)).map(|(job, _)| complete(&job.handle));
        link.call(over.chain([cant_do(&queue.functions.pause), echo()]).collect()).await?;
        Ok(marks.into_iter().max_by_key(|mark| mark.since).filter(|mark| !mark.is_over(millis)))
    }

    fn paused_until(&self, mark: Option<&Mark>) -> Paused {
        match mark.map(|mark| mark.until) {
            None => Paused::No,
            Some(None) => Paused::Yes(None),
            Some(Some(until)) => match until.saturating_sub(unix_millis(self.clock.wall())) {
                0 => Paused::No,
                left => Paused::Yes(Some(Duration::from_millis(left))),
            },
        }
    }

    /// Whether a queue is paused, now or as was found out a moment ago.
    pub(crate) async fn is_paused(&self, server: &Arc<Server>, queue: &Queue, now_at_once: bool) -> Result<bool> {
        let now = self.clock.now();
        if !now_at_once
            && let Some(known) = lock(&queue.pause).0.get(&server.place)
            && now.since(known.checked) < FRESH
        {
            return Ok(self.paused_until(known.mark.as_ref()) != Paused::No);
        }
        let mark = self.marked(server, queue).await?;
        let paused = self.paused_until(mark.as_ref()) != Paused::No;
        lock(&queue.pause).0.insert(server.place, Known { checked: now, mark });
        Ok(paused)
    }

    fn forget_pause(queue: &Queue) {
        lock(&queue.pause).0.clear();
        queue.bell.notify_waiters();
    }

    pub(crate) async fn pause(&self, queue: &Queue, time: Option<Duration>) -> Result<()> {
        let now = unix_millis(self.clock.wall());
        let until = time.map(|time| now.saturating_add(time.as_millis() as u64));
        let text = until.map_or_else(|| format!("paused since {now}"), |until| format!("until {until} since {now}"));
        let ids = queue.functions.pause_ids();
        // Who knows the mark of a pause that was lifted a moment ago meets one of another id.
        let turn = (now / 1000) as usize % ids.len();
        for server in self.live().await? {
            let (link, mut old) = self.marks(server, queue).await?;
            if old.len() >= ids.len() {
                // The server would take a second mark of the same id as the first one.
                let one = old.swap_remove(0);
                link.call(vec![complete(&one.handle), echo()]).await?;
            }
            let mut by_turn = (0..ids.len()).map(|at| &ids[(turn + at) % ids.len()]);
            let free = by_turn.find(|id| old.iter().all(|mark| mark.unique != **id)).unwrap_or(&ids[0]);
            self.put_mark(server, &queue.functions.pause, free, &text).await?;
            link.call(old.iter().map(|mark| complete(&mark.handle)).chain([echo()]).collect()).await?;
        }
        Self::forget_pause(queue);
        Ok(())
    }

    pub(crate) async fn resume(&self, queue: &Queue) -> Result<()> {
        for server in self.live().await? {
            let (link, old) = self.marks(server, queue).await?;
            link.call(old.iter().map(|mark| complete(&mark.handle)).chain([echo()]).collect()).await?;
        }
        Self::forget_pause(queue);
        Ok(())
    }

    pub(crate) async fn paused(&self, queue: &Queue) -> Result<Paused> {
        for server in self.live().await? {
            if let paused @ Paused::Yes(_) = self.paused_until(self.marked(server, queue).await?.as_ref()) {
                return Ok(paused);
            }
        }
        Ok(Paused::No)
    }
}
