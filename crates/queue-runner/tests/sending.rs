//! What `--send` and `--jsonl` do.

mod place;

use std::collections::HashSet;
use std::io::Write;
use std::process::Stdio;

use place::{Lines, Place, finish};

#[test]
fn the_first_command_works_with_nothing_installed() {
    let place = Place::new();
    let ran = place.run(&["--send", "default:test:hello", "--watch", "all", "--drain"]).ends_with(0);
    ran.says("sent default:test ").says("1 done").complains("hello");
    assert!(place.path("queue.db").exists());
    assert_eq!(place.stat("default", "ready"), 0);
}

#[test]
fn a_message_keeps_its_colons() {
    let place = Place::new();
    place.run(&["--send", "default:test:a:b: c"]).ends_with(0);
    let tasks = place.run(&["peek", "default", "--json"]).json();
    assert_eq!(tasks[0]["data"]["message"], "a:b: c");
}

#[test]
fn data_comes_from_the_command_line_a_file_or_standard_input() {
    let place = Place::new();
    place.write("data.json", "{\"from\": \"file\"}\n");
    place.run(&["--send", "default:test", "--data", "[1, 2.50]"]).ends_with(0);
    place.run(&["--send", "default:test", "--data", "@data.json"]).ends_with(0);
    place.run_with(&["--send", "default:test", "--data", "-"], "\"stdin\"").ends_with(0);
    let tasks = place.run(&["peek", "default", "--json"]);
    assert!(tasks.out.contains("[1, 2.50]") || tasks.out.contains("[1,2.50]"), "numbers stay as they were written: {tasks:?}");
    let tasks = tasks.json();
    assert_eq!((&tasks[1]["data"]["from"], &tasks[2]["data"]), (&"file".into(), &"stdin".into()));
    place.run(&["--send", "default:test", "--data", "hello"]).ends_with(2).complains("not JSON");
    place.run(&["--send", "default:test", "--data", "@nix.json"]).ends_with(1).complains("nix.json");
    place.run(&["--send", "default:test:hello", "--data", "1"]).ends_with(2).complains("given twice");
    place.run(&["--send", "default:test"]).ends_with(2).complains("has no message");
}

#[test]
fn flags_reach_the_task() {
    let place = Place::new();
    let flags = ["--priority", "high", "--delay", "10m", "--ttr", "90", "--store", "nl", "--json"];
    let sent = place.run(&[&["--send", "default:test:x"], &flags[..]].concat()).ends_with(0).json();
    let task = &place.run(&["peek", "default", "--state", "delayed", "--json"]).json()[0];
    assert_eq!(task["id"], sent[0]["id"]);
    assert!(task.get("native_id").is_some(), "the broker's own id, if it has one");
    assert_eq!((&task["priority"], &task["ttr"], &task["store"]), (&512.into(), &90.0.into(), &"nl".into()));
    let remaining = task["remaining"].as_f64().unwrap();
    assert!((500.0..=600.0).contains(&remaining), "{remaining}");
}

#[test]
fn an_unknown_queue_or_task_is_refused_with_the_known_names_unless_unchecked() {
    let place = Place::with("[queues.images]\nworkers = [\"render\"]\n[queues.mail]\nworkers = [\"out\"]\n");
    place.run(&["--send", "imags:render:x"]).ends_with(1).complains("did you mean `images`? Known: `images`, `mail`");
    place.run(&["--send", "images:rendr:x"]).ends_with(1).complains("did you mean `render`? Known: `render`");
    assert_eq!(place.stat("images", "ready"), 0);
    place.run(&["--send", "images:rendr:x", "--unchecked"]).ends_with(0);
    assert_eq!(place.stat("images", "ready"), 1);
    place.run(&["--send", "elsewhere:any:x", "--unchecked"]).ends_with(0);
    place.run(&["--broker", "memory:", "--send", "elsewhere:any:x", "--unchecked"]).ends_with(0).says("via command-line");
    place.run(&["--send", "bad name:any:x", "--unchecked"]).ends_with(2);
    // What was sent so can be looked after.
    place.run(&["peek", "elsewhere"]).ends_with(1).complains("--unchecked takes it all the same");
    assert_eq!(place.run(&["peek", "elsewhere", "--unchecked", "--json"]).ends_with(0).json().len(), 1);
    assert_eq!(place.run(&["stats", "elsewhere", "--unchecked", "--json"]).ends_with(0).json()[0]["ready"], 1);
    place.run(&["peek", "bad name", "--unchecked"]).ends_with(1).complains("' '");
    place.run(&["--watch", "elsewhere", "--unchecked"]).ends_with(2).complains("queues with workers");
    place.run(&["check", "--unchecked"]).ends_with(2).complains("name a queue");
    let ran = place.run(&["peek", "bad name"]).ends_with(1);
    assert!(!ran.err.contains("--unchecked"), "no queue has that name: {ran:?}");
}

