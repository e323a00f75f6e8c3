//! What a lease in force promises.

use super::*;
use crate::{clock::ManualClock, error::Error, lease::Terms, name::KekName, secret::Aek};

#[derive(Debug, Default)]
struct Slot(KeySlot);
impl Member for Slot {
    fn key(&self) -> &KeySlot {
        &self.0
    }
    fn lost(&self) {}
}

fn leash() -> (Leash<Slot>, ManualClock, Arc<Slot>) {
    let manual = ManualClock::new(Instant::from_nanos(1));
    let kek = KekVersion::new(KekName::new("k").unwrap(), 1);
    let clock = Clock::Manual(manual.clone());
    let terms = Terms { grace: Duration::from_secs(10), fresh_span: Duration::from_secs(100) };
    let settings =
        Settings { poll_interval: Duration::from_secs(4), aek_ttl: Duration::from_secs(5), ..Settings::default() };
    let memory = KeyMemory::of_test(&clock);
    let leash = Leash::new(kek, Route::of_test(&clock), Lease::new(terms), clock, &settings, memory, Arc::default());
    let slot = Arc::<Slot>::default();
    leash.enlist(Arc::downgrade(&slot));
    (leash, manual, slot)
}

fn prove(leash: &Leash<Slot>) -> u64 {
    let (epoch, _) = leash.asking();
    let now = leash.clock.now();
    leash.step(Voice::First, Verdict::Granted { asked: now, context: now, epoch }, None);
    epoch
}

#[test]
fn members_to_prove_with_are_each_there_once_whatever_dead_ones_lie_between() {
    let (leash, _, first) = leash();
    let mut living = vec![first];
    for n in 0..30 {
        let slot = Arc::<Slot>::default();
        leash.enlist(Arc::downgrade(&slot));
        living.extend((n % 10 == 9).then_some(slot));
    }
    for turn in 0..64 {
        let members = leash.members_from(turn, 3);
        assert_eq!(members.len(), 3);
        assert!((0..3).all(|n| !Arc::ptr_eq(&members[n], &members[(n + 1) % 3])), "turn {turn}");
        assert_eq!(leash.members_from(turn, 100).len(), living.len());
    }
}

#[test]
fn who_came_since_the_newest_proof_was_asked_is_no_elder_whoever_died_meanwhile() {
    let (leash, _, first) = leash();
    let come = || {
        let slot = Arc::<Slot>::default();
        leash.enlist(Arc::downgrade(&slot));
        slot
    };
    let elders = || leash.elders(0, usize::MAX, |_| true).len();
    assert_eq!(elders(), 0);
    leash.proof_begins();
    let second = come();
    leash.proof_came();
    assert_eq!(elders(), 1);
    leash.proof_begins();
    (0..100).for_each(|_| drop(come()));
    let third = come();
    leash.proof_came();
    assert_eq!(elders(), 2);
    drop(first);
    (0..1000).for_each(|_| drop(come()));
    assert_eq!(elders(), 1);
    leash.proof_begins();
    leash.proof_came();
    assert_eq!(elders(), 2);
    drop((second, third));
}

#[test]
fn a_denial_wipes_and_an_unwrap_that_began_before_it_does_not_readmit() {
    let (leash, _, slot) = leash();
    let aek = Aek::generate().unwrap();
    let epoch = prove(&leash);
    assert!(leash.admit(epoch, &*slot, &aek, |_| ()).is_ok());
    assert!(slot.0.holds(&aek));
    leash.step(Voice::First, Verdict::Denied, None);
    assert!(slot.0.epoch().is_none() && !leash.runs_at(leash.clock.now()));
    let denied = leash.admit(epoch, &*slot, &aek, |_| ());
    assert!(matches!(denied, Err(NotAdmitted::Refused(Error::Denied(_)))));
    // Not even after the token granted again: it was asked in an earlier epoch.
    let epoch_now = prove(&leash);
    assert!(matches!(leash.admit(epoch, &*slot, &aek, |_| ()), Err(NotAdmitted::AskAgain)));
    assert!(slot.0.epoch().is_none());
    assert!(leash.admit(epoch_now, &*slot, &aek, |_| ()).is_ok());
}

#[test]
fn no_key_is_admitted_on_an_old_proof() {
    let (leash, manual, slot) = leash();
    let aek = Aek::generate().unwrap();
    let epoch = prove(&leash);
    manual.advance(Duration::from_secs(4));
    let late = leash.admit(epoch, &*slot, &aek, |_| panic!("admitted"));
    assert!(matches!(late, Err(NotAdmitted::AskAgain)) && leash.runs_at(manual.now()));
    assert_eq!(prove(&leash), epoch);
    manual.advance(Duration::from_secs(4) - Duration::from_nanos(1));
    assert!(leash.admit(epoch, &*slot, &aek, |_| ()).is_ok());
}

