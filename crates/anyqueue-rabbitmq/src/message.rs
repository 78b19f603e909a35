//! What stands beside a body: properties and headers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyqueue_core::time::unix_millis;
use anyqueue_core::{Bytes, Envelope, Figure, NativeFacts, Peeked, State};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};

use crate::layout::table;

const PRIORITY: &str = "anyqueue-priority";
const TTR: &str = "anyqueue-ttr";
const DUE: &str = "anyqueue-due";
/// How many workers had died near the task before this copy of it was made, which nobody has written into its body yet.
const RETURNS: &str = "anyqueue-returns";
const PROBATION: &str = "anyqueue-probation";
/// Survives a restart of the server.
const PERSISTENT: u8 = 2;

/// The properties of a task that is put on a queue now. Each copy has a name of its own.
pub(crate) fn properties(task: &Envelope, now: SystemTime) -> BasicProperties {
    let millis = unix_millis(now);
    let mut headers = vec![
        (PRIORITY, AMQPValue::LongLongInt(task.priority.into())),
        (TTR, AMQPValue::LongLongInt(task.ttr.as_millis() as i64)),
    ];
    if !task.delay.is_zero() {
        headers.push((DUE, AMQPValue::LongLongInt(millis.saturating_add(task.delay.as_millis() as u64) as i64)));
    }
    if task.probation {
        headers.push((PROBATION, AMQPValue::Boolean(true)));
    }
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_message_id(format!("{}.{:08x}", task.id, fastrand::u32(..)).into())
        .with_timestamp(millis / 1000)
        .with_headers(table(&headers))
}

/// The properties of a task that is given back: whoever gets it next learns of those deaths too.
pub(crate) fn carrying(properties: BasicProperties, returns: u64) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(RETURNS.into(), AMQPValue::LongLongInt(returns.try_into().unwrap_or(i64::MAX)));
    properties.with_headers(headers)
}

/// A task as it came from the server.
#[derive(Debug)]
pub(crate) struct Message {
    /// The server's number for the delivery, within its channel.
    pub(crate) tag: u64,
    pub(crate) raw: Bytes,
    /// Names this copy of the task.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) priority: Option<u32>,
    pub(crate) ttr: Option<Duration>,
    /// How often it came back. Classic queues only know whether.
    pub(crate) returns: u64,
    pub(crate) exact: bool,
    /// How often copies before this one did.
    pub(crate) carried: u64,
    /// From 4.3 on, what is given back unharmed is not counted among the returns.
    pub(crate) harmed_only: bool,
    pub(crate) age: Option<Duration>,
    pub(crate) due: Option<u64>,
    /// A further death of a worker counts.
    pub(crate) probation: bool,
    /// Whether it is noted that a worker here gets it; nothing before that was tried.
    pub(crate) noted: Option<bool>,
    pub(crate) key: ShortString,
}

impl Message {
    pub(crate) fn new(delivery: Delivery, now: SystemTime) -> Self {
        let properties = delivery.properties;
        let headers = properties.headers().as_ref();
        let number = |key: &str| headers.and_then(|headers| headers.inner().get(key)).and_then(whole);
        let flag = |key: &str| headers.and_then(|headers| headers.inner().get(key)) == Some(&AMQPValue::Boolean(true));
        // A server that tells this leaves out a count of 0 deaths.
        let acquired = number("x-acquired-count");
        let count = number("x-delivery-count").or(acquired.map(|_| 0));
        let sent = properties.timestamp().map(Duration::from_secs);
        let now_since = Duration::from_millis(unix_millis(now));
        Self {
            tag: delivery.delivery_tag,
            raw: delivery.data.into(),
            name: properties.message_id().as_ref().map(|name| name.as_str().into()),
            priority: number(PRIORITY).and_then(|priority| priority.try_into().ok()),
            ttr: number(TTR).map(Duration::from_millis),
            returns: count.unwrap_or(delivery.redelivered.into()),
            exact: count.is_some() || !delivery.redelivered,
            carried: number(RETURNS).unwrap_or_default(),
            harmed_only: acquired.is_some(),
            age: sent.map(|sent| now_since.saturating_sub(sent)),
            due: number(DUE),
            probation: flag(PROBATION),
            noted: None,
            key: delivery.routing_key,
        }
    }

