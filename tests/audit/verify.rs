//! What is changed, removed, added, reordered or cut is noticed, and told where.

use crate::golden::{KASE, NODE, Trail, expected, kinds, vkey};
use ed25519_dalek::{Signer, SigningKey};
use keyleash::{
    Error,
    audit::{Checkpoint, Expected, FaultKind, Group, Keys, Note, Vkey, line::Time, tree, verify},
};
use std::{fs, path::PathBuf};

const STORE: &str = "keyleash/0123456789abcdef";

/// A key that is not ours, of the same name.
fn other_key() -> (SigningKey, Vkey) {
    let key = SigningKey::from_bytes(&[8; 32]);
    let vkey = Vkey::ed25519(STORE, key.verifying_key().as_bytes()).unwrap();
    (key, vkey)
}

fn signed(key: &SigningKey, vkey: &Vkey, text: &str) -> String {
    let signature = vkey.signature(&key.sign(text.as_bytes()).to_bytes()).unwrap();
    format!("{}\n", Note::new(text).unwrap().signed(signature))
}

fn checkpoint(note: &str) -> Checkpoint {
    Checkpoint::of(&Note::parse(note.strip_suffix('\n').unwrap().as_bytes()).unwrap()).unwrap()
}

#[test]
fn golden_trails_verify_for_ever() {
    let report = Trail::golden("trail").verify();
    assert_eq!(report.faults, []);
    assert_eq!((report.lines, report.files, report.checkpoints, report.uncovered()), (13, 3, 4, 0));
    assert_eq!(report.origin.as_deref(), Some("keyleash/0123456789abcdef/web-1"));
    let report = Trail::golden("trail-retained").verify();
    assert_eq!(report.faults, []);
    assert_eq!((report.lines, report.retained, report.end, report.uncovered()), (8, 5, 13, 0));
}

#[test]
fn lines_that_somebody_puts_before_what_retention_left_are_noticed() {
    let trail = Trail::golden("trail-retained");
    let path = trail.files().into_iter().find(|path| path.to_string_lossy().ends_with("PT1H.json")).unwrap();
    let lines = fs::read_to_string(&path).unwrap();
    let forged = lines.lines().next().unwrap().replacen("\"seq\":5", "\"seq\":3", 1);
    assert_ne!(Some(&*forged), lines.lines().next());
    fs::write(&path, format!("{forged}\n{lines}")).unwrap();
    assert!(kinds(&trail.verify()).contains(&FaultKind::Added));
}

#[test]
fn lines_that_retention_was_about_to_remove_are_those_that_were_written_or_are_told() {
    let (whole, trail) = (Trail::plain("trail"), Trail::golden("trail-retained"));
    let old = whole.hours().remove(0);
    let place = trail.node.join(old.strip_prefix(&whole.node).unwrap());
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let text = fs::read_to_string(old).unwrap();
    fs::write(&place, &text).unwrap();
    let report = trail.verify();
    assert_eq!((report.faults.len(), report.leftover, report.lines), (0, 5, 13), "{:?}", report.faults);
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    for at in 0..lines.len() {
        let mut other = lines.clone();
        let changed = other[at].replace("2026", "2025");
        other[at] = &changed;
        fs::write(&place, other.concat()).unwrap();
        assert!(kinds(&trail.verify()).contains(&FaultKind::Added), "line {at} changed");
        let mut other = lines.clone();
        other.remove(at);
        fs::write(&place, other.concat()).unwrap();
        assert!(kinds(&trail.verify()).contains(&FaultKind::Added), "line {at} removed");
    }
}

#[test]
fn every_byte_that_is_changed_is_noticed() {
    let is_every_bit = std::env::var_os("EVERY_BIT").is_some();
    for name in ["trail", "trail-retained"] {
        let trail = Trail::golden(name);
        let whole = trail.verify();
        for path in trail.files() {
            let bytes = fs::read(&path).unwrap();
            let is_compressed = path.extension().is_some_and(|is| is == "gz");
            for at in 0..bytes.len() {
                for bit in if is_every_bit { 0..8 } else { at % 7..at % 7 + 1 } {
                    let mut other = bytes.clone();
                    other[at] ^= 1 << bit;
                    fs::write(&path, other).unwrap();
                    let report = trail.verify();
                    // Some bits of gzip say nothing of what is in it.
                    let is_noticed = !report.is_whole() || is_compressed && report == whole;
                    assert!(is_noticed, "bit {bit} of byte {at} of {} was changed unnoticed", path.display());
                }
            }
            fs::write(&path, bytes).unwrap();
        }
        assert_eq!(trail.verify(), whole);
    }
}

