//! The operator's verbs.

mod place;

use place::{Lines, Place, finish};
use serde_json::Value;

/// A place with one held task; its id.
fn with_held() -> (Place, String) {
    let place = Place::new();
    let data = "{\"outcome\":\"hold\",\"message\":\"no paper\"}";
    let sent = place.run(&["--send", "default:test", "--data", data, "--json", "--watch", "--drain"]).ends_with(0);
    let id = sent.json()[0]["id"].as_str().expect("an id").to_owned();
    (place, id)
}

#[test]
fn held_tasks_show_their_reason_and_are_kicked_or_deleted() {
    let (place, id) = with_held();
    place.run(&["held", "default"]).ends_with(0).says(&id).says("no paper");
    let held = place.run(&["held", "default", "--json"]).json();
    assert_eq!(
        (&held[0]["id"], &held[0]["reason"], &held[0]["state"]),
        (&id.as_str().into(), &"no paper".into(), &"held".into())
    );
    place.run(&["kick", "default", &id]).ends_with(0).says("kicked 1 task");
    assert_eq!((place.stat("default", "ready"), place.stat("default", "held")), (1, 0));
    place.run(&["kick", "default", &id]).ends_with(1).complains("not held");
    place.run(&["kick", "default"]).ends_with(2);
    place.run(&["held", "default"]).ends_with(0).says("nothing is held");

    let other = "01a200f3-3bdc-7955-9e5e-9377a8f0351d";
    place.run(&["delete", "default", &id, other]).ends_with(3).says(&id).complains(other);
    place.run(&["delete", "default", &id]).ends_with(1);
    place.run(&["delete", "default", "17"]).ends_with(2).complains("not a task id");
    assert_eq!(place.stat("default", "ready"), 0);
}

#[test]
fn kick_takes_a_number_or_all() {
    let place = Place::new();
    let data = "{\"outcome\":\"hold\",\"message\":\"x\"}";
    place.run(&["--send", "default:test", "--data", data, "--count", "150", "--watch", "--drain", "-q"]).ends_with(0);
    let held = place.run(&["held", "default", "--json", "--limit", "130"]).json();
    assert_eq!(held.len(), 130, "more than a page");
    place.run(&["held", "default", "--limit", "10"]).says("and more");
    place.run(&["held", "default", "--limit", "0"]).ends_with(2);
    let kicked = place.run(&["kick", "default", "--first", "20", "--json"]).json();
    assert_eq!(kicked[0]["kicked"], 20);
    place.run(&["kick", "default", "--all"]).says("kicked 130 tasks");
    place.run(&["kick", "default", "--all", "--first", "1"]).ends_with(2);
}

#[test]
fn the_twelve_facts_of_a_task() {
    let (place, id) = with_held();
    let info = &place.run(&["info", &id, "--json"]).ends_with(0).json()[0];
    let facts = [
        "queue",
        "state",
        "priority",
        "age",
        "delay",
        "ttr",
        "expiration",
        "reserves",
        "timeouts",
        "releases",
        "holds",
        "unholds",
    ];
    for fact in facts {
        assert!(info.get(fact).is_some(), "{fact} is missing in {info}");
    }
    assert_eq!(
        (&info["state"], &info["holds"], &info["ttr"], &info["expiration"]),
        (&"held".into(), &1.into(), &60.into(), &Value::Null)
    );
    place.run(&["info", &id]).says("expiration  unknown");
    place.run(&["info", "01a200f3-3bdc-7955-9e5e-9377a8f0351d"]).ends_with(1).complains("any queue");
}

#[test]
fn facts_are_found_though_another_broker_is_down() {
    let place = Place::with(
        "default_broker = \"here\"\n[brokers.here]\nurl = \"sqlite:./queue.db\"\n[brokers.gone]\nurl = \"redis://127.0.0.1:1\"\n\
         [queues.a]\nbroker = \"gone\"\n[queues.b]\nworkers = [\"t\"]\n",
    );
    let sent = place.run(&["--send", "b:t:x", "--json"]).ends_with(0).json();
    place.run(&["info", sent[0]["id"].as_str().unwrap()]).ends_with(0).says("ready");
    place.run(&["info", "01a200f3-3bdc-7955-9e5e-9377a8f0351d"]).ends_with(1).complains("127.0.0.1:1");
}

#[test]
fn what_is_wrong_with_a_broker_is_said_once_and_not_for_each_queue() {
    let place =
        Place::with("[brokers.default]\nurl = \"sqlite:./q.db\"\n[queues.a]\nworkers = [\"t\"]\n[queues.b]\n[queues.c]\n");
    place.run(&["--send", "a:t:x", "--count", "500"]).ends_with(0);
    let mut file = std::fs::read(place.path("q.db")).unwrap();
    // The first page says what tables there are; the others are what is in them.
    file[4096..].fill(0x5a);
    std::fs::write(place.path("q.db"), file).unwrap();
    let ran = place.run(&["info", "01a200f3-3bdc-7955-9e5e-9377a8f0351d"]).ends_with(1).complains("damaged");
    assert_eq!(ran.err.matches("damaged").count(), 1, "{ran:?}");
}

