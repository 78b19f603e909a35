//! Variables, beside a file and a program.

use super::*;

#[test]
fn a_variable_that_is_spelt_wrong_is_an_error() {
    let with = |name: &'static str| Settings::builder().text("queue.toml", "[queues.images]\n").environment([(name, "5m")]);
    let wrong = |name| problems(with(name).load()).join(" ");
    assert!(wrong("ANYQUEUE__QUEUES__IMAEGS__TTR").contains("did you mean `images`?"));
    assert!(wrong("ANYQUEUE_QUEUES__IMAGES__TTR").contains("two underscores"));
    with("ANYQUEUE__QUEUES__IMAGES__TTR").load().unwrap();
    let worker = "[queues.images.workers.thumbnail]\nexec = [\"./t\"]\n";
    let typo = [("ANYQUEUE__QUEUES__IMAGES__WORKERS__THUMBNIAL__TTR", "5m")];
    let typo = problems(Settings::builder().text("queue.toml", worker).environment(typo).load()).join(" ");
    assert!(typo.contains("`queues.images.workers`; did you mean `thumbnail`?"), "{typo}");
    with("ANYQUEUE_ID").load().unwrap();
    let named = Settings::builder().text("queue.toml", "").environment([("ANYQUEUE__QUEUES__queueName__TTR", "5m")]).load();
    assert_eq!(named.unwrap().queues.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["queueName"]);
}

#[test]
fn without_a_file_variables_reach_handlers_the_usual_queue_and_new_ones() {
    let mail = crate::Queue::new("Mail", ()).worker("Do.It", |_, _: crate::Task<u32>| async {}).into();
    fn with<const N: usize>(mail: &crate::Queue, variables: [(&str, &str); N]) -> (Settings, String) {
        let settings = text("").environment(variables).handler(mail).load().unwrap();
        let names = settings.queues.keys().map(|name| name.to_string()).collect::<Vec<_>>().join(" ");
        (settings, names)
    }
    assert_eq!(with(&mail, []).1, "Mail default");
    let (settings, names) =
        with(&mail, [("ANYQUEUE__QUEUES__MAIL__SLOTS", "3"), ("ANYQUEUE__QUEUES__MAIL__WORKERS__DO_IT__TTR", "9")]);
    assert_eq!(names, "Mail default", "a queue that is tuned is no other set of queues");
    let queue = settings.queue("Mail").unwrap();
    assert_eq!((queue.slots, queue.tasks(), queue.workers["Do.It"].ttr), (Some(3), vec!["Do.It"], Some(secs(9))));
    let (settings, names) = with(&mail, [("ANYQUEUE__QUEUES__DEFAULT__TTR", "7")]);
    assert_eq!((names.as_str(), settings.queue("default").unwrap().ttr), ("Mail default", secs(7)));
    assert_eq!(with(&mail, [("ANYQUEUE__QUEUES__NEW__TTR", "7")]).1, "Mail new");
    let file = text("[queues.Mail]\nslots = 2\n").handler(&mail).load().unwrap();
    assert_eq!(file.queues.len(), 1, "a file names all the queues beside the program's");
    let whole = text("[queues.Mail]\n").environment([("ANYQUEUE__QUEUES__MAIL", "{slots = 3}")]).handler(&mail).load().unwrap();
    assert_eq!((whole.queues.len(), whole.queue("Mail").unwrap().slots), (1, Some(3)));
}

#[test]
fn variables_that_overlap_hold_in_any_order_or_are_named() {
    let file = "[brokers.default]\nurl = \"memory:\"\n[queues.a]\n";
    let with = |one: (&str, &str), two: (&str, &str)| text(file).environment([one, two]).load();
    let both_orders = |one, two| [with(one, two), with(two, one)];
    for settings in both_orders(("ANYQUEUE__QUEUES__A", "{ttr = 9, backoff = {first = 3}}"), ("ANYQUEUE__QUEUES__A__SLOTS", "2"))
    {
        let settings = settings.unwrap();
        let queue = settings.queue("a").unwrap();
        assert_eq!((queue.ttr, queue.slots, queue.policy.backoff.first), (secs(9), Some(2), secs(3)));
        assert_eq!(settings.origin("queues.a.ttr").to_string(), "ANYQUEUE__QUEUES__A");
    }
    for settings in both_orders(("ANYQUEUE__QUEUES__B__LABEL", "x"), ("ANYQUEUE__QUEUES", "{B = {label = {}}}")) {
        assert!(problems(settings).join(" ").contains("nothing called `B`"));
    }
    for settings in both_orders(("ANYQUEUE__RUNNER__GRACE", "3"), ("ANYQUEUE__RUNNER__GRACE__X", "3")) {
        let found = problems(settings).join(" ");
        assert!(found.contains("ANYQUEUE__RUNNER__GRACE__X and ANYQUEUE__RUNNER__GRACE both set `runner.grace"), "{found}");
    }
    for settings in both_orders(("ANYQUEUE__QUEUES__A__LABEL", "x"), ("ANYQUEUE__QUEUES__A", "{label = {}}")) {
        assert!(problems(settings).join(" ").contains("both set `queues.a`"));
    }
    for settings in both_orders(("ANYQUEUE__QUEUES__A__ELSEWHERE", "[\"Far\"]"), ("ANYQUEUE__QUEUES__A__WORKERS__FAR__TTR", "9"))
    {
        assert_eq!(settings.unwrap().queue("a").unwrap().workers["Far"].ttr, Some(secs(9)));
    }
    let thumb = ("ANYQUEUE__QUEUES__A__WORKERS__THUMB__EXEC", "[\"./t\"]");
    for settings in both_orders(("ANYQUEUE__QUEUES__A__ELSEWHERE", "[\"Far\"]"), thumb) {
        assert_eq!(settings.unwrap().queue("a").unwrap().tasks(), ["Far", "thumb"], "a worker of its own beside one elsewhere");
    }
}

