//! Which token: by label, serial or slot id, among those that the module lists. Pure.

/// How the token is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selector {
    /// By its label, which the operator gave it, as other tools show it: what it is padded with does not count. Must be unique in
    /// the module.
    Label(String),
    /// By its serial number, compared as labels are.
    Serial(String),
    /// By its slot id: for modules whose token information cannot be read. SoftHSM's ids change.
    Slot(u64),
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(label) => write!(f, "label {label:?}"),
            Self::Serial(serial) => write!(f, "serial {serial:?}"),
            Self::Slot(id) => write!(f, "slot id {id}"),
        }
    }
}

/// A slot with a token in it, as the module lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) slot: u64,
    /// `None` where the module would not say.
    pub(super) token: Option<ListedToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedToken {
    pub(super) label: String,
    pub(super) serial: String,
    pub(super) initialized: bool,
}

/// Why no token could be chosen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoChoice {
    /// None matches: it may come back. What is listed instead, in words.
    None(String),
    /// Several match: a person must decide. Which ones, in words.
    Several(String),
}

/// The part of a label or serial number that shows. The standard pads with blanks, some initialisers with NUL and whatever stood
/// behind it; other tools show neither.
pub(super) fn plain(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default().trim()
}

/// Whether a person who typed `wanted` means `name`: as it is, or as it is listed, with what does not show written out.
fn means(wanted: &str, name: &str) -> bool {
    let (wanted, name) = (plain(wanted), plain(name));
    let listed = format!("{name:?}"); // escapes less than `escape_debug`: quotes of one kind alone
    wanted == name || listed.get(1..listed.len() - 1) == Some(wanted) || name.escape_debug().eq(wanted.chars())
}

/// The slot that `selector` means.
pub(super) fn select(selector: &Selector, listed: &[Listed]) -> Result<u64, NoChoice> {
    let matches = |entry: &&Listed| match (selector, &entry.token) {
        (Selector::Slot(id), _) => entry.slot == *id,
        (_, None) => false,
        (Selector::Label(label), Some(token)) => token.initialized && means(label, &token.label),
        (Selector::Serial(serial), Some(token)) => means(serial, &token.serial),
    };
    let mut found = listed.iter().filter(matches);
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only.slot),
        (None, _) => Err(NoChoice::None(describe(listed.iter()))),
        (Some(_), Some(_)) => Err(NoChoice::Several(describe(listed.iter().filter(matches)))),
    }
}

fn describe<'a>(listed: impl Iterator<Item = &'a Listed>) -> String {
    /// A partitioned HSM may list hundreds.
    const SHOWN_MAX: usize = 16;
    let mut words = Vec::new();
    let mut more = 0_usize;
    for entry in listed {
        if words.len() == SHOWN_MAX {
            more += 1;
            continue;
        }
        words.push(match &entry.token {
            Some(token) if token.initialized => {
                format!("label {:?} (serial {:?}, slot {})", plain(&token.label), plain(&token.serial), entry.slot)
            }
            Some(_) => format!("an uninitialised token (slot {})", entry.slot),
            None => format!("a token that does not describe itself (slot {})", entry.slot),
        });
    }
    match (words.is_empty(), more) {
        (true, _) => "no token at all".into(),
        (false, 0) => words.join(", "),
        (false, more) => format!("{} and {more} more", words.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(slot: u64, label: &str, serial: &str) -> Listed {
        Listed {
            slot,
            token: Some(ListedToken { label: label.into(), serial: serial.into(), initialized: !label.is_empty() }),
        }
    }

    #[test]
    fn one_match_is_chosen_by_label_serial_or_slot() {
        let tokens =
            [listed(5, "blue", "01"), listed(7, "red", "02"), listed(9, "", ""), Listed { slot: 3, token: None }];
        assert_eq!(select(&Selector::Label("red".into()), &tokens), Ok(7));
        assert_eq!(select(&Selector::Serial("01".into()), &tokens), Ok(5));
        assert_eq!(select(&Selector::Slot(3), &tokens), Ok(3));
    }

    #[test]
    fn what_other_tools_show_and_what_is_listed_can_be_typed() {
        let tokens = [
            listed(1, "blanks behind   ", "0a1b    "),
            listed(2, "nuls\0\0\0\0", "77\0\0"),
            listed(3, "bell\u{7}", "  right"),
            listed(4, "both \0 and more", "9"),
            listed(5, "Schlu\u{308}ssel", "10"),
            listed(6, "it's\u{7}bell", "11"),
        ];
        let labels = [
            (1, "blanks behind"),
            (1, "blanks behind "),
            (2, "nuls"),
            (4, "both"),
            (3, "bell\\u{7}"),
            (5, "Schlu\\u{308}ssel"),
            (6, "it's\\u{7}bell"),
        ];
        for (slot, label) in labels {
            assert_eq!(select(&Selector::Label(label.into()), &tokens), Ok(slot), "{label:?}");
        }
        for (slot, serial) in [(1, "0a1b"), (2, "77"), (3, "right"), (3, "  right")] {
            assert_eq!(select(&Selector::Serial(serial.into()), &tokens), Ok(slot), "{serial:?}");
        }
        // As they are listed: in quotes, escaped.
        let Err(NoChoice::None(words)) = select(&Selector::Label("none".into()), &tokens) else { panic!() };
        let shown: Vec<&str> = words.split("label \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        for (slot, label) in (1..).zip(shown) {
            assert_eq!(select(&Selector::Label(label.into()), &tokens), Ok(slot), "{label}");
        }
        assert!(select(&Selector::Label("nul".into()), &tokens).is_err());
    }

    #[test]
    fn no_match_names_what_there_is() {
        let tokens = [listed(5, "blue", "01"), listed(9, "", "")];
        let Err(NoChoice::None(words)) = select(&Selector::Label("red".into()), &tokens) else { panic!() };
        assert!(words.contains("\"blue\"") && words.contains("slot 5") && words.contains("uninitialised"), "{words}");
        assert_eq!(select(&Selector::Label(String::new()), &tokens), Err(NoChoice::None(words)), "a blank is no match");
        assert_eq!(select(&Selector::Slot(1), &[]), Err(NoChoice::None("no token at all".into())));
    }

    #[test]
    fn two_matches_name_both_and_no_other() {
        let tokens = [listed(5, "twin", "01"), listed(7, "twin", "02"), listed(8, "other", "03")];
        let Err(NoChoice::Several(words)) = select(&Selector::Label("twin".into()), &tokens) else { panic!() };
        assert!(words.contains("01") && words.contains("02") && !words.contains("other"), "{words}");
    }
}
