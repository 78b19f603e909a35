//! A queue's own queues on SQS: found, made, compared with what they should be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::time::MAX_DELAY;
use anyqueue_core::{Create, Drift, Error, ErrorKind, QueueName, Result};
use aws_sdk_sqs::types::QueueAttributeName;
use futures::future::{join_all, try_join_all};

use crate::api::Api;
use crate::config::{Config, Kind};
use crate::names::{self, Part};
use crate::slip;

/// The largest message (`MaximumMessageSize`), in bytes.
pub(crate) const LARGEST: u64 = 1 << 20;
/// What a task may grow by, in bytes: a retry or a hold writes counters and a reason into its body.
pub(crate) const HEADROOM: u64 = 8 << 10;
/// How long SQS keeps a message at most, in seconds: 14 days.
pub(crate) const RETENTION: u64 = 14 * 86_400;

/// The SQS queues of one queue.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) queue: QueueName,
    pub(crate) kind: Kind,
    /// URLs of the bands, the most urgent one first.
    pub(crate) bands: Vec<Arc<str>>,
    /// Where held tasks are, and where SQS itself puts messages that were received too often, if it does.
    pub(crate) held: Vec<Arc<str>>,
    /// The largest body.
    pub(crate) largest: u64,
    /// For how long the bands keep a message, in seconds.
    keeps: u64,
    /// What one request may carry.
    pub(crate) max_request: usize,
    /// How long queues of held tasks keep a message, in seconds.
    pub(crate) retention: u64,
    pub(crate) created: bool,
    pub(crate) drift: Vec<Drift>,
    /// Rights that are missing, and what for.
    pub(crate) missing: Vec<String>,
}

impl Lines {
    /// The band that a priority falls into.
    pub(crate) fn band(&self, priority: u32) -> &Arc<str> {
        let level = self.kind.levels().of(priority) as usize;
        &self.bands[level.min(self.bands.len() - 1)]
    }

    /// The band whose queue has the plain name.
    pub(crate) fn plain(&self) -> &Arc<str> {
        self.band(anyqueue_core::priority::NORMAL)
    }

    /// The largest body of a new task. A retry or a hold may be larger: it carries what happened.
    pub(crate) fn max_payload(&self) -> u64 {
        self.largest.saturating_sub(HEADROOM)
    }

    /// The longest delay. On a FIFO queue a task waits as one message, which SQS deletes at the end of its retention.
    pub(crate) fn longest_delay(&self) -> Duration {
        if self.kind.fifo { Duration::from_secs(self.keeps / 14 * 13) } else { MAX_DELAY }
    }

    /// The priority of what others put into a band, unless the plain one: the named level that it ends with, or begins above.
    pub(crate) fn usual(&self, band: usize) -> Option<u32> {
        let ends = self.kind.bands;
        match ends.get(band)? {
            _ if band == self.kind.levels().plain() as usize => None,
            &u32::MAX => ends[..band].last().map(|end| end * 2),
            end => Some(*end),
        }
    }

    pub(crate) async fn find(api: &Api, config: &Config, queue: &QueueName, create: Create) -> Result<Self> {
        let kind = config.kind(queue);
        let plain = kind.levels().plain() as usize;
        let parts = kind.bands.iter().enumerate().map(|(at, end)| if at == plain { Part::Plain } else { Part::Band(*end) });
        // Held tasks stand in no order of SQS's, so a FIFO queue's are in a standard one, which takes more.
        let wanted: Vec<(String, bool)> = parts
            .map(|part| (names::name(&config.prefix, queue, part, kind.fifo), kind.fifo))
            .chain([(names::name(&config.prefix, queue, Part::Held, false), false)])
            .collect();
        let found = try_join_all(wanted.iter().map(|(name, _)| api.url(name))).await.map_err(|e| e.with("queue", queue))?;
        let created = found.iter().any(Option::is_none);
        if let (Create::Never, Some(at)) = (create, found.iter().position(Option::is_none)) {
            let text = format!("SQS has no queue `{}`, and `create` is \"never\"; run `queue-runner init`", wanted[at].0);
            return Err(Error::new(ErrorKind::NotFound, text).with("queue", queue));
        }
        let urls = try_join_all(wanted.iter().zip(found).map(|((name, fifo), url)| async move {
            match url {
                Some(url) => Ok(url),
                None => made(api, name, *fifo).await,
            }
        }));
        let mut bands = urls.await.map_err(|e| e.with("queue", queue))?;
        let held = bands.split_off(kind.bands.len());
        Self { queue: queue.clone(), kind, bands, held, created, ..Self::unknown(queue, kind) }.compared(api, wanted).await
    }

