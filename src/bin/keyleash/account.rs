//! `account create`, `list`, `show`, `rotate`, `policy`, `retire`, `move`, `delete`, `undelete`, `purge`.

use crate::{
    args::Account,
    exit::{Failure, ended},
    output::{Output, columns, count, hex, size, terminal_columns},
    schedule::{aek_policy, aek_policy_json, aek_policy_words},
    setup::{Setup, Store, account_id, kek_name, kek_version},
    streams::Standard,
};
use keyleash::{
    Error, When,
    access::Operation,
    clock::utc,
    name::{AccountId, KekName, KekVersion},
    store::{
        self, Filter, Key, KeyStore, PAGE_KEYS_MAX,
        record::{AccountRecord, AekPolicy, Deletion, RetiredAek, Usage, WrappedAek},
    },
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{BufRead, BufReader, Read},
};
use tokio::task::JoinSet;

pub(crate) async fn run(command: Account, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Account::Create { id: None, kek, .. } => create_many(&kek_name(&kek)?, setup, output).await,
        Account::Create { id: Some(id), kek, .. } => {
            let (id, kek) = (account_id(&id)?, kek_name(&kek)?);
            let engine = setup.engine(Store::Existing).await?;
            engine.create_account(&id, &kek).await?;
            let record = engine.account_record(&id).await?;
            output
                .result(&record_json(&record), &format!("account {id}: AEK version 1, wrapped by {}\n", keks(&record)))
        }
        Account::List { kek } => {
            let kek = kek.map(|kek| kek_version(&kek)).transpose()?;
            let store = setup.store(Store::Read).await?;
            let judge = setup.judge(store.clone()).await?;
            if let Some(kek) = &kek {
                judge.permit(Operation::Get, None, Some(&kek.name)).await?;
                expect_version(&*store, kek).await?;
            }
            let ids = judge.seen(list(&*store, kek).await?).await?;
            let deleted = deletions(&*store, &ids).await?;
            let mut lines = String::new();
            // What a program reads is an id in each line.
            if !ids.is_empty() && terminal_columns().is_some() {
                lines.push_str("ACCOUNT\n");
            }
            for id in &ids {
                let state = deleted.get(id).map(|deletion| format!("  ({})", deletion_words(*deletion)));
                lines.push_str(&format!("{id}{}\n", state.unwrap_or_default()));
            }
            let deleted = deleted.iter().map(|(id, deletion)| {
                let Deletion { since_unix, purge_after_unix } = *deletion;
                json!({ "account": id.as_str(), "since_unix": since_unix, "purge_after_unix": purge_after_unix })
            });
            let deleted: Vec<_> = deleted.collect();
            let ids: Vec<_> = ids.iter().map(|id| id.as_str()).collect();
            output.result(&json!({ "accounts": ids, "deleted": deleted }), &lines)
        }
        Account::Show { id } => {
            // The store says it all: neither token nor PIN is needed.
            let (id, store) = (account_id(&id)?, setup.store(Store::Read).await?);
            setup.permit(&store, Operation::Get, Some(&id), None).await?;
            let found = store::load_account(&*store, &id).await?;
            let (record, _) = found.ok_or_else(|| Error::NotFound(format!("account {id}")))?;
            output.result(&record_json(&record), &record_lines(&record))
        }
        Account::Rotate { id } => {
            let id = account_id(&id)?;
            let aek_version = setup.engine(Store::Existing).await?.rotate_account(&id).await?;
            let line = format!("account {id}: AEK version {aek_version} seals new blocks\n");
            output.result(&json!({ "account": id.as_str(), "aek_version": aek_version }), &line)
        }
        Account::Policy(args) => aek_policy(args, setup, output).await,
        Account::Retire { id, aek_version, now, consent } => {
            let id = account_id(&id)?;
            let engine = setup.engine(Store::Existing).await?;
            let lost = |record: &AccountRecord| {
                Lost::of(record.versions.iter().filter(|version| aek_version.contains(&version.aek_version)))
            };
            let what = |record: &AccountRecord| format!("account {id}: {}", lost(record));
            let look = async || engine.retirable_aeks(&id, &aek_version, when(now)).await;
            let retire = async |shown: &_| {
                // Nothing that keyleash keeps itself is lost by it. What is damaged, or nobody may move here, stays where it is: nothing
                // that it is sealed under is retired.
                let damaged = match engine.secrets().reseal(&id).await {
                    Err(damaged @ Error::Corrupt(_)) => Some(damaged),
                    Ok(_) | Err(Error::Forbidden(_)) => None,
                    Err(error) => return Err(error),
                };
                match engine.retire_aeks_as_shown(shown, &aek_version, when(now)).await {
                    Err(refused @ Error::Invalid(_)) => Err(damaged.unwrap_or(refused)),
                    outcome => outcome,
                }
            };
            let (shown, done) = consent.carry_out(output, look, |shown| would(what(shown)), retire).await?;
            let (what, lost) = (what(&shown), lost(&shown));
            let result = json!({
                "account": id.as_str(), "dry_run": !done, "retired": aek_version, "sealed_blocks": lost.used.blocks,
                "sealed_bytes": lost.used.bytes,
            });
            let line = if done { format!("{what}, is destroyed\n") } else { would(what) + "\n" };
            output.result(&result, &line)
        }
        Account::Move { id, kek } => {
            let (id, kek) = (account_id(&id)?, kek_name(&kek)?);
            let engine = setup.engine(Store::Existing).await?;
            engine.move_account(&id, &kek).await?;
            let record = engine.account_record(&id).await?;
            output.result(&record_json(&record), &format!("account {id}: wrapped by {}\n", keks(&record)))
        }
        Account::Delete { id } => {
            let id = account_id(&id)?;
            let deletion = setup.engine(Store::Existing).await?.delete_account(&id).await?;
            let until = utc(deletion.purge_after_unix);
            let line = format!(
                "account {id}: deleted; `keyleash account undelete {id}` brings it back, until {until} at least\n"
            );
            output.result(&json!({ "account": id.as_str(), "deleted": deletion_json(deletion) }), &line)
        }
        Account::Undelete { id } => {
            let id = account_id(&id)?;
            setup.engine(Store::Existing).await?.undelete_account(&id).await?;
            output.result(&json!({ "account": id.as_str(), "deleted": null }), &format!("account {id}: is back\n"))
        }
        Account::Purge { id, now, consent } => {
            let id = account_id(&id)?;
            let engine = setup.engine(Store::Existing).await?;
            let what = |record: &AccountRecord| {
                let deleted = record.deleted.map_or_else(String::new, |deletion| utc(deletion.since_unix));
                let (made, lost) = (utc(record.created_unix), Lost::of(&record.versions));
                format!("account {id} (made {made}, deleted {deleted}): {lost}")
            };
            let look = async || match engine.purgeable_account(&id, when(now)).await {
                // What is left where a purge was killed is of an account that is destroyed.
                Err(Error::NotFound(_)) if consent.is_given() && engine.purge_account(&id, when(now)).await.is_ok() => {
                    Err(Error::NotFound(format!(
                        "account {id}: it was purged; what was left of its secrets is removed now"
                    )))
                }
                found => found,
            };
            let purge = async |shown: &_| engine.purge_account_as_shown(shown, when(now)).await;
            let (shown, done) = consent.carry_out(output, look, |shown| would(what(shown)), purge).await?;
            let (what, lost) = (what(&shown), Lost::of(&shown.versions));
            let line = match done {
                true => format!("account {id}: purged; its blocks are shredded: {lost}\n"),
                false => would(what) + "\n",
            };
            let result = json!({
                "account": id.as_str(), "dry_run": !done, "purged": done, "sealed_blocks": lost.used.blocks,
                "sealed_bytes": lost.used.bytes,
            });
            output.result(&result, &line)
        }
    }
}

