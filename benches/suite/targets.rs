//! What is measured and what is asked of it: the one list. The report, benches/README.md and README.md stand on it.

/// What is asked of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    MoreThan(f64),
    Exactly(f64),
    /// Nothing; it is told.
    Reported,
    /// Nothing; it helps to read the rows around it, and benches/README.md does without.
    Beside,
}

/// What a figure is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// How many times as fast as what it is compared with, or as much.
    Ratio,
    Nanoseconds,
    Milliseconds,
    Bytes,
    MegabytesASecond,
    Calls,
}

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Target {
    /// By which a measurement names it; other benchmarks do so in `target/report/rows/KEY.json`.
    pub(crate) key: &'static str,
    pub(crate) what: &'static str,
    pub(crate) bound: Bound,
    pub(crate) unit: Unit,
    /// What measures it.
    pub(crate) by: &'static str,
    /// What it means to a user that it was missed.
    pub(crate) miss: &'static str,
}

impl Target {
    const fn by(mut self, by: &'static str) -> Self {
        self.by = by;
        self
    }

    const fn miss(mut self, miss: &'static str) -> Self {
        self.miss = miss;
        self
    }
}

const HERE: &str = "benches/report";

const fn row(key: &'static str, what: &'static str, bound: Bound, unit: Unit) -> Target {
    Target { key, what, bound, unit, by: HERE, miss: "" }
}

/// The rows that README.md shows.
pub(crate) const HEADLINES: [&str; 5] = ["seal 4096", "seal 1048576", "cold, one worker", "look-up", "file, rage"];

const MISS_DERIVED: &str = "the block's own key is derived, where the other's comes from nowhere; who waits for a disk or a network sees none of it";
const MISS_COLD: &str =
    "what keyleash does for an account shows beside SoftHSM's microseconds, and not beside an HSM's milliseconds";
const MISS_REWRAP: &str = "a re-wrap takes that much longer than the token alone would; blocks flow meanwhile";

use Bound::{AtLeast, AtMost, Beside, Exactly, MoreThan, Reported};
use Unit::{Bytes, Calls, MegabytesASecond, Milliseconds, Nanoseconds, Ratio};

