//! Names on the server: the queues of a queue, and the ladder of delays.
//!
//! A queue's own queues are named after it, with a `;`, which no queue name has. Everything else begins with `anyqueue;`.

use std::time::Duration;

use anyqueue_core::{Levels, QueueName, time};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::config::{Kind, Style};

/// How long a note is kept.
pub(crate) const NOTE_LIFE: Duration = Duration::from_secs(86_400);
/// How many notes are kept.
pub(crate) const MOST_NOTES: usize = 2000;
/// Rungs of the ladder: the last one is 2²⁷ s, so that all of them are eight years.
pub(crate) const RUNGS: u32 = 28;

/// The queues of one queue.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) queue: QueueName,
    pub(crate) style: Style,
    /// A queue for each level, the most urgent first.
    pub(crate) bands: Vec<ShortString>,
    pub(crate) held: ShortString,
    pub(crate) pause: ShortString,
    /// Notes of tasks that came back unharmed.
    pub(crate) notes: ShortString,
    pub(crate) ladder: Ladder,
    /// Taken by who makes what is missing of it. A queue that hangs keeps no other one waiting.
    pub(crate) setting_up: tokio::sync::Mutex<()>,
}

impl Layout {
    pub(crate) fn new(queue: &QueueName, style: Style) -> Self {
        let name = |suffix: &str| ShortString::from(format!("{queue};{suffix}"));
        let ends: &[u32] = match style.levels {
            Levels::Bands(ends) => ends,
            Levels::Every => &[u32::MAX],
        };
        let band = |(level, end): (usize, &u32)| match *end {
            _ if level as u32 == style.levels.plain() => ShortString::from(queue.as_str()),
            u32::MAX => name("rest"),
            end => name(&end.to_string()),
        };
        let bands = if style.native { vec![queue.as_str().into()] } else { ends.iter().enumerate().map(band).collect() };
        let (held, pause, notes) = (name("held"), name("pause"), name("unharmed"));
        let (ladder, setting_up) = (Ladder(style.kind), tokio::sync::Mutex::default());
        Self { queue: queue.clone(), style, bands, held, pause, notes, ladder, setting_up }
    }

    /// The queue that tasks of this priority are in.
    pub(crate) fn band(&self, priority: u32) -> &ShortString {
        &self.bands[self.style.place(priority)]
    }

