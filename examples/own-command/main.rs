//! A command of your own that is `queue-runner` with your workers in it: every flag and subcommand is the same.
//!
//! `cargo run -p anyqueue-examples --bin own-command -- --send mail:welcome --data '"ann"' --watch mail --drain`

use std::process::ExitCode;

use anyqueue::{Queue, Task};
use queue_runner::QueueRunner;

fn main() -> ExitCode {
    let mail = Queue::new("mail", ()).label("Mail").worker("welcome", |_, task: Task<String>| async move {
        println!("welcome, {}", task.data);
    });
    // An adapter that is not part of anyqueue is one line more: `.driver(&my_adapter::DRIVER)`.
    QueueRunner::new().queue(mail).main()
}