/// All rows, in the order of the table.
#[rustfmt::skip]
pub(crate) const TARGETS: &[Target] = &[
    row("seal 512", "seal, 512 B, against raw aws-lc-rs with a fresh key per block", AtLeast(0.88), Ratio).miss(MISS_DERIVED),
    row("open 512", "open, 512 B, against the same", AtLeast(0.88), Ratio).miss(MISS_DERIVED),
    row("seal 4096", "seal, 4 KiB, against raw aws-lc-rs with a fresh key per block", AtLeast(1.0), Ratio).miss(MISS_DERIVED),
    row("open 4096", "open, 4 KiB, against the same", AtLeast(1.0), Ratio).miss(MISS_DERIVED),
    row("round trip 4096", "seal and open in place, 4 KiB, against the same", Beside, Ratio),
    row("commit 4096", "seal with key commitment (suite 2), 4 KiB, against the same", Beside, Ratio),
    row("seal 65536", "seal, 64 KiB, against raw aws-lc-rs with one fixed key", AtLeast(0.95), Ratio),
    row("open 65536", "open, 64 KiB, against the same", AtLeast(0.95), Ratio),
    row("seal 1048576", "seal, 1 MiB, against the same", AtLeast(0.95), Ratio),
    row("open 1048576", "open, 1 MiB, against the same", AtLeast(0.95), Ratio),
    row("two threads, one account", "two threads on one account, against one thread", AtLeast(1.9), Ratio),
    row("two threads, two accounts", "two threads on an account each, against one thread", AtLeast(1.9), Ratio),
    row("two threads, raw", "raw aws-lc-rs on two threads, against one: what this machine allows", Beside, Ratio),
    row("allocated", "bytes allocated per in-place seal or open, C heap included", Exactly(0.0), Bytes).by("a test of `cargo test`, not this report"),
    row("cold, one worker", "cold opens, 64 at a time, against a bare loop of the same C_Decrypt: one worker, one thread", AtLeast(0.8), Ratio),
    row("cold, two workers", "the same: two workers, two threads", AtLeast(0.8), Ratio).miss(MISS_COLD),
    row("cold, cpu", "processor time of that, against the bare loop's", Beside, Ratio),
    row("cold, alone", "cold opens one after the other, one worker: nothing overlaps", Beside, Ratio),
    row("cold, at once, one worker", "all cold accounts opened at once, against the bare loop: one worker, one thread", AtLeast(0.8), Ratio).miss(MISS_COLD),
    row("cold, at once", "the same: two workers, two threads", AtLeast(0.8), Ratio).miss(MISS_COLD),
    row("cold, at once, calls", "HSM calls of that, for each account", Exactly(1.0), Calls),
    row("cold, at once, p99", "p99 of that, from the moment at which all were asked for", Reported, Milliseconds),
    row("one cold account", "HSM calls when 1,000 tasks open one cold account", Exactly(1.0), Calls),
    row("grants", "cold opens by a caller under 10,000 grants, against those where there are none", AtLeast(0.95), Ratio),
    row("grants, look-up", "warm `Engine::account` by that caller, against one without a name where there are none", Beside, Ratio),
    row("look-up", "warm `Engine::account`, a random one of all in the index", AtMost(300.0), Nanoseconds).miss("who keeps the `Account` and not its id looks nothing up"),
    row("look-up, few", "the same with 1,000 accounts in the index", Beside, Nanoseconds),
    row("memory read", "one read of memory that waits for the one before it, at random over as much memory: a look-up is six", Reported, Nanoseconds),
    row("memory", "memory per cached account, locked part included", AtMost(640.0), Bytes).miss("it is what to plan for; `max_cached_aeks` bounds it"),
    row("proofs, 1", "token calls per poll, 1 account", Exactly(1.0), Calls),
    row("proofs, 1000", "token calls per poll, 1,000 accounts", Exactly(1.0), Calls),
    row("proofs, all", "token calls per poll, all accounts of the index", Exactly(1.0), Calls),
    row("wipe", "denial that wipes 100,000 slots while two threads seal", Reported, Milliseconds),
    row("wipe, longest seal", "longest seal during it, processor time", AtMost(1.0), Milliseconds),
    row("wipe, waits", "seals that waited for something during it", Exactly(0.0), Calls),
    row("wipe, longest on the wall", "longest seal during it, on the wall: the scheduler's turns too", Beside, Milliseconds),
    row("wipe, longest without", "longest on the wall while another thread merely spins for as long", Beside, Milliseconds),
    row("rewrap 1", "re-wrap of 100,000 accounts, against a bare loop of the same token calls: one worker", AtLeast(0.7), Ratio).by("benches/rewrap.rs").miss(MISS_REWRAP),
    row("rewrap 1, module", "the same against a thread that makes the module's calls alone", Beside, Ratio).by("benches/rewrap.rs"),
    row("rewrap 2", "re-wrap against a bare loop of the same token calls: two workers", AtLeast(0.7), Ratio).by("benches/rewrap.rs").miss(MISS_REWRAP),
    row("rewrap 2, module", "the same against two threads that make the module's calls alone", Beside, Ratio).by("benches/rewrap.rs"),
    row("trail", "durable records of the trail, 64 callers who wait for each, against a bare loop that writes as much and syncs it with fdatasync in the same groups", AtLeast(0.8), Ratio).by("benches/audit.rs"),
    row("trail, opens", "opens of blocks of 4 KiB by a handle of an engine that keeps a trail, against one that keeps none", AtLeast(0.9), Ratio).by("benches/audit.rs"),
    row("trail, handles", "the same of handles, the key in memory: with a trail each is a line", Reported, Ratio).by("benches/audit.rs"),
    row("trail, verify", "`keyleash audit verify` of a trail, one thread", AtLeast(200.0), MegabytesASecond).by("benches/audit.rs"),
    row("trail, extract", "`keyleash audit extract` of one account's lines, one thread", Reported, MegabytesASecond).by("benches/audit.rs"),
    row("trail, memory", "memory of a verification and of an extract of a trail four times as long, against the shorter one's", AtMost(1.1), Ratio).by("benches/audit.rs"),
    row("file, rage", "`keyleash seal` of a file, until it is on the disk, against `rage`", MoreThan(1.0), Ratio),
    row("file, gpg", "the same against `gpg --symmetric`", MoreThan(1.0), Ratio),
    row("file, cat", "the same against a plain copy (`cat`)", Reported, Ratio),
    row("file, rage, returned", "until the command returns (keyleash alone syncs before that), against `rage`", Beside, Ratio),
    row("file, gpg, returned", "the same against `gpg --symmetric`", Beside, Ratio),
    row("file, cat, returned", "the same against `cat`", Beside, Ratio),
    row("file, rage, cpu", "processor time of that, against `rage`", Beside, Ratio),
    row("file, gpg, cpu", "the same against `gpg --symmetric`", Beside, Ratio),
];
