//! The trials, by rule.

mod hold;
mod order;
mod reserve;
mod send;
mod settle;
mod time;

use crate::harness::Isolation;
use crate::run::Trial;

macro_rules! trials {
    ($($isolation:ident $room:ident::$name:ident),* $(,)?) => {
        &[$(Trial { name: stringify!($name), isolation: Isolation::$isolation, run: |rig| Box::pin($room::$name(rig)) }),*]
    };
}

/// All trials, in the order of the rules.
pub(crate) fn all() -> &'static [Trial] {
    trials![
        Shared send::c01_a_repeated_id_is_one_task,
        Shared send::c02_a_bad_item_is_alone,
        Shared send::c02_a_closed_broker_says_so,
        Shared reserve::c03_a_send_ends_a_long_wait,
        Shared reserve::c03_an_empty_wait_is_empty,
        Shared reserve::c03_an_empty_wait_costs_nothing,
        Shared reserve::c03_never_more_than_asked_for,
        Shared order::c04_order_of_a_thousand,
        Shared order::c04_order_within_a_level,
        Shared order::c04_every_number_or_its_band,
        Shared order::c04_priority_ranges,
        Shared time::c05_a_delay_is_never_early,
        Shared time::c05_ten_thousand_delays,
        Shared time::c06_a_lease_ends_after_its_ttr,
        Shared time::c06_each_task_has_its_own_ttr,
        Shared time::c07_touch_starts_the_ttr_anew,
        Shared settle::c08_stale_receipts_are_refused,
        Shared settle::c08_a_settled_receipt_is_stale,
        Shared settle::c08_a_bad_settle_is_alone,
        Shared reserve::c09_settle_while_reserve_waits,
        Shared reserve::c09_dropped_reserves_lose_nothing,
        Shared reserve::c09_a_dropped_consumer_gives_back,
        Shared settle::c10_retry_keeps_the_task,
        Shared settle::c10_retry_goes_behind_and_waits,
        Shared settle::c10_release_counts_nothing,
        Shared hold::c11_hold_list_kick_delete,
        Shared hold::c11_kick_by_number_and_all,
        Shared hold::c11_a_kick_resets_the_counts,
    ]
}
