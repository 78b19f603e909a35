//! A message as it was received, and messages as they are sent.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Bytes, Error, Figure, NativeFacts, Result, TaskId};
use aws_sdk_sqs::types::{Message, MessageAttributeValue, MessageSystemAttributeName, SendMessageBatchRequestEntry};

use crate::slip::{ATTRIBUTE, Slip};

/// A message as it was received.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    /// SQS's id of it.
    pub(crate) id: Arc<str>,
    /// What deletes it or changes its visibility.
    pub(crate) handle: Arc<str>,
    pub(crate) body: Bytes,
    pub(crate) slip: Slip,
    /// How often it was received, this time included.
    pub(crate) count: u64,
    /// When it was sent, in milliseconds since 1970, by SQS's clock.
    pub(crate) sent: u64,
}

impl Arrived {
    /// Reads a message. One without id or handle could never be settled, so it is as good as not received.
    pub(crate) fn read(message: Message) -> Option<Self> {
        let text = message.message_attributes().and_then(|all| all.get(ATTRIBUTE)).and_then(MessageAttributeValue::string_value);
        let mut slip = text.map(Slip::read).unwrap_or_default();
        let system = |name| message.attributes().and_then(|all| all.get(&name)).map(String::as_str);
        if let Some(group) = system(MessageSystemAttributeName::MessageGroupId) {
            slip.group = Some(group.into());
        }
        let number = |name| system(name).and_then(|text| text.parse().ok());
        Some(Self {
            id: message.message_id()?.into(),
            handle: message.receipt_handle()?.into(),
            count: number(MessageSystemAttributeName::ApproximateReceiveCount).unwrap_or(1),
            sent: number(MessageSystemAttributeName::SentTimestamp).unwrap_or_default(),
            body: message.body.unwrap_or_default().into(),
            slip,
        })
    }

    /// What SQS knows of the task. `looks` of its receptions were none of a worker.
    pub(crate) fn native(&self, looks: u64, now: u64) -> NativeFacts {
        let received = self.slip.redeliveries + self.count.saturating_sub(1).saturating_sub(looks);
        NativeFacts {
            id: Some(self.slip.native.clone().unwrap_or_else(|| self.id.clone())),
            priority: self.slip.priority,
            ttr: self.slip.ttr(),
            redeliveries: Figure::Exact(received),
            age: (self.sent > 0).then(|| Duration::from_millis(now.saturating_sub(self.sent))),
        }
    }

    /// The same task as a message of its own: nothing is counted, and its first id stays.
    pub(crate) fn again(&self, looks: u64) -> Post {
        let mut slip = self.slip.clone();
        slip.redeliveries += self.count.saturating_sub(1).saturating_sub(looks);
        if slip.priority.is_none() {
            slip.native.get_or_insert_with(|| self.id.clone());
        }
        Post { body: self.body.clone(), slip, delay: 0, once: None }.once("again", &self.id)
    }
}

/// A message to send.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) body: Bytes,
    pub(crate) slip: Slip,
    /// Seconds that SQS itself counts.
    pub(crate) delay: u64,
    /// What a FIFO queue takes once in five minutes.
    pub(crate) once: Option<Arc<str>>,
}

impl Post {
    /// A copy of another message: however often it is sent for the same reason, a FIFO queue has it once.
    pub(crate) fn once(self, why: &str, of: &str) -> Self {
        Self { once: Some(TaskId::foreign("sqs", why, of).to_string().into()), ..self }
    }

    /// What it takes of a request, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.body.len() + self.slip.write().len() + ATTRIBUTE.len() + "String".len()
    }

    pub(crate) fn entry(&self, place: usize, fifo: bool) -> Result<SendMessageBatchRequestEntry> {
        let wrong = |e| Error::invalid("the message could not be made").because(e);
        let body = std::str::from_utf8(&self.body)
            .map_err(|e| Error::invalid("SQS takes text only; the body is not UTF-8").because(e))?;
        let value = MessageAttributeValue::builder().data_type("String").string_value(self.slip.write()).build();
        let mut entry = SendMessageBatchRequestEntry::builder().id(place.to_string()).message_body(body);
        entry = entry.message_attributes(ATTRIBUTE, value.map_err(wrong)?);
        if fifo {
            let once = self.once.as_deref().map_or_else(|| format!("{:032x}", fastrand::u128(..)), str::to_owned);
            let group = self.slip.group.as_deref().map_or_else(|| once.clone(), str::to_owned);
            entry = entry.message_deduplication_id(once).message_group_id(group);
        } else {
            // Without it, the queue's own delay would hold, which others may have set.
            entry = entry.delay_seconds(self.delay as i32);
        }
        entry.build().map_err(wrong)
    }
}

/// A name of a user's as SQS takes it: up to 128 letters, digits and signs. Another one becomes its digest.
pub(crate) fn word(name: &str) -> Arc<str> {
    let fine = !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_graphic());
    if fine { name.into() } else { TaskId::foreign("sqs", "word", name).to_string().into() }
}
