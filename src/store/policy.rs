//! The policy of a store: read whole, and changed in one step.
//!
//! A change makes the parts that are new, under ids of their own, and replaces the head that names all parts. What no head names any
//! more is deleted then; what a crash left behind, by whoever changes the policy next: a part that was there before the head was replaced,
//! and that the new head does not name, can be named by nobody, for whoever made it had read an older head and would replace that.

use super::{
    CONFLICTS_MAX, Filter, Key, KeyStore, StoreVersion, Versioned, again_and_again, all_keys, load_common,
    record::{GrantsRecord, PART_GRANTS_MAX, PolicyPart, PolicyRecord},
};
use crate::{
    access::{Actions, GRANTS_MAX, Grant, Pattern, Policy, Role},
    error::{Corrupt, Error, Result},
    name::{GrantId, RoleName},
    secret::fill_random,
};
use std::{
    collections::{BTreeSet, HashMap},
    fmt, result,
};

/// Length of the id of a policy's part, in bytes.
pub const PART_ID_BYTES: usize = 16;

/// The id of a policy's part: random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartId(pub [u8; PART_ID_BYTES]);

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartId({self})")
    }
}

/// A policy as a store has it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) version: StoreVersion,
    pub(crate) record: PolicyRecord,
    /// In the order of the record's.
    parts: Vec<GrantsRecord>,
    pub(crate) policy: Policy,
}

/// What a look at a store's policy finds.
pub(crate) enum Read {
    /// It is the one that is known.
    Same,
    /// There is none, and nothing says that there was one.
    None,
    Policy(Box<Stored>),
}

/// What is known of a store's policy before it is looked at.
pub(crate) enum Known<'a> {
    Nothing,
    /// It was read that there is none.
    None,
    /// One with this version was read.
    Version(&'a StoreVersion),
}

/// A change of a store's policy.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Their ids are drawn.
    Add(Vec<Grant>),
    Remove(GrantId),
    /// Made, or put in the place of the one of its name.
    SetRole(Role),
    RemoveRole(RoleName),
}

/// Reads the policy of a store; `None` where there never was one.
///
/// # Errors
/// [`Error::Store`]; [`Error::Corrupt`] when it is damaged, or gone: nobody is to be granted anything by that.
pub async fn load_policy(store: &dyn KeyStore) -> Result<Option<Policy>> {
    Ok(match read(store, Known::Nothing).await? {
        Read::Policy(stored) => Some(stored.policy),
        Read::Same | Read::None => None,
    })
}

/// As [`load_policy`]; where the head is as it is known, that is all that is read.
pub(crate) async fn read(store: &dyn KeyStore, known: Known<'_>) -> Result<Read> {
    let mut damage = None::<(StoreVersion, Error)>;
    for _ in 0..CONFLICTS_MAX {
        let Some(Versioned { value, version }) = store.get(&Key::Policy).await? else {
            return match known {
                Known::Version(_) => Err(gone()),
                Known::Nothing if load_common(store).await?.is_some_and(|(common, _)| common.is_governed) => {
                    Err(gone())
                }
                Known::None | Known::Nothing => Ok(Read::None),
            };
        };
        if matches!(known, Known::Version(known) if *known == version) {
            return Ok(Read::Same);
        }
        // It is damage when the head that names the part is still there.
        if let Some((of, error)) = damage.take()
            && of == version
        {
            return Err(error);
        }
        let record = PolicyRecord::decode(&Key::Policy, &value)?;
        match parts_of(store, &record).await {
            Ok(parts) => return Ok(Read::Policy(Box::new(whole(version, record, parts)?))),
            Err(error @ Error::Corrupt(_)) => damage = Some((version, error)),
            Err(error) => return Err(error),
        }
    }
    Err(again_and_again("the", Key::Policy))
}

async fn parts_of(store: &dyn KeyStore, record: &PolicyRecord) -> Result<Vec<GrantsRecord>> {
    let keys: Vec<_> = record.parts.iter().map(|part| Key::Grants(part.id)).collect();
    let mut parts = Vec::with_capacity(keys.len());
    for ((named, key), found) in record.parts.iter().zip(&keys).zip(store.get_many(&keys).await) {
        let Some(found) = found? else { return Err(damaged(&format!("names a part that is not there: {key}"))) };
        let part = GrantsRecord::decode(key, &found.value)?;
        if PolicyPart::of(&part, &found.value) != *named {
            return Err(damaged(&format!("names another part than the one that is there: {key}")));
        }
        parts.push(part);
    }
    Ok(parts)
}

