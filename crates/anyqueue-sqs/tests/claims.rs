//! Data that is too large for SQS: in a folder, for as long as its task lives.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyqueue_core::{
    Broker, Bytes, ConnectOptions, Data, Effect, Envelope, ErrorKind, Settlement, Severity, State, TaskId, Which, Wire,
};
use anyqueue_testkit::{Sample, SystemClock};
use shared::stub::{Stub, ok, received, refused, usual, word, worked};
use shared::{Place, QUIET, SOON, consumer, eventually, incoming, millis, one, queue, reserve, send, settle};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

fn text(size: usize) -> Data {
    Data::json(&"x".repeat(size)).unwrap()
}

fn large(size: usize) -> Envelope {
    Sample::new(0).data(text(size)).envelope()
}

async fn connect(place: &Place, folder: &Path) -> Arc<dyn Broker> {
    let url = format!("{}?store=file:{}", place.url(), folder.display());
    anyqueue_sqs::DRIVER.open(ConnectOptions::new(&url, Arc::new(SystemClock)).unwrap()).await.unwrap()
}

async fn connect_stub(stub: &Stub, folder: &Path) -> Arc<dyn Broker> {
    stub.connect_with(&format!("&store=file:{}", folder.display())).await
}

fn files(folder: &TempDir) -> Vec<PathBuf> {
    fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn age(file: &Path, age: Duration) {
    File::options().write(true).open(file).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

const MONTH: Duration = Duration::from_secs(31 * 86_400);

/// Megabytes go through every verb, between two processes, in one file that is gone in the end.
#[tokio::test]
async fn large_data_goes_through_every_verb() {
    let (place, folder, queue) = (Place::new().await, TempDir::new().unwrap(), queue("large"));
    let (sender, worker) = (connect(&place, folder.path()).await, connect(&place, folder.path()).await);
    sender.declare(&queue).await.unwrap();
    assert_eq!(sender.capabilities(&queue).max_payload, Some(64 << 20));
    let bytes = Data::Binary(Bytes::from_iter((0..=u8::MAX).cycle().take(2 * MIB)));
    let mut consumer = consumer(&*worker, &queue).await;
    let settler = consumer.settler();
    for sent in [large(5 * MIB), Sample::new(0).data(bytes).priority(100).envelope()] {
        let data = Wire::read(&sent.body).unwrap().data;
        send(&*sender, &queue, std::slice::from_ref(&sent)).await.unwrap();
        let file = files(&folder);
        assert_eq!(file.len(), 1);
        let first = one(&mut *consumer).await;
        assert!(first.raw == sent.body, "whole");
        settle(&*settler, &first, Settlement::Release(incoming(&first).unchanged(Duration::ZERO))).await.unwrap();
        let again = one(&mut *consumer).await;
        assert!(again.raw == sent.body && again.native.redeliveries.value() == Some(0), "given back");
        let before = millis();
        settle(&*settler, &again, Settlement::Retry(incoming(&again).failed(Duration::from_secs(1)))).await.unwrap();
        let retried = one(&mut *consumer).await;
        assert!(millis() - before >= 1000, "after {} ms", millis() - before);
        let task = incoming(&retried);
        assert!((task.wire.failed, task.id) == (1, sent.id) && task.wire.data == data, "retried");
        let held = task.held("no disk", true, SystemTime::now());
        settle(&*settler, &retried, Settlement::Hold(held, "no disk".into())).await.unwrap();
        let listed = worker.admin().held(&queue, None, 10).await.unwrap().tasks.remove(0);
        let shown = anyqueue_core::Incoming::peeked(&listed, "default", "large", Default::default());
        assert_eq!((shown.id, shown.wire.task.as_str()), (sent.id, "sample"));
        assert_eq!(shown.wire.held.unwrap().reason, "no disk");
        assert!(listed.raw.len() < 1000, "a listing fetches no data");
        assert_eq!(worker.admin().kick(&queue, &Which::Ids(vec![sent.id])).await.unwrap(), 1);
        let kicked = one(&mut *consumer).await;
        assert!(incoming(&kicked).wire.data == data, "kicked");
        assert_eq!(files(&folder), file, "one file for its life");
        settle(&*settler, &kicked, Settlement::Done).await.unwrap();
        assert!(files(&folder).is_empty(), "it ends with its task");
    }
    send(&*sender, &queue, &[Sample::new(7).envelope()]).await.unwrap();
    assert!(files(&folder).is_empty(), "a small task needs none");
    assert_eq!(Sample::number(&one(&mut *consumer).await), Some(7));
    assert!(reserve(&mut *consumer, 10, QUIET).await.is_empty());
}

/// A worker that has no folder holds such a task and says what to set; one that has it can go on.
#[tokio::test]
async fn a_worker_without_the_folder_says_what_to_set() {
    let (place, folder, queue) = (Place::new().await, TempDir::new().unwrap(), queue("claims"));
    let (with, without) = (connect(&place, folder.path()).await, place.connect().await);
    let task = large(2 * MIB);
    let error = without.send(&queue, std::slice::from_ref(&task)).await.remove(0).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }) && error.to_string().contains("`store"), "{error}");
    send(&*with, &queue, &[task.clone(), Sample::new(1).envelope()]).await.unwrap();
    let mut poor = consumer(&*without, &queue).await;
    assert_eq!(Sample::number(&one(&mut *poor).await), Some(1), "others go on");
    let held = async || without.admin().held(&queue, None, 10).await.unwrap().tasks;
    eventually("it is held", SOON, async || held().await.len() == 1).await;
    let shown = anyqueue_core::Incoming::peeked(&held().await[0], "default", "claims", Default::default());
    let reason = shown.wire.held.unwrap().reason;
    assert!(shown.id == task.id && reason.contains("`store = \"file:/path\"`"), "{reason}");
    poor.close().await.unwrap();
    assert_eq!(with.admin().kick(&queue, &Which::All).await.unwrap(), 1);
    let mut rich = consumer(&*with, &queue).await;
    let got = one(&mut *rich).await;
    assert!(incoming(&got).wire.data == text(2 * MIB));
    settle(&*rich.settler(), &got, Settlement::Done).await.unwrap();
    assert!(files(&folder).is_empty());
}

