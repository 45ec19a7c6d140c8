//! Printing answers. JSON is a contract: what is printed here is what the API gives.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

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
    /// On a terminal, unless NO_COLOR is set.
    pub(super) colours: bool,
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
            Format::Table | Format::Wide => self.table(items, columns),
        }
    }

    pub(super) fn table<T>(self, items: &[T], columns: &[Column<T>]) -> Outcome {
        let shown = || {
            let all = self.format == Format::Wide;
            columns.iter().filter(move |column| all || !column.wide)
        };
        let headers = self.headers.then(|| shown().map(|c| c.header.into()).collect());
        let rows = items.iter().map(|item| shown().map(|c| (c.cell)(item)).collect());
        self.rows(&headers.into_iter().chain(rows).collect::<Vec<_>>())
    }

    /// One object, as lines of `name  value`.
    pub(super) fn fields(self, fields: &[(&str, String)]) -> Outcome {
        let rows = fields.iter().map(|(name, value)| vec![format!("{name}:"), value.clone()]);
        self.rows(&rows.collect::<Vec<_>>())
    }

    fn rows(self, rows: &[Vec<String>]) -> Outcome {
        let plain = |_: &str| Style::new();
        self.text(&aligned(rows, if self.colours { style } else { plain }))
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

/// Of a cell that is a state, a mode or reasons of conditions: green is well, yellow isn't all, red
/// needs a person.
fn style(cell: &str) -> Style {
    let colour = match cell {
        "attached" | "healthy" | "RW" | "complete" => AnsiColor::Green,
        "faulted" | "unreadable" | "lost" | "problem" | "ERR" => AnsiColor::Red,
        "attaching" | "creating" | "degraded" | "deleting" | "detaching" | "missing" | "WO" => {
            AnsiColor::Yellow
        }
        _ if cell.split(',').any(|it| ["DataLost", "RecordLost", "Unreadable"].contains(&it)) => {
            AnsiColor::Red
        }
        _ if is_reasons(cell) => AnsiColor::Yellow,
        _ => return Style::new(),
    };
    colour.on_default()
}

/// `ReplicaEnded,SetAside`: as no name of an object is.
fn is_reasons(cell: &str) -> bool {
    let is_reason = |it: &str| {
        let capitals = it.chars().filter(char::is_ascii_uppercase).count();
        it.starts_with(|c: char| c.is_ascii_uppercase())
            && (2..it.len()).contains(&capitals)
            && it.chars().all(|c| c.is_ascii_alphabetic())
    };
    cell.split(',').all(is_reason)
}

/// Columns as wide as their widest cell, two spaces between, nothing after the last.
fn aligned(rows: &[Vec<String>], style: fn(&str) -> Style) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row: &Vec<String>| row.get(column));
        cells.map(|cell| cell.width()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut pending = 0;
        for (cell, width) in row.iter().zip(&widths) {
            if !cell.is_empty() {
                let style = style(cell);
                text += &format!("{:pending$}{style}{cell}{style:#}", "");
                pending = 0;
            }
            pending += width - cell.width() + 2;
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: [&str; 3]) -> Vec<String> {
        cells.map(String::from).to_vec()
    }

    fn plain(_: &str) -> Style {
        Style::new()
    }

    #[test]
    fn columns_are_aligned_without_spaces_at_the_end() {
        let rows = [row(["NAME", "SIZE", "X"]), row(["v", "1 GiB", ""]), row(["", "", "x"])];
        let text = aligned(&rows, plain);
        assert_eq!(text, "NAME  SIZE   X\nv     1 GiB\n             x\n");
        assert_eq!(aligned(&[], plain), "");
    }

    /// By the number of their characters, columns behind them stood askew.
    #[test]
    fn wide_glyphs_take_two_cells_of_a_terminal_and_combining_ones_none() {
        let rows = [row(["名前", "a", ""]), row(["e\u{301}", "b", ""])];
        assert_eq!(aligned(&rows, plain), "名前  a\ne\u{301}     b\n");
    }

    #[test]
    fn a_colour_takes_no_room() {
        let rows = [row(["v1", "healthy", "x"]), row(["v2", "ok", "ReplicaEnded,SetAside"])];
        let text = aligned(&rows, style);
        let without: String = text.replace("\u{1b}[32m", "").replace("\u{1b}[33m", "");
        assert_eq!(without.replace("\u{1b}[0m", ""), aligned(&rows, plain));
        assert!(text.contains("\u{1b}[32mhealthy\u{1b}[0m  x"), "{text:?}");
        assert!(text.contains("\u{1b}[33mReplicaEnded,SetAside\u{1b}[0m"), "{text:?}");
        assert_eq!(style("STATE"), Style::new());
        assert_eq!(style("a sentence. SIZE"), Style::new());
        assert_ne!(style("SetAside,DataLost"), style("SetAside"));
    }
}