#[test]
fn names_in_variables_mean_each_other() {
    let names = |variables| {
        text("").environment(variables).load().map(|settings| {
            let tasks =
                |(name, queue): (&anyqueue_core::QueueName, &QueueSettings)| format!("{name}: {}", queue.tasks().join(" "));
            let routes = settings.routes.iter().map(|route| route.pattern.clone());
            settings.queues.iter().map(tasks).chain(routes).collect::<Vec<_>>().join(", ")
        })
    };
    let (queues, workers, task) =
        ("ANYQUEUE__QUEUES", "ANYQUEUE__QUEUES__MAIL__WORKERS", "ANYQUEUE__QUEUES__MAIL__WORKERS__DO_IT__TTR");
    let list = "ANYQUEUE__QUEUES__MAIL__ELSEWHERE";
    for (variables, wanted) in [
        ([(workers, "{\"Do.It\" = {}}"), (task, "5m")], "mail: Do.It"),
        ([(queues, "{Mail = {slots = 2}}"), ("ANYQUEUE__QUEUES__MAIL", "{ttr = \"5m\"}")], "Mail: "),
        ([("ANYQUEUE__QUEUES__Mail__TTR", "5m"), ("ANYQUEUE__QUEUES__MAIL__SLOTS", "2")], "Mail: "),
        ([(list, "[\"Do.It\"]"), ("ANYQUEUE__ROUTES__DO_IT", "mail")], "mail: Do.It, Do.It"),
        ([(list, "[\"Do.It\"]"), ("ANYQUEUE__QUEUES__mail__WORKERS__do_it__EXEC", "[\"x\"]")], "mail: Do.It"),
        ([("ANYQUEUE__QUEUES__mail__ELSEWHERE", "[\"Do.It\"]"), (task, "5m")], "mail: Do.It"),
    ] {
        assert_eq!(names(variables).unwrap(), wanted, "{variables:?}");
    }
    let error = names([("ANYQUEUE__ROUTES__MAIL", "default"), ("ANYQUEUE__ROUTES__Mail", "default")]).unwrap_err().to_string();
    assert!(error.contains("both set `routes.Mail`"), "{error}");
    let typo = "ANYQUEUE__QUEUES__MAIL__WORKERS__RENDR__TTR";
    let error = names([(list, "[\"Render\"]"), (typo, "5m")]).unwrap_err().to_string();
    assert!(error.contains(typo) && error.contains("did you mean `Render`?"), "{error}");
}

#[test]
fn a_worker_that_is_new_beside_lists_and_handlers_needs_a_program() {
    let mail = crate::Queue::new("mail", ()).worker("Do.It", |_, _: crate::Task<u32>| async {}).into();
    let load =
        |key: &str, value: &str| text("[queues.a]\nelsewhere = [\"Far\"]\n").environment([(key, value)]).handler(&mail).load();
    for (queue, meant) in [("A", "Far"), ("MAIL", "Do.It")] {
        let worker = format!("ANYQUEUE__QUEUES__{queue}__WORKERS__NEW");
        let error = problems(load(&format!("{worker}__TTR"), "9")).join(" ");
        assert!(error.contains(&format!("Known: `{meant}`")) || error.contains(&format!("known: `{meant}`")), "{error}");
        load(&format!("{worker}__EXEC"), "[\"./new\"]").unwrap();
    }
}

