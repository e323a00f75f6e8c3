//! `store check`, `shred`.

use crate::{
    args::Store as Command,
    exit::Failure,
    output::{Output, count},
    setup::{Setup, Store},
};
use keyleash::store::check::check;
use serde_json::json;

pub(crate) async fn run(command: Command, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Command::Shred => {
            let store = setup.store(Store::Existing).await?;
            store.shred(Vec::new()).await?;
            let path = setup.store_path().display();
            let line = format!("store {path}: what was deleted or replaced is written over\n");
            output.result(&json!({ "store": path.to_string(), "shredded": true }), &line)
        }
        Command::Check => {
            // Opening it verifies every page of the file; asks no token.
            let store = setup.store(Store::Existing).await?;
            let found = check(&*store).await?;
            for error in &found.findings {
                output.note(&format!("keyleash: {error}"));
            }
            let path = setup.store_path().display();
            let findings: Vec<_> = found.findings.iter().map(ToString::to_string).collect();
            let result = json!({
                "store": path.to_string(), "accounts": found.accounts, "keks": found.keks, "denials": found.denials,
                "found": found.found, "findings": findings,
            });
            let whole = if found.found == 0 { "all of it is whole" } else { "NOT all of it is whole" };
            let line = format!(
                "store {path}: {}, {}, {}; {whole}\n",
                count(found.accounts, "account"),
                count(found.keks, "KEK"),
                count(found.denials, "denial")
            );
            output.result(&result, &line)?;
            match found.findings.first() {
                None => Ok(()),
                first => Err(Failure::partial(
                    format!("{} found in the store: see what was said of each", count(found.found, "fault")),
                    first,
                )),
            }
        }
    }
}
