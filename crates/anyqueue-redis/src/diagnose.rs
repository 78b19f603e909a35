//! What an operator should know of the servers' settings.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Durability, Error, Finding, Result, Severity, chain};
use redis::{cmd, from_redis_value};
use tokio::task::JoinSet;

use crate::error::strange;
use crate::node::Node;
use crate::servers::Servers;

/// How long those who have not answered are waited for when others have.
const SILENCE: Duration = Duration::from_millis(500);

/// What is known of one server.
#[derive(Debug)]
struct Look {
    node: Arc<Node>,
    /// The lines of INFO.
    facts: HashMap<String, String>,
    /// What CONFIG tells, where we have the right to ask.
    fsync: Option<String>,
    fsync_rests: bool,
}

impl Look {
    async fn at(node: Arc<Node>) -> Result<Self> {
        let answer = node.send(&cmd("INFO")).await.map_err(|fault| fault.explain(&node.address))?;
        let text = from_redis_value::<String>(answer).map_err(|_| strange("INFO"))?;
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let facts = lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect();
        let fsync = setting(&node, "appendfsync").await;
        let fsync_rests = setting(&node, "no-appendfsync-on-rewrite").await.is_some_and(|rests| rests == "yes");
        Ok(Self { node, facts, fsync, fsync_rests })
    }

    fn fact(&self, name: &str) -> &str {
        self.facts.get(name).map_or("", String::as_str)
    }

    fn durability(&self) -> Durability {
        match self.fsync.as_deref() {
            _ if self.fact("aof_enabled") != "1" => Durability::None,
            Some("always") if !self.fsync_rests => Durability::Power,
            _ => Durability::Process,
        }
    }
}

/// One setting, where the server and our rights tell it.
async fn setting(node: &Node, name: &str) -> Option<String> {
    let answer = node.send(cmd("CONFIG").arg("GET").arg(name)).await.ok()?;
    from_redis_value::<HashMap<String, String>>(answer).ok()?.remove(name)
}

/// What an accepted task survives on the weakest of the servers that answer. One that is silent holds up nobody.
pub(crate) async fn durability(servers: &Servers) -> Result<Durability> {
    let mut asked: JoinSet<_> = servers.masters().into_iter().map(Look::at).collect();
    let (mut weakest, mut last) = (None, None);
    loop {
        let ended = match weakest {
            None => asked.join_next().await,
            Some(_) => tokio::time::timeout(SILENCE, asked.join_next()).await.ok().flatten(),
        };
        match ended {
            Some(Ok(Ok(look))) => weakest = Some(look.durability().min(weakest.unwrap_or(Durability::Power))),
            Some(Ok(Err(error))) => last = Some(error),
            Some(Err(_)) => {}
            None => return weakest.ok_or_else(|| last.unwrap_or_else(|| strange("INFO"))),
        }
    }
}

/// Looks for settings that lose tasks, and for servers that do not answer.
pub(crate) async fn findings(servers: &Servers) -> Result<Vec<Finding>> {
    let looks = servers.masters().into_iter().map(|node| async move { (node.address.clone(), Look::at(node).await) });
    let mut looks = looks.collect::<JoinSet<_>>().join_all().await;
    looks.sort_by_key(|(address, _)| address.to_string());
    if let Some(error) = looks.first().and_then(|(_, look)| look.as_ref().err()).map(Error::duplicate)
        && looks.iter().all(|(_, look)| look.is_err())
    {
        return Err(error);
    }
    let mut findings = Vec::new();
    for (address, look) in looks {
        let mut found = |severity, text: String| findings.push(Finding { severity, text: format!("{address}: {text}") });
        match look {
            Ok(look) => {
                channels(&look.node, &servers.dial().config.prefix, &mut found).await;
                memory(&|name| look.fact(name), &mut found);
                persistence(&look, &mut found);
                role_and_version(&look, &mut found);
            }
            Err(error) => found(Severity::Problem, format!("tells nothing of itself: {}", chain(&error))),
        }
    }
    Ok(findings)
}

async fn channels(node: &Node, prefix: &str, found: &mut impl FnMut(Severity, String)) {
    let answer = node.send(cmd("PUBLISH").arg(format!("{prefix}:")).arg("")).await;
    if answer.is_err_and(|fault| fault.code() == Some("NOPERM")) {
        let text = "denies us the channels, so no worker is rung";
        found(Severity::Problem, format!("{text}; give the user `&{prefix}:*` and `+publish +subscribe`"));
    }
}

fn role_and_version(look: &Look, found: &mut impl FnMut(Severity, String)) {
    if look.fact("role") == "slave" {
        found(Severity::Problem, "is a replica and takes no writes; name the master, or its sentinels and `master`".into());
    }
    if let Some(version) = too_old(look.fact("redis_version")) {
        found(Severity::Problem, format!("is Redis {version}; 6.2 or later is needed"));
    }
}

fn memory<'a>(fact: &impl Fn(&str) -> &'a str, found: &mut impl FnMut(Severity, String)) {
    let policy = fact("maxmemory_policy");
    let (limit, used) = (fact("maxmemory").parse::<u64>().unwrap_or(0), fact("used_memory").parse::<u64>().unwrap_or(0));
    if policy.starts_with("allkeys") {
        let severity = if limit > 0 { Severity::Warning } else { Severity::Note };
        let text = "when memory runs out, whole queues are thrown away; set it to noeviction";
        found(severity, format!("`maxmemory-policy` is {policy}: {text}"));
    } else if policy.starts_with("volatile") {
        let text = "it spares our keys, since they never expire; noeviction is what they get, and says so";
        found(Severity::Note, format!("`maxmemory-policy` is {policy}: {text}"));
    }
    if limit > 0 && used > limit / 10 * 9 {
        let text = format!("{} of {} MiB of `maxmemory` are used; sends fail when it is full", used >> 20, limit >> 20);
        found(Severity::Warning, text);
    }
}

fn persistence(look: &Look, found: &mut impl FnMut(Severity, String)) {
    let (fact, fsync) = (|name| look.fact(name), look.fsync.as_deref());
    if fact("aof_enabled") == "0" {
        let text = "`appendonly` is no: a restart loses what was sent since the last snapshot, or everything; set it to yes";
        found(Severity::Warning, text.into());
    } else if fsync == Some("no") {
        let text = "`appendfsync` is no: a power loss takes what the system had not written, half a minute or more; use everysec";
        found(Severity::Warning, text.into());
    } else if fsync == Some("everysec") {
        let text = "`appendfsync` is everysec: a power loss may take the last seconds, and so may a kill of the server while its \
                    disk is busy, since it then answers before it writes; `always` keeps them";
        found(Severity::Note, text.into());
    } else if look.fsync_rests {
        let text = "`no-appendfsync-on-rewrite` is yes: a power loss while the file is rewritten takes what was sent meanwhile; \
                    set it to no";
        found(Severity::Warning, text.into());
    }
    if fact("aof_last_write_status") == "err" || fact("rdb_last_bgsave_status") == "err" {
        found(Severity::Problem, "cannot write its data to disk; see its log, free some room".into());
    }
}

/// The version, if scripts of ours use what it does not have.
fn too_old(version: &str) -> Option<&str> {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(u32::MAX));
    ((numbers.next()?, numbers.next()?) < (6, 2)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_two_is_new_enough() {
        assert_eq!(too_old("6.0.16"), Some("6.0.16"));
        assert_eq!((too_old("6.2.0"), too_old("7.0.15"), too_old("255.255.255")), (None, None, None));
    }
}
