//! Runs a command with a broker that lives as long as the command does:
//!
//! `throwaway redis -- cargo test --test end-to-end`
//!
//! The broker's URL is in `ANYQUEUE_TEST_BROKER`. Brokers: `beanstalkd`, `gearman`, `rabbitmq`, `redis`, `sqs`.
//!
//! `throwaway --mortal redis -- …`: the command may have the broker killed. It makes the file that `ANYQUEUE_TEST_KILL` names;
//! once the broker is there again, with what it had on disk, that file is gone.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyqueue_core::BoxError;
use anyqueue_testkit::Server;
use anyqueue_testkit::servers::{beanstalkd, gearmand, rabbitmq, redis, sqs};

/// A server of this kind as an operator would keep it: flushed now and then. One that is to be killed keeps what it has
/// answered.
async fn start(broker: &str, mortal: bool, memory: &Path) -> Result<Box<dyn Server>, BoxError> {
    let none = [""; 0];
    Ok(match broker {
        "beanstalkd" => Box::new(beanstalkd::start(&["-z", "8388608", "-f", "50"]).await?),
        // Each job is a transaction of its own: many programs at once would wait for the disk, and no test cuts the power.
        "gearman" => {
            let file = format!("--libsqlite3-db={}", memory.join("queue.sqlite").display());
            Box::new(gearmand::start(&["-q", "libsqlite3", &file]).await?)
        }
        "rabbitmq" => Box::new(rabbitmq::start(none).await?),
        "redis" if mortal => Box::new(redis::start(none).await?),
        "redis" => Box::new(redis::start(["--appendfsync", "everysec"]).await?),
        "sqs" if mortal => Box::new(sqs::start(sqs::fauxqs(true)).await?),
        "sqs" => Box::new(sqs::start(sqs::ministack()).await?),
        other => return Err(format!("there is no throwaway `{other}`").into()),
    })
}

async fn run() -> Result<ExitCode, BoxError> {
    let mut arguments = std::env::args().skip(1).peekable();
    let mortal = arguments.next_if(|argument| argument == "--mortal").is_some();
    let broker = arguments.next().ok_or("which broker? throwaway BROKER -- COMMAND …")?;
    let program = arguments.find(|argument| argument != "--").ok_or("no command: throwaway BROKER -- COMMAND …")?;
    let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let server = start(&broker, mortal, memory.path()).await?;
    let (scheme, options) = match broker.as_str() {
        "rabbitmq" => ("amqp", ""),
        "gearman" => ("gearman", "?queue_type=libsqlite3"),
        other => (other, ""),
    };
    let url = format!("{scheme}://{}{options}", server.address());
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env("ANYQUEUE_TEST_BROKER", url).kill_on_drop(true);
    let wish = memory.path().join("kill");
    if mortal {
        command.env("ANYQUEUE_TEST_KILL", &wish);
    }
    let status = tokio::select! {
        status = command.status() => status,
        Err(error) = die_when_told(&*server, &wish) => return Err(error),
    };
    server.kill().await?;
    Ok(if status?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Kills the server whenever the file is there, starts it again, and removes the file.
async fn die_when_told(server: &dyn Server, wish: &Path) -> Result<(), BoxError> {
    loop {
        if wish.exists() {
            server.kill().await?;
            server.start().await?;
            std::fs::remove_file(wish)?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    run().await.unwrap_or_else(|error| {
        eprintln!("throwaway: {error}");
        ExitCode::FAILURE
    })
}
