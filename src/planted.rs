//! Faults that a drill must find, for `tests/planted.rs` and nobody else: they break the promises on purpose. They are behind the
//! feature `planted-faults`, which no service turns on, and one is chosen by the environment, PLANTED_FAULT. Without the
//! feature nothing is left of it but a `false` that the compiler takes out.

#![cfg_attr(not(feature = "planted-faults"), allow(dead_code))]

use crate::{
    error::Result,
    lease::{Phase, Verdict},
    name::AccountId,
};

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A denial takes effect three seconds late.
    VerdictHeld,
    /// The token's no is not heard.
    DenialIgnored,
    /// The token's silence is not heard.
    SilenceIgnored,
    /// The token's yes, after trouble, is heard five seconds late.
    GrantLate,
    /// Of a denial the store is told nothing.
    DenialNotWritten,
    /// A lease lapses after half its grace.
    LapsesEarly,
    /// A lease lapses after twice its grace.
    LapsesLate,
    /// Keys are given back without being wiped.
    WipeOmitted,
    /// Some accounts do not come back after a denial.
    SomeStayAway,
    /// Every seal takes three seconds while the token is silent.
    SealsBlockInGrace,
    /// Every seal takes a fifth of a second while the token is silent.
    SealsSlowInGrace,
    /// Every seal takes three seconds once the token was silent.
    SealsBlockAfter,
    /// Every seal takes a fifth of a second once the token was silent.
    SealsSlowAfter,
    /// Some seals are refused while the token is silent.
    RefusesInGrace,
    /// Some seals are refused at any time.
    RefusesAtTimes,
    /// An open gives other bytes than were sealed.
    OpensWrong,
    /// Handles never take up a rotated AEK.
    RotationNotTakenUp,
    /// A re-wrap leaves some accounts where they are, and retirement does not look.
    SomeLeftBehind,
}

/// True when this fault was planted.
#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub(crate) const fn is(_: Fault) -> bool {
    false
}

#[cfg(feature = "planted-faults")]
pub(crate) use self::chosen::is;

#[cfg(feature = "planted-faults")]
mod chosen {
    use super::Fault;
    use std::sync::OnceLock;

    /// True when this fault was planted: it is named as in the code.
    pub(crate) fn is(fault: Fault) -> bool {
        static CHOSEN: OnceLock<String> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| std::env::var("PLANTED_FAULT").unwrap_or_default());
        !chosen.is_empty() && *chosen == format!("{fault:?}")
    }
}

/// What is said of such a build wherever warnings are shown.
pub(crate) fn warning() -> Option<String> {
    cfg!(feature = "planted-faults").then(|| {
        "this build has planted faults (Cargo feature planted-faults): it breaks its promises on purpose, and must serve nobody".into()
    })
}

/// True for an account that a re-wrap does not see.
pub(crate) fn is_left_behind(account: &AccountId) -> bool {
    is(Fault::SomeLeftBehind) && is_some(account)
}

/// Accounts that a fault befalls which does not befall all.
pub(crate) fn is_some(account: &AccountId) -> bool {
    account.as_str().ends_with('1')
}

#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub(crate) fn heard(verdict: Verdict, _: impl Fn() -> Phase) -> Option<Verdict> {
    Some(verdict)
}

#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub(crate) fn on_seal(_: impl Fn() -> Phase) -> Result<()> {
    Ok(())
}

#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub(crate) const fn on_opened(_: &mut [u8]) {}

#[cfg(feature = "planted-faults")]
pub(crate) use self::acts::{heard, on_opened, on_seal, stays_away};

#[cfg(feature = "planted-faults")]
mod acts {
    use super::{AccountId, Fault, Phase, Result, Verdict, is, is_some};
    use crate::{
        clock::Clock,
        error::{Error, Refusal},
    };
    use std::{
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
        thread,
        time::Duration,
    };

    const HELD: Duration = Duration::from_secs(3);
    const GRANT_LATE: Duration = Duration::from_secs(5);
    const BLOCKED: Duration = Duration::from_secs(3);
    const SLOW: Duration = Duration::from_millis(200);
    const REFUSED_EVERY: u64 = 50;

    static WAS_DENIED: AtomicBool = AtomicBool::new(false);
    static WAS_SILENT: AtomicBool = AtomicBool::new(false);
    static GRANTED_NS: AtomicU64 = AtomicU64::new(0);
    static SEALS: AtomicU64 = AtomicU64::new(0);

    /// True for an account whose keys are not used again.
    pub(crate) fn stays_away(account: &AccountId) -> bool {
        is(Fault::SomeStayAway) && WAS_DENIED.load(Ordering::SeqCst) && is_some(account)
    }

    /// What a lease in this phase hears of a verdict.
    pub(crate) fn heard(verdict: Verdict, phase: impl Fn() -> Phase) -> Option<Verdict> {
        let phase = phase();
        match verdict {
            Verdict::Denied if is(Fault::DenialIgnored) => return None,
            Verdict::Denied => {
                if is(Fault::VerdictHeld) && !matches!(phase, Phase::Denied { .. }) {
                    thread::sleep(HELD);
                }
                WAS_DENIED.store(true, Ordering::SeqCst);
            }
            Verdict::Unreachable if is(Fault::SilenceIgnored) => return None,
            Verdict::Granted { .. } if is(Fault::GrantLate) => {
                let now_ns = Clock::default().now().as_nanos();
                match phase {
                    Phase::Denied { .. } | Phase::Grace { .. } | Phase::Lapsed { .. } => {
                        let first = GRANTED_NS.compare_exchange(0, now_ns, Ordering::SeqCst, Ordering::SeqCst);
                        let since = first.err().unwrap_or(now_ns);
                        if now_ns - since < GRANT_LATE.as_nanos() as u64 {
                            return None;
                        }
                    }
                    _ => GRANTED_NS.store(0, Ordering::SeqCst),
                }
            }
            _ => {}
        }
        Some(verdict)
    }

    /// Before a seal under a lease in this phase.
    pub(crate) fn on_seal(phase: impl Fn() -> Phase) -> Result<()> {
        let silent = matches!(phase(), Phase::Grace { .. });
        let was_silent = WAS_SILENT.fetch_or(silent, Ordering::SeqCst);
        let after = was_silent && !silent;
        if silent && is(Fault::SealsBlockInGrace) || after && is(Fault::SealsBlockAfter) {
            thread::sleep(BLOCKED);
        }
        if silent && is(Fault::SealsSlowInGrace) || after && is(Fault::SealsSlowAfter) {
            thread::sleep(SLOW);
        }
        let refuses = silent && is(Fault::RefusesInGrace) || is(Fault::RefusesAtTimes);
        if refuses && SEALS.fetch_add(1, Ordering::SeqCst) % REFUSED_EVERY == REFUSED_EVERY - 1 {
            return Err(Error::Unreachable(Box::new(Refusal {
                subject: "a planted fault".into(),
                lasting: None,
                reason: "refused on purpose".into(),
                remedy: "build without the feature planted-faults".into(),
                kek: None,
                code: None,
            })));
        }
        Ok(())
    }

    /// After an open.
    pub(crate) fn on_opened(buf: &mut [u8]) {
        if is(Fault::OpensWrong) {
            buf.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        }
    }
}

#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub(crate) const fn stays_away(_: &AccountId) -> bool {
    false
}
