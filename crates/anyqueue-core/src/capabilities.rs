//! What a broker can do, as data: `check`, the docs and the README table are made from it, the suite tests it both ways.

use std::time::Duration;

use crate::priority::Levels;
use crate::time::{MAX_DELAY, MAX_TTR};

/// How a verb is there. There is no *ignored*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support<L = ()> {
    /// The broker keeps the promise even if all our processes die.
    Native(L),
    /// The adapter keeps the promise; the sentence is the caveat that users see.
    Emulated(L, &'static str),
    /// Something must be configured first; the sentence says what. Until then the call is a named error.
    Needs(L, &'static str),
}

impl<L: Copy> Support<L> {
    /// The limits, however they are kept.
    pub fn limits(&self) -> L {
        match self {
            Self::Native(limits) | Self::Emulated(limits, _) | Self::Needs(limits, _) => *limits,
        }
    }

    /// The caveat, or what is needed.
    pub fn caveat(&self) -> Option<&'static str> {
        match self {
            Self::Native(_) => None,
            Self::Emulated(_, caveat) | Self::Needs(_, caveat) => Some(caveat),
        }
    }

    /// Whether a call works as things are configured.
    pub fn works(&self) -> bool {
        !matches!(self, Self::Needs(..))
    }

    /// `native`, `emulated` or `needs`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Native(_) => "native",
            Self::Emulated(..) => "emulated",
            Self::Needs(..) => "needs",
        }
    }

    /// The same support, without its limits.
    pub fn plain(&self) -> Support {
        match self {
            Self::Native(_) => Support::Native(()),
            Self::Emulated(_, caveat) => Support::Emulated((), caveat),
            Self::Needs(_, what) => Support::Needs((), what),
        }
    }
}

/// Bounds of a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The longest.
    pub max: Duration,
    /// What it is rounded up to.
    pub step: Duration,
}

impl Bounds {
    /// Every delay of the contract, in milliseconds.
    pub const DELAY: Self = Self { max: MAX_DELAY, step: Duration::from_millis(1) };
    /// Every TTR of the contract, in milliseconds.
    pub const TTR: Self = Self { max: MAX_TTR, step: Duration::from_millis(1) };
}

/// In which order tasks of one level come, at their first delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// First in, first out, by the order in which the broker got them.
    Fifo,
    /// Roughly.
    Loose,
}

/// What an accepted task survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Nothing: it lives in a process's memory.
    None,
    /// The death of any process, the broker's included.
    Process,
    /// A power loss too.
    Power,
}

/// The most that goes into one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Sends.
    pub send: usize,
    /// Sends that fill one of the broker's own requests, if that is less: what senders hand in one by one goes out in
    /// requests of this size, as many at once as it fills.
    pub together: usize,
    /// Reservations.
    pub reserve: usize,
    /// Settlements and touches.
    pub settle: usize,
}

/// How well a figure is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exactness {
    /// To the task.
    Exact,
    /// Roughly.
    Approximate,
    /// Not at all.
    Unknown,
}

/// How well each figure of [`Stats`](crate::Stats) is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Ready tasks.
    pub ready: Exactness,
    /// Delayed tasks.
    pub delayed: Exactness,
    /// Reserved tasks.
    pub reserved: Exactness,
    /// Held tasks.
    pub held: Exactness,
    /// Age of the oldest ready task.
    pub oldest: Exactness,
}

impl Counts {
    /// All figures known to the task.
    pub const EXACT: Self = Self {
        ready: Exactness::Exact,
        delayed: Exactness::Exact,
        reserved: Exactness::Exact,
        held: Exactness::Exact,
        oldest: Exactness::Exact,
    };
}

/// How a late settle is kept from harming a newer attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fencing {
    /// The store compares the reservation in the same step.
    Compared,
    /// The local deadline and the connection decide; the sentence says what may still slip through.
    Deadline(&'static str),
}

/// What stands between us and the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Nothing: the broker lives in this process.
    Memory,
    /// A file.
    File,
    /// Connections; a dead one is noticed within twice this interval.
    Network {
        /// How often an idle connection is asked for a sign of life.
        liveness: Duration,
    },
}

/// What happens to the tasks of a worker that was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// They are ready again at once.
    AtOnce,
    /// They are ready again when their lease ends.
    AfterLease,
    /// The worker and the broker are one process.
    WithBroker,
}

