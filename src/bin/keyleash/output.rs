//! What is shown: lines for people, or one JSON object with `--json`. Results go to standard output, all else to
//! standard error; where standard output carries data, the result goes to standard error too.

pub(crate) use crate::text::{REPORT_COLUMNS, columns, count, misleads, within};
use crate::{exit::Failure, streams::Standard, text::spelled_out};
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

    /// Tells what somebody is to see to, though the command did what it was to do.
    pub(crate) fn warn(self, line: &str) {
        let line = match self.json {
            true => harmless_json(&serde_json::json!({ "warning": line }).to_string()).to_string(),
            false => harmless(&format!("keyleash: warning: {line}")).to_string(),
        };
        let _ = writeln!(io::stderr().lock(), "{line}");
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

/// Lowercase hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// How wide the terminal is that standard output is shown in; `None` where it is none.
pub(crate) fn terminal_columns() -> Option<usize> {
    let output = Standard::Output.file().ok().filter(File::is_terminal)?;
    let size = rustix::termios::tcgetwinsize(output).ok()?;
    Some(usize::from(size.ws_col).max(COLUMNS_MIN))
}

/// What a terminal has at least: narrower ones wrap by themselves.
const COLUMNS_MIN: usize = 80;
/// As [`columns`], and in a terminal not wider than that. For a file and a pipe each row is a line.
pub(crate) fn fitted(rows: &[Vec<String>]) -> String {
    terminal_columns().map_or_else(|| columns(rows), |width| within(rows, width))
}

/// As [`fitted`], under a heading.
pub(crate) fn table(heading: Vec<String>, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    fitted(&[heading].into_iter().chain(rows).collect::<Vec<_>>())
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
