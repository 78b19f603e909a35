//! What operators say of a queue's pauses, and what a process has heard of it.

use std::time::Duration;

use anyqueue_core::{Moment, Paused};

use crate::wire::Reply;

/// How often a queue's servers are asked whether it is paused, by those who take tasks from it.
const AGAIN: Duration = Duration::from_secs(1);

/// What an operator said of a queue. Times are milliseconds since 1970; of two, the later one is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Word {
    pub(crate) since: u64,
    /// Paused until then: 0 if it is not, the greatest number if until somebody says otherwise.
    pub(crate) until: u64,
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

    pub(crate) fn of(mark: &Reply) -> Option<Self> {
        if let Reply::Found(_, body) = mark { Self::read(body) } else { None }
    }

    pub(crate) fn text(self) -> String {
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
    pub(crate) word: Option<Word>,
    /// When, and how many connections had been made by then: a server that is met anew may have other news.
    pub(crate) at: Option<(Moment, u64)>,
}

impl Heard {
    pub(crate) fn is_due(&self, now: Moment, made: u64) -> bool {
        self.at.is_none_or(|(at, then)| then != made || now.since(at) >= AGAIN)
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
