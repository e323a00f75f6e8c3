//! What is shown: lines for people, or one JSON object with `--json`. Results go to standard output, all else to
//! standard error; where standard output carries data, the result goes to standard error too.

use crate::{exit::Failure, streams::Standard};
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};

/// How results are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Shows the result of a command.
    pub(crate) fn result(self, json: &Value, lines: &str) -> Result<(), Failure> {
        self.write(&mut Standard::Output.file()?, json, lines).map_err(Failure::stdout)
    }

    /// Shows the result of a command whose standard output is data: the object only when it was asked for.
    pub(crate) fn result_beside_data(self, json: &Value) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        let failed = |error| Failure::io(Standard::Error.name(), error);
        self.write(&mut Standard::Error.file()?, json, "").map_err(failed)
    }

    /// Shows why a command failed.
    pub(crate) fn failure(self, failure: &Failure) {
        if matches!(failure, Failure::Closed) && !self.json {
            return; // whoever closed it knows
        }
        let error = json!({ "kind": failure.kind(), "message": failure.to_string(), "exit": failure.code() });
        let lines = format!("keyleash: {failure}\n");
        // Nobody is left to be told.
        let _ = self.write(&mut io::stderr().lock(), &json!({ "error": error }), &lines);
    }

    /// Tells a person something that is no result.
    pub(crate) fn note(self, line: &str) {
        if !self.json {
            let _ = writeln!(io::stderr().lock(), "{}", harmless(line));
        }
    }

    fn write(self, out: &mut impl Write, json: &Value, lines: &str) -> io::Result<()> {
        // In one piece: there is no buffer.
        if self.json {
            out.write_all(format!("{json}\n").as_bytes())
        } else {
            out.write_all(harmless(lines).as_bytes())
        }
    }
}

/// The text with its control characters, but for line ends, spelled out: names come from tokens and files, and a terminal would
/// obey them.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    spelled_out(text, |char| char.is_control() && char != '\n')
}

fn spelled_out(text: &str, is_meant: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_meant) {
        return text.into();
    }
    let mut out = String::with_capacity(2 * text.len());
    for char in text.chars() {
        if is_meant(char) { out.extend(char.escape_default()) } else { out.push(char) }
    }
    out.into()
}

/// Lowercase hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Columns, each as wide as its widest cell, two spaces apart. A cell is one line, whatever is in it.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|cell| spelled_out(cell, char::is_control)).collect()).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut lines = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

/// A count with its noun: `1 block`, `2 blocks`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_end_without_spaces() {
        let rows = [vec!["a".into(), "bb".into(), "".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(columns(&rows), "a    bb\nccc  d\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn no_terminal_obeys_what_is_shown() {
        let label = "a\u{1b}[2Jb\u{9b}31m\r\u{7}\nstate  ok";
        assert_eq!(harmless(label), "a\\u{1b}[2Jb\\u{9b}31m\\r\\u{7}\nstate  ok");
        let rows = [vec!["label".into(), label.into()]];
        assert_eq!(columns(&rows), "label  a\\u{1b}[2Jb\\u{9b}31m\\r\\u{7}\\nstate  ok\n");
        assert_eq!(harmless("käse\n"), "käse\n");
    }

    #[test]
    fn hex_is_lowercase() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
    }
}
