//! Random rotations, re-wraps, moves and deletions on a store whose disk fails and dies at random instants, against a model
//! that says which blocks must open: nothing that was acknowledged is lost, and nothing is there twice.

use crate::disk::{Disk, Fuse};
use keyleash::{
    Account, Engine, Error,
    block::BlockHeader,
    clock::Clock,
    config::Settings,
    name::{AccountId, KekName, KekVersion},
    rotate::RewrapOptions,
    store::{Filter, Key, KeyStore, PAGE_KEYS_MAX, redb::RedbStore},
    token::{Profile, scripted::ScriptedToken},
};
use proptest::{collection::vec, prelude::*, test_runner::Config};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

const ACCOUNTS: u8 = 6;
const KEKS: [(&str, Profile); 2] = [("main", Profile::AesGcm), ("vault", Profile::AesKw)];
const ADDRESS: u64 = 3;

#[derive(Debug, Clone)]
enum Op {
    Create(u8, u8),
    Seal(u8),
    Reseal(u8),
    RotateKek(u8),
    RotateAek(u8),
    Rewrap(u8),
    Move(u8, u8),
    RetireAek(u8),
    RetireKek(u8),
    Delete(u8),
    Undelete(u8),
    Purge(u8),
    Fuse(Fuse),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let account = 0..ACCOUNTS;
    let kek = 0..KEKS.len() as u8;
    prop_oneof![
        4 => (account.clone(), kek.clone()).prop_map(|(a, k)| Op::Create(a, k)),
        5 => account.clone().prop_map(Op::Seal),
        2 => account.clone().prop_map(Op::Reseal),
        3 => kek.clone().prop_map(Op::RotateKek),
        4 => account.clone().prop_map(Op::RotateAek),
        6 => kek.clone().prop_map(Op::Rewrap),
        3 => (account.clone(), kek.clone()).prop_map(|(a, k)| Op::Move(a, k)),
        2 => account.clone().prop_map(Op::RetireAek),
        3 => kek.prop_map(Op::RetireKek),
        2 => account.clone().prop_map(Op::Delete),
        2 => account.clone().prop_map(Op::Undelete),
        1 => account.prop_map(Op::Purge),
        8 => (0..40_u64).prop_map(|after| Op::Fuse(Fuse::Dies(after))),
        2 => (0..40_u64).prop_map(|after| Op::Fuse(Fuse::Fails(after))),
        1 => Just(Op::Restart),
    ]
}

fn id(number: u8) -> AccountId {
    AccountId::new(format!("account-{number}")).unwrap()
}

fn kek(number: u8) -> KekName {
    KekName::new(KEKS[number as usize].0).unwrap()
}

/// A block and what was sealed into it.
#[derive(Debug, Clone)]
struct Block {
    header: BlockHeader,
    ciphertext: Vec<u8>,
    plaintext: Vec<u8>,
}

/// What must be there of an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    aek_versions: Vec<u32>,
    deleted: bool,
}

#[derive(Debug, Clone)]
struct Expected {
    state: State,
    blocks: Vec<Block>,
}

/// The machine: it is booted anew after each crash, and the token outlives that.
struct World {
    token: Arc<ScriptedToken>,
    disk: Disk,
    store: Arc<RedbStore>,
    engine: Engine,
    live: BTreeMap<u8, Account>,
    expected: BTreeMap<u8, Expected>,
    retired: BTreeSet<KekVersion>,
    /// Accounts whose rotation was done and not acknowledged: this engine learns of it within a TTL, as any other would.
    unheard: BTreeSet<u8>,
    sealed: u64,
    crashes: u64,
    random: u64,
}

async fn boot(token: &Arc<ScriptedToken>, disk: &Disk) -> (Arc<RedbStore>, Engine) {
    let disk = disk.clone();
    let store = Arc::new(RedbStore::open_backend("disk", move || disk.clone()).await.unwrap());
    let settings = Settings::default().purge_protection(false).resume_rate(1_000_000);
    let engine = Engine::builder(token.clone(), store.clone()).settings(settings).start_up_proof(false);
    (store, engine.build().unwrap())
}

