//! A trail whose token has no key that signs: its checkpoints are HMACs, which say something to who may use the key, and to nobody else.

use crate::rig::{NODE, PATIENCE, START_MS, STORE, admin, at_rest, data, known_store, put_date, record};
use async_trait::async_trait;
use keyleash::{
    Error, Result,
    audit::{
        Asked, Expected, FaultKind, Keys, Mac, Options, Request, Signer, Vkey, Writer, extract, key_name, verify,
        verify_extract,
    },
    clock::{Clock, ManualClock},
    name::{AccountId, NodeName},
    telemetry::trail::{Deed, Noted, Outcome, Trail},
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use zeroize::Zeroizing;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The key `seed` in memory, in the place of the token's; how often it was used.
#[derive(Debug)]
struct Token {
    key: Arc<Zeroizing<Vec<u8>>>,
    vkey: String,
    used: AtomicU64,
}

impl Token {
    /// The CKA_ID says which key it is in the token, and not what it is.
    fn new(seed: u8) -> Arc<Self> {
        let vkey = Vkey::hmac(&key_name(STORE), b"the trail's").unwrap().to_string();
        Arc::new(Self { key: Arc::new(Zeroizing::new(vec![seed; 32])), vkey, used: AtomicU64::new(0) })
    }

    fn vkey(&self) -> Vkey {
        Vkey::parse(&self.vkey).unwrap()
    }

    fn keys(&self) -> Keys {
        Keys::new().with_mac(self.vkey(), self.key.clone())
    }
}

#[async_trait]
impl Signer for Token {
    fn vkey(&self) -> &str {
        &self.vkey
    }

    async fn sign(&self, text: &[u8]) -> Result<Vec<u8>> {
        self.used.fetch_add(1, Ordering::SeqCst);
        self.key.mac(text).map(Into::into)
    }
}

fn options(directory: &Path) -> Options {
    Options::new(directory, NodeName::new(NODE).unwrap())
        .clock(Clock::Manual(ManualClock::default()))
        .lock_patience(PATIENCE)
}

#[tokio::test]
async fn a_trail_of_hmacs_is_gone_on_with_and_verified_by_who_has_the_key_and_by_nobody_else() {
    let (directory, store, token) = (tempfile::tempdir().unwrap(), known_store().await, Token::new(1));
    let (directory, node) = (directory.path(), directory.path().join(NODE));
    for round in 0..3 {
        let before = token.used.load(Ordering::SeqCst);
        let writer = Writer::open(options(directory), store.clone(), token.clone()).await.unwrap();
        if round > 0 {
            assert!(token.used.load(Ordering::SeqCst) > before, "what it goes on from was verified by the token");
        }
        assert_eq!(writer.note(data(2 * round)), Noted::Taken);
        writer.write(admin(2 * round + 1)).await.unwrap();
        writer.close(PATIENCE).await.unwrap();
    }
    let report = verify(&node, &Expected::by(token.keys())).unwrap();
    assert_eq!((report.faults.len(), report.lines, report.uncovered()), (0, 9, 0), "{:?}", report.faults);
    // The vkey alone verifies nothing, and says so; another key finds every checkpoint forged.
    let error = verify(&node, &Expected::by(Keys::new().with(token.vkey()))).unwrap_err();
    assert!(matches!(&error, Error::Invalid(what) if what.contains("token")), "{error}");
    let report = verify(&node, &Expected::by(Token::new(2).keys())).unwrap();
    assert!(report.newest.is_none() && report.faults.iter().any(|fault| fault.kind == FaultKind::Forged), "{report:?}");
    // So with an extract.
    let mut text = Vec::new();
    extract(&node, &Request::all(AccountId::new("tenant-0").unwrap()), &mut text).unwrap();
    let check =
        |keys: Keys| verify_extract(&mut &*text, &Asked::by(keys), &mut |_, _| {}).map(|mut shown| shown.remove(0));
    assert_eq!(check(token.keys()).unwrap().lines, 1);
    assert!(matches!(check(Keys::new().with(token.vkey())).unwrap_err(), Error::Invalid(_)));
    assert!(matches!(check(Token::new(2).keys()).unwrap_err(), Error::Corrupt(_)));
    // Who has another key under the same name does not go on.
    let error = Writer::open(options(directory), store.clone(), Token::new(2)).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    Writer::open(options(directory), store, token).await.unwrap().close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn retention_verifies_an_hmac_by_making_it_again_before_it_removes_anything() {
    let (directory, store, token) = (tempfile::tempdir().unwrap(), known_store().await, Token::new(1));
    put_date(&*store, START_MS / 1000 + 10 * DAY.as_secs()).await;
    let clock = ManualClock::default();
    let options = options(directory.path()).clock(Clock::Manual(clock.clone())).retention(Some(DAY));
    let writer = Writer::open(options, store, token.clone()).await.unwrap();
    let node = directory.path().join(NODE);
    for day in 0..4_u32 {
        let ms = START_MS + u64::from(day) * DAY.as_secs() * 1000;
        writer.write(record(ms, Deed::KekCreate, Outcome::Asked, day.into())).await.unwrap();
        at_rest(&writer);
        clock.advance(DAY);
    }
    crate::rig::until("removed", || {
        clock.advance(Duration::from_secs(3600));
        node.join("retained").exists()
    });
    writer.close(PATIENCE).await.unwrap();
    let report = verify(&node, &Expected::by(token.keys())).unwrap();
    assert!(report.is_whole() && report.retained > 0, "{:?}", report.faults);
}
