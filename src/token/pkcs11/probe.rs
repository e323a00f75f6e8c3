//! Proves a profile by whole round trips with a key of the session's own. A mechanism list proves nothing.

use super::fault::{self, Fault};
use super::raw::Raw;
use super::{kek, wrap};
use crate::clock::Clock;
use crate::secret::Aek;
use crate::token::{Probe, Profile, TokenError, Verdict};
use cryptoki::session::Session;
use std::time::Duration;

/// Round trips, of which the median counts. Odd.
const RUNS: usize = 5;
const BINDING: crate::token::Binding = *b"keyleash.probe: no account's AEK";

/// Wraps, unwraps and compares a few times, then sees that a corrupt wrapping is refused.
pub(super) fn round_trips(raw: Option<&Raw>, session: &Session, profile: Profile) -> Result<Probe, Fault> {
    let key = kek::generate_for_probe(session, profile)?;
    let result = with_key(raw, session, &key, profile);
    kek::destroy(session, &key);
    result
}

fn with_key(raw: Option<&Raw>, session: &Session, key: &kek::Kek, profile: Profile) -> Result<Probe, Fault> {
    let clock = Clock::Boottime;
    let (mut wraps, mut unwraps) = (Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..RUNS {
        let aek = Aek::generate()?;
        let begun = clock.now();
        let wrapped = wrap::wrap(session, key, profile, &aek, &BINDING)?;
        let wrapped_at = clock.now();
        let back = wrap::unwrap(raw, session, key, profile, &wrapped, &BINDING)?;
        let unwrapped_at = clock.now();
        if back != aek {
            return Err(unsound("another AEK came back than was wrapped"));
        }
        wraps.push(wrapped_at.since(begun));
        unwraps.push(unwrapped_at.since(wrapped_at));
        last = Some(wrapped);
    }
    if let Some(mut corrupt) = last {
        if let Some(byte) = corrupt.bytes.last_mut() {
            *byte ^= 1;
        }
        // A token of OAEP or RFC 3394 gives an error; none may give a key.
        if wrap::unwrap(raw, session, key, profile, &corrupt, &BINDING).is_ok() {
            return Err(unsound("the token unwraps a corrupt wrapping"));
        }
    }
    Ok(Probe { wrap: median(wraps), unwrap: median(unwraps) })
}

fn unsound(what: &str) -> Fault {
    fault::misconfigured("probe", what, "do not use this profile on this token").into()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// A probe that fails on a token that answers says that the profile cannot be used, whatever the code.
pub(super) fn explain(profile: Profile, error: TokenError) -> TokenError {
    if matches!(error.verdict, Verdict::Unreachable | Verdict::Fatal) || error.operation == "login" {
        return error;
    }
    TokenError {
        verdict: Verdict::Misconfigured,
        operation: "probe",
        what: format!("this token cannot do {profile}: {}", error.what),
        remedy: format!(
            "use {}; `keyleash token check` tries them all",
            Profile::ALL
                .map(Profile::name)
                .into_iter()
                .filter(|name| *name != profile.name())
                .collect::<Vec<_>>()
                .join(" or ")
        ),
        ..error
    }
}
