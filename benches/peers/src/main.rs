//! One block of 4 KiB and of 64 KiB, authenticated and bound to its address, through keyleash and through each peer, in turns.
//!
//! `benches/report` runs it; by itself: `benches/peers/run [--quick]`. Writes `peers.json` to the directory that
//! BENCH_REPORT_DIR names, and a table to standard output.

#[path = "../../common/pairs.rs"]
#[allow(dead_code)]
mod pairs;

mod ciphers;
mod libraries;
mod ours;
mod versions;

use pairs::{Pinned, Plan, Side, take_turns};
use serde_json::{Value, json};
use std::{env, error::Error, fs, path::PathBuf};

const SIZES: [usize; 2] = [4096, 65_536];
const USAGE: &str = "usage: benches/peers/run [--quick]";

/// What everybody binds into a block: an object and the block's number, as long as keyleash's own example.
pub(crate) const ADDRESS: [u8; 24] = [7; 24];

/// What everybody works on: `plain` is only read, `out` is written.
pub(crate) struct Buffers {
    pub(crate) plain: Vec<u8>,
    pub(crate) out: Vec<u8>,
}

/// One library, as its own documentation would use it for the same work.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Of Cargo.lock, which tells the version.
    pub(crate) package: &'static str,
    /// What it does less or more than keyleash.
    pub(crate) difference: &'static str,
    pub(crate) seal: Side<'static, Buffers>,
    pub(crate) open: Side<'static, Buffers>,
}

fn peers(plain: &[u8]) -> Vec<Peer> {
    let mut peers = ours::all(plain);
    peers.extend(ciphers::all(plain));
    peers.extend(libraries::all(plain));
    peers
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut plan = Plan::FULL;
    for word in env::args().skip(1) {
        match word.as_str() {
            "--quick" => plan = Plan::QUICK,
            other => return Err(format!("unknown argument {other:?}\n{USAGE}").into()),
        }
    }
    let _pinned = Pinned::to_last();
    let mut rows: Vec<Value> = Vec::new();
    for size in SIZES {
        let mut buffers = Buffers { plain: vec![7; size], out: vec![0; size] };
        let peers = peers(&buffers.plain);
        if rows.is_empty() {
            rows.extend(peers.iter().map(|peer| {
                json!({ "name": peer.name, "version": versions::of(peer.package), "difference": peer.difference })
            }));
        }
        let (seals, opens) = peers.into_iter().map(|peer| (peer.seal, peer.open)).unzip();
        for (work, mut sides) in [("seal", seals), ("open", opens)] as [(&str, Vec<_>); 2] {
            let rounds = take_turns(plan, &mut sides, &mut buffers);
            for (place, row) in rows.iter_mut().enumerate() {
                let ratio = rounds.ratio(0, place);
                row[format!("{work} {size}")] = json!({
                    "gb_s": size as f64 / rounds.ns(place).median,
                    "ratio": ratio.median,
                    "low_quartile": ratio.low,
                    "high_quartile": ratio.high,
                });
            }
        }
    }
    let out = env::var_os("BENCH_REPORT_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    fs::create_dir_all(&out)?;
    fs::write(out.join("peers.json"), serde_json::to_string_pretty(&json!({ "peers": rows }))?)?;
    print(&rows);
    Ok(())
}

fn print(rows: &[Value]) {
    println!(
        "{:<32} {:<24} {:>14} {:>14} {:>14} {:>14}",
        "GB/s", "", "seal 4 KiB", "open 4 KiB", "seal 64 KiB", "open 64 KiB"
    );
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        print!("{:<32} {:<24}", text("name"), text("version"));
        for work in ["seal 4096", "open 4096", "seal 65536", "open 65536"] {
            print!(" {:>14.2}", row[work]["gb_s"].as_f64().unwrap_or(f64::NAN));
        }
        println!();
    }
}
