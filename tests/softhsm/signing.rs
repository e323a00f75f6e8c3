//! Keys that sign checkpoints: made in the token, readable by nobody, and verified by what this crate knows of them alone.

use crate::bench::{alone, alone_with_shim};
use keyleash::{
    Error,
    audit::{Keys, Note, Signer, TokenSigner},
    store::memory::MemoryStore,
    token::{SigningKind, Token, TokenError, Verdict},
};
use std::sync::Arc;

const TEXT: &str = "keyleash/0000000000000000/node\n7\nAAAA\n";

#[test]
fn a_signing_key_of_the_token_signs_what_everybody_can_verify() {
    alone("signing::a_signing_key_of_the_token_signs_what_everybody_can_verify", |bench| async move {
        let (token, store): (Arc<dyn Token>, _) = (Arc::new(bench.open().await), MemoryStore::new());
        assert!(matches!(TokenSigner::open(token.clone(), &store).await, Err(Error::NotFound(_))));
        // In `softhsm/token-matrix` other tokens are asked too: what they cannot do is said.
        let must = matches!(std::env::var("KEYLEASH_MATRIX").as_deref(), Err(_) | Ok("softhsm" | "kryoptic"));
        let made = match TokenSigner::create(token.clone(), &store).await {
            Err(error) if !must => return println!("signs by nothing: {error}"),
            made => made.unwrap(),
        };
        println!("signs by {}: {}", made.kind(), made.vkey());
        if !must && !made.public().is_public() {
            return;
        }
        assert!(made.public().is_public() && made.warning().is_none(), "SoftHSM and kryoptic have Ed25519 and P-256");
        let found = TokenSigner::open(token.clone(), &store).await.unwrap();
        assert_eq!(found.vkey(), made.vkey());
        let twice = TokenSigner::create(token.clone(), &store).await;
        assert!(matches!(twice, Err(Error::Exists(_))), "{twice:?}");
        let signature = found.public().signature(&found.sign(TEXT.as_bytes()).await.unwrap()).unwrap();
        let keys = Keys::new().with(made.public().clone());
        Note::new(TEXT).unwrap().signed(signature.clone()).verify(&keys).unwrap();
        let other = Note::new(TEXT.replace('7', "8")).unwrap().signed(signature);
        assert!(other.verify(&keys).is_err(), "of another text");
        // It is no KEK, and disturbs none.
        assert!(token.list_keks().await.unwrap().is_empty());
        assert!(token.list_unaddressable().await.unwrap().is_empty());
        // Under another store's name there is none.
        assert!(TokenSigner::open(token, &MemoryStore::new()).await.is_err());
    });
}

/// A key that is gone, or another one under its label, signs nothing.
#[test]
fn a_signing_key_that_was_exchanged_is_not_used() {
    alone("signing::a_signing_key_that_was_exchanged_is_not_used", |bench| async move {
        let token = bench.open().await;
        let key = token.create_signing_key("keyleash/trail").await.unwrap();
        assert_eq!(token.find_signing_key("keyleash/trail").await.unwrap(), Some(key.clone()));
        let mut exchanged = key.clone();
        exchanged.kind = SigningKind::Ed25519([9; 32]);
        let refused = token.sign(&exchanged, b"x").await;
        assert!(matches!(refused, Err(TokenError { verdict: Verdict::Misconfigured, .. })), "{refused:?}");
        let bytes = if matches!(key.kind, SigningKind::Hmac) { 32 } else { 64 };
        assert_eq!(token.sign(&key, b"x").await.unwrap().len(), bytes);
        assert_eq!(token.find_signing_key("keyleash/other").await.unwrap(), None);
        assert!(token.sign(&exchanged, b"x").await.is_err() && token.sign(&key, b"x").await.is_ok());
    });
}

/// As real tokens are that have no Ed25519, or no signatures at all.
#[test]
fn a_token_without_ed25519_signs_by_ecdsa_and_one_without_both_by_hmac() {
    const NAME: &str = "signing::a_token_without_ed25519_signs_by_ecdsa_and_one_without_both_by_hmac";
    alone_with_shim(NAME, |bench| async move {
        let token: Arc<dyn Token> = Arc::new(bench.open().await);
        let best = TokenSigner::create(token.clone(), &MemoryStore::new()).await.unwrap();
        // Of one that has no Ed25519 to be taken away the other test has what comes next.
        let has_ed25519 = best.kind().starts_with("Ed25519");
        let rows =
            [("C_GenerateKeyPair rv=0x70 count=2", "ECDSA P-256", 64), ("C_GenerateKeyPair rv=0x70", "HMAC", 32)];
        for (faults, kind, bytes) in rows.into_iter().skip(usize::from(!has_ed25519)) {
            let store = MemoryStore::new();
            bench.fail(faults);
            let made = TokenSigner::create(token.clone(), &store).await.unwrap();
            bench.fail("");
            let found = TokenSigner::open(token.clone(), &store).await.unwrap();
            assert_eq!((found.vkey(), made.warning().is_some()), (made.vkey(), kind == "HMAC"));
            assert!(made.kind().starts_with(kind), "{}", made.kind());
            let raw = found.sign(TEXT.as_bytes()).await.unwrap();
            assert_eq!(raw.len(), bytes);
            let signature = found.public().signature(&raw).unwrap();
            let keys = Keys::new().with(made.public().clone());
            let verified = Note::new(TEXT).unwrap().signed(signature.clone()).verify(&keys);
            if kind == "HMAC" {
                assert!(matches!(verified, Err(Error::Invalid(_))), "it takes the token: {verified:?}");
                assert_eq!(found.sign(TEXT.as_bytes()).await.unwrap(), raw, "which makes it again");
                continue;
            }
            verified.unwrap();
            let other = Note::new(TEXT.replace('7', "8")).unwrap().signed(signature);
            assert!(other.verify(&keys).is_err(), "of another text");
        }
    });
}
