//! What RabbitMQ can do, as it is set up.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyqueue_core::time::MAX_DELAY;
use anyqueue_core::{
    Batch, Bounds, Capabilities, Counts, Death, Durability, Error, ErrorKind, Exactness, Fencing, Levels, Link, Order, Result,
    Support, priority,
};

use crate::config::{CONSUMER_TIMEOUT, Config, Kind, LIVENESS, MAX_PAYLOAD, Style};

const SECOND: Duration = Duration::from_secs(1);
const LEASES: &str = "the worker's own clock ends a lease; one that is frozen or cut off is ended by its heartbeat";
const DELAYS: &str = "a ladder of queues that keep a task 1, 2, 4, … seconds each; precise to the second, never early; up to three minutes \
                      late after a restart of the server";
const DEFAULT_TTR: Duration = Duration::from_secs(CONSUMER_TIMEOUT.as_secs() - 120);

/// What holds before anything is known of settings and server.
pub(crate) const CAPABILITIES: Capabilities = Capabilities {
    priority: Support::Emulated(
        Levels::Bands(priority::FIVE_BANDS),
        "a queue per band; before a less urgent task begins, the more urgent bands are asked",
    ),
    priority_ranges: Support::Emulated((), "a range takes whole bands; one that ends inside a band is refused"),
    delay: Support::Emulated(Bounds { max: MAX_DELAY, step: SECOND }, DELAYS),
    ttr: Support::Emulated(Bounds { max: DEFAULT_TTR, step: Duration::from_millis(1) }, LEASES),
    touch: Support::Emulated(
        Some(DEFAULT_TTR),
        "the worker's own clock; the server's `consumer_timeout`, less two minutes, is the end",
    ),
    retry: Support::Emulated((), "a copy is confirmed and then the task acknowledged: a crash in between makes a duplicate"),
    release: Support::Emulated((), "a copy is confirmed and then the task acknowledged: it goes behind those that wait"),
    hold: Support::Emulated((), "held tasks are in the queue `<queue>;held`; a crash while one moves there makes a duplicate"),
    delete_held: Support::Emulated((), "the held tasks are taken and given back until it is found"),
    delete_waiting: Support::Needs((), "a task log: RabbitMQ finds no task by its id"),
    peek: Support::Emulated(
        (),
        "tasks are taken and given back, and out of sight for a moment; delayed ones of all queues are; reserved ones are not shown",
    ),
    info: Support::Needs((), "a task log: RabbitMQ finds no task by its id"),
    pause: Support::Emulated((), "a marker in the queue `<queue>;pause`; our workers look at it each second, others do not"),
    deaths: Support::Native(()),
    group: Capabilities::FULL.group,
    unique: Capabilities::FULL.unique,
    order: Order::Fifo,
    durability: Durability::Power,
    durability_caveat: None,
    // A request costs the server nothing by itself, and while one waits for its confirms others are on their way.
    batch: Batch { send: 1024, together: 16, reserve: 1024, settle: 1024 },
    max_payload: Some(MAX_PAYLOAD),
    counts: Counts {
        ready: Exactness::Approximate,
        delayed: Exactness::Unknown,
        reserved: Exactness::Unknown,
        held: Exactness::Approximate,
        oldest: Exactness::Unknown,
    },
    fencing: Fencing::Deadline("a retry or hold whose connection breaks between its copy and its acknowledgement runs twice"),
    link: Link::Network { liveness: LIVENESS },
    death: Death::AtOnce,
    frozen_bound: Duration::from_secs(2 * LIVENESS.as_secs()),
    settle_window: SECOND,
    same_id: Support::Needs((), "a task log: RabbitMQ takes every message as a new one"),
    max_queue_name: None,
};

/// What holds for queues of this style.
pub(crate) fn of(config: &Config, style: &Style) -> Capabilities {
    let classic = style.kind == Kind::Classic;
    let caveat = CAPABILITIES.priority.caveat().unwrap_or_default();
    let step = CAPABILITIES.ttr.limits().step;
    Capabilities {
        priority: match style.levels {
            levels if style.native => Support::Emulated(
                levels,
                "one queue with `x-max-priority`: what a worker has fetched is not overtaken, and what has none is least urgent",
            ),
            Levels::Bands([_]) => Support::Needs(style.levels, "`bands`: as they are set, all priorities are in one"),
            levels => Support::Emulated(levels, caveat),
        },
        priority_ranges: match style.native {
            true => Support::Needs((), "a queue for each band: with `x_max_priority` all are in one"),
            false => CAPABILITIES.priority_ranges,
        },
        ttr: Support::Emulated(Bounds { max: style.max_ttr, step }, LEASES),
        touch: Support::Emulated(Some(style.max_ttr), CAPABILITIES.touch.caveat().unwrap_or_default()),
        delay: Support::Emulated(
            CAPABILITIES.delay.limits(),
            if classic {
                "a ladder of classic queues; a server that dies while a task changes rungs may lose it"
            } else {
                DELAYS
            },
        ),
        deaths: match classic {
            true => Support::Emulated((), "a classic queue does not count; a task that was looked at is taken for unharmed"),
            false => Support::Native(()),
        },
        durability: if classic { Durability::Process } else { Durability::Power },
        durability_caveat: classic.then_some("a server that dies while a delayed task changes rungs may lose it"),
        max_payload: Some(config.max_payload),
        counts: match config.management {
            Some(_) => Counts { reserved: Exactness::Approximate, ..CAPABILITIES.counts },
            None => CAPABILITIES.counts,
        },
        link: Link::Network { liveness: config.liveness },
        frozen_bound: config.liveness * 2,
        ..CAPABILITIES
    }
}

/// Refuses a range that ends inside a band.
pub(crate) fn check_range(style: &Style, range: &RangeInclusive<u32>) -> Result<()> {
    let Levels::Bands(ends) = style.levels else { return Ok(()) };
    if style.native && *range != (0..=u32::MAX) {
        let text = "with `x_max_priority` a worker takes all priorities of a queue; take the option away to choose a range";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let begins = *range.start() == 0 || ends.contains(&(range.start() - 1));
    if begins && ends.contains(range.end()) {
        return Ok(());
    }
    let bands = ends.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let text = format!(
        "priorities {}-{} end inside a band; the bands of this queue end at {bands}: choose a range of whole bands, or set `bands`",
        range.start(),
        range.end()
    );
    Err(Error::new(ErrorKind::Unsupported, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_of_whole_bands() {
        let levels = Levels::Bands(priority::FIVE_BANDS);
        let style = Style { kind: Kind::Quorum, levels, native: false, max_ttr: SECOND, own_timeout: None };
        for fine in [0..=u32::MAX, 0..=512, 513..=2048, 1025..=u32::MAX] {
            assert!(check_range(&style, &fine).is_ok(), "{fine:?}");
        }
        for bad in [0..=511, 512..=1024, 2..=512] {
            let error = check_range(&style, &bad).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("512, 1024"), "{error}");
        }
    }
}
