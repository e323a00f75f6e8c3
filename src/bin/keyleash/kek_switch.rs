//! `kek disable` and `kek enable`: the owner's hand on a KEK in the token. No engine is asked, and no lease: what is denied
//! can be enabled.

use crate::{
    account,
    args::KekSwitch,
    exit::Failure,
    output::{Output, count},
    setup::{Setup, Store, kek_name, kek_version, token_name},
};
use keyleash::{
    Error,
    access::Operation,
    clock::Instant,
    config::Settings,
    name::{KekName, KekVersion, TokenName},
    store::{self, KeyStore, record::KekRecord, record::KekVersionRecord},
    telemetry::trail::{Deed, Subject},
    token::pkcs11::operator::Operator,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, os::unix::ffi::OsStrExt, sync::Arc};

/// A version whose use is switched, and in which token.
struct Target {
    kek: KekVersion,
    record: KekVersionRecord,
    token: TokenName,
    accounts: u64,
}

pub(crate) async fn run(args: KekSwitch, enabled: bool, setup: &Setup, output: Output) -> Result<(), Failure> {
    let store = setup.store(Store::Read).await?;
    let operation = if enabled { Operation::Undelete } else { Operation::Delete };
    setup.permit(&store, operation, None, Some(&named(&args)?.0)).await?;
    let (name, mut targets) = targets(&args, &*store).await?;
    let standby = setup.standby_of(&name).filter(|_| args.token.is_none());
    let what = targets.iter().map(|target| target.words(enabled)).collect::<Vec<_>>().join("\n");
    let effect = effect(&name, enabled, setup, standby);
    let done = args.consent.given(&format!("{what}\n{effect}"), output).await?;
    let mut operators = BTreeMap::new();
    let (mut rows, mut lines, mut failed) = (Vec::new(), String::new(), Vec::new());
    let mut next = 0;
    while let Some(target) = targets.get(next) {
        let switched = match done {
            true => target.switch(enabled, &mut operators, &store, setup).await,
            false => Ok(None),
        };
        rows.push(target.json(switched.as_ref().err()));
        match switched {
            Ok(Some(_)) => lines.push_str(&target.done_line(enabled)),
            Ok(None) => lines.push_str(&format!("{}\n", target.words(enabled))),
            Err(failure) => {
                if targets.len() > 1 {
                    output.note(&format!("keyleash: KEK {}: {failure}", target.kek));
                }
                failed.push(failure);
            }
        }
        next += 1;
        // A version that was made while somebody was asked wraps what is new by now.
        if done && next == targets.len() {
            let known: Vec<_> = targets.iter().map(|target| target.kek.version).collect();
            let (_, now) = self::targets(&args, &*store).await?;
            targets.extend(now.into_iter().filter(|target| !known.contains(&target.kek.version)));
        }
    }
    if failed.is_empty() {
        lines.push_str(&format!("{effect}\n"));
    }
    let Settings { poll_interval, grace, .. } = setup.settings();
    let result = json!({
        "kek": name.as_str(), "enabled": enabled, "dry_run": !done, "versions": rows,
        "heard_within_s": (*poll_interval + setup.call_timeout()).as_secs_f64(), "grace_s": grace.as_secs_f64(),
    });
    output.result(&result, &lines)?;
    let (number, first) = (failed.len() as u64, failed.into_iter().next());
    first.map_or(Ok(()), |first| match &targets[..] {
        [_] => Err(first),
        _ => Err(Failure::Partial {
            what: format!("{} left as they were: see what was said of each", count(number, "version")),
            code: first.code(),
        }),
    })
}

fn named(args: &KekSwitch) -> Result<(KekName, Option<u32>), Failure> {
    match args.kek.as_bytes().contains(&b'/') {
        true => kek_version(&args.kek).map(|kek| (kek.name, Some(kek.version))),
        false => Ok((kek_name(&args.kek)?, None)),
    }
}

