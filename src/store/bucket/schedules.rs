//! Thousands of schedules of writers, readers and listers on one bucket, whose requests come in any order, get lost, arrive late or twice, and
//! whose callers are killed at any instant. What they were told must have an order in which it is true at once, for all keys together.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests

use super::{
    names::Names,
    object::Object,
    objects::{Listing, Objects, On, Tagged},
    records::{Expected, Records},
};
use crate::{
    error::{Error, Result},
    name::{AccountId, KekName, KekVersion},
    store::{Filter, Key, Put, StoreVersion, remote::Failure},
};
use async_trait::async_trait;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

const SEEDS: u64 = 1500;
/// Accounts that clients change. Another one stays wrapped by the first KEK version, whatever else is done to it.
const KEYS: usize = 3;
const CLIENTS: usize = 4;
const STEPS_MAX: usize = 60_000;

#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

type Late = (String, Option<Option<String>>, Vec<u8>);

/// A bucket whose ETag is a digest, as S3's.
#[derive(Debug)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    late: Vec<Late>,
    random: Random,
    has_faults: bool,
}

impl State {
    fn tag(bytes: &[u8]) -> String {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        format!("{:x}", hasher.finish())
    }

    /// `on` is `None` for always, and else the tag, or that there is none.
    fn put(&mut self, (name, on, bytes): Late) -> Option<String> {
        let now = self.objects.get(&name).map(|bytes| Self::tag(bytes));
        if on.is_some_and(|on| on != now) {
            return None;
        }
        let tag = Self::tag(&bytes);
        self.objects.insert(name, bytes);
        Some(tag)
    }

    fn faults(&mut self, once_in: usize) -> bool {
        self.has_faults && self.random.once_in(once_in)
    }
}

#[derive(Debug, Clone)]
struct Bucket(Arc<Mutex<State>>);

impl Bucket {
    /// Others get on.
    async fn step(&self) {
        let mut is_over = false;
        std::future::poll_fn(|_| if std::mem::replace(&mut is_over, true) { Poll::Ready(()) } else { Poll::Pending })
            .await;
        let mut state = self.0.lock().unwrap();
        if !state.late.is_empty() && state.random.once_in(8) {
            let at = state.random.0 as usize % state.late.len();
            let late = state.late.swap_remove(at);
            state.put(late);
        }
    }

    fn lost() -> Failure {
        Failure::Silent("lost".into())
    }
}

#[async_trait]
impl Objects for Bucket {
    async fn get(&self, name: &str) -> Result<Option<Tagged>, Failure> {
        self.step().await;
        let found = {
            let mut state = self.0.lock().unwrap();
            if state.faults(60) {
                return Err(Self::lost());
            }
            state.objects.get(name).map(|bytes| (bytes.clone(), State::tag(bytes)))
        };
        self.step().await;
        Ok(found)
    }

    async fn put(&self, name: &str, on: On<'_>, bytes: Vec<u8>) -> Result<Option<String>, Failure> {
        self.step().await;
        let done = {
            let mut state = self.0.lock().unwrap();
            let on = match on {
                On::Absent => Some(None),
                On::Tag(tag) => Some(Some(tag.to_owned())),
                On::Always => None,
            };
            let put = (name.to_owned(), on, bytes);
            if state.faults(30) {
                let kind = state.random.below(3);
                match kind {
                    // It arrives late, perhaps never.
                    0 => state.late.push(put),
                    1 => drop(state.put(put)),
                    // Something in between sends it twice, and gives the first answer.
                    _ => {
                        let done = state.put(put.clone());
                        state.late.push(put);
                        return Ok(done);
                    }
                }
                return Err(Self::lost());
            }
            state.put(put)
        };
        self.step().await;
        Ok(done)
    }

    async fn delete(&self, name: &str) -> Result<(), Failure> {
        self.step().await;
        let is_lost = {
            let mut state = self.0.lock().unwrap();
            let is_lost = state.faults(8);
            if !is_lost {
                state.objects.remove(name);
            }
            is_lost
        };
        self.step().await;
        if is_lost { Err(Self::lost()) } else { Ok(()) }
    }

    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Listing, Failure> {
        self.step().await;
        let listing = {
            let state = self.0.lock().unwrap();
            let names = state.objects.iter().filter(|(name, _)| name.starts_with(prefix) && name.as_str() > after);
            let mut objects: Vec<_> = names.map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect();
            let has_more = objects.len() > limit;
            objects.truncate(limit);
            Listing { objects, has_more }
        };
        self.step().await;
        Ok(listing)
    }

