//! How settings reach the command, and what `check` says.

mod place;

use place::{Place, finish};

#[test]
fn check_shows_where_each_setting_comes_from_and_asks_the_broker() {
    let place = Place::with("[brokers.default]\nurl = \"sqlite:./mine.db\"\n\n[runner]\nslots = 3\ngrace = \"5s\"\n");
    let mut command = place.command(&["check"]);
    let ran = finish(command.env("ANYQUEUE__RUNNER__GRACE", "7s").spawn().unwrap()).ends_with(0);
    let line = |key: &str| ran.out.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line("runner.slots"), ["runner.slots", "3", "queue.toml:5"]);
    assert_eq!(line("runner.grace"), ["runner.grace", "7s", "ANYQUEUE__RUNNER__GRACE"]);
    assert_eq!(line("runner.strategy"), ["runner.strategy", "fair", "default"]);
    ran.says("mine.db").says("SQLite").says("all is well");
    let lines = place.run(&["check", "--json"]).ends_with(0).json();
    assert!(lines.iter().any(|line| line["setting"] == "runner.slots" && line["origin"] == "queue.toml:5"));
    assert!(
        lines
            .iter()
            .any(|line| line["broker"] == "default" && line["capabilities"]["verbs"]["hold, kick"]["support"] == "native")
    );
}

#[test]
fn check_fails_where_a_broker_cannot_be_used() {
    let place = Place::with("[brokers.default]\nurl = \"sqlite:./no/such/folder/q.db\"\n[brokers.spare]\nurl = \"memory:\"\n");
    place.run(&["check"]).ends_with(1).says("problem").says("no/such/folder").says("no queue uses it");
    let file = "[queues.default]\nttr = \"20h\"\n";
    Place::with(file).run(&["check"]).ends_with(1).says("a TTR of 20h is above the broker's 12h");
}

#[test]
fn check_finds_programs_that_cannot_be_started() {
    let place = Place::with(
        "[queues.a.workers]\nthere = { exec = [\"./there.sh\"] }\npath = { exec = [\"cat\"] }\ngone = { exec = [\"./gone.sh\"] }\nplain = { exec = [\"./queue.toml\"] }\nbare = { exec = [\"there.sh\"] }\n",
    );
    place.script("there.sh", "cat\n");
    let ran = place.run(&["check"]).ends_with(1).says("3 problems");
    ran.says("`./gone.sh` is not there").says("chmod +x").says("`there.sh` is not in PATH");
}

#[test]
fn no_password_is_ever_shown() {
    let place = Place::with("[brokers.default]\nurl = \"memory://user:hunter2@host/name\"\n");
    for args in
        [&["check"][..], &["check", "--json"], &["stats", "-vv"], &["--list", "--json"], &["--send", "default:test:x", "-vv"]]
    {
        let ran = place.run(args);
        assert!(!format!("{ran:?}").contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn every_mistake_in_the_file_is_a_line_of_its_own() {
    let place = Place::with("strickt = true\n[runner]\nslots = \"many\"\n[queues.a]\ntrr = 5\n");
    let ran = place.run(&["--list"]).ends_with(1);
    let lines: Vec<_> = ran.err.lines().collect();
    assert_eq!(lines.len(), 3, "{ran:?}");
    assert!(lines[0].starts_with("error: queue.toml:1: unknown key `strickt`; did you mean `strict`?"), "{ran:?}");
    assert!(lines[1].starts_with("error: queue.toml:3: `slots` in [runner]"), "{ran:?}");
    assert!(lines[2].starts_with("error: queue.toml:5: unknown key `trr` in [queues.a]; did you mean `ttr`?"), "{ran:?}");
}

#[test]
fn another_file_is_named_by_flag_or_variable() {
    let place = Place::with("[queues.usual]\n");
    place.write("other.toml", "[queues.other]\n");
    place.run(&["--list", "--config", "other.toml"]).ends_with(0).says("other");
    let mut command = place.command(&["--list"]);
    finish(command.env("ANYQUEUE_CONFIG", "other.toml").spawn().unwrap()).ends_with(0).says("other");
    place.run(&["--list"]).ends_with(0).says("usual");
    place.run(&["--list", "--config", "nix.toml"]).ends_with(1).complains("nix.toml");
}

#[test]
fn one_broker_is_used_for_all_queues_by_name_or_url() {
    let place = Place::with(
        "[brokers.default]\nurl = \"sqlite:./one.db\"\n[brokers.two]\nurl = \"sqlite:./two.db\"\n[queues.a]\nworkers = [\"t\"]\n",
    );
    place.run(&["--send", "a:t:x", "--broker", "two"]).ends_with(0).says("via two");
    place.run(&["--send", "a:t:x", "--broker", "sqlite:./three.db?durability=process"]).ends_with(0);
    assert!(!place.path("one.db").exists() && place.path("two.db").exists() && place.path("three.db").exists());
    place.run(&["stats", "--broker", "tow"]).ends_with(1).complains("did you mean `two`?");
    place.run(&["stats", "--broker", "sqlite:./x.db?speed=high"]).ends_with(1).complains("no option `speed`");
}

#[test]
fn a_wrong_command_line_ends_with_two() {
    let place = Place::new();
    place.run(&[]).ends_with(2).complains("Usage");
    place.run(&["--sned", "default:test:x"]).ends_with(2).complains("--send");
    place.run(&["--list", "stats"]).ends_with(2);
    place.run(&["--help"]).ends_with(0).says("Exit codes:");
}
