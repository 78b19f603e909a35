//! Handlers that block all threads of the runtime lose no lease.

use serde_json::json;

use crate::place::{Place, until};

const TASKS: u64 = 4;

#[test]
fn handlers_that_block_for_longer_than_the_ttr_keep_their_tasks() {
    let place = Place::with("ttr = 3", &format!("[runner]\nslots = {TASKS}"));
    place.send_lines((0..TASKS).map(|n| json!({"queue": place.queue, "task": "block", "data": {"n": n}})));
    // A second process takes what the first one loses.
    let (blocked, other) = (place.worker(), place.worker());
    let done = || place.journal().iter().filter(|event| event.what == "done").count() as u64;
    until("all are done", || (done() >= TASKS && place.seems_settled()).then_some(()));
    let ends = [blocked, other].map(|worker| worker.stop().ends_with(0).out);
    assert_eq!(done(), TASKS, "each ran once: {ends:?}");
    assert!(ends.iter().all(|end| !end.contains("too late")), "{ends:?}");
    assert!(place.held().is_empty());
}
