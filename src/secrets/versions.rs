//! Versions of a secret: set, given out, switched, and moved to another AEK version.

use super::{
    Access, OpenedSecret, SecretValue, Secrets, SetOptions,
    records::{Seen, refuse_deleted},
    rotation::refuse_while_running,
};
use crate::{
    block::{Address, BlockHeader, ObjectId},
    clock::{unix_now, utc},
    engine::Act,
    error::{Corrupt, Error, Result},
    keyring::On,
    name::{AccountId, SecretId},
    store::{
        CONFLICTS_MAX, Key, Put, StoreVersion, Versioned, again_and_again,
        record::{SECRET_VERSIONS_MAX, SECRET_WORDS_BYTES_MAX, SecretRecord, SecretValueRecord, SecretVersion},
    },
    telemetry::trail::{Deed, Subject},
};

impl Secrets {
    /// Sets a secret: its next version, which is made current, and the secret itself where there is none of this name. Returns the
    /// version's number. Durable when it returns. The versions before stay as they are.
    ///
    /// Where [`SECRET_VERSIONS_MAX`] versions are there, the oldest that is expired makes room.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a rule of the options is broken; [`Error::NotFound`] for the account, and for a secret that is deleted;
    /// what [`Account::seal`](crate::Account::seal) fails with; [`Error::Exhausted`] when there are as many versions, or as many bytes of
    /// content types and tags, as there may be; [`Error::Conflict`] while a hook makes the next version, and when others change the
    /// secret all the time; [`Error::Store`]: nothing was acknowledged, and another try may add one more.
    pub async fn set(&self, id: &SecretId, value: SecretValue, options: SetOptions) -> Result<u32> {
        let act = Self::act(Deed::SecretSet, id, Access::Set);
        let set = self.set_next(id, value, options);
        self.engine.acting(act, set, |made, on| on.secret_version = Some(*made)).await
    }

    async fn set_next(&self, id: &SecretId, value: SecretValue, options: SetOptions) -> Result<u32> {
        let SetOptions { content_type, not_before_unix, expires_unix, enabled, mut tags } = options;
        tags.sort();
        let wanted =
            SecretVersion { version: 0, created_unix: 0, not_before_unix, expires_unix, enabled, content_type, tags };
        wanted.check().map_err(|what| Error::Invalid(format!("secret {id}: {what}")))?;
        let mut taken = 0;
        for _ in 0..CONFLICTS_MAX {
            let seen = self.look(id).await?;
            let (date, earliest) = self.dates().await?;
            let mut head = seen.head.clone().unwrap_or_else(|| SecretRecord {
                id: id.clone(),
                account_created_unix: seen.account.created_unix,
                versions: Vec::new(),
                deleted: None,
                rotation: None,
            });
            refuse_deleted(&head)?;
            take_over(&mut head, date, earliest)?;
            let version = next_after(id, head.newest().max(taken))?;
            push(&mut head, SecretVersion { version, created_unix: date, ..wanted.clone() })?;
            match self.store_version(&seen, &head, &value, false).await? {
                Stored::Done => return Ok(version),
                // Of somebody who was killed before the head named it, or is about to write that head: the number is not used again.
                // Of many that were, all are passed at once: each try that ended there has left one.
                Stored::Taken => taken = self.numbers(id).await?.last().copied().unwrap_or(version).max(version),
                Stored::Changed => {}
            }
        }
        Err(again_and_again("secret", id))
    }

    /// The store's date for what is written now, and the earliest that it can be.
    pub(super) async fn dates(&self) -> Result<(u64, u64)> {
        self.engine
            .at_home(|keyring| async move { Ok((keyring.stamp().await?, keyring.agreed().await?.date_unix)) })
            .await
    }

    /// Seals and stores the value of the newest version in `head`, and then the head. A number that is `kept` for this is nobody else's.
    pub(super) async fn store_version(
        &self,
        seen: &Seen,
        head: &SecretRecord,
        value: &SecretValue,
        kept: bool,
    ) -> Result<Stored> {
        let (id, version) = (&head.id, head.newest());
        let account = self.account(&seen.account).await?;
        let mut buf = SecretValue::buffer(value.as_bytes());
        let header = account.seal(address(id, version), &mut buf).await?;
        if Some(header.aek_version()) != seen.account.current().map(|current| current.aek_version) {
            // Another engine rotated it. Under the version before nothing may be stored that its retirement does not know of.
            let of = id.account.clone();
            self.engine.at_home(|keyring| async move { keyring.learn(&of).await }).await?;
            return Ok(Stored::Changed);
        }
        let block = [header.as_bytes(), &buf].concat();
        let sealed = SecretValueRecord { id: id.clone(), version, block };
        let key = sealed.key();
        let put = seen.on_account(sealed.put()?);
        let value_version = match self.create(key.clone(), put.clone()).await {
            Err(Error::Exists(_)) if kept => self.replace_orphan(seen, key.clone(), put).await,
            stored => stored,
        };
        let value_version = match value_version {
            Ok(version) => version,
            Err(Error::Exists(_)) => return Ok(Stored::Taken),
            Err(Error::Conflict(_) | Error::NotFound(_)) => return Ok(Stored::Changed),
            Err(error) => return Err(error),
        };
        self.name(seen, head, key, value_version).await
    }

