//! One block: ratios to the raw limit, and throughput by size.

use crate::{
    common::{
        blocks::{Buffers, Raw, Work, our_side, raw_sealing, raw_side, sealing},
        pairs::{Pinned, Plan, Rounds, Side, take_turns, together_ns},
        rig,
    },
    plot::{Curve, Panel},
    table::Table,
};
use keyleash::{
    Account,
    block::{Backend, Suite},
};
use tokio::runtime::Runtime;

const SIZES: [usize; 7] = [512, 1024, 4096, 16_384, 65_536, 262_144, 1 << 20];
/// The places of the raw sides, which come first.
const FIXED: usize = 0;
const FRESH: usize = 1;
const OURS: usize = 2;
const COMMIT: usize = 3;

/// The rows of one size: what it is compared with.
fn compared_with(size: usize) -> Option<usize> {
    match size {
        512 | 4096 => Some(FRESH),
        65_536 | 1_048_576 => Some(FIXED),
        _ => None,
    }
}

/// Ratios and curves on one thread, pinned to one core.
pub(crate) fn one_thread(runtime: &Runtime, plan: Plan, table: &mut Table) -> Vec<Panel> {
    let _pinned = Pinned::to_last();
    let accounts: Vec<(String, Account)> = [
        (Backend::default(), Suite::XaesGcm),
        (Backend::default(), Suite::XaesGcmCommit),
        (Backend::PureRust, Suite::XaesGcm),
    ]
    .into_iter()
    .map(|(backend, suite)| {
        let account = runtime.block_on(rig::accounts(backend, suite, 1)).remove(0);
        let commits = if suite == Suite::XaesGcmCommit { ", key commitment" } else { "" };
        (format!("keyleash, {backend}{commits}"), account)
    })
    .collect();
    let mut panels = Vec::new();
    for (work, name) in [(Work::SealInPlace, "seal"), (Work::OpenInto, "open")] {
        let mut curves: Vec<Curve> = Vec::new();
        for size in SIZES {
            let (names, rounds) = turns(plan, work, size, &accounts);
            for (place, name) in names.into_iter().enumerate() {
                if curves.len() == place {
                    curves.push(Curve { name, limit: place == FIXED || place == FRESH, points: Vec::new() });
                }
                curves[place].points.push((size as f64, size as f64 / rounds.ns(place).median));
            }
            if let Some(other) = compared_with(size) {
                table.put(&format!("{name} {size}"), rounds.ratio(OURS, other), "");
            }
            if size == 4096 && work == Work::SealInPlace {
                table.put("commit 4096", rounds.ratio(COMMIT, FRESH), "");
            }
        }
        panels.push(Panel::throughput(work.name(), curves));
    }
    let (_, rounds) = turns(plan, Work::RoundTripInPlace, 4096, &accounts);
    table.put("round trip 4096", rounds.ratio(OURS, FRESH), "");
    panels
}

fn turns(plan: Plan, work: Work, size: usize, accounts: &[(String, Account)]) -> (Vec<String>, Rounds) {
    let mut buffers = Buffers::new(size, accounts.len());
    let headers: Vec<_> =
        accounts.iter().enumerate().map(|(sealer, (_, account))| buffers.seal_for(account, sealer)).collect();
    let mut sides: Vec<Side<'_, Buffers>> =
        [Raw::FixedKey, Raw::FreshKey].into_iter().map(|raw| raw_side(raw, work, &mut buffers)).collect();
    for (sealer, ((name, account), header)) in accounts.iter().zip(headers).enumerate() {
        sides.push(our_side(name, account, (sealer, header), work));
    }
    let rounds = take_turns(plan, &mut sides, &mut buffers);
    (sides.into_iter().map(|side| side.name).collect(), rounds)
}

/// What two threads do against one.
pub(crate) fn two_threads(runtime: &Runtime, plan: Plan, table: &mut Table) {
    const SIZE: usize = 4096;
    let accounts = runtime.block_on(rig::accounts(Backend::default(), Suite::XaesGcm, 2));
    let (first, second) = (&accounts[0], &accounts[1]);
    let raw = || raw_sealing(Raw::FreshKey, SIZE);
    let mut works = [
        vec![sealing(first, SIZE)],
        vec![sealing(first, SIZE), sealing(first, SIZE)],
        vec![sealing(first, SIZE), sealing(second, SIZE)],
        vec![raw()],
        vec![raw(), raw()],
    ];
    let one_ns = together_ns(1_000, &mut works[0]) / 1_000.0;
    let calls = (plan.turn.as_nanos() as f64 / one_ns) as u64 + 1;
    let mut ns = vec![Vec::new(); works.len()];
    for _ in 0..plan.rounds {
        for (work, ns) in works.iter_mut().zip(&mut ns) {
            ns.push(together_ns(calls, work) / (calls as usize * work.len()) as f64);
        }
    }
    let rounds = Rounds::from_ns(ns);
    table.put("two threads, one account", rounds.ratio(1, 0), "4 KiB");
    table.put("two threads, two accounts", rounds.ratio(2, 0), "4 KiB");
    table.put("two threads, raw", rounds.ratio(4, 3), "4 KiB");
}
