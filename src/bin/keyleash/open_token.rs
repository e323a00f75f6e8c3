//! Opening a token for a command, which has no later.

use keyleash::{
    clock::Clock,
    token::{
        Token, TokenError, Verdict,
        pkcs11::{Pkcs11Settings, Pkcs11Token},
    },
};
use std::{env, fs::File, path::Path, time::Duration};

/// How long a command waits for a token that is not listed.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// Opens a token for a command, which has no later: what a service waits for, because it may come back, is here a set-up that is wrong.
///
/// # Errors
/// As [`Pkcs11Token::open`]; misconfigured, where others are listed and the token is not.
pub(crate) async fn open(settings: Pkcs11Settings) -> Result<Pkcs11Token, TokenError> {
    let module = settings.module.clone();
    let selector = settings.token.to_string();
    let token = Pkcs11Token::open(settings).await?;
    wait_until_listed(&token).await;
    match token.info().await {
        Err(trouble) if trouble.verdict == Verdict::Unreachable => {
            misnamed(&token, &selector).or_else(|| no_softhsm(&module, &trouble)).map_or(Ok(token), Err)
        }
        _ => Ok(token),
    }
}

fn misnamed(token: &Pkcs11Token, selector: &str) -> Option<TokenError> {
    let listed = token.lists_instead()?;
    Some(misconfigured(
        format!("no token with {selector}; the module lists {listed}"),
        "choose the token by a label, serial or slot that is listed, or connect it",
    ))
}

/// SoftHSM without its configuration has no tokens, or fails with a code that says nothing.
fn no_softhsm(module: &Path, trouble: &TokenError) -> Option<TokenError> {
    const VARIABLE: &str = "SOFTHSM2_CONF";
    if !module.file_name()?.to_string_lossy().contains("softhsm") {
        return None;
    }
    let remedy = "set it to the softhsm2.conf that names the token's directory";
    match env::var_os(VARIABLE) {
        None => Some(misconfigured(format!("{VARIABLE} is not set, and without it: {}", trouble.what), remedy)),
        Some(conf) => {
            let error = File::open(&conf).err()?;
            Some(misconfigured(format!("{VARIABLE} names {}: {error}", Path::new(&conf).display()), remedy))
        }
    }
}

fn misconfigured(what: String, remedy: &str) -> TokenError {
    TokenError::new(Verdict::Misconfigured, "open", what, remedy)
}

/// SoftHSM does not list a token while another process logs in to it, and a command has no second chance of its own.
/// Whoever is still unreachable then says so at the first use.
pub(crate) async fn wait_until_listed(token: &dyn Token) {
    let clock = Clock::default();
    let give_up = clock.now().plus(PATIENCE);
    while let Err(TokenError { verdict: Verdict::Unreachable, .. }) = token.info().await
        && clock.now() < give_up
    {
        tokio::time::sleep(PAUSE).await;
    }
}
