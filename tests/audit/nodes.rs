//! An extract of several nodes: which it shows is known, one that is asked for and missing is told, and no line of a span is missed.

use crate::{
    rig::{PATIENCE, Rig, START_MS, STORE, TestSigner, data, known_store, put_date},
    second::second_by,
};
use keyleash::{
    Error, Result,
    audit::{
        Asked, Keys, Options, Request, Shown, Signer, Vkey, Writer, extract, key_name, line::Time, verify_extract,
    },
    clock::{Clock, ManualClock},
    name::{AccountId, NodeName},
    telemetry::trail::{Noted, Record, Trail},
};
use std::{fs, time::Duration};
use tempfile::TempDir;

const HOUR: Duration = Duration::from_secs(3600);

/// Nodes below one directory, of a store whose id is known.
pub(crate) struct Nodes {
    pub(crate) dir: TempDir,
    pub(crate) rig: Rig,
}

impl Nodes {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::beside(dir.path(), known_store().await);
        rig.signer = TestSigner::named(7, &key_name(STORE));
        Self { dir, rig }
    }

    /// With a date of the store far ahead, so that retention goes by the wall clock.
    pub(crate) async fn with_a_date(self) -> Self {
        put_date(&*self.rig.store, START_MS / 1000 + 100 * 365 * 24 * 3600).await;
        self
    }

    pub(crate) fn options(&self, node: &str, clock: &ManualClock) -> Options {
        Options::new(self.dir.path(), NodeName::new(node).unwrap())
            .clock(Clock::Manual(clock.clone()))
            .lock_patience(PATIENCE)
    }

    /// A trail of these records, which a writer of this clock had.
    async fn write(&self, node: &str, clock: &ManualClock, records: impl IntoIterator<Item = Record>) {
        let writer: Writer = self.rig.open(self.options(node, clock)).await.unwrap();
        for record in records {
            assert_eq!(writer.note(record), Noted::Taken);
        }
        writer.close(PATIENCE).await.unwrap();
    }

    pub(crate) fn vkey(&self) -> Vkey {
        Vkey::parse(self.rig.signer.vkey()).unwrap()
    }

    pub(crate) fn asked(&self, nodes: &[&str]) -> Asked {
        let mut asked = Asked::by(Keys::new().with(self.vkey()));
        asked.nodes = nodes.iter().map(|node| NodeName::new(node).unwrap()).collect();
        asked
    }

    pub(crate) fn part(&self, node: &str, request: &Request) -> String {
        let mut out = Vec::new();
        extract(&self.dir.path().join(node), request, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }
}

fn request() -> Request {
    Request::all(AccountId::new("tenant-1").unwrap())
}

fn time(unix_ms: u64) -> Time {
    Time::from_unix_ms(unix_ms)
}

fn check(text: &str, asked: &Asked) -> Result<Vec<Shown>> {
    verify_extract(&mut text.as_bytes(), asked, &mut |_, _| {})
}

fn at(unix_ms: u64, number: u128) -> Record {
    let mut record = data(number);
    record.unix_ms = unix_ms;
    record
}

#[tokio::test]
async fn an_extract_says_which_nodes_it_shows_and_one_that_is_asked_for_and_missing_is_told() {
    let nodes = Nodes::new().await;
    for (node, lines) in [("web-1", 0..9), ("web-2", 9..12), ("cli", 12..13)] {
        nodes.write(node, &ManualClock::default(), lines.map(data)).await;
    }
    let parts = ["web-1", "web-2", "cli"].map(|node| nodes.part(node, &request()));
    let whole = parts.concat();
    let mut seen = Vec::new();
    let shown = verify_extract(&mut whole.as_bytes(), &nodes.asked(&[]), &mut |node, _| seen.push(node.to_string()));
    let of: Vec<_> = shown.unwrap().into_iter().map(|shown| (shown.node.to_string(), shown.lines)).collect();
    assert_eq!(of, [("web-1".into(), 3), ("web-2".into(), 1), ("cli".into(), 0)]);
    assert_eq!(seen, ["web-1", "web-1", "web-1", "web-2"]);
    assert!(check(&whole, &nodes.asked(&["cli", "web-2"])).is_ok());
    // A node that is left out, with what it says.
    let fewer = [&*parts[0], &parts[2]].concat();
    assert_eq!(check(&fewer, &nodes.asked(&[])).unwrap().len(), 2, "nobody asked for it: that is not seen");
    let error = check(&fewer, &nodes.asked(&["web-1", "web-2"])).unwrap_err();
    assert!(matches!(&error, Error::Invalid(what) if what.contains("node web-2; it shows web-1, cli")), "{error}");
    // Neither can a node be shown twice, nor two accounts, nor lines of one as another's.
    let other = nodes.part("web-2", &Request::all(AccountId::new("tenant-2").unwrap()));
    let swapped = [&*parts[0], &parts[1].replacen("/web-2\"", "/web-3\"", 1)].concat();
    let headless = parts[1].split_once('\n').unwrap().1;
    for wrong in [
        [&*parts[0], &parts[1], &parts[0]].concat(),
        [&*parts[0], &other].concat(),
        swapped,
        [&parts[0], headless].concat(),
    ] {
        let error = check(&wrong, &nodes.asked(&[])).unwrap_err();
        assert!(matches!(error, Error::Corrupt(_)), "{error}");
    }
    // The second verifier says the same.
    let (path, vkey) = (nodes.dir.path().join("extract"), nodes.vkey());
    for (text, of, is_right) in [
        (&whole, &["web-1", "web-2", "cli"][..], true),
        (&fewer, &[], true),
        (&fewer, &["web-2"], false),
        (&[&*parts[0], &parts[0]].concat(), &[], false),
        (&[&*parts[0], &other].concat(), &[], false),
    ] {
        fs::write(&path, text).unwrap();
        let (is_shown, said) = second_by(&vkey, "extract", &path, of);
        assert_eq!(is_shown, is_right, "{said}");
    }
}

