//! `config show`, `config init`.

use crate::{
    args::ConfigCommand,
    exit::Failure,
    grant,
    output::{Output, table},
    setup::{CONFIG_DEFAULT, read_config},
};
use keyleash::{
    Error,
    config::page::{Shown, template},
    name::{KekName, TokenName},
};
use serde_json::{Value, json};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// It may say where the PIN is.
const MODE: u32 = 0o600;

pub(crate) fn run(command: ConfigCommand, config: Option<&Path>, output: Output) -> Result<(), Failure> {
    match command {
        ConfigCommand::Show => {
            let (file, read) = read_config(config)?;
            let shown = file.shown();
            // After it is shown: what is wrong with it is easier to see then.
            let standbys = file.standbys();
            let granted = file.grants().iter().map(|grant| {
                vec![format!("grant[{}]", grant.callers), grant::scope_words(grant), grant.id.to_string()]
            });
            let roles = file
                .roles()
                .map(|(role, origin)| vec![format!("role[{}]", role.name), grant::role_words(role), origin.to_owned()]);
            let rows = shown.iter().map(row).chain(standbys.iter().map(standby_row)).chain(granted).chain(roles);
            let lines = table(heading(), rows);
            let from = read.map_or_else(|| "no file".to_owned(), |path| path.display().to_string());
            let standbys: Vec<_> = standbys
                .iter()
                .map(|(kek, standby, from)| json!({ "kek": kek.as_str(), "standby": standby.as_str(), "from": from }))
                .collect();
            let settings: Vec<_> = shown.iter().map(shown_json).collect();
            let grants: Vec<_> = file.grants().iter().map(grant::grant_json).collect();
            let roles: Vec<_> = file.roles().map(|(role, _)| grant::role_json(role)).collect();
            let result =
                json!({ "file": from, "settings": settings, "standbys": standbys, "grants": grants, "roles": roles });
            output.result(&result, &format!("{lines}read: {from}\n"))?;
            file.resolve()?;
            Ok(())
        }
        ConfigCommand::Init => {
            let place = config.unwrap_or_else(|| Path::new(CONFIG_DEFAULT));
            let opened = OpenOptions::new().write(true).create_new(true).mode(MODE).open(place);
            // Half of one would be in the way of the next.
            let written = opened.and_then(|mut file| {
                file.write_all(template().as_bytes()).inspect_err(|_| drop(fs::remove_file(place)))
            });
            written.map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Error::Exists(place.display().to_string()).into(),
                _ => Failure::io(place.display(), error),
            })?;
            let line = format!("{}: written, with every key and its default as a comment\n", place.display());
            output.result(&json!({ "file": place.display().to_string() }), &line)
        }
    }
}

fn heading() -> Vec<String> {
    ["KEY", "IN FORCE", "FROM"].map(String::from).into()
}

fn row(Shown { key, token, value, origin, .. }: &Shown) -> Vec<String> {
    let default = || key.default.clone().unwrap_or_else(|| "-".into());
    let name = format!("{}.{}", key.section, key.key);
    // It is named already.
    let origin = origin.as_deref().map(|origin| origin.trim_end_matches(&format!(": {name}")).to_owned());
    let name = token.as_ref().map_or(name, |token| format!("{}[{token}].{}", key.section, key.key));
    vec![name, value.clone().unwrap_or_else(default), origin.unwrap_or_else(|| "default".into())]
}

fn standby_row((kek, standby, origin): &(KekName, TokenName, String)) -> Vec<String> {
    let origin = origin.trim_end_matches(": kek.standby");
    vec![format!("kek[{kek}].standby"), standby.to_string(), origin.to_owned()]
}

fn shown_json(Shown { key, token, value, origin, .. }: &Shown) -> Value {
    json!({
        "section": key.section, "key": key.key, "variable": key.variable, "value": value, "default": key.default,
        "allowed": key.bounds, "from": origin, "token": token.as_ref().map(TokenName::as_str),
    })
}
