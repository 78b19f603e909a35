//! `brokers`: what each driver of this build can do, made from the declarations. The README's table comes from here.

use std::time::Duration;

use anyqueue::Drivers;
use anyqueue::core::{Capabilities, Death, Driver, Durability, Levels, Order, Support, time};
use serde_json::{Value, json};

use crate::failure::OK;
use crate::out::{Out, size};

pub(crate) fn show(out: &mut Out, drivers: &Drivers, markdown: bool) -> u8 {
    let drivers: Vec<&Driver> = drivers.iter().collect();
    if out.is_json() {
        drivers.iter().for_each(|driver| out.object(&object(driver)));
        return OK;
    }
    let mut notes = Vec::new();
    let rows = rows(&drivers, &mut notes);
    let header: Vec<&str> = [""].into_iter().chain(drivers.iter().map(|driver| driver.name)).collect();
    if markdown {
        let line = |cells: &[&str]| format!("| {} |", cells.join(" | "));
        out.line(line(&header));
        out.line(format!("|{}", "---|".repeat(header.len())));
        rows.iter().for_each(|row| out.line(line(&row.iter().map(String::as_str).collect::<Vec<_>>())));
    } else {
        out.table(&header, &rows);
    }
    out.line("");
    // Many lines; where Markdown is shown they unfold when somebody asks.
    let fold = markdown && !notes.is_empty();
    if fold {
        out.line(format!("<details><summary>The {} notes</summary>\n", notes.len()));
    }
    for (n, note) in notes.iter().enumerate() {
        out.line(format!("{}. {note}", n + 1));
    }
    if fold {
        out.line("\n</details>");
    }
    if notes.is_empty() {
        out.line("native: the broker keeps the promise even if all our processes die.");
    }
    OK
}

/// A row per verb and fact; caveats become numbered notes.
fn rows(drivers: &[&Driver], notes: &mut Vec<String>) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut fact = |name: &str, of: &mut dyn FnMut(&Driver) -> String| {
        rows.push([name.to_owned()].into_iter().chain(drivers.iter().map(|driver| of(driver))).collect());
    };
    fact("URL", &mut |driver| format!("`{}`", driver.example));
    for (n, (verb, _)) in Capabilities::FULL.verbs().into_iter().enumerate() {
        fact(verb, &mut |driver| {
            let support = driver.capabilities.verbs()[n].1;
            match support.caveat() {
                None => support.word().to_owned(),
                Some(caveat) => format!("{} [{}]", support.word(), noted(notes, caveat)),
            }
        });
    }
    fact("priority levels", &mut |driver| levels(driver.capabilities.priority));
    fact("longest delay", &mut |driver| longest(driver.capabilities.delay.limits().max));
    fact("longest TTR", &mut |driver| time::show(driver.capabilities.ttr.limits().max));
    fact("order within a level", &mut |driver| order(driver.capabilities.order).to_owned());
    fact("a task survives", &mut |driver| {
        let survives = durability(driver.capabilities.durability).to_owned();
        match driver.capabilities.durability_caveat {
            None => survives,
            Some(caveat) => format!("{survives} [{}]", noted(notes, caveat)),
        }
    });
    fact("a killed worker's tasks", &mut |driver| death(driver.capabilities.death).to_owned());
    fact("a frozen worker's tasks", &mut |driver| frozen(&driver.capabilities));
    fact("largest task", &mut |driver| driver.capabilities.max_payload.map_or("no limit".into(), size));
    rows
}

/// A delay; the contract's limit in the contract's words.
fn longest(delay: Duration) -> String {
    if delay == time::MAX_DELAY { "5 years".into() } else { time::show(delay) }
}