fn would(what: String) -> String {
    format!("{what}, would be destroyed for good")
}

/// Accounts that are made at once.
const CREATIONS_MAX: usize = 16;
/// Failures that are named in the result; all are told as they come.
const FAILURES_SHOWN_MAX: usize = 100;

/// Makes an account for each line of standard input. What cannot be made keeps no other from it.
async fn create_many(kek: &KekName, setup: &Setup, output: Output) -> Result<(), Failure> {
    let input = Standard::Input.file()?;
    let engine = setup.engine(Store::Existing).await?;
    let (lines, mut ids) = tokio::sync::mpsc::channel(CREATIONS_MAX);
    let reading = tokio::task::spawn_blocking(move || read_lines(input, |line| lines.blocking_send(line).is_ok()));
    let (mut tasks, mut made, mut failed, mut failures) = (JoinSet::new(), 0_u64, 0_u64, Vec::new());
    let mut first: Option<Error> = None;
    loop {
        let line = if tasks.len() < CREATIONS_MAX { ids.recv().await } else { None };
        let is_end = line.is_none() && tasks.len() < CREATIONS_MAX;
        if let Some(line) = line {
            let (engine, kek) = (engine.clone(), kek.clone());
            tasks.spawn(async move {
                let created = match AccountId::from_bytes(&line) {
                    Ok(id) => engine.create_account(&id, &kek).await.map(drop),
                    Err(error) => Err(error),
                };
                (String::from_utf8_lossy(&line).into_owned(), created)
            });
            continue;
        }
        match tasks.join_next().await {
            None if is_end => break,
            None => {}
            Some(Ok((_, Ok(())))) => made += 1,
            Some(Ok((id, Err(error)))) => {
                output.note(&format!("keyleash: account {id}: {}", ended(&error)));
                failed += 1;
                if failures.len() < FAILURES_SHOWN_MAX {
                    failures.push(json!({ "account": id, "error": ended(&error) }));
                }
                first = first.or(Some(error));
            }
            Some(Err(died)) => return Err(Failure::io("making an account", std::io::Error::other(died))),
        }
    }
    reading.await.map_err(|error| Failure::io("standard input", std::io::Error::other(error)))??;
    let result = json!({ "kek": kek.as_str(), "created": made, "failed": failed, "failures": failures });
    output.result(&result, &format!("{} made under KEK {kek}, {failed} failed\n", count(made, "account")))?;
    match failed {
        0 => Ok(()),
        _ => Err(Failure::partial(
            format!("{} not made: see what was said of each", count(failed, "account")),
            first.as_ref(),
        )),
    }
}

