//! The scripts: what they are made of, and the text that a version of the server takes.

use std::sync::LazyLock;

/// A script that runs on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
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

/// Whether a script adds to memory, frees it, or only looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flags {
    /// Refused when the server is out of memory.
    Adds,
    /// Goes on when the server is out of memory: that is how room is made.
    Frees,
    /// Writes nothing.
    Looks,
}

const KEYS: &str = include_str!("lua/keys.lua");
const CLOCK: &str = include_str!("lua/clock.lua");
const NEVER: &str = include_str!("lua/never.lua");
const BELL: &str = include_str!("lua/bell.lua");
const COUNT: &str = include_str!("lua/count.lua");
const PLACE: &str = include_str!("lua/place.lua");
const LEASE: &str = include_str!("lua/lease.lua");
const PROMOTE: &str = include_str!("lua/promote.lua");

impl Script {
    const ALL: [Self; 14] = [
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

    fn parts(self) -> (Flags, &'static [&'static str]) {
        match self {
            Self::Send => (Flags::Adds, &[KEYS, CLOCK, BELL, include_str!("lua/send.lua")]),
            Self::Reserve => (Flags::Frees, &[KEYS, CLOCK, NEVER, BELL, COUNT, LEASE, PROMOTE, include_str!("lua/reserve.lua")]),
            Self::Done => (Flags::Frees, &[KEYS, include_str!("lua/done.lua")]),
            Self::Settle => (Flags::Frees, &[KEYS, CLOCK, NEVER, BELL, COUNT, LEASE, PLACE, include_str!("lua/settle.lua")]),
            Self::Touch => (Flags::Frees, &[KEYS, CLOCK, NEVER, BELL, include_str!("lua/touch.lua")]),
            Self::Declare => (Flags::Adds, &[KEYS, include_str!("lua/declare.lua")]),
            Self::Stats => (Flags::Looks, &[KEYS, CLOCK, include_str!("lua/stats.lua")]),
            Self::Info => (Flags::Looks, &[KEYS, CLOCK, PLACE, include_str!("lua/info.lua")]),
            Self::List => (Flags::Frees, &[KEYS, CLOCK, COUNT, LEASE, PROMOTE, include_str!("lua/list.lua")]),
            Self::Kick => (Flags::Frees, &[KEYS, BELL, COUNT, PLACE, include_str!("lua/kick.lua")]),
            Self::Delete => (Flags::Frees, &[KEYS, CLOCK, COUNT, LEASE, PROMOTE, PLACE, include_str!("lua/delete.lua")]),
            Self::Purge => (Flags::Frees, &[KEYS, CLOCK, COUNT, LEASE, PROMOTE, include_str!("lua/purge.lua")]),
            Self::Pause => (Flags::Frees, &[KEYS, CLOCK, NEVER, include_str!("lua/pause.lua")]),
            Self::Paused => (Flags::Looks, &[KEYS, CLOCK, NEVER, include_str!("lua/paused.lua")]),
        }
    }

    fn compile(self, flagged: bool) -> Text {
        let (flags, parts) = self.parts();
        let head = match flags {
            Flags::Frees if flagged => "#!lua flags=allow-oom\n",
            Flags::Looks if flagged => "#!lua flags=no-writes\n",
            // Before Redis 7 a script may go on without room once it has written, and this writes nothing.
            Flags::Frees => "redis.call('HDEL', KEYS[1], '-')\n",
            _ => "",
        };
        let code = format!("{head}{}", parts.join("\n"));
        Text { sha: redis::Script::new(&code).get_hash().to_owned(), code }
    }
}

/// A script's text and the name under which the server knows it.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) code: String,
    pub(crate) sha: String,
}

/// The scripts as one version of the server takes them.
pub(crate) type Texts = [Text; Script::ALL.len()];

/// With flags, known since Redis 7: a server that is out of memory still lets tasks be worked.
static FLAGGED: LazyLock<Texts> = LazyLock::new(|| Script::ALL.map(|script| script.compile(true)));
static PLAIN: LazyLock<Texts> = LazyLock::new(|| Script::ALL.map(|script| script.compile(false)));

/// The scripts for a server of this version, `7.0.15` say.
pub(crate) fn texts(version: &str) -> &'static Texts {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < 7) { &PLAIN } else { &FLAGGED }
}
