//! The days between which a KEK is valid.

use super::fault::{Fault, at, code_of};
use super::raw::Raw;
use cryptoki::{
    error::RvError,
    object::{Attribute, AttributeType, ObjectHandle},
    session::Session,
};

/// How often in a row the dates must fail, each time while the class is told: trouble that passes looks the same once.
const HIDDEN_SHOWN: usize = 3;

/// CKA_START_DATE and CKA_END_DATE. SoftHSM and kryoptic do not look at them, so keyleash does, at the machine's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dates {
    /// First and last day of validity, UTC, as YYYYMMDD.
    start: Option<u32>,
    end: Option<u32>,
    /// The token has dates and cannot show them.
    hidden: bool,
}

/// Whether a KEK may be used today.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Term {
    Runs,
    /// Why not.
    Over(String),
    /// Nobody knows; why.
    Unknown(String),
}

/// A clock before this day (YYYYMMDD) was never set, or stands at its beginning: this code is younger.
const CLOCK_SET_FROM: u32 = 20260101;

impl Dates {
    /// From the attributes' bytes.
    pub(super) fn of(start: &[u8], end: &[u8]) -> Self {
        match (date(start), date(end)) {
            (Ok(start), Ok(end)) => Self { start, end, hidden: false },
            _ => Self { hidden: true, ..Self::default() },
        }
    }

    /// Why a KEK with these is refused.
    pub(super) fn refusal(self) -> Option<String> {
        let why = "the token fails to tell CKA_START_DATE and CKA_END_DATE: whether the KEK is valid is unknown";
        self.hidden.then(|| why.into())
    }

    /// On the day `today` (YYYYMMDD, UTC).
    pub(super) fn term(self, today: u32) -> Term {
        match (self.start, self.end) {
            (None, None) => Term::Runs,
            _ if today < CLOCK_SET_FROM => Term::Unknown(format!(
                "the machine's clock stands at {today}, so whether CKA_START_DATE has come and CKA_END_DATE is past is unknown"
            )),
            (Some(start), _) if today < start => Term::Over(format!("CKA_START_DATE {start} has not come")),
            (_, Some(end)) if today > end => Term::Over(format!("CKA_END_DATE {end} is past")),
            _ => Term::Runs,
        }
    }
}

/// YYYYMMDD as digits; none where it is empty, or filled with what stands for nothing.
fn date(bytes: &[u8]) -> Result<Option<u32>, ()> {
    if bytes.iter().all(|byte| [0, b' ', b'0'].contains(byte)) {
        return Ok(None);
    }
    let digits = (bytes.len() == 8 && bytes.iter().all(u8::is_ascii_digit)).then_some(bytes).ok_or(())?;
    Ok(Some(digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))))
}

/// The day of `unix` seconds, UTC, as YYYYMMDD (Hinnant's civil_from_days).
pub(super) fn day(unix: u64) -> u32 {
    let days = unix / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    u32::try_from(year * 10_000 + month * 100 + day).unwrap_or(u32::MAX)
}

pub(super) fn today() -> u32 {
    day(crate::clock::unix_now())
}

/// Apart from the others, because SoftHSM fails with CKR_GENERAL_ERROR where a private key has a date: it stores it in the clear
/// and decrypts it when it is read.
pub(super) fn read_dates(raw: Option<&Raw>, session: &Session, object: ObjectHandle) -> Result<Dates, Fault> {
    let [start_date, end_date] = [AttributeType::StartDate, AttributeType::EndDate];
    let (mut start, mut end) = ([0; 8], [0; 8]);
    let at_once = raw.map(|raw| raw.attributes(session, object, [(start_date, &mut start), (end_date, &mut end)]));
    if let Some(Ok([start_len, end_len])) = at_once {
        return Ok(Dates::of(start.get(..start_len).unwrap_or_default(), end.get(..end_len).unwrap_or_default()));
    }
    // One by one, for a token that has but one of them, or none.
    const STEP: &str = "C_GetAttributeValue of a KEK";
    let found = 'shown: {
        for _ in 0..HIDDEN_SHOWN {
            match session.get_attributes(object, &[start_date, end_date]) {
                Ok(found) => break 'shown found,
                Err(error) if !matches!(code_of(&error), RvError::GeneralError) => return Err(at(STEP)(error)),
                Err(_) => {}
            }
            // When the token still tells the class, the dates alone are the trouble, else the token is.
            session.get_attributes(object, &[AttributeType::Class]).map_err(at(STEP))?;
        }
        return Ok(Dates { hidden: true, ..Dates::default() });
    };
    let (mut start, mut end) = (Vec::new(), Vec::new());
    for attribute in found {
        match attribute {
            Attribute::StartDate(date) => start = [&date.year[..], &date.month, &date.day].concat(),
            Attribute::EndDate(date) => end = [&date.year[..], &date.month, &date.day].concat(),
            _ => {}
        }
    }
    Ok(Dates::of(&start, &end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_never_set_neither_runs_a_kek_with_dates_nor_denies_it() {
        for dates in [Dates::of(b"20260110", b""), Dates::of(b"", b"20260120"), Dates::of(b"20260110", b"20260120")] {
            for today in [19700101, 19800101, 20251231] {
                assert!(matches!(dates.term(today), Term::Unknown(why) if why.contains("clock")), "{today}");
            }
        }
    }

    #[test]
    fn days_follow_the_calendar() {
        for (unix, day_then) in
            [(0, 19700101), (951_782_400, 20000229), (951_868_800, 20000301), (1_798_761_599, 20261231)]
        {
            assert_eq!(day(unix), day_then);
        }
    }
}
