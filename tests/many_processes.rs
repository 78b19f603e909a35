//! Many processes on one broker.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::Duration;

use serde_json::Value;

use crate::place::{Place, until, within};
use crate::process::Process;
use crate::programs::queue_runner;

#[test]
fn what_many_send_at_once_two_workers_do_once_each() {
    const SENDERS: u64 = 12;
    const EACH: u64 = 25;
    let place = Place::with("", "");
    let workers = [place.worker(), place.worker()];
    let to = format!("{}:note", place.queue);
    let send = |n: u64| {
        let (data, count) = (format!("{{\"n\":{n}}}"), EACH.to_string());
        place.start(&["--send", &to, "--data", &data, "--count", &count, "--unchecked", "-q"])
    };
    let senders: Vec<Process> = (0..SENDERS).map(send).collect();
    senders.into_iter().for_each(|sender| drop(sender.finish().ends_with(0)));
    let all = || place.journal().len() as u64 >= SENDERS * EACH;
    until("everything is done", || (all() && place.seems_settled()).then_some(()));

    let mut by_sender = BTreeMap::<u64, u64>::new();
    let mut by_worker = BTreeMap::<u32, u64>::new();
    for event in place.journal() {
        *by_sender.entry(event.n).or_default() += 1;
        *by_worker.entry(event.pid).or_default() += 1;
    }
    assert_eq!(by_sender, (0..SENDERS).map(|n| (n, EACH)).collect(), "each of the tasks was done, and once");
    println!("done by each worker: {by_worker:?}");
    workers.into_iter().for_each(|worker| drop(worker.stop().ends_with(0)));
}

#[test]
fn an_idle_worker_wakes_up_for_another_processs_task() {
    let place = Place::with("", "");
    let worker = place.worker();
    for n in 0..5 {
        place.send("note", &format!("{{\"n\":{n}}}"), &[]);
        // The first one may come while the worker still starts.
        let limit = Duration::from_secs(if n == 0 { 30 } else { 1 });
        within(limit, "the task is picked up", || place.journal().iter().any(|event| event.n == n).then_some(()));
        until("the worker is idle", || place.seems_settled().then_some(()));
    }
    worker.stop().ends_with(0).says("5 done");
}

#[test]
fn what_a_killed_sender_was_told_is_sent_is_there() {
    const LINES: usize = 20_000;
    let place = Place::with("", "");
    let line = format!("{{\"queue\":\"{}\",\"task\":\"note\"}}\n", place.queue);
    place.write("tasks.jsonl", &line.repeat(LINES));
    let mut command = place.command(&queue_runner(), &["--jsonl", "--unchecked", "--json"]);
    let sender = Process::start(command.stdin(File::open(place.path("tasks.jsonl")).unwrap()));
    sender.says("\"id\"");
    let said = sender.kill().out;

    let (whole, _) = said.rsplit_once('\n').unwrap();
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    let told: BTreeSet<String> = whole.lines().map(id).collect();
    let there = place.run(&["peek", &place.queue, "--json", "--limit", &LINES.to_string()]).ends_with(0);
    let there: BTreeSet<String> = there.out.lines().map(id).collect();
    println!("{} told, {} there", told.len(), there.len());
    assert!(!told.is_empty() && told.len() < LINES, "the kill came at the wrong time: {} told", told.len());
    assert!(told.is_subset(&there), "{} of {} are missing", told.difference(&there).count(), told.len());
}