/// Gives each line that is not empty, until `take` has enough.
fn read_lines(input: File, take: impl Fn(Vec<u8>) -> bool) -> Result<(), Failure> {
    let failed = |error| Failure::io("standard input", error);
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 == LINE_BYTES_MAX {
            return Err(Failure::Usage(format!(
                "standard input: a line has {LINE_BYTES_MAX} bytes or more; an id has 1 to 255"
            )));
        }
        if !line.is_empty() && !take(line) {
            return Ok(());
        }
    }
}

/// Of a line of standard input.
const LINE_BYTES_MAX: u64 = 4096;

/// All accounts, or those that a KEK version wraps. Asks no token.
pub(crate) async fn list(store: &dyn KeyStore, kek: Option<KekVersion>) -> Result<Vec<AccountId>, Failure> {
    let filter = kek.map_or(Filter::Accounts, Filter::WrappedBy);
    let (mut ids, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(&filter, after.as_ref(), PAGE_KEYS_MAX).await?;
        ids.extend(page.keys.into_iter().filter_map(|key| match key {
            Key::Account(id) => Some(id),
            _ => None,
        }));
        after = page.next;
        if after.is_none() {
            return Ok(ids);
        }
    }
}

/// That no account is under a KEK version is one thing, and that there is no such version another.
async fn expect_version(store: &dyn KeyStore, kek: &KekVersion) -> Result<(), Failure> {
    match store::load_kek(store, &kek.name).await? {
        None => Err(Error::NotFound(format!("KEK {}: `keyleash kek list` shows all", kek.name)).into()),
        Some((record, _)) if record.version(kek.version).is_none() => {
            Err(Error::NotFound(format!("KEK {kek}: `keyleash kek show {}` shows its versions", kek.name)).into())
        }
        Some(_) => Ok(()),
    }
}

/// Those of the accounts that are deleted. A record that cannot be read is none: `store check` names it.
async fn deletions(store: &dyn KeyStore, ids: &[AccountId]) -> Result<BTreeMap<AccountId, Deletion>, Failure> {
    let mut deletions = BTreeMap::new();
    for ids in ids.chunks(PAGE_KEYS_MAX) {
        let keys: Vec<_> = ids.iter().cloned().map(Key::Account).collect();
        for (key, found) in keys.iter().zip(store.get_many(&keys).await) {
            let Ok(Some(found)) = found else { continue };
            let record = AccountRecord::decode(key, &found.value);
            if let Ok(AccountRecord { account, deleted: Some(deletion), .. }) = record {
                deletions.insert(account, deletion);
            }
        }
    }
    Ok(deletions)
}

