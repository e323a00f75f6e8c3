//! Notices KEK versions that come and go in the token behind the engine's back: rotating a key there without telling
//! keyleash is the classic way to lose access.
//!
//! It only tells. What is denied is learned from proofs; a listing denies nothing and grants nothing.

use super::Beat;
use crate::{
    error::Result,
    keyring::{Keyring, on_trail::of_kek},
    name::{KekVersion, TokenName},
    store::{kek_names, load_kek, record::KekVersionRecord},
    telemetry::{
        Event,
        trail::{Deed, Outcome, Subject},
    },
    token::{KekId, KekInfo, LABEL_PREFIX, seats::Seat},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// The token is asked for its keys once in so many poll intervals: one call more for twenty proofs of one KEK version.
const POLLS_PER_LOOK: u32 = 20;
/// A token that does not list its keys is asked less and less often, down to once in this many looks.
const LOOKS_PER_TRY_MAX: u32 = 64;
/// Changes that one look tells one by one. What is more is told by the looks after it.
const CHANGES_PER_LOOK_MAX: usize = 64;

/// Looks into one token now and then, for as long as the engine lives.
pub(super) async fn look_after(keyring: Arc<Keyring>, seat: Arc<Seat>, beat: Arc<Beat>) {
    let every = keyring.settings.poll_interval * POLLS_PER_LOOK;
    let (mut seen, mut tries) = (Seen { token: seat.name.clone(), ..Seen::default() }, 1);
    let mut next = keyring.clock.now().plus(every);
    loop {
        let now = keyring.clock.now();
        beat.at(now);
        if keyring.is_closed() {
            return;
        }
        if now >= next {
            tries = match look(&keyring, &seat, &mut seen).await {
                Ok(()) => 1,
                Err(error) => {
                    tracing::debug!(%error, "the token's keys could not be compared with the store's");
                    (tries * 2).min(LOOKS_PER_TRY_MAX)
                }
            };
            next = now.plus(every * tries);
        }
        // Shows life in between.
        keyring.clock.sleep_until(now.plus(Duration::from_secs(5)).min(next)).await;
    }
}

async fn look(keyring: &Keyring, seat: &Seat, seen: &mut Seen) -> Result<()> {
    let deadline = keyring.clock.now().plus(keyring.settings.store_timeout);
    let Some(known) = keyring.clock.until(deadline, known(keyring, &seat.name)).await else { return Ok(()) };
    let (known, clones) = known?;
    if known.is_empty() {
        return Ok(());
    }
    let mut found = seat.token(&seat.budget.background(None).await).list_keks().await?;
    found.retain(|info| known.contains_key(&info.id) || !clones.contains(&info.id));
    for event in seen.compare(&known, &found) {
        note(keyring, &event);
        keyring.teller.tell(event);
    }
    Ok(())
}

/// On the trail too.
fn note(keyring: &Keyring, event: &Event) {
    let (deed, on) = match event {
        Event::KekUnknown { token, .. } => {
            (Deed::KekUnknown, Subject { token: Some(token.clone()), ..Subject::default() })
        }
        Event::KekMissing { kek, .. } => (Deed::KekMissing, of_kek(kek)),
        Event::KekBack { kek } => (Deed::KekBack, of_kek(kek)),
        _ => return,
    };
    keyring.note_of(deed, || Outcome::Done, |record| record.on = on);
}

/// A version of a KEK that is not retired.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    kek: KekVersion,
    current: bool,
    retired: bool,
}

/// Every KEK version of the store that is in this token, and those that it may have clones of, as their standby.
async fn known(keyring: &Keyring, token: &TokenName) -> Result<(BTreeMap<KekId, Known>, BTreeSet<KekId>)> {
    let (mut known, mut clones) = (BTreeMap::new(), BTreeSet::new());
    for name in kek_names(&*keyring.store).await? {
        // A damaged record is told by whoever needs it; without it its keys would pass for unknown ones.
        let Some((record, _)) = load_kek(&*keyring.store, &name).await? else { continue };
        let may_have = |version: &KekVersionRecord| keyring.tokens.may_have(token, &name, &version.token);
        for version in record.versions.into_iter().filter(may_have) {
            if version.token != *token {
                clones.insert(version.id);
                continue;
            }
            let kek = KekVersion::new(name.clone(), version.version);
            let (current, retired) = (version.version == record.current, version.retired_unix.is_some());
            known.insert(version.id, Known { kek, current, retired });
        }
    }
    Ok((known, clones))
}

/// What was told, or needs not be.
#[derive(Debug, Default)]
struct Seen {
    token: TokenName,
    looked: bool,
    unknown: BTreeSet<KekId>,
    missing: BTreeSet<KekVersion>,
}

