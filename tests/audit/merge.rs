//! Whatever comes late of whichever node, and however often whoever follows begins anew: no event of a node is lost, and none is out of
//! its order.

use flate2::{Compression, write::GzEncoder};
use keyleash::{
    audit::{Follower, line::Time},
    name::NodeName,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, fs, io::Write, path::Path};

/// 2026-11-26T00:00:00Z, in milliseconds since 1970.
const DAY_MS: u64 = 1_795_651_200_000;
const HOUR_MS: u64 = 3_600_000;

/// A file of lines that comes.
#[derive(Debug, Clone)]
struct Arrival {
    node: usize,
    hour: u64,
    /// When in the hour each line was written.
    first: u64,
    ms: Vec<u64>,
    is_compressed: bool,
    /// What is done behind: delivered and acknowledged, delivered alone before it begins anew, or nothing.
    then: u8,
}

fn line(seq: u64, time: Time) -> String {
    format!("{{\"seq\":{seq},\"time\":\"{time}\",\"category\":\"AuditEvent\",\"operation\":\"AccountOpen\"}}\n")
}

fn put(directory: &Path, node: &str, Arrival { hour, first, ms, is_compressed, .. }: &Arrival) {
    let folder = directory.join(format!("{node}/y=2026/m=11/d=26/h={hour:02}/m=00"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(directory.join(node).join("checkpoints"), "").unwrap();
    let lines = ms.iter().zip(*first..);
    let text: String =
        lines.map(|(ms, seq)| line(seq, Time::from_unix_ms(DAY_MS + hour * HOUR_MS + ms % HOUR_MS))).collect();
    let (name, bytes) = match is_compressed {
        true => {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(text.as_bytes()).unwrap();
            ("PT1H.json.gz", gzip.finish().unwrap())
        }
        false => ("PT1H.json", text.into_bytes()),
    };
    // Whole at once, as a copy that is renamed into its place.
    fs::write(folder.join("new"), bytes).unwrap();
    fs::rename(folder.join("new"), folder.join(name)).unwrap();
}

/// A file as it is drawn: [`Arrival::ms`], `is_compressed`, `then`.
type Drawn = (Vec<u64>, bool, u8);

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let file = (prop::collection::vec(any::<u64>(), 1..6), any::<bool>(), 0..3_u8);
    let node = prop::collection::vec(prop::option::weighted(0.7, file), 1..7);
    let of = |nodes: Vec<Vec<Option<Drawn>>>| {
        let mut all = Vec::new();
        for (node, hours) in nodes.into_iter().enumerate() {
            let mut first = 0;
            for (hour, file) in (0..).zip(hours) {
                let Some((ms, is_compressed, then)) = file else { continue };
                let lines = ms.len() as u64;
                all.push(Arrival { node, hour, first, ms, is_compressed, then });
                first += lines;
            }
        }
        all
    };
    prop::collection::vec(node, 1..4).prop_map(of).prop_shuffle()
}

/// Delivers all that is there.
fn deliver(follower: &mut Follower, next: &mut BTreeMap<NodeName, u64>, acknowledge: bool) {
    loop {
        let batch = follower.next_batch().unwrap();
        for event in &batch {
            let next = next.entry(event.node.clone()).or_default();
            assert_eq!(event.seq, *next, "of {}", event.node);
            *next += 1;
        }
        if acknowledge {
            follower.acknowledge(&batch).unwrap();
        }
        if batch.is_empty() {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_event_of_a_node_is_lost_or_out_of_its_order_whatever_comes_late(arrivals in arrivals()) {
        let folder = tempfile::tempdir().unwrap();
        let (directory, cursor) = (folder.path().join("trail"), folder.path().join("cursor"));
        // One that was there before: of the others nothing was.
        let first = Arrival { node: 0, hour: 0, first: 0, ms: vec![0], is_compressed: false, then: 0 };
        put(&directory, "first", &first);
        let open = || Follower::open(&directory, &cursor).unwrap();
        let (mut follower, mut next) = (open(), BTreeMap::new());
        deliver(&mut follower, &mut next, true);
        let mut acknowledged = next.clone();
        let mut lines = BTreeMap::from([(NodeName::new("first").unwrap(), 1)]);
        for arrival in &arrivals {
            let node = format!("node-{}", arrival.node);
            put(&directory, &node, arrival);
            *lines.entry(NodeName::new(&node).unwrap()).or_insert(0) += arrival.ms.len() as u64;
            match arrival.then {
                0 => {
                    deliver(&mut follower, &mut next, true);
                    acknowledged = next.clone();
                }
                1 => {
                    deliver(&mut follower, &mut next, false);
                    drop(follower);
                    next = acknowledged.clone();
                    follower = open();
                }
                _ => {}
            }
        }
        deliver(&mut follower, &mut next, true);
        prop_assert_eq!(next, lines);
    }
}
