//! The second verifier, in Python, written from the manual's page of formats alone, comes to the same ends.

use crate::golden::{KASE, Trail, vkey};
use keyleash::{
    audit::{Request, Vkey, extract},
    name::AccountId,
};
use std::{fs, path::Path, process::Command, sync::Once};

/// Python, of which the standard library is enough; installed where it is missing.
fn python() -> Command {
    static THERE: Once = Once::new();
    THERE.call_once(|| {
        if Command::new("python3").arg("--version").output().is_err() {
            let install = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/need-packages");
            assert!(
                Command::new(install).arg("python3").status().unwrap().success(),
                "the second verifier needs python3"
            );
        }
    });
    Command::new("python3")
}

fn second(what: &str, path: &Path) -> (bool, String) {
    second_by(&vkey(), what, path, &[])
}

pub(crate) fn second_by(vkey: &Vkey, what: &str, path: &Path, nodes: &[&str]) -> (bool, String) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/audit/verify.py");
    let mut command = python();
    command.arg(program).arg(what).arg(path).arg("--key").arg(vkey.to_string());
    for node in nodes {
        command.args(["--node", node]);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // A failure of its own is no verdict.
    assert!(output.status.success() || said.starts_with("wrong: "), "{said}");
    (output.status.success(), said)
}

#[test]
fn the_second_verifier_says_the_same_of_trails() {
    for name in ["trail", "trail-retained"] {
        let (is_whole, said) = second("trail", &Trail::golden(name).node);
        assert!(is_whole && said.contains("\"covered\": 13, \"uncovered\": 0"), "{said}");
    }
    let trail = Trail::plain("trail");
    let lines = trail.lines();
    for at in [0, 3, 5, 12] {
        let mut fewer = lines.clone();
        fewer.remove(at);
        trail.put_lines(&fewer);
        assert!(!second("trail", &trail.node).0, "line {at} removed");
        let mut more = lines.clone();
        more.insert(at, lines[at].clone());
        trail.put_lines(&more);
        assert!(!second("trail", &trail.node).0, "line {at} doubled");
    }
    trail.put_lines(&lines);
    for path in trail.files() {
        let bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(131) {
            let mut other = bytes.clone();
            other[at] ^= 1;
            fs::write(&path, other).unwrap();
            let (first, second) = (trail.verify().is_whole(), second("trail", &trail.node));
            assert_eq!((first, second.0), (false, false), "byte {at} of {}: {}", path.display(), second.1);
        }
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn the_second_verifier_says_the_same_of_extracts() {
    let (trail, dir) = (Trail::golden("trail"), tempfile::tempdir().unwrap());
    let path = dir.path().join("extract");
    for (account, lines) in [(KASE, 3), ("b", 2), ("nobody", 0)] {
        let mut request = Request::all(AccountId::new(account).unwrap());
        request.since =
            Some(keyleash::audit::Note::parse(trail.notes()[0].strip_suffix('\n').unwrap().as_bytes()).unwrap());
        let mut text = Vec::new();
        extract(&trail.node, &request, &mut text).unwrap();
        fs::write(&path, &text).unwrap();
        let (is_shown, said) = second("extract", &path);
        assert!(is_shown && said.contains(&format!("\"lines\": {lines}, \"first\": 0, \"end\": 12")), "{said}");
        let text = String::from_utf8(text).unwrap();
        let rows: Vec<_> = text.split_inclusive('\n').collect();
        for at in 0..rows.len() {
            let mut fewer = rows.clone();
            fewer.remove(at);
            fs::write(&path, fewer.concat()).unwrap();
            let (is_shown, said) = second("extract", &path);
            assert!(!is_shown, "{account}: without line {at}: {said}");
        }
    }
}
