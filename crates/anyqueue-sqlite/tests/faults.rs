//! What goes wrong with files: a clear error, nothing lost, and work goes on when the cause is gone.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyqueue_core::{Broker, Effect, Envelope, Error, ErrorKind, Options, QueueName, Settlement};
use rusqlite::Connection;
use support::{bodies, consumer, open, options, queue, send, take, task};

async fn try_send(broker: &dyn Broker, queue: &QueueName, task: Envelope) -> Result<(), Error> {
    broker.send(queue, &[task]).await.remove(0).map(drop)
}

async fn connect_error(path: &Path) -> Error {
    anyqueue_sqlite::DRIVER.open(options(path)).await.expect_err("this file should be refused")
}

/// Runs one test of this file again, in a process of its own, behind a command that changes its surroundings.
fn again(wrapper: &[&str], test: &str, folder: &Path) {
    let me = std::env::current_exe().unwrap();
    let mut words = wrapper.iter().map(AsRef::as_ref).chain([me.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--exact", test, "--nocapture"]).env("FAULTS_FOLDER", folder);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn inner_folder() -> Option<std::path::PathBuf> {
    std::env::var_os("FAULTS_FOLDER").map(Into::into)
}

#[tokio::test]
async fn a_full_disk_refuses_sends_and_keeps_what_it_took() {
    let Some(folder) = inner_folder() else {
        let folder = tempfile::tempdir().unwrap();
        let mount = format!("mount -t tmpfs -o size=3m none {} && exec \"$@\"", folder.path().display());
        let test = "a_full_disk_refuses_sends_and_keeps_what_it_took";
        return again(&["unshare", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"], test, folder.path());
    };
    let broker = open(&folder.join("q.db")).await;
    let q = queue("a");
    let body = "x".repeat(20_000);
    let mut accepted = 0;
    let refused = loop {
        match try_send(&*broker, &q, task(&format!("{accepted} {body}"))).await {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 1000, "3 MiB should be full by now");
    };
    assert_eq!((refused.kind(), refused.effect(), refused.is_retryable()), (ErrorKind::Full, Effect::None, true), "{refused:?}");
    assert!(refused.to_string().contains("q.db") && refused.to_string().contains("no room left"), "{refused}");
    let folder_text = folder.display().to_string();
    assert!(Command::new("mount").args(["-o", "remount,size=64m", &folder_text]).status().unwrap().success());
    try_send(&*broker, &q, task("after")).await.unwrap();
    let mut consumer = consumer(&*broker, &q).await;
    let mut got = Vec::new();
    while got.len() <= accepted {
        got.extend(take(&mut *consumer, 100).await.unwrap());
    }
    let numbers: Vec<_> = bodies(&got).iter().map(|body| body.split(' ').next().unwrap().to_owned()).collect();
    let expected: Vec<_> = (0..accepted).map(|n| n.to_string()).chain(["after".to_owned()]).collect();
    assert_eq!(numbers, expected);
}

#[tokio::test]
async fn a_read_only_file_is_named_and_works_once_it_may_be_written() {
    let test = "a_read_only_file_is_named_and_works_once_it_may_be_written";
    let folder = match inner_folder() {
        Some(folder) => folder,
        // Nothing is read-only to root.
        None if rustix::process::getuid().is_root() => {
            let folder = tempfile::tempdir().unwrap();
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
            let me = std::env::current_exe().unwrap();
            let copy = folder.path().join("test");
            std::fs::copy(me, &copy).unwrap();
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy).args(["--exact", test]);
            let inner = folder.path().join("inner");
            let output = command.env("FAULTS_FOLDER", &inner).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        None => tempfile::tempdir().unwrap().keep(),
    };
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("q.db");
    let q = queue("a");
    let broker = open(&path).await;
    send(&*broker, &q, &[task("before")]).await;
    broker.close().await.unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(&path, 0o444);
    mode(&folder, 0o555);
    let error = connect_error(&path).await;
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error:?}");
    assert!(error.to_string().contains("q.db cannot be written"), "{error}");
    mode(&folder, 0o755);
    let error = connect_error(&path).await;
    assert!(error.to_string().contains("q.db cannot be written"), "{error}");
    let beside = folder.join("q.db-shm");
    assert!(!beside.exists(), "a look left a file that nobody can write");
    std::fs::write(&beside, b"").unwrap();
    mode(&beside, 0o444);
    mode(&path, 0o644);
    let error = connect_error(&path).await;
    assert!(error.to_string().contains("q.db-shm cannot be written"), "{error}");
    std::fs::remove_file(&beside).unwrap();
    let broker = open(&path).await;
    let mut consumer = consumer(&*broker, &q).await;
    assert_eq!(bodies(&take(&mut *consumer, 10).await.unwrap()), ["before"]);
    broker.close().await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_locked_file_is_waited_for_and_then_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let mut options = options(&path);
    options.options = Options::from_iter([("busy_timeout", "600ms")]);
    let broker = anyqueue_sqlite::DRIVER.open(options).await.unwrap();
    let q = queue("a");
    send(&*broker, &q, &[task("one")]).await;

    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let start = Instant::now();
    let error = try_send(&*broker, &q, task("two")).await.unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(600), "gave up after {:?}", start.elapsed());
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Busy, Effect::None));
    assert!(error.to_string().contains("q.db locked"), "{error}");

    let mut consumer = consumer(&*broker, &q).await;
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        other.execute_batch("COMMIT").unwrap();
    };
    let (sent, ()) = tokio::join!(try_send(&*broker, &q, task("three")), unlock);
    sent.unwrap();
    assert_eq!(bodies(&take(&mut *consumer, 10).await.unwrap()), ["one", "three"]);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let garbage = b"certainly not a database ".repeat(400);
    std::fs::write(&path, &garbage).unwrap();
    let error = connect_error(&path).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(error.to_string().contains("q.db is not an SQLite file") && error.to_string().contains("backup"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
}

#[tokio::test]
async fn a_damaged_page_is_reported_and_the_file_goes_on_once_it_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let q = queue("a");
    let broker = open(&path).await;
    let tasks: Vec<_> = (0..200).map(|n| task(&format!("{n} {}", "y".repeat(500)))).collect();
    send(&*broker, &q, &tasks).await;
    broker.close().await.unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    // All pages but the first, which holds the schema.
    bad[4096..].iter_mut().for_each(|byte| *byte = 0xA5);
    std::fs::write(&path, &bad).unwrap();
    let broker = open(&path).await;
    let error = try_send(&*broker, &q, task("new")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(error.to_string().contains("q.db is damaged"), "{error}");
    let restored = folder.path().join("restored.db");
    std::fs::write(&restored, &good).unwrap();
    std::fs::rename(&restored, &path).unwrap();
    let mut consumer = loop {
        match broker.consume(&q, anyqueue_core::ConsumeOptions { prefetch: 1024, ..Default::default() }).await {
            Ok(consumer) => break consumer,
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable), "{error:?}"),
        }
    };
    assert_eq!(take(&mut *consumer, 1000).await.unwrap().len(), 200);
}

#[tokio::test]
async fn a_file_deleted_while_open_is_an_error_and_no_silent_loss() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let broker = open(&path).await;
    let q = queue("a");
    send(&*broker, &q, &[task("gone")]).await;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let error = try_send(&*broker, &q, task("refused")).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true), "{error:?}");
    assert!(error.to_string().contains("q.db was deleted or replaced"), "{error}");
    try_send(&*broker, &q, task("new")).await.unwrap();
    let mut consumer = consumer(&*broker, &q).await;
    let got = take(&mut *consumer, 10).await.unwrap();
    assert_eq!(bodies(&got), ["new"]);
    let done = consumer.settler().settle(&[(got[0].receipt.clone(), Settlement::Done)]).await.remove(0);
    done.unwrap();
    assert!(path.exists());
}
