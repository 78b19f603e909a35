//! A folder of its own with a queue.toml, in which programs run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Process, Ran};
use crate::programs;

/// Nothing in these tests takes longer, on any machine that can build them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);

/// What chooses the broker of all tests.
const BROKER: &str = "ANYQUEUE_TEST_BROKER";

pub(crate) struct Place {
    folder: tempfile::TempDir,
    /// The queue that this place has, under a name that no other place uses.
    pub(crate) queue: String,
    /// Programs here find this broker although there are no settings.
    broker: Option<String>,
    /// Held while a queue is in use that others use too.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Place {
    /// A place whose queue has these keys in queue.toml; `rest` follows, and `QUEUE` in it stands for the queue's name.
    pub(crate) fn with(keys: &str, rest: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let place = Self { queue: format!("q{}-{number}", std::process::id()), ..Self::bare() };
        let url = broker().unwrap_or_else(|| format!("sqlite:{}", place.path("queue.db").display()));
        let text = format!("[brokers.default]\nurl = {url:?}\n[queues.QUEUE]\n{keys}\n{rest}\n");
        place.write("queue.toml", &text.replace("QUEUE", &place.queue));
        place
    }

    /// A place without settings, where the built-in ones hold: SQLite in ./queue.db.
    pub(crate) fn bare() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), queue: "default".into(), broker: None, _turn: None }
    }

    /// A place without settings whose programs use the broker that was chosen for all tests, with these queues of theirs
    /// empty. There is one such place at a time, since all have the same queues.
    pub(crate) fn unset(queues: &[&str]) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let Some(url) = broker() else { return Self::bare() };
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Self { broker: Some(url), _turn: Some(turn), ..Self::bare() };
        for queue in queues {
            let label = format!("ANYQUEUE__QUEUES__{}__LABEL", queue.to_uppercase());
            let mut purge = place.command(&programs::queue_runner(), &["purge", queue, "--yes"]);
            Process::start(purge.env(label, "x")).finish().ends_with(0);
        }
        place
    }

    /// A fact that `check` tells of the broker.
    pub(crate) fn capability(&self, name: &str) -> Value {
        let lines = self.run(&["check", "--json"]).ends_with(0).json();
        lines.iter().find(|line| line["broker"] == "default").unwrap()["capabilities"][name].clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// What is in a file; nothing if it is not there yet.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Writes a program that the shell runs.
    pub(crate) fn script(&self, name: &str, text: &str) {
        self.write(name, &format!("#!/bin/sh\n{text}"));
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A program that is to run here, with nothing of anyqueue in its environment.
    pub(crate) fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ANYQUEUE") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        if let Some(url) = &self.broker {
            command.env("ANYQUEUE__BROKERS__DEFAULT__URL", url);
        }
        command
    }

    /// Starts `queue-runner`.
    pub(crate) fn start(&self, args: &[&str]) -> Process {
        Process::start(&mut self.command(&programs::queue_runner(), args))
    }

    /// Runs `queue-runner` to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.start(args).finish()
    }

    /// Starts the worker process of these tests, which notes what it does in `journal`.
    pub(crate) fn worker(&self) -> Process {
        let mut command = self.command(Path::new(programs::TEST_WORKER), &[]);
        // As many threads on every machine, so that handlers that block keep them all.
        let command = command.env("TOKIO_WORKER_THREADS", "2");
        Process::start(command.env("TEST_JOURNAL", "journal").env("TEST_QUEUE", &self.queue))
    }

    /// Sends one task with data and further flags; its id.
    pub(crate) fn send(&self, task: &str, data: &str, flags: &[&str]) -> String {
        let to = format!("{}:{task}", self.queue);
        let args = [&["--send", &to, "--data", data, "--unchecked", "--json"], flags].concat();
        self.run(&args).ends_with(0).json()[0]["id"].as_str().unwrap().to_owned()
    }

    /// Sends one task per line of JSON.
    pub(crate) fn send_lines(&self, lines: impl Iterator<Item = Value>) {
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        self.write("tasks.jsonl", &text);
        let mut command = self.command(&programs::queue_runner(), &["--jsonl", "--unchecked", "-q"]);
        command.stdin(fs::File::open(self.path("tasks.jsonl")).unwrap());
        Process::start(&mut command).finish().ends_with(0);
    }

    /// Whether nothing is left to be worked, by the counts that the broker tells. Some brokers do not tell all.
    pub(crate) fn seems_settled(&self) -> bool {
        let stats = self.stats();
        stats.ready + stats.delayed + stats.reserved == 0
    }

    /// The figures of the queue; 0 for what RabbitMQ does not tell. All others tell all.
    pub(crate) fn stats(&self) -> Stats {
        let figures = self.run(&["stats", &self.queue, "--json"]).ends_with(0).json().remove(0);
        let silent = std::env::var(BROKER).is_ok_and(|url| url.starts_with("amqp:"));
        let unknown = |name: &str| (silent && ["delayed", "reserved"].contains(&name)).then_some(0);
        let figure = |name: &str| figures[name].as_u64().or_else(|| unknown(name)).unwrap_or_else(|| panic!("{name}: {figures}"));
        Stats { ready: figure("ready"), delayed: figure("delayed"), reserved: figure("reserved"), held: figure("held") }
    }

    /// The held tasks, as `held --json` lists them.
    pub(crate) fn held(&self) -> Vec<Value> {
        self.run(&["held", &self.queue, "--json", "--limit", "10000"]).ends_with(0).json()
    }

    /// The events that worker processes have noted.
    pub(crate) fn journal(&self) -> Vec<Event> {
        let text = self.read("journal");
        // The last line may be on its way.
        text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines().map(Event::read).collect()
    }

    /// Waits until the journal has an event.
    pub(crate) fn wait_for(&self, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
        until(what, || self.journal().into_iter().find(&fits))
    }

    /// The event, if the journal has it before the time is over.
    pub(crate) fn have_within(&self, time: Duration, fits: impl Fn(&Event) -> bool) -> Option<Event> {
        let deadline = Instant::now() + time;
        loop {
            let found = self.journal().into_iter().find(&fits);
            if found.is_some() || Instant::now() > deadline {
                return found;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a file is there and has something in it.
    pub(crate) fn wait_for_file(&self, name: &str) -> String {
        until(name, || Some(self.read(name)).filter(|text| !text.is_empty()))
    }
}

/// How many tasks are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) ready: u64,
    pub(crate) delayed: u64,
    pub(crate) reserved: u64,
    pub(crate) held: u64,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) what: String,
    pub(crate) n: u64,
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) pid: u32,
}

impl Event {
    fn read(line: &str) -> Self {
        let [what, n, id, attempt, pid] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let (n, attempt, pid) = (n.parse().unwrap(), attempt.parse().unwrap(), pid.parse().unwrap());
        Self { what: what.into(), n, id: id.into(), attempt, pid }
    }
}

/// The URL of the broker that all tests go to; without one each has a file of its own.
pub(crate) fn broker() -> Option<String> {
    std::env::var(BROKER).ok().filter(|url| !url.is_empty() && url != "sqlite")
}

/// Kills the broker of all tests, if it may be, and waits until it is there again.
pub(crate) fn kill_the_broker() -> bool {
    let Some(wish) = std::env::var_os("ANYQUEUE_TEST_KILL").map(PathBuf::from) else { return false };
    fs::write(&wish, "").unwrap();
    until("the broker is there again", || (!wish.exists()).then_some(true))
}

/// Looks again and again until something is there.
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// Looks again and again until something is there or the time is over.
pub(crate) fn within<T>(time: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + time;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {time:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