#[tokio::test]
async fn a_span_and_a_checkpoint_are_asked_of_the_nodes_that_are_named() {
    let nodes = Nodes::new().await;
    let clock = ManualClock::default();
    nodes.write("gone", &clock, [data(1)]).await;
    clock.advance(5 * HOUR);
    let later = START_MS + 5 * 3_600_000;
    nodes.write("web-1", &clock, [at(later, 1), at(later, 4)]).await;
    clock.advance(HOUR);
    nodes.write("web-1", &clock, [at(later + 3_600_000, 1)]).await;
    let mut asking = request();
    (asking.from, asking.to) = (Some(time(later - 1000)), Some(time(later + 1000)));
    let whole = [nodes.part("gone", &asking), nodes.part("web-1", &asking)].concat();
    // The node that ended before is shown with its last lines, and that these are the last.
    let shown = check(&whole, &nodes.asked(&[])).unwrap();
    let lines: Vec<_> = shown.iter().map(|shown| shown.lines).collect();
    assert_eq!((lines, shown[0].to < time(later)), (vec![1, 3], true));
    for (of, is_shown) in [(&["web-1"][..], true), (&[], false), (&["gone"], false)] {
        let mut asked = nodes.asked(of);
        (asked.from, asked.to) = (asking.from, asking.to);
        let checked = check(&whole, &asked);
        assert_eq!(checked.is_ok(), is_shown, "{of:?}: {checked:?}");
    }
    // A checkpoint of a node is gone on from by that node.
    let mut asked = nodes.asked(&[]);
    asked.since = vec![shown[0].checkpoint.clone(), shown[1].checkpoint.clone()];
    check(&whole, &asked).unwrap();
    asked.since[0].origin = asked.since[1].origin.clone();
    let error = check(&whole, &asked).unwrap_err();
    assert!(error.to_string().contains("goes on from your checkpoint of"), "{error}");
    // A span that ends before it begins.
    (asking.from, asking.to) = (asking.to, asking.from);
    assert!(matches!(extract(&nodes.dir.path().join("gone"), &asking, &mut Vec::new()), Err(Error::Invalid(_))));
}

/// The clock is looked at before a line is put in its place: at the turn of an hour it may stand behind the tally of its own hour.
#[tokio::test]
async fn no_line_of_a_span_is_missed_because_it_stands_in_the_file_of_another_hour() {
    let nodes = Nodes::new().await;
    let clock = ManualClock::default();
    // 23:00, 46 minutes and 40 seconds behind the start.
    let turn = START_MS - START_MS % 3_600_000 + 3_600_000;
    clock.advance(Duration::from_millis(turn - START_MS));
    // Of tenant-1: in the file of its hour, late by a moment, and hours late by a clock that was set back.
    let lines = [
        at(turn - 2, 1),
        at(turn + 1, 0),
        at(turn - 1, 4),
        at(turn + 3_600_000, 3),
        at(turn + 7_200_000, 6),
        at(turn - 5, 7),
        at(turn + 10_800_000, 9),
        at(turn + 14_400_000, 12),
        at(turn + 18_000_000, 10),
    ];
    nodes.write("web-1", &clock, lines).await;
    let files = crate::rig::files(&nodes.dir.path().join("web-1"));
    assert!(files.len() > 3, "{files:?}");
    let numbers_of = |from: u64, to: u64| {
        let mut asking = request();
        (asking.from, asking.to) = (Some(time(from)), Some(time(to)));
        let (text, mut asked, mut seen) = (nodes.part("web-1", &asking), nodes.asked(&["web-1"]), Vec::new());
        (asked.from, asked.to) = (asking.from, asking.to);
        let shown = verify_extract(&mut text.as_bytes(), &asked, &mut |_, line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let number = u128::from_str_radix(line["correlation"].as_str().unwrap(), 16).unwrap();
            let at = Time::parse(line["time"].as_str().unwrap()).unwrap();
            if (from..to).contains(&at.unix_ms()) {
                seen.push(number);
            }
        });
        (shown.unwrap().remove(0), seen)
    };
    // The hour that ends at the turn has all its lines, in whichever file they stand.
    let (shown, seen) = numbers_of(turn - 3_600_000, turn);
    assert_eq!(seen, [1, 4, 7], "{shown:?}");
    let (_, seen) = numbers_of(turn - 1, turn);
    assert_eq!(seen, [4]);
    // What a group alone is shown of can be late itself: who asks for up to the very time of a tally gets the next one too.
    let first = check(&nodes.part("web-1", &request()), &nodes.asked(&[])).unwrap().remove(0);
    assert_eq!(first.span.start, 0);
    // Whoever hands the part over and leaves the late group out is found out.
    let mut asking = request();
    asking.to = Some(time(turn - 60_000));
    let short = nodes.part("web-1", &asking);
    let mut asked = nodes.asked(&[]);
    asked.to = asking.to;
    let upto = check(&short, &asked).unwrap().remove(0);
    assert!(upto.to < time(turn), "{upto:?}");
    asked.to = Some(time(turn));
    let rows: Vec<_> = short.split_inclusive('\n').collect();
    let second = rows.iter().enumerate().filter(|(_, row)| row.contains("\"tally\"")).nth(1);
    let cut = second.map_or(rows.len(), |(at, _)| at);
    let error = check(&rows[..cut].concat(), &asked).unwrap_err();
    assert!(error.to_string().contains("it ends at"), "{error}");
}
