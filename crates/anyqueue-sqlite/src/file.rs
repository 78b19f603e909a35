//! The file as the file system sees it: whether it is still the one that was opened, and a sign to other processes.

use std::path::Path;

use anyqueue_core::{Error, Result};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

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

/// Sets the file's times to now: what waiting processes are told of. One that is not told looks within a second.
pub(crate) fn ring(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let _ = utimensat(CWD, path, &Timestamps { last_access: now, last_modification: now }, AtFlags::empty());
}
