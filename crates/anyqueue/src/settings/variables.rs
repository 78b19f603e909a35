//! Variables, and how their names meet those of the file and of the program.

use std::collections::BTreeMap;

use anyqueue_core::{Error, Result, suggest};
use config::{Map, Value, ValueKind};

use super::layer::{Layer, leaves, slip, table, written};
use super::origin::{Origin, Origins, Path, dotted};
use super::value;

/// What is below the variables.
#[derive(Debug)]
pub(super) struct Below<'a> {
    file: &'a Layer,
    /// The same with all names that a variable may mean: those in lists, of the program, and of other variables.
    known: Layer,
    /// The tasks that the program has workers for, by queue.
    handlers: &'a BTreeMap<String, Vec<String>>,
}

/// One value of a variable.
struct Given<'v> {
    variable: &'v str,
    /// The parts of its name, and the keys of the table that the value is in.
    parts: Path,
    /// How many of them are parts of the name, which has no case.
    spelt: usize,
    value: Value,
}

/// Takes the variables that start with `ANYQUEUE__`. The parts of a name meet names that are known whatever their case;
/// `_` meets `.` and `-` too. One that meets none is read in lower case if it is all in capitals, or is an error where it
/// must be a typo. A value that is written as a table stands for a variable for each key in it, and keys are exact.
pub(super) fn read(variables: &[(String, String)], mut below: Below<'_>, origins: &mut Origins) -> Result<Layer> {
    let mut problems = Vec::new();
    let mut given = Vec::new();
    for (name, text) in variables {
        match name.strip_prefix("ANYQUEUE__") {
            Some(rest) => {
                let parts: Path = rest.split("__").map(str::to_owned).collect();
                let spelt = parts.len();
                let all = leaves(parts, written(text)).into_iter();
                given.extend(all.map(|(parts, value)| Given { variable: name, parts, spelt, value }));
            }
            None if name.starts_with("ANYQUEUE_") && name.contains("__") => {
                problems.push(format!("{name}: a setting starts with ANYQUEUE__, two underscores"));
            }
            None => {}
        }
    }
    // No outcome hangs on the order of an environment. Names that are exact come before those that may mean them, those of
    // brokers and queues before those of tasks.
    given.sort_by(|a, b| a.is_vague(1).cmp(&b.is_vague(1)).then_with(|| a.parts.cmp(&b.parts)));
    given.iter().for_each(|given| below.learn_first(given));
    given.sort_by(|a, b| a.rank().cmp(&b.rank()));
    let mut layer = Layer::default();
    let mut by = BTreeMap::<Path, &str>::new();
    for given in &given {
        let name = given.variable;
        let path = match below.path_of(&given.parts, given.spelt, given.is_empty_table()) {
            Ok(path) => path,
            Err(why) => {
                let slip = slip(&given.value).map_or_else(String::new, |slip| format!("; {slip}"));
                problems.push(format!("{name}: {why}{slip}"));
                continue;
            }
        };
        if let Some(why) = slip(&given.value).filter(|_| holds_keys(&path)) {
            problems.push(format!("{name}: {why}"));
            continue;
        }
        // An empty table says that something is there, and leaves room for more.
        let clashes = |taken: &Path| path.starts_with(taken) || (!given.is_empty_table() && taken.starts_with(&path));
        if let Some((_, other)) = by.iter().find(|(taken, _)| clashes(taken)) {
            // No key of a value is shown: the value may be a secret.
            let place = dotted(&path[..given.spelt.min(path.len())]);
            problems.push(match name == *other {
                true => format!("{name} sets a key of `{place}` twice"),
                false => format!("{name} and {other} both set `{place}`; remove one of them"),
            });
            continue;
        }
        below.learn(&path, &given.value);
        if !(given.is_empty_table() && origins.is_set(&path)) {
            origins.set(path.clone(), Origin::Environment(name.into()));
        }
        layer.set(&path, given.value.clone());
        if !given.is_empty_table() {
            by.insert(path, name);
        }
    }
    for worker in below.strangers(&layer) {
        let by = by.range(worker.clone()..).find(|(path, _)| path.starts_with(&worker)).map_or("a variable", |(_, name)| *name);
        let (place, name) = (dotted(&worker[..3]), &worker[3]);
        let known = below.tasks_of(&layer, &worker[1]);
        let known = suggest(name, known.iter().map(String::as_str));
        let lacks = "no variable gives it an `exec` or says that it is `elsewhere`";
        problems.push(format!("{by}: there is nothing called `{name}` in `{place}`, and {lacks}; {known}"));
    }
    if problems.is_empty() { Ok(layer) } else { Err(Error::config(problems.join("\n"))) }
}

