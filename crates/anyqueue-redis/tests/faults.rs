//! A server that forgets, fills up, restarts, or is not the one that takes writes.

#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyqueue_core::{ConsumeOptions, Durability, Effect, ErrorKind, Settlement, Severity, State, Touch, Which};
use anyqueue_testkit::servers::redis;
use anyqueue_testkit::{Process, Ready, Sample, Server};
use shared::{
    SOON, connect, consumer, eventually, operator, queue, reserve, send, send_one, settle_all, somebody_listens, somebody_waits,
    tell, until_given, url, work,
};
use tokio::net::{TcpListener, TcpStream};

const NONE: [&str; 0] = [];

async fn finding(server: &Process, part: &str) -> Option<Severity> {
    let findings = connect(&url(server)).await.unwrap().diagnose().await.unwrap();
    findings.into_iter().find(|finding| finding.text.contains(part)).map(|finding| finding.severity)
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_sent_again() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("forgotten"));
    let mut consumer = consumer(&*broker, &queue).await;
    for number in 0..3 {
        let _: () = tell(&mut operator(&server).await, "SCRIPT FLUSH").await;
        send_one(&*broker, &queue, number).await.unwrap();
        let _: () = tell(&mut operator(&server).await, "SCRIPT FLUSH").await;
        assert_eq!(work(&mut *consumer, 1, SOON).await, [number]);
    }
}

#[tokio::test]
async fn a_server_emptied_under_the_feet_of_a_worker_goes_on_with_new_tasks() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("emptied"));
    let mut consumer = consumer(&*broker, &queue).await;
    send_one(&*broker, &queue, 1).await.unwrap();
    let lost = reserve(&mut *consumer, 1, SOON).await.unwrap();
    let settler = consumer.settler();
    let emptying = async {
        // The consumer waits by now; the server forgets that it does.
        somebody_waits(&server, &queue).await;
        let _: () = tell(&mut operator(&server).await, "FLUSHALL").await;
        let error = settle_all(&*settler, &lost, Settlement::Done).await.unwrap_err();
        assert!(error.is_lease_lost(), "{error:?}");
        send_one(&*broker, &queue, 2).await.unwrap();
        Instant::now()
    };
    let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(14)), emptying);
    assert_eq!(Sample::number(&got.unwrap()[0]), Some(2));
    assert!(sent.elapsed() < Duration::from_secs(5), "found only by looking, after {:?}", sent.elapsed());
}

#[tokio::test]
async fn a_restart_without_persistence_loses_tasks_and_nothing_else() {
    let server = redis::start(["--appendonly", "no"]).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("volatile"));
    assert_eq!(broker.capabilities(&queue).durability, Durability::None);
    assert_eq!(finding(&server, "`appendonly` is no").await, Some(Severity::Warning));
    let mut consumer = consumer(&*broker, &queue).await;
    send_one(&*broker, &queue, 1).await.unwrap();
    let lost = reserve(&mut *consumer, 1, SOON).await.unwrap();
    server.kill().await.unwrap();
    server.start().await.unwrap();
    eventually(|| send_one(&*broker, &queue, 2)).await;
    assert_eq!(work(&mut *consumer, 1, SOON).await, [2]);
    let error = settle_all(&*consumer.settler(), &lost, Settlement::Done).await.unwrap_err();
    assert!(error.is_lease_lost(), "{error:?}");
    assert!(broker.info().reconnects >= 1);
}

