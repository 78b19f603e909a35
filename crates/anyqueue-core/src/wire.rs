//! The wire form: one JSON object per task.
//!
//! `{"task":"render","store":"nl","data":{…},"id":"…","priority":1024,"ttr":60,"sent_at":1763769600000,…}`
//!
//! Only `task` is required to read one, so a payload of the first system, `{"task":"test","store":"0","data":{…}}`,
//! is read as it is, and its workers can read ours. Keys that are not known here are kept through retry and hold.
//! Reading copies nothing of the data: it stays a slice of the body.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{BoxError, Error, Result};
use crate::names::TaskId;

/// The data of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// JSON text. On the wire it stands as it is, under `data`.
    Json(Bytes),
    /// Any bytes. On the wire they are `{"base64":"…"}` under `data`, with `"data_encoding":"base64"`.
    Binary(Bytes),
    /// A body that could not be read, kept as it came. On the wire `"data_encoding":"unreadable"`.
    Unreadable(Bytes),
}

impl Data {
    /// Serialises a value to JSON.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if the value cannot be JSON, a map with keys that are no text for example.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let text = serde_json::to_vec(value).map_err(|e| Error::invalid("the data cannot be written as JSON").because(e))?;
        Ok(Self::Json(without_noncharacters(text.into())))
    }

    /// Takes JSON text as it is.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), with line and column, if it is not JSON.
    pub fn raw_json(text: impl Into<Bytes>) -> Result<Self> {
        let text = text.into();
        serde_json::from_slice::<IgnoredAny>(&text).map_err(|e| Error::invalid(format!("the data is not JSON: {e}")))?;
        Ok(Self::Json(without_noncharacters(text)))
    }

    /// The JSON text `null`.
    pub const NULL: Self = Self::Json(Bytes::from_static(b"null"));

    /// The bytes: JSON text, or the decoded ones.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Json(bytes) | Self::Binary(bytes) | Self::Unreadable(bytes) => bytes,
        }
    }
}

/// Some brokers refuse U+FFFE and U+FFFF. In JSON they can only stand inside strings, where an escape means the same.
fn without_noncharacters(text: Bytes) -> Bytes {
    let is_one = |at: usize| matches!(text.get(at..at + 3), Some([0xEF, 0xBF, 0xBE | 0xBF]));
    if !memchr::memchr_iter(0xEF, &text).any(is_one) {
        return text;
    }
    let mut escaped = Vec::with_capacity(text.len() + 16);
    let mut at = 0;
    while at < text.len() {
        if is_one(at) {
            escaped.extend_from_slice(if text[at + 2] == 0xBE { b"\\ufffe" } else { b"\\uffff" });
            at += 3;
        } else {
            escaped.push(text[at]);
            at += 1;
        }
    }
    escaped.into()
}

/// Why and when a task was held, and what had been counted until then.
///
/// The counters of a task are reset when it is held, and kept here to be shown: kicking is then a mere change of state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeldNote {
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// When, in milliseconds since 1970.
    #[serde(default)]
    pub at: u64,
    /// Failed attempts until then.
    #[serde(default)]
    pub failed: u32,
    /// Workers that died with it until then.
    #[serde(default)]
    pub crashed: u32,
}

/// The content of a body.
#[derive(Debug, Clone, PartialEq)]
pub struct Wire {
    /// The task's name, which chooses the worker.
    pub task: String,
    /// The tenant or context it runs as.
    pub store: String,
    /// The data.
    pub data: Data,
    /// The id; a foreign payload has none.
    pub id: Option<TaskId>,
    /// 0 is most urgent.
    pub priority: Option<u32>,
    /// How long a reservation lasts; seconds on the wire.
    pub ttr: Option<Duration>,
    /// When it was sent, in milliseconds since 1970.
    pub sent_at: Option<u64>,
    /// Failed attempts so far.
    pub failed: u32,
    /// Workers that died with it so far.
    pub crashed: u32,
    /// Its next run is alone in its process, since a worker died near it.
    pub probation: bool,
    /// Since when no worker of its name was found, in milliseconds since 1970.
    pub unknown_since: Option<u64>,
    /// Why it is or was held last.
    pub held: Option<HeldNote>,
    /// What the worker saved to go on from, as JSON text.
    pub checkpoint: Option<Bytes>,
    /// Headers, such as `traceparent`.
    pub headers: Vec<(String, String)>,
    /// Keys that are not known here, with their JSON text.
    pub extra: Vec<(String, Bytes)>,
}

