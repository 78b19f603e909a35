//! The command `queue-runner`: reads what was typed, does it, and says how it went.
//!
//! As a library it makes a command of your own, with workers in Rust and adapters that are not part of anyqueue; all flags
//! and subcommands are the same:
//!
//! ```no_run
//! use anyqueue::{Queue, Task};
//! use queue_runner::QueueRunner;
//!
//! fn main() -> std::process::ExitCode {
//!     let mail = Queue::new("mail", ()).worker("welcome", |_, task: Task<String>| async move {
//!         println!("welcome, {}", task.data);
//!     });
//!     QueueRunner::new().queue(mail).main()
//! }
//! ```

mod act;
mod args;
mod brokers;
mod bulk;
mod check;
mod context;
mod failure;
mod list;
mod look;
mod out;
mod screen;
mod send;
mod show;
mod stats;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use anyqueue::core::Driver;
use anyqueue::{Drivers, Queue};
use clap::{CommandFactory, Parser};

use crate::args::{Command, CommandLine};
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::out::Out;
use crate::screen::Screen;

/// The command, with what a program of one's own adds to it.
#[derive(Debug)]
pub struct QueueRunner {
    drivers: Drivers,
    handlers: Vec<Queue>,
}

impl Default for QueueRunner {
    fn default() -> Self {
        Self { drivers: Drivers::enabled(), handlers: Vec::new() }
    }
}

impl QueueRunner {
    /// The stock command.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an adapter; its schemes win over those that are built in.
    #[must_use]
    pub fn driver(mut self, driver: &Driver) -> Self {
        self.drivers = self.drivers.with(driver);
        self
    }

    /// Adds a queue handler with its workers. The queue is known without a table in queue.toml; one may give it settings.
    #[must_use]
    pub fn queue(mut self, handler: impl Into<Queue>) -> Self {
        self.handlers.push(handler.into());
        self
    }

    /// Obeys the command line of this process. The exit code is what `--help` says.
    pub fn main(self) -> ExitCode {
        let line = CommandLine::parse();
        let mut out = Out::new(line.global.json, line.global.quiet);
        let code = run(self, line, &mut out).unwrap_or_else(|failure| {
            out.flush();
            failure.report()
        });
        match out.finish() {
            Ok(()) => code.into(),
            Err(e) => Failure::Error(format!("standard output cannot be written: {e}")).report().into(),
        }
    }
}

fn run(program: QueueRunner, line: CommandLine, out: &mut Out) -> Result<u8> {
    match &line.command {
        Some(_) if line.work.is_asked() => Err(Failure::usage("a subcommand goes without --send, --jsonl, --watch and --list")),
        None if !line.work.is_asked() => {
            eprintln!("{}", CommandLine::command().render_help());
            Ok(failure::USAGE)
        }
        _ if line.global.unchecked && !line.names_what_it_takes() => Err(Failure::usage(
            "--unchecked is for sending and for subcommands that name a queue; watched are queues with workers",
        )),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            let typed = std::env::args_os().next().unwrap_or_default();
            let name = Path::new(&typed).file_name().map_or("queue-runner".into(), |name| name.to_string_lossy());
            clap_complete::generate(*shell, &mut CommandLine::command(), name, &mut script);
            out.raw(&script);
            Ok(failure::OK)
        }
        Some(Command::Brokers { markdown }) => Ok(brokers::show(out, &program.drivers, *markdown)),
        _ => {
            let screen = Screen::start(line.global.verbose, line.global.quiet);
            let settings = context::settings(&line, &program)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let unchecked = line.global.unchecked;
            let mut context = Context { settings, unchecked, screen, out, handlers: program.handlers };
            if unchecked {
                let named = line.command.as_ref().map_or(&[][..], Command::queues);
                named.iter().try_for_each(|name| context.adopt(name))?;
            }
            let code = runtime.block_on(obey(line, &mut context));
            // A thread that still waits for standard input must not keep the command from ending.
            runtime.shutdown_background();
            code
        }
    }
}

async fn obey(line: CommandLine, context: &mut Context<'_>) -> Result<u8> {
    match line.command {
        None if line.work.list => Ok(list::show(context)),
        None => work(line.work, context).await,
        Some(Command::Check) => check::run(context).await,
        Some(Command::Stats { queues, watch }) => stats::run(context, &queues, watch).await,
        Some(Command::Peek { queue, state, limit }) => look::peek(context, &queue, state, limit as usize).await,
        Some(Command::Held { queue, limit }) => look::held(context, &queue, limit as usize).await,
        Some(Command::Info { id, queue }) => look::info(context, id, queue.as_deref()).await,
        Some(Command::Kick { queue, ids, first, all: _ }) => act::kick(context, &queue, ids, first).await,
        Some(Command::Delete { queue, ids }) => act::delete(context, &queue, &ids).await,
        Some(Command::Purge { queue, states, yes }) => act::purge(context, &queue, &states, yes).await,
        Some(Command::Pause { queue, time }) => act::pause(context, &queue, time).await,
        Some(Command::Resume { queue }) => act::resume(context, &queue).await,
        Some(Command::Init { queues }) => act::init(context, &queues).await,
        // Answered without settings.
        Some(Command::Brokers { .. } | Command::Completions { .. }) => Ok(failure::OK),
    }
}

/// Sends, then watches. Nothing is sent if the watch is refused; start hooks run after the sends.
async fn work(work: args::Work, context: &mut Context<'_>) -> Result<u8> {
    let plan = send::plan(&work, context)?;
    let queues = context.connect().await?;
    let watching = match &work.watch {
        Some(names) => Some(watch::prepare(context, &queues, names, &work).await?),
        None => None,
    };
    let mut code = failure::OK;
    if let Some(plan) = plan {
        code = send::run(context, &queues, plan).await?;
    } else if work.jsonl {
        code = bulk::run(context, &queues, &work).await?;
    }
    if let Some(watching) = watching {
        context.out.flush();
        code = code.max(watch::run(context, &queues, watching).await?);
    }
    queues.close().await?;
    Ok(code)
}
