//! Policies against a model that looks at every grant, one after the other.

use super::*;
use crate::name::{GrantId, RoleName};
use proptest::{collection::vec, prelude::*, sample::select};
use std::{collections::BTreeSet, sync::Arc};

/// Few, and beginnings of one another, so that they meet.
const NAMES: [&str; 7] = ["a", "aa", "ab", "aab", "b", "ba", "c"];
const PATTERNS: [&str; 9] = ["*", "a*", "aa*", "ab*", "b*", "a", "aa", "ba", "c"];
const ROLES: [&str; 6] = ["reader", "contributor", "operator", "r1", "r2", "r3"];

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}

fn role_name(name: &str) -> RoleName {
    RoleName::new(name).unwrap()
}

fn caller(id: &str) -> CallerId {
    CallerId::new(id).unwrap()
}

/// As somebody would write it who has never seen the code: strings, and a walk over everything.
mod model {
    use super::*;

    type Part = (BTreeSet<&'static str>, Vec<String>, Vec<String>);

    fn covers(pattern: &str, name: Option<&str>) -> bool {
        match (pattern, name) {
            ("*", _) => true,
            (_, None) => false,
            (pattern, Some(name)) if pattern.ends_with('*') => name.starts_with(pattern.trim_end_matches('*')),
            (pattern, Some(name)) => pattern == name,
        }
    }

    fn names(operations: Operations) -> BTreeSet<&'static str> {
        operations.iter().map(Operation::name).collect()
    }

    /// Each part of a role: its operations, and all the patterns that a KEK, and an account, must be covered by.
    pub(super) fn role(roles: &[Role], name: &str) -> Vec<Part> {
        let all = ["get", "wrap", "unwrap", "seal", "open", "create", "rotate", "rewrap", "move", "delete", "undelete"];
        let all: BTreeSet<_> = all
            .into_iter()
            .chain(["purge", "secret.get", "secret.set", "audit.read", "grant.write", "drill"])
            .collect();
        let without = |not: &[&str]| all.iter().copied().filter(|name| !not.contains(name)).collect::<BTreeSet<_>>();
        match name {
            "reader" => return vec![(["get", "unwrap", "open"].into(), vec![], vec![])],
            "contributor" => {
                return vec![(without(&["secret.get", "delete", "purge", "drill", "grant.write"]), vec![], vec![])];
            }
            "operator" => {
                return vec![(without(&["unwrap", "seal", "open", "secret.get", "secret.set"]), vec![], vec![])];
            }
            _ => {}
        }
        let own = roles.iter().find(|role| role.name.as_str() == name).unwrap();
        let mut parts = vec![(names(own.operations), vec![], vec![])];
        for included in &own.includes {
            parts.extend(role(roles, included.as_str()));
        }
        for (operations, keks, accounts) in &mut parts {
            operations.retain(|operation| !names(own.not).contains(operation));
            keks.push(own.keks.to_string());
            accounts.push(own.accounts.to_string());
        }
        parts
    }

    /// Callers, KEKs and accounts of a grant, and its parts.
    pub(super) type Written = ([String; 3], Vec<Part>);

    pub(super) fn written(roles: &[Role], grants: &[Grant]) -> Vec<Written> {
        let parts = |grant: &Grant| match &grant.actions {
            Actions::Operations(operations) => vec![(names(*operations), vec![], vec![])],
            Actions::Role(name) => role(roles, name.as_str()),
        };
        let patterns = |grant: &Grant| [&grant.callers, &grant.keks, &grant.accounts].map(Pattern::to_string);
        grants.iter().map(|grant| (patterns(grant), parts(grant))).collect()
    }

    pub(super) fn may(
        grants: &[Written],
        (caller, operation): (&str, &str),
        (kek, account): (Option<&str>, Option<&str>),
    ) -> bool {
        grants.iter().any(|([callers, keks, accounts], parts)| {
            covers(callers, Some(caller))
                && covers(keks, kek)
                && covers(accounts, account)
                && parts.iter().any(|(operations, keks, accounts)| {
                    operations.contains(operation)
                        && keks.iter().all(|pattern| covers(pattern, kek))
                        && accounts.iter().all(|pattern| covers(pattern, account))
                })
        })
    }
}

