//! Real servers for tests: started on a free port in a folder of their own, killed, paused, restarted.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyqueue_core::{BoxError, async_trait};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::port::Port;

/// A broker's server that a trial may do anything to.
#[async_trait]
pub trait Server: fmt::Debug + Send + Sync {
    /// Where it listens; the same for its whole life.
    fn address(&self) -> SocketAddr;

    /// Starts it, with the data it had before, and waits until it takes connections.
    async fn start(&self) -> Result<(), BoxError>;

    /// Kills it with SIGKILL and waits until it is gone.
    async fn kill(&self) -> Result<(), BoxError>;

    /// Asks it to stop with SIGTERM and waits until it is gone.
    async fn stop(&self) -> Result<(), BoxError>;

    /// Freezes it with SIGSTOP: connections stay open and nothing answers.
    fn pause(&self) -> Result<(), BoxError>;

    /// Lets it go on with SIGCONT.
    fn resume(&self) -> Result<(), BoxError>;
}

/// How it is known that a server is ready.
#[derive(Debug, Clone)]
pub enum Ready {
    /// Its port takes connections.
    Connect,
    /// Its output, standard or error, contains this text since the last start.
    Output(String),
}

/// A command to run as a server. `{port}` and `{dir}` in arguments and variables stand for its port and its folder.
#[derive(Debug, Clone)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    ready: Ready,
    patience: Duration,
}

impl Launch {
    /// A command without arguments that is ready when its port takes connections.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            variables: Vec::new(),
            ready: Ready::Connect,
            patience: Duration::from_secs(60),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Says how it is known that the server is ready.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> Self {
        self.ready = ready;
        self
    }

    /// Sets how long a start may take; a minute if not set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// A server process. Dropping it kills it and removes its folder.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    port: Port,
    folder: TempDir,
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Starts the command in a new folder, on a free port.
    ///
    /// # Errors
    /// If it cannot be started, ends at once or is not ready in time; its output is in the text.
    pub async fn start(launch: Launch) -> Result<Self, BoxError> {
        let folder = tempfile::Builder::new().prefix("anyqueue-server-").tempdir()?;
        let process = Self { launch, port: Port::take()?, folder, child: Mutex::default() };
        Server::start(&process).await?;
        Ok(process)
    }

    /// Its folder, which it keeps through restarts.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// What it has written since its last start.
    pub fn output(&self) -> String {
        std::fs::read(self.log()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn spawn(&self) -> io::Result<()> {
        let dir = self.folder.path().display().to_string();
        let fill = |text: &String| text.replace("{port}", &self.port.number.to_string()).replace("{dir}", &dir);
        let log = File::create(self.log())?;
        let child = Command::new(&self.launch.program)
            .args(self.launch.arguments.iter().map(fill))
            .envs(self.launch.variables.iter().map(|(name, value)| (name, fill(value))))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        *self.child() = Some(child);
        Ok(())
    }

    async fn is_ready(&self) -> bool {
        match &self.launch.ready {
            Ready::Connect => TcpStream::connect(self.address()).await.is_ok(),
            Ready::Output(text) => self.output().contains(text),
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), BoxError> {
        let id = self.id().ok_or("the server does not run")?;
        let pid = Pid::from_raw(id as i32).ok_or("the server has no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    async fn gone(&self) -> Result<(), BoxError> {
        let until = Instant::now() + self.launch.patience;
        loop {
            let ended = self.child().as_mut().map_or(Ok(true), |child| child.try_wait().map(|status| status.is_some()))?;
            if ended {
                *self.child() = None;
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("the server did not end within {:?}", self.launch.patience).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[async_trait]
impl Server for Process {
    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port.number).into()
    }

    async fn start(&self) -> Result<(), BoxError> {
        let named = |why: String| format!("`{}` {why}; it wrote: {}", self.launch.program.display(), self.output());
        self.spawn().map_err(|e| named(format!("cannot be started: {e}")))?;
        let until = Instant::now() + self.launch.patience;
        while !self.is_ready().await {
            if let Some(status) = self.child().as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                return Err(named(format!("ended with {status} before it was ready")).into());
            }
            if Instant::now() > until {
                return Err(named(format!("was not ready within {:?}", self.launch.patience)).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn kill(&self) -> Result<(), BoxError> {
        self.signal(Signal::KILL)?;
        self.gone().await
    }

    async fn stop(&self) -> Result<(), BoxError> {
        self.signal(Signal::TERM)?;
        self.gone().await
    }

    fn pause(&self) -> Result<(), BoxError> {
        self.signal(Signal::STOP)
    }

    fn resume(&self) -> Result<(), BoxError> {
        self.signal(Signal::CONT)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            // It may be dead already, and there is nobody left to tell.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts its starts in its folder, says so, and stops politely when asked to.
    const SCRIPT: &str = "trap 'echo bye >> {dir}/log; exit 0' TERM; echo start >> {dir}/log; echo listening on {port}; \
                          while true; do sleep 0.02; echo tick >> {dir}/ticks; done";

    async fn started() -> Process {
        let launch = Launch::new("sh").args(["-c", SCRIPT]).ready(Ready::Output("listening on".into()));
        Process::start(launch).await.unwrap()
    }

    fn log(process: &Process, name: &str) -> String {
        std::fs::read_to_string(process.folder().join(name)).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_killed_server_starts_again_with_its_data_and_port() {
        let process = started().await;
        let (address, id) = (process.address(), process.id());
        process.kill().await.unwrap();
        assert!(process.id().is_none() && Server::pause(&process).is_err());
        Server::start(&process).await.unwrap();
        assert!(process.output().contains(&address.port().to_string()));
        assert_ne!(process.id(), id);
        assert_eq!(log(&process, "log"), "start\nstart\n", "killed without a word, started twice in one folder");
        process.stop().await.unwrap();
        assert!(log(&process, "log").ends_with("bye\n"));
    }

    #[tokio::test]
    async fn a_paused_server_does_nothing_until_it_is_resumed() {
        let process = started().await;
        let ticks = || log(&process, "ticks").len();
        process.pause().unwrap();
        // One tick may be under way in the shell's own child.
        tokio::time::sleep(Duration::from_millis(60)).await;
        let before = ticks();
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(ticks(), before);
        process.resume().unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while ticks() == before {
            assert!(Instant::now() < until, "it does not go on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_says_why_and_a_dropped_one_is_gone() {
        let error = Process::start(Launch::new("sh").args(["-c", "echo no such option >&2; exit 3"])).await.unwrap_err();
        assert!(error.to_string().contains("no such option") && error.to_string().contains('3'), "{error}");
        let error = Process::start(Launch::new("no-such-server-anywhere")).await.unwrap_err();
        assert!(error.to_string().contains("cannot be started"), "{error}");
        let process = started().await;
        let (id, folder) = (process.id().unwrap(), process.folder().to_owned());
        drop(process);
        assert!(!folder.exists() && !Path::new(&format!("/proc/{id}")).exists());
    }
}
