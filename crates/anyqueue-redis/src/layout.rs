//! What lies in Redis under which key, byte by byte.
//!
//! All keys of a queue share one hash tag, so that in a cluster they are on one node: `prefix:{queue}` and, behind a
//! colon, `ready`, `delayed`, `reserved`, `held` (sorted sets), `tasks` and `counts` (hashes).

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Bytes, Envelope, Figure, NativeFacts, QueueName, Receipt, TaskId, steps_up};
use redis::{RedisWrite, ToRedisArgs, Value};

use crate::script::Script;

/// The version of the layout, written into each queue.
pub(crate) const VERSION: u32 = 1;
/// `priority batch place-in-batch id`: what a task is called in the sets.
pub(crate) const PLACE: usize = 28;
/// What comes before the body; see `send.lua`.
pub(crate) const HEAD: usize = 34;

/// The counts of a task, five numbers of four bytes.
const COUNTS: usize = 20;

const MILLISECOND: Duration = Duration::from_millis(1);

/// A duration in milliseconds, rounded up.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    steps_up(duration, MILLISECOND)
}

/// The keys of a queue, in the order in which the scripts take them, and where in a cluster they are.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) slot: u16,
    pub(crate) names: [String; 7],
}

impl Keys {
    pub(crate) fn new(prefix: &str, queue: &QueueName) -> Self {
        let stem = format!("{prefix}:{{{queue}}}");
        let rest = ["ready", "tasks", "delayed", "reserved", "held", "counts"].map(|part| format!("{stem}:{part}"));
        let [ready, tasks, delayed, reserved, held, counts] = rest;
        Self { slot: crc16(queue.as_str().as_bytes()) % 16_384, names: [stem, ready, tasks, delayed, reserved, held, counts] }
    }

    /// Those that a script takes: each one costs the server time, and a send of one task little else.
    pub(crate) fn of(&self, script: Script) -> &[String] {
        if script == Script::One { &self.names[..3] } else { &self.names }
    }

    /// The queue's own key, under which it is rung too.
    pub(crate) fn bell(&self) -> &str {
        &self.names[0]
    }

    pub(crate) fn held(&self) -> &str {
        &self.names[5]
    }

    pub(crate) fn tasks(&self) -> &str {
        &self.names[2]
    }

    pub(crate) fn reserved(&self) -> &str {
        &self.names[4]
    }
}

/// CRC16 (XMODEM), as the Redis Cluster specification has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 })
    })
}

/// The largest task that `one.lua` may take; `large.lua` marks what is larger than its first constant, stamp included.
const SMALL: usize = 8192 - 18;

/// A task as it is sent: what follows the server's stamp, in one argument and without a copy of its own.
#[derive(Debug)]
pub(crate) struct Rest<'a> {
    head: [u8; 16],
    body: &'a [u8],
}

impl<'a> Rest<'a> {
    /// The task in this place of its batch.
    pub(crate) fn new(place: usize, task: &'a Envelope) -> Self {
        let mut head = [0; 16];
        head[..2].copy_from_slice(&(place as u16).to_be_bytes());
        head[2..6].copy_from_slice(&task.priority.to_be_bytes());
        head[6..10].copy_from_slice(&(milliseconds(task.ttr) as u32).to_be_bytes());
        head[10..].copy_from_slice(&milliseconds(task.delay).to_be_bytes()[2..]);
        Self { head, body: &task.body }
    }

    pub(crate) fn is_small(&self) -> bool {
        self.head.len() + self.body.len() <= SMALL
    }
}

impl ToRedisArgs for Rest<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        use std::io::Write;
        let mut argument = out.writer_for_next_arg();
        // Writing to memory cannot fail.
        let _ = argument.write_all(&self.head).and_then(|()| argument.write_all(self.body));
    }
}

/// A task's place in its batch, and its id.
pub(crate) fn tail(place: usize, id: TaskId) -> [u8; 18] {
    let mut tail = [0; 18];
    tail[..2].copy_from_slice(&(place as u16).to_be_bytes());
    tail[2..].copy_from_slice(id.as_bytes());
    tail
}

