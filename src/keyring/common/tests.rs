use super::*;
use crate::{
    clock::ManualClock,
    home::Home,
    keyring::{access::PolicySource, on_trail::OnTrail},
    store::memory::MemoryStore,
    token::{scripted::ScriptedToken, seats::Tokens},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::sync::Arc;

const RIGHT: u64 = 1_700_000_000;
const HOUR: u64 = 3600;

fn process(clock: &ManualClock, store: &Arc<MemoryStore>) -> Keyring {
    let clock = Clock::Manual(clock.clone());
    let settings = Settings::default();
    let (token, _) = ScriptedToken::new(clock.clone(), settings.store_timeout, 1);
    let tokens = Tokens::of_test(token, &clock);
    Keyring::new(
        tokens,
        store.clone(),
        clock,
        settings,
        Home::here().unwrap(),
        Some(1),
        PolicySource::None,
        OnTrail::default(),
    )
}

/// A machine whose wall clock is right, an hour or a day off, or dead.
fn machine(time: &ManualClock, rng: &mut StdRng) -> ManualClock {
    let right = RIGHT + time.now().as_nanos() / 1_000_000_000;
    let walls = [right, right - HOUR, right + HOUR, right + 24 * HOUR, 0];
    time.elsewhere().with_wall(walls[rng.random_range(0..walls.len())])
}

/// Of worlds in which dates are compared: optimised they take a tenth.
const SEEDS: u64 = if cfg!(debug_assertions) { 60 } else { 300 };

/// Whoever dates, whoever compares, whenever each looked or wrote last, whatever their wall clocks say, and whichever of them were
/// begun anew on the same boot, on another, or on a copy of the machine.
#[tokio::test]
async fn no_date_looks_older_than_it_is() {
    let (mut compared, mut passed_at_most, mut late_at_most) = (0_u64, 0, 0);
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let time = ManualClock::new(Instant::from_nanos(50_000_000_000_000));
        let store = Arc::new(MemoryStore::new());
        process(&time, &store).stamp().await.unwrap(); // it begins with a clock that is set
        let mut machines: Vec<_> = (0..3).map(|_| machine(&time, &mut rng)).collect();
        let mut processes: Vec<_> = machines.iter().map(|machine| process(machine, &store)).collect();
        // (date, when it was written)
        let mut dates = Vec::new();
        for _ in 0..120 {
            let n = rng.random_range(0..processes.len());
            match rng.random_range(0..20) {
                0..6 => time.advance(Duration::from_millis(rng.random_range(0..[900, 90_000, 20_000_000][n]))),
                6..10 => dates.push((processes[n].stamp().await.unwrap(), time.now())),
                10..13 => processes[n].keep_common().await.unwrap(),
                13 => drop(processes[n].date().await.unwrap()),
                14 => {
                    machines[n] = machine(&time, &mut rng);
                    processes[n] = process(&machines[n], &store);
                }
                15 => processes[n] = process(&machines[n], &store),
                16 => {
                    // Its wall clock is stepped.
                    let wall = Clock::Manual(machines[n].clone()).wall_unix();
                    machines[n] =
                        machines[n].with_wall((wall + 2 * HOUR).saturating_sub(rng.random_range(0..4 * HOUR)));
                    processes[n] = process(&machines[n], &store);
                }
                _ => {
                    let date = processes[n].agreed().await.unwrap().date_unix;
                    for (stamp, written) in &dates {
                        let (age, passed) = (date.saturating_sub(*stamp), time.now().since(*written).as_secs());
                        assert!(age <= passed, "seed {seed}: {age} s old after {passed} s");
                        compared += 1;
                        passed_at_most = passed_at_most.max(passed);
                        late_at_most = late_at_most.max(passed - age);
                    }
                }
            }
        }
    }
    assert!(
        compared > 30 * SEEDS && passed_at_most > 12 * HOUR && late_at_most > 0,
        "{compared} {passed_at_most} {late_at_most}"
    );
}

#[tokio::test]
async fn time_passes_for_who_stays_and_between_commands_of_one_boot_and_for_nobody_else() {
    let time = ManualClock::new(Instant::from_nanos(50_000_000_000_000));
    let store = Arc::new(MemoryStore::new());
    let (here, there) = (time.elsewhere(), time.elsewhere());
    let first = process(&here, &store).stamp().await.unwrap();
    assert_eq!(first, RIGHT + 50_000, "a store begins with the wall clock's date");
    let stays = process(&there, &store);
    let age = async |of: &Keyring| of.agreed().await.unwrap().date_unix - first;
    assert_eq!(age(&stays).await, 0);
    time.advance(Duration::from_secs(100));
    assert_eq!((age(&stays).await, age(&process(&here, &store)).await), (100, 100));
    assert_eq!(age(&process(&there, &store)).await, 0, "nobody told when the date was written");
    time.advance(Duration::from_secs(HOUR));
    assert_eq!(age(&process(&here.elsewhere(), &store)).await, 0, "whatever its wall clock says");
    assert_eq!(age(&stays).await, HOUR + 100);
    assert_eq!(age(&process(&here.elsewhere(), &store)).await, HOUR + 100, "what it saw is written down");
    // A copy of the machine, or one that was put back: the wall clock does not confirm what CLOCK_BOOTTIME says.
    let wall = Clock::Manual(there.clone()).wall_unix();
    time.advance(Duration::from_secs(HOUR));
    assert_eq!(age(&process(&there.with_wall(wall), &store)).await, HOUR + 100);
}

#[tokio::test]
async fn a_store_does_not_begin_with_the_date_of_a_clock_that_was_never_set_and_goes_on_under_one() {
    let time = ManualClock::new(Instant::from_nanos(50_000_000_000_000));
    let store = Arc::new(MemoryStore::new());
    let dead = process(&time.elsewhere().with_wall(50_000), &store);
    let refused = dead.stamp().await.unwrap_err();
    assert!(matches!(&refused, Error::Misconfigured(what) if what.contains("1970-01-01T13:53:20Z")), "{refused}");
    let right = process(&time, &store).stamp().await.unwrap();
    assert_eq!(dead.stamp().await.unwrap(), right);
}
