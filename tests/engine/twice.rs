//! What can be called twice, is: a batch that stopped is given again as it is, which loses nothing and seals nothing twice.

use crate::{Rig, SECOND, account_id, of_suite};
use keyleash::{
    Account, Error,
    account::{BatchError, OpenItem, SealItem, State},
    block::{BLOCK_BYTES_MAX, BlockHeader, Suite},
    error::Corrupt,
};
use proptest::prelude::*;

/// What is wrong with an item at the first try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// Too long, or damaged; then mended.
    Item,
    /// The key is denied as it is tried, and given back.
    Key,
}

fn items() -> impl Strategy<Value = Vec<(Vec<u8>, Wrong, Wrong)>> {
    let wrong = || prop_oneof![4 => Just(Wrong::Nothing), 1 => Just(Wrong::Item), 1 => Just(Wrong::Key)];
    prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), wrong(), wrong()), 1..8)
}

async fn take_away(rig: &Rig, account: &Account) {
    rig.script.disable(&rig.kek_id);
    while account.state() == State::Ready {
        rig.pass(SECOND).await;
    }
}

async fn give_back(rig: &Rig, account: &Account) {
    rig.script.enable(&rig.kek_id);
    rig.meanwhile(account.ready()).await.unwrap();
}

async fn a_batch_twice(plan: Vec<(Vec<u8>, Wrong, Wrong)>) {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let mut too_long = vec![0; BLOCK_BYTES_MAX + 1]; // never touched, so never there
    let mut bufs: Vec<_> = plan.iter().map(|(plain, ..)| plain.clone()).collect();
    let mut spare = bufs.clone();
    let mut items: Vec<_> = bufs.iter_mut().zip(0_u64..).map(|(buf, n)| SealItem::new(n, buf)).collect();
    let is_first = |wrong| plan.iter().position(|(_, seal, _)| *seal == wrong);
    if let Some(bad) = is_first(Wrong::Item) {
        items[bad] = SealItem::new(bad as u64, &mut too_long);
        let BatchError { index, error, .. } = account.seal_batch(&mut items).unwrap_err();
        assert!(index == bad && matches!(error, Error::TooLong { .. }), "{index}: {error}");
        items[bad] = SealItem::new(bad as u64, &mut spare[bad]);
    }
    let done: Vec<_> = items.iter().map(|item| item.header().copied()).collect();
    if is_first(Wrong::Key).is_some() {
        take_away(&rig, &account).await;
        let BatchError { error, .. } = account.seal_batch(&mut items).unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{error}");
        give_back(&rig, &account).await;
    }
    for _ in 0..2 {
        account.seal_batch(&mut items).unwrap();
    }
    for (item, before) in items.iter().zip(done) {
        let same = |before: BlockHeader| item.header().is_some_and(|now| now.as_bytes() == before.as_bytes());
        assert!(before.is_none_or(same), "sealed a second time");
    }
    let sealed: Vec<_> = items.into_iter().map(|item| item.sealed().unwrap()).collect();
    let headers: Vec<_> = sealed.iter().map(|(header, _)| *header).collect();
    let mut replica: Vec<_> = sealed.iter().map(|(_, ciphertext)| ciphertext.to_vec()).collect();
    let mut bufs: Vec<_> = sealed.into_iter().map(|(_, ciphertext)| ciphertext).collect();
    let is_bad = |n: usize| plan[n].2 == Wrong::Item && !plan[n].0.is_empty();
    for (n, ciphertext) in bufs.iter_mut().enumerate().filter(|(n, _)| is_bad(*n)) {
        ciphertext[0] ^= 1 << (n % 8);
    }
    let open = |n: usize, buf| OpenItem::new(n as u64, &headers[n], buf);
    let mut items: Vec<_> = bufs.into_iter().enumerate().map(|(n, buf)| open(n, buf)).collect();
    if plan.iter().any(|(_, _, wrong)| *wrong == Wrong::Key) {
        take_away(&rig, &account).await;
        let BatchError { index, error, .. } = account.open_batch(&mut items).unwrap_err();
        assert!(index == 0 && matches!(error, Error::Denied(_)), "{index}: {error}");
        give_back(&rig, &account).await;
    }
    let mut replica = replica.iter_mut().enumerate();
    while let Err(BatchError { index, error, .. }) = account.open_batch(&mut items) {
        assert!(is_bad(index) && error == Error::from(Corrupt::Block), "{index}: {error}");
        let (_, copy) = replica.find(|(n, _)| *n == index).unwrap();
        items[index] = open(index, copy);
    }
    account.open_batch(&mut items).unwrap();
    for (item, (plain, ..)) in items.into_iter().zip(&plan) {
        assert_eq!(item.opened().unwrap(), &plain[..]);
    }
}

