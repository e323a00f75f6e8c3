use super::*;
use proptest::prelude::*;

/// The leaves of the reference implementation's tests (certificate-transparency, merkle_tree_test.cc; transparency-dev/merkle).
const LEAVES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

/// And their roots, from 0 leaves to 8.
const ROOTS: [&str; 9] = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

/// Inclusion proofs in trees of these leaves: leaf, size, path.
const INCLUSION: [(u64, u64, &[&str]); 4] = [
    (0, 1, &[]),
    (
        0,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        &[
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
];

/// Consistency proofs: size before, size, path.
const CONSISTENCY: [(u64, u64, &[&str]); 4] = [
    (1, 1, &[]),
    (
        1,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        &[
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        &[
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
];

fn hash(hex: &str) -> Hash {
    hex::decode(hex).unwrap().try_into().unwrap()
}

fn hashes(path: &[&str]) -> Vec<Hash> {
    path.iter().map(|hex| hash(hex)).collect()
}

fn leaves() -> Vec<Hash> {
    LEAVES.iter().map(|leaf| leaf_hash(&hex::decode(leaf).unwrap())).collect()
}

/// MTH of RFC 9162, section 2.1.1, word for word.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

/// PATH of section 2.1.3.1.
fn naive_path(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    let (mut path, beside) = match index.checked_sub(left.len()) {
        Some(index) => (naive_path(index, right), naive_root(left)),
        None => (naive_path(index, left), naive_root(right)),
    };
    path.push(beside);
    path
}

/// SUBPROOF of section 2.1.4.1.
fn naive_consistency(old: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if old == leaves.len() {
        return if whole { Vec::new() } else { vec![naive_root(leaves)] };
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    let (mut path, beside) = match old.checked_sub(left.len()) {
        Some(old) if old > 0 => (naive_consistency(old, right, false), naive_root(left)),
        _ => (naive_consistency(old, left, whole), naive_root(right)),
    };
    path.push(beside);
    path
}

#[test]
fn roots_are_those_of_the_reference_implementation() {
    let mut frontier = Frontier::new();
    for (size, root) in ROOTS.iter().enumerate() {
        assert_eq!(frontier.root(), hash(root), "{size} leaves");
        assert_eq!(frontier.size(), size as u64);
        if let Some(leaf) = leaves().get(size) {
            frontier.append(*leaf);
        }
    }
}

#[test]
fn proofs_are_those_of_the_reference_implementation() {
    let root = |size: u64| hash(ROOTS[size as usize]);
    for (index, size, path) in INCLUSION {
        let (leaf, path) = (leaves()[index as usize], hashes(path));
        assert_eq!(naive_path(index as usize, &leaves()[..size as usize]), path);
        assert!(verify_inclusion(index, size, &leaf, &path, &root(size)), "{index} in {size}");
        assert!(!verify_inclusion(index ^ 1, size, &leaf, &path, &root(size)), "{index} in {size}");
    }
    for (old, size, path) in CONSISTENCY {
        let path = hashes(path);
        assert_eq!(naive_consistency(old as usize, &leaves()[..size as usize], true), path);
        assert!(verify_consistency(old, &root(old), size, &root(size), &path), "{old} in {size}");
        assert!(!verify_consistency(old, &root(old - 1), size, &root(size), &path), "{old} in {size}");
    }
}

#[test]
fn the_empty_tree_is_the_beginning_of_every_one() {
    let empty = Frontier::new().root();
    assert!(verify_consistency(0, &empty, 8, &hash(ROOTS[8]), &[]));
    assert!(!verify_consistency(0, &hash(ROOTS[1]), 8, &hash(ROOTS[8]), &[]));
    assert!(!verify_inclusion(0, 0, &empty, &[], &empty));
}

#[test]
fn numbers_beyond_reason_are_refused_and_nothing_panics() {
    let (some, path) = ([7; 32], vec![[7; 32]; 70]);
    for (left, right) in [(u64::MAX, u64::MAX), (u64::MAX - 1, u64::MAX), (0, u64::MAX), (1, 2), (u64::MAX, 1)] {
        for path in [&path[..], &path[..1], &path[..64], &[]] {
            assert!(!verify_inclusion(left, right, &some, path, &some));
            if left != right {
                assert!(!verify_consistency(left, &some, right, &some, path));
            }
        }
    }
    assert_eq!(Frontier::from_hashes(u64::MAX, vec![some; 64]), None);
    assert_eq!(Frontier::from_hashes(3, vec![some]), None);
}

proptest! {
    #[test]
    fn every_root_and_proof_is_that_of_the_tree_computed_naively(size in 1..200_usize, seed: u64, index: prop::sample::Index) {
        let leaves: Vec<_> = (0..size as u64).map(|n| leaf_hash(&(seed ^ n).to_be_bytes())).collect();
        let (index, old) = (index.index(size), index.index(size) + 1);
        let (mut frontier, mut prover) = (Frontier::new(), Prover::default());
        let (mut wanted, mut mark) = (None, None);
        for (n, leaf) in leaves.iter().enumerate() {
            frontier.append(*leaf);
            if n == index { wanted = Some(prover.append_wanted(*leaf)) } else { prover.append(*leaf) }
            if n + 1 == old { mark = prover.mark() }
        }
        let root = naive_root(&leaves);
        prop_assert_eq!(frontier.root(), root);
        prop_assert_eq!(prover.root(), root);
        let kept = Frontier::from_hashes(frontier.size(), frontier.hashes().to_vec());
        prop_assert_eq!(kept.as_ref(), Some(&frontier));

        let path = prover.path(wanted.unwrap());
        prop_assert_eq!(&path, &naive_path(index, &leaves));
        prop_assert!(verify_inclusion(index as u64, size as u64, &leaves[index], &path, &root));
        let consistency = prover.consistency(&mark.unwrap());
        prop_assert_eq!(&consistency, &naive_consistency(old, &leaves, true));
        let (old, old_root, size) = (old as u64, naive_root(&leaves[..old]), size as u64);
        prop_assert!(verify_consistency(old, &old_root, size, &root, &consistency));

        // Nothing else passes for it.
        for at in 0..path.len() {
            let mut other = path.clone();
            other[at][0] ^= 1;
            prop_assert!(!verify_inclusion(index as u64, size, &leaves[index], &other, &root));
            other.remove(at);
            prop_assert!(!verify_inclusion(index as u64, size, &leaves[index], &other, &root));
        }
        for at in 0..consistency.len() {
            let mut other = consistency.clone();
            other[at][0] ^= 1;
            prop_assert!(!verify_consistency(old, &old_root, size, &root, &other));
            other.remove(at);
            prop_assert!(!verify_consistency(old, &old_root, size, &root, &other));
        }
    }

    #[test]
    fn proofs_go_on_from_a_frontier_that_was_kept(before in 0..70_u64, behind in 1..70_u64, index: prop::sample::Index) {
        let leaves: Vec<_> = (0..before + behind).map(|n| leaf_hash(&n.to_be_bytes())).collect();
        let (cut, index) = (before as usize, index.index(behind as usize));
        let mut frontier = Frontier::new();
        leaves[..cut].iter().for_each(|leaf| frontier.append(*leaf));
        let mut prover = Prover::new(&frontier);
        let mut wanted = None;
        for (n, leaf) in leaves[cut..].iter().enumerate() {
            let this = prover.append_wanted(*leaf);
            if n == index { wanted = Some(this) } else { prover.forget(this) }
        }
        prop_assert_eq!(prover.path(wanted.unwrap()), naive_path(cut + index, &leaves));
        prop_assert_eq!((prover.size(), prover.root()), (before + behind, naive_root(&leaves)));
    }
}