/// What a broker can do for one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// How finely priorities are told apart.
    pub priority: Support<Levels>,
    /// Whether a worker may take a range of priorities only.
    pub priority_ranges: Support,
    /// Delays.
    pub delay: Support<Bounds>,
    /// Times to run.
    pub ttr: Support<Bounds>,
    /// Renewing a lease; the limit is the longest time a task may be reserved in all.
    pub touch: Support<Option<Duration>>,
    /// Putting back with new counters.
    pub retry: Support,
    /// Giving back uncounted.
    pub release: Support,
    /// Parking and kicking.
    pub hold: Support,
    /// Deleting a held task by id.
    pub delete_held: Support,
    /// Deleting a ready or delayed task by id.
    pub delete_waiting: Support,
    /// Looking at ready and delayed tasks.
    pub peek: Support,
    /// Facts of one task by id.
    pub info: Support,
    /// Pausing a queue.
    pub pause: Support,
    /// Telling that a worker died with a task.
    pub deaths: Support,
    /// Working the tasks that name the same group one after another.
    pub group: Support,
    /// Taking one task of those that wait under the same key.
    pub unique: Support,
    /// Order within a level.
    pub order: Order,
    /// What an accepted task survives.
    pub durability: Durability,
    /// When it does not, in one sentence, if there is such a case.
    pub durability_caveat: Option<&'static str>,
    /// The most that goes into one request.
    pub batch: Batch,
    /// The largest body, in bytes.
    pub max_payload: Option<u64>,
    /// How well figures are known.
    pub counts: Counts,
    /// How a late settle is kept out.
    pub fencing: Fencing,
    /// What stands in between.
    pub link: Link,
    /// What becomes of a killed worker's tasks.
    pub death: Death,
    /// When a frozen or cut-off worker's task is ready again, at the latest, if that is later than its TTR.
    pub frozen_bound: Duration,
    /// A settled task cannot come back after a crash of the broker once this has passed.
    pub settle_window: Duration,
    /// Whether a repeated id is recognised and accepted once.
    pub same_id: Support,
    /// The longest queue name, if shorter than the contract's.
    pub max_queue_name: Option<usize>,
}

impl Capabilities {
    /// Everything native, exact and unlimited: what adapters over a store of their own start from.
    pub const FULL: Self = Self {
        priority: Support::Native(Levels::Every),
        priority_ranges: Support::Native(()),
        delay: Support::Native(Bounds::DELAY),
        ttr: Support::Native(Bounds::TTR),
        touch: Support::Native(None),
        retry: Support::Native(()),
        release: Support::Native(()),
        hold: Support::Native(()),
        delete_held: Support::Native(()),
        delete_waiting: Support::Native(()),
        peek: Support::Native(()),
        info: Support::Native(()),
        pause: Support::Native(()),
        deaths: Support::Native(()),
        group: Support::Needs((), "a broker that keeps the tasks of a group in line, such as a FIFO queue of Amazon SQS"),
        unique: Support::Needs(
            (),
            "a broker that knows the keys of waiting tasks, such as Gearman or a FIFO queue of Amazon SQS",
        ),
        order: Order::Fifo,
        durability: Durability::None,
        durability_caveat: None,
        batch: Batch { send: 1024, together: 1024, reserve: 1024, settle: 1024 },
        max_payload: None,
        counts: Counts::EXACT,
        fencing: Fencing::Compared,
        link: Link::Memory,
        death: Death::AfterLease,
        frozen_bound: Duration::ZERO,
        settle_window: Duration::ZERO,
        same_id: Support::Native(()),
        max_queue_name: None,
    };

    /// Every verb with its support, in the order in which tables show them.
    pub fn verbs(&self) -> [(&'static str, Support); 16] {
        [
            ("priority", self.priority.plain()),
            ("priority ranges", self.priority_ranges),
            ("delay", self.delay.plain()),
            ("ttr", self.ttr.plain()),
            ("touch", self.touch.plain()),
            ("retry", self.retry),
            ("release", self.release),
            ("hold, kick", self.hold),
            ("delete held", self.delete_held),
            ("delete waiting", self.delete_waiting),
            ("peek", self.peek),
            ("info", self.info),
            ("pause", self.pause),
            ("deaths", self.deaths),
            ("group", self.group),
            ("unique key", self.unique),
        ]
    }
}
