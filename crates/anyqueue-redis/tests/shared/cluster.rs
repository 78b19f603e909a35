//! Servers that form a cluster.

use anyqueue_core::Error;
use anyqueue_testkit::servers::redis;
use anyqueue_testkit::{Process, Server};

use super::{eventually, operator, tell, words};

/// The highest port of a node: it talks to the others on one that is higher by 10,000.
const HIGHEST: u16 = u16::MAX - 10_000;

/// A server that may be part of a cluster, and serves what it has although other parts are missing.
pub(crate) async fn node() -> Process {
    let settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"];
    for _ in 0..50 {
        match redis::start(settings).await {
            Ok(node) if node.address().port() <= HIGHEST => return node,
            Err(e) => println!("tried again: {e}"),
            Ok(_) => {}
        }
    }
    panic!("no two ports for a node of a cluster");
}

/// Waits until a node knows so many, and all slots have an owner.
pub(crate) async fn knows(node: &Process, count: usize) {
    let count = format!("cluster_known_nodes:{count}");
    eventually(|| async {
        let state: String = tell(&mut operator(node).await, "CLUSTER INFO").await;
        let known = ["cluster_state:ok", &count, "cluster_slots_assigned:16384"].iter().all(|part| state.contains(part));
        if known { Ok(()) } else { Err(Error::unavailable("the nodes do not know each other")) }
    })
    .await;
}

/// Three masters that share the slots.
pub(crate) struct Cluster(pub(crate) Vec<Process>);

impl Cluster {
    pub(crate) async fn start() -> Self {
        let cluster = Self(vec![node().await, node().await, node().await]);
        let mut first = operator(&cluster.0[0]).await;
        for (at, node) in cluster.0.iter().enumerate() {
            let slots: Vec<_> = (0..16_384).filter(|slot| Self::owner(*slot) == at).map(|slot| slot.to_string()).collect();
            let _: () = tell(&mut operator(node).await, &format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
            let _: () = tell(&mut first, &format!("CLUSTER MEET 127.0.0.1 {}", node.address().port())).await;
        }
        for node in &cluster.0 {
            knows(node, 3).await;
        }
        cluster
    }

    /// A replica of a node: all know it, and it has what the node has.
    pub(crate) async fn heir(&self, of: usize) -> Process {
        let heir = node().await;
        let _: () = tell(&mut operator(&self.0[of]).await, &format!("CLUSTER MEET 127.0.0.1 {}", heir.address().port())).await;
        let (connection, replicate) = (operator(&heir).await, words(&format!("CLUSTER REPLICATE {}", self.id(of).await)));
        eventually(|| {
            let (mut connection, replicate) = (connection.clone(), replicate.clone());
            async move { replicate.query_async::<()>(&mut connection).await }
        })
        .await;
        for node in self.0.iter().chain([&heir]) {
            knows(node, 4).await;
        }
        eventually(|| async {
            let state: String = tell(&mut connection.clone(), "INFO replication").await;
            if state.contains("master_link_status:up") { Ok(()) } else { Err(state) }
        })
        .await;
        heir
    }

    pub(crate) async fn id(&self, node: usize) -> String {
        tell(&mut operator(&self.0[node]).await, "CLUSTER MYID").await
    }

    /// The node that has a slot at first.
    pub(crate) fn owner(slot: u16) -> usize {
        [5461, 10923].iter().filter(|first| slot >= **first).count()
    }
}
