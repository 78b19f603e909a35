//! The file as the file system sees it: whether it is still the one that was opened, and a sign to other processes.

use std::path::Path;

use anyqueue_core::{Error, ErrorKind, Result};
use rustix::fs::{Access, AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use rustix::io::Errno;

use crate::error::read_only;

/// Which file it is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        Self::read(path).map_err(|e| Error::unavailable(format!("{} cannot be looked at", path.display())).because(e))
    }

    pub(crate) fn is_still(&self, path: &Path) -> bool {
        Self::read(path).is_ok_and(|found| found == *self)
    }

    fn read(path: &Path) -> std::io::Result<Self> {
        let found = rustix::fs::stat(path)?;
        Ok(Self { device: found.st_dev as u64, inode: found.st_ino as u64 })
    }
}

/// Refuses a file that this user may not write, or whose log belongs to somebody else.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    // An old container refuses the question for the effective user; the other one it knows.
    let asked = |path: &Path| match rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS) {
        Err(Errno::PERM) => rustix::fs::access(path, Access::WRITE_OK),
        answer => answer,
    };
    // A file that is not there yet is for SQLite to make.
    let may_write = |path: &Path| !matches!(asked(path), Err(Errno::ACCESS | Errno::PERM | Errno::ROFS));
    if !may_write(path) {
        return Err(read_only(path));
    }
    for end in ["-wal", "-shm"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(end);
        if !may_write(Path::new(&beside)) {
            let text = format!(
                "{} cannot be written, and {} not without it; let a user who may write both open it once, `queue-runner stats` as \
                 root, say: who closes it last removes that file",
                Path::new(&beside).display(),
                path.display()
            );
            return Err(Error::new(ErrorKind::ReadOnly, text));
        }
    }
    Ok(())
}

/// Sets the file's times to now: what waiting processes are told of. One that is not told looks within a second.
pub(crate) fn ring(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let _ = utimensat(CWD, path, &Timestamps { last_access: now, last_modification: now }, AtFlags::empty());
}
