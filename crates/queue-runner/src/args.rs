//! What can be typed.

use std::time::Duration;

use anyqueue::core::{PriorityRange, State, TaskId, priority, time};
use clap::{ArgGroup, Args, Parser, Subcommand};

const EXIT_CODES: &str = "\
Examples:
  queue-runner --send default:test:hello --watch all --drain
  queue-runner --send images:thumbnail --data '{\"file\":\"a.png\"}' --priority high --delay 10m
  generate-tasks | queue-runner --jsonl
  queue-runner --watch images,mail --slots 20

Exit codes:
  0  all went well
  1  an error; its text is on standard error
  2  the command line is wrong
  3  part of it failed: some tasks of a bulk, some ids, or running tasks were cut short and given back
  4  results of some tasks could not be stored: those tasks will come again";

/// Runs, feeds and looks after queues of background tasks, on the broker that queue.toml names.
#[derive(Debug, Parser)]
#[command(name = "queue-runner", version, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(flatten)]
    pub(crate) work: Work,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

impl CommandLine {
    /// Whether it sends or names queues, so that there is something that the settings need not know.
    pub(crate) fn names_what_it_takes(&self) -> bool {
        self.command.as_ref().map_or_else(|| self.work.sends(), |command| !command.queues().is_empty())
    }
}

/// What goes with everything.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The settings file. Default: queue.toml in this folder, if it is there.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Everywhere")]
    pub(crate) config: Option<String>,
    /// Use this broker for all queues: a name in the settings, or a URL.
    #[arg(long, value_name = "NAME|URL", global = true, help_heading = "Everywhere")]
    pub(crate) broker: Option<String>,
    /// Take queues that the settings do not know, and send tasks that they do not know. A queue that is not there is made.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) unchecked: bool,
    /// Print JSON, one object per line.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// Say more on standard error; twice for still more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Everywhere")]
    pub(crate) verbose: u8,
    /// Say only what went wrong.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Everywhere")]
    pub(crate) quiet: bool,
}

/// Sending and working, which go together: first send, then watch.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("sending").args(["send", "jsonl"]).multiple(false))]
pub(crate) struct Work {
    /// List the queues and their workers.
    #[arg(long, conflicts_with_all = ["send", "jsonl", "watch"])]
    pub(crate) list: bool,

    /// Send a task with the data {"message": MESSAGE}; without MESSAGE, --data gives the data.
    #[arg(long, value_name = "QUEUE:TASK[:MESSAGE]", help_heading = "Send")]
    pub(crate) send: Option<String>,
    /// Send tasks from standard input, one JSON object a line: task, and queue, data, store, priority, delay, ttr, id, headers.
    #[arg(long, help_heading = "Send")]
    pub(crate) jsonl: bool,
    /// The data as JSON, `@file`, or `-` for standard input.
    #[arg(
        long,
        value_name = "JSON|@FILE|-",
        requires = "send",
        conflicts_with = "jsonl",
        allow_negative_numbers = true,
        help_heading = "Send"
    )]
    pub(crate) data: Option<String>,
    /// 0 is most urgent; or urgent, high, normal, low, bulk.
    #[arg(long, value_parser = priority_value, requires = "sending", help_heading = "Send")]
    pub(crate) priority: Option<u32>,
    /// How long the task stays invisible: 90 (seconds), 500ms, 10m, 1h 30m.
    #[arg(long, value_parser = duration, value_name = "TIME", requires = "sending", help_heading = "Send")]
    pub(crate) delay: Option<Duration>,
    /// Time to run: how long a reservation lasts.
    #[arg(long, value_parser = duration, value_name = "TIME", requires = "sending", help_heading = "Send")]
    pub(crate) ttr: Option<Duration>,
    /// The tenant or context that the task runs as.
    #[arg(long, requires = "sending", help_heading = "Send")]
    pub(crate) store: Option<String>,
    /// Send the same task so many times.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "send", conflicts_with = "jsonl", help_heading = "Send")]
    pub(crate) count: Option<u64>,

    /// Work tasks: all queues that have a worker here, or the named ones.
    #[arg(long, value_name = "all|A,B", num_args = 0..=1, default_missing_value = "all", help_heading = "Work")]
    pub(crate) watch: Option<String>,
    /// How many tasks run at the same time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65_536), requires = "watch", help_heading = "Work")]
    pub(crate) slots: Option<u64>,
    /// Stop when nothing is ready and nothing runs.
    #[arg(long, requires = "watch", help_heading = "Work")]
    pub(crate) drain: bool,
    /// Stop after so many tasks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "watch", help_heading = "Work")]
    pub(crate) limit: Option<u64>,
    /// Stop after this time.
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "watch", help_heading = "Work")]
    pub(crate) max_time: Option<Duration>,
    /// Stop when the process uses more memory than this: 512MB, 1GiB.
    #[arg(long, value_name = "SIZE", requires = "watch", help_heading = "Work")]
    pub(crate) memory_limit: Option<String>,
    /// Take these priorities only: 10, 20-40, 25-, -20.
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true, requires = "watch", help_heading = "Work")]
    pub(crate) priorities: Option<PriorityRange>,
}

