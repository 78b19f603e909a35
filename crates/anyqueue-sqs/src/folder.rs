//! A folder for data that is too large for SQS: a file for each task, shared by all machines that send or work.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyqueue_core::{Bytes, Create, Error, ErrorKind, Result, TaskId};

/// The largest data that goes into a file, in bytes: workers have it in memory.
pub(crate) const LARGEST: u64 = 64 << 20;
/// A file that was not used for so long belongs to no message: SQS deletes each after 14 days at most, and whoever sends a
/// message that names a file sets the file's time first.
pub(crate) const AGE: Duration = Duration::from_secs(30 * 86_400);
/// What a file is called while it is written.
const PART: &str = "part";
const WHOLE: &str = "task";

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Keys that nobody outside of this process can guess, so that the names made from them cannot be either.
    random: RandomState,
    made: AtomicU64,
}

/// Why data could not be read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is not there, or not whole: another look would find the same.
    Gone(String),
    /// The folder has trouble of its own, which may end.
    Trouble(io::Error),
}

impl Folder {
    /// Takes a folder, made where it is missing and the settings allow it; what it is to stand in must be there.
    pub(crate) fn open(path: &Path, create: Create) -> Result<Self> {
        let wrong = |kind, text: &str| Error::new(kind, format!("the folder `{}` of option `store` {text}", path.display()));
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(wrong(ErrorKind::Config, "is a file; name a folder")),
            Err(e) if e.kind() == io::ErrorKind::NotFound && create == Create::Auto => {
                private(path)
                    .map_err(|e| wrong(ErrorKind::Config, "is missing and cannot be made; make or mount it").because(e))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(wrong(ErrorKind::NotFound, "is missing, and `create` is \"never\"; make or mount it").because(e));
            }
            Err(e) => return Err(wrong(ErrorKind::Config, "cannot be looked at; check its rights").because(e)),
        }
        Ok(Self { path: path.to_owned(), random: RandomState::new(), made: AtomicU64::new(0) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A number that tells data from other data, in this process.
    pub(crate) fn mark(&self, data: &[u8]) -> u64 {
        self.random.hash_one(data)
    }

    fn new_name(&self) -> TaskId {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let half = |side: u8| self.random.hash_one((number, side)).to_le_bytes();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&half(0));
        bytes[8..].copy_from_slice(&half(1));
        TaskId::from_bytes(bytes)
    }

    /// A name is written from a number, so that no text from a message is ever part of a path.
    fn file(&self, name: TaskId, ending: &str) -> PathBuf {
        self.path.join(format!("{name}.{ending}"))
    }

    /// Keeps data in a file of its own. It is on disk, name and all, when this ends.
    pub(crate) async fn write(self: &Arc<Self>, data: Bytes) -> Result<TaskId> {
        let name = self.new_name();
        let written = self.blocking(move |folder| folder.write_now(name, &data)).await?;
        written.map(|()| name).map_err(|e| {
            let (kind, what) = match e.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (ErrorKind::Full, "is full"),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (ErrorKind::ReadOnly, "takes no files"),
                _ => (ErrorKind::Unavailable, "cannot be written to; is it mounted?"),
            };
            Error::new(kind, format!("the folder `{}` of option `store` {what}", self.path.display())).because(e)
        })
    }

    fn write_now(&self, name: TaskId, data: &[u8]) -> io::Result<()> {
        let (part, whole) = (self.file(name, PART), self.file(name, WHOLE));
        let write = || {
            let mut file = File::options().write(true).create_new(true).open(&part)?;
            file.write_all(data)?;
            file.sync_all()?;
            fs::rename(&part, &whole)?;
            File::open(&self.path)?.sync_all()
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&part);
            let _ = fs::remove_file(&whole);
        })
    }

    /// The data of a file that is to have this size.
    pub(crate) async fn read(self: &Arc<Self>, name: TaskId, size: u64) -> Result<Bytes, Unread> {
        let read = self.blocking(move |folder| folder.read_now(name, size)).await;
        read.unwrap_or_else(|e| Err(Unread::Trouble(io::Error::other(e))))
    }

    fn read_now(&self, name: TaskId, size: u64) -> Result<Bytes, Unread> {
        let path = self.file(name, WHOLE);
        let gone = |what: String| Unread::Gone(format!("its data, the file `{}`, {what}", path.display()));
        // A name that leads elsewhere is none of ours.
        let found = fs::symlink_metadata(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => gone(
                "is not there; if another delivery of this task was done, delete it; else let all machines share the folder of \
                 option `store`, and kick it"
                    .into(),
            ),
            _ => Unread::Trouble(e),
        })?;
        if !found.is_file() || found.len() != size || size > LARGEST {
            return Err(gone(format!("has {} bytes where {size} were written; bring it back and kick the task", found.len())));
        }
        let mut data = Vec::with_capacity(size as usize);
        File::open(&path).and_then(|file| file.take(size + 1).read_to_end(&mut data)).map_err(Unread::Trouble)?;
        Ok(data.into())
    }

    /// Removes files whose tasks have ended.
    pub(crate) async fn remove(self: &Arc<Self>, names: Vec<TaskId>) {
        let remove = move |folder: &Self| {
            for name in names {
                match fs::remove_file(folder.file(name, WHOLE)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(%name, %error, "the data of a task that has ended stays in the folder for a month");
                    }
                    _ => {}
                }
            }
        };
        let _ = self.blocking(remove).await;
    }

    /// Notes that files are in use.
    pub(crate) async fn touch(self: &Arc<Self>, names: Vec<TaskId>, now: SystemTime) {
        let touch = move |folder: &Self| {
            for name in names {
                let file = File::options().write(true).open(folder.file(name, WHOLE));
                match file.and_then(|file| file.set_modified(now)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(%name, %error, "a file's time cannot be set; after a month it may be taken for unused");
                    }
                    _ => {}
                }
            }
        };
        let _ = self.blocking(touch).await;
    }

    /// Removes files that no message can name any more: how many. Files of other names are left alone.
    pub(crate) async fn sweep(self: &Arc<Self>, now: SystemTime) -> io::Result<usize> {
        self.blocking(move |folder| folder.sweep_now(now)).await.unwrap_or_else(|e| Err(io::Error::other(e)))
    }

    fn sweep_now(&self, now: SystemTime) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let ours = entry.file_name().to_str().and_then(|name| name.rsplit_once('.')).is_some_and(|(name, ending)| {
                (ending == WHOLE || ending == PART) && name.parse::<TaskId>().is_ok_and(|id| id.to_string() == name)
            });
            // Another worker may sweep too.
            let Some(found) = entry.metadata().ok().filter(|found| ours && found.is_file()) else { continue };
            if now.duration_since(found.modified()?).is_ok_and(|age| age > AGE) && fs::remove_file(entry.path()).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Whether files can be written, read and removed.
    pub(crate) async fn try_out(self: &Arc<Self>) -> Result<()> {
        let name = self.write(Bytes::from_static(b"check")).await?;
        let read = self.read(name, 5).await;
        self.remove(vec![name]).await;
        read.map(drop).map_err(|_| Error::config(format!("what is written to `{}` cannot be read", self.path.display())))
    }

    async fn blocking<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> Result<T> {
        let folder = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&folder)).await;
        done.map_err(|e| Error::unavailable("the work on a file was broken off").because(e))
    }
}

/// Makes a folder that other users cannot look into: it has tasks' data.
fn private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}
