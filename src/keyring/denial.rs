//! Denials written down, so that they are sticky across restarts, engines and standbys (promise 4): what of the record is true is told
//! by `leash/denial.rs`; here it is read, written and deleted, by versions alone.

use super::Keyring;
use crate::{
    error::{Corrupt, Error, Result},
    lease::{Change, Verdict, standby::Voice},
    leash::denial::{End, Seen},
    planted::{self, Fault},
    slots::slot::Leash,
    store::{self, CONFLICTS_MAX, Key, again_and_again, record::DenialRecord},
};
use std::sync::{Arc, atomic::Ordering};

impl Keyring {
    /// Notes what a verdict that counted means for the record.
    pub(crate) fn note_denial(&self, leash: &Leash, voice: Voice, verdict: Verdict, change: Option<Change>) {
        let notes = &leash.denial;
        let is_unsaved = match verdict {
            Verdict::Denied => {
                notes.known().denied(voice);
                !planted::is(Fault::DenialNotWritten)
            }
            Verdict::Granted { asked, context, .. } => {
                let end = notes.known().granted(voice, asked, context);
                if end == End::ByAFreshProof {
                    leash.renewal_owed(voice).store(true, Ordering::SeqCst);
                }
                // Others may have left one there, who ended before their own proof.
                end == End::Now || matches!(change, Some(Change::Resuming | Change::Granted))
            }
            _ => false,
        };
        if is_unsaved {
            notes.doubt();
        }
    }

    /// Looks whether the store knows of a denial by the first token that is newer than its last grant here, as far as that can be
    /// told: then the standby is not asked.
    pub(crate) async fn knows_no_newer_denial(&self, leash: &Leash) -> Result<bool> {
        let seen = match self.find_denial(leash).await {
            // Who wrote it, and when, cannot be told.
            Err(Error::Corrupt(_)) => return Ok(false),
            found => found?,
        };
        let mut known = leash.denial.known();
        known.saw(seen.clone());
        Ok(seen.is_none_or(|seen| seen.by == Voice::Standby || known.is_ended(&seen)))
    }

    async fn find_denial(&self, leash: &Leash) -> Result<Option<Seen>> {
        let key = Key::Denial(leash.kek().clone());
        let found = store::find(&*self.store, &key, DenialRecord::decode).await?;
        Ok(found.map(|found| Seen::found(found, self.clock.now())))
    }

    /// Begins to write a denial, or its end, down, if it is not; one attempt at a time.
    pub(crate) fn save_if_needed(self: &Arc<Self>, leash: &Arc<Leash>) {
        if !leash.denial.unsaved.load(Ordering::SeqCst) || leash.denial.saving.swap(true, Ordering::SeqCst) {
            return;
        }
        let (keyring, saving) = (self.clone(), Saving(leash.clone()));
        self.home.upkeep.spawn(async move {
            let again = keyring.save_denial(&saving.0).await;
            let leash = saving.0.clone();
            drop(saving);
            if again {
                keyring.save_if_needed(&leash); // what was learned meanwhile
            }
        });
    }

    /// Makes the store say what the tokens said last. False when the store failed, and nothing was learned meanwhile: then the
    /// watch tries again.
    async fn save_denial(&self, leash: &Leash) -> bool {
        // Before the look at what is known: what is said later says again that there is something to save.
        leash.denial.unsaved.store(false, Ordering::SeqCst);
        let (words, heard) = {
            let known = leash.denial.known();
            (known.words, known.heard)
        };
        let saved = async {
            match heard {
                Some(by) => self.write_denial(leash, by).await.map(Some),
                None => self.clear_denial(leash).await,
            }
        };
        let patience = self.clock.now().plus(self.settings.store_timeout);
        match self.clock.until(patience, saved).await {
            Some(Ok(seen)) => {
                let mut known = leash.denial.known();
                known.saw(seen);
                if known.words == words {
                    known.heard = None;
                }
                return true;
            }
            // A command that ends takes its runtime with it. A denial was waited for before that.
            Some(Err(_)) if self.is_closed() => {}
            Some(Err(error)) => {
                tracing::warn!(kek = %leash.kek(), %error, "the record of the denial is not as it should be");
                if matches!(error, Error::Corrupt(Corrupt::NewerRecord { .. })) {
                    return false; // which is a denial, and that release's to end
                }
            }
            None => tracing::warn!(kek = %leash.kek(), "the record of the denial: the store does not answer"),
        }
        leash.denial.doubt();
        leash.denial.known().words != words
    }

    /// Writes a denial that was heard, and gives the record that stands for it.
    async fn write_denial(&self, leash: &Leash, by: Voice) -> Result<Seen> {
        let key = Key::Denial(leash.kek().clone());
        let mut record = DenialRecord {
            kek: leash.kek().clone(),
            since_unix: self.clock.wall_unix(),
            reason: leash.why_not().to_string(),
            by_standby: by == Voice::Standby,
            witness: None,
        };
        for _ in 0..CONFLICTS_MAX {
            let found = self.find_denial(leash).await?;
            let in_force = found.as_ref().filter(|seen| !leash.denial.known().is_ended(seen));
            // Whoever noticed first, noticed when there was the least that another key could have wrapped.
            if let Some(witness) = in_force.and_then(Seen::witness) {
                leash.vouch.adopt(witness);
            }
            // The standby does not speak for the first token.
            if let Some(seen) = in_force.filter(|seen| by == Voice::Standby && seen.by == Voice::First) {
                return Ok(seen.clone());
            }
            record.witness = leash.vouch.witness();
            let written = match &found {
                Some(seen) => self.store.replace(&key, &seen.version, record.put()?).await,
                None => self.store.create(&key, record.put()?).await,
            };
            match written {
                Ok(version) => {
                    let (since, at_start) = (self.clock.now(), false);
                    return Ok(Seen { version, by, witness: record.witness, since, at_start });
                }
                Err(Error::Conflict(_) | Error::Exists(_) | Error::NotFound(_)) => {} // others hear it too, or heard its end
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("denial of KEK", leash.kek()))
    }

    /// Deletes the record, if a proof ended it; gives the one that is there then.
    async fn clear_denial(&self, leash: &Leash) -> Result<Option<Seen>> {
        let key = Key::Denial(leash.kek().clone());
        let Some(seen) = self.find_denial(leash).await? else { return Ok(None) };
        if !leash.denial.known().is_ended(&seen) {
            return Ok(Some(seen)); // until the next proof, which is asked for after it was seen
        }
        match self.store.delete(&key, &seen.version).await {
            // Another process was faster.
            Ok(()) | Err(Error::NotFound(_)) => Ok(None),
            Err(Error::Conflict(_)) => self.find_denial(leash).await,
            Err(error) => Err(error),
        }
    }
}

/// An attempt to save under way; the next one may begin when it is dropped, by a panic too.
struct Saving(Arc<Leash>);

impl Drop for Saving {
    fn drop(&mut self) {
        self.0.denial.saving.store(false, Ordering::SeqCst);
        self.0.denial.saved.notify_waiters();
    }
}