    async fn pause(&self) {
        let steps = self.0.lock().unwrap().random.below(12);
        for _ in 0..steps {
            self.step().await;
        }
    }
}

fn key(n: usize) -> Key {
    Key::Account(AccountId::new(format!("a{n}")).unwrap())
}

fn kek(version: usize) -> KekVersion {
    KekVersion::new(KekName::new("k").unwrap(), version as u32)
}

/// A write is known by its number, which stands in the record.
fn put(number: u32, keks: &[usize]) -> Put {
    Put { value: number.to_be_bytes().to_vec(), wrapped_by: keks.iter().map(|n| kek(*n)).collect(), guards: Vec::new() }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// What was found, or written; `None` where nothing is, also after a deletion.
    Is(Option<u32>),
    Exists,
    NotFound,
    Conflict,
    /// The write may be done, also later.
    Nothing,
}

/// By the numbers of writes: what was expected, what it makes of it, and what it rests on.
type Write = (Option<u32>, Option<u32>, Vec<(usize, u32)>);

#[derive(Debug, Clone)]
struct Call {
    key: usize,
    /// `None` for a read.
    write: Option<Write>,
    told: Told,
    begun: usize,
    ended: usize,
}

#[derive(Debug, Default)]
struct History {
    calls: Vec<Call>,
    now: usize,
    number: u32,
    /// Under what each write is found.
    keks: BTreeMap<u32, Vec<usize>>,
}

impl History {
    fn tick(&mut self) -> usize {
        self.now += 1;
        self.now
    }

    /// Of one more write.
    fn number(&mut self, keks: &[usize]) -> u32 {
        self.number += 1;
        self.keks.insert(self.number, keks.to_vec());
        self.number
    }
}

type Known = BTreeMap<usize, (u32, StoreVersion)>;

struct Client {
    records: Records<Bucket>,
    history: Rc<RefCell<History>>,
    /// What it read, or wrote, last.
    known: Known,
}

fn records(bucket: &Bucket) -> Records<Bucket> {
    Records { name: "bucket".into(), names: Names::new("n"), objects: bucket.clone() }
}

impl Client {
    fn random(&self, below: usize) -> usize {
        self.records.objects.0.lock().unwrap().random.below(below)
    }

    fn begin(&self, key: usize, write: Option<Write>) -> usize {
        let mut history = self.history.borrow_mut();
        let begun = history.tick();
        history.calls.push(Call { key, write, told: Told::Nothing, begun, ended: usize::MAX });
        history.calls.len() - 1
    }

    fn end(&self, call: usize, told: Told) {
        let mut history = self.history.borrow_mut();
        let ended = history.tick();
        history.calls[call].told = told;
        history.calls[call].ended = ended;
    }

    async fn read(&mut self, n: usize) {
        let call = self.begin(n, None);
        let Ok(found) = self.records.read(&key(n)).await else { return };
        let found = found.map(|value| (u32::from_be_bytes(value.record.clone().try_into().unwrap()), value.version()));
        self.end(call, Told::Is(found.as_ref().map(|(number, _)| *number)));
        match found {
            Some(found) => drop(self.known.insert(n, found)),
            None => drop(self.known.remove(&n)),
        }
    }

    /// Writes or deletes by what it knows.
    async fn write(&mut self, n: usize) {
        let expected = self.known.get(&n).cloned();
        let is_deletion = expected.is_some() && self.random(6) == 0;
        let mut keks: Vec<_> = (1..=2).filter(|_| self.random(2) == 0).collect();
        if n == KEYS {
            keks = if self.random(2) == 0 { vec![1] } else { vec![1, 2] };
        }
        let others: Vec<_> = self.known.iter().filter(|(other, _)| **other != n).collect();
        let guards: Vec<_> = others
            .into_iter()
            .filter(|_| !is_deletion && self.random(3) > 0)
            .map(|(n, known)| (*n, known.clone()))
            .collect();
        let number = self.history.borrow_mut().number(&keks);
        let told_guards = guards.iter().map(|(n, (number, _))| (*n, *number)).collect();
        let is_deletion = is_deletion && n != KEYS;
        let new = (!is_deletion).then_some(number);
        let call = self.begin(n, Some((expected.as_ref().map(|(number, _)| *number), new, told_guards)));
        let mut put = put(number, &keks);
        put.guards = guards.into_iter().map(|(n, (_, version))| (key(n), version)).collect();
        let wanted = expected.as_ref().map_or(Expected::Absent, |(_, version)| Expected::Version(version));
        let told = match self.records.write(&key(n), wanted, new.map(|_| &put)).await {
            Ok(version) => {
                match new {
                    Some(number) => drop(self.known.insert(n, (number, version))),
                    None => drop(self.known.remove(&n)),
                }
                Told::Is(new)
            }
            Err(Error::Exists(_)) => Told::Exists,
            Err(Error::NotFound(_)) => Told::NotFound,
            Err(Error::Conflict(_)) => Told::Conflict,
            Err(Error::Store(_)) => Told::Nothing,
            Err(error) => panic!("{error}"),
        };
        match told {
            // It may be done later.
            Told::Nothing => {}
            told => self.end(call, told),
        }
    }

