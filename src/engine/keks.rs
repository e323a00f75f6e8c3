//! KEKs as the store knows them and as the token has them.

use super::{Engine, start_up::round_trip};
use crate::{
    error::{Corrupt, Error, Refusal, Result},
    name::{KekName, KekVersion, TokenName},
    store::{
        self, Key, Put, StoreVersion,
        record::{KekPolicy, KekRecord, KekVersionRecord, StoreRecord},
    },
    token::{
        KekHandle, KekId, KekInfo, KekSpec, LABEL_PREFIX, Profile, Token, TokenError, UnaddressableKey, Verdict,
        seats::Seat,
    },
};
use std::{collections::HashSet, time::Duration};

/// How often a key that is refused is looked at, while it may be in the making, and the time between.
const LOOKS_MAX: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// One version of a KEK as the store knows it, and as the token has it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KekVersionStatus {
    /// As the store knows it.
    pub record: KekVersionRecord,
    /// True for the version under which new AEKs are wrapped.
    pub current: bool,
    /// As the token has it: `Ok(None)` when it has none with this CKA_ID.
    pub in_token: Result<Option<KekInfo>, TokenError>,
    /// As its standby has it, if it has one.
    pub in_standby: Option<(TokenName, Result<Option<KekInfo>, TokenError>)>,
}

impl KekVersionStatus {
    /// True when its loss could be undone: CKA_DESTROYABLE is false in the token, and an operator attested a backup.
    pub fn is_recoverable(&self) -> bool {
        let kept = matches!(&self.in_token, Ok(Some(info)) if info.destroyable == Some(false));
        kept && self.record.backup_attested_unix.is_some()
    }
}

/// What a new KEK shall be.
///
/// ```
/// # use keyleash::{KekOptions, name::TokenName, token::Profile};
/// let options = KekOptions::new(Profile::AesKw).token(TokenName::new("hsm-b")?);
/// # Ok::<_, keyleash::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KekOptions {
    /// How it wraps.
    pub profile: Profile,
    /// CKA_DESTROYABLE, of later versions too: a KEK that can be destroyed in the token can be destroyed by accident. Default false.
    pub destroyable: bool,
    /// The token that it is made in, and all its later versions. Default: the engine's default token.
    pub token: Option<TokenName>,
}

impl KekOptions {
    /// One that cannot be destroyed, in the default token.
    #[must_use]
    pub const fn new(profile: Profile) -> Self {
        Self { profile, destroyable: false, token: None }
    }

    /// It can be destroyed in the token.
    #[must_use]
    pub const fn destroyable(mut self) -> Self {
        self.destroyable = true;
        self
    }

    /// In this token.
    #[must_use]
    pub fn token(mut self, token: TokenName) -> Self {
        self.token = Some(token);
        self
    }
}

impl From<Profile> for KekOptions {
    fn from(profile: Profile) -> Self {
        Self::new(profile)
    }
}

/// The KEK version that wraps new AEKs, and its KEK's record as that was read.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kek: KekVersion,
    pub(crate) record: KekVersionRecord,
    seen: StoreVersion,
}

impl Target {
    /// The change of an account that has something wrapped under it: not to be stored once it is retired.
    pub(crate) fn guard(&self, put: Put) -> Put {
        put.resting_on(Key::Kek(self.kek.name.clone()), self.seen.clone())
    }
}

/// A KEK and its versions.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KekStatus {
    /// The name.
    pub name: KekName,
    /// Oldest first.
    pub versions: Vec<KekVersionStatus>,
    /// When it is rotated by schedule.
    pub policy: KekPolicy,
}

/// The CKA_LABEL of a KEK version that keyleash makes. Several stores may share a token: by the store's id each knows what is its
/// own, and what a crash of another one left, which it never takes.
fn label_of(kek: &KekVersion, store: &StoreRecord) -> String {
    format!("{LABEL_PREFIX}{kek}@{store}")
}

/// Names the key that a failure leaves behind: nobody else would.
fn and_stays(error: Error, id: &KekId) -> Error {
    let stays = format!("the key with CKA_ID {id} stays in the token, and the next try takes it");
    let said_too = |mut refusal: Box<Refusal>| {
        refusal.remedy = format!("{}; {stays}", refusal.remedy);
        refusal
    };
    match error {
        Error::Misconfigured(what) => Error::Misconfigured(format!("{what}; {stays}")),
        Error::Denied(refusal) => Error::Denied(said_too(refusal)),
        Error::Unreachable(refusal) => Error::Unreachable(said_too(refusal)),
        Error::Corrupt(what) => Error::Misconfigured(format!("{what}; {stays}")),
        other => other,
    }
}

