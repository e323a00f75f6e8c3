//! Text in columns, for people. The command line shows its own with it too: it takes this file in as a module of its own.

use std::{borrow::Cow, fmt::Write as _};

/// Control characters, and those that have a terminal or an editor show text in another order, or break it into lines: what stands
/// there is then not what is read.
pub(crate) fn misleads(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The text with the characters spelled out that are meant.
pub(crate) fn spelled_out(text: &str, is_meant: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_meant) {
        return text.into();
    }
    let mut out = String::with_capacity(2 * text.len());
    for char in text.chars() {
        if is_meant(char) { out.extend(char.escape_default()) } else { out.push(char) }
    }
    out.into()
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

/// A report, wherever it goes, is not wider.
pub(crate) const REPORT_COLUMNS: usize = 100;
/// The last column is not made narrower, but goes below the others.
const LAST_MIN: usize = 24;

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
}