/// What happens before a block is resealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Rotation,
    /// No engine has the key in memory.
    Wipe,
    /// The key is denied as it is tried, and given back.
    Denial,
}

/// Before it; by the engine of suite 2; by the async form.
fn reseals() -> impl Strategy<Value = Vec<(Before, bool, bool)>> {
    let before = prop_oneof![Just(Before::Nothing), Just(Before::Rotation), Just(Before::Wipe), Just(Before::Denial)];
    prop::collection::vec((before, any::<bool>(), any::<bool>()), 1..6)
}

async fn reseals_twice(plain: Vec<u8>, steps: Vec<(Before, bool, bool)>) {
    let rig = Rig::new().await;
    let one = rig.account("a").await;
    let committing = of_suite(&rig, Suite::XaesGcmCommit);
    let two = committing.account(&account_id("a")).await.unwrap();
    let mut buf = plain.clone();
    let mut header = one.seal_in_place(1_u64, &mut buf).unwrap();
    for (before, by_two, is_async) in steps {
        let (account, suite) = if by_two { (&two, Suite::XaesGcmCommit) } else { (&one, Suite::XaesGcm) };
        match before {
            Before::Nothing => {}
            Before::Rotation => {
                rig.meanwhile(rig.engine.rotate_account(account.id())).await.unwrap();
                // So that the other engine has heard of it, which else may do so between any two calls below.
                let mut told = Vec::new();
                let header = rig.meanwhile(one.seal(2_u64, &mut told)).await.unwrap();
                rig.meanwhile(two.open(2_u64, &header, &mut told)).await.unwrap();
            }
            Before::Wipe => {
                rig.engine.wipe_now(&rig.kek);
                committing.wipe_now(&rig.kek);
            }
            Before::Denial => {
                take_away(&rig, &one).await;
                take_away(&rig, &two).await;
            }
        }
        let sealed = buf.clone();
        let outcome = match is_async {
            true => rig.meanwhile(account.reseal(1_u64, &header, &mut buf)).await,
            false => account.reseal_in_place(1_u64, &header, &mut buf),
        };
        if before == Before::Denial {
            give_back(&rig, &one).await;
            give_back(&rig, &two).await;
        }
        header = match outcome {
            Ok(resealed) => resealed,
            Err(error) => {
                let may = match error {
                    Error::Denied(_) => before == Before::Denial,
                    Error::Cold { .. } => !is_async,
                    _ => false,
                };
                assert!(may && buf == sealed, "{error}, and the block is as it was: {}", buf == sealed);
                rig.meanwhile(account.reseal(1_u64, &header, &mut buf)).await.unwrap()
            }
        };
        assert_eq!((header.suite(), header.aek_version()), (suite, account.aek_version()));
        let done = buf.clone();
        assert_eq!(account.reseal_in_place(1_u64, &header, &mut buf).unwrap(), header);
        assert_eq!(rig.meanwhile(account.reseal(1_u64, &header, &mut buf)).await.unwrap(), header);
        assert!(buf == done, "resealed a second time");
        for reader in [&one, &two] {
            let mut opened = buf.clone();
            rig.meanwhile(reader.open(1_u64, &header, &mut opened)).await.unwrap();
            assert_eq!(opened, plain);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_that_is_given_again_seals_and_opens_each_block_once(plan in items()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(a_batch_twice(plan));
    }

    #[test]
    fn a_block_that_is_resealed_again_stays_as_it_is_and_one_that_was_refused_too(
        plain in prop::collection::vec(any::<u8>(), 0..200),
        steps in reseals(),
    ) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(reseals_twice(plain, steps));
    }
}
