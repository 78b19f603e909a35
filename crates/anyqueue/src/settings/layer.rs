//! The layers that settings are merged from: a file, the environment, flags.

use std::sync::Arc;

use anyqueue_core::{Error, Result};
use config::{Config, ConfigError, Map, Source, Value, ValueKind};
use toml::de::{DeTable, DeValue};

use super::origin::{Origin, Origins, Path, dotted};

/// The one key of the first level that `config` sees. It splits keys of that level at dots, and those below never, so
/// that names keep theirs.
const ROOT: &str = "settings";

/// Merges layers, the later ones winning.
pub(super) fn merge(layers: impl IntoIterator<Item = Layer>) -> Result<Map<String, Value>> {
    let merged = layers.into_iter().fold(Config::builder(), |builder, layer| builder.add_source(layer)).build();
    let mut values =
        merged.and_then(|config| config.collect()).map_err(|e| Error::config("the settings cannot be merged").because(e))?;
    match values.remove(ROOT).map(|root| root.kind) {
        Some(ValueKind::Table(values)) => Ok(values),
        _ => Ok(Map::new()),
    }
}

/// What one layer sets.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer(pub(super) Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> std::result::Result<Map<String, Value>, ConfigError> {
        Ok(Map::from_iter([(ROOT.to_owned(), Value::from(self.0.clone()))]))
    }
}

impl Layer {
    /// Reads a TOML file's text. Syntax errors name file, line and column, all of them.
    pub(super) fn file(name: &str, text: &str, origins: &mut Origins) -> Result<Self> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let line = |e: &toml::de::Error| {
                let (line, column) = position(text, e.span().map_or(0, |span| span.start));
                format!("{name}:{line}:{column}: {}", e.message().replace('\n', ", "))
            };
            return Err(Error::config(errors.iter().map(line).collect::<Vec<_>>().join("\n")));
        }
        let file: Arc<str> = name.into();
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        let mut note = |path: Path, at: usize| {
            let line = ends.partition_point(|end| *end < at) + 1;
            origins.set(path, Origin::File { file: file.clone(), line });
        };
        Ok(Self(table_of(table.get_ref(), &mut Path::new(), &mut note)))
    }

    /// Takes keys as TOML writes them, with their values.
    pub(super) fn flags(flags: &[(String, String)], below: [(&Layer, &str); 2], origins: &mut Origins) -> Result<Self> {
        let mut layer = Self::default();
        for (key, text) in flags {
            for (path, value) in leaves(parse_key(key)?, written(text)) {
                let is_table = matches!(value.kind, ValueKind::Table(_));
                if let Some(why) = below.iter().find_map(|(layer, place)| layer.refuses(&path, is_table, place)) {
                    return Err(Error::config(format!("{key}: {}", slip(&value).unwrap_or(why))));
                }
                origins.set(path.clone(), Origin::Flag);
                layer.set(&path, value);
            }
        }
        Ok(layer)
    }

    /// The names in a table.
    pub(super) fn names(&self, name: &str) -> impl Iterator<Item = &String> {
        table(Some(&self.0), name).into_iter().flat_map(|table| table.keys())
    }

    /// Why a value, or a table, cannot be set at a path over this layer: a table here would end up beside no table, or the
    /// other way round.
    pub(super) fn refuses(&self, path: &[String], is_table: bool, by: &str) -> Option<String> {
        let mut at = &self.0;
        for (n, name) in path.iter().enumerate() {
            let place = dotted(&path[..=n]);
            let wants_table = is_table || n + 1 < path.len();
            at = match (&at.get(name)?.kind, wants_table) {
                (ValueKind::Table(table), true) => table,
                (ValueKind::Table(_), false) => return Some(format!("`{place}` is a table in {by}; set the keys in it")),
                (_, false) => return None,
                (ValueKind::Array(_), true) => {
                    return Some(format!("`{place}` is a list in {by}; write a table there, or set the whole list"));
                }
                (_, true) => return Some(format!("`{place}` is no table in {by}; mend it there")),
            };
        }
        None
    }

    /// Sets what [`leaves`] gives: a table is an empty one, which takes nothing away.
    pub(super) fn set(&mut self, path: &[String], value: Value) {
        match (value.kind, path.split_last()) {
            (ValueKind::Table(_), _) => drop(self.table_at(path)),
            (kind, Some((last, parents))) => drop(self.table_at(parents).insert(last.clone(), Value::from(kind))),
            (_, None) => {}
        }
    }

    /// The table at a path, where there is one from now on.
    pub(super) fn table_at(&mut self, path: &[impl AsRef<str>]) -> &mut Map<String, Value> {
        path.iter().fold(&mut self.0, |at, name| {
            let entry = at.entry(name.as_ref().to_owned()).or_insert_with(|| Value::from(Map::<String, Value>::new()));
            if !matches!(entry.kind, ValueKind::Table(_)) {
                *entry = Value::from(Map::<String, Value>::new());
            }
            match &mut entry.kind {
                ValueKind::Table(table) => table,
                _ => unreachable!("just made a table"),
            }
        })
    }
}

