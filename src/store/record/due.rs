//! What is due by schedule: from records and the time alone, without I/O and without a clock of its own.
//!
//! A rotation makes a version whose age and counts begin anew. So a schedule that was missed, however often, is caught up
//! once; and what is due does not depend on who looks, nor on when anybody looked before.

use super::{AccountRecord, AekPolicy, KekPolicy, KekRecord};
use crate::{
    block::{AEK_BLOCKS_MAX, AEK_BYTES_MAX},
    error::{Error, Result},
};
use std::{fmt, time::Duration};

/// Shortest age by which a key is rotated: an account has at most 256 AEK versions until some are retired.
pub const POLICY_AGE_MIN: Duration = Duration::from_secs(60 * 60);
/// Longest age by which a key is rotated: 100 years.
pub const POLICY_AGE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// At this part of what the suite allows an AEK version is rotated whatever its policy says.
const SUITE_SHARE: u64 = 2;

/// Why a key is due for rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Due {
    /// Half of what the suite allows was sealed under it.
    Suite,
    /// Its policy's number of blocks was sealed under it.
    Blocks,
    /// Its policy's number of bytes was sealed under it.
    Bytes,
    /// It is as old as its policy allows.
    Age,
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Suite => "half of what the suite allows",
            Self::Blocks => "blocks",
            Self::Bytes => "bytes",
            Self::Age => "age",
        })
    }
}

/// Why the current AEK version of an account is due at `unix_now`, if it is. A deleted account is left alone.
pub fn aek_due(record: &AccountRecord, unix_now: u64) -> Option<Due> {
    let AekPolicy { max_blocks, max_bytes, .. } = record.policy;
    let used = record.current()?.used;
    let reaches = |used: u64, max: u64| max != 0 && used >= max;
    if record.deleted.is_some() {
        None
    } else if used.blocks >= AEK_BLOCKS_MAX / SUITE_SHARE || used.bytes >= AEK_BYTES_MAX / SUITE_SHARE {
        Some(Due::Suite)
    } else if reaches(used.blocks, max_blocks) {
        Some(Due::Blocks)
    } else if reaches(used.bytes, max_bytes) {
        Some(Due::Bytes)
    } else {
        aek_due_at(record).filter(|due_at| unix_now >= *due_at).map(|_| Due::Age)
    }
}

/// From when on the current AEK version of an account is due by its age, in seconds since 1970.
pub fn aek_due_at(record: &AccountRecord) -> Option<u64> {
    record
        .current()
        .filter(|_| record.deleted.is_none())
        .and_then(|aek| age(aek.created_unix, record.policy.max_age_secs))
}

/// Why the current version of a KEK is due at `unix_now`, if it is.
pub fn kek_due(record: &KekRecord, unix_now: u64) -> Option<Due> {
    kek_due_at(record).filter(|due_at| unix_now >= *due_at).map(|_| Due::Age)
}

/// From when on the current version of a KEK is due, in seconds since 1970.
pub fn kek_due_at(record: &KekRecord) -> Option<u64> {
    record.current().and_then(|kek| age(kek.created_unix, record.policy.max_age_secs))
}

fn age(created_unix: u64, max_age_secs: u64) -> Option<u64> {
    (max_age_secs != 0).then(|| created_unix.saturating_add(max_age_secs))
}

/// Refuses an age that cannot be meant.
pub(crate) fn check_aek_policy(policy: AekPolicy) -> Result<()> {
    check_age(policy.max_age_secs)
}

/// As [`check_aek_policy`].
pub(crate) fn check_kek_policy(policy: KekPolicy) -> Result<()> {
    check_age(policy.max_age_secs)
}

