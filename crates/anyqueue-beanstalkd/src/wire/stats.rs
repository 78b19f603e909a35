//! The figures that come as YAML: flat, one `key: value` a line.

use super::reply::number;

/// Figures or a list as the server writes them.
#[derive(Debug, Clone, Copy)]
pub struct Yaml<'a>(&'a [u8]);

impl<'a> Yaml<'a> {
    /// Takes the body of an `OK`.
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn lines(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.0.split(|byte| *byte == b'\n')
    }

    /// Keys and values, as they are written.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.lines().filter_map(|line| {
            let at = memchr::memchr(b':', line)?;
            // A text may stand in quotes, depending on the version.
            let value = line[at + 1..].trim_ascii();
            Some((&line[..at], value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)))
        })
    }

    /// One value.
    pub fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.pairs().find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value)
    }

    /// One value as a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        number(self.get(key)?)
    }

    /// One value as a text.
    pub fn text(&self, key: &str) -> Option<String> {
        Some(String::from_utf8_lossy(self.get(key)?).into_owned())
    }

    /// The items of a list.
    pub fn items(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.lines().filter_map(|line| line.strip_prefix(b"- ")).map(<[u8]>::trim_ascii)
    }
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the protocol")]
pub enum JobState {
    Ready,
    Delayed,
    Reserved,
    Buried,
}

/// The figures of a job. Times are whole seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the protocol")]
pub struct JobStats<'a> {
    pub id: u64,
    pub tube: &'a [u8],
    pub state: JobState,
    pub priority: u32,
    pub age: u64,
    pub delay: u64,
    pub ttr: u64,
    pub time_left: u64,
    pub reserves: u64,
    pub timeouts: u64,
    pub releases: u64,
    pub buries: u64,
    pub kicks: u64,
}

impl<'a> JobStats<'a> {
    /// Reads the body of an `OK`; `None` if something is missing in it.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let mut stats = Self {
            id: 0,
            tube: b"",
            state: JobState::Ready,
            priority: 0,
            age: 0,
            delay: 0,
            ttr: 0,
            time_left: 0,
            reserves: 0,
            timeouts: 0,
            releases: 0,
            buries: 0,
            kicks: 0,
        };
        for (key, value) in Yaml::new(body).pairs() {
            let field = match key {
                b"tube" => {
                    stats.tube = value;
                    continue;
                }
                b"state" => {
                    stats.state = state(value)?;
                    continue;
                }
                b"pri" => {
                    stats.priority = u32::try_from(number(value)?).ok()?;
                    continue;
                }
                b"id" => &mut stats.id,
                b"age" => &mut stats.age,
                b"delay" => &mut stats.delay,
                b"ttr" => &mut stats.ttr,
                b"time-left" => &mut stats.time_left,
                b"reserves" => &mut stats.reserves,
                b"timeouts" => &mut stats.timeouts,
                b"releases" => &mut stats.releases,
                b"buries" => &mut stats.buries,
                b"kicks" => &mut stats.kicks,
                _ => continue,
            };
            *field = number(value)?;
        }
        (!stats.tube.is_empty() && stats.id > 0).then_some(stats)
    }

    /// How often the job was reserved before and neither put back nor buried: what deaths and lost leases leave behind.
    ///
    /// The server counts each give-back that was asked for, and none that a broken connection or a clock forced.
    pub fn lost(&self) -> u64 {
        let others = u64::from(self.state == JobState::Reserved);
        self.reserves.saturating_sub(others.saturating_add(self.releases).saturating_add(self.buries))
    }
}

fn state(word: &[u8]) -> Option<JobState> {
    Some(match word {
        b"ready" => JobState::Ready,
        b"delayed" => JobState::Delayed,
        b"reserved" => JobState::Reserved,
        b"buried" => JobState::Buried,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const JOB: &[u8] = b"---\nid: 17\ntube: a;held\nstate: reserved\npri: 5\nage: 3\ndelay: 1\nttr: 10\ntime-left: 9\n\
                         file: 1\nreserves: 4\ntimeouts: 1\nreleases: 1\nburies: 1\nkicks: 2\n";

    #[test]
    fn a_jobs_figures_are_read() {
        let job = JobStats::read(JOB).unwrap();
        assert_eq!((job.id, job.tube, job.state, job.priority), (17, &b"a;held"[..], JobState::Reserved, 5));
        assert_eq!((job.age, job.delay, job.ttr, job.time_left), (3, 1, 10, 9));
        assert_eq!((job.reserves, job.timeouts, job.releases, job.buries, job.kicks), (4, 1, 1, 1, 2));
        assert_eq!(job.lost(), 1, "one of four reservations is this one, one was released, one buried");
        assert_eq!(JobStats::read(b"---\nid: x\n"), None);
    }

    #[test]
    fn figures_without_measure_are_survived() {
        let most = u64::MAX;
        let text = format!("---\nid: 1\ntube: a\nstate: reserved\nreserves: 9\nreleases: {most}\nburies: {most}\n");
        assert_eq!(JobStats::read(text.as_bytes()).unwrap().lost(), 0);
    }

    #[test]
    fn lists_and_quoted_texts_are_read() {
        let list = Yaml::new(b"---\n- default\n- a;b\n");
        assert_eq!(list.items().collect::<Vec<_>>(), [b"default".as_slice(), b"a;b"]);
        let stats = Yaml::new(b"---\nversion: \"1.12\"\nmax-job-size: 65535\n");
        assert_eq!((stats.text("version").as_deref(), stats.number("max-job-size")), (Some("1.12"), Some(65535)));
        assert_eq!(stats.number("version"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(JobStats::read(&bytes).is_none_or(|job| job.id > 0 && job.lost() <= job.reserves));
            Yaml::new(&bytes).pairs().count();
            Yaml::new(&bytes).items().count();
        }
    }
}
