//! Options of a driver, typed when they are asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::driver::{BrokerUrl, Driver, OptionSpec, has_login, is_address, quoted};
use crate::error::{Error, Result};
use crate::{names, time};

/// Options as they were written: from a table of `queue.toml` or from a URL's query.
#[derive(Clone, Default, PartialEq)]
pub struct Options(BTreeMap<String, Value>);

impl fmt::Debug for Options {
    /// Keys only: a value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Options {
    /// The query of a URL as options.
    pub fn from_query(url: &BrokerUrl) -> Self {
        Self(url.query.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect())
    }

    /// Sets one option.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(key.into(), value.into());
    }

    /// The keys that are set.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The value of an option as it may be shown; a secret only shows that it is set.
    pub fn shown(&self, spec: &OptionSpec) -> Option<String> {
        match self.0.get(spec.key)? {
            _ if spec.secret => Some("(set)".into()),
            // A login in a URL is nobody's to see, whatever option it was put into.
            value if has_login(&value.to_string()) => Some("(set)".into()),
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// Checks that the driver knows every key.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), with the nearest key and the known ones.
    pub fn check(&self, driver: &Driver, per_queue: bool) -> Result<()> {
        let known: Vec<&str> = driver.options.iter().filter(|spec| !per_queue || spec.per_queue).map(|spec| spec.key).collect();
        match self.keys().find(|key| !known.contains(key)) {
            Some(key) => {
                let place = if per_queue { " for a queue" } else { "" };
                let (shown, known) = (quoted(key), names::suggest(key, known));
                Err(Error::config(format!("{} has no option {shown}{place}; {known}", driver.name)))
            }
            None => Ok(()),
        }
    }

    fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
        let text = value.to_string();
        let value = if is_address(&text) { quoted(&text) } else { text };
        Error::config(format!("option `{key}` is {value}; it takes {wanted}"))
    }

    /// A text.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            // A secret is a text, so that one without quotes comes here: the value is not repeated.
            Some(_) => Err(Error::config(format!("option `{key}` is no text; put it in quotes"))),
        }
    }

    /// A whole number, not negative.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        let wrong = |value| Self::wrong(key, value, "a whole number");
        match self.0.get(key) {
            None => Ok(None),
            Some(value @ Value::String(text)) => text.parse().map(Some).map_err(|_| wrong(value)),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(value)),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(Some(text == "true")),
            Some(other) => Err(Self::wrong(key, other, "true or false")),
        }
    }

    /// A duration: seconds, or text as [`time::parse`] takes it.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>> {
        let wrong = |value| Self::wrong(key, value, "a duration such as `10s`");
        match self.0.get(key) {
            None => Ok(None),
            Some(value @ Value::String(text)) => time::parse(text).map(Some).map_err(|_| wrong(value)),
            Some(value) => value.as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok()).map(Some).ok_or_else(|| wrong(value)),
        }
    }

    /// One of several words.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) with the words, if it is none of them.
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let known = || words.iter().map(|(word, _)| *word);
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let (shown, known) = (quoted(&text), names::suggest(&text, known().collect::<Vec<_>>()));
                Err(Error::config(format!("option `{key}` is {shown}; {known}")))
            }
        }
    }

    /// A list of texts; one text counts as a list split at commas.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) if it is something else.
    pub fn list(&self, key: &str) -> Result<Option<Vec<String>>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.split(',').map(|part| part.trim().to_owned()).collect())),
            Some(value @ Value::Array(items)) => {
                let item = |item: &Value| match item {
                    Value::String(text) => Ok(text.clone()),
                    Value::Number(number) => Ok(number.to_string()),
                    _ => Err(Self::wrong(key, value, "a list of texts")),
                };
                items.iter().map(item).collect::<Result<_>>().map(Some)
            }
            Some(other) => Err(Self::wrong(key, other, "a list of texts")),
        }
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Options {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl<K: Into<String>, V: Into<Value>> Extend<(K, V)> for Options {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, pairs: I) {
        self.0.extend(pairs.into_iter().map(|(key, value)| (key.into(), value.into())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_typed_whatever_they_were_written_in() {
        let mut options = Options::from_query(&BrokerUrl::parse("x:?n=5&on=true&wait=10s&mode=fast&list=a,b").unwrap());
        options.set("number", 7);
        assert_eq!((options.number("n").unwrap(), options.number("number").unwrap()), (Some(5), Some(7)));
        assert_eq!(options.boolean("on").unwrap(), Some(true));
        assert_eq!(options.duration("wait").unwrap(), Some(Duration::from_secs(10)));
        assert_eq!(options.choice("mode", &[("fast", 1), ("safe", 2)]).unwrap(), Some(1));
        assert_eq!(options.list("list").unwrap().unwrap(), ["a", "b"]);
        assert_eq!(options.text("none").unwrap(), None);
        let error = options.number("mode").unwrap_err().to_string();
        assert_eq!(error, "option `mode` is \"fast\"; it takes a whole number");
    }
}
