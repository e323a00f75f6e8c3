//! Proofs, made on one way through the leaves: what is beside the way from a wanted leaf to the root is noted as it comes to be.

use super::{Frontier, Hash, fold, node_hash};
use std::collections::BTreeMap;

/// A leaf, or the right edge of an earlier tree, of which a proof is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted(u64);

/// An earlier tree, of which it is to be proved that later ones begin with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    size: u64,
    /// The smallest of its perfect subtrees: the rightmost.
    seed: Hash,
    wanted: Wanted,
}

impl Mark {
    /// What its proof is of.
    pub(crate) const fn wanted(&self) -> Wanted {
        self.wanted
    }
}

/// A perfect subtree at the right edge, and who is wanted below it.
#[derive(Debug)]
struct Node {
    hash: Hash,
    wanted: Vec<Wanted>,
}

/// A frontier that notes paths.
#[derive(Debug, Default)]
pub(crate) struct Prover {
    size: u64,
    edge: Vec<Node>,
    next: u64,
    paths: BTreeMap<Wanted, Path>,
}

/// What is beside the way up from a leaf, as far as its perfect subtree goes by now.
#[derive(Debug)]
struct Path {
    leaf: u64,
    beside: Vec<Hash>,
}

impl Prover {
    /// Goes on from there: what is in it already cannot be proved.
    pub(crate) fn new(frontier: &Frontier) -> Self {
        let edge = frontier.hashes().iter().map(|hash| Node { hash: *hash, wanted: Vec::new() }).collect();
        Self { size: frontier.size(), edge, ..Self::default() }
    }

    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn root(&self) -> Hash {
        fold(self.edge.iter().rev().map(|node| &node.hash)).unwrap_or_else(|| Frontier::new().root())
    }

    /// The next leaf.
    pub(crate) fn append(&mut self, leaf: Hash) {
        self.take(Node { hash: leaf, wanted: Vec::new() });
    }

    /// The next leaf, of which a proof is wanted.
    pub(crate) fn append_wanted(&mut self, leaf: Hash) -> Wanted {
        let wanted = self.want(self.size);
        self.take(Node { hash: leaf, wanted: vec![wanted] });
        wanted
    }

    /// The tree as it is now, so that its consistency with a later one can be proved; `None` of the empty one.
    pub(crate) fn mark(&mut self) -> Option<Mark> {
        let wanted = self.want(self.size.checked_sub(1)?);
        let node = self.edge.last_mut()?;
        node.wanted.push(wanted);
        Some(Mark { size: self.size, seed: node.hash, wanted })
    }

    /// No proof of it is wanted any more.
    pub(crate) fn forget(&mut self, wanted: Wanted) {
        self.paths.remove(&wanted);
    }

    /// The inclusion proof in the tree as it is now.
    pub(crate) fn path(&self, wanted: Wanted) -> Vec<Hash> {
        let Some(path) = self.paths.get(&wanted) else { return Vec::new() };
        let at = self.subtree_of(path.leaf);
        let behind = fold(self.edge.iter().skip(at + 1).rev().map(|node| &node.hash));
        let before = self.edge.iter().take(at).rev().map(|node| node.hash);
        path.beside.iter().copied().chain(behind).chain(before).collect()
    }

    /// The proof that the tree as it is now begins with that one.
    pub(crate) fn consistency(&self, mark: &Mark) -> Vec<Hash> {
        if mark.size == self.size {
            return Vec::new();
        }
        let seed = (!mark.size.is_power_of_two()).then_some(mark.seed);
        seed.into_iter().chain(self.path(mark.wanted)).collect()
    }

    fn want(&mut self, leaf: u64) -> Wanted {
        let wanted = Wanted(self.next);
        self.next += 1;
        self.paths.insert(wanted, Path { leaf, beside: Vec::new() });
        wanted
    }

    /// Which of the perfect subtrees at the edge has this leaf.
    fn subtree_of(&self, leaf: u64) -> usize {
        let sizes = (0..u64::BITS).rev().map(|bit| self.size & 1 << bit).filter(|size| *size > 0);
        let ends = sizes.scan(0, |end, size| {
            *end += size;
            Some(*end)
        });
        ends.take_while(|end| *end <= leaf).count()
    }

    fn take(&mut self, mut node: Node) {
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.edge.pop() else { break };
            node = self.join(left, node);
        }
        self.edge.push(node);
        self.size += 1;
    }

    fn join(&mut self, left: Node, right: Node) -> Node {
        let hash = node_hash(&left.hash, &right.hash);
        let beside = |nodes: Vec<Wanted>, beside: Hash| nodes.into_iter().map(move |wanted| (wanted, beside));
        let mut wanted = Vec::new();
        for (whose, hash) in beside(left.wanted, right.hash).chain(beside(right.wanted, left.hash)) {
            // Who was forgotten is left behind here.
            if let Some(path) = self.paths.get_mut(&whose) {
                path.beside.push(hash);
                wanted.push(whose);
            }
        }
        Node { hash, wanted }
    }
}
