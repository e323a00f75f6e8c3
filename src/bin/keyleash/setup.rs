//! From settings to an engine.

use crate::{
    exit::Failure,
    lazy_token::LazyToken,
    open_token::open,
    os_caller::os_caller,
    out_file::OutFile,
    output::Output,
    refused_pins::RefusedPins,
    shared_store::SharedStore,
    streams::{OwnFiles, Standard},
};
use keyleash::{
    Engine, Error,
    access::{Operation, Policy},
    config::{AuditConfig, Config, ConfigFile, PinSource, Settings, TokenConfig, TokenSelector},
    engine::{Judge, PolicySource},
    name::{AccountId, CallerId, KekName, KekVersion, TokenName},
    secret::{MemlockPolicy, check_memlock},
    store::{Key, KeyStore, memory::MemoryStore, record::StoreRecord},
    token::{
        KekId, Token,
        pkcs11::{self, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::{
    env,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Read if it is there and no other file is named.
pub(crate) const CONFIG_DEFAULT: &str = "keyleash.toml";
/// A command uses few accounts: a limit made for a service would ask for locked memory that it never needs.
const CACHED_AEKS_MAX: u64 = 64;

/// What a command needs of the key store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// It is made if it is missing.
    Create,
    /// It must exist: what is not mounted, or misspelt, is no empty store.
    Existing,
    /// As that, and it is only read: on media that are read-only too.
    Read,
    /// Nothing.
    None,
}

/// What an engine of a command asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Tokens,
    /// The store alone.
    Nobody,
}

/// The settings of this run.
#[derive(Debug)]
pub(crate) struct Setup {
    config: Config,
    output: Output,
    /// What this command made, and what is waited for at its end.
    engine: Mutex<Option<Engine>>,
}

impl Setup {
    /// Reads the file and the environment.
    pub(crate) fn read(file: Option<&Path>, output: Output) -> Result<Self, Failure> {
        let setup = Self { config: read_config(file)?.0.resolve()?, output, engine: Mutex::default() };
        // Also one that is empty by now.
        if let Some(written) = Standard::Output.file().ok().and_then(|output| output.metadata().ok()) {
            setup.own_files().refuse_store(&written, Standard::Output.name())?;
        }
        Ok(setup)
    }

    /// Before the process ends: what the engine still writes down.
    pub(crate) async fn close(&self) {
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = engine {
            // What could not be written down was told where it mattered to the command.
            let _ = engine.close(self.config.settings.store_timeout).await;
        }
    }

    /// How an engine behaves.
    pub(crate) fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// The longest deadline that a call of a token has.
    pub(crate) fn call_timeout(&self) -> Duration {
        let Config { token: default, other_tokens: others, .. } = &self.config;
        others.iter().map(|token| token.call_timeout).fold(default.call_timeout, Duration::max)
    }

    /// Where the store is.
    pub(crate) fn store_path(&self) -> &Path {
        &self.config.store
    }

    /// Where the trail is kept; `None` where none is.
    pub(crate) fn audit(&self) -> Option<&AuditConfig> {
        self.config.audit.as_ref()
    }

    /// What no OUT may take the place of.
    pub(crate) fn own_files(&self) -> OwnFiles {
        let Config { token, other_tokens, store, .. } = &self.config;
        let pin = |token: &TokenConfig| match &token.pin {
            Some(PinSource::File(path)) => Some(path.clone()),
            _ => None,
        };
        OwnFiles { store: store.clone(), pins: other_tokens.iter().chain([token]).filter_map(pin).collect() }
    }

    /// Begins a report, in the place of an older one.
    pub(crate) fn report(&self, place: &Path) -> Result<OutFile, Failure> {
        self.own_files().refuse_to_replace(place)?;
        OutFile::create(place, true)
    }

    pub(crate) async fn store(&self, need: Store) -> Result<Arc<dyn KeyStore>, Failure> {
        let path = self.config.store.clone();
        let opened = match need {
            Store::None => return Ok(Arc::new(MemoryStore::new())),
            Store::Create => SharedStore::open(path, true).await,
            Store::Existing => SharedStore::open(path, false).await,
            Store::Read => SharedStore::open_to_read(path).await,
        };
        match opened {
            Ok(store) => {
                if store.is_new() {
                    let path = self.store_path().display();
                    self.output.note(&format!("keyleash: store {path}: made, for there was none"));
                }
                Ok(Arc::new(store))
            }
            Err(Error::NotFound(what)) => {
                Err(Error::NotFound(format!("{what}: `keyleash kek create NAME` makes it")).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// An engine for a command that uses few accounts.
    pub(crate) async fn engine(&self, need: Store) -> Result<Engine, Failure> {
        // A store that cannot be opened is said before the token counts a login.
        let store = self.store(need).await?;
        self.engine_over(store, CACHED_AEKS_MAX, Ask::Tokens).await
    }

    /// One for a command that asks no token, and needs none to be configured.
    pub(crate) async fn engine_without_token(&self, need: Store) -> Result<Engine, Failure> {
        self.engine_over(self.store(need).await?, CACHED_AEKS_MAX, Ask::Nobody).await
    }

    /// The grants of the configuration.
    pub(crate) fn policy(&self) -> &Policy {
        &self.config.policy
    }

    /// Who may do what, for a command that reads the store by itself.
    pub(crate) async fn judge(&self, store: Arc<dyn KeyStore>) -> Result<Judge, Failure> {
        self.judge_for(store, os_caller()?).await
    }

    /// As [`Setup::judge`], of what another caller may do.
    pub(crate) async fn judge_for(&self, store: Arc<dyn KeyStore>, caller: CallerId) -> Result<Judge, Failure> {
        Ok(Judge::new(store, &self.config.policy, caller).await?)
    }

    /// Whether whoever gave the command may do this to all that the store has. Of a store whose policy cannot be read anybody may: it is
    /// to be looked at, or replaced, by whoever has its file.
    pub(crate) async fn expect_over_all(&self, store: Arc<dyn KeyStore>, operation: Operation) -> Result<(), Failure> {
        match Judge::new(store, &self.config.policy, os_caller()?).await {
            Ok(judge) => Ok(judge.permit(operation, None, None).await?),
            Err(Error::Corrupt(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The same with its store.
    pub(crate) async fn engine_and_store(&self, need: Store) -> Result<(Engine, Arc<dyn KeyStore>), Failure> {
        let store = self.store(need).await?;
        Ok((self.engine_over(store.clone(), CACHED_AEKS_MAX, Ask::Tokens).await?, store))
    }

    /// The same over a store that exists, and by what that is known.
    pub(crate) async fn engine_and_store_id(&self, need: Store) -> Result<(Engine, Option<StoreRecord>), Failure> {
        let store = self.store(need).await?;
        // It only makes errors say more: one that cannot be read is for `store check`.
        let found = store.get(&Key::Store).await?;
        let id = found.and_then(|found| StoreRecord::decode(&Key::Store, &found.value).ok());
        Ok((self.engine_over(store, CACHED_AEKS_MAX, Ask::Tokens).await?, id))
    }

    /// An engine that is set up as a service's would be, for what judges the set-up.
    pub(crate) async fn full_engine(&self, store: Arc<dyn KeyStore>) -> Result<Engine, Failure> {
        self.engine_over(store, u64::MAX, Ask::Tokens).await
    }

    async fn engine_over(&self, store: Arc<dyn KeyStore>, cached_aeks_max: u64, need: Ask) -> Result<Engine, Failure> {
        let mut settings = self.config.settings.clone();
        settings.max_cached_aeks = settings.max_cached_aeks.min(cached_aeks_max);
        if settings.memlock == MemlockPolicy::Refuse {
            // Before there is a PIN in memory. The engine says what is not refused.
            check_memlock(usize::try_from(settings.max_cached_aeks).unwrap_or(usize::MAX), settings.memlock)?;
        }
        settings.scheduled_work = false; // a command does what it was told
        let Config { token: default, other_tokens: others, standbys, .. } = &self.config;
        let token: Arc<dyn Token> = match need {
            Ask::Tokens if others.is_empty() => {
                Arc::new(open(self.noting(self.token_settings()?)).await.map_err(Error::from)?)
            }
            Ask::Tokens => Arc::new(LazyToken::new(self.noting(self.token_settings()?))),
            // Opened by the first call, of which there is none.
            Ask::Nobody => {
                let pin = pkcs11::PinSource::Env(String::new());
                Arc::new(LazyToken::new(Pkcs11Settings::new("", Selector::Slot(0), pin)))
            }
        };
        // A command proves by what it does.
        let mut builder = Engine::builder(token, store).settings(settings).start_up_proof(false);
        builder = builder.default_token(default.name.clone());
        for other in others.iter().filter(|_| need == Ask::Tokens) {
            let token = LazyToken::new(self.noting(self.settings_of(other)?));
            builder = builder.token(other.name.clone(), Arc::new(token));
        }
        for (kek, standby) in standbys.iter().filter(|_| need == Ask::Tokens) {
            builder = builder.standby(kek.clone(), standby.clone());
        }
        let policy = PolicySource::Given(self.config.policy.clone());
        let engine = builder.policy(policy).build()?.caller(os_caller()?);
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine.clone());
        Ok(engine)
    }

    /// How the default token is reached.
    pub(crate) fn token_settings(&self) -> Result<Pkcs11Settings, Failure> {
        self.settings_of(&self.config.token)
    }

    /// Opens the token that is configured under this name, for its owner's hand.
    pub(crate) async fn open_token(&self, name: &TokenName) -> Result<Pkcs11Token, Failure> {
        let Config { token: default, other_tokens: others, .. } = &self.config;
        let Some(token) = others.iter().chain([default]).find(|token| token.name == *name) else {
            return Err(Error::Misconfigured(format!("token {name} is not configured: see [[token]]")).into());
        };
        Ok(open(self.noting(self.settings_of(token)?)).await.map_err(Error::from)?)
    }

    /// With a note beside the store of each PIN that the token refuses: a drill changes PINs, and leaves none.
    fn noting(&self, settings: Pkcs11Settings) -> Pkcs11Settings {
        let mut settings = settings;
        settings.refusal_notes = Some(Arc::new(RefusedPins::beside(&self.config.store)));
        settings
    }

    /// The token that stands by for a KEK.
    pub(crate) fn standby_of(&self, kek: &KekName) -> Option<&TokenName> {
        self.config.standbys.get(kek)
    }

    fn settings_of(&self, token: &TokenConfig) -> Result<Pkcs11Settings, Failure> {
        let (Some(module), Some(selector), Some(pin)) = (&token.module, &token.selector, &token.pin) else {
            return Err(self.no_token(token));
        };
        let selector = match selector {
            TokenSelector::Label(label) => Selector::Label(label.clone()),
            TokenSelector::Serial(serial) => Selector::Serial(serial.clone()),
            TokenSelector::Slot(slot) => Selector::Slot(*slot),
        };
        let pin = match pin {
            PinSource::File(path) => pkcs11::PinSource::File(path.clone()),
            PinSource::Env(name) => pkcs11::PinSource::Env(name.clone()),
        };
        let mut settings = Pkcs11Settings::new(module, selector, pin);
        settings.workers = token.workers;
        settings.call_timeout = token.call_timeout;
        Ok(settings)
    }

    fn no_token(&self, token: &TokenConfig) -> Failure {
        if token.name != self.config.token.name {
            let missing = [
                (token.module.is_none(), "module"),
                (token.selector.is_none(), "label"),
                (token.pin.is_none(), "pin_file"),
            ];
            let missing: Vec<_> =
                missing.into_iter().filter_map(|(is_missing, key)| is_missing.then_some(key)).collect();
            let message = format!("[[token]] {}: {} not set", token.name, missing.join(", "));
            return Error::Misconfigured(message).into();
        }
        let missing = [
            (token.module.is_none(), "KEYLEASH_MODULE"),
            (token.selector.is_none(), "KEYLEASH_TOKEN_LABEL"),
            (token.pin.is_none(), "KEYLEASH_PIN_FILE"),
        ];
        let missing: Vec<_> = missing.into_iter().filter_map(|(is_missing, name)| is_missing.then_some(name)).collect();
        let message = format!(
            "no token: {} not set, nor in {CONFIG_DEFAULT}. To try it on a SoftHSM token: softhsm/with-token keyleash quickstart",
            missing.join(", ")
        );
        Error::Misconfigured(message).into()
    }
}

/// What the file and the environment say, and which file that was.
pub(crate) fn read_config(file: Option<&Path>) -> Result<(ConfigFile, Option<&Path>), Failure> {
    let path = file.or_else(|| Some(Path::new(CONFIG_DEFAULT)).filter(|path| path.exists()));
    let said = path.map(ConfigFile::read).transpose()?.unwrap_or_default();
    let names = env::vars_os().map(|(name, _)| name);
    Ok((said.overlay(names, |name| env::var_os(name))?, path))
}

/// An account id from the command line.
pub(crate) fn account_id(id: &OsStr) -> Result<AccountId, Failure> {
    Ok(AccountId::from_bytes(id.as_bytes())?)
}

/// A KEK name from the command line.
pub(crate) fn kek_name(name: &OsStr) -> Result<KekName, Failure> {
    Ok(KekName::new(name.to_string_lossy())?)
}

/// A token's name from the command line.
pub(crate) fn token_name(name: &OsStr) -> Result<TokenName, Failure> {
    Ok(TokenName::new(name.to_string_lossy())?)
}

/// `NAME/VERSION` from the command line.
pub(crate) fn kek_version(version: &OsStr) -> Result<KekVersion, Failure> {
    let text = version.to_string_lossy();
    let parsed = text.rsplit_once('/').and_then(|(name, version)| Some((name, version.parse().ok()?)));
    let Some((name, version)) = parsed else {
        return Err(
            Error::Invalid(format!("{text:?} names no KEK version: write NAME/VERSION, as in tenants/1")).into()
        );
    };
    Ok(KekVersion::new(KekName::new(name)?, version))
}

/// A CKA_ID in hex from the command line.
pub(crate) fn kek_id(text: &str) -> Result<KekId, Failure> {
    let digit = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let is_hex = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(digit).collect();
    match bytes.filter(|_| is_hex) {
        Some(bytes) => Ok(KekId::new(bytes)?),
        None => {
            Err(Error::Invalid(format!("{text:?} is no CKA_ID: write its bytes in hex, as `keyleash kek list` does"))
                .into())
        }
    }
}
