//! The drill `rotation`: while blocks flow the KEK is rotated, every AEK re-wrapped and rotated, and the old KEK version retired
//! and destroyed in the token, which nobody needs any more.

use super::{
    args::Options,
    conduct::{patience, words},
    ground::{Ground, destroy_at_the_end},
    outcome::Outcome,
    timeline::{Recorder, Sealed},
    wait::Wait,
};
use crate::exit::Failure;
use keyleash::{
    Engine, Error,
    clock::{Clock, Instant},
    name::{AccountId, KekVersion},
    rotate::RewrapOptions,
    store::record::KekVersionRecord,
    token::KekId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinSet;

/// Accounts whose AEKs are rotated at once: a service that rotates all of them shares the token with its own load.
const ROTATED_AT_ONCE: usize = 16;

/// What was done, and how long it took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rotated {
    pub(crate) rewrapped: u64,
    pub(crate) rewrap: Duration,
    pub(crate) aek_rotation: Duration,
    /// Accounts that are under the old KEK version at the end.
    pub(crate) left_behind: u64,
    /// Accounts whose handles did not take up their new AEK version, by the headers of what they sealed.
    pub(crate) not_rotated: u64,
}

struct Play<'a> {
    ground: &'a mut Ground,
    options: &'a Options,
    engine: &'a Engine,
    ids: &'a [AccountId],
    recorder: &'a Arc<Recorder>,
    wait: &'a Wait,
}

/// Plays it.
pub(crate) async fn conduct(
    ground: &mut Ground,
    options: &Options,
    engine: &Engine,
    ids: &[AccountId],
    recorder: &Arc<Recorder>,
    wait: &Wait,
) -> Result<Rotated, Failure> {
    let poll = ground.settings.poll_interval;
    let begun = now();
    wait.until(begun.plus(patience(options)), || recorder.all_are(Outcome::Ok, begun)).await;
    wait.rest("load", poll).await;
    let mut play = Play { ground, options, engine, ids, recorder, wait };
    let old = play.rotate_kek().await?;
    wait.rest("rotated", poll).await;

    let mut rotated = Rotated::default();
    (rotated.rewrapped, rotated.rewrap) = play.rewrap().await?;
    wait.rest("re-wrapped", poll).await;
    let versions;
    (versions, rotated.aek_rotation) = play.rotate_aeks().await?;
    wait.rest("rotated", poll).await;
    play.destroy(&old).await?;
    wait.rest("active", poll * 2).await;
    let ended = now();
    let not_rotated = || not_rotated(ids, &versions, &recorder.sealed(), ended);
    let all_well = || recorder.all_are(Outcome::Ok, ended) && not_rotated() == 0;
    wait.until(ended.plus(patience(options)), all_well).await;

    rotated.left_behind = engine.count_wrapped_by(&old).await?;
    rotated.not_rotated = not_rotated();
    Ok(rotated)
}

/// Accounts whose newest block was sealed before `since`, or under an older AEK version than its rotation gave.
fn not_rotated(
    ids: &[AccountId],
    versions: &BTreeMap<AccountId, u32>,
    sealed: &[Option<Sealed>],
    since: Instant,
) -> u64 {
    let took_up = |(number, id): (usize, &AccountId)| {
        let (newest, version) = (sealed.get(number).copied().flatten(), versions.get(id));
        newest
            .zip(version)
            .is_some_and(|(newest, version)| newest.from >= since.as_nanos() && newest.aek_version >= *version)
    };
    ids.iter().enumerate().filter(|account| !took_up(*account)).count() as u64
}

