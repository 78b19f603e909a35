//! What `--watch` does.

mod place;

use place::{Place, finish, signal};

#[test]
fn a_program_works_tasks_from_the_file_alone() {
    let place = Place::with("[queues.\"Img.s\".workers.thumbNail]\nexec = [\"./work.sh\", \"an argument\"]\nmax_attempts = 1\n");
    place.script(
        "work.sh",
        "cat > data.json\necho \"$ANYQUEUE_QUEUE $ANYQUEUE_TASK $ANYQUEUE_STORE $ANYQUEUE_ATTEMPT $1\" > env.txt\n",
    );
    let send = ["--send", "Img.s:thumbNail", "--data", "{\"file\":\"a b.png\"}", "--store", "nl"];
    place.run(&[&send[..], &["--watch", "--drain"]].concat()).ends_with(0).says("1 done");
    assert_eq!(place.wait_for("data.json"), "{\"file\":\"a b.png\"}");
    assert_eq!(place.wait_for("env.txt"), "Img.s thumbNail nl 1 an argument\n");

    place.script("work.sh", "echo 'no such font' >&2\nexit 1\n");
    place.run(&[&send[..], &["--watch", "Img.s", "--drain"]].concat()).ends_with(0).says("1 held");
    place.run(&["held", "Img.s"]).ends_with(0).says("no such font");
}

#[test]
fn queues_without_a_worker_are_named_and_refused_when_asked_for() {
    let place = Place::with("[queues.default]\n[queues.far]\nworkers = [\"x\"]\n");
    place.run(&["--watch", "all", "--drain"]).ends_with(0).complains("no worker here: far");
    place.run(&["--watch", "far", "--drain"]).ends_with(1).complains("queue `far` has no worker");
    place.run(&["--watch", "defalt", "--drain"]).ends_with(1).complains("did you mean `default`?");
    place.run(&["--watch", "default,,far", "--drain"]).ends_with(2).complains("empty queue name");
}

#[test]
fn nothing_is_sent_before_a_watch_that_is_refused() {
    let place = Place::with("[queues.default]\n[queues.far]\nworkers = [\"x\"]\n");
    for (watch, code, why) in [
        (&["--watch", "defualt"][..], 1, "did you mean `default`?"),
        (&["--watch", "far"], 1, "queue `far` has no worker"),
        (&["--watch", ""], 2, "empty queue name"),
    ] {
        place.run(&[&["--send", "default:test:x", "--drain"], watch].concat()).ends_with(code).complains(why);
    }
    assert_eq!(place.stat("default", "ready"), 0);
}

#[test]
fn another_process_sends_and_a_signal_stops_cleanly() {
    let place = Place::with("[queues.a.workers.t]\nexec = [\"./work.sh\"]\n");
    place.script("work.sh", "cat >> seen.txt\n");
    let worker = place.command(&["--watch"]).spawn().unwrap();
    place.run(&["--send", "a:t:from another process"]).ends_with(0);
    assert!(place.wait_for("seen.txt").contains("from another process"));
    signal(&worker, "TERM");
    finish(worker).ends_with(0).says("stopped by a signal: 1 done");
    assert_eq!(place.stat("a", "ready"), 0);
}

#[test]
fn limits_end_the_runner_cleanly() {
    let place = Place::new();
    place.run(&["--send", "default:test:x", "--count", "5"]).ends_with(0);
    place.run(&["--watch", "--limit", "2", "--slots", "1"]).ends_with(0).says("2 done");
    assert_eq!(place.stat("default", "ready"), 3);
    place.run(&["--watch", "--max-time", "300ms"]).ends_with(0).says("3 done");
    place.run(&["--watch", "--memory-limit", "1kB"]).ends_with(0).says("memory limit");
    place.run(&["--watch", "--memory-limit", "lots"]).ends_with(2).complains("`lots` is not a size");
    place.run(&["--watch", "--max-time", "0"]).ends_with(2).complains("`0` is too short");
    place.run(&["--watch", "--slots", "0"]).ends_with(2);
    place.run(&["--drain"]).ends_with(2).complains("--watch");
    place.run(&["--jsonl", "--count", "3"]).ends_with(2).complains("--count");
    place.run(&["--send", "default:test", "--data", "-5"]).ends_with(0);
}

#[test]
fn only_the_wanted_priorities_are_taken() {
    let place = Place::new();
    place.run(&["--send", "default:test:urgent", "--priority", "5"]).ends_with(0);
    place.run(&["--send", "default:test:normal"]).ends_with(0);
    place.run(&["--watch", "--drain", "--priorities", "-20"]).ends_with(0).complains("urgent");
    assert_eq!(place.stat("default", "ready"), 1);
    place.run(&["--watch", "--drain", "--priorities", "40-20"]).ends_with(2).complains("priority range");
}

#[test]
fn the_memory_broker_lives_in_one_process() {
    let place = Place::new();
    place.run(&["--broker", "memory:", "--send", "default:test:x", "--watch", "--drain"]).ends_with(0).says("1 done");
    assert!(!place.path("queue.db").exists());
}

#[test]
fn the_test_worker_logs_the_message_or_the_start_of_other_data() {
    let place = Place::new();
    place.run(&["--send", "default:test:hello", "--watch", "--drain"]).ends_with(0).complains(": hello");
    let long = format!("[\"{}\"]", "é".repeat(500));
    let ran = place.run(&["--send", "default:test", "--data", &long, "--watch", "--drain"]).ends_with(0);
    ran.complains(&format!(": [\"{}…", "é".repeat(198)));
}

#[test]
fn what_was_done_is_one_json_object() {
    let place = Place::new();
    place.run(&["--send", "default:test", "--data", "{\"outcome\":\"hold\",\"message\":\"look\"}"]).ends_with(0);
    let ran = place.run(&["--send", "default:test:x", "--watch", "--drain", "--json", "-q"]).ends_with(0);
    assert!(!ran.err.contains("INFO"), "{ran:?}");
    let lines = ran.json();
    assert_eq!(lines.len(), 2, "the task that was sent, and what was done: {lines:?}");
    assert_eq!((&lines[1]["done"], &lines[1]["held"], &lines[1]["exit_code"]), (&1.into(), &1.into(), &0.into()));
}
