//! Files of earlier and later versions, and of other programs.

#![allow(clippy::unwrap_used)]

mod support;

use anyqueue_core::{Create, ErrorKind, Paused};
use rusqlite::Connection;
use support::{bodies, consumer, open, options, queue, take};

/// A file as the first version left it, with a ready task in it.
fn first_version(path: &std::path::Path) {
    let file = Connection::open(path).unwrap();
    file.execute_batch(include_str!("../src/sql/v1.sql")).unwrap();
    file.execute_batch(
        "PRAGMA application_id = 0x616e7971; PRAGMA user_version = 1;
         INSERT INTO queue(id, name, created_at) VALUES (1, 'old', 1700000000000);
         INSERT INTO task(seq, queue, state, priority, due, ttr, delay, sent_at, id, body)
         VALUES (1, 1, 2, 1024, 1700000000000, 60000, 0, 1700000000000, x'00112233445566778899aabbccddeeff', x'6b657074');
         UPDATE counter SET next_seq = 2;",
    )
    .unwrap();
}

/// A program of an earlier version that has the file open while a later one upgrades it must not go on: it would give out
/// numbers that were used.
#[tokio::test]
async fn an_earlier_program_that_has_the_file_open_is_stopped_by_the_upgrade() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    first_version(&path);
    let old = Connection::open(&path).unwrap();
    let mut take_a_number = old.prepare("UPDATE counter SET next_seq = next_seq + 1").unwrap();
    assert_eq!(take_a_number.execute([]).unwrap(), 1);
    open(&path).await.close().await.unwrap();
    let error = take_a_number.execute([]).unwrap_err().to_string();
    assert!(error.contains("no such table"), "{error}");
}

#[tokio::test]
async fn an_older_file_is_upgraded_with_its_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    first_version(&path);
    let broker = open(&path).await;
    let q = queue("old");
    broker.admin().pause(&q, None).await.unwrap();
    assert_eq!(broker.admin().paused(&q).await.unwrap(), Paused::Yes(None));
    broker.admin().resume(&q).await.unwrap();
    let mut consumer = consumer(&*broker, &q).await;
    assert_eq!(bodies(&take(&mut *consumer, 10).await.unwrap()), ["kept"]);
    broker.close().await.unwrap();
    let version: i32 = Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 3);
}

#[tokio::test]
async fn a_newer_file_is_refused_with_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    open(&path).await.close().await.unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = anyqueue_sqlite::DRIVER.open(options(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooNew);
    let text = error.to_string();
    assert!(text.contains("version 99") && text.contains("up to 3") && text.contains("upgrade"), "{text}");
}

#[tokio::test]
async fn the_database_of_another_program_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE photo(name TEXT)").unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = anyqueue_sqlite::DRIVER.open(options(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("photos.db is the database of another program"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn nothing_is_created_where_the_settings_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let mut options = options(&path);
    options.create = Create::Never;
    let error = anyqueue_sqlite::DRIVER.open(options.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("q.db") && error.to_string().contains("queue-runner init"), "{error}");
    assert!(!path.exists());
    open(&path).await.close().await.unwrap();
    let broker = anyqueue_sqlite::DRIVER.open(options).await.unwrap();
    let error = broker.send(&queue("none"), &[support::task("x")]).await.remove(0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("`none`") && error.to_string().contains("queue-runner init"), "{error}");
}

#[tokio::test]
async fn many_that_open_a_new_file_at_once_all_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.db");
    let openings: Vec<_> = (0..16)
        .map(|n| {
            let path = path.clone();
            tokio::spawn(async move {
                let broker = open(&path).await;
                support::send(&*broker, &queue("all"), &[support::task(&n.to_string())]).await;
            })
        })
        .collect();
    for opening in openings {
        opening.await.unwrap();
    }
    let broker = open(&path).await;
    let mut consumer = consumer(&*broker, &queue("all")).await;
    assert_eq!(take(&mut *consumer, 100).await.unwrap().len(), 16);
}
