//! What an operator should know of the servers' settings.

use std::collections::HashMap;

use anyqueue_core::{Durability, Finding, Result, Severity};
use redis::{cmd, from_redis_value};

use crate::error::strange;
use crate::node::Node;
use crate::servers::Servers;

/// The lines of INFO that say something here.
type Facts = HashMap<String, String>;

async fn facts(node: &Node) -> Result<Facts> {
    let answer = node.send(&cmd("INFO")).await.map_err(|fault| fault.explain(&node.address))?;
    let text = from_redis_value::<String>(answer).map_err(|_| strange("INFO"))?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Ok(lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect())
}

/// One setting, where the server and our rights tell it.
async fn setting(node: &Node, name: &str) -> Option<String> {
    let answer = node.send(cmd("CONFIG").arg("GET").arg(name)).await.ok()?;
    from_redis_value::<HashMap<String, String>>(answer).ok()?.remove(name)
}

/// What an accepted task survives on the weakest of the servers.
pub(crate) async fn durability(servers: &Servers) -> Result<Durability> {
    let mut weakest = Durability::Power;
    for node in servers.masters() {
        let appends = facts(&node).await?.get("aof_enabled").is_some_and(|on| on == "1");
        let of_one = match (appends, setting(&node, "appendfsync").await.as_deref()) {
            (false, _) => Durability::None,
            (true, Some("always")) => Durability::Power,
            (true, _) => Durability::Process,
        };
        weakest = weakest.min(of_one);
    }
    Ok(weakest)
}

/// Looks for settings that lose tasks.
pub(crate) async fn findings(servers: &Servers) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for node in servers.masters() {
        let facts = facts(&node).await?;
        let fsync = setting(&node, "appendfsync").await;
        let mut found = |severity, text: String| findings.push(Finding { severity, text: format!("{}: {text}", node.address) });
        let fact = |name: &str| facts.get(name).map_or("", String::as_str);
        if let Err(fault) = node.send(cmd("PUBLISH").arg(format!("{}:", servers.dial().config.prefix)).arg("")).await
            && fault.code() == Some("NOPERM")
        {
            let prefix = &servers.dial().config.prefix;
            found(
                Severity::Problem,
                format!("denies us the channels, so no worker is rung; give the user `&{prefix}:*` and `+publish +subscribe`"),
            );
        }
        memory(&fact, &mut found);
        persistence(&fact, fsync.as_deref(), &mut found);
        if fact("role") == "slave" {
            found(Severity::Problem, "is a replica and takes no writes; name the master, or its sentinels and `master`".into());
        }
        if let Some(version) = too_old(fact("redis_version")) {
            found(Severity::Problem, format!("is Redis {version}; 6.2 or later is needed"));
        }
    }
    Ok(findings)
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

fn persistence<'a>(fact: &impl Fn(&str) -> &'a str, fsync: Option<&str>, found: &mut impl FnMut(Severity, String)) {
    if fact("aof_enabled") == "0" {
        let text = "`appendonly` is no: a restart loses what was sent since the last snapshot, or everything; set it to yes";
        found(Severity::Warning, text.into());
    } else if fsync == Some("no") {
        let text = "`appendfsync` is no: a power loss takes what the system had not written, half a minute or more; use everysec";
        found(Severity::Warning, text.into());
    } else if fsync == Some("everysec") {
        let text = "`appendfsync` is everysec: a power loss may take the last seconds, and so may a kill of the server while its \
                    disk is busy; `always` keeps them";
        found(Severity::Note, text.into());
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
