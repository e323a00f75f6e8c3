//! `audit key create` and `audit key show`: the key in the default token that signs the trail's checkpoints.

use crate::{
    exit::Failure,
    output::Output,
    setup::{Setup, Store},
};
use clap::Subcommand;
use keyleash::{
    access::Operation,
    audit::{Signer, TokenSigner},
    token::Token,
};
use serde_json::json;
use std::sync::Arc;

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
