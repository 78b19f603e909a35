//! `--jsonl`: one task per line of standard input. A bad line is named by its number and the rest goes on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyqueue::core::{Error, ErrorKind, TaskId, chain, priority, time};
use anyqueue::{NewTask, Queues, Sender, Sent};
use futures::future::join_all;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::args::Work;
use crate::context::Context;
use crate::failure::{Failure, Result, of_many};
use crate::send;

/// How many lines are sent together at most.
const BATCH: usize = 1000;

/// How long a queue's lines are tried after others of its broker have waited in vain: an outage is not waited for line by line.
const HASTE: Duration = Duration::from_secs(1);

/// One line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    task: String,
    queue: Option<String>,
    data: Option<Box<RawValue>>,
    store: Option<String>,
    #[serde(default, deserialize_with = "level")]
    priority: Option<u32>,
    delay: Option<Time>,
    ttr: Option<Time>,
    id: Option<TaskId>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Time(#[serde(deserialize_with = "time::deserialize")] Duration);

fn level<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    let text = match &value {
        serde_json::Value::Null => return Ok(None),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    priority::parse(&text).map(Some).map_err(serde::de::Error::custom)
}

/// A line of standard input with its number.
type Numbered = (u64, Vec<u8>);

/// Reads standard input on a thread of its own. Lines that are there already come together; a slow writer's come at once.
fn lines() -> mpsc::Receiver<std::io::Result<Vec<Numbered>>> {
    let (to, from) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = BufReader::with_capacity(1 << 18, std::io::stdin());
        let (mut number, mut batch) = (0, Vec::new());
        loop {
            let mut line = Vec::new();
            let read = match stdin.read_until(b'\n', &mut line) {
                Ok(read) => read,
                Err(e) => return drop(to.blocking_send(Err(e))),
            };
            number += 1;
            if !line.trim_ascii().is_empty() {
                batch.push((number, line));
            }
            let wait = read == 0 || !stdin.buffer().contains(&b'\n');
            if (wait || batch.len() >= BATCH) && !batch.is_empty() && to.blocking_send(Ok(std::mem::take(&mut batch))).is_err() {
                return;
            }
            if read == 0 {
                return;
            }
        }
    });
    from
}

/// The queues that lines name.
struct Targets<'a> {
    queues: &'a Queues,
    work: &'a Work,
    unchecked: bool,
    senders: HashMap<String, Sender>,
    outages: Outages,
}

/// What was waited for in vain: lines that cannot be sent are tried for all the time that there is once, and not line by line.
#[derive(Debug, Default)]
struct Outages {
    /// The brokers that did not answer.
    silent: HashSet<String>,
    /// The queues that took lines, since the outage of their broker began if there is one, and the broker of each.
    taking: HashMap<String, String>,
    /// The queues whose own last lines were waited for in vain, whatever their broker says of others.
    refusing: HashSet<String>,
}

impl Outages {
    fn hurries(&self, queue: &str, broker: &str) -> bool {
        self.refusing.contains(queue) || self.silent.contains(broker) && !self.taking.contains_key(queue)
    }

    /// Notes how a queue's lines fared.
    fn heard(&mut self, queue: &str, broker: &str, answers: &[Result<Sent, Error>]) {
        if answers.iter().any(Result::is_ok) {
            self.refusing.remove(queue);
            self.taking.insert(queue.to_owned(), broker.to_owned());
            return;
        }
        let mut again = answers.iter().filter_map(|answer| answer.as_ref().err()).filter(|e| e.is_retryable()).peekable();
        if again.peek().is_none() {
            return;
        }
        let took = self.taking.remove(queue).is_some();
        self.refusing.insert(queue.to_owned());
        // Each time that a broker stops to answer hurries all its queues; one queue that is full, only itself.
        let silent = again.any(|e| matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout));
        if silent && (took | self.silent.insert(broker.to_owned())) {
            self.taking.retain(|_, of| of != broker);
        }
    }
}

impl Targets<'_> {
    /// Reads a line; says which queue it goes to.
    fn read(&self, line: &[u8]) -> Result<(String, NewTask), Error> {
        let text = std::str::from_utf8(line).map_err(|e| Error::invalid(format!("this is not UTF-8: {e}")))?;
        let line: Line = serde_json::from_str(text).map_err(|e| Error::invalid(unnumbered(&e)))?;
        let settings = self.queues.settings();
        if line.task.trim().is_empty() {
            return Err(Error::invalid("`task` is empty"));
        }
        let queue = match (&line.queue, settings.route(&line.task)) {
            (Some(queue), _) => queue.clone(),
            (None, Some(queue)) => queue.to_string(),
            (None, None) => return Err(Error::invalid(format!("`queue` is missing, and no route takes task `{}`", line.task))),
        };
        if !self.unchecked {
            send::known(settings, &queue, &line.task)?;
        }
        let data = line.data.as_ref().map_or("null", |data| data.get()).to_owned();
        let mut task = send::dressed(NewTask::json(line.task, data), self.work);
        task = line.store.into_iter().fold(task, |task, store| task.store(store));
        task = line.priority.into_iter().fold(task, NewTask::priority);
        task = line.delay.into_iter().fold(task, |task, time| task.delay(time.0));
        task = line.ttr.into_iter().fold(task, |task, time| task.ttr(time.0));
        task = line.id.into_iter().fold(task, NewTask::id);
        Ok((queue, line.headers.into_iter().fold(task, |task, (name, value)| task.header(name, value))))
    }

    async fn sender(&mut self, queue: &str) -> Result<Sender, Error> {
        let sender = match self.senders.get(queue) {
            Some(sender) => sender.clone(),
            None => {
                let sender = self.connect(queue).await?;
                self.senders.insert(queue.to_owned(), sender.clone());
                sender
            }
        };
        let usual = self.queues.settings().brokers.get(sender.broker()).map_or(HASTE, |broker| broker.send_timeout);
        Ok(if self.outages.hurries(queue, sender.broker()) { sender.patience(HASTE.min(usual)) } else { sender })
    }

    async fn connect(&self, queue: &str) -> Result<Sender, Error> {
        match self.queues.queue(queue) {
            Err(_) if self.unchecked => {
                let mut settings = self.queues.settings().clone();
                let unknown = settings.queue_or_default(queue)?;
                settings.queues.insert(unknown.name.clone(), unknown);
                Queues::connect(settings).await?.queue(queue)
            }
            sender => sender,
        }
    }
}

