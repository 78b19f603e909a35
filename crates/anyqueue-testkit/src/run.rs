//! Turns harnesses and trials into a test program.

use std::panic::resume_unwind;
use std::process::exit;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyqueue_core::{BoxError, BoxFuture, chain};
use libtest_mimic::{Arguments, Failed};
use tokio::runtime::{Builder, Runtime};

use crate::child;
use crate::harness::{Harness, Isolation, Time};
use crate::rig::Rig;
use crate::trials;

/// How long a trial may take on the machine's clock.
const LIMIT: Duration = Duration::from_secs(150);

/// What a trial that did not fail has to say.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The rule holds.
    Passed,
    /// The rule cannot apply; the text names the capability it follows from.
    NotApplicable(String),
}

/// The result of a trial.
pub(crate) type Outcome = Result<Verdict, BoxError>;

/// The end of a trial that went well.
pub(crate) fn passed() -> Outcome {
    Ok(Verdict::Passed)
}

/// The end of a trial that cannot apply, with the capability it follows from.
pub(crate) fn not_applicable(why: impl Into<String>) -> Outcome {
    Ok(Verdict::NotApplicable(why.into()))
}

/// One trial of the suite.
#[derive(Clone, Copy)]
pub(crate) struct Trial {
    pub(crate) name: &'static str,
    pub(crate) isolation: Isolation,
    pub(crate) run: for<'a> fn(&'a Rig) -> BoxFuture<'a, Outcome>,
}

/// Runs the suite on one harness and ends the process, like a test program does.
pub fn run(harness: impl Harness) -> ! {
    Suite::new().with("", harness).run()
}

/// Several harnesses in one test program: one adapter with different settings, say.
#[derive(Debug, Default)]
pub struct Suite {
    parts: Vec<(String, Arc<dyn Harness>)>,
}

impl Suite {
    /// A suite without harnesses.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a harness; its trials are named `label::c01_…`, or just `c01_…` where the label is empty.
    #[must_use]
    pub fn with(mut self, label: &str, harness: impl Harness) -> Self {
        let prefix = if label.is_empty() { String::new() } else { format!("{label}::") };
        self.parts.push((prefix, Arc::new(harness)));
        self
    }

    /// Runs all trials and ends the process. In a child process of the suite, does that child's work instead.
    pub fn run(self) -> ! {
        if child::requested() {
            let drivers = self.parts.iter().map(|(_, harness)| harness.driver()).collect::<Vec<_>>();
            exit(child::work(&drivers));
        }
        let mut arguments = Arguments::from_args();
        // Most trials wait for time to pass, so more of them run than there are cores.
        arguments.test_threads.get_or_insert(8);
        let notes = Notes::default();
        let trials = self.parts.iter().flat_map(|(prefix, harness)| {
            let one = |trial: &Trial| named(format!("{prefix}{}", trial.name), *trial, harness.clone(), notes.clone());
            trials::all().iter().map(one).collect::<Vec<_>>()
        });
        let conclusion = libtest_mimic::run(&arguments, trials.collect());
        if !arguments.list {
            notes.print();
        }
        conclusion.exit()
    }
}

/// The trials that did not apply.
#[derive(Debug, Clone, Default)]
struct Notes(Arc<Mutex<Vec<(String, String)>>>);

impl Notes {
    fn add(&self, name: String, why: String) {
        println!("not applicable: {name}: {why}");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, why));
    }

    fn print(&self) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.sort();
        println!("{} trials not applicable, 0 ignored", notes.len());
        notes.iter().for_each(|(name, why)| println!("    {name}: {why}"));
    }
}

fn named(name: String, trial: Trial, harness: Arc<dyn Harness>, notes: Notes) -> libtest_mimic::Trial {
    libtest_mimic::Trial::test(name.clone(), move || match watched(trial, harness) {
        Ok(Verdict::Passed) => Ok(()),
        Ok(Verdict::NotApplicable(why)) => {
            notes.add(name, why);
            Ok(())
        }
        Err(e) => Err(Failed::from(chain(e.as_ref()))),
    })
}

/// Runs a trial on a thread of its own, so that one that keeps its thread busy for good is a failure and not a hang.
fn watched(trial: Trial, harness: Arc<dyn Harness>) -> Outcome {
    let (tell, told) = mpsc::channel();
    let thread = thread::Builder::new().name(trial.name.into()).spawn(move || {
        let outcome = attempt(trial, harness.as_ref());
        // Nobody listens any more once the trial has been given up.
        drop(tell.send(outcome));
    })?;
    match told.recv_timeout(LIMIT + Duration::from_secs(20)) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => Err("the trial hangs, and keeps its thread busy".into()),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => resume_unwind(panic),
            Ok(()) => Err("the trial ended without a result".into()),
        },
    }
}

fn attempt(trial: Trial, harness: &dyn Harness) -> Outcome {
    let time = harness.time();
    let runtime = runtime(time)?;
    let limit = match time {
        Time::System => LIMIT,
        Time::Movable => Duration::from_secs(10 * 365 * 86_400),
    };
    let outcome = runtime.block_on(async {
        let stage =
            harness.stage(trial.isolation).await.map_err(|e| format!("the stage could not be set up: {}", chain(e.as_ref())))?;
        let rig = Rig::new(harness, stage);
        match tokio::time::timeout(limit, (trial.run)(&rig)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("the trial hangs: no end within {limit:?}").into()),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

fn runtime(time: Time) -> std::io::Result<Runtime> {
    match time {
        Time::System => Builder::new_multi_thread().worker_threads(2).enable_all().build(),
        Time::Movable => Builder::new_current_thread().enable_all().start_paused(true).build(),
    }
}
