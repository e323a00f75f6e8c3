//! Alerts over real files, by processes that are killed.

use crate::{
    crash::{KILLS, KILLS_DEFAULT},
    rig::START_MS,
};
use keyleash::{
    access::Pattern,
    audit::{
        FileSink, Follower, Until,
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
