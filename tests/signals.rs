//! What signals do to the command, and what it ends with.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::place::{Place, until};
use crate::process::Process;

/// A place with one task that its worker has begun and finishes once the file `go` is there; the running command.
fn begun(script: &str) -> (Place, Process) {
    let place = Place::with("", "[queues.QUEUE.workers.work]\nexec = [\"./work.sh\"]\n");
    place.script("work.sh", script);
    place.send("work", "1", &[]);
    let runner = place.start(&["--watch"]);
    place.wait_for_file("pid");
    (place, runner)
}

const UNTIL_GO: &str = "echo $$ > pid.new; mv pid.new pid\nwhile [ ! -e go ]; do sleep 0.02; done\n";

fn is_alive(pid: &str) -> bool {
    // One that nobody has collected yet is no longer alive.
    let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn the_first_signal_lets_running_tasks_finish() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let (place, runner) = begun(UNTIL_GO);
        place.send("work", "2", &[]);
        runner.signal(signal);
        runner.complains("stopping: running handlers finish");
        place.write("go", "");
        let ran = runner.finish().ends_with(0);
        assert!(ran.out.contains("stopped by a signal: "), "{signal:?} {ran:?}");
        let stats = place.stats();
        assert!(stats.reserved == 0 && stats.held == 0 && stats.delayed == 0, "{signal:?} {stats:?}");
    }
}

#[test]
fn a_second_signal_cuts_short_and_gives_back_uncounted() {
    let (place, runner) = begun(UNTIL_GO);
    runner.signal(Signal::TERM);
    runner.complains("stopping: running handlers finish");
    runner.signal(Signal::TERM);
    runner.finish().ends_with(3).says("1 cut short and given back").complains("cutting running handlers short");
    let tasks = place.run(&["peek", &place.queue, "--json"]).ends_with(0).json();
    assert_eq!(tasks.len(), 1, "the task is ready again");
    assert_eq!((&tasks[0]["failed"], &tasks[0]["crashed"]), (&0.into(), &0.into()), "and nothing was counted");
    assert!(!is_alive(&place.read("pid")), "the child process is gone");
}

#[test]
fn a_third_signal_leaves_at_once_and_takes_its_children_along() {
    let (place, runner) = begun(&format!("trap '' TERM\n{UNTIL_GO}"));
    for said in ["stopping: running handlers finish", "cutting running handlers short", "leaving at once"] {
        runner.signal(Signal::TERM);
        runner.complains(said);
    }
    // Whether the task was given back in the moment that was left, the code tells: 3, or 4 if it comes after its lease.
    let ran = runner.finish();
    assert!(matches!(ran.status.code(), Some(3 | 4)), "{ran:?}");
    let pid = place.read("pid");
    until("the child that ignores TERM is killed", || (!is_alive(&pid)).then_some(()));
}

#[test]
fn usr2_pauses_and_cont_resumes() {
    let (place, runner) = begun(UNTIL_GO);
    runner.signal(Signal::USR2);
    runner.complains("paused");
    place.send("work", "2", &[]);
    place.write("go", "");
    until("the running task finishes, and the other one waits", || {
        let stats = place.stats();
        (stats.reserved == 0 && stats.ready == 1).then_some(())
    });
    std::fs::remove_file(place.path("pid")).unwrap();
    // Nothing says that something will not happen: this is as long as a woken worker would need many times over.
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_millis(500) {
        assert_eq!((place.stats().ready, Path::exists(&place.path("pid"))), (1, false), "a paused runner starts nothing");
    }
    runner.signal(Signal::CONT);
    place.wait_for_file("pid");
    until("the second task is done", || place.seems_settled().then_some(()));
    runner.stop().ends_with(0).says("2 done");
}
