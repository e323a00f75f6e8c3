//! `token check`.

use crate::{
    args::Token,
    exit::{Failure, ended},
    output::{Output, REPORT_COLUMNS, within},
    setup::{Setup, token_name},
};
use keyleash::{
    Engine, Error,
    name::TokenName,
    token::{Probe, Profile, TokenInfo},
};
use serde_json::{Value, json};

/// The mechanisms that the profiles and the making of KEKs stand on.
const RELEVANT: [&str; 7] = [
    "CKM_AES_GCM",
    "CKM_AES_KEY_GEN",
    "CKM_AES_KEY_WRAP",
    "CKM_RSA_PKCS_KEY_PAIR_GEN",
    "CKM_RSA_PKCS_OAEP",
    "CKM_SHA256",
    "CKM_SHA_1",
];

/// What was found of one token.
struct Checked {
    name: TokenName,
    info: TokenInfo,
    probes: Vec<(Profile, Result<Probe, Error>)>,
    problems: Vec<String>,
}

/// Reports on every token that answers, then ends as the first thing that is wrong.
pub(crate) async fn run(Token::Check { token }: Token, setup: &Setup, output: Output) -> Result<(), Failure> {
    let token = token.map(|token| token_name(&token)).transpose()?;
    let engine = setup.engine_of_no_store().await?;
    let names = token.map_or_else(|| engine.tokens(), |token| vec![token]);
    let (mut checked, mut failed) = (Vec::new(), None);
    for name in &names {
        match check(&engine, name).await {
            Ok(found) => checked.push(found),
            Err(error) if names.len() == 1 => return Err(error.into()),
            Err(error) => {
                output.note(&format!("keyleash: token {name}: {}", ended(&error)));
                failed = failed.or(Some(error));
            }
        }
    }
    if let Some(first) = checked.first_mut() {
        first.problems.splice(0..0, engine.warnings().to_vec());
    }
    match &checked[..] {
        [only] if names.len() == 1 => output.result(&report_json(only), &report_lines(only))?,
        all => {
            let named = |found: &Checked| format!("token {}\n{}", found.name, report_lines(found));
            let tokens: Vec<_> = all.iter().map(report_json).collect();
            output.result(&json!({ "tokens": tokens }), &all.iter().map(named).collect::<Vec<_>>().join("\n"))?;
        }
    }
    // The report said why for each; the default profile's reason decides the exit status.
    for Checked { probes, .. } in checked {
        let usable = probes.iter().any(|(_, probe)| probe.is_ok());
        match probes.into_iter().next() {
            Some((_, Err(error))) if !usable => failed = failed.or(Some(error)),
            _ => {}
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

async fn check(engine: &Engine, token: &TokenName) -> Result<Checked, Error> {
    let info = engine.token_info(token).await?;
    let mut probes = Vec::new();
    for profile in Profile::ALL {
        probes.push((profile, engine.probe_on(token, profile).await));
    }
    let mut problems = refused_keys(engine, token).await?;
    problems.extend(default_profile_problem(&probes));
    Ok(Checked { name: token.clone(), info, probes, problems })
}

async fn refused_keys(engine: &Engine, token: &TokenName) -> Result<Vec<String>, Error> {
    let keys = engine.unknown_keks_in(token).await?;
    let refused = keys.into_iter().filter_map(|key| Some((key.label, key.refused.or(key.half)?)));
    let unaddressable = engine.unaddressable_keys_in(token).await?.into_iter().map(|key| (key.label, key.why));
    Ok(refused.chain(unaddressable).map(|(label, why)| format!("the key {label:?} cannot be a KEK: {why}")).collect())
}

fn default_profile_problem(probes: &[(Profile, Result<Probe, Error>)]) -> Option<String> {
    let mut usable = probes.iter().filter(|(_, probe)| probe.is_ok()).map(|(profile, _)| profile.name());
    match usable.next() {
        None => Some("no wrap profile works: this token cannot hold a KEK".into()),
        Some(name) if name == Profile::AesGcm.name() => None,
        Some(name) => {
            let default = Profile::AesGcm;
            Some(format!("the default profile {default} does not work here: make KEKs with --profile {name}"))
        }
    }
}

fn report_json(Checked { name, info, probes, problems }: &Checked) -> Value {
    let profiles: Vec<_> = probes
        .iter()
        .map(|(profile, probe)| match probe {
            Ok(probe) => json!({
                "profile": profile.name(),
                "usable": true,
                "wrap_us": probe.wrap.as_secs_f64() * 1e6,
                "unwrap_us": probe.unwrap.as_secs_f64() * 1e6,
            }),
            Err(error) => json!({ "profile": profile.name(), "usable": false, "trouble": error.to_string() }),
        })
        .collect();
    json!({ "name": name.as_str(), "token": info_json(info), "profiles": profiles, "problems": problems })
}

/// What the token says about itself, as `token check` and `status` give it.
pub(crate) fn info_json(info: &TokenInfo) -> Value {
    json!(info)
}

/// The same for people.
pub(crate) fn info_rows(info: &TokenInfo) -> Vec<Vec<String>> {
    let rows = [
        ("module", info.module.clone()),
        ("slot", info.slot.to_string()),
        ("token", format!("{:?}, serial {}", info.label, info.serial)),
        ("model", info.model.clone()),
    ];
    rows.map(|(name, value)| vec![name.into(), value]).into()
}

fn report_lines(Checked { info, probes, problems, .. }: &Checked) -> String {
    let relevant = info.mechanisms.iter().map(String::as_str).filter(|name| RELEVANT.contains(name));
    let mut rows = info_rows(info);
    rows.push(vec!["mechanisms".into(), relevant.collect::<Vec<_>>().join(" ")]);
    let mut lines = within(&rows, REPORT_COLUMNS);
    lines.push('\n');
    let row = |(profile, probe): &(Profile, Result<Probe, Error>)| {
        let outcome = match probe {
            Ok(probe) => format!("works: wrap {:.1?}, unwrap {:.1?}", probe.wrap, probe.unwrap),
            Err(error) => format!("does not work: {}", ended(error)),
        };
        vec![profile.to_string(), outcome]
    };
    lines.push_str(&within(&probes.iter().map(row).collect::<Vec<_>>(), REPORT_COLUMNS));
    lines.push_str(&format!("\n{}\n", sum(probes)));
    if problems.is_empty() {
        lines.push_str("nothing else is wrong with the set-up\n");
    } else {
        lines.push_str("what to change:\n");
        problems.iter().for_each(|problem| lines.push_str(&format!("- {problem}\n")));
    }
    lines
}

/// Every profile, by whether it works.
fn sum(probes: &[(Profile, Result<Probe, Error>)]) -> String {
    let named = |works: bool| {
        let of_these = probes.iter().filter(|(_, probe)| probe.is_ok() == works);
        of_these.map(|(profile, _)| profile.name()).collect::<Vec<_>>().join(", ")
    };
    match (named(true), named(false)) {
        (works, fails) if fails.is_empty() => format!("every wrap profile works: {works}"),
        (works, fails) if works.is_empty() => format!("no wrap profile works: {fails}"),
        (works, fails) => format!("wrap profiles that work here: {works}; that do not: {fails}"),
    }
}
