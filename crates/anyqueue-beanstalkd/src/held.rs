//! Held tasks: those in the companion tube, and those that others buried.

use std::collections::HashSet;
use std::sync::Arc;

use anyqueue_core::{Error, Page, Result, State, TaskId, Which};
use bytes::Bytes;

use crate::error;
use crate::hub::Hub;
use crate::link::Link;
use crate::request::Request;
use crate::server::Server;
use crate::tubes::{Tube, Tubes};
use crate::walk::Walk;
use crate::wire::{Command, JobStats, Reply};

/// Jobs that are moved at once.
const PART: u64 = 128;

impl Hub {
    /// A page of held tasks. Its place in the list is the server's place in the URL and the number of its last job.
    pub(crate) async fn page(&self, tubes: &Tubes, after: Option<&str>, limit: usize) -> Result<Page> {
        let (first, last) = place(after)?;
        let (live, missing) = self.live_of_all().await?;
        let mut page = Page::default();
        let place = |server: &Arc<Server>| self.servers.iter().position(|other| Arc::ptr_eq(other, server)).unwrap_or_default();
        for (at, server, link) in live.into_iter().map(|(server, link)| (place(server), server, link)) {
            if at < first {
                continue;
            }
            let after = if at == first { last } else { 0 };
            let walk = Walk::start(self, server, &link, tubes, Some(State::Held)).await?;
            let room = limit - page.tasks.len();
            // One more than there is room for says whether another page follows.
            let place = |job: &JobStats<'_>| (job.id > after).then_some((job.id, 0));
            let mut seen = walk.first(State::Held, room.saturating_add(1), place).await?;
            let more = seen.len() > room;
            seen.truncate(room);
            let reached = seen.last().map_or(after, |job| job.id);
            page.tasks.extend(self.bodies(&link, seen).await?.into_iter().map(|found| self.peeked(found)));
            if more {
                page.next = Some(format!("{at}/{reached}"));
                break;
            }
        }
        if page.tasks.is_empty() { missing.map(|()| page) } else { Ok(page) }
    }

    pub(crate) async fn kick(self: &Arc<Self>, tubes: &Arc<Tubes>, which: &Which) -> Result<u64> {
        let mut kicked = 0;
        let (live, missing) = self.live_of_all().await?;
        for (server, asking) in live {
            kicked += match which {
                Which::Ids(ids) => self.kick_ids(server, &asking, tubes, ids).await?,
                Which::First(most) => self.kick_first(server, &asking, tubes, *most - kicked).await?,
                Which::All => self.kick_first(server, &asking, tubes, u64::MAX).await?,
            };
        }
        if kicked == 0 { missing.map(|()| 0) } else { Ok(kicked) }
    }

    async fn kick_ids(
        self: &Arc<Self>,
        server: &Arc<Server>,
        asking: &Arc<Link>,
        tubes: &Arc<Tubes>,
        ids: &[TaskId],
    ) -> Result<u64> {
        let found = self.find(server, asking, tubes, ids.iter().copied().collect::<HashSet<_>>()).await?;
        let held: Vec<_> = found.into_values().map(|found| found.seen).filter(|job| job.state == State::Held).collect();
        let native = Request::all(held.iter().filter(|job| !job.in_held).map(|job| Command::KickJob(job.id)));
        let replies = self.call(asking, native).await?;
        let kicked = replies.iter().filter(|reply| matches!(reply, Reply::Kicked(_))).count() as u64;
        let reserve = Request::all(held.iter().filter(|job| job.in_held).map(|job| Command::ReserveJob(job.id)));
        if reserve.is_empty() {
            return Ok(kicked);
        }
        let own = server.connect().await?;
        let jobs = reserved(self.call(&own, reserve).await?);
        Ok(kicked + self.make_ready(server, &own, tubes, jobs).await?)
    }

    /// Kicks up to so many of those that are held now: first from the companion tube, longest held first, then buried ones.
    async fn kick_first(self: &Arc<Self>, server: &Arc<Server>, asking: &Link, tubes: &Arc<Tubes>, most: u64) -> Result<u64> {
        let counts = self.counts(asking, tubes).await?;
        let (held, buried) = (counts.companion, counts.open.buried);
        let (from_held, mut kicked) = (held.min(most), 0);
        // What this connection reserves is ready in the companion tube again, and so held, if it breaks.
        let own = if from_held > 0 { Some(server.connect().await?) } else { None };
        while let Some(own) = own.as_ref().filter(|_| kicked < from_held) {
            let jobs = self.reserve_from(own, &tubes.held, PART.min(from_held - kicked)).await?;
            if jobs.is_empty() {
                break;
            }
            kicked += self.make_ready(server, own, tubes, jobs).await?;
        }
        for tube in tubes.open() {
            let most = buried.min(most - kicked);
            kicked += self.each_first(asking, tube, &Command::PeekBuried, Command::KickJob, most).await?;
        }
        Ok(kicked)
    }

