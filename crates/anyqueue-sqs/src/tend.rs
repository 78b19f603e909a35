//! Renewing what is held: SQS deletes every message after 14 days, and a held task may stay longer.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyqueue_core::{Clock, ErrorKind, Result};
use aws_sdk_sqs::types::QueueAttributeName;

use crate::api::BATCH;
use crate::hub::{Hub, Move};
use crate::lines::Lines;
use crate::message::{Arrived, Post};

/// Held tasks are looked at this often, or eight times in the life of a message if that is shorter.
const OFTEN: Duration = Duration::from_secs(12 * 3600);
/// The first look comes sooner: a worker may be restarted every hour.
const FIRST: Duration = Duration::from_secs(60);
/// How long a consumer that ends before the first look waits for one.
const LAST: Duration = Duration::from_secs(2);
/// So many are walked through at every look. Of more, a few show whether it is time, since old ones come first, more or
/// less; as that is no promise, all are walked through four times in the life of a message.
const SMALL: u64 = 1000;

/// Renews a queue's held tasks for as long as its broker is open.
pub(crate) async fn run(hub: Weak<Hub>, clock: Arc<dyn Clock>, lines: Arc<Lines>) {
    let life = Duration::from_secs(lines.retention);
    let often = (life / 8).min(OFTEN);
    let (mut pause, mut walked) = (often.min(FIRST), clock.now());
    loop {
        // Many workers start together; they need not look together.
        clock.sleep_until(clock.now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        let Some(hub) = hub.upgrade().filter(|hub| hub.check().is_ok()) else { return };
        // Workers that never live for so long walk now and then.
        let whole = clock.now().since(walked) + often >= life / 4 || fastrand::u8(..8) == 0;
        hub.tended(&lines.queue);
        match hub.renew(&lines, whole).await {
            Ok(renewed) => {
                if whole {
                    walked = clock.now();
                }
                if renewed > 0 {
                    tracing::info!(queue = lines.queue.as_str(), renewed, "held tasks were renewed: SQS would delete them");
                }
            }
            Err(error) => tracing::warn!(queue = lines.queue.as_str(), %error, "cannot renew held tasks; will try again"),
        }
        pause = often;
    }
}

/// Removes files that belong to no message any more, for as long as the broker is open: what crashes between the writing of
/// a file and the sending of its message leave, and what SQS's own purge or a lost delete does.
pub(crate) async fn sweep(hub: Weak<Hub>, clock: Arc<dyn Clock>) {
    loop {
        let Some(open) = hub.upgrade().filter(|hub| hub.check().is_ok()) else { return };
        let Some(folder) = open.folder.clone() else { return };
        drop(open);
        match folder.sweep(clock.wall()).await {
            Ok(0) => {}
            Ok(removed) => {
                tracing::info!(folder = %folder.path().display(), removed, "files that belong to no task were removed")
            }
            Err(error) => tracing::warn!(folder = %folder.path().display(), %error, "cannot look for files of no task"),
        }
        clock.sleep_until(clock.now() + OFTEN.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

impl Hub {
    /// Looks at held tasks at the end of a consumer, if nobody has in this process.
    pub(crate) async fn tend_at_last(self: &Arc<Self>, lines: &Arc<Lines>) {
        if self.check().is_err() || !self.tended(&lines.queue) {
            return;
        }
        let (hub, lines) = (self.clone(), lines.clone());
        // It goes on to its end even if nobody waits for it any more: what a walk took has to be put back.
        let look = self.runtime.spawn(async move {
            if let Err(error) = hub.renew(&lines, false).await {
                tracing::warn!(queue = lines.queue.as_str(), %error, "cannot renew held tasks");
            }
        });
        tokio::select! {
            _ = look => {}
            () = self.clock.sleep_until(self.clock.now() + LAST) => {}
        }
    }

    /// Sends held tasks anew that have half of their time behind them, and takes those of SQS's own dead-letter queue to the
    /// others. How many.
    async fn renew(&self, lines: &Lines, whole: bool) -> Result<u64> {
        let Some(own) = lines.held.first() else { return Ok(0) };
        let count = self.count_held(lines).await?;
        if count == Some(0) {
            return Ok(0);
        }
        let _walking = self.listings.walking(&lines.queue).await;
        let old = self.wall().saturating_sub(lines.retention * 1000 / 2);
        if !whole && count.is_some_and(|count| count > SMALL) {
            let few = self.take_held(lines, false, BATCH).await?;
            self.put_back(&few).await;
            if few.iter().all(|one| one.arrived.sent >= old) {
                return Ok(0);
            }
        }
        let mut found = self.take_held(lines, false, crate::walk::MOST).await?;
        let mut due: HashMap<Arc<str>, Vec<Move>> = HashMap::new();
        for one in found.extract_if(.., |one| one.arrived.sent < old) {
            due.entry(one.url).or_default().push((one.arrived.handle.clone(), anew(&one.arrived)));
        }
        self.put_back(&found).await;
        let (mut renewed, mut failed) = (0, Ok(()));
        for (url, items) in due {
            let (count, answer) = self.moved_or_shown(lines, &url, own, items).await;
            renewed += count;
            failed = failed.and(answer);
        }
        failed.map(|()| renewed)
    }

    /// How many are held, if SQS may tell.
    async fn count_held(&self, lines: &Lines) -> Result<Option<u64>> {
        let mut count = 0;
        for url in &lines.held {
            match self.api.attributes(url).await {
                Ok(attributes) => {
                    let number = |key| attributes.get(&key).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
                    count += number(QueueAttributeName::ApproximateNumberOfMessages)
                        + number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible);
                }
                Err(e) if e.kind() == ErrorKind::Denied => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(count))
    }
}

fn anew(arrived: &Arrived) -> Post {
    let mut post = arrived.again(arrived.count.saturating_sub(1));
    // Its place in the list stays.
    post.slip.held.get_or_insert(arrived.sent.saturating_mul(1000));
    post
}
