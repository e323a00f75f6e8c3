//! From settings to an engine.

use crate::{
    exit::Failure,
    lazy_token::LazyToken,
    on_trail::{Asked, Opened, Whose, note_forbidden},
    open_store::open_store,
    open_token::open,
    os_caller::os_caller,
    out_file::OutFile,
    output::Output,
    refused_pins::RefusedPins,
    streams::{OwnFiles, Standard},
};
use keyleash::{
    Engine, Error,
    access::{Operation, Policy},
    config::{
        AuditConfig, Config, ConfigFile, OnFailure, PinSource, STORE_DEFAULT, Settings, StoreConfig, TokenConfig,
        TokenSelector, alert::Rule,
    },
    engine::{Judge, PolicySource},
    name::{AccountId, CallerId, KekName, KekVersion, TokenName},
    secret::{MemlockPolicy, check_memlock},
    store::{Key, KeyStore, memory::MemoryStore, record::StoreRecord},
    telemetry::trail::{Deed, Subject, Trail},
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
}

/// What an engine of a command asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Tokens,
    /// The store alone.
    Nobody,
}

/// Whether an engine of a command tells the trail, where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Trail,
    NoTrail,
}

/// The settings of this run.
#[derive(Debug)]
pub(crate) struct Setup {
    config: Config,
    output: Output,
    whose: Whose,
    /// What this command made, and what is waited for at its end.
    engine: Mutex<Option<Engine>>,
    /// Opened by the first that tells it something.
    trail: tokio::sync::Mutex<Option<Opened>>,
}

impl Setup {
    /// Reads the file and the environment, for the command of these words.
    pub(crate) fn read(file: Option<&Path>, output: Output, command: &str) -> Result<Self, Failure> {
        let (config, whose) = (read_config(file)?.0.resolve()?, Whose::here(command)?);
        let setup = Self { config, output, whose, engine: Mutex::default(), trail: tokio::sync::Mutex::default() };
        // Also one that is empty by now.
        if let Some(written) = Standard::Output.file().ok().and_then(|output| output.metadata().ok()) {
            setup.own_files().refuse_store(&written, Standard::Output.name())?;
        }
        Ok(setup)
    }

    /// Before the process ends: what the engine still writes down, and the trail. Each is waited for so long.
    ///
    /// # Errors
    /// [`Error::Trail`], where some of it is not on the trail, and data are not to be used unseen.
    pub(crate) async fn close(&self, patience: Duration) -> Result<(), Failure> {
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = engine {
            // What could not be written down was told where it mattered to the command.
            let _ = engine.close(patience).await;
        }
        self.close_trail(patience).await
    }

    /// Has all written that was told to the trail, and a checkpoint over it, for which it waits so long; it is opened anew by the next
    /// that tells it something.
    ///
    /// # Errors
    /// As [`Setup::close`].
    pub(crate) async fn close_trail(&self, patience: Duration) -> Result<(), Failure> {
        let Some(trail) = self.trail.lock().await.take() else { return Ok(()) };
        let closed = trail.close(patience).await;
        if let (Err(error), true) = (&closed, self.whose.takes_away) {
            self.output.warn(&format!("it is done, and the trail does not have all of it: {error}"));
            return Ok(());
        }
        match (closed, self.config.audit.as_ref().map(|audit| audit.on_failure)) {
            (Err(error), Some(OnFailure::Continue)) => {
                self.output.note(&format!("keyleash: warning: {error}"));
                Ok(())
            }
            (closed, _) => Ok(closed?),
        }
    }

    /// The trail of this command; `None` where none is configured. `token` is the default one, where it is open.
    ///
    /// # Errors
    /// Why it cannot be kept, where data are not to be used unseen; else whatever is asked of it is refused, and data are used.
    async fn trail(
        &self,
        store: &Arc<dyn KeyStore>,
        token: Option<Arc<dyn Token>>,
    ) -> Result<Option<Arc<dyn Trail>>, Failure> {
        let Some(config) = &self.config.audit else { return Ok(None) };
        let mut trail = self.trail.lock().await;
        let opened = match &*trail {
            Some(opened) => opened,
            None => {
                let token = match token {
                    Some(token) => token,
                    None => Arc::new(LazyToken::new(self.noting(self.token_settings()?))),
                };
                let patience = (self.config.settings.store_timeout, self.whose.takes_away);
                trail.insert(Opened::open(config, store.clone(), token, patience, self.output).await?)
            }
        };
        Ok(Some(opened).filter(|opened| !(self.whose.takes_away && opened.is_missing())).map(Opened::trail))
    }