impl Work {
    /// Whether anything is sent.
    pub(crate) fn sends(&self) -> bool {
        self.send.is_some() || self.jsonl
    }

    /// Whether anything of this was typed.
    pub(crate) fn is_asked(&self) -> bool {
        self.list || self.sends() || self.watch.is_some()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the settings with where they come from, and try every broker.
    Check,
    /// Show what each broker of this build can do.
    Brokers {
        /// As Markdown.
        #[arg(long, conflicts_with = "json")]
        markdown: bool,
    },
    /// Show how many tasks are where.
    Stats {
        /// The queues. Default: all.
        queues: Vec<String>,
        /// Again and again, each second or as often as given.
        #[arg(long, value_name = "TIME", value_parser = duration, num_args = 0..=1, require_equals = true, default_missing_value = "1")]
        watch: Option<Duration>,
    },
    /// Show the next tasks of a queue without touching them.
    Peek {
        queue: String,
        /// ready, delayed, reserved or held.
        #[arg(long, default_value = "ready")]
        state: State,
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show held tasks with their reasons, longest held first.
    Held {
        queue: String,
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Make held tasks ready.
    #[command(
        override_usage = "queue-runner kick <QUEUE> <ID>...\n       queue-runner kick <QUEUE> --first <N>\n       queue-runner kick <QUEUE> --all"
    )]
    #[command(group = ArgGroup::new("which").args(["ids", "first", "all"]).required(true))]
    Kick {
        queue: String,
        /// These tasks.
        #[arg(value_name = "ID")]
        ids: Vec<TaskId>,
        /// So many, longest held first.
        #[arg(long, value_name = "N")]
        first: Option<u64>,
        /// All that are held now.
        #[arg(long)]
        all: bool,
    },
    /// Remove tasks that are not reserved.
    Delete {
        queue: String,
        #[arg(value_name = "ID", required = true)]
        ids: Vec<TaskId>,
    },
    /// Remove all tasks of a queue that are not reserved.
    Purge {
        queue: String,
        /// Only tasks in this state; may be given several times.
        #[arg(long = "state", value_name = "STATE")]
        states: Vec<State>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Stop deliveries of a queue to all workers. Sends go on.
    Pause {
        queue: String,
        /// For so long. Default: until it is resumed.
        #[arg(long = "for", value_name = "TIME", value_parser = some_time)]
        time: Option<Duration>,
    },
    /// End a pause.
    Resume { queue: String },
    /// Show the twelve facts of one task.
    Info {
        id: TaskId,
        /// Look in this queue only.
        #[arg(long)]
        queue: Option<String>,
    },
    /// Set up queues on their brokers.
    Init {
        /// The queues. Default: all.
        queues: Vec<String>,
    },
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
}

impl Command {
    /// The queues that it names; none where it is for all.
    pub(crate) fn queues(&self) -> &[String] {
        match self {
            Self::Check | Self::Brokers { .. } | Self::Completions { .. } => &[],
            Self::Stats { queues, .. } | Self::Init { queues } => queues,
            Self::Info { queue, .. } => queue.as_slice(),
            Self::Peek { queue, .. }
            | Self::Held { queue, .. }
            | Self::Kick { queue, .. }
            | Self::Delete { queue, .. }
            | Self::Purge { queue, .. }
            | Self::Pause { queue, .. }
            | Self::Resume { queue } => std::slice::from_ref(queue),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    time::parse(text).map_err(|e| e.to_string())
}

fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("a pause of no time is none; give it some, or leave --for out".into()),
        time => Ok(time),
    }
}

fn priority_value(text: &str) -> Result<u32, String> {
    priority::parse(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn watch_takes_a_value_or_none() {
        let watch = |args: &[&str]| CommandLine::try_parse_from([&["queue-runner"], args].concat()).map(|line| line.work.watch);
        assert_eq!(watch(&["--watch"]).unwrap().as_deref(), Some("all"));
        assert_eq!(watch(&["--watch", "a,b"]).unwrap().as_deref(), Some("a,b"));
        assert_eq!(watch(&["--watch", "--drain"]).unwrap().as_deref(), Some("all"));
        assert!(watch(&["--drain"]).is_err());
        let line = CommandLine::try_parse_from(["queue-runner", "--watch", "--priorities", "-20"]).unwrap();
        assert_eq!(line.work.priorities.unwrap().to_string(), "-20");
    }
}
