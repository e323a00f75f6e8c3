//! One suite for every token: what the engine relies on, real and scripted alike.

use crate::bench::{MEASURED, alone, operator};
use keyleash::{
    clock::Clock,
    secret::Aek,
    token::{
        KekHandle, KekId, KekSpec, Profile, Token, TokenError, Verdict, Wrapped,
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

/// Says what holds, a line for each act: `softhsm/token-matrix` makes its table of them.
struct Acts {
    /// `None` for the scripted token.
    token: Option<String>,
    profile: Profile,
}

impl Acts {
    fn new(profile: Profile) -> Self {
        Self { token: std::env::var("KEYLEASH_MATRIX").ok(), profile }
    }

    fn say(&self, act: &str, outcome: &str) {
        if let Some(token) = &self.token {
            println!("{MEASURED}matrix|{token}|{}|{act}|{outcome}", self.profile);
        }
    }

    /// In which words the token says no.
    fn heard(&self, act: &str, error: &TokenError) {
        self.say(act, &error.what);
    }

    fn holds(&self, act: &str) {
        self.say(act, "yes");
    }
}

async fn conforms(token: Arc<dyn Token>, operator: &dyn Operator, profile: Profile, acts: &Acts) {
    assert!(!token.info().await.unwrap().label.is_empty());
    match token.probe(profile).await {
        Ok(_) => acts.holds("probe"),
        // Which profiles a token must have, the matrix knows.
        Err(error) if acts.token.is_some() && error.verdict == Verdict::Misconfigured => {
            return acts.say("probe", &format!("no: {}", error.what));
        }
        Err(error) => panic!("{error:?}"),
    }

    let spec = |label: &str| KekSpec { label: label.into(), profile, destroyable: true };
    let made = token.create_kek(&spec("keyleash/b/1")).await.unwrap();
    let other = token.create_kek(&spec("keyleash/a/1")).await.unwrap();
    assert_eq!((made.profile, made.enabled, made.refused.clone()), (Some(profile), true, None));
    // Whoever does not tell does not keep from it.
    assert!(made.modifiable != Some(false) && made.destroyable != Some(false), "{made:?}");
    assert_eq!(made.half, None);
    // NSS says of every key in its database that it was not made there.
    let is_its_own = |warning: &&String| acts.token.as_deref() == Some("nss") && warning.starts_with("CKA_LOCAL");
    assert_eq!(made.warnings.iter().find(|warning| !is_its_own(warning)), None);
    assert_eq!(made.id.as_bytes().len(), 16);
    assert_eq!(token.find_kek(&made.id).await.unwrap().as_ref(), Some(&made));
    let listed = token.list_keks().await.unwrap();
    let labels: Vec<_> = listed.iter().map(|kek| kek.label.as_str()).collect();
    assert_eq!(labels, ["keyleash/a/1", "keyleash/b/1"], "sorted, and the probe left nothing");
    for label in [String::new(), "x".repeat(129)] {
        assert_eq!(token.create_kek(&spec(&label)).await.unwrap_err().verdict, Verdict::Misconfigured);
    }

    acts.holds("make find list");

    let kek = KekHandle { id: made.id, profile };
    let aek = Aek::generate().unwrap();
    let wrapped = token.wrap(&kek, &aek, &BINDING).await.unwrap();
    assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
    assert_ne!(token.wrap(&kek, &Aek::generate().unwrap(), &BINDING).await.unwrap(), wrapped);

    acts.holds("wrap unwrap");

    let refusal = |damaged: Wrapped, binding: [u8; 32]| {
        let (token, kek) = (token.clone(), kek.clone());
        async move {
            let error = token.unwrap(&kek, &damaged, &binding).await.unwrap_err();
            acts.heard("bad record", &error);
            error.verdict
        }
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
    acts.holds("bad record told");

    operator.disable(&kek);
    for _ in 0..2 {
        let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
        acts.heard("disabled", &error);
        assert_eq!(error.verdict, Verdict::Denied, "{error:?}");
    }
    assert!(!token.find_kek(&kek.id).await.unwrap().unwrap().enabled);
    assert_eq!(token.find_kek(&kek.id).await.unwrap().unwrap().profile, Some(profile));
    assert!(token.find_kek(&other.id).await.unwrap().unwrap().enabled, "the other KEK is not concerned");
    acts.holds("disabled is denied");
    operator.enable(&kek);
    assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
    acts.holds("enabled is back");

    if profile == Profile::AesGcm {
        operator.disable_wrap(&kek);
        let half = token.wrap(&kek, &aek, &BINDING).await.unwrap_err();
        assert_eq!(half.verdict, Verdict::Misconfigured, "{half:?}");
        let info = token.find_kek(&kek.id).await.unwrap().unwrap();
        assert!(info.enabled && info.half.is_some_and(|half| half.contains("CKA_ENCRYPT")));
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
        acts.holds("half a key told");
    }

    operator.destroy(&kek);
    assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    assert_eq!(token.wrap(&kek, &aek, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    assert_eq!(token.find_kek(&kek.id).await.unwrap(), None);
    assert_eq!(token.list_keks().await.unwrap().len(), 1);
    acts.holds("destroyed is denied");

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
    acts.holds("600 at once");
}

#[tokio::test]
async fn the_scripted_token_conforms() {
    for profile in Profile::ALL {
        let (token, script) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 7);
        conforms(token, &script, profile, &Acts { token: None, profile }).await;
    }
}

#[test]
fn the_token_conforms_with_aes_gcm() {
    alone("conformance::the_token_conforms_with_aes_gcm", |bench| async move {
        let acts = Acts::new(Profile::AesGcm);
        conforms(Arc::new(bench.open().await), &OtherProcess, Profile::AesGcm, &acts).await;
    });
}

#[test]
fn the_token_conforms_with_aes_kw() {
    alone("conformance::the_token_conforms_with_aes_kw", |bench| async move {
        let acts = Acts::new(Profile::AesKw);
        conforms(Arc::new(bench.open().await), &OtherProcess, Profile::AesKw, &acts).await;
    });
}

#[test]
#[ignore = "SoftHSM has no OAEP with SHA-256: softhsm/token-matrix runs this on others"]
fn the_token_conforms_with_rsa_oaep_sha256() {
    alone("conformance::the_token_conforms_with_rsa_oaep_sha256", |bench| async move {
        let acts = Acts::new(Profile::RsaOaepSha256);
        conforms(Arc::new(bench.open().await), &OtherProcess, Profile::RsaOaepSha256, &acts).await;
    });
}
