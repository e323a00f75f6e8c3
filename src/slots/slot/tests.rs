//! What a slot's TTL, its use and its successors do to it, on a manual clock.

use super::*;
use crate::{
    clock::{Clock, ManualClock},
    config::Settings,
    lease::{Lease, Terms, Verdict, standby::Voice},
    leash::key_memory::KeyMemory,
    name::{KekName, KekVersion},
    slots::meter::{Counted, Ledger, Limits},
    store::record::{AekPolicy, Usage},
    token::seats::Route,
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(100);
/// After the unwrap.
const REFRESH: Duration = Duration::from_secs(15);

struct Rig {
    clock: ManualClock,
    leash: Arc<Leash>,
    slot: Arc<AekSlot>,
    aek: Aek,
}

impl Rig {
    /// A lease that was just proved, and an empty slot under it.
    fn new() -> Self {
        let manual = ManualClock::new(Instant::default().plus(SECOND));
        let clock = Clock::Manual(manual.clone());
        let settings = Settings { aek_ttl: TTL, grace: GRACE, poll_interval: 10 * SECOND, ..Settings::default() };
        let lease = Lease::new(Terms { grace: GRACE, fresh_span: GRACE });
        let kek = KekVersion::new(KekName::new("k").unwrap(), 1);
        let (route, memory) = (Route::of_test(&clock), KeyMemory::of_test(&clock));
        let leash = Arc::new(Leash::new(kek, route, lease, clock, &settings, memory, Arc::default()));
        let aek = Counted { account: AccountId::new("a").unwrap(), aek_version: 1, created_unix: 1 };
        let meter = Meter::new(&Ledger::new(Limits::SUITE), aek, Usage::default(), AekPolicy::default());
        let slot = AekSlot::new(leash.clone(), meter);
        let rig = Self { clock: manual, leash, slot, aek: Aek::generate().unwrap() };
        rig.prove();
        rig
    }

    /// The same with a key in it.
    fn filled() -> Self {
        let rig = Self::new();
        rig.admit().unwrap();
        rig
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn prove(&self) {
        let (epoch, asked) = (self.leash.epoch(), self.now());
        drop(self.leash.step(Voice::First, Verdict::Granted { asked, context: asked, epoch }, None));
    }

    fn hears(&self, verdict: Verdict) {
        drop(self.leash.step(Voice::First, verdict, None));
    }

    /// The answer to an unwrap that was asked now.
    fn admit(&self) -> Result<()> {
        let now = self.now();
        self.slot.admit(&self.aek, self.leash.epoch(), now.plus(REFRESH), now.plus(TTL))
    }

    /// Seals, say.
    fn uses(&self) -> bool {
        let used = self.slot.usable(&mut Operation::enter(), self.now()).is_some();
        assert_eq!(used, self.slot.is_usable(self.now()));
        used
    }

    fn due(&self) -> Due {
        self.slot.due(self.now())
    }
}

#[test]
fn an_aek_past_its_ttl_is_used_through_a_silence_and_never_for_longer_than_one_silence_and_a_ttl() {
    let rig = Rig::filled();
    rig.clock.advance(TTL - Duration::from_nanos(1));
    assert!(rig.uses());
    rig.clock.advance(Duration::from_nanos(1));
    assert!(!rig.uses(), "the token answers");
    rig.hears(Verdict::Unreachable);
    assert!(rig.uses(), "an outage takes nothing away");
    // A token that flaps puts the instant off from which TTLs bind, and gives no unwrap.
    let began = rig.now();
    while rig.now() < began.plus(GRACE + TTL) {
        assert!(rig.uses(), "{:?} after its TTL", rig.now().since(began));
        rig.prove();
        rig.hears(Verdict::Unreachable);
        rig.clock.advance(SECOND);
    }
    assert!(rig.leash.runs_at(rig.now()) && !rig.uses());
}

#[test]
fn a_ttl_binds_while_the_token_answers_and_one_ttl_after_a_silence() {
    let rig = Rig::new();
    for _ in 0..3 {
        rig.prove();
        assert!(rig.leash.ttl_binds_at(rig.now()), "a proof puts no TTL off");
    }
    rig.hears(Verdict::Unreachable);
    assert!(!rig.leash.ttl_binds_at(rig.now()));
    rig.prove();
    rig.prove();
    assert!(!rig.leash.ttl_binds_at(rig.now()), "what passed its TTL in the silence is refreshed first");
    assert!(rig.leash.ttl_binds_at(rig.now().plus(TTL)));
}

#[test]
fn a_key_of_an_idle_account_is_wiped_when_its_ttl_is_over_and_that_of_a_used_one_is_refreshed_before() {
    for used in [false, true] {
        let rig = Rig::filled();
        assert!(!used || rig.uses());
        assert_eq!(rig.due(), Due::Nothing);
        rig.clock.advance(REFRESH - Duration::from_nanos(1));
        assert_eq!(rig.due(), Due::Nothing);
        rig.clock.advance(Duration::from_nanos(1));
        assert_eq!(rig.due(), if used { Due::Refresh } else { Due::Nothing });
        rig.slot.refresh_from(rig.now().plus(SECOND));
        assert_eq!(rig.due(), Due::Nothing, "one refresh is under way");
        rig.clock.advance(TTL - REFRESH);
        assert_eq!(rig.due(), if used { Due::Refresh } else { Due::Wipe });
    }
}

#[test]
fn in_a_silence_nothing_is_wiped_or_refreshed_but_whether_the_account_was_deleted_is_looked_up() {
    for used in [false, true] {
        let rig = Rig::filled();
        assert!(!used || rig.uses());
        rig.hears(Verdict::Unreachable);
        assert_eq!(rig.due(), Due::Nothing, "its record was just read");
        rig.clock.advance(2 * TTL);
        assert_eq!(rig.due(), Due::Check);
        rig.slot.check_from(rig.now().plus(SECOND));
        assert_eq!(rig.due(), Due::Nothing);
        rig.clock.advance(SECOND);
        assert_eq!(rig.due(), Due::Check);
        // The silence is over, and puts the TTL off for a while.
        rig.prove();
        assert_eq!(rig.due(), if used { Due::Refresh } else { Due::Check });
        rig.slot.check_from(rig.now().plus(SECOND));
        rig.clock.advance(TTL);
        assert_eq!(rig.due(), if used { Due::Refresh } else { Due::Wipe });
    }
}

#[test]
fn a_key_that_a_denial_took_away_while_it_was_filled_is_missed_once_the_lease_is_active_again() {
    let rig = Rig::filled();
    rig.hears(Verdict::Denied);
    assert!(rig.slot.is_wanted() && !rig.slot.is_filled());
    assert_eq!(rig.due(), Due::Nothing, "denied");
    rig.prove();
    assert_eq!(rig.due(), Due::Nothing, "resumption brings it back");
    rig.hears(Verdict::AllBack { epoch: rig.leash.epoch() });
    assert_eq!(rig.due(), Due::Refresh);
    rig.hears(Verdict::Unreachable);
    assert_eq!(rig.due(), Due::Nothing, "in a silence nobody is asked");
    rig.prove();
    rig.slot.give_up();
    assert_eq!((rig.due(), rig.slot.is_wanted()), (Due::Nothing, false));
}

#[test]
fn a_key_that_is_brought_back_is_missed_no_more() {
    let rig = Rig::filled();
    rig.hears(Verdict::Denied);
    rig.prove();
    rig.admit().unwrap();
    assert!(rig.slot.is_filled() && !rig.slot.is_wanted());
}

#[test]
fn a_refresh_asks_anew_whether_the_key_is_used_and_one_that_was_overtaken_changes_nothing() {
    let rig = Rig::filled();
    assert!(!rig.slot.is_in_use(), "filled, and not used yet");
    assert!(rig.uses() && rig.slot.is_in_use());
    let (asked_first, epoch) = (rig.now(), rig.leash.epoch());
    rig.clock.advance(SECOND);
    rig.admit().unwrap();
    assert!(!rig.slot.is_in_use(), "since this unwrap");
    assert!(rig.uses());
    rig.slot.admit(&rig.aek, epoch, asked_first, asked_first.plus(TTL)).unwrap();
    assert!(rig.slot.is_in_use() && rig.due() == Due::Nothing, "an answer to what was asked before it");
    rig.clock.advance(TTL - SECOND);
    assert!(rig.uses(), "its TTL is that of the newer one");
    // Emptied and filled again, it goes by what fills it.
    rig.slot.wipe();
    rig.prove();
    let soon = rig.now().plus(Duration::from_nanos(5));
    rig.slot.admit(&rig.aek, epoch, soon, soon).unwrap();
    assert!(!rig.slot.is_in_use() && rig.uses());
    rig.clock.advance(Duration::from_nanos(5));
    assert!(!rig.uses());
}

#[test]
fn a_key_keeps_its_room_until_a_look_finds_it_unused_and_a_use_is_seen_after_both_looks() {
    let rig = Rig::filled();
    assert!(rig.slot.keeps_its_room(), "just filled");
    assert!(!rig.slot.keeps_its_room());
    assert!(rig.uses() && rig.slot.keeps_its_room());
    assert!(rig.slot.is_in_use(), "a look for room is none at its refresh");
    assert!(!rig.slot.keeps_its_room());
    rig.admit().unwrap(); // neither used since the look nor since the unwrap
    assert!(rig.uses() && rig.slot.is_in_use() && rig.slot.keeps_its_room());
}

#[test]
fn a_successor_wants_back_what_the_old_slot_wanted_or_used_and_nothing_else() {
    let heir = |rig: &Rig| rig.slot.successor(rig.leash.clone());
    let wants = |rig: &Rig, heir: &AekSlot| {
        heir.inherit(&rig.slot);
        heir.is_wanted()
    };
    let idle = Rig::filled();
    assert!(!wants(&idle, &heir(&idle)), "nobody used it");
    let used = Rig::filled();
    assert!(used.uses() && wants(&used, &heir(&used)));
    let wanted = Rig::filled();
    wanted.hears(Verdict::Denied);
    assert!(wants(&wanted, &heir(&wanted)));
    let there = heir(&used);
    let now = used.now();
    there.admit(&used.aek, used.leash.epoch(), now, now.plus(TTL)).unwrap();
    assert!(!wants(&used, &there), "it has the key");
    assert!(std::ptr::eq(there.meter(), used.slot.meter()), "and counts where the first one does");
}

#[test]
fn a_slot_that_another_took_the_place_of_is_empty_proves_nothing_wants_nothing_and_is_counted_until_it_goes() {
    let Rig { leash, slot, aek, clock } = Rig::filled();
    let retired = |leash: &Leash| leash.retired.load(Ordering::SeqCst);
    assert!(slot.proves());
    slot.retire();
    assert_eq!(retired(&leash), 1);
    slot.retire();
    slot.lost();
    assert!(slot.is_retired() && !slot.is_filled() && !slot.proves() && !slot.is_wanted());
    assert_eq!(slot.due(clock.now()), Due::Nothing);
    assert_eq!(retired(&leash), 1);
    let later = clock.now().plus(TTL);
    assert!(matches!(slot.admit(&aek, leash.epoch(), later, later), Err(Error::Cold { .. })));
    assert!(!slot.is_filled(), "an unwrap that was under way fills it no more");
    let other = slot.successor(leash.clone());
    drop(slot);
    assert_eq!(retired(&leash), 1, "its successor counts in it");
    drop(other);
    assert_eq!(retired(&leash), 0);
}

#[test]
fn a_key_is_wiped_when_the_account_is_not_there_and_for_no_other_error() {
    let rig = Rig::filled();
    rig.slot.shut_if_gone(&Error::Store("away".into()));
    assert!(rig.slot.is_filled());
    rig.slot.shut_if_gone(&Error::NotFound("account a".into()));
    assert!(!rig.slot.is_filled() && !rig.slot.is_wanted());
}

#[test]
fn another_aek_than_the_one_in_the_slot_is_told_from_it() {
    let rig = Rig::filled();
    assert!(rig.slot.differs_from(&Aek::generate().unwrap()) && !rig.slot.differs_from(&rig.aek));
}
