//! Pausing.
//!
//! The server's own pause keeps a queue's tasks from all its clients; but a restarted server has forgotten it, and so has one
//! whose tube was empty and watched by nobody. So what an operator said last is also kept in a job of the tube
//! `<queue>;pause`, on each server, with its time. Of several servers' words the latest holds; one that was down when it was
//! said is told once it is back. Workers of ours hear it before they take tasks from a connection, and at each look.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyqueue_core::time::unix_millis;
use anyqueue_core::{Error, ErrorKind, Moment, Paused, Result};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;

use crate::error;
use crate::hub::{Hub, seconds};
use crate::link::Link;
use crate::mark::Live;
use crate::request::Request;
use crate::server::Server;
use crate::tubes::Tubes;
use crate::wire::{Command, Reply, Yaml};

/// A pause without an end, for a server that knows none: ten years. Whoever finds a tube paused for just so long, and no word
/// that says so, knows that one of ours was cut off while it paused or resumed.
const ENDLESS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How often a queue's servers are asked whether it is paused, by those who take tasks from it.
const AGAIN: Duration = Duration::from_secs(1);

/// How long whoever is about to take tasks from one server waits for the words of the others.
const GRACE: Duration = Duration::from_millis(200);

/// How often a tube is set right again while others say something else at the same moment.
const TRIES: usize = 8;

/// What an operator said of a queue. Times are milliseconds since 1970; of two, the later one is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Word {
    since: u64,
    /// Paused until then: 0 if it is not, the greatest number if until somebody says otherwise.
    until: u64,
}

impl Word {
    fn read(body: &[u8]) -> Option<Self> {
        let mut words = str::from_utf8(body).ok()?.split(' ');
        let (what, "since", since) = (words.next()?, words.next()?, words.next()?.parse().ok()?) else { return None };
        let until = match (what, words.next(), words.next()) {
            ("open", None, None) => 0,
            ("paused", None, None) => u64::MAX,
            ("paused", Some("until"), Some(until)) => until.parse().ok()?,
            _ => return None,
        };
        Some(Self { since, until })
    }

    fn of(mark: &Reply) -> Option<Self> {
        if let Reply::Found(_, body) = mark { Self::read(body) } else { None }
    }

    fn text(self) -> String {
        match self.until {
            0 => format!("open since {}", self.since),
            u64::MAX => format!("paused since {}", self.since),
            until => format!("paused since {} until {until}", self.since),
        }
    }

    pub(crate) fn paused(self, now: u64) -> Paused {
        match self.until {
            u64::MAX => Paused::Yes(None),
            until if until > now => Paused::Yes(Some(Duration::from_millis(until - now))),
            _ => Paused::No,
        }
    }
}

/// What a process has heard of a queue.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    word: Option<Word>,
    /// When, and how many connections had been made by then: a server that is met anew may have other news.
    at: Option<(Moment, u64)>,
}

impl Heard {
    fn is_due(&self, now: Moment, made: u64) -> bool {
        self.at.is_none_or(|(at, then)| then != made || now.since(at) >= AGAIN)
    }
}

/// What one server says of a queue.
#[derive(Debug)]
struct Answer {
    word: Option<Word>,
    /// For how many seconds each of its tubes has been paused, if it is there.
    pauses: Vec<Option<u64>>,
}

impl Answer {
    /// Its tubes are there and give nothing away.
    fn is_shut(&self) -> bool {
        self.pauses.iter().all(|pause| pause.is_some_and(|pause| pause > 0))
    }

    fn gives_away(&self) -> bool {
        self.pauses.contains(&Some(0))
    }

    /// One of its tubes has been paused for just so long.
    fn is_shut_for(&self, time: Duration) -> bool {
        !time.is_zero() && self.pauses.contains(&Some(seconds(time).into()))
    }
}

/// What one server answered, and the connection that it was asked on.
#[derive(Debug)]
struct Told {
    server: Arc<Server>,
    answer: Result<(Arc<Link>, Vec<Answer>)>,
}

impl Hub {
    fn wall(&self) -> u64 {
        unix_millis(self.clock.wall())
    }

    /// Whether a queue is paused, as far as this process has heard.
    pub(crate) fn is_paused(&self, tubes: &Tubes) -> bool {
        tubes.heard().word.is_some_and(|word| word.paused(self.wall()) != Paused::No)
    }

