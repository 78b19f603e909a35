//! Servers that stand together: sentinels with a master and a replica, a cluster; TLS and users of few rights.

#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod shared;

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use anyqueue_core::{ErrorKind, Settlement};
use anyqueue_testkit::servers::redis;
use anyqueue_testkit::{Launch, Process, Ready, Sample, Server, temp_dir};
use shared::cluster::Cluster;
use shared::{
    SOON, connect, consumer, eventually, operator, queue, reserve, send, send_one, settle_all, somebody_listens, somebody_waits,
    tell, url, work,
};

const NONE: [&str; 0] = [];
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_cluster_spreads_queues_and_rings_across_nodes() {
    let cluster = Cluster::start().await;
    let broker = connect(&url(&cluster.0[1])).await.unwrap();
    let queues: Vec<_> = (0..12).map(|n| queue(&format!("spread-{n}"))).collect();
    for (number, queue) in queues.iter().enumerate() {
        send(&*broker, queue, &Sample::many(number + 1)).await.unwrap();
    }
    for node in &cluster.0 {
        let keys: u64 = tell(&mut operator(node).await, "DBSIZE").await;
        assert!(keys > 0, "a node without queues");
    }
    let producer = connect(&url(&cluster.0[2])).await.unwrap();
    for (number, queue) in queues.iter().enumerate() {
        let mut consumer = consumer(&*broker, queue).await;
        assert_eq!(work(&mut *consumer, number + 1, SOON).await.len(), number + 1);
        let slot: u16 = tell(&mut operator(&cluster.0[0]).await, &format!("CLUSTER KEYSLOT {{{queue}}}")).await;
        let sending = async {
            somebody_waits(&cluster.0[Cluster::owner(slot)], queue).await;
            send_one(&*producer, queue, 77).await.unwrap();
            std::time::Instant::now()
        };
        let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(14)), sending);
        assert_eq!(Sample::number(&got.unwrap()[0]), Some(77));
        assert!(sent.elapsed() < Duration::from_secs(2), "{queue} was found only by looking");
    }
    assert!(broker.diagnose().await.unwrap().is_empty());
}

