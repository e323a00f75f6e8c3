//! The secret that is watched, as the example shows it, on a real token: the one who is on no list is told of, once.

#[path = "../../examples/watched_secret.rs"]
#[allow(unreachable_pub, missing_docs)]
mod watched_example;

use self::watched_example::{APPLICATION, STRANGER, Watched};
use crate::bench::{Bench, alone};
use async_trait::async_trait;
use keyleash::{
    Error,
    audit::alert::{NotTaken, Notice, NoticeSink},
    token::pkcs11::Pkcs11Token,
};
use serde_json::Value;
use std::{
    fs,
    sync::{Arc, Mutex},
};

/// Who is told; it takes nothing at first, as one whose server is away.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<(bool, Vec<String>)>>);

#[async_trait]
impl NoticeSink for Told {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken> {
        let mut told = self.0.lock().unwrap();
        if !std::mem::replace(&mut told.0, true) {
            return Err(NotTaken::Unclear("the server is away".into()));
        }
        told.1.extend(notices.iter().map(ToString::to_string));
        Ok(())
    }
}

#[test]
fn whoever_reads_a_secret_and_is_on_no_list_is_told_of_once_and_the_right_one_never() {
    alone("watched::whoever_reads_a_secret_and_is_on_no_list_is_told_of_once_and_the_right_one_never", watched);
}

async fn watched(bench: Bench) {
    let (directory, told) = (tempfile::tempdir().unwrap(), Told::default());
    let token = Arc::new(Pkcs11Token::open(bench.settings()).await.unwrap());
    let mut watched = Watched::new(token, directory.path(), told.clone()).await.unwrap();
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();

    let (version, value) = watched.read(APPLICATION).await.unwrap();
    assert_eq!((version, text(value.as_bytes())), (1, "password-1".into()));
    assert_eq!(watched.rotate().await.unwrap(), 2);
    let (version, value) = watched.read(APPLICATION).await.unwrap();
    assert_eq!((version, text(value.as_bytes())), (2, "password-2".into()));
    // Nobody's secret but by a grant; who is refused used no key.
    assert!(matches!(watched.read("nobody").await, Err(Error::Forbidden(_))));
    watched.follow().await.unwrap();
    assert!(told.0.lock().unwrap().1.is_empty(), "{told:?}", told = told.0.lock().unwrap().1);

    watched.read(STRANGER).await.unwrap();
    watched.read(STRANGER).await.unwrap();
    watched.follow().await.unwrap_err();
    watched.follow().await.unwrap();
    watched.read(STRANGER).await.unwrap();
    watched.read(APPLICATION).await.unwrap();
    watched.follow().await.unwrap();
    let told = told.0.lock().unwrap().1.clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("strangers: caller reports: SecretGet of secret db/password of account billing, by"),
        "{told:?}"
    );

    // The queue has every one of them, with its number and in its place.
    let queue = fs::read_to_string(&watched.queue).unwrap();
    let events: Vec<Value> = queue.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let number = |event: &Value| event["seq"].as_u64().unwrap();
    assert!(events.iter().enumerate().all(|(at, event)| number(event) == at as u64), "{queue}");
    let uses = |who: &str| {
        let is_use = |event: &&Value| event["operation"] == "SecretGet" && event["caller"] == who;
        events.iter().filter(is_use).map(|event| event["secret_version"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((uses(APPLICATION), uses(STRANGER)), (vec![1, 2, 2], vec![2, 2, 2]));
    assert!(!queue.contains("password-"), "{queue}");
    watched.close().await.unwrap();
}
