//! Declaring: the mark of a queue.
//!
//! A tube is there only as long as somebody uses it. So each queue has a tube `<queue>;queue` with a job in it that says that
//! the queue is there, and how its tasks are spread over tubes; it survives with the binlog.

use std::sync::Arc;

use anyqueue_core::time::DEFAULT_TTR;
use anyqueue_core::{Create, Declared, Drift, Error, ErrorKind, QueueName, Result};

use futures::future::join_all;

use crate::error;
use crate::hub::Hub;
use crate::link::Link;
use crate::request::Request;
use crate::server::Server;
use crate::tubes::{Tube, Tubes};
use crate::wire::{Command, Reply};

/// What a mark begins with. The ends of the queue's bands follow, if it has any.
const DECLARED: &str = "declared";
const BANDS: &str = " bands ";

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
        let (mut known, mut drift, mut unmarked) = (false, Vec::new(), Vec::new());
        for (_, link) in &live {
            let mut request = Request::default();
            request.push_to(&tubes.mark, &Command::PeekReady);
            for tube in tubes.all() {
                request.push(&Command::StatsTube(tube));
            }
            let replies = self.call(link, request).await?;
            known |= replies.iter().any(|reply| matches!(reply, Reply::Found(..) | Reply::Ok(_)));
            let Some(Reply::Found(_, mark)) = replies.first() else {
                unmarked.push(link);
                continue;
            };
            let found = bands(mark);
            if found != tubes.ends() {
                drift.push(Drift { what: "bands".into(), wanted: listed(&tubes.ends()), found: listed(&found) });
                if self.is_drained(link, &tubes, found).await? {
                    unmarked.push(link);
                }
            }
        }
        match create {
            Create::Never if !known => {
                let text =
                    format!("there is no queue `{queue}`, and the settings say create = \"never\"; run `queue-runner init`");
                return Err(Error::new(ErrorKind::NotFound, text));
            }
            Create::Never => {}
            Create::Auto => {
                let (mut noted, mut full) = (known, None);
                for link in unmarked {
                    match self.put_mark(link, &tubes.mark, &mark(&tubes.ends())).await {
                        Err(e) if e.kind() == ErrorKind::Full => full = Some(e),
                        marked => {
                            marked?;
                            noted = true;
                        }
                    }
                }
                // A server that is draining takes no mark; what is there already, or on another one, can be used without.
                full.filter(|_| !noted).map_or(Ok(()), Err)?;
            }
        }
        drift.dedup();
        self.declared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(queue.clone());
        Ok(Declared { created: !known, drift })
    }

    /// Whether no task is left in a tube that the queue had when its bands ended there, and has no more.
    async fn is_drained(&self, link: &Link, tubes: &Tubes, mut ends: Vec<u32>) -> Result<bool> {
        ends.push(u32::MAX);
        let earlier = Tubes::new(&tubes.queue, &ends);
        let left = earlier.open().filter(|tube| !tubes.open().any(|own| own == *tube));
        Ok(self.count(link, left).await?.into_iter().all(|count| count.all() == 0))
    }

    /// Puts a mark in a tube, and removes the earlier ones.
    pub(crate) async fn put_mark(&self, link: &Link, tube: &Tube, text: &str) -> Result<()> {
        let mut request = Request::default();
        let mark = Command::Put { priority: 0, delay: 0, ttr: DEFAULT_TTR.as_secs() as u32, body: text.as_bytes() };
        request.push_to(tube, &mark);
        match self.call(link, request).await?.pop() {
            Some(Reply::Inserted(id)) => self.unmark(link, tube, id).await.map_err(Error::effect_unknown),
            Some(other) => {
                self.unbury(link, &other);
                Err(error::unexpected(&other, "put"))
            }
            None => Err(error::closed()),
        }
    }

    /// Removes the marks before this one. Later ones are somebody else's.
    pub(crate) async fn unmark(&self, link: &Link, tube: &Tube, before: u64) -> Result<()> {
        loop {
            let mut request = Request::default();
            request.push_to(tube, &Command::PeekReady);
            match self.call(link, request).await?.pop() {
                Some(Reply::Found(id, _)) if id < before => drop(self.call(link, Request::of(&Command::Delete(id))).await?),
                Some(Reply::Found(..) | Reply::NotFound) => return Ok(()),
                Some(other) => return Err(error::unexpected(&other, "peek-ready")),
                None => return Err(error::closed()),
            }
        }
    }
}

/// The mark of a queue whose bands end at these priorities.
fn mark(ends: &[u32]) -> String {
    let ends: Vec<String> = ends.iter().map(u32::to_string).collect();
    if ends.is_empty() { DECLARED.to_owned() } else { format!("{DECLARED}{BANDS}{}", ends.join(",")) }
}

/// Where the bands of a queue end, by its mark.
fn bands(mark: &[u8]) -> Vec<u32> {
    let ends = str::from_utf8(mark).ok().and_then(|text| text.strip_prefix(DECLARED)?.strip_prefix(BANDS));
    ends.into_iter().flat_map(|ends| ends.split(',')).filter_map(|end| end.parse().ok()).collect()
}

fn listed(ends: &[u32]) -> String {
    if ends.is_empty() { "none".to_owned() } else { format!("{ends:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_where_the_bands_end() {
        for (ends, text) in [(vec![], "declared"), (vec![512, 2048], "declared bands 512,2048")] {
            assert_eq!((mark(&ends).as_str(), bands(text.as_bytes())), (text, ends));
        }
        assert!(bands(b"\xff").is_empty() && bands(b"declared bands x").is_empty());
        assert_eq!([listed(&[]), listed(&[512, 2048])], ["none", "[512, 2048]"]);
    }
}
