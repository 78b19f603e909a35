//! Requests to whoever has a queue: the only server, the master that sentinels name, or a node of a cluster.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyqueue_core::{Error, Result};
use redis::{Cmd, Value, cmd};
use tokio::runtime::Handle;

use crate::config::{Address, Config};
use crate::dial::Dial;
use crate::discover::{Found, Map, Standing, ask_cluster, find};
use crate::error::Fault;
use crate::layout::Keys;
use crate::node::{Hello, Node};
use crate::script::Script;

/// How often a request is sent on from node to node before we give up.
const REDIRECTS: usize = 8;
/// How often one request teaches servers its script: each node that it meets may have forgotten it.
const LESSONS: usize = 4;
/// How long to wait before a request is tried again while a cluster changes.
const CHANGING: Duration = Duration::from_millis(50);
/// A map of the servers is not asked for more often.
const FRESH: Duration = Duration::from_millis(100);

/// The same after a try that failed, by those who can do without a new map.
const FRESH_ENOUGH: Duration = Duration::from_secs(2);

/// All servers of one broker.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) standing: Standing,
    pub(crate) hello: Hello,
    dial: Arc<Dial>,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    map: Mutex<Map>,
    /// Something happened that a new map may explain.
    stale: AtomicBool,
    asking: tokio::sync::Mutex<Asked>,
    /// Where it is asked: another runtime may be blocked, and all wait for the same answer.
    runtime: Handle,
    /// Whoever drew the map may know less than others: an owner that it names is not there.
    distrusted: AtomicBool,
    closed: AtomicBool,
}

/// The last time that somebody asked for the map.
#[derive(Debug, Default)]
struct Asked {
    at: Option<Instant>,
    failed: bool,
    /// Who answered, and is asked first the next time.
    of: Option<Address>,
}

/// One request: an EVALSHA of a script on the keys of a queue.
pub(crate) struct Request {
    script: Script,
    slot: u16,
    command: Cmd,
}

impl Request {
    /// Adds an argument.
    pub(crate) fn arg(&mut self, argument: impl redis::ToRedisArgs) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<T: redis::ToRedisArgs>(&mut self, arguments: impl IntoIterator<Item = T>) {
        for argument in arguments {
            self.command.arg(argument);
        }
    }
}

impl Servers {
    /// Finds out how the servers stand and connects to the first that matters.
    pub(crate) async fn connect(config: Arc<Config>) -> Result<Self> {
        let dial = Arc::new(Dial::new(config)?);
        let Found { standing, hello, node } = find(&dial).await?;
        let servers = Self {
            standing,
            hello,
            map: Mutex::new(Map::of_one(node.address.clone())),
            nodes: Mutex::new(HashMap::from([(node.address.clone(), node)])),
            stale: AtomicBool::new(standing == Standing::Cluster),
            asking: tokio::sync::Mutex::default(),
            runtime: Handle::current(),
            distrusted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            dial,
        };
        servers.asked().await?;
        Ok(servers)
    }

    pub(crate) fn dial(&self) -> &Dial {
        &self.dial
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Address, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, address: &Address) -> Arc<Node> {
        let new = || Arc::new(Node::new(address.clone(), self.dial.clone()));
        let mut nodes = self.nodes();
        let node = nodes.entry(address.clone()).or_insert_with(new).clone();
        self.end_if_closed(&node);
        node
    }

    /// Takes over a node that was found, unless the one that is known is well.
    fn adopt(&self, found: Arc<Node>) {
        let mut nodes = self.nodes();
        self.end_if_closed(&found);
        match nodes.get(&found.address) {
            Some(known) if known.is_connected() => return,
            Some(known) => found.succeed(known),
            None => {}
        }
        nodes.insert(found.address.clone(), found);
    }

    /// Called with the nodes locked: nothing comes to life once all were closed.
    fn end_if_closed(&self, node: &Node) {
        if self.closed.load(Ordering::Acquire) {
            node.close();
        }
    }

    /// The servers that have tasks, each once.
    pub(crate) fn masters(&self) -> Vec<Arc<Node>> {
        let addresses = self.map().addresses();
        addresses.iter().map(|address| self.node(address)).collect()
    }

