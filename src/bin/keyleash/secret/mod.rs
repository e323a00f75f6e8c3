//! `secret`: set, given out, looked at, ended. A value comes from a stream and goes to one, past every buffer that is not wiped.

use crate::{
    account::{deletion_json, deletion_words},
    exit::Failure,
    out_file::OutFile,
    output::{Output, columns, count, terminal_columns},
    schedule::age,
    seal::open_input,
    setup::{Setup, Store, account_id},
    streams::{OwnFiles, Standard},
};
use keyleash::{
    Error, When,
    access::Operation,
    clock::utc,
    name::{AccountId, SecretId, SecretName},
    secrets::{OpenedSecret, RotationPolicy, SecretValue, SetOptions},
    store::{
        self, Filter, Key, KeyStore, PAGE_KEYS_MAX,
        record::{Rotation, SECRET_BYTES_MAX, SecretRecord, SecretVersion},
    },
};
use serde_json::{Map, Value, json};
use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

pub(crate) mod args;

use args::{Get, OneVersion, Policy, Secret, Set, Which};

pub(crate) async fn run(command: Secret, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Secret::Set(args) => set(args, setup, output).await,
        Secret::Get(args) => get(args, setup, output).await,
        Secret::List { account } => list(&account_id(&account)?, setup, output).await,
        Secret::Show(which) => {
            let id = secret_id(&which)?;
            let record = record(setup, &id).await?;
            output.result(&record_json(&record), &record_lines(&record))
        }
        Secret::Enable(one) => enable(&one, true, setup, output).await,
        Secret::Disable(one) => enable(&one, false, setup, output).await,
        Secret::Policy(args) => policy(args, setup, output).await,
        Secret::Rotate(which) => {
            let id = secret_id(&which)?;
            let version = setup.engine(Store::Existing).await?.secrets().rotate(&id).await?;
            output.result(
                &with_id(&id, json!({ "version": version })),
                &format!("secret {id}: its hook made version {version}\n"),
            )
        }
        Secret::Delete(which) => {
            let id = secret_id(&which)?;
            let deletion = setup.engine(Store::Existing).await?.secrets().delete(&id).await?;
            let SecretId { account, name } = &id;
            let until = utc(deletion.purge_after_unix);
            let line = format!(
                "secret {id}: deleted; `keyleash secret undelete {name} --account {account}` brings it back, until {until} at least\n"
            );
            output.result(&with_id(&id, json!({ "deleted": deletion_json(deletion) })), &line)
        }
        Secret::Undelete(which) => {
            let id = secret_id(&which)?;
            setup.engine(Store::Existing).await?.secrets().undelete(&id).await?;
            output.result(&with_id(&id, json!({ "deleted": null })), &format!("secret {id}: is back\n"))
        }
        Secret::Purge { which, now, consent } => {
            let id = secret_id(&which)?;
            let secrets = setup.engine(Store::Existing).await?.secrets();
            let when = if now { When::Now } else { When::Due };
            let what = |record: &SecretRecord| {
                let since = record.deleted.map_or_else(String::new, |deletion| utc(deletion.since_unix));
                format!("secret {id} (deleted {since}): {}", count(record.versions.len() as u64, "version"))
            };
            let would = |record: &SecretRecord| format!("{}, would be destroyed for good", what(record));
            let look = async || match secrets.purgeable(&id, when).await {
                // What is left where a purge was killed is of a secret that is destroyed.
                Err(Error::NotFound(_)) if consent.is_given() && secrets.purge(&id, when).await.is_ok() => Err(
                    Error::NotFound(format!("secret {id}: it was purged; what was left of its values is removed now")),
                ),
                found => found,
            };
            let purge = async |shown: &_| secrets.purge_as_shown(shown, when).await;
            let (shown, done) = consent.carry_out(output, look, would, purge).await?;
            let line = if done { format!("{}, destroyed\n", what(&shown)) } else { would(&shown) + "\n" };
            let result = json!({ "dry_run": !done, "purged": done, "versions": shown.versions.len() });
            output.result(&with_id(&id, result), &line)
        }
        Secret::Reseal { account } => {
            let id = account_id(&account)?;
            let moved = setup.engine(Store::Existing).await?.secrets().reseal(&id).await?;
            let line = format!("account {id}: {} of secrets moved to its current AEK version\n", count(moved, "value"));
            output.result(&json!({ "account": id.as_str(), "resealed": moved }), &line)
        }
    }
}

