//! What is asked of a connection in one go, and which tubes it has chosen.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;

use crate::lease::Counted;
use crate::tubes::Tube;
use crate::wire::Command;

/// The tubes that a connection puts to and reserves from.
#[derive(Debug)]
pub(crate) struct Selection {
    used: Tube,
    watched: Vec<Tube>,
}

impl Default for Selection {
    /// What the server starts a connection with.
    fn default() -> Self {
        Self { used: "default".into(), watched: vec!["default".into()] }
    }
}

/// Commands that go out together. Which tubes they need is said first; a connection that has chosen them already is
/// not told again.
#[derive(Debug, Default)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    replies: usize,
    used: Option<(Tube, Tube)>,
    /// The places of the answers to changes of the tube used.
    changes: VecDeque<usize>,
    watched: Option<Vec<Tube>>,
    wait: Duration,
    counted: Vec<Counted>,
}

/// What is to be kept of a request until it is answered.
#[derive(Debug)]
pub(crate) struct Written {
    /// Answers to what chose the tubes.
    pub(crate) choosing: usize,
    /// Answers to the request itself.
    pub(crate) left: usize,
    /// The places of those among them that must say that another tube is used.
    pub(crate) changes: VecDeque<usize>,
    /// How long they may take.
    pub(crate) wait: Duration,
    /// The jobs that stay counted to the connection until then.
    pub(crate) _counted: Vec<Counted>,
}

impl Request {
    /// A single command.
    pub(crate) fn of(command: &Command<'_>) -> Self {
        let mut request = Self::default();
        request.push(command);
        request
    }

    /// Several commands, answered in this order.
    pub(crate) fn all<'a>(commands: impl IntoIterator<Item = Command<'a>>) -> Self {
        let mut request = Self::default();
        for command in commands {
            request.push(&command);
        }
        request
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.replies == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.replies
    }

    /// Adds a command; its place among the answers.
    pub(crate) fn push(&mut self, command: &Command<'_>) -> usize {
        command.encode(&mut self.bytes);
        self.replies += 1;
        self.replies - 1
    }

    /// Adds a command that goes by the tube used: a put, a kick, or a look at the first job. Its place among the answers.
    pub(crate) fn push_to(&mut self, tube: &Tube, command: &Command<'_>) -> usize {
        match &mut self.used {
            None => self.used = Some((tube.clone(), tube.clone())),
            Some((_, last)) if last == tube => {}
            Some((_, last)) => {
                *last = tube.clone();
                let place = self.push(&Command::Use(tube));
                self.changes.push_back(place);
            }
        }
        self.push(command)
    }

    /// Has a job count to the connection until all is answered, even if nobody waits for the answer any more.
    pub(crate) fn keep(&mut self, counted: Counted) {
        self.counted.push(counted);
    }

    /// Sets the tubes that the request's reserves take from.
    pub(crate) fn watching(mut self, tubes: Vec<Tube>) -> Self {
        self.watched = Some(tubes);
        self
    }

    /// Says that the answers may be so long in coming.
    pub(crate) fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Writes it, preceded by what chooses its tubes.
    pub(crate) fn write(self, selection: &mut Selection, out: &mut BytesMut) -> Written {
        let mut choosing = Self::default();
        if let Some((first, last)) = self.used {
            if selection.used != first {
                choosing.push(&Command::Use(&first));
            }
            selection.used = last;
        }
        if let Some(tubes) = self.watched {
            tubes.iter().filter(|tube| !selection.watched.contains(tube)).for_each(|tube| {
                choosing.push(&Command::Watch(tube));
            });
            // Last, since a connection must watch something at all times.
            selection.watched.iter().filter(|tube| !tubes.contains(tube)).for_each(|tube| {
                choosing.push(&Command::Ignore(tube));
            });
            selection.watched = tubes;
        }
        out.extend_from_slice(&choosing.bytes);
        out.extend_from_slice(&self.bytes);
        Written { choosing: choosing.replies, left: self.replies, changes: self.changes, wait: self.wait, _counted: self.counted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(request: Request, selection: &mut Selection) -> (usize, usize, String) {
        let mut out = BytesMut::new();
        let Written { choosing, left, .. } = request.write(selection, &mut out);
        (choosing, left, String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn tubes_are_chosen_once_and_a_change_within_has_an_answer_of_its_own() {
        let (mut selection, a, b) = (Selection::default(), Tube::from("a"), Tube::from("b"));
        let peeks = |tubes: [&Tube; 2]| {
            let mut request = Request::default();
            let places = tubes.map(|tube| request.push_to(tube, &Command::PeekReady));
            (places, request)
        };
        let (places, request) = peeks([&a, &a]);
        assert_eq!((places, written(request, &mut selection)), ([0, 1], (1, 2, "use a\r\npeek-ready\r\npeek-ready\r\n".into())));
        let (places, request) = peeks([&a, &b]);
        assert_eq!((places, written(request, &mut selection)), ([0, 2], (0, 3, "peek-ready\r\nuse b\r\npeek-ready\r\n".into())));
        let (_, request) = peeks([&b, &b]);
        assert_eq!(written(request, &mut selection).0, 0);
    }

    #[test]
    fn a_connection_never_watches_nothing() {
        let (mut selection, a, b) = (Selection::default(), Tube::from("a"), Tube::from("b"));
        let mut reserve = |tubes| written(Request::of(&Command::ReserveWithTimeout(0)).watching(tubes), &mut selection);
        assert_eq!(
            reserve(vec![a.clone(), b.clone()]),
            (3, 1, "watch a\r\nwatch b\r\nignore default\r\nreserve-with-timeout 0\r\n".into())
        );
        assert_eq!(reserve(vec![b.clone()]), (1, 1, "ignore a\r\nreserve-with-timeout 0\r\n".into()));
        assert_eq!(reserve(vec![b]), (0, 1, "reserve-with-timeout 0\r\n".into()));
    }
}
