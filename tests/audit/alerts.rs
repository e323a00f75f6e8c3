//! Alerts over real files, by processes that are killed.

use crate::{
    crash::{KILLS, KILLS_DEFAULT},
    rig::START_MS,
};
use async_trait::async_trait;
use keyleash::{
    access::Pattern,
    audit::{
        AuditSink, Event, FileSink, Follower, Told, Until,
        alert::{AlertSink, Alerts, Rule, When},
        line::Time,
    },
    clock::Clock,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

/// Where a child keeps its cursor and its notices; only then is it one.
const OWN: &str = "TRAIL_ALERTS_DIRECTORY";
/// The directory that it follows.
const FOLLOWED: &str = "TRAIL_FOLLOWED_DIRECTORY";
const LINES: u64 = 6000;

/// A node by hand, in which troubles begin and end all the time, also in the midst of what is delivered at once.
fn trail(directory: &Path) {
    let hour = directory.join("a/y=2023/m=11/d=14/h=22/m=00");
    fs::create_dir_all(&hour).unwrap();
    fs::write(directory.join("a/lock"), "").unwrap();
    let mut file = fs::File::create(hour.join("PT1H.json")).unwrap();
    for seq in 0..LINES {
        let (operation, more) = match seq % 700 {
            0 | 10 => ("SecretGet", format!(r#","result":"done","caller":"eve-{}""#, seq % 3)),
            200..205 => ("Forbidden", format!(r#","caller":"tom-{}""#, seq / 2000)),
            300 | 310 => ("Denied", r#","kek":"k","kek_version":1"#.into()),
            500 => ("Resumed", r#","kek":"k","kek_version":1"#.into()),
            _ => ("AccountOpen", r#","result":"done","caller":"web-1""#.into()),
        };
        let time = Time::from_unix_ms(START_MS + seq * 1000);
        writeln!(file, r#"{{"seq":{seq},"time":"{time}","category":"AuditEvent","operation":"{operation}"{more}}}"#)
            .unwrap();
    }
}

/// To the end of what is there.
async fn watch(directory: &Path, own: &Path) {
    let rules = [
        ("strangers", When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] }),
        ("refused", When::Forbidden { more_than: 3, within: Duration::from_secs(60) }),
        ("denials", When::Denied),
    ];
    let rules = rules.map(|(name, when)| Rule::new(name, when).unwrap().quiet(Duration::from_secs(120)).unwrap());
    let mut sink = AlertSink::new(Alerts::new(rules.into()).unwrap(), FileSink::new(own.join("notices")));
    let follower = Follower::open(directory, own.join("cursor")).unwrap();
    println!("watches");
    let all = Until::Time(Time::default());
    follower.deliver(&mut sink, all, &Clock::default(), &mut |told| println!("{told:?}")).await.unwrap();
}

/// Takes events.
#[derive(Default)]
struct Ids(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl AuditSink for Ids {
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String> {
        self.0.lock().unwrap().extend(events.iter().map(Event::id));
        Ok(())
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..12_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn a_directory_that_goes_away_holds_its_nodes_by_name_until_it_is_back() {
    let (top, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (directory, away) = (top.path().join("trail"), top.path().join("away"));
    trail(&directory);
    let mut sink = Ids::default();
    let (ids, said) = (sink.0.clone(), Mutex::new(Vec::new()));
    let follower = Follower::open(&directory, own.path().join("cursor")).unwrap();
    let (clock, mut tell) = (Clock::default(), |told| said.lock().unwrap().push(told));
    let is_held = || matches!(said.lock().unwrap().last(), Some(Told::Held(node, _)) if node.as_str() == "a");
    tokio::select! {
        followed = follower.deliver(&mut sink, Until::Dropped, &clock, &mut tell) => panic!("{followed:?}"),
        () = async {
            until("all", || ids.lock().unwrap().len() as u64 == LINES).await;
            // The whole of it, and then the node's own.
            for (from, to) in [(directory.clone(), away.clone()), (directory.join("a"), away.clone())] {
                fs::rename(&from, &to).unwrap();
                until("held", is_held).await;
                fs::rename(&to, &from).unwrap();
                until("goes on", || matches!(said.lock().unwrap().last(), Some(Told::GoesOn(_)))).await;
            }
        } => {}
    }
    assert_eq!(ids.lock().unwrap().len() as u64, LINES);
    // One that begins while it is away knows which nodes there were.
    fs::rename(&directory, &away).unwrap();
    let follower = Follower::open(&directory, own.path().join("cursor")).unwrap();
    let all = Until::Time(Time::default());
    let follower = follower.deliver(&mut Ids::default(), all, &Clock::default(), &mut |_| {}).await.unwrap();
    assert_eq!(follower.held().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), ["a"]);
    let follower = Follower::open(&directory, own.path().join("new")).unwrap();
    assert!(follower.deliver(&mut Ids::default(), all, &Clock::default(), &mut |_| {}).await.is_err(), "a wrong name");
}

#[tokio::test]
async fn a_cursor_that_cannot_be_written_is_written_later_and_nothing_is_brought_again_for_it() {
    let (directory, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    trail(directory.path());
    let cursor = own.path().join("cursor");
    let mut sink = Ids::default();
    let (ids, said) = (sink.0.clone(), Mutex::new(Vec::new()));
    let follower = Follower::open(directory.path(), &cursor).unwrap();
    fs::create_dir(&cursor).unwrap(); // no file can take its place
    let (clock, mut tell) = (Clock::default(), |told| said.lock().unwrap().push(told));
    tokio::select! {
        followed = follower.deliver(&mut sink, Until::Dropped, &clock, &mut tell) => panic!("{followed:?}"),
        () = async {
            until("said", || !said.lock().unwrap().is_empty()).await;
            fs::remove_dir(&cursor).unwrap();
            until("all", || fs::read_to_string(&cursor).is_ok_and(|text| text.contains("\"next\":6000"))).await;
        } => {}
    }
    let said = std::mem::take(&mut *said.lock().unwrap());
    assert!(matches!(&said[..], [Told::NotWritten(why, _), ..] if why.contains("make room")), "{said:?}");
    assert_eq!(*ids.lock().unwrap(), (0..LINES).map(|seq| format!("a/{seq}")).collect::<Vec<_>>(), "once");
    let follower = Follower::open(directory.path(), own.path().join("other")).unwrap();
    fs::create_dir(own.path().join("other")).unwrap();
    let all = Until::Time(Time::default());
    let error = follower.deliver(&mut Ids::default(), all, &Clock::default(), &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("make room"), "{error}");
}

/// The child of the test that kills.
#[tokio::test]
async fn child_that_watches_until_it_is_killed() {
    let (Some(own), Some(followed)) = (env::var_os(OWN), env::var_os(FOLLOWED)) else { return };
    watch(Path::new(&followed), Path::new(&own)).await;
}

/// Each notice as it came: its id, and how often it was seen.
fn notices(own: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(own.join("notices")).unwrap_or_default();
    let of = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        (json["id"].as_str().unwrap().to_owned(), json["count"].as_u64().unwrap())
    };
    text.lines().map(of).collect()
}

#[tokio::test]
async fn wherever_it_is_killed_every_notice_comes_none_is_counted_twice_and_few_come_again() {
    let (directory, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    trail(directory.path());
    watch(directory.path(), whole.path()).await;
    let expected = notices(whole.path());
    let ids: BTreeSet<_> = expected.iter().map(|(id, _)| id).collect();
    assert_eq!((expected.len(), ids.len()), (71, 71));
    let kills = env::var(KILLS).map_or(KILLS_DEFAULT, |kills| kills.parse().unwrap());
    let mut again = 0;
    for kill in 0..kills {
        let own = tempfile::tempdir().unwrap();
        for which in 0..3 {
            let mut child = Command::new(env::current_exe().unwrap())
                .args(["--exact", "alerts::child_that_watches_until_it_is_killed", "--nocapture"])
                .env(OWN, own.path())
                .env(FOLLOWED, directory.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
            lines.find(|line| line.contains("watches")).unwrap();
            std::thread::sleep(Duration::from_micros((kill * 3 + which) * 17_713 % 299_993));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        watch(directory.path(), own.path()).await;
        let came = notices(own.path());
        let counts: BTreeMap<_, _> = came.iter().cloned().collect();
        assert_eq!(counts, expected.iter().cloned().collect(), "kill {kill}");
        let mut seen = BTreeSet::new();
        let first: Vec<_> = came.iter().filter(|(id, _)| seen.insert(id.clone())).cloned().collect();
        assert_eq!(first, expected, "kill {kill}: in their order");
        // No more than what one delivery brought.
        again += came.len() - expected.len();
        assert!(came.len() - expected.len() <= 3 * 20, "kill {kill}: {}", came.len());
    }
    println!("{} kills, {again} notices that came again", 3 * kills);
}
