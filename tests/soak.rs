//! Thousands of tasks while worker processes are killed at random, and the broker where it may be: nothing is lost.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::place::{Place, kill_the_broker, until};
use crate::process::Process;

/// `ANYQUEUE_TRIAL_SCALE=10` makes it ten times as many.
const TASKS: u64 = 10_000;
/// Each so many a task asks to be held.
const HOLD_EACH: u64 = 500;
const SLOTS: u64 = 8;
const PREFETCH: u64 = 16;
const KILLS: u64 = 12;
/// At each so many kills of a worker the broker is killed beside it.
const BROKER_TOO: u64 = 4;

/// Which tasks these are.
fn numbers(tasks: &[Value]) -> BTreeSet<u64> {
    tasks.iter().filter_map(|task| task["data"]["n"].as_u64()).collect()
}

#[test]
fn what_was_sent_is_done_or_held_whoever_is_killed() {
    // Kills hit tasks that did nothing wrong, again and again: they must not be held for it.
    let keys = "ttr = 1\nmax_crashes = 100";
    let place = Place::with(keys, &format!("[runner]\nslots = {SLOTS}\nprefetch = {PREFETCH}"));
    let task = |n: u64| json!({"queue": place.queue, "task": "note", "data": {"n": n, "hold": n.is_multiple_of(HOLD_EACH)}});
    place.send_lines((0..TASKS).map(task));

    let mut workers: Vec<Process> = (0..2).map(|_| place.worker()).collect();
    let mut brokers = 0;
    for kill in 0..KILLS {
        // Spread over the first nine tenths of the work, wherever the worker happens to be in it.
        let mark = (kill + 1) * TASKS * 9 / 10 / KILLS;
        until("the workers get on", || (place.journal().len() as u64 >= mark).then_some(()));
        let victim = workers.remove(0);
        victim.kill();
        if kill % BROKER_TOO == 1 {
            brokers += u64::from(kill_the_broker());
        }
        workers.push(place.worker());
    }
    // By the ledger too: a broker may not tell how many tasks are delayed or reserved.
    let all_seen = || place.journal().iter().map(|event| event.n).collect::<BTreeSet<_>>().len() as u64 == TASKS;
    let all_held = || numbers(&place.held()).len() as u64 == TASKS / HOLD_EACH;
    until("everything is settled", || (all_seen() && place.seems_settled() && all_held()).then_some(()));
    workers.into_iter().for_each(|worker| drop(worker.stop().ends_with(0)));

    let mut runs = BTreeMap::<u64, u64>::new();
    place.journal().iter().for_each(|event| *runs.entry(event.n).or_default() += 1);
    let lost: Vec<u64> = (0..TASKS).filter(|n| !runs.contains_key(n)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let held = place.held();
    // Where a hold is a copy and then a delete, a kill in between makes a duplicate, and never a loss.
    let verbs = place.capability("verbs");
    // A broker that is killed takes both workers' answers with it.
    let deaths = KILLS + 2 * brokers;
    let most = if verbs["hold, kick"]["support"].as_str().unwrap() == "native" { 0 } else { deaths as usize };
    let distinct = numbers(&held);
    assert_eq!(distinct.len() as u64, TASKS / HOLD_EACH, "sent = done + held");
    assert!(held.len() - distinct.len() <= most, "{} held, of {} tasks", held.len(), distinct.len());
    assert!(held.iter().all(|task| task["data"]["hold"] == true), "only those are held that asked for it: {held:#?}");
    let twice: u64 = runs.values().map(|times| times - 1).sum();
    println!(
        "{TASKS} sent, {} done, {} held, 0 lost, {KILLS} workers and {brokers} brokers killed, {twice} duplicate runs",
        TASKS - distinct.len() as u64,
        held.len()
    );
    // What a killed worker had finished and not stored yet: results that wait for a group commit to a busy disk.
    assert!(twice <= deaths * (SLOTS + PREFETCH) * 10, "{twice} duplicate runs");
}
