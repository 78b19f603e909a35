//! Standard error: log lines and a progress bar that do not tear each other apart.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Standard error as people see it.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    bars: MultiProgress,
    shows: bool,
}

/// A client that logs as an error what it also returns as one, and what is none: a question for a queue that is not there yet.
const QUIET: &str = "lapin=off";

impl Screen {
    /// Starts logging. Progress shows on a terminal only.
    pub(crate) fn start(verbose: u8, quiet: bool) -> Self {
        let shows = io::stderr().is_terminal() && !quiet;
        let target = if shows { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let screen = Self { bars: MultiProgress::with_draw_target(target), shows };
        let level = match (quiet, verbose) {
            (true, _) => "warn",
            (_, 0) => "info",
            (_, 1) => "debug",
            _ => "trace",
        };
        // What was typed wins over what the environment says.
        let typed = quiet || verbose > 0;
        let filter = EnvFilter::try_from_env("RUST_LOG").ok().filter(|_| !typed);
        let filter = filter.unwrap_or_else(|| EnvFilter::new(format!("warn,{QUIET},{}", ours(level))));
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(verbose > 0);
        log.with_ansi(io::stderr().is_terminal()).with_writer(screen.clone()).init();
        screen
    }

    /// Writes to standard error without tearing a bar apart.
    pub(crate) fn above<T>(&self, write: impl FnOnce() -> T) -> T {
        if self.shows { self.bars.suspend(write) } else { write() }
    }

    /// A bar that counts to a number, or a spinner where it is not known.
    pub(crate) fn progress(&self, of: Option<u64>) -> ProgressBar {
        if !self.shows {
            return ProgressBar::hidden();
        }
        let (bar, style) = match of {
            Some(length) => (ProgressBar::new(length), "{wide_bar} {human_pos}/{human_len} {rate}/s {msg}"),
            None => (ProgressBar::new_spinner(), "{spinner} {elapsed} {msg}"),
        };
        let bar = self.bars.add(bar.with_style(ProgressStyle::with_template(style).expect("a constant").with_key("rate", rate)));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// Whole tasks per second; what the library writes has four decimals.
fn rate(state: &ProgressState, to: &mut dyn std::fmt::Write) {
    let _ = write!(to, "{}", HumanCount(state.per_sec() as u64));
}

fn ours(level: &str) -> String {
    ["anyqueue", "queue_runner"].map(|name| format!("{name}={level}")).join(",")
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { screen: self, text: Vec::new() }
    }
}

/// One log line, written at once when it is whole.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    screen: &'a Screen,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // Where nobody reads standard error there is nobody to tell.
        let _ = self.screen.above(|| io::stderr().write_all(&self.text));
    }
}
