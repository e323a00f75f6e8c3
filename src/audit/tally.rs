//! How many accounts have lines in a group of lines, and which: written into the trail behind every group, so that who is given the lines of
//! one account sees that none of them was left out, and learns nothing of other accounts.
//!
//! The bytes are in [`manual::format`](mod@crate::manual::format), "Tallies". An account's leaf hashes over its own lines, which nobody
//! guesses, because of their correlation ids. So the hashes beside the way to an account tell nobody whose they are.

use super::{
    base64,
    line::{Line, TALLY, Time},
    tree::{Frontier, Hash},
};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Most lines of a group: what a reader keeps of it, and what a start reads again.
pub const GROUP_LINES_MAX: u64 = 65_536;
/// Bytes of a salt.
const SALT_BYTES: usize = 16;
/// How deep the tree of accounts is: bits of a position.
const DEPTH: u32 = u32::BITS;
/// What the root is where there are no accounts.
const NOTHING: Hash = [0; 32];

type Salt = [u8; SALT_BYTES];

/// The lines since the last tally, as far as a tally tells of them.
#[derive(Debug)]
pub struct Group {
    first: u64,
    lines: u64,
    since: Option<Time>,
    accounts: HashMap<Box<str>, Sha256>,
}

impl Group {
    /// The group that begins with line `first`, behind a tally of the time `since`, or none.
    pub fn new(first: u64, since: Option<Time>) -> Self {
        Self { first, lines: 0, since, accounts: HashMap::new() }
    }

    /// Number of its first line.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The `time` of the tally in front of it.
    pub const fn since(&self) -> Option<Time> {
        self.since
    }

    /// How many lines it has.
    pub const fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether a tally has to come before the next line.
    pub const fn is_full(&self) -> bool {
        self.lines >= GROUP_LINES_MAX
    }

    /// Takes the next line, by its [leaf hash](super::tree::leaf_hash).
    pub fn add(&mut self, account: Option<&str>, leaf: &Hash) {
        self.lines += 1;
        let Some(account) = account else { return };
        match self.accounts.get_mut(account) {
            Some(entry) => entry.update(leaf),
            None => {
                self.accounts.insert(account.into(), Sha256::new_with_prefix(leaf));
            }
        }
    }

    /// The accounts under a salt; `None` where two of them have the same position.
    pub(super) fn accounts(&self, salt: &Salt) -> Option<Accounts> {
        let entries = self.accounts.iter();
        let entries = entries.map(|(account, entry)| Entry::new(salt, account, entry.clone().finalize().into()));
        let mut entries: Vec<_> = entries.collect();
        entries.sort_unstable_by_key(|entry| entry.position);
        let is_crowded = entries.windows(2).any(|pair| matches!(pair, [one, next] if one.position == next.position));
        (!is_crowded).then_some(Accounts(entries))
    }

    /// Ends the group: the line that stands behind it, as number `frontier.size()`, under a new random salt.
    pub fn tally(&self, time: Time, frontier: &Frontier) -> Line {
        let (salt, accounts) = loop {
            let salt: Salt = rand::random();
            if let Some(accounts) = self.accounts(&salt) {
                break (salt, accounts);
            }
        };
        Line {
            first: Some(self.first),
            since: self.since,
            accounts: Some(accounts.len()),
            salt: Some(base64::encode(&salt)),
            root: Some(base64::encode(&accounts.root())),
            frontier: Some(frontier.hashes().iter().map(|hash| base64::encode(hash)).collect()),
            ..Line::own(frontier.size(), time, TALLY)
        }
    }
}

/// A tally as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) seq: u64,
    pub(super) time: Time,
    pub(super) first: u64,
    pub(super) since: Option<Time>,
    pub(super) salt: Salt,
    accounts: u64,
    root: Hash,
    /// All lines in front of it.
    pub(super) frontier: Frontier,
}

impl Tally {
    /// `None` where a line is none.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let Line { seq, time, operation, first, since, accounts, salt, root, frontier, .. } = Line::parse(line).ok()?;
        let hashes: Option<Vec<_>> = frontier?.iter().map(|hash| base64::decode_hash(hash)).collect();
        (operation == TALLY).then_some(Self {
            seq,
            time,
            first: first?,
            since,
            salt: base64::decode_array(&salt?)?,
            accounts: accounts?,
            root: base64::decode_hash(&root?)?,
            frontier: Frontier::from_hashes(seq, hashes?)?,
        })
    }

    /// Whether it tells of this group.
    pub(super) fn tells(&self, group: &Group) -> bool {
        self.first == group.first
            && self.since == group.since
            && group
                .accounts(&self.salt)
                .is_some_and(|accounts| accounts.len() == self.accounts && accounts.root() == self.root)
    }

    /// Whether these lines, by their leaf hashes, are all that it tells of this account.
    pub(super) fn tells_of(&self, account: &str, lines: &[Hash], beside: &Beside) -> bool {
        let entry = lines.iter().fold(Sha256::new(), |entry, leaf| entry.chain_update(leaf)).finalize().into();
        let own = Entry::new(&self.salt, account, entry);
        let leaf = match &beside.other {
            _ if !lines.is_empty() => Some(own.leaf()),
            // It would be of this account if its tag were the same.
            Some((tag, entry)) if *tag != own.tag && position(tag) == own.position => {
                Some(Entry { position: own.position, tag: *tag, entry: *entry }.leaf())
            }
            Some(_) => return false,
            None => None,
        };
        beside.hashes.len() <= DEPTH as usize && beside.root(own.position, leaf) == self.root
    }
}