/// How often what happened to a task.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CountsOf {
    pub(crate) lost: u32,
    pub(crate) timeouts: u32,
    pub(crate) releases: u32,
    pub(crate) holds: u32,
    pub(crate) unholds: u32,
}

impl CountsOf {
    pub(crate) fn read(packed: &[u8]) -> Self {
        let at = |n: usize| packed.get(4 * n..4 * n + 4).map_or(0, number) as u32;
        Self { lost: at(0), timeouts: at(1), releases: at(2), holds: at(3), unholds: at(4) }
    }
}

/// What stands before the body of a stored task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) sent: u64,
    pub(crate) priority: u32,
    pub(crate) ttr: Duration,
    pub(crate) delay: Duration,
}

impl Head {
    pub(crate) fn read(task: &[u8]) -> Option<Self> {
        let head = task.get(..HEAD)?;
        Some(Self {
            sent: number(&head[12..18]),
            priority: number(&head[20..24]) as u32,
            ttr: Duration::from_millis(number(&head[24..28])),
            delay: Duration::from_millis(number(&head[28..34])),
        })
    }
}

/// A big-endian number of up to eight bytes.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// A stored task as it comes out of a script.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) handle: Arc<str>,
    pub(crate) tag: u64,
    pub(crate) head: Head,
    pub(crate) body: Bytes,
    pub(crate) lost: u32,
}

impl Stored {
    /// Reads a place and what is stored there.
    pub(crate) fn read(place: &[u8], task: Bytes, lost: u32) -> Option<Self> {
        let head = Head::read(&task)?;
        let (priority, rest) = place.split_first_chunk::<4>()?;
        let (tag, id) = rest.split_first_chunk::<8>()?;
        let id = TaskId::from_bytes(id.try_into().ok()?);
        let handle = format!("{id}.{:08x}", u32::from_be_bytes(*priority)).into();
        Some(Self { handle, tag: u64::from_be_bytes(*tag), head, body: task.slice(HEAD..), lost })
    }

    pub(crate) fn facts(&self, now: u64) -> NativeFacts {
        NativeFacts {
            id: Some(self.handle.clone()),
            priority: Some(self.head.priority),
            ttr: Some(self.head.ttr),
            redeliveries: Figure::Exact(self.lost.into()),
            age: Some(Duration::from_millis(now.saturating_sub(self.head.sent))),
        }
    }

    /// The proof of its reservation by a claim.
    pub(crate) fn receipt(&self, claim: u64) -> Receipt {
        Receipt { epoch: claim, tag: self.tag, handle: Some(self.handle.clone()) }
    }
}

/// What a reservation is called: `padding claim place`; see `lease.lua`.
pub(crate) type Lease = [u8; 29 + 8 + PLACE];

/// The lease that a receipt stands for, if it was given by a claim of this layout.
pub(crate) fn lease(receipt: &Receipt) -> Option<Lease> {
    let (id, priority) = receipt.handle.as_deref()?.split_once('.')?;
    let (id, priority) = (id.parse::<TaskId>().ok()?, u32::from_str_radix(priority, 16).ok()?);
    let mut lease = [b'-'; 29 + 8 + PLACE];
    lease[29..37].copy_from_slice(&receipt.epoch.to_be_bytes());
    lease[37..41].copy_from_slice(&priority.to_be_bytes());
    lease[41..49].copy_from_slice(&receipt.tag.to_be_bytes());
    lease[49..].copy_from_slice(id.as_bytes());
    Some(lease)
}

