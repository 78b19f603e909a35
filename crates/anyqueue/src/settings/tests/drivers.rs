//! Drivers of one's own: their options, limits and secrets.

use super::*;

/// A driver with the scheme `mine` and these options.
fn mine(options: &'static [anyqueue_core::OptionSpec]) -> anyqueue_core::Driver {
    let memory = *Drivers::enabled().find("memory").unwrap();
    anyqueue_core::Driver { name: "mine", schemes: &["mine"], options, ..memory }
}

#[test]
fn a_driver_of_ones_own_brings_its_scheme_and_its_options() {
    let options = &[anyqueue_core::OptionSpec { key: "speed", default: "1", help: "how fast", per_queue: true, secret: false }];
    let mine = mine(options);
    let file = "[brokers.default]\nurl = \"mine:?speed=2\"\nspeed = 3\n[queues.a]\nspeed = 4\n";
    assert!(problems(text(file).load())[0].contains("no broker has the URL scheme `mine`"));
    let settings = text(file).drivers(Drivers::enabled().with(&mine)).load().unwrap();
    assert_eq!(settings.brokers["default"].options.number("speed").unwrap(), Some(3), "the table wins over the URL");
    assert_eq!(settings.queue("a").unwrap().options.number("speed").unwrap(), Some(4));
    assert!(settings.explain().iter().any(|line| line.key == "queues.a.speed" && line.value == "4"));
}

#[test]
fn without_a_time_limit_an_attempt_may_take_what_its_broker_can_do() {
    let memory = Drivers::enabled().find("memory").copied().unwrap();
    let touch = anyqueue_core::Support::Native(Some(secs(60)));
    let capabilities = anyqueue_core::Capabilities { touch, ..memory.capabilities };
    let short = anyqueue_core::Driver { name: "short", schemes: &["short"], capabilities, ..memory };
    let file = "[brokers.default]\nurl = \"short:\"\n[brokers.long]\nurl = \"memory:\"\n\
        [queues.a]\n[queues.b]\nbroker = \"long\"\n[queues.c]\ntime_limit = \"2h\"\n[queues.a.workers.w]\n";
    let builder = text(file).drivers(Drivers::enabled().with(&short));
    let limits = |settings: Settings| {
        let lines = settings.explain().into_iter().filter(|line| line.key.ends_with(".time_limit"));
        lines.map(|line| format!("{} ({})", line.value, line.origin)).collect::<Vec<_>>()
    };
    let own = "2h (queue.toml:9)";
    assert_eq!(limits(builder.clone().load().unwrap()), ["1m (default)", "1h (default)", own]);
    assert_eq!(limits(builder.clone().broker("memory:").load().unwrap()), ["1h (default)", "1h (default)", own]);
    assert_eq!(limits(builder.broker("short:").load().unwrap()), ["1m (default)", "1m (default)", own]);
}

#[test]
fn a_secret_is_neither_shown_nor_repeated() {
    let options = &[anyqueue_core::OptionSpec { key: "key", default: "none", help: "to get in", per_queue: false, secret: true }];
    let mine = mine(options);
    let file = "[brokers.default]\nurl = \"mine:\"\nkey = 31415926\n";
    let settings = text(file).drivers(Drivers::enabled().with(&mine)).load().unwrap();
    assert!(settings.explain().iter().any(|line| line.key == "brokers.default.key" && line.value == "(set)"));
    let error = settings.brokers["default"].options.text("key").unwrap_err().to_string();
    assert!(!error.contains("31415926") && error.contains("quotes"), "{error}");
}
