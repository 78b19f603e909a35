//! Tasks that leave the held ones, a slice at a time.

use std::time::Duration;

use anyqueue_core::{Error, Result, TaskId, Which};

use crate::layout::Layout;
use crate::message::Message;
use crate::publish::Post;
use crate::shared::Shared;
use crate::walk::Walk;

/// Bodies that are on their way to the server at once, one larger body excepted.
const BYTES: usize = 4 << 20;

impl Shared {
    /// A task as it goes on: the same body.
    pub(crate) fn again(&self, layout: &Layout, message: &Message) -> Post {
        let task = self.incoming(layout, message).unchanged(Duration::ZERO);
        Post { body: message.raw.clone(), ..self.post(layout, &task) }
    }

    pub(crate) async fn kick(&self, layout: &Layout, which: &Which) -> Result<u64> {
        let most = match which {
            Which::First(count) => usize::try_from(*count).unwrap_or(usize::MAX),
            Which::Ids(ids) if ids.is_empty() => 0,
            Which::Ids(_) | Which::All => usize::MAX,
        };
        if most == 0 {
            return Ok(0);
        }
        let walk = self.walk(layout.held.as_str()).await?;
        let mut slices = walk.slices(&layout.held, most);
        let mut kicked = 0;
        loop {
            let mut chosen = slices.next().await?;
            if chosen.is_empty() {
                break;
            }
            if let Which::Ids(ids) = which {
                chosen.retain(|message| ids.contains(&self.incoming(layout, message).id));
            }
            let (moved, failed) = self.carry(layout, &walk, &chosen).await;
            kicked += moved;
            if let Some(e) = failed {
                drop(walk.end().await);
                return Err(partly(e, kicked));
            }
        }
        walk.end().await?;
        Ok(kicked)
    }

    /// Puts tasks of a walk where they belong: confirmed there first, removed here second. Says how many went, and what
    /// stopped it.
    pub(crate) async fn carry(&self, layout: &Layout, walk: &Walk<'_>, tasks: &[Message]) -> (u64, Option<Error>) {
        let (mut moved, mut rest) = (0, tasks);
        while !rest.is_empty() {
            let (part, after) = rest.split_at(fitting(rest));
            rest = after;
            let posts: Vec<_> = part.iter().map(|message| self.again(layout, message)).collect();
            let mut failed = None;
            let answers = match self.publishing().await {
                Ok(publishing) => publishing.to(layout, &posts).await,
                Err(e) => return (moved, Some(e)),
            };
            for (message, answer) in part.iter().zip(answers) {
                let removed = match answer {
                    Ok(()) => walk.remove(message).await,
                    Err(e) => Err(e),
                };
                match removed {
                    Ok(()) => moved += 1,
                    Err(e) => failed = Some(e),
                }
            }
            if failed.is_some() {
                return (moved, failed);
            }
        }
        (moved, None)
    }

    pub(crate) async fn delete_held(&self, layout: &Layout, ids: &[TaskId]) -> Result<Vec<bool>> {
        let walk = self.walk(layout.held.as_str()).await?;
        let mut found = vec![false; ids.len()];
        let mut slices = walk.slices(&layout.held, usize::MAX);
        loop {
            let slice = slices.next().await?;
            if slice.is_empty() {
                break;
            }
            for message in &slice {
                let id = self.incoming(layout, message).id;
                if let Some(at) = ids.iter().position(|wanted| *wanted == id) {
                    walk.remove(message).await?;
                    found[at] = true;
                }
            }
        }
        walk.end().await?;
        Ok(found)
    }
}

/// How many of them go at once: one at least.
fn fitting(tasks: &[Message]) -> usize {
    let sizes = tasks.iter().scan(0, |sum: &mut usize, task| {
        *sum += task.raw.len();
        Some(*sum)
    });
    sizes.take_while(|sum| *sum <= BYTES).count().max(1)
}

/// An error that came when some had gone already.
fn partly(e: Error, gone: u64) -> Error {
    match gone {
        0 => e,
        gone => e.with("gone_before", gone),
    }
}