/// Moves a queue to another node while it is sent to and worked: MOVED, ASK and TRYAGAIN on the way.
#[tokio::test]
async fn a_queue_that_moves_to_another_node_loses_nothing() {
    let cluster = Cluster::start().await;
    let (broker, queue) = (connect(&url(&cluster.0[0])).await.unwrap(), queue("moving"));
    send(&*broker, &queue, &Sample::many(500)).await.unwrap();
    let slot: u16 = tell(&mut operator(&cluster.0[0]).await, "CLUSTER KEYSLOT {moving}").await;
    let from = Cluster::owner(slot);
    let to = (from + 1) % 3;
    let mut consumer = consumer(&*broker, &queue).await;
    let held = reserve(&mut *consumer, 10, SOON).await.unwrap();
    let moving = async {
        let (mut source, mut target) = (operator(&cluster.0[from]).await, operator(&cluster.0[to]).await);
        let (source_id, target_id) = (cluster.id(from).await, cluster.id(to).await);
        let _: () = tell(&mut target, &format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}")).await;
        let _: () = tell(&mut source, &format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}")).await;
        let port = cluster.0[to].address().port();
        loop {
            let keys: Vec<String> = tell(&mut source, &format!("CLUSTER GETKEYSINSLOT {slot} 1")).await;
            let Some(key) = keys.first() else { break };
            let _: String = tell(&mut source, &format!("MIGRATE 127.0.0.1 {port} {key} 0 5000")).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        for node in &cluster.0 {
            let _: () = tell(&mut operator(node).await, &format!("CLUSTER SETSLOT {slot} NODE {target_id}")).await;
        }
    };
    let sending = async {
        for number in 500..600 {
            eventually(|| send_one(&*broker, &queue, number)).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::join!(moving, sending);
    settle_all(&*consumer.settler(), &held, Settlement::Done).await.unwrap();
    let mut numbers = work(&mut *consumer, 590, PATIENCE).await;
    numbers.extend(held.iter().filter_map(Sample::number));
    numbers.sort_unstable();
    assert_eq!(numbers, (0..600).collect::<Vec<_>>());
}

/// Waits until the replica has all that its master was sent so far. `WAIT` counts for writes of the same connection only.
async fn copied(master: &dyn Server, key: &str) {
    eventually(|| async {
        let mut operator = operator(master).await;
        let _: String = tell(&mut operator, &format!("SET {key} 1")).await;
        let copies: u64 = tell(&mut operator, "WAIT 1 1000").await;
        if copies == 1 { Ok(()) } else { Err("the replica is behind") }
    })
    .await;
}

#[tokio::test]
async fn a_failover_in_a_cluster_is_followed() {
    let cluster = Cluster::start().await;
    let lost = Cluster::owner(tell(&mut operator(&cluster.0[0]).await, "CLUSTER KEYSLOT {heir}").await);
    let _heir = cluster.heir(lost).await;
    let (broker, queue) = (connect(&url(&cluster.0[(lost + 1) % 3])).await.unwrap(), queue("heir"));
    let mut consumer = consumer(&*broker, &queue).await;
    send(&*broker, &queue, &Sample::many(20)).await.unwrap();
    copied(&cluster.0[lost], "{heir}").await;
    cluster.0[lost].kill().await.unwrap();
    eventually(|| send_one(&*broker, &queue, 20)).await;
    let mut numbers = work(&mut *consumer, 21, PATIENCE).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (0..21).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_node_that_hands_over_its_part_of_a_cluster_is_let_go() {
    let cluster = Cluster::start().await;
    let old = Cluster::owner(tell(&mut operator(&cluster.0[0]).await, "CLUSTER KEYSLOT {heir}").await);
    let heir = cluster.heir(old).await;
    let (broker, queue) = (connect(&url(&cluster.0[(old + 1) % 3])).await.unwrap(), queue("heir"));
    let mut consumer = consumer(&*broker, &queue).await;
    send_one(&*broker, &queue, 1).await.unwrap();
    assert_eq!(work(&mut *consumer, 1, SOON).await, [1]);
    // One to each master, all of which were asked what they keep, and one to be rung.
    eventually(|| async { if broker.info().connections == 4 { Ok(()) } else { Err(broker.info()) } }).await;
    let _: () = tell(&mut operator(&heir).await, "CLUSTER FAILOVER").await;
    eventually(|| async {
        let state: String = tell(&mut operator(&heir).await, "INFO replication").await;
        if state.contains("role:master") { Ok(()) } else { Err(state) }
    })
    .await;
    eventually(|| send_one(&*broker, &queue, 2)).await;
    assert_eq!(work(&mut *consumer, 1, SOON).await, [2]);
    eventually(|| async {
        // Whoever asks for something finds out who has what.
        broker.admin().stats(&queue).await.unwrap();
        if broker.info().connections == 4 { Ok(()) } else { Err(broker.info()) }
    })
    .await;
}

#[tokio::test]
async fn a_failover_of_sentinels_is_followed() {
    let (master, replica) = (redis::start(NONE).await.unwrap(), redis::start(NONE).await.unwrap());
    let _: () = tell(&mut operator(&replica).await, &format!("REPLICAOF 127.0.0.1 {}", master.address().port())).await;
    let folder = temp_dir().unwrap();
    let file = folder.path().join("sentinel.conf");
    let watched = format!(
        "sentinel monitor tasks 127.0.0.1 {} 1\nsentinel down-after-milliseconds tasks 500\nsentinel failover-timeout tasks 5000\n",
        master.address().port()
    );
    std::fs::write(&file, watched).unwrap();
    let arguments = [file.to_str().unwrap(), "--sentinel", "--port", "{port}", "--bind", "127.0.0.1"];
    let sentinel = Process::start(Launch::new(redis::program()).args(arguments).ready(Ready::Connect)).await.unwrap();
    eventually(|| async {
        let known: Vec<HashMap<String, String>> = tell(&mut operator(&sentinel).await, "SENTINEL REPLICAS tasks").await;
        if known.len() == 1 { Ok(()) } else { Err("the sentinel does not know the replica yet") }
    })
    .await;
    let error = connect(&url(&sentinel)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("`master`"), "{error}");
    let error = connect(&format!("{}?master=other", url(&sentinel))).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("`other`"), "{error}");

    let (broker, queue) = (connect(&format!("{}?master=tasks", url(&sentinel))).await.unwrap(), queue("failover"));
    let mut consumer = consumer(&*broker, &queue).await;
    send(&*broker, &queue, &Sample::many(20)).await.unwrap();
    copied(&master, "mark").await;
    master.kill().await.unwrap();
    eventually(|| send_one(&*broker, &queue, 20)).await;
    let mut numbers = work(&mut *consumer, 21, PATIENCE).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (0..21).collect::<Vec<_>>());
    // Rung by the new master, not only found by looking.
    let sending = async {
        somebody_listens(&replica, &queue).await;
        somebody_waits(&replica, &queue).await;
        send_one(&*broker, &queue, 99).await.unwrap();
        std::time::Instant::now()
    };
    let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, Duration::from_secs(14)), sending);
    assert_eq!((got.unwrap().len(), sent.elapsed() < Duration::from_secs(3)), (1, true));
}

