//! The names that a queue has on a job server, and the unique ids of its jobs.
//!
//! A job server tells a worker a job's function, unique id and data, and nothing else. So what must be known of a task
//! without looking into its body is in the unique id: the band, the TTR, and how many workers are known to have died.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyqueue_core::{QueueName, TaskId, steps_up};

use crate::packet::Job;

/// The longest unique id that can be used, in bytes. gearmand takes 64, cuts the last one off, and does not answer at all
/// to a question about 64.
pub(crate) const MAX_UNIQUE: usize = 63;

/// The data of a job that is submitted to learn the handle of the one that has its unique id. It is never worked.
pub(crate) const PROBE: &[u8] = b"anyqueue probe: cancelled at once";

/// One of the three levels of a job server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Band {
    High,
    Normal,
    Low,
}

impl Band {
    pub(crate) fn of(level: u32) -> Self {
        match level {
            0 => Self::High,
            1 => Self::Normal,
            _ => Self::Low,
        }
    }

    fn letter(self) -> char {
        match self {
            Self::High => 'h',
            Self::Normal => 'n',
            Self::Low => 'l',
        }
    }
}

/// The functions of one queue. A queue's name has no `;`, so no two queues share one.
#[derive(Debug, Clone)]
pub(crate) struct Functions {
    /// Where tasks wait for workers: the plain name, which foreign clients use.
    pub(crate) ready: String,
    /// Epoch jobs: tasks until they are due.
    pub(crate) delay: String,
    /// Epoch jobs: copies of reserved tasks until their leases end.
    pub(crate) guard: String,
    /// Epoch jobs: marks of tasks whose places others took, for as long as their workers are frozen.
    pub(crate) late: String,
    /// Parked tasks. No worker announces it.
    pub(crate) held: String,
    /// The mark of a pause.
    pub(crate) pause: String,
    /// The mark that the queue exists.
    pub(crate) mark: String,
    hash: String,
}

impl Functions {
    pub(crate) fn new(queue: &QueueName) -> Self {
        let with = |end: &str| format!("{queue};{end}");
        Self {
            ready: queue.to_string(),
            delay: with("delay"),
            guard: with("guard"),
            late: with("late"),
            held: with("held"),
            pause: with("pause"),
            mark: with("queue"),
            hash: hash(queue.as_str()),
        }
    }

    /// The functions of jobs that fall due.
    pub(crate) fn due(&self) -> [&str; 3] {
        [&self.delay, &self.guard, &self.late]
    }

    /// The unique id of the mark that the queue exists.
    pub(crate) fn mark_id(&self) -> String {
        format!("q;{}", self.ready)
    }

    /// The unique ids that the mark of a pause may have: a new one is there before the old one is removed.
    pub(crate) fn pause_ids(&self) -> [String; 4] {
        ["p0", "p1", "p2", "p3"].map(|number| format!("{number};{}", self.ready))
    }

    /// The unique ids that the mark of a job may have whose place was taken: one is put before the other is removed.
    pub(crate) fn late_ids(&self, unique: &str) -> [String; 2] {
        let id = TaskId::foreign("gearman late", &self.ready, unique);
        [format!("{id}.l"), format!("{id}.m")]
    }

    /// Whether a unique id was made for a job of this queue.
    pub(crate) fn owns(&self, unique: &Unique) -> bool {
        unique.hash == self.hash
    }

    /// The function in which jobs of a kind are.
    pub(crate) fn of(&self, kind: Kind) -> &str {
        match kind {
            Kind::Ready => &self.ready,
            Kind::Delayed => &self.delay,
            Kind::Held => &self.held,
            Kind::Guard | Kind::NextGuard | Kind::LastGuard => &self.guard,
        }
    }
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What five letters hold of a hash: enough to leave out other queues' jobs before asking for each.
fn hash(text: &str) -> String {
    format!("{:0>5}", base36(fnv(text.as_bytes()) % 36_u64.pow(5)))
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// What a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ready,
    Delayed,
    Held,
    Guard,
    /// A guard that was put again because its lease had been renewed, or beside one that was there.
    NextGuard,
    /// The same of that one; the next is a first one again.
    LastGuard,
}

impl Kind {
    const ALL: [(char, Self); 6] = [
        ('r', Self::Ready),
        ('d', Self::Delayed),
        ('h', Self::Held),
        ('g', Self::Guard),
        ('k', Self::NextGuard),
        ('j', Self::LastGuard),
    ];

    const GUARDS: [Self; 3] = [Self::Guard, Self::NextGuard, Self::LastGuard];