    /// Whether a task that leads there is one of this queue's, a band of other settings included.
    pub(crate) fn is_target(&self, target: Option<&str>) -> bool {
        let rest = target.and_then(|target| target.strip_prefix(self.queue.as_str()));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(';'))
    }

    /// All queues, with the arguments that they are made with.
    pub(crate) fn all(&self) -> Vec<(ShortString, FieldTable)> {
        let mut plain = vec![("x-queue-type", text(self.style.kind.word()))];
        if self.style.kind == Kind::Quorum {
            plain.push(in_place());
        }
        let mut working = plain.clone();
        // A limit may also come from a policy: what is thrown out by it is held.
        working.push(("x-dead-letter-exchange", text("")));
        working.push(("x-dead-letter-routing-key", text(self.held.as_str())));
        if self.style.kind == Kind::Quorum {
            working.extend(safe_dead_letters());
        }
        if let Some(timeout) = self.style.own_timeout {
            working.push(("x-consumer-timeout", AMQPValue::LongLongInt(timeout.as_millis() as i64)));
        }
        if self.style.native {
            working.push(("x-max-priority", AMQPValue::LongLongInt(self.style.count() as i64 - 1)));
        }
        let bands = self.bands.iter().map(|band| (band.clone(), table(&working)));
        let mut held = plain.clone();
        // Each look at held tasks counts as a return, so that a policy's limit would throw them away.
        held.push(("x-dead-letter-exchange", text(self.ladder.stray().as_str())));
        held.push(("x-dead-letter-routing-key", text(self.held.as_str())));
        if self.style.kind == Kind::Quorum {
            held.extend(safe_dead_letters());
        }
        let beside = [(self.held.clone(), table(&held)), (self.pause.clone(), table(&plain))];
        bands.chain(beside).chain([(self.notes.clone(), notes_arguments())]).collect()
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

/// Without a limit, a quorum queue of 3.10 puts what comes back behind the rest; from 4.0 on it throws away what came back
/// twenty times. With one that is never reached, what comes back keeps its place.
fn in_place() -> (&'static str, AMQPValue) {
    ("x-delivery-limit", AMQPValue::LongLongInt(1_000_000))
}

fn safe_dead_letters() -> [(&'static str, AMQPValue); 2] {
    [("x-dead-letter-strategy", text("at-least-once")), ("x-overflow", text("reject-publish"))]
}

pub(crate) fn table(arguments: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        table.insert((*key).into(), value.clone());
    }
    table
}

/// The arguments of the queue of notes.
fn notes_arguments() -> FieldTable {
    table(&[
        ("x-queue-type", text("classic")),
        ("x-message-ttl", AMQPValue::LongLongInt(NOTE_LIFE.as_millis() as i64)),
        ("x-max-length", AMQPValue::LongLongInt(MOST_NOTES as i64)),
    ])
}

/// Queues that keep a task for 1, 2, 4, … seconds each. A delay is their sum: its binary digits stand in the routing key,
/// and each rung's exchange sends a task to its queue or past it. All queues of a virtual host share one ladder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ladder(pub(crate) Kind);

impl Ladder {
    fn stem(self) -> &'static str {
        match self.0 {
            Kind::Quorum => "anyqueue;delay",
            Kind::Classic => "anyqueue;delay-classic",
        }
    }

    /// The exchange and the queue of a rung.
    pub(crate) fn rung(self, rung: u32) -> ShortString {
        format!("{};{rung}", self.stem()).into()
    }

    /// The exchange that hands tasks that are due to their queues.
    pub(crate) fn end(self) -> ShortString {
        format!("{};due", self.stem()).into()
    }

    /// The exchange and the queue of tasks that fell due for a queue that is not there, and of held ones that a policy's
    /// delivery limit threw out. Without it a classic ladder would drop them, and 32 of them would stop a quorum one for
    /// everybody.
    pub(crate) fn stray(self) -> ShortString {
        format!("{};stray", self.stem()).into()
    }

    pub(crate) fn stray_arguments(self) -> FieldTable {
        let mut arguments = vec![("x-queue-type", text(self.0.word()))];
        if self.0 == Kind::Quorum {
            arguments.push(in_place());
        }
        table(&arguments)
    }

    /// What follows a rung.
    pub(crate) fn below(self, rung: u32) -> ShortString {
        rung.checked_sub(1).map_or_else(|| self.end(), |below| self.rung(below))
    }

    /// The arguments of a rung's queue.
    pub(crate) fn arguments(self, rung: u32) -> FieldTable {
        let mut arguments = vec![
            ("x-queue-type", text(self.0.word())),
            ("x-message-ttl", AMQPValue::LongLongInt(1000 << rung)),
            ("x-dead-letter-exchange", text(self.below(rung).as_str())),
        ];
        if self.0 == Kind::Quorum {
            arguments.extend(safe_dead_letters());
            arguments.push(in_place());
        }
        table(&arguments)
    }

    /// The pattern of keys that have this digit at this rung.
    pub(crate) fn pattern(rung: u32, digit: u32) -> ShortString {
        format!("{}{digit}.#", "*.".repeat((RUNGS - 1 - rung) as usize)).into()
    }

    /// The pattern of keys that lead to this queue.
    pub(crate) fn address(queue: &str) -> ShortString {
        format!("{}{queue}", "*.".repeat(RUNGS as usize)).into()
    }

    /// Where a task with this delay enters, and the key it enters with.
    pub(crate) fn entry(self, delay: Duration, queue: &str) -> (ShortString, ShortString) {
        let seconds = time::steps_up(delay, Duration::from_secs(1)).clamp(1, (1 << RUNGS) - 1);
        let digits: String = (0..RUNGS).rev().map(|rung| if seconds >> rung & 1 == 1 { "1." } else { "0." }).collect();
        (self.rung(seconds.ilog2()), format!("{digits}{queue}").into())
    }

    /// The queue that a key leads to. A long name that never was on the ladder has no digits before it.
    pub(crate) fn target(key: &str) -> Option<&str> {
        let (digits, target) = key.split_at_checked(RUNGS as usize * 2)?;
        digits.as_bytes().chunks(2).all(|digit| matches!(digit, b"0." | b"1.")).then_some(target)
    }
}