/// Each line is a document of its own, so that serde's "line 1" would mislead.
fn unnumbered(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let text = match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} (column {})", e.column()),
        None => text,
    };
    if e.is_data() { text } else { format!("this is not JSON: {text}") }
}

pub(crate) async fn run(context: &mut Context<'_>, queues: &Queues, work: &Work) -> Result<u8> {
    let mut targets =
        Targets { queues, work, unchecked: context.unchecked, senders: HashMap::new(), outages: Outages::default() };
    let mut lines = lines();
    let bar = context.screen.progress(None);
    let (mut sent, mut failed) = (0, 0);
    while let Some(batch) = lines.recv().await {
        let batch = batch.map_err(|e| Failure::Error(format!("standard input cannot be read: {e}")))?;
        for (number, answer) in send_batch(&mut targets, batch).await {
            match answer {
                Ok(_) => sent += 1,
                Err(_) => failed += 1,
            }
            told(context, number, answer);
        }
        context.out.flush();
        bar.set_message(format!("{sent} sent, {failed} failed"));
    }
    bar.finish_and_clear();
    send::summary(context, sent, failed);
    Ok(of_many(failed, sent + failed))
}

fn told(context: &mut Context<'_>, number: u64, answer: Result<Sent, Error>) {
    match answer {
        Ok(sent) if context.out.is_json() => context.out.object(&json!({ "line": number, "id": sent.id, "via": &*sent.via })),
        Ok(_) => {}
        Err(e) => {
            if context.out.is_json() {
                context.out.object(&json!({ "line": number, "error": chain(&e) }));
            }
            context.complain(&format!("line {number}: {}", chain(&e)));
        }
    }
}

/// Sends lines, each queue's together: one answer per line, in the order of their numbers.
async fn send_batch(targets: &mut Targets<'_>, batch: Vec<Numbered>) -> Vec<(u64, Result<Sent, Error>)> {
    let mut answers = Vec::new();
    let mut by_queue: BTreeMap<String, Vec<(u64, NewTask)>> = BTreeMap::new();
    for (number, line) in batch {
        match targets.read(&line) {
            Ok((queue, task)) => by_queue.entry(queue).or_default().push((number, task)),
            Err(e) => answers.push((number, Err(e))),
        }
    }
    let mut sends = Vec::new();
    for (queue, tasks) in by_queue {
        let (numbers, tasks): (Vec<u64>, Vec<NewTask>) = tasks.into_iter().unzip();
        match targets.sender(&queue).await {
            Ok(sender) => sends.push(async move {
                let sent = sender.send_all(tasks).await;
                (queue, sender.broker().to_owned(), numbers, sent)
            }),
            Err(e) => answers.extend(numbers.into_iter().map(|number| (number, Err(e.duplicate())))),
        }
    }
    // Side by side: those that have to wait do so together.
    let mut all = join_all(sends).await;
    // Those that failed first: what others say of the same minutes is newer than that.
    all.sort_by_key(|(.., sent)| sent.iter().any(Result::is_ok));
    for (queue, broker, numbers, sent) in all {
        targets.outages.heard(&queue, &broker, &sent);
        answers.extend(numbers.into_iter().zip(sent));
    }
    answers.sort_by_key(|(number, _)| *number);
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outage_is_waited_for_once_by_each_and_a_full_queue_hurries_itself() {
        let settings = anyqueue::Settings::builder().text("test", "[brokers.default]\nurl = \"memory:\"\n[queues.q]\n");
        let queues = Queues::connect(settings.environment([]).load().unwrap()).await.unwrap();
        let taken = || async { vec![queues.queue("q").unwrap().send(NewTask::new("w", &1)).await] };
        let failed = |kind| vec![Err(Error::new(kind, "no"))];
        let mut outages = Outages::default();
        let hurries =
            |outages: &Outages| ["a", "b", "c"].map(|queue| outages.hurries(queue, if queue == "c" { "other" } else { "one" }));
        outages.heard("a", "one", &taken().await);
        outages.heard("b", "one", &failed(ErrorKind::Full));
        assert_eq!(hurries(&outages), [false, true, false], "a full queue hurries itself and no other one");
        outages.heard("b", "one", &taken().await);
        assert_eq!(hurries(&outages), [false; 3], "there is room again");
        outages.heard("a", "one", &failed(ErrorKind::Unavailable));
        assert_eq!(hurries(&outages), [true, true, false], "what one has waited for, the other one need not");
        outages.heard("b", "one", &taken().await);
        assert_eq!(hurries(&outages), [true, false, false]);
        outages.heard("a", "one", &taken().await);
        let mixed = [ErrorKind::Full, ErrorKind::Timeout].map(|kind| Err(Error::new(kind, "no")));
        outages.heard("b", "one", &mixed);
        assert_eq!(hurries(&outages), [true, true, false], "a second outage");
        outages.heard("c", "other", &failed(ErrorKind::Unsupported));
        assert!(!outages.hurries("c", "other"), "a line that nobody would take says nothing of the broker");
    }
}