#[tokio::test]
async fn a_full_server_takes_no_tasks_but_lets_them_be_worked() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("full"));
    let soon = |number| Sample::new(number).delay(Duration::from_millis(50)).envelope();
    send(&*broker, &queue, &(0..8).map(soon).collect::<Vec<_>>()).await.unwrap();
    let _: () = tell(&mut operator(&server).await, "CONFIG SET maxmemory 1").await;
    let error = send_one(&*broker, &queue, 9).await.unwrap_err();
    assert_eq!((error.kind(), error.effect(), error.is_retryable()), (ErrorKind::Full, Effect::None, true));
    assert!(error.to_string().contains("`maxmemory`"), "{error}");
    // A worker that comes only now finds what has become due meanwhile.
    let mut consumer = consumer(&*broker, &queue).await;
    let (settler, admin) = (consumer.settler(), broker.admin());
    let mut got = Vec::new();
    while got.len() < 8 {
        got.extend(reserve(&mut *consumer, 8, SOON).await.unwrap());
    }
    assert!(reserve(&mut *consumer, 1, Duration::from_millis(20)).await.unwrap().is_empty());
    let touches: Vec<_> =
        got.iter().map(|d| Touch { receipt: d.receipt.clone(), ttr: Duration::from_secs(60), task: soon(0) }).collect();
    assert!(settler.touch(&touches).await.iter().all(Result::is_ok));
    settle_all(&*settler, &got[..2], Settlement::Hold(Sample::new(0).envelope(), "look".into())).await.unwrap();
    settle_all(&*settler, &got[2..4], Settlement::Retry(soon(1))).await.unwrap();
    settle_all(&*settler, &got[4..], Settlement::Release(soon(2))).await.unwrap();
    let due = async || {
        let ready = admin.peek(&queue, State::Ready, 10).await.unwrap().len();
        if ready == 6 { Ok(()) } else { Err(ready) }
    };
    eventually(due).await;
    admin.pause(&queue, None).await.unwrap();
    assert!(reserve(&mut *consumer, 1, Duration::from_millis(20)).await.unwrap().is_empty());
    admin.resume(&queue).await.unwrap();
    assert_eq!(admin.kick(&queue, &Which::All).await.unwrap(), 2);
    assert_eq!(work(&mut *consumer, 8, SOON).await.len(), 8);
    let _: () = tell(&mut operator(&server).await, "CONFIG SET maxmemory 0").await;
    send_one(&*broker, &queue, 10).await.unwrap();
    assert_eq!(work(&mut *consumer, 1, SOON).await, [10]);
}

#[tokio::test]
async fn settings_that_lose_tasks_are_named() {
    let server = redis::start(["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await.unwrap();
    assert_eq!(finding(&server, "`maxmemory-policy` is allkeys-lru").await, Some(Severity::Warning));
    let server = redis::start(["--appendfsync", "everysec", "--maxmemory-policy", "volatile-lru"]).await.unwrap();
    assert_eq!(finding(&server, "`maxmemory-policy` is volatile-lru").await, Some(Severity::Note));
    assert_eq!(finding(&server, "`appendfsync` is everysec").await, Some(Severity::Note));
    let capabilities = connect(&url(&server)).await.unwrap().capabilities(&queue("q"));
    assert_eq!(capabilities.durability, Durability::Process);
    assert!(capabilities.durability_caveat.unwrap().contains("`appendfsync everysec`"));
    let server = redis::start(["--no-appendfsync-on-rewrite", "yes"]).await.unwrap();
    assert_eq!(finding(&server, "`no-appendfsync-on-rewrite` is yes").await, Some(Severity::Warning));
    assert_eq!(connect(&url(&server)).await.unwrap().capabilities(&queue("q")).durability, Durability::Process);
    let server = redis::start(NONE).await.unwrap();
    let broker = connect(&url(&server)).await.unwrap();
    assert_eq!((broker.diagnose().await.unwrap(), broker.capabilities(&queue("q")).durability), (vec![], Durability::Power));
    assert_eq!(broker.capabilities(&queue("q")).durability_caveat, None);
}

#[tokio::test]
async fn a_replica_is_named_as_such() {
    let master = redis::start(NONE).await.unwrap();
    let (port, replica) = (master.address().port().to_string(), redis::start(NONE).await.unwrap());
    let _: () = tell(&mut operator(&replica).await, &format!("REPLICAOF 127.0.0.1 {port}")).await;
    assert_eq!(finding(&replica, "is a replica").await, Some(Severity::Problem));
    let broker = connect(&url(&replica)).await.unwrap();
    let error = send_one(&*broker, &queue("copy"), 1).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::ReadOnly, Effect::None), "{error}");
    assert!(error.to_string().contains("name the master"), "{error}");
    let both = connect(&format!("redis://{},{}", replica.address(), master.address())).await.unwrap();
    send_one(&*both, &queue("copy"), 1).await.unwrap();
}