#[test]
fn every_line_that_is_removed_doubled_or_swapped_is_told_as_that() {
    let trail = Trail::plain("trail");
    let lines = trail.lines();
    assert_eq!(lines.len(), 13);
    let told = |lines: &[(PathBuf, String)]| {
        trail.put_lines(lines);
        kinds(&trail.verify())
    };
    for at in 0..lines.len() {
        let mut fewer = lines.clone();
        fewer.remove(at);
        let kind = if at + 1 == lines.len() { FaultKind::Cut } else { FaultKind::Removed };
        let kinds = told(&fewer);
        assert!(kinds.contains(&kind), "line {at} removed: {kinds:?}");

        let mut more = lines.clone();
        more.insert(at, lines[at].clone());
        let kinds = told(&more);
        assert_eq!(kinds, [FaultKind::Added], "line {at} doubled");

        for other in at + 1..lines.len() {
            let mut swapped = lines.clone();
            (swapped[at].1, swapped[other].1) = (lines[other].1.clone(), lines[at].1.clone());
            let kinds = told(&swapped);
            assert!(kinds.contains(&FaultKind::Reordered), "lines {at} and {other} swapped: {kinds:?}");
        }
    }
    assert_eq!(told(&lines), []);
}

#[test]
fn a_change_is_found_where_it_is_and_what_follows_is_proved_all_the_same() {
    let trail = Trail::plain("trail");
    let mut lines = trail.lines();
    lines[3].1 = lines[3].1.replace("\"web\"", "\"wep\"");
    trail.put_lines(&lines);
    let report = trail.verify();
    let [fault] = &report.faults[..] else { panic!("{:?}", report.faults) };
    assert_eq!((fault.kind, fault.place.line), (FaultKind::Changed, 3), "{fault}: behind the checkpoint of two lines");
    assert!(fault.what.contains("lines 2 to 4 "), "{fault}");
    assert_eq!(report.newest.map(|newest| newest.size), Some(13), "from the next tally on all is proved again");
}

#[test]
fn a_line_whose_number_was_changed_is_told_as_changed() {
    let trail = Trail::plain("trail");
    let mut lines = trail.lines();
    lines[6].1 = lines[6].1.replace("\"seq\":6", "\"seq\":9");
    trail.put_lines(&lines);
    assert_eq!(kinds(&trail.verify()), [FaultKind::Changed]);
}

#[test]
fn what_is_no_line_is_told_as_added_or_changed() {
    let trail = Trail::plain("trail");
    let lines = trail.lines();
    for rubbish in ["\n", "{}\n", "no JSON\n", &format!("{}\n", "x".repeat(100_000))] {
        let mut more = lines.clone();
        more.insert(4, (lines[4].0.clone(), rubbish.to_owned()));
        trail.put_lines(&more);
        assert_eq!(kinds(&trail.verify()), [FaultKind::Added]);
        let mut other = lines.clone();
        other[4].1 = rubbish.to_owned();
        trail.put_lines(&other);
        assert_eq!(kinds(&trail.verify()), [FaultKind::Changed]);
    }
}

#[test]
fn spliced_and_renamed_files_are_noticed() {
    let trail = Trail::plain("trail");
    let hours = trail.hours();
    let texts: Vec<_> = hours.iter().map(|path| fs::read(path).unwrap()).collect();
    for (into, from) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2)] {
        // The one in the place of the other, and behind it.
        for text in [texts[from].clone(), [texts[into].clone(), texts[from].clone()].concat()] {
            fs::write(&hours[into], text).unwrap();
            assert!(!trail.verify().is_whole(), "{from} spliced into {into}");
        }
        fs::write(&hours[into], &texts[into]).unwrap();
    }
    // A file that says that it is of another hour.
    let day = trail.node.join("y=2026/m=11/d=26");
    fs::rename(day.join("h=02"), day.join("h=03")).unwrap();
    assert_eq!(kinds(&trail.verify()), [FaultKind::Reordered]);
    fs::rename(day.join("h=03"), day.join("h=02")).unwrap();
    // The trail of another node.
    let elsewhere = trail.node.with_file_name("web-2");
    fs::rename(&trail.node, &elsewhere).unwrap();
    let report = verify(&elsewhere, &expected()).unwrap();
    assert!(kinds(&report).contains(&FaultKind::Forged), "{:?}", report.faults);
    let mut expected = expected();
    expected.origin = Some(format!("{STORE}/{NODE}"));
    assert!(verify(&elsewhere, &expected).unwrap().is_whole(), "where that is said");
}

