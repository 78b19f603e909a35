//! Standard output: lines, aligned tables, JSON. A reader that goes away ends the output and nothing else.

use std::fmt::Display;
use std::io::{self, BufWriter, Stdout, Write};

use serde::Serialize;

/// Standard output.
#[derive(Debug)]
pub(crate) struct Out {
    to: BufWriter<Stdout>,
    json: bool,
    quiet: bool,
    failed: Option<io::Error>,
}

impl Out {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { to: BufWriter::new(io::stdout()), json, quiet, failed: None }
    }

    /// Whether JSON is wanted.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.failed.is_some()
    }

    fn keep(&mut self, result: io::Result<()>) {
        if let Err(e) = result {
            self.failed.get_or_insert(e);
        }
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, text: impl Display) {
        if self.failed.is_none() {
            let result = writeln!(self.to, "{text}");
            self.keep(result);
        }
    }

    /// Writes a line that only people read, and not those who asked for quiet.
    pub(crate) fn remark(&mut self, text: impl Display) {
        if !self.json && !self.quiet {
            self.line(text);
        }
    }

    /// Writes one JSON object on one line.
    pub(crate) fn object(&mut self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(text),
            Err(e) => self.keep(Err(e.into())),
        }
    }

    /// Writes rows below a header, columns aligned.
    pub(crate) fn table(&mut self, header: &[&str], rows: &[Vec<String>]) {
        let width = |n: usize| {
            let cells = rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count());
            cells.chain([header.get(n).map_or(0, |cell| cell.chars().count())]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        let row_text = |cells: &mut dyn Iterator<Item = &str>| {
            let padded = cells.zip(&widths).map(|(cell, width)| format!("{:width$}", plain(cell))).collect::<Vec<_>>();
            padded.join("  ").trim_end().to_owned()
        };
        self.line(row_text(&mut header.iter().copied()));
        for row in rows {
            self.line(row_text(&mut row.iter().map(String::as_str)));
        }
    }

    /// Writes bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let result = self.to.write_all(bytes);
        self.keep(result);
    }

    /// Passes on what is buffered.
    pub(crate) fn flush(&mut self) {
        let result = self.to.flush();
        self.keep(result);
    }

    /// Passes on the rest. A reader that went away is no error.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush();
        match self.failed {
            Some(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
            _ => Ok(()),
        }
    }
}

/// A number of tasks in words.
pub(crate) fn tasks(count: u64) -> String {
    if count == 1 { "1 task".into() } else { format!("{count} tasks") }
}

/// A size in bytes as people read it.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} bytes"),
    }
}

/// A text without what would steer a terminal: names, reasons and data come from anywhere.
pub(crate) fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => '\u{FFFD}',
        c => c,
    };
    text.chars().map(shown).collect()
}

/// Cuts a text to so many characters.
pub(crate) fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Cuts the middle out of a text of more characters: its end says as much as its beginning.
pub(crate) fn ends(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let first: String = text.chars().take(most / 2).collect();
    let last: String = text.chars().skip(length - most / 2).collect();
    format!("{first} … {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_sizes_are_round() {
        assert_eq!((short("añb", 2), short("ab", 2)), ("añ…".into(), "ab".into()));
        assert_eq!((ends("añbcdé", 4), ends("añ", 2)), ("añ … dé".into(), "añ".into()));
        assert_eq!((size(64 << 20), size(1500), size(0)), ("64 MiB".into(), "1500 bytes".into(), "0 bytes".into()));
    }

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        assert_eq!(plain("a\x1b[31m\u{9b}b\nc"), "a\u{FFFD}[31m\u{FFFD}b c");
    }
}
