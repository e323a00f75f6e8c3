//! AEK versions that come and go while handles live, and unwraps that fill no slot.

use super::{
    Heard, Keyring, Trouble, Unwrapped,
    ask::Asked,
    made_anew,
    records::{Reading, is_told, purged},
    unwrap::Target,
};
use crate::{
    clock::Instant,
    error::{Corrupt, Error, Result},
    lease::standby::Voice,
    leash::vouch::Vouched,
    name::{AccountId, KekVersion},
    secret::Aek,
    slots::{
        account_keys::{AccountKeys, ShutGuard},
        slot::{AekSlot, Leash},
    },
    store::record::{AccountRecord, WrappedAek},
    telemetry::Event,
    token::{Verdict, budget::Place},
};
use std::sync::Arc;

/// A new AEK as the token gave it back, and what its admission is judged by.
pub(crate) struct NewProof {
    /// Held, so that the epoch stays one of this lease.
    pub(crate) leash: Arc<Leash>,
    /// Until its lease is denied, or lapses, while something else is waited for.
    pub(crate) aek: Option<Aek>,
    pub(crate) epoch: u64,
    pub(crate) asked: Instant,
    /// What vouched for the KEK version before it.
    pub(crate) vouched: Vouched,
    voice: Voice,
    when: Asked,
}

impl NewProof {
    /// Into the slot that the record came into the store for.
    fn admit(&self, keyring: &Keyring, slot: &Arc<AekSlot>) -> Result<()> {
        match &self.aek {
            Some(aek) => keyring.admit(slot, aek, self.epoch, self.asked),
            None if self.leash.refuses() => Err(self.leash.why_not()),
            None => Err(slot.cold()),
        }
    }
}

