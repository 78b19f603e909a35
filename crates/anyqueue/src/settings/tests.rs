//! Settings as users write them.

#![cfg(all(feature = "memory", feature = "sqlite"))]

mod drivers;
mod variables;

use std::time::Duration;

use anyqueue_core::{Create, Result};

use super::*;
use crate::policy::{Lease, TimeLimit};

const FULL: &str = include_str!("../../../../config/queue.full.toml");

fn text(toml: &str) -> SettingsBuilder {
    Settings::builder().text("queue.toml", toml).environment([])
}

fn load(toml: &str) -> Settings {
    text(toml).load().unwrap()
}

/// What is wrong, line by line.
fn problems(result: Result<Settings>) -> Vec<String> {
    result.unwrap_err().to_string().lines().map(str::to_owned).collect()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn with_nothing_there_is_sqlite_and_the_queue_default_with_a_worker() {
    let settings = load("");
    assert_eq!(settings.brokers["default"].url.to_string(), "sqlite:./queue.db");
    let queue = settings.queue("default").unwrap();
    assert_eq!((queue.tasks(), queue.priority, queue.ttr, &*queue.broker), (vec!["test"], 1024, secs(60), "default"));
    assert_eq!(settings.runner, RunnerSettings::default());
    assert_eq!(settings.origin("runner.slots"), Origin::Default);
}

#[test]
fn names_keep_their_case_and_dots() {
    let settings = load(
        "[queues.\"mail.Out\".workers.\"queueName.X\"]\nttr = 5\n[queues.mailOut]\n[routes]\n\"Big.*\" = \"mail.Out\"\n[brokers.\"My.Broker\"]\nurl = \"memory:\"\n",
    );
    let names: Vec<&str> = settings.queues.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["mail.Out", "mailOut"]);
    assert_eq!(settings.queue("mail.Out").unwrap().workers["queueName.X"].ttr, Some(secs(5)));
    assert_eq!(settings.route("Big.one").unwrap().as_str(), "mail.Out");
    assert_eq!(settings.route("big.one"), None);
    assert_eq!(settings.default_broker, "My.Broker");
}

#[test]
fn the_file_is_beaten_by_the_environment_and_that_by_flags() {
    let file = "[runner]\nslots = 2\ngrace = 5\nprefetch = 7\n[queues.\"mail.Out\"]\n";
    let settings = text(file)
        .environment([
            ("ANYQUEUE__RUNNER__SLOTS", "3"),
            ("ANYQUEUE__RUNNER__GRACE", "6s"),
            ("ANYQUEUE__QUEUES__MAIL_OUT__PRIORITY", "high"),
            ("ANYQUEUE__QUEUES__MAIL_OUT__ELSEWHERE", "[\"a\", \"b\"]"),
            ("ANYQUEUE__BROKERS__DEFAULT__URL", "memory:"),
            ("ANYQUEUE_ID", "a task's id is no setting"),
            ("OTHER__RUNNER__SLOTS", "99"),
        ])
        .flag("runner.slots", 4)
        .flag("queues.\"mail.Out\".ttr", "5m")
        .load()
        .unwrap();
    assert_eq!((settings.runner.slots, settings.runner.grace, settings.runner.prefetch), (4, secs(6), 7));
    let queue = settings.queue("mail.Out").unwrap();
    assert_eq!((queue.priority, queue.ttr, queue.tasks()), (512, secs(300), vec!["a", "b"]));
    assert_eq!(settings.brokers["default"].driver.name, "memory");
    let origins =
        ["runner.slots", "runner.grace", "runner.prefetch", "runner.strategy"].map(|key| settings.origin(key).to_string());
    assert_eq!(origins, ["command line", "ANYQUEUE__RUNNER__GRACE", "queue.toml:4", "default"]);
}

