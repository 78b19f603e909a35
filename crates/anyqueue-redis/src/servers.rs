//! Which server has a queue: the only one, the master that sentinels name, or a node of a cluster.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyqueue_core::{Error, Result};
use redis::{Cmd, Value, cmd, from_redis_value};

use crate::config::{Address, Config};
use crate::dial::Dial;
use crate::error::{Fault, strange};
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

/// How the servers stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Alone,
    Sentinel,
    Cluster,
}

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
    asking: tokio::sync::Mutex<Option<Instant>>,
}

/// Who has which slots: first, last, node. Without a cluster one node has all.
#[derive(Debug, Default, Clone)]
struct Map(Vec<(u16, u16, Address)>);

impl Map {
    fn of_one(address: Address) -> Self {
        Self(vec![(0, u16::MAX, address)])
    }

    fn owner(&self, slot: u16) -> Option<&Address> {
        self.0.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).map(|(.., address)| address)
    }
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
        let (standing, hello, node) = first_of(&dial).await?;
        let servers = Self {
            standing,
            hello,
            map: Mutex::new(Map::of_one(node.address.clone())),
            nodes: Mutex::new(HashMap::from([(node.address.clone(), node)])),
            stale: AtomicBool::new(standing == Standing::Cluster),
            asking: tokio::sync::Mutex::default(),
            dial,
        };
        servers.refresh().await?;
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
        self.nodes().entry(address.clone()).or_insert_with(new).clone()
    }

    /// The servers that have tasks, each once.
    pub(crate) fn masters(&self) -> Vec<Arc<Node>> {
        let mut addresses: Vec<Address> = self.map().0.iter().map(|(.., address)| address.clone()).collect();
        addresses.sort_by_key(Address::to_string);
        addresses.dedup();
        addresses.iter().map(|address| self.node(address)).collect()
    }

    /// The next map of the servers may differ.
    pub(crate) fn doubt(&self) {
        self.stale.store(true, Ordering::Release);
    }

    /// Asks anew who has what, where that may have changed.
    pub(crate) async fn refresh(&self) -> Result<()> {
        if !self.stale.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut asked = self.asking.lock().await;
        if !self.stale.load(Ordering::Acquire) || asked.is_some_and(|asked| asked.elapsed() < FRESH) {
            return Ok(());
        }
        let found = self.ask().await;
        // After it: who waited meanwhile need not do the same again.
        *asked = Some(Instant::now());
        *self.map() = found?;
        self.stale.store(false, Ordering::Release);
        Ok(())
    }

    async fn ask(&self) -> Result<Map> {
        Ok(match self.standing {
            Standing::Alone if self.dial.config.hosts.len() == 1 => self.map().clone(),
            Standing::Alone | Standing::Sentinel => {
                let (_, _, node) = first_of(&self.dial).await?;
                let address = node.address.clone();
                self.nodes().entry(address.clone()).or_insert(node);
                Map::of_one(address)
            }
            Standing::Cluster => self.ask_cluster().await?,
        })
    }

    async fn ask_cluster(&self) -> Result<Map> {
        let known = self.masters().into_iter().map(|node| node.address.clone());
        let mut last = None;
        for address in known.chain(self.dial.config.hosts.iter().cloned()) {
            match self.node(&address).send(cmd("CLUSTER").arg("SLOTS")).await {
                Ok(answer) => match slots(answer, &address) {
                    Some(map) if !map.0.is_empty() => return Ok(map),
                    _ => last = Some(Error::unavailable(format!("the cluster of {address} has no slots yet"))),
                },
                Err(fault) => last = Some(fault.explain(&address)),
            }
        }
        Err(last.unwrap_or_else(|| strange("CLUSTER SLOTS")))
    }

    /// Begins a request.
    pub(crate) fn request(&self, script: Script, keys: &Keys) -> Request {
        let mut command = cmd("EVALSHA");
        command.arg(&script.text().sha).arg(keys.names.len());
        command.arg(&keys.names);
        Request { script, slot: keys.slot, command }
    }

    /// Sends a request to whoever has the queue now.
    pub(crate) async fn call(&self, request: &Request) -> Result<Value> {
        self.send(request.slot, &request.command, Some(request.script)).await
    }

    /// Sends a plain command on a queue's keys.
    pub(crate) async fn command(&self, keys: &Keys, command: &Cmd) -> Result<Value> {
        self.send(keys.slot, command, None).await
    }

    async fn send(&self, slot: u16, command: &Cmd, script: Option<Script>) -> Result<Value> {
        let give_up = Instant::now() + self.dial.config.timeout;
        let (mut asked, mut redirects, mut taught) = (None, 0, 0);
        loop {
            let refreshed = self.refresh().await;
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
                (Some("TRYAGAIN" | "CLUSTERDOWN"), _) if Instant::now() + CHANGING < give_up => {
                    self.doubt();
                    tokio::time::sleep(CHANGING).await;
                }
                _ => {
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
            self.map().0.insert(0, (slot, slot, to));
        }
    }

    /// Ends all connections for good.
    pub(crate) fn close(&self) {
        self.nodes().values().for_each(|node| node.close());
    }
}

