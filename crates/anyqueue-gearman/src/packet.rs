//! Packets to a job server, and its answers.

use bytes::Bytes;
use gearman::protocol::{Packet, PacketType};

use crate::names::Band;

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A background job for now.
pub(crate) fn submit(band: Band, function: &str, unique: &str, data: Bytes) -> Packet {
    let kind = match band {
        Band::High => PacketType::SubmitJobHighBg,
        Band::Normal => PacketType::SubmitJobBg,
        Band::Low => PacketType::SubmitJobLowBg,
    };
    Packet::request(kind, vec![text(function), text(unique), data])
}

/// A background job for a second since 1970. A job server knows it at normal priority only.
pub(crate) fn submit_at(second: u64, function: &str, unique: &str, data: Bytes) -> Packet {
    Packet::request(PacketType::SubmitJobEpoch, vec![text(function), text(unique), text(&second.to_string()), data])
}

pub(crate) fn can_do(function: &str) -> Packet {
    Packet::request(PacketType::CanDo, vec![text(function)])
}

pub(crate) fn cant_do(function: &str) -> Packet {
    Packet::request(PacketType::CantDo, vec![text(function)])
}

pub(crate) fn client_id(id: &str) -> Packet {
    Packet::request(PacketType::SetClientId, vec![text(id)])
}

pub(crate) fn grab() -> Packet {
    Packet::request(PacketType::GrabJobUniq, Vec::new())
}

pub(crate) fn sleep() -> Packet {
    Packet::request(PacketType::PreSleep, Vec::new())
}

pub(crate) fn complete(handle: &str) -> Packet {
    Packet::request(PacketType::WorkComplete, vec![text(handle), Bytes::new()])
}

/// Notes with a running job until when it is leased, and whose lease it is: the server keeps two numbers for progress, and
/// has no other use for them in a background job.
pub(crate) fn lease(handle: &str, until: u32, number: u32) -> Packet {
    Packet::request(PacketType::WorkStatus, vec![text(handle), text(&until.to_string()), text(&number.to_string())])
}

pub(crate) fn status(unique: &str) -> Packet {
    Packet::request(PacketType::GetStatusUnique, vec![text(unique)])
}

/// The same of one job among those of all functions. A handle is good for one run of a server.
pub(crate) fn status_of_handle(handle: &str) -> Packet {
    Packet::request(PacketType::GetStatus, vec![text(handle)])
}

/// What comes before it has been done when it is answered.
pub(crate) fn echo() -> Packet {
    Packet::request(PacketType::EchoReq, vec![Bytes::from_static(b"anyqueue")])
}

/// Whether a packet has an answer of its own.
pub(crate) fn is_answered(packet: &Packet) -> bool {
    use PacketType::*;
    matches!(
        packet.ptype,
        SubmitJobBg | SubmitJobHighBg | SubmitJobLowBg | SubmitJobEpoch | GrabJobUniq | GetStatus | GetStatusUnique | EchoReq
    )
}

/// A job that the server gave us.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) handle: String,
    pub(crate) function: String,
    pub(crate) unique: String,
    pub(crate) data: Bytes,
}

/// What the server knows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) known: bool,
    pub(crate) running: bool,
    /// Until when it is leased, as its worker noted it; 0 if it did not.
    pub(crate) until: u32,
    /// Which lease that is: other workers note their progress there.
    pub(crate) number: u32,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Created(String),
    Assigned(Job),
    NoJob,
    Status(Status),
    Echo,
    Refused { code: String, text: String },
}

/// What arrived.
#[derive(Debug)]
pub(crate) enum Word {
    /// The answer to the first packet that has none yet.
    Reply(Reply),
    /// A job that we ended or renewed was not ours: said of a packet that has no answer.
    NotFound,
    /// Something is there to grab.
    Wake,
    /// News of nothing that we asked for.
    Other,
}

/// Reads what arrived. `None` if it makes no sense.
pub(crate) fn read(packet: Packet) -> Option<Word> {
    let owned = |at: usize| packet.arg(at).map(|arg| String::from_utf8_lossy(arg).into_owned());
    let number = |at: usize| packet.arg_str(at).and_then(|text| text.trim_end_matches('\0').parse::<u32>().ok()).unwrap_or(0);
    let reply = match packet.ptype {
        PacketType::JobCreated => Reply::Created(owned(0)?),
        PacketType::JobAssignUniq => {
            Reply::Assigned(Job { handle: owned(0)?, function: owned(1)?, unique: owned(2)?, data: packet.arg(3)?.clone() })
        }
        PacketType::NoJob => Reply::NoJob,
        PacketType::StatusRes | PacketType::StatusResUnique => {
            let (known, running) = (number(1) == 1, number(2) == 1);
            Reply::Status(Status { known, running, until: number(3), number: number(4) })
        }
        PacketType::EchoRes => Reply::Echo,
        PacketType::Error => {
            let (code, text) = (owned(0)?, owned(1)?);
            if code.contains("JOB_NOT_FOUND") {
                return Some(Word::NotFound);
            }
            Reply::Refused { code, text }
        }
        PacketType::Noop => return Some(Word::Wake),
        PacketType::WorkComplete | PacketType::WorkFail | PacketType::WorkStatus | PacketType::WorkData => {
            return Some(Word::Other);
        }
        _ => return None,
    };
    Some(Word::Reply(reply))
}