    /// Something that a command does by its own hand and that changes something: the trail has that it was asked for before it is done,
    /// and how it ended before the command goes on.
    ///
    /// # Errors
    /// As `work`; [`Error::Trail`], and what opening it fails with: nothing was done.
    pub(crate) async fn acting<T>(
        &self,
        store: &Arc<dyn KeyStore>,
        deed: Deed,
        on: Subject,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let asked = self.ask(store, deed, on).await?;
        let outcome = work.await;
        asked.end(&outcome).await;
        outcome
    }

    /// Has the trail told that this is asked for; whoever does it tells how it ended.
    ///
    /// # Errors
    /// As [`Setup::acting`].
    pub(crate) async fn ask(&self, store: &Arc<dyn KeyStore>, deed: Deed, on: Subject) -> Result<Asked, Failure> {
        Ok(Asked::ask(self.trail(store, None).await?, &self.whose, deed, on, self.output).await?)
    }

    /// As [`Asked::end`], for what had the trail closed meanwhile.
    pub(crate) async fn end_anew<T>(&self, store: &Arc<dyn KeyStore>, asked: Asked, outcome: &Result<T, Failure>) {
        match self.trail(store, None).await {
            Ok(trail) => asked.end_on(outcome, trail).await,
            Err(failure) => tracing::warn!("{failure}"),
        }
    }

    /// What can be told of a trail before there is a key that signs it: there is a place for it.
    ///
    /// # Errors
    /// [`Error::Misconfigured`].
    pub(crate) fn expect_place_of_trail(&self) -> Result<(), Failure> {
        match &self.config.audit {
            Some(audit) if !audit.directory.is_dir() => Err(Error::Misconfigured(format!(
                "audit.directory {}: there is no such directory; make it, or mount what it is on",
                audit.directory.display()
            ))
            .into()),
            _ => Ok(()),
        }
    }

    /// The signing key was made by this token.
    ///
    /// # Errors
    /// [`Error::Trail`], and what opening it fails with: it is made all the same.
    pub(crate) async fn tell_key_made(&self, store: &Arc<dyn KeyStore>, token: Arc<dyn Token>) -> Result<(), Failure> {
        let trail = self.trail(store, Some(token.clone())).await?;
        let mut on = Subject::default();
        (on.token, on.token_serial) = (Some(self.default_token().clone()), token.serial().map(Into::into));
        Ok(Asked::done(trail, &self.whose, Deed::AuditKeyCreate, on).await?)
    }

    /// Whether whoever gave the command may do this, for a command that reads the store by itself. A refusal is on the trail.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; what the store says.
    pub(crate) async fn permit(
        &self,
        store: &Arc<dyn KeyStore>,
        operation: Operation,
        account: Option<&AccountId>,
        kek: Option<&KekName>,
    ) -> Result<(), Failure> {
        let permitted = self.judge(store.clone()).await?.permit(operation, account, kek).await;
        self.told_if_forbidden(store, permitted, account, kek).await
    }

