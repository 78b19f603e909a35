//! The ready tasks of a queue: one line per priority, most urgent first.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

/// Where a task stands in the slab of its queue.
pub(crate) type Slot = usize;

/// Stands in a line where a task was taken out of the middle.
const GONE: Slot = Slot::MAX;

/// One priority. The line is sorted by order; those that come back to an earlier place wait beside it.
#[derive(Debug, Default)]
struct Level {
    line: VecDeque<(u64, Slot)>,
    returned: BTreeMap<u64, Slot>,
    live: usize,
}

impl Level {
    fn put(&mut self, order: u64, slot: Slot) {
        self.live += 1;
        match self.line.back() {
            Some((last, _)) if *last > order => {
                self.returned.insert(order, slot);
            }
            _ => self.line.push_back((order, slot)),
        }
    }

    fn pop(&mut self) -> Option<Slot> {
        while self.line.front().is_some_and(|(_, slot)| *slot == GONE) {
            self.line.pop_front();
        }
        let returned = self.returned.first_key_value().map(|(order, _)| *order);
        let slot = match (self.line.front(), returned) {
            (Some((order, _)), Some(earlier)) if earlier < *order => self.returned.pop_first()?.1,
            (Some(_), _) => self.line.pop_front()?.1,
            (None, _) => self.returned.pop_first()?.1,
        };
        self.live -= 1;
        Some(slot)
    }

    fn remove(&mut self, order: u64) {
        if self.returned.remove(&order).is_none()
            && let Ok(at) = self.line.binary_search_by_key(&order, |(order, _)| *order)
        {
            self.line[at].1 = GONE;
        }
        self.live -= 1;
    }

    fn waiting(&self) -> impl Iterator<Item = (u64, Slot)> {
        self.line.iter().copied().filter(|(_, slot)| *slot != GONE)
    }

    fn first(&self, limit: usize) -> impl Iterator<Item = Slot> {
        let returned = self.returned.iter().map(|(order, slot)| (*order, *slot));
        let mut both: Vec<_> = self.waiting().take(limit).chain(returned.take(limit)).collect();
        both.sort_unstable();
        both.into_iter().map(|(_, slot)| slot)
    }
}

/// All priorities of a queue.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    levels: BTreeMap<u32, Level>,
    live: usize,
}

impl Ready {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Puts a task in line; a smaller order comes first.
    pub(crate) fn put(&mut self, priority: u32, order: u64, slot: Slot) {
        self.levels.entry(priority).or_default().put(order, slot);
        self.live += 1;
    }

    /// Whether there is one of these priorities.
    pub(crate) fn any(&self, priorities: &RangeInclusive<u32>) -> bool {
        !priorities.is_empty() && self.levels.range(priorities.clone()).next().is_some()
    }

    /// Takes up to `max` tasks of these priorities.
    pub(crate) fn take(&mut self, priorities: &RangeInclusive<u32>, max: usize) -> Vec<Slot> {
        let mut taken = Vec::with_capacity(max.min(self.live));
        while taken.len() < max && !priorities.is_empty() {
            let Some((priority, level)) = self.levels.range_mut(priorities.clone()).next() else { break };
            let priority = *priority;
            while taken.len() < max
                && let Some(slot) = level.pop()
            {
                taken.push(slot);
            }
            self.drop_if_empty(priority);
        }
        self.live -= taken.len();
        taken
    }

    /// Takes one task out of the middle.
    pub(crate) fn remove(&mut self, priority: u32, order: u64) {
        if let Some(level) = self.levels.get_mut(&priority) {
            level.remove(order);
            self.live -= 1;
            self.drop_if_empty(priority);
        }
    }

    fn drop_if_empty(&mut self, priority: u32) {
        if self.levels.get(&priority).is_some_and(|level| level.live == 0) {
            self.levels.remove(&priority);
        }
    }

    /// The next ones, in the order in which they will come.
    pub(crate) fn first(&self, limit: usize) -> Vec<Slot> {
        self.levels.values().flat_map(|level| level.first(limit)).take(limit).collect()
    }

    /// Those that can be the oldest: a line is in the order in which its tasks became ready, the returned ones are not.
    pub(crate) fn candidates_for_oldest(&self) -> impl Iterator<Item = Slot> {
        let first = |level: &Level| level.waiting().next().map(|(_, slot)| slot);
        self.levels.values().flat_map(move |level| first(level).into_iter().chain(level.returned.values().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: RangeInclusive<u32> = 0..=u32::MAX;

    #[test]
    fn a_task_that_comes_back_takes_its_old_place() {
        let mut ready = Ready::default();
        for order in 0..5 {
            ready.put(7, order, order as Slot);
        }
        assert_eq!(ready.take(&ALL, 2), [0, 1]);
        ready.put(7, 1, 1);
        ready.put(3, 9, 9);
        assert_eq!(ready.first(3), [9, 1, 2]);
        assert_eq!(ready.take(&ALL, 10), [9, 1, 2, 3, 4]);
        assert_eq!((ready.len(), ready.any(&ALL)), (0, false));
    }

    #[test]
    fn one_taken_out_of_the_middle_is_skipped() {
        let mut ready = Ready::default();
        for order in 0..4 {
            ready.put(7, order, order as Slot);
        }
        ready.remove(7, 0);
        ready.remove(7, 2);
        assert_eq!((ready.len(), ready.first(9)), (2, vec![1, 3]));
        assert_eq!(ready.candidates_for_oldest().collect::<Vec<_>>(), [1]);
        assert_eq!(ready.take(&(0..=6), 9), [] as [Slot; 0]);
        assert_eq!(ready.take(&ALL, 9), [1, 3]);
    }
}
