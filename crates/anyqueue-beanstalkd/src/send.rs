//! Sending: to a server that lives, each batch to the next one.

use std::sync::Arc;

use anyqueue_core::{Accepted, Effect, Envelope, Error, QueueName, Result};

use crate::error;
use crate::hub::{Hub, check};
use crate::link::Link;
use crate::request::Request;
use crate::server::Server;
use crate::settle::put;
use crate::tubes::Tubes;
use crate::wire::{Command, Refusal, Reply};

type Answer = Option<Result<Accepted>>;

impl Hub {
    /// Puts tasks on a queue. One that a server refuses for lack of room is offered to the next one; one that a broken
    /// connection may have left anywhere is not.
    pub(crate) async fn send(&self, queue: &QueueName, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let (tubes, limit) = (self.tubes(queue), self.max_body());
        let mut answers: Vec<Answer> = batch.iter().map(|task| check(task, limit).err().map(Err)).collect();
        let mut refused: Vec<Option<Error>> = batch.iter().map(|_| None).collect();
        for server in self.by_turn(&self.turn) {
            let left: Vec<usize> = (0..batch.len()).filter(|at| answers[*at].is_none()).collect();
            if left.is_empty() {
                break;
            }
            match self.put_all(server, &tubes, batch, &left).await {
                Ok(replies) => {
                    for (at, answer) in left.into_iter().zip(replies) {
                        match answer {
                            Err(e) if e.is_retryable() && e.effect() == Effect::None => refused[at] = Some(e),
                            answer => answers[at] = Some(answer),
                        }
                    }
                }
                Err(e) => {
                    self.noticed(server, &e);
                    for at in left {
                        match e.effect() {
                            Effect::None => refused[at] = Some(e.duplicate()),
                            Effect::Unknown => answers[at] = Some(Err(e.duplicate())),
                        }
                    }
                }
            }
        }
        let last = |answer: Answer, refused: Option<Error>| {
            answer.unwrap_or_else(|| Err(refused.unwrap_or_else(|| Error::unavailable("there is no server to send to"))))
        };
        answers.into_iter().zip(refused).map(|(answer, refused)| last(answer, refused)).collect()
    }

    async fn put_all(
        &self,
        server: &Arc<Server>,
        tubes: &Tubes,
        batch: &[Envelope],
        left: &[usize],
    ) -> Result<Vec<Result<Accepted>>> {
        let link = server.asking().await?;
        let mut request = Request::default();
        let puts = left.iter().map(|at| &batch[*at]);
        let places: Vec<usize> = puts.map(|task| request.push_to(tubes.of(task.priority), &put(task, task.priority))).collect();
        let replies = self.call(&link, request).await?;
        let one = |(place, at): (usize, &usize)| self.inserted(server, &link, &batch[*at], &replies[place]);
        Ok(places.into_iter().zip(left).map(one).collect())
    }

    fn inserted(&self, server: &Server, link: &Arc<Link>, task: &Envelope, reply: &Reply) -> Result<Accepted> {
        match reply {
            Reply::Inserted(id) => Ok(Accepted { native_id: Some(self.native_id(server, *id).into()) }),
            Reply::Refused(Refusal::JobTooBig) => {
                // The server was restarted with another limit since it was asked.
                Err(Error::too_large(task.body.len() as u64, server.facts().max_body))
            }
            other => {
                self.unbury(link, other);
                Err(error::unexpected(other, "put"))
            }
        }
    }

    /// Removes a job that the server took without a place in line: its sender is told that it was not taken.
    pub(crate) fn unbury(&self, link: &Link, reply: &Reply) {
        if let Reply::Buried(Some(id)) = reply {
            drop(link.submit(Request::of(&Command::Delete(*id))));
        }
    }

    /// The largest body that every server takes.
    pub(crate) fn max_body(&self) -> u64 {
        let limits = self.servers.iter().map(|server| server.facts().max_body).filter(|limit| *limit > 0);
        limits.min().unwrap_or(65_535)
    }
}
