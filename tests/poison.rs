//! A task that kills every worker that runs it harms nobody but itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::place::{Place, until};

const GOOD: u64 = 100;

#[test]
fn of_one_poison_task_and_a_hundred_good_ones_exactly_one_is_held() {
    let place = Place::with("ttr = 1", "[runner]\nslots = 3\nprefetch = 8");
    let task = |n: u64| json!({"queue": place.queue, "task": if n == GOOD / 2 { "die" } else { "note" }, "data": {"n": n}});
    place.send_lines((0..=GOOD).map(task));

    let mut said = Vec::new();
    let mut worker = place.worker();
    until("everything is settled", || {
        if worker.is_over() {
            said.push(std::mem::replace(&mut worker, place.worker()).finish().err);
        }
        let good: BTreeSet<u64> = place.journal().iter().filter(|event| event.what == "done").map(|event| event.n).collect();
        (good.len() as u64 == GOOD && place.seems_settled() && !place.held().is_empty()).then_some(())
    });
    let deaths = said.len();
    said.push(worker.stop().ends_with(0).err);

    let held = place.held();
    assert_eq!(held.len(), 1, "{held:#?}");
    assert_eq!((&held[0]["task"], &held[0]["data"]["n"]), (&"die".into(), &(GOOD / 2).into()));
    let reason = held[0]["reason"].as_str().unwrap();
    assert_eq!(reason, "3 workers died while running this task");
    assert_eq!(held[0]["failed_before"], 0, "a death is no failure: {held:#?}");
    // Three deaths on probation, after the one that led to it.
    assert_eq!(deaths, 4);

    let mut runs = BTreeMap::<u64, u64>::new();
    place.journal().iter().filter(|event| event.what == "done").for_each(|event| *runs.entry(event.n).or_default() += 1);
    assert_eq!(runs.len() as u64, GOOD, "a good task was lost");
    let twice: u64 = runs.values().map(|times| times - 1).sum();
    println!("{deaths} deaths, {twice} good tasks ran once more");
    // In three of the four deaths the task was alone, so that a good one can have been near one death at most.
    let often: Vec<_> = place.journal().into_iter().filter(|event| runs.get(&event.n).is_some_and(|times| *times > 2)).collect();
    assert!(often.is_empty(), "{often:#?}\n{}", said.join("\n--- died ---\n"));
}