fn operations() -> impl Strategy<Value = Operations> {
    vec(select(Operation::ALL.to_vec()), 1..5).prop_map(|some| some.into_iter().collect())
}

fn patterns() -> impl Strategy<Value = Pattern> {
    prop_oneof![2 => Just("*"), 3 => select(PATTERNS.to_vec())].prop_map(pattern)
}

/// `r1` includes what is built in alone, `r2` `r1` too, and `r3` both: what else there can be is refused, and tried elsewhere.
fn roles() -> impl Strategy<Value = Vec<Role>> {
    let role = |n: usize| {
        let includes = vec(select(ROLES[..2 + n].to_vec()), 0..3);
        (operations(), includes, vec(any::<bool>(), Operation::ALL.len()), patterns(), patterns()).prop_map(
            move |(operations, mut includes, not, keks, accounts)| {
                includes.sort_unstable();
                includes.dedup();
                let not: Operations =
                    Operation::ALL.into_iter().zip(not).filter(|(_, is)| *is).map(|(one, _)| one).collect();
                let includes = includes.into_iter().map(role_name).collect();
                Role {
                    name: role_name(&format!("r{n}")),
                    operations,
                    includes,
                    not: not.without(operations),
                    keks,
                    accounts,
                }
            },
        )
    };
    (role(1), role(2), role(3)).prop_map(|(r1, r2, r3)| {
        let mut roles = vec![r1, r2, r3];
        // `not` takes away what is there; the rest of it is refused.
        for n in 0..roles.len() {
            let mut there = BTreeSet::new();
            for included in roles[n].includes.clone() {
                there
                    .extend(model::role(&roles, included.as_str()).into_iter().flat_map(|(operations, ..)| operations));
            }
            let is_there = |operation: &Operation| there.contains(operation.name());
            roles[n].not = roles[n].not.iter().filter(is_there).collect();
        }
        // Nor where it is within no scope of what includes it.
        if Policy::new(roles.clone(), vec![]).is_err() {
            roles.iter_mut().for_each(|role| role.not = Operations::NONE);
        }
        roles
    })
}

