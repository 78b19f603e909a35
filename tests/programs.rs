//! Where the programs under test are, built once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The worker process of these tests.
pub(crate) const TEST_WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// The command.
pub(crate) fn queue_runner() -> PathBuf {
    built().join("queue-runner")
}

/// A program of `examples/`.
pub(crate) fn example(name: &str) -> PathBuf {
    built().join(name)
}

/// The folder of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Cargo tells a test only of its own package's programs. Those of others are built here, where Cargo puts them anyway:
/// where that has been done before, this only makes sure that they are fresh.
fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(TEST_WORKER).parent().unwrap().to_owned();
        let profile = match folder.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            other => other,
        };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--quiet",
            "--offline",
            "-p",
            "queue-runner",
            "-p",
            "anyqueue-examples",
            "--bins",
            "--profile",
            profile,
        ]);
        cargo.arg("--target-dir").arg(folder.parent().unwrap());
        // What Cargo tells this test of its package is no business of other packages: build scripts that look at it would be
        // run anew here, and all that depends on them, and anew again by the next run from outside.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|own| name.to_string_lossy().starts_with(own)) {
                cargo.env_remove(name);
            }
        }
        let built = cargo.current_dir(workspace()).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        folder
    })
}
