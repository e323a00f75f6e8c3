//! A secret that one application may have, that a hook rotates, and whose every use is on a trail that is watched: another application
//! reads it, and somebody is told, once.
//!
//!     softhsm/with-token cargo run --example watched_secret
//!     softhsm/with-token cargo run --example watched_secret -- /usr/local/bin/page-somebody
//!
//! Notices go to standard output, or to a command that is named. A test plays this very file with mail (`tests/mail`); what is one
//! process here is in the field the service, `keyleash schedule --run`, `keyleash audit follow` and `keyleash alert watch`.

use async_trait::async_trait;
use keyleash::{
    Engine, Error, Result,
    access::{Actions, Grant, Operation, Operations, Pattern},
    audit::{
        AuditSink, CommandSink, FileSink, Follower, Options, TokenSigner, Until, Writer,
        alert::{AlertSink, Alerts, NotTaken, Notice, NoticeSink, Rule, When},
        line::Time,
    },
    clock::Clock,
    name::{AccountId, CallerId, GrantId, KekName, NodeName, SecretId, SecretName},
    secrets::{RotationPolicy, SecretValue, SetOptions},
    store::redb::RedbStore,
    telemetry::trail::Trail,
    token::{
        Profile, Token,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::{
    env::{args_os, var},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);
/// Whose secret it is.
pub const APPLICATION: &str = "web-1";
/// Who may have it too, by a grant that is wider than anybody meant, and is on no list.
pub const STRANGER: &str = "reports";
/// What the application has to know of the database. The hook would set it there, and prints it.
const HOOK: &str = "#!/bin/sh\nread old\nprintf %s \"password-$SECRET_NEXT_VERSION\"\n";

/// A service with one secret, its trail, and who follows that.
pub struct Watched {
    engine: Engine,
    trail: Arc<Writer>,
    secret: SecretId,
    /// Where the queue is: each event of the trail, a line of JSON.
    pub queue: PathBuf,
    trails: PathBuf,
    /// Each with the file that keeps how far it was brought.
    sinks: Vec<(PathBuf, Box<dyn AuditSink>)>,
}

impl Watched {
    /// Sets it up in a directory that is empty: KEK, account, secret and hook, who may do what, the trail and its rules.
    ///
    /// # Errors
    /// What the token, the key store and the disk say.
    pub async fn new(token: Arc<dyn Token>, directory: &Path, told: impl NoticeSink + 'static) -> Result<Self> {
        let [queue, trails, hook] = ["queue", "trail", "hook"].map(|name| directory.join(name));
        let made = fs::create_dir(&trails).and_then(|()| write_program(&hook));
        made.map_err(|error| Error::Invalid(format!("{}: {error}", directory.display())))?;
        let store = Arc::new(RedbStore::open_or_create(directory.join("keys.redb")).await?);
        let signer = Arc::new(TokenSigner::create(token.clone(), &*store).await?);
        let options = Options::new(&trails, NodeName::new("here")?);
        let trail = Arc::new(Writer::open(options, store.clone(), signer).await?);
        let engine = Engine::builder(token, store).trail(trail.clone()).build()?;

        // Until there are grants, everybody may do all.
        let kek = KekName::new("applications")?;
        engine.create_kek(&kek, Profile::AesGcm).await?;
        let account = AccountId::new("billing")?;
        engine.create_account(&account, &kek).await?;
        let secret = SecretId::new(account, SecretName::new("db/password")?);
        let secrets = engine.secrets();
        secrets.set(&secret, SecretValue::new(b"password-1".to_vec())?, SetOptions::default()).await?;
        // For how long the version before stays valid, so that nobody is cut off who has it still.
        let policy = RotationPolicy::new(SECOND, &hook).overlap(60 * SECOND);
        secrets.set_rotation(&secret, Some(policy)).await?;
        engine
            .add_grants(vec![
                grant("operator", "*", Operations::ALL)?,
                grant(APPLICATION, "billing", Operations::of(&[Operation::SecretGet]))?,
                grant(STRANGER, "*", Operations::of(&[Operation::SecretGet]))?,
            ])
            .await?;

        let callers = vec![Pattern::new("web-*")?, Pattern::new("operator")?];
        let rules = Alerts::new(vec![Rule::new("strangers", When::Stranger { callers })?])?;
        let sinks: Vec<(_, Box<dyn AuditSink>)> = vec![
            (directory.join("queue.cursor"), Box::new(FileSink::new(&queue))),
            (directory.join("alerts.cursor"), Box::new(AlertSink::new(rules, told))),
        ];
        Ok(Self { engine, trail, secret, queue, trails, sinks })
    }

    /// Gives the secret to an application: the number of its version, and its value.
    ///
    /// # Errors
    /// As [`keyleash::secrets::Secrets::get`]; [`Error::Forbidden`] for whom no grant names.
    pub async fn read(&self, application: &str) -> Result<(u32, SecretValue)> {
        let given = self.engine.caller(CallerId::new(application)?).secrets().get(&self.secret, None).await?;
        Ok((given.version.version, given.value))
    }

    /// Has the hook make the next version, once that is due.
    ///
    /// # Errors
    /// Why it could not, which changes nothing.
    pub async fn rotate(&self) -> Result<u32> {
        loop {
            let report = self.engine.caller(CallerId::new("operator")?).secrets().run_schedule().await?;
            if let Some((_, error)) = report.failures.into_iter().next() {
                return Err(error);
            }
            if let Some((_, version)) = report.rotated.first() {
                return Ok(*version);
            }
            tokio::time::sleep(SECOND).await;
        }
    }

    /// Brings what is on the trail by now to the queue, and to the rules.
    ///
    /// # Errors
    /// [`Error::Trail`]: where it could not be brought, which the next call does.
    pub async fn follow(&mut self) -> Result<()> {
        // Within a second it is on disk by itself.
        self.trail.flush().await?;
        let clock = Clock::default();
        let now = Until::Time(Time::from_unix_ms(clock.wall_unix_ms()));
        for (cursor, sink) in &mut self.sinks {
            let follower = Follower::open(&self.trails, &*cursor)?;
            follower.deliver(&mut **sink, now, &clock, &mut |told| println!("{told:?}")).await?;
        }
        Ok(())
    }

    /// Ends it: what it did is on disk, and signed.
    ///
    /// # Errors
    /// [`Error::Trail`]: not all of it is.
    pub async fn close(self) -> Result<()> {
        self.engine.close(5 * SECOND).await?;
        self.trail.close(5 * SECOND).await
    }
}

fn grant(caller: &str, account: &str, operations: Operations) -> Result<Grant> {
    let [callers, accounts, keks] = [Pattern::new(caller)?, Pattern::new(account)?, Pattern::all()];
    Ok(Grant { id: GrantId::new("new")?, callers, accounts, keks, actions: Actions::Operations(operations) })
}

/// A program that nobody has open for writing any more.
fn write_program(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, HOOK)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Prints what somebody is to be told.
#[allow(dead_code)] // in the test that takes this file in
struct Print;

#[async_trait]
impl NoticeSink for Print {
    async fn tell(&mut self, notices: &[Notice]) -> std::result::Result<(), NotTaken> {
        notices.iter().for_each(|notice| println!("told: {notice}"));
        Ok(())
    }
}

#[allow(dead_code)] // in the test that takes this file in
#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (module, label, pin) = (var("KEYLEASH_MODULE")?, var("KEYLEASH_TOKEN_LABEL")?, var("KEYLEASH_PIN_FILE")?);
    let settings = Pkcs11Settings::new(module, Selector::Label(label), PinSource::File(pin.into()));
    let token: Arc<dyn Token> = Arc::new(Pkcs11Token::open(settings).await?);
    let directory = tempfile::tempdir()?;
    let mut args = args_os().skip(1);
    let mut watched = match args.next() {
        Some(command) => Watched::new(token, directory.path(), CommandSink::new(command, args)).await?,
        None => Watched::new(token, directory.path(), Print).await?,
    };
    println!("{APPLICATION} reads version {}", watched.read(APPLICATION).await?.0);
    println!("the hook made version {}", watched.rotate().await?);
    println!("{APPLICATION} reads version {}", watched.read(APPLICATION).await?.0);
    watched.follow().await?;
    println!("that was what it should be; now {STRANGER} reads version {}", watched.read(STRANGER).await?.0);
    watched.follow().await?;
    println!("{} events are in the queue", fs::read_to_string(&watched.queue)?.lines().count());
    watched.close().await?;
    Ok(())
}