impl Wire {
    /// A task with a name and data, and nothing else set.
    pub fn new(task: impl Into<String>, data: Data) -> Self {
        Self {
            task: task.into(),
            store: String::new(),
            data,
            id: None,
            priority: None,
            ttr: None,
            sent_at: None,
            failed: 0,
            crashed: 0,
            probation: false,
            unknown_since: None,
            held: None,
            checkpoint: None,
            headers: Vec::new(),
            extra: Vec::new(),
        }
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, with line and column. The caller holds such a task with [`Wire::unreadable`].
    pub fn read(body: &Bytes) -> Result<Self, BoxError> {
        let fields: Fields<'_> = serde_json::from_slice(body)?;
        let slice = |raw: &RawValue| body.slice_ref(raw.get().as_bytes());
        let data = match (fields.encoding.as_deref(), fields.data) {
            (None | Some("json"), None) => Data::NULL,
            (None | Some("json"), Some(raw)) => Data::Json(slice(raw)),
            (Some(encoding @ ("base64" | "unreadable")), Some(raw)) => {
                let inner: Base64Data<'_> = serde_json::from_str(raw.get())?;
                let bytes = Bytes::from(BASE64.decode(inner.base64.as_bytes())?);
                if encoding == "base64" { Data::Binary(bytes) } else { Data::Unreadable(bytes) }
            }
            (Some(encoding @ ("base64" | "unreadable")), None) => {
                return Err(format!("data_encoding is `{encoding}` and there is no `data`").into());
            }
            (Some(other), _) => return Err(format!("data_encoding `{other}` is not known; known: `json`, `base64`").into()),
        };
        Ok(Self {
            task: fields.task.ok_or("there is no `task` in it")?.into_owned(),
            store: fields.store,
            data,
            id: fields.id,
            priority: fields.priority,
            ttr: fields.ttr,
            sent_at: fields.sent_at,
            failed: fields.failed,
            crashed: fields.crashed,
            probation: fields.probation,
            unknown_since: fields.unknown_since,
            held: fields.held,
            checkpoint: fields.checkpoint.map(slice),
            headers: fields.headers,
            extra: fields.extra.into_iter().map(|(key, raw)| (key.into_owned(), slice(raw))).collect(),
        })
    }

    /// Wraps a body that cannot be read, so that it can be held with a reason and kicked later.
    pub fn unreadable(raw: Bytes) -> Self {
        Self::new("", Data::Unreadable(raw))
    }

    /// Writes the body: `task`, `store`, `data` first, what is not set left out.
    pub fn write(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.data.bytes().len() + 192);
        out.extend_from_slice(b"{\"task\":");
        string(&mut out, &self.task);
        out.extend_from_slice(b",\"store\":");
        string(&mut out, &self.store);
        match &self.data {
            Data::Json(text) => raw(&mut out, "data", text),
            Data::Binary(bytes) => encoded(&mut out, bytes, "base64"),
            Data::Unreadable(bytes) => encoded(&mut out, bytes, "unreadable"),
        }
        if let Some(id) = self.id {
            key(&mut out, "id");
            out.push(b'"');
            let mut text = uuid::Uuid::encode_buffer();
            out.extend_from_slice(uuid::Uuid::from_bytes(*id.as_bytes()).hyphenated().encode_lower(&mut text).as_bytes());
            out.push(b'"');
        }
        self.priority.inspect(|n| number(&mut out, "priority", *n));
        self.ttr.inspect(|ttr| seconds(&mut out, *ttr));
        self.sent_at.inspect(|n| number(&mut out, "sent_at", *n));
        (self.failed > 0).then(|| number(&mut out, "failed", self.failed));
        (self.crashed > 0).then(|| number(&mut out, "crashed", self.crashed));
        self.probation.then(|| raw(&mut out, "probation", b"true"));
        self.unknown_since.inspect(|n| number(&mut out, "unknown_since", *n));
        self.held.as_ref().inspect(|note| raw(&mut out, "held", &json(note)));
        self.checkpoint.as_ref().inspect(|text| raw(&mut out, "checkpoint", text));
        if !self.headers.is_empty() {
            let map: serde_json::Map<_, _> = self.headers.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
            raw(&mut out, "headers", &json(&map));
        }
        for (name, text) in &self.extra {
            out.push(b',');
            string(&mut out, name);
            out.push(b':');
            out.extend_from_slice(text);
        }
        out.push(b'}');
        without_noncharacters(out.into())
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structures of texts and numbers are JSON")
}

fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a text is JSON and a vector takes it");
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn raw(out: &mut Vec<u8>, name: &str, text: &[u8]) {
    key(out, name);
    out.extend_from_slice(text);
}

fn number(out: &mut Vec<u8>, name: &str, number: impl Serialize) {
    key(out, name);
    serde_json::to_writer(out, &number).expect("a number is JSON and a vector takes it");
}

fn seconds(out: &mut Vec<u8>, ttr: Duration) {
    if ttr.subsec_nanos() == 0 { number(out, "ttr", ttr.as_secs()) } else { number(out, "ttr", ttr.as_secs_f64()) }
}

fn encoded(out: &mut Vec<u8>, bytes: &[u8], encoding: &str) {
    key(out, "data");
    out.extend_from_slice(b"{\"base64\":\"");
    out.extend_from_slice(BASE64.encode(bytes).as_bytes());
    out.extend_from_slice(b"\"}");
    key(out, "data_encoding");
    string(out, encoding);
}

#[derive(Deserialize)]
struct Base64Data<'a> {
    #[serde(borrow)]
    base64: Cow<'a, str>,
}