/// A table in a table.
pub(super) fn table<'a>(parent: Option<&'a Map<String, Value>>, name: &str) -> Option<&'a Map<String, Value>> {
    match &parent?.get(name)?.kind {
        ValueKind::Table(table) => Some(table),
        _ => None,
    }
}

/// Reads `queues."mail.Out".slots`.
pub(super) fn parse_key(key: &str) -> Result<Path> {
    let text = format!("{key} = 0");
    let wrong = || Error::invalid(format!("`{key}` is not a key; write it like `runner.slots` or `queues.\"mail.Out\".slots`"));
    let table = DeTable::parse(&text).map_err(|_| wrong())?;
    let mut path = Path::new();
    let mut at = Some(table.get_ref());
    while let Some((name, value)) = at.and_then(|table| table.iter().next()) {
        path.push(name.get_ref().to_string());
        at = value.get_ref().as_table();
    }
    if path.is_empty() { Err(wrong()) } else { Ok(path) }
}

/// A value of a variable or flag: a list or table where it is written as one, else text, which every reader takes.
pub(super) fn written(text: &str) -> Value {
    let parsed = match text.trim_start().chars().next() {
        Some('[' | '{') => DeValue::parse(text).ok(),
        _ => None,
    };
    match parsed {
        Some(value) => value_of(value.get_ref(), &mut Path::new(), &mut |_, _| {}),
        None => Value::from(text),
    }
}

/// Why a text that begins like a table is none, which nobody sees from the text that it is then.
pub(super) fn slip(value: &Value) -> Option<String> {
    let ValueKind::String(text) = &value.kind else { return None };
    let error = text.trim_start().starts_with('{').then(|| DeValue::parse(text).err())??;
    Some(format!("what is given is no table: {}; a text in it needs quotes", error.message().replace('\n', ", ")))
}

/// The values in a value, each with its path: of a table one per key, however deep.
pub(super) fn leaves(path: Path, value: Value) -> Vec<(Path, Value)> {
    match value.kind {
        ValueKind::Table(table) if !table.is_empty() => {
            let below = |(name, value)| leaves(path.iter().cloned().chain([name]).collect(), value);
            table.into_iter().flat_map(below).collect()
        }
        _ => vec![(path, value)],
    }
}

fn table_of(table: &DeTable<'_>, path: &mut Path, note: &mut impl FnMut(Path, usize)) -> Map<String, Value> {
    let mut map = Map::new();
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        note(path.clone(), key.span().start);
        map.insert(key.get_ref().to_string(), value_of(value.get_ref(), path, note));
        path.pop();
    }
    map
}

fn value_of(value: &DeValue<'_>, path: &mut Path, note: &mut impl FnMut(Path, usize)) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.to_string()),
        DeValue::Boolean(on) => Value::from(*on),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(number.as_str()),
        },
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or_else(|_| Value::from(number.as_str()), Value::from),
        DeValue::Datetime(date) => Value::from(date.to_string()),
        DeValue::Array(items) => Value::from(items.iter().map(|item| value_of(item.get_ref(), path, note)).collect::<Vec<_>>()),
        DeValue::Table(table) => Value::from(table_of(table, path, note)),
    }
}

/// Line and column of a byte, both from 1; the column counts characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |n| n + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_toml_writes_them() {
        assert_eq!(parse_key("runner.slots").unwrap(), ["runner", "slots"]);
        assert_eq!(parse_key("queues.\"mail.Out\".slots").unwrap(), ["queues", "mail.Out", "slots"]);
        assert_eq!(dotted(&parse_key("queues.\"mail.Out\".slots").unwrap()), "queues.\"mail.Out\".slots");
        assert!(parse_key("a b").is_err());
        assert!(parse_key("").is_err());
    }

    #[test]
    fn every_syntax_error_has_file_line_and_column() {
        let error = Layer::file("queue.toml", "a = 1\nb = = 2\n\nc = \"x\nd = 1\n", &mut Origins::default()).unwrap_err();
        assert!(error.message().starts_with("queue.toml:2:5: "), "{error}");
        assert!(error.message().lines().any(|line| line.starts_with("queue.toml:4:")), "{error}");
    }
}
