//! `kek create`, `list`, `show`, `rotate`, `rewrap`, `policy`, `retire`, `attest-backup`; `disable` and `enable` are in `kek_switch.rs`.

use crate::{
    args::Kek,
    exit::{Failure, ended},
    kek_switch,
    output::{Output, columns, count, fitted, table},
    progress::Progress,
    schedule::{kek_policy, kek_policy_json, kek_policy_words},
    setup::{Setup, Store, kek_id, kek_name, kek_version, token_name},
};
use keyleash::{
    Error, KekOptions,
    clock::utc,
    engine::{KekStatus, KekVersionStatus},
    name::{KekName, KekVersion, TokenName},
    rotate::{RewrapFailure, RewrapOptions, RewrapProgress},
    store::{
        Filter, KeyStore,
        record::{KekPolicy, KekVersionRecord},
    },
    token::{KekId, KekInfo, TokenError, UnaddressableKey},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

pub(crate) async fn run(command: Kek, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Kek::Create { name, profile, destroyable, token } => {
            let name = kek_name(&name)?;
            let token = token.map(|token| token_name(&token)).transpose()?;
            let engine = setup.engine(Store::Create).await?;
            let mut options = KekOptions::new(profile);
            (options.destroyable, options.token) = (destroyable, token);
            let info = engine.create_kek(&name, options).await?;
            let line = format!("KEK {name}/1: {profile}, {} bits, CKA_ID {}\n", info.bits, info.id);
            let mut result = json!({ "kek": name.as_str(), "kek_version": 1, "kek_id": info.id.to_string() });
            merge(&mut result, in_token_json(&info));
            output.result(&result, &(line + &warning_lines(&format!("{name}/1"), &info)))
        }
        Kek::List => {
            let (engine, store) = setup.engine_and_store(Store::Read).await?;
            let keks = engine.keks().await?;
            let unproved = unproved(&*store, &keks).await?;
            let listed = Listed { keks: &keks, unproved: &unproved };
            let tokens = engine.tokens();
            let (mut unknown, mut unaddressable, mut trouble) = (Vec::new(), Vec::new(), None::<Error>);
            for token in &tokens {
                let found = async {
                    let keys = engine.unknown_keks_in(token).await?;
                    Ok::<_, Error>((keys, engine.unaddressable_keys_in(token).await?))
                };
                match found.await {
                    Ok((keys, others)) => {
                        unknown.extend(keys.into_iter().map(|key| (token, key)));
                        unaddressable.extend(others.into_iter().map(|key| (token, key)));
                    }
                    // The others are shown all the same.
                    Err(error) => trouble = trouble.or(Some(error)),
                }
            }
            if let (Some(error), [_]) = (&trouble, &tokens[..]) {
                return Err(error.clone().into());
            }
            let result = json!({
                "keks": listed.json(),
                "unknown": unknown.iter().map(unknown_json).collect::<Vec<_>>(),
                "unaddressable": unaddressable.iter().map(unaddressable_json).collect::<Vec<_>>(),
            });
            let with_token = tokens.len() > 1;
            let lines = list_lines(&listed, &unknown, with_token) + &unaddressable_lines(&unaddressable, with_token);
            output.result(&result, &lines)?;
            trouble.map_or(Ok(()), |error| Err(error.into()))
        }
        Kek::Show { name } => {
            let engine = setup.engine(Store::Read).await?;
            let kek = engine.kek(&kek_name(&name)?).await?;
            output.result(&kek_json(&kek), &show_lines(&kek, engine.tokens().len() > 1))
        }
        Kek::Rotate { name, adopt } => {
            let name = kek_name(&name)?;
            let id = adopt.map(|id| kek_id(&id)).transpose()?;
            let engine = setup.engine(Store::Existing).await?;
            let made = match &id {
                None => engine.rotate_kek(&name).await?,
                Some(id) => engine.adopt_kek(&name, id).await?,
            };
            let is_adopted = id.is_some();
            let KekVersionRecord { version, id, profile, .. } = made;
            let mut result = json!({
                "kek": name.as_str(), "kek_version": version, "kek_id": id.to_string(), "profile": profile.name(),
            });
            // Of one that somebody else made there may be more to say. What cannot be read now leaves it adopted.
            let adopted = if is_adopted { Some(engine.kek(&name).await) } else { None };
            for made in adopted.iter().flatten().flat_map(|kek| &kek.versions) {
                if let (true, Ok(Some(info))) = (made.record.version == version, &made.in_token) {
                    merge(&mut result, in_token_json(info));
                }
            }
            let line = format!("KEK {name}/{version}: {profile}, CKA_ID {id}; wraps new AEKs\n");
            output.result(&result, &line)?;
            if let Some(kek) = adopted.transpose()? {
                output.note(kek_warnings(&[kek]).trim_end());
            }
            Ok(())
        }
        Kek::Rewrap { name, rate, dry_run } => rewrap(&kek_name(&name)?, rate, dry_run, setup, output).await,
        Kek::Disable(args) => kek_switch::run(args, false, setup, output).await,
        Kek::Enable(args) => kek_switch::run(args, true, setup, output).await,
        Kek::Policy(args) => kek_policy(args, setup, output).await,
        Kek::Retire { version, consent } => {
            let kek = kek_version(&version)?;
            let engine = setup.engine(Store::Existing).await?;
            let would = |KekVersionRecord { id, created_unix, .. }: &_| {
                format!(
                    "KEK {kek} (CKA_ID {id}, made {}) would be retired for good: this store has nothing under it, and backups of the \
                     store may still need it",
                    utc(*created_unix)
                )
            };
            let look = async || engine.retirable_kek(&kek).await;
            let retire = async |shown: &_| engine.retire_kek_as_shown(&kek.name, shown).await;
            let (shown, done) = consent.carry_out(output, look, would, retire).await?;
            let line = match done {
                true => format!(
                    "KEK {kek}: retired; this store has nothing under it: if no other store and no backup needs it, it may be \
                     deleted in the token\n"
                ),
                false => would(&shown) + "\n",
            };
            let result =
                json!({ "kek": kek.name.as_str(), "kek_version": kek.version, "retired": done, "dry_run": !done });
            output.result(&result, &line)
        }
        Kek::AttestBackup { version } => {
            let kek = kek_version(&version)?;
            setup.engine(Store::Existing).await?.attest_backup(&kek).await?;
            let result = json!({ "kek": kek.name.as_str(), "kek_version": kek.version, "backup_attested": true });
            output.result(&result, &format!("KEK {kek}: backup attested\n"))
        }
    }
}