    /// Reserves from one tube what is ready there, without waiting.
    pub(crate) async fn reserve_from(&self, own: &Link, tube: &Tube, most: u64) -> Result<Vec<(u64, Bytes)>> {
        let request = Request::all((0..most).map(|_| Command::ReserveWithTimeout(0))).watching(vec![tube.clone()]);
        Ok(reserved(self.call(own, request).await?))
    }

    /// Puts held tasks on their queue and removes them where they were, also when nobody waits for it any more.
    async fn make_ready(
        self: &Arc<Self>,
        server: &Arc<Server>,
        own: &Arc<Link>,
        tubes: &Arc<Tubes>,
        jobs: Vec<(u64, Bytes)>,
    ) -> Result<u64> {
        let (hub, server, own, tubes) = (self.clone(), server.clone(), own.clone(), tubes.clone());
        self.to_its_end(async move { hub.move_ready(&server, &own, &tubes, jobs).await }).await
    }

    /// Puts held tasks on their queue, with the priority and TTR that they carry, and removes them where they were.
    async fn move_ready(&self, server: &Server, own: &Link, tubes: &Tubes, jobs: Vec<(u64, Bytes)>) -> Result<u64> {
        let mut request = Request::default();
        let puts: Vec<(u64, usize)> = jobs
            .iter()
            .map(|(id, body)| {
                let task = self.read(tubes, &self.held_body(server, *id, body));
                let (priority, ttr) = (task.priority, crate::hub::seconds(task.ttr));
                (*id, request.push_to(tubes.of(priority), &Command::Put { priority, delay: 0, ttr, body }))
            })
            .collect();
        let replies = self.call(own, request).await?;
        let (mut removes, mut refused) = (Request::default(), None);
        for (id, place) in puts {
            match &replies[place] {
                Reply::Inserted(_) => {
                    removes.push(&Command::Delete(id));
                }
                other => {
                    self.unbury(own, other);
                    refused = Some(error::unexpected(other, "put"));
                }
            }
        }
        let removed = self.call(own, removes).await.map_err(Error::effect_unknown)?;
        let count = removed.iter().filter(|reply| matches!(reply, Reply::Deleted)).count() as u64;
        // What was refused goes back when the connection is closed.
        refused.map_or(Ok(count), Err)
    }

    fn held_body(&self, server: &Server, id: u64, body: &Bytes) -> anyqueue_core::Peeked {
        let native = anyqueue_core::NativeFacts { id: Some(self.native_id(server, id).into()), ..Default::default() };
        anyqueue_core::Peeked { raw: body.clone(), native, state: State::Held, remaining: None }
    }

    /// Does one thing to the first job of a state, again and again, up to so many times.
    pub(crate) async fn each_first(
        &self,
        asking: &Link,
        tube: &Tube,
        look: &Command<'_>,
        act: impl Fn(u64) -> Command<'static>,
        most: u64,
    ) -> Result<u64> {
        let (mut acted, mut next) = (0, None);
        loop {
            let mut request = Request::default();
            if let Some(id) = next {
                request.push(&act(id));
            }
            let place = if acted < most { Some(request.push_to(tube, look)) } else { None };
            let replies = self.call(asking, request).await?;
            next = match place.map(|place| &replies[place]) {
                Some(Reply::Found(id, _)) => Some(*id),
                Some(Reply::NotFound) | None => return Ok(acted),
                Some(other) => return Err(error::unexpected(other, "peek")),
            };
            acted += 1;
        }
    }
}

fn reserved(replies: Vec<Reply>) -> Vec<(u64, Bytes)> {
    let job = |reply| match reply {
        Reply::Reserved(id, body) => Some((id, body)),
        _ => None,
    };
    replies.into_iter().filter_map(job).collect()
}

fn place(after: Option<&str>) -> Result<(usize, u64)> {
    let Some(text) = after else { return Ok((0, 0)) };
    let parts = text.split_once('/').and_then(|(server, job)| Some((server.parse().ok()?, job.parse().ok()?)));
    parts.ok_or_else(|| Error::invalid(format!("`{text}` is no place in the list of held tasks; begin without one")))
}