impl Given<'_> {
    fn is_empty_table(&self) -> bool {
        matches!(self.value.kind, ValueKind::Table(_))
    }

    /// Whether a part of the name may mean a name that is spelt otherwise: one in capitals.
    fn is_vague(&self, part: usize) -> bool {
        part < self.spelt && self.parts.get(part).is_some_and(|part| !part.chars().any(|c| c.is_ascii_lowercase()))
    }

    /// Lists, which name tasks exactly, before the rest; then names that are exact, then those with small letters, then those
    /// in capitals; routes, which are about tasks, last.
    fn rank(&self) -> impl Ord + '_ {
        let vague = [1, 3].iter().filter(|part| self.is_vague(**part)).count();
        let is_list = self.parts.len() == 3 && matches!(self.value.kind, ValueKind::Array(_));
        let is_route = self.parts.first().is_some_and(|part| plain(part) == "routes");
        (is_route, !is_list, vague, self.is_empty_table(), &self.parts, self.variable)
    }
}

impl<'a> Below<'a> {
    pub(super) fn new(file: &'a Layer, handlers: &'a BTreeMap<String, Vec<String>>) -> Self {
        let mut below = Self { file, known: file.clone(), handlers };
        for (queue, keys) in tables(table(Some(&file.0), "queues")) {
            for task in keys.iter().flat_map(|(key, value)| tasks(key, value)) {
                below.add_task(queue, &task);
            }
        }
        for (queue, tasks) in handlers {
            below.known.table_at(&["queues", queue]);
            tasks.iter().for_each(|task| below.add_task(queue, task));
        }
        below
    }

    fn add_task(&mut self, queue: &str, task: &str) {
        self.known.table_at(&["queues", queue, "workers", task]);
        self.known.table_at(&["routes", task]);
    }

    /// Makes the name of a broker or queue known that a variable has, for others to mean.
    fn learn_first(&mut self, given: &Given<'_>) {
        let Some(parts) = given.parts.get(..2) else { return };
        match self.path_of(parts, given.spelt, true).as_deref() {
            Ok([names, name]) if names == "brokers" || names == "queues" => drop(self.known.table_at(&[names, name])),
            _ => {}
        }
    }

    /// Makes the tasks known that a variable names.
    fn learn(&mut self, path: &[String], value: &Value) {
        let texts: Vec<&str> = path.iter().map(String::as_str).collect();
        match texts[..] {
            ["routes", task] => drop(self.known.table_at(&["routes", task])),
            ["queues", queue, key] => tasks(key, value).iter().for_each(|task| self.add_task(queue, task)),
            ["queues", queue, "workers", task, ..] => self.add_task(queue, task),
            _ => {}
        }
    }

    /// Whether the file has names at a path, so that one that nobody knows is a typo. Where it has none, a variable is how
    /// one is given.
    fn has_names(&self, path: &[String]) -> bool {
        let texts: Vec<&str> = path.iter().map(String::as_str).collect();
        let there = || path.iter().try_fold(&self.file.0, |at, name| table(Some(at), name));
        matches!(texts[..], ["brokers" | "queues"] | ["queues", _, "workers"]) && there().is_some_and(|names| !names.is_empty())
    }

