//! Sending: which band, which delay, how large; and sending on what is delayed for longer than SQS counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Accepted, Effect, Envelope, Error, ErrorKind, Result, steps_up, time};
use futures::stream::{self, StreamExt};

use crate::SECOND;
use crate::claim::Content;
use crate::hub::Hub;
use crate::lines::Lines;
use crate::message::{Arrived, Post, word};
use crate::slip::Slip;

/// The longest delay that SQS counts (`DelaySeconds`).
pub(crate) const LONGEST_DELAY: u64 = 900;
/// A longer one is looked at so long before it is over, so that its last part can be SQS's own.
const LEAD: u64 = 60;
/// The longest that a message may be hidden in all (`VisibilityTimeout`), less what requests take.
const LONGEST_HIDDEN: u64 = 12 * 3600 - 60;

/// Files that one batch writes at once.
pub(crate) const FILES: usize = 4;

/// Checks a task's times against what SQS takes.
pub(crate) fn check_times(task: &Envelope, lines: &Lines) -> Result<()> {
    time::check_ttr(task.ttr, time::MAX_TTR, "Amazon SQS (`VisibilityTimeout`)")?;
    time::check_delay(task.delay)?;
    let limit = lines.longest_delay();
    if task.delay <= limit {
        return Ok(());
    }
    let text = format!(
        "a delay of {} is above the limit of {} of a FIFO queue, where SQS deletes what waits longer (`MessageRetentionPeriod`); use a standard queue for it",
        time::show(task.delay),
        time::show(limit)
    );
    Err(Error::new(ErrorKind::DelayTooLong { limit }, text))
}

/// How long SQS delays a message that is to come after `left` seconds, and whether it is to be sent on then.
fn leg(left: u64) -> (u64, bool) {
    if left <= LONGEST_DELAY { (left, false) } else { ((left - LEAD).min(LONGEST_DELAY), true) }
}

impl Hub {
    /// What of a new task goes into its message, if SQS takes it.
    async fn new_content(&self, task: &Envelope, lines: &Lines) -> Result<Content> {
        check_times(task, lines)?;
        let size = task.body.len() as u64;
        let content = if size > self.largest_task(lines) { None } else { self.content(task, lines.max_payload(), None).await? };
        content.ok_or_else(|| self.too_large(size, lines))
    }

    /// A message of a task that is to be ready after its delay.
    pub(crate) fn post_of(&self, task: &Envelope, (body, claim): Content, slip: Slip, fifo: bool) -> Post {
        let mut post = Post { body, slip: Slip { claim, ..slip }, delay: 0, once: None };
        if task.delay > Duration::ZERO {
            let millis = u64::try_from(task.delay.as_millis()).unwrap_or(u64::MAX / 2).max(1);
            self.delayed(&mut post, self.wall() + millis, steps_up(task.delay, SECOND), fifo);
        }
        post
    }

    fn delayed(&self, post: &mut Post, due: u64, left: u64, fifo: bool) {
        // A FIFO queue knows no delay of single messages: it is there at once, and who receives it waits.
        let (delay, hop) = if fifo { (0, true) } else { leg(left) };
        (post.delay, post.slip.due, post.slip.hop) = (delay, Some(due), hop);
    }

    /// Sends new tasks: one answer each, in order.
    pub(crate) async fn send(&self, lines: &Lines, batch: &[Envelope]) -> Vec<Result<Accepted>> {
        let mut answers: Vec<Option<Result<Accepted>>> = batch.iter().map(|_| None).collect();
        let mut posts: Vec<Vec<(usize, Post)>> = lines.bands.iter().map(|_| Vec::new()).collect();
        let contents: Vec<_> = batch.iter().map(|task| self.new_content(task, lines)).collect();
        let contents: Vec<_> = stream::iter(contents).buffered(FILES).collect().await;
        let mut claims = HashMap::new();
        for (at, (task, content)) in batch.iter().zip(contents).enumerate() {
            match content {
                Ok(content) => {
                    claims.extend(content.1.clone().map(|claim| (at, claim)));
                    let slip = Slip { group: task.group.as_deref().map(word), ..Slip::of(task) };
                    let band = lines.kind.levels().of(task.priority) as usize;
                    let once = task.unique.as_deref().map_or_else(|| task.id.to_string().into(), word);
                    posts[band].push((at, Post { once: Some(once), ..self.post_of(task, content, slip, lines.kind.fifo) }));
                }
                Err(e) => answers[at] = Some(Err(e)),
            }
        }
        let send = async |band: usize, posts: Vec<(usize, Post)>| {
            let (places, posts): (Vec<usize>, Vec<Post>) = posts.into_iter().unzip();
            let sent = if posts.is_empty() { Vec::new() } else { self.post(lines, &lines.bands[band], &posts).await };
            places.into_iter().zip(sent).collect::<Vec<_>>()
        };
        let sent = futures::future::join_all(posts.into_iter().enumerate().map(|(band, posts)| send(band, posts))).await;
        for (at, answer) in sent.into_iter().flatten() {
            // What may have been sent still needs its file; if it was not, a sweep removes it.
            if answer.as_ref().err().is_none_or(|e| e.effect() == Effect::Unknown) {
                claims.remove(&at);
            }
            answers[at] = Some(answer.map(|id| Accepted { native_id: Some(id) }));
        }
        self.let_go(claims.values()).await;
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(crate::error::unanswered()))).collect()
    }
}

/// Sends on tasks that are not due yet. What cannot be sent on stays where it is, and comes again.
pub(crate) async fn send_on(hub: &Hub, lines: &Lines, url: &Arc<str>, early: Vec<Arrived>) {
    if early.is_empty() {
        return;
    }
    let now = hub.wall();
    let left = |one: &Arrived| one.slip.due.unwrap_or(now).saturating_sub(now).div_ceil(1000);
    let done = if lines.kind.fifo {
        // A copy would go behind its group: it is hidden instead.
        let items: Vec<_> = early.iter().map(|one| (one.handle.clone(), left(one).min(LONGEST_HIDDEN))).collect();
        early.iter().for_each(|one| hub.looked(&one.id));
        hub.hide(url, &items).await.into_iter().collect::<Result<()>>()
    } else {
        let copy = |one: Arrived| {
            let (left, mut post) = (left(&one), one.again(one.count.saturating_sub(1)));
            let due = post.slip.due.unwrap_or(now);
            hub.delayed(&mut post, due, left, false);
            (one.handle, post)
        };
        hub.moved(lines, url, url, early.into_iter().map(copy).collect()).await.map(drop)
    };
    if let Err(error) = done {
        tracing::warn!(queue = lines.queue.as_str(), %error, "cannot send on delayed tasks; they are looked at again later");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_legs_of_a_long_delay_leave_the_last_one_to_sqs() {
        assert_eq!((leg(1), leg(900)), ((1, false), (900, false)));
        for total in [901, 959, 1000, 86_400, 5 * 365 * 86_400] {
            let (mut left, mut legs) = (total, 0);
            loop {
                let (delay, more) = leg(left);
                assert!(delay > 0 && delay <= LONGEST_DELAY && delay <= left, "{delay} of {left}");
                (left, legs) = (left - delay, legs + 1);
                if !more {
                    break;
                }
                assert!(left >= LEAD, "no time is left to send it on: {left}");
            }
            assert_eq!(left, 0, "never early, never late");
            assert!(legs <= total / (LONGEST_DELAY - LEAD) + 2);
        }
    }
}
