//! Workers in any language, from the file alone.

use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};
use serde_json::Value;

use crate::place::{Place, until};
use crate::process::Ran;

/// A place whose queue has one worker, `work`, that is a shell script; further keys hold for it.
fn scripted(script: &str, keys: &str) -> Place {
    let place = Place::with(&format!("[queues.QUEUE.workers.work]\nexec = [\"./work.sh\", \"an argument\"]\n{keys}"), "");
    place.script("work.sh", script);
    place
}

/// Works off what is there.
fn drain(place: &Place) -> Ran {
    place.run(&["--watch", "--drain"]).ends_with(0)
}

/// The reason of the only held task.
fn reason(place: &Place) -> String {
    let held = place.held();
    assert_eq!(held.len(), 1, "{held:#?}");
    held[0]["reason"].as_str().unwrap().to_owned()
}

#[test]
fn data_comes_on_standard_input_and_facts_in_the_environment_and_nothing_on_the_command_line() {
    let script =
        "cat > data\nenv | grep ^ANYQUEUE_ | sort > env\ntr '\\0' '\\n' < /proc/$$/cmdline > line\nls -l /proc/$$/fd > open\n";
    let place = scripted(script, "ttr = \"90s\"");
    let data = "{\"secret\":\"$(touch hacked) `id` ; é\u{2028}\",\"n\":[1,2.50]}";
    let id = place.send("work", data, &["--store", "nl; rm -rf x"]);
    drain(&place).says("1 done");
    assert_eq!(place.read("data"), data, "as it was sent, to the last character");
    assert_eq!(place.read("line"), "/bin/sh\n./work.sh\nan argument\n");
    assert!(!place.path("hacked").exists());

    let environment = place.read("env");
    let value = |name: &str| {
        let found = environment.lines().find_map(|line| line.strip_prefix(&format!("ANYQUEUE_{name}=")));
        found.unwrap_or_else(|| panic!("no ANYQUEUE_{name} in {environment}"))
    };
    let facts = ["ID", "QUEUE", "TASK", "STORE", "ATTEMPT"].map(value);
    assert_eq!(facts, [&id, &place.queue, "work", "nl; rm -rf x", "1"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let left = value("DEADLINE").parse::<u64>().unwrap() - now;
    assert!((30..=90).contains(&left), "the lease of 90 s ends in {left} s");
    assert!(!environment.contains("secret"), "{environment}");
    assert!(!place.read("open").contains("queue.db"), "a child has no handle of ours: {}", place.read("open"));
}

#[test]
fn a_program_gets_the_files_name_and_no_settings_and_leaves_standard_output_alone() {
    let place = scripted("env > env\necho from the program\n", "");
    std::fs::rename(place.path("queue.toml"), place.path("mine.toml")).unwrap();
    let name = place.path("mine.toml").display().to_string();
    place.send("work", "1", &["--config", "mine.toml"]);
    let mut command = place.command(&crate::programs::queue_runner(), &["--watch", "--drain", "--json"]);
    command.env("ANYQUEUE__BROKERS__DEFAULT__SEND_TIMEOUT", "9s").env("ANYQUEUE_CONFIG", &name);
    let ran = crate::process::Process::start(&mut command).finish().ends_with(0).complains("from the program");
    assert_eq!(ran.json()[0]["done"], 1, "standard output is JSON and nothing else");
    let environment = place.read("env");
    assert!(!environment.contains("ANYQUEUE__"), "it may hold passwords: {environment}");
    assert!(environment.contains(&format!("ANYQUEUE_CONFIG={name}\n")), "a program that sends finds the file: {environment}");
}

#[test]
fn the_exit_code_is_the_outcome() {
    // The data is the exit code; a second attempt ends well.
    let place = scripted(
        "[ $ANYQUEUE_ATTEMPT = 2 ] && echo $$ > second && exit 0\necho because >&2\nexit $(cat)\n",
        "backoff = { first = \"10ms\" }",
    );
    place.send("work", "0", &[]);
    drain(&place).says("drained: 1 done\n");
    for code in ["75", "1", "126"] {
        place.send("work", code, &[]);
        let runner = place.start(&["--watch"]);
        place.wait_for_file("second");
        runner.stop().ends_with(0).says("1 done, 1 to be retried").complains("because");
        std::fs::remove_file(place.path("second")).unwrap();
    }
    place.send("work", "69", &[]);
    drain(&place).says("drained: 0 done, 1 held\n");
    assert_eq!(reason(&place), "the command asked to be held: because");
}

#[test]
fn the_end_of_standard_error_is_the_reason() {
    let script = "i=0\nwhile [ $i -lt 2000 ]; do echo \"line $i\" >&2; i=$((i+1)); done\nprintf 'the very end' >&2\nexit 3\n";
    let place = scripted(script, "max_attempts = 1");
    place.send("work", "1", &[]);
    drain(&place).says("1 held");
    let reason = reason(&place);
    assert!(reason.contains("exit code 3: ") && reason.ends_with("line 1999\nthe very end"), "{reason}");
    assert!(!reason.contains("line 1000\n") && (4000..4300).contains(&reason.len()), "the last 4 KiB: {}", reason.len());
}

#[test]
fn a_program_that_is_not_there_or_dies_is_a_failed_attempt() {
    let place = scripted("kill -9 $$\n", "max_attempts = 1");
    place.send("work", "1", &[]);
    drain(&place).says("1 held");
    assert!(reason(&place).contains("ended by signal: 9"), "{}", reason(&place));
    place.run(&["purge", &place.queue, "--yes"]).ends_with(0);
    std::fs::remove_file(place.path("work.sh")).unwrap();
    place.send("work", "1", &[]);
    drain(&place).says("1 held");
    assert!(reason(&place).contains("cannot start `./work.sh`"), "{}", reason(&place));
}

#[test]
fn input_that_nobody_reads_and_output_without_end_of_line_are_no_trouble() {
    let place = scripted("printf 'no end of line'\n", "");
    place.write("big.json", &format!("\"{}\"", "x".repeat(large())));
    place.send("work", "@big.json", &[]);
    let started = Instant::now();
    drain(&place).complains("no end of line").says("1 done");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

/// As many bytes as fit no pipe, and the broker takes.
fn large() -> usize {
    if std::env::var("ANYQUEUE_TEST_BROKER").is_ok_and(|url| url.starts_with("sqs:")) { 1_000_000 } else { 5 << 20 }
}

#[test]
fn megabytes_arrive_whole() {
    let place = scripted("cat | wc -c > size\n", "");
    place.write("big.json", &format!("\"{}\"", "x".repeat(large())));
    place.send("work", "@big.json", &[]);
    drain(&place).says("1 done");
    assert_eq!(place.read("size").trim(), (large() + 2).to_string());
}

#[test]
fn when_the_time_is_over_the_whole_process_group_is_gone() {
    let script = "sleep 1000 &\necho \"$! $$\" > pids\nwait\n";
    let ignores = "trap '' TERM\nsleep 1000 &\necho \"$! $$\" > pids\nwait\nwhile :; do sleep 1; done\n";
    for (script, keys, says) in [
        (script, "ttr = 1\nlease = \"manual\"", "the TTR of 1s was over"),
        (script, "time_limit = \"1s\"", "time_limit of 1s"),
        (ignores, "time_limit = \"1s\"", "time_limit of 1s"),
    ] {
        let place = scripted(script, &format!("max_attempts = 1\n{keys}"));
        place.send("work", "1", &[]);
        drain(&place).says("1 held");
        assert!(reason(&place).contains(says), "{}", reason(&place));
        for pid in place.read("pids").split_whitespace() {
            until("the group is gone", || is_gone(pid.parse().unwrap()).then_some(()));
        }
    }
}

/// Whether a process has ended. Nobody may have collected it yet.
fn is_gone(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let dead = state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    dead || test_kill_process(Pid::from_raw(pid).unwrap()).is_err()
}

#[test]
fn a_slow_program_keeps_its_lease() {
    let place = scripted("echo run >> runs\nsleep 3\necho over > over\n", "ttr = 1");
    place.send("work", "1", &[]);
    let (first, second) = (place.start(&["--watch"]), place.start(&["--watch"]));
    until("the program has ended", || place.path("over").exists().then_some(()));
    until("the task is done", || place.seems_settled().then_some(()));
    first.stop().ends_with(0);
    second.stop().ends_with(0);
    assert_eq!(place.read("runs"), "run\n", "a task of 3 × TTR ran exactly once");
}

#[test]
fn many_at_once_keep_their_outputs_apart() {
    let place = scripted("cat > out-$ANYQUEUE_ID.new\nmv out-$ANYQUEUE_ID.new out-$ANYQUEUE_ID\n", "");
    let ids: Vec<(u64, String)> = (0..20).map(|n| (n, place.send("work", &n.to_string(), &[]))).collect();
    place.run(&["--watch", "--drain", "--slots", "8"]).ends_with(0).says("20 done");
    for (n, id) in ids {
        let data: Value = serde_json::from_str(&place.read(&format!("out-{id}"))).unwrap();
        assert_eq!(data, n);
    }
}