async fn rewrap(
    name: &KekName,
    rate: Option<u32>,
    dry_run: bool,
    setup: &Setup,
    output: Output,
) -> Result<(), Failure> {
    let engine = setup.engine(Store::Existing).await?;
    let bar = Mutex::new(Progress::accounts(output.shows_progress()));
    let show = |progress: RewrapProgress| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        bar.at(progress.done, progress.accounts);
    };
    let mut options = RewrapOptions::new();
    (options.rate, options.dry_run) = (rate, dry_run);
    let report = engine.rewrap_kek(name, options, show).await?;
    drop(bar);
    for RewrapFailure { account, error, .. } in &report.failures {
        output.note(&format!("keyleash: account {account}: {}", ended(error)));
    }
    let failures: Vec<_> = report
        .failures
        .iter()
        .map(|failure| json!({ "account": failure.account.as_str(), "error": ended(&failure.error) }))
        .collect();
    let result = json!({
        "kek": name.as_str(), "kek_version": report.to.version, "dry_run": dry_run, "accounts": report.accounts,
        "aeks": report.aeks, "failed": report.failed, "failures": failures,
        "stopped": report.stopped.as_ref().map(ended),
    });
    let (accounts, aeks) = (count(report.accounts, "account"), count(report.aeks, "AEK"));
    let done = if dry_run { "to be moved" } else { "moved" };
    output.result(&result, &format!("KEK {}: {accounts} {done} ({aeks}), {} failed\n", report.to, report.failed))?;
    match report.stopped {
        Some(error) => Err(error.into()),
        None if report.failed > 0 => Err(Failure::partial(
            format!(
                "{} not re-wrapped, and left as they were: see what was said of each",
                count(report.failed, "account")
            ),
            report.failures.first().map(|failure| &failure.error),
        )),
        None => Ok(()),
    }
}

