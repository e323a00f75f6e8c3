//! A KEK version made in a token: nothing is taken for it that may be somebody else's, and a crash leaves nothing that is made twice.

use super::{Keyring, keks::round_trip};
use crate::{
    error::{Error, Refusal, Result},
    name::{KekName, KekVersion},
    store::{
        self, Key,
        record::{KekPolicy, KekRecord, KekVersionRecord, StoreRecord},
    },
    token::{KekHandle, KekId, KekInfo, KekSpec, LABEL_PREFIX, Profile, Token, seats::Seat},
};
use std::{collections::HashSet, time::Duration};

/// How often a key that is refused is looked at, while it may be in the making, and the time between.
const LOOKS_MAX: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(100);

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

impl Keyring {
    /// Makes version 1 of a KEK in the token of this seat, and writes it down.
    pub(crate) async fn begin_kek(
        &self,
        seat: &Seat,
        name: &KekName,
        profile: Profile,
        destroyable: bool,
    ) -> Result<KekInfo> {
        // Of two that make one KEK at once the second would leave a key in the token that nobody names.
        let _making = seat.making.lock().await;
        let key = Key::Kek(name.clone());
        let exists =
            || Error::Exists(format!("KEK {name}: see it with `keyleash kek show {name}`, or choose another name"));
        if self.store.get(&key).await?.is_some() {
            return Err(exists());
        }
        let now = self.stamp().await?;
        let info = self.make_kek(seat, &KekVersion::new(name.clone(), 1), profile, destroyable, &[]).await?;
        let version = KekVersionRecord::new(now, 1, info.id.clone(), profile, seat.name.clone());
        let record =
            KekRecord { name: name.clone(), versions: vec![version], current: 1, policy: KekPolicy::default() };
        match self.store.create(&key, record.put()?).await {
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
        let label = label_of(kek, &store::store_id(&*self.store).await?);
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
            [left]
                if left.profile == Some(profile)
                    && left.refused.is_none()
                    && left.half.is_none()
                    && left.destroyable != Some(!destroyable) =>
            {
                tracing::warn!(
                    %kek,
                    id = %left.id,
                    "no key is made: the token has one that this store made for it, and that its record never came to know, \
                     by a crash, or because a snapshot of the store was put back or is in use elsewhere"
                );
                left.clone()
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
        let clock = &self.clock;
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
}