    /// The next map of the servers may differ.
    pub(crate) fn doubt(&self) {
        self.stale.store(true, Ordering::Release);
    }

    /// Asks anew who has what, where that may have changed.
    pub(crate) async fn refresh(self: &Arc<Self>) -> Result<()> {
        if !self.stale.load(Ordering::Acquire) {
            return Ok(());
        }
        let servers = self.clone();
        match self.runtime.spawn(async move { servers.asked().await }).await {
            Ok(refreshed) => refreshed,
            // That runtime has ended.
            Err(_) => self.asked().await,
        }
    }

    async fn asked(&self) -> Result<()> {
        let mut asked = self.asking.lock().await;
        if !self.stale.load(Ordering::Acquire) || asked.at.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        let found = self.ask(&mut asked.of).await;
        // After it: who waited meanwhile need not do the same again.
        (asked.at, asked.failed) = (Some(Instant::now()), found.is_err());
        let found = found?;
        // Nodes that have nothing (any more) are let go; who waits for an answer of theirs still gets it.
        self.nodes().retain(|address, _| found.has(address));
        let before = std::mem::replace(&mut *self.map(), found.clone());
        self.stale.store(false, Ordering::Release);
        if before != found {
            self.dial.upset.notify_one();
        }
        Ok(())
    }

    /// The same while who wants it goes on with the map that is there.
    fn refresh_behind(self: &Arc<Self>) {
        let Ok(asked) = self.asking.try_lock() else { return };
        let enough = if asked.failed { FRESH_ENOUGH } else { FRESH };
        if asked.at.is_some_and(|at| at.elapsed() < enough) {
            return;
        }
        drop(asked);
        let servers = self.clone();
        self.runtime.spawn(async move {
            if let Err(error) = servers.asked().await {
                tracing::debug!(%error, "cannot ask where the queues are; the old map still works");
            }
        });
    }

    /// Sees to it that the map is as new as a request needs it: whoever has a connection to the owner that it names need
    /// not wait, and learns from the answer if it is another.
    async fn ready(self: &Arc<Self>, slot: u16) -> Result<()> {
        if !self.stale.load(Ordering::Acquire) {
            return Ok(());
        }
        let owner = self.map().owner(slot).cloned();
        if owner.is_some_and(|owner| self.node(&owner).is_connected()) {
            self.refresh_behind();
            return Ok(());
        }
        self.refresh().await
    }

    async fn ask(&self, last: &mut Option<Address>) -> Result<Map> {
        Ok(match self.standing {
            Standing::Alone if self.dial.config.hosts.len() == 1 => self.map().clone(),
            Standing::Alone | Standing::Sentinel => {
                let Found { node, .. } = find(&self.dial).await?;
                let address = node.address.clone();
                self.adopt(node);
                Map::of_one(address)
            }
            Standing::Cluster => {
                let known = self.masters().into_iter().map(|node| node.address.clone());
                let distrusted = self.distrusted.swap(false, Ordering::AcqRel);
                let first = in_order(last.take(), distrusted, known.chain(self.dial.config.hosts.iter().cloned()));
                let (map, by) = ask_cluster(first.iter().map(|address| self.node(address)).collect()).await?;
                *last = Some(by);
                map
            }
        })
    }

    /// Begins a request.
    pub(crate) fn request(&self, script: Script, keys: &Keys) -> Request {
        let mut command = cmd("EVALSHA");
        let names = keys.of(script);
        command.arg(&script.text().sha).arg(names.len()).arg(names);
        Request { script, slot: keys.slot, command }
    }

    /// Sends a request to whoever has the queue now.
    pub(crate) async fn call(self: &Arc<Self>, request: &Request) -> Result<Value> {
        self.send(request.slot, &request.command, Some(request.script)).await
    }

    /// Sends a plain command on a queue's keys.
    pub(crate) async fn command(self: &Arc<Self>, keys: &Keys, command: &Cmd) -> Result<Value> {
        self.send(keys.slot, command, None).await
    }