/// KEKs as they are listed.
pub(crate) struct Listed<'a> {
    pub(crate) keks: &'a [KekStatus],
    /// Those that no record names.
    pub(crate) unproved: &'a BTreeSet<KekVersion>,
}

impl Listed<'_> {
    pub(crate) fn json(&self) -> Value {
        let of = |kek: &KekStatus| {
            let mut json = kek_json(kek);
            let versions = json.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten();
            for (json, version) in versions.zip(&kek.versions) {
                let name = KekVersion::new(kek.name.clone(), version.record.version);
                merge(json, json!({ "never_proved": self.unproved.contains(&name) }));
            }
            json
        };
        self.keks.iter().map(of).collect()
    }
}

/// The current versions under which nothing is wrapped: a proof is an unwrap of what is.
pub(crate) async fn unproved(store: &dyn KeyStore, keks: &[KekStatus]) -> Result<BTreeSet<KekVersion>, Error> {
    let mut unproved = BTreeSet::new();
    for kek in keks {
        for version in kek.versions.iter().filter(|version| version.current) {
            let name = KekVersion::new(kek.name.clone(), version.record.version);
            if store.list(&Filter::WrappedBy(name.clone()), None, 1).await?.keys.is_empty() {
                unproved.insert(name);
            }
        }
    }
    Ok(unproved)
}

/// A KEK with its versions, as `kek list`, `kek show` and `status` give it.
pub(crate) fn kek_json(kek: &KekStatus) -> Value {
    let current = kek.versions.iter().find(|version| version.current).map(|version| version.record.version);
    let versions: Vec<_> = kek.versions.iter().map(version_json).collect();
    let policy = kek_policy_json(kek.policy);
    json!({ "kek": kek.name.as_str(), "current": current, "policy": policy, "versions": versions })
}

fn version_json(version: &KekVersionStatus) -> Value {
    let mut json = json!({
        "kek_version": version.record.version,
        "kek_id": version.record.id.to_string(),
        "profile": version.record.profile.name(),
        "token": version.record.token.as_str(),
        "created_unix": version.record.created_unix,
        "in_token": version.in_token.as_ref().ok().map(Option::is_some),
        "retired_unix": version.record.retired_unix,
        "backup_attested_unix": version.record.backup_attested_unix,
        "recoverable": version.is_recoverable(),
        "trouble": trouble(version),
    });
    if let Ok(Some(info)) = &version.in_token {
        merge(&mut json, in_token_json(info));
    }
    if let Some((standby, _)) = &version.in_standby {
        merge(&mut json, json!({ "standby": standby.as_str(), "standby_trouble": standby_trouble(version) }));
    }
    json
}

fn in_token_json(info: &KekInfo) -> Value {
    json!({
        "label": info.label,
        "profile": info.profile.map(|profile| profile.name()),
        "bits": info.bits,
        "enabled": info.enabled,
        "destroyable": info.destroyable,
        "modifiable": info.modifiable,
        "refused": info.refused,
        "half": info.half,
        "warnings": info.warnings,
    })
}

fn unknown_json((token, info): &(&TokenName, KekInfo)) -> Value {
    let mut json = json!({ "kek_id": info.id.to_string(), "token": token.as_str() });
    merge(&mut json, in_token_json(info));
    json
}

fn unaddressable_json((token, key): &(&TokenName, UnaddressableKey)) -> Value {
    json!({ "label": key.label, "kind": key.kind, "bits": key.bits, "why": key.why, "token": token.as_str() })
}

