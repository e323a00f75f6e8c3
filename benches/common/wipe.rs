//! Whether the wipe of many slots holds up who seals under another KEK.
//!
//! On a machine with as many cores as sealing threads the wipe takes a core from one of them now and then, for as long as the
//! system's scheduler likes; that is no delay by the wipe. So three things are told of each seal: its time on the wall, its time
//! on the processor (whoever spins uses it), and whether its thread ever waited by itself (whoever blocks does).

use super::pairs::{Pinned, cores, thread_cpu};
use keyleash::{Account, clock::Clock};
use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What each seal has to do.
const BLOCK_BYTES: usize = 4096;
const ADDRESS: u64 = 42;

/// The seals of all threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seals {
    pub(crate) count: u64,
    /// The longest one, on the wall.
    pub(crate) wall_max: Duration,
    /// The longest one, on the processor.
    pub(crate) cpu_max: Duration,
    /// How often a thread gave its core up by itself, to wait for something.
    pub(crate) waits: u64,
}

impl Seals {
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            wall_max: self.wall_max.max(other.wall_max),
            cpu_max: self.cpu_max.max(other.cpu_max),
            waits: self.waits + other.waits,
        }
    }
}

/// Lets a thread for each account seal for as long as `meanwhile` takes.
pub(crate) fn seal_during<T>(accounts: &[Account], meanwhile: impl FnOnce() -> T) -> (T, Seals) {
    let (stop, begun, cores) = (AtomicBool::new(false), Barrier::new(accounts.len() + 1), cores());
    std::thread::scope(|scope| {
        let threads: Vec<_> = accounts
            .iter()
            .enumerate()
            .map(|(number, account)| {
                let (stop, begun, core) = (&stop, &begun, cores[number % cores.len()]);
                scope.spawn(move || {
                    let _pinned = Pinned::to(core);
                    seal_until(account, begun, stop)
                })
            })
            .collect();
        begun.wait();
        let done = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let seals = threads.into_iter().map(|thread| thread.join().expect("a thread that seals"));
        (done, seals.fold(Seals::default(), Seals::and))
    })
}

fn seal_until(account: &Account, begun: &Barrier, stop: &AtomicBool) -> Seals {
    let (clock, mut seals, mut block) = (Clock::default(), Seals::default(), vec![7; BLOCK_BYTES]);
    account.seal_in_place(ADDRESS, &mut block).expect("a sealed block");
    begun.wait();
    let waited = voluntary_switches();
    while !stop.load(Ordering::Relaxed) {
        let (wall, cpu) = (clock.now(), thread_cpu());
        account.seal_in_place(ADDRESS, &mut block).expect("a sealed block");
        seals.cpu_max = seals.cpu_max.max(thread_cpu().saturating_sub(cpu));
        seals.wall_max = seals.wall_max.max(clock.now().since(wall));
        seals.count += 1;
    }
    seals.waits = voluntary_switches() - waited;
    seals
}

fn voluntary_switches() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).expect("voluntary context switches")
}
