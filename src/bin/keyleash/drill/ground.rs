//! What a drill stands on: a directory, a KEK and accounts of its own, and an engine over the token.

use super::{
    act::{Actor, Launch, run},
    args::Options,
    guard::{may_act, with_token_directory},
    load::Customer,
    nodes::Nodes,
    terms::{accounts, in_force},
};
use crate::{exit::Failure, open_token::wait_until_listed, setup::Setup};
use keyleash::{
    Engine, Error,
    clock::Instant,
    config::Settings,
    drill::{Scenario, Tap},
    name::{AccountId, KekName},
    secret::fill_random,
    store::{KeyStore, redb::RedbStore},
    token::{
        KekId, KekInfo, Profile, Token,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token},
    },
};
use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::JoinSet;

/// Accounts that are made at once: the store writes them together.
const MADE_AT_ONCE: usize = 64;
/// How often the KEK is asked for at most.
const MAKE_TRIES: u32 = 3;
/// The store, in the drill's directory.
pub(crate) const STORE: &str = "keys.redb";
/// The drill's KEK in that store.
const KEK: &str = "drill";

/// Undoes what was done, the last first, when it is dropped: whatever ends a drill, the token is as it was.
#[derive(Default)]
pub(crate) struct Undo(Vec<Box<dyn FnOnce() + Send + Sync>>);

impl Undo {
    pub(crate) fn push(&mut self, undo: impl FnOnce() + Send + Sync + 'static) {
        self.0.push(Box::new(undo));
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(undo) = self.0.pop() {
            undo();
        }
    }
}

/// The ground of one drill.
pub(crate) struct Ground {
    pub(crate) directory: PathBuf,
    pub(crate) tap: Arc<Tap>,
    pub(crate) name: KekName,
    pub(crate) kek: KekInfo,
    pub(crate) actor: Actor,
    pub(crate) launch: Launch,
    /// The directory of the token, where with-token made it.
    pub(crate) with_token: Option<PathBuf>,
    // Last, so that it is dropped last: the KEK goes when nobody uses it any more.
    pub(crate) undo: Undo,
}

impl Ground {
    /// Prepares everything, and seals each account's kept block.
    pub(crate) async fn prepare(
        scenario: Scenario,
        options: &Options,
        nodes: Option<&Nodes>,
        setup: &Setup,
        config: Option<&Path>,
    ) -> Result<(Self, Engine, Vec<Customer>), Failure> {
        let count = options.accounts.unwrap_or(accounts(scenario));
        let settings = in_force(scenario, setup.settings(), options.fast, count);
        settings.validate()?;
        let mut undo = Undo::default();
        let directory = own_directory(&mut undo)?;
        let mut token_settings = token_settings(setup, &settings)?;
        if scenario == Scenario::PinChanged {
            token_settings.pin = own_pin(&token_settings.pin, &directory)?;
        }
        let token = Pkcs11Token::open(token_settings).await.map_err(Error::from)?;
        wait_until_listed(&token).await;
        let info = token.info().await.map_err(Error::from)?;
        let with_token = with_token_directory(&info);
        may_act(scenario, options, &info, with_token.as_deref())?;
        let launch = Launch { config: config.map(Path::to_owned), serial: info.serial.clone() };
        let actor = if options.operator { Actor::Operator } else { Actor::Process(launch.clone()) };
        let tap = Tap::new(Arc::new(token));
        let store: Arc<dyn KeyStore> = match nodes {
            Some(nodes) => nodes.store().await?,
            None => Arc::new(RedbStore::open_or_create(directory.join(STORE)).await?),
        };
        let engine = Engine::builder(tap.clone(), store).settings(settings).build()?;
        // Its label tells an operator of a real HSM which one it is.
        let name = kek_name(&directory)?;
        let kek = made(&engine, &name, options.profile).await?;
        destroy_at_the_end(&mut undo, &launch, &kek.id);
        let customers = customers(&engine, &name, count).await?;
        let ground = Self { directory, tap, name, kek, actor, launch, with_token, undo };
        Ok((ground, engine, customers))
    }

    /// Where the tokens of with-token's SoftHSM are.
    pub(crate) fn tokens(&self) -> Result<PathBuf, Failure> {
        match &self.with_token {
            Some(directory) => Ok(directory.join("tokens")),
            None => Err(Failure::Usage("this token cannot be acted on by a process: use --operator".into())),
        }
    }

