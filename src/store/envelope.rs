//! The bytes around a record in a store that keeps bytes: its revision, a digest that tells damage, and where it is indexed.
//!
//! redb trusts the pages of a file that was closed cleanly, etcd and PostgreSQL those of their own. The digest is no MAC: it tells bit rot, not forgery, which
//! the check value of each wrapped AEK does.

use crate::{
    error::{Corrupt, Result},
    name::{KekName, KekVersion},
    store::Key,
};
use sha2::{Digest, Sha256};

const DIGEST_BYTES: usize = 16;

/// A stored value, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    pub(crate) revision: u64,
    pub(crate) wrapped_by: Vec<KekVersion>,
    pub(crate) record: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// `u64 revision ‖ digest ‖ u16 count ‖ count × (u8 len ‖ KEK name ‖ u32 KEK version) ‖ record`, big-endian.
    pub(crate) fn encode(&self, key: &Key) -> Vec<u8> {
        // At most WRAPPED_BY_MAX of them, and names have at most 64 bytes: both lengths fit.
        let mut tail = (self.wrapped_by.len() as u16).to_be_bytes().to_vec();
        for kek in &self.wrapped_by {
            tail.push(kek.name.as_str().len() as u8);
            tail.extend(kek.name.as_str().as_bytes());
            tail.extend(kek.version.to_be_bytes());
        }
        tail.extend(self.record);
        [self.revision.to_be_bytes().as_slice(), &digest(key, self.revision, &tail), &tail].concat()
    }

    /// Takes the bytes that were found under `key` apart; `what` is said of those that were changed.
    pub(crate) fn decode(key: &Key, bytes: &'a [u8], what: &str) -> Result<Self> {
        let decoded = Self::split(key, bytes);
        decoded.ok_or_else(|| Corrupt::Record { record: key.to_string(), what: what.into() }.into())
    }

    fn split(key: &Key, bytes: &'a [u8]) -> Option<Self> {
        let (revision, bytes) = bytes.split_first_chunk()?;
        let revision = u64::from_be_bytes(*revision);
        let (found, tail) = bytes.split_first_chunk::<DIGEST_BYTES>()?;
        if *found != digest(key, revision, tail) {
            return None;
        }
        let (count, mut rest) = tail.split_first_chunk()?;
        let mut wrapped_by = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (len, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked((*len).into())?;
            let (version, after) = after.split_first_chunk()?;
            let name = KekName::new(std::str::from_utf8(name).ok()?).ok()?;
            wrapped_by.push(KekVersion::new(name, u32::from_be_bytes(*version)));
            rest = after;
        }
        Some(Self { revision, wrapped_by, record: rest })
    }
}

/// The key is in it, so that a value that a damaged page shows under another key is refused too.
fn digest(key: &Key, revision: u64, tail: &[u8]) -> [u8; DIGEST_BYTES] {
    let key = key.to_bytes();
    let mut sha = Sha256::new();
    sha.update((key.len() as u16).to_be_bytes()); // at most 1 + 255 bytes
    sha.update(&key);
    sha.update(revision.to_be_bytes());
    sha.update(tail);
    let whole: [u8; 32] = sha.finalize().into();
    let mut digest = [0; DIGEST_BYTES];
    digest.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
    digest
}

/// What the index's keys for a KEK version begin with: `KEK name ‖ 00 ‖ u32 KEK version`. Names have no zero byte, so
/// that no prefix is the beginning of another.
pub(crate) fn index_prefix(kek: &KekVersion) -> Vec<u8> {
    [kek.name.as_str().as_bytes(), &[0], &kek.version.to_be_bytes()].concat()
}

/// The index's key that says that `key` has an AEK wrapped by `kek`.
pub(crate) fn index_key(kek: &KekVersion, key: &Key) -> Vec<u8> {
    [index_prefix(kek), key.to_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::AccountId;

    #[test]
    fn every_changed_bit_and_every_cut_of_a_stored_value_is_refused() {
        let key = Key::Account(AccountId::new("alice").unwrap());
        let keks = ["a", "b-2"].map(|name| KekVersion::new(KekName::new(name).unwrap(), 7));
        let envelope = Envelope { revision: 9, wrapped_by: keks.to_vec(), record: b"record" };
        let bytes = envelope.encode(&key);
        assert_eq!(Envelope::decode(&key, &bytes, "").unwrap(), envelope);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Envelope::decode(&key, &changed, "").is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Envelope::decode(&key, &bytes[..len], "").is_err(), "cut at {len}");
        }
        let other = Key::Account(AccountId::new("bob").unwrap());
        assert!(Envelope::decode(&other, &bytes, "").unwrap_err().to_string().contains("account bob"));
    }
}
