//! The Merkle tree over the lines of a trail: RFC 9162, section 2.1, with SHA-256.
//!
//! A [`Frontier`] is all that a writer or a reader keeps of the tree: a hash for each bit that is 1 in the number of leaves. Proofs are
//! checked by [`verify_inclusion`] and [`verify_consistency`], and made on the way through the leaves, in memory that grows with what is
//! proved and not with the tree.

mod proof;
mod prover;
#[cfg(test)]
mod tests;

pub use proof::{verify_consistency, verify_inclusion};
pub(crate) use prover::{Mark, Prover, Wanted};

use sha2::{Digest, Sha256};

/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;
/// A hash of the tree.
pub type Hash = [u8; HASH_BYTES];
/// Most leaves of a tree: what every reader of JSON takes as an integer.
pub const LEAVES_MAX: u64 = 1 << 53;

/// The hash of a leaf.
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(leaf).finalize().into()
}

/// The hash of a node with two children.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// What the perfect subtrees of a list of leaves, from the left to the right, fold to: the root. Of none it is SHA-256 of nothing.
fn fold<'h>(mut from_the_right: impl Iterator<Item = &'h Hash>) -> Option<Hash> {
    let last = *from_the_right.next()?;
    Some(from_the_right.fold(last, |right, left| node_hash(left, &right)))
}

/// The right edge of a tree: the hashes of the perfect subtrees that its leaves are made of, the largest first. At most 54 hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    hashes: Vec<Hash>,
}

impl Frontier {
    /// That of the empty tree.
    pub const fn new() -> Self {
        Self { size: 0, hashes: Vec::new() }
    }

    /// That of a tree of `size` leaves, as it was written down. `None` where it can be none: there are not as many hashes as bits are 1 in
    /// `size`, or more than [`LEAVES_MAX`] leaves.
    pub fn from_hashes(size: u64, hashes: Vec<Hash>) -> Option<Self> {
        let fits = size <= LEAVES_MAX && usize::try_from(size.count_ones()) == Ok(hashes.len());
        fits.then_some(Self { size, hashes })
    }

    /// How many leaves the tree has.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The hashes, that of the largest subtree first.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// Takes the next leaf, by its [`leaf_hash`].
    pub fn append(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.hashes.pop() else { break };
            hash = node_hash(&left, &hash);
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        fold(self.hashes.iter().rev()).unwrap_or_else(|| Sha256::digest([]).into())
    }
}