    /// The tasks of a queue that lists and the program name, or what is built in.
    fn tasks_of(&self, layer: &Layer, queue: &str) -> Vec<String> {
        let list = |layer: &Layer, key: &str| match table(table(Some(&layer.0), "queues"), queue)?.get(key)?.kind {
            ValueKind::Array(ref tasks) => Some(tasks.iter().map(ToString::to_string).collect::<Vec<_>>()),
            _ => None,
        };
        let lists = ["elsewhere", "workers"].into_iter().filter_map(|key| list(layer, key).or_else(|| list(self.file, key)));
        let tasks: Vec<_> = lists.flatten().chain(self.handlers.get(queue).into_iter().flatten().cloned()).collect();
        match (queue, tasks.is_empty()) {
            ("default", true) => vec!["test".to_owned()],
            _ => tasks,
        }
    }

    /// Workers that variables make without a program, beside tasks that they may be misspelt from.
    fn strangers(&self, layer: &Layer) -> Vec<Path> {
        let mut found = Vec::new();
        for (queue, keys) in tables(table(Some(&layer.0), "queues")) {
            let workers = ["queues", queue, "workers"].map(str::to_owned);
            let tasks = self.tasks_of(layer, queue);
            if tasks.is_empty() || self.has_names(&workers) {
                continue;
            }
            for (task, worker) in tables(table(Some(keys), "workers")) {
                let elsewhere = worker.get("elsewhere").is_some_and(|value| value::boolean(value) == Ok(true));
                if !tasks.contains(task) && !worker.contains_key("exec") && !elsewhere {
                    found.push(workers.iter().cloned().chain([task.clone()]).collect());
                }
            }
        }
        found
    }

    /// Finds what the parts of a name mean. The first `spelt` are from a variable's name, the others are exact.
    fn path_of(&self, parts: &[String], spelt: usize, is_table: bool) -> std::result::Result<Path, String> {
        let mut at = Some(&self.known.0);
        let mut path = Path::new();
        for (n, part) in parts.iter().enumerate() {
            if part.is_empty() {
                return Err("a part of the name is empty; write it like ANYQUEUE__QUEUES__IMAGES__SLOTS".into());
            }
            let meets = |key: &&String| if n < spelt { plain(key) == plain(part) } else { *key == part };
            let known = || at.into_iter().flat_map(|table| table.keys());
            let mut found = known().filter(meets).map(String::as_str).collect::<Vec<_>>();
            found.sort_unstable();
            let name = match found.as_slice() {
                [] if self.has_names(&path) => {
                    let known = suggest(&part.to_ascii_lowercase(), known().map(String::as_str));
                    return Err(format!("there is nothing called `{part}` in `{}`; {known}", dotted(&path)));
                }
                [] if n >= spelt || part.chars().any(|c| c.is_ascii_lowercase()) => part.clone(),
                [] => part.to_ascii_lowercase(),
                [one] => (*one).to_owned(),
                // The exact spelling decides between names that differ in case only.
                many if many.contains(&part.as_str()) => part.clone(),
                many => {
                    let text = format!("`{part}` may mean {}; spell it exactly, or set it in the file", many.join(" or "));
                    return Err(text);
                }
            };
            at = table(at, &name);
            path.push(name);
        }
        self.file.refuses(&path, is_table, "the file").map_or(Ok(path), Err)
    }
}

/// Whether what is at a path is a table, whatever a layer has there.
fn holds_keys(path: &[String]) -> bool {
    let texts: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(
        texts[..],
        ["defaults" | "runner" | "routes" | "brokers" | "queues"]
            | ["brokers" | "queues", _]
            | ["queues", _, "workers"]
            | ["queues", _, "workers", _]
            | [.., "backoff"]
    )
}

