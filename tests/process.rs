//! A program that runs, what it says, and how it ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::place::{PATIENCE, until};

/// A running program. One that is dropped is killed: a test that fails leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    out: Said,
    err: Said,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// What comes out of a stream, as it comes.
#[derive(Debug)]
struct Said {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Said {
    fn read(stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let to = text.clone();
        let reader = thread::spawn(move || {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
                to.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.so_far()
    }
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (out, err) = (Said::read(child.stdout.take().unwrap()), Said::read(child.stderr.take().unwrap()));
        Self { child, out, err }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until standard output has a text; what was there by then.
    pub(crate) fn says(&self, text: &str) -> String {
        until(&format!("{text:?} on standard output"), || Some(self.out.so_far()).filter(|out| out.contains(text)))
    }

    /// Waits until standard error has a text.
    pub(crate) fn complains(&self, text: &str) {
        until(&format!("{text:?} on standard error"), || self.err.so_far().contains(text).then_some(()));
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end. One that hangs is killed and fails the test.
    pub(crate) fn finish(mut self) -> Ran {
        let deadline = std::time::Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if std::time::Instant::now() > deadline {
                panic!("the program hangs; it said {:?} {:?}", self.out.so_far(), self.err.so_far());
            }
            thread::sleep(std::time::Duration::from_millis(5));
        };
        Ran { status, out: self.out.all(), err: self.err.all() }
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn stop(self) -> Ran {
        self.signal(Signal::TERM);
        self.finish()
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) fn kill(self) -> Ran {
        self.signal(Signal::KILL);
        self.finish()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ran {
    /// The lines of standard output as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    #[track_caller]
    pub(crate) fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.out.contains(text), "{text:?} is missing on standard output of {self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn complains(self, text: &str) -> Self {
        assert!(self.err.contains(text), "{text:?} is missing on standard error of {self:#?}");
        self
    }
}
