//! The drill `rotation`: while blocks flow the KEK is rotated, every AEK re-wrapped and rotated, and the old KEK version retired
//! and destroyed in the token, which nobody needs any more.

use super::{
    args::Options,
    conduct::{patience, words},
    ground::{Ground, destroy_at_the_end},
    outcome::Outcome,
    timeline::Recorder,
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
use std::{collections::BTreeSet, sync::Arc, time::Duration};
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
    /// Accounts that seal under the AEK version that they had at the beginning.
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
    rotated.aek_rotation = play.rotate_aeks().await?;
    wait.rest("rotated", poll).await;
    play.destroy(&old).await?;
    wait.rest("active", poll * 2).await;
    let ended = now();
    wait.until(ended.plus(patience(options)), || recorder.all_are(Outcome::Ok, ended)).await;

    rotated.left_behind = engine.count_wrapped_by(&old).await?;
    for id in ids {
        let record = engine.account_record(id).await?;
        let is_rotated = record.versions.len() > 1;
        rotated.not_rotated += u64::from(!is_rotated);
    }
    Ok(rotated)
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
        let config = self.ground.config.clone();
        destroy_at_the_end(&mut self.ground.undo, config.as_deref(), &made.id);
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

    async fn rotate_aeks(&self) -> Result<Duration, Failure> {
        let at = now();
        self.step("rotate every AEK", at);
        let mut rotating = JoinSet::new();
        for id in self.ids {
            if rotating.len() >= ROTATED_AT_ONCE {
                landed(&mut rotating).await?;
            }
            let (engine, id) = (self.engine.clone(), id.clone());
            rotating.spawn(async move { engine.rotate_account(&id).await });
        }
        while landed(&mut rotating).await? {}
        let end = now();
        self.step(format!("{} accounts seal under a new AEK", self.ids.len()), end);
        Ok(end.since(at))
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

/// Waits for one rotation; false when there is none.
async fn landed(rotating: &mut JoinSet<Result<u32, Error>>) -> Result<bool, Failure> {
    match rotating.join_next().await {
        None => Ok(false),
        Some(Ok(rotated)) => Ok(rotated.map(|_| true)?),
        Some(Err(error)) => Err(Failure::io("rotating an AEK", std::io::Error::other(error))),
    }
}

fn now() -> Instant {
    Clock::default().now()
}