#[cfg(test)]
mod tests {
    use anyqueue_core::{priority, time::MAX_DELAY};

    use super::*;

    fn style(ends: &'static [u32]) -> Style {
        Style { kind: Kind::Quorum, levels: Levels::Bands(ends), native: false, max_ttr: MAX_DELAY, own_timeout: None }
    }

    #[test]
    fn the_band_of_the_default_priority_has_the_plain_name() {
        let queue = QueueName::new("mail.Out").unwrap();
        let five = Layout::new(&queue, style(priority::FIVE_BANDS));
        let names: Vec<_> = five.bands.iter().map(ShortString::as_str).collect();
        assert_eq!(names, ["mail.Out;0", "mail.Out;512", "mail.Out", "mail.Out;2048", "mail.Out;rest"]);
        assert_eq!((five.band(1).as_str(), five.band(1024).as_str()), ("mail.Out;512", "mail.Out"));
        assert_eq!(Layout::new(&queue, style(priority::ONE_BAND)).bands, ["mail.Out".into()]);
    }

    #[test]
    fn a_timeout_of_its_own_is_an_argument_of_what_is_worked_on() {
        let queue = QueueName::new("q").unwrap();
        let own = Style { own_timeout: Some(Duration::from_secs(7200)), ..style(priority::FIVE_BANDS) };
        let key = |(name, arguments): (ShortString, FieldTable)| {
            arguments.inner().get("x-consumer-timeout").map(|value| (name, value.clone()))
        };
        let found: Vec<_> = Layout::new(&queue, own).all().into_iter().filter_map(key).collect();
        assert_eq!(found.len(), 5, "the bands, and not what nobody works on: {found:?}");
        assert!(found.iter().all(|(_, value)| *value == AMQPValue::LongLongInt(7_200_000)));
        assert!(Layout::new(&queue, style(priority::FIVE_BANDS)).all().into_iter().all(|one| key(one).is_none()));
    }

    #[test]
    fn a_delay_is_spelt_in_binary_and_never_shorter() {
        let ladder = Ladder(Kind::Quorum);
        let (exchange, key) = ladder.entry(Duration::from_millis(4001), "a.b;0");
        assert_eq!(exchange.as_str(), "anyqueue;delay;2");
        assert_eq!(key.as_str(), format!("{}1.0.1.a.b;0", "0.".repeat(25)));
        assert_eq!(Ladder::target(key.as_str()), Some("a.b;0"));
        assert_eq!(ladder.entry(Duration::from_millis(1), "q").0.as_str(), "anyqueue;delay;0");
        let longest = "q".repeat(60) + ";4294967294";
        assert!(ladder.entry(MAX_DELAY, &longest).1.as_str().len() <= 255);
        assert!(MAX_DELAY.as_secs() < 1 << RUNGS);
        assert_eq!(Ladder::pattern(27, 1).as_str(), "1.#");
        assert_eq!(Ladder::pattern(25, 0).as_str(), "*.*.0.#");
    }

    #[test]
    fn a_key_without_all_digits_leads_nowhere() {
        let digits = "0.1.".repeat(14);
        assert_eq!(Ladder::target(&format!("{digits}q")), Some("q"));
        // Of a queue `q`, the end of a longer name that looks like it.
        for key in ["a".repeat(56) + "q", format!("a{}q", &digits[1..]), format!("2{}q", &digits[1..]), digits[..54].into()] {
            assert_eq!(Ladder::target(&key), None, "{key}");
        }
        assert_eq!(Ladder::target(&("é".repeat(30) + "q")), None);
    }
}