/// What a connected broker can do, line by line.
pub(crate) fn told(capabilities: &Capabilities) -> Vec<[String; 2]> {
    let c = capabilities;
    let verb = |(verb, support): (&str, Support)| {
        let caveat = support.caveat().map_or_else(String::new, |caveat| format!(": {caveat}"));
        [verb.to_owned(), format!("{}{caveat}", support.word())]
    };
    let survives = durability(c.durability);
    let facts = [
        ("priority levels", levels(c.priority)),
        ("longest delay", longest(c.delay.limits().max)),
        ("longest TTR", time::show(c.ttr.limits().max)),
        ("order", order(c.order).to_owned()),
        ("a task survives", c.durability_caveat.map_or_else(|| survives.into(), |caveat| format!("{survives}: {caveat}"))),
        ("a killed worker's tasks", death(c.death).to_owned()),
        ("a frozen worker's tasks", frozen(c)),
        ("largest task", c.max_payload.map_or("no limit".into(), size)),
    ];
    c.verbs().into_iter().map(verb).chain(facts.map(|(fact, value)| [fact.to_owned(), value])).collect()
}

/// The number of a note; the same sentence is noted once.
fn noted(notes: &mut Vec<String>, text: &str) -> usize {
    let at = notes.iter().position(|note| note == text).unwrap_or_else(|| {
        notes.push(text.to_owned());
        notes.len() - 1
    });
    at + 1
}

fn levels(support: Support<Levels>) -> String {
    match support.limits() {
        Levels::Every => "every number".into(),
        Levels::Bands(bands) => format!("{} bands", bands.len()),
    }
}

fn order(order: Order) -> &'static str {
    match order {
        Order::Fifo => "first in, first out",
        Order::Loose => "roughly as sent",
    }
}

fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::None => "nothing",
        Durability::Process => "any process's death",
        Durability::Power => "a power loss",
    }
}

fn death(death: Death) -> &'static str {
    match death {
        Death::AtOnce => "come back at once",
        Death::AfterLease => "come back after the lease",
        Death::WithBroker => "are gone with it",
    }
}

/// Of a worker that is stopped, or cut off, and keeps its connections.
fn frozen(capabilities: &Capabilities) -> String {
    match (capabilities.death, capabilities.frozen_bound) {
        (Death::WithBroker, _) => "stay with it".into(),
        (_, Duration::MAX) => "come back when it goes on or dies, at the latest".into(),
        (_, Duration::ZERO) => "come back after the lease".into(),
        (_, bound) => format!("come back after the lease, or {} if that is longer", time::show(bound)),
    }
}

/// What a driver or a connected broker can do, as JSON.
pub(crate) fn capabilities(capabilities: &Capabilities) -> Value {
    let verb =
        |(verb, support): (&str, Support)| (verb.to_owned(), json!({ "support": support.word(), "caveat": support.caveat() }));
    let c = capabilities;
    json!({
        "verbs": c.verbs().into_iter().map(verb).collect::<serde_json::Map<_, _>>(),
        "priority_levels": levels(c.priority), "order": order(c.order), "durability": durability(c.durability), "durability_caveat": c.durability_caveat,
        "longest_delay": c.delay.limits().max.as_secs(), "longest_ttr": c.ttr.limits().max.as_secs(),
        "batch": { "send": c.batch.send, "together": c.batch.together, "reserve": c.batch.reserve, "settle": c.batch.settle },
        "largest_task": c.max_payload, "killed_worker": death(c.death), "frozen_worker": frozen(c),
        "frozen_bound": (c.frozen_bound < Duration::MAX).then_some(c.frozen_bound.as_secs_f64()),
    })
}

fn object(driver: &Driver) -> Value {
    let option = |option: &anyqueue::core::OptionSpec| json!({ "key": option.key, "default": option.default, "help": option.help, "per_queue": option.per_queue, "secret": option.secret });
    json!({
        "driver": driver.name, "schemes": driver.schemes, "summary": driver.summary, "example": driver.example,
        "options": driver.options.iter().map(option).collect::<Vec<_>>(), "capabilities": capabilities(&driver.capabilities),
    })
}