    fn letter(self) -> char {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or('r', |(letter, _)| *letter)
    }
}

/// A unique id of ours, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unique {
    pub(crate) id: TaskId,
    pub(crate) kind: Kind,
    pub(crate) band: Band,
    /// Whole seconds.
    pub(crate) ttr: Duration,
    /// When the job was made, in microseconds since 1970; 0 for a task as it was first sent.
    pub(crate) made: u64,
    /// How many leases of it ended without a word.
    pub(crate) lost: u32,
    hash: String,
}

impl Unique {
    /// The one id of a task as it was sent: a repeated send has the same, and is one job.
    pub(crate) fn sent(functions: &Functions, id: TaskId, kind: Kind, band: Band, ttr: Duration) -> Self {
        let ttr = Duration::from_secs(steps_up(ttr, Duration::from_secs(1)));
        Self { id, kind, band, ttr, made: 0, lost: 0, hash: functions.hash.clone() }
    }

    /// A new id for the next job of a task.
    pub(crate) fn next(functions: &Functions, id: TaskId, kind: Kind, band: Band, ttr: Duration, lost: u32) -> Self {
        Self { made: fresh(), lost, ..Self::sent(functions, id, kind, band, ttr) }
    }

    /// The same at another time.
    pub(crate) fn made_at(self, made: u64) -> Self {
        Self { made, ..self }
    }

    /// The same job as another kind: who makes it a second time makes the same id, so there is one.
    pub(crate) fn moved(&self, kind: Kind) -> Self {
        Self { kind, ..self.clone() }
    }

    /// The job that follows when a lease ends without a word: again one, however many make it.
    pub(crate) fn after_loss(&self) -> Self {
        Self { lost: (self.lost + 1).min(36 * 36 - 1), ..self.clone() }
    }

    pub(crate) fn read(text: &str) -> Option<Self> {
        let (id, rest) = (text.get(..36)?, text.get(36..)?.strip_prefix('.')?);
        let mut parts = rest.split('.');
        let (what, ttr, last) = (parts.next()?, parts.next()?, parts.next()?);
        let (made, lost) = last.split_once('~').unwrap_or((last, "0"));
        let mut letters = what.chars();
        let (kind, band) = (letters.next()?, letters.next()?);
        let band = [Band::High, Band::Normal, Band::Low].into_iter().find(|one| one.letter() == band)?;
        let kind = Kind::ALL.iter().find(|(letter, _)| *letter == kind)?.1;
        let hash = Some(letters.as_str()).filter(|hash| hash.len() == 5)?.to_owned();
        let ttr = Duration::from_secs(u64::from_str_radix(ttr, 36).ok().filter(|ttr| (1..=86_400).contains(ttr))?);
        let (made, lost) = (u64::from_str_radix(made, 36).ok()?, u32::from_str_radix(lost, 36).ok()?);
        parts.next().is_none().then_some(Self { id: id.parse().ok()?, kind, band, ttr, made, lost, hash })
    }
}

impl fmt::Display for Unique {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, band, ttr) = (self.kind.letter(), self.band.letter(), base36(self.ttr.as_secs()));
        write!(f, "{}.{kind}{band}{}.{ttr}.{}", self.id, self.hash, base36(self.made))?;
        if self.lost > 0 { write!(f, "~{}", base36(u64::from(self.lost))) } else { Ok(()) }
    }
}

/// Microseconds since 1970, no two the same in one process: jobs sort as they were made.
fn fresh() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let next = |last: u64| Some(now.max(last + 1));
    LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_or(now, |last| now.max(last + 1))
}

/// Whether a job has a unique id that we did not make: others may give the next one the same, or none at all.
pub(crate) fn is_foreign(functions: &Functions, unique: &str) -> bool {
    !Unique::read(unique).is_some_and(|own| functions.owns(&own))
}

/// What tells a job that others made from any other one: its handle is used again when the server has been restarted.
fn mark_of(job: &Job) -> String {
    format!("{}\0{}\0{:x}", job.handle, job.unique, fnv(&job.data))
}

/// What stands for the time at which a job was made that others made: the same whoever asks.
pub(crate) fn made_by_others(job: &Job) -> u64 {
    fnv(mark_of(job).as_bytes()) % 36_u64.pow(10)
}

/// What a job is called to who asks for its task's id: its unique id, or its handle if it has none.
pub(crate) fn native_id(job: &Job) -> &str {
    if matches!(job.unique.as_str(), "" | "-") { &job.handle } else { &job.unique }
}

/// The unique ids that guards of a job may have, whoever submitted the job. They are three, since two movers may each put
/// another guard of the job again at the same moment: the server takes what has the name of a job that is there for that
/// job, and of any two guards one is followed by a third.
pub(crate) fn guards(functions: &Functions, job: &Job) -> [String; 3] {
    match Unique::read(&job.unique) {
        Some(own) if functions.owns(&own) => Kind::GUARDS.map(|kind| own.moved(kind).to_string()),
        _ => {
            let id = TaskId::foreign("gearman", &functions.ready, &mark_of(job));
            Kind::GUARDS.map(|kind| format!("{id}.{}", kind.letter()))
        }
    }
}