async fn set(args: Set, setup: &Setup, output: Output) -> Result<(), Failure> {
    let Set { which, file, content_type, not_before, expires, tag, disabled } = args;
    let id = secret_id(&which)?;
    let mut options = SetOptions::default().content_type(content_type).enabled(!disabled);
    (options.not_before_unix, options.expires_unix, options.tags) = (not_before, expires, tag);
    let (file, own) = (file.filter(|path| path != Path::new("-")), setup.own_files());
    // Whoever types it may take a while, and a signal must be heard meanwhile.
    let read = tokio::task::spawn_blocking(move || read_value(file, &own)).await;
    let value = read.map_err(|error| Failure::io("reading the value", io::Error::other(error)))??;
    let bytes = value.as_bytes().len();
    let engine = setup.engine(Store::Existing).await?;
    let version = engine.secrets().set(&id, value, options).await?;
    let line = format!("secret {id}: version {version}, {}\n", count(bytes as u64, "byte"));
    output.result(&with_id(&id, json!({ "version": version, "bytes": bytes })), &line)
}

/// Reads a value into a buffer that has room for all of it, and for the byte that would be too much.
fn read_value(file: Option<PathBuf>, own: &OwnFiles) -> Result<SecretValue, Failure> {
    let source = file.as_ref().map_or_else(|| Standard::Input.name().into(), |path| path.display().to_string());
    let (mut input, metadata) = open_input(file.as_deref())?;
    own.refuse_store(&metadata, &source)?;
    let mut value = Zeroizing::new(vec![0; SECRET_BYTES_MAX + 1]);
    let mut len = 0;
    while let Some(room) = value.get_mut(len..).filter(|room| !room.is_empty()) {
        match input.read(room) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::io(&source, error)),
        }
    }
    if len > SECRET_BYTES_MAX {
        return Err(Failure::Usage(format!(
            "{source}: the value of a secret has at most {SECRET_BYTES_MAX} bytes, and this is longer: `keyleash seal` seals it as a file"
        )));
    }
    // Without growing: what is behind the length is zero.
    value.truncate(len);
    Ok(SecretValue::new(std::mem::take(&mut *value))?)
}

async fn get(args: Get, setup: &Setup, output: Output) -> Result<(), Failure> {
    let Get { which, version, output: out, force } = args;
    let id = secret_id(&which)?;
    let out = out.filter(|path| path != Path::new("-"));
    let out = match &out {
        Some(place) => {
            setup.own_files().refuse_to_replace(place)?;
            Some(OutFile::create(place, force)?)
        }
        None => None,
    };
    let OpenedSecret { value, version, .. } = setup.engine(Store::Read).await?.secrets().get(&id, version).await?;
    let result = with_id(&id, json!({ "version": version.version, "bytes": value.as_bytes().len() }));
    match out {
        Some(out) => {
            let failed = |error| Failure::io(out.place().display(), error);
            out.writer()?.write_all(value.as_bytes()).map_err(failed)?;
            out.complete()?;
            output.result(&result, "")
        }
        // Past the buffer of the standard library.
        None => {
            Standard::Output.file()?.write_all(value.as_bytes()).map_err(Failure::stdout)?;
            output.result_beside_data(&result)
        }
    }
}

