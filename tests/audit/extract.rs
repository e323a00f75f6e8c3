//! A customer sees that nothing of theirs was left out, and nothing of anybody else.

use crate::golden::{KASE, Trail, expected};
use keyleash::{
    Error, Result,
    audit::{Asked, Checkpoint, Note, Request, Shown, extract, line::Time, verify_extract},
    name::AccountId,
};
use std::{fs, path::Path};

fn request(account: &str) -> Request {
    Request::all(AccountId::new(account).unwrap())
}

fn made(node: &Path, request: &Request) -> String {
    let mut out = Vec::new();
    extract(node, request, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn asked() -> Asked {
    Asked::by(expected().keys)
}

fn check(text: &[u8], asked: &Asked) -> Result<Shown> {
    verify_extract(&mut &*text, asked, &mut |_, _| {}).map(|mut shown| shown.remove(0))
}

fn time(text: &str) -> Time {
    Time::parse(text).unwrap()
}

#[test]
fn each_account_is_shown_all_its_lines_and_no_other() {
    let trail = Trail::golden("trail");
    for (account, lines, not) in [(KASE, 3, "batch"), ("b", 2, "käse"), ("c", 1, "käse"), ("nobody", 0, "web\\\"")] {
        let text = made(&trail.node, &request(account));
        let mut seen = Vec::new();
        let mut asked = asked();
        asked.account = Some(AccountId::new(account).unwrap());
        let shown = verify_extract(&mut text.as_bytes(), &asked, &mut |_, line| seen.push(line.to_owned()));
        let shown = shown.unwrap().remove(0);
        assert_eq!((shown.lines, seen.len(), shown.span, shown.from), (lines, lines as usize, 0..12, None));
        assert_eq!((shown.to, shown.checkpoint.size), (time("2026-11-26T02:10:50.001Z"), 13));
        assert!(!text.contains(not), "of another account: {text}");
        asked.account = Some(AccountId::new("d").unwrap());
        assert!(matches!(check(text.as_bytes(), &asked).unwrap_err(), Error::Invalid(_)));
    }
}

#[test]
fn no_line_of_an_extract_can_be_left_out_doubled_or_moved() {
    let trail = Trail::golden("trail");
    for account in [KASE, "b", "nobody"] {
        let text = made(&trail.node, &request(account));
        let rows: Vec<_> = text.split_inclusive('\n').collect();
        check(rows.concat().as_bytes(), &asked()).unwrap();
        for at in 0..rows.len() {
            let mut other = rows.clone();
            other.remove(at);
            let refused = check(other.concat().as_bytes(), &asked());
            assert!(refused.is_err(), "{account}: without line {at}, {}", rows[at]);
            let mut other = rows.clone();
            other.insert(at, rows[at]);
            // A checkpoint goes on from itself.
            let refused = check(other.concat().as_bytes(), &asked());
            assert!(refused.is_err() || rows[at].starts_with("{\"checkpoint\""), "{account}: line {at} twice");
            for to in at + 1..rows.len() {
                let mut other = rows.clone();
                other.swap(at, to);
                assert!(check(other.concat().as_bytes(), &asked()).is_err(), "{account}: {at} and {to} swapped");
            }
        }
        let ends = rows.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        });
        for end in ends.filter(|end| *end < text.len()).chain((0..text.len()).step_by(37)) {
            assert!(check(&text.as_bytes()[..end], &asked()).is_err(), "{account}: cut at {end}");
        }
    }
}

#[test]
fn every_byte_of_an_extract_that_is_changed_is_noticed() {
    let trail = Trail::golden("trail");
    let text = made(&trail.node, &request(KASE)).into_bytes();
    let whole = check(&text, &asked()).unwrap();
    let header = text.iter().position(|byte| *byte == b'\n').unwrap();
    for at in 0..text.len() {
        let mut other = text.clone();
        other[at] ^= 1 << (at % 7);
        // The first line can ask for less than what is shown.
        let is_noticed = check(&other, &asked()).map_or(true, |shown| at < header && shown == whole);
        assert!(is_noticed, "byte {at} was changed unnoticed");
    }
}

