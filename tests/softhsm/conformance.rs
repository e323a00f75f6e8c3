//! One suite for every token: what the engine relies on, real and scripted alike.

use crate::bench::{alone, operator};
use keyleash::{
    clock::Clock,
    secret::Aek,
    token::{
        KekHandle, KekId, KekSpec, Profile, Token, Verdict, Wrapped,
        scripted::{Script, ScriptedToken},
    },
};
use std::{sync::Arc, time::Duration};

/// What somebody else does to a KEK.
trait Operator {
    fn disable(&self, kek: &KekHandle);
    fn enable(&self, kek: &KekHandle);
    fn disable_wrap(&self, kek: &KekHandle);
    fn destroy(&self, kek: &KekHandle);
}

impl Operator for Script {
    fn disable(&self, kek: &KekHandle) {
        Script::disable(self, &kek.id);
    }
    fn enable(&self, kek: &KekHandle) {
        Script::enable(self, &kek.id);
    }
    fn disable_wrap(&self, kek: &KekHandle) {
        Script::disable_wrap(self, &kek.id);
    }
    fn destroy(&self, kek: &KekHandle) {
        Script::destroy(self, &kek.id);
    }
}

struct OtherProcess;

impl OtherProcess {
    fn set(kek: &KekHandle, value: &str) {
        let attribute = if kek.profile == Profile::AesKw { "unwrap" } else { "decrypt" };
        operator(&["set", &kek.id.to_string(), attribute, value]);
    }
}

impl Operator for OtherProcess {
    fn disable(&self, kek: &KekHandle) {
        Self::set(kek, "false");
    }
    fn enable(&self, kek: &KekHandle) {
        Self::set(kek, "true");
    }
    fn disable_wrap(&self, kek: &KekHandle) {
        operator(&["set", &kek.id.to_string(), "encrypt", "false"]);
    }
    fn destroy(&self, kek: &KekHandle) {
        operator(&["destroy", &kek.id.to_string()]);
    }
}

const BINDING: [u8; 32] = [5; 32];