#[test]
fn purge_asks_and_refuses_where_nobody_can_answer() {
    let (place, _) = with_held();
    place.run(&["--send", "default:test:x", "--count", "3"]).ends_with(0);
    place.run(&["purge", "default"]).ends_with(2).complains("--yes");
    place.run(&["purge", "default", "--state", "reserved", "--yes"]).ends_with(2);
    place.run(&["purge", "default", "--state", "ready", "--yes"]).ends_with(0).says("removed 3 tasks");
    assert_eq!(place.stat("default", "held"), 1);
    let purged = place.run(&["purge", "default", "--yes", "--json"]).ends_with(0).json();
    assert_eq!((&purged[0]["purged"], place.stat("default", "held")), (&1.into(), 0));
}

#[test]
fn a_paused_queue_hands_out_nothing_until_it_is_resumed() {
    let place = Place::new();
    place.run(&["pause", "default", "--for", "10m"]).ends_with(0).says("paused for 10m");
    place.run(&["--send", "default:test:x", "--watch", "--max-time", "500ms"]).ends_with(0).says("0 done");
    let stats = &place.run(&["stats", "--json"]).json()[0];
    assert_eq!((&stats["paused"], &stats["ready"]), (&true.into(), &1.into()));
    assert!(stats["paused_for"].as_f64().unwrap() > 500.0);
    assert_eq!(stats["exactness"]["ready"], "exact");
    place.run(&["--watch", "--drain"]).ends_with(0).says("0 done").says("queue `default` is paused");
    place.run(&["resume", "default"]).ends_with(0);
    place.run(&["--watch", "--drain"]).ends_with(0).says("1 done");
    place.run(&["pause", "default"]).ends_with(0).says("until it is resumed");
    place.run(&["stats"]).says("yes");
}

#[test]
fn listings_look_and_change_nothing() {
    let place = Place::with(
        "[queues.a]\nlabel = \"All of A\"\nelsewhere = [\"far\"]\n[queues.a.workers.near]\nexec = [\"./n\"]\n[queues.b]\n",
    );
    place.run(&["--list"]).ends_with(0).says("All of A").says("far (elsewhere), near");
    let list = place.run(&["--list", "--json"]).json();
    assert_eq!((&list[0]["tasks"], &list[1]["queue"]), (&serde_json::json!(["far", "near"]), &"b".into()));
    place.run(&["--send", "a:near:x", "--count", "30"]).ends_with(0);
    for _ in 0..2 {
        let first = place.run(&["peek", "a", "--json"]).json();
        assert_eq!((first.len(), &first[0]["failed"]), (10, &0.into()));
    }
    place.run(&["peek", "a", "--state", "asleep"]).ends_with(2).complains("no state `asleep`");
    place.run(&["peek", "c"]).ends_with(1).complains("`a`, `b`");
    place.run(&["stats"]).ends_with(0).says("a      30").says("b      0");
}

#[test]
fn what_comes_from_anywhere_cannot_steer_the_terminal() {
    let place = Place::new();
    let line = "{\"queue\":\"default\",\"task\":\"a\\u001b[2Jb\",\"store\":\"x\\ny\",\"data\":\"\u{9b}\"}\n";
    place.run_with(&["--jsonl", "--unchecked"], line).ends_with(0);
    let shown = place.run(&["peek", "default"]).ends_with(0).says("a\u{FFFD}[2Jb").says("x y");
    assert_eq!(shown.out.lines().count(), 2, "{shown:?}");
    assert!(!shown.out.contains(['\u{1b}', '\u{9b}']), "{shown:?}");
}

#[test]
fn stats_go_on_until_nobody_reads() {
    let place = Place::new();
    let mut child = place.command(&["stats", "--watch=0.05", "--json"]).spawn().unwrap();
    let lines = Lines::of(&mut child);
    for _ in 0..3 {
        assert!(lines.next().contains("\"ready\":0"));
    }
    drop(lines);
    finish(child).ends_with(0);
}

#[test]
fn init_sets_up_even_where_nothing_is_created_by_itself() {
    let place = Place::with(
        "[brokers.default]\nurl = \"sqlite:./q.db\"\ncreate = \"never\"\n[queues.a]\nworkers = [\"t\"]\n[queues.b]\n",
    );
    place.run(&["--send", "a:t:x"]).ends_with(1).complains("init");
    place.run(&["init"]).ends_with(0).says("queue `a`").says("queue `b`");
    place.run(&["--send", "a:t:x"]).ends_with(0);
    place.run(&["init", "c"]).ends_with(1).complains("no queue `c`");
}

#[test]
fn the_capability_table_needs_no_settings() {
    let place = Place::with("this is no settings file");
    place.run(&["brokers"]).ends_with(0).says("sqlite").says("hold, kick");
    let table = place.run(&["brokers", "--markdown"]).ends_with(0).out;
    let columns: Vec<_> = table.lines().take_while(|line| line.starts_with('|')).map(|line| line.matches('|').count()).collect();
    assert!(columns.len() > 14 && columns.iter().all(|count| *count == columns[0]), "{table}");
    let drivers = place.run(&["brokers", "--json"]).json();
    assert!(
        drivers
            .iter()
            .any(|driver| driver["driver"] == "memory" && driver["capabilities"]["verbs"]["delay"]["support"] == "native")
    );
    place.run(&["completions", "bash"]).ends_with(0).says("queue-runner");
}
