//! KEKs as the store knows them: which version wraps, in which token it is, and which keys of a token are some KEK's.

use super::Keyring;
use crate::{
    error::{Corrupt, Error, Result},
    name::{KekName, KekVersion},
    secret::Aek,
    store::{
        self, Key, Put, StoreVersion,
        record::{KekRecord, KekVersionRecord, binding},
    },
    token::{KekHandle, KekId, KekInfo, LABEL_PREFIX, Token, TokenError, Verdict, seats::Seat},
};
use std::collections::HashSet;

/// The KEK version that wraps new AEKs, and its KEK's record as that was read.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kek: KekVersion,
    pub(crate) record: KekVersionRecord,
    pub(super) seen: StoreVersion,
}

impl Target {
    /// The change of an account that has something wrapped under it: not to be stored once it is retired.
    pub(crate) fn guard(&self, put: Put) -> Put {
        put.resting_on(Key::Kek(self.kek.name.clone()), self.seen.clone())
    }
}

impl Keyring {
    pub(crate) async fn kek_record(&self, name: &KekName) -> Result<KekRecord> {
        self.load_kek(name).await.map(|(record, _)| record)
    }

    pub(crate) async fn load_kek(&self, name: &KekName) -> Result<(KekRecord, StoreVersion)> {
        let found = store::load_kek(&*self.store, name).await?;
        found.ok_or_else(|| Error::NotFound(format!("KEK {name}: create it first (`keyleash kek create {name}`)")))
    }

    /// The version of a KEK that wraps new AEKs.
    pub(crate) async fn current_kek(&self, name: &KekName) -> Result<(KekVersion, KekVersionRecord)> {
        self.target(name).await.map(|Target { kek, record, .. }| (kek, record))
    }

    /// As [`Keyring::current_kek`], to wrap under it.
    pub(crate) async fn target(&self, name: &KekName) -> Result<Target> {
        let (record, seen) = self.load_kek(name).await?;
        match record.current() {
            Some(current) => {
                Ok(Target { kek: KekVersion::new(record.name.clone(), current.version), record: current.clone(), seen })
            }
            // The codec refuses such a record; this says so again rather than panicking.
            None => {
                let what = format!("its current version {} is not among its versions", record.current);
                Err(Corrupt::Record { record: format!("KEK {name}"), what }.into())
            }
        }
    }

    /// Refuses a KEK version whose loss could not be undone, where the settings ask for that.
    pub(crate) async fn check_recoverable(&self, kek: &KekVersion, record: &KekVersionRecord) -> Result<()> {
        if !self.settings.require_recoverable {
            return Ok(());
        }
        let seat = self.tokens.holder(kek, &record.token)?;
        let info = seat.token(&seat.budget.on_demand(None).await).find_kek(&record.id).await?;
        let lacks = match (info.and_then(|info| info.destroyable), record.backup_attested_unix) {
            (Some(false), Some(_)) => return Ok(()),
            (Some(false), None) => {
                format!("no backup of it is attested: make one, and `keyleash kek attest-backup {kek}`")
            }
            (Some(true), _) => {
                "CKA_DESTROYABLE is true, and so it will be of versions that keyleash makes: adopt a key of which it is false \
                 (`kek rotate --adopt`), or make another KEK"
                    .into()
            }
            (None, _) => "the token does not say that CKA_DESTROYABLE is false".into(),
        };
        Err(Error::Misconfigured(format!("KEK {kek} is not recoverable, and require_recoverable is set: {lacks}")))
    }

    pub(crate) async fn find_kek(
        &self,
        name: &KekName,
        version: &KekVersionRecord,
    ) -> Result<Option<KekInfo>, TokenError> {
        let kek = KekVersion::new(name.clone(), version.version);
        match self.tokens.holder(&kek, &version.token) {
            Ok(seat) => seat.token(&seat.budget.on_demand(None).await).find_kek(&version.id).await,
            Err(error) => Err(TokenError {
                verdict: Verdict::Misconfigured,
                operation: "find KEK",
                what: format!("token {} is not configured", version.token),
                code: None,
                remedy: error.to_string(),
            }),
        }
    }

    /// Every key of a token that one of these KEKs names.
    pub(super) async fn known_keks(&self, seat: &Seat, of: impl Fn(&KekName) -> bool) -> Result<HashSet<KekId>> {
        let mut known = HashSet::new();
        for name in store::kek_names(&*self.store).await?.into_iter().filter(of) {
            let record = self.kek_record(&name).await?;
            let tokens = &self.tokens;
            let its = record.versions.into_iter().filter(|version| tokens.may_have(&seat.name, &name, &version.token));
            known.extend(its.map(|version| version.id));
        }
        Ok(known)
    }

    /// Keys in the token of this seat that could be KEKs but that no KEK of the store names, in the order of their labels.
    pub(crate) async fn unknown_keks(&self, seat: &Seat) -> Result<Vec<KekInfo>> {
        let known = self.known_keks(seat, |_| true).await?;
        let mut found = seat.token(&seat.budget.on_demand(None).await).list_keks().await?;
        found.retain(|kek| !known.contains(&kek.id));
        Ok(found)
    }

    /// Refuses a key that keyleash made for another store: what that one wraps by it is unknown here, and would be lost with it.
    pub(crate) async fn refuse_of_another_store(&self, info: &KekInfo) -> Result<()> {
        let Some((_, theirs)) = info.label.strip_prefix(LABEL_PREFIX).and_then(|label| label.rsplit_once('@')) else {
            return Ok(());
        };
        if theirs == store::store_id(&*self.store).await?.to_string() {
            return Ok(());
        }
        Err(Error::Misconfigured(format!(
            "the key with CKA_ID {} was made for another store (its label is {:?}), which may have wrapped AEKs by it: make a key of \
             this store's own (`keyleash kek rotate` without --adopt)",
            info.id, info.label
        )))
    }
}

/// Wraps and unwraps a key that is thrown away.
pub(crate) async fn round_trip(token: &dyn Token, kek: &KekVersion, handle: &KekHandle) -> Result<()> {
    let aek = Aek::generate()?;
    let binding = binding(kek.name.as_str().as_bytes());
    let wrapped = token.wrap(handle, &aek, &binding).await?;
    let back = token.unwrap(handle, &wrapped, &binding).await?;
    if back == aek {
        return Ok(());
    }
    Err(Error::Misconfigured(format!("KEK {kek} does not give back what it wrapped: do not use this token")))
}