/// A task whose file has gone, or is not whole, is held and says so; with the file back, a kick lets it run.
#[tokio::test]
async fn a_task_without_its_file_is_held() {
    let (place, folder, queue) = (Place::new().await, TempDir::new().unwrap(), queue("gone"));
    let broker = connect(&place, folder.path()).await;
    send(&*broker, &queue, &[large(2 * MIB)]).await.unwrap();
    let file = files(&folder).remove(0);
    let data = fs::read(&file).unwrap();
    let mut consumer = consumer(&*broker, &queue).await;
    for damage in ["gone", "short", "a link"] {
        fs::remove_file(&file).unwrap();
        match damage {
            "short" => fs::write(&file, &data[1..]).unwrap(),
            "a link" => std::os::unix::fs::symlink("/etc/passwd", &file).unwrap(),
            _ => {}
        }
        send(&*broker, &queue, &[Sample::new(1).envelope()]).await.unwrap();
        let small = one(&mut *consumer).await;
        assert_eq!(Sample::number(&small), Some(1), "others go on");
        settle(&*consumer.settler(), &small, Settlement::Done).await.unwrap();
        let held = async || broker.admin().held(&queue, None, 10).await.unwrap().tasks;
        eventually("it is held", SOON, async || held().await.len() == 1).await;
        let shown = anyqueue_core::Incoming::peeked(&held().await[0], "default", "gone", Default::default());
        let reason = shown.wire.held.unwrap().reason;
        assert!(reason.contains(&file.display().to_string()), "{damage}: {reason}");
        let _ = fs::remove_file(&file);
        fs::write(&file, &data).unwrap();
        assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 1);
    }
    let back = one(&mut *consumer).await;
    assert!(incoming(&back).wire.data == text(2 * MIB));
}