#[test]
fn a_worker_stands_over_its_queue_and_that_over_the_defaults() {
    let settings = load(
        r#"
[defaults]
max_attempts = 3
backoff = { first = "2s", jitter = 0 }
ttr = "2m"
slots = 3
[queues.a]
backoff = { factor = 2 }
time_limit = "none"
slots = "none"
[queues.a.workers.w]
max_attempts = 1
lease = "manual"
[queues.b]
"#,
    );
    let (a, b) = (settings.queue("a").unwrap(), settings.queue("b").unwrap());
    assert_eq!((a.policy.max_attempts, a.ttr, a.slots, a.policy.time_limit), (3, secs(120), None, TimeLimit::Off));
    assert_eq!((b.slots, b.policy.time_limit, b.policy.backoff.factor), (Some(3), TimeLimit::Unset, 4.0));
    let worker = a.policy_of("w");
    assert_eq!((worker.max_attempts, worker.lease, worker.time_limit), (1, Lease::Manual, TimeLimit::Off));
    assert_eq!((worker.backoff.first, worker.backoff.factor, worker.backoff.jitter), (secs(2), 2.0, 0.0));
    assert_eq!(a.policy_of("other"), &a.policy);
    let origins = ["queues.a.workers.w.max_attempts", "queues.a.workers.w.backoff.factor", "queues.a.ttr", "queues.b.label"];
    assert_eq!(origins.map(|key| settings.origin(key).to_string()), ["queue.toml:12", "queue.toml:8", "queue.toml:5", "default"]);
}

#[test]
fn workers_may_be_programs_or_names_that_live_elsewhere() {
    let settings = load(
        "[queues.a]\nworkers = [\"render\"]\n[queues.b]\nelsewhere = [\"x\"]\n[queues.b.workers.thumb]\nexec = [\"./t.sh\", \"-v\"]\n[queues.b.workers.y]\nelsewhere = true\n",
    );
    assert_eq!((settings.queue("a").unwrap().tasks(), settings.queue("a").unwrap().workers.len()), (vec!["render"], 0));
    let b = settings.queue("b").unwrap();
    assert_eq!(b.tasks(), ["thumb", "x", "y"]);
    assert_eq!(b.elsewhere, ["x", "y"]);
    assert_eq!(b.workers["thumb"].exec.as_ref().unwrap(), &["./t.sh", "-v"]);
}

#[test]
fn everything_wrong_is_reported_at_once_with_its_line() {
    let file = r#"
strickt = true
[brokers.default]
url = "memory:"
creat = "never"
create = "sometimes"
[queues.images]
slotz = 4
ttr = "ten"
priority = "hihg"
broker = "defualt"
[queues.images.workers.thumb]
exec = "./thumb.sh"
[queues.images.backoff]
frist = 1
[queues."bad name"]
[runner]
slots = 0
strategy = "fiar"
memory_limit = "lots"
[routes]
"mail.*" = "imags"
"#;
    let found = problems(text(file).environment([("ANYQUEUE__RUNNER__GRACE", "long")]).load());
    let wanted = [
        "queue.toml:2: unknown key `strickt`; did you mean `strict`?",
        "queue.toml:5: unknown key `creat` in [brokers.default]; did you mean `create`?",
        "queue.toml:6: `create` in [brokers.default]: `sometimes` is not one of its words; known: `auto`, `never`",
        "queue.toml:8: unknown key `slotz` in [queues.images]; did you mean `slots`?",
        "queue.toml:9: `ttr` in [queues.images]: `ten` is not a duration",
        "queue.toml:10: `priority` in [queues.images]: priority `hihg` is neither",
        "queue.toml:11: `broker` in [queues.images]: there is no broker `defualt`; did you mean `default`?",
        "queue.toml:13: `exec` in [queues.images.workers.thumb]: `./thumb.sh` is not a list",
        "queue.toml:15: unknown key `frist` in [queues.images.backoff]; did you mean `first`?",
        "queue.toml:16: [queues.\"bad name\"]: queue name `bad name` has the character ' '",
        "queue.toml:18: `slots` in [runner]: `0` is not a whole number from 1 to 65536",
        "queue.toml:19: `strategy` in [runner]: `fiar` is not one of its words; did you mean `fair`?",
        "queue.toml:20: `memory_limit` in [runner]: `lots` is not a size",
        "queue.toml:22: `mail.*` in [routes]: there is no queue `imags`; did you mean `images`?",
        "ANYQUEUE__RUNNER__GRACE: `grace` in [runner]: `long` is not a duration",
    ];
    for wanted in wanted {
        assert!(found.iter().any(|line| line.starts_with(wanted)), "missing {wanted:?} in {found:#?}");
    }
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    let found = problems(text("").environment([("ANYQUEUE__RUNER__SLOTS", "1")]).load());
    assert!(found[0].starts_with("ANYQUEUE__RUNER__SLOTS: unknown key `runer`; did you mean `runner`?"), "{found:?}");
    let found = problems(text("").flag("runner.slot", 1).load());
    assert!(found[0].starts_with("command line: unknown key `slot` in [runner]"), "{found:?}");
}

