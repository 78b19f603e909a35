//! Finding out how the servers stand and who has what. Nobody who is silent holds up the others.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Error, Result};
use redis::{Value, cmd, from_redis_value};
use tokio::task::JoinSet;

use crate::config::Address;
use crate::dial::Dial;
use crate::error::strange;
use crate::node::{Hello, Node};

/// After how long one who says nothing is not waited for alone.
const SILENCE: Duration = Duration::from_millis(100);

/// How the servers stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Alone,
    Sentinel,
    Cluster,
}

/// Who has which slots: first, last, node. Without a cluster one node has all.
#[derive(Debug, Default, Clone)]
pub(crate) struct Map(Vec<(u16, u16, Address)>);

impl Map {
    pub(crate) fn of_one(address: Address) -> Self {
        Self(vec![(0, u16::MAX, address)])
    }

    pub(crate) fn owner(&self, slot: u16) -> Option<&Address> {
        self.0.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).map(|(.., address)| address)
    }

    /// Takes a node's word for where a slot is.
    pub(crate) fn correct(&mut self, slot: u16, to: Address) {
        self.0.insert(0, (slot, slot, to));
    }

    /// Whether a node has any slots.
    pub(crate) fn has(&self, address: &Address) -> bool {
        self.0.iter().any(|(.., owner)| owner == address)
    }

    /// The nodes that have slots, each once.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<Address> = self.0.iter().map(|(.., address)| address.clone()).collect();
        addresses.sort_by_key(Address::to_string);
        addresses.dedup();
        addresses
    }
}

/// A server that has tasks.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) standing: Standing,
    pub(crate) hello: Hello,
    pub(crate) node: Arc<Node>,
}

impl Found {
    /// Whether it is one of several that may all be asked, so that the first answer is as good as any.
    fn is_one_of_many(&self) -> bool {
        self.standing != Standing::Alone
    }

    fn is_replica(&self) -> bool {
        self.standing == Standing::Alone && self.hello.role == "replica"
    }
}

/// Asks all hosts at once for a server that has tasks.
///
/// Any node of a cluster and any sentinel is as good as the others. Of plain servers the first master in the order of the
/// list counts, whoever answers first: all clients must take the same one.
pub(crate) async fn find(dial: &Arc<Dial>) -> Result<Found> {
    let mut asked = JoinSet::new();
    for (at, host) in dial.config.hosts.iter().cloned().enumerate() {
        let dial = dial.clone();
        asked.spawn(async move { (at, within(&dial, &host, introduce(&dial, &host)).await) });
    }
    let mut answers: Vec<Option<Result<Found>>> = dial.config.hosts.iter().map(|_| None).collect();
    while let Some(ended) = asked.join_next().await {
        let Ok((at, answer)) = ended else { continue };
        match answer {
            Ok(found) if found.is_one_of_many() => return Ok(found),
            answer => answers[at] = Some(answer),
        }
        let no_master = |answer: &Option<Result<Found>>| {
            answer.as_ref().is_some_and(|answer| answer.as_ref().map_or(true, Found::is_replica))
        };
        let first = answers.iter().position(|answer| !no_master(answer));
        if let Some(found) = first.and_then(|at| answers[at].take()) {
            return found;
        }
    }
    second_best(answers.into_iter().flatten().collect())
}

/// Where there is no master: a replica, which says what it is; else the error that somebody can do something about.
fn second_best(answers: Vec<Result<Found>>) -> Result<Found> {
    let (found, mut errors): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    if let Some(found) = found.into_iter().next() {
        return found;
    }
    errors.sort_by_key(|answer| answer.as_ref().is_err_and(Error::is_retryable));
    errors.into_iter().next().unwrap_or_else(|| Err(strange("HELLO")))
}

async fn within<T>(dial: &Dial, host: &Address, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = dial.config.timeout;
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!("{host} cannot be reached: no answer within {}", anyqueue_core::time::show(limit))))
    })
}

async fn introduce(dial: &Arc<Dial>, host: &Address) -> Result<Found> {
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
    Ok(Found { standing, hello, node })
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

/// Asks the nodes of a cluster who has what, one after the other as long as they answer at once. Says who answered.
pub(crate) async fn ask_cluster(nodes: Vec<Arc<Node>>) -> Result<(Map, Address)> {
    let (mut nodes, mut asked, mut last) = (nodes.into_iter(), JoinSet::new(), None);
    loop {
        let more = nodes.next().map(|node| asked.spawn(map_of(node))).is_some();
        let ended = if more { tokio::time::timeout(SILENCE, asked.join_next()).await } else { Ok(asked.join_next().await) };
        match ended {
            Ok(Some(Ok(Ok(found)))) => return Ok(found),
            Ok(Some(Ok(Err(error)))) => last = Some(error),
            Ok(None) => return Err(last.unwrap_or_else(|| strange("CLUSTER SLOTS"))),
            Ok(Some(Err(_))) | Err(_) => {}
        }
    }
}

async fn map_of(node: Arc<Node>) -> Result<(Map, Address)> {
    let address = node.address.clone();
    let answer = node.send(cmd("CLUSTER").arg("SLOTS")).await.map_err(|fault| fault.explain(&address))?;
    match slots(answer, &address) {
        Some(map) if !map.0.is_empty() => Ok((map, address)),
        _ => Err(Error::unavailable(format!("the cluster of {address} has no slots yet"))),
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
        map.correct(5461, asked.clone());
        assert_eq!((map.owner(5461), map.owner(5462).map(|a| a.port)), (Some(&asked), Some(7001)));
        assert!(slots(Value::Int(3), &asked).is_none());
    }
}
