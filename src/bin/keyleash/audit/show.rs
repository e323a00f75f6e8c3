//! `audit show`: lines of trails for people, and with `--json` for machines.

use super::args::Show;
use crate::{
    exit::Failure,
    output::{Output, table},
};
use keyleash::{
    access::Pattern,
    audit::{
        self,
        line::{Line, TALLY},
    },
};
use serde_json::Value;
use std::{ops::ControlFlow, path::PathBuf};

/// Lines that are shown in one table: the columns of the next are as wide as it needs.
const TABLE_LINES: usize = 1000;

/// What lines are asked for.
struct Filter<'a> {
    args: &'a Show,
    account: Option<Pattern>,
    caller: Option<Pattern>,
    kek: Option<Pattern>,
}

impl<'a> Filter<'a> {
    fn new(args: &'a Show) -> Result<Self, Failure> {
        let pattern = |text: &Option<String>| text.as_deref().map(Pattern::new).transpose();
        Ok(Self { args, account: pattern(&args.account)?, caller: pattern(&args.caller)?, kek: pattern(&args.kek)? })
    }

    fn takes(&self, line: &Line) -> bool {
        let Show { span, operation, correlation, failed, tallies, .. } = self.args;
        let fits = |pattern: &Option<Pattern>, name: &Option<String>| {
            pattern.as_ref().is_none_or(|pattern| name.as_deref().is_some_and(|name| pattern.covers(Some(name))))
        };
        let is_failed = line.result.as_deref().is_some_and(|result| result == "failed" || result == "dropped");
        span.from.is_none_or(|from| line.time >= from)
            && span.to.is_none_or(|to| line.time < to)
            && fits(&self.account, &line.account)
            && fits(&self.caller, &line.caller)
            && fits(&self.kek, &line.kek)
            && operation.as_ref().is_none_or(|operation| *operation == line.operation)
            && correlation.as_ref().is_none_or(|id| line.correlation.as_ref() == Some(id))
            && (!failed || is_failed)
            && (*tallies || line.operation != TALLY || operation.as_deref() == Some(TALLY))
    }
}

pub(super) fn run(args: &Show, nodes: &[PathBuf], output: Output) -> Result<(), Failure> {
    let filter = Filter::new(args)?;
    for node in nodes {
        let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (mut rows, mut failure) = (Vec::new(), None);
        audit::read(node, &mut |bytes, place| {
            let line = match Line::parse(bytes) {
                Ok(line) => line,
                Err(what) => {
                    output.note(&format!("keyleash: {name}: {place}: {what}; `keyleash audit verify` says more"));
                    return ControlFlow::Continue(());
                }
            };
            if !filter.takes(&line) {
                return ControlFlow::Continue(());
            }
            let shown = if output.is_json() {
                let mut json: Value = serde_json::from_slice(bytes).unwrap_or_default();
                if let Some(object) = json.as_object_mut() {
                    object.insert("node".into(), name.clone().into());
                }
                output.result(&json, "")
            } else {
                rows.push(row(&name, &line));
                if rows.len() < TABLE_LINES { Ok(()) } else { flush(&mut rows, output) }
            };
            shown.map_or_else(
                |error| {
                    failure = Some(error);
                    ControlFlow::Break(())
                },
                ControlFlow::Continue,
            )
        })?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        flush(&mut rows, output)?;
    }
    Ok(())
}

fn flush(rows: &mut Vec<Vec<String>>, output: Output) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let heading = ["TIME", "NODE", "NUMBER", "OPERATION", "RESULT", "ACCOUNT", "KEK", "CALLER", "MORE"];
    output.result(&Value::Null, &table(heading.map(str::to_owned).to_vec(), rows.drain(..)))
}

fn row(node: &str, line: &Line) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let kek = match (&line.kek, line.kek_version) {
        (Some(kek), Some(version)) => format!("{kek}/{version}"),
        (kek, _) => text(kek),
    };
    let result = match (&line.result, &line.reason) {
        (Some(result), Some(reason)) => format!("{result}: {reason}"),
        (result, reason) => text(if result.is_some() { result } else { reason }),
    };
    let more = [
        ("code", line.code.clone()),
        ("asked", line.asked.clone()),
        ("not granted", line.not_granted.clone()),
        ("secret", line.secret.clone()),
        ("grant", line.grant.as_ref().map(|grant| grant.id.clone())),
        ("role", line.role.as_ref().map(|role| role.name.clone())),
        ("from", line.from.clone()),
        ("took", line.took_us.map(took)),
        ("sealed", line.sealed.map(|sealed| sealed.to_string())),
        ("opened", line.opened.map(|opened| opened.to_string())),
        ("accounts", line.accounts.map(|accounts| accounts.to_string())),
    ];
    let more = more.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
    vec![
        line.time.to_string(),
        node.to_owned(),
        line.seq.to_string(),
        line.operation.clone(),
        result,
        text(&line.account),
        kek,
        text(&line.caller),
        more.collect::<Vec<_>>().join(", "),
    ]
}

fn took(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        _ => format!("{} ms", us / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_is_told_in_milliseconds() {
        assert_eq!((took(999), took(1000), took(2_500_000)), ("999 us".into(), "1 ms".into(), "2500 ms".into()));
    }
}
