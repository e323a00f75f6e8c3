//! `audit key create` and `audit key show`: the key in the default token that signs the trail's checkpoints; and the keys that are trusted.

use super::{args::Keys as KeyArgs, read_short};
use crate::{
    exit::Failure,
    output::Output,
    setup::{Setup, Store},
};
use clap::Subcommand;
use keyleash::{
    Error,
    access::Operation,
    audit::{HMAC_WARNING, Keys, Mac, Signer, TokenSigner, Vkey},
    token::{SigningKey, Token},
};
use serde_json::json;
use std::{ffi::OsString, fmt, io, path::Path, sync::Arc};
use tokio::runtime::Handle;

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make it: Ed25519, else ECDSA P-256, else HMAC, whichever the token can do first. Nobody can read it out of the token.
    Create,
    /// Print its public half, as `audit verify --key` takes it.
    Show,
}

pub(crate) async fn run(command: Key, setup: &Setup, output: Output) -> Result<(), Failure> {
    let (need, operation) = match command {
        Key::Create => (Store::Create, Operation::Create),
        Key::Show => (Store::Read, Operation::AuditRead),
    };
    let store = setup.store(need).await?;
    setup.permit(&store, operation, None, None).await?;
    let token: Arc<dyn Token> = Arc::new(setup.open_token(setup.default_token()).await?);
    let signer = match command {
        Key::Create => {
            setup.expect_place_of_trail()?;
            let made = TokenSigner::create(token.clone(), &*store).await?;
            setup.tell_key_made(&store, token).await?;
            made
        }
        Key::Show => TokenSigner::open(token, &*store).await?,
    };
    if let Some(warning) = signer.warning() {
        output.note(&format!("keyleash: warning: {warning}"));
    }
    let result = json!({
        "vkey": signer.vkey(), "kind": signer.kind(), "public": signer.public().is_public(),
    });
    output.result(&result, &format!("{}\n", signer.vkey()))
}

/// Keys as they are, and files of keys.
fn vkeys(keys: &[OsString]) -> Result<Vec<Vkey>, Failure> {
    let mut found = Vec::new();
    for key in keys {
        if let Some(vkey) = key.to_str().and_then(|key| Vkey::parse(key).ok()) {
            found.push(vkey);
            continue;
        }
        let bytes = read_short(Path::new(key))?;
        let lines = String::from_utf8_lossy(&bytes);
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            found.push(Vkey::parse(line)?);
        }
    }
    Ok(found)
}

/// The keys that are trusted. One that makes HMACs is asked in its token, which the configuration names.
pub(super) async fn trusted(args: &KeyArgs, setup: &Setup, output: Output) -> Result<Keys, Failure> {
    let args = args.keys.clone();
    let vkeys = tokio::task::spawn_blocking(move || vkeys(&args)).await;
    let vkeys = vkeys.map_err(|error| Failure::io("the keys", io::Error::other(error)))??;
    let (mut keys, mut token) = (Keys::new(), None::<Arc<dyn Token>>);
    for vkey in vkeys {
        if vkey.is_public() {
            keys = keys.with(vkey);
            continue;
        }
        let name = setup.default_token();
        let token = match &token {
            Some(token) => token.clone(),
            None => {
                output.note(&format!(
                    "keyleash: key {vkey} makes HMACs, which are verified in the token that has it, token {name} of the configuration"
                ));
                output.note(&format!("keyleash: warning: {HMAC_WARNING}"));
                token.insert(Arc::new(setup.open_token(name).await?)).clone()
            }
        };
        let key = token.find_signing_key(vkey.name()).await.map_err(Error::from)?;
        let key = key.filter(|key| Vkey::hmac(&key.label, key.id.as_bytes()).is_ok_and(|there| there == vkey));
        let key = key.ok_or_else(|| {
            Error::NotFound(format!(
                "key {vkey} in token {name}: it makes HMACs, which only the token that has it can verify: name that one in the \
                 configuration"
            ))
        })?;
        keys = keys.with_mac(vkey, Arc::new(TokenMac { token, key, runtime: Handle::current() }));
    }
    Ok(keys)
}

/// Makes HMACs in a token. Is asked by threads that may block.
struct TokenMac {
    token: Arc<dyn Token>,
    key: SigningKey,
    runtime: Handle,
}

impl Mac for TokenMac {
    fn mac(&self, text: &[u8]) -> Result<[u8; 32], Error> {
        let made = self.runtime.block_on(self.token.sign(&self.key, text))?;
        made.try_into().map_err(|_| Error::Misconfigured("the token made an HMAC that is none of SHA-256".into()))
    }
}

impl fmt::Debug for TokenMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenMac({:?})", self.key.label)
    }
}