fn whole(version: StoreVersion, record: PolicyRecord, parts: Vec<GrantsRecord>) -> Result<Stored> {
    let grants = parts.iter().flat_map(|part| part.grants.iter().cloned()).collect();
    let policy = Policy::new(record.roles.clone(), grants).map_err(|error| match error {
        Error::Invalid(what) => damaged(&format!("says what cannot be: {what}")),
        error => damaged(&error.to_string()),
    })?;
    if !policy.has_writer() {
        return Err(damaged("has no grant of grant.write, which nobody can have taken away"));
    }
    Ok(Stored { version, record, parts, policy })
}

pub(crate) fn gone() -> Error {
    damaged("is not there, and was")
}

fn damaged(what: &str) -> Error {
    let what = format!("{what}: nothing is granted by it; restore the store from a copy (`keyleash store restore`)");
    Corrupt::Record { record: Key::Policy.to_string(), what }.into()
}

/// Changes the policy. The ids of the grants that were added. `may` says of the very policy that is replaced whether it may be: who lost
/// that right meanwhile, or met the first policy that there is, changes nothing.
///
/// # Errors
/// What `may` gives; [`Error::Invalid`] for what cannot be: nobody would have `grant.write` any more, above all; [`Error::Exists`] for a grant
/// that is there; [`Error::NotFound`]; [`Error::Store`], [`Error::Corrupt`], [`Error::Conflict`].
pub(crate) async fn change(
    store: &dyn KeyStore,
    change: &Change,
    may: &(dyn Fn(Option<&Policy>) -> Result<()> + Sync),
) -> Result<Vec<GrantId>> {
    for _ in 0..CONFLICTS_MAX {
        let stored = match read(store, Known::Nothing).await? {
            Read::Policy(stored) => Some(stored),
            Read::Same | Read::None => None,
        };
        may(stored.as_ref().map(|stored| &stored.policy))?;
        let before = all_keys(store, &Filter::Grants).await?;
        let seen = stored.as_ref().map(|stored| stored.version.clone());
        let Next { record, made, added } = next(stored.map(|stored| *stored), change)?;
        for part in &made {
            store.create(&part.key(), part.put()?).await?;
        }
        let written = match seen {
            Some(seen) => store.replace(&Key::Policy, &seen, record.put()?).await,
            None => store.create(&Key::Policy, record.put()?).await,
        };
        match written {
            Ok(_) => {
                let named: BTreeSet<_> = record.parts.iter().map(|part| Key::Grants(part.id)).collect();
                clean_up(store, before.into_iter().filter(|key| !named.contains(key))).await;
                return Ok(added);
            }
            Err(Error::Conflict(_) | Error::Exists(_) | Error::NotFound(_)) => {
                clean_up(store, made.iter().map(GrantsRecord::key)).await;
            }
            Err(error) => return Err(error), // it may have been written
        }
    }
    Err(again_and_again("the", Key::Policy))
}

/// What cannot be deleted now is deleted by whoever changes the policy next.
async fn clean_up(store: &dyn KeyStore, keys: impl Iterator<Item = Key>) {
    for key in keys {
        let outcome = match store.get(&key).await {
            Ok(Some(found)) => store.delete(&key, &found.version).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::debug!(%key, %error, "a part of the policy of before is left for later");
        }
    }
}

/// What a change comes to.
struct Next {
    record: PolicyRecord,
    /// The parts of it that are new.
    made: Vec<GrantsRecord>,
    added: Vec<GrantId>,
}