/// Adds the fields of `from`; those of `into` stay where both have one.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        for (key, value) in from {
            into.entry(key).or_insert(value);
        }
    }
}

/// What keeps a KEK version from working, in words; `None` when nothing does.
pub(crate) fn trouble(version: &KekVersionStatus) -> Option<String> {
    in_words(&version.in_token, version.current)
}

/// Half a key that shall wrap, in words. One that wraps nothing any more needs no more than the half that unwraps.
pub(crate) fn half(version: &KekVersionStatus) -> Option<&str> {
    let info = version.in_token.as_ref().ok()?.as_ref()?;
    info.half.as_deref().filter(|_| version.current && info.refused.is_none())
}

/// What would keep its standby from taking over.
fn standby_trouble(version: &KekVersionStatus) -> Option<String> {
    version.in_standby.as_ref().and_then(|(_, found)| in_words(found, version.current))
}

fn in_words(found: &Result<Option<KekInfo>, TokenError>, wraps: bool) -> Option<String> {
    match found {
        Err(TokenError { operation, what, .. }) => Some(format!("unknown: {operation}: {what}")),
        Ok(None) => Some("is not in this token".into()),
        Ok(Some(info)) => match (&info.refused, &info.half) {
            (Some(refused), _) => Some(format!("refused: {refused}")),
            (None, Some(half)) if wraps => Some(format!("misconfigured: {half}")),
            (None, _) => (!info.enabled).then(|| "disabled".into()),
        },
    }
}

/// Over the rows of [`version_row`].
pub(crate) fn heading(with_token: bool) -> Vec<String> {
    let token = if with_token { &["TOKEN"][..] } else { &[] };
    ["KEK", "PROFILE", "CKA_ID"].iter().chain(token).chain(&["STATE"]).map(|&name| name.into()).collect()
}

/// One row: name, profile, CKA_ID, the token where there are several, state.
pub(crate) fn version_row(
    kek: &KekStatus,
    version: &KekVersionStatus,
    with_token: bool,
    unproved: &BTreeSet<KekVersion>,
) -> Vec<String> {
    let mut row = vec![
        format!("{}/{}", kek.name, version.record.version),
        version.record.profile.to_string(),
        version.record.id.to_string(),
    ];
    if with_token {
        row.push(version.record.token.to_string());
    }
    let state = trouble(version).unwrap_or_else(|| "ok".into());
    let mut state = match version.record.retired_unix {
        Some(since) => format!("{state}, retired {}", utc(since)),
        None if version.current && kek.versions.len() > 1 => format!("{state}, wraps new AEKs"),
        None => state,
    };
    if unproved.contains(&KekVersion::new(kek.name.clone(), version.record.version)) {
        state.push_str(", never proved");
    }
    row.push(state);
    row
}

/// What weakens the KEKs' promises, a line each.
pub(crate) fn kek_warnings(keks: &[KekStatus]) -> String {
    let versions = keks.iter().flat_map(|kek| kek.versions.iter().map(move |version| (kek, version)));
    let found = versions.filter_map(|(kek, version)| {
        let info = version.in_token.as_ref().ok()?.as_ref()?;
        Some(warning_lines(&format!("{}/{}", kek.name, version.record.version), info))
    });
    found.collect()
}

fn warning_lines(kek: &str, info: &KekInfo) -> String {
    info.warnings.iter().map(|warning| format!("warning: KEK {kek}: {warning}\n")).collect()
}

