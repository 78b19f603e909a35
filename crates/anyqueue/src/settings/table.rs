//! A table of the merged settings that is read key by key and remembers what it was asked for, so that what is left
//! over is unknown.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyqueue_core::{Options, quoted, suggest};
use config::{Map, Value, ValueKind};

use super::origin::{Origin, Origins, Path, dotted};
use super::value::{Read, discreet};

/// Collects what is wrong while settings are read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) origins: &'a Origins,
    problems: RefCell<Vec<(Origin, String)>>,
    asked: RefCell<Vec<String>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(origins: &'a Origins) -> Self {
        Self { origins, problems: RefCell::default(), asked: RefCell::default() }
    }

    /// Reports what is wrong at a path. Of a key that is missing, the table tells where.
    pub(super) fn problem(&self, path: &[String], text: impl Into<String>) {
        let places = (1..=path.len()).rev().map(|n| &path[..n]);
        let origin = places.map(|path| self.origins.of(path)).find(|origin| *origin != Origin::Default);
        self.problems.borrow_mut().push((origin.unwrap_or_default(), text.into()));
    }

    /// What is wrong, in the order of the file's lines, and every key that was asked for, with `*` for names.
    pub(super) fn finish(self) -> (Vec<String>, Vec<String>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(origin, _)| match origin {
            Origin::File { line, .. } => *line,
            _ => usize::MAX,
        });
        let line = |(origin, text)| match origin {
            Origin::Default => text,
            origin => format!("{origin}: {text}"),
        };
        (problems.into_iter().map(line).collect(), self.asked.into_inner())
    }
}

/// One table.
#[derive(Debug)]
pub(super) struct Table<'r> {
    reader: &'r Reader<'r>,
    pub(super) path: Path,
    pattern: String,
    values: BTreeMap<String, Value>,
    asked: Vec<&'static str>,
}

impl<'r> Table<'r> {
    pub(super) fn root(reader: &'r Reader<'r>, values: Map<String, Value>) -> Self {
        Self { reader, path: Path::new(), pattern: String::new(), values: values.into_iter().collect(), asked: Vec::new() }
    }

    fn child(&self, name: &str, pattern: &str, value: Value) -> Self {
        let mut path = self.path.clone();
        path.push(name.to_owned());
        let values = match value.kind {
            ValueKind::Table(values) => values.into_iter().collect(),
            _ => {
                self.reader.problem(&path, format!("`{}` must be a table, [{}]", dotted(&path), dotted(&path)));
                BTreeMap::new()
            }
        };
        let pattern = if self.pattern.is_empty() { pattern.into() } else { format!("{}.{pattern}", self.pattern) };
        Self { reader: self.reader, path, pattern, values, asked: Vec::new() }
    }

    /// The place in messages: `[queues.images]`.
    fn place(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!(" in [{}]", dotted(&self.path)) }
    }

    pub(super) fn path_of(&self, key: &str) -> Path {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    pub(super) fn problem(&self, key: &str, text: &str) {
        self.reader.problem(&self.path_of(key), format!("`{key}`{}: {text}", self.place()));
    }

    /// Reports that the table's own name is wrong.
    pub(super) fn wrong_name(&self, text: &str) {
        self.reader.problem(&self.path, format!("[{}]: {text}", dotted(&self.path)));
    }

    /// Reports what is wrong with the program, wherever the settings come from.
    pub(super) fn program_problem(&self, text: &str) {
        self.reader.problem(&[], text);
    }

    fn asked(&mut self, key: &'static str) {
        self.asked.push(key);
        let dot = if self.pattern.is_empty() { "" } else { "." };
        self.reader.asked.borrow_mut().push(format!("{}{dot}{key}", self.pattern));
    }

    /// Takes a value if there is one; what is wrong with it is collected.
    pub(super) fn take<T>(&mut self, key: &'static str, read: impl FnOnce(&Value) -> Read<T>) -> Option<T> {
        self.asked(key);
        let value = self.values.remove(key)?;
        read(&value).map_err(|e| self.problem(key, &discreet(e, &value))).ok()
    }

    /// Whether a key is set at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Whether a key is set to a list rather than a table.
    pub(super) fn is_list(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !matches!(value.kind, ValueKind::Table(_)))
    }

    /// Takes a table of known keys.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'r>> {
        self.asked(key);
        let value = self.values.remove(key)?;
        Some(self.child(key, key, value))
    }

    /// Takes a table whose keys are names of tables.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<(String, Table<'r>)> {
        let Some(mut parent) = self.table(key) else { return Vec::new() };
        std::mem::take(&mut parent.values)
            .into_iter()
            .map(|(name, value)| {
                let table = parent.child(&name, "*", value);
                (name, table)
            })
            .collect()
    }

    /// Takes all that is left, key by key, for tables whose keys are names.
    pub(super) fn rest<T>(&mut self, read: impl Fn(&Value) -> Read<T>) -> Vec<(String, T)> {
        self.reader.asked.borrow_mut().push(format!("{}.*", self.pattern));
        let mut taken = Vec::new();
        for (key, value) in std::mem::take(&mut self.values) {
            match read(&value) {
                Ok(read) => taken.push((key, read)),
                Err(e) => self.problem(&key, &discreet(e, &value)),
            }
        }
        taken
    }

    /// Takes the options of a driver, which stand beside our own keys; what neither knows is unknown.
    pub(super) fn finish_with(mut self, known: impl Iterator<Item = &'static str>, options: &mut Options) {
        for key in known {
            self.asked.push(key);
            if let Some(value) = self.values.remove(key) {
                options.set(key, json(&value));
            }
        }
        self.finish();
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.values.keys() {
            let known = suggest(key, self.asked.iter().copied());
            self.reader.problem(&self.path_of(key), format!("unknown key {}{}; {known}", quoted(key), self.place()));
        }
    }
}

/// A value as a driver's option.
fn json(value: &Value) -> serde_json::Value {
    match &value.kind {
        ValueKind::Boolean(on) => (*on).into(),
        ValueKind::I64(n) => (*n).into(),
        ValueKind::U64(n) => (*n).into(),
        ValueKind::Float(n) => (*n).into(),
        ValueKind::Array(items) => items.iter().map(json).collect(),
        ValueKind::Table(table) => table.iter().map(|(key, value)| (key.clone(), json(value))).collect(),
        ValueKind::Nil => serde_json::Value::Null,
        _ => value.to_string().into(),
    }
}