/// Only the attribute makes a claim: a body that looks like one is somebody's task, and a forged attribute names no file.
#[tokio::test]
async fn what_others_send_is_no_claim() {
    let (place, folder, queue) = (Place::new().await, TempDir::new().unwrap(), queue("forged"));
    let broker = connect(&place, &folder.path().join("inner")).await;
    broker.declare(&queue).await.unwrap();
    let secret = folder.path().join("secret.task");
    fs::write(&secret, "12345").unwrap();
    let name = TaskId::new(SystemTime::now());
    fs::write(folder.path().join("inner").join(format!("{name}.task")), "12345").unwrap();
    let body = format!(r#"{{"task":"sample","data":{{"file":"{name}","bytes":5}}}}"#);
    place.put("forged", &body, None).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let got = one(&mut *consumer).await;
    assert_eq!(&got.raw[..], body.as_bytes());
    settle(&*consumer.settler(), &got, Settlement::Done).await.unwrap();
    assert_eq!(fs::read_dir(folder.path().join("inner")).unwrap().count(), 1, "a foreign task owns no file");
    for forged in ["j../secret.5", "j/etc/hostname.5", "z"] {
        place.put("forged", &body, Some(&format!("p1 t60 f{forged}"))).await;
        assert!(reserve(&mut *consumer, 1, QUIET).await.is_empty(), "{forged}");
        let held = async || broker.admin().held(&queue, None, 10).await.unwrap().tasks;
        eventually("it is held", SOON, async || held().await.len() == 1).await;
        let shown = anyqueue_core::Incoming::peeked(&held().await[0], "default", "forged", Default::default());
        assert_eq!(broker.admin().delete(&queue, &[shown.id]).await.remove(0).map_err(|e| e.kind()), Ok(()), "{forged}");
    }
    assert!(secret.exists());
}

/// What a process leaves that dies between file and message is swept after a month, and nothing else is.
#[tokio::test]
async fn a_crash_between_file_and_message_leaves_what_a_sweep_takes() {
    // The send's answer never comes: as if the process had died in it.
    let stub =
        Stub::start(|operation, _| if operation == "sendmessagebatch" { (0, String::new()) } else { usual(operation) }).await;
    let (folder, queue) = (TempDir::new().unwrap(), queue("q"));
    let broker = connect_stub(&stub, folder.path()).await;
    broker.declare(&queue).await.unwrap();
    let task = [large(2 * MIB)];
    tokio::select! {
        _ = broker.send(&queue, &task) => panic!("it was answered"),
        () = eventually("it is sent", SOON, async || stub.count("sendmessagebatch") > 0) => {}
    }
    drop(broker);
    let orphan = files(&folder).remove(0);
    assert_eq!(fs::metadata(&orphan).unwrap().len() as usize, 2 * MIB + 2, "the file was whole before the message was sent");
    let part = folder.path().join(format!("{}.part", TaskId::new(SystemTime::now())));
    let young = folder.path().join(format!("{}.task", TaskId::new(SystemTime::now())));
    let foreign = [folder.path().join("notes.task"), folder.path().join("README")];
    for file in [&part, &young, &foreign[0], &foreign[1]] {
        fs::write(file, "x").unwrap();
    }
    [&orphan, &part, &foreign[0], &foreign[1]].into_iter().for_each(|file| age(file, MONTH));
    age(&young, MONTH - Duration::from_secs(2 * 86_400));
    let broker = connect_stub(&stub, folder.path()).await;
    let _consumer = consumer(&*broker, &queue).await;
    eventually("the orphan is gone", SOON, async || !orphan.exists() && !part.exists()).await;
    assert!(young.exists() && foreign.iter().all(|file| file.exists()));
}

/// A copy that lives on takes its file with it: the file counts as new each time that a message with it is sent.
#[tokio::test]
async fn a_file_is_as_young_as_its_message() {
    let (place, folder, queue) = (Place::new().await, TempDir::new().unwrap(), queue("young"));
    let broker = connect(&place, folder.path()).await;
    send(&*broker, &queue, &[large(2 * MIB)]).await.unwrap();
    let file = files(&folder).remove(0);
    let mut consumer = consumer(&*broker, &queue).await;
    let first = one(&mut *consumer).await;
    for what in ["retry", "kick"] {
        age(&file, MONTH);
        match what {
            "retry" => {
                let held = incoming(&first).held("look", false, SystemTime::now());
                settle(&*consumer.settler(), &first, Settlement::Hold(held, "look".into())).await.unwrap();
            }
            _ => assert_eq!(broker.admin().kick(&queue, &Which::All).await.unwrap(), 1),
        }
        let old = fs::metadata(&file).unwrap().modified().unwrap().elapsed().unwrap_or_default();
        assert!(old < Duration::from_secs(3600), "{what}: {old:?}");
    }
}

/// A send that fails leaves no file; one that may have worked does, since its message may be there.
#[tokio::test]
async fn a_failed_send_leaves_no_file() {
    let stub = Stub::start(|operation, number| match operation {
        "sendmessagebatch" if number == 1 => refused("InvalidMessageContents"),
        "sendmessagebatch" => (503, "{}".into()),
        _ => usual(operation),
    })
    .await;
    let (folder, queue) = (TempDir::new().unwrap(), queue("q"));
    let broker = connect_stub(&stub, folder.path()).await;
    let error = broker.send(&queue, &[large(2 * MIB)]).await.remove(0).unwrap_err();
    assert!(error.effect() == Effect::None && files(&folder).is_empty(), "{error}: {:?}", files(&folder));
    let error = broker.send(&queue, &[large(2 * MIB)]).await.remove(0).unwrap_err();
    assert!(error.effect() == Effect::Unknown && files(&folder).len() == 1, "{error}: {:?}", files(&folder));
    fs::remove_dir_all(folder.path()).unwrap();
    let error = broker.send(&queue, &[large(2 * MIB)]).await.remove(0).unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("`store`"), "{error}");
    assert_eq!(stub.count("sendmessagebatch"), 2, "nothing is sent without its file");
}

