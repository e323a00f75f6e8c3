//! `schedule`, and the policies that `kek policy` and `account policy` set.

use crate::{
    args::{AekPolicyArgs, KekPolicyArgs, ScheduleArgs},
    exit::{Failure, ended},
    output::{Output, columns, count, hex},
    setup::{Setup, Store, account_id, kek_name},
};
use keyleash::{
    Error,
    access::Operation,
    clock::utc,
    name::{KekVersion, SecretId},
    rotate::{AekSchedule, KekSchedule, Schedule, WorkReport},
    secrets::SecretsReport,
    store::{
        self,
        record::{AekPolicy, KekPolicy, WorkRecord},
    },
};
use serde_json::{Value, json};
use std::time::Duration;

/// Accounts that are named of those that come next.
const NEXT_SHOWN_MAX: usize = 10;

pub(crate) async fn run(args: ScheduleArgs, setup: &Setup, output: Output) -> Result<(), Failure> {
    let ScheduleArgs { run, limit } = args;
    let engine = setup.engine(if run { Store::Existing } else { Store::Read }).await?;
    if !run {
        let schedule = engine.schedule(limit.max(NEXT_SHOWN_MAX)).await?;
        for (_, error) in &schedule.failures {
            output.note(&format!("keyleash: {}", ended(error)));
        }
        output.result(&schedule_json(&schedule, limit), &schedule_lines(&schedule, limit))?;
        return match schedule.failures.first() {
            None => Ok(()),
            Some((_, error)) => Err(Failure::partial(
                format!("{} cannot be read, and may be due", count(schedule.unreadable, "record")),
                Some(error),
            )),
        };
    }
    let report = engine.run_schedule().await?;
    // Who is at work elsewhere does these as well. What fails of them is an event, which is shown as it comes.
    let secrets = match report.held_by {
        Some(_) => SecretsReport::default(),
        None => engine.secrets().run_schedule().await?,
    };
    for (subject, error) in &report.failures {
        output.note(&format!("keyleash: {subject}: {}", ended(error)));
    }
    output.result(&report_json(&report, &secrets), &report_lines(&report, &secrets))?;
    let failed = report.failed + secrets.failures.len() as u64;
    match report.stopped {
        Some(error) => Err(error.into()),
        None if failed > 0 => Err(Failure::partial(
            format!(
                "{} by schedule not done, and left as they were: see what was said of each",
                count(failed, "thing")
            ),
            report.failures.first().map(|(_, error)| error).or(secrets.failures.first().map(|(_, error)| error)),
        )),
        None => Ok(()),
    }
}

/// Sets what was given, and shows the account's policy.
pub(crate) async fn aek_policy(args: AekPolicyArgs, setup: &Setup, output: Output) -> Result<(), Failure> {
    let id = account_id(&args.id)?;
    let store = setup.store(Store::Existing).await?;
    setup.permit(&store, Operation::Get, Some(&id), None).await?;
    let found = store::load_account(&*store, &id).await?;
    let (record, _) = found.ok_or_else(|| Error::NotFound(format!("account {id}")))?;
    let AekPolicyArgs { max_age, max_blocks, max_bytes, none, .. } = args;
    let now = if none { AekPolicy::default() } else { record.policy };
    let policy = AekPolicy {
        max_age_secs: max_age.map_or(now.max_age_secs, |age| age.as_secs()),
        max_blocks: max_blocks.unwrap_or(now.max_blocks),
        max_bytes: max_bytes.unwrap_or(now.max_bytes),
    };
    if policy != record.policy {
        setup.engine(Store::Existing).await?.set_aek_policy(&id, policy).await?;
    }
    let result = json!({ "account": id.as_str(), "policy": aek_policy_json(policy) });
    output.result(&result, &format!("account {id}: {}\n", aek_policy_words(policy)))
}

