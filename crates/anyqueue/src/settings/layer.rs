//! The layers that settings are merged from: a file, the environment, flags.

use std::sync::Arc;

use anyqueue_core::{Error, Result, suggest};
use config::{Config, ConfigError, Map, Source, Value, ValueKind};
use toml::de::{DeTable, DeValue};

use super::origin::{Origin, Origins, Path, dotted};

/// The one key of the first level that `config` sees. It splits keys of that level at dots, and those below never, so
/// that names keep theirs.
const ROOT: &str = "settings";

/// Whether the keys of a table are names that the file gives.
fn is_of_names(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(path[..], ["brokers" | "queues"] | ["queues", _, "workers"])
}

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
pub(super) struct Layer(Map<String, Value>);

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

    /// Takes the variables that start with `ANYQUEUE__`. Names meet those of `below` whatever their case; `_` in a
    /// variable meets `.` and `-` too. A name that meets none is read in lower case if it is all in capitals.
    pub(super) fn environment(variables: &[(String, String)], below: &Layer, origins: &mut Origins) -> Result<Self> {
        let mut layer = Self::default();
        let mut problems = Vec::new();
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix("ANYQUEUE__") else {
                if name.starts_with("ANYQUEUE_") && name.contains("__") {
                    problems.push(format!("{name}: a setting starts with ANYQUEUE__, two underscores"));
                }
                continue;
            };
            match below.path_of(rest) {
                Ok(path) => {
                    origins.set(path.clone(), Origin::Environment(name.as_str().into()));
                    layer.set(&path, written(text));
                }
                Err(why) => problems.push(format!("{name}: {why}")),
            }
        }
        if problems.is_empty() { Ok(layer) } else { Err(Error::config(problems.join("\n"))) }
    }

    /// The same with these names in a table, for variables to meet.
    pub(super) fn naming<'a>(mut self, table: &str, names: impl Iterator<Item = &'a String>) -> Self {
        for name in names {
            let known =
                matches!(self.0.get(table).map(|value| &value.kind), Some(ValueKind::Table(table)) if table.contains_key(name));
            if !known {
                self.set(&[table.to_owned(), name.clone()], Value::from(Map::<String, Value>::new()));
            }
        }
        self
    }

    /// Takes keys as TOML writes them, with their values.
    pub(super) fn flags(flags: &[(String, String)], origins: &mut Origins) -> Result<Self> {
        let mut layer = Self::default();
        for (key, text) in flags {
            let path = parse_key(key)?;
            origins.set(path.clone(), Origin::Flag);
            layer.set(&path, written(text));
        }
        Ok(layer)
    }

    fn path_of(&self, rest: &str) -> std::result::Result<Path, String> {
        let mut at = Some(&self.0);
        let mut path = Path::new();
        let mut parts = rest.split("__").peekable();
        while let Some(part) = parts.next() {
            if part.is_empty() {
                return Err("a part of the name is empty; write it like ANYQUEUE__QUEUES__IMAGES__SLOTS".into());
            }
            let same = |key: &&String| plain(key) == plain(part);
            let mut found = at.into_iter().flat_map(|table| table.keys()).filter(same).cloned().collect::<Vec<_>>();
            found.sort();
            let name = match found.as_slice() {
                // Beside a file a new name is a typo; without one it is how names are given.
                [] if is_of_names(&path) && at.is_some_and(|table| !table.is_empty()) => {
                    let known =
                        suggest(&part.to_ascii_lowercase(), at.into_iter().flat_map(|table| table.keys()).map(String::as_str));
                    return Err(format!("the file has nothing called `{part}` in `{}`; {known}", dotted(&path)));
                }
                [] if part.chars().any(|c| c.is_ascii_lowercase()) => part.to_owned(),
                [] => part.to_ascii_lowercase(),
                [one] => one.clone(),
                // The exact spelling decides between names that differ in case only.
                many if many.iter().any(|name| name == part) => part.to_owned(),
                many => return Err(format!("`{part}` may mean {}; set it in the file", many.join(" or "))),
            };
            at = match at.and_then(|table| table.get(&name)).map(|value| &value.kind) {
                Some(ValueKind::Table(table)) => Some(table),
                Some(ValueKind::Array(_)) if parts.peek().is_some() => {
                    return Err(format!("`{name}` is a list in the file; write a table there, or set the whole list"));
                }
                _ => None,
            };
            path.push(name);
        }
        Ok(path)
    }

    fn set(&mut self, path: &[String], value: Value) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut at = &mut self.0;
        for name in parents {
            let entry = at.entry(name.clone()).or_insert_with(|| Value::from(Map::<String, Value>::new()));
            if !matches!(entry.kind, ValueKind::Table(_)) {
                *entry = Value::from(Map::<String, Value>::new());
            }
            let ValueKind::Table(table) = &mut entry.kind else { return };
            at = table;
        }
        at.insert(last.clone(), value);
    }
}

/// A name without its case, `.` and `-` as `_`.
fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace(['.', '-'], "_")
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
fn written(text: &str) -> Value {
    let parsed = match text.trim_start().chars().next() {
        Some('[' | '{') => DeValue::parse(text).ok(),
        _ => None,
    };
    match parsed {
        Some(value) => value_of(value.get_ref(), &mut Path::new(), &mut |_, _| {}),
        None => Value::from(text),
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

    #[test]
    fn variables_meet_names_of_any_case_and_say_when_two_are_meant() {
        let file = "[queues.\"mail.Out\"]\n[queues.a]\n[queues.A]\n[queues.new-one]\n";
        let layer = Layer::file("f", file, &mut Origins::default()).unwrap();
        assert_eq!(layer.path_of("QUEUES__MAIL_OUT__SLOTS").unwrap(), ["queues", "mail.Out", "slots"]);
        assert_eq!(layer.path_of("QUEUES__NEW_ONE__SLOTS").unwrap(), ["queues", "new-one", "slots"]);
        assert_eq!(layer.path_of("RUNNER__SLOTS").unwrap(), ["runner", "slots"]);
        assert_eq!(layer.path_of("QUEUES__a__SLOTS").unwrap(), ["queues", "a", "slots"]);
        assert_eq!(layer.path_of("BROKERS__queueName__URL").unwrap(), ["brokers", "queueName", "url"]);
        let typo = layer.path_of("QUEUES__NEW_OEN__SLOTS").unwrap_err();
        assert!(typo.contains("nothing called `NEW_OEN`") && typo.contains("did you mean `new-one`?"), "{typo}");
        let list = Layer::file("f", "[queues.a]\nworkers = [\"Do.It\"]\n", &mut Origins::default()).unwrap();
        assert!(list.path_of("QUEUES__A__WORKERS__DO_IT__TTR").unwrap_err().starts_with("`workers` is a list in the file"));
        let both = Layer::file("f", "[queues.\"a.b\"]\n[queues.a-b]\n", &mut Origins::default()).unwrap();
        assert_eq!(both.path_of("QUEUES__A_B__SLOTS").unwrap_err(), "`A_B` may mean a-b or a.b; set it in the file");
    }
}
