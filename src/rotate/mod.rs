//! Rotation, re-wrap, moving and shredding, while the blocks keep flowing.
//!
//! Everything here works on the keyring, and changes records by compare-and-put alone: another process, a crash or a
//! conflict in between leaves the record before or the record after, never a third one. No call here touches a block.
//!
//! | file | what |
//! | --- | --- |
//! | `kek.rs` | new KEK versions, made or adopted; retirement; attested backups |
//! | `rewrap.rs` | every AEK of a KEK to its current version; one account to another KEK |
//! | `batch.rs` | the AEKs of some accounts, re-wrapped and written together |
//! | `aek.rs` | new AEK versions of an account, and their retirement |
//! | `delete.rs` | soft deletion, undeletion, purge |
//! | `secrets.rs` | what secrets ask of the retirement of AEK versions and of a purge |
//! | `hold.rs` | who does the scheduled work of a store: one engine at a time |
//! | `work.rs`, `pass.rs` | the scheduled work: when, and what |
//! | `view.rs` | policies, and what is due by them, shown without doing it |

use crate::{
    error::{Error, Result},
    keyring::Keyring,
    name::KekName,
    store::{CONFLICTS_MAX, again_and_again, record::KekRecord},
};
use std::time::Duration;

mod aek;
mod batch;
mod delete;
mod hold;
mod kek;
mod pass;
mod rewrap;
mod secrets;
mod view;
mod work;

use self::delete::not_as_shown;
pub use self::pass::{WORK_FAILURES_MAX, WorkReport};
pub use self::rewrap::{REWRAP_FAILURES_MAX, RewrapFailure, RewrapOptions, RewrapProgress, RewrapReport};
pub use self::view::{AekSchedule, KekSchedule, Schedule, VIEW_ACCOUNTS_MAX};
pub use self::work::PASS_EVERY;
pub(crate) use self::{batch::Pace, work::work};
pub use crate::store::record::due::{Due, POLICY_AGE_MAX, POLICY_AGE_MIN, aek_due, aek_due_at, kek_due, kek_due_at};

/// What is done for one account among many is given up after so many waits …
const ACCOUNT_WAITS: u32 = 12;
/// … of this time, so that a call of the store that never returns for it holds up no others. A suspend passes for one wait.
const ACCOUNT_WAIT: Duration = Duration::from_secs(5);

/// When something is done that cannot be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// When its time has come: the retention of a deleted account is over, no engine may seal any more under a retired AEK version.
    /// Refused until then, with the time until which.
    Due,
    /// Now, whatever its time: for whoever knows that nobody needs what is destroyed.
    Now,
}

impl Keyring {
    /// Does something for one account among many, in time.
    async fn in_account_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.in_patience(work).await.unwrap_or_else(|| {
            Err(Error::Store(format!(
                "no end in {} s: see whether the store answers for it; it is left as it is",
                (ACCOUNT_WAIT * ACCOUNT_WAITS).as_secs()
            )))
        })
    }

    pub(crate) async fn in_patience<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let (clock, mut work) = (&self.clock, std::pin::pin!(work));
        for _ in 0..ACCOUNT_WAITS {
            if let Some(done) = clock.until(clock.now().plus(ACCOUNT_WAIT), &mut work).await {
                return Some(done);
            }
        }
        None
    }

    /// True when the store works for other records than the one that it failed for: it takes a write, which it does not when its disk
    /// is full.
    async fn store_answers(&self) -> bool {
        let give_up = self.clock.now().plus(self.settings.store_timeout);
        let written = self.clock.until(give_up, self.write_date()).await;
        written.is_some_and(|written| !matches!(written, Err(Error::Store(_))))
    }

    /// Changes a KEK's record; again, on what it is by then, when somebody else was faster. `change` says whether it
    /// changed anything.
    async fn change_kek(
        &self,
        name: &KekName,
        mut change: impl FnMut(&mut KekRecord) -> Result<bool>,
    ) -> Result<KekRecord> {
        let store = &self.store;
        for _ in 0..CONFLICTS_MAX {
            let (mut record, seen) = self.load_kek(name).await?;
            if !change(&mut record)? {
                return Ok(record);
            }
            match store.replace(&record.key(), &seen, record.put()?).await {
                Ok(_) => return Ok(record),
                Err(Error::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("KEK", name))
    }
}