    /// Writes the head that names a value which was just stored.
    async fn name(&self, seen: &Seen, head: &SecretRecord, key: Key, value_version: StoreVersion) -> Result<Stored> {
        let rest = |put: Put| put.resting_on(key.clone(), value_version.clone());
        match self.put_head(seen, head, rest).await {
            Ok(_) => {
                // The next one that sets it does what cannot be done now.
                let _ = self.sweep(head).await;
                Ok(Stored::Done)
            }
            Err(Error::Conflict(_) | Error::Exists(_) | Error::NotFound(_)) => {
                if self.is_named(head, &key, &value_version).await? {
                    return Ok(Stored::Done);
                }
                let _ = self.remove(key, value_version).await;
                Ok(Stored::Changed)
            }
            // The head may be there all the same, so the value stays.
            Err(error) => Err(error),
        }
    }

    /// Puts a value in the place of one of a number that the head keeps for a hook's run, and that somebody who was killed has left: if
    /// the head is as it was seen, in the same step, so that no head names what is replaced, nor will one.
    async fn replace_orphan(&self, seen: &Seen, key: Key, put: Put) -> Result<StoreVersion> {
        let (Some(found), Some(head)) = (self.read(key.clone()).await?, seen.head_version.clone()) else {
            return Err(Error::Conflict(key.to_string()));
        };
        let Key::SecretValue(id, _) = &key else { return Err(Error::Conflict(key.to_string())) };
        let put = put.resting_on(Key::Secret(id.clone()), head);
        self.replace(key, found.version, put).await
    }

    /// Whether the secret's head names the value that was just stored after all: a store that lost an answer, and tried again by itself,
    /// has met its own write. Whoever else names this number has stored another value for it.
    async fn is_named(&self, head: &SecretRecord, key: &Key, value_version: &StoreVersion) -> Result<bool> {
        let now = self.head_now(&head.id).await?;
        let is_named = now.is_some_and(|now| now.version(head.newest()).is_some());
        Ok(is_named && self.read(key.clone()).await?.is_some_and(|found| found.version == *value_version))
    }

    /// Removes values that no head will name any more: numbers only go up, so that those before the newest are named by now or never.
    async fn sweep(&self, head: &SecretRecord) -> Result<()> {
        let is_left = |head: &SecretRecord, number| number < head.newest() && head.version(number).is_none();
        for number in self.numbers(&head.id).await? {
            let key = Key::SecretValue(head.id.clone(), number);
            if is_left(head, number)
                && let Some(Versioned { version, .. }) = self.read(key.clone()).await?
                // Asked for after the value was read: the secret may have been purged and set anew, whose numbers begin at 1.
                && self.head_now(&head.id).await?.is_some_and(|now| is_left(&now, number))
            {
                self.remove(key, version).await?;
            }
        }
        Ok(())
    }

    /// Gives out a version of a secret, or the current one: the newest that is enabled, and inside of its not-before and expiry by the
    /// wall clock here. The value is wiped when what is returned is dropped, and no copy of it stays.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the account, the secret and the version, also when it is deleted, disabled, expired, or not valid yet,
    /// and says which; what [`Account::open`](crate::Account::open) fails with, [`Error::Denied`] above all; [`Error::Corrupt`] naming the
    /// secret and the version, when one of its records was damaged, exchanged or is missing; [`Error::Store`].
    pub async fn get(&self, id: &SecretId, version: Option<u32>) -> Result<OpenedSecret> {
        let on = Subject {
            account: Some(id.account.clone()),
            secret: Some(id.name.clone()),
            secret_version: version,
            ..Subject::default()
        };
        let get = async {
            self.engine.may(Access::Get.operations(), On::Account(&id.account)).await?;
            self.give(id, version).await
        };
        let given = |given: &OpenedSecret, on: &mut Subject| on.secret_version = Some(given.version.version);
        self.engine.giving(Deed::SecretGet, on, get, given).await
    }

