//! Which accounts a KEK version has wrapped: by objects without content, whose names are *marks*.
//!
//! A mark cannot be written in one step with its record. So it is written *before*: a write that has an account wrapped by one more KEK version
//! puts a mark, named by the write that it rests on (its base) and by itself, and then the record, which names its mark for each KEK
//! version. A write that leaves a KEK version as it was keeps its mark. Whoever lists takes the accounts of the marks, and reads each record:
//! the record says whether it is wrapped by that KEK version. So a listing is exact: no account is missing, because its mark was there
//! before its record, and stays as long as any record names it; and none is too many.
//!
//! A mark is deleted by the write that replaced the record that named it, and by the one that put it and failed. What is left by a crash is
//! deleted by whoever lists, where the record, neither what is committed nor what is pending, names it, and the record is not its base: a write
//! whose base was replaced never succeeds, and no write id comes back.

use super::{
    object::{Committed, Mark, Object, Value},
    objects::{Objects, On},
    records::{Records, Writing},
};
use crate::{
    error::{Error, Result},
    name::KekVersion,
    store::Key,
};
use std::collections::BTreeMap;

/// Some accounts that have marks, in their order.
pub(super) struct Candidates {
    pub(super) accounts: Vec<(Key, Vec<Mark>)>,
    /// From where to go on.
    pub(super) next: Option<String>,
}

impl<O: Objects> Records<O> {
    /// The mark for each of these KEK versions, for a value in the place of `was`; the new ones are put.
    pub(super) async fn marked(
        &self,
        key: &Key,
        was: &Committed,
        keks: &[KekVersion],
        writing: &mut Writing,
    ) -> Result<BTreeMap<KekVersion, Mark>> {
        let mut marks = BTreeMap::new();
        for kek in keks {
            let new = (kek.clone(), Mark { base: was.id(), id: writing.id });
            let mark = match was.value().and_then(|was| was.wrapped_by.get(kek)) {
                Some(mark) => *mark,
                None if writing.marks.contains(&new) => new.1,
                None => {
                    let put = self.objects.put(&self.names.mark(kek, key, &new.1), On::Always, Vec::new()).await;
                    put.map_err(|failure| self.named(failure))?;
                    let mark = new.1;
                    writing.marks.push(new);
                    mark
                }
            };
            marks.insert(kek.clone(), mark);
        }
        Ok(marks)
    }

    /// Where the listing begins that is to go on behind this account.
    pub(super) fn first_mark(&self, kek: &KekVersion, after: Option<&Key>) -> String {
        after.map(|after| self.names.behind_marks(kek, after)).unwrap_or_default()
    }

    /// The accounts of up to `limit` marks behind the one of this name.
    pub(super) async fn candidates(&self, kek: &KekVersion, at: &str, limit: usize) -> Result<Candidates> {
        let listed = self.list_names(&self.names.marks(kek), at, limit).await?;
        let mut accounts: Vec<(Key, Vec<Mark>)> = Vec::new();
        for (name, _) in &listed.objects {
            let (account, mark) = self.names.of_mark(kek, name).ok_or_else(|| self.strange(name))?;
            match accounts.last_mut() {
                Some((last, marks)) if *last == account => marks.push(mark),
                _ => accounts.push((account, vec![mark])),
            }
        }
        let next = listed.objects.into_iter().next_back().map(|(name, _)| name);
        Ok(Candidates { accounts, next: next.filter(|_| listed.has_more) })
    }

    /// Whether the account is wrapped by the KEK version. Marks of it that are of no use any more are deleted.
    pub(super) async fn is_wrapped_by(&self, key: &Key, kek: &KekVersion, marks: &[Mark]) -> Result<bool> {
        loop {
            let seen = match self.fetch(key).await {
                // Its mark is all that is known.
                Err(Error::Corrupt(_)) => return Ok(true),
                seen => seen?,
            };
            for mark in marks {
                if is_left(&seen.object, kek, mark) {
                    // One that stays is found again.
                    let _ = self.objects.delete(&self.names.mark(kek, key, mark)).await;
                }
            }
            if let Some(committed) = self.settled(key, seen).await? {
                return Ok(committed.value().is_some_and(|value| value.wrapped_by.contains_key(kek)));
            }
        }
    }
}

/// Nothing names it, and nothing will.
fn is_left(object: &Object, kek: &KekVersion, mark: &Mark) -> bool {
    let pending = if let Object::Pending(pending) = object { Some(&pending.new) } else { None };
    let committed = object.committed();
    let is_named = |value: Option<&Value>| value.is_some_and(|value| value.is_found_by(kek, mark));
    !is_named(committed.value()) && !is_named(pending) && mark.base != committed.id()
}
