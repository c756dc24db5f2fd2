//! What commands print: tables for people, JSON for programs.

use std::io::{self, Write};
use std::process;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// Prints a line, for commands that have something to undo when nobody reads on.
///
/// # Errors
///
/// What the system says; `BrokenPipe` where the reader has gone away.
pub fn try_line(text: impl AsRef<str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush())
}

/// Prints a line. A reader that has gone away, as `head` does, ends the command as done.
pub fn line(text: impl AsRef<str>) {
    if let Err(error) = try_line(text) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            process::exit(0);
        }
        eprintln!("lb: cannot write to standard output: {error}");
        process::exit(1);
    }
}

/// Prints a value as one JSON document on one line.
pub fn json(value: &impl Serialize) {
    line(serde_json::to_string(value).expect("what is printed has text keys alone"));
}

/// A table of text cells. Columns whose number is in `right` are aligned to the right, as numbers are.
pub fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Seconds as people say them: `0s`, `59s`, `1h 2m`.
pub fn seconds(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_numbers_and_end_lines_at_their_last_letter() {
        let text = table(&["NAME", "PACKETS"], &[1], [vec!["eth2".into(), "7".into()]]);
        assert_eq!(text, "NAME  PACKETS\neth2        7");
    }
}
