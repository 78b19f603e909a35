//! What is said to the server about deliveries, in few words, and whether it has heard them.

use anyqueue_core::Result;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions};

use crate::error;
use crate::line::{Line, Session};
use crate::shared::Shared;

impl Line {
    /// Waits until the server has worked on all that was said on the channel before.
    pub(crate) async fn barrier(&self, shared: &Shared, channel: &Channel) -> Result<()> {
        let _allowing = self.allowing.lock().await;
        let window = self.state().consuming.map_or(1, |(_, window)| window);
        shared.work.call("basic.qos", channel.basic_qos(window as u16, BasicQosOptions { global: false })).await
    }

    /// Tells the server that these are done. To be called by who has the word, [`saying`](Line::saying).
    pub(crate) async fn acknowledge(&self, session: &Session, tags: &[u64]) -> Result<()> {
        let words = self.state().words(session.epoch, tags).ok_or_else(error::session_over)?;
        let say = |(tag, multiple)| session.channel.basic_ack(tag, BasicAckOptions { multiple });
        at_once(words.into_iter().map(say)).await.map_err(error::lost)
    }

    /// Tells the server that it may have these back.
    pub(crate) async fn return_all(&self, channel: &Channel, tags: &[u64]) -> Result<()> {
        let back = BasicNackOptions { multiple: false, requeue: true };
        at_once(tags.iter().map(|tag| channel.basic_nack(*tag, back))).await.map_err(error::foreign)
    }

    /// The same of those whose workers said nothing more: from 4.3 on, a server counts this, and not what is just given back.
    pub(crate) async fn return_harmed(&self, channel: &Channel, tags: &[u64]) -> Result<()> {
        let back = BasicRejectOptions { requeue: true };
        at_once(tags.iter().map(|tag| channel.basic_reject(*tag, back))).await.map_err(error::foreign)
    }
}

/// Says all of it before it waits until the first is on its way.
async fn at_once(all: impl Iterator<Item = impl Future<Output = lapin::Result<()>>>) -> lapin::Result<()> {
    let mut under_way = Vec::new();
    for one in all {
        let mut one = Box::pin(one);
        if let std::task::Poll::Ready(said) = futures::poll!(one.as_mut()) {
            said?;
        } else {
            under_way.push(one);
        }
    }
    for one in under_way {
        one.await?;
    }
    Ok(())
}