#[test]
fn empty_parts_and_blanks_are_refused() {
    let place = Place::new();
    for typed in ["default", ":test:x", "default::x", "default:test:", "default: :x", "def ault:test:x", "default:test:  ", ""] {
        let ran = place.run(&["--send", typed]).ends_with(2);
        assert!(ran.err.starts_with("error: ") && ran.err.lines().count() == 1, "{typed:?}: {ran:?}");
    }
    assert_eq!(place.stat("default", "ready"), 0);
}

#[test]
fn the_same_task_is_sent_many_times() {
    let place = Place::new();
    let sent = place.run(&["--send", "default:test:x", "--count", "2500", "--json"]).ends_with(0).json();
    let ids: HashSet<_> = sent.iter().map(|sent| sent["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((ids.len(), place.stat("default", "ready")), (2500, 2500));
    place.run(&["--send", "default:test:x", "--count", "3"]).ends_with(0).says("sent 3 tasks");
    place.run(&["--send", "default:test:x", "--count", "0"]).ends_with(2);
    let small = Place::with("[brokers.default]\nurl = \"sqlite:./queue.db\"\nmax_payload = 50\n");
    let ran = small.run(&["--send", "default:test:much", "--count", "2500"]).ends_with(1).says("sent 0 tasks, 1000 failed");
    ran.complains("of 1000 tasks, none were sent; 1500 more were not tried");
}

#[test]
fn a_bad_line_is_named_and_the_rest_goes_on() {
    let place = Place::with("[queues.a]\nworkers = [\"t\"]\n[queues.b]\nworkers = [\"t\", \"u\"]\n[routes]\n\"u\" = \"b\"\n");
    let mut input = String::new();
    for n in 0..1500 {
        input += &format!("{{\"queue\":\"a\",\"task\":\"t\",\"data\":{n}}}\n");
    }
    input += "{\"queue\":\"b\",\"task\":\"t\",\"store\":\"nl\",\"priority\":\"low\",\"delay\":\"1h\",\"ttr\":5,\"headers\":{\"k\":\"v\"}}\n";
    input += "{\"task\":\"u\"}\n\n  \n";
    input += "garbage\n{\"queue\":\"a\",\"task\":\"x\"}\n{\"queue\":\"a\",\"tsk\":\"t\"}\n{\"task\":\"t\"}\n";
    let mut input = input.into_bytes();
    input.extend_from_slice(b"\xff\n{\"queue\":\"a\",\"task\":\"t\"}");
    let ran = place.run_with(&["--jsonl"], input.clone()).ends_with(3).says("sent 1503 tasks, 5 failed");
    let ran = ran
        .complains("line 1505: this is not JSON: ")
        .complains("line 1506: queue `a` has no worker `x`")
        .complains("line 1507: unknown field `tsk`");
    ran.complains("line 1508: `queue` is missing").complains("line 1509: this is not UTF-8");
    assert_eq!((place.stat("a", "ready"), place.stat("b", "ready"), place.stat("b", "delayed")), (1501, 1, 1));
    let task = &place.run(&["peek", "b", "--state", "delayed", "--json"]).json()[0];
    assert_eq!((&task["store"], &task["priority"], &task["ttr"]), (&"nl".into(), &2048.into(), &5.0.into()));

    let lines = place.run_with(&["--jsonl", "--json"], input).json();
    let numbers: Vec<_> = lines.iter().map(|line| line["line"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted() && numbers.len() == 1508, "one answer per line, in order");
    place.run_with(&["--jsonl"], "garbage\n").ends_with(1);
    place.run_with(&["--jsonl"], "").ends_with(0);
}

#[test]
fn flags_stand_in_for_what_a_line_does_not_say() {
    let place = Place::new();
    let lines = "{\"queue\":\"default\",\"task\":\"test\",\"store\":\"own\"}\n{\"queue\":\"default\",\"task\":\"test\"}\n";
    place.run_with(&["--jsonl", "--store", "flag", "--priority", "7"], lines).ends_with(0);
    let tasks = place.run(&["peek", "default", "--json"]).json();
    assert_eq!((&tasks[0]["store"], &tasks[1]["store"], &tasks[0]["priority"]), (&"own".into(), &"flag".into(), &7.into()));
}

#[test]
fn a_line_is_sent_before_the_next_one_is_written() {
    let place = Place::new();
    let mut child = place.command(&["--jsonl", "--json"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let answers = Lines::of(&mut child);
    for n in 1..=3 {
        writeln!(stdin, "{{\"queue\":\"default\",\"task\":\"test\",\"data\":{n}}}").unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answers.next()).unwrap();
        assert_eq!(answer["line"], n);
    }
    drop(stdin);
    finish(child).ends_with(0);
}

#[cfg(feature = "beanstalkd")]
#[test]
fn an_outage_is_waited_for_once_and_not_line_by_line() {
    // Only root may listen there, and nobody does.
    let nobody = "127.0.0.1:1";
    let mut toml = "default_broker = \"near\"\n[brokers.near]\nurl = \"sqlite:queue.db\"\n".to_owned();
    for broker in ["far", "farther"] {
        toml += &format!("[brokers.{broker}]\nurl = \"beanstalkd://{nobody}\"\nsend_timeout = \"4s\"\n");
    }
    for (queue, broker) in [("a", "far"), ("b", "far"), ("c", "near"), ("d", "farther")] {
        toml += &format!("[queues.{queue}]\nbroker = \"{broker}\"\nworkers = [\"t\"]\n");
    }
    let place = Place::with(&toml);
    let mut child = place.command(&["--jsonl", "--json"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let answers = Lines::of(&mut child);
    let lines = [
        ("c", None),
        ("a", Some(true)),
        ("a", Some(false)),
        ("b", Some(false)),
        ("d", Some(true)),
        ("d", Some(false)),
        ("c", None),
    ];
    for (queue, waits) in lines {
        writeln!(stdin, "{{\"queue\":\"{queue}\",\"task\":\"t\"}}").unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answers.next()).unwrap();
        match (waits, answer["error"].as_str()) {
            (None, None) => {}
            (Some(waits), Some(error)) => {
                let short = ["1s", "2s", "3s"].iter().any(|time| error.contains(&format!("gave up after {time}")));
                assert!(error.contains("gave up after") && short != waits, "{queue}: {error}");
            }
            _ => panic!("{queue}: {answer}"),
        }
    }
    drop(stdin);
    finish(child).ends_with(3);
}

#[test]
fn a_reader_that_goes_away_stops_the_output_and_not_the_sending() {
    let place = Place::new();
    let mut child = place.command(&["--send", "default:test:x", "--count", "5000", "--json"]).spawn().unwrap();
    let lines = Lines::of(&mut child);
    lines.next();
    drop(lines);
    let ran = finish(child).ends_with(0);
    assert!(ran.err.is_empty(), "{ran:?}");
    assert_eq!(place.stat("default", "ready"), 5000);
}
