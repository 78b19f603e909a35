//! Reserving.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Consumer, Delivery, Error, ErrorKind, Result, Settler, async_trait};
use futures::future::join_all;
use tokio::task::JoinHandle;

use crate::feed::{Feed, Looks};
use crate::hub::Hub;
use crate::line::Line;
use crate::server::Server;
use crate::settle::GearmanSettler;

/// Takes tasks from one queue. All I/O is in tasks of their own, so that a dropped `reserve` loses nothing.
#[derive(Debug)]
pub(crate) struct GearmanConsumer {
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    lines: Vec<JoinHandle<()>>,
}

impl GearmanConsumer {
    pub(crate) fn new(hub: Arc<Hub>, feed: Feed) -> Self {
        let feed = Arc::new(feed);
        hub.add_feed(feed.clone());
        let line = |server: &Arc<Server>| hub.runtime.spawn(Line::new(&hub, server.clone(), feed.clone()).run());
        let lines = hub.servers.iter().map(line).collect();
        Self { hub, feed, lines }
    }

    fn take(&self, max: usize) -> Result<Vec<Delivery>> {
        let (now, mut leases) = (self.hub.clock.now(), self.hub.leases());
        self.feed.take(max, |delivery| leases.hand_out(&delivery.receipt, now))
    }

    async fn reserve_some(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let clock = &self.hub.clock;
        let until = clock.now() + wait;
        let here = self.take(max)?;
        if !here.is_empty() {
            return Ok(here);
        }
        let waiting = self.feed.begin(max);
        // Who asks without waiting wants to know what is there all the same.
        let patience = until + self.hub.config.patience;
        loop {
            let here = self.take(max)?;
            if !here.is_empty() {
                return Ok(here);
            }
            let end = match self.feed.looks(waiting.round()) {
                Looks::Failed(e) => return Err(e),
                Looks::Done if clock.now() >= until => return Ok(here),
                Looks::Done => until,
                Looks::UnderWay if clock.now() >= patience => {
                    let text = "the job server has not answered in time; the next call goes on waiting";
                    return Err(Error::new(ErrorKind::Timeout, text));
                }
                Looks::UnderWay => patience,
            };
            tokio::select! {
                () = self.feed.bell.notified() => {}
                () = clock.sleep_until(end) => {}
            }
        }
    }

    fn leave(&self) -> Vec<Delivery> {
        self.hub.remove_feed(&self.feed);
        self.feed.close(None)
    }
}

impl Hub {
    /// Gives back what was fetched and is wanted by nobody.
    pub(crate) async fn take_back(&self, deliveries: Vec<Delivery>) {
        let now = self.clock.now();
        let leases: Vec<_> = {
            let mut leases = self.leases();
            deliveries.iter().filter_map(|delivery| leases.take(&delivery.receipt, now)).collect()
        };
        self.give_back(leases).await;
    }
}

#[async_trait]
impl Consumer for GearmanConsumer {
    async fn reserve(&mut self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        self.reserve_some(max.get(), wait).await.map_err(|e| e.during("reserve").with("queue", &self.feed.queue.name))
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(GearmanSettler::new(self.hub.clone(), self.feed.queue.clone()))
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        let left = self.leave();
        // A look that is under way gives back what it finds before its line ends; a server that is away has it anyway.
        let (lines, clock) = (join_all(std::mem::take(&mut self.lines)), &self.hub.clock);
        let ended = async {
            tokio::select! {
                _ = lines => {}
                () = clock.sleep_until(clock.now() + self.hub.config.patience) => {}
            }
        };
        tokio::join!(ended, self.hub.take_back(left));
        Ok(())
    }
}

impl Drop for GearmanConsumer {
    fn drop(&mut self) {
        let left = self.leave();
        if !left.is_empty() {
            let hub = self.hub.clone();
            self.hub.runtime.spawn(async move { hub.take_back(left).await });
        }
    }
}