impl Engine {
    /// Makes version 1 of a KEK in the token and writes it down in the store. `options` is a [`Profile`] where that says it all.
    ///
    /// A key with its label, which names the store too, that is in the token but not in the store is one whose making was cut short
    /// by a crash: it is taken, if it is sound and of the same profile. No other key is, whatever its label: [`Engine::adopt_kek`].
    ///
    /// # Errors
    /// [`Error::Exists`] when the store has a KEK of this name; [`Error::NotFound`] for a token that is named and not there;
    /// [`Error::Misconfigured`] when the token cannot make it or has several keys with its label; [`Error::Denied`],
    /// [`Error::Unreachable`], [`Error::Store`].
    pub async fn create_kek(&self, name: &KekName, options: impl Into<KekOptions>) -> Result<KekInfo> {
        let (name, options) = (name.clone(), options.into());
        self.at_home(|engine| async move { engine.begin_kek(&name, &options).await }).await
    }

    /// The current version of a KEK, which is made first where the store has none of this name. It asks the token for one that it
    /// makes alone, so that a service can begin with it during an outage. Of several that do so at once one makes it: in one engine
    /// there is one key in the token; of several engines on one store one key counts, and the token may keep another, which no KEK
    /// names ([`Event::KekUnknown`](crate::telemetry::Event::KekUnknown)).
    ///
    /// # Errors
    /// [`Error::Exists`] when there is one of another profile, or in another token than the one that is named: nothing is made, and
    /// `destroyable` is not compared. Else as [`Engine::create_kek`].
    pub async fn get_or_create_kek(&self, name: &KekName, options: impl Into<KekOptions>) -> Result<KekVersionRecord> {
        let (name, options) = (name.clone(), options.into());
        self.at_home(|engine| async move {
            if let Some(found) = engine.found_kek(&name, &options).await? {
                return Ok(found);
            }
            match engine.begin_kek(&name, &options).await {
                // Somebody else was faster.
                Err(exists @ Error::Exists(_)) => engine.found_kek(&name, &options).await?.ok_or(exists),
                Err(error) => Err(error),
                Ok(_) => engine.current_kek(&name).await.map(|(_, record)| record),
            }
        })
        .await
    }

    /// The current version of a KEK that is what `options` ask for; `None` where there is no such KEK.
    async fn found_kek(&self, name: &KekName, options: &KekOptions) -> Result<Option<KekVersionRecord>> {
        let found = match self.current_kek(name).await {
            Err(Error::NotFound(_)) => return Ok(None),
            found => found?.1,
        };
        let is = match &options.token {
            _ if found.profile != options.profile => {
                format!("is for {}, and not for {}", found.profile, options.profile)
            }
            Some(token) if found.token != *token => format!("is in token {}, and not in {token}", found.token),
            _ => return Ok(Some(found)),
        };
        Err(Error::Exists(format!("KEK {name}, which {is}: take it as it is, or choose another name")))
    }

    async fn begin_kek(&self, name: &KekName, options: &KekOptions) -> Result<KekInfo> {
        let tokens = &self.keyring().tokens;
        let seat = match &options.token {
            None => tokens.default_seat(),
            Some(token) => tokens.named(token)?,
        };
        // Of two that make one KEK at once the second would leave a key in the token that nobody names.
        let _making = seat.making.lock().await;
        let key = Key::Kek(name.clone());
        let exists =
            || Error::Exists(format!("KEK {name}: see it with `keyleash kek show {name}`, or choose another name"));
        if self.owner.0.store.get(&key).await?.is_some() {
            return Err(exists());
        }
        let now = self.keyring().stamp().await?;
        let KekOptions { profile, destroyable, .. } = *options;
        let info = self.make_kek(seat, &KekVersion::new(name.clone(), 1), profile, destroyable, &[]).await?;
        let version = KekVersionRecord::new(now, 1, info.id.clone(), profile, seat.name.clone());
        let record =
            KekRecord { name: name.clone(), versions: vec![version], current: 1, policy: KekPolicy::default() };
        match self.owner.0.store.create(&key, record.put()?).await {
            Err(Error::Exists(_)) => Err(exists()),
            other => other.map(|_| info),
        }
    }