/// An address behind which the server changes: a proxy of the operator's, or a name.
#[tokio::test]
async fn a_master_that_was_demoted_under_a_living_connection_is_left_for_its_successor() {
    let at_once = ["--repl-diskless-sync-delay", "0"];
    let (old, new) = (redis::start(at_once).await.unwrap(), redis::start(NONE).await.unwrap());
    let target = Arc::new(Mutex::new(old.address()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn({
        let target = target.clone();
        async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let to = *target.lock().unwrap();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        }
    });
    let (broker, queue) = (connect(&format!("redis://{address}")).await.unwrap(), queue("demoted"));
    let mut consumer = consumer(&*broker, &queue).await;
    send_one(&*broker, &queue, 1).await.unwrap();
    let port = old.address().port();
    let _: () = tell(&mut operator(&new).await, &format!("REPLICAOF 127.0.0.1 {port}")).await;
    eventually(|| async {
        let state: String = tell(&mut operator(&new).await, "INFO replication").await;
        if state.contains("master_link_status:up") { Ok(()) } else { Err(state) }
    })
    .await;
    let _: () = tell(&mut operator(&new).await, "REPLICAOF NO ONE").await;
    let port = new.address().port();
    let _: () = tell(&mut operator(&old).await, &format!("REPLICAOF 127.0.0.1 {port}")).await;
    let error = send_one(&*broker, &queue, 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    *target.lock().unwrap() = new.address();
    send_one(&*broker, &queue, 2).await.unwrap();
    assert_eq!(work(&mut *consumer, 2, SOON).await, [1, 2]);
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_waited_for() {
    let launch = redis::launch().args(["--key-load-delay", "300"]).ready(Ready::Connect);
    let server = Process::start(launch).await.unwrap();
    let url = url(&server);
    let (broker, queue) = (eventually(|| connect(&url)).await, queue("loading"));
    for part in Sample::many(8000).chunks(1000) {
        for task in part.chunks(2) {
            send(&*broker, &queue, task).await.unwrap();
        }
    }
    server.kill().await.unwrap();
    server.start().await.unwrap();
    let (began, mut loading) = (Instant::now(), false);
    while let Err(error) = send_one(&*broker, &queue, 9000).await {
        assert!(error.is_retryable() && began.elapsed() < Duration::from_secs(60), "{error}");
        loading |= error.to_string().contains("loads its data");
    }
    assert!(loading, "the test must meet a server that loads");
    let mut consumer = consumer(&*broker, &queue).await;
    assert_eq!(work(&mut *consumer, 8001, Duration::from_secs(60)).await.len(), 8001);
}

/// A program may use one broker from several runtimes, and end some of them.
#[test]
fn a_runtime_that_ends_takes_nobody_elses_connection_with_it() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let server = second.block_on(redis::start(NONE)).unwrap();
    let (broker, queue) = (first.block_on(connect(&url(&server))).unwrap(), queue("runtimes"));
    let mut listening = first.block_on(consumer(&*broker, &queue));
    assert!(first.block_on(reserve(&mut *listening, 1, Duration::from_millis(50))).unwrap().is_empty());
    second.block_on(async {
        send_one(&*broker, &queue, 1).await.unwrap();
        let mut consumer = consumer(&*broker, &queue).await;
        first.shutdown_background();
        assert_eq!(work(&mut *consumer, 1, SOON).await, [1]);
        let sending = async {
            somebody_listens(&server, &queue).await;
            send_one(&*broker, &queue, 2).await.unwrap();
            Instant::now()
        };
        let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(14)), sending);
        assert_eq!(Sample::number(&got.unwrap()[0]), Some(2));
        assert!(sent.elapsed() < Duration::from_secs(5), "found only by looking, after {:?}", sent.elapsed());
        assert_eq!(broker.info().reconnects, 0);
    });
}