/// The pattern of all leases whose claim's number begins like this.
pub(crate) fn claims_of(consumer: u32) -> Vec<u8> {
    let mut pattern = vec![b'-'; 29];
    for byte in consumer.to_be_bytes() {
        if b"*?[]\\^-".contains(&byte) {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

/// What `reserve.lua` answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Nothing is ready; after so many milliseconds something may be, by time alone.
    Nothing(Option<u64>),
    /// The server's time, and the tasks.
    Taken(u64, Vec<Stored>),
}

impl Answer {
    pub(crate) fn read(answer: Value) -> Option<Self> {
        let items = match answer {
            Value::Int(wait) => return Some(Self::Nothing(u64::try_from(wait).ok())),
            Value::Array(items) => items,
            _ => return None,
        };
        let mut items = items.into_iter();
        let (Value::Int(now), Value::BulkString(counts)) = (items.next()?, items.next()?) else { return None };
        let mut tasks = Vec::with_capacity(items.len() / 2);
        while let Some(place) = items.next() {
            let (Value::BulkString(place), Value::BulkString(task)) = (place, items.next()?) else { return None };
            let counts = counts.get(COUNTS * tasks.len()..).unwrap_or_default();
            tasks.push(Stored::read(&place, task.into(), CountsOf::read(counts).lost)?);
        }
        Some(Self::Taken(now as u64, tasks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        let keys = Keys::new("anyqueue", &QueueName::new("user1000").unwrap());
        assert_eq!(keys.slot, 3443);
        assert_eq!(keys.tasks(), "anyqueue:{user1000}:tasks");
        assert_eq!([keys.reserved(), keys.held()], ["anyqueue:{user1000}:reserved", "anyqueue:{user1000}:held"]);
        let lone = ["anyqueue:{user1000}", "anyqueue:{user1000}:ready", "anyqueue:{user1000}:tasks"];
        assert_eq!(keys.of(Script::One), lone, "what keys.lua names first");
    }

    #[test]
    fn what_a_lone_send_may_carry_is_what_leaves_no_mark() {
        let marks = include_str!("lua/large.lua");
        assert!(marks.contains(&format!("local SMALL = {}\n", SMALL + 18)) && marks.contains("#rest > SMALL - 18"), "{marks}");
    }

    #[test]
    fn a_receipt_names_the_lease_that_it_came_from() {
        let (id, claim) = (TaskId::from_bytes([7; 16]), 0x0102_0304u64);
        let mut place = vec![0, 0, 4, 0, 0, 0, 0, 0, 0, 9, 0, 3];
        place.extend_from_slice(id.as_bytes());
        let stored = Stored::read(&place, Bytes::from(vec![0; HEAD]), 0).unwrap();
        let receipt = stored.receipt(claim);
        assert_eq!(lease(&receipt).unwrap()[37..], place[..]);
        assert_eq!(number(&lease(&receipt).unwrap()[29..37]), claim);
        assert!(lease(&receipt).unwrap().len() > 64, "shorter names are slow");
        assert_eq!(lease(&Receipt::new(1, 2)), None);
        assert_eq!(lease(&Receipt { handle: Some("nonsense".into()), ..receipt }), None);
    }

    #[test]
    fn no_byte_of_a_number_is_taken_for_a_wildcard() {
        let pattern = claims_of(u32::from_be_bytes(*b"*a?["));
        assert_eq!(pattern[29..], *br"\*a\?\[*");
        assert_eq!(pattern[..29], [b'-'; 29]);
    }

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let text = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let read = |items: Vec<Value>| Answer::read(Value::Array(items));
        let head = || vec![Value::Int(9), text(&[0, 0, 0, 7])];
        let mut good = head();
        good.extend([text(&[1; PLACE]), text(&[0; HEAD + 2])]);
        let Some(Answer::Taken(9, tasks)) = read(good.clone()) else { panic!("an answer with a task") };
        assert_eq!((tasks.len(), tasks[0].body.len(), tasks[0].lost), (1, 2, 7));
        good.pop();
        assert!(read(good).is_none(), "a place without a task");
        let mut short = head();
        short.extend([text(&[1; PLACE]), text(&[0; HEAD - 1])]);
        assert!(read(short).is_none(), "a task without its head");
        assert!(matches!(Answer::read(Value::Int(-1)), Some(Answer::Nothing(None))));
        assert!(Answer::read(Value::Nil).is_none());
    }
}