async fn conforms(token: Arc<dyn Token>, operator: &dyn Operator, profile: Profile) {
    assert!(!token.info().await.unwrap().label.is_empty());
    token.probe(profile).await.unwrap();

    let spec = |label: &str| KekSpec { label: label.into(), profile, destroyable: true };
    let made = token.create_kek(&spec("keyleash/b/1")).await.unwrap();
    let other = token.create_kek(&spec("keyleash/a/1")).await.unwrap();
    assert_eq!((made.profile, made.enabled, made.refused.clone()), (Some(profile), true, None));
    assert_eq!((made.modifiable, made.destroyable), (Some(true), Some(true)));
    assert_eq!(made.id.as_bytes().len(), 16);
    assert_eq!(token.find_kek(&made.id).await.unwrap().as_ref(), Some(&made));
    let listed = token.list_keks().await.unwrap();
    let labels: Vec<_> = listed.iter().map(|kek| kek.label.as_str()).collect();
    assert_eq!(labels, ["keyleash/a/1", "keyleash/b/1"], "sorted, and the probe left nothing");
    for label in [String::new(), "x".repeat(129)] {
        assert_eq!(token.create_kek(&spec(&label)).await.unwrap_err().verdict, Verdict::Misconfigured);
    }

    let kek = KekHandle { id: made.id, profile };
    let aek = Aek::generate().unwrap();
    let wrapped = token.wrap(&kek, &aek, &BINDING).await.unwrap();
    assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
    assert_ne!(token.wrap(&kek, &Aek::generate().unwrap(), &BINDING).await.unwrap(), wrapped);

    let refusal = |damaged: Wrapped, binding: [u8; 32]| {
        let (token, kek) = (token.clone(), kek.clone());
        async move { token.unwrap(&kek, &damaged, &binding).await.unwrap_err().verdict }
    };
    let mut damaged = wrapped.clone();
    *damaged.bytes.last_mut().unwrap() ^= 1;
    assert_eq!(refusal(damaged, BINDING).await, Verdict::BadRecord);
    for bytes in [vec![], wrapped.bytes[..8].to_vec(), vec![0; 1025]] {
        assert_eq!(refusal(Wrapped { bytes, ..wrapped.clone() }, BINDING).await, Verdict::BadRecord);
    }
    if profile == Profile::AesGcm {
        assert_eq!(refusal(wrapped.clone(), [6; 32]).await, Verdict::BadRecord, "bound to another context");
        assert_eq!(refusal(Wrapped { iv: vec![], ..wrapped.clone() }, BINDING).await, Verdict::BadRecord);
    }
    let stranger = KekHandle { id: other.id.clone(), profile };
    assert_eq!(token.unwrap(&stranger, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::BadRecord);
    assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek, "after every refusal the KEK works");

    operator.disable(&kek);
    for _ in 0..2 {
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    }
    assert!(!token.find_kek(&kek.id).await.unwrap().unwrap().enabled);
    assert_eq!(token.find_kek(&kek.id).await.unwrap().unwrap().profile, Some(profile));
    assert!(token.find_kek(&other.id).await.unwrap().unwrap().enabled, "the other KEK is not concerned");
    operator.enable(&kek);
    assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);

    if profile == Profile::AesGcm {
        operator.disable_wrap(&kek);
        let half = token.wrap(&kek, &aek, &BINDING).await.unwrap_err();
        assert_eq!(half.verdict, Verdict::Misconfigured, "{half:?}");
        let info = token.find_kek(&kek.id).await.unwrap().unwrap();
        assert!(info.enabled && info.half.is_some_and(|half| half.contains("CKA_ENCRYPT")));
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
    }

    operator.destroy(&kek);
    assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    assert_eq!(token.wrap(&kek, &aek, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    assert_eq!(token.find_kek(&kek.id).await.unwrap(), None);
    assert_eq!(token.list_keks().await.unwrap().len(), 1);

    let nobody = KekHandle { id: KekId::new([9; 16]).unwrap(), profile };
    assert_eq!(token.unwrap(&nobody, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    let workers = token.workers();
    assert!(workers.alive > 0 && workers.hung == 0 && !workers.restart_needed());

    let many: Vec<_> = (0..600)
        .map(|_| {
            let (token, stranger) = (token.clone(), stranger.clone());
            tokio::spawn(async move {
                let aek = Aek::generate().unwrap();
                let wrapped = token.wrap(&stranger, &aek, &BINDING).await.unwrap();
                assert_eq!(token.unwrap(&stranger, &wrapped, &BINDING).await.unwrap(), aek);
            })
        })
        .collect();
    for one in many {
        one.await.unwrap();
    }
}

#[tokio::test]
async fn the_scripted_token_conforms() {
    for profile in Profile::ALL {
        let (token, script) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 7);
        conforms(token, &script, profile).await;
    }
}

#[test]
fn the_token_conforms_with_aes_gcm() {
    alone("conformance::the_token_conforms_with_aes_gcm", |bench| async move {
        conforms(Arc::new(bench.open().await), &OtherProcess, Profile::AesGcm).await;
    });
}

#[test]
fn the_token_conforms_with_aes_kw() {
    alone("conformance::the_token_conforms_with_aes_kw", |bench| async move {
        conforms(Arc::new(bench.open().await), &OtherProcess, Profile::AesKw).await;
    });
}

#[test]
#[ignore = "SoftHSM has no OAEP with SHA-256: softhsm/token-matrix runs this on kryoptic"]
fn the_token_conforms_with_rsa_oaep_sha256() {
    alone("conformance::the_token_conforms_with_rsa_oaep_sha256", |bench| async move {
        conforms(Arc::new(bench.open().await), &OtherProcess, Profile::RsaOaepSha256).await;
    });
}