#[test]
fn brokers_say_what_is_wrong_with_them_but_no_password() {
    for (file, wanted) in [
        (
            "[brokers.a]\nurl = \"memori:\"",
            "queue.toml:2: `url` in [brokers.a]: no broker has the URL scheme `memori`; did you mean `memory`?",
        ),
        ("[brokers.a]\ntimeout = 1", "queue.toml:1: `url` in [brokers.a]: it is missing"),
        ("[brokers.a]\nurl = \"memory:\"\ncolour = 1", "queue.toml:3: unknown key `colour` in [brokers.a]; known: "),
        ("[brokers.a]\nurl = \"memory:?colour=1\"", "queue.toml:2: `url` in [brokers.a]: memory has no option `colour`"),
        ("[brokers.a]\nurl = \"memory:\"\n[brokers.b]\nurl = \"memory:\"", "`default_broker`: set it, since none"),
        ("default_broker = \"b\"\n[brokers.a]\nurl = \"memory:\"", "queue.toml:1: `default_broker`: there is no broker `b`"),
        (
            "default_broker = \"redis://me:hunter2@h\"\n[brokers.a]\nurl = \"memory:\"",
            "queue.toml:1: `default_broker`: a URL stands where a broker's name goes; give it as `brokers.NAME.url`",
        ),
        ("[brokers]\na = 1", "queue.toml:2: `brokers.a` must be a table, [brokers.a]"),
    ] {
        let found = problems(text(file).load());
        assert!(found[0].starts_with(wanted), "{found:?} should start with {wanted}");
    }
    let settings = load("[brokers.a]\nurl = \"memory://user:hunter2@host/x\"\n");
    let error = text("[brokers.a]\nurl = \"memori://user:hunter2@host:99999/x\"\n").load().unwrap_err();
    let seen = format!("{settings:?} {:?} {error} {error:?}", settings.explain());
    assert!(!seen.contains("hunter2"), "{seen}");
}

#[test]
fn one_broker_can_be_chosen_for_all_queues() {
    let file =
        "[brokers.default]\nurl = \"sqlite:a\"\n[brokers.other]\nurl = \"memory:\"\n[queues.x]\n[queues.y]\nbroker = \"other\"\n";
    let by_name = text(file).broker("other").load().unwrap();
    assert!(by_name.queues.values().all(|queue| &*queue.broker == "other"));
    assert_eq!(by_name.brokers.len(), 1);
    let by_url = text(file).broker("memory:").load().unwrap();
    let broker = &by_url.brokers[&*by_url.queue("x").unwrap().broker];
    assert_eq!(broker.driver.name, "memory");
    assert_eq!(by_url.origin("queues.x.broker"), Origin::Flag);
    let error = text(file).broker("othre").load().unwrap_err().to_string();
    assert!(error.contains("did you mean `other`?"), "{error}");
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml").display().to_string();
    let error = Settings::builder().environment([]).file(&path).load().unwrap_err().to_string();
    assert!(error.contains("mine.toml") && error.contains("cannot be read"), "{error}");
    let error = Settings::builder().environment([("ANYQUEUE_CONFIG", &path)]).load().unwrap_err().to_string();
    assert!(error.contains("ANYQUEUE_CONFIG"), "{error}");
    std::fs::write(&path, "[runner]\nslots = 77\n").unwrap();
    let settings = Settings::builder().environment([("ANYQUEUE_CONFIG", &path)]).load().unwrap();
    assert_eq!((settings.runner.slots, settings.file.as_deref()), (77, Some(path.as_str())));
}

#[test]
fn an_unknown_queue_is_answered_with_the_nearest() {
    let settings = load("[queues.images]\n[queues.mail]\n");
    let error = settings.queue("imags").unwrap_err().to_string();
    assert_eq!(error, "no queue `imags` in the settings; did you mean `images`? Known: `images`, `mail`");
}

