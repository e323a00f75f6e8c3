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
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, quiet: false }
    }

    pub(crate) fn quiet(self, quiet: bool) -> Self {
        Self { quiet, ..self }
    }

    /// Whether a person who waits sees how far it is.
    pub(crate) fn shows_progress(self) -> bool {
        !self.json && !self.quiet
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
    spelled_out(text, |char| misleads(char) && char != '\n')
}

/// Control characters, and those that have a terminal or an editor show text in another order, or break it into lines: what stands
/// there is then not what is read.
fn misleads(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
        rows.iter().map(|row| row.iter().map(|cell| spelled_out(cell, misleads)).collect()).collect();
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

/// A number of bytes for people, in three digits or so: `0 bytes`, `314 MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return count(bytes, "byte");
    }
    let mut scaled = bytes as f64 / 1e3;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while scaled >= 999.5 {
        let Some(next) = units.next() else { break };
        (scaled, unit) = (scaled / 1e3, Some(next));
    }
    let digits = if scaled < 9.95 { 1 } else { 0 };
    format!("{scaled:.digits$} {}", unit.unwrap_or(&""))
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
        assert_eq!(harmless("a\u{202e}b\u{2066}c\u{2028}"), "a\\u{202e}b\\u{2066}c\\u{2028}");
    }

    #[test]
    fn sizes_have_a_unit_and_are_never_a_thousand_of_it() {
        let cases = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (9_960, "10 kB"),
            (999_400, "999 kB"),
        ];
        cases.into_iter().for_each(|(bytes, words)| assert_eq!(size(bytes), words));
        assert_eq!((size(999_500).as_str(), size(314_159_265).as_str()), ("1.0 MB", "314 MB"));
        assert_eq!(size(u64::MAX), "18 EB");
    }

    #[test]
    fn hex_is_lowercase() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
    }
}