    /// Whether no worker gets it before that is noted.
    pub(crate) fn waits_for_note(&self) -> bool {
        self.probation && self.name.is_some() && self.noted.is_none()
    }

    /// How many workers died near the task without a word in its body, at the least.
    pub(crate) fn deaths(&self) -> u64 {
        self.returns.saturating_add(self.carried)
    }

    pub(crate) fn facts(&self) -> NativeFacts {
        NativeFacts {
            id: self.name.clone(),
            priority: self.priority,
            ttr: self.ttr,
            redeliveries: if self.exact { Figure::Exact(self.deaths()) } else { Figure::AtLeast(self.deaths()) },
            age: self.age,
        }
    }

    /// The task as a listing shows it.
    pub(crate) fn peeked(&self, state: State, now: SystemTime) -> Peeked {
        let remaining = match state {
            State::Delayed => self.due.map(|due| Duration::from_millis(due.saturating_sub(unix_millis(now)))),
            _ => None,
        };
        Peeked { raw: self.raw.clone(), native: self.facts(), state, remaining }
    }
}

fn whole(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::ShortShortUInt(n) => Some((*n).into()),
        AMQPValue::ShortUInt(n) => Some((*n).into()),
        AMQPValue::LongUInt(n) => Some((*n).into()),
        AMQPValue::ShortShortInt(n) => (*n).try_into().ok(),
        AMQPValue::ShortInt(n) => (*n).try_into().ok(),
        AMQPValue::LongInt(n) => (*n).try_into().ok(),
        AMQPValue::LongLongInt(n) => (*n).try_into().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyqueue_testkit::Sample;

    use super::*;

    #[test]
    fn what_is_written_beside_a_task_is_read_again() {
        let task = Sample::new(1).priority(u32::MAX).ttr(Duration::from_millis(1001)).delay(Duration::from_secs(60)).envelope();
        let now = SystemTime::now();
        let mut delivery = Delivery::mock(7, "".into(), "q".into(), false, b"body".to_vec());
        delivery.properties = properties(&task, now);
        let message = Message::new(delivery, now + Duration::from_secs(30));
        assert_eq!((message.priority, message.ttr), (Some(u32::MAX), Some(task.ttr)));
        assert!(message.age.is_some_and(|age| (30..=31).contains(&age.as_secs())));
        let left = message.peeked(State::Delayed, now).remaining;
        assert_eq!(left, Some(Duration::from_secs(60)));
        assert_eq!(message.facts().redeliveries, Figure::Exact(0));
        assert!(message.name.is_some_and(|name| name.starts_with(&task.id.to_string())));
    }

    #[test]
    fn a_server_that_counts_only_harm_is_told_by_its_header() {
        for (header, harmed_only, deaths) in [("x-delivery-count", false, 2), ("x-acquired-count", true, 0)] {
            let mut delivery = Delivery::mock(7, "".into(), "q".into(), true, b"{}".to_vec());
            delivery.properties = BasicProperties::default().with_headers(table(&[(header, AMQPValue::LongLongInt(2))]));
            let message = Message::new(delivery, SystemTime::now());
            assert_eq!((message.harmed_only, message.facts().redeliveries), (harmed_only, Figure::Exact(deaths)), "{header}");
        }
    }

    #[test]
    fn a_foreign_task_says_nothing_and_a_classic_queue_not_how_often() {
        let delivery = Delivery::mock(7, "".into(), "q".into(), true, b"{}".to_vec());
        let message = Message::new(delivery, SystemTime::now());
        assert_eq!((message.priority, message.ttr, message.age, message.name.clone()), (None, None, None, None));
        assert_eq!(message.facts().redeliveries, Figure::AtLeast(1));
    }
}