#[test]
fn the_more_exact_route_is_tried_first() {
    let settings =
        load("[queues.a]\n[queues.b]\n[queues.c]\n[routes]\n\"*\" = \"a\"\n\"mail.*\" = \"b\"\n\"mail.out\" = \"c\"\n");
    for (task, queue) in [("x", "a"), ("mail.in", "b"), ("mail.out", "c")] {
        assert_eq!(settings.route(task).unwrap().as_str(), queue);
    }
}

/// Servers and their samples.
const OWN: [(&str, &str); 5] = [
    ("beanstalkd", include_str!("../../../../config/queue.beanstalkd.toml")),
    ("redis", include_str!("../../../../config/queue.redis.toml")),
    ("sqs", include_str!("../../../../config/queue.sqs.toml")),
    ("gearman", include_str!("../../../../config/queue.gearman.toml")),
    ("rabbitmq", include_str!("../../../../config/queue.rabbitmq.toml")),
];

#[test]
fn the_full_sample_has_every_key_and_an_explanation_for_each() {
    let (settings, asked) = text(FULL).read();
    let settings = settings.unwrap();
    let missing: Vec<_> = asked.iter().filter(|key| !settings.origins.any(key)).collect();
    assert!(missing.is_empty(), "keys that the sample does not show: {missing:?}");
    for driver in Drivers::enabled().iter() {
        // It may be started where no server is: those have samples of their own.
        let own = OWN.iter().find(|(name, _)| *name == driver.name).map(|(_, sample)| *sample);
        for option in driver.options {
            let line = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{} = ", option.key));
            let shown = match own {
                Some(sample) => sample.lines().any(line),
                None => settings.origins.any(&format!("brokers.*.{}", option.key)),
            };
            assert!(shown, "no sample shows {}'s option `{}`", driver.name, option.key);
        }
    }
    // The sample may be started as it is: what it says is what holds without it, except where it shows another value.
    assert_eq!(settings.brokers["default"].create, Create::Auto);
    let lines: Vec<&str> = FULL.lines().collect();
    for (n, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ")) {
        let explained =
            line.contains('#') || lines[..n].iter().rev().find(|l| !l.contains(" = ")).is_some_and(|l| l.starts_with('#'));
        assert!(explained, "line {} of the sample explains nothing: {line}", n + 1);
    }
}

#[test]
fn the_other_samples_load() {
    for sample in [include_str!("../../../../config/queue.sqlite.toml"), include_str!("../../../../config/queue.memory.toml")] {
        load(sample);
    }
    let known = Drivers::enabled();
    OWN.iter().filter(|(name, _)| known.find(name).is_ok()).for_each(|(_, sample)| drop(load(sample)));
}

/// What a key is, and where that came from.
fn explained(settings: &Settings, key: &str) -> Option<String> {
    let line = settings.explain().into_iter().find(|line| line.key == key)?;
    Some(format!("{} ({})", line.value, line.origin))
}

#[test]
fn what_holds_is_explained_with_its_origin() {
    let settings = load(
        "[brokers.default]\nurl = \"memory:\"\n[queues.a]\nttr = \"5m\"\n[queues.a.workers.w]\nexec = [\"./w\"]\nmax_attempts = 2\n",
    );
    let line = |key| explained(&settings, key);
    assert_eq!(line("queues.a.ttr").unwrap(), "5m (queue.toml:4)");
    assert_eq!(line("queues.a.workers.w.max_attempts").unwrap(), "2 (queue.toml:7)");
    assert_eq!(line("queues.a.workers.w.lease"), None);
    assert_eq!(line("runner.slots").unwrap(), "10 (default)");
    assert_eq!(line("brokers.default.max_payload").unwrap(), "none (default)");
    let settings = load("[brokers.default]\nurl = \"memory:?max_payload=7\"\n[queues.a]\nworkers = [\"Do.It\"]\n");
    let line = |key| explained(&settings, key);
    assert_eq!(line("brokers.default.max_payload").unwrap(), "7 (queue.toml:2)");
    assert_eq!(line("queues.a.elsewhere").unwrap(), "Do.It (queue.toml:4)");
    let settings = load(
        "[queues.a]\nelsewhere = [\"x\"]\n[queues.a.workers.y]\nelsewhere = true\n[queues.a.workers.x]\nelsewhere = false\n",
    );
    let line = |key| explained(&settings, key);
    assert_eq!(line("queues.a.elsewhere").unwrap(), "x (queue.toml:2)");
    assert_eq!(line("queues.a.workers.y.elsewhere").unwrap(), "true (queue.toml:4)");
    assert_eq!(line("queues.a.workers.x.elsewhere"), None);
    let lines = text("").broker("memory:").load().unwrap().explain();
    assert!(lines.iter().any(|line| line.key == "brokers.command-line.url" && line.origin == Origin::Flag), "{lines:?}");
}