impl World {
    async fn new(seed: u64) -> Self {
        let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
        let disk = Disk::default();
        let (store, engine) = boot(&token, &disk).await;
        for (name, profile) in KEKS {
            engine.create_kek(&KekName::new(name).unwrap(), profile).await.unwrap();
        }
        let (live, expected, retired, unheard) = Default::default();
        let mut world = Self {
            token,
            disk,
            store,
            engine,
            live,
            expected,
            retired,
            unheard,
            sealed: 0,
            crashes: 0,
            random: seed | 1,
        };
        for account in 0..ACCOUNTS {
            world.play(&Op::Create(account, account % KEKS.len() as u8)).await;
            world.play(&Op::Seal(account)).await;
        }
        world
    }

    /// xorshift: what a dying disk keeps must be the same when a case is tried again.
    fn coin(&mut self) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random & 1 == 0
    }

    async fn reboot(&mut self) {
        self.crashes += u64::from(self.disk.is_dead());
        let mut coins: Vec<bool> = (0..4096).map(|_| self.coin()).collect();
        self.disk = self.disk.after_crash(|| coins.pop().unwrap_or(true));
        self.live.clear();
        self.unheard.clear();
        (self.store, self.engine) = boot(&self.token, &self.disk).await;
    }

    /// A handle that lives through whatever comes.
    async fn handle(&mut self, account: u8) -> Result<Account, Error> {
        if let Some(live) = self.live.get(&account) {
            return Ok(live.clone());
        }
        let opened = self.engine.account(&id(account)).await?;
        self.live.insert(account, opened.clone());
        Ok(opened)
    }

    /// Does it, and gives which states of the account are right afterwards: the one before, the one after, or either, when
    /// the disk failed.
    async fn play(&mut self, op: &Op) {
        let touched = match op {
            Op::Fuse(fuse) => return self.disk.light(*fuse), // unless another burns
            Op::Restart => return self.reboot().await,
            Op::Create(a, _) | Op::Seal(a) | Op::Reseal(a) | Op::RotateAek(a) | Op::Move(a, _) => Some(*a),
            Op::RetireAek(a) | Op::Delete(a) | Op::Undelete(a) | Op::Purge(a) => Some(*a),
            Op::RotateKek(_) | Op::Rewrap(_) | Op::RetireKek(_) => None,
        };
        let before = touched.and_then(|account| self.expected.get(&account)).map(|expected| expected.state.clone());
        let after = before.clone();
        let (outcome, after) = self.act(op, before.clone()).await.map_or_else(|e| (Err(e), after), |a| (Ok(()), a));
        if self.disk.is_dead() {
            self.reboot().await;
        }
        if let (Some(account), false) = (touched, matches!(op, Op::Seal(_) | Op::Reseal(_))) {
            self.settle(op, account, before, after, outcome.is_ok()).await;
        }
        match outcome {
            Ok(()) | Err(Error::Store(_)) => {}
            // What is not there, is there already, or is still in use.
            Err(Error::NotFound(_) | Error::Exists(_) | Error::Invalid(_) | Error::NotDeleted(_)) => {}
            Err(error) => panic!("{op:?}: {error}"),
        }
    }

    /// Gives the state that the account has when the operation was done.
    async fn act(&mut self, op: &Op, state: Option<State>) -> Result<Option<State>, Error> {
        let mut state = state.unwrap_or_default();
        match op {
            Op::Create(a, k) => {
                let account = self.engine.create_account(&id(*a), &kek(*k)).await?;
                self.live.insert(*a, account);
                return Ok(Some(State { aek_versions: vec![1], deleted: false }));
            }
            Op::Seal(a) => {
                self.seal(*a).await?;
                return Ok(None);
            }
            Op::Reseal(a) => {
                self.reseal(*a).await?;
                return Ok(None);
            }
            Op::RotateAek(a) => {
                let version = self.engine.rotate_account(&id(*a)).await?;
                state.aek_versions.push(version);
                if let Some(live) = self.live.get(a) {
                    assert_eq!(live.aek_version(), version, "a live handle seals under the new version at once");
                }
            }
            Op::RetireAek(a) => {
                let oldest = state.aek_versions.first().copied().unwrap_or(1);
                self.engine.retire_aeks(&id(*a), &[oldest], keyleash::When::Now).await?;
                state.aek_versions.remove(0);
            }
            Op::Move(a, k) => drop(self.engine.move_account(&id(*a), &kek(*k)).await?),
            Op::Delete(a) => {
                self.engine.delete_account(&id(*a)).await?;
                state.deleted = true;
            }
            Op::Undelete(a) => {
                self.engine.undelete_account(&id(*a)).await?;
                state.deleted = false;
            }
            Op::Purge(a) => {
                self.engine.purge_account(&id(*a), keyleash::When::Now).await?;
                return Ok(None);
            }
            Op::RotateKek(k) => drop(self.engine.rotate_kek(&kek(*k)).await?),
            Op::Rewrap(k) => self.rewrap(*k).await?,
            Op::RetireKek(k) => self.retire_kek(*k).await?,
            Op::Fuse(_) | Op::Restart => {}
        }
        Ok(Some(state))
    }

    async fn rewrap(&self, number: u8) -> Result<(), Error> {
        let options = RewrapOptions::new().rate(1_000_000_000);
        let report = self.engine.rewrap_kek(&kek(number), options, |_| {}).await?;
        assert_eq!((report.failed, &report.failures[..]), (0, &[][..]));
        if let Some(stopped) = report.stopped {
            return Err(stopped);
        }
        for version in self.engine.kek(&kek(number)).await?.versions {
            let kek = KekVersion::new(kek(number), version.record.version);
            assert!(version.current || self.engine.count_wrapped_by(&kek).await? == 0, "{kek} after a re-wrap");
        }
        Ok(())
    }

    async fn retire_kek(&mut self, number: u8) -> Result<(), Error> {
        let status = self.engine.kek(&kek(number)).await?;
        let oldest = status.versions.iter().find(|version| version.record.retired_unix.is_none()).unwrap();
        let oldest = KekVersion::new(kek(number), oldest.record.version);
        self.engine.retire_kek(&oldest).await?;
        self.retired.insert(oldest);
        Ok(())
    }

    async fn seal(&mut self, number: u8) -> Result<(), Error> {
        let account = self.handle(number).await?;
        self.sealed += 1;
        let plaintext = format!("block {} of {number}", self.sealed).into_bytes();
        let mut ciphertext = plaintext.clone();
        let header = account.seal(ADDRESS, &mut ciphertext).await?;
        let expected = self.expected.get_mut(&number).expect("a deleted or missing account does not seal");
        let aek_versions = &expected.state.aek_versions;
        let is_current = Some(&header.aek_version()) == aek_versions.last();
        let may_be_older = self.unheard.contains(&number) && aek_versions.contains(&header.aek_version());
        assert!(is_current || may_be_older, "{} of {aek_versions:?}", header.aek_version());
        expected.blocks.push(Block { header, ciphertext, plaintext });
        Ok(())
    }

    async fn reseal(&mut self, number: u8) -> Result<(), Error> {
        let account = self.handle(number).await?;
        let Some(block) = self.expected.get_mut(&number).and_then(|expected| expected.blocks.first_mut()) else {
            return Ok(());
        };
        account.warm().await?;
        account.warm_for(&block.header).await?;
        block.header = account.reseal_in_place(ADDRESS, &block.header, &mut block.ciphertext)?;
        assert_eq!(block.header.aek_version(), account.aek_version());
        Ok(())
    }

    /// What the store holds of the account is the state before or the state after, and the one after when it was acknowledged.
    async fn settle(&mut self, op: &Op, number: u8, before: Option<State>, after: Option<State>, done: bool) {
        let record = match self.engine.account_record(&id(number)).await {
            Ok(record) => Some(record),
            Err(Error::NotFound(_)) => None,
            // A fuse burns: the disk fails here and not in the operation.
            Err(Error::Store(_)) => {
                self.disk.snuff();
                if self.disk.is_dead() {
                    self.reboot().await;
                }
                self.engine.account_record(&id(number)).await.ok()
            }
            Err(error) => panic!("{error}"),
        };
        let found = record.map(|record| State {
            aek_versions: record.versions.iter().map(|aek| aek.aek_version).collect(),
            deleted: record.deleted.is_some(),
        });
        if done {
            assert_eq!(found, after, "{op:?} was acknowledged");
        } else if found != before {
            assert!(may_have_become(op, before.as_ref(), found.as_ref()), "{op:?}: {before:?} became {found:?}");
            if matches!(op, Op::RotateAek(_)) {
                self.unheard.insert(number);
            }
        }
        match found {
            None => drop(self.expected.remove(&number)),
            Some(state) => {
                let blocks = self.expected.remove(&number).map_or_else(Vec::new, |expected| expected.blocks);
                let kept = blocks.into_iter().filter(|block| state.aek_versions.contains(&block.header.aek_version()));
                let blocks = kept.collect();
                self.expected.insert(number, Expected { state, blocks });
            }
        }
        if !self.expected.contains_key(&number) {
            self.live.remove(&number);
        }
    }

    /// Everything that must be there is there, opens, and is there once.
    async fn verify(&mut self) {
        self.disk.snuff();
        if self.disk.is_dead() {
            self.reboot().await;
        }
        let mut listed = self.list(&Filter::Accounts).await;
        let mut expected: Vec<_> = self.expected.keys().map(|number| id(*number)).collect();
        expected.sort();
        assert_eq!(listed, expected);
        let mut wrapped = BTreeMap::<_, Vec<AccountId>>::new();
        for (number, expected) in &self.expected {
            let record = self.engine.account_record(&id(*number)).await.unwrap();
            let aek_versions: Vec<_> = record.versions.iter().map(|aek| aek.aek_version).collect();
            assert_eq!(State { aek_versions, deleted: record.deleted.is_some() }, expected.state);
            record
                .wrapped_by()
                .into_iter()
                .for_each(|kek| wrapped.entry(kek).or_default().push(record.account.clone()));
            if expected.state.deleted {
                assert!(matches!(self.engine.account(&record.account).await, Err(Error::NotFound(_))));
                self.engine.undelete_account(&record.account).await.unwrap();
            }
            let account = self.engine.account(&record.account).await.unwrap();
            for block in &expected.blocks {
                let mut buf = block.ciphertext.clone();
                account.open(ADDRESS, &block.header, &mut buf).await.unwrap();
                assert_eq!(buf, block.plaintext);
            }
            if expected.state.deleted {
                self.engine.delete_account(&record.account).await.unwrap();
            }
        }
        for number in 0..KEKS.len() as u8 {
            for version in self.engine.kek(&kek(number)).await.unwrap().versions {
                let kek = KekVersion::new(kek(number), version.record.version);
                listed = self.list(&Filter::WrappedBy(kek.clone())).await;
                assert_eq!(listed, wrapped.remove(&kek).unwrap_or_default(), "the index of {kek}");
                assert!(listed.is_empty() || !self.retired.contains(&kek), "{kek} was retired");
            }
        }
        assert!(wrapped.is_empty(), "wrapped by what no record names: {wrapped:?}");
    }

    async fn list(&self, filter: &Filter) -> Vec<AccountId> {
        let page = self.store.list(filter, None, PAGE_KEYS_MAX).await.unwrap();
        assert!(page.next.is_none());
        page.keys.into_iter().map(|key| if let Key::Account(id) = key { id } else { panic!("{key}") }).collect()
    }
}