async fn list(account: &AccountId, setup: &Setup, output: Output) -> Result<(), Failure> {
    let store = setup.store(Store::Read).await?;
    setup.permit(&store, Operation::Get, Some(account), None).await?;
    let made = expect_account(&*store, account).await?;
    let (mut secrets, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(&Filter::SecretsOf(account.clone()), after.as_ref(), PAGE_KEYS_MAX).await?;
        for (key, found) in page.keys.iter().zip(store.get_many(&page.keys).await) {
            // One that cannot be read is there all the same: `store check` names it.
            let record = match found {
                Ok(None) => continue,
                Ok(Some(found)) => SecretRecord::decode(key, &found.value).ok(),
                Err(Error::Corrupt(_)) => None,
                Err(error) => return Err(error.into()),
            };
            let (Key::Secret(id), true) =
                (key, record.as_ref().is_none_or(|record| record.account_created_unix == made))
            else {
                continue;
            };
            secrets.push((id.name.clone(), record.and_then(|record| record.deleted)));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut lines = String::new();
    // What a program reads is a name in each line.
    if !secrets.is_empty() && terminal_columns().is_some() {
        lines.push_str("SECRET\n");
    }
    for (name, deleted) in &secrets {
        let state = deleted.map(|deletion| format!("  ({})", deletion_words(deletion)));
        lines.push_str(&format!("{name}{}\n", state.unwrap_or_default()));
    }
    let names = |deleted: bool| {
        let of_state = secrets.iter().filter(|(_, since)| deleted <= since.is_some());
        of_state.map(|(name, _)| name.to_string()).collect::<Vec<_>>()
    };
    let result = json!({ "account": account.as_str(), "secrets": names(false), "deleted": names(true) });
    output.result(&result, &lines)
}

async fn enable(one: &OneVersion, enabled: bool, setup: &Setup, output: Output) -> Result<(), Failure> {
    let (id, version) = (secret_id(&one.which)?, one.version);
    setup.engine(Store::Existing).await?.secrets().set_enabled(&id, version, enabled).await?;
    let state = if enabled { "enabled" } else { "disabled: it is given out no more" };
    let line = format!("secret {id}: version {version} is {state}\n");
    output.result(&with_id(&id, json!({ "version": version, "enabled": enabled })), &line)
}

/// Sets what was given, and shows how the secret is rotated.
async fn policy(args: Policy, setup: &Setup, output: Output) -> Result<(), Failure> {
    let Policy { which, every, hook, overlap, timeout, none } = args;
    let id = secret_id(&which)?;
    let policy =
        every.zip(hook).map(|(every, hook)| RotationPolicy::new(every, hook).overlap(overlap).timeout(timeout));
    if policy.is_some() || none {
        setup.engine(Store::Existing).await?.secrets().set_rotation(&id, policy).await?;
    }
    let record = record(setup, &id).await?;
    let words = record.rotation.as_ref().map_or_else(|| "not rotated by schedule".into(), rotation_words);
    let rotation = record.rotation.as_ref().map(rotation_json);
    output.result(&with_id(&id, json!({ "rotation": rotation })), &format!("secret {id}: {words}\n"))
}

fn rotation_words(rotation: &Rotation) -> String {
    let Rotation { every_secs, overlap_secs, timeout_secs, hook, due_unix, failures, making, .. } = rotation;
    let tried = match (making, failures) {
        (Some(making), 0) => format!("; version {} is being made", making.version),
        (Some(making), _) => {
            format!("; version {} is to be made, after {}", making.version, count(u64::from(*failures), "failure"))
        }
        (None, _) => String::new(),
    };
    format!(
        "rotated every {} by {hook} in {} at most, the version before stays valid for {}; due {}{tried}",
        age(*every_secs),
        age(*timeout_secs),
        age(*overlap_secs),
        utc(*due_unix)
    )
}

fn rotation_json(rotation: &Rotation) -> Value {
    let Rotation { every_secs, overlap_secs, timeout_secs, hook, due_unix, failures, making, .. } = rotation;
    let making = making.map(|making| json!({ "version": making.version, "until_unix": making.until_unix }));
    json!({
        "every_s": every_secs, "overlap_s": overlap_secs, "timeout_s": timeout_secs, "hook": hook, "due_unix": due_unix,
        "failures": failures, "making": making,
    })
}

fn secret_id(which: &Which) -> Result<SecretId, Failure> {
    let name = SecretName::new(which.name.to_string_lossy())?;
    Ok(SecretId::new(account_id(&which.account)?, name))
}

/// When the account was made, which is there and not deleted. The store says it all: neither token nor PIN is needed.
async fn expect_account(store: &dyn KeyStore, account: &AccountId) -> Result<u64, Failure> {
    let found = store::load_account(store, account).await?;
    let (record, _) = found.ok_or_else(|| Error::NotFound(format!("account {account}")))?;
    match record.deleted {
        Some(_) => Err(Error::NotFound(format!(
            "account {account}: it was deleted, and its secrets with it; `keyleash account undelete {account}` brings it back"
        ))
        .into()),
        None => Ok(record.created_unix),
    }
}

async fn record(setup: &Setup, id: &SecretId) -> Result<SecretRecord, Failure> {
    let store = setup.store(Store::Read).await?;
    setup.permit(&store, Operation::Get, Some(&id.account), None).await?;
    let made = expect_account(&*store, &id.account).await?;
    let found = store::load_secret(&*store, id).await?.map(|(record, _)| record);
    let own = found.filter(|record| record.account_created_unix == made);
    own.ok_or_else(|| Error::NotFound(format!("secret {id}")).into())
}

fn with_id(id: &SecretId, fields: Value) -> Value {
    let mut result =
        Map::from_iter([("account".into(), id.account.as_str().into()), ("secret".into(), id.name.as_str().into())]);
    if let Value::Object(fields) = fields {
        result.extend(fields);
    }
    result.into()
}

fn record_json(record: &SecretRecord) -> Value {
    let version = |version: &SecretVersion| {
        let SecretVersion { version, created_unix, not_before_unix, expires_unix, enabled, content_type, tags } =
            version;
        json!({
            "version": version, "created_unix": created_unix, "not_before_unix": not_before_unix, "expires_unix": expires_unix,
            "enabled": enabled, "content_type": content_type,
            "tags": tags.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect::<Map<_, _>>(),
        })
    };
    let versions: Vec<_> = record.versions.iter().map(version).collect();
    let rotation = record.rotation.as_ref().map(rotation_json);
    let deleted = record.deleted.map(deletion_json);
    with_id(&record.id, json!({ "versions": versions, "deleted": deleted, "rotation": rotation }))
}

fn record_lines(record: &SecretRecord) -> String {
    let mut lines = format!("secret {}\n", record.id);
    if let Some(deletion) = record.deleted {
        lines.push_str(&format!("{}\n", deletion_words(deletion)));
    }
    if let Some(rotation) = &record.rotation {
        lines.push_str(&format!("{}\n", rotation_words(rotation)));
    }
    for version in &record.versions {
        lines.push_str(&format!("version {}{}\n", version.version, if version.enabled { "" } else { ", disabled" }));
        let mut rows = vec![("made".to_owned(), utc(version.created_unix))];
        rows.extend(version.not_before_unix.map(|unix| ("not before".into(), utc(unix))));
        rows.extend(version.expires_unix.map(|unix| ("expires".into(), utc(unix))));
        if !version.content_type.is_empty() {
            rows.push(("content type".into(), version.content_type.clone()));
        }
        rows.extend(version.tags.iter().map(|(name, value)| (format!("tag {name}"), value.clone())));
        lines.push_str(&columns(
            &rows.into_iter().map(|(name, value)| vec![" ".into(), name, value]).collect::<Vec<_>>(),
        ));
    }
    lines
}