    /// Takes note of what one server says. Whether the queue is paused.
    pub(crate) fn note(&self, tubes: &Tubes, mark: &Reply) -> bool {
        let word = Word::of(mark);
        let mut heard = tubes.heard();
        // One of several may have been down when the last word was said.
        heard.word = if self.servers.len() == 1 { word } else { heard.word.max(word) };
        drop(heard);
        self.is_paused(tubes)
    }

    /// Asks all servers which of these queues are paused, but for those of which they were asked a moment ago and none was met
    /// anew since then. It waits for one server's answer; the others, if they take longer, are heard when they speak.
    pub(crate) async fn hear(self: &Arc<Self>, queues: &[Arc<Tubes>], first: &Arc<Server>) {
        let (now, made) = (self.clock.now(), self.counters.made.load(Ordering::Acquire));
        let due: Arc<[Arc<Tubes>]> = queues.iter().filter(|tubes| tubes.heard().is_due(now, made)).cloned().collect();
        if due.is_empty() {
            return;
        }
        let ask = |server: &Arc<Server>| {
            let (hub, server, due) = (self.clone(), server.clone(), due.clone());
            self.runtime.spawn(async move {
                let answer = hub.ask_server(&server, &due).await;
                Told { server, answer }
            })
        };
        let mut asked: FuturesUnordered<_> = self.servers.iter().map(ask).collect();
        let (mut told, mut late) = (Vec::new(), false);
        let mut grace = std::pin::pin!(tokio::time::sleep(GRACE));
        while !late || !told.iter().any(|told: &Told| Arc::ptr_eq(&told.server, first)) {
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(answer) => told.extend(answer),
                    None => break,
                },
                () = &mut grace, if !late => late = true,
            }
        }
        self.heed(&due, &told).await;
        due.iter().for_each(|tubes| tubes.heard().at = Some((now, made)));
        if !asked.is_empty() {
            let hub = self.clone();
            self.runtime.spawn(async move {
                while let Some(answer) = asked.next().await {
                    hub.heed(&due, &Vec::from_iter(answer)).await;
                }
            });
        }
    }

    async fn ask_server(&self, server: &Arc<Server>, queues: &[Arc<Tubes>]) -> Result<(Arc<Link>, Vec<Answer>)> {
        let link = server.asking().await?;
        let queues: Vec<&Tubes> = queues.iter().map(|tubes| &**tubes).collect();
        let answers = self.ask(&link, &queues).await.inspect_err(|e| self.noticed(server, e))?;
        Ok((link, answers))
    }

    /// Takes note of what servers answered, and sees to it that they do as the last word says.
    async fn heed(&self, queues: &[Arc<Tubes>], told: &[Told]) {
        // Without an answer nothing changes, and whoever takes tasks will find out why.
        let answered: Vec<_> = told.iter().filter_map(|told| told.answer.as_ref().ok()).collect();
        if answered.is_empty() {
            return;
        }
        for (at, tubes) in queues.iter().enumerate() {
            let said = answered.iter().filter_map(|(_, answers)| answers[at].word).max();
            let word = {
                let mut heard = tubes.heard();
                heard.word = if answered.len() == self.servers.len() { said } else { heard.word.max(said) };
                heard.word
            };
            for (link, answers) in &answered {
                if let Err(e) = self.keep_up(link, tubes, word, &answers[at]).await {
                    let (queue, error) = (tubes.queue.as_str(), anyqueue_core::chain(&e));
                    tracing::warn!(queue, error, "a pause cannot be kept up");
                }
            }
        }
    }

    /// What one server says of these queues.
    async fn ask(&self, link: &Link, queues: &[&Tubes]) -> Result<Vec<Answer>> {
        let mut request = Request::default();
        let mut push = |tubes: &&Tubes| {
            let word = request.push_to(&tubes.pause, &Command::PeekReady);
            (word, tubes.open().map(|tube| request.push(&Command::StatsTube(tube))).collect())
        };
        let places: Vec<(usize, Vec<usize>)> = queues.iter().map(&mut push).collect();
        let replies = self.call(link, request).await?;
        let pause = |place: &usize| match &replies[*place] {
            Reply::Ok(stats) => Yaml::new(stats).number("pause"),
            _ => None,
        };
        let answer = |(word, tubes): (usize, Vec<usize>)| Answer {
            word: Word::of(&replies[word]),
            pauses: tubes.iter().map(pause).collect(),
        };
        Ok(places.into_iter().map(answer).collect())
    }

    /// Sees to it that one server does as the last word says.
    async fn keep_up(&self, link: &Link, tubes: &Tubes, word: Option<Word>, answer: &Answer) -> Result<()> {
        let mut set = Duration::ZERO;
        match (word, self.time_of(word)) {
            (Some(word), time) if answer.word != Some(word) => {
                if time.is_none() {
                    // First, so that a server that has noted that it is open has been opened.
                    self.shut(link, tubes, Duration::ZERO).await?;
                }
                // One that is draining does as it is told, though it cannot note it.
                unless_full(self.put_mark(link, &tubes.pause, &word.text()).await)?;
                set = time.unwrap_or_default();
                self.shut(link, tubes, set).await?;
            }
            (_, Some(time)) if !answer.is_shut() => {
                set = time;
                self.shut(link, tubes, set).await?;
            }
            (_, None) if answer.is_shut_for(ENDLESS) => {}
            _ => return Ok(()),
        }
        self.set_right(link, tubes, word, set).await
    }

    /// For how long a word has a server stop deliveries; `None` if not at all.
    fn time_of(&self, word: Option<Word>) -> Option<Duration> {
        match word?.paused(self.wall()) {
            Paused::Yes(left) => Some(left.unwrap_or(ENDLESS)),
            _ => None,
        }
    }

    /// Somebody may have said something else at the same moment: whoever has changed anything looks again, until tubes and word
    /// agree. `set` is the pause that was set by who calls; other clients' pauses are theirs.
    async fn set_right(&self, link: &Link, tubes: &Tubes, said: Option<Word>, mut set: Duration) -> Result<()> {
        for _ in 0..TRIES {
            let Some(answer) = self.ask(link, &[tubes]).await?.pop() else { return Ok(()) };
            let word = if self.servers.len() == 1 { answer.word } else { answer.word.max(said) };
            set = match self.time_of(word) {
                Some(time) if answer.gives_away() => time,
                None if answer.is_shut_for(ENDLESS) || answer.is_shut_for(set) => Duration::ZERO,
                _ => return Ok(()),
            };
            self.shut(link, tubes, set).await?;
        }
        Ok(())
    }

    /// Has the server stop deliveries for so long; not at all means that it goes on at once.
    async fn shut(&self, link: &Link, tubes: &Tubes, time: Duration) -> Result<()> {
        let mut request = Request::default();
        for tube in tubes.open() {
            // A tube that nobody uses is not there, and cannot be paused.
            request.push_to(tube, &Command::PauseTube { tube, delay: seconds(time) });
        }
        let refused = self.call(link, request).await?.into_iter().find(|reply| !matches!(reply, Reply::Paused | Reply::Using(_)));
        refused.map_or(Ok(()), |reply| Err(error::unexpected(&reply, "pause-tube")))
    }

    /// The last word of all servers that answer.
    async fn last_word(&self, tubes: &Tubes) -> Result<Option<Word>> {
        let live = self.live().await?;
        let answers = join_all(live.iter().map(async |(_, link)| self.ask(link, &[tubes]).await)).await;
        let word = |of_server: Vec<Answer>| of_server.first().and_then(|answer| answer.word);
        answers.into_iter().try_fold(None, |last: Option<Word>, answer| Ok(last.max(word(answer?))))
    }

    /// Pauses a queue. What is begun is carried to its end, also when nobody waits for it any more.
    pub(crate) async fn pause(self: &Arc<Self>, tubes: &Arc<Tubes>, time: Option<Duration>) -> Result<()> {
        let (hub, tubes) = (self.clone(), tubes.clone());
        self.to_its_end(async move { hub.say_paused(&tubes, time).await }).await
    }

    /// Lets a queue go on. What is begun is carried to its end, also when nobody waits for it any more.
    pub(crate) async fn resume(self: &Arc<Self>, tubes: &Arc<Tubes>) -> Result<()> {
        let (hub, tubes) = (self.clone(), tubes.clone());
        self.to_its_end(async move { hub.say_open(&tubes).await }).await
    }

    async fn say_paused(self: &Arc<Self>, tubes: &Arc<Tubes>, time: Option<Duration>) -> Result<()> {
        let until = time.map_or(u64::MAX, |time| self.wall().saturating_add(time.as_millis() as u64).clamp(1, u64::MAX - 1));
        let word = self.next_word(tubes, until).await?;
        let (live, mut refused) = (self.live().await?, Vec::new());
        for (at, (_, link)) in live.iter().enumerate() {
            match self.put_mark(link, &tubes.pause, &word.text()).await {
                Err(e) if e.kind() == ErrorKind::Full => refused.push(e),
                Err(e) if refused.len() == at => return Err(e),
                said => said.map_err(Error::effect_unknown)?,
            }
        }
        // A server that is draining notes nothing; one that notes it for all is enough.
        if refused.len() == live.len() {
            return refused.pop().map_or(Ok(()), Err);
        }
        tubes.heard().word = Some(word);
        let time = time.unwrap_or(ENDLESS);
        for (_, link) in &live {
            self.shut(link, tubes, time).await.map_err(Error::effect_unknown)?;
        }
        self.check(tubes, &live, word, time).await
    }

    async fn say_open(self: &Arc<Self>, tubes: &Arc<Tubes>) -> Result<()> {
        let word = self.next_word(tubes, 0).await?;
        let (live, several) = (self.live().await?, self.servers.len() > 1);
        for (_, link) in &live {
            self.open(link, tubes, several.then_some(word)).await.map_err(Error::effect_unknown)?;
        }
        tubes.heard().word = several.then_some(word);
        self.check(tubes, &live, word, Duration::ZERO).await
    }

    /// Has one server go on. It does before it notes it, so that whoever is cut off leaves no word that is not true; and
    /// afterwards, since a worker may have kept up the pause meanwhile.
    async fn open(&self, link: &Link, tubes: &Tubes, word: Option<Word>) -> Result<()> {
        self.shut(link, tubes, Duration::ZERO).await?;
        let noted = match word {
            Some(word) => unless_full(self.put_mark(link, &tubes.pause, &word.text()).await)?,
            None => false,
        };
        if !noted {
            // A draining server takes nothing new; what the others say is later than what it said.
            self.unmark(link, &tubes.pause, u64::MAX).await?;
        }
        self.shut(link, tubes, Duration::ZERO).await
    }

    /// Looks whether what was said still holds everywhere: another operator may have spoken at the same moment.
    async fn check(self: &Arc<Self>, tubes: &Arc<Tubes>, live: &[Live<'_>], word: Word, set: Duration) -> Result<()> {
        for (_, link) in live {
            self.set_right(link, tubes, Some(word), set).await.map_err(Error::effect_unknown)?;
        }
        tubes.heard().at = None;
        if let Some((server, _)) = live.first().filter(|_| self.servers.len() > 1) {
            self.hear(std::slice::from_ref(tubes), server).await;
        }
        Ok(())
    }

    /// A word that holds against all that were said, also where the clocks of operators differ.
    async fn next_word(&self, tubes: &Tubes, until: u64) -> Result<Word> {
        let last = self.last_word(tubes).await?.map_or(0, |word| word.since);
        Ok(Word { since: self.wall().max(last.saturating_add(1)), until })
    }

    pub(crate) async fn paused(&self, tubes: &Tubes) -> Result<Paused> {
        Ok(self.last_word(tubes).await?.map_or(Paused::No, |word| word.paused(self.wall())))
    }
}

/// Whether something was noted. That a server takes nothing new is no failure here.
fn unless_full(noted: Result<()>) -> Result<bool> {
    match noted {
        Err(e) if e.kind() == ErrorKind::Full => Ok(false),
        noted => noted.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_written_and_the_later_one_holds() {
        let words = [Word { since: 7, until: u64::MAX }, Word { since: 8, until: 0 }, Word { since: 9, until: 900 }];
        let texts = ["paused since 7", "open since 8", "paused since 9 until 900"];
        assert_eq!(words.map(Word::text), texts);
        assert_eq!(texts.map(|text| Word::read(text.as_bytes())), words.map(Some));
        assert!(words.is_sorted());
        assert_eq!(
            words.map(|word| word.paused(800)),
            [Paused::Yes(None), Paused::No, Paused::Yes(Some(Duration::from_millis(100)))]
        );
        assert_eq!(words[2].paused(900), Paused::No, "its time is over");
        for noise in ["", "paused", "paused since", "open since x", "paused since 1 until", "declared"] {
            assert_eq!(Word::read(noise.as_bytes()), None, "{noise}");
        }
    }
}
