//! keyleash: HSM-backed envelope encryption for storage services, whose keys stay on a leash.
//!
//! A key-encryption key (KEK) lives in a PKCS#11 token and never leaves it. It wraps one account encryption key (AEK)
//! per account; every block is sealed under a data key (DEK) of its own, derived from the AEK. An unwrapped AEK may be
//! used under a *lease* that only a successful unwrap in the token renews: take the KEK away from the token and the data
//! goes dark within the hour, usually in seconds, whatever else fails; give it back and service resumes by itself.
//!
//! ```
//! use keyleash::clock::Clock;
//! use keyleash::name::{AccountId, KekName};
//! use keyleash::store::memory::MemoryStore; // in a service: `store::redb::RedbStore`, or one of your own
//! use keyleash::token::{Profile, scripted::ScriptedToken}; // in a service: `token::pkcs11::Pkcs11Token`, over your HSM's module
//! use std::{sync::Arc, time::Duration};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> keyleash::Result<()> {
//!     let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
//!     let engine = keyleash::Engine::builder(token, Arc::new(MemoryStore::new())).build()?;
//!     let kek = KekName::new("tenant-keys")?;
//!     engine.get_or_create_kek(&kek, Profile::AesGcm).await?;
//!     let account = engine.get_or_create_account(&AccountId::new("tenant-7")?, &kek).await?;
//!
//!     let mut block = *b"what the disk must not see";
//!     let header = account.seal_in_place(42_u64, &mut block)?; // no await, no lock, no allocation
//!     account.open_in_place(42_u64, &header, &mut block)?;
//!     assert_eq!(&block, b"what the disk must not see");
//!
//!     engine.close(Duration::from_secs(10)).await?; // before the process ends
//!     Ok(())
//! }
//! ```
//!
//! What a service does while a key is denied or a token away, and as it ends, shows [a service](error#a-service).
//!
//! Where to read on: [`manual::promises`] says what is promised and how each promise is enforced, [`manual::threats`]
//! what is not protected, [`manual::format`] every byte at rest, [`manual::operations`] how to run it. In the code:
//! [`engine`], then [`account`], then [`lease`]; [`manual::architecture`] draws the house.
//!
//! Features: `aws-lc` (default) is the fast AEAD back end, `cli` (default) the command line, `drill` (with it) the rehearsals
//! that a service can play in its own tests, `secrets` (with it) credentials kept in versions, `audit` (with it) the trail of who used
//! which key, `metrics` (with it) what the engine counts, for Prometheus and recorders, `mail` (not with it, because of its TLS) alerts
//! that go as mail, `etcd` (not with it, because its build needs protoc), `postgres` and `bucket` (not with it, because of their TLS) the key
//! stores there; a service names `default-features = false, features = ["aws-lc"]`. Without `aws-lc` a pure-Rust back end makes the same bytes.

pub mod access;
pub mod account;
#[cfg(feature = "audit")]
pub mod audit;
pub mod block;
#[cfg(any(feature = "audit", feature = "secrets"))]
mod child;
pub mod clock;
pub mod config;
#[cfg(feature = "drill")]
pub mod drill;
pub mod engine;
pub mod error;
mod home;
mod keyring;
pub mod lease;
mod leash;
pub mod manual;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod name;
mod planted;
pub mod rotate;
pub mod secret;
#[cfg(feature = "secrets")]
pub mod secrets;
mod slots;
pub mod store;
mod sync;
pub mod telemetry;
pub mod token;
mod watch;

pub use account::Account;
pub use engine::{Engine, KekOptions};
pub use error::{Corrupt, Error, Forbidden, Refusal, Result};
pub use leash::LeaseStatus;
pub use rotate::When;
pub use store::word::StoreSilence;

/// The README's example compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