#[test]
fn values_of_the_wrong_shape_say_what_they_should_be() {
    for (file, wanted) in [
        ("\"queues.a\" = 5", "queue.toml:1: unknown key `queues.a`; "),
        ("queues = 5", "queue.toml:1: `queues` must be a table, [queues]"),
        ("[[queues]]\nslots = 1", "queue.toml:1: `queues` must be a table, [queues]"),
        ("[queues]\na = 1", "queue.toml:2: `queues.a` must be a table, [queues.a]"),
        ("[queues.a]\nworkers = 5", "queue.toml:2: `workers` in [queues.a]: `5` is not a list"),
        ("[queues.a.workers.w]\nexec = [1]", "queue.toml:2: `exec` in [queues.a.workers.w]: `1` is not a text"),
        (
            "[queues.a.workers.w]\nexec = [\"x\"]\nelsewhere = true",
            "queue.toml:3: `elsewhere` in [queues.a.workers.w]: a worker with `exec` lives here",
        ),
        ("[queues.a.workers.\" \"]", "queue.toml:1: [queues.a.workers.\" \"]: ` ` is no task name"),
        ("[queues.a]\nttr = 0.5", "queue.toml:2: `ttr` in [queues.a]: a TTR of 500ms is below the least, 1s"),
        (
            "[queues.a]\ndelay = \"6years\"",
            "queue.toml:2: `delay` in [queues.a]: a delay of 6years is above the limit of 5 years",
        ),
        ("[brokers.default]\ntimeout = \"25d\"", "queue.toml:2: `timeout` in [brokers.default]: `25d` is above the most, 1h"),
        ("[queues.a]\ntime_limit = 0", "queue.toml:2: `time_limit` in [queues.a]: `0` is too short"),
        ("[runner]\nslots = 2026-01-01", "queue.toml:2: `slots` in [runner]: `2026-01-01` is not a whole number"),
        ("strict = \"yes\"", "queue.toml:1: `strict`: `yes` is neither true nor false"),
    ] {
        let found = problems(text(file).load());
        assert!(found[0].starts_with(wanted), "{found:?} should start with {wanted}");
    }
}

#[test]
fn a_handler_makes_its_queue_and_its_tasks_known_as_a_table_would() {
    let mail = crate::Queue::new("mail", ()).worker("welcome", |_, _: crate::Task<u32>| async {}).into();
    let own = crate::Queue::new("default", ()).worker("mine", |_, _: crate::Task<u32>| async {}).into();
    let file = "[defaults]\nttr = \"5m\"\n[queues.other]\n[routes]\n\"welcome\" = \"mail\"\n";
    let variable = [("ANYQUEUE__QUEUES__MAIL__SLOTS", "3")];
    let settings = text(file).environment(variable).handler(&mail).handler(&own).load().unwrap();
    let queue = settings.queue("mail").unwrap();
    assert_eq!((queue.tasks(), queue.ttr, queue.slots, &*queue.label), (vec!["welcome"], secs(300), Some(3), "mail"));
    assert_eq!(settings.route("welcome").unwrap().as_str(), "mail");
    assert_eq!(settings.queue("default").unwrap().tasks(), ["mine"], "the built-in worker gives way");
    assert_eq!(settings.queue_or_default("new").unwrap().ttr, secs(300));
}

#[test]
fn a_handler_with_a_name_that_cannot_be_is_the_programs_fault() {
    let wrong = crate::Queue::new("a queue", ()).worker("w", |_, _: crate::Task<u32>| async {}).into();
    let found = problems(text("[queues.mail]\n").handler(&wrong).load());
    assert_eq!(found, ["a handler of this program: queue name `a queue` has the character ' '; allowed are A-Z a-z 0-9 . _ -"]);
    let blank = crate::Queue::new("mail", ()).worker(" ", |_, _: crate::Task<u32>| async {}).into();
    let found = problems(text("[queues.mail]\n").handler(&blank).load());
    assert!(found[0].starts_with("a handler of this program: ` ` is no task name"), "{found:?}");
}