#[tokio::test]
async fn a_worker_whose_bell_was_cut_off_is_rung_again() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("rung"));
    let mut consumer = consumer(&*broker, &queue).await;
    let mut operator = operator(&server).await;
    for number in 0..3 {
        let sending = async {
            // Once it waits: cut off while it waits, and heard before the safety net would have looked.
            somebody_waits(&server, &queue).await;
            let _: () = tell(&mut operator, "CLIENT KILL TYPE pubsub").await;
            somebody_listens(&server, &queue).await;
            send_one(&*broker, &queue, number).await.unwrap();
            Instant::now()
        };
        let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(14)), sending);
        let got = got.unwrap();
        assert_eq!(Sample::number(&got[0]), Some(number));
        assert!(sent.elapsed() < Duration::from_secs(2), "found only by looking, after {:?}", sent.elapsed());
        settle_all(&*consumer.settler(), &got, Settlement::Done).await.unwrap();
    }
}

/// A snapshot, a replica that lagged, or the last second of the append-only file: numbers that the server counts come again.
#[tokio::test]
async fn a_receipt_from_before_a_rollback_is_stale() {
    let server = redis::start(["--appendonly", "no", "--save", "900 1"]).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("rolled-back"));
    send_one(&*broker, &queue, 1).await.unwrap();
    let _: () = tell(&mut operator(&server).await, "SAVE").await;
    let mut first = consumer(&*broker, &queue).await;
    let before = reserve(&mut *first, 1, SOON).await.unwrap();
    server.kill().await.unwrap();
    server.start().await.unwrap();
    let other = connect(&url(&server)).await.unwrap();
    let mut second = consumer(&*other, &queue).await;
    let after = reserve(&mut *second, 1, SOON).await.unwrap();
    assert_eq!(Sample::number(&after[0]), Some(1));
    let settler = first.settler();
    let error = eventually(|| async {
        match settle_all(&*settler, &before, Settlement::Done).await {
            // The connection broke with the server.
            Err(e) if e.is_retryable() => Err(e),
            other => Ok(other.unwrap_err()),
        }
    })
    .await;
    assert!(error.is_lease_lost(), "{error:?}");
    settle_all(&*second.settler(), &after, Settlement::Done).await.unwrap();
}

#[tokio::test]
async fn a_user_without_channels_loses_no_task_and_is_told_of_by_check() {
    let server = redis::start(NONE).await.unwrap();
    let rights = "ACL SETUSER worker on >secret resetchannels ~anyqueue:* +@all";
    let _: () = tell(&mut operator(&server).await, rights).await;
    let broker = connect(&format!("redis://worker:secret@{}", server.address())).await.unwrap();
    let queue = queue("unrung");
    let mut consumer = consumer(&*broker, &queue).await;
    // Somebody waits when the task comes, so that there is something to publish.
    let sending = async {
        somebody_waits(&server, &queue).await;
        send_one(&*broker, &queue, 1).await
    };
    let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, SOON), sending);
    sent.unwrap();
    let got = got.unwrap();
    assert_eq!(Sample::number(&got[0]), Some(1));
    settle_all(&*consumer.settler(), &got, Settlement::Done).await.unwrap();
    let findings = broker.diagnose().await.unwrap();
    assert!(findings.iter().any(|finding| finding.severity == Severity::Problem && finding.text.contains("`&anyqueue:*`")));
}