/// As [`aek_policy`], of a KEK.
pub(crate) async fn kek_policy(args: KekPolicyArgs, setup: &Setup, output: Output) -> Result<(), Failure> {
    let name = kek_name(&args.name)?;
    let store = setup.store(Store::Existing).await?;
    setup.permit(&store, Operation::Get, None, Some(&name)).await?;
    let found = store::load_kek(&*store, &name).await?;
    let missing = || Error::NotFound(format!("KEK {name}: create it first (`keyleash kek create {name}`)"));
    let (record, _) = found.ok_or_else(missing)?;
    let policy = match (args.max_age, args.none) {
        (Some(age), _) => KekPolicy { max_age_secs: age.as_secs() },
        (None, true) => KekPolicy::default(),
        (None, false) => record.policy,
    };
    if policy != record.policy {
        setup.engine(Store::Existing).await?.set_kek_policy(&name, policy).await?;
    }
    let result = json!({ "kek": name.as_str(), "policy": kek_policy_json(policy) });
    output.result(&result, &format!("KEK {name}: {}\n", kek_policy_words(policy)))
}

pub(crate) fn aek_policy_json(policy: AekPolicy) -> Value {
    let AekPolicy { max_age_secs, max_blocks, max_bytes } = policy;
    json!({ "max_age_s": limit(max_age_secs), "max_blocks": limit(max_blocks), "max_bytes": limit(max_bytes) })
}

pub(crate) fn kek_policy_json(policy: KekPolicy) -> Value {
    json!({ "max_age_s": limit(policy.max_age_secs) })
}

fn limit(limit: u64) -> Option<u64> {
    (limit != 0).then_some(limit)
}

pub(crate) fn aek_policy_words(policy: AekPolicy) -> String {
    let age = limit(policy.max_age_secs).map(age);
    let blocks = limit(policy.max_blocks).map(|blocks| count(blocks, "block"));
    let bytes = limit(policy.max_bytes).map(|bytes| count(bytes, "byte"));
    let limits: Vec<_> = [age, blocks, bytes].into_iter().flatten().collect();
    match limits.as_slice() {
        [] => "not rotated by schedule".into(),
        limits => format!("its AEK is rotated after {}", limits.join(" or ")),
    }
}

pub(crate) fn kek_policy_words(policy: KekPolicy) -> String {
    match limit(policy.max_age_secs) {
        None => "not rotated by schedule".into(),
        Some(secs) => format!("rotated after {}, and what it wraps re-wrapped", age(secs)),
    }
}

/// In whole days where it is; humantime would write years of 365.25 days.
pub(crate) fn age(secs: u64) -> String {
    const DAY: u64 = 24 * 60 * 60;
    if secs.is_multiple_of(DAY) {
        return count(secs / DAY, "day");
    }
    humantime::format_duration(Duration::from_secs(secs)).to_string()
}

fn kek_json(kek: &KekVersion) -> Value {
    json!({ "kek": kek.name.as_str(), "kek_version": kek.version })
}

fn account_json(account: &AekSchedule) -> Value {
    json!({
        "account": account.account.as_str(), "aek_version": account.aek_version,
        "due_at_unix": account.due_at_unix, "due": account.due.map(|due| due.to_string()),
    })
}

fn holder_json(holder: &WorkRecord) -> Value {
    json!({ "holder": hex(&holder.holder), "fence": holder.fence, "until_unix": holder.until_unix })
}

fn schedule_json(schedule: &Schedule, limit: usize) -> Value {
    let kek = |kek: &KekSchedule| {
        json!({
            "kek": kek.kek.name.as_str(), "kek_version": kek.kek.version, "due_at_unix": kek.due_at_unix,
            "due": kek.due.map(|due| due.to_string()), "left_behind": kek.left_behind,
        })
    };
    json!({
        "now_unix": schedule.now_unix,
        "held": schedule.is_held(),
        "holder": schedule.holder.as_ref().map(holder_json),
        "keks": schedule.keks.iter().map(kek).collect::<Vec<_>>(),
        "accounts_due": schedule.accounts_due,
        "due": schedule.due.iter().take(limit).map(account_json).collect::<Vec<_>>(),
        "next": schedule.next.iter().take(NEXT_SHOWN_MAX).map(account_json).collect::<Vec<_>>(),
        "unreadable": schedule.unreadable,
        "failures": schedule.failures.iter().map(failure_json).collect::<Vec<_>>(),
    })
}

