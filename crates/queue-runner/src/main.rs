//! The stock command: the drivers of this build, and workers that are programs.

use std::process::ExitCode;

fn main() -> ExitCode {
    queue_runner::QueueRunner::new().main()
}