    async fn go(mut self) {
        for _ in 0..3 {
            match self.random(5) {
                0 => {
                    let n = self.random(KEYS + 1);
                    self.read(n).await;
                }
                _ => {
                    let n = self.random(KEYS + 1);
                    if self.random(2) == 0 {
                        self.read(n).await;
                    }
                    if self.random(3) == 0 {
                        let other = self.random(KEYS + 1);
                        self.read(other).await;
                    }
                    self.write(n).await;
                }
            }
        }
    }
}

/// As [`BucketStore`](super::BucketStore) does, one after the other.
async fn wrapped_by(records: &Records<Bucket>, kek: &KekVersion, page: usize) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    let mut at = Some(records.first_mark(kek, None));
    while let Some(from) = at {
        let found = records.candidates(kek, &from, page).await?;
        for (account, marks) in &found.accounts {
            if records.is_wrapped_by(account, kek, marks).await? && keys.last() != Some(account) {
                keys.push(account.clone());
            }
        }
        at = found.next;
    }
    Ok(keys)
}

async fn look_on(records: Records<Bucket>, seed: u64) {
    for n in 0..3 {
        if let Ok(keys) = wrapped_by(&records, &kek(1), 1 + n).await {
            assert!(
                keys.contains(&key(KEYS)),
                "seed {seed}: an account is not listed that is wrapped all the time: {keys:?}"
            );
        }
        let _ = wrapped_by(&records, &kek(2), 2).await;
        if let Ok(page) = records.list(&Filter::Accounts, None, 1000).await {
            assert!(page.keys.contains(&key(KEYS)), "seed {seed}: an account is not listed that is there all the time");
        }
    }
}

/// Polls one after the other as chance has it, until all are over. Some are killed where there are faults.
fn run(bucket: &Bucket, seed: u64, futures: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let mut futures: Vec<_> = futures.into_iter().map(Some).collect();
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..STEPS_MAX {
        let alive: Vec<_> = (0..futures.len()).filter(|n| futures[*n].is_some()).collect();
        if alive.is_empty() {
            return;
        }
        let (at, is_killed) = {
            let mut state = bucket.0.lock().unwrap();
            (alive[state.random.below(alive.len())], state.faults(400))
        };
        if is_killed || futures[at].as_mut().unwrap().as_mut().poll(&mut context).is_ready() {
            futures[at] = None;
        }
    }
    panic!("seed {seed}: they keep each other from getting on");
}

/// What is at each key, by the numbers of writes.
type Now = [Option<u32>; KEYS + 1];

/// What the call does to what is there: nothing where it could not have been told this.
fn step(now: Now, call: &Call) -> Option<Now> {
    let is = now[call.key];
    let Some((expected, new, guards)) = &call.write else {
        return (call.told == Told::Is(is)).then_some(now);
    };
    let holds = is == *expected && guards.iter().all(|(n, number)| now[*n] == Some(*number));
    let mut then = now;
    then[call.key] = *new;
    match (&call.told, holds) {
        (Told::Is(_) | Told::Nothing, true) => Some(then),
        (Told::Exists, _) => (expected.is_none() && is.is_some()).then_some(now),
        (Told::NotFound, _) => (expected.is_some() && is.is_none()).then_some(now),
        (Told::Conflict, false) => Some(now),
        _ => None,
    }
}

/// Whether there is an order in which all of it is true: each call at an instant between its begin and its end.
fn has_order(calls: &[Call], now: Now) -> bool {
    fn search(calls: &[Call], done: u64, now: Now, seen: &mut HashSet<(u64, Now)>) -> bool {
        if !seen.insert((done, now)) {
            return false;
        }
        let left = || calls.iter().enumerate().filter(|(n, _)| done & 1 << n == 0);
        // What nobody was told may never have been.
        let Some(first_end) = left().filter(|(_, call)| call.told != Told::Nothing).map(|(_, call)| call.ended).min()
        else {
            return true;
        };
        left()
            .filter(|(_, call)| call.begun < first_end)
            .any(|(n, call)| step(now, call).is_some_and(|then| search(calls, done | 1 << n, then, seen)))
    }
    search(calls, 0, now, &mut HashSet::new())
}