    async fn told_if_forbidden(
        &self,
        store: &Arc<dyn KeyStore>,
        permitted: Result<(), Error>,
        account: Option<&AccountId>,
        kek: Option<&KekName>,
    ) -> Result<(), Failure> {
        if let Err(error @ Error::Forbidden(_)) = &permitted {
            let mut on = Subject::default();
            (on.account, on.kek) = (account.cloned(), kek.cloned());
            // It is refused either way.
            if let Ok(Some(trail)) = self.trail(store, None).await {
                note_forbidden(&*trail, &self.whose, error, on);
            }
        }
        Ok(permitted?)
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
    pub(crate) fn place(&self) -> &StoreConfig {
        &self.config.store
    }

    /// A store at another place, that is reached as the one that is configured.
    pub(crate) fn store_at(&self, place: &Path) -> Result<StoreConfig, Failure> {
        Ok(self.config.store_at(place)?)
    }

    /// The store's file, or where it would be: a command keeps beside it what is this machine's own.
    fn local_store(&self) -> &Path {
        self.config.store.path().unwrap_or(Path::new(STORE_DEFAULT))
    }

    /// Where the trail is kept; `None` where none is.
    pub(crate) fn audit(&self) -> Option<&AuditConfig> {
        self.config.audit.as_ref()
    }

    /// Where notices go as mail.
    #[cfg(feature = "mail")]
    pub(crate) fn mail(&self) -> Option<&keyleash::config::mail::MailConfig> {
        self.config.mail.as_ref()
    }

    /// The rules of `[[alert]]`.
    pub(crate) fn alerts(&self) -> &[Rule] {
        &self.config.alerts
    }

    /// The name of the default token.
    pub(crate) fn default_token(&self) -> &TokenName {
        &self.config.token.name
    }

    /// The variables of the environment that hold PINs.
    pub(crate) fn pin_variables(&self) -> impl Iterator<Item = &str> {
        let Config { token, other_tokens, .. } = &self.config;
        other_tokens.iter().chain([token]).filter_map(|token| match &token.pin {
            Some(PinSource::Env(name)) => Some(name.as_str()),
            _ => None,
        })
    }

    /// What no OUT may take the place of.
    pub(crate) fn own_files(&self) -> OwnFiles {
        let Config { token, other_tokens, store, .. } = &self.config;
        let pin = |token: &TokenConfig| match &token.pin {
            Some(PinSource::File(path)) => Some(path.clone()),
            _ => None,
        };
        OwnFiles {
            store: store.path().map(Path::to_owned),
            pins: other_tokens.iter().chain([token]).filter_map(pin).collect(),
        }
    }

    /// Begins a report, in the place of an older one.
    pub(crate) fn report(&self, place: &Path) -> Result<OutFile, Failure> {
        self.own_files().refuse_to_replace(place)?;
        OutFile::create(place, true)
    }

    pub(crate) async fn store(&self, need: Store) -> Result<Arc<dyn KeyStore>, Failure> {
        match open_store(self.place(), need).await {
            Ok((store, is_new)) => {
                if is_new {
                    self.output.note(&format!("keyleash: store {}: made, for there was none", self.place()));
                }
                Ok(store)
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
        self.engine_over(store, CACHED_AEKS_MAX, Ask::Tokens, On::Trail).await
    }

    /// One for a command that asks no token, and needs none to be configured.
    pub(crate) async fn engine_without_token(&self, need: Store) -> Result<Engine, Failure> {
        self.engine_over(self.store(need).await?, CACHED_AEKS_MAX, Ask::Nobody, On::Trail).await
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
        match Judge::new(store.clone(), &self.config.policy, os_caller()?).await {
            Ok(judge) => {
                let permitted = judge.permit(operation, None, None).await;
                self.told_if_forbidden(&store, permitted, None, None).await
            }
            Err(Error::Corrupt(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The same with its store.
    pub(crate) async fn engine_and_store(&self, need: Store) -> Result<(Engine, Arc<dyn KeyStore>), Failure> {
        let store = self.store(need).await?;
        Ok((self.engine_over(store.clone(), CACHED_AEKS_MAX, Ask::Tokens, On::Trail).await?, store))
    }

    /// The same over a store that exists, and by what that is known.
    pub(crate) async fn engine_and_store_id(&self, need: Store) -> Result<(Engine, Option<StoreRecord>), Failure> {
        let store = self.store(need).await?;
        // It only makes errors say more: one that cannot be read is for `store check`.
        let found = store.get(&Key::Store).await?;
        let id = found.and_then(|found| StoreRecord::decode(&Key::Store, &found.value).ok());
        Ok((self.engine_over(store, CACHED_AEKS_MAX, Ask::Tokens, On::Trail).await?, id))
    }

    /// An engine that is set up as a service's would be, for what judges the set-up.
    pub(crate) async fn full_engine(&self, store: Arc<dyn KeyStore>) -> Result<Engine, Failure> {
        self.engine_over(store, u64::MAX, Ask::Tokens, On::Trail).await
    }

    /// As [`Setup::full_engine`], over no store: for what tries tokens, and has nothing of anybody's in its hands.
    pub(crate) async fn engine_of_no_store(&self) -> Result<Engine, Failure> {
        self.engine_over(Arc::new(MemoryStore::new()), u64::MAX, Ask::Tokens, On::NoTrail).await
    }

    async fn engine_over(
        &self,
        store: Arc<dyn KeyStore>,
        cached_aeks_max: u64,
        need: Ask,
        on: On,
    ) -> Result<Engine, Failure> {
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
        let trail = match on {
            On::Trail => self.trail(&store, Some(token.clone()).filter(|_| need == Ask::Tokens)).await?,
            On::NoTrail => None,
        };
        // A command proves by what it does.
        let mut builder = Engine::builder(token, store).settings(settings).start_up_proof(false);
        if let Some(trail) = trail {
            builder = builder.trail(trail);
        }
        builder = builder.default_token(default.name.clone());
        for other in others.iter().filter(|_| need == Ask::Tokens) {
            let token = LazyToken::new(self.noting(self.settings_of(other)?));
            builder = builder.token(other.name.clone(), Arc::new(token));
        }
        for (kek, standby) in standbys.iter().filter(|_| need == Ask::Tokens) {
            builder = builder.standby(kek.clone(), standby.clone());
        }
        let policy = PolicySource::Given(self.config.policy.clone());
        let Whose { caller, from, .. } = self.whose.clone();
        let engine = builder.policy(policy).build()?.caller(caller).from_where(from);
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
        settings.refusal_notes = Some(Arc::new(RefusedPins::beside(self.local_store())));
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
