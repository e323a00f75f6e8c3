//! Asking a lease's tokens: the first, and where that is silent its standby.

use super::{Keyring, Trouble};
use crate::{
    clock::Instant,
    error::{Corrupt, Error, Result},
    lease::{
        Verdict as LeaseVerdict,
        standby::{FirstWord, Voice},
    },
    leash::vouch::Vouched,
    name::{AccountId, KekVersion},
    secret::Aek,
    slots::slot::Leash,
    store::record::{KekVersionRecord, WrappedAek, binding, check_matches, context},
    telemetry::{
        Event,
        trail::{Deed, Outcome, Why},
    },
    token::{
        KekHandle, KekId, TokenError, Verdict, Wrapped,
        budget::Place,
        seats::{Right, Seat},
    },
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// What the store said of denials counts for so many poll intervals: with every proof it is asked anew.
const LOOK_POLLS: u32 = 2;

/// Which token said what of an AEK.
pub(crate) struct Heard {
    pub(crate) voice: Voice,
    pub(crate) outcome: Result<Unwrapped, Trouble>,
}

/// An AEK that a token gave and that is the one, and what its lease is to know of it.
pub(crate) struct Unwrapped {
    pub(crate) aek: Aek,
    pub(crate) when: Asked,
}

/// As of when an unwrap counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// When the token was asked.
    at: Instant,
    /// When the context was initialised in which it was; `at`, where contexts hide nothing.
    context: Instant,
}

impl Asked {
    /// True for what is from before the denial in force was read, and may hide it.
    pub(super) fn is_before_denial(self, leash: &Leash) -> bool {
        leash.is_denied() && leash.denial.may_be_hidden(self.context)
    }
}

/// The token did not answer, or cannot.
pub(crate) const fn is_silence(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Unreachable | Verdict::Fatal)
}

/// The token was heard. A call that never came to it was not.
fn says_something(outcome: &Result<Unwrapped, Trouble>) -> bool {
    !matches!(outcome, Err(Trouble::Token(TokenError { verdict: Verdict::Busy, .. })))
}

impl Keyring {
    /// Tells a lease, which was in `epoch` before the token was asked, of what the token unwrapped. False where that is no proof: what was
    /// wrapped here since the last one, and while a denial is in force all but its witness. Whoever needs one then asks for it
    /// ([`Keyring::vouch_answered`]).
    #[must_use]
    pub(crate) fn grant(
        self: &Arc<Self>,
        leash: &Arc<Leash>,
        voice: Voice,
        (account, wrapped): (&AccountId, &WrappedAek),
        unwrapped: &Unwrapped,
        epoch: u64,
    ) -> bool {
        let is_old = !leash.is_denied() && !leash.vouch.is_young(account, wrapped.aek_version);
        // The witness proves on although its AEK was wrapped once more since, because it did not come into the store itself.
        let proves = is_old || leash.vouch.is_witness(account, wrapped);
        if proves {
            self.grant_by(leash, voice, (account, wrapped), unwrapped.when, epoch);
        }
        proves
    }

    /// As [`Keyring::grant`], of what is the proof, because there is no better one.
    pub(super) fn grant_by(
        self: &Arc<Self>,
        leash: &Arc<Leash>,
        voice: Voice,
        (account, wrapped): (&AccountId, &WrappedAek),
        when: Asked,
        epoch: u64,
    ) {
        if when.is_before_denial(leash) {
            return;
        }
        let Asked { at: asked, context } = when;
        if self.feed(leash, voice, LeaseVerdict::Granted { asked, context, epoch }, None) {
            leash.vouch.proved(voice, asked, account, wrapped);
        }
    }

