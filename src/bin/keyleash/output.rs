//! What is shown: lines for people, or one JSON object with `--json`. Results go to standard output, all else to
//! standard error; where standard output carries data, the result goes to standard error too.

use crate::{exit::Failure, streams::Standard};
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    fmt::Write as _,
    fs::File,
    io::{self, IsTerminal, Write},
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
        self.failure_to(&mut io::stderr().lock(), failure);
    }

    /// As [`Output::failure`], where that is not standard error.
    pub(crate) fn failure_to(self, stream: &mut impl Write, failure: &Failure) {
        if matches!(failure, Failure::Closed) && !self.json {
            return; // whoever closed it knows
        }
        let error = json!({ "kind": failure.kind(), "message": failure.to_string(), "exit": failure.code() });
        let lines = format!("keyleash: {failure}\n");
        // Nobody is left to be told.
        let _ = self.write(stream, &json!({ "error": error }), &lines);
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
            out.write_all(format!("{}\n", harmless_json(&json.to_string())).as_bytes())
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
pub(crate) fn misleads(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// JSON that says the same, in which such characters are escaped too. They stand in strings alone.
fn harmless_json(json: &str) -> Cow<'_, str> {
    if !json.contains(misleads) {
        return json.into();
    }
    let mut out = String::with_capacity(2 * json.len());
    for char in json.chars() {
        match misleads(char) {
            true => char.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04x}");
            }),
            false => out.push(char),
        }
    }
    out.into()
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

/// How wide the terminal is that standard output is shown in; `None` where it is none.
pub(crate) fn terminal_columns() -> Option<usize> {
    let output = Standard::Output.file().ok().filter(File::is_terminal)?;
    let size = rustix::termios::tcgetwinsize(output).ok()?;
    Some(usize::from(size.ws_col).max(COLUMNS_MIN))
}

/// What a terminal has at least: narrower ones wrap by themselves.
const COLUMNS_MIN: usize = 80;
/// A report, wherever it goes, is not wider.
pub(crate) const REPORT_COLUMNS: usize = 100;
/// The last column is not made narrower, but goes below the others.
const LAST_MIN: usize = 24;

/// As [`columns`], and in a terminal not wider than that. For a file and a pipe each row is a line.
pub(crate) fn fitted(rows: &[Vec<String>]) -> String {
    terminal_columns().map_or_else(|| columns(rows), |width| within(rows, width))
}

/// As [`fitted`], under a heading.
pub(crate) fn table(heading: Vec<String>, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    fitted(&[heading].into_iter().chain(rows).collect::<Vec<_>>())
}

/// As [`columns`], and not wider than `width` where the last column can be broken into lines.
pub(crate) fn within(rows: &[Vec<String>], width: usize) -> String {
    let last = rows.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1);
    let front = |row: &Vec<String>| row.iter().take(last).cloned().collect::<Vec<_>>();
    let fronts: Vec<_> = columns(&rows.iter().map(front).collect::<Vec<_>>()).lines().map(str::to_owned).collect();
    let indent = fronts.iter().map(|front| front.chars().count()).max().unwrap_or(0) + if last == 0 { 0 } else { 2 };
    let mut lines = String::new();
    for (front, row) in fronts.iter().zip(rows) {
        let cell = row.get(last).map(|cell| spelled_out(cell, misleads)).unwrap_or_default();
        let beside = width.saturating_sub(indent);
        let (indent, is_beside) = match beside >= LAST_MIN || cell.chars().count() <= beside {
            true => (indent, true),
            false => (4, false),
        };
        let mut words = wrapped(&cell, width.saturating_sub(indent)).into_iter();
        match words.next().filter(|_| is_beside) {
            Some(first) => lines.push_str(format!("{front:<indent$}{first}").trim_end()),
            None => {
                lines.push_str(front);
                words = wrapped(&cell, width.saturating_sub(indent)).into_iter();
            }
        }
        lines.push('\n');
        words.filter(|line| !line.is_empty()).for_each(|line| {
            let _ = writeln!(lines, "{:indent$}{line}", "");
        });
    }
    lines
}

/// Broken between words into lines of at most so many characters, where words are not longer; one line at least.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let len = lines.last().map_or(0, |line| line.chars().count());
        if len > 0 && len + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
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
    fn json_says_the_same_with_everything_that_misleads_escaped() {
        let value = json!({ "a\u{202e}b": "c\u{9b}d\u{7f}\n", "plain": "käse" });
        let text = value.to_string();
        let harmless = harmless_json(&text);
        assert!(
            !harmless.contains(misleads) && harmless.contains("\\u202e") && harmless.contains("käse"),
            "{harmless}"
        );
        assert_eq!(serde_json::from_str::<Value>(&harmless).unwrap(), value);
    }

    #[test]
    fn a_table_is_as_wide_as_the_terminal_and_its_columns_stay_aligned() {
        let row = |name: &str, state: &str| vec![name.to_owned(), "x".repeat(20), state.to_owned()];
        let rows =
            [row("a", "short"), row("bb", "a state of many words that does not fit into one line of the terminal")];
        let table = within(&rows, 60);
        let x = "x".repeat(20);
        let expected = format!(
            "a   {x}  short\nbb  {x}  a state of many words that does\n{0:26}not fit into one line of the\n{0:26}terminal\n",
            ""
        );
        assert_eq!(table, expected);
        assert_eq!(within(&rows, 200), columns(&rows));
        assert_eq!(
            within(&rows, 40).lines().last().unwrap(),
            "    fit into one line of the terminal",
            "no room beside the others"
        );
        assert!(within(&rows, 40).lines().all(|line| line.chars().count() <= 40));
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
