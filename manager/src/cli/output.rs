//! Printing answers. JSON is a contract: what is printed here is what the API gives.

use std::io::{self, Write};

use serde::Serialize;

use super::{Done, Outcome};
use crate::api::ApiError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Table,
    Wide,
    Json,
    Name,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) format: Format,
    pub(super) headers: bool,
}

/// A column: its header, whether only `wide` shows it, and the cell of an item.
pub(super) struct Column<T> {
    header: &'static str,
    wide: bool,
    cell: fn(&T) -> String,
}

pub(super) const fn column<T>(header: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { header, wide: false, cell }
}

pub(super) const fn wide<T>(header: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { header, wide: true, cell }
}

impl Output {
    pub(super) fn list<T: Serialize>(
        self,
        items: &[T],
        name: fn(&T) -> String,
        columns: &[Column<T>],
    ) -> Outcome {
        match self.format {
            Format::Json => self.json(&items),
            Format::Name => {
                let names: String = items.iter().map(|item| name(item) + "\n").collect();
                self.text(&names)
            }
            Format::Table | Format::Wide => {
                let shown = || {
                    let all = self.format == Format::Wide;
                    columns.iter().filter(move |column| all || !column.wide)
                };
                let headers = self.headers.then(|| shown().map(|c| c.header.into()).collect());
                let rows = items.iter().map(|item| shown().map(|c| (c.cell)(item)).collect());
                self.text(&table(&headers.into_iter().chain(rows).collect::<Vec<_>>()))
            }
        }
    }

    /// One object, as lines of `name  value`.
    pub(super) fn fields(self, fields: &[(&str, String)]) -> Outcome {
        let rows = fields.iter().map(|(name, value)| vec![format!("{name}:"), value.clone()]);
        self.text(&table(&rows.collect::<Vec<_>>()))
    }

    pub(super) fn json(self, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value);
        self.line(&text.expect("answers have string keys and no failing serializer"))
    }

    pub(super) fn line(self, text: &str) -> Outcome {
        self.text(&format!("{text}\n"))
    }

    pub(super) fn text(self, text: &str) -> Outcome {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(Done::Well),
            // `| head` has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Done::Well),
            Err(error) => Err(ApiError::failed(format!("write the answer: {error}"))),
        }
    }
}

/// Something beside the answer that a person should know.
pub(super) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Columns as wide as their widest cell, two spaces between, nothing after the last.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row: &Vec<String>| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width): (&String, &usize)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_spaces_at_the_end() {
        let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
        let text = table(&[row(["NAME", "SIZE", "X"]), row(["v", "1 GiB", ""])]);
        assert_eq!(text, "NAME  SIZE   X\nv     1 GiB\n");
        assert_eq!(table(&[]), "");
    }
}
