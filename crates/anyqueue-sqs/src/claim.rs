//! Claim checks: data that is too large for SQS is in a file, and the message says which.
//!
//! The message's body is the task in its wire form, with `{"file":"…","bytes":…}` where its data was. That is for people to
//! read: only the word in the attribute beside it makes a message a claim, so that no body of somebody else's is taken for one.

use std::sync::Arc;

use anyqueue_core::{BoxError, Bytes, Data, Envelope, Error, ErrorKind, Result, TaskId, Wire};

use crate::folder::{self, Folder, Unread};
use crate::hub::Hub;
use crate::lines::Lines;
use crate::message::Arrived;

/// Makes data of bytes.
type Form = fn(Bytes) -> Data;

/// What the data is on the wire.
const FORMS: [(char, Form); 3] = [('j', Data::Json), ('b', Data::Binary), ('u', Data::Unreadable)];

/// Which file has a task's data. `j5f0e….1048576` in a slip: its form, its file, its size in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Claim {
    form: char,
    pub(crate) file: TaskId,
    size: u64,
}

impl Claim {
    /// Reads one; `None` if it is of another version, or forged.
    pub(crate) fn read(word: &str) -> Option<Self> {
        let mut rest = word.chars();
        let form = rest.next().filter(|form| FORMS.iter().any(|(known, _)| known == form))?;
        let (file, size) = rest.as_str().split_once('.')?;
        let claim = Self { form, file: file.parse().ok()?, size: size.parse().ok()? };
        (claim.write() == word).then_some(claim)
    }

    fn write(&self) -> String {
        format!("{}{}.{}", self.form, self.file, self.size)
    }

    /// The body of a claim's message: all of the task but its data.
    fn ticket(&self, mut wire: Wire) -> Bytes {
        wire.data = Data::Json(format!(r#"{{"file":"{}","bytes":{}}}"#, self.file, self.size).into());
        wire.write()
    }

    /// The whole body again.
    fn whole(&self, ticket: &Bytes, data: Bytes) -> Result<Bytes, BoxError> {
        let mut wire = Wire::read(ticket)?;
        let (_, form) = FORMS.iter().find(|(form, _)| *form == self.form).ok_or("a form that is not known")?;
        wire.data = form(data);
        Ok(wire.write())
    }
}

/// A task taken apart.
struct Parts {
    wire: Wire,
    form: char,
    data: Bytes,
}

impl Parts {
    fn of(task: &Envelope) -> Self {
        // What cannot be read is data as a whole; who reads the task will say what is wrong with it.
        let wire = Wire::read(&task.body).unwrap_or_else(|_| Wire { id: Some(task.id), ..Wire::unreadable(task.body.clone()) });
        let form = match wire.data {
            Data::Json(_) => 'j',
            Data::Binary(_) => 'b',
            Data::Unreadable(_) => 'u',
        };
        Self { form, data: wire.data.bytes().clone(), wire }
    }
}

/// The data of a message that was received: which word it had, and what tells it from other data.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    pub(crate) word: Arc<str>,
    mark: u64,
}

/// Data that could not be had.
pub(crate) enum Missing {
    /// The task is to be held, for this reason.
    Hold(String),
    /// It may come later.
    Later,
}

/// A body that fits into a message, and the word of the file with its data, if that is not in it.
pub(crate) type Content = (Bytes, Option<Arc<str>>);

impl Hub {
    /// What of a task goes into its message, of up to `limit` bytes. `None` if it does not fit, whatever is done.
    ///
    /// The data goes into a new file, unless it is the same that `owned` has in one already.
    pub(crate) async fn content(&self, task: &Envelope, limit: u64, owned: Option<&Owned>) -> Result<Option<Content>> {
        if task.body.len() as u64 <= limit {
            return Ok(Some((task.body.clone(), None)));
        }
        let Some(folder) = &self.folder else { return Ok(None) };
        let Parts { wire, form, data } = Parts::of(task);
        let known = owned.filter(|owned| owned.mark == folder.mark(&data)).and_then(|owned| Claim::read(&owned.word));
        let mut claim = known.unwrap_or(Claim { form, file: TaskId::from_bytes([0; 16]), size: data.len() as u64 });
        // Every file's name has the same length.
        if claim.ticket(wire.clone()).len() as u64 > limit || claim.size > folder::LARGEST {
            return Ok(None);
        }
        if known.is_none() {
            claim.file = folder.write(data).await?;
        }
        Ok(Some((claim.ticket(wire), Some(claim.write().into()))))
    }

    /// The whole body of a message that was received, and the file that it owns; `None` if its data is in it.
    pub(crate) async fn fetched(&self, arrived: &Arrived) -> Result<Option<(Bytes, Owned)>, Missing> {
        let Some(word) = &arrived.slip.claim else { return Ok(None) };
        let unknown =
            || Missing::Hold("its data is in a file, named in a form that is not known here; is this version older?".into());
        let claim = Claim::read(word).ok_or_else(unknown)?;
        let Some(folder) = &self.folder else {
            let text = "its data is in a file of a folder, and this worker knows of no folder; set the option `store` of the \
                        broker, `store = \"file:/path\"`, to the one that the sender has, and kick it";
            return Err(Missing::Hold(text.into()));
        };
        let data = folder.read(claim.file, claim.size).await.map_err(|e| match e {
            Unread::Gone(why) => Missing::Hold(why),
            Unread::Trouble(error) => {
                let folder = folder.path().display();
                tracing::warn!(id = %arrived.id, %folder, %error, "the data of a task cannot be read; it will be tried again");
                Missing::Later
            }
        })?;
        let owned = Owned { word: word.clone(), mark: folder.mark(&data) };
        claim.whole(&arrived.body, data).map(|body| Some((body, owned))).map_err(|_| unknown())
    }

