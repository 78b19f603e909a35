//! Connections and servers that say nothing any more: nobody else is held up, and work goes on over new connections.

#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::path::Path;
use std::time::{Duration, Instant};

use anyqueue_core::{Effect, ErrorKind, Settlement, Severity};
use anyqueue_testkit::servers::redis;
use anyqueue_testkit::{Launch, Process, Proxy, Ready, Sample, Server, free_port, temp_dir};
use shared::cluster::Cluster;
use shared::{
    SOON, connect, consumer, eventually, operator, queue, reserve, send, send_one, settle_all, somebody_listens, somebody_waits,
    tell, until_given, url, work,
};

const NONE: [&str; 0] = [];
/// Less than the time after which one that is silent counts as dead.
const UNHINDERED: Duration = Duration::from_secs(4);

#[tokio::test]
async fn an_idle_worker_whose_connections_were_swallowed_gets_what_comes() {
    let server = redis::start(NONE).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let broker = connect(&format!("redis://{}?liveness=1s", proxy.address())).await.unwrap();
    let (producer, queue) = (connect(&url(&server)).await.unwrap(), queue("idle"));
    let mut consumer = consumer(&*broker, &queue).await;
    let sending = async {
        somebody_waits(&server, &queue).await;
        proxy.swallow();
        send_one(&*producer, &queue, 1).await.unwrap();
        Instant::now()
    };
    // The worker's claim may meet the hole: then that is an error, and the next one works.
    let (got, sent) = tokio::join!(until_given(&mut *consumer), sending);
    assert_eq!(Sample::number(&got[0]), Some(1));
    assert!(sent.elapsed() < Duration::from_secs(8), "found only by looking, after {:?}", sent.elapsed());
}

#[tokio::test]
async fn a_lone_sender_whose_connection_was_swallowed_is_told_in_time_and_sends_over_a_new_one() {
    let server = redis::start(NONE).await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let (broker, queue) = (connect(&format!("redis://{}?liveness=1s", proxy.address())).await.unwrap(), queue("lone"));
    send_one(&*broker, &queue, 1).await.unwrap();
    proxy.swallow();
    let began = Instant::now();
    let error = send_one(&*broker, &queue, 2).await.unwrap_err();
    assert!(began.elapsed() < SOON, "after {:?}", began.elapsed());
    assert_eq!((error.kind(), error.effect(), error.is_retryable()), (ErrorKind::Timeout, Effect::Unknown, true), "{error}");
    send_one(&*broker, &queue, 2).await.unwrap();
    assert_eq!(work(&mut *consumer(&*broker, &queue).await, 2, SOON).await, [1, 2]);
    assert!(broker.info().reconnects >= 1);
}