    /// Makes a KEK version in the token, or takes the one that a crash left there, and proves it. The store does not know
    /// it yet: it is none of another KEK's, nor of those of its own that are `known`, one of which may have its label, when it was
    /// adopted. That its own KEK has got it since is for the write to see: somebody else rotates it to the same key.
    pub(crate) async fn make_kek(
        &self,
        seat: &Seat,
        kek: &KekVersion,
        profile: Profile,
        destroyable: bool,
        known: &[KekId],
    ) -> Result<KekInfo> {
        let label = label_of(kek, &store::store_id(&*self.owner.0.store).await?);
        let mut known: HashSet<_> = known.iter().cloned().collect();
        known.extend(self.known_keks(seat, |name| *name != kek.name).await?);
        let place = seat.budget.on_demand(None).await;
        let token = seat.token(&place);
        let found = self.left_in_token(token, &label, &known).await?;
        let remedy = match kek.version {
            1 => "choose another name, or remove",
            _ => "adopt it (`kek rotate --adopt`), or remove",
        };
        let info = match found.as_slice() {
            [] => {
                // First with a key that leaves nothing behind: a KEK that turns out to be of no use cannot be deleted.
                token.probe(profile).await?;
                token.create_kek(&KekSpec { label, profile, destroyable }).await?
            }
            [KekInfo { known_outside: Some(why), id, .. }] => {
                return Err(Error::Misconfigured(format!(
                    "the token has a key labelled {label:?} already (CKA_ID {id}), which the store does not know, and {why}: \
                     {remedy} that key"
                )));
            }
            [kek]
                if kek.profile == Some(profile)
                    && kek.refused.is_none()
                    && kek.half.is_none()
                    && kek.destroyable != Some(!destroyable) =>
            {
                kek.clone()
            }
            [kek] => {
                return Err(Error::Misconfigured(format!(
                    "the token has a key labelled {label:?} already, which the store does not know and which is {}: \
                     {remedy} that key",
                    kek.refused
                        .clone()
                        .or_else(|| kek.half.clone())
                        .unwrap_or_else(|| format!("no {profile} KEK with destroyable = {destroyable}"))
                )));
            }
            several => {
                return Err(Error::Misconfigured(format!(
                    "the token has {} keys labelled {label:?}, which the store does not know: {remedy} those keys",
                    several.len()
                )));
            }
        };
        if let Some(why) = info.refused.as_ref().or(info.half.as_ref()) {
            return Err(Error::Misconfigured(format!("the token made KEK {kek} otherwise than asked: {why}")));
        }
        let handle = KekHandle { id: info.id.clone(), profile };
        match round_trip(token, kek, &handle).await {
            Ok(()) => Ok(info),
            Err(error) => Err(and_stays(error, &info.id)),
        }
    }

    /// The keys with this label that are none of those that are `known`. Another process may be making one at this moment, which
    /// SoftHSM shows before its attributes are all there: one that is refused is looked at again.
    async fn left_in_token(&self, token: &dyn Token, label: &str, known: &HashSet<KekId>) -> Result<Vec<KekInfo>> {
        let clock = &self.keyring().clock;
        let mut looks = 0;
        loop {
            let mut found = token.list_keks().await?;
            found.retain(|found| found.label == label && !known.contains(&found.id));
            looks += 1;
            let may_be_half_made =
                |kek: &KekInfo| kek.refused.is_some() || kek.half.is_some() || kek.known_outside.is_some();
            if looks == LOOKS_MAX || !found.iter().any(may_be_half_made) {
                return Ok(found);
            }
            clock.sleep_until(clock.now().plus(LOOK_PAUSE)).await;
        }
    }

