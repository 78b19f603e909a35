//! Delayed tasks of a queue: they stand on the ladder, among those of all queues.

use std::collections::HashSet;

use anyqueue_core::Result;

use crate::layout::{Ladder, Layout, RUNGS};
use crate::message::Message;
use crate::shared::Shared;

/// So many of a rung are looked at for a listing: what stands there is out of sight meanwhile.
const GLANCE: usize = 10_000;
/// A purge looks again until it finds none, and no more often than this: who sends meanwhile would keep it busy.
const PASSES: u32 = 3;

impl Shared {
    /// The ones that are due first.
    pub(crate) async fn peek_delayed(&self, layout: &Layout, limit: usize) -> Result<Vec<Message>> {
        let (mut found, mut names) = (Vec::new(), HashSet::new());
        let walk = self.walk(layout.ladder.end().as_str()).await?;
        // A task only goes down, so none gets past who goes down too.
        for rung in (0..RUNGS).rev() {
            let mut slices = walk.slices(&layout.ladder.rung(rung), GLANCE);
            loop {
                let slice = slices.next().await?;
                if slice.is_empty() {
                    break;
                }
                let ours = slice.into_iter().filter(|message| layout.is_target(Ladder::target(message.key.as_str())));
                found.extend(ours.filter(|message| message.name.as_ref().is_none_or(|name| names.insert(name.clone()))));
                found.sort_by_key(|message: &Message| message.due);
                found.truncate(limit);
            }
            // What is due soon must not be out of sight for longer than need be.
            walk.give_back().await?;
        }
        walk.end().await?;
        Ok(found)
    }

    pub(crate) async fn purge_delayed(&self, layout: &Layout) -> Result<u64> {
        let mut count = 0;
        for _ in 0..PASSES {
            match self.purge_ladder(layout).await? {
                0 => break,
                gone => count += gone,
            }
        }
        Ok(count)
    }

    async fn purge_ladder(&self, layout: &Layout) -> Result<u64> {
        let walk = self.walk(layout.ladder.end().as_str()).await?;
        let mut count = 0;
        for rung in (0..RUNGS).rev() {
            let mut slices = walk.slices(&layout.ladder.rung(rung), usize::MAX);
            loop {
                let slice = slices.next().await?;
                if slice.is_empty() {
                    break;
                }
                for message in slice.iter().filter(|message| layout.is_target(Ladder::target(message.key.as_str()))) {
                    walk.remove(message).await?;
                    count += 1;
                }
            }
            walk.give_back().await?;
        }
        walk.end().await?;
        Ok(count)
    }
}
