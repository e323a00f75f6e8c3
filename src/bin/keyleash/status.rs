//! `status`.

use crate::{
    args::StatusArgs,
    exit::{Failure, ended},
    kek::{Listed, half, heading, kek_warnings, trouble, unproved, version_row},
    monitor::Monitor,
    output::{Output, columns, count, table},
    setup::{Setup, Store},
    streams::Standard,
    token::{info_json, info_rows},
    warnings,
};
use keyleash::{
    Account, Engine, Error, StoreSilence,
    clock::{unix_now, utc},
    engine::{EngineHealth, KekStatus, LeaseStatus, Status, TokenStatus},
    lease::Phase,
    metrics::Metrics,
    name::{KekVersion, TokenName},
    store::{Filter, KeyStore, PAGE_KEYS_MAX, record::AccountRecord},
    telemetry::Event,
};
use serde_json::{Value, json};
use std::{future::pending, pin::pin, time::Duration};

/// How often a watch looks whether anybody reads it still: nothing may change for days.
const LOOK_FOR_READER: Duration = Duration::from_secs(1);

/// Shows everything, then ends as the first thing that is not granted: a monitor need look at the exit status alone. Or
/// goes on and shows what changes.
pub(crate) async fn run(args: StatusArgs, setup: &Setup, output: Output) -> Result<(), Failure> {
    let StatusArgs { watch, listen, prometheus } = args;
    if prometheus && output.is_json() {
        return Err(Failure::Usage("--prometheus and --json: one of the two".into()));
    }
    let monitor = match listen {
        Some(address) => Some(Monitor::listen(address, output).await?),
        None => None,
    };
    if watch {
        warnings::with_times();
    }
    let store = setup.store(Store::Read).await?;
    // What is wrong with the set-up stands in the report.
    warnings::leave_set_up_out(true);
    let engine = setup.full_engine(store.clone()).await?;
    warnings::leave_set_up_out(false);
    let mut events = engine.events();
    let keks = engine.keks().await?;
    let (mut accounts, mut refusal) = (Vec::new(), None);
    for kek in &keks {
        for version in &kek.versions {
            let version = KekVersion::new(kek.name.clone(), version.record.version);
            match prove(&engine, &*store, &version).await {
                Ok(account) => accounts.extend(account),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
    }
    let (status, unproved) = (engine.status().await, unproved(&*store, &keks).await?);
    let listed = Listed { keks: &keks, unproved: &unproved };
    let lines = match prometheus {
        true => Metrics::of(&engine).prometheus(),
        false => report_lines(&status, &listed, watch),
    };
    output.result(&report_json(&status, &engine.health(), &listed), &lines)?;
    if watch {
        // What the proofs themselves brought about is in the report.
        while events.try_next().is_some() {}
        // They are shown here, on standard output.
        warnings::leave_events_out();
        let mut served = pin!(async {
            match &monitor {
                Some(monitor) => monitor.serve(&engine).await,
                None => pending().await,
            }
        });
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => output.result(&event_json(&event), &format!("{} {event}\n", utc(unix_now())))?,
                    None => break,
                },
                () = &mut served => break,
                () = tokio::time::sleep(LOOK_FOR_READER) => if Standard::Output.reader_is_gone() {
                    return Err(Failure::Closed);
                },
            }
        }
    }
    // Kept until here, so that the engine had keys to watch over.
    drop(accounts);
    let silent = status.tokens.into_iter().find_map(|token| token.info.err()).map(Error::from);
    silent.or(refusal).or_else(|| half_a_key(&keks)).map_or(Ok(()), |error| Err(error.into()))
}

/// What is granted and wraps nothing new all the same.
fn half_a_key(keks: &[KekStatus]) -> Option<Error> {
    keks.iter().find_map(|kek| {
        let version = kek.versions.iter().find(|version| half(version).is_some())?;
        let why = half(version)?;
        Some(Error::Misconfigured(format!("KEK {}/{}: {why}", kek.name, version.record.version)))
    })
}

/// Opens an account under a KEK version, if there is one that is not deleted: the proof starts the lease that is shown. A record that
/// cannot be read counts where there is no other.
async fn prove(engine: &Engine, store: &dyn KeyStore, kek: &KekVersion) -> Result<Option<Account>, Error> {
    let (mut after, mut unreadable) = (None, None);
    loop {
        let page = store.list(&Filter::WrappedBy(kek.clone()), after.as_ref(), PAGE_KEYS_MAX).await?;
        for (key, found) in page.keys.iter().zip(store.get_many(&page.keys).await) {
            let found = found.transpose();
            match found.map(|found| AccountRecord::decode(key, &found?.value)) {
                Some(Ok(record)) if record.deleted.is_none() => {
                    return match engine.account(&record.account).await {
                        Err(Error::Forbidden(_)) => Ok(None), // it is others who watch over that one
                        opened => opened.map(Some),
                    };
                }
                Some(Err(error)) => unreadable = unreadable.or(Some(error)),
                _ => {}
            }
        }
        after = page.next;
        if after.is_none() {
            return unreadable.map_or(Ok(None), Err);
        }
    }
}

fn event_json(event: &Event) -> Value {
    let at_unix = unix_now();
    match event {
        Event::Lease { kek, change, trouble } => json!({
            "event": change.to_string(), "at_unix": at_unix, "kek": kek.name.as_str(), "kek_version": kek.version,
            "trouble": trouble,
        }),
        Event::AekRotated { account, aek_version, why } => json!({
            "event": "rotation", "at_unix": at_unix, "account": account, "aek_version": aek_version, "why": why.to_string(),
        }),
        Event::KekRotated { kek, why } => json!({
            "event": "rotation", "at_unix": at_unix, "kek": kek.name.as_str(), "kek_version": kek.version,
            "why": why.to_string(),
        }),
        other => json!({ "event": "other", "at_unix": at_unix, "what": other.to_string() }),
    }
}