fn schedule_lines(schedule: &Schedule, limit: usize) -> String {
    let holder = match &schedule.holder {
        None => "nobody yet".into(),
        Some(holder) if schedule.is_held() => {
            format!("{} (fence {}), until {}", hex(&holder.holder), holder.fence, utc(holder.until_unix))
        }
        Some(holder) => format!("nobody now (fence {})", holder.fence),
    };
    let mut lines = format!("scheduled work is done by {holder}\n");
    let mut rows = Vec::new();
    for kek in &schedule.keks {
        let name = format!("KEK {}", kek.kek);
        match kek.due {
            Some(due) => rows.push(vec![name.clone(), "due".into(), due.to_string()]),
            None => rows.push(vec![name.clone(), utc(kek.due_at_unix), "age".into()]),
        }
        if kek.left_behind > 0 {
            let accounts = count(kek.left_behind, "account");
            rows.push(vec![name, "due".into(), format!("{accounts} under older versions to be re-wrapped")]);
        }
    }
    let row = |account: &AekSchedule| {
        let (when, why) = match account.due {
            Some(due) => ("due".into(), due.to_string()),
            None => (account.due_at_unix.map_or_else(String::new, utc), "age".into()),
        };
        vec![format!("account {}", account.account), when, why]
    };
    rows.extend(schedule.due.iter().take(limit).map(row));
    rows.extend(schedule.next.iter().take(NEXT_SHOWN_MAX).map(row));
    lines.push_str(&columns(&rows));
    let named = schedule.due.len().min(limit) as u64;
    if schedule.accounts_due > named {
        lines.push_str(&format!("{} more due\n", count(schedule.accounts_due - named, "account")));
    }
    if rows.is_empty() && schedule.unreadable == 0 {
        lines.push_str("nothing has a policy: see `keyleash account policy --help` and `keyleash kek policy --help`\n");
    }
    lines
}

fn failure_json((subject, error): &(String, Error)) -> Value {
    json!({ "what": subject, "error": error.to_string() })
}

fn report_json(report: &WorkReport, secrets: &SecretsReport) -> Value {
    let secret = |(id, version): &(SecretId, u32)| json!({ "account": id.account.as_str(), "secret": id.name.as_str(), "version": version });
    let secret_failures =
        secrets.failures.iter().map(|(id, error)| failure_json(&(format!("secret {id}"), error.clone())));
    json!({
        "held_by": report.held_by.as_ref().map(holder_json),
        "keks": report.keks.iter().map(|(kek, _)| kek_json(kek)).collect::<Vec<_>>(),
        "accounts": report.accounts,
        "rewrapped": report.rewrapped,
        "failed": report.failed,
        "failures": report.failures.iter().map(failure_json).collect::<Vec<_>>(),
        "secrets": secrets.rotated.iter().map(secret).collect::<Vec<_>>(),
        "secret_failures": secret_failures.collect::<Vec<_>>(),
        "stopped": report.stopped.as_ref().map(ToString::to_string),
    })
}

fn report_lines(report: &WorkReport, secrets: &SecretsReport) -> String {
    if let Some(holder) = &report.held_by {
        return format!(
            "scheduled work is done by {} (fence {}); nothing was done here\n",
            hex(&holder.holder),
            holder.fence
        );
    }
    let mut lines = String::new();
    for (kek, why) in &report.keks {
        lines.push_str(&format!("KEK {kek}: wraps new AEKs ({why})\n"));
    }
    lines.push_str(&format!(
        "{} rotated, {} re-wrapped, {} failed\n",
        count(report.accounts, "account"),
        report.rewrapped,
        report.failed
    ));
    for (id, version) in &secrets.rotated {
        lines.push_str(&format!("secret {id}: its hook made version {version}\n"));
    }
    lines
}
