//! Lines as they are made before they have a number: by who does something, so that the one thread that writes has little to do for each.

use super::line::{CATEGORY, Line, LineGrant, LineRole, Time, fits, no_line};
use crate::{
    error::Result,
    name::{AccountId, CallerId, KekName, SecretName, TokenName, Whence},
    telemetry::trail::{Deed, OfGrants, Outcome, Record},
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::{io::Write, time::Duration};

/// Decimal digits of the highest number of a line.
const SEQ_DIGITS_MAX: usize = 16;
/// What a line of data mostly has, in bytes, and less than what it may have.
const LINE_BYTES_USUAL: usize = 384;

/// A line that has no number yet: who does something makes all of it but that, so that the thread that writes does not.
#[derive(Debug, Clone)]
pub(crate) struct Unnumbered {
    pub(crate) time: Time,
    pub(crate) account: Option<AccountId>,
    /// What stands behind the number.
    rest: Vec<u8>,
}

impl Unnumbered {
    /// What its bytes begin with, in front of its number.
    const FRONT: &[u8] = br#"{"seq":"#;

    /// That of a record.
    ///
    /// # Errors
    /// As [`Line::encode`].
    pub(crate) fn of(record: &Record) -> Result<Self> {
        let mut rest = Vec::with_capacity(LINE_BYTES_USUAL);
        serde_json::to_writer(&mut rest, &Behind(record)).map_err(no_line)?;
        if let Some(brace) = rest.first_mut() {
            *brace = b','; // it goes on behind the number
        }
        Self::numbered_fits(&rest)?;
        Ok(Self { time: Time::from_unix_ms(record.unix_ms), account: record.on.account.clone(), rest })
    }

    /// That of a line of the writer's own, whatever number it has.
    ///
    /// # Errors
    /// As [`Line::encode`].
    pub(crate) fn own(line: &Line) -> Result<Self> {
        let mut rest = line.encode()?;
        let digits = rest.iter().skip(Self::FRONT.len()).take_while(|byte| byte.is_ascii_digit()).count();
        rest.drain(..Self::FRONT.len() + digits);
        Self::numbered_fits(&rest)?;
        Ok(Self { time: line.time, account: None, rest })
    }

    fn numbered_fits(rest: &[u8]) -> Result<()> {
        fits(Self::FRONT.len() + SEQ_DIGITS_MAX + rest.len())
    }

    /// Writes it as line `seq`, without a line break.
    pub(crate) fn put(&self, seq: u64, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(Self::FRONT);
        // Memory takes everything.
        let _ = write!(bytes, "{seq}");
        bytes.extend_from_slice(&self.rest);
    }
}

/// What a record says, as [`Line`] has it, without a number, and without a copy of each name.
struct Behind<'r>(&'r Record);