fn grants() -> impl Strategy<Value = Vec<Grant>> {
    let actions = prop_oneof![
        operations().prop_map(Actions::Operations),
        select(ROLES.to_vec()).prop_map(|role| Actions::Role(role_name(role)))
    ];
    vec((patterns(), patterns(), patterns(), actions), 0..12).prop_map(|grants| {
        let grant = |(number, (callers, keks, accounts, actions))| Grant {
            id: GrantId::of_store(number),
            callers,
            keks,
            accounts,
            actions,
        };
        (0..).zip(grants).map(grant).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Callers × operations × scopes.
    #[test]
    fn a_policy_allows_what_a_walk_over_all_grants_allows_and_nothing_else(roles in roles(), mut grants in grants()) {
        // What can cover nothing is refused by name.
        grants.retain(|grant| Policy::new(roles.clone(), vec![grant.clone()]).is_ok());
        let policy = Policy::new(roles.clone(), grants.clone()).unwrap();
        let written = model::written(&roles, &grants);
        let names = || NAMES.into_iter().map(Some).chain([None]);
        for caller_id in NAMES {
            for kek in names() {
                for account in names() {
                    let (kek_name, account_id) =
                        (kek.map(|kek| KekName::new(kek).unwrap()), account.map(|id| AccountId::new(id).unwrap()));
                    let on = Scope { kek: kek_name.as_ref(), account: account_id.as_ref() };
                    let granted = policy.operations(&caller(caller_id), on);
                    for operation in Operation::ALL {
                        let expected = model::may(&written, (caller_id, operation.name()), (kek, account));
                        prop_assert_eq!(granted.has(operation), expected, "{} {} {:?}", caller_id, operation, on);
                        let by = policy.grant_for(&caller(caller_id), operation, on);
                        prop_assert_eq!(by.is_some(), expected);
                        prop_assert!(!expected || policy.has_anywhere(&caller(caller_id), operation));
                    }
                }
            }
        }
        let writes = |caller: &str| model::may(&written, (caller, "grant.write"), (None, None));
        // Callers of whom no grant speaks are many: one stands for those of each pattern.
        prop_assert_eq!(policy.has_writer(), NAMES.into_iter().chain(["abx", "bx", "x"]).any(writes));
    }

    /// A handle's permit is what the policy says, whatever was changed since it was opened, and whichever KEK the account is under.
    #[test]
    fn a_permit_follows_the_policy_and_the_account(policies in vec((roles(), grants()), 1..4), keks in vec(select(vec!["a", "b", "ab"]), 4)) {
        let force = Force::unread();
        let (permits, account) = (Permits::default(), AccountId::new("aa").unwrap());
        let mut held = Vec::new();
        for (n, (roles, mut grants)) in policies.into_iter().enumerate() {
            grants.retain(|grant| Policy::new(roles.clone(), vec![grant.clone()]).is_ok());
            let policy = Arc::new(Policy::new(roles, grants).unwrap());
            let kek = || KekName::new(keks[n]).unwrap();
            match n % 2 {
                0 => {
                    permits.follow(kek);
                    force.govern(vec![policy.clone()]);
                }
                _ => {
                    force.govern(vec![policy.clone()]);
                    permits.follow(kek);
                }
            }
            held.push(permits.of(&force, &caller(NAMES[n]), &account, kek));
            for permit in &held {
                let expected = policy.operations(permit.caller().unwrap(), Scope::account(&account, Some(&kek())));
                for operation in Operation::ALL {
                    prop_assert_eq!(permit.has(operation), expected.has(operation));
                    prop_assert_eq!(permit.ask(operation).is_ok(), expected.has(operation));
                }
            }
            prop_assert!(!force.unnamed_has(Operation::Open) && !force.is_open());
        }
        force.refuse(Error::Store("away".into()));
        prop_assert!(held.iter().all(|permit| !permit.has(Operation::Open)));
        prop_assert!(matches!(held[0].ask(Operation::Open), Err(Error::Store(_))));
        force.govern(Vec::new());
        prop_assert!(held.iter().all(|permit| permit.has(Operation::Open)) && force.unnamed_has(Operation::Seal));
    }
}

fn own_role(name: &str, operations: &[Operation], includes: &[&str], not: &[Operation]) -> Role {
    Role {
        name: role_name(name),
        operations: Operations::of(operations),
        includes: includes.iter().map(|name| role_name(name)).collect(),
        not: Operations::of(not),
        keks: Pattern::all(),
        accounts: Pattern::all(),
    }
}

fn refused(roles: Vec<Role>, grants: Vec<Grant>) -> String {
    Policy::new(roles, grants).unwrap_err().to_string()
}

#[test]
fn what_a_role_cannot_be_is_named() {
    use Operation::{Get, Open, Purge, Seal};
    let rows = [
        (vec![own_role("a", &[], &["b"], &[]), own_role("b", &[Get], &["a"], &[])], "a includes b includes a"),
        (vec![own_role("a", &[Get], &["a"], &[])], "a includes a"),
        (vec![own_role("reader", &[Get], &[], &[])], "role reader: this name is that of a built-in role"),
        (vec![own_role("a", &[Get], &[], &[]), own_role("a", &[Get], &[], &[])], "role a: it is there twice"),
        (vec![own_role("a", &[Get], &["raeder"], &[])], "role a: there is no role raeder; did you mean reader?"),
        (vec![own_role("a", &[Get, Seal], &[], &[Seal])], "role a: it has seal and has it not"),
        (
            vec![own_role("a", &[Get], &["reader"], &[Purge])],
            "not takes purge away, which nothing that it includes has",
        ),
        (vec![own_role("a", &[], &["reader"], &[Get, Operation::Unwrap, Open])], "role a: nothing is left of it"),
        (vec![own_role("a", &[], &[], &[])], "role a: nothing is left of it"),
    ];
    for (roles, words) in rows {
        let said = refused(roles, vec![]);
        assert!(said.contains(words), "{said}");
    }
    let many = |count: usize| (0..count).map(|n| own_role(&format!("r{n}"), &[Get], &[], &[])).collect::<Vec<_>>();
    assert!(Policy::new(many(ROLES_MAX), vec![]).is_ok());
    assert!(refused(many(ROLES_MAX + 1), vec![]).contains("at most 128"));
    // Ways that branch at each role, and come to one scope.
    let grid =
        (2..ROLES_MAX).map(|n| own_role(&format!("r{n}"), &[], &[&format!("r{}", n - 1), &format!("r{}", n - 2)], &[]));
    assert!(Policy::new(many(2).into_iter().chain(grid).collect(), vec![]).is_ok());
    let scoped =
        (0..65).map(|n| Role { keks: pattern(&format!("k{n}")), ..own_role(&format!("r{n}"), &[Get], &[], &[]) });
    let names: Vec<_> = (0..65).map(|n| format!("r{n}")).collect();
    let halves = names.chunks(16).enumerate();
    let halves = halves
        .map(|(n, names)| own_role(&format!("h{n}"), &[], &names.iter().map(|name| &**name).collect::<Vec<_>>(), &[]));
    let all: Vec<_> =
        scoped.chain(halves).chain([own_role("all", &[], &["h0", "h1", "h2", "h3", "h4"], &[])]).collect();
    assert!(refused(all, vec![]).contains("role all: it comes to 65 scopes"));
    // A long way from role to role is no loop.
    let chain = (1..ROLES_MAX).map(|n| own_role(&format!("r{n}"), &[], &[&format!("r{}", n - 1)], &[]));
    assert!(Policy::new(many(1).into_iter().chain(chain).collect(), vec![]).is_ok());
}

fn grant(number: u32, callers: &str, keks: &str, accounts: &str, actions: Actions) -> Grant {
    let [callers, keks, accounts] = [callers, keks, accounts].map(pattern);
    Grant { id: GrantId::of_store(number), callers, keks, accounts, actions }
}

#[test]
fn what_a_grant_cannot_be_is_named() {
    let get = || Actions::Operations(Operations::of(&[Operation::Get]));
    let narrow = || Role { keks: pattern("a*"), ..own_role("narrow", &[Operation::Get], &[], &[]) };
    let rows = [
        (
            grant(7, "c", "b*", "*", Actions::Role(role_name("narrow"))),
            "grant 00000007: nothing of role narrow is within",
        ),
        (
            grant(7, "c", "*", "*", Actions::Role(role_name("narow"))),
            "grant 00000007: there is no role narow; did you mean narrow?",
        ),
        (grant(7, "c", "*", "*", Actions::Operations(Operations::NONE)), "grant 00000007: it names no operation"),
        (grant(7, "c", "kek/1", "*", get()), "grant 00000007: KEK name \"kek/1\""),
        (grant(7, " c", "*", "*", get()), "grant 00000007: id \" c\" of a caller"),
    ];
    for (grant, words) in rows {
        let said = refused(vec![narrow()], vec![grant]);
        assert!(said.contains(words), "{said}");
    }
    assert!(
        refused(vec![], vec![grant(7, "c", "*", "*", get()), grant(7, "d", "*", "*", get())]).contains("there twice")
    );
    for bad in ["", "a*b", "**", "a\n", &"x".repeat(257)] {
        assert!(Pattern::new(bad).is_err(), "{bad:?}");
    }
    let said = Operation::parse("unwarp").unwrap_err().to_string();
    assert!(said.contains("there is no operation \"unwarp\"; did you mean unwrap?"), "{said}");
    for operation in Operation::ALL {
        assert_eq!(Operation::parse(operation.name()), Ok(operation));
    }
    assert_eq!(Operations::from_bits(1 << 17), None);
}

/// At rest: an operation keeps its bit.
#[test]
fn the_bits_never_change() {
    let bits = Operation::ALL.map(|operation| (operation.name(), Operations::of(&[operation]).bits()));
    let names = "get wrap unwrap seal open create rotate rewrap move delete undelete purge secret.get secret.set audit.read \
                 grant.write drill";
    for (n, name) in names.split_whitespace().enumerate() {
        assert_eq!(bits[n], (name, 1 << n));
    }
}