/// The tasks that a key of a queue names.
fn tasks(key: &str, value: &Value) -> Vec<String> {
    match (key, &value.kind) {
        ("elsewhere" | "workers", ValueKind::Array(tasks)) => tasks.iter().map(ToString::to_string).collect(),
        ("workers", ValueKind::Table(tasks)) => tasks.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// The tables in a table, by name.
fn tables(parent: Option<&Map<String, Value>>) -> impl Iterator<Item = (&String, &Map<String, Value>)> {
    parent.into_iter().flatten().filter_map(move |(name, _)| Some((name, table(parent, name)?)))
}

/// A name without its case, `.` and `-` as `_`.
fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace(['.', '-'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a variable's name means beside a file, and a program with the queue `Mail.Out` if `mail` says so.
    fn path(text: &str, mail: bool, rest: &str) -> std::result::Result<String, String> {
        let file = Layer::file("f", text, &mut Origins::default()).unwrap();
        let handlers = mail.then(|| ("Mail.Out".to_owned(), vec!["Do.It".to_owned()])).into_iter().collect();
        let parts: Path = rest.split("__").map(str::to_owned).collect();
        Below::new(&file, &handlers).path_of(&parts, parts.len(), false).map(|path| dotted(&path))
    }

    #[test]
    fn names_meet_those_of_the_file_in_any_case_and_say_when_two_are_meant() {
        let file = "[queues.\"mail.Out\"]\n[queues.a]\n[queues.A]\n[queues.new-one]\n";
        for (rest, wanted) in [
            ("QUEUES__MAIL_OUT__SLOTS", "queues.\"mail.Out\".slots"),
            ("QUEUES__NEW_ONE__SLOTS", "queues.new-one.slots"),
            ("RUNNER__SLOTS", "runner.slots"),
            ("QUEUES__a__SLOTS", "queues.a.slots"),
            ("BROKERS__queueName__URL", "brokers.queueName.url"),
        ] {
            assert_eq!(path(file, false, rest).unwrap(), wanted);
        }
        let typo = path(file, false, "QUEUES__NEW_OEN__SLOTS").unwrap_err();
        assert!(typo.contains("nothing called `NEW_OEN`") && typo.contains("did you mean `new-one`?"), "{typo}");
        let both = path("[queues.\"a.b\"]\n[queues.a-b]\n", false, "QUEUES__A_B__SLOTS").unwrap_err();
        assert_eq!(both, "`A_B` may mean a-b or a.b; spell it exactly, or set it in the file");
    }

    #[test]
    fn what_the_file_has_in_another_shape_is_not_covered_up() {
        let list = path("[queues.a]\nworkers = [\"Do.It\"]\n", false, "QUEUES__A__WORKERS__DO_IT__TTR").unwrap_err();
        assert!(list.starts_with("`queues.a.workers` is a list in the file"), "{list}");
        let number = path("queues = 5", false, "QUEUES__A__TTR").unwrap_err();
        assert_eq!(number, "`queues` is no table in the file; mend it there");
        let table = path("[runner]\nslots = { a = 1 }\n", false, "RUNNER__SLOTS").unwrap_err();
        assert_eq!(table, "`runner.slots` is a table in the file; set the keys in it");
    }

    #[test]
    fn names_of_the_program_are_met_and_forbid_no_other_queues() {
        let nothing = "";
        for (rest, wanted) in [
            ("QUEUES__MAIL_OUT__WORKERS__DO_IT__TTR", "queues.\"Mail.Out\".workers.\"Do.It\".ttr"),
            ("QUEUES__DEFAULT__TTR", "queues.default.ttr"),
            ("QUEUES__DEFAULT__WORKERS__NEW__TTR", "queues.default.workers.new.ttr"),
            ("ROUTES__DO_IT", "routes.\"Do.It\""),
            ("ROUTES__ANOTHER", "routes.another"),
        ] {
            assert_eq!(path(nothing, true, rest).unwrap(), wanted);
        }
        let file = "[queues.\"Mail.Out\"]\nelsewhere = [\"Far.Away\"]\n[queues.\"Mail.Out\".workers.near]\nttr = 1\n";
        for (task, name) in [("DO_IT", "\"Do.It\""), ("FAR_AWAY", "\"Far.Away\""), ("NEAR", "near")] {
            let found = path(file, true, &format!("QUEUES__MAIL_OUT__WORKERS__{task}__TTR")).unwrap();
            assert_eq!(found, format!("queues.\"Mail.Out\".workers.{name}.ttr"));
        }
        let typo = path(file, true, "QUEUES__MAIL_OUT__WORKERS__DO_TI__TTR").unwrap_err();
        assert!(typo.contains("did you mean `Do.It`?"), "{typo}");
    }
}