#[tokio::test]
async fn a_server_that_may_not_tell_what_it_keeps_counts_as_one_that_keeps_nothing() {
    let server = redis::start(NONE).await.unwrap();
    let rights = "ACL SETUSER worker on >secret allchannels ~anyqueue:* +@all -info -config";
    let _: () = tell(&mut operator(&server).await, rights).await;
    let broker = connect(&format!("redis://worker:secret@{}", server.address())).await.unwrap();
    let queue = queue("untold");
    assert_eq!(broker.capabilities(&queue).durability, Durability::None);
    send_one(&*broker, &queue, 1).await.unwrap();
    let findings = broker.diagnose().await.unwrap();
    let told = findings.iter().find(|finding| finding.text.contains("`+info`")).unwrap();
    assert_eq!(told.severity, Severity::Warning);
}

/// A node of a cluster that forgets who waits is not the one, as a rule, on which they listen.
#[tokio::test]
async fn a_mark_that_got_lost_with_a_connection_is_left_anew() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, other) =
        (connect(&format!("{}?liveness=1s", url(&server))).await.unwrap(), connect(&url(&server)).await.unwrap());
    let queue = queue("mark");
    let mut consumer = consumer(&*broker, &queue).await;
    let sending = async {
        somebody_waits(&server, &queue).await;
        somebody_listens(&server, &queue).await;
        let mut operator = operator(&server).await;
        let _: () = tell(&mut operator, "MULTI").await;
        let _: String = tell(&mut operator, "HDEL anyqueue:{mark} bell").await;
        let _: String = tell(&mut operator, "CLIENT KILL TYPE normal SKIPME yes").await;
        let _: ::redis::Value = tell(&mut operator, "EXEC").await;
        somebody_waits(&server, &queue).await;
        eventually(|| send_one(&*other, &queue, 1)).await;
        Instant::now()
    };
    let (got, sent) = tokio::join!(until_given(&mut *consumer), sending);
    assert_eq!(Sample::number(&got[0]), Some(1));
    assert!(sent.elapsed() < Duration::from_secs(5), "found only by looking, after {:?}", sent.elapsed());
}

#[tokio::test]
async fn nothing_is_alive_after_close() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("closed"));
    let mut first = consumer(&*broker, &queue).await;
    let closing = async {
        somebody_waits(&server, &queue).await;
        broker.close().await.unwrap();
    };
    let (got, ()) = tokio::join!(reserve(&mut *first, 1, SOON), closing);
    assert_eq!(got.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(reserve(&mut *first, 1, SOON).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(send_one(&*broker, &queue, 1).await.unwrap_err().kind(), ErrorKind::Closed);
    assert!(broker.consume(&queue, ConsumeOptions::default()).await.is_err());
    eventually(|| async {
        let clients: String = tell(&mut operator(&server).await, "CLIENT LIST").await;
        if clients.lines().count() == 1 { Ok(()) } else { Err(clients) }
    })
    .await;
    assert_eq!(broker.info().connections, 0);
}

#[tokio::test]
async fn a_receipt_that_is_twice_in_a_batch_counts_once() {
    let server = redis::start(NONE).await.unwrap();
    let (broker, queue) = (connect(&url(&server)).await.unwrap(), queue("twice"));
    for number in 0..3 {
        send_one(&*broker, &queue, number).await.unwrap();
    }
    let mut consumer = consumer(&*broker, &queue).await;
    let got = reserve(&mut *consumer, 3, SOON).await.unwrap();
    let batch: Vec<_> = [0, 1, 0, 2].iter().map(|n| (got[*n].receipt.clone(), Settlement::Done)).collect();
    let answers = consumer.settler().settle(&batch).await;
    let lost: Vec<bool> = answers.into_iter().map(|answer| answer.is_err_and(|e| e.is_lease_lost())).collect();
    assert_eq!(lost, [false, false, true, false]);
}