    /// Every KEK of the store, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub async fn keks(&self) -> Result<Vec<KekStatus>> {
        self.at_home(|engine| async move {
            let mut keks = Vec::new();
            for name in store::kek_names(&*engine.owner.0.store).await? {
                keks.push(engine.kek_status(&name).await?);
            }
            Ok(keks)
        })
        .await
    }

    /// One KEK.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`], [`Error::Corrupt`].
    pub async fn kek(&self, name: &KekName) -> Result<KekStatus> {
        let name = name.clone();
        self.at_home(|engine| async move { engine.kek_status(&name).await }).await
    }

    async fn kek_status(&self, name: &KekName) -> Result<KekStatus> {
        let record = self.kek_record(name).await?;
        let mut versions = Vec::new();
        for version in record.versions {
            let in_token = self.find_kek(name, &version).await;
            let in_standby = match self.keyring().tokens.standby_of(name) {
                Some(standby) => {
                    let place = standby.guests.on_demand(None).await;
                    Some((standby.name.clone(), standby.token(&place).find_kek(&version.id).await))
                }
                None => None,
            };
            let current = version.version == record.current;
            versions.push(KekVersionStatus { current, record: version, in_token, in_standby });
        }
        Ok(KekStatus { name: name.clone(), versions, policy: record.policy })
    }

    async fn find_kek(&self, name: &KekName, version: &KekVersionRecord) -> Result<Option<KekInfo>, TokenError> {
        let kek = KekVersion::new(name.clone(), version.version);
        match self.keyring().tokens.holder(&kek, &version.token) {
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

    pub(crate) async fn kek_record(&self, name: &KekName) -> Result<KekRecord> {
        self.load_kek(name).await.map(|(record, _)| record)
    }

    pub(crate) async fn load_kek(&self, name: &KekName) -> Result<(KekRecord, StoreVersion)> {
        let found = store::load_kek(&*self.owner.0.store, name).await?;
        found.ok_or_else(|| Error::NotFound(format!("KEK {name}: create it first (`keyleash kek create {name}`)")))
    }

    /// The version of a KEK that wraps new AEKs.
    pub(crate) async fn current_kek(&self, name: &KekName) -> Result<(KekVersion, KekVersionRecord)> {
        self.target(name).await.map(|Target { kek, record, .. }| (kek, record))
    }

    /// As [`Engine::current_kek`], to wrap under it.
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

    /// Keys in the default token that could be KEKs but that no KEK of the store names, in the order of their labels.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`], and what the token fails with.
    pub async fn unknown_keks(&self) -> Result<Vec<KekInfo>> {
        let seat = self.keyring().tokens.default_seat().clone();
        self.at_home(|engine| async move { engine.unknown_keks_on(&seat).await }).await
    }

    /// As [`Engine::unknown_keks`], in the token of that name.
    ///
    /// # Errors
    /// As [`Engine::unknown_keks`], and [`Error::NotFound`] for the token.
    pub async fn unknown_keks_in(&self, token: &TokenName) -> Result<Vec<KekInfo>> {
        let seat = self.keyring().tokens.named(token)?.clone();
        self.at_home(|engine| async move { engine.unknown_keks_on(&seat).await }).await
    }

    /// Keys in the token of that name that could be KEKs, but for a CKA_ID that no record can name, in the order of their labels.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the token, and what the token fails with.
    pub async fn unaddressable_keys_in(&self, token: &TokenName) -> Result<Vec<UnaddressableKey>> {
        let seat = self.keyring().tokens.named(token)?.clone();
        self.at_home(|_| async move { Ok(seat.token(&seat.budget.on_demand(None).await).list_unaddressable().await?) })
            .await
    }

    /// Every key of a token that one of these KEKs names.
    async fn known_keks(&self, seat: &Seat, of: impl Fn(&KekName) -> bool) -> Result<HashSet<KekId>> {
        let mut known = HashSet::new();
        for name in store::kek_names(&*self.owner.0.store).await?.into_iter().filter(of) {
            let record = self.kek_record(&name).await?;
            let tokens = &self.keyring().tokens;
            let its = record.versions.into_iter().filter(|version| tokens.may_have(&seat.name, &name, &version.token));
            known.extend(its.map(|version| version.id));
        }
        Ok(known)
    }

    /// Refuses a key that keyleash made for another store: what that one wraps by it is unknown here, and would be lost with it.
    pub(crate) async fn refuse_of_another_store(&self, info: &KekInfo) -> Result<()> {
        let Some((_, theirs)) = info.label.strip_prefix(LABEL_PREFIX).and_then(|label| label.rsplit_once('@')) else {
            return Ok(());
        };
        if theirs == store::store_id(&*self.owner.0.store).await?.to_string() {
            return Ok(());
        }
        Err(Error::Misconfigured(format!(
            "the key with CKA_ID {} was made for another store (its label is {:?}), which may have wrapped AEKs by it: make a key of \
             this store's own (`keyleash kek rotate` without --adopt)",
            info.id, info.label
        )))
    }

    async fn unknown_keks_on(&self, seat: &Seat) -> Result<Vec<KekInfo>> {
        let known = self.known_keks(seat, |_| true).await?;
        let mut found = seat.token(&seat.budget.on_demand(None).await).list_keks().await?;
        found.retain(|kek| !known.contains(&kek.id));
        Ok(found)
    }
}
