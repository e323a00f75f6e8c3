//! What the load does: seals and opens blocks of an account and verifies every byte, as a service would, which awaits the unwrap of a
//! cold account.

use keyleash::{
    Account, Engine, Error,
    block::BlockHeader,
    drill::Hand,
    name::{AccountId, SecretId, SecretName},
    secrets::{SecretValue, SetOptions},
};
use tokio::runtime::Handle;

/// The block that is sealed anew each time.
const BLOCK_BYTES: usize = 4096;
/// The block that was sealed before everything began, and must open ever after.
const KEPT_BYTES: usize = 256;
const KEPT_ADDRESS: u64 = 1;
const NEW_ADDRESS: u64 = 2;
/// The value of a secret.
const SECRET_BYTES: usize = 40;
/// A secret is read in one turn of so many: unlike a block it costs a read of the store.
const SECRET_EVERY: u64 = 16;

/// One account of the load.
pub(crate) struct Customer {
    pub(crate) id: AccountId,
    /// `None` until it could be opened: a process that starts while it is refused goes on trying.
    pub(crate) account: Option<Account>,
    /// The block that was sealed at the beginning.
    pub(crate) kept: Vec<u8>,
    /// The secret that was set at the beginning, where one was.
    pub(crate) secret: Option<SecretId>,
}

impl Customer {
    /// Seals the block that must open ever after.
    pub(crate) fn new(account: Account) -> Result<Self, Error> {
        let id = account.id().clone();
        let kept = account.seal_to_vec(KEPT_ADDRESS, &plaintext(id.as_str(), KEPT_BYTES, 0))?;
        Ok(Self { id, account: Some(account), kept, secret: None })
    }

    /// Sets a secret, which must be given out ever after.
    pub(crate) async fn set_secret(&mut self, engine: &Engine) -> Result<(), Error> {
        let id = SecretId::new(self.id.clone(), SecretName::new("drill")?);
        let value = SecretValue::new(plaintext(self.id.as_str(), SECRET_BYTES, 0))?;
        engine.secrets().set(&id, value, SetOptions::default()).await?;
        self.secret = Some(id);
        Ok(())
    }

    /// Serves it again and again, on a thread of the drill.
    pub(crate) fn serve(mut self, engine: &Engine) -> impl FnMut(&mut Hand) + Send + 'static {
        let (engine, runtime, mut round) = (engine.clone(), Handle::current(), 0);
        move |hand| {
            if self.account.is_none() {
                self.account = hand.operation(|| runtime.block_on(engine.account(&self.id)));
            }
            let Some(account) = &self.account else { return };
            round += 1;
            Turn { hand, account, runtime: &runtime }.play(&self.kept, round);
            if let Some(id) = self.secret.as_ref().filter(|_| round % SECRET_EVERY == 0)
                && let Some(given) = hand.operation(|| runtime.block_on(engine.secrets().get(id, None)))
            {
                hand.verify(given.value.as_bytes(), &plaintext(self.id.as_str(), SECRET_BYTES, 0));
            }
        }
    }
}

struct Turn<'a> {
    hand: &'a mut Hand,
    account: &'a Account,
    runtime: &'a Handle,
}

impl Turn<'_> {
    /// A new block there and back, and the kept one back.
    fn play(mut self, kept: &[u8], round: u64) {
        let account = self.account;
        let plain = plaintext(account.id().as_str(), BLOCK_BYTES, round);
        let mut buf = plain.clone();
        if let Some(header) = self.operation(None, || account.seal_in_place(NEW_ADDRESS, &mut buf)) {
            self.hand.sealed(&header);
            if self.operation(Some(header), || account.open_in_place(NEW_ADDRESS, &header, &mut buf)).is_some() {
                self.hand.verify(&buf, &plain);
            }
        }
        let header = BlockHeader::split(kept).ok().map(|(header, _)| header);
        if let Some(opened) = self.operation(header, || account.open_to_vec(KEPT_ADDRESS, kept)) {
            self.hand.verify(&opened, &plaintext(account.id().as_str(), KEPT_BYTES, 0));
        }
    }

    /// One operation, tried again after an unwrap where the account is cold: for an open, of the AEK that its header names.
    fn operation<T>(&mut self, opens: Option<BlockHeader>, mut op: impl FnMut() -> Result<T, Error>) -> Option<T> {
        let mut warmed = false;
        let done = self.hand.operation(|| {
            let first = op();
            if !matches!(first, Err(Error::Cold { .. })) {
                return first;
            }
            warmed = true;
            // What it failed with, the second try says too.
            let _ = self.runtime.block_on(async {
                match &opens {
                    None => self.account.warm().await,
                    Some(header) => self.account.warm_for(header).await,
                }
            });
            op()
        });
        if warmed {
            self.hand.warmed();
        }
        done
    }
}

/// Bytes that differ with account and round, so that a block that was mixed up with another is found out.
fn plaintext(account: &str, len: usize, round: u64) -> Vec<u8> {
    // FNV-1a, then a multiplicative generator: quick, and no secret.
    let seed = account
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut state = (seed ^ round) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintexts_differ_with_account_and_round() {
        let one = plaintext("a", 100, 1);
        assert_eq!(one.len(), 100);
        assert_eq!(one, plaintext("a", 100, 1));
        assert_ne!(one, plaintext("b", 100, 1));
        assert_ne!(one, plaintext("a", 100, 3));
    }
}