async fn targets(args: &KekSwitch, store: &dyn KeyStore) -> Result<(KekName, Vec<Target>), Failure> {
    let (name, version) = named(args)?;
    let found = store::load_kek(store, &name).await?;
    let (record, _) = found.ok_or_else(|| Error::NotFound(format!("KEK {name}: `keyleash kek list` shows all")))?;
    let mut targets = Vec::new();
    for record in chosen(&record, version)? {
        let kek = KekVersion::new(name.clone(), record.version);
        let token = args.token.as_deref().map_or_else(|| Ok(record.token.clone()), token_name)?;
        let accounts = account::list(store, Some(kek.clone())).await?.len() as u64;
        // What a crash left under a version that was retired can be opened as well.
        if version.is_none() && record.retired_unix.is_some() && accounts == 0 {
            continue;
        }
        targets.push(Target { kek, record: record.clone(), token, accounts });
    }
    Ok((name, targets))
}

/// The version that was named, or all.
fn chosen(record: &KekRecord, version: Option<u32>) -> Result<Vec<&KekVersionRecord>, Failure> {
    match version {
        None => Ok(record.versions.iter().collect()),
        Some(version) => match record.version(version) {
            Some(found) => Ok(vec![found]),
            None => Err(Error::NotFound(format!(
                "version {version} of KEK {}: `keyleash kek show {}` shows those that there are",
                record.name, record.name
            ))
            .into()),
        },
    }
}

impl Target {
    async fn switch(
        &self,
        enabled: bool,
        operators: &mut BTreeMap<TokenName, Operator>,
        store: &Arc<dyn KeyStore>,
        setup: &Setup,
    ) -> Result<Option<Instant>, Failure> {
        let mut on = Subject::default();
        (on.kek, on.kek_version) = (Some(self.kek.name.clone()), Some(self.kek.version));
        on.token = Some(self.token.clone());
        let deed = if enabled { Deed::KekEnable } else { Deed::KekDisable };
        setup.acting(store, deed, on, self.switch_in_token(enabled, operators, setup)).await
    }

    async fn switch_in_token(
        &self,
        enabled: bool,
        operators: &mut BTreeMap<TokenName, Operator>,
        setup: &Setup,
    ) -> Result<Option<Instant>, Failure> {
        if !operators.contains_key(&self.token) {
            operators.insert(self.token.clone(), Operator::new(setup.open_token(&self.token).await?));
        }
        let Some(operator) = operators.get(&self.token) else { return Ok(None) };
        let KekVersionRecord { id, profile, .. } = &self.record;
        let switched = match enabled {
            true => operator.enable(id, *profile).await,
            false => operator.disable(id, *profile).await,
        };
        switched.map(Some).map_err(|error| Error::from(error).into())
    }

    fn attribute(&self) -> &'static str {
        Operator::switch_of(self.record.profile)
    }

    fn words(&self, enabled: bool) -> String {
        let (kek, token, under) = (&self.kek, &self.token, count(self.accounts, "account"));
        let to = if enabled { "on" } else { "off" };
        format!("KEK {kek} ({under} under it): {} would go {to} in token {token}", self.attribute())
    }

    fn done_line(&self, enabled: bool) -> String {
        let (kek, token, attribute) = (&self.kek, &self.token, self.attribute());
        let (done, is) = if enabled { ("enabled", "on") } else { ("disabled", "off") };
        format!("KEK {kek}: {done} ({attribute} is {is} in token {token})\n")
    }

    fn json(&self, failure: Option<&Failure>) -> Value {
        json!({
            "kek_version": self.kek.version, "kek_id": self.record.id.to_string(), "token": self.token.as_str(),
            "attribute": self.attribute(), "accounts": self.accounts, "trouble": failure.map(ToString::to_string),
        })
    }
}

/// What it means to the services that use the KEK.
fn effect(name: &KekName, enabled: bool, setup: &Setup, standby: Option<&TokenName>) -> String {
    let shown = |duration| humantime::format_duration(duration);
    let Settings { poll_interval, grace, .. } = *setup.settings();
    let mut effect = if enabled {
        format!("services that use it go on by themselves, within {} (poll_interval)", shown(poll_interval))
    } else {
        format!(
            "services that use it can seal and open nothing any more within {} (poll_interval + call_timeout), and within {} (grace) \
             where they cannot reach the token; nothing is lost: `keyleash kek enable {name}` gives it back",
            shown(poll_interval + setup.call_timeout()),
            shown(grace)
        )
    };
    if let Some(standby) = standby {
        let command = if enabled { "enable" } else { "disable" };
        effect.push_str(&format!(
            "\nits standby {standby} is left as it is, and speaks while the first token is silent: `keyleash kek {command} {name} \
             --token {standby}`"
        ));
    }
    effect
}