fn check_age(max_age_secs: u64) -> Result<()> {
    let (min, max) = (POLICY_AGE_MIN.as_secs(), POLICY_AGE_MAX.as_secs());
    if max_age_secs == 0 || (min..=max).contains(&max_age_secs) {
        return Ok(());
    }
    Err(Error::Invalid(format!("a key is rotated by an age of 1 hour to 100 years; {max_age_secs} s is not")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        name::{AccountId, KekName, KekVersion, TokenName},
        store::record::{Deletion, KekVersionRecord, Usage, WrappedAek},
        token::{KekId, Profile, Wrapped},
    };
    use proptest::prelude::*;

    fn kek_id() -> KekId {
        KekId::new([1]).unwrap()
    }

    fn aek(aek_version: u32, created_unix: u64, used: Usage) -> WrappedAek {
        WrappedAek {
            aek_version,
            kek: KekVersion::new(KekName::new("k").unwrap(), 1),
            kek_id: kek_id(),
            profile: Profile::AesGcm,
            wrapped: Wrapped { iv: Vec::new(), bytes: vec![1] },
            check: [0; 32],
            created_unix,
            used,
        }
    }

    fn account(policy: AekPolicy, created_unix: u64, used: Usage) -> AccountRecord {
        let mut record = AccountRecord::new(0, AccountId::new("a").unwrap(), aek(1, created_unix, used));
        record.policy = policy;
        record
    }

    fn policy() -> impl Strategy<Value = AekPolicy> {
        // Small numbers, so that limits are met; each is no limit now and then.
        (0_u64..50, 0_u64..50, 0_u64..50).prop_map(|(max_age_secs, max_blocks, max_bytes)| AekPolicy {
            max_age_secs,
            max_blocks,
            max_bytes,
        })
    }

    fn used() -> impl Strategy<Value = Usage> {
        let near = |limit: u64| prop_oneof![4 => 0_u64..60, 1 => (limit - 2)..(limit + 2), 1 => Just(u64::MAX)];
        (near(AEK_BLOCKS_MAX / 2), near(AEK_BYTES_MAX / 2)).prop_map(|(blocks, bytes)| Usage { blocks, bytes })
    }

    proptest! {
        #[test]
        fn an_aek_is_due_exactly_when_a_limit_of_its_policy_or_half_of_the_suites_is_reached(
            policy in policy(), used in used(), created in 0_u64..100, now in 0_u64..200
        ) {
            let record = account(policy, created, used);
            let AekPolicy { max_age_secs, max_blocks, max_bytes } = policy;
            let expected = used.blocks >= 1 << 45
                || used.bytes >= 1 << 59
                || max_blocks > 0 && used.blocks >= max_blocks
                || max_bytes > 0 && used.bytes >= max_bytes
                || max_age_secs > 0 && now >= created + max_age_secs;
            prop_assert_eq!(aek_due(&record, now).is_some(), expected);
            let deleted = AccountRecord { deleted: Some(Deletion { since_unix: 1, purge_after_unix: 2 }), ..record };
            prop_assert_eq!(aek_due(&deleted, now), None);
        }

        /// However many engines look, however seldom, whatever their clocks say of each other's work.
        #[test]
        fn a_schedule_that_was_missed_is_caught_up_once(
            policy in policy(), used in used(), looks in proptest::collection::vec(0_u64..10_000, 1..30)
        ) {
            let mut record = account(policy, 0, used);
            let (mut now, mut last) = (0, None);
            for pause in looks {
                now += pause;
                if let Some(due) = aek_due(&record, now) {
                    if let (Some(last), Due::Age) = (last, due) {
                        prop_assert!(now - last >= policy.max_age_secs, "rotated twice within its age");
                    }
                    prop_assert!(last.is_none() || due == Due::Age, "what was not sealed since is not due by counts");
                    let next = record.current().unwrap().aek_version + 1;
                    record.versions.push(aek(next, now, Usage::default()));
                    last = Some(now);
                    prop_assert_eq!(aek_due(&record, now), None, "due again at once");
                }
            }
        }

        #[test]
        fn what_is_due_by_age_stays_due_and_what_is_not_yet_says_when(created in 0_u64..100, max in 1_u64..50, now in 0_u64..200) {
            let record = account(AekPolicy { max_age_secs: max, ..AekPolicy::default() }, created, Usage::default());
            let due_at = aek_due_at(&record).unwrap();
            prop_assert_eq!(aek_due(&record, now).is_some(), now >= due_at);
            let kek = KekRecord {
                name: KekName::new("k").unwrap(),
                versions: vec![KekVersionRecord::new(created, 1, kek_id(), Profile::AesGcm, TokenName::default())],
                current: 1,
                policy: KekPolicy { max_age_secs: max },
            };
            prop_assert_eq!(kek_due_at(&kek), Some(due_at));
            prop_assert_eq!(kek_due(&kek, now).is_some(), now >= due_at);
        }
    }

    #[test]
    fn no_policy_makes_nothing_due_and_an_end_of_time_does_not_overflow() {
        let none = account(AekPolicy::default(), 0, Usage::default());
        assert_eq!((aek_due(&none, u64::MAX), aek_due_at(&none)), (None, None));
        let late = account(AekPolicy { max_age_secs: 10, ..AekPolicy::default() }, u64::MAX - 1, Usage::default());
        assert_eq!(aek_due(&late, u64::MAX - 1), None);
    }

    #[test]
    fn an_age_out_of_bounds_is_refused() {
        for (secs, good) in [(0, true), (3599, false), (3600, true), (u64::MAX, false)] {
            assert_eq!(check_kek_policy(KekPolicy { max_age_secs: secs }).is_ok(), good, "{secs}");
        }
    }
}
