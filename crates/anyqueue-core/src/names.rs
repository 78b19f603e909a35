//! Names of queues and ids of tasks.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::driver::quoted;
use crate::error::{Error, Result};

/// The name of a queue: 1 to 60 characters of `A-Z a-z 0-9 . _ -`. Case counts.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueName(Arc<str>);

impl QueueName {
    /// The longest name, in characters.
    pub const MAX: usize = 60;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the character or the length.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(Error::invalid("a queue name has 1 to 60 characters; this one is empty"));
        }
        if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || ".-_".contains(*c))) {
            return Err(Error::invalid(format!(
                "queue name {} has the character {c:?}; allowed are A-Z a-z 0-9 . _ -",
                quoted(name)
            )));
        }
        if name.len() > Self::MAX {
            return Err(Error::invalid(format!(
                "queue name `{name}` has {} characters; at most {} are allowed",
                name.len(),
                Self::MAX
            )));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for QueueName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for QueueName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for QueueName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl FromStr for QueueName {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl From<QueueName> for String {
    fn from(name: QueueName) -> Self {
        name.as_str().to_owned()
    }
}

/// The id of a task for its whole life, retries and holds included: a UUID, version 7 when made by `send`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(Uuid);

impl TaskId {
    /// Makes a new id, version 7 (RFC 9562), from a time and random bits. The time is taken to a quarter of a
    /// microsecond (its section 6.2, method 3), so that ids sort as they were made: an index grows at its end.
    pub fn new(at: SystemTime) -> Self {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let part = (u64::from(since.subsec_nanos() % 1_000_000) << 12) / 1_000_000;
        let mut random = [0u8; 10];
        random[..2].copy_from_slice(&(part as u16).to_be_bytes());
        random[2..].copy_from_slice(&fastrand::u64(..).to_le_bytes());
        Self(uuid::Builder::from_unix_timestamp_millis(since.as_millis() as u64, &random).into_uuid())
    }

    /// The id of a task that came without one: version 8, the same for each delivery of it.
    pub fn foreign(broker: &str, queue: &str, native: &str) -> Self {
        let text = format!("{broker}\u{0}{queue}\u{0}{native}");
        let digest = Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes());
        Self(uuid::Builder::from_custom_bytes(digest.into_bytes()).into_uuid())
    }

    /// The 16 bytes of the id.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Takes 16 bytes as an id.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = Uuid::encode_buffer();
        f.pad(self.0.hyphenated().encode_lower(&mut buffer))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TaskId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Uuid::try_parse(text).map(Self).map_err(|e| Error::invalid(format!("`{text}` is not a task id (a UUID): {e}")))
    }
}

/// The known name nearest to a mistyped one, where one is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = typed.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        // Near, and not another name altogether: of one letter nothing would be left.
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4 && *distance < name.len().max(typed.len()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Says which names are known and which one was probably meant: the end of a "no such …" message.
pub fn suggest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let list = known.clone().into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match (nearest(typed, known), list.is_empty()) {
        (_, true) => "none are known".into(),
        (Some(near), _) => format!("did you mean `{near}`? Known: {list}"),
        (None, _) => format!("known: {list}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_case_and_dots_and_refuse_the_rest() {
        assert_eq!(QueueName::new("queueName.v-1_x").unwrap().as_str(), "queueName.v-1_x");
        for bad in ["", "a b", "a:b", "ü", &"x".repeat(61)] {
            assert!(QueueName::new(bad).is_err(), "{bad:?} should be refused");
        }
    }

    #[test]
    fn ids_have_their_version_and_foreign_ones_are_stable() {
        let id = TaskId::new(SystemTime::now());
        assert_eq!(id.to_string().as_bytes()[14], b'7');
        assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
        let foreign = TaskId::foreign("beanstalkd", "default", "17");
        assert_eq!(foreign, TaskId::foreign("beanstalkd", "default", "17"));
        assert_ne!(foreign, TaskId::foreign("beanstalkd", "default1", "7"));
        assert_eq!(foreign.to_string().as_bytes()[14], b'8');
    }

    #[test]
    fn a_mistyped_name_finds_its_neighbour() {
        assert_eq!(nearest("priorty", ["priority", "delay"]), Some("priority"));
        assert_eq!((nearest("qq", ["q"]), nearest("c", ["a"])), (Some("q"), None));
        assert_eq!(nearest("zzz", ["priority", "delay"]), None);
        assert_eq!(suggest("dealy", ["priority", "delay"]), "did you mean `delay`? Known: `priority`, `delay`");
    }
}
