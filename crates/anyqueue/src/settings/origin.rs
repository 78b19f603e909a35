//! Where a setting came from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyqueue_core::{has_login, quoted};

/// Where the value of a setting came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// Built in: nobody set it.
    #[default]
    Default,
    /// A line of a file, counted from 1.
    File {
        /// The file as it was named.
        file: Arc<str>,
        /// The line.
        line: usize,
    },
    /// An environment variable of this name.
    Environment(Arc<str>),
    /// The program itself or its command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Environment(name) => f.write_str(name),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// The names from the root to a setting.
pub(super) type Path = Vec<String>;

/// Writes a path as TOML would, `queues."mail.Out".slots`.
pub(super) fn dotted(path: &[impl AsRef<str>]) -> String {
    let plain = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let shown = |name: &str| match name {
        _ if plain(name) => name.to_owned(),
        // Somebody put a URL where a key goes.
        _ if name.contains("://") || (name.contains(':') && has_login(name)) => quoted(name),
        _ => format!("{name:?}"),
    };
    path.iter().map(|name| shown(name.as_ref())).collect::<Vec<_>>().join(".")
}

/// The origin of every setting that somebody set.
#[derive(Debug, Clone, Default)]
pub(super) struct Origins(BTreeMap<Path, Origin>);

impl Origins {
    pub(super) fn set(&mut self, path: Path, origin: Origin) {
        self.0.insert(path, origin);
    }

    /// The origin of a path; of a table that nobody wrote down as such, that of the first setting in it.
    pub(super) fn of(&self, path: &[String]) -> Origin {
        let below = self.0.range(path.to_vec()..).next().filter(|(found, _)| found.starts_with(path));
        below.map(|(_, origin)| origin.clone()).unwrap_or_default()
    }

    pub(super) fn is_set(&self, path: &[String]) -> bool {
        self.of(path) != Origin::Default
    }

    /// Whether some path fits a pattern in which `*` stands for any name.
    #[cfg(all(test, feature = "memory", feature = "sqlite"))]
    pub(super) fn any(&self, pattern: &str) -> bool {
        let pattern: Vec<&str> = pattern.split('.').collect();
        let fits = |path: &Path| path.len() == pattern.len() && path.iter().zip(&pattern).all(|(a, b)| *b == "*" || a == b);
        self.0.keys().any(fits)
    }
}
