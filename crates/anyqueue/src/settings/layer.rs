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

    /// Takes the variables that start with `ANYQUEUE__`. Names meet those of the file and of the program whatever their
    /// case; `_` in a variable meets `.` and `-` too. A name that meets none is read in lower case if it is all in
    /// capitals, or is an error where the file has names.
    pub(super) fn environment(variables: &[(String, String)], below: &Below<'_>, origins: &mut Origins) -> Result<Self> {
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

    fn set(&mut self, path: &[String], value: Value) {
        if let Some((last, parents)) = path.split_last() {
            self.table_at(parents).insert(last.clone(), value);
        }
    }

    /// The table at a path, where there is one from now on.
    fn table_at(&mut self, path: &[impl AsRef<str>]) -> &mut Map<String, Value> {
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

/// What variables find below them.
#[derive(Debug)]
pub(super) struct Below<'a> {
    file: &'a Layer,
    /// The same with names that the file has in lists only, or not at all.
    known: Layer,
}

impl<'a> Below<'a> {
    pub(super) fn new(file: &'a Layer) -> Self {
        let mut known = file.clone();
        let queues = table(Some(&file.0), "queues");
        for name in queues.into_iter().flat_map(|queues| queues.keys()) {
            for task in ["elsewhere", "workers"].iter().flat_map(|list| texts(table(queues, name), list)) {
                known.table_at(&["queues", name, "workers", &task]);
            }
        }
        Self { file, known }
    }

    /// Makes a queue of the program known, with its tasks.
    pub(super) fn add_queue(&mut self, queue: &str, tasks: &[String]) {
        self.known.table_at(&["queues", queue]);
        for task in tasks {
            self.known.table_at(&["queues", queue, "workers", task]);
        }
    }

    fn path_of(&self, rest: &str) -> std::result::Result<Path, String> {
        let (mut at, mut in_file) = (Some(&self.known.0), Some(&self.file.0));
        let mut path = Path::new();
        let mut parts = rest.split("__").peekable();
        while let Some(part) = parts.next() {
            if part.is_empty() {
                return Err("a part of the name is empty; write it like ANYQUEUE__QUEUES__IMAGES__SLOTS".into());
            }
            let known = || at.into_iter().flat_map(|table| table.keys());
            let mut found = known().filter(|key| plain(key) == plain(part)).cloned().collect::<Vec<_>>();
            found.sort();
            let name = match found.as_slice() {
                // Beside names in the file a new one is a typo; without them it is how names are given.
                [] if is_of_names(&path) && in_file.is_some_and(|table| !table.is_empty()) => {
                    let known = suggest(&part.to_ascii_lowercase(), known().map(String::as_str));
                    return Err(format!("there is nothing called `{part}` in `{}`; {known}", dotted(&path)));
                }
                [] if part.chars().any(|c| c.is_ascii_lowercase()) => part.to_owned(),
                [] => part.to_ascii_lowercase(),
                [one] => one.clone(),
                // The exact spelling decides between names that differ in case only.
                many if many.iter().any(|name| name == part) => part.to_owned(),
                many => return Err(format!("`{part}` may mean {}; set it in the file", many.join(" or "))),
            };
            if parts.peek().is_some() && in_file.is_some_and(|table| is_list(table, &name)) {
                return Err(format!("`{name}` is a list in the file; write a table there, or set the whole list"));
            }
            (at, in_file) = (table(at, &name), table(in_file, &name));
            path.push(name);
        }
        Ok(path)
    }
}

/// A table in a table.
fn table<'a>(parent: Option<&'a Map<String, Value>>, name: &str) -> Option<&'a Map<String, Value>> {
    match &parent?.get(name)?.kind {
        ValueKind::Table(table) => Some(table),
        _ => None,
    }
}

fn is_list(table: &Map<String, Value>, name: &str) -> bool {
    matches!(table.get(name).map(|value| &value.kind), Some(ValueKind::Array(_)))
}

/// The texts of a list in a table.
fn texts(table: Option<&Map<String, Value>>, name: &str) -> Vec<String> {
    match table.and_then(|table| table.get(name)).map(|value| &value.kind) {
        Some(ValueKind::Array(items)) => items.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
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
        let file = |text| Layer::file("f", text, &mut Origins::default()).unwrap();
        let path_of = |layer: &Layer, rest| Below::new(layer).path_of(rest);
        let layer = file("[queues.\"mail.Out\"]\n[queues.a]\n[queues.A]\n[queues.new-one]\n");
        assert_eq!(path_of(&layer, "QUEUES__MAIL_OUT__SLOTS").unwrap(), ["queues", "mail.Out", "slots"]);
        assert_eq!(path_of(&layer, "QUEUES__NEW_ONE__SLOTS").unwrap(), ["queues", "new-one", "slots"]);
        assert_eq!(path_of(&layer, "RUNNER__SLOTS").unwrap(), ["runner", "slots"]);
        assert_eq!(path_of(&layer, "QUEUES__a__SLOTS").unwrap(), ["queues", "a", "slots"]);
        assert_eq!(path_of(&layer, "BROKERS__queueName__URL").unwrap(), ["brokers", "queueName", "url"]);
        let typo = path_of(&layer, "QUEUES__NEW_OEN__SLOTS").unwrap_err();
        assert!(typo.contains("nothing called `NEW_OEN`") && typo.contains("did you mean `new-one`?"), "{typo}");
        let list = path_of(&file("[queues.a]\nworkers = [\"Do.It\"]\n"), "QUEUES__A__WORKERS__DO_IT__TTR");
        assert!(list.unwrap_err().starts_with("`workers` is a list in the file"));
        let both = path_of(&file("[queues.\"a.b\"]\n[queues.a-b]\n"), "QUEUES__A_B__SLOTS");
        assert_eq!(both.unwrap_err(), "`A_B` may mean a-b or a.b; set it in the file");
    }

    #[test]
    fn names_of_the_program_are_met_and_forbid_no_others() {
        let beside = |text: &str, rest: &str| {
            let file = Layer::file("f", text, &mut Origins::default()).unwrap();
            let mut below = Below::new(&file);
            below.add_queue("Mail.Out", &["Do.It".to_owned()]);
            below.path_of(rest).map(|path| dotted(&path))
        };
        let nothing = "";
        assert_eq!(
            beside(nothing, "QUEUES__MAIL_OUT__WORKERS__DO_IT__TTR").unwrap(),
            "queues.\"Mail.Out\".workers.\"Do.It\".ttr"
        );
        assert_eq!(beside(nothing, "QUEUES__DEFAULT__TTR").unwrap(), "queues.default.ttr");
        assert_eq!(beside(nothing, "QUEUES__MAIL_OUT__WORKERS__NEW__TTR").unwrap(), "queues.\"Mail.Out\".workers.new.ttr");
        let file = "[queues.\"Mail.Out\"]\nelsewhere = [\"Far.Away\"]\n[queues.\"Mail.Out\".workers.near]\nttr = 1\n";
        for (task, name) in [("DO_IT", "\"Do.It\""), ("FAR_AWAY", "\"Far.Away\""), ("NEAR", "near")] {
            let path = beside(file, &format!("QUEUES__MAIL_OUT__WORKERS__{task}__TTR")).unwrap();
            assert_eq!(path, format!("queues.\"Mail.Out\".workers.{name}.ttr"));
        }
        assert!(beside(file, "QUEUES__MAIL_OUT__WORKERS__DO_TI__TTR").unwrap_err().contains("did you mean `Do.It`?"));
    }
}