    /// Asks for an AEK and verifies that it is the one. `place` is one of the lease's budget.
    pub(crate) async fn unwrap_verified(
        self: &Arc<Self>,
        leash: &Arc<Leash>,
        account: &AccountId,
        wrapped: &WrappedAek,
        place: Place,
    ) -> Heard {
        if let Some(standby) = leash.standby_to_ask().cloned() {
            self.renew_for_life(leash, &standby).await;
            let outcome = self.unwrap_by_standby(leash, &standby, Right::Place(&place), account, wrapped).await;
            return Heard { voice: Voice::Standby, outcome };
        }
        self.renew_for_life(leash, &leash.route.first).await;
        let outcome = self.unwrap_at(&leash.route.first, Right::Place(&place), account, wrapped).await;
        let Some(standby) = leash.route.standby.clone() else { return Heard { voice: Voice::First, outcome } };
        let silent = match &outcome {
            Err(Trouble::Token(trouble)) if is_silence(trouble.verdict) => trouble.clone(),
            said => {
                if says_something(said) {
                    leash.note_first(|first, _| first.answers());
                }
                return Heard { voice: Voice::First, outcome };
            }
        };
        if !self.may_go_over(leash).await {
            return Heard { voice: Voice::First, outcome };
        }
        let place = standby.guests.instead_of(place).await; // which those need who are at home in a silent token
        self.renew_for_life(leash, &standby).await;
        let outcome = match self.unwrap_by_standby(leash, &standby, Right::Place(&place), account, wrapped).await {
            Err(Trouble::Token(trouble)) if is_silence(trouble.verdict) => {
                Err(Trouble::Token(both_silent(silent, &standby, &trouble)))
            }
            outcome => outcome,
        };
        Heard { voice: Voice::Standby, outcome }
    }

    /// What an old context says would bring no lease to life, or for longer than until a fresh proof is due: the first of the watch comes
    /// a poll later. Where it cannot be renewed, that is told.
    async fn renew_for_life(&self, leash: &Leash, seat: &Seat) {
        let is_old = self.is_fresh_proof_overdue(seat, self.settings.poll_interval) || self.may_hide(seat, leash);
        if is_old && !leash.runs_at(self.clock.now()) {
            let _ = self.renew_context(seat).await;
        }
    }

    /// Asks one token for an AEK and verifies that it is the one.
    pub(crate) async fn unwrap_at(
        &self,
        seat: &Seat,
        right: Right<'_>,
        account: &AccountId,
        wrapped: &WrappedAek,
    ) -> Result<Unwrapped, Trouble> {
        let context = context(&wrapped.kek, account, wrapped.aek_version);
        let kek = KekHandle { id: wrapped.kek_id.clone(), profile: wrapped.profile };
        // Looked at before the call: it may be made in a younger one, never in an older.
        let asked = self.clock.now();
        let began = seat.context_began().unwrap_or(asked);
        let unwrapped = seat.unwrap(right, &kek, &wrapped.wrapped, &binding(&context)).await;
        let outcome = unwrapped.map_err(Trouble::Token).and_then(|aek| {
            let is_it = check_matches(&aek, &context, &wrapped.check);
            if is_it {
                Ok(Unwrapped { aek, when: Asked { at: asked, context: began } })
            } else {
                Err(Trouble::OtherKey)
            }
        });
        // A proof gives nobody a key; what it says of the lease is told.
        if matches!(right, Right::Place(_)) {
            self.by_account.unwrapped(account);
            self.note_key(
                Deed::KeyUnwrap,
                seat,
                (account, wrapped.aek_version, &wrapped.kek),
                asked,
                || match &outcome {
                    Ok(_) => Outcome::Done,
                    Err(Trouble::Token(trouble)) => Outcome::Failed(Why::of(&trouble.clone().into())),
                    Err(Trouble::OtherKey) => Outcome::Failed(Why::of(&Corrupt::WrappedAek(String::new()).into())),
                },
            );
        }
        outcome
    }

    /// Notes that the first token is silent, and says whether the standby may be asked: not when the first one's last word
    /// was a denial, in this process or, as the store knows, in another.
    pub(crate) async fn may_go_over(self: &Arc<Self>, leash: &Arc<Leash>) -> bool {
        leash.note_first(FirstWord::is_silent);
        if leash.route.standby.is_none() {
            return false;
        }
        if let Some(known) = leash.first().may_go_over(self.clock.now()) {
            return known;
        }
        self.look_for_denials(leash).await;
        leash.first().may_go_over(self.clock.now()) == Some(true)
    }

