//! Pausing: markers in a queue of its own, which survive as tasks do, and vanish by themselves if the pause has an end.
//!
//! There are two of them, and who reads takes one: so the count, which workers go by, is never zero meanwhile. Whoever reads or
//! changes them walks, so that none is out of a change's reach.

use std::time::Duration;

use anyqueue_core::time::{show, unix_millis};
use anyqueue_core::{Bytes, Error, Paused, Result};
use lapin::BasicProperties;
use lapin::types::ShortString;

use crate::layout::Layout;
use crate::publish::Post;
use crate::shared::Shared;

/// For so long the markers may be out of sight, while they are put anew.
const BLINK: Duration = Duration::from_millis(40);
const MARKERS: usize = 2;
/// RabbitMQ has 32 bits for a message's time to live.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);
/// More than are ever there.
const MANY: usize = 1000;

impl Shared {
    /// Whether there is a marker.
    pub(crate) async fn is_marked(&self, layout: &Layout) -> Result<bool> {
        let mut before = self.was_marked(&layout.queue);
        loop {
            let Some(count) = self.how_many(&layout.pause).await? else {
                // Somebody has deleted it, and what it said with it.
                self.reconsider(&layout.queue);
                return Ok(self.set_marked(&layout.queue, false));
            };
            match count {
                0 if before => before = false,
                0 => return Ok(self.set_marked(&layout.queue, false)),
                _ => return Ok(self.set_marked(&layout.queue, true)),
            }
            tokio::time::sleep(BLINK).await;
        }
    }

    pub(crate) async fn mark(&self, layout: &Layout, time: Option<Duration>) -> Result<()> {
        let posts: Vec<_> = (0..MARKERS).map(|_| self.marker(layout, time)).collect::<Result<_>>()?;
        let ours =
            |name: &str| posts.iter().any(|post| post.properties.message_id().as_ref().is_some_and(|own| own.as_str() == name));
        let walk = self.walk(layout.pause.as_str()).await?;
        for put in self.publish(&posts).await {
            put?;
        }
        // The new ones are behind the old ones, and stay in sight.
        let count = self.counted(&layout.pause).await? as usize;
        for marker in walk.take(&layout.pause, count.saturating_sub(MARKERS)).await? {
            if !marker.name.as_deref().is_some_and(ours) {
                walk.remove(&marker).await?;
            }
        }
        walk.end().await
    }

    fn marker(&self, layout: &Layout, time: Option<Duration>) -> Result<Post> {
        let name = format!("pause.{:016x}", fastrand::u64(..));
        let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(name.into());
        let mut properties = properties.with_content_type("text/plain".into());
        let mut until = String::from("until it is resumed");
        if let Some(time) = time {
            if time > LONGEST {
                let text = "a pause with an end lasts 49 days at most in RabbitMQ; pause without an end, and resume";
                return Err(Error::invalid(format!("{text}: {} is longer", show(time))));
            }
            let millis = time.as_nanos().div_ceil(1_000_000) as u64;
            properties = properties.with_expiration(millis.to_string().into());
            until = (unix_millis(self.clock.wall()) + millis).to_string();
        }
        let body = Bytes::from(until);
        Ok(Post { exchange: ShortString::default(), key: layout.pause.clone(), properties, body })
    }

    /// Takes the markers away. A purge would not reach one that somebody is reading.
    pub(crate) async fn unmark(&self, layout: &Layout) -> Result<()> {
        let walk = self.walk(layout.pause.as_str()).await?;
        walk.remove_all(&walk.take(&layout.pause, MANY).await?).await?;
        walk.end().await
    }

    pub(crate) async fn paused(&self, layout: &Layout) -> Result<Paused> {
        let walk = self.walk(layout.pause.as_str()).await?;
        let found = walk.take(&layout.pause, 1).await?.pop();
        walk.end().await?;
        let Some(marker) = found else { return Ok(Paused::No) };
        let until: Option<u64> = std::str::from_utf8(&marker.raw).ok().and_then(|text| text.parse().ok());
        let left = until.map(|until| Duration::from_millis(until.saturating_sub(unix_millis(self.clock.wall()))));
        Ok(if left == Some(Duration::ZERO) { Paused::No } else { Paused::Yes(left) })
    }
}