    /// Removes files whose messages are gone for certain.
    pub(crate) async fn let_go<'a>(&self, words: impl IntoIterator<Item = &'a Arc<str>>) {
        let files = files(words);
        if let Some(folder) = self.folder.as_ref().filter(|_| !files.is_empty()) {
            folder.remove(files).await;
        }
    }

    /// Notes that files are named by messages that are about to be sent.
    pub(crate) async fn in_use<'a>(&self, words: impl IntoIterator<Item = &'a Arc<str>>) {
        let files = files(words);
        if let Some(folder) = self.folder.as_ref().filter(|_| !files.is_empty()) {
            folder.touch(files, self.clock.wall()).await;
        }
    }

    /// Deletes messages, and the files of those that are gone.
    pub(crate) async fn delete_whole(&self, url: &str, all: &[&Arrived]) -> Vec<Result<()>> {
        let handles: Vec<_> = all.iter().map(|one| one.handle.clone()).collect();
        let answers = self.delete(url, &handles).await;
        let gone = all.iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
        self.let_go(gone.filter_map(|(one, _)| one.slip.claim.as_ref())).await;
        answers
    }

    /// The largest task that a queue takes, in bytes.
    pub(crate) fn largest_task(&self, lines: &Lines) -> u64 {
        if self.folder.is_some() { folder::LARGEST } else { lines.max_payload() }
    }

    /// The error of a task that is too large.
    pub(crate) fn too_large(&self, size: u64, lines: &Lines) -> Error {
        let limit = self.largest_task(lines);
        match &self.folder {
            Some(_) if size > limit => Error::too_large(size, limit),
            Some(_) => {
                let text = "the task is too large for SQS even without its data, which would be in a file; send shorter headers";
                Error::new(ErrorKind::TooLarge { size, limit }, text)
            }
            None => {
                let text = format!(
                    "the task is {size} bytes long and SQS takes {limit} at most; set the option `store` of the broker, \
                     `store = \"file:/path\"`, to a folder that all machines share, or send a reference to the data instead"
                );
                Error::new(ErrorKind::TooLarge { size, limit }, text)
            }
        }
    }
}

fn files<'a>(words: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<TaskId> {
    words.into_iter().filter_map(|word| Claim::read(word)).map(|claim| claim.file).collect()
}

/// The folder of a broker's settings, if there is one.
pub(crate) fn folder(config: &crate::config::Config) -> Result<Option<Arc<Folder>>> {
    config.store.as_deref().map(|path| Folder::open(path, config.create).map(Arc::new)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_as_it_was_written_and_no_other_word_is_one() {
        let claim = Claim { form: 'b', file: TaskId::from_bytes([7; 16]), size: 5 << 20 };
        assert_eq!(Claim::read(&claim.write()), Some(claim));
        let file = TaskId::from_bytes([7; 16]).to_string();
        for forged in [
            "",
            "j",
            "x.1",
            "j../../etc/passwd.1",
            "j/etc/passwd.1",
            &format!("j{file}"),
            &format!("j{file}."),
            &format!("j{file}.-1"),
            &format!("j{file}.01"),
            &format!("x{file}.1"),
            &format!("j{}.1", file.replace('-', "")),
            &format!("j{{{file}}}.1"),
            &format!("jurn:uuid:{file}.1"),
            &format!("j{file}/../x.1"),
            "é7.1",
        ] {
            assert_eq!(Claim::read(forged), None, "{forged}");
        }
    }

    #[test]
    fn a_task_is_put_together_as_it_was() {
        for data in [Data::Json("{\"a\": [1, 2]}".into()), Data::Binary(vec![0, 255].into()), Data::Unreadable("x{".into())] {
            let mut wire = Wire { id: Some(TaskId::from_bytes([1; 16])), failed: 3, ..Wire::new("render", data) };
            wire.extra.push(("mine".into(), "[1, 2]".into()));
            let task = Envelope {
                id: TaskId::from_bytes([1; 16]),
                body: wire.write(),
                priority: 1,
                delay: Default::default(),
                ttr: Default::default(),
                group: None,
                unique: None,
                probation: false,
            };
            let Parts { wire, form, data } = Parts::of(&task);
            let claim = Claim { form, file: TaskId::from_bytes([2; 16]), size: data.len() as u64 };
            let ticket = claim.ticket(wire);
            assert_eq!(Wire::read(&ticket).unwrap().failed, 3, "a listing reads it");
            assert_eq!(claim.whole(&ticket, data).unwrap(), task.body);
        }
    }
}