impl Seen {
    /// What changed since the look before. Of keys that were there at the first look, only those are told that bear the label
    /// of a KEK: tokens are shared with other applications.
    fn compare(&mut self, known: &BTreeMap<KekId, Known>, found: &[KekInfo]) -> Vec<Event> {
        let there: BTreeMap<_, _> = found.iter().map(|info| (&info.id, info)).collect();
        let labels: BTreeSet<_> =
            found.iter().filter(|info| known.contains_key(&info.id)).map(|info| &info.label).collect();
        let mut events = Vec::new();
        // Gone again, or adopted: it is news when it comes back.
        self.unknown.retain(|id| there.contains_key(id) && !known.contains_key(id));
        for info in found {
            if events.len() >= CHANGES_PER_LOOK_MAX {
                break;
            }
            if known.contains_key(&info.id) || !self.unknown.insert(info.id.clone()) {
                continue;
            }
            if self.looked || info.label.starts_with(LABEL_PREFIX) || labels.contains(&info.label) {
                let (token, id, label) = (self.token.clone(), info.id.clone(), info.label.clone());
                events.push(Event::KekUnknown { token, id, label });
            }
        }
        for (id, Known { kek, current, retired }) in known {
            if events.len() >= CHANGES_PER_LOOK_MAX {
                break;
            }
            match there.contains_key(id) {
                true if self.missing.remove(kek) => events.push(Event::KekBack { kek: kek.clone() }),
                false if !retired && self.missing.insert(kek.clone()) => {
                    events.push(Event::KekMissing { kek: kek.clone(), current: *current });
                }
                _ => {}
            }
        }
        self.missing.retain(|kek| known.values().any(|known| known.kek == *kek && !known.retired));
        self.looked = true;
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::KekName;

    fn id(id: u8) -> KekId {
        KekId::new([id]).unwrap()
    }

    fn kek(version: u32) -> KekVersion {
        KekVersion::new(KekName::new("k").unwrap(), version)
    }

    fn info(number: u8, label: &str) -> KekInfo {
        KekInfo {
            id: id(number),
            label: label.into(),
            profile: None,
            bits: 256,
            destroyable: None,
            modifiable: None,
            enabled: true,
            refused: None,
            half: None,
            warnings: Vec::new(),
            known_outside: None,
        }
    }

    fn known(versions: &[(u8, u32, bool)]) -> BTreeMap<KekId, Known> {
        let last = versions.iter().map(|(_, version, _)| *version).max();
        let known = |(number, version, retired): &(u8, u32, bool)| {
            (id(*number), Known { kek: kek(*version), current: Some(*version) == last, retired: *retired })
        };
        versions.iter().map(known).collect()
    }

    #[test]
    fn each_change_is_told_once_and_so_is_its_end() {
        let mut seen = Seen::default();
        let store = known(&[(1, 1, false), (2, 2, false)]);
        let both = [info(1, "keyleash/k/1"), info(2, "keyleash/k/2")];
        assert_eq!(seen.compare(&store, &both), []);
        let gone = || Event::KekMissing { kek: kek(2), current: true };
        assert_eq!(seen.compare(&store, &both[..1]), [gone()]);
        assert_eq!(seen.compare(&store, &both[..1]), []);
        assert_eq!(seen.compare(&store, &both), [Event::KekBack { kek: kek(2) }]);
        assert_eq!(seen.compare(&store, &both), []);
        assert_eq!(seen.compare(&store, &both[..1]), [gone()]);
        let more = [info(1, "keyleash/k/1"), info(9, "vendor")];
        let unknown = || Event::KekUnknown { token: TokenName::default(), id: id(9), label: "vendor".into() };
        assert_eq!(seen.compare(&store, &more), [unknown()]);
        assert_eq!(seen.compare(&store, &more), []);
        assert_eq!(seen.compare(&store, &both[..1]), []);
        assert_eq!(seen.compare(&store, &more), [unknown()]);
        let adopted = known(&[(1, 1, false), (9, 3, false)]);
        assert_eq!(seen.compare(&adopted, &more), []);
    }

    #[test]
    fn what_is_retired_may_go_and_what_other_applications_have_is_not_told() {
        let mut seen = Seen::default();
        let store = known(&[(1, 1, true), (2, 2, false)]);
        let shared = [info(2, "tenants"), info(7, "web server"), info(8, "tenants"), info(9, "keyleash/k/3")];
        let told = |number, label: &str| Event::KekUnknown {
            token: TokenName::default(),
            id: id(number),
            label: label.into(),
        };
        assert_eq!(seen.compare(&store, &shared), [told(8, "tenants"), told(9, "keyleash/k/3")]);
        assert_eq!(seen.compare(&store, &shared), []);
    }

    #[test]
    fn many_changes_at_once_are_told_by_several_looks() {
        let mut seen = Seen::default();
        let store = known(&[(1, 1, false)]);
        seen.compare(&store, &[info(1, "a")]);
        let many: Vec<_> = (1..=200).map(|number| info(number, "a")).collect();
        let told: Vec<_> = (0..4).map(|_| seen.compare(&store, &many).len()).collect();
        assert_eq!(told, [64, 64, 64, 7]);
        assert_eq!(seen.compare(&store, &many), []);
    }
}