#[tokio::test]
async fn a_node_of_a_cluster_that_is_silent_holds_up_no_other() {
    let cluster = Cluster::start().await;
    let mut first = operator(&cluster.0[0]).await;
    let mut of_node = Vec::new();
    for wanted in 0..3 {
        for number in 0.. {
            let slot: u16 = tell(&mut first, &format!("CLUSTER KEYSLOT {{q{number}}}")).await;
            if Cluster::owner(slot) == wanted {
                of_node.push(queue(&format!("q{number}")));
                break;
            }
        }
    }
    let broker = connect(&url(&cluster.0[0])).await.unwrap();
    for queue in &of_node {
        send_one(&*broker, queue, 1).await.unwrap();
    }
    cluster.0[0].pause().unwrap();
    // All the while somebody tries the silent one.
    let trying = tokio::spawn({
        let (broker, queue) = (broker.clone(), of_node[0].clone());
        async move { while send_one(&*broker, &queue, 2).await.is_err() {} }
    });
    let hosts: Vec<_> = cluster.0.iter().map(|node| node.address().to_string()).collect();
    let began = Instant::now();
    let late = connect(&format!("redis://{}", hosts.join(","))).await.unwrap();
    assert!(began.elapsed() < UNHINDERED, "connected after {:?}", began.elapsed());
    for (number, broker) in [&broker, &late].into_iter().cycle().take(30).enumerate() {
        for queue in &of_node[1..] {
            let began = Instant::now();
            send_one(&**broker, queue, 10 + number as u64).await.unwrap();
            assert!(began.elapsed() < UNHINDERED, "sent after {:?}", began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let findings = late.diagnose().await.unwrap();
    let silent = findings.iter().find(|finding| finding.severity == Severity::Problem).unwrap();
    assert!(silent.text.starts_with(&hosts[0]), "{silent:?}");
    cluster.0[0].resume().unwrap();
    tokio::time::timeout(Duration::from_secs(60), trying).await.unwrap().unwrap();
    for queue in &of_node {
        let count = broker.admin().stats(queue).await.unwrap().ready.value().unwrap();
        assert_eq!(work(&mut *consumer(&*broker, queue).await, count as usize, SOON).await.len() as u64, count);
    }
}

async fn sentinel(folder: &Path, name: &str, master: &Process) -> Process {
    let file = folder.join(name);
    let port = master.address().port();
    std::fs::write(&file, format!("sentinel monitor tasks 127.0.0.1 {port} 2\n")).unwrap();
    let arguments = [file.to_str().unwrap(), "--sentinel", "--port", "{port}", "--bind", "127.0.0.1"];
    Process::start(Launch::new(redis::program()).args(arguments).ready(Ready::Connect)).await.unwrap()
}

#[tokio::test]
async fn who_has_the_master_needs_no_sentinel() {
    let (master, folder) = (redis::start(NONE).await.unwrap(), temp_dir().unwrap());
    let sentinel = sentinel(folder.path(), "sentinel.conf", &master).await;
    let address = format!("{}?master=tasks&liveness=10s", url(&sentinel));
    let (broker, queue) = (eventually(|| connect(&address)).await, queue("unwatched"));
    let mut consumer = consumer(&*broker, &queue).await;
    send(&*broker, &queue, &Sample::many(3)).await.unwrap();
    let got = reserve(&mut *consumer, 3, SOON).await.unwrap();
    sentinel.pause().unwrap();
    let settler = consumer.settler();
    for delivery in got.chunks(1) {
        // Whoever is cut off from its bell asks the sentinels, and gets no answer.
        somebody_listens(&master, &queue).await;
        let _: () = tell(&mut operator(&master).await, "CLIENT KILL TYPE pubsub").await;
        let began = Instant::now();
        settle_all(&*settler, delivery, Settlement::Done).await.unwrap();
        assert!(began.elapsed() < UNHINDERED, "settled after {:?}", began.elapsed());
    }
    sentinel.resume().unwrap();
}

#[tokio::test]
async fn a_user_without_channels_leaves_the_sentinels_in_peace() {
    let (master, folder) = (redis::start(NONE).await.unwrap(), temp_dir().unwrap());
    let _: () = tell(&mut operator(&master).await, "ACL SETUSER worker on >secret resetchannels ~anyqueue:* +@all").await;
    let sentinel = sentinel(folder.path(), "sentinel.conf", &master).await;
    let address = format!("redis://worker:secret@{}?master=tasks", sentinel.address());
    let (broker, queue) = (eventually(|| connect(&address)).await, queue("unrung"));
    let mut consumer = consumer(&*broker, &queue).await;
    assert!(reserve(&mut *consumer, 1, Duration::from_millis(500)).await.unwrap().is_empty());
    let asked = async || -> u64 {
        let text: String = tell(&mut operator(&sentinel).await, "INFO stats").await;
        let line = text.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
        line.parse().unwrap()
    };
    let before = asked().await;
    assert!(reserve(&mut *consumer, 1, Duration::from_secs(5)).await.unwrap().is_empty());
    assert_eq!(asked().await - before, 1, "connections, that of this question included");
    send_one(&*broker, &queue, 1).await.unwrap();
    assert_eq!(work(&mut *consumer, 1, SOON).await, [1]);
}

#[tokio::test]
async fn sentinels_that_are_dead_or_silent_hold_up_no_other() {
    let master = redis::start(NONE).await.unwrap();
    let (folder, mut sentinels) = (temp_dir().unwrap(), Vec::new());
    for number in 0..2 {
        sentinels.push(sentinel(folder.path(), &format!("sentinel-{number}.conf"), &master).await);
    }
    let (silent, good) = (&sentinels[0], &sentinels[1]);
    silent.pause().unwrap();
    let dead = free_port().unwrap();
    let url = format!("redis://127.0.0.1:{dead},{},{}?master=tasks", silent.address(), good.address());
    let began = Instant::now();
    let (broker, queue) = (eventually(|| connect(&url)).await, queue("watched"));
    send_one(&*broker, &queue, 1).await.unwrap();
    assert!(began.elapsed() < UNHINDERED, "after {:?}", began.elapsed());
    // Whoever has lost the master asks them anew.
    master.kill().await.unwrap();
    send_one(&*broker, &queue, 2).await.unwrap_err();
    master.start().await.unwrap();
    let began = Instant::now();
    eventually(|| send_one(&*broker, &queue, 2)).await;
    assert!(began.elapsed() < UNHINDERED, "after {:?}", began.elapsed());
    assert_eq!(work(&mut *consumer(&*broker, &queue).await, 2, SOON).await, [1, 2]);
}

#[tokio::test]
async fn of_plain_servers_the_first_master_counts_although_others_answer_sooner() {
    let (slow, quick) = (redis::start(NONE).await.unwrap(), redis::start(NONE).await.unwrap());
    let proxy = Proxy::start(slow.address()).await.unwrap();
    proxy.delay(Duration::from_millis(150));
    let both = connect(&format!("redis://{},{}", proxy.address(), quick.address())).await.unwrap();
    send(&*both, &queue("one"), &Sample::many(3)).await.unwrap();
    let keys: (u64, u64) = (tell(&mut operator(&slow).await, "DBSIZE").await, tell(&mut operator(&quick).await, "DBSIZE").await);
    assert!(keys.0 > 0 && keys.1 == 0, "{keys:?}");
    // The same while the first one is gone: the second one counts.
    slow.kill().await.unwrap();
    let second = connect(&format!("redis://{},{}", slow.address(), quick.address())).await.unwrap();
    send(&*second, &queue("one"), &Sample::many(3)).await.unwrap();
}
