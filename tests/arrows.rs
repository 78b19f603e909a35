//! Who may import whom, and what every package must say of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::programs::workspace;

const CORE: &str = "anyqueue-core";
const FACADE: &str = "anyqueue";
const TESTKIT: &str = "anyqueue-testkit";
const COMMAND: &str = "queue-runner";
const TASK_LOG: &str = "anyqueue-tasklog";
/// Runtimes and clients that would give the core I/O of its own.
const NOT_IN_CORE: [&str; 10] =
    ["tokio", "async-std", "smol", "mio", "async-io", "hyper", "rusqlite", "sqlx", "redis", "reqwest"];

fn metadata(more: &[&str]) -> Value {
    let mut cargo = Command::new(env!("CARGO"));
    // Of other platforms, what nobody here has built may not be there.
    let ours = ["metadata", "--offline", "--filter-platform", "host-tuple", "--format-version", "1"];
    let answer = cargo.args(ours).args(more).current_dir(workspace()).output();
    let answer = answer.unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    serde_json::from_slice(&answer.stdout).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {value}"))
}

/// One dependency of a package on another of the workspace.
struct Arrow {
    to: String,
    dev: bool,
    optional: bool,
}

/// The packages of `crates/` with their arrows.
fn arrows() -> BTreeMap<String, Vec<Arrow>> {
    let metadata = metadata(&["--no-deps"]);
    let crates = workspace().join("crates");
    let packages = metadata["packages"].as_array().unwrap();
    let inside = packages.iter().filter(|package| Path::new(text(package, "manifest_path")).starts_with(&crates));
    let names: BTreeSet<&str> = packages.iter().map(|package| text(package, "name")).collect();
    let arrow = |dependency: &Value| Arrow {
        to: text(dependency, "name").into(),
        dev: dependency["kind"] == "dev",
        optional: dependency["optional"] == true,
    };
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| names.contains(text(dependency, "name"))).map(arrow).collect()
    };
    inside.map(|package| (text(package, "name").to_owned(), of(package))).collect()
}

fn is_adapter(name: &str) -> bool {
    ![CORE, FACADE, TESTKIT, COMMAND, TASK_LOG].contains(&name)
}

#[test]
fn packages_import_only_whom_they_may() {
    let arrows = arrows();
    assert!(arrows.keys().any(|name| is_adapter(name)), "{:?}", arrows.keys());
    for (from, arrows) in &arrows {
        for Arrow { to, dev, optional } in arrows {
            let allowed = match from.as_str() {
                CORE => false,
                TESTKIT => to == CORE,
                FACADE => to == CORE || (is_adapter(to) && *optional) || (*dev && to == TESTKIT),
                COMMAND => to == FACADE || to == TASK_LOG,
                _ => to == CORE || (*dev && to == TESTKIT),
            };
            assert!(allowed, "{from} may not depend on {to}");
        }
    }
}

#[test]
fn adapters_are_named_in_one_file_of_the_facade() {
    let adapters: Vec<String> = arrows().into_keys().filter(|name| is_adapter(name)).map(|name| name.replace('-', "_")).collect();
    let mut folders = vec![workspace().join("crates/anyqueue/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if !entry.ends_with("drivers.rs") {
                let source = fs::read_to_string(&entry).unwrap();
                let found = adapters.iter().find(|adapter| source.contains(adapter.as_str()));
                assert!(found.is_none(), "{} names {found:?}; only drivers.rs may", entry.display());
            }
        }
    }
}

#[test]
fn the_core_has_no_runtime_and_no_client() {
    let metadata = metadata(&[]);
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let names: BTreeMap<&str, &str> =
        metadata["packages"].as_array().unwrap().iter().map(|package| (text(package, "id"), text(package, "name"))).collect();
    let normal = |id: &str| -> Vec<&str> {
        let node = nodes.iter().find(|node| node["id"] == id).unwrap();
        let used = |dep: &&Value| dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
        node["deps"].as_array().unwrap().iter().filter(used).map(|dep| text(dep, "pkg")).collect()
    };
    let mut open = vec![*names.iter().find(|(_, name)| **name == CORE).unwrap().0];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(names[id]) {
            open.extend(normal(id));
        }
    }
    assert!(seen.contains("serde_json"), "the walk went nowhere: {seen:?}");
    let wrong: Vec<_> = NOT_IN_CORE.iter().filter(|name| seen.contains(*name)).collect();
    assert!(wrong.is_empty(), "the core depends on {wrong:?}");
}

#[test]
fn every_package_says_the_same_of_itself() {
    for package in metadata(&["--no-deps"])["packages"].as_array().unwrap() {
        let name = text(package, "name");
        assert_eq!((text(package, "edition"), text(package, "license")), ("2024", "MIT OR Apache-2.0"), "{name}");
        assert!(package["rust_version"].is_string() && package["repository"].is_string(), "{name}");
        assert!(package["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} has no description");
        let manifest = fs::read_to_string(text(package, "manifest_path")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not take the workspace's lints");
    }
}
