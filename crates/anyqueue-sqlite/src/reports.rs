//! How the kernel reports that another process has committed: inotify, where there is one.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How often to look where reports cannot be had.
const POLL: Duration = Duration::from_millis(25);

/// How often to look although nothing was reported.
#[cfg(target_os = "linux")]
const SAFETY: Duration = Duration::from_secs(1);

/// The kernel's reports of commits.
#[cfg(target_os = "linux")]
pub(crate) struct Reports {
    source: Option<OwnedFd>,
    active: bool,
}

#[cfg(target_os = "linux")]
impl Reports {
    pub(crate) fn new(file: &Path) -> Self {
        use rustix::fs::inotify::{CreateFlags, init};
        let mut reports = Self { source: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok(), active: false };
        reports.renew(file);
        reports
    }

    /// A file that was replaced is another one; one that is still the same is watched once.
    pub(crate) fn renew(&mut self, file: &Path) {
        use rustix::fs::inotify::{WatchFlags, add_watch};
        self.active = self.source.as_ref().is_some_and(|source| add_watch(source, file, WatchFlags::ATTRIB).is_ok());
    }

    pub(crate) fn source(&self) -> Option<&OwnedFd> {
        self.source.as_ref()
    }

    pub(crate) fn interval(&self) -> Duration {
        if self.active { SAFETY } else { POLL }
    }

    pub(crate) fn drain(&self) {
        let Some(source) = &self.source else { return };
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let mut reader = rustix::fs::inotify::Reader::new(source, &mut buffer);
        while reader.next().is_ok() {}
    }
}

/// Where the kernel cannot report, the file is asked at short intervals.
#[cfg(not(target_os = "linux"))]
pub(crate) struct Reports;

#[cfg(not(target_os = "linux"))]
impl Reports {
    pub(crate) fn new(_file: &Path) -> Self {
        Self
    }

    pub(crate) fn renew(&mut self, _file: &Path) {}

    pub(crate) fn source(&self) -> Option<&OwnedFd> {
        None
    }

    pub(crate) fn interval(&self) -> Duration {
        POLL
    }

    pub(crate) fn drain(&self) {}
}
