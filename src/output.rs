//! What commands print: tables for people, JSON for programs.

use std::io::{self, Write};
use std::{iter, process};

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

/// A table of text cells. Columns whose number is in `right` are aligned to the right, as numbers are. Made for a million rows
/// too: the cells are kept in one text.
pub fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    const GAP: usize = 2;
    let mut text = String::new();
    let mut ends = Vec::new();
    let mut widths = vec![0; header.len()];
    let header: Vec<String> = header.iter().map(|&title| title.to_owned()).collect();
    for row in iter::once(header).chain(rows) {
        for (cell, width) in row.iter().zip(&mut widths) {
            *width = cell.chars().count().max(*width);
            text.push_str(cell);
            ends.push(text.len());
        }
    }
    let mut table = String::with_capacity(ends.len() / widths.len() * (widths.iter().sum::<usize>() + 8));
    let mut start = 0;
    for row in ends.chunks(widths.len()) {
        for (column, (&end, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = &text[start..end];
            let blank = width - cell.chars().count();
            let before = if right.contains(&column) { blank } else { 0 };
            table.extend(iter::repeat_n(' ', before));
            table.push_str(cell);
            table.extend(iter::repeat_n(' ', blank - before + GAP));
            start = end;
        }
        table.truncate(table.trim_end_matches(' ').len());
        table.push('\n');
    }
    table.pop();
    table
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
        let rows = [["größe", "1", "a b"], ["x", "1234567890", ""]];
        let text = table(&["N", "PACKETS", ""], &[1], rows.map(|row| row.map(str::to_owned).to_vec()));
        assert_eq!(text, "N         PACKETS\ngröße           1  a b\nx      1234567890");
        assert_eq!(table(&["NAME"], &[], []), "NAME");
    }
}