    /// Looks into the store, for a lease that has a standby, whether another process was denied by the first token: with every proof, so that
    /// one which lives on the standby hears of it within a poll, and knows in a silence which records are older than the first
    /// token's last grant. Grants nothing, and denies in a silence alone: else the first token is asked, and says so itself.
    pub(crate) async fn look_for_denials(self: &Arc<Self>, leash: &Arc<Leash>) {
        if leash.route.standby.is_none() || leash.first().has_denied() {
            return;
        }
        let until = self.clock.now().plus(self.settings.poll_interval * LOOK_POLLS);
        // Where callers are waited for: a store that blocks its thread holds up no proof.
        let (keyring, of) = (self.clone(), leash.clone());
        let look = async move { keyring.in_time(keyring.knows_no_newer_denial(&of)).await };
        let looked = self.home.calls.spawn(look);
        let died = |_| Err(Error::Store("the look into it died, see the log".into()));
        match self.in_time(async { looked.await.unwrap_or_else(died) }).await {
            Ok(true) => leash.note_first(|first, _| first.looked(until)),
            Ok(false) if leash.first().is_in_silence() => {
                let stepped = leash.step(Voice::First, LeaseVerdict::Denied, Some(&denied_elsewhere(leash.kek())));
                leash.denial.told(self.clock.now());
                // Not written down: it stands there already, and a new version would be one that no proof has ended yet.
                self.tell_step(leash, &stepped, Some(&denied_elsewhere(leash.kek())));
            }
            Ok(false) => {}
            // Whether it denied is not known, and the silence goes on as one.
            Err(error) => {
                tracing::warn!(kek = %leash.kek(), %error, "the store does not say whether the first token denied: the standby is asked no longer than that");
            }
        }
    }

    /// True when the context is so old, or is within this time, that proofs from it count no more as of when they are asked.
    pub(crate) fn is_fresh_proof_overdue(&self, seat: &Seat, within: Duration) -> bool {
        let span = self.settings.terms().fresh_span;
        seat.context_began().is_some_and(|began| self.clock.now().plus(within) > began.plus(span))
    }

    /// True when the context may hide the denial in force: it was there before the store told of that.
    pub(crate) fn may_hide(&self, seat: &Seat, leash: &Leash) -> bool {
        leash.is_denied() && seat.context_began().is_some_and(|began| leash.denial.may_be_hidden(began))
    }

    /// For a fresh proof. That it failed is told, once until it works again: without one, leases end.
    pub(crate) async fn renew_context(&self, seat: &Seat) -> Result<(), TokenError> {
        let renewed = seat.renew_context().await;
        let failed = renewed.as_ref().err();
        if seat.not_renewed.swap(failed.is_some(), Ordering::SeqCst) != failed.is_some() {
            self.teller.tell(match failed {
                Some(why) => Event::ContextNotRenewed { token: seat.name.clone(), why: why.to_string() },
                None => Event::ContextRenewed { token: seat.name.clone() },
            });
        }
        renewed
    }

    /// For a proof: asks one token, whose answer is judged by who it is.
    pub(crate) async fn prove_at(
        &self,
        leash: &Leash,
        voice: Voice,
        seat: &Seat,
        account: &AccountId,
        wrapped: &WrappedAek,
    ) -> Result<Unwrapped, Trouble> {
        match voice {
            Voice::First => self.unwrap_at(seat, Right::Proof, account, wrapped).await,
            Voice::Standby => self.unwrap_by_standby(leash, seat, Right::Proof, account, wrapped).await,
        }
    }

    /// As [`Keyring::unwrap_at`], by the standby.
    pub(crate) async fn unwrap_by_standby(
        &self,
        leash: &Leash,
        standby: &Seat,
        right: Right<'_>,
        account: &AccountId,
        wrapped: &WrappedAek,
    ) -> Result<Unwrapped, Trouble> {
        let outcome = self.unwrap_at(standby, right, account, wrapped).await;
        self.judge_standby(leash, standby, right, &wrapped.kek_id, outcome).await
    }

