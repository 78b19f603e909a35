//! Every example runs and does what it says.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;

use crate::place::{Place, broker};
use crate::process::Process;
use crate::programs::example;

/// Starts an example in a folder without settings.
fn start(place: &Place, name: &str, args: &[&str]) -> Process {
    Process::start(&mut place.command(&example(name), args))
}

#[test]
fn hello() {
    let place = Place::unset(&["default"]);
    let ran = start(&place, "hello", &[]).finish().ends_with(0).says("via default").says("hello, world!\n");
    ran.says("drained: 1 done");
    assert_eq!(place.path("queue.db").exists(), broker().is_none());
}

#[test]
fn own_command() {
    let place = Place::unset(&["mail"]);
    let send = ["--send", "mail:welcome", "--data", "\"ann\"", "--watch", "--drain"];
    start(&place, "own-command", &send).finish().ends_with(0).says("welcome, ann\n").says("drained: 1 done");
    start(&place, "own-command", &["--list"]).finish().ends_with(0).says("mail").says("welcome");
    place.write("queue.toml", "[defaults]\nmax_attempts = 1\n[queues.other]\nworkers = [\"t\"]\n");
    let ran = start(&place, "own-command", &["--send", "mail:welcome", "--data", "7", "--watch", "--drain"]).finish();
    ran.ends_with(0).says("1 held").complains("no worker here: other");
    start(&place, "own-command", &["--watch", "other"]).finish().ends_with(1).complains("those that have one: `mail`");
}

#[test]
fn long_task() {
    let place = Place::unset(&["default"]);
    let ran = start(&place, "long-task", &[]).finish().ends_with(0).says("attempt 1: step 12 of 12").says("drained: 1 done");
    assert!(!ran.out.contains("attempt 2"), "a task that is touched runs once: {ran:?}");
}

#[test]
fn hold_and_kick() {
    let place = Place::unset(&["default"]);
    let ran = start(&place, "hold-and-kick", &[]).finish().ends_with(0);
    let wanted = "drained: 0 done, 1 held\nheld: task deliver because order 7 has no address\nkicked: 1\norder 7 goes to 12 Hill Street\ndrained: 1 done\n";
    assert_eq!(ran.out, wanted);
}

#[test]
fn graceful_stop() {
    let place = Place::unset(&["default"]);
    let program = start(&place, "graceful-stop", &[]);
    program.says("task 1 begins");
    program.signal(Signal::TERM);
    program.finish().ends_with(0).says("task 1 is done").says("stopped by a signal: 1 done");
    let stats = place.stats();
    assert_eq!((stats.ready, stats.reserved), (4, 0), "the others wait for another process");

    // They are the first in line, so that the five new ones come behind them.
    let program = start(&place, "graceful-stop", &[]);
    program.says(if place.capability("order") == "first in, first out" { "task 2 begins" } else { "begins" });
    program.signal(Signal::INT);
    program.signal(Signal::TERM);
    program.finish().ends_with(3).says("1 cut short and given back");
}

#[test]
fn web_send() {
    let place = Place::unset(&["default"]);
    let server = start(&place, "web-send", &[]);
    let said = server.says("\n");
    let address = said.trim().strip_prefix("listening on http://").unwrap();
    let answer = post(address, "{\"to\":\"ann@example.com\"}");
    assert!(answer.starts_with("HTTP/1.1 202 ") && answer.contains("\"id\":\""), "{answer}");
    assert!(post(address, "{\"for\":1}").starts_with("HTTP/1.1 422 "), "what is no welcome is no task");
    let tasks = place.run(&["peek", "default", "--json"]).ends_with(0).json();
    assert_eq!(tasks.len(), 1);
    assert_eq!((&tasks[0]["task"], &tasks[0]["data"]["to"]), (&"welcome".into(), &"ann@example.com".into()));
}

fn post(address: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST /welcome HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n");
    write!(stream, "{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn custom_adapter() {
    let place = Place::bare();
    let ran = start(&place, "custom-adapter", &[]).finish().ends_with(0);
    assert_eq!(ran.out, "soon\nlate\ndrained: 2 done\n");
}
