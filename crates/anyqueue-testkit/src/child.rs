//! Worker processes: the test program runs itself again, and the child follows a script, line by line.
//!
//! The parent writes a command and reads the answer. What was reserved stays reserved in the child until it is settled,
//! or until the child is killed.

use std::num::NonZeroUsize;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{
    BoxError, Broker, ConnectOptions, ConsumeOptions, Consumer, Delivery, Driver, QueueName, Result, Settlement, Settler,
};
use rustix::process::{Pid, Signal, getppid, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::clock::SystemClock;
use crate::sample::Sample;

const VARIABLE: &str = "ANYQUEUE_TESTKIT_CHILD";

/// A worker process as its parent sees it. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    process: tokio::process::Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts this program again as a worker that connects to a URL. Works in programs that call [`run`](crate::run).
    ///
    /// # Errors
    /// If it cannot be started or cannot connect.
    pub async fn start(driver: &str, url: &str) -> Result<Self, BoxError> {
        let mut process = Command::new(std::env::current_exe()?)
            .env(VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let to = process.stdin.take().ok_or("the child has no input")?;
        let from = BufReader::new(process.stdout.take().ok_or("the child has no output")?).lines();
        let mut child = Self { process, to, from };
        child.ask(&format!("connect {driver} {url}")).await?;
        Ok(child)
    }

    /// Gives a command and waits for the answer, without its `ok`.
    ///
    /// # Errors
    /// The child's own words if it failed, or that it is gone.
    pub async fn ask(&mut self, command: &str) -> Result<String, BoxError> {
        self.tell(command).await?;
        self.answer().await
    }

    /// Gives a command.
    ///
    /// # Errors
    /// If the child is gone.
    pub async fn tell(&mut self, command: &str) -> Result<(), BoxError> {
        self.to.write_all(format!("{command}\n").as_bytes()).await?;
        Ok(self.to.flush().await?)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// The child's own words if it failed, or that it is gone.
    pub async fn answer(&mut self) -> Result<String, BoxError> {
        let line = self.from.next_line().await?.ok_or("the child process is gone")?;
        match line.strip_prefix("ok") {
            Some(answer) => Ok(answer.trim().to_owned()),
            None => Err(format!("the child process failed: {line}").into()),
        }
    }

    /// Reserves up to `max` tasks in the child and keeps them there; how many they are.
    ///
    /// # Errors
    /// What the child met.
    pub async fn reserve(&mut self, queue: &QueueName, max: usize, wait: Duration) -> Result<usize, BoxError> {
        Ok(self.ask(&format!("reserve {queue} {max} {}", wait.as_millis())).await?.parse()?)
    }

    /// Settles as done all that the child holds: how many were accepted, and how many leases were lost.
    ///
    /// # Errors
    /// What the child met.
    pub async fn done(&mut self) -> Result<(usize, usize), BoxError> {
        let answer = self.ask("done").await?;
        let (accepted, lost) = answer.split_once(' ').ok_or("two numbers were expected")?;
        Ok((accepted.parse()?, lost.parse()?))
    }

    /// Sends a signal to the child.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), BoxError> {
        let id = self.process.id().ok_or("the child process has ended")?;
        Ok(kill_process(Pid::from_raw(id as i32).ok_or("no process id")?, signal)?)
    }

    /// Kills it with SIGKILL, waits until it is gone, and returns the answers it had still written.
    ///
    /// # Errors
    /// What the system says.
    pub async fn kill(mut self) -> Result<Vec<String>, BoxError> {
        self.process.kill().await?;
        let mut rest = Vec::new();
        while let Some(line) = self.from.next_line().await? {
            rest.extend(line.strip_prefix("ok ").map(str::to_owned));
        }
        Ok(rest)
    }
}

/// Whether this process was started as a child.
pub(crate) fn requested() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// A child's whole life; the exit code.
pub(crate) fn work(drivers: &[&'static Driver]) -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    match runtime.map(|runtime| runtime.block_on(obey(drivers))) {
        Ok(Ok(())) => 0,
        Ok(Err(e)) => say(&format!("failed {e}"), 1),
        Err(e) => say(&format!("failed {e}"), 1),
    }
}

fn say(line: &str, code: i32) -> i32 {
    // One write per line: a child that is killed leaves whole lines only.
    println!("{line}");
    code
}

struct Worker {
    broker: Arc<dyn Broker>,
    consumers: Vec<(QueueName, Box<dyn Consumer>)>,
    kept: Vec<(Arc<dyn Settler>, Delivery)>,
}

async fn obey(drivers: &[&'static Driver]) -> Result<(), BoxError> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut worker = None;
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split(' ').collect();
        match (&mut worker, words.as_slice()) {
            (None, ["connect", driver, url]) => {
                let driver = drivers.iter().find(|known| known.name == *driver).ok_or("the driver is not known here")?;
                let broker = driver.open(ConnectOptions::new(url, Arc::new(SystemClock))?).await?;
                worker = Some(Worker { broker, consumers: Vec::new(), kept: Vec::new() });
                say("ok", 0);
            }
            (Some(worker), words) => worker.obey(words).await?,
            (None, _) => return Err(format!("`{line}` before `connect`").into()),
        }
    }
    Ok(())
}

impl Worker {
    async fn obey(&mut self, words: &[&str]) -> Result<(), BoxError> {
        match words {
            ["reserve", queue, max, wait] => {
                let wait = Duration::from_millis(wait.parse()?);
                let count = self.reserve(&QueueName::new(queue)?, max.parse()?, wait).await?;
                say(&format!("ok {count}"), 0);
            }
            ["done"] => {
                let (accepted, lost) = self.done().await?;
                say(&format!("ok {accepted} {lost}"), 0);
            }
            ["send", queue, count] => self.send(&QueueName::new(queue)?, count.parse()?).await?,
            ["work", queue] => self.work(&QueueName::new(queue)?).await?,
            ["cpu"] => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
                say(&format!("ok {}", time.tv_sec * 1_000_000 + time.tv_nsec / 1000), 0);
            }
            _ => return Err(format!("no such command: {}", words.join(" ")).into()),
        }
        Ok(())
    }

    async fn consumer(&mut self, queue: &QueueName) -> Result<&mut Box<dyn Consumer>> {
        let at = match self.consumers.iter().position(|(name, _)| name == queue) {
            Some(at) => at,
            None => {
                let consumer = self.broker.consume(queue, ConsumeOptions::default()).await?;
                self.consumers.push((queue.clone(), consumer));
                self.consumers.len() - 1
            }
        };
        Ok(&mut self.consumers[at].1)
    }

    async fn reserve(&mut self, queue: &QueueName, max: NonZeroUsize, wait: Duration) -> Result<usize> {
        let consumer = self.consumer(queue).await?;
        let (deliveries, settler) = (consumer.reserve(max, wait).await?, consumer.settler());
        let count = deliveries.len();
        self.kept.extend(deliveries.into_iter().map(|delivery| (settler.clone(), delivery)));
        Ok(count)
    }

    async fn done(&mut self) -> Result<(usize, usize)> {
        let (mut accepted, mut lost) = (0, 0);
        for (settler, delivery) in self.kept.drain(..) {
            match settler.settle(&[(delivery.receipt, Settlement::Done)]).await.remove(0) {
                Ok(()) => accepted += 1,
                Err(e) if e.is_lease_lost() => lost += 1,
                Err(e) => return Err(e),
            }
        }
        Ok((accepted, lost))
    }

    /// Sends tasks numbered from 0 in batches, and says after each batch up to which number all are accepted.
    async fn send(&mut self, queue: &QueueName, count: usize) -> Result<()> {
        let batch = self.broker.capabilities(queue).batch.send.clamp(1, 16);
        for (part, tasks) in Sample::many(count).chunks(batch).enumerate() {
            self.broker.send(queue, tasks).await.into_iter().collect::<Result<Vec<_>>>()?;
            say(&format!("ok {}", part * batch + tasks.len()), 0);
        }
        Ok(())
    }

    /// Works until it is killed: reserves and settles, and says of each number that it tries to and that the broker took it.
    async fn work(&mut self, queue: &QueueName) -> Result<()> {
        let max = NonZeroUsize::new(4).expect("four is not zero");
        let parent = getppid();
        // Nobody is left to end a child whose parent was killed.
        while getppid() == parent {
            self.reserve(queue, max, Duration::from_secs(1)).await?;
            for (settler, delivery) in self.kept.drain(..) {
                let number = Sample::number(&delivery).unwrap_or(u64::MAX);
                say(&format!("ok try {number}"), 0);
                if settler.settle(&[(delivery.receipt, Settlement::Done)]).await.remove(0).is_ok() {
                    say(&format!("ok {number}"), 0);
                }
            }
        }
        Ok(())
    }
}