    /// What the standby's answer says. One that does not have the key, or another one in its place, is no standby: that denies
    /// nobody, and the silence of the first token goes on.
    async fn judge_standby(
        &self,
        leash: &Leash,
        standby: &Seat,
        right: Right<'_>,
        kek: &KekId,
        outcome: Result<Unwrapped, Trouble>,
    ) -> Result<Unwrapped, Trouble> {
        let trouble = match outcome {
            Ok(unwrapped) => {
                leash.standby_proved.store(true, Ordering::SeqCst);
                leash.standby_has_it.store(true, Ordering::SeqCst);
                return Ok(unwrapped);
            }
            Err(Trouble::OtherKey) => return Err(self.unfit(leash, standby, "it gave other bytes than the AEK")),
            Err(Trouble::Token(trouble)) => trouble,
        };
        let proved = leash.standby_proved.load(Ordering::SeqCst);
        match trouble.verdict {
            Verdict::Denied if !leash.standby_has_it.load(Ordering::SeqCst) => {
                // Deleted there and never made there look alike. Only what was seen there can have been taken away.
                let found = match right {
                    Right::Place(place) => standby.token(place).find_kek(kek).await,
                    Right::Proof => {
                        standby.token(&standby.guests.on_demand(Some(leash.kek())).await).find_kek(kek).await
                    }
                };
                match found {
                    Ok(None) => Err(self.unfit(leash, standby, "it has no such key")),
                    Err(silent) if is_silence(silent.verdict) => Err(Trouble::Token(silent)),
                    Ok(Some(_)) | Err(_) => Err(Trouble::Token(trouble)),
                }
            }
            Verdict::BadRecord if !proved => Err(self.unfit(leash, standby, "it refuses what the first token wrapped")),
            Verdict::Replaced | Verdict::Misconfigured => Err(self.unfit(leash, standby, &trouble.to_string())),
            Verdict::Denied | Verdict::BadRecord | Verdict::Unreachable | Verdict::Busy | Verdict::Fatal => {
                Err(Trouble::Token(trouble))
            }
        }
    }

    /// Tells, once until it serves again, that a standby is none.
    fn unfit(&self, leash: &Leash, standby: &Seat, why: &str) -> Trouble {
        let trouble = TokenError {
            verdict: Verdict::Unreachable,
            operation: "standby",
            what: format!("not fit, {why}"),
            code: None,
            remedy: format!(
                "make token {} reachable; clone KEK {} to the standby with its CKA_ID, or configure no standby for it",
                leash.route.first.name,
                leash.kek()
            ),
        };
        self.tell_unfit(leash, standby, why);
        Trouble::Token(trouble)
    }

    pub(crate) fn tell_unfit(&self, leash: &Leash, standby: &Seat, why: &str) {
        if !leash.standby_unfit.swap(true, Ordering::SeqCst) {
            let (kek, standby, why) = (leash.kek().clone(), standby.name.clone(), why.to_owned());
            self.teller.tell(Event::StandbyUnfit { kek, standby, why });
        }
    }

    /// Looks whether the standby has the KEK, while it is not needed: an operator should know before the day, and what was
    /// seen there counts as denied when it is gone on that day. Asks for no AEK.
    pub(crate) async fn look_at_standby(&self, leash: &Leash, standby: &Seat, kek: &KekId) {
        let deadline = self.clock.now().plus(standby.call_timeout);
        let look = async { standby.token(&standby.guests.background(Some(leash.kek())).await).find_kek(kek).await };
        let Some(found) = self.clock.until(deadline, look).await else { return };
        let why = match found {
            Ok(Some(info)) => {
                leash.standby_has_it.store(true, Ordering::SeqCst);
                match info.refused {
                    Some(refused) => format!("it is refused: {refused}"),
                    None if !info.enabled => "it is disabled there".into(),
                    None => {
                        leash.standby_unfit.store(false, Ordering::SeqCst);
                        return;
                    }
                }
            }
            Ok(None) => {
                leash.standby_has_it.store(false, Ordering::SeqCst);
                "it has no such key: clone it, with its CKA_ID".into()
            }
            Err(trouble) if is_silence(trouble.verdict) || trouble.verdict == Verdict::Busy => return,
            Err(trouble) => trouble.to_string(),
        };
        self.tell_unfit(leash, standby, &why);
    }

