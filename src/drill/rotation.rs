//! The drill `rotation`: while blocks flow the KEK is rotated, every AEK re-wrapped and rotated, and the old KEK version retired
//! and destroyed in the token, which nobody needs any more.

use super::{
    error::Error,
    finished::Rotated,
    operator::Operator,
    outcome::Outcome,
    play::{Stage, now},
    timeline::Sealed,
};
use crate::{
    clock::Instant,
    engine::Engine,
    error,
    name::{AccountId, KekName, KekVersion},
    rotate::RewrapOptions,
    store::record::KekVersionRecord,
    token::KekId,
};
use std::{collections::BTreeMap, io, time::Duration};
use tokio::task::JoinSet;

/// Accounts whose AEKs are rotated at once: a service that rotates all of them shares the token with its own load.
const ROTATED_AT_ONCE: usize = 16;

/// What is rotated.
pub(crate) struct Rotation<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) kek: &'a KekName,
    pub(crate) ids: &'a [AccountId],
    /// The version that is current before.
    pub(crate) current: &'a KekVersionRecord,
}

impl<O: Operator> Stage<'_, O> {
    /// Plays `rotation`.
    pub(crate) async fn rotate(&mut self, of: &Rotation<'_>) -> Result<Rotated, O::Error> {
        let (poll, recorder, patience) = (self.terms.settings.poll_interval, self.recorder, self.terms.patience);
        let begun = now();
        self.wait.until(begun.plus(patience), || recorder.all_are(Outcome::Ok, begun)).await;
        self.is_tapped()?;
        self.wait.rest("load", poll).await;
        let old = KekVersion::new(of.kek.clone(), of.current.version);
        let at = now();
        let version = self.operator.rotate(of.engine, of.kek).await?;
        recorder.act("act", format!("rotate the KEK: version {version} wraps new AEKs"), at);
        self.wait.rest("rotated", poll).await;

        let mut rotated = Rotated::default();
        (rotated.rewrapped, rotated.rewrap) = self.rewrap(of).await?;
        self.wait.rest("re-wrapped", poll).await;
        let versions;
        (versions, rotated.aek_rotation) = self.rotate_aeks(of).await?;
        self.wait.rest("rotated", poll).await;
        self.retire(of, &old, &of.current.id).await?;
        self.wait.rest("active", poll * 2).await;
        let ended = now();
        let not_rotated = || not_rotated(of.ids, &versions, &recorder.sealed(), ended);
        let all_well = || recorder.all_are(Outcome::Ok, ended) && not_rotated() == 0;
        self.wait.until(ended.plus(patience), all_well).await;

        rotated.left_behind = of.engine.count_wrapped_by(&old).await.map_err(Error::from)?;
        rotated.not_rotated = not_rotated();
        Ok(rotated)
    }

    /// Moves every AEK, at the pace that a service would. How many accounts, and how long it took.
    async fn rewrap(&self, of: &Rotation<'_>) -> Result<(u64, Duration), Error> {
        let at = now();
        self.step("re-wrap every AEK", at);
        let report = of.engine.rewrap_kek(of.kek, RewrapOptions::default(), |_| {}).await?;
        let end = now();
        self.step(
            format!("{} of {} accounts are under version {}", report.accounts, of.ids.len(), report.to.version),
            end,
        );
        match report.stopped.or(report.failures.into_iter().next().map(|failure| failure.error)) {
            Some(error) => Err(error.into()),
            None => Ok((report.accounts, end.since(at))),
        }
    }

    /// The AEK version that each account has to seal under from now on, and how long that took.
    async fn rotate_aeks(&self, of: &Rotation<'_>) -> Result<(BTreeMap<AccountId, u32>, Duration), Error> {
        let at = now();
        self.step("rotate every AEK", at);
        let (mut rotating, mut versions) = (JoinSet::new(), BTreeMap::new());
        for id in of.ids {
            if rotating.len() >= ROTATED_AT_ONCE {
                versions.extend(landed(&mut rotating).await?);
            }
            let (engine, id) = (of.engine.clone(), id.clone());
            rotating.spawn(async move { engine.rotate_account(&id).await.map(|version| (id, version)) });
        }
        while let Some(rotated) = landed(&mut rotating).await? {
            versions.extend([rotated]);
        }
        let end = now();
        self.step(format!("{} accounts seal under a new AEK", of.ids.len()), end);
        Ok((versions, end.since(at)))
    }

    /// Retires the old version, and has it destroyed once no handle needs it.
    async fn retire(&mut self, of: &Rotation<'_>, old: &KekVersion, id: &KekId) -> Result<(), O::Error> {
        let is_free = || of.engine.leases().iter().all(|lease| lease.kek != *old || lease.filled_slots == 0);
        self.wait.until(now().plus(self.terms.patience), is_free).await;
        let at = now();
        of.engine.retire_kek(old).await.map_err(Error::from)?;
        self.step(format!("retire version {}", old.version), at);
        if let Some(destroyed) = self.operator.destroy(old, id).await? {
            self.note("step", destroyed);
        }
        Ok(())
    }
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

/// Waits for one rotation; `None` when there is none.
async fn landed(rotating: &mut JoinSet<error::Result<(AccountId, u32)>>) -> Result<Option<(AccountId, u32)>, Error> {
    match rotating.join_next().await {
        None => Ok(None),
        Some(Ok(rotated)) => Ok(Some(rotated?)),
        Some(Err(error)) => Err(Error::io("rotating an AEK", io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        KekOptions,
        clock::{Clock, ManualClock},
        config::Settings,
        drill::{
            load::{Hand, Load, STOP_PATIENCE},
            timeline::{Listener, Recorder},
        },
        store::memory::MemoryStore,
        token::{Profile, scripted::ScriptedToken},
    };
    use std::sync::Arc;

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
        engine.create_kek(&kek, KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
        let account = engine.create_account(&id, &kek).await.unwrap();
        let recorder = Arc::new(Recorder::new(Instant::default(), Duration::from_millis(100), 1));
        let listener: Arc<dyn Listener> = recorder.clone();

        let serve = Box::new(move |hand: &mut Hand| {
            if let Some(header) = hand.operation(|| account.seal_in_place(1_u64, &mut [0; 64])) {
                hand.sealed(&header);
            }
        });
        let load = Load::start(vec![serve], 1, &listener).unwrap();
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
        load.stop(STOP_PATIENCE).await.unwrap();
        assert_eq!(not_rotated(&ids, &versions, &recorder.sealed(), now()), 1, "nothing was sealed since");
    }
}