    /// Does an act, through a process or a person.
    pub(crate) async fn act(&self, words: &str, command: Vec<OsString>) -> Result<Instant, Failure> {
        self.actor.act(words, command).await
    }
}

/// The deadline of its calls is the service's in the drill, which is short for a token that has to write a key to a busy disk; what is
/// prepared is not measured, and what a call has made that came too late is taken by the next one.
async fn made(engine: &Engine, name: &KekName, profile: Profile) -> Result<KekInfo, Error> {
    let mut tries = 1;
    loop {
        match engine.create_kek(name, keyleash::KekOptions::new(profile).destroyable()).await {
            Err(Error::Unreachable(_)) if tries < MAKE_TRIES => tries += 1,
            made => return made,
        }
    }
}

/// Whatever ends the drill.
pub(crate) fn destroy_at_the_end(undo: &mut Undo, launch: &Launch, id: &KekId) {
    if let Ok(destroy) = launch.act(vec!["destroy".into(), id.to_string().into()]) {
        undo.push(move || {
            // The token may be one on which nothing can be destroyed; the KEK is the drill's alone.
            let _ = run(destroy);
        });
    }
}

/// How the drill reaches the token.
pub(crate) fn token_settings(setup: &Setup, settings: &Settings) -> Result<Pkcs11Settings, Failure> {
    let mut token = setup.token_settings()?;
    token.call_timeout = settings.store_timeout;
    Ok(token)
}

fn own_directory(undo: &mut Undo) -> Result<PathBuf, Failure> {
    let mut random = [0; 8];
    fill_random(&mut random)?;
    let directory = env::temp_dir().join(format!("keyleash-drill-{:016x}", u64::from_ne_bytes(random)));
    let made = DirBuilder::new().mode(0o700).create(&directory);
    made.map_err(|error| Failure::io(directory.display(), error))?;
    let remove = directory.clone();
    undo.push(move || drop(fs::remove_dir_all(remove)));
    Ok(directory)
}

/// The drill's KEK in the store of its directory.
pub(crate) fn kek_name(directory: &Path) -> Result<KekName, Failure> {
    let unique = directory.to_string_lossy();
    let (_, unique) = unique.rsplit_once('-').unwrap_or(("", KEK));
    Ok(KekName::new(format!("{KEK}-{unique}"))?)
}

/// The PIN in a file of the drill's own, because the drill changes it.
fn own_pin(source: &PinSource, directory: &Path) -> Result<PinSource, Failure> {
    let pin = match source {
        PinSource::File(path) => fs::read(path).map_err(|error| Failure::io(path.display(), error))?,
        PinSource::Env(name) => env::var(name).unwrap_or_default().into_bytes(),
        _ => return Err(Failure::Usage("pin-changed needs the PIN in a file or in the environment".into())),
    };
    let path = directory.join("pin");
    write_pin(&path, &zeroize::Zeroizing::new(pin))?;
    Ok(PinSource::File(path))
}

/// Writes a file that its owner alone may read.
pub(crate) fn write_pin(path: &Path, pin: &[u8]) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io(path.display(), error);
    let file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(pin)).map_err(failed)
}

/// Makes the accounts, many at once, and seals their kept blocks.
async fn customers(engine: &Engine, kek: &KekName, count: u32) -> Result<Vec<Customer>, Failure> {
    let (mut making, mut made) = (JoinSet::new(), Vec::new());
    for number in 0..count {
        if making.len() >= MADE_AT_ONCE {
            made.extend(next(&mut making).await?);
        }
        let (engine, kek) = (engine.clone(), kek.clone());
        making.spawn(async move {
            let id = AccountId::new(format!("drill-{number:06}"))?;
            // Sealed at once: a fleet takes longer to make than a fast TTL lasts.
            Customer::new(engine.create_account(&id, &kek).await?)
        });
    }
    while let Some(customer) = next(&mut making).await? {
        made.push(customer);
    }
    made.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
    Ok(made)
}

async fn next(making: &mut JoinSet<Result<Customer, Error>>) -> Result<Option<Customer>, Failure> {
    match making.join_next().await {
        None => Ok(None),
        Some(Ok(customer)) => Ok(Some(customer?)),
        Some(Err(error)) => Err(Failure::io("making an account", io::Error::other(error))),
    }
}