/// Whether an operation that was not acknowledged may have had this effect all the same.
fn may_have_become(op: &Op, before: Option<&State>, after: Option<&State>) -> bool {
    match (op, before, after) {
        (Op::Create(..), None, Some(after)) => after.aek_versions == [1] && !after.deleted,
        (Op::Purge(_), Some(before), None) => before.deleted,
        (Op::RotateAek(_), Some(before), Some(after)) => {
            let next = before.aek_versions.last().unwrap() + 1;
            after.aek_versions == [&before.aek_versions[..], &[next]].concat() && !after.deleted
        }
        (Op::RetireAek(_), Some(before), Some(after)) => after.aek_versions == before.aek_versions[1..],
        (Op::Delete(_) | Op::Undelete(_), Some(before), Some(after)) => after.aek_versions == before.aek_versions,
        _ => false,
    }
}

/// In CI; `PROPTEST_CASES` asks for another number.
const CASES: u32 = 64;

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(CASES, |cases| cases.parse().expect("PROPTEST_CASES is a number"))
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, ..Config::default() })]

    #[test]
    fn whatever_crashes_nothing_that_was_acknowledged_is_lost_or_doubled(ops in vec(op(), 20..80), seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(seed).await;
            for op in &ops {
                let crashes = world.crashes;
                world.play(op).await;
                if world.crashes > crashes {
                    world.verify().await;
                }
            }
            world.verify().await;
            println!("{} crashes, {} blocks", world.crashes, world.sealed);
        });
    }
}
