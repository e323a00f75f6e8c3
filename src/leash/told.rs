//! What is told of a lease: why it refuses, in words, and how it stands.

use super::{Inner, Leash, Member};
use crate::{
    clock::Instant,
    error::{Error, Refusal},
    lease::{Phase, Verdict},
    name::{KekVersion, TokenName},
    token::{TokenError, Verdict as TokenVerdict},
};
use std::time::Duration;

/// What was being done when a proof did not count.
const FRESH_PROOF: &str = "fresh proof";

/// What is told about a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The KEK version.
    pub kek: KekVersion,
    /// The token that it is in.
    pub token: TokenName,
    /// The standby, while it is the one that grants because the first token is silent.
    pub on_standby: Option<TokenName>,
    /// Where the lease stands.
    pub phase: Phase,
    /// Time since the newest proof was asked; `None` when there is none.
    pub proved_ago: Option<Duration>,
    /// Time since the context was initialised in which it was asked, where contexts may hide what changed since; else as
    /// `proved_ago`. A lease ends with `grace` after `fresh_proof_every * poll_interval` of this, whatever proofs say.
    pub fresh_ago: Option<Duration>,
    /// Time until nothing may be used any more; zero when nothing may.
    pub ends_in: Duration,
    /// AEKs in memory under it.
    pub filled_slots: usize,
    /// AEKs that a denial or lapse took away from whoever used them, and that are not back yet.
    pub wanted_slots: usize,
    /// Why the token last did not grant, or was not asked.
    pub trouble: Option<String>,
}

/// The token answers, out of a context that may hide what it says by now.
pub(super) fn no_fresh_proof(age: Duration) -> TokenError {
    TokenError {
        verdict: TokenVerdict::Unreachable,
        operation: FRESH_PROOF,
        code: None,
        what: format!(
            "the module's context is {} s old and could not be renewed, so proofs from it count no more",
            age.as_secs()
        ),
        remedy: "see in the log why; where calls hang in the module (`keyleash status`), restart the process".into(),
    }
}

impl<M: Member> Leash<M> {
    /// Why a cold slot cannot be filled now.
    #[cold]
    pub(crate) fn why_not(&self) -> Error {
        self.refusal(&self.inner(), self.clock.now())
    }

    /// Why a slot that is not usable at `now` is not, unless it is merely cold. Changes and wipes nothing: a seal or open
    /// that is refused returns at once.
    #[cold]
    pub(crate) fn why_refused(&self, now: Instant) -> Option<Error> {
        let inner = self.inner();
        if inner.closed {
            return Some(Error::Closed);
        }
        let phase = inner.lease.step(Verdict::Nothing, now).0.phase();
        let cold = matches!(phase, Phase::Unproven | Phase::Active | Phase::Resuming { .. });
        (!cold).then(|| self.refusal(&inner, now))
    }

    pub(super) fn refusal(&self, inner: &Inner, now: Instant) -> Error {
        let trouble = inner.trouble.as_ref();
        let refusal = |since: Option<Instant>, reason: &str, remedy: &str| {
            Box::new(Refusal {
                subject: format!("KEK {}", self.kek),
                kek: Some(self.kek.clone()),
                code: trouble.and_then(|trouble| trouble.code.clone()),
                lasting: since.map(|since| now.since(since)),
                reason: trouble.map_or_else(|| reason.to_owned(), |trouble| format!("{reason} ({trouble})")),
                remedy: trouble.map_or(remedy, |trouble| &trouble.remedy).to_owned(),
            })
        };
        match inner.lease.step(Verdict::Nothing, now).0.phase() {
            Phase::Denied { since } => Error::Denied(refusal(
                Some(since),
                "the token refuses the use of this KEK",
                "the owner of the key must enable it again; service resumes by itself then",
            )),
            Phase::Lapsed { since } => Error::Lapsed(refusal(
                Some(since),
                match trouble.is_some_and(|trouble| trouble.operation == FRESH_PROOF) {
                    true => "no fresh proof for the whole grace",
                    false => "the token has been silent for the whole grace",
                },
                "make the token reachable again; service resumes by itself then",
            )),
            Phase::Grace { since, .. } => Error::Unreachable(refusal(
                Some(since),
                "the token does not answer and this account's key is not in memory",
                "make the token reachable, or try again later",
            )),
            Phase::Unproven | Phase::Active | Phase::Resuming { .. } => Error::Unreachable(refusal(
                None,
                "this account's key is not in memory and the token has not given it yet",
                "try again",
            )),
        }
    }

    pub(crate) fn status(&self) -> LeaseStatus {
        let members = self.living_members();
        let filled_slots = members.iter().filter(|member| member.key().epoch().is_some()).count();
        let wanted_slots = members.iter().filter(|member| member.wanted_back()).count();
        drop(members);
        let inner = self.inner();
        let now = self.clock.now();
        // As of now, but not stepped: that is for those who tell of what changed.
        let lease = inner.lease.step(Verdict::Nothing, now).0;
        LeaseStatus {
            kek: self.kek.clone(),
            token: self.route.first.name.clone(),
            on_standby: self
                .route
                .standby
                .as_ref()
                .filter(|_| inner.first.is_on_standby())
                .map(|seat| seat.name.clone()),
            phase: lease.phase(),
            proved_ago: lease.proved().map(|proved| now.since(proved)),
            fresh_ago: lease.fresh().map(|context| now.since(context)),
            ends_in: lease.end().since(now),
            filled_slots,
            wanted_slots,
            trouble: inner.trouble.as_ref().map(ToString::to_string).or_else(|| inner.unprovable.clone()),
        }
    }
}
