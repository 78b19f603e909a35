//! Priorities: u32, 0 is most urgent.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::driver::quoted;
use crate::error::{Error, Result};
use crate::names;

/// The named levels, most urgent first.
pub const LEVELS: [(&str, u32); 5] = [("urgent", URGENT), ("high", HIGH), ("normal", NORMAL), ("low", LOW), ("bulk", BULK)];
/// The most urgent priority.
pub const URGENT: u32 = 0;
/// More urgent than normal.
pub const HIGH: u32 = 512;
/// The default.
pub const NORMAL: u32 = 1024;
/// Less urgent than normal.
pub const LOW: u32 = 2048;
/// Work that may wait for everything else.
pub const BULK: u32 = 4096;

/// Five bands: 0, ≤ 512, ≤ 1024, ≤ 2048, the rest. Each number is the last of its band.
pub const FIVE_BANDS: &[u32] = &[0, 512, 1024, 2048, u32::MAX];
/// Three bands: ≤ 512, ≤ 1024, the rest.
pub const THREE_BANDS: &[u32] = &[512, 1024, u32::MAX];
/// One band for all.
pub const ONE_BAND: &[u32] = &[u32::MAX];
/// The ranges that the first system documented for Gearman: 0–340 high, 341–682 normal, 683 and above low.
pub const GEARMAN_BANDS: &[u32] = &[340, 682, u32::MAX];

/// How finely a broker tells priorities apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Levels {
    /// Each of the 2³² numbers is a level.
    Every,
    /// The numbers fall into bands; each entry is the last number of its band, the last one is `u32::MAX`.
    Bands(&'static [u32]),
}

impl Levels {
    /// The level that a number becomes: 0 is the most urgent one.
    pub fn of(&self, priority: u32) -> u32 {
        match self {
            Self::Every => priority,
            Self::Bands(last) => last.partition_point(|end| *end < priority) as u32,
        }
    }

    /// The band whose queue has the plain name: the one that holds 1024.
    pub fn plain(&self) -> u32 {
        self.of(NORMAL)
    }
}

/// Reads a priority: a number or the name of a level.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid), with the known levels.
pub fn parse(text: &str) -> Result<u32> {
    let text = text.trim();
    if let Some((_, value)) = LEVELS.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    text.parse().map_err(|_| {
        let levels = names::suggest(text, LEVELS.map(|(name, _)| name));
        Error::invalid(format!(
            "priority {} is neither a number from 0 (most urgent) to {} nor a level; {levels}",
            quoted(text),
            u32::MAX
        ))
    })
}

/// Which priorities a worker takes: `10`, `20-40`, `25-` or `-20`, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityRange(pub RangeInclusive<u32>);

impl PriorityRange {
    /// All priorities.
    pub const ALL: Self = Self(0..=u32::MAX);

    /// Whether every priority is taken.
    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }
}

impl Default for PriorityRange {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromStr for PriorityRange {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let end = |part: &str, open: u32| if part.trim().is_empty() { Ok(open) } else { parse(part) };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (end(first, 0)?, end(last, u32::MAX)?),
            None => (parse(text)?, parse(text)?),
        };
        if text.trim() == "-" || first > last {
            return Err(Error::invalid(format!("priority range `{text}` is empty; write `10`, `20-40`, `25-` or `-20`")));
        }
        Ok(Self(first..=last))
    }
}

impl fmt::Display for PriorityRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self.0.start(), *self.0.end()) {
            (0, u32::MAX) => f.write_str("all"),
            (first, last) if first == last => write!(f, "{first}"),
            (0, last) => write!(f, "-{last}"),
            (first, u32::MAX) => write!(f, "{first}-"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_have_their_documented_edges() {
        let five = Levels::Bands(FIVE_BANDS);
        assert_eq!([0, 1, 512, 513, 1024, 1025, 2048, 2049, u32::MAX].map(|p| five.of(p)), [0, 1, 1, 2, 2, 3, 3, 4, 4]);
        assert_eq!(five.plain(), 2);
        let gearman = Levels::Bands(GEARMAN_BANDS);
        assert_eq!([0, 340, 341, 682, 683, 1024, 1025].map(|p| gearman.of(p)), [0, 0, 1, 1, 2, 2, 2]);
        assert_eq!(Levels::Every.of(77), 77);
        // The suite's three levels are distinct in every mapping.
        for bands in [FIVE_BANDS, THREE_BANDS, GEARMAN_BANDS] {
            let levels = Levels::Bands(bands);
            assert!(levels.of(100) < levels.of(600) && levels.of(600) < levels.of(2000), "{bands:?}");
        }
    }

    #[test]
    fn ranges_read_as_they_are_written() {
        for (text, range) in
            [("10", 10..=10), ("20-40", 20..=40), ("25-", 25..=u32::MAX), ("-20", 0..=20), ("high-low", 512..=2048)]
        {
            assert_eq!(text.parse::<PriorityRange>().unwrap(), PriorityRange(range));
        }
        for bad in ["", "-", "40-20", "a-b", "4294967296", "1-2-3"] {
            assert!(bad.parse::<PriorityRange>().is_err(), "{bad:?} should be refused");
        }
    }
}