    /// Wraps an AEK under a KEK version that was just vouched for, or is bare. Its lease is not told: a KEK that may only unwrap is no denial of its accounts. A
    /// standby wraps in the place of a silent first token only once it has unwrapped what that one wrapped: what another key
    /// wrapped, the first token could never give back. `place` is one of the lease's budget; gives that back, or one of the
    /// standby's.
    pub(crate) async fn wrap(
        self: &Arc<Self>,
        kek: &KekVersion,
        record: &KekVersionRecord,
        of: (&AccountId, u32),
        aek: &Aek,
        _: Vouched,
        place: Place,
    ) -> Result<(Wrapped, Place)> {
        let leash = self.leash(kek).await?;
        let handle = KekHandle { id: record.id.clone(), profile: record.profile };
        let binding = binding(&context(kek, of.0, of.1));
        let wrap_at = async |seat: &Seat, place: &Place| {
            let began = self.clock.now();
            let wrapped = seat.token(place).wrap(&handle, aek, &binding).await;
            self.note_key(Deed::KeyWrap, seat, (of.0, of.1, kek), began, || match &wrapped {
                Ok(_) => Outcome::Done,
                Err(trouble) => Outcome::Failed(Why::of(&trouble.clone().into())),
            });
            wrapped
        };
        let proved = || leash.route.standby.as_ref().filter(|_| leash.standby_proved.load(Ordering::SeqCst));
        if let Some(standby) = leash.standby_to_ask().and_then(|_| proved()) {
            return Ok((wrap_at(standby, &place).await?, place));
        }
        match wrap_at(&leash.route.first, &place).await {
            Err(trouble) if is_silence(trouble.verdict) => match proved() {
                Some(standby) if self.may_go_over(&leash).await => {
                    let place = standby.guests.instead_of(place).await;
                    Ok((wrap_at(standby, &place).await?, place))
                }
                _ => Err(trouble.into()),
            },
            wrapped => Ok((wrapped?, place)),
        }
    }
}

fn denied_elsewhere(kek: &KekVersion) -> TokenError {
    TokenError {
        verdict: Verdict::Denied,
        operation: "go over to the standby",
        what: format!("another process was denied KEK {kek} before the first token fell silent"),
        remedy: "make the first token reachable; if the key was not taken away, service resumes by itself then".into(),
        code: None,
    }
}

/// Another key stands in the KEK's place: it refuses, or gives other bytes for, what the KEK wrapped.
pub(crate) fn replaced(found: &str, account: &AccountId, aek_version: u32) -> TokenError {
    TokenError {
        verdict: Verdict::Replaced,
        operation: "proof",
        what: format!(
            "{found}, for AEK version {aek_version} of account {account}: another key stands in the KEK's place"
        ),
        remedy: format!(
            "restore the KEK in the token from its backup; never replace a KEK under its CKA_ID. (If it is the KEK, and account \
             {account} is what is wrong: purge that, or restore its record)"
        ),
        code: None,
    }
}

pub(crate) fn both_silent(first: TokenError, seat: &Seat, standby: &TokenError) -> TokenError {
    TokenError { what: format!("{}; and standby {}: {}", first.what, seat.name, standby.what), ..first }
}

pub(crate) fn no_answer(seat: &Seat) -> TokenError {
    TokenError {
        verdict: Verdict::Unreachable,
        operation: "proof",
        what: format!("token {}: no answer within {} ms", seat.name, seat.proof_max().as_millis()),
        remedy: "see whether the token is reachable; service goes on until grace ends".into(),
        code: None,
    }
}