/// An account in the tree of accounts.
#[derive(Debug, Clone, Copy)]
struct Entry {
    position: u32,
    tag: Hash,
    entry: Hash,
}

fn position(tag: &Hash) -> u32 {
    tag.first_chunk().map_or(0, |bits| u32::from_be_bytes(*bits))
}

impl Entry {
    fn new(salt: &Salt, account: &str, entry: Hash) -> Self {
        let tag =
            Sha256::new_with_prefix("keyleash.audit.tally.v1").chain_update(salt).chain_update(account).finalize();
        let tag = tag.into();
        Self { position: position(&tag), tag, entry }
    }

    fn leaf(&self) -> Hash {
        Sha256::new_with_prefix([0]).chain_update(self.tag).chain_update(self.entry).finalize().into()
    }
}

/// Whether the way to `position` turns right below `depth`.
const fn is_right(position: u32, depth: u32) -> bool {
    position >> (DEPTH - 1 - depth) & 1 == 1
}

/// The node above what is there.
fn join(left: Option<Hash>, right: Option<Hash>) -> Option<Hash> {
    let node = match (left, right) {
        (None, None) => return None,
        (Some(left), Some(right)) => Sha256::new_with_prefix([1]).chain_update(left).chain_update(right),
        (Some(left), None) => Sha256::new_with_prefix([2]).chain_update(left),
        (None, Some(right)) => Sha256::new_with_prefix([3]).chain_update(right),
    };
    Some(node.finalize().into())
}

/// A node at `depth` and all above it up to `to`, of what is `beside` the way at each depth below `to`, the deepest last.
fn climb(
    position: u32,
    from: Option<Hash>,
    beside: impl DoubleEndedIterator<Item = (u32, Option<Hash>)>,
) -> Option<Hash> {
    beside.rev().fold(
        from,
        |node, (depth, beside)| {
            if is_right(position, depth) { join(beside, node) } else { join(node, beside) }
        },
    )
}

/// The tree of the accounts of a group, by position, no two at the same.
#[derive(Debug)]
pub(super) struct Accounts(Vec<Entry>);

impl Accounts {
    fn node(entries: &[Entry], depth: u32) -> Option<Hash> {
        match entries {
            [] => None,
            // Alone from here down to its leaf.
            [entry] => climb(entry.position, Some(entry.leaf()), (depth..DEPTH).map(|depth| (depth, None))),
            _ => {
                let (left, right) = Self::halves(entries, depth);
                join(Self::node(left, depth + 1), Self::node(right, depth + 1))
            }
        }
    }