#[test]
fn a_variable_that_is_a_table_has_exact_keys_and_the_rules_of_others() {
    let file = "[brokers.default]\nurl = \"memory:\"\n[queues.a]\n[queues.a.workers.\"Do.It\"]\n[routes]\n\"a.b\" = \"a\"\n";
    let with = |name: &str, table: &str| text(file).environment([(name, table)]).load();
    let wrong = |table: &str| problems(with("ANYQUEUE__QUEUES", table)).join(" ");
    assert!(wrong("{b = {ttr = 9}}").contains("nothing called `b` in `queues`"), "it adds no name");
    assert!(wrong("{A = {ttr = 9}}").contains("did you mean `a`?"));
    assert!(
        wrong("{a = {trr = 9}}").contains("ANYQUEUE__QUEUES: unknown key `trr` in [queues.a]"),
        "{}",
        wrong("{a = {trr = 9}}")
    );
    let routes = with("ANYQUEUE__ROUTES", "{\"do-it\" = \"a\", \"a-b\" = \"a\"}").unwrap().routes;
    let patterns: Vec<_> = routes.iter().map(|route| route.pattern.as_str()).collect();
    assert_eq!(patterns, ["do-it", "a-b", "a.b"], "look-alikes are others");
    let settings = with("ANYQUEUE__BROKERS__DEFAULT", "{}").unwrap();
    assert_eq!(settings.origin("brokers.default").to_string(), "queue.toml:1", "an empty table sets nothing");
    let names = [("ANYQUEUE__QUEUES", "{\"Mail.Out\" = {slots = 2}}"), ("ANYQUEUE__QUEUES__MAIL_OUT__TTR", "9")];
    let settings = text("").environment(names).load().unwrap();
    assert_eq!((settings.queues.len(), settings.queue("Mail.Out").unwrap().ttr), (1, secs(9)));
}

#[test]
fn what_the_file_has_in_a_wrong_shape_stays_wrong_whatever_is_set_over_it() {
    let over = |toml: &str| {
        let variable = problems(text(toml).environment([("ANYQUEUE__QUEUES__A__TTR", "9")]).load());
        (variable.join(" "), problems(text(toml).flag("queues.a.ttr", 9).load()).join(" "))
    };
    for toml in ["queues = 5", "[queues]\na = 5", "[[queues]]\nttr = 3"] {
        let (variable, flag) = over(toml);
        assert!(variable.contains("in the file"), "{toml}: {variable}");
        assert!(flag.contains("in the file"), "{toml}: {flag}");
    }
    let empty = problems(text("queues = 5").environment([("ANYQUEUE__QUEUES", "{}")]).load()).join(" ");
    assert!(empty.contains("no table in the file"), "{empty}");
}

#[test]
fn a_worker_that_is_new_beside_the_one_that_is_built_in_needs_a_program_too() {
    let load = |name: &str, value: &str| text("").environment([(name, value)]).load();
    for name in ["TSET", "Test"] {
        let error = problems(load(&format!("ANYQUEUE__QUEUES__DEFAULT__WORKERS__{name}__TTR"), "9")).join(" ");
        assert!(error.contains("`test`"), "{error}");
    }
    let settings = load("ANYQUEUE__QUEUES__DEFAULT__WORKERS__RENDER__ELSEWHERE", "true").unwrap();
    assert_eq!(settings.queue("default").unwrap().tasks(), ["render"], "or to live elsewhere");
    let settings = load("ANYQUEUE__QUEUES__DEFAULT__WORKERS__TEST__TTR", "9").unwrap();
    assert_eq!(settings.queue("default").unwrap().workers["test"].ttr, Some(secs(9)));
}

#[test]
fn a_table_with_a_slip_says_what_the_slip_is() {
    for file in ["", "[queues.mail]\n"] {
        let error = problems(text(file).environment([("ANYQUEUE__QUEUES__MAIL", "{ttr = 5m}")]).load()).join(" ");
        assert!(error.contains("no table: ") && error.contains("needs quotes"), "{error}");
    }
    let typo = text("[queues.mail]\n").environment([("ANYQUEUE__QUEUES__MIAL__LABEL", "{m}")]).load();
    assert!(problems(typo).join(" ").contains("did you mean `mail`?"), "a slip hides no other mistake");
    let label = text("").environment([("ANYQUEUE__QUEUES__MAIL__LABEL", "{m")]).load().unwrap();
    assert_eq!(label.queue("mail").unwrap().label, "{m", "a text may begin like a table");
}

#[test]
fn a_url_in_the_wrong_place_is_not_repeated() {
    for key in [
        "DEFAULTS__PRIORITY",
        "DEFAULTS__TTR",
        "DEFAULTS__SLOTS",
        "DEFAULTS__ELSEWHERE",
        "RUNNER__STRATEGY",
        "BROKERS__DEFAULT__CREATE",
        "BROKERS__DEFAULT__TIMEOUT",
        "QUEUES__DEFAULT__PRIORITIES",
        "QUEUES__DEFAULT__WORKERS__TEST__LEASE",
        "QUEUES__DEFAULT__WORKERS__TEST__EXEC",
        "ROUTES__MAIL",
    ] {
        let name = format!("ANYQUEUE__{key}");
        for url in ["redis://u:hunter2@h", "redis://u:hunter-2@h"] {
            let error = text("").environment([(&name, url)]).load().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter"), "{name}: {error}");
        }
    }
}
