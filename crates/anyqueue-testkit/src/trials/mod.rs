//! The trials, by rule.

mod admin;
mod bounds;
mod data;
mod faults;
mod hold;
mod order;
mod queues;
mod reserve;
mod restart;
mod runtimes;
mod send;
mod settle;
mod stress;
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
        Own restart::c01_accepted_tasks_survive,
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
        Own restart::c05_a_delay_survives_restart,
        Shared time::c06_a_lease_ends_after_its_ttr,
        Shared time::c06_each_task_has_its_own_ttr,
        Shared time::c07_touch_starts_the_ttr_anew,
        Shared bounds::c05_delay_bounds,
        Shared bounds::c06_ttr_bounds,
        Shared bounds::c07_touch_bounds,
        Shared settle::c08_stale_receipts_are_refused,
        Shared settle::c08_a_settled_receipt_is_stale,
        Shared settle::c08_a_bad_settle_is_alone,
        Shared reserve::c09_settle_while_reserve_waits,
        Shared reserve::c09_dropped_reserves_lose_nothing,
        Shared reserve::c09_a_dropped_consumer_gives_back,
        Shared reserve::c09_a_closed_consumer_has_nothing_left,
        Shared settle::c10_retry_keeps_the_task,
        Shared settle::c10_retry_goes_behind_and_waits,
        Shared settle::c10_release_counts_nothing,
        Shared hold::c11_hold_list_kick_delete,
        Shared hold::c11_kick_by_number_and_all,
        Shared hold::c11_a_kick_resets_the_counts,
        Own restart::c11_a_hold_survives_restart,
        Shared faults::c12_a_killed_workers_task_comes_back,
        Shared faults::c12_deaths_are_reported,
        Shared faults::c12_a_death_is_told_until_somebody_notes_it,
        Shared faults::c13_a_stopped_workers_settle_is_late,
        Own restart::c14_a_killed_server_is_found_again,
        Shared faults::c14_a_killed_writer_loses_nothing,
        Own restart::c14_a_done_task_stays_done,
        Shared faults::c15_a_black_hole_is_noticed,
        Shared faults::c15_silence_is_no_empty_queue,
        Shared faults::c15_a_reset_is_noticed,
        Shared admin::c16_figures_are_what_is_claimed,
        Shared admin::c16_facts_of_one_task,
        Shared admin::c17_peek_changes_nothing,
        Shared admin::c17_a_walk_through_the_held_is_bounded,
        Shared admin::c17_delete_and_purge_by_state,
        Shared queues::c18_declare_twice,
        Shared queues::c18_create_never,
        Shared queues::c18_names_do_not_meet,
        Shared queues::c18_an_unknown_option_is_refused,
        Shared queues::c19_no_password_is_shown,
        Shared stress::c20_parallel_stress,
        Shared stress::c20_touched_while_others_work,
        Shared stress::c20_workers_killed_at_random,
        Shared admin::c21_pause_and_resume,
        Shared admin::c21_a_pause_ends_by_time,
        Own restart::c21_a_pause_survives_restart,
        Shared runtimes::c22_a_blocked_runtime_stops_nobody,
        Shared runtimes::c22_a_sender_blocked_half_way_stops_nobody,
        Shared data::data_comes_back_as_it_was,
        Shared data::the_largest_task_and_one_byte_more,
    ]
}
