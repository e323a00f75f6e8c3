//! Reads and writes of records, by conditional writes of single objects.
//!
//! # Writes that rest on other records
//!
//! A bucket has no transactions. A write that has guards (`W`, of key `K`) makes the object *pending*: what is committed, and beside it the new
//! value and the guards. Then it reads each guard; when all have their versions it *settles* the object, else it undoes it. Each of these is a
//! compare-and-set on the object's ETag, which never comes twice ([`object`](super::object)). Whoever reads a pending object reads its
//! guards: when all are unchanged the answer is what is committed, else it undoes the write first. A writer over a pending object takes
//! what is committed there for what is there, and so ends the pending write. And nobody looks through a guard that is itself pending: it is
//! given some time, and is undone.
//!
//! *A write is atomic.* Its instant is its settling, or just before the first change of one of its guards, whichever is first. The
//! guards have their versions then: they had them when the caller read them and when `W` looked, in between no version comes back, and `W`
//! looked before the first change, or it would not have settled. Until then every reader of `K` found what was committed: with `W` pending
//! and all guards unchanged, or before. Whoever reads `K` after that change and before the settling finds a changed guard and undoes `W`, which
//! then does not settle. Undoing is always right: nobody was told of `W`.
//!
//! *Two that rest on each other* do not both settle. Let `W` rest on `X`'s key and `X` on `W`'s. Say `W` was pending first. `X` looks at `W`'s key
//! after `X` became pending, so after `W` did. It finds `W` pending, and undoes it; or settled, and fails; or undone. A cycle of several has
//! one that was pending first, and the one that rests on it the same way out.

use super::{
    names::Names,
    object::{Committed, Id, Mark, Object, Pending, Value, new_id},
    objects::{Listing, Objects, On},
};
use crate::{
    error::{Error, Result},
    name::KekVersion,
    store::{
        Filter, Key, PAGE_KEYS_MAX, Page, Put, StoreVersion, check_limit, check_put, conflict, exists, not_found,
        remote::Failure,
    },
};

/// How often a guard that is pending is read before it is undone, each time after a pause: longer than a write takes that has as many guards
/// as there may be, however slow the server is.
const LOOKS_MAX: usize = 12;
/// Fewest names that are asked for at once: deleted ones may be among them.
const LISTED_MIN: usize = 100;
/// Requests of a listing, after which what was found by then is a page.
const LISTINGS_MAX: usize = 8;

/// What has to be so for a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected<'a> {
    Absent,
    Version(&'a StoreVersion),
}

impl Expected<'_> {
    /// Why it is not so.
    fn refusal(self, key: &Key, committed: &Committed) -> Option<Error> {
        match (self, committed.value()) {
            (Self::Absent, Some(_)) => Some(exists(key)),
            (Self::Version(_), None) => Some(not_found(key)),
            (Self::Version(expected), Some(value)) if value.version() != *expected => Some(conflict(key)),
            _ => None,
        }
    }
}

/// An object that was read.
#[derive(Debug)]
pub(super) struct Seen {
    /// `None` where there is none.
    tag: Option<String>,
    pub(super) object: Object,
}

/// What became of a conditional write.
enum Outcome {
    Done(String),
    Refused,
    /// It may be done, also later.
    Unknown(Failure),
}

/// A write under way.
pub(super) struct Writing {
    pub(super) id: Id,
    /// Those that were put for it.
    pub(super) marks: Vec<(KekVersion, Mark)>,
    /// A request that settles was sent, and no answer says that it was done. One that was refused counts: where what is in between sends
    /// it twice, against the manual, no account shall be missing in a listing.
    may_be_done: bool,
}

/// What is in one namespace.
pub(super) struct Records<O> {
    /// The store's, for errors.
    pub(super) name: String,
    pub(super) names: Names,
    pub(super) objects: O,
}

impl<O: Objects> Records<O> {
    pub(super) fn named(&self, failure: Failure) -> Error {
        failure.named(&self.name)
    }

    pub(super) async fn fetch(&self, key: &Key) -> Result<Seen> {
        let got = self.objects.get(&self.names.record(key)).await.map_err(|failure| self.named(failure))?;
        Ok(match got {
            None => Seen { tag: None, object: Object::Committed(Committed::Nothing) },
            Some((bytes, tag)) => Seen { tag: Some(tag), object: Object::decode(key, &bytes)? },
        })
    }

    async fn swap(&self, key: &Key, tag: Option<&str>, object: &Object) -> Result<Outcome> {
        match self.objects.put(&self.names.record(key), On::from(tag), object.encode(key)?).await {
            Ok(Some(tag)) => Ok(Outcome::Done(tag)),
            Ok(None) => Ok(Outcome::Refused),
            Err(failure @ Failure::Silent(_)) => Ok(Outcome::Unknown(failure)),
            Err(failure) => Err(self.named(failure)),
        }
    }