#[test]
fn a_span_is_shown_with_whole_groups_and_what_is_not_shown_is_not_claimed() {
    let trail = Trail::golden("trail");
    let mut request = request("b");
    (request.from, request.to) = (Some(time("2026-11-26T01:30:00.000Z")), Some(time("2026-11-26T02:00:00.000Z")));
    let text = made(&trail.node, &request);
    let shown = check(text.as_bytes(), &asked()).unwrap();
    assert_eq!((shown.lines, shown.span), (1, 6..8));
    for (from, to, is_shown) in [
        (Some("2026-11-26T01:00:10.010Z"), Some("2026-11-26T02:09:50.000Z"), true),
        (Some("2026-11-26T01:00:10.009Z"), None, false),
        (None, Some("2026-11-26T02:09:50.001Z"), false),
    ] {
        let mut asked = asked();
        (asked.from, asked.to) = (from.map(time), to.map(time));
        assert_eq!(check(text.as_bytes(), &asked).is_ok(), is_shown, "{from:?} {to:?}");
    }
    // What was asked for is not there yet, or not any more: the extract says what it has.
    request.to = Some(time("2026-11-27T00:00:00.000Z"));
    let shown = check(made(&trail.node, &request).as_bytes(), &asked()).unwrap();
    assert_eq!(shown.to, time("2026-11-26T02:10:50.001Z"));
    request.from = None;
    let retained = Trail::golden("trail-retained");
    let shown = check(made(&retained.node, &request).as_bytes(), &asked()).unwrap();
    assert_eq!((shown.lines, shown.span, shown.from), (1, 6..12, Some(time("2026-11-26T01:00:10.010Z"))));
    // Of a trail that ended before, the last group.
    (request.from, request.to) = (Some(time("2026-11-28T00:00:00.000Z")), None);
    let shown = check(made(&trail.node, &request).as_bytes(), &asked()).unwrap();
    assert_eq!((shown.span.end, shown.to), (12, time("2026-11-26T02:10:50.001Z")));
    // Of one that begins behind, nothing: retention removed what was asked for.
    (request.from, request.to) = (None, Some(time("2026-11-26T00:30:00.000Z")));
    let error = extract(&retained.node, &request, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[test]
fn an_extract_goes_on_from_the_checkpoint_that_the_customer_has() {
    let trail = Trail::golden("trail");
    for (at, note) in trail.notes().iter().enumerate() {
        let note = Note::parse(note.strip_suffix('\n').unwrap().as_bytes()).unwrap();
        let checkpoint = Checkpoint::of(&note).unwrap();
        let mut request = request(KASE);
        let mut asked = asked();
        asked.since = vec![checkpoint];
        let without = check(made(&trail.node, &request).as_bytes(), &asked);
        assert_eq!(without.is_ok(), at == 3, "the newest alone is there by itself");
        request.since = Some(note);
        check(made(&trail.node, &request).as_bytes(), &asked).unwrap();
        asked.since[0].root = [0; 32];
        assert!(check(made(&trail.node, &request).as_bytes(), &asked).is_err());
    }
}

#[test]
fn of_a_trail_that_was_changed_no_extract_is_made() {
    let trail = Trail::plain("trail");
    let lines = trail.lines();
    for at in 0..lines.len() {
        let mut other = lines.clone();
        other[at].1 = other[at].1.replace("2026", "2025");
        trail.put_lines(&other);
        assert!(extract(&trail.node, &request(KASE), &mut Vec::new()).is_err(), "line {at} changed");
        let mut other = lines.clone();
        other.remove(at);
        trail.put_lines(&other);
        let error = extract(&trail.node, &request(KASE), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("audit verify"), "{error}");
    }
    fs::remove_file(trail.node.join("checkpoints")).unwrap();
    let error = extract(&trail.node, &request(KASE), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[test]
fn no_bytes_are_a_panic() {
    let rubbish: [&[u8]; 7] =
        [b"", b"\n", b"{}\n", b"\xff\n", b"{\"seq\":0,\"line\":\"\",\"proof\":[]}\n", b"[", &[b'x'; 200_000]];
    for bytes in rubbish {
        assert!(matches!(check(bytes, &asked()).unwrap_err(), Error::Corrupt(_)));
    }
    let deep = ["[".repeat(100_000), "\n".into()].concat();
    assert!(check(deep.as_bytes(), &asked()).is_err());
}