#[test]
fn a_file_that_is_gone_or_cannot_be_decompressed_is_told() {
    let trail = Trail::golden("trail");
    let gz = trail.hours().remove(0);
    let bytes = fs::read(&gz).unwrap();
    fs::remove_file(&gz).unwrap();
    assert_eq!(kinds(&trail.verify()), [FaultKind::Removed]);
    fs::write(&gz, &bytes[..bytes.len() / 2]).unwrap();
    assert!(kinds(&trail.verify()).contains(&FaultKind::Unreadable));
    fs::write(&gz, [&bytes[..], b"more"].concat()).unwrap();
    assert_eq!(kinds(&trail.verify()), [FaultKind::Unreadable]);
    fs::write(&gz, [&bytes[..], &bytes[..]].concat()).unwrap();
    assert_eq!(kinds(&trail.verify()), [FaultKind::Unreadable], "a second member");
    // Where the compressing was interrupted the other one counts.
    fs::write(&gz, &bytes[..100]).unwrap();
    fs::copy(&Trail::plain("trail").hours()[0], gz.with_extension("")).unwrap();
    assert!(trail.verify().is_whole());
}

#[test]
fn a_forged_checkpoint_and_a_key_that_is_not_ours_are_noticed() {
    let trail = Trail::golden("trail");
    let (key, other) = other_key();
    let mut notes = trail.notes();
    let text = Note::parse(notes[3].strip_suffix('\n').unwrap().as_bytes()).unwrap().text().to_owned();
    notes.push(signed(&key, &other, &text));
    trail.put_notes(&notes);
    let report = trail.verify();
    assert_eq!(kinds(&report), [FaultKind::Forged]);
    assert_eq!(report.newest.as_ref().map(|newest| newest.size), Some(13));
    // With our key's id on it.
    let ours = notes[3].rsplit(' ').next().unwrap()[..5].to_owned();
    let theirs = notes[4].rsplit(' ').next().unwrap()[..5].to_owned();
    notes[4] = notes[4].replace(&theirs, &ours);
    trail.put_notes(&notes);
    assert_eq!(kinds(&trail.verify()), [FaultKind::Forged]);

    let report = verify(&Trail::golden("trail").node, &Expected::by(Keys::new().with(other))).unwrap();
    assert!(report.faults.iter().all(|fault| [FaultKind::Forged, FaultKind::Cut].contains(&fault.kind)));
    assert_eq!((report.newest, report.faults.len()), (None, 5));
    let error = verify(&trail.node, &Expected::default()).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[test]
fn an_older_state_put_back_is_noticed_by_a_checkpoint_that_was_kept_elsewhere() {
    let trail = Trail::plain("trail");
    let (lines, notes) = (trail.lines(), trail.notes());
    let mut expected = expected();
    expected.kept = vec![checkpoint(&notes[3])];
    assert!(verify(&trail.node, &expected).unwrap().is_whole());
    // An older checkpoint behind a newer one.
    trail.put_notes(&[notes.clone(), vec![notes[1].clone()]].concat());
    assert_eq!(kinds(&trail.verify()), [FaultKind::Reordered]);
    // Checkpoints alone: lines are there that no signature covers.
    trail.put_notes(&notes[..3]);
    assert_eq!((trail.verify().is_whole(), trail.verify().uncovered()), (true, 5));
    // Lines alone.
    trail.put_notes(&notes);
    trail.put_lines(&lines[..8]);
    assert_eq!(kinds(&trail.verify()), [FaultKind::Cut]);
    // Both.
    trail.put_notes(&notes[..3]);
    assert!(trail.verify().is_whole(), "nobody can tell by what is there alone");
    assert_eq!(kinds(&verify(&trail.node, &expected).unwrap()), [FaultKind::Cut]);
    // One that was kept, and is of other lines.
    let mut other = checkpoint(&notes[1]);
    other.root = [0; 32];
    expected.kept = vec![other];
    assert_eq!(kinds(&verify(&trail.node, &expected).unwrap()), [FaultKind::Changed]);
}

#[test]
fn a_checkpoint_that_was_kept_of_lines_that_retention_removed_is_told_not_to_be_compared() {
    let (whole, trail) = (Trail::plain("trail"), Trail::golden("trail-retained"));
    let mut expected = expected();
    expected.kept = whole.notes().iter().map(|note| checkpoint(note)).collect();
    let before = expected.kept.iter().filter(|kept| kept.size < 5).count() as u64;
    let report = verify(&trail.node, &expected).unwrap();
    assert!(report.is_whole() && before > 0 && before < expected.kept.len() as u64, "{report:?}");
    assert_eq!(report.kept_before, before);
}

#[test]
fn what_a_crash_tore_is_no_fault_and_counts_for_nothing() {
    let trail = Trail::plain("trail");
    let (last, notes) = (trail.hours().pop().unwrap(), trail.notes());
    let whole = fs::read(&last).unwrap();
    for torn in ["{", "{\"seq\":13"] {
        fs::write(&last, [&whole[..], torn.as_bytes()].concat()).unwrap();
        let report = trail.verify();
        assert_eq!((report.is_whole(), report.torn, report.lines), (true, torn.len() as u64, 13));
    }
    fs::write(&last, &whole).unwrap();
    let note = &notes[3];
    for end in (0..note.len()).filter(|end| note.is_char_boundary(*end)) {
        trail.put_notes(&[notes.clone(), vec![note[..end].to_owned()]].concat());
        let report = trail.verify();
        assert!(report.is_whole(), "{end}: {:?}", report.faults);
    }
}

#[test]
fn a_tally_that_counts_wrongly_is_told_although_it_is_signed() {
    let (key, other) = other_key();
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join(NODE);
    let hour = node.join("y=2026/m=11/d=26/h=01/m=00");
    fs::create_dir_all(&hour).unwrap();
    let time = Time::parse("2026-11-26T01:00:00.000Z").unwrap();
    let line = |seq: u64, account: &str| {
        format!(
            r#"{{"seq":{seq},"time":"{time}","category":"AuditEvent","operation":"AccountOpen","account":"{account}"}}"#
        )
    };
    for (counted, is_whole) in [(KASE.replace('"', ""), true), ("b".to_owned(), false)] {
        let account = KASE.replace('"', "");
        let (mut frontier, mut group, mut text) = (tree::Frontier::new(), Group::new(0, None), String::new());
        let mut put = |line: &str, frontier: &mut tree::Frontier| {
            frontier.append(tree::leaf_hash(line.as_bytes()));
            text.push_str(line);
            text.push('\n');
        };
        let first = line(0, &account);
        put(&first, &mut frontier);
        group.add(Some(&counted), &tree::leaf_hash(first.as_bytes()));
        let tally = String::from_utf8(group.tally(time, &frontier).encode().unwrap()).unwrap();
        put(&tally, &mut frontier);
        fs::write(hour.join("PT1H.json"), text).unwrap();
        let checkpoint = Checkpoint::new(format!("{STORE}/{NODE}"), &frontier, 0);
        fs::write(node.join("checkpoints"), signed(&key, &other, &checkpoint.text())).unwrap();
        let report = verify(&node, &Expected::by(Keys::new().with(other.clone()))).unwrap();
        let expected = if is_whole { vec![] } else { vec![FaultKind::Miscounted] };
        assert_eq!(kinds(&report), expected, "{:?}", report.faults);
    }
}

#[test]
fn where_there_is_no_trail_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for node in [dir.path().to_owned(), dir.path().join("none")] {
        let error = verify(&node, &expected()).unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{error}");
    }
    // No checkpoint proves nothing.
    let trail = Trail::golden("trail");
    fs::remove_file(trail.node.join("checkpoints")).unwrap();
    assert_eq!(kinds(&trail.verify()), [FaultKind::Cut]);
    // Nor is a trail whole of which nothing is left but what retention wrote: the newest file stays.
    let trail = Trail::golden("trail-retained");
    trail
        .files()
        .into_iter()
        .filter(|path| !path.ends_with("retained"))
        .for_each(|path| fs::remove_file(path).unwrap());
    assert_eq!(kinds(&trail.verify()), [FaultKind::Cut]);
    assert_eq!(vkey().name(), STORE);
}
