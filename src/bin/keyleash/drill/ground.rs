//! What a drill stands on: a directory, a KEK and accounts of its own, and an engine over the token.

use super::{
    act::{Actor, Launch, run},
    args::Options,
    keys::Keys,
    load::Customer,
    scenario::Scenario,
};
use crate::{
    exit::Failure,
    setup::{Setup, wait_until_listed},
};
use async_trait::async_trait;
use keyleash::{
    Engine, Error,
    clock::Instant,
    config::Settings,
    name::{AccountId, KekName},
    secret::{Aek, fill_random},
    store::redb::RedbStore,
    token::{
        Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, Token, TokenError, TokenInfo, Workers, Wrapped,
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
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::task::JoinSet;

/// Accounts that are made at once: the store writes them together.
const MADE_AT_ONCE: usize = 64;
/// The store, in the drill's directory.
pub(crate) const STORE: &str = "keys.redb";
/// The drill's KEK in that store.
const KEK: &str = "drill";

/// Undoes what was done, the last first, when it is dropped: whatever ends a drill, the token is as it was.
#[derive(Default)]
pub(crate) struct Undo(Vec<Box<dyn FnOnce() + Send>>);

impl Undo {
    pub(crate) fn push(&mut self, undo: impl FnOnce() + Send + 'static) {
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

/// The token, its unwraps counted, and the AEKs known that it wrapped and unwrapped.
pub(crate) struct CountingToken {
    token: Pkcs11Token,
    pub(crate) keys: Keys,
    served: AtomicU64,
    failed: AtomicU64,
}

impl CountingToken {
    /// Unwraps that succeeded, and that did not.
    pub(crate) fn unwraps(&self) -> (u64, u64) {
        (self.served.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    fn count(&self, result: Result<Aek, TokenError>) -> Result<Aek, TokenError> {
        result.iter().for_each(|aek| self.keys.learn(aek));
        let counter = if result.is_ok() { &self.served } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }
}

#[async_trait]
impl Token for CountingToken {
    async fn info(&self) -> Result<TokenInfo, TokenError> {
        self.token.info().await
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        self.keys.learn(aek);
        self.token.wrap(kek, aek, binding).await
    }

    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.count(self.token.unwrap(kek, wrapped, binding).await)
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.count(self.token.prove(kek, wrapped, binding).await)
    }

    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError> {
        self.token.probe(profile).await
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        self.token.create_kek(spec).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        self.token.find_kek(id).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        self.token.list_keks().await
    }

    async fn renew_context(&self) -> Result<(), TokenError> {
        self.token.renew_context().await
    }

    fn context_began(&self) -> Option<Instant> {
        self.token.context_began()
    }

    fn call_timeout(&self) -> std::time::Duration {
        self.token.call_timeout()
    }

    fn in_flight(&self) -> usize {
        self.token.in_flight()
    }

    fn workers(&self) -> Workers {
        self.token.workers()
    }
}

/// The ground of one drill.
pub(crate) struct Ground {
    pub(crate) directory: PathBuf,
    pub(crate) settings: Settings,
    pub(crate) token: Arc<CountingToken>,
    pub(crate) info: TokenInfo,
    /// `None` once the drill has let go of it.
    pub(crate) engine: Option<Engine>,
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
        setup: &Setup,
        config: Option<&Path>,
    ) -> Result<(Self, Vec<Customer>), Failure> {
        let count = options.accounts.unwrap_or(scenario.accounts());
        let settings = scenario.settings(setup.settings(), options.fast, count);
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
        let (served, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        let token = Arc::new(CountingToken { token, keys: Keys::default(), served, failed });
        let store = Arc::new(RedbStore::open_or_create(directory.join(STORE)).await?);
        let engine = Engine::builder(token.clone(), store).settings(settings.clone()).build()?;
        // Its label tells an operator of a real HSM which one it is.
        let name = kek_name(&directory)?;
        let kek = engine.create_kek(&name, keyleash::KekOptions::new(options.profile).destroyable()).await?;
        destroy_at_the_end(&mut undo, &launch, &kek.id);
        let customers = customers(&engine, &name, count).await?;
        let ground =
            Self { directory, settings, token, info, engine: Some(engine), name, kek, actor, launch, with_token, undo };
        Ok((ground, customers))
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

fn kek_name(directory: &Path) -> Result<KekName, Failure> {
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

/// The directory that with-token made for this token: named by SOFTHSM2_CONF, with the token's own label written in it.
fn with_token_directory(info: &TokenInfo) -> Option<PathBuf> {
    let (directory, label) = with_token_place()?;
    let made = label == info.label && info.model.contains("SoftHSM") && directory.join("tokens").is_dir();
    made.then_some(directory)
}

/// Where with-token keeps the token that SOFTHSM2_CONF names, and its label.
fn with_token_place() -> Option<(PathBuf, String)> {
    let conf = PathBuf::from(env::var_os("SOFTHSM2_CONF")?);
    let directory = conf.parent()?.to_owned();
    let label = fs::read_to_string(directory.join("label")).ok()?.trim().to_owned();
    label.starts_with("keyleash-").then_some((directory, label))
}

/// Refuses an act on a token that with-token did not make, unless its serial was told.
pub(crate) fn may_touch(told: Option<&str>, info: &TokenInfo) -> Result<(), Failure> {
    let TokenInfo { label, serial, .. } = info;
    match told {
        Some(told) if told == serial => Ok(()),
        None if with_token_directory(info).is_some() => Ok(()),
        _ => Err(Failure::Usage(format!(
            "with-token did not make the token {label:?}: if it may be acted on, say so: --token-serial {serial}"
        ))),
    }
}

/// Refuses to move, replace or lock what is not in the directory that with-token made.
pub(crate) fn may_move(paths: &[&Path]) -> Result<(), Failure> {
    let place = with_token_place().and_then(|(directory, _)| directory.canonicalize().ok());
    for path in paths {
        let parent = path.file_name().and_then(|_| path.parent()).and_then(|parent| parent.canonicalize().ok());
        if !parent.zip(place.as_ref()).is_some_and(|(parent, place)| parent.starts_with(place)) {
            let path = path.display();
            return Err(Failure::Usage(format!("{path} is not in a directory that with-token made: nothing was done")));
        }
    }
    Ok(())
}

/// Refuses to act on a token that may be somebody's.
fn may_act(scenario: Scenario, options: &Options, info: &TokenInfo, with_token: Option<&Path>) -> Result<(), Failure> {
    let name = scenario.name();
    let told = match &options.token_serial {
        Some(serial) if *serial == info.serial => true,
        Some(serial) => {
            let is = &info.serial;
            return Err(Failure::Usage(format!(
                "--token-serial is {serial}, but the token has serial {is}: nothing was done"
            )));
        }
        None => false,
    };
    if with_token.is_some() || (told && options.operator) {
        return Ok(());
    }
    let by_pkcs11 =
        matches!(scenario, Scenario::Revocation | Scenario::Fleet | Scenario::PinChanged | Scenario::Rotation);
    let allowed = match (options.operator, scenario.is_destructive()) {
        (true, destructive) => !destructive,
        (false, _) => told && by_pkcs11,
    };
    if allowed {
        return Ok(());
    }
    let remedy = match (options.operator, by_pkcs11) {
        (true, _) => format!("it is destructive; if it shall run there, say so: --token-serial {}", info.serial),
        (false, true) => {
            format!("a person can do the acts (--operator), or say that the drill may: --token-serial {}", info.serial)
        }
        (false, false) => "a person must do the acts: --operator".into(),
    };
    let label = &info.label;
    Err(Failure::Usage(format!("drill {name}: with-token did not make the token {label:?}: {remedy}")))
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