fn openssl(folder: &std::path::Path, arguments: &str) {
    let made = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
    assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_shows_and_wants_certificates() {
    let folder = temp_dir().unwrap();
    std::fs::write(folder.path().join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    openssl(folder.path(), "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem");
    for name in ["server", "client"] {
        openssl(folder.path(), &format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
        openssl(folder.path(), &format!("x509 -req -in {name}.csr {sign} -out {name}.pem"));
    }
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (ca, certificate, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let place = ["--bind", "127.0.0.1", "--port", "0", "--tls-port", "{port}", "--dir", "{dir}", "--save", ""];
    let tls = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes"];
    let server = match Process::start(Launch::new(redis::program()).args(place).args(tls)).await {
        Err(e) if std::env::var_os(redis::SERVER).is_some() && e.to_string().to_lowercase().contains("tls") => {
            return println!("the server that was named for this run is built without TLS");
        }
        server => server.unwrap(),
    };
    let trusting = format!("rediss://{}?tls_ca={ca}", server.address());
    let error = connect(&format!("rediss://{}", server.address())).await.unwrap_err();
    assert!(error.to_string().contains("`tls_ca`"), "{error}");
    let error = connect(&trusting).await.unwrap_err();
    assert!(error.is_retryable(), "the server wants a certificate of ours: {error}");
    let both = format!("{trusting}&tls_certificate={}&tls_key={}", file("client.pem"), file("client.key"));
    let (broker, queue) = (connect(&both).await.unwrap(), queue("secret"));
    let mut consumer = consumer(&*broker, &queue).await;
    send_one(&*broker, &queue, 5).await.unwrap();
    assert_eq!(work(&mut *consumer, 1, SOON).await, [5]);
    let error = connect(&format!("rediss://{}?tls_ca=/no/such/file", server.address())).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/file"), "{error}");
}

#[tokio::test]
async fn a_user_with_the_documented_rights_can_do_everything() {
    let rights = "user worker on >swordfish ~anyqueue:* resetchannels &anyqueue:* +@connection +@hash +@sortedset +@scripting +publish \
                  +subscribe +unsubscribe +time +exists +info";
    let folder = temp_dir().unwrap();
    let file = folder.path().join("users.acl");
    std::fs::write(
        &file,
        format!("{rights}\nuser stranger on >swordfish ~other:* +@all\nuser default on nopass ~* allchannels +@all\n"),
    )
    .unwrap();
    let server = redis::start(["--aclfile", file.to_str().unwrap()]).await.unwrap();
    let address = server.address();
    let (broker, queue) = (connect(&format!("redis://worker:swordfish@{address}")).await.unwrap(), queue("acl"));
    let mut consumer = consumer(&*broker, &queue).await;
    let sending = async {
        somebody_waits(&server, &queue).await;
        send(&*broker, &queue, &[Sample::new(1).envelope(), Sample::new(2).delay(Duration::from_millis(1)).envelope()]).await
    };
    let (got, sent) = tokio::join!(reserve(&mut *consumer, 1, SOON), sending);
    sent.unwrap();
    let hold = Settlement::Hold(Sample::new(1).envelope(), "look".into());
    settle_all(&*consumer.settler(), &got.unwrap(), hold).await.unwrap();
    assert_eq!(broker.admin().kick(&queue, &anyqueue_core::Which::All).await.unwrap(), 1);
    broker.admin().pause(&queue, None).await.unwrap();
    broker.admin().resume(&queue).await.unwrap();
    broker.diagnose().await.unwrap();
    assert_eq!(work(&mut *consumer, 2, SOON).await.len(), 2);

    let stranger = connect(&format!("redis://stranger:swordfish@{address}")).await.unwrap();
    let error = send_one(&*stranger, &queue, 1).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Denied, false), "{error}");
    let error = connect(&format!("redis://worker:wrong@{address}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(!format!("{error:?}").contains("wrong@"));
}
