//! The deliveries of a channel that the server waits for a word on.

use std::collections::BTreeSet;

/// The server numbers what it sends on a channel: 1, 2, 3, … Several consumers share the channel, and what one of them got may
/// be known here before an earlier delivery to another one is.
#[derive(Debug, Default)]
pub(crate) struct Open {
    tags: BTreeSet<u64>,
    /// All deliveries up to this one have been taken in.
    complete: u64,
    /// Those that were taken in before one with a smaller number.
    ahead: BTreeSet<u64>,
}

impl Open {
    pub(crate) fn add(&mut self, tag: u64) {
        self.tags.insert(tag);
        self.ahead.insert(tag);
        while self.ahead.first() == Some(&(self.complete + 1)) {
            self.complete += 1;
            self.ahead.pop_first();
        }
    }

    pub(crate) fn remove(&mut self, tag: u64) {
        self.tags.remove(&tag);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// The fewest words that end these deliveries: everything open up to a tag can be said at once, the rest one by one. One
    /// that nobody here knows yet is not ended with others: it would be gone, and no worker had it.
    pub(crate) fn words(&mut self, tags: &[u64]) -> Vec<(u64, bool)> {
        let mut sorted = tags.to_vec();
        sorted.sort_unstable();
        let known = |tag: &u64| *tag <= self.complete;
        let together = self.tags.iter().zip(&sorted).take_while(|(open, tag)| open == tag && known(tag)).count();
        for tag in &sorted {
            self.tags.remove(tag);
        }
        let range = together.checked_sub(1).map(|last| (sorted[last], together > 1));
        range.into_iter().chain(sorted[together..].iter().map(|tag| (*tag, false))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(tags: impl IntoIterator<Item = u64>) -> Open {
        let mut open = Open::default();
        tags.into_iter().for_each(|tag| open.add(tag));
        open
    }

    #[test]
    fn what_is_open_up_to_a_tag_is_settled_in_one_word() {
        let mut open = open(1..=12);
        assert_eq!(open.words(&[1, 3]), [(1, false), (3, false)]);
        assert_eq!(open.words(&[5, 4, 2, 12]), [(5, true), (12, false)]);
        open.remove(6);
        assert_eq!(open.words(&[11, 10, 9, 8, 7]), [(11, true)]);
        assert!(open.is_empty());
    }

    #[test]
    fn what_is_not_known_here_yet_is_not_settled_with_what_came_later() {
        let mut open = open([1, 2, 4, 5]);
        assert_eq!(open.words(&[1, 2, 4]), [(2, true), (4, false)], "3 was sent to another consumer of the channel");
        open.add(3);
        assert_eq!(open.words(&[3, 5]), [(5, true)]);
    }
}
