//! Marks of a queue: that it exists, and that it is paused.
//!
//! A tube is there only as long as somebody uses it, and a restarted server has forgotten all pauses. So each queue has a
//! tube `;queue` with a job in it that says so, and survives with the binlog. Workers look at it, and pause the tubes anew.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::time::{DEFAULT_TTR, unix_millis};
use anyqueue_core::{Create, Declared, Error, ErrorKind, Paused, QueueName, Result};

use futures::future::join_all;

use crate::error;
use crate::hub::{Hub, seconds};
use crate::link::Link;
use crate::request::Request;
use crate::server::Server;
use crate::tubes::Tubes;
use crate::wire::{Command, Reply};

/// A pause without an end, for a server that knows none: ten years.
const ENDLESS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What stands in front: a pause hides the declaration.
const FIRST: u32 = 0;
const SECOND: u32 = 1;

fn put(body: &str, priority: u32) -> Command<'_> {
    Command::Put { priority, delay: 0, ttr: DEFAULT_TTR.as_secs() as u32, body: body.as_bytes() }
}

/// A server that answers, and the connection to ask it on.
pub(crate) type Live<'a> = (&'a Arc<Server>, Arc<Link>);

impl Hub {
    /// The servers that answer, and the connections to ask them on. An error if there is none.
    pub(crate) async fn live(&self) -> Result<Vec<Live<'_>>> {
        Ok(self.live_of_all().await?.0)
    }

    /// The servers that answer, and what is to be said where these know of nothing: that others could not be asked.
    pub(crate) async fn live_of_all(&self) -> Result<(Vec<Live<'_>>, Result<()>)> {
        let (mut live, mut missing) = (Vec::new(), Ok(()));
        let asked = join_all(self.servers.iter().map(Server::asking)).await;
        for (server, asked) in self.servers.iter().zip(asked) {
            match asked {
                Ok(link) => live.push((server, link)),
                Err(e) => missing = Err((server, e)),
            }
        }
        match missing {
            Err((_, e)) if live.is_empty() => Err(e),
            missing => Ok((live, missing.map_err(|(server, e)| error::not_asked(&server.address, &e)))),
        }
    }

    pub(crate) fn is_declared(&self, queue: &QueueName) -> bool {
        self.declared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(queue)
    }

    /// Sees to it that a queue exists on all servers.
    pub(crate) async fn declare(&self, queue: &QueueName, create: Create) -> Result<Declared> {
        let (tubes, live) = (self.tubes(queue), self.live().await?);
        let (mut known, mut unmarked) = (false, Vec::new());
        for (_, link) in &live {
            let mut request = Request::default();
            request.push_to(&tubes.mark, &Command::PeekReady);
            for tube in tubes.all() {
                request.push(&Command::StatsTube(tube));
            }
            let replies = self.call(link, request).await?;
            if !matches!(replies.first(), Some(Reply::Found(..))) {
                unmarked.push(link);
            }
            known |= replies.iter().any(|reply| matches!(reply, Reply::Found(..) | Reply::Ok(_)));
        }
        match create {
            Create::Never if !known => {
                let text =
                    format!("there is no queue `{queue}`, and the settings say create = \"never\"; run `queue-runner init`");
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            Create::Never => {}
            Create::Auto => {
                for link in unmarked {
                    self.put_mark(link, &tubes, "declared", SECOND).await?;
                }
            }
        }
        self.declared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(queue.clone());
        Ok(Declared { created: !known, drift: Vec::new() })
    }

    async fn put_mark(&self, link: &Link, tubes: &Tubes, text: &str, priority: u32) -> Result<()> {
        let mut request = Request::default();
        request.push_to(&tubes.mark, &put(text, priority));
        match self.call(link, request).await?.pop() {
            Some(Reply::Inserted(_)) => Ok(()),
            Some(other) => Err(error::unexpected(&other, "put")),
            None => Err(error::closed()),
        }
    }

    /// The pause that is marked on one server, with the number of its job.
    async fn marked(&self, link: &Link, tubes: &Tubes) -> Result<Option<(u64, Paused)>> {
        let mut request = Request::default();
        request.push_to(&tubes.mark, &Command::PeekReady);
        match self.call(link, request).await?.pop() {
            Some(Reply::Found(id, body)) => Ok(self.read_mark(&body).map(|paused| (id, paused))),
            Some(Reply::NotFound) => Ok(None),
            Some(other) => Err(error::unexpected(&other, "peek-ready")),
            None => Err(error::closed()),
        }
    }

    /// A pause as it is marked; one that is over is none.
    fn read_mark(&self, body: &[u8]) -> Option<Paused> {
        let text = str::from_utf8(body).ok()?.strip_prefix("paused")?;
        let until: Option<u64> = text.strip_prefix(" until ").map(|millis| millis.parse().unwrap_or(0));
        let left = until.map(|until| Duration::from_millis(until.saturating_sub(unix_millis(self.clock.wall()))));
        Some(if left == Some(Duration::ZERO) { Paused::No } else { Paused::Yes(left) })
    }

    /// Removes what is marked of pauses.
    async fn unmark(&self, link: &Link, tubes: &Tubes) -> Result<()> {
        while let Some((id, _)) = self.marked(link, tubes).await? {
            self.call(link, Request::of(&Command::Delete(id))).await?;
        }
        Ok(())
    }

    /// Has the server stop deliveries for so long; not at all means that it goes on at once.
    async fn pause_tubes(&self, link: &Link, tubes: &Tubes, time: Duration) -> Result<()> {
        let mut request = Request::default();
        for tube in tubes.open() {
            // A tube that nobody uses is not there, and cannot be paused.
            request.push_to(tube, &Command::PauseTube { tube, delay: seconds(time) });
        }
        let refused = self.call(link, request).await?.into_iter().find(|reply| !matches!(reply, Reply::Paused | Reply::Using(_)));
        refused.map_or(Ok(()), |reply| Err(error::unexpected(&reply, "pause-tube")))
    }

    pub(crate) async fn pause(&self, tubes: &Tubes, time: Option<Duration>) -> Result<()> {
        let until = time.map(|time| unix_millis(self.clock.wall()).saturating_add(time.as_millis() as u64));
        let text = until.map_or_else(|| "paused".to_owned(), |until| format!("paused until {until}"));
        for (_, link) in self.live().await? {
            self.unmark(&link, tubes).await?;
            self.put_mark(&link, tubes, &text, FIRST).await?;
            self.pause_tubes(&link, tubes, time.unwrap_or(ENDLESS)).await?;
        }
        Ok(())
    }

    pub(crate) async fn resume(&self, tubes: &Tubes) -> Result<()> {
        for (_, link) in self.live().await? {
            self.unmark(&link, tubes).await?;
            self.pause_tubes(&link, tubes, Duration::ZERO).await?;
        }
        Ok(())
    }

    pub(crate) async fn paused(&self, tubes: &Tubes) -> Result<Paused> {
        for (_, link) in self.live().await? {
            if let Some((_, paused @ Paused::Yes(_))) = self.marked(&link, tubes).await? {
                return Ok(paused);
            }
        }
        Ok(Paused::No)
    }

    /// Pauses the tubes anew where a pause is marked that the server may have forgotten.
    pub(crate) async fn enforce_pause(&self, tubes: &Tubes) {
        let Ok(Paused::Yes(left)) = self.paused(tubes).await else { return };
        for (_, link) in self.live().await.unwrap_or_default() {
            if let Err(e) = self.pause_tubes(&link, tubes, left.unwrap_or(ENDLESS)).await {
                let error = anyqueue_core::chain(&e);
                tracing::warn!(queue = tubes.queue.as_str(), error, "a pause cannot be kept up");
            }
        }
    }
}
