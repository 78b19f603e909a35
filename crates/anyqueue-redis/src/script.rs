//! The scripts: what they are made of.

use std::sync::LazyLock;

/// A script that runs on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    One,
    Send,
    Reserve,
    Done,
    Settle,
    Touch,
    Declare,
    Stats,
    Info,
    List,
    Kick,
    Delete,
    Purge,
    Pause,
    Paused,
}

/// For scripts that go on when the server is out of memory, which is how room is made, and whose first write may need room.
const FREES: &str = include_str!("lua/frees.lua");
const KEYS: &str = include_str!("lua/keys.lua");
const CLOCK: &str = include_str!("lua/clock.lua");
const NEVER: &str = include_str!("lua/never.lua");
const BELL: &str = include_str!("lua/bell.lua");
const ANNOUNCE: &str = include_str!("lua/announce.lua");
const EXISTS: &str = include_str!("lua/exists.lua");
const COUNT: &str = include_str!("lua/count.lua");
const PLACE: &str = include_str!("lua/place.lua");
const LEASE: &str = include_str!("lua/lease.lua");
const LARGE: &str = include_str!("lua/large.lua");
const STALE: &str = include_str!("lua/stale.lua");
const PROMOTE: &str = include_str!("lua/promote.lua");

impl Script {
    const ALL: [Self; 15] = [
        Self::One,
        Self::Send,
        Self::Reserve,
        Self::Done,
        Self::Settle,
        Self::Touch,
        Self::Declare,
        Self::Stats,
        Self::Info,
        Self::List,
        Self::Kick,
        Self::Delete,
        Self::Purge,
        Self::Pause,
        Self::Paused,
    ];

    fn parts(self) -> &'static [&'static str] {
        match self {
            Self::One => &[KEYS, CLOCK, BELL, ANNOUNCE, include_str!("lua/one.lua")],
            Self::Send => &[KEYS, CLOCK, BELL, ANNOUNCE, EXISTS, LARGE, include_str!("lua/send.lua")],
            Self::Reserve => &[FREES, KEYS, CLOCK, NEVER, BELL, COUNT, LEASE, PROMOTE, LARGE, include_str!("lua/reserve.lua")],
            Self::Done => &[KEYS, LEASE, PLACE, STALE, include_str!("lua/done.lua")],
            Self::Settle => &[KEYS, CLOCK, NEVER, BELL, COUNT, LEASE, PLACE, STALE, LARGE, include_str!("lua/settle.lua")],
            Self::Touch => &[FREES, KEYS, CLOCK, NEVER, BELL, include_str!("lua/touch.lua")],
            Self::Declare => &[FREES, KEYS, EXISTS, include_str!("lua/declare.lua")],
            Self::Stats => &[KEYS, CLOCK, include_str!("lua/stats.lua")],
            Self::Info => &[KEYS, CLOCK, PLACE, include_str!("lua/info.lua")],
            Self::List => &[FREES, KEYS, CLOCK, COUNT, LEASE, PROMOTE, include_str!("lua/list.lua")],
            Self::Kick => &[KEYS, BELL, COUNT, PLACE, include_str!("lua/kick.lua")],
            Self::Delete => &[FREES, KEYS, CLOCK, COUNT, LEASE, PROMOTE, PLACE, include_str!("lua/delete.lua")],
            Self::Purge => &[FREES, KEYS, CLOCK, COUNT, LEASE, PROMOTE, include_str!("lua/purge.lua")],
            Self::Pause => &[FREES, KEYS, CLOCK, NEVER, include_str!("lua/pause.lua")],
            Self::Paused => &[KEYS, CLOCK, NEVER, include_str!("lua/paused.lua")],
        }
    }

    /// What the server runs, and the name under which it knows it.
    pub(crate) fn text(self) -> &'static Text {
        &TEXTS[self as usize]
    }
}

/// A script's text and the name under which the server knows it.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) code: String,
    pub(crate) sha: String,
}

/// One text for all versions: the nodes of a cluster may be of different ones while it is upgraded.
static TEXTS: LazyLock<[Text; Script::ALL.len()]> = LazyLock::new(|| {
    Script::ALL.map(|script| {
        let code = script.parts().join("\n");
        Text { sha: redis::Script::new(&code).get_hash().to_owned(), code }
    })
});
