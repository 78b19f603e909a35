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
use anyqueue_core::{ErrorKind, Moment, Paused, Result};
use futures::future::join_all;

use crate::error;
use crate::hub::{Hub, seconds};
use crate::link::Link;
use crate::request::Request;
use crate::tubes::Tubes;
use crate::wire::{Command, Reply, Yaml};

/// A pause without an end, for a server that knows none: ten years.
const ENDLESS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How often a queue's servers are asked whether it is paused, by those who take tasks from it.
const AGAIN: Duration = Duration::from_secs(1);

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
    /// Its tubes are there and give nothing away.
    shut: bool,
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
    /// anew since then.
    pub(crate) async fn hear(&self, queues: &[Arc<Tubes>]) {
        let (now, made) = (self.clock.now(), self.counters.made.load(Ordering::Acquire));
        let due: Vec<&Tubes> = queues.iter().map(|tubes| &**tubes).filter(|tubes| tubes.heard().is_due(now, made)).collect();
        if due.is_empty() {
            return;
        }
        // Without an answer nothing changes, and whoever takes tasks will find out why.
        let Ok(live) = self.live().await else { return };
        let answers = join_all(live.iter().map(|(_, link)| self.ask(link, &due))).await;
        let answered = answers.iter().all(Result::is_ok);
        for (at, tubes) in due.into_iter().enumerate() {
            let said = answers.iter().flatten().filter_map(|of_server| of_server[at].word).max();
            let word = {
                let mut heard = tubes.heard();
                heard.word = if answered && live.len() == self.servers.len() { said } else { heard.word.max(said) };
                heard.at = answered.then_some((now, made));
                heard.word
            };
            for ((_, link), answer) in live.iter().zip(&answers) {
                if let (Some(word), Ok(of_server)) = (word, answer)
                    && let Err(e) = self.keep_up(link, tubes, word, &of_server[at]).await
                {
                    let (queue, error) = (tubes.queue.as_str(), anyqueue_core::chain(&e));
                    tracing::warn!(queue, error, "a pause cannot be kept up");
                }
            }
        }
        let failed = live.iter().zip(answers).filter_map(|((server, _), answer)| Some((server, answer.err()?)));
        failed.for_each(|(server, e)| self.noticed(server, &e));
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
        let is_shut = |place: &usize| match &replies[*place] {
            Reply::Ok(stats) => Yaml::new(stats).number("pause").is_some_and(|pause| pause > 0),
            _ => false,
        };
        let answer =
            |(word, tubes): (usize, Vec<usize>)| Answer { word: Word::of(&replies[word]), shut: tubes.iter().all(is_shut) };
        Ok(places.into_iter().map(answer).collect())
    }

    /// Sees to it that one server does as the last word says.
    async fn keep_up(&self, link: &Arc<Link>, tubes: &Tubes, word: Word, answer: &Answer) -> Result<()> {
        let told = answer.word == Some(word);
        if !told && let Err(e) = self.put_mark(link, &tubes.pause, &word.text()).await {
            // One that is draining does as it is told, though it cannot note it.
            Some(e).filter(|e| e.kind() != ErrorKind::Full).map_or(Ok(()), Err)?;
        }
        match word.paused(self.wall()) {
            Paused::Yes(left) if !told || !answer.shut => self.shut(link, tubes, left.unwrap_or(ENDLESS)).await?,
            Paused::No if !told => self.shut(link, tubes, Duration::ZERO).await?,
            _ => return Ok(()),
        }
        // Somebody may have said something else at the same moment.
        let own = self.ask(link, &[tubes]).await?.first().and_then(|answer| answer.word);
        let now = if self.servers.len() == 1 { own } else { own.max(Some(word)) };
        let open = now.is_none_or(|now| now.paused(self.wall()) == Paused::No);
        if open { self.shut(link, tubes, Duration::ZERO).await } else { Ok(()) }
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

    pub(crate) async fn pause(&self, tubes: &Tubes, time: Option<Duration>) -> Result<()> {
        let until = time.map_or(u64::MAX, |time| self.wall().saturating_add(time.as_millis() as u64).clamp(1, u64::MAX - 1));
        let word = self.next_word(tubes, until).await?;
        let (live, mut refused) = (self.live().await?, Vec::new());
        for (_, link) in &live {
            match self.put_mark(link, &tubes.pause, &word.text()).await {
                Err(e) if e.kind() == ErrorKind::Full => refused.push(e),
                said => said?,
            }
        }
        // A server that is draining notes nothing; one that notes it for all is enough.
        if refused.len() == live.len() {
            return refused.pop().map_or(Ok(()), Err);
        }
        for (_, link) in &live {
            self.shut(link, tubes, time.unwrap_or(ENDLESS)).await?;
        }
        tubes.heard().word = Some(word);
        Ok(())
    }

    pub(crate) async fn resume(&self, tubes: &Tubes) -> Result<()> {
        let word = self.next_word(tubes, 0).await?;
        let several = self.servers.len() > 1;
        for (_, link) in self.live().await? {
            let said = if several { self.put_mark(&link, &tubes.pause, &word.text()).await } else { Ok(()) };
            match said {
                // A draining server takes nothing new; what the others say is later than what it said.
                Err(e) if e.kind() != ErrorKind::Full => return Err(e),
                Ok(()) if several => {}
                _ => self.unmark(&link, &tubes.pause, u64::MAX).await?,
            }
            self.shut(&link, tubes, Duration::ZERO).await?;
        }
        tubes.heard().word = several.then_some(word);
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
