//! How a service rehearses, in its own tests, the day on which its key is taken away: its own engine, token, store and load, and the
//! act as the owner of the key does it. What comes out is judged promise by promise.
//!
//!     softhsm/with-token cargo run --example rehearsal
//!
//! A test (`tests/softhsm/rehearsal.rs`) plays this very file.

use async_trait::async_trait;
use keyleash::{
    Account, Engine, Error, KekOptions,
    config::Settings,
    drill::{self, Done, Drill, Hand, Report, Scenario, Tap},
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    token::{
        KekId, Profile, TokenError,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector, operator::Operator},
    },
};
use std::{collections::BTreeMap, env::var, sync::Arc, time::Duration};

const TENANTS: usize = 4;
const SECOND: Duration = Duration::from_secs(1);

/// The service: blocks of a tenant on a disk.
struct Tenant {
    account: Account,
    disk: BTreeMap<u64, Vec<u8>>,
}

impl Tenant {
    fn write(&mut self, place: u64, data: &[u8]) -> Result<(), Error> {
        let sealed = self.warm(|account| account.seal_to_vec(place, data))?;
        self.disk.insert(place, sealed);
        Ok(())
    }

    fn read(&self, place: u64) -> Result<Vec<u8>, Error> {
        let sealed = self.disk.get(&place).ok_or_else(|| Error::NotFound(format!("block {place}")))?;
        self.warm(|account| account.open_to_vec(place, sealed))
    }

    fn warm<T>(&self, operation: impl Fn(&Account) -> Result<T, Error>) -> Result<T, Error> {
        match operation(&self.account) {
            Err(Error::Cold { .. }) => {
                self.account.warm_blocking(5 * SECOND)?;
                operation(&self.account)
            }
            done => done,
        }
    }

    /// What its users do all day: a new block, and the one before.
    fn serve(mut self) -> impl FnMut(&mut Hand) {
        let block = |place: u64| place.to_le_bytes().repeat(64);
        let mut place = 0;
        move |hand| {
            let written = hand.operation(|| self.write(place + 1, &block(place + 1)));
            place += u64::from(written.is_some());
            if place > 1
                && let Some(data) = hand.operation(|| self.read(place - 1))
            {
                hand.verify(&data, &block(place - 1));
                self.disk.remove(&(place.saturating_sub(100)));
            }
        }
    }
}

/// The owner of the key, who does not ask the service.
struct Owner {
    operator: Operator,
    kek: KekId,
}

#[async_trait]
impl drill::Operator for Owner {
    type Error = drill::Error;

    async fn take(&mut self) -> Result<Done, drill::Error> {
        let at = self.operator.disable(&self.kek, Profile::AesGcm).await?;
        Ok(Done { what: "disable the KEK".into(), at })
    }

    async fn give(&mut self) -> Result<Done, drill::Error> {
        let at = self.operator.enable(&self.kek, Profile::AesGcm).await?;
        Ok(Done { what: "enable the KEK".into(), at })
    }
}

/// Rehearses a revocation and the return from it. `open` opens the token: for the service, and for the owner of the key.
///
/// # Errors
/// What kept it from being played. That a promise was broken is in the report.
pub async fn rehearse(open: impl AsyncFn() -> Result<Pkcs11Token, TokenError>) -> Result<Report, drill::Error> {
    // The intervals of the real service are rehearsed the same way, and take as much longer.
    let settings =
        Settings::default().poll_interval(SECOND).store_timeout(SECOND).grace(10 * SECOND).aek_ttl(10 * SECOND);
    let tap = Tap::new(Arc::new(open().await?));
    let engine = Engine::builder(tap.clone(), Arc::new(MemoryStore::new())).settings(settings).build()?;
    let kek = KekName::new("rehearsal")?;
    let made = engine.create_kek(&kek, KekOptions::new(Profile::AesGcm).destroyable()).await?;
    let mut drill = Drill::new(&engine, &tap, &kek);
    for number in 0..TENANTS {
        let id = AccountId::new(format!("tenant-{number}"))?;
        let account = engine.create_account(&id, &kek).await?;
        drill = drill.account(id, Tenant { account, disk: BTreeMap::new() }.serve());
    }
    let mut owner = Owner { operator: Operator::new(open().await?), kek: made.id };
    let report = drill.run(Scenario::Revocation, &mut owner).await;
    // However it ended: a KEK that stays in the token is somebody's to explain.
    owner.operator.destroy(&owner.kek).await?;
    report
}

#[allow(dead_code)] // in the test that takes this file in
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (module, label, pin) = (var("KEYLEASH_MODULE")?, var("KEYLEASH_TOKEN_LABEL")?, var("KEYLEASH_PIN_FILE")?);
    let report = rehearse(async || {
        let (label, pin) = (Selector::Label(label.clone()), PinSource::File(pin.clone().into()));
        let mut settings = Pkcs11Settings::new(&module, label, pin);
        settings.call_timeout = SECOND;
        Pkcs11Token::open(settings).await
    });
    let report = report.await?;
    print!("{report}");
    assert_ne!(report.verdict(), drill::Verdict::Fail);
    Ok(())
}