impl Serialize for Behind<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn put<M: SerializeMap>(line: &mut M, name: &str, value: Option<impl Serialize>) -> Result<(), M::Error> {
            value.map_or(Ok(()), |value| line.serialize_entry(name, &value))
        }
        let Record { unix_ms, deed, outcome, on, by, took, sums } = self.0;
        let why = if let Outcome::Failed(why) = outcome { Some(why) } else { None };
        let (grant, role) = in_line(on.grants.as_ref());
        let mut line = serializer.serialize_map(None)?;
        put(&mut line, "time", Some(Time::from_unix_ms(*unix_ms)))?;
        put(&mut line, "category", Some(CATEGORY))?;
        put(&mut line, "operation", Some(deed.name()))?;
        put(&mut line, "result", Some(outcome.name()))?;
        put(&mut line, "reason", why.map(|why| why.kind))?;
        put(&mut line, "code", why.and_then(|why| why.code.as_ref()))?;
        put(&mut line, "not_granted", why.and_then(|why| why.not_granted))?;
        put(&mut line, "asked", on.asked.map(Deed::name))?;
        put(&mut line, "kek", on.kek.as_ref().map(KekName::as_str))?;
        put(&mut line, "kek_version", on.kek_version)?;
        put(&mut line, "account", on.account.as_ref().map(AccountId::as_str))?;
        put(&mut line, "aek_versions", Some(&on.aek_versions).filter(|versions| !versions.is_empty()))?;
        put(&mut line, "secret", on.secret.as_ref().map(SecretName::as_str))?;
        put(&mut line, "secret_version", on.secret_version)?;
        put(&mut line, "grant", grant)?;
        put(&mut line, "role", role)?;
        put(&mut line, "token", on.token.as_ref().map(TokenName::as_str))?;
        put(&mut line, "token_serial", on.token_serial.as_deref())?;
        put(&mut line, "caller", by.caller.as_ref().map(CallerId::as_str))?;
        put(&mut line, "from", by.from.as_ref().map(Whence::as_str))?;
        put(&mut line, "correlation", Some(by.correlation.to_string()))?;
        put(&mut line, "took_us", took.map(micros))?;
        put(&mut line, "sealed", sums.map(|sums| sums.sealed))?;
        put(&mut line, "sealed_bytes", sums.map(|sums| sums.sealed_bytes))?;
        put(&mut line, "opened", sums.map(|sums| sums.opened))?;
        put(&mut line, "opened_bytes", sums.map(|sums| sums.opened_bytes))?;
        put(&mut line, "forbidden", sums.map(|sums| sums.forbidden))?;
        line.end()
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// What a line says of grants.
fn in_line(grants: Option<&OfGrants>) -> (Option<LineGrant>, Option<LineRole>) {
    match grants {
        Some(OfGrants::Grant(grant)) => (Some(grant.into()), None),
        Some(OfGrants::Id(id)) => (Some(LineGrant { id: id.to_string(), ..LineGrant::default() }), None),
        Some(OfGrants::Role(role)) => (None, Some(role.into())),
        Some(OfGrants::Name(name)) => (None, Some(LineRole { name: name.to_string(), ..LineRole::default() })),
        None => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{Actions, Grant, Operation, Operations, Pattern},
        audit::line::{LINES_MAX, tests::longest},
        name::{GrantId, RoleName},
        telemetry::trail::{Correlation, Why},
    };
    use proptest::prelude::*;

    /// Of some names, and of whatever else `longest` has that `has` says.
    fn some_record(text: &str, number: u64, has: [bool; 20]) -> Record {
        let mut record = longest();
        record.unix_ms = number;
        record.deed = Deed::ALL[number as usize % Deed::ALL.len()];
        record.on.account = AccountId::new(text).ok();
        record.on.asked = has[0].then_some(Deed::SecretGet);
        record.on.token_serial = has[1].then(|| text.into());
        record.took = has[2].then(|| Duration::from_nanos(number));
        record.sums = record.sums.filter(|_| has[3]);
        record.on.kek = record.on.kek.filter(|_| has[4]);
        record.on.kek_version = has[5].then_some(number as u32);
        record.on.aek_versions.truncate(usize::from(has[6]) * (number % 4) as usize);
        record.on.secret = record.on.secret.filter(|_| has[7]);
        record.on.secret_version = has[8].then_some(number as u32);
        record.on.token = record.on.token.filter(|_| has[9]);
        record.by.caller = CallerId::new(text).ok().filter(|_| has[10]);
        record.by.from = Whence::new(text).ok().filter(|_| has[11]);
        record.by.correlation = Correlation::new(u128::from(number).to_be_bytes());
        let why = Why { kind: "denied", code: has[12].then(|| text.into()), not_granted: has[13].then_some("open") };
        record.outcome = match (has[14], has[15]) {
            (true, true) => Outcome::Failed(why),
            (true, false) => Outcome::Asked,
            (false, true) => Outcome::Done,
            (false, false) => Outcome::Dropped,
        };
        record.on.grants = match (has[16], has[17], has[18]) {
            (true, true, true) => record.on.grants,
            (true, true, false) => Some(OfGrants::Id(GrantId::new("g").unwrap())),
            (true, false, true) => Some(OfGrants::Name(RoleName::new("r").unwrap())),
            (true, false, false) => Some(OfGrants::Grant(Grant {
                id: GrantId::new("new").unwrap(),
                callers: Pattern::all(),
                keks: Pattern::all(),
                accounts: Pattern::all(),
                actions: Actions::Operations(Operations::of(&[Operation::Open])),
            })),
            (false, ..) => None,
        };
        record
    }

    proptest! {
        #[test]
        fn a_line_made_before_its_number_is_read_and_written_with_the_same_bytes(
            text in ".{0,40}", number: u64, seq in 0..LINES_MAX, has: [bool; 20],
        ) {
            let record = some_record(&text, number, has);
            let line = Line::of(&record, seq).unwrap();
            let mut bytes = Vec::new();
            let made = Unnumbered::of(&record).unwrap();
            made.put(seq, &mut bytes);
            prop_assert_eq!(&bytes, &line.encode().unwrap());
            prop_assert_eq!(made.time, line.time);
            prop_assert_eq!(made.account.as_ref().map(AccountId::as_str), line.account.as_deref());
            bytes.clear();
            Unnumbered::own(&line).unwrap().put(seq, &mut bytes);
            prop_assert_eq!(&bytes, &line.encode().unwrap());
        }
    }
}