fn lease_json(lease: &LeaseStatus) -> Value {
    json!({
        "kek": lease.kek.name.as_str(),
        "kek_version": lease.kek.version,
        "token": lease.token.as_str(),
        "on_standby": lease.on_standby.as_ref().map(TokenName::as_str),
        "phase": lease.phase.name(),
        "proved_ago_s": lease.proved_ago.map(|ago| ago.as_secs_f64()),
        "fresh_ago_s": lease.fresh_ago.map(|ago| ago.as_secs_f64()),
        "ends_in_s": lease.ends_in.as_secs_f64(),
        "aeks": lease.filled_slots,
        "aeks_awaited": lease.wanted_slots,
        "trouble": lease.trouble,
    })
}

fn store_json(silence: &StoreSilence) -> Value {
    json!({
        "answers": false,
        "silent_s": silence.lasting.as_secs_f64(),
        "why": silence.why,
        "keys_last_s": silence.keys_last.as_secs_f64(),
    })
}

fn token_json(token: &TokenStatus) -> Value {
    json!({
        "name": token.name.as_str(),
        "token": token.info.as_ref().ok().map(info_json),
        "token_trouble": token.info.as_ref().err().map(ToString::to_string),
        "workers": {
            "alive": token.workers.alive,
            "hung": token.workers.hung,
            "hung_max": token.workers.hung_max,
        },
    })
}

fn health_json(health: &EngineHealth) -> Value {
    let keks: Vec<_> =
        health.keks.iter().map(|kek| json!({ "kek": kek.kek.as_str(), "health": kek.health.name() })).collect();
    json!({ "engine": health.health.name(), "keks": keks })
}

fn report_json(status: &Status, health: &EngineHealth, listed: &Listed<'_>) -> Value {
    let tokens: Vec<_> = status.tokens.iter().map(token_json).collect();
    // The default token's, once more: fields are only added.
    let of_default = |field: &str| tokens.first().and_then(|token| token.get(field)).cloned();
    json!({
        "token": of_default("token"),
        "token_trouble": of_default("token_trouble"),
        "workers": of_default("workers"),
        "tokens": tokens,
        "keks": listed.json(),
        "health": health_json(health),
        "leases": status.leases.iter().map(lease_json).collect::<Vec<_>>(),
        "store": status.store_silence.as_ref().map_or_else(|| json!({ "answers": true }), store_json),
        "cached_accounts": status.cached_accounts,
        "waiting_wipes": status.waiting_wipes.len(),
        "unlocked_bytes": status.unlocked_bytes,
        "warnings": status.warnings,
    })
}

fn report_lines(status: &Status, listed: &Listed<'_>, goes_on: bool) -> String {
    let (keks, with_token) = (listed.keks, status.tokens.len() > 1);
    let said = |words: String| if goes_on { words } else { ended(words) };
    let mut lines = String::new();
    for token in &status.tokens {
        let mut rows = match &token.info {
            Ok(info) => info_rows(info),
            Err(trouble) => vec![vec!["token".into(), said(format!("{trouble}; {}", trouble.remedy))]],
        };
        let workers = token.workers;
        rows.push(vec![
            "workers".into(),
            format!("{} alive, {} of {} hang", workers.alive, workers.hung, workers.hung_max),
        ]);
        if status.tokens.len() > 1 {
            rows.insert(0, vec!["name".into(), token.name.to_string()]);
        } else {
            rows.push(vec!["cached".into(), count(status.cached_accounts, "account")]);
        }
        lines.push_str(&columns(&rows));
        lines.push('\n');
    }
    let rows = keks.iter().flat_map(|kek| {
        kek.versions.iter().map(|version| {
            let mut row = version_row(kek, version, with_token, listed.unproved);
            let of_this =
                |lease: &&LeaseStatus| lease.kek.name == kek.name && lease.kek.version == version.record.version;
            if trouble(version).is_none() || half(version).is_some() {
                row.push(
                    status
                        .leases
                        .iter()
                        .find(of_this)
                        .map_or_else(|| "no account yet".into(), |lease| said(lease_words(lease))),
                );
            }
            row
        })
    });
    let mut heading = heading(with_token);
    heading.push("LEASE".into());
    if !keks.is_empty() {
        lines.push_str(&table(heading, rows));
    }
    lines.push_str(&kek_warnings(keks));
    if keks.is_empty() {
        lines.push_str("no KEK in the store: make one with `keyleash kek create NAME`\n");
    }
    if let Some(StoreSilence { lasting, why, keys_last, .. }) = &status.store_silence {
        let (lasting, left) = (lasting.as_secs(), keys_last.as_secs());
        let silent = if lasting == 0 { "store silent".into() } else { format!("store silent for {lasting} s") };
        lines.push_str(&format!("{silent} ({why}), keys in use go on for {left} s\n"));
    }
    status.warnings.iter().for_each(|warning| lines.push_str(&format!("\nwarning: {warning}\n")));
    lines
}

fn lease_words(lease: &LeaseStatus) -> String {
    let phase = match lease.phase {
        Phase::Unproven => "never proved",
        phase => phase.name(),
    };
    let trouble = lease.trouble.as_ref().map_or_else(String::new, |trouble| format!(", {trouble}"));
    let by = lease.on_standby.as_ref().map_or_else(String::new, |standby| format!(" by standby {standby}"));
    format!("lease {phase}{by}, ends in {} s{trouble}", lease.ends_in.as_secs())
}