/// The message that a claim is in, as SQS gives it out: what the last send was, or what a test says.
fn claim(folder: &Path, size: usize) -> (TaskId, String) {
    let name = TaskId::from_bytes([7; 16]);
    fs::write(folder.join(format!("{name}.task")), format!("\"{}\"", "x".repeat(size - 2))).unwrap();
    (name, format!("fj{name}.{size}"))
}

fn claimed() -> String {
    let name = TaskId::from_bytes([7; 16]);
    let body = format!(r#"{{"task":"sample","store":"","data":{{"file":"{name}","bytes":2000000}},"id":"{name}"}}"#);
    received(&body, 1, &format!("p1024 t60 fj{name}.2000000"), "")
}

/// A file is removed when the message is deleted for certain, and not before.
#[tokio::test]
async fn a_file_outlives_a_delete_that_fails() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number == 1 => ok(&claimed()),
        "deletemessagebatch" if number == 1 => {
            ok(r#"{"Successful":[],"Failed":[{"Id":"0","Code":"InternalError","SenderFault":false}]}"#)
        }
        "deletemessagebatch" | "changemessagevisibilitybatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let (folder, queue) = (TempDir::new().unwrap(), queue("q"));
    claim(folder.path(), 2_000_000);
    let broker = connect_stub(&stub, folder.path()).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let task = one(&mut *consumer).await;
    settle(&*consumer.settler(), &task, Settlement::Done).await.unwrap_err();
    assert_eq!(files(&folder).len(), 1);
    settle(&*consumer.settler(), &task, Settlement::Done).await.unwrap();
    assert!(files(&folder).is_empty());
}

/// A retry whose delete fails leaves the file to the copy; data that a retry changes is in a file of its own.
#[tokio::test]
async fn a_copy_owns_its_file() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number < 3 => ok(&claimed()),
        "deletemessagebatch" if number == 1 => {
            ok(r#"{"Successful":[],"Failed":[{"Id":"0","Code":"InternalError","SenderFault":false}]}"#)
        }
        "deletemessagebatch" | "changemessagevisibilitybatch" | "sendmessagebatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let (folder, queue) = (TempDir::new().unwrap(), queue("q"));
    let (name, slip) = claim(folder.path(), 2_000_000);
    let broker = connect_stub(&stub, folder.path()).await;
    let mut consumer = consumer(&*broker, &queue).await;
    let task = one(&mut *consumer).await;
    let retry = Settlement::Retry(incoming(&task).failed(Duration::ZERO));
    settle(&*consumer.settler(), &task, retry.clone()).await.unwrap_err();
    settle(&*consumer.settler(), &task, retry).await.unwrap();
    assert!(stub.asked("sendmessagebatch")[0].contains(&slip), "{slip}");
    assert_eq!(files(&folder), [folder.path().join(format!("{name}.task"))]);
    let task = one(&mut *consumer).await;
    let mut next = incoming(&task).failed(Duration::ZERO);
    let mut wire = Wire::read(&next.body).unwrap();
    wire.data = text(3_000_000);
    next.body = wire.write();
    settle(&*consumer.settler(), &task, Settlement::Retry(next)).await.unwrap();
    let left = files(&folder);
    assert!(left.len() == 1 && !left[0].display().to_string().contains(&name.to_string()), "{left:?}");
    let asked = stub.asked("sendmessagebatch").remove(1);
    assert!(asked.contains(".3000002"), "{:?}", word(&asked, "StringValue"));
}

/// A folder that cannot be read just now is no reason to hold: the task is given back, uncounted, for a moment.
#[tokio::test]
async fn a_folder_in_trouble_is_waited_for() {
    let stub = Stub::start(|operation, number| match operation {
        "receivemessage" if number == 1 => ok(&claimed()),
        "deletemessagebatch" | "sendmessagebatch" => worked(),
        _ => usual(operation),
    })
    .await;
    let (folder, queue) = (TempDir::new().unwrap(), queue("q"));
    let store = folder.path().join("store");
    let broker = connect_stub(&stub, &store).await;
    fs::remove_dir(&store).unwrap();
    fs::write(&store, "no folder").unwrap();
    let findings = broker.diagnose().await.unwrap();
    assert!(
        findings.iter().any(|finding| finding.severity == Severity::Problem && finding.text.contains("store")),
        "{findings:?}"
    );
    let mut consumer = consumer(&*broker, &queue).await;
    assert!(reserve(&mut *consumer, 1, Duration::from_millis(500)).await.is_empty());
    let sent = stub.asked("sendmessagebatch");
    assert!(sent.len() == 1 && sent[0].contains(r#""DelaySeconds":15"#) && !sent[0].contains(" r1"), "{sent:?}");
    assert!(stub.count("sendmessagebatch held") == 0 && stub.count("deletemessagebatch") == 1);
}

/// A task that grows beyond what SQS takes, while it is worked on, gets a file then, and its reason is kept.
#[tokio::test]
async fn a_task_that_grows_gets_a_file() {
    let (place, folder, queue) = (Place::new().await, TempDir::new().unwrap(), queue("grown"));
    let broker = connect(&place, folder.path()).await;
    let task = large(MIB - 20_000);
    send(&*broker, &queue, std::slice::from_ref(&task)).await.unwrap();
    assert!(files(&folder).is_empty(), "{:?}", files(&folder));
    let mut consumer = consumer(&*broker, &queue).await;
    let got = one(&mut *consumer).await;
    let reason = "y".repeat(30_000);
    settle(&*consumer.settler(), &got, Settlement::Hold(incoming(&got).held(&reason, true, SystemTime::now()), reason.clone()))
        .await
        .unwrap();
    assert_eq!(files(&folder).len(), 1);
    let listed = broker.admin().held(&queue, None, 10).await.unwrap().tasks.remove(0);
    assert_eq!(Wire::read(&listed.raw).unwrap().held.unwrap().reason, reason);
    assert_eq!(broker.admin().delete(&queue, &[task.id]).await.remove(0).map_err(|e| e.kind()), Ok(()));
    assert!(files(&folder).is_empty(), "the file of a deleted task");
    send(&*broker, &queue, &[large(2 * MIB)]).await.unwrap();
    assert_eq!(broker.admin().purge(&queue, &[State::Ready]).await.unwrap(), 1);
    assert!(files(&folder).is_empty(), "the file of a purged task");
}

/// More than the largest file is refused before anything is written, and headers that no file takes are too.
#[tokio::test]
async fn even_a_folder_has_a_limit() {
    let stub = Stub::start(|operation, _| if operation == "sendmessagebatch" { worked() } else { usual(operation) }).await;
    let (folder, queue) = (TempDir::new().unwrap(), queue("q"));
    let broker = connect_stub(&stub, folder.path()).await;
    let mut task = large(64 * MIB);
    let size = task.body.len() as u64;
    let error = broker.send(&queue, std::slice::from_ref(&task)).await.remove(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge { size, limit: 64 << 20 });
    let mut wire = Wire::new("sample", text(10));
    wire.headers.push(("long".into(), "z".repeat(2 * MIB)));
    task.body = wire.write();
    let error = broker.send(&queue, &[task]).await.remove(0).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }) && error.to_string().contains("headers"), "{error}");
    assert!(files(&folder).is_empty() && stub.count("sendmessagebatch") == 0);
}