    fn halves(entries: &[Entry], depth: u32) -> (&[Entry], &[Entry]) {
        entries.split_at(entries.partition_point(|entry| !is_right(entry.position, depth)))
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn root(&self) -> Hash {
        Self::node(&self.0, 0).unwrap_or(NOTHING)
    }

    /// What shows who is at the position of an account, or that nobody is.
    pub(super) fn beside(&self, salt: &Salt, account: &str) -> Beside {
        let own = Entry::new(salt, account, NOTHING);
        let (mut entries, mut hashes) = (&self.0[..], Vec::new());
        for depth in 0..DEPTH {
            let (left, right) = Self::halves(entries, depth);
            let (way, beside) = if is_right(own.position, depth) { (right, left) } else { (left, right) };
            hashes.push(Self::node(beside, depth + 1));
            entries = way;
        }
        hashes.truncate(hashes.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
        let other = entries.first().filter(|there| there.tag != own.tag).map(|there| (there.tag, there.entry));
        Beside { hashes, other }
    }
}

/// What stands beside the way down to an account's position.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Beside {
    /// From depth 1 on; none behind the last one that is there.
    pub(super) hashes: Vec<Option<Hash>>,
    /// Tag and entry of another account at the same position.
    pub(super) other: Option<(Hash, Hash)>,
}

impl Beside {
    fn root(&self, position: u32, leaf: Option<Hash>) -> Hash {
        let beside = |depth: u32| self.hashes.get(depth as usize).copied().flatten();
        climb(position, leaf, (0..DEPTH).map(|depth| (depth, beside(depth)))).unwrap_or(NOTHING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::tree::leaf_hash;
    use proptest::prelude::*;

    const TIME: Time = Time::from_unix_ms(1_764_150_000_000);

    fn group(lines: &[Option<String>]) -> Group {
        let mut group = Group::new(3, Some(TIME));
        for (n, account) in lines.iter().enumerate() {
            group.add(account.as_deref(), &leaf_hash(&n.to_be_bytes()));
        }
        group
    }

    fn own(lines: &[Option<String>], account: &str) -> Vec<Hash> {
        let own = lines.iter().enumerate().filter(|(_, line)| line.as_deref() == Some(account));
        own.map(|(n, _)| leaf_hash(&n.to_be_bytes())).collect()
    }

    /// As the format says it, node by node.
    fn naive_node(entries: &[Entry], depth: u32) -> Option<Hash> {
        if depth == DEPTH {
            return entries.first().map(Entry::leaf);
        }
        let (right, left): (Vec<Entry>, Vec<Entry>) = entries.iter().partition(|entry| is_right(entry.position, depth));
        if entries.is_empty() { None } else { join(naive_node(&left, depth + 1), naive_node(&right, depth + 1)) }
    }

    fn line(group: &Group) -> Tally {
        let mut frontier = Frontier::new();
        (0..group.first + group.lines).for_each(|n| frontier.append(leaf_hash(&n.to_be_bytes())));
        let line = group.tally(TIME, &frontier);
        Tally::parse(&line.encode().unwrap()).unwrap_or_else(|| panic!("{line:?}"))
    }

    #[test]
    fn a_line_more_or_less_or_of_another_account_is_another_group() {
        let lines: Vec<_> = [Some("a"), None, Some("b"), Some("a")].map(|line| line.map(str::to_owned)).into();
        let tally = line(&group(&lines));
        assert!(tally.tells(&group(&lines)));
        let mut swapped = lines.clone();
        swapped.swap(0, 2);
        for other in [&lines[..3], &lines[1..], &swapped, &[], &[lines.clone(), vec![Some("c".into())]].concat()] {
            assert!(!tally.tells(&group(other)), "{other:?}");
        }
        assert!(!tally.tells(&Group::new(3, None)));
    }

    #[test]
    fn of_no_account_nothing_can_be_shown() {
        let none = group(&[None, None]);
        let tally = line(&none);
        assert!(tally.tells(&none));
        let beside = none.accounts(&tally.salt).unwrap().beside(&tally.salt, "a");
        assert!(tally.tells_of("a", &[], &beside));
        assert!(!tally.tells_of("a", &[[1; 32]], &beside));
    }

    #[test]
    fn another_account_at_the_same_position_is_shown_and_cannot_be_passed_off_as_nobody() {
        // By the salt of this test "b" stands where "a" would: the tree is made by hand.
        let salt = [7; SALT_BYTES];
        let (a, b) = (Entry::new(&salt, "a", [1; 32]), Entry::new(&salt, "b", [2; 32]));
        let b = Entry { tag: [&a.tag[..4], &b.tag[4..]].concat().try_into().unwrap(), position: a.position, ..b };
        let accounts = Accounts(vec![b]);
        let tally = Tally { salt, accounts: 1, root: accounts.root(), ..line(&group(&[])) };
        let beside = accounts.beside(&salt, "a");
        assert_eq!(beside.other, Some((b.tag, b.entry)));
        assert!(tally.tells_of("a", &[], &beside));
        assert!(!tally.tells_of("a", &[], &Beside { other: None, ..beside.clone() }));
        assert!(!tally.tells_of("a", &[], &Beside { other: Some((a.tag, b.entry)), ..beside.clone() }));
        // And an account of which there are lines is never passed off as another.
        let accounts = Accounts(vec![a]);
        let tally = Tally { root: accounts.root(), ..tally };
        let beside = Beside { other: Some((a.tag, a.entry)), ..accounts.beside(&salt, "a") };
        assert!(!tally.tells_of("a", &[], &beside));
    }

    proptest! {
        #[test]
        fn each_account_is_shown_whole_or_not_there_and_no_other_way(
            lines in prop::collection::vec(prop::option::of("[a-f]{1,2}"), 0..60),
            account in "[a-f]{1,2}",
        ) {
            let group = group(&lines);
            let tally = line(&group);
            prop_assert!(tally.tells(&group));
            let accounts = group.accounts(&tally.salt).unwrap();
            prop_assert_eq!(Some(accounts.root()), naive_node(&accounts.0, 0).or(Some(NOTHING)));
            let (own, beside) = (own(&lines, &account), accounts.beside(&tally.salt, &account));
            prop_assert!(tally.tells_of(&account, &own, &beside));
            prop_assert!(!tally.tells_of(&account, &[&own[..], &[[9; 32]]].concat(), &beside));
            for left_out in 0..own.len() {
                let mut fewer = own.clone();
                fewer.remove(left_out);
                prop_assert!(!tally.tells_of(&account, &fewer, &beside));
            }
            for at in 0..beside.hashes.len() {
                let mut other = beside.clone();
                other.hashes[at] = other.hashes[at].xor(Some([5; 32]));
                prop_assert!(!tally.tells_of(&account, &own, &other));
            }
        }
    }
}