fn redirect(fault: &Fault, asked: &Address) -> Option<Address> {
    let Fault::Refused(error) = fault else { return None };
    error.redirect_node().and_then(|(to, _)| Address::parse(to, asked))
}

/// Asks the hosts in order until one leads to a server that has tasks.
async fn first_of(dial: &Arc<Dial>) -> Result<(Standing, Hello, Arc<Node>)> {
    let mut replica = None;
    let mut last = None;
    for host in &dial.config.hosts {
        match introduce(dial, host).await {
            Ok((standing, hello, node)) if standing != Standing::Alone || hello.role != "replica" => {
                return Ok((standing, hello, node));
            }
            Ok(found) => replica = Some(found),
            Err(e) if !e.is_retryable() => return Err(e),
            Err(e) => last = Some(e),
        }
    }
    replica.ok_or_else(|| last.unwrap_or_else(|| strange("HELLO")))
}

async fn introduce(dial: &Arc<Dial>, host: &Address) -> Result<(Standing, Hello, Arc<Node>)> {
    let address = match &dial.config.master {
        Some(master) => master_by_sentinel(dial, host, master).await?,
        None => host.clone(),
    };
    let node = Arc::new(Node::new(address.clone(), dial.clone()));
    let hello = node.hello().await.map_err(|fault| fault.explain(&address))?;
    let standing = match hello.mode.as_str() {
        "sentinel" => {
            return Err(Error::config(format!("{host} is a sentinel; name the master that it watches with the option `master`")));
        }
        "cluster" if dial.config.database != 0 => {
            return Err(Error::config("a cluster has database 0 only; leave the number out of the URL, and set a `prefix`"));
        }
        "cluster" => Standing::Cluster,
        _ if dial.config.master.is_some() => Standing::Sentinel,
        _ => Standing::Alone,
    };
    if standing == Standing::Sentinel && hello.role == "replica" {
        let text = format!("{address} is a replica still, though {host} calls it the master; a failover is under way");
        return Err(Error::unavailable(text));
    }
    Ok((standing, hello, node))
}

async fn master_by_sentinel(dial: &Dial, sentinel: &Address, master: &str) -> Result<Address> {
    let mut link = dial.sentinel(sentinel).await?;
    let mut question = cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    let answer = link.connection.send_packed_command(&question).await.and_then(Value::extract_error);
    match answer.map_err(|e| crate::error::connecting(e, sentinel))? {
        Value::Nil => Err(Error::config(format!("sentinel {sentinel} watches no master called `{master}`"))),
        answer => {
            let (host, port) = from_redis_value::<(String, u16)>(answer).map_err(|_| strange("GET-MASTER-ADDR-BY-NAME"))?;
            Ok(Address { host, port })
        }
    }
}

/// Reads CLUSTER SLOTS: first, last, and the master as host and port.
fn slots(answer: Value, asked: &Address) -> Option<Map> {
    let mut map = Vec::new();
    for range in answer.into_sequence().ok()? {
        let mut range = range.into_sequence().ok()?.into_iter();
        let first = from_redis_value::<u16>(range.next()?).ok()?;
        let last = from_redis_value::<u16>(range.next()?).ok()?;
        let mut node = range.next()?.into_sequence().ok()?.into_iter();
        let host = from_redis_value::<Option<String>>(node.next()?).ok()?.unwrap_or_default();
        let port = from_redis_value::<u16>(node.next()?).ok()?;
        map.push((first, last, Address::parse(&format!("{host}:{port}"), asked)?));
    }
    Some(Map(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_of_a_cluster_is_read_and_corrected() {
        let text = "*2\r\n*3\r\n:0\r\n:5460\r\n*2\r\n$9\r\n127.0.0.1\r\n:7000\r\n*3\r\n:5461\r\n:16383\r\n*2\r\n$-1\r\n:7001\r\n";
        let asked = Address { host: "h".into(), port: 1 };
        let mut map = slots(redis::parse_redis_value(text.as_bytes()).unwrap(), &asked).unwrap();
        assert_eq!(map.owner(5460).unwrap().to_string(), "127.0.0.1:7000");
        assert_eq!(map.owner(5461).unwrap().to_string(), "h:7001");
        map.0.insert(0, (5461, 5461, asked.clone()));
        assert_eq!((map.owner(5461), map.owner(5462).map(|a| a.port)), (Some(&asked), Some(7001)));
        assert!(slots(Value::Int(3), &asked).is_none());
    }
}