    pub(super) async fn read(&self, key: &Key) -> Result<Option<Value>> {
        loop {
            let seen = self.fetch(key).await?;
            if let Some(committed) = self.settled(key, seen).await? {
                return Ok(committed.into_value());
            }
        }
    }

    /// What is committed there; `None` when it has to be read anew.
    pub(super) async fn settled(&self, key: &Key, seen: Seen) -> Result<Option<Committed>> {
        let pending = match seen.object {
            Object::Committed(committed) => return Ok(Some(committed)),
            Object::Pending(pending) => pending,
        };
        if self.changed(&pending.guards).await?.is_none() {
            return Ok(Some(pending.committed));
        }
        self.undo(key, seen.tag.as_deref(), pending.committed).await
    }

    /// Ends a pending write; `None` when somebody was faster.
    async fn undo(&self, key: &Key, tag: Option<&str>, committed: Committed) -> Result<Option<Committed>> {
        let undone = Object::Committed(committed);
        match (self.swap(key, tag, &undone).await?, undone) {
            (Outcome::Done(_), Object::Committed(committed)) => Ok(Some(committed)),
            (Outcome::Unknown(failure), _) => Err(self.named(failure)),
            _ => Ok(None),
        }
    }

    /// The first guard that has another version.
    async fn changed<'g>(&self, guards: &'g [(Key, StoreVersion)]) -> Result<Option<&'g Key>> {
        for (guard, version) in guards {
            if self.look(guard).await?.as_ref() != Some(version) {
                return Ok(Some(guard));
            }
        }
        Ok(None)
    }

    /// The version of a guard. One that is pending is not looked through.
    async fn look(&self, guard: &Key) -> Result<Option<StoreVersion>> {
        let mut looks = 0;
        loop {
            let seen = self.fetch(guard).await?;
            let committed = match seen.object {
                Object::Committed(committed) => Some(committed),
                Object::Pending(_) if looks < LOOKS_MAX => {
                    looks += 1;
                    self.objects.pause().await;
                    None
                }
                Object::Pending(pending) => self.undo(guard, seen.tag.as_deref(), pending.committed).await?,
            };
            if let Some(committed) = committed {
                return Ok(committed.value().map(Value::version));
            }
        }
    }

    /// Writes, or without a `put` deletes.
    pub(super) async fn write(&self, key: &Key, expected: Expected<'_>, put: Option<&Put>) -> Result<StoreVersion> {
        if let Some(put) = put {
            check_put(key, put)?;
        }
        let mut writing = Writing { id: new_id()?, marks: Vec::new(), may_be_done: false };
        let written = self.attempt(key, expected, put, &mut writing).await;
        let Writing { id, marks, may_be_done } = writing;
        // Of no use any more: what it was before was found by them, or what it did not become.
        let of_no_use: Vec<_> = match &written {
            Ok((was, is)) => {
                let was = was.value().into_iter().flat_map(|was| was.wrapped_by.clone());
                let is_used = |(kek, mark): &(_, _)| is.value().is_some_and(|is| is.is_found_by(kek, mark));
                was.chain(marks).filter(|mark| !is_used(mark)).collect()
            }
            Err(_) if may_be_done => Vec::new(),
            Err(_) => marks,
        };
        for (kek, mark) in &of_no_use {
            // One that stays is found by whoever lists.
            let _ = self.objects.delete(&self.names.mark(kek, key, mark)).await;
        }
        written.map(|_| StoreVersion(id.to_vec()))
    }

    /// What was there before, and what is now.
    async fn attempt(
        &self,
        key: &Key,
        expected: Expected<'_>,
        put: Option<&Put>,
        writing: &mut Writing,
    ) -> Result<(Committed, Committed)> {
        loop {
            let seen = self.fetch(key).await?;
            let (tag, was) = (seen.tag.clone(), seen.object.committed().clone());
            if was.id() == writing.id {
                // What was there before is not known any more.
                return Ok((Committed::Nothing, was));
            }
            if let Some(refusal) = expected.refusal(key, &was) {
                match self.settled(key, seen).await? {
                    Some(_) => return Err(refusal),
                    None => continue,
                }
            }
            let mut guards = put.map(|put| put.guards.clone()).unwrap_or_default();
            if guards
                .iter()
                .any(|(guard, version)| guard == key && Expected::Version(version).refusal(key, &was).is_some())
            {
                return Err(conflict(key));
            }
            guards.retain(|(guard, _)| guard != key);
            let new = match put {
                Some(put) => {
                    let wrapped_by = self.marked(key, &was, &put.wrapped_by, writing).await?;
                    Committed::Value(Value { id: writing.id, wrapped_by, record: put.value.clone() })
                }
                None => Committed::Deleted(writing.id),
            };
            let tag = match &new {
                Committed::Value(new) if !guards.is_empty() => {
                    // Where there was an object, there is one for ever.
                    let committed = match &was {
                        Committed::Nothing => Committed::Deleted(new_id()?),
                        was => was.clone(),
                    };
                    let pending = Pending { committed, new: new.clone(), guards };
                    let Some(tag) = self.begin(key, tag.as_deref(), pending).await? else {
                        self.objects.pause().await;
                        continue;
                    };
                    Some(tag)
                }
                _ => tag,
            };
            let new = Object::Committed(new);
            writing.may_be_done = true;
            match (self.swap(key, tag.as_deref(), &new).await?, new) {
                (Outcome::Done(_), Object::Committed(new)) => return Ok((was, new)),
                (Outcome::Unknown(failure), _) => {
                    let now = self.fetch(key).await.map(|now| now.object.committed().clone());
                    return now
                        .ok()
                        .filter(|now| now.id() == writing.id)
                        .map(|now| (was, now))
                        .ok_or_else(|| self.named(failure));
                }
                _ => self.objects.pause().await,
            }
        }
    }

    /// Makes the object pending, and looks at the guards. Gives its ETag, by which it is settled; `None` when somebody was faster.
    async fn begin(&self, key: &Key, tag: Option<&str>, pending: Pending) -> Result<Option<String>> {
        let object = Object::Pending(Box::new(pending.clone()));
        let tag = match self.swap(key, tag, &object).await? {
            Outcome::Done(tag) => tag,
            Outcome::Refused => return Ok(None),
            // Nobody else settles it, whenever it comes.
            Outcome::Unknown(failure) => match self.fetch(key).await {
                Ok(Seen { tag: Some(tag), object: now }) if now == object => tag,
                _ => return Err(self.named(failure)),
            },
        };
        let refusal = match self.changed(&pending.guards).await {
            Ok(None) => return Ok(Some(tag)),
            Ok(Some(guard)) => conflict(guard),
            Err(error) => error,
        };
        // Whoever reads it does so too.
        let _ = self.undo(key, Some(&tag), pending.committed).await;
        Err(refusal)
    }

    /// Up to `limit` objects with this prefix behind `after`, in their order.
    pub(super) async fn list_names(&self, prefix: &str, after: &str, limit: usize) -> Result<Listing> {
        let listed = self.objects.list(prefix, after, limit.min(PAGE_KEYS_MAX)).await;
        let listed = listed.map_err(|failure| self.named(failure))?;
        let names = listed.objects.iter().map(|(name, _)| name.as_str());
        if !names.clone().all(|name| name.starts_with(prefix))
            || !std::iter::once(after).chain(names).is_sorted_by(|a, b| a < b)
        {
            // A page would have gaps that nobody sees.
            let what = "it does not list in the order of names: use a bucket of general purpose, on a server that does";
            return Err(Error::Store(format!("{}: {what}", self.name)));
        }
        Ok(listed)
    }

    /// A page of keys. Of a listing by KEK version see [`index`](super::index).
    pub(super) async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let limit = check_limit(limit)?;
        let prefix = self.names.records(&filter.prefix());
        let mut at = after.map(|after| self.names.record(after)).unwrap_or_default();
        if *at < *prefix {
            at.clear();
        } else if !at.starts_with(&prefix) {
            return Ok(Page::of(Vec::new(), limit));
        }
        let (mut keys, mut listings) = (Vec::new(), 0..LISTINGS_MAX);
        loop {
            // One more than asked for tells whether there is a next page.
            let listed = self.list_names(&prefix, &at, (limit + 1 - keys.len()).max(LISTED_MIN)).await?;
            let mut last = None;
            for (name, size) in listed.objects {
                let key = self.names.of_record(&name).ok_or_else(|| self.strange(&name))?;
                let is_there = match Object::says(size) {
                    Some(is_there) => is_there,
                    // What is damaged is there, and says so to whoever reads it.
                    None => match self.read(&key).await {
                        Err(Error::Corrupt(_)) => true,
                        read => read?.is_some(),
                    },
                };
                if is_there {
                    keys.push(key.clone());
                }
                if keys.len() > limit {
                    break;
                }
                (at, last) = (name, Some(key));
            }
            if keys.len() > limit || !listed.has_more {
                return Ok(Page::of(keys, limit));
            }
            // What is deleted takes its time. A page without keys would be taken for the end.
            if listings.next().is_none() && !keys.is_empty() {
                return Ok(Page { keys, next: last });
            }
        }
    }

    pub(super) fn strange(&self, name: &str) -> Error {
        Error::Store(format!("{}: object {name:?} is no store's: let nobody else write there", self.name))
    }
}
