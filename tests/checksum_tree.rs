//! The checksum tree of `examples/` over thousands of real files, with a worker killed in the middle.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::{Place, until};
use crate::process::Process;
use crate::programs::example;

const FILES: usize = 5_500;
const SLOTS: usize = 10;
const PREFETCH: usize = 16;
/// Larger files only take longer.
const LARGEST: u64 = 64 << 10;

#[test]
fn the_sums_of_a_tree_are_those_of_sha256sum_though_a_worker_was_killed() {
    let place = Place::with("", &format!("[runner]\nslots = {SLOTS}\nprefetch = {PREFETCH}"));
    let files = plant(&place.path("tree"));
    start(&place, &["--send", "nowhere"]).finish().ends_with(1).complains("error: nowhere cannot be read");
    start(&place, &["--send", "tree"]).finish().ends_with(0).says(&format!("sent {files} tasks"));

    let (victim, survivor) = (start(&place, &["--work"]), start(&place, &["--work"]));
    until("a fifth is hashed", || (lines(&place) >= files / 5).then_some(()));
    victim.kill();
    let at_death = lines(&place);
    assert!(at_death < files, "the kill came too late to mean anything");
    let heir = start(&place, &["--work"]);
    until("every file is hashed", || (hashed(&place) >= files).then_some(()));
    until("every task is settled", || place.seems_settled().then_some(()));
    survivor.stop().ends_with(0);
    heir.stop().ends_with(0);
    assert_eq!(place.held(), [] as [serde_json::Value; 0], "nothing fails here, and one worker died");

    let shown = start(&place, &["--show"]).finish().ends_with(0).out;
    let (ours, theirs): (BTreeSet<&str>, String) = (shown.lines().collect(), sha256sum(&place.path("tree")));
    let theirs: BTreeSet<&str> = theirs.lines().collect();
    assert_eq!((theirs.len(), shown.lines().count()), (files, files), "one line per file");
    assert_eq!(ours.symmetric_difference(&theirs).collect::<Vec<_>>(), [] as [&&str; 0]);
    let twice = lines(&place) - files;
    println!("{files} files, killed at {at_death}, {twice} hashed twice");
    // What the victim had finished and not stored yet: results that wait for a group commit to a busy disk.
    assert!(twice <= (SLOTS + PREFETCH) * 10, "{twice} files were hashed twice");
}

fn start(place: &Place, args: &[&str]) -> Process {
    Process::start(place.command(&example("checksum-tree"), args).env("CHECKSUM_QUEUE", &place.queue))
}

/// How many results the workers have written so far.
fn lines(place: &Place) -> usize {
    place.read("sums.txt").matches('\n').count()
}

/// Of how many files there is a result: those that the victim had hashed and not settled have two.
fn hashed(place: &Place) -> usize {
    let results = place.read("sums.txt");
    results.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect::<BTreeSet<_>>().len()
}

fn sha256sum(tree: &Path) -> String {
    let tree = tree.canonicalize().unwrap();
    let output = Command::new("find").arg(tree).args(["-type", "f", "-exec", "sha256sum", "{}", "+"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a tree of real files: the sources that Cargo keeps, a few with names that trip programs up, and where those are
/// too few, made ones. How many they are.
fn plant(tree: &Path) -> usize {
    fs::create_dir(tree).unwrap();
    for name in ["with space", "*", "quo'te\"", "back\\slash", "new\nline", "-n", "ünï", "$(x)"] {
        fs::write(tree.join(name), name).unwrap();
    }
    fs::write(tree.join("empty"), "").unwrap();
    let mut count = 9;
    for (number, file) in sources().into_iter().take(FILES - count).enumerate() {
        let folder = tree.join(format!("{:02}", number % 50));
        fs::create_dir_all(&folder).unwrap();
        let to = folder.join(format!("{number}-{}", file.file_name().unwrap().display()));
        fs::copy(&file, &to).unwrap();
        count += 1;
    }
    for number in count..FILES {
        fs::write(tree.join(format!("made-{number}")), format!("{number}\n").repeat(number % 997)).unwrap();
    }
    FILES
}

fn sources() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let (mut files, mut folders) = (Vec::new(), home.map(|home| vec![home.join("registry/src")]).unwrap_or_default());
    while let Some(folder) = folders.pop().filter(|_| files.len() < FILES) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => folders.push(entry.path()),
                Ok(found) if found.is_file() && found.len() <= LARGEST => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}