#[test]
fn a_grant_that_renewed_nothing_ends_no_denial_by_the_first_token() {
    let (leash, manual, _slot) = leash();
    let epoch = prove(&leash);
    let asked = leash.clock.now();
    leash.step(Voice::First, Verdict::Denied, None);
    let late = [
        Verdict::Granted { asked, context: asked, epoch },
        // Of the epoch now, and so old that its lease would be over.
        Verdict::Granted { asked, context: asked, epoch: leash.epoch() },
    ];
    manual.advance(Duration::from_secs(10));
    for grant in late {
        assert!(!leash.step(Voice::First, grant, None).counts);
        leash.note_first(FirstWord::is_silent);
        leash.note_first(|first, now| first.looked(now.plus(Duration::from_secs(1))));
        assert_eq!(leash.first().may_go_over(manual.now()), Some(false), "{grant:?} let the standby speak");
    }
    let asked = manual.now();
    assert!(leash.step(Voice::First, Verdict::Granted { asked, context: asked, epoch: leash.epoch() }, None).counts);
    assert!(!leash.first().has_denied());
    leash.note_first(FirstWord::is_silent);
    leash.note_first(|first, now| first.looked(now.plus(Duration::from_secs(1))));
    assert_eq!(leash.first().may_go_over(manual.now()), Some(true), "but what renewed does");
}

#[test]
fn no_key_is_admitted_when_the_engine_is_gone_or_the_lease_is_over() {
    let (leash, manual, slot) = leash();
    let aek = Aek::generate().unwrap();
    let epoch = prove(&leash);
    manual.advance(Duration::from_secs(10));
    let at_its_end = leash.admit(epoch, &*slot, &aek, |_| panic!("admitted"));
    assert!(matches!(at_its_end, Err(NotAdmitted::Refused(Error::Lapsed(_)))));
    let epoch = prove(&leash);
    assert!(leash.admit(epoch, &*slot, &aek, |_| ()).is_ok());
    leash.close();
    assert!(slot.0.epoch().is_none());
    let gone = leash.admit(epoch, &*slot, &aek, |_| panic!("admitted"));
    assert!(matches!(gone, Err(NotAdmitted::Refused(_))) && slot.0.epoch().is_none(), "nobody asks again");
}

#[test]
fn a_refresh_leaves_the_key_where_it_is_and_another_aek_takes_its_place() {
    let (leash, _, slot) = leash();
    let (aek, other) = (Aek::generate().unwrap(), Aek::generate().unwrap());
    let epoch = prove(&leash);
    let put_in = |aek| {
        let mut put_in = None;
        assert!(leash.admit(epoch, &*slot, aek, |was| put_in = Some(was)).is_ok());
        put_in
    };
    assert_eq!([&aek, &aek, &other, &aek].map(put_in), [Some(true), Some(false), Some(true), Some(true)]);
    assert!(slot.0.holds(&aek));
}

#[test]
fn a_token_that_refuses_or_is_silent_is_asked_once_per_pause_whoever_comes() {
    let (leash, manual, _slot) = leash();
    let pause = Duration::from_secs(2);
    let ask = |times| (0..times).map(|_| leash.may_ask(manual.now(), pause)).collect::<Vec<_>>();
    assert_eq!(ask(3), [true; 3], "nothing is known of it yet");
    prove(&leash);
    assert_eq!(ask(3), [true; 3], "it answers");
    for verdict in [Verdict::Unreachable, Verdict::Denied] {
        leash.step(Voice::First, verdict, None);
        assert_eq!(ask(3), [true, false, false], "{verdict:?}");
        manual.advance(pause - Duration::from_nanos(1));
        assert_eq!(ask(1), [false], "{verdict:?}");
        manual.advance(Duration::from_nanos(1));
        assert_eq!(ask(2), [true, false], "{verdict:?}");
        manual.advance(pause);
        leash.asked(manual.now());
        assert_eq!(ask(1), [false], "the watch asks it: {verdict:?}");
        manual.advance(pause);
    }
    assert!(leash.refuses() && leash.is_denied());
    prove(&leash);
    assert!(!leash.refuses() && !leash.is_denied() && leash.may_ask(manual.now(), pause));
    manual.advance(Duration::from_secs(10));
    leash.asking();
    assert!(leash.refuses() && !leash.is_denied(), "lapsed");
}

#[test]
fn a_silence_is_known_from_its_beginning_until_the_token_answers() {
    let (leash, manual, _slot) = leash();
    prove(&leash);
    let came = manual.now();
    assert!(!leash.was_silent(came));
    manual.advance(Duration::from_secs(1));
    leash.step(Voice::First, Verdict::Unreachable, None);
    assert!(leash.was_silent(came) && !leash.was_silent(manual.now()), "whoever comes after it finds out");
    prove(&leash);
    assert!(!leash.was_silent(came));
    leash.step(Voice::First, Verdict::Unreachable, None);
    leash.step(Voice::First, Verdict::Denied, None);
    assert!(!leash.was_silent(came), "a denial is an answer");
}