fn next(stored: Option<Stored>, change: &Change) -> Result<Next> {
    let (mut roles, mut parts, generation) = match stored {
        Some(stored) => (stored.record.roles, stored.parts, stored.record.generation),
        None => (Vec::new(), Vec::new(), 0),
    };
    let kept = parts.clone();
    let mut added = Vec::new();
    match change {
        Change::Add(grants) => {
            add(&mut parts, grants, &mut added)?;
        }
        Change::Remove(id) => {
            let before: usize = parts.iter().map(|part| part.grants.len()).sum();
            parts.iter_mut().for_each(|part| part.grants.retain(|grant| grant.id != *id));
            if parts.iter().map(|part| part.grants.len()).sum::<usize>() == before {
                return Err(Error::NotFound(format!("grant {id}: `keyleash grant list` shows them")));
            }
            parts.retain(|part| !part.grants.is_empty());
        }
        Change::SetRole(role) => {
            roles.retain(|other| other.name != role.name);
            roles.push(role.clone());
            roles.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Change::RemoveRole(name) => {
            let before = roles.len();
            roles.retain(|role| role.name != *name);
            if roles.len() == before {
                return Err(Error::NotFound(format!("role {name}: `keyleash grant role list` shows them")));
            }
            let uses = |grant: &&Grant| matches!(&grant.actions, Actions::Role(role) if role == name);
            if let Some(grant) = parts.iter().flat_map(|part| &part.grants).find(uses) {
                return Err(Error::Invalid(format!("role {name}: grant {} is of it: remove that one first", grant.id)));
            }
        }
    }
    let grants = parts.iter().flat_map(|part| part.grants.iter().cloned()).collect();
    let policy = Policy::new(roles.clone(), grants)?;
    if !policy.has_writer() {
        return Err(Error::Invalid(
            "nobody would have grant.write, and nobody could change grants any more: give it first, as in `keyleash grant add \
             CALLER --role operator`, which names no KEK and no account"
                .into(),
        ));
    }
    let mut made = Vec::new();
    for part in parts.iter_mut().filter(|part| !kept.contains(part)) {
        *part = GrantsRecord::new(std::mem::take(&mut part.grants))?;
        made.push(part.clone());
    }
    let named = |part: &GrantsRecord| Ok(PolicyPart::of(part, &part.put()?.value));
    let parts = parts.iter().map(named).collect::<Result<_>>()?;
    Ok(Next { record: PolicyRecord { generation: generation.saturating_add(1), roles, parts }, made, added })
}

fn add(parts: &mut Vec<GrantsRecord>, grants: &[Grant], added: &mut Vec<GrantId>) -> Result<()> {
    let there = parts.iter().map(|part| part.grants.len()).sum::<usize>();
    if there.saturating_add(grants.len()) > GRANTS_MAX {
        return Err(Error::Invalid(format!(
            "there would be {} grants, at most {GRANTS_MAX} are allowed: put several into one by a pattern or a role",
            there.saturating_add(grants.len())
        )));
    }
    let mut ids: BTreeSet<_> = parts.iter().flat_map(|part| &part.grants).map(|grant| grant.id.clone()).collect();
    let mut known: HashMap<_, _> =
        parts.iter().flat_map(|part| &part.grants).map(|grant| (given(grant), grant.id.clone())).collect();
    for grant in grants {
        // One that was asked for twice, because an answer was lost, say, is there once.
        if let Some(id) = known.get(&given(grant)) {
            return Err(Error::Exists(format!("grant {id}, which gives the same")));
        }
        let id = loop {
            let mut number = [0; 4];
            fill_random(&mut number)?;
            let id = GrantId::of_store(u32::from_be_bytes(number));
            if ids.insert(id.clone()) {
                break id;
            }
        };
        known.insert(given(grant), id.clone());
        let grant = Grant { id: id.clone(), ..grant.clone() };
        match parts.iter_mut().find(|part| part.grants.len() < PART_GRANTS_MAX) {
            Some(part) => part.grants.push(grant),
            None => parts.push(GrantsRecord::new(vec![grant])?),
        }
        added.push(id);
    }
    Ok(())
}

/// A grant but for its id.
fn given(grant: &Grant) -> ([Pattern; 3], result::Result<u32, RoleName>) {
    let actions = match &grant.actions {
        Actions::Operations(operations) => Ok(operations.bits()),
        Actions::Role(role) => Err(role.clone()),
    };
    ([&grant.callers, &grant.keks, &grant.accounts].map(Pattern::clone), actions)
}

/// What is wrong with the policy, for `store check`: how many grants there are, or the first thing that is found.
pub(super) async fn check(store: &dyn KeyStore) -> Result<u64> {
    Ok(match read(store, Known::Nothing).await? {
        Read::Policy(stored) => stored.policy.grants().len() as u64,
        Read::Same | Read::None => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{Operation, Operations},
        store::memory::MemoryStore,
    };

    fn grant(caller: &str, operations: &[Operation]) -> Grant {
        Grant {
            id: GrantId::new("new").unwrap(),
            callers: Pattern::new(caller).unwrap(),
            keks: Pattern::all(),
            accounts: Pattern::all(),
            actions: Actions::Operations(Operations::of(operations)),
        }
    }

    async fn add(store: &MemoryStore, grants: Vec<Grant>) -> Result<Vec<GrantId>> {
        change(store, &Change::Add(grants), &|_| Ok(())).await
    }

    async fn parts(store: &MemoryStore) -> usize {
        all_keys(store, &Filter::Grants).await.unwrap().len()
    }

    #[tokio::test]
    async fn nobody_locks_everybody_out() {
        let store = MemoryStore::new();
        let refused = |outcome: Result<Vec<GrantId>>| {
            let said = outcome.unwrap_err();
            assert!(
                matches!(&said, Error::Invalid(what) if what.contains("keyleash grant add CALLER --role operator")),
                "{said}"
            );
        };
        refused(add(&store, vec![grant("a", &[Operation::Get])]).await);
        // Over a part of what there is, it is none.
        let narrow = Grant { keks: Pattern::new("k").unwrap(), ..grant("a", &[Operation::GrantWrite]) };
        refused(add(&store, vec![narrow]).await);
        assert!(load_policy(&store).await.unwrap().is_none() && parts(&store).await == 0);
        let [first] = &add(&store, vec![grant("a", &[Operation::GrantWrite])]).await.unwrap()[..] else {
            panic!("one")
        };
        add(&store, vec![grant("b", &[Operation::Get])]).await.unwrap();
        refused(change(&store, &Change::Remove(first.clone()), &|_| Ok(())).await);
        let [second] = &add(&store, vec![grant("c*", &[Operation::GrantWrite])]).await.unwrap()[..] else {
            panic!("one")
        };
        change(&store, &Change::Remove(first.clone()), &|_| Ok(())).await.unwrap();
        refused(change(&store, &Change::Remove(second.clone()), &|_| Ok(())).await);
        // Nor by a role that loses it.
        let role = |operations: &[Operation]| Role {
            name: RoleName::new("boss").unwrap(),
            operations: Operations::of(operations),
            includes: Vec::new(),
            not: Operations::NONE,
            keks: Pattern::all(),
            accounts: Pattern::all(),
        };
        change(&store, &Change::SetRole(role(&[Operation::GrantWrite])), &|_| Ok(())).await.unwrap();
        let of_role = Grant { actions: Actions::Role(RoleName::new("boss").unwrap()), ..grant("d", &[]) };
        add(&store, vec![of_role]).await.unwrap();
        change(&store, &Change::Remove(second.clone()), &|_| Ok(())).await.unwrap();
        refused(change(&store, &Change::SetRole(role(&[Operation::Get])), &|_| Ok(())).await);
        assert!(change(&store, &Change::RemoveRole(RoleName::new("boss").unwrap()), &|_| Ok(())).await.is_err());
        assert!(load_policy(&store).await.unwrap().unwrap().has_writer());
        assert_eq!(parts(&store).await, 1, "what no head names is gone");
    }

    #[tokio::test]
    async fn ten_thousand_grants_fit_and_a_change_writes_one_part() {
        let store = MemoryStore::new();
        let long = |n: u32| Grant {
            callers: Pattern::new(format!("{n:0>127}*")).unwrap(),
            accounts: Pattern::new(format!("{n:0>255}")).unwrap(),
            keks: Pattern::new(format!("{n:0>64}")).unwrap(),
            ..grant("x", &[Operation::Get])
        };
        let mut grants: Vec<_> = (0..10_000).map(long).collect();
        grants.push(grant("a", &[Operation::GrantWrite]));
        let ids = add(&store, grants).await.unwrap();
        assert_eq!((ids.len(), parts(&store).await), (10_001, 26));
        let before = all_keys(&store, &Filter::Grants).await.unwrap();
        change(&store, &Change::Remove(ids[5000].clone()), &|_| Ok(())).await.unwrap();
        let after = all_keys(&store, &Filter::Grants).await.unwrap();
        assert_eq!((after.len(), after.iter().filter(|key| !before.contains(key)).count()), (26, 1));
        let policy = load_policy(&store).await.unwrap().unwrap();
        assert_eq!(policy.grants().len(), 10_000);
        assert!(!policy.grants().iter().any(|grant| grant.id == ids[5000]));
        assert!(matches!(
            change(&store, &Change::Remove(ids[5000].clone()), &|_| Ok(())).await,
            Err(Error::NotFound(_))
        ));
    }

    #[tokio::test]
    async fn what_a_crash_left_behind_goes_with_the_next_change() {
        let store = MemoryStore::new();
        add(&store, vec![grant("a", &[Operation::GrantWrite])]).await.unwrap();
        let orphan =
            GrantsRecord::new(vec![Grant { id: GrantId::of_store(7), ..grant("b", &[Operation::Get]) }]).unwrap();
        store.create(&orphan.key(), orphan.put().unwrap()).await.unwrap();
        assert_eq!(load_policy(&store).await.unwrap().unwrap().grants().len(), 1, "nobody granted it");
        add(&store, vec![grant("c", &[Operation::Get])]).await.unwrap();
        assert_eq!(parts(&store).await, 1);
    }

    /// As long as names are, and not as patterns may be.
    #[tokio::test]
    async fn grants_with_the_longest_patterns_are_given_as_all_others_are() {
        let store = MemoryStore::new();
        add(&store, vec![grant("boss", &[Operation::GrantWrite])]).await.unwrap();
        let long = |n: usize, max: usize| Pattern::new(format!("{n:03}{}*", "x".repeat(max - 3))).unwrap();
        for ([callers, keks, accounts], words) in [
            ([129, 64, 255], "no id of a caller has more than 128 bytes"),
            ([128, 65, 255], "no KEK's name has more than 64 bytes"),
            ([128, 64, 255], ""),
        ] {
            let with = |n| Grant {
                callers: long(n, callers),
                keks: long(n, keks),
                accounts: long(n, accounts),
                ..grant("a", &[Operation::Get])
            };
            match add(&store, (0..500).map(with).collect()).await {
                Err(Error::Invalid(what)) if !words.is_empty() => assert!(what.contains(words), "{what}"),
                outcome => assert_eq!((outcome.unwrap().len(), words), (500, "")),
            }
        }
        add(&store, vec![grant("another", &[Operation::Get])]).await.unwrap();
    }

    /// However many change it at once, each change is there at the end, and each reader saw a whole policy.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_change_is_lost_and_every_reader_sees_a_whole_policy() {
        let store = std::sync::Arc::new(MemoryStore::new());
        add(&store, vec![grant("boss", &[Operation::GrantWrite])]).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let store = store.clone();
            tasks.spawn(async move {
                for n in 0..10 {
                    let mut ids = None;
                    while ids.is_none() {
                        match add(&store, vec![grant(&format!("w{writer}-{n}"), &[Operation::Get])]).await {
                            Err(Error::Conflict(_)) => {}
                            made => ids = Some(made.unwrap()),
                        }
                        load_policy(&*store).await.unwrap().unwrap();
                    }
                    if n % 2 == 0 {
                        let id = ids.unwrap().remove(0);
                        while matches!(
                            change(&*store, &Change::Remove(id.clone()), &|_| Ok(())).await,
                            Err(Error::Conflict(_))
                        ) {}
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let policy = load_policy(&*store).await.unwrap().unwrap();
        let mut callers: Vec<_> = policy.grants().iter().map(|grant| grant.callers.to_string()).collect();
        callers.sort();
        let expected = (0..4).flat_map(|writer| [1, 3, 5, 7, 9].map(|n| format!("w{writer}-{n}")));
        assert_eq!(callers, [vec!["boss".to_owned()], expected.collect()].concat());
        let head = store.get(&Key::Policy).await.unwrap().unwrap();
        assert_eq!(PolicyRecord::decode(&Key::Policy, &head.value).unwrap().generation, 1 + 40 + 20);
        assert_eq!(parts(&store).await, 1);
    }

    #[tokio::test]
    async fn a_part_that_is_missing_or_another_is_damage_and_no_smaller_policy() {
        for fault in 0..4 {
            let store = MemoryStore::new();
            let many = (0..500).map(|n| grant(&format!("c{n}"), &[Operation::Get]));
            add(&store, many.chain([grant("boss", &[Operation::GrantWrite])]).collect()).await.unwrap();
            let parts = all_keys(&store, &Filter::Grants).await.unwrap();
            let found = store.get(&parts[0]).await.unwrap().unwrap();
            let words = match fault {
                0 => {
                    store.delete(&parts[0], &found.version).await.unwrap();
                    "names a part that is not there"
                }
                1 => {
                    let mut part = GrantsRecord::decode(&parts[0], &found.value).unwrap();
                    part.grants.pop();
                    store.replace(&parts[0], &found.version, part.put().unwrap()).await.unwrap();
                    "names another part than the one that is there"
                }
                2 => {
                    let other = store.get(&parts[1]).await.unwrap().unwrap();
                    let put = super::super::Put { value: other.value, wrapped_by: vec![], guards: vec![] };
                    store.replace(&parts[0], &found.version, put).await.unwrap();
                    "it was moved or exchanged"
                }
                _ => {
                    let head = store.get(&Key::Policy).await.unwrap().unwrap();
                    let put = super::super::Put { value: vec![4, 9], wrapped_by: vec![], guards: vec![] };
                    store.replace(&Key::Policy, &head.version, put).await.unwrap();
                    "cannot be decoded"
                }
            };
            let said = load_policy(&store).await.unwrap_err();
            assert!(matches!(&said, Error::Corrupt(what) if what.to_string().contains(words)), "{said}");
            assert!(
                change(&store, &Change::Add(vec![grant("x", &[Operation::Get])]), &|_| Ok(())).await.is_err(),
                "nor changed"
            );
        }
    }
}
