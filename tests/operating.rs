//! The operator's verbs through the command, on whatever broker the tests are for.

use crate::place::{Place, until};

#[test]
fn a_task_is_held_kicked_and_done_and_another_deleted() {
    let place = Place::with("[queues.QUEUE.workers.work]\nexec = [\"./work.sh\"]", "");
    place.script("work.sh", "[ -e ok ] && exit 0\necho 'no paper' >&2\nexit 69\n");
    let ids = [place.send("work", "1", &[]), place.send("work", "2", &[])];
    place.run(&["--watch", "--drain"]).ends_with(0).says("2 held");
    let held = place.held();
    assert!(held.iter().all(|task| task["reason"].as_str().unwrap().contains("no paper")), "{held:#?}");

    place.run(&["delete", &place.queue, &ids[0]]).ends_with(0);
    place.write("ok", "");
    place.run(&["kick", &place.queue, &ids[1]]).ends_with(0).says("kicked 1 task");
    place.run(&["--watch", "--drain"]).ends_with(0).says("1 done");
    assert!(place.seems_settled() && place.held().is_empty());
}

#[test]
fn a_paused_queue_waits_for_its_resumption_in_every_process() {
    let place = Place::with("[queues.QUEUE.workers.work]\nexec = [\"./work.sh\"]", "");
    place.script("work.sh", "exit 0\n");
    let runner = place.start(&["--watch"]);
    place.run(&["pause", &place.queue]).ends_with(0);
    place.send("work", "1", &[]);
    // A runner that was waiting already may have it for a moment, until it has read that the queue is paused.
    until("the task waits", || (place.stats().ready == 1).then_some(()));
    place.run(&["resume", &place.queue]).ends_with(0);
    until("the task is done", || place.seems_settled().then_some(()));
    runner.stop().ends_with(0).says("1 done");
    place.send("work", "2", &["--delay", "1h"]);
    place.run(&["purge", &place.queue, "--yes"]).ends_with(0).says("removed 1 task");
    assert_eq!(place.stats().delayed, 0);
}