/// Of an account, or of a secret.
pub(crate) fn deletion_json(deletion: Deletion) -> Value {
    json!({ "since_unix": deletion.since_unix, "purge_after_unix": deletion.purge_after_unix })
}

/// Likewise.
pub(crate) fn deletion_words(deletion: Deletion) -> String {
    let (since, until) = (utc(deletion.since_unix), utc(deletion.purge_after_unix));
    format!("deleted {since}, may be purged from {until} on")
}

/// Enough for another program to unwrap the AEKs with the token. Part of the CLI's promise: fields are only added.
fn record_json(record: &AccountRecord) -> Value {
    let versions: Vec<_> = record
        .versions
        .iter()
        .map(|version| {
            json!({
                "aek_version": version.aek_version,
                "kek": version.kek.name.as_str(),
                "kek_version": version.kek.version,
                "kek_id": hex(version.kek_id.as_bytes()),
                "profile": version.profile.name(),
                "iv": hex(&version.wrapped.iv),
                "wrapped": hex(&version.wrapped.bytes),
                "check": hex(&version.check),
                "created_unix": version.created_unix,
                "sealed_blocks": version.used.blocks,
                "sealed_bytes": version.used.bytes,
            })
        })
        .collect();
    let policy = aek_policy_json(record.policy);
    let mut json = json!({ "account": record.account.as_str(), "policy": policy, "versions": versions });
    if let (false, Some(fields)) = (record.retired.is_empty(), json.as_object_mut()) {
        let retired =
            |retired: &RetiredAek| json!({ "aek_version": retired.aek_version, "since_unix": retired.since_unix });
        fields.insert("retired".into(), record.retired.iter().map(retired).collect());
    }
    if let (Some(deletion), Some(fields)) = (record.deleted, json.as_object_mut()) {
        fields.insert("deleted".into(), deletion_json(deletion));
    }
    json
}

fn record_lines(record: &AccountRecord) -> String {
    let mut lines = format!("account {}\n", record.account);
    if let Some(deletion) = record.deleted {
        lines.push_str(&format!("{}\n", deletion_words(deletion)));
    }
    if record.policy != AekPolicy::default() {
        lines.push_str(&format!("{}\n", aek_policy_words(record.policy)));
    }
    for RetiredAek { aek_version, since_unix } in &record.retired {
        lines.push_str(&format!("AEK version {aek_version} was retired on {}\n", utc(*since_unix)));
    }
    for version in &record.versions {
        let rows = [
            ("wrapped by", format!("KEK {} ({}, CKA_ID {})", version.kek, version.profile, version.kek_id)),
            ("iv", hex(&version.wrapped.iv)),
            ("wrapped", hex(&version.wrapped.bytes)),
            ("check", hex(&version.check)),
            ("made", utc(version.created_unix)),
            ("sealed", format!("{}, {}", count(version.used.blocks, "block"), count(version.used.bytes, "byte"))),
        ];
        lines.push_str(&format!("AEK version {}\n", version.aek_version));
        lines.push_str(&columns(&rows.map(|(name, value)| vec![" ".into(), name.into(), value])));
    }
    lines
}

/// AEK versions that go, and what goes with them.
struct Lost {
    versions: Vec<u32>,
    used: Usage,
}

impl Lost {
    fn of<'a>(versions: impl IntoIterator<Item = &'a WrappedAek>) -> Self {
        let mut lost = Self { versions: Vec::new(), used: Usage::default() };
        for WrappedAek { aek_version, used, .. } in versions {
            lost.versions.push(*aek_version);
            lost.used.blocks = lost.used.blocks.saturating_add(used.blocks);
            lost.used.bytes = lost.used.bytes.saturating_add(used.bytes);
        }
        lost
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions = self.versions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let noun = if self.versions.len() == 1 { "version" } else { "versions" };
        let (blocks, bytes) = (count(self.used.blocks, "block"), size(self.used.bytes));
        write!(f, "AEK {noun} {versions}, with {blocks} ({bytes}) that were counted as sealed under it")
    }
}

fn keks(record: &AccountRecord) -> String {
    let keks = record.wrapped_by();
    keks.iter().map(|kek| format!("KEK {kek}")).collect::<Vec<_>>().join(", ")
}

/// What `--now` asks for.
const fn when(now: bool) -> When {
    if now { When::Now } else { When::Due }
}