impl Play<'_> {
    fn step(&self, what: impl Into<String>, at: Instant) {
        self.recorder.act("step", what, at);
    }

    /// Makes the next version, or adopts the one that a person makes. Gives the old one.
    async fn rotate_kek(&mut self) -> Result<KekVersion, Failure> {
        let name = self.ground.name.clone();
        let old = KekVersion::new(name.clone(), self.current().await?.version);
        let at = now();
        let made = match self.ground.actor.is_operator() {
            false => self.engine.rotate_kek(&name).await?,
            true => {
                let id = self.made_by_operator(&old).await?;
                self.engine.adopt_kek(&name, &id).await?
            }
        };
        destroy_at_the_end(&mut self.ground.undo, &self.ground.launch, &made.id);
        self.recorder.act("act", format!("rotate the KEK: version {} wraps new AEKs", made.version), at);
        Ok(old)
    }

    async fn current(&self) -> Result<KekVersionRecord, Failure> {
        let kek = self.engine.kek(&self.ground.name).await?;
        let current = kek.versions.into_iter().find(|version| version.current);
        let none = || Error::NotFound(format!("the current version of KEK {}", self.ground.name));
        Ok(current.ok_or_else(none)?.record)
    }

    /// The key that a person made in the token, as HSM vendors rotate.
    async fn made_by_operator(&self, old: &KekVersion) -> Result<KekId, Failure> {
        let before = self.unknown().await?;
        let what = format!(
            "make a key in the token like the KEK {} (CKA_ID {}), with another CKA_ID, to be adopted as version {}",
            self.ground.kek.label,
            self.ground.kek.id,
            old.version + 1
        );
        self.ground.act(&what, Vec::new()).await?;
        let made: Vec<_> = self.unknown().await?.difference(&before).cloned().collect();
        match <[KekId; 1]>::try_from(made) {
            Ok([id]) => Ok(id),
            Err(several) => Err(Failure::Usage(format!(
                "{} new keys were found in the token that could be KEKs, one is needed: see `keyleash kek list`",
                several.len()
            ))),
        }
    }

    async fn unknown(&self) -> Result<BTreeSet<KekId>, Failure> {
        Ok(self.engine.unknown_keks().await?.into_iter().map(|kek| kek.id).collect())
    }

    /// Moves every AEK, at the pace that a service would. How many accounts, and how long it took.
    async fn rewrap(&self) -> Result<(u64, Duration), Failure> {
        let at = now();
        self.step("re-wrap every AEK", at);
        let report = self.engine.rewrap_kek(&self.ground.name, RewrapOptions::default(), |_| {}).await?;
        let end = now();
        self.step(
            format!("{} of {} accounts are under version {}", report.accounts, self.ids.len(), report.to.version),
            end,
        );
        match report.stopped.or(report.failures.into_iter().next().map(|failure| failure.error)) {
            Some(error) => Err(error.into()),
            None => Ok((report.accounts, end.since(at))),
        }
    }

    /// The AEK version that each account has to seal under from now on, and how long that took.
    async fn rotate_aeks(&self) -> Result<(BTreeMap<AccountId, u32>, Duration), Failure> {
        let at = now();
        self.step("rotate every AEK", at);
        let (mut rotating, mut versions) = (JoinSet::new(), BTreeMap::new());
        for id in self.ids {
            if rotating.len() >= ROTATED_AT_ONCE {
                versions.extend(landed(&mut rotating).await?);
            }
            let (engine, id) = (self.engine.clone(), id.clone());
            rotating.spawn(async move { engine.rotate_account(&id).await.map(|version| (id, version)) });
        }
        while let Some(rotated) = landed(&mut rotating).await? {
            versions.extend([rotated]);
        }
        let end = now();
        self.step(format!("{} accounts seal under a new AEK", self.ids.len()), end);
        Ok((versions, end.since(at)))
    }

    /// Retires the old version, and has it destroyed once no handle needs it.
    async fn destroy(&self, old: &KekVersion) -> Result<(), Failure> {
        let is_free = || self.engine.leases().iter().all(|lease| lease.kek != *old || lease.filled_slots == 0);
        self.wait.until(now().plus(patience(self.options)), is_free).await;
        let at = now();
        self.engine.retire_kek(old).await?;
        self.step(format!("retire version {}", old.version), at);
        let id = self.ground.kek.id.to_string();
        let what = format!("destroy version {} in the token (CKA_ID {id})", old.version);
        let at = self.ground.act(&what, words(["destroy", &id])).await?;
        self.step(format!("destroy version {} in the token", old.version), at);
        Ok(())
    }
}

/// Waits for one rotation; `None` when there is none.
async fn landed(rotating: &mut JoinSet<Result<(AccountId, u32), Error>>) -> Result<Option<(AccountId, u32)>, Failure> {
    match rotating.join_next().await {
        None => Ok(None),
        Some(Ok(rotated)) => Ok(Some(rotated?)),
        Some(Err(error)) => Err(Failure::io("rotating an AEK", std::io::Error::other(error))),
    }
}

fn now() -> Instant {
    Clock::default().now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::load::{Customer, Listener, Load};
    use keyleash::{
        clock::ManualClock,
        config::Settings,
        name::KekName,
        store::memory::MemoryStore,
        token::{Profile, scripted::ScriptedToken},
    };

    /// Another engine rotates, so that the record is rotated and this one's handles are not: its time stands still, and it does
    /// not read the record again.
    #[tokio::test(flavor = "multi_thread")]
    async fn handles_that_do_not_take_up_a_rotated_aek_are_seen_in_what_they_seal() {
        let manual = Clock::Manual(ManualClock::new(Instant::from_nanos(1_000_000_000)));
        let (token, _script) = ScriptedToken::new(manual.clone(), Settings::default().store_timeout, 1);
        let store = Arc::new(MemoryStore::new());
        let engine = || Engine::builder(token.clone(), store.clone()).clock(manual.clone()).build().unwrap();
        let (engine, other) = (engine(), engine());
        let (kek, id) = (KekName::new("kek").unwrap(), AccountId::new("account").unwrap());
        engine.create_kek(&kek, keyleash::KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
        let customer = Customer::new(engine.create_account(&id, &kek).await.unwrap()).unwrap();
        let recorder = Arc::new(Recorder::new(Instant::default(), Duration::from_millis(100), 1));
        let listener: Arc<dyn Listener> = recorder.clone();

        let load = Load::start(vec![customer], 1, &engine, &listener).unwrap();
        let version = other.rotate_account(&id).await.unwrap();
        assert_eq!(engine.account_record(&id).await.unwrap().versions.len(), 2, "the record is rotated");
        let (ids, versions) = ([id.clone()], BTreeMap::from([(id.clone(), version)]));
        let judged = |since: Instant| {
            while recorder.sealed()[0].is_none_or(|newest| newest.from < since.as_nanos()) {
                std::thread::yield_now();
            }
            not_rotated(&ids, &versions, &recorder.sealed(), since)
        };
        assert_eq!(judged(now()), 1, "its handles are not");

        assert_eq!(engine.rotate_account(&id).await.unwrap(), version + 1);
        assert_eq!(judged(now()), 0);
        load.stop().await;
        assert_eq!(not_rotated(&ids, &versions, &recorder.sealed(), now()), 1, "nothing was sealed since");
    }
}