#[test]
fn the_reason_of_a_denial_stands_until_a_proof_whatever_comes_late() {
    let (leash, manual, _slot) = leash();
    let trouble = |verdict, what: &str| TokenError::new(verdict, "unwrap", what, "see");
    let (no, nothing) = (trouble(TokenVerdict::Denied, "no"), trouble(TokenVerdict::Unreachable, "nothing"));
    let epoch = prove(&leash);
    let asked = manual.now();
    assert!(!leash.step(Voice::First, Verdict::Unreachable, Some(&nothing)).counts);
    assert_eq!(leash.trouble(), Some(TokenVerdict::Unreachable));
    assert!(leash.step(Voice::First, Verdict::Denied, Some(&no)).counts);
    leash.step(Voice::First, Verdict::Unreachable, Some(&nothing));
    leash.step(Voice::First, Verdict::Granted { asked, context: asked, epoch }, None);
    assert!(!leash.step(Voice::First, Verdict::Nothing, None).counts);
    assert_eq!(leash.trouble(), Some(TokenVerdict::Denied));
    prove(&leash);
    assert_eq!(leash.trouble(), None);
    leash.remember(no);
    assert_eq!(leash.trouble(), Some(TokenVerdict::Denied));
}

#[test]
fn that_there_is_no_record_to_prove_with_is_news_once() {
    let (leash, ..) = leash();
    let why = || Some("none".to_owned());
    assert_eq!(
        [None, why(), why(), None, None].map(|why| leash.note_unprovable(why)),
        [false, true, false, true, false]
    );
}

#[test]
fn a_renewal_that_one_token_owes_is_remembered_until_it_is_done_and_is_not_the_other_ones() {
    let (leash, ..) = leash();
    let owed = || [Voice::First, Voice::Standby].map(|voice| leash.renewal_owed(voice).load(Ordering::SeqCst));
    for (voice, expected) in [(Voice::First, [true, false]), (Voice::Standby, [false, true])] {
        leash.renewal_owed(voice).store(true, Ordering::SeqCst);
        assert_eq!(owed(), expected);
        leash.renewal_owed(voice).store(false, Ordering::SeqCst);
    }
    assert_eq!(owed(), [false; 2]);
}

#[test]
fn members_that_are_not_wanted_prove_nothing_and_dead_ones_are_forgotten() {
    let (leash, _, slot) = leash();
    assert_eq!(leash.members_that(0, 9, |_| true).len(), 1);
    assert!(leash.members_that(0, 9, |_| false).is_empty());
    (0..10_000).for_each(|_| leash.enlist(Arc::downgrade(&Arc::<Slot>::default())));
    assert!(leash.members().all.len() < 100, "the dead are kept");
    assert!(Arc::ptr_eq(&leash.member(7).unwrap(), &slot));
}

#[test]
fn a_lapse_for_want_of_fresh_proofs_is_told_from_a_silent_token() {
    for fresh in [true, false] {
        let (leash, manual, _slot) = leash();
        prove(&leash);
        if !fresh {
            // Ordinary proofs, out of the context of the first one, until they count no more.
            let (context, epoch) = (manual.now(), leash.epoch());
            for _ in 0..109 {
                manual.advance(Duration::from_secs(1));
                leash.step(Voice::First, Verdict::Granted { asked: manual.now(), context, epoch }, None);
            }
        }
        assert!(leash.why_refused(manual.now()).is_none());
        manual.advance(Duration::from_secs(10));
        let text = leash.why_refused(manual.now()).unwrap().to_string();
        let (told, other) = ("no fresh proof", "token has been silent");
        let (told, other) = if fresh { (other, told) } else { (told, other) };
        assert!(text.contains(told) && !text.contains(other), "{text}");
    }
}

#[test]
fn a_lease_ends_by_the_clock_alone() {
    let (leash, manual, slot) = leash();
    let epoch = prove(&leash);
    assert!(leash.admit(epoch, &*slot, &Aek::generate().unwrap(), |_| ()).is_ok());
    manual.advance(Duration::from_secs(10));
    assert!(!leash.runs_at(manual.now()), "nobody stepped the lease, and it is over");
    assert!(matches!(leash.why_not(), Error::Lapsed(_)));
    leash.asking();
    assert!(slot.0.epoch().is_none(), "and whoever steps it wipes");
}

#[test]
fn refusals_say_since_when_why_and_what_to_do() {
    let (leash, manual, _slot) = leash();
    prove(&leash);
    let trouble = TokenError {
        verdict: crate::token::Verdict::Denied,
        operation: "unwrap",
        what: "CKR_KEY_FUNCTION_NOT_PERMITTED".into(),
        remedy: "enable it".into(),
        code: Some("CKR_KEY_FUNCTION_NOT_PERMITTED".into()),
    };
    leash.step(Voice::First, Verdict::Denied, Some(&trouble));
    manual.advance(Duration::from_secs(7));
    let text = leash.why_not().to_string();
    let Error::Denied(refusal) = leash.why_not() else { panic!("{text}") };
    assert_eq!(refusal.kek.unwrap().to_string(), "k/1");
    assert_eq!(refusal.code.as_deref(), Some("CKR_KEY_FUNCTION_NOT_PERMITTED"));
    for part in ["denied", "KEK k/1", "for 7 s", "CKR_KEY_FUNCTION_NOT_PERMITTED", "enable it"] {
        assert!(text.contains(part), "{text}");
    }
}
