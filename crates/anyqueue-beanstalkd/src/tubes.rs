//! Which tubes a queue has.
//!
//! The plain tube has the queue's own name, so that other clients meet it. The others have a `;` in theirs, which no
//! queue's name has, so that two queues never share one: `;held` for held tasks, `;queue` for the mark of the queue
//! itself, `;pause` for what was said of pauses, `;p0-512` and the like for bands of priorities.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyqueue_core::{Error, ErrorKind, PriorityRange, QueueName, Result, priority};

use crate::word::Heard;

/// A tube's name: at most 200 bytes of `A-Z a-z 0-9 - + / ; . $ _ ( )`, not starting with `-`.
pub(crate) type Tube = Arc<str>;

/// The tubes of one queue.
#[derive(Debug)]
pub(crate) struct Tubes {
    pub(crate) queue: QueueName,
    /// The last priority of each band, and its tube.
    bands: Vec<(u32, Tube)>,
    /// Nobody watches it but who kicks, so that a task in it is held whatever state the server has for it.
    pub(crate) held: Tube,
    pub(crate) mark: Tube,
    pub(crate) pause: Tube,
    /// What was heard of its pauses.
    heard: Mutex<Heard>,
}

impl Tubes {
    /// The tubes of a queue whose bands end at these priorities; the last one is `u32::MAX`.
    pub(crate) fn new(queue: &QueueName, ends: &[u32]) -> Self {
        // A tube's name must not start with a dash; no queue's name has a dollar in it.
        let escape = if queue.as_str().starts_with('-') { "$" } else { "" };
        let name = |end: &str| Tube::from(format!("{escape}{queue}{end}"));
        let mut first = 0;
        let band = |last: &u32| {
            let plain = (first..=*last).contains(&priority::NORMAL);
            let tube = if plain { name("") } else { name(&format!(";p{first}-{last}")) };
            first = last.saturating_add(1);
            (*last, tube)
        };
        Self {
            queue: queue.clone(),
            bands: ends.iter().map(band).collect(),
            held: name(";held"),
            mark: name(";queue"),
            pause: name(";pause"),
            heard: Mutex::default(),
        }
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last priority of each band but the last.
    pub(crate) fn ends(&self) -> Vec<u32> {
        self.bands.iter().map(|(last, _)| *last).filter(|last| *last < u32::MAX).collect()
    }

    /// Where a task of this priority goes.
    pub(crate) fn of(&self, priority: u32) -> &Tube {
        &self.bands[self.bands.partition_point(|(last, _)| *last < priority)].1
    }

    /// The tubes that workers take tasks from.
    pub(crate) fn open(&self) -> impl Iterator<Item = &Tube> {
        self.bands.iter().map(|(_, tube)| tube)
    }

    /// The tubes among these that are bands of this queue by other settings.
    pub(crate) fn strays<'a>(&self, names: impl Iterator<Item = &'a [u8]>) -> Vec<Tube> {
        let band = format!("{};p", self.held.trim_end_matches(";held"));
        let is_band = |name: &&str| {
            let range = name.strip_prefix(&band).and_then(|range| range.split_once('-'));
            range.is_some_and(|(first, last)| first.parse::<u32>().is_ok() && last.parse::<u32>().is_ok())
        };
        let names = names.filter_map(|name| str::from_utf8(name).ok()).filter(is_band);
        names.filter(|name| self.open().all(|own| **own != **name)).map(Tube::from).collect()
    }

    /// The tubes that tasks are in.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Tube> {
        self.open().chain([&self.held])
    }

    /// The tubes of a range of priorities.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the range cuts through a band.
    pub(crate) fn range(&self, wanted: &RangeInclusive<u32>) -> Result<Vec<Tube>> {
        let (mut first, mut tubes, mut whole) = (0, Vec::new(), true);
        for (last, tube) in &self.bands {
            let (starts, ends) = (wanted.contains(&first), wanted.contains(last));
            whole &= starts == ends && (starts || !(first..=*last).contains(wanted.start()));
            if starts && ends {
                tubes.push(tube.clone());
            }
            first = last.saturating_add(1);
        }
        if whole && !tubes.is_empty() {
            return Ok(tubes);
        }
        let range = PriorityRange(wanted.clone());
        let ends: Vec<String> = self.bands.iter().map(|(last, _)| last.to_string()).collect();
        let text = format!(
            "priorities {range} alone cannot be taken: the bands of queue `{}` end at {}; set `bands` so that one ends where the range does",
            self.queue,
            ends.join(", ")
        );
        Err(Error::new(ErrorKind::Unsupported, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tubes(name: &str, ends: &[u32]) -> Tubes {
        Tubes::new(&QueueName::new(name).unwrap(), ends)
    }

    #[test]
    fn the_plain_tube_has_the_queues_name() {
        let plain = tubes("images", &[u32::MAX]);
        assert_eq!([plain.of(0), plain.of(1024), plain.of(u32::MAX)].map(|tube| &**tube), ["images"; 3]);
        assert_eq!([&*plain.held, &*plain.mark, &*plain.pause], ["images;held", "images;queue", "images;pause"]);
        assert_eq!(&**tubes("-images", &[u32::MAX]).of(0), "$-images");
    }

    #[test]
    fn bands_of_other_settings_are_known_by_their_names() {
        let there = [
            "default",
            "q",
            "q;held",
            "q;queue",
            "q;pause",
            "q;p0-512",
            "q;p0-100",
            "q;p101-x",
            "r;p0-7",
            "$-q;p0-9",
            "q;p0-7;held",
        ];
        let strays = |name, ends: &[u32]| tubes(name, ends).strays(there.iter().map(|name| name.as_bytes()));
        assert_eq!(strays("q", &[512, u32::MAX]), ["q;p0-100".into()]);
        assert_eq!(strays("q", &[u32::MAX]), ["q;p0-512".into(), "q;p0-100".into()]);
        assert_eq!(strays("-q", &[u32::MAX]), ["$-q;p0-9".into()]);
    }

    #[test]
    fn a_band_is_a_tube_and_a_range_is_made_of_bands() {
        let tubes = tubes("q", &[0, 512, 2048, u32::MAX]);
        assert_eq!(
            [0, 1, 512, 513, 1024, 2049].map(|p| &**tubes.of(p)),
            ["q;p0-0", "q;p1-512", "q;p1-512", "q", "q", "q;p2049-4294967295"]
        );
        let named = |range| tubes.range(&range).map(|list| list.iter().map(|tube| tube.to_string()).collect::<Vec<_>>());
        assert_eq!(named(0..=512).unwrap(), ["q;p0-0", "q;p1-512"]);
        assert_eq!(named(513..=u32::MAX).unwrap(), ["q", "q;p2049-4294967295"]);
        assert_eq!(named(0..=u32::MAX).unwrap().len(), 4);
        for cut in [0..=511, 100..=512, 600..=700, 513..=3000] {
            let error = named(cut.clone()).unwrap_err();
            assert!(error.to_string().contains("end at 0, 512, 2048"), "{cut:?}: {error}");
        }
    }
}
