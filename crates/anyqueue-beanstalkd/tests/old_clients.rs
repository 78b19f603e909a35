//! Payloads of the first system and clients that are not ours, both ways. The client is greenstalk, from PyPI; where
//! it is not installed for `python3`, it is taken from `target/python`.

#![allow(clippy::unwrap_used, reason = "this is test code, which clippy sees in functions marked as tests only")]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyqueue_core::{Data, Defaults, Incoming, Settlement, priority};
use anyqueue_testkit::Server;
use anyqueue_testkit::servers::beanstalkd;
use serde_json::{Value, json};
use support::*;

const FIRST_SYSTEM: &str = r#"{"task":"test","store":"0","data":{"message":"hello"}}"#;

async fn greenstalk(address: SocketAddr, arguments: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::process::Command::new("python3")
        .arg(root.join("tests/independent_client.py"))
        .arg(address.to_string())
        .args(arguments)
        .env("PYTHONPATH", root.join("../../target/python"))
        .output()
        .await
        .expect("python3 is installed");
    let wrote = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the client failed; `.ci/install` installs what it needs: {wrote}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_task_of_the_first_system_put_by_another_client_runs_here() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let put = greenstalk(server.address(), &["put", "queueName", FIRST_SYSTEM, "no JSON at all"]).await;
    let (broker, queue) = (connect_to(server.address()).await, queue("queueName"));
    let (mut consumer, mut got) = (consume(&*broker, &queue).await, Vec::new());
    while got.len() < 2 {
        let more = reserve(&mut *consumer, SOON).await;
        assert!(!more.is_empty(), "{got:?}");
        got.extend(more);
    }
    let task = Incoming::read(&got[0], "default", Defaults::default());
    assert_eq!((task.wire.task.as_str(), task.wire.store.as_str()), ("test", "0"));
    assert_eq!(task.wire.data, Data::raw_json(r#"{"message":"hello"}"#).unwrap());
    assert_eq!((task.priority, task.ttr), (priority::NORMAL, Duration::from_secs(60)), "what beanstalkd knows of it");
    assert_eq!(got[0].native.id.as_deref(), Some(put[0].as_str()));
    let unreadable = Incoming::read(&got[1], "default", Defaults::default());
    assert!(unreadable.unreadable.is_some(), "a body that nobody can read is delivered, to be held");
    let parked = unreadable.held("cannot be read", false, std::time::SystemTime::now());
    let settlements =
        [(got[0].receipt.clone(), Settlement::Done), (got[1].receipt.clone(), Settlement::Hold(parked, "cannot be read".into()))];
    consumer.settler().settle(&settlements).await.into_iter().for_each(Result::unwrap);
    let stats = broker.admin().stats(&queue).await.unwrap();
    assert_eq!((stats.ready.value(), stats.reserved.value(), stats.held.value()), (Some(0), Some(0), Some(1)));
}

#[tokio::test]
async fn our_tasks_are_read_by_another_client() {
    let server = beanstalkd::start(&[]).await.unwrap();
    let (broker, queue) = (connect_to(server.address()).await, queue("queueName"));
    let mut urgent = with_data("first");
    (urgent.priority, urgent.ttr) = (priority::HIGH, Duration::from_millis(1500));
    for answer in broker.send(&queue, &[with_data("second"), urgent]).await {
        answer.unwrap();
    }
    let taken = greenstalk(server.address(), &["take", "queueName", "2"]).await;
    let jobs: Vec<Value> = taken.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&jobs[0]["body"]["task"], &jobs[0]["body"]["store"], &jobs[0]["body"]["data"]),
        (&json!("test"), &json!(""), &json!("first"))
    );
    assert_eq!((&jobs[0]["priority"], &jobs[0]["ttr"]), (&json!(512), &json!(2)), "rounded up, never down");
    assert_eq!(jobs[1]["body"]["data"], "second");
    assert_eq!(broker.admin().stats(&queue).await.unwrap().ready.value(), Some(0));
}

#[tokio::test]
async fn a_retried_task_of_another_client_keeps_what_it_had() {
    let server = beanstalkd::start(&[]).await.unwrap();
    greenstalk(server.address(), &["put", "q", r#"{"task":"test","store":"0","data":{"message":"hello"},"mine":[1]}"#]).await;
    let (broker, queue) = (connect_to(server.address()).await, queue("q"));
    let mut consumer = consume(&*broker, &queue).await;
    let got = reserve(&mut *consumer, SOON).await.remove(0);
    let failed = Incoming::read(&got, "default", Defaults::default()).failed(Duration::ZERO);
    consumer.settler().settle(&[(got.receipt, Settlement::Retry(failed))]).await.remove(0).unwrap();
    let taken = greenstalk(server.address(), &["take", "q", "1"]).await;
    let job: Value = serde_json::from_str(&taken[0]).unwrap();
    assert_eq!(
        (&job["body"]["data"]["message"], &job["body"]["mine"], &job["body"]["failed"]),
        (&json!("hello"), &json!([1]), &json!(1))
    );
    assert!(job["body"]["id"].is_string(), "it has an id from now on");
}
