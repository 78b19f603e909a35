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
use crate::walk::Count;
use crate::wire::{Command, Reply, Yaml};

/// What a mark begins with. The ends of the queue's bands follow, if it has any.
const DECLARED: &str = "declared";
const BANDS: &str = " bands ";

/// What one server has of a queue.
struct There {
    exists: bool,
    /// Where its bands end by its mark, if it has one.
    ends: Option<Vec<u32>>,
    /// Tubes of bands that it has no more, and how many tasks are left in each.
    strays: Vec<(Tube, u64)>,
}

impl There {
    /// What is otherwise than the settings say.
    fn drift(&self, tubes: &Tubes, place: &str) -> Vec<Drift> {
        let (wanted, found) = (tubes.ends(), self.ends.iter().filter(|found| **found != tubes.ends()));
        let bands = found.map(|found| Drift { what: format!("bands{place}"), wanted: listed(&wanted), found: listed(found) });
        let left = self.strays.iter().map(|(tube, count)| Drift {
            what: format!("tasks in tube `{tube}`{place}"),
            wanted: "0".into(),
            found: format!("{count}, which only workers with the `bands` of their sender take"),
        });
        bands.chain(left).collect()
    }
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
        let (mut known, mut drift, mut unmarked) = (false, Vec::new(), Vec::new());
        for (server, link) in &live {
            let there = self.there(link, &tubes).await?;
            known |= there.exists;
            drift.extend(there.drift(&tubes, &self.place(server)));
            if there.ends.is_none_or(|ends| ends != tubes.ends() && there.strays.is_empty()) {
                unmarked.push(link);
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
        self.declared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(queue.clone());
        Ok(Declared { created: !known, drift })
    }

    /// What the servers that answer have of a queue otherwise than the settings say. Nothing is made.
    pub(crate) async fn drift(&self, queue: &QueueName) -> Result<Vec<Drift>> {
        let (tubes, mut drift) = (self.tubes(queue), Vec::new());
        for (server, link) in self.live().await? {
            drift.extend(self.there(&link, &tubes).await?.drift(&tubes, &self.place(server)));
        }
        Ok(drift)
    }

    /// Which of several servers something is on.
    fn place(&self, server: &Server) -> String {
        if self.servers.len() == 1 { String::new() } else { format!(" on {}", server.address) }
    }

    /// Looks at what one server has of a queue.
    async fn there(&self, link: &Link, tubes: &Tubes) -> Result<There> {
        let mut request = Request::default();
        request.push_to(&tubes.mark, &Command::PeekReady);
        request.push(&Command::ListTubes);
        let replies = self.call(link, request).await?;
        let ends = match replies.first() {
            Some(Reply::Found(_, mark)) => Some(bands(mark)),
            _ => None,
        };
        let names = match replies.get(1) {
            Some(Reply::Ok(names)) => Yaml::new(names),
            Some(other) => return Err(error::unexpected(other, "list-tubes")),
            None => return Err(error::closed()),
        };
        let strays = tubes.strays(names.items());
        let counts = self.count(link, strays.iter()).await?.into_iter().map(Count::all);
        let strays: Vec<_> = strays.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect();
        let own = |name| tubes.all().any(|own| own.as_bytes() == name);
        Ok(There { exists: ends.is_some() || !strays.is_empty() || names.items().any(own), ends, strays })
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
