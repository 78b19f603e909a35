//! A beanstalkd with its binlog on.

use anyqueue_core::BoxError;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::server::{Launch, Process, Server};

/// How often a server is started anew whose port somebody else was quicker to take.
const TRIES: usize = 5;

/// How a private beanstalkd is started: each write is synced, and `options` come last, so that they win.
pub fn launch(options: &[&str]) -> Launch {
    Launch::new("beanstalkd").args(["-l", "127.0.0.1", "-p", "{port}", "-b", "{dir}", "-f", "0"]).args(options.iter().copied())
}

/// Starts a private beanstalkd.
///
/// # Errors
/// If it is not installed or does not start.
pub async fn start(options: &[&str]) -> Result<Process, BoxError> {
    for _ in 0..TRIES {
        let process = Process::start(launch(options)).await;
        // A free port may be taken by another test's server before this one listens on it.
        match process {
            Ok(process) if is_it(&process).await? => return Ok(process),
            Err(e) if !e.to_string().contains("in use") => return Err(e),
            _ => {}
        }
    }
    Err(format!("no port for a beanstalkd in {TRIES} tries").into())
}

/// Whether it is this process that answers on its port.
async fn is_it(process: &Process) -> Result<bool, BoxError> {
    let mut stream = BufReader::new(TcpStream::connect(process.address()).await?);
    stream.write_all(b"stats\r\n").await?;
    let wanted = process.id().map(|id| id.to_string());
    let mut lines = stream.lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(id) = line.strip_prefix("pid: ") {
            return Ok(Some(id.to_owned()) == wanted);
        }
    }
    Ok(false)
}