fn schedule(seed: u64) {
    let random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let state = State { objects: BTreeMap::new(), late: Vec::new(), random, has_faults: false };
    let bucket = Bucket(Arc::new(Mutex::new(state)));
    let history = Rc::new(RefCell::new(History::default()));
    let mut now = Now::default();
    let known = Rc::new(RefCell::new(Known::new()));
    let has_faults = !seed.is_multiple_of(3);
    let first = async {
        let records = records(&bucket);
        for (n, now) in now.iter_mut().enumerate() {
            // One is not there at first, in some schedules.
            if n == 0 && seed.is_multiple_of(2) {
                continue;
            }
            let keks = if n == KEYS { vec![1] } else { vec![1 + n % 2] };
            let number = history.borrow_mut().number(&keks);
            let version = records.write(&key(n), Expected::Absent, Some(&put(number, &keks))).await.unwrap();
            *now = Some(number);
            known.borrow_mut().insert(n, (number, version));
        }
    };
    run(&bucket, seed, vec![Box::pin(first)]);
    bucket.0.lock().unwrap().has_faults = has_faults;
    let mut tasks: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
    for _ in 0..CLIENTS {
        let client = Client { records: records(&bucket), history: history.clone(), known: known.borrow().clone() };
        tasks.push(Box::pin(client.go()));
    }
    tasks.push(Box::pin(look_on(records(&bucket), seed)));
    run(&bucket, seed, tasks);

    // What is on its way arrives, or never does.
    {
        let mut state = bucket.0.lock().unwrap();
        state.has_faults = false;
        while let Some(late) = state.late.pop() {
            if state.random.once_in(2) {
                state.put(late);
            }
        }
    }
    let mut client = Client { records: records(&bucket), history: history.clone(), known: Known::new() };
    let last = async {
        for n in 0..=KEYS {
            client.read(n).await;
        }
        let keks = history.borrow().keks.clone();
        for version in 1..=2 {
            for _ in 0..2 {
                let listed = wrapped_by(&client.records, &kek(version), 2).await.unwrap();
                let is_found = |(_, (number, _)): &(_, &(u32, _))| keks[number].contains(&version);
                let wanted: Vec<_> = client.known.iter().filter(is_found).map(|(n, _)| key(*n)).collect();
                assert_eq!(listed, wanted, "seed {seed}: accounts under version {version}");
            }
        }
        let listed = client.records.list(&Filter::Accounts, None, 1000).await.unwrap().keys;
        assert_eq!(listed, client.known.keys().map(|n| key(*n)).collect::<Vec<_>>(), "seed {seed}: accounts");
    };
    run(&bucket, seed, vec![Box::pin(last)]);
    let calls = history.borrow().calls.clone();
    let told: Vec<_> = calls.into_iter().filter(|call| call.write.is_some() || call.told != Told::Nothing).collect();
    assert!(has_order(&told, now), "seed {seed}: no order makes this true of {now:?}: {told:#?}");
    nothing_is_left(&bucket, seed);
}

/// Each mark is named by its record, or may be by one that comes.
fn nothing_is_left(bucket: &Bucket, seed: u64) {
    let (state, names) = (bucket.0.lock().unwrap(), Names::new("n"));
    for (name, version) in state.objects.keys().flat_map(|name| (1..=2).map(move |version| (name, version))) {
        let Some((account, mark)) = names.of_mark(&kek(version), name) else { continue };
        let Some(object) = state.objects.get(&names.record(&account)) else {
            assert_eq!(mark.base, [0; 16], "seed {seed}: a mark of {account}, which never was");
            continue;
        };
        let object = Object::decode(&account, object).unwrap();
        let mut values = BTreeSet::from([object.committed().id()]);
        values.extend(
            object.committed().value().and_then(|value| value.wrapped_by.get(&kek(version))).map(|mark| mark.id),
        );
        if let Object::Pending(pending) = &object {
            values.insert(pending.new.id);
        }
        assert!(values.contains(&mark.id) || values.contains(&mark.base), "seed {seed}: a mark of {account} is left");
    }
}

#[test]
fn whatever_the_order_of_requests_and_whatever_is_lost_all_that_was_told_was_true_at_once() {
    let seeds = std::env::var("KEYLEASH_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    (0..seeds).for_each(schedule);
}