impl Keyring {
    /// Waits for the store while there is a new AEK that is in no slot yet. A denial or a lapse takes it away, as it does every other
    /// key: the store may take its time.
    pub(crate) async fn hold<T>(&self, proof: &mut NewProof, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Enlist before the look.
            changed.as_mut().enable();
            if proof.leash.epoch() != proof.epoch || self.is_closed() || self.home.is_closed() {
                proof.aek = None;
                return work.await;
            }
            tokio::select! {
                biased; // a simulation sees the same again
                outcome = &mut work => return outcome,
                () = changed => {}
            }
        }
    }

    /// The keys of an account that was just created, its slot filled with the AEK that the token gave back; by now it may have to
    /// be asked again first, because the store took long.
    pub(crate) async fn admit_new(
        self: &Arc<Self>,
        record: &AccountRecord,
        wrapped: &WrappedAek,
        proof: &NewProof,
    ) -> Result<Arc<AccountKeys>> {
        let id = &record.account;
        let slot = AekSlot::new(proof.leash.clone(), self.meter(record, wrapped));
        let admitted = proof.admit(self, &slot);
        let is_cold = matches!(admitted, Err(Error::Cold { .. }));
        if !is_cold {
            admitted?;
        }
        // The first one under its lease is polled from now on.
        self.stir.notify_one();
        match proof.leash.vouch.is_young(id, wrapped.aek_version) {
            true => self.keep_unproved(&wrapped.kek, id, wrapped),
            false => self.keep_sample(&wrapped.kek, id, wrapped),
        }
        // Somebody may have been about to open the account that was purged, and have its keys here by now.
        let is_another = |keys: &Arc<AccountKeys>| !keys.slots().any(|one| one.meter().aek == slot.meter().aek);
        if let Some(keys) = self.alive(id).filter(is_another) {
            self.forget_account(id, Some(keys)).await;
        }
        let Some(keys) = AccountKeys::new(id.clone(), vec![slot]) else {
            return Err(Error::Fatal(format!("account {id} has no slot")));
        };
        let keys = self.living.adopt(Arc::new(keys));
        keys.told_index(proof.asked);
        self.index.insert(id.clone(), keys.clone()).await;
        if is_cold {
            match self.warm_current(&keys, None).await {
                // It was created, and stays cold for now.
                Err(Error::Cold { .. } | Error::Store(_)) => {}
                warmed => warmed?,
            }
        }
        Ok(keys)
    }

    /// What was wrapped is in the store. Where nothing was there before it, that is the proof.
    pub(crate) fn stored(self: &Arc<Self>, account: &AccountId, wrapped: &WrappedAek, proof: &NewProof) {
        let NewProof { leash, epoch, vouched: Vouched::Bare { at: looked, .. }, voice, when, .. } = proof else {
            return;
        };
        // Else another one of this process's own came first.
        if leash.lease().proved().is_none_or(|proved| proved < *looked) {
            leash.vouch.came_first(account);
            self.grant_by(leash, *voice, (account, wrapped), *when, *epoch);
        }
    }

    /// Unwraps a wrapping that is not stored yet, and verifies it. No proof, because another key in the KEK's place would give it back
    /// as well.
    pub(crate) async fn prove_new(
        self: &Arc<Self>,
        account: &AccountId,
        wrapped: &WrappedAek,
        vouched: Vouched,
        place: Place,
    ) -> Result<NewProof> {
        let leash = self.leash(&wrapped.kek).await?;
        let epoch = self.asking(&leash);
        let asked = self.clock.now();
        let Heard { voice, outcome } = self.unwrap_verified(&leash, account, wrapped, place).await;
        match outcome {
            Ok(unwrapped) => {
                // Refused since it was vouched for, whatever was granted since then: it is stored no more. Nor is what the context may hide.
                let is_refused = matches!(vouched, Vouched::ByRecord { .. }) && leash.refuses();
                if leash.epoch() != vouched.epoch() || is_refused || unwrapped.when.is_before_denial(&leash) {
                    return Err(leash.why_not());
                }
                leash.vouch.wrapped(account, wrapped.aek_version, asked);
                let Unwrapped { aek, when } = unwrapped;
                Ok(NewProof { leash, aek: Some(aek), epoch, asked, vouched, voice, when })
            }
            Err(Trouble::OtherKey) => Err(gives_not_back(&wrapped.kek)),
            Err(Trouble::Token(trouble)) if trouble.verdict == Verdict::BadRecord => Err(gives_not_back(&wrapped.kek)),
            Err(Trouble::Token(trouble)) => Err(self.learn_trouble(&leash, voice, account, &trouble).await),
        }
    }

    /// Adds the AEK version that was just stored to keys that somebody had before the record was read, and what others stored
    /// before it; those that are there by now may be of an account that was made anew.
    pub(crate) async fn admit_version(
        self: &Arc<Self>,
        keys: &AccountKeys,
        record: &AccountRecord,
        wrapped: &WrappedAek,
        proof: &NewProof,
    ) -> Result<()> {
        self.count_news();
        self.add_absent(keys, record, wrapped.aek_version).await;
        let slot = AekSlot::new(proof.leash.clone(), self.meter(record, wrapped));
        match proof.admit(self, &slot) {
            // The store took long, and the token is asked again first: new blocks must not find it cold.
            Err(Error::Cold { .. }) => return self.learn(&keys.id).await,
            // Refused by a denial in between: new blocks are sealed under it all the same, so its lease's word counts.
            Ok(()) | Err(_) => keys.add(slot),
        }
        self.keep_unproved(&wrapped.kek, &keys.id, wrapped);
        // The first one under its lease is polled from now on.
        self.stir.notify_one();
        self.changed.notify_waiters();
        Ok(())
    }

    /// True when somebody here may seal under one of these now: it is taken for the current one, and its key is at hand.
    pub(crate) fn seals_under(&self, id: &AccountId, aek_versions: &[u32]) -> bool {
        let Some(keys) = self.alive(id) else { return false };
        let current = keys.current();
        aek_versions.contains(&current.aek_version) && current.is_usable(self.clock.now())
    }

    /// Reads an account that somebody has, and adds the AEK versions that others gave it.
    pub(crate) async fn learn(self: &Arc<Self>, id: &AccountId) -> Result<()> {
        let Some(keys) = self.to_tell(id) else { return Ok(()) };
        let reading = self.read(id).await?.ok_or_else(|| purged(id))?;
        self.learn_newer(&keys, &reading).await
    }

    /// An empty slot for what a record holds, under the lease of the KEK version that it names.
    pub(super) async fn empty_slot(&self, record: &AccountRecord, wrapped: &WrappedAek) -> Result<Arc<AekSlot>> {
        Ok(AekSlot::new(self.leash(&wrapped.kek).await?, self.meter(record, wrapped)))
    }

    /// Adds what `keys` lack of the AEK versions before `end`, cold: for blocks that others sealed.
    async fn add_absent(&self, keys: &AccountKeys, record: &AccountRecord, end: u32) {
        for wrapped in record.versions.iter().take_while(|wrapped| wrapped.aek_version < end) {
            if keys.version(wrapped.aek_version).is_some() {
                continue;
            }
            match self.empty_slot(record, wrapped).await {
                Ok(slot) => keys.add(slot),
                Err(error) => {
                    tracing::warn!(account = %keys.id, wrapped.aek_version, %error, "blocks of it are refused for now")
                }
            }
        }
    }

    /// Adds the AEK versions of what was read that `keys` lack, those that are newer each with its key: new blocks are sealed
    /// under the newest at once, and must not find it cold. One that cannot be had now is left for the next time.
    pub(crate) async fn learn_newer(self: &Arc<Self>, keys: &AccountKeys, reading: &Reading) -> Result<()> {
        keys.note_retired(&reading.record.retired);
        self.add_absent(keys, &reading.record, keys.current().aek_version).await;
        for wrapped in &reading.record.versions {
            if wrapped.aek_version <= keys.current().aek_version {
                continue;
            }
            let slot = self.empty_slot(&reading.record, wrapped).await?;
            let place = slot.leash.on_demand().await;
            match self
                .unwrap_found(
                    Target { slot: &slot, old: &slot, newer: &[] },
                    wrapped,
                    (self.clock.now(), reading.at),
                    place,
                )
                .await
            {
                Ok(()) | Err(Error::Denied(_)) => {
                    keys.add(slot);
                    reading.guard.settle(); // it may have been retired meanwhile, and the next one may take long
                    self.changed.notify_waiters();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// As [`Keyring::learn_newer`], for a slot on the way to its own unwrap.
    pub(super) async fn learn_beside(self: &Arc<Self>, slot: &AekSlot, reading: &Reading) -> Result<()> {
        let Some(keys) = self.alive(slot.account()) else { return Ok(()) };
        self.learn_newer(&keys, reading).await.inspect_err(|error| {
            if is_told(error) {
                self.teller.tell(Event::AccountFailed { account: keys.id.to_string(), error: error.to_string() });
            }
        })
    }

    /// Wipes AEK versions that the account does not have any more.
    pub(crate) fn retire_versions(&self, id: &AccountId, aek_versions: &[u32]) {
        self.drop_samples(|of, aek_version| of == id && aek_versions.contains(&aek_version));
        if let Some(keys) = self.to_tell(id) {
            keys.slots().filter(|slot| aek_versions.contains(&slot.aek_version)).for_each(|slot| slot.retire());
            keys.recall(aek_versions); // of readings that are under way, which may add one
        }
    }

    /// Wipes AEK versions that the account may not have any more. Its record is read anew before one of them is used again.
    pub(crate) fn recall_versions(&self, id: &AccountId, aek_versions: &[u32]) {
        if let Some(keys) = self.to_tell(id) {
            keys.recall(aek_versions);
        }
    }

    /// Wipes every key of an account that was deleted.
    pub(crate) async fn shut(&self, id: &AccountId) {
        self.index.invalidate(id).await;
        if let Some(keys) = self.to_tell(id) {
            keys.shut();
        }
    }

    /// Wipes the keys of an account that is no more, and forgets what there is of it in memory. Its handles stay, and are of
    /// no use any more: whoever makes an account of this id anew gets other keys, which are left alone if they are there already.
    ///
    /// `keys` are those that were there before it was known that the account is gone.
    pub(crate) async fn forget_account(&self, id: &AccountId, keys: Option<Arc<AccountKeys>>) {
        self.index.invalidate(id).await;
        self.drop_samples(|of, _| of == id);
        self.count_news();
        let Some(keys) = keys else { return };
        keys.shut();
        // Else a lease would wait for ever for a proof by an AEK that nobody has.
        keys.slots().for_each(|slot| slot.retire());
        self.living.remove(&keys);
    }

    /// As [`Keyring::forget_account`], where that is whose slot it is, and not the one that was made anew.
    pub(super) async fn disown(&self, slot: &AekSlot) {
        let is_its = |keys: &Arc<AccountKeys>| keys.slots().any(|one| std::ptr::eq(&**one, slot));
        if let Some(keys) = self.alive(slot.account()).filter(is_its) {
            self.forget_account(slot.account(), Some(keys)).await;
        }
    }

    /// Whether keys are of the account that was seen; where they are of one that had its id before and was purged, they are forgotten.
    #[cfg(feature = "secrets")]
    pub(crate) async fn are_of(&self, keys: &AccountKeys, seen: &AccountRecord) -> Result<bool> {
        // An AEK keeps the time of its making for good.
        let is_another = |slot: &AekSlot, record: &AccountRecord| {
            let made = slot.meter().aek.created_unix;
            record.version(slot.aek_version).is_some_and(|wrapped| wrapped.created_unix != made)
        };
        if !keys.slots().any(|slot| is_another(slot, seen)) {
            return Ok(true);
        }
        // What was seen may be older than the keys.
        let (now, _) = self.load_account(&keys.id).await?;
        let Some(slot) = keys.slots().find(|slot| is_another(slot, &now)) else { return Ok(true) };
        self.disown(slot).await;
        Ok(false)
    }

    pub(crate) fn shut_guard(&self, id: &AccountId) -> ShutGuard {
        ShutGuard::new(self.alive(id))
    }

    /// Looks whether a slot's account was deleted, while the token cannot be asked for it, and wipes it then.
    pub(crate) async fn recheck(&self, slot: &AekSlot) {
        match self.record(slot).await {
            Err(error) => slot.shut_if_gone(&error),
            Ok(_) => slot.check_from(self.clock.now().plus(self.settings.aek_ttl / 2)),
        }
    }

    /// Unwraps an AEK that goes into no slot, and verifies it; a proof as any other is one.
    pub(crate) async fn unwrap_apart(
        self: &Arc<Self>,
        account: &AccountId,
        wrapped: &WrappedAek,
        place: Place,
    ) -> Result<Aek> {
        let leash = self.leash(&wrapped.kek).await?;
        let epoch = self.asking(&leash);
        let Heard { voice, outcome } = self.unwrap_verified(&leash, account, wrapped, place).await;
        match outcome {
            Ok(unwrapped) => {
                let _ = self.grant(&leash, voice, (account, wrapped), &unwrapped, epoch);
                Ok(unwrapped.aek)
            }
            Err(Trouble::OtherKey) => Err(Corrupt::WrappedAek(format!("account {account}")).into()),
            Err(Trouble::Token(trouble)) => Err(self.learn_trouble(&leash, voice, account, &trouble).await),
        }
    }

    /// Makes sure that the store has the AEK of a slot, read anew, and that the token gives it back from there. While the token does
    /// not answer, that it has one of that number and date.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`] when it has not; [`Error::Store`] when it cannot be seen; [`Error::Denied`].
    pub(crate) async fn confirm(self: &Arc<Self>, slot: &Arc<AekSlot>) -> Result<()> {
        let id = slot.account();
        let reading = self.record(slot).await?;
        let wrapped = self.wrapped_in(reading.record, slot).await?;
        let place = self.leash(&wrapped.kek).await?.on_demand().await;
        match self.unwrap_apart(id, &wrapped, place).await {
            Ok(aek) if slot.differs_from(&aek) => {
                self.disown(slot).await;
                Err(made_anew(id))
            }
            Ok(_) | Err(Error::Unreachable(_) | Error::Lapsed(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Accounts of this KEK version were re-wrapped; the tending takes the slots that are in use along.
    pub(crate) fn note_moved(&self, kek: &KekVersion) {
        self.count_news();
        if let Some(leash) = self.known_leash(kek) {
            self.note_move(&leash);
        }
    }
}

/// What is said of a KEK that wraps wrongly, or unwraps so.
pub(crate) fn gives_not_back(kek: &KekVersion) -> Error {
    Error::Misconfigured(format!("KEK {kek} does not give back what it wrapped: do not use it"))
}
