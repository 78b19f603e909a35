//! Sending.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Accepted, Effect, Envelope, Error, Result};
use gearman::protocol::Packet;

use crate::hub::{Hub, Queue};
use crate::names::{Kind, MAX_UNIQUE, Unique};
use crate::server::Server;

/// A task to send: its place in the batch, what it is, and the name under which it is sent.
type Item<'t> = (usize, Unique, String, &'t Envelope);

impl Hub {
    /// Puts tasks on a queue, each as a job with the same unique id however often it is sent.
    pub(crate) async fn send(&self, queue: &Queue, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let mut answers: Vec<Result<Accepted>> = batch.iter().map(|_| Ok(Accepted::default())).collect();
        let mut rest = Vec::new();
        for (at, task) in batch.iter().enumerate() {
            match self.check(task).and_then(|()| name(queue, task, self)) {
                Ok((unique, name)) => rest.push((at, unique, name, task)),
                Err(e) => answers[at] = Err(e),
            }
        }
        // Tasks of one unique key meet only on one server.
        let keyed = rest.extract_if(.., |(.., task)| task.unique.is_some()).collect::<Vec<_>>();
        for one in keyed {
            let first = one.3.unique.as_deref().map_or(0, |key| key.bytes().map(usize::from).sum::<usize>());
            let order = (0..self.servers.len()).map(|n| (first + n) % self.servers.len()).collect();
            self.send_to(queue, order, vec![one], &mut answers).await;
        }
        let order = self.by_turn().map(|server| server.place).collect();
        self.send_to(queue, order, rest, &mut answers).await;
        answers
    }

    /// The name under which a keyed task can be sent to a server: its key, or its own id while a job of that key is cancelled
    /// and there still. The server would take the task for that one, and it would never run.
    async fn free_name(&self, server: &Arc<Server>, queue: &Queue, key: &str, own: &Unique) -> String {
        // Where that cannot be asked the task cannot be sent either, and the answer is that of sending.
        let late = self.is_late(server, queue, key).await.unwrap_or(false);
        if late { own.to_string() } else { key.to_owned() }
    }

    /// Sends to the first of the servers that takes them.
    async fn send_to(&self, queue: &Queue, order: Vec<usize>, mut rest: Vec<Item<'_>>, answers: &mut [Result<Accepted>]) {
        for (tried, place) in order.iter().enumerate() {
            if rest.is_empty() {
                return;
            }
            let (server, last) = (&self.servers[*place], tried + 1 == order.len());
            for (_, own, name, task) in &mut rest {
                if let Some(key) = &task.unique {
                    *name = self.free_name(server, queue, key, own).await;
                }
            }
            let packets: Vec<Packet> = rest
                .iter()
                .map(|(_, unique, name, task)| self.named_job(queue, unique, name, task.delay, task.body.clone()))
                .collect();
            let put = self.put(server, packets).await;
            let mut again = Vec::new();
            for (item, put) in rest.into_iter().zip(put) {
                match put {
                    Ok(_) => {
                        let id = if order.len() == 1 { item.2 } else { format!("{}/{}", server.address, item.2) };
                        answers[item.0] = Ok(Accepted { native_id: Some(id.into()) });
                    }
                    Err(e) if last || e.effect() == Effect::Unknown => answers[item.0] = Err(e),
                    Err(_) => again.push(item),
                }
            }
            rest = again;
        }
    }
}

/// The unique id of a task as it is sent, and its text: the caller's own key where one was asked for.
fn name(queue: &Queue, task: &Envelope, hub: &Hub) -> Result<(Unique, String)> {
    let kind = if task.delay > Duration::ZERO { Kind::Delayed } else { Kind::Ready };
    let unique = Unique::sent(&queue.functions, task.id, kind, queue.band(task.priority), task.ttr);
    let Some(key) = &task.unique else { return Ok((unique.clone(), unique.to_string())) };
    let bad = |why: String| Err(Error::invalid(format!("unique key `{key}` {why}")).with("broker", &hub.config.name));
    if key.len() > MAX_UNIQUE {
        return bad(format!("has {} bytes; a job server takes up to {MAX_UNIQUE}", key.len()));
    }
    if matches!(&**key, "" | "-") || key.contains('\0') {
        return bad("has a meaning of its own to a job server; choose another".into());
    }
    Ok((unique, key.to_string()))
}
