//! The results: a journal that any number of processes add lines to.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

const JOURNAL: &str = "sums.txt";

/// The journal, opened for adding to it.
#[derive(Debug)]
pub(crate) struct Sums(File);

impl Sums {
    pub(crate) fn open() -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(JOURNAL).map(Self)
    }

    /// Adds a line, as `sha256sum` writes it. One write to a file that is open for appending lands in one piece, whatever
    /// other processes write and whenever this one dies.
    pub(crate) fn note(&self, sum: &str, file: &str) -> io::Result<()> {
        let escaped = file.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
        let mark = if escaped == file { "" } else { "\\" };
        (&self.0).write_all(format!("{mark}{sum}  {escaped}\n").as_bytes())
    }
}

/// One line per file, in the order of their names: a file that was hashed twice counts once.
pub(crate) fn show() -> io::Result<String> {
    let journal = match std::fs::read_to_string(JOURNAL) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let by_name: BTreeMap<&str, &str> = journal.lines().filter_map(|line| Some((line.split_once("  ")?.1, line))).collect();
    Ok(by_name.values().map(|line| format!("{line}\n")).collect())
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let name = path.into_os_string().into_string();
                files.push(
                    name.map_err(|name| io::Error::other(format!("{} is not UTF-8; JSON cannot carry it", name.display())))?,
                );
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The SHA-256 of a file in hexadecimal digits.
pub(crate) fn sum(file: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(file)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