    async fn send(self: &Arc<Self>, slot: u16, command: &Cmd, script: Option<Script>) -> Result<Value> {
        let give_up = Instant::now() + self.dial.config.timeout;
        let (mut asked, mut redirects, mut taught) = (None, 0, 0);
        loop {
            let refreshed = self.ready(slot).await;
            let asking = asked.take();
            let owner = || self.map().owner(slot).cloned();
            let Some(address) = asking.clone().or_else(owner) else {
                self.doubt();
                return Err(Error::unavailable("no node of the cluster has the queue's slot; bring back those that are missing"));
            };
            let node = self.node(&address);
            let answer = if asking.is_some() { node.send_asking(command).await } else { node.send(command).await };
            let fault = match answer {
                Ok(value) => {
                    if refreshed.is_err() {
                        // Those who know the map cannot be asked, and the old one is good.
                        self.stale.store(false, Ordering::Release);
                    }
                    return Ok(value);
                }
                Err(fault) => fault,
            };
            match (fault.code(), script) {
                (Some("NOSCRIPT"), Some(script)) if taught < LESSONS => {
                    taught += 1;
                    node.teach(script).await.map_err(|fault| fault.explain(&address))?;
                    asked = asking;
                }
                // While keys are on their way, ASK here and TRYAGAIN there may take turns for long.
                (Some("ASK"), _) if Instant::now() < give_up => {
                    asked = redirect(&fault, &address);
                }
                (Some("MOVED" | "READONLY"), _) if redirects < REDIRECTS && self.standing != Standing::Alone => {
                    redirects += 1;
                    self.moved(slot, redirect(&fault, &address));
                    if redirects > 2 {
                        tokio::time::sleep(CHANGING).await;
                    }
                }
                // Once: the connection was let go, and a new one may lead to a master.
                (Some("READONLY" | "MASTERDOWN"), _) if redirects < 1 => {
                    redirects += 1;
                    self.doubt();
                }
                (Some("TRYAGAIN" | "CLUSTERDOWN"), _) if Instant::now() + CHANGING < give_up => {
                    self.doubt();
                    tokio::time::sleep(CHANGING).await;
                }
                _ => {
                    if matches!(fault, Fault::Down(_) | Fault::Lost(_)) {
                        self.distrusted.store(true, Ordering::Release);
                    }
                    self.doubt();
                    return Err(fault.explain(&address));
                }
            }
        }
    }

    /// Takes a node's word for where a slot is, until a new map is there.
    fn moved(&self, slot: u16, to: Option<Address>) {
        self.doubt();
        if let Some(to) = to {
            self.map().correct(slot, to);
        }
    }

    /// Ends all connections for good.
    pub(crate) fn close(&self) {
        let nodes = self.nodes();
        self.closed.store(true, Ordering::Release);
        nodes.values().for_each(|node| node.close());
    }
}

/// Whom to ask for the map: first who drew the last one, or where that one is not to be trusted, the others by lot.
fn in_order(last: Option<Address>, distrusted: bool, others: impl Iterator<Item = Address>) -> Vec<Address> {
    let mut order: Vec<Address> = Vec::new();
    for address in last.clone().into_iter().chain(others) {
        if !order.contains(&address) {
            order.push(address);
        }
    }
    if distrusted {
        fastrand::shuffle(&mut order);
        order.sort_by_key(|address| last.as_ref() == Some(address));
    }
    order
}

fn redirect(fault: &Fault, asked: &Address) -> Option<Address> {
    let Fault::Refused(error) = fault else { return None };
    error.redirect_node().and_then(|(to, _)| Address::parse(to, asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_drew_a_wrong_map_is_asked_last() {
        let address = |port| Address { host: "h".into(), port };
        let others = || (1..=4).map(address);
        assert_eq!(in_order(Some(address(3)), false, others()), [3, 1, 2, 4].map(address));
        let mut firsts = std::collections::HashSet::new();
        for _ in 0..200 {
            let order = in_order(Some(address(3)), true, others());
            assert_eq!((order.len(), &order[3]), (4, &address(3)));
            firsts.insert(order[0].port);
        }
        assert_eq!(firsts.len(), 3, "each of the others has its turn");
    }
}