    fn unknown(queue: &QueueName, kind: Kind) -> Self {
        Self {
            queue: queue.clone(),
            kind,
            bands: Vec::new(),
            held: Vec::new(),
            largest: LARGEST - slip::ROOM,
            keeps: RETENTION,
            max_request: LARGEST as usize,
            retention: RETENTION,
            created: false,
            drift: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Reads what the queues are like. Without the right to do so, they are taken to be as we make them.
    async fn compared(mut self, api: &Api, names: Vec<(String, bool)>) -> Result<Self> {
        let urls: Vec<_> = self.bands.iter().chain(&self.held).cloned().collect();
        let answers = join_all(urls.iter().map(|url| api.attributes(url))).await;
        for ((name, _), answer) in names.iter().zip(answers) {
            match answer {
                Ok(attributes) => self.note(name, &attributes),
                Err(e) if e.kind() == ErrorKind::Denied => {
                    self.missing
                        .push(format!("`sqs:GetQueueAttributes` on `{name}`: figures, limits and drift of it are not known"));
                }
                Err(e) => return Err(e.with("queue", &self.queue)),
            }
        }
        if let Some(dead) = self.dead_letters().filter(|name| names.iter().all(|(known, _)| known != name))
            && let Ok(Some(url)) = api.url(&dead).await
        {
            if let Ok(attributes) = api.attributes(&url).await {
                let retention = attributes.get(&QueueAttributeName::MessageRetentionPeriod).and_then(|text| text.parse().ok());
                self.retention = self.retention.min(retention.unwrap_or(RETENTION));
            }
            self.held.push(url);
        }
        Ok(self)
    }

    fn note(&mut self, name: &str, attributes: &HashMap<QueueAttributeName, String>) {
        let number = |key| attributes.get(&key).and_then(|text| text.parse::<u64>().ok());
        if let Some(most) = number(QueueAttributeName::MaximumMessageSize) {
            self.largest = self.largest.min(most.saturating_sub(slip::ROOM));
            // Servers that speak SQS's protocol as it was before 2025 take 256 KiB in one request.
            self.max_request = self.max_request.min(most.max(256 << 10) as usize);
        }
        let retention = number(QueueAttributeName::MessageRetentionPeriod).unwrap_or(RETENTION);
        let least = if name.ends_with("__held") { &mut self.retention } else { &mut self.keeps };
        *least = retention.min(*least);
        let wanted = [
            (QueueAttributeName::MessageRetentionPeriod, RETENTION.to_string()),
            (QueueAttributeName::DelaySeconds, "0".into()),
            (QueueAttributeName::RedrivePolicy, "none".into()),
        ];
        for (key, wanted) in wanted {
            let found = attributes.get(&key).cloned().filter(|text| !text.is_empty());
            let found = found.unwrap_or_else(|| wanted.clone());
            if found != wanted {
                self.drift.push(Drift { what: format!("{key} of `{name}`", key = key.as_str()), wanted, found });
            }
        }
    }

    /// The name of the queue where SQS puts messages that were received too often, if it stands beside ours.
    fn dead_letters(&self) -> Option<String> {
        let policy = self.drift.iter().find(|drift| drift.what.starts_with("RedrivePolicy"))?;
        let (_, rest) = policy.found.split_once("deadLetterTargetArn")?;
        let arn = rest.split('"').find(|part| part.starts_with("arn:"))?;
        arn.rsplit(':').next().map(str::to_owned)
    }
}

async fn made(api: &Api, name: &str, fifo: bool) -> Result<Arc<str>> {
    let retention = RETENTION.to_string();
    let mut attributes = vec![(QueueAttributeName::MessageRetentionPeriod, retention.as_str())];
    if fifo {
        attributes.push((QueueAttributeName::FifoQueue, "true"));
    }
    match api.create(name, &attributes).await {
        // Somebody else may have made it meanwhile, with other attributes.
        Err(e) => match api.url(name).await {
            Ok(Some(url)) => Ok(url),
            _ => Err(e),
        },
        made => made,
    }
}
