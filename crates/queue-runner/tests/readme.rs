//! What the README shows is what there is.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod place;

use std::fs;
use std::path::PathBuf;

use place::Place;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The part between two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("the README has no {from:?}"));
    rest.split_once(to).unwrap_or_else(|| panic!("nothing ends {from:?} in the README")).0
}

#[test]
fn the_table_of_brokers_is_the_one_that_the_command_prints() {
    let table = Place::new().run(&["brokers", "--markdown"]).ends_with(0).out;
    let readme = readme();
    let shown = between(&readme, "<!-- brokers -->\n", "<!-- /brokers -->");
    assert_eq!(shown, table, "put the output of `queue-runner brokers --markdown` between the marks of README.md");
}

#[test]
fn the_first_command_works_in_an_empty_folder() {
    let readme = readme();
    let line = between(&readme, "```console\n$ ", "\n");
    let args: Vec<&str> = line.strip_prefix("cargo run -- ").unwrap().split(' ').collect();
    let place = Place::new();
    place.run(&args).ends_with(0).says("drained: 1 done").complains("hello");
    assert!(place.path("queue.db").exists());
}

#[test]
fn ci_runs_both_commands() {
    let readme = readme();
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(ci.lines().any(|line| line.ends_with(commands[0])), "{} is not in .ci/run", commands[0]);
    assert_eq!(ci.lines().last(), Some(commands[1]), "the counts of {} are the last that .ci/run prints", commands[1]);
}

#[test]
fn the_settings_file_runs_its_program() {
    let readme = readme();
    let place = Place::with(between(&readme, "```toml\n", "```"));
    place.script("thumb.sh", "echo \"$@\" > arguments\ncat > data\n");
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("$ queue-runner ")).collect();
    let send = commands[0].replace("'{\"file\":\"a.png\"}'", "{\"file\":\"a.png\"}").replace(" --delay 10m", "");
    place.run(&send.split(' ').collect::<Vec<_>>()).ends_with(0);
    place.run(&[&commands[1].split(' ').collect::<Vec<_>>()[..], &["--drain"]].concat()).ends_with(0).says("1 done");
    assert_eq!(place.wait_for("arguments"), "--size 200\n");
    assert_eq!(place.wait_for("data"), "{\"file\":\"a.png\"}");
    for command in &commands[2..] {
        place.run(&command.split(' ').collect::<Vec<_>>()).ends_with(0);
    }
}

#[test]
fn the_settings_files_of_the_guide_are_taken() {
    let mut taken = 0;
    for page in fs::read_dir(root().join("crates/anyqueue/docs")).unwrap() {
        let text = fs::read_to_string(page.unwrap().path()).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let file = block.split("```").next().unwrap();
            Place::with(file).run(&["--list"]).ends_with(0);
            taken += 1;
        }
    }
    assert!(taken >= 2, "only {taken} files were found in the guide");
}

#[test]
fn the_settings_of_the_container_image_can_be_read() {
    let file = root().join("docker/queue.toml");
    let place = Place::new();
    let ran = place.run(&["--config", file.to_str().unwrap(), "--list", "--json"]).ends_with(0);
    assert_eq!(ran.json()[0]["queue"], "default");
}
