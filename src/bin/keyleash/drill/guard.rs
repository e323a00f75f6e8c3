//! Which tokens and files a drill, and the processes that do its acts, may touch.

use super::{args::Options, terms::is_destructive};
use crate::exit::Failure;
use keyleash::{drill::Scenario, token::TokenInfo};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The directory that with-token made for this token: named by SOFTHSM2_CONF, with the token's own label written in it.
pub(crate) fn with_token_directory(info: &TokenInfo) -> Option<PathBuf> {
    let (directory, label) = with_token_place()?;
    let made = label == info.label && info.model.contains("SoftHSM") && directory.join("tokens").is_dir();
    made.then_some(directory)
}

/// Where with-token keeps the token that SOFTHSM2_CONF names, and its label.
fn with_token_place() -> Option<(PathBuf, String)> {
    let conf = PathBuf::from(env::var_os("SOFTHSM2_CONF")?);
    let directory = conf.parent()?.to_owned();
    let label = fs::read_to_string(directory.join("label")).ok()?.trim().to_owned();
    label.starts_with("keyleash-").then_some((directory, label))
}

/// Refuses an act on a token that with-token did not make, unless its serial was told.
pub(crate) fn may_touch(told: Option<&str>, info: &TokenInfo) -> Result<(), Failure> {
    let TokenInfo { label, serial, .. } = info;
    match told {
        Some(told) if told == serial => Ok(()),
        None if with_token_directory(info).is_some() => Ok(()),
        _ => Err(Failure::Usage(format!(
            "with-token did not make the token {label:?}: if it may be acted on, say so: --token-serial {serial}"
        ))),
    }
}

/// Refuses to move, replace or lock what is not in the directory that with-token made.
pub(crate) fn may_move(paths: &[&Path]) -> Result<(), Failure> {
    let place = with_token_place().and_then(|(directory, _)| directory.canonicalize().ok());
    for path in paths {
        let parent = path.file_name().and_then(|_| path.parent()).and_then(|parent| parent.canonicalize().ok());
        if !parent.zip(place.as_ref()).is_some_and(|(parent, place)| parent.starts_with(place)) {
            let path = path.display();
            return Err(Failure::Usage(format!("{path} is not in a directory that with-token made: nothing was done")));
        }
    }
    Ok(())
}

/// Refuses to act on a token that may be somebody's.
pub(crate) fn may_act(
    scenario: Scenario,
    options: &Options,
    info: &TokenInfo,
    with_token: Option<&Path>,
) -> Result<(), Failure> {
    let name = scenario.name();
    let told = match &options.token_serial {
        Some(serial) if *serial == info.serial => true,
        Some(serial) => {
            let is = &info.serial;
            return Err(Failure::Usage(format!(
                "--token-serial is {serial}, but the token has serial {is}: nothing was done"
            )));
        }
        None => false,
    };
    if with_token.is_some() || (told && options.operator) {
        return Ok(());
    }
    let by_pkcs11 = matches!(
        scenario,
        Scenario::Revocation | Scenario::Fleet | Scenario::Nodes | Scenario::PinChanged | Scenario::Rotation
    );
    let allowed = match (options.operator, is_destructive(scenario)) {
        (true, destructive) => !destructive,
        (false, _) => told && by_pkcs11,
    };
    if allowed {
        return Ok(());
    }
    let remedy = match (options.operator, by_pkcs11) {
        (true, _) => format!("it is destructive; if it shall run there, say so: --token-serial {}", info.serial),
        (false, true) => {
            format!("a person can do the acts (--operator), or say that the drill may: --token-serial {}", info.serial)
        }
        (false, false) => "a person must do the acts: --operator".into(),
    };
    let label = &info.label;
    Err(Failure::Usage(format!("drill {name}: with-token did not make the token {label:?}: {remedy}")))
}
