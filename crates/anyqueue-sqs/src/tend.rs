//! Renewing what is held: SQS deletes every message after 14 days, and a held task may stay longer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyqueue_core::{Clock, Result};

use crate::api::BATCH;
use crate::hub::Hub;
use crate::lines::Lines;
use crate::message::Post;

/// Held tasks are looked at this often, or eight times in the life of a message if that is shorter.
const OFTEN: Duration = Duration::from_secs(12 * 3600);
/// The first look comes sooner: a worker may be restarted every hour.
const FIRST: Duration = Duration::from_secs(60);

/// Renews a queue's held tasks for as long as its broker is open.
pub(crate) async fn run(hub: Weak<Hub>, clock: Arc<dyn Clock>, lines: Arc<Lines>) {
    let often = (Duration::from_secs(lines.retention) / 8).min(OFTEN);
    let mut pause = often.min(FIRST);
    loop {
        // Many workers start together; they need not look together.
        clock.sleep_until(clock.now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        let Some(hub) = hub.upgrade().filter(|hub| hub.check().is_ok()) else { return };
        match hub.renew(&lines).await {
            Ok(0) => {}
            Ok(renewed) => {
                tracing::info!(queue = lines.queue.as_str(), renewed, "held tasks were renewed: SQS would delete them")
            }
            Err(error) => tracing::warn!(queue = lines.queue.as_str(), %error, "cannot renew held tasks; will try again"),
        }
        pause = often;
    }
}

impl Hub {
    /// Sends held tasks anew that have half of their time behind them. How many.
    async fn renew(&self, lines: &Lines) -> Result<u64> {
        let Some(own) = lines.held.first() else { return Ok(0) };
        let _walking = self.listings.walking.lock().await;
        let old = self.wall().saturating_sub(lines.retention * 1000 / 2);
        // Old ones come first, more or less: a few tell whether it is time to walk through all.
        let few = self.taken(own, BATCH, false).await?;
        self.put_back(&few).await;
        if few.iter().all(|one| one.arrived.sent >= old) {
            return Ok(0);
        }
        let mut found = self.take_held(lines, false).await?;
        let due: Vec<_> = found.extract_if(.., |one| one.url == *own && one.arrived.sent < old).collect();
        self.put_back(&found).await;
        let anew = |arrived: &crate::message::Arrived| {
            let mut post: Post = arrived.again(arrived.count.saturating_sub(1));
            // Its place in the list stays.
            post.slip.held.get_or_insert(arrived.sent * 1000);
            post
        };
        let items = due.into_iter().map(|one| (one.arrived.handle.clone(), anew(&one.arrived))).collect();
        self.moved(lines, own, own, items).await
    }
}