fn unaddressable_lines(keys: &[(&TokenName, UnaddressableKey)], with_token: bool) -> String {
    if keys.is_empty() {
        return String::new();
    }
    let row = |(token, key): &(&TokenName, UnaddressableKey)| {
        let mut row = vec![format!("  {:?}", key.label), format!("{}, {} bits", key.kind, key.bits), key.why.clone()];
        if with_token {
            row.insert(2, token.to_string());
        }
        row
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    let heading = format!("in the token, cannot be KEKs without a CKA_ID of 1 to {} bytes:\n", KekId::BYTES_MAX);
    heading + &columns(&rows)
}

fn list_lines(listed: &Listed<'_>, unknown: &[(&TokenName, KekInfo)], with_token: bool) -> String {
    let keks = listed.keks;
    let row = |kek, version| version_row(kek, version, with_token, listed.unproved);
    let rows = keks.iter().flat_map(|kek| kek.versions.iter().map(move |version| row(kek, version)));
    let mut lines = String::new();
    if !keks.is_empty() {
        lines.push_str(&table(heading(with_token), rows));
    } else {
        lines.push_str("no KEK in the store: make one with `keyleash kek create NAME`\n");
    }
    lines.push_str(&kek_warnings(keks));
    if !unknown.is_empty() {
        lines.push_str("in the token, unknown to the store:\n");
        let row = |(token, info): &(&TokenName, KekInfo)| {
            let profile = info.profile.map_or_else(|| "no profile".into(), |profile| profile.to_string());
            let warned =
                || info.warnings.iter().map(|warning| format!("warning: {warning}")).collect::<Vec<_>>().join("; ");
            let state = in_words(&Ok(Some(info.clone())), true).unwrap_or_else(warned);
            let mut row = vec![format!("  {:?}", info.label), profile, info.id.to_string(), state];
            if with_token {
                row.insert(3, token.to_string());
            }
            row
        };
        lines.push_str(&fitted(&unknown.iter().map(row).collect::<Vec<_>>()));
    }
    lines
}

fn show_lines(kek: &KekStatus, with_token: bool) -> String {
    let mut lines = String::new();
    for version in &kek.versions {
        let mut rows = vec![
            vec!["CKA_ID".into(), version.record.id.to_string()],
            vec!["profile".into(), version.record.profile.to_string()],
        ];
        if with_token {
            rows.push(vec!["token".into(), version.record.token.to_string()]);
        }
        if let Some((standby, _)) = &version.in_standby {
            let state = standby_trouble(version).unwrap_or_else(|| "ok".into());
            rows.push(vec!["standby".into(), format!("{standby}: {state}")]);
        }
        if let Ok(Some(info)) = &version.in_token {
            let or_unknown = |known: Option<bool>| known.map_or("the token does not say", yes_no).to_owned();
            rows.extend([
                vec!["label".into(), info.label.clone()],
                vec!["bits".into(), info.bits.to_string()],
                vec!["enabled".into(), yes_no(info.enabled).into()],
                vec!["modifiable".into(), or_unknown(info.modifiable)],
                vec!["destroyable".into(), or_unknown(info.destroyable)],
            ]);
        }
        let backup = version
            .record
            .backup_attested_unix
            .map_or_else(|| "not attested".into(), |at| format!("attested {}", utc(at)));
        rows.push(vec!["backup".into(), backup]);
        rows.push(vec!["recoverable".into(), yes_no(version.is_recoverable()).into()]);
        rows.push(vec!["state".into(), trouble(version).unwrap_or_else(|| "ok".into())]);
        if let Ok(Some(info)) = &version.in_token {
            rows.extend(info.warnings.iter().map(|warning| vec!["warning".into(), warning.clone()]));
        }
        let rows: Vec<_> = rows.into_iter().map(|row| [vec![" ".into()], row].concat()).collect();
        let current = match version.record.retired_unix {
            _ if version.current => " (wraps new AEKs)".into(),
            Some(since) => format!(" (retired {})", utc(since)),
            None => String::new(),
        };
        lines.push_str(&format!("KEK {}/{}{current}\n", kek.name, version.record.version));
        lines.push_str(&columns(&rows));
    }
    if kek.policy != KekPolicy::default() {
        lines.push_str(&format!("KEK {}: {}\n", kek.name, kek_policy_words(kek.policy)));
    }
    lines
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
