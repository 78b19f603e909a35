//! One statement for many rows. A short statement spends more time on opening each index than on its row.

use std::sync::OnceLock;

use rusqlite::{CachedStatement, Connection};

/// Rows per statement, the longest first.
const LENGTHS: [usize; 6] = [32, 16, 8, 4, 2, 1];

/// SQL in which the part in `[…]` is repeated once per row.
pub(crate) struct Many {
    template: &'static str,
    texts: [OnceLock<String>; LENGTHS.len()],
}

impl Many {
    pub(crate) const fn new(template: &'static str) -> Self {
        Self { template, texts: [const { OnceLock::new() }; LENGTHS.len()] }
    }

    /// The SQL for so many rows.
    pub(crate) fn text(template: &str, rows: usize) -> String {
        let (head, rest) = template.split_once('[').expect("a part to repeat");
        let (row, tail) = rest.split_once(']').expect("its end");
        [head, &vec![row; rows].join(", "), tail].concat()
    }

    /// Calls with statements and the rows that each of them is to get, in order, until all are done or one fails.
    pub(crate) fn each<R, E: From<rusqlite::Error>>(
        &self,
        db: &Connection,
        mut rows: &[R],
        mut run: impl FnMut(&mut CachedStatement<'_>, &[R]) -> Result<(), E>,
    ) -> Result<(), E> {
        for (length, text) in LENGTHS.iter().zip(&self.texts) {
            if rows.len() < *length {
                continue;
            }
            let mut statement = db.prepare_cached(text.get_or_init(|| Self::text(self.template, *length)))?;
            while rows.len() >= *length {
                let (now, later) = rows.split_at(*length);
                run(&mut statement, now)?;
                rows = later;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_met_once_and_in_order() {
        let db = Connection::open_in_memory().unwrap();
        let many = Many::new("SELECT max([?], 0)");
        for count in [0, 1, 7, 32, 33, 100] {
            let rows: Vec<i64> = (1..=count).collect();
            let mut met = Vec::new();
            let run = |statement: &mut CachedStatement<'_>, rows: &[i64]| {
                rows.iter().enumerate().try_for_each(|(n, row)| statement.raw_bind_parameter(n + 1, row))?;
                met.extend_from_slice(rows);
                let mut answer = statement.raw_query();
                let highest: i64 = answer.next()?.unwrap().get(0)?;
                assert_eq!(Some(&highest), rows.last(), "each row was bound");
                Ok::<_, rusqlite::Error>(())
            };
            many.each(&db, &rows, run).unwrap();
            assert_eq!(met, rows);
        }
    }
}
