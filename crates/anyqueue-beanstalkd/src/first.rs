//! What a walk keeps: of all that it meets no more than was asked for.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::walk::Seen;

/// The first so many jobs of those that are offered, in an order of their own.
#[derive(Debug)]
pub(crate) struct First {
    most: usize,
    kept: BTreeMap<(u64, u64), Seen>,
}

impl First {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, kept: BTreeMap::new() }
    }

    pub(crate) fn offer(&mut self, place: (u64, u64), job: Seen) {
        let full = self.kept.len() >= self.most;
        if full && self.kept.last_key_value().is_none_or(|(last, _)| *last <= place) {
            return;
        }
        // A slice would keep all alive that was read with it.
        self.kept.insert(place, Seen { stats: Bytes::copy_from_slice(&job.stats), ..job });
        if self.kept.len() > self.most {
            self.kept.pop_last();
        }
    }

    /// What was kept, in order.
    pub(crate) fn into_jobs(self) -> Vec<Seen> {
        self.kept.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use anyqueue_core::{NativeFacts, State};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_are_kept_and_no_more(places in prop::collection::hash_set((0..9u64, any::<u64>()), 0..200), most in 0..20usize) {
            let (mut first, read) = (First::new(most), Bytes::from(vec![b'x'; 1000]));
            for place in &places {
                let (native, stats) = (NativeFacts::default(), read.slice(..10));
                first.offer(*place, Seen { id: place.1, state: State::Ready, native, stats, in_held: false });
                prop_assert!(first.kept.len() <= most);
                prop_assert!(first.kept.values().all(|job| job.stats.as_ptr() != read.as_ptr()), "nothing else is kept alive");
            }
            let mut wanted: Vec<_> = places.into_iter().collect();
            wanted.sort_unstable();
            wanted.truncate(most);
            let kept: Vec<_> = first.into_jobs().into_iter().map(|job| job.id).collect();
            prop_assert_eq!(kept, wanted.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
        }
    }
}
