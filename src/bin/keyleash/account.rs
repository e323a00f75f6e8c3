//! `account create`, `account list`, `account show`.

use crate::{
    args::Account,
    exit::Failure,
    output::{Output, columns, hex},
    setup::{Setup, Store, account_id, kek_name},
};
use keyleash::store::{PAGE_KEYS_MAX, record::AccountRecord};
use serde_json::{Value, json};

pub(crate) async fn run(command: Account, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Account::Create { id, kek } => {
            let (id, kek) = (account_id(&id)?, kek_name(&kek)?);
            let engine = setup.engine(Store::Existing).await?;
            engine.create_account(&id, &kek).await?;
            let record = engine.account_record(&id).await?;
            output
                .result(&record_json(&record), &format!("account {id}: AEK version 1, wrapped by {}\n", keks(&record)))
        }
        Account::List => {
            let engine = setup.engine(Store::Optional).await?;
            let mut ids = Vec::new();
            loop {
                let page = engine.accounts(ids.last(), PAGE_KEYS_MAX).await?;
                let more = page.len() == PAGE_KEYS_MAX;
                ids.extend(page);
                if !more {
                    break;
                }
            }
            let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
            let ids: Vec<_> = ids.iter().map(|id| id.as_str()).collect();
            output.result(&json!({ "accounts": ids }), &lines)
        }
        Account::Show { id } => {
            let record = setup.engine(Store::Existing).await?.account_record(&account_id(&id)?).await?;
            output.result(&record_json(&record), &record_lines(&record))
        }
    }
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
            })
        })
        .collect();
    json!({ "account": record.account.as_str(), "versions": versions })
}

fn record_lines(record: &AccountRecord) -> String {
    let mut lines = format!("account {}\n", record.account);
    for version in &record.versions {
        let rows = [
            ("wrapped by", format!("KEK {} ({}, CKA_ID {})", version.kek, version.profile, version.kek_id)),
            ("iv", hex(&version.wrapped.iv)),
            ("wrapped", hex(&version.wrapped.bytes)),
            ("check", hex(&version.check)),
        ];
        lines.push_str(&format!("AEK version {}\n", version.aek_version));
        lines.push_str(&columns(&rows.map(|(name, value)| vec![" ".into(), name.into(), value])));
    }
    lines
}

fn keks(record: &AccountRecord) -> String {
    let keks = record.wrapped_by();
    keks.iter().map(|kek| format!("KEK {kek}")).collect::<Vec<_>>().join(", ")
}