/// The object as it is read; borrowed from the body.
#[derive(Default)]
struct Fields<'a> {
    task: Option<Cow<'a, str>>,
    store: String,
    data: Option<&'a RawValue>,
    encoding: Option<Cow<'a, str>>,
    id: Option<TaskId>,
    priority: Option<u32>,
    ttr: Option<Duration>,
    sent_at: Option<u64>,
    failed: u32,
    crashed: u32,
    probation: bool,
    unknown_since: Option<u64>,
    held: Option<HeldNote>,
    checkpoint: Option<&'a RawValue>,
    headers: Vec<(String, String)>,
    extra: Vec<(Cow<'a, str>, &'a RawValue)>,
}

/// A text that is borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object with a `task`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                "task" => fields.task = Some(map.next_value::<Text<'de>>()?.0),
                "store" => fields.store = store(map.next_value()?)?,
                "data" => fields.data = Some(map.next_value()?),
                "data_encoding" => fields.encoding = map.next_value::<Option<Text<'de>>>()?.map(|text| text.0),
                "id" => {
                    let value: &RawValue = map.next_value()?;
                    fields.id = serde_json::from_str(value.get()).ok();
                    // An id of another kind is somebody else's: it stays with the task under a name that cannot clash.
                    if fields.id.is_none() && value.get() != "null" {
                        fields.extra.push(("foreign_id".into(), value));
                    }
                }
                "priority" => fields.priority = map.next_value()?,
                "ttr" => fields.ttr = ttr(map.next_value()?)?,
                "sent_at" => fields.sent_at = map.next_value()?,
                "failed" => fields.failed = map.next_value::<Option<u32>>()?.unwrap_or(0),
                "crashed" => fields.crashed = map.next_value::<Option<u32>>()?.unwrap_or(0),
                "probation" => fields.probation = map.next_value::<Option<bool>>()?.unwrap_or(false),
                "unknown_since" => fields.unknown_since = map.next_value()?,
                "held" => fields.held = map.next_value()?,
                "checkpoint" => fields.checkpoint = Some(map.next_value()?),
                "headers" => fields.headers = map.next_value::<Option<Headers>>()?.map_or_else(Vec::new, |headers| headers.0),
                _ => {
                    let value = map.next_value()?;
                    fields.extra.push((name, value));
                }
            }
        }
        Ok(fields)
    }
}

/// PHP clients have written stores as numbers; nothing is lost by taking those as texts.
fn store<E: serde::de::Error>(value: &RawValue) -> Result<String, E> {
    match value.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str(value.get()).map_err(E::custom),
        Some(b'n') => Ok(String::new()),
        Some(b'0'..=b'9' | b'-') => Ok(value.get().to_owned()),
        _ => Err(E::custom("`store` is not a text")),
    }
}

fn ttr<E: serde::de::Error>(seconds: Option<f64>) -> Result<Option<Duration>, E> {
    let wrong = |seconds| E::custom(format!("`ttr` is {seconds}, which is no number of seconds"));
    seconds.map(|s| Duration::try_from_secs_f64(s).map_err(|_| wrong(s))).transpose()
}

struct Headers(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let map = serde_json::Map::deserialize(from)?;
        let pair = |(key, value)| match value {
            serde_json::Value::String(text) => Ok((key, text)),
            other => Err(D::Error::custom(format!("header `{key}` is {other}, not a text"))),
        };
        map.into_iter().map(pair).collect::<Result<_, _>>().map(Self)
    }
}