fn kind_of(guard: &str) -> Kind {
    let by_end = || Kind::GUARDS.into_iter().find(|kind| guard.ends_with(&format!(".{}", kind.letter())));
    Unique::read(guard).map(|unique| unique.kind).or_else(by_end).unwrap_or(Kind::Guard)
}

fn guard_as(guard: &str, kind: Kind) -> String {
    match Unique::read(guard) {
        Some(unique) => unique.moved(kind).to_string(),
        None => format!("{}.{}", guard.rsplit_once('.').map_or(guard, |(stem, _)| stem), kind.letter()),
    }
}

/// Whether a guard's unique id is the first of those that it may have.
pub(crate) fn is_first(guard: &str) -> bool {
    kind_of(guard) == Kind::Guard
}

/// The unique id of the guard that follows a guard.
pub(crate) fn next_guard(guard: &str) -> String {
    let next = match kind_of(guard) {
        Kind::Guard => Kind::NextGuard,
        Kind::NextGuard => Kind::LastGuard,
        _ => Kind::Guard,
    };
    guard_as(guard, next)
}

/// The number that is noted with the leases of a job, by any of its guards' unique ids. Never 0.
pub(crate) fn number(guard: &str) -> u32 {
    let first = guard_as(guard, Kind::Guard);
    // The server reads numbers of up to 31 bits.
    u32::try_from(fnv(first.as_bytes()) % (u64::from(u32::MAX >> 1) - 1) + 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions(queue: &str) -> Functions {
        Functions::new(&QueueName::new(queue).unwrap())
    }

    #[test]
    fn a_unique_id_says_what_the_server_does_not_and_fits() {
        let (own, id) = (functions("images"), TaskId::new(SystemTime::now()));
        for (ttr, seconds) in [(1000, 1), (1001, 2), (43_200_000, 43_200)] {
            let mut unique = Unique::next(&own, id, Kind::Held, Band::Low, Duration::from_millis(ttr), 36 * 36 - 2);
            unique.made = 36_u64.pow(10) - 1;
            let unique = unique.after_loss().after_loss();
            assert!(unique.to_string().len() <= MAX_UNIQUE, "{unique}");
            let read = Unique::read(&unique.to_string()).unwrap();
            assert_eq!((&read, read.ttr.as_secs(), read.lost), (&unique, seconds, 36 * 36 - 1));
            assert!(own.owns(&read) && !functions("image").owns(&read));
        }
        let sent = || Unique::sent(&own, id, Kind::Ready, Band::High, Duration::from_secs(60));
        assert_eq!(sent().to_string(), sent().to_string());
        assert_ne!(sent().moved(Kind::Delayed).to_string(), sent().to_string());
    }

    #[test]
    fn what_others_call_their_jobs_is_not_read_as_ours() {
        let id = TaskId::new(SystemTime::now());
        for foreign in ["", "-", "a", &id.to_string(), &format!("{id}.x"), &format!("{id}.rnabcde.0.0"), "ü".repeat(32).as_str()]
        {
            assert_eq!(Unique::read(foreign), None, "{foreign}");
        }
        let long = functions(&"x".repeat(QueueName::MAX));
        assert!(long.pause_ids().iter().all(|id| id.len() <= MAX_UNIQUE) && long.mark_id().len() <= MAX_UNIQUE);
        let job = |handle: &str, data| Job {
            handle: handle.into(),
            function: "a".into(),
            unique: "-".into(),
            data: bytes::Bytes::from_static(data),
        };
        let own = Unique::sent(&functions("a"), id, Kind::Ready, Band::Low, Duration::from_secs(60)).to_string();
        let first = &guards(&functions("a"), &job("H:1", b"x"))[0];
        for job in [job("H:1", b"x"), Job { unique: own, ..job("H:1", b"x") }] {
            let [first, second, third] = guards(&functions("a"), &job);
            assert!(first.len() <= MAX_UNIQUE && is_first(&first) && !is_first(&second) && !is_first(&third));
            assert_eq!([&first, &second, &third].map(|guard| next_guard(guard)), [&second, &third, &first].map(String::clone));
            assert!(number(&first) == number(&second) && number(&first) == number(&third) && number(&first) > 0);
        }
        for (queue, other) in [("b", job("H:1", b"x")), ("a", job("H:2", b"x")), ("a", job("H:1", b"y"))] {
            assert_ne!(&guards(&functions(queue), &other)[0], first);
        }
    }
}