    /// As [`Secrets::get`], for whoever may have it given out.
    pub(super) async fn give(&self, id: &SecretId, version: Option<u32>) -> Result<OpenedSecret> {
        let mut again = true;
        loop {
            let seen = self.look(id).await?;
            let version = choose(seen.live(id)?, version, unix_now())?.clone();
            let key = Key::SecretValue(id.clone(), version.version);
            match self.read(key.clone()).await? {
                Some(found) => {
                    let value = self.open(&seen, &SecretValueRecord::decode(&key, &found.value)?).await?;
                    return Ok(OpenedSecret { value, version });
                }
                // Its head may be another one by now.
                None if again => again = false,
                None => return Err(missing(&key)),
            }
        }
    }

    async fn open(&self, seen: &Seen, sealed: &SecretValueRecord) -> Result<SecretValue> {
        let account = self.account(&seen.account).await?;
        let (header, ciphertext) = BlockHeader::split(&sealed.block)?;
        let mut buf = SecretValue::buffer(ciphertext);
        match account.open(address(&sealed.id, sealed.version), &header, &mut buf).await {
            Ok(()) => SecretValue::new(std::mem::take(&mut *buf)),
            Err(Error::Corrupt(what)) => {
                Err(Corrupt::Record { record: sealed.key().to_string(), what: what.to_string() }.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Enables a version, or disables it, so that it is not given out.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`], [`Error::Conflict`].
    pub async fn set_enabled(&self, id: &SecretId, version: u32, enabled: bool) -> Result<()> {
        let act = Self::act(Deed::SecretSwitch, id, Access::Set).with(|on| on.secret_version = Some(version));
        let act = act.taking_away_if(!enabled);
        let change = |head: &mut SecretRecord| {
            refuse_deleted(head)?;
            let found = head.versions.iter_mut().find(|known| known.version == version);
            found.ok_or_else(|| no_version(id, version))?.enabled = enabled;
            Ok(())
        };
        let switch = async { self.change(id, change).await.map(drop) };
        self.engine.acting(act, switch, |(), _| {}).await
    }

    /// Seals every value of an account's secrets, deleted ones included, under the account's current AEK version, so that older ones can
    /// be retired. Returns how many it moved. `keyleash account retire` does it by itself.
    ///
    /// # Errors
    /// [`Error::Corrupt`], the first, for what is damaged or missing: all others are moved, and [`Secrets::delete`] and
    /// [`Secrets::purge`] make an end of that one. [`Error::NotFound`] for the account; what opening and sealing fail with,
    /// [`Error::Store`] and [`Error::Conflict`]: those before are moved.
    pub async fn reseal(&self, account: &AccountId) -> Result<u64> {
        let act = Act::new(Deed::SecretReseal, Access::Reseal.operations(), On::Account(account));
        self.engine.acting(act, self.reseal_all(account), |_, _| {}).await
    }

    async fn reseal_all(&self, account: &AccountId) -> Result<u64> {
        let (mut moved, mut damaged) = (0, None);
        for id in self.heads(Some(account)).await? {
            let head = self.look(&id).await.map(|seen| seen.head);
            let Some(head) = unless_damaged(head, &mut damaged)? else { continue };
            for version in &head.versions {
                moved += u64::from(unless_damaged(self.reseal_value(&id, version.version).await, &mut damaged)?);
            }
            unless_damaged(self.reseal_policy(&id).await, &mut damaged)?;
        }
        damaged.map_or(Ok(moved), Err)
    }

    async fn reseal_value(&self, id: &SecretId, version: u32) -> Result<bool> {
        let key = Key::SecretValue(id.clone(), version);
        for _ in 0..CONFLICTS_MAX {
            let seen = self.look(id).await?;
            let Some(found) = self.read(key.clone()).await? else {
                match seen.head.is_some_and(|head| head.version(version).is_some()) {
                    true => return Err(missing(&key)),
                    false => return Ok(false), // purged meanwhile
                }
            };
            let sealed = SecretValueRecord::decode(&key, &found.value)?;
            let current = seen.account.current().map(|current| current.aek_version);
            if Some(sealed.aek_version()?) == current {
                return Ok(false);
            }
            let value = self.open(&seen, &sealed).await?;
            let mut buf = SecretValue::buffer(value.as_bytes());
            let header = self.account(&seen.account).await?.seal(address(id, version), &mut buf).await?;
            if Some(header.aek_version()) != current {
                let of = id.account.clone();
                self.engine.at_home(|keyring| async move { keyring.learn(&of).await }).await?;
                continue;
            }
            let block = [header.as_bytes(), &buf].concat();
            let put = seen.on_account(SecretValueRecord { id: id.clone(), version, block }.put()?);
            match self.replace(key.clone(), found.version, put).await {
                Ok(_) => return Ok(true),
                Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("secret", id))
    }
}

/// Goes on where something is damaged, and keeps the first of what is said of that.
fn unless_damaged<T: Default>(done: Result<T>, damaged: &mut Option<Error>) -> Result<T> {
    match done {
        Err(error @ Error::Corrupt(_)) => {
            damaged.get_or_insert(error);
            Ok(T::default())
        }
        done => done,
    }
}

/// How the write of a new version ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    Done,
    /// There is a value of this number.
    Taken,
    /// Something that it rests on is another by now: look again.
    Changed,
}

/// The block that a value is: bound to the secret's name and the version, beside the account that every block is bound to.
fn address(id: &SecretId, version: u32) -> Address {
    ObjectId::hashed(&[b"keyleash.secret.v1", id.name.as_str().as_bytes(), &version.to_be_bytes()]).into()
}

/// The version that is given out.
pub(super) fn choose(head: &SecretRecord, wanted: Option<u32>, now: u64) -> Result<&SecretVersion> {
    let id = &head.id;
    if let Some(wanted) = wanted {
        let version = head.version(wanted).ok_or_else(|| no_version(id, wanted))?;
        return match why_not(version, now) {
            None => Ok(version),
            Some(why) => Err(Error::NotFound(format!("version {wanted} of secret {id} {why}"))),
        };
    }
    if let Some(current) = head.versions.iter().rev().find(|version| why_not(version, now).is_none()) {
        return Ok(current);
    }
    let newest = head.versions.last().and_then(|version| why_not(version, now)).unwrap_or_default();
    Err(Error::NotFound(format!(
        "secret {id} has no version that is given out now: the newest, version {}, {newest}; see `keyleash secret show {} --account {}`",
        head.newest(),
        id.name,
        id.account
    )))
}

/// Why a version is not given out; `None` where it is.
fn why_not(version: &SecretVersion, now: u64) -> Option<String> {
    match version {
        SecretVersion { enabled: false, .. } => Some("is disabled".into()),
        SecretVersion { not_before_unix: Some(from), .. } if now < *from => {
            Some(format!("is not valid before {}, and it is {}", utc(*from), utc(now)))
        }
        SecretVersion { expires_unix: Some(until), .. } if now >= *until => Some(format!("expired on {}", utc(*until))),
        _ => None,
    }
}

fn no_version(id: &SecretId, version: u32) -> Error {
    Error::NotFound(format!(
        "version {version} of secret {id}: `keyleash secret show {} --account {}` shows those that there are",
        id.name, id.account
    ))
}

fn missing(key: &Key) -> Error {
    Corrupt::Record { record: key.to_string(), what: "is missing; restore the store from a copy".into() }.into()
}

/// The number behind one.
pub(super) fn next_after(id: &SecretId, newest: u32) -> Result<u32> {
    newest.checked_add(1).ok_or_else(|| Error::Exhausted(format!("secret {id} has no further version number")))
}

/// A version set by hand takes the place of one that a hook was begun for and has not made, but not while a hook is at it.
fn take_over(head: &mut SecretRecord, date: u64, earliest: u64) -> Result<()> {
    refuse_while_running(head, earliest)?;
    let Some(rotation) = &mut head.rotation else { return Ok(()) };
    (rotation.making, rotation.failures) = (None, 0);
    rotation.due_unix = date.saturating_add(rotation.every_secs);
    Ok(())
}

/// Adds a version. Of as many as there may be, the oldest that has expired makes room.
pub(super) fn push(head: &mut SecretRecord, version: SecretVersion) -> Result<()> {
    let now = unix_now();
    if head.versions.len() >= SECRET_VERSIONS_MAX
        && let Some(at) = head.versions.iter().position(|old| old.expires_unix.is_some_and(|until| until <= now))
    {
        head.versions.remove(at);
    }
    head.versions.push(version);
    let words: usize = head.versions.iter().map(SecretVersion::words_bytes).sum();
    if head.versions.len() > SECRET_VERSIONS_MAX || words > SECRET_WORDS_BYTES_MAX {
        return Err(Error::Exhausted(format!(
            "secret {} has {} versions, with {words} bytes of content types and tags; at most {SECRET_VERSIONS_MAX} and \
             {SECRET_WORDS_BYTES_MAX} are kept, of which none has expired that could make room: set it under a new name",
            head.id,
            head.versions.len() - 1
        )));
    }
    Ok(())
}
