//! The rules that every broker follows, as a library of trials.
//!
//! An adapter tests itself with a [`Harness`], which says how to get a store of its own for each trial, and one call:
//!
//! ```no_run
//! // tests/conformance.rs, with `harness = false` in Cargo.toml
//! use anyqueue_core::{BoxError, Driver, async_trait};
//! use anyqueue_testkit::{Harness, Isolation, Stage};
//!
//! # const DRIVER: Driver = Driver {
//! #     name: "file",
//! #     schemes: &["file"],
//! #     summary: "",
//! #     example: "file:",
//! #     options: &[],
//! #     capabilities: anyqueue_core::Capabilities::FULL,
//! #     connect: |_| Box::pin(async { Err(anyqueue_core::Error::unavailable("an example")) }),
//! # };
//! #[derive(Debug)]
//! struct File;
//!
//! #[async_trait]
//! impl Harness for File {
//!     fn driver(&self) -> &'static Driver {
//!         &DRIVER
//!     }
//!     async fn stage(&self, _: Isolation) -> Result<Stage, BoxError> {
//!         let folder = anyqueue_testkit::temp_dir()?;
//!         Ok(Stage::new(format!("file:{}/queue.db", folder.path().display())).keep(folder))
//!     }
//! }
//!
//! fn main() {
//!     anyqueue_testkit::run(File)
//! }
//! ```
//!
//! Trials are named after the rules, `c04_order_within_levels` for one, and `cargo test` counts and filters them. What
//! a broker declares in its [`Capabilities`](anyqueue_core::Capabilities) decides what is tried: a claim must hold, and
//! what is not claimed must answer as the contract says. A trial that cannot apply is *not applicable*: it passes, is
//! printed with the capability it follows from, and is listed again at the end. Nothing is ever ignored. The variable
//! `ANYQUEUE_TRIAL_SCALE` multiplies the sizes of the larger trials: 10 makes the soak one of 100,000 tasks.
//!
//! Two rules are the runner's and have no trial here: a task that kills its workers is held (the second half of C12), and
//! handlers that block every thread lose no lease (C22). The facade's own tests keep them; a trial asks that what an adapter
//! needs to go on is in the runtime that it was connected in.
//!
//! How to write an adapter from the first line to the last is on the page [`building`].
//!
//! Beside the suite there are tools for tests: [`Proxy`] (cuts, black holes, delays), [`Process`] (a real server on a
//! free port that can be killed, paused and restarted), [`Faulty`] (a broker that misbehaves on demand), [`Scripted`] (a
//! broker that delivers what a test feeds and records what is done to it), and two clocks.

#[doc = include_str!("building.md")]
pub mod building {}
mod child;
mod clock;
mod faulty;
mod harness;
mod port;
mod proxy;
mod rig;
mod run;
mod sample;
mod scripted;
mod server;
pub mod servers;
mod trials;

pub use child::Child;
pub use clock::{SystemClock, TestClock};
pub use faulty::{Faults, Faulty};
pub use harness::{Harness, Isolation, Stage, Time, temp_dir};
pub use port::free_port;
pub use proxy::Proxy;
pub use run::{Suite, run};
pub use sample::Sample;
pub use scripted::{Record, Scripted, Verb};
pub use server::{Launch, Process, Ready, Server};
