//! Whether a proof holds: RFC 9162, sections 2.1.3.2 and 2.1.4.2.

use super::{Frontier, Hash, node_hash};

/// A leaf and the tree's last leaf, by number, on the way up: one level a step.
struct Way {
    leaf: u64,
    last: u64,
}

impl Way {
    const fn up(&mut self) {
        self.leaf >>= 1;
        self.last >>= 1;
    }

    /// Whether what is beside the way stands on the left. Then the levels are passed at which nothing is beside it.
    const fn left(&mut self) -> bool {
        if self.leaf & 1 == 0 && self.leaf != self.last {
            return false;
        }
        while self.leaf & 1 == 0 && self.leaf != 0 {
            self.up();
        }
        true
    }
}

/// Whether the leaf with this hash is number `index`, from 0, of the tree of `size` leaves with this root.
pub fn verify_inclusion(index: u64, size: u64, leaf: &Hash, path: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut way, mut hash) = (Way { leaf: index, last: size - 1 }, *leaf);
    for beside in path {
        if way.last == 0 {
            return false;
        }
        hash = if way.left() { node_hash(beside, &hash) } else { node_hash(&hash, beside) };
        way.up();
    }
    way.last == 0 && hash == *root
}

/// Whether the tree of `old_size` leaves with `old_root` is the beginning of that of `size` leaves with `root`.
pub fn verify_consistency(old_size: u64, old_root: &Hash, size: u64, root: &Hash, path: &[Hash]) -> bool {
    if old_size >= size {
        return old_size == size && path.is_empty() && old_root == root;
    }
    if old_size == 0 {
        return path.is_empty() && *old_root == Frontier::new().root();
    }
    // The largest subtree that both share at the old one's right edge. Where it is the whole old tree it is not in the path.
    let (seed, path) = match path.split_first() {
        _ if old_size.is_power_of_two() => (old_root, path),
        Some(split) => split,
        None => return false,
    };
    let mut way = Way { leaf: old_size - 1, last: size - 1 };
    while way.leaf & 1 == 1 {
        way.up();
    }
    let (mut old, mut new) = (*seed, *seed);
    for beside in path {
        if way.last == 0 {
            return false;
        }
        if way.left() {
            old = node_hash(beside, &old);
            new = node_hash(beside, &new);
        } else {
            new = node_hash(&new, beside);
        }
        way.up();
    }
    way.last == 0 && old == *old_root && new == *root
}
