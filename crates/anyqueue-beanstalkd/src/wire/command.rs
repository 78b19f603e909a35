//! Commands, as they are written.

use std::io::Write;

/// A command. Times are whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the protocol")]
pub enum Command<'a> {
    Put { priority: u32, delay: u32, ttr: u32, body: &'a [u8] },
    Use(&'a str),
    Reserve,
    ReserveWithTimeout(u32),
    ReserveJob(u64),
    Delete(u64),
    Release { id: u64, priority: u32, delay: u32 },
    Bury { id: u64, priority: u32 },
    Touch(u64),
    Watch(&'a str),
    Ignore(&'a str),
    Peek(u64),
    PeekReady,
    PeekDelayed,
    PeekBuried,
    Kick(u32),
    KickJob(u64),
    Stats,
    StatsJob(u64),
    StatsTube(&'a str),
    ListTubes,
    ListTubeUsed,
    ListTubesWatched,
    PauseTube { tube: &'a str, delay: u32 },
    Quit,
}

impl Command<'_> {
    /// Appends the command to what will be sent.
    ///
    /// Tube names are written as they are: they must be valid ones.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let written = match *self {
            Self::Put { priority, delay, ttr, body } => {
                let head = write!(out, "put {priority} {delay} {ttr} {}\r\n", body.len());
                out.extend_from_slice(body);
                head
            }
            Self::Use(tube) => write!(out, "use {tube}"),
            Self::Reserve => out.write_all(b"reserve"),
            // By far the most frequent one.
            Self::ReserveWithTimeout(0) => out.write_all(b"reserve-with-timeout 0"),
            Self::ReserveWithTimeout(seconds) => write!(out, "reserve-with-timeout {seconds}"),
            Self::ReserveJob(id) => write!(out, "reserve-job {id}"),
            Self::Delete(id) => write!(out, "delete {id}"),
            Self::Release { id, priority, delay } => write!(out, "release {id} {priority} {delay}"),
            Self::Bury { id, priority } => write!(out, "bury {id} {priority}"),
            Self::Touch(id) => write!(out, "touch {id}"),
            Self::Watch(tube) => write!(out, "watch {tube}"),
            Self::Ignore(tube) => write!(out, "ignore {tube}"),
            Self::Peek(id) => write!(out, "peek {id}"),
            Self::PeekReady => out.write_all(b"peek-ready"),
            Self::PeekDelayed => out.write_all(b"peek-delayed"),
            Self::PeekBuried => out.write_all(b"peek-buried"),
            Self::Kick(bound) => write!(out, "kick {bound}"),
            Self::KickJob(id) => write!(out, "kick-job {id}"),
            Self::Stats => out.write_all(b"stats"),
            Self::StatsJob(id) => write!(out, "stats-job {id}"),
            Self::StatsTube(tube) => write!(out, "stats-tube {tube}"),
            Self::ListTubes => out.write_all(b"list-tubes"),
            Self::ListTubeUsed => out.write_all(b"list-tube-used"),
            Self::ListTubesWatched => out.write_all(b"list-tubes-watched"),
            Self::PauseTube { tube, delay } => write!(out, "pause-tube {tube} {delay}"),
            Self::Quit => out.write_all(b"quit"),
        };
        written.expect("a vector takes every write");
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_as_the_protocol_has_them() {
        let cases: [(Command<'_>, &str); 25] = [
            (Command::Put { priority: 7, delay: 1, ttr: 60, body: b"a\r\nb" }, "put 7 1 60 4\r\na\r\nb"),
            (Command::Use("q"), "use q"),
            (Command::Reserve, "reserve"),
            (Command::ReserveWithTimeout(3), "reserve-with-timeout 3"),
            (Command::ReserveJob(9), "reserve-job 9"),
            (Command::Delete(u64::MAX), "delete 18446744073709551615"),
            (Command::Release { id: 9, priority: u32::MAX, delay: 5 }, "release 9 4294967295 5"),
            (Command::Bury { id: 9, priority: 1024 }, "bury 9 1024"),
            (Command::Touch(9), "touch 9"),
            (Command::Watch("q"), "watch q"),
            (Command::Ignore("q"), "ignore q"),
            (Command::Peek(9), "peek 9"),
            (Command::PeekReady, "peek-ready"),
            (Command::PeekDelayed, "peek-delayed"),
            (Command::PeekBuried, "peek-buried"),
            (Command::Kick(10), "kick 10"),
            (Command::KickJob(9), "kick-job 9"),
            (Command::Stats, "stats"),
            (Command::StatsJob(9), "stats-job 9"),
            (Command::StatsTube("q"), "stats-tube q"),
            (Command::ListTubes, "list-tubes"),
            (Command::ListTubeUsed, "list-tube-used"),
            (Command::ListTubesWatched, "list-tubes-watched"),
            (Command::PauseTube { tube: "q", delay: 60 }, "pause-tube q 60"),
            (Command::Quit, "quit"),
        ];
        for (command, text) in cases {
            let mut out = Vec::new();
            command.encode(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), format!("{text}\r\n"));
        }
    }
}
