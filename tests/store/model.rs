//! A store and the one in memory answer every sequence of calls alike, errors and listings included, across reopening.

use crate::{MODEL_CASES, Place, account, kek, put};
use keyleash::{
    name::KekVersion,
    store::{Filter, KeyStore, StoreVersion, memory::MemoryStore},
};
use proptest::{collection::vec, prelude::*, test_runner::Config};

const ACCOUNTS: u8 = 5;

#[derive(Debug, Clone)]
enum Call {
    Get(u8),
    Create(u8, Vec<u8>, Vec<u32>),
    /// The version is one of those that were ever given, counted from the newest.
    Replace(u8, usize, Vec<u8>, Vec<u32>),
    Delete(u8, usize),
    List(Option<u32>, Option<u8>, usize),
    Reopen,
}

fn call() -> impl Strategy<Value = Call> {
    let key = 0..ACCOUNTS;
    let wrapped_by = vec(1..4_u32, 0..3);
    let value = vec(any::<u8>(), 0..40);
    prop_oneof![
        2 => key.clone().prop_map(Call::Get),
        4 => (key.clone(), value.clone(), wrapped_by.clone()).prop_map(|(k, v, w)| Call::Create(k, v, w)),
        4 => (key.clone(), 0..3_usize, value, wrapped_by).prop_map(|(k, n, v, w)| Call::Replace(k, n, v, w)),
        2 => (key.clone(), 0..3_usize).prop_map(|(k, n)| Call::Delete(k, n)),
        3 => (proptest::option::of(1..4_u32), proptest::option::of(key), 1..4_usize)
            .prop_map(|(w, a, n)| Call::List(w, a, n)),
        1 => Just(Call::Reopen),
    ]
}

fn keks(versions: &[u32]) -> Vec<KekVersion> {
    versions.iter().map(|version| kek("k", *version)).collect()
}

/// Everything that the caller gets to see, as text; a version as the place among those that were given.
async fn answer(store: &dyn KeyStore, call: &Call, given: &mut Vec<StoreVersion>) -> String {
    let key = |n: &u8| account(format!("account-{n}"));
    let nth = |given: &[StoreVersion], back: usize| {
        given.iter().rev().nth(back).cloned().unwrap_or_else(|| StoreVersion(b"none".to_vec()))
    };
    let written = match call {
        Call::Get(k) => {
            let found = store.get(&key(k)).await;
            let place = |version| given.iter().position(|one| *one == version);
            return format!("{:?}", found.map(|found| found.map(|found| (found.value, place(found.version)))));
        }
        Call::List(version, after, limit) => {
            let filter = version.map_or(Filter::Accounts, |version| Filter::WrappedBy(kek("k", version)));
            return format!("{:?}", store.list(&filter, after.as_ref().map(key).as_ref(), *limit).await);
        }
        Call::Delete(k, back) => return format!("{:?}", store.delete(&key(k), &nth(given, *back)).await),
        Call::Reopen => return String::new(),
        Call::Create(k, value, wrapped_by) => store.create(&key(k), put(value.clone(), &keks(wrapped_by))).await,
        Call::Replace(k, back, value, wrapped_by) => {
            store.replace(&key(k), &nth(given, *back), put(value.clone(), &keks(wrapped_by))).await
        }
    };
    if let Ok(version) = &written {
        assert!(!given.contains(version), "a version comes twice");
        given.push(version.clone());
    }
    format!("{:?}", written.map(drop))
}

proptest! {
    #![proptest_config(Config { cases: MODEL_CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn it_answers_as_memory_does(calls in vec(call(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (memory, place) = (MemoryStore::new(), Place::new());
            let mut store = Some(place.open().await);
            let (mut of_memory, mut of_store) = (Vec::new(), Vec::new());
            for call in calls {
                if matches!(call, Call::Reopen) {
                    drop(store.take());
                    store = Some(place.open().await);
                }
                let expected = answer(&memory, &call, &mut of_memory).await;
                prop_assert_eq!(answer(store.as_ref().unwrap(), &call, &mut of_store).await, expected, "{:?}", call);
            }
            Ok(())
        })?;
    }
}
