//! KEKs: made, adopted, rotated, re-wrapped, retired, and as the store knows them and the token has them.

use super::{Act, Engine};
use crate::{
    access::Operation,
    error::{Error, Result},
    keyring::{
        Keyring, On,
        on_trail::{asked_by, asker},
    },
    name::{KekName, KekVersion, TokenName},
    rotate::{Pace, RewrapOptions, RewrapProgress, RewrapReport},
    store::{
        self,
        record::{KekPolicy, KekVersionRecord},
    },
    telemetry::trail::Deed,
    token::{KekId, KekInfo, Profile, TokenError, UnaddressableKey},
};
use std::pin::pin;
use tokio::sync::mpsc;

/// The version that a KEK begins with.
const FIRST_KEK_VERSION: u32 = 1;

/// One version of a KEK as the store knows it, and as the token has it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KekVersionStatus {
    /// As the store knows it.
    pub record: KekVersionRecord,
    /// True for the version under which new AEKs are wrapped.
    pub current: bool,
    /// As the token has it: `Ok(None)` when it has none with this CKA_ID.
    pub in_token: Result<Option<KekInfo>, TokenError>,
    /// As its standby has it, if it has one.
    pub in_standby: Option<(TokenName, Result<Option<KekInfo>, TokenError>)>,
}

impl KekVersionStatus {
    /// True when its loss could be undone: CKA_DESTROYABLE is false in the token, and an operator attested a backup.
    pub fn is_recoverable(&self) -> bool {
        let kept = matches!(&self.in_token, Ok(Some(info)) if info.destroyable == Some(false));
        kept && self.record.backup_attested_unix.is_some()
    }
}

/// What a new KEK shall be.
///
/// ```
/// # use keyleash::{KekOptions, name::TokenName, token::Profile};
/// let options = KekOptions::new(Profile::AesKw).token(TokenName::new("hsm-b")?);
/// # Ok::<_, keyleash::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KekOptions {
    /// How it wraps.
    pub profile: Profile,
    /// CKA_DESTROYABLE, of later versions too: a KEK that can be destroyed in the token can be destroyed by accident. Default false.
    pub destroyable: bool,
    /// The token that it is made in, and all its later versions. Default: the engine's default token.
    pub token: Option<TokenName>,
}

impl KekOptions {
    /// One that cannot be destroyed, in the default token.
    #[must_use]
    pub const fn new(profile: Profile) -> Self {
        Self { profile, destroyable: false, token: None }
    }

    /// It can be destroyed in the token.
    #[must_use]
    pub const fn destroyable(mut self) -> Self {
        self.destroyable = true;
        self
    }

    /// In this token.
    #[must_use]
    pub fn token(mut self, token: TokenName) -> Self {
        self.token = Some(token);
        self
    }
}

impl From<Profile> for KekOptions {
    fn from(profile: Profile) -> Self {
        Self::new(profile)
    }
}

/// A KEK and its versions.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KekStatus {
    /// The name.
    pub name: KekName,
    /// Oldest first.
    pub versions: Vec<KekVersionStatus>,
    /// When it is rotated by schedule.
    pub policy: KekPolicy,
}

impl Engine {
    /// Makes version 1 of a KEK in the token and writes it down in the store. `options` is a [`Profile`] where that says it all.
    ///
    /// A key with its label, which names the store too, that is in the token but not in the store is one whose making was cut short
    /// by a crash: it is taken, if it is sound and of the same profile. No other key is, whatever its label: [`Engine::adopt_kek`].
    ///
    /// # Errors
    /// [`Error::Exists`] when the store has a KEK of this name; [`Error::NotFound`] for a token that is named and not there;
    /// [`Error::Misconfigured`] when the token cannot make it or has several keys with its label; [`Error::Denied`],
    /// [`Error::Unreachable`], [`Error::Store`].
    pub async fn create_kek(&self, name: &KekName, options: impl Into<KekOptions>) -> Result<KekInfo> {
        self.make_kek(&[Operation::Create], name, options.into()).await
    }

    /// The current version of a KEK, which is made first where the store has none of this name. It asks the token for one that it
    /// makes alone, so that a service can begin with it during an outage. Of several that do so at once one makes it: in one engine
    /// there is one key in the token; of several engines on one store one key counts, and the token may keep another, which no KEK
    /// names ([`Event::KekUnknown`](crate::telemetry::Event::KekUnknown)).
    ///
    /// # Errors
    /// [`Error::Exists`] when there is one of another profile, or in another token than the one that is named: nothing is made, and
    /// `destroyable` is not compared. Else as [`Engine::create_kek`].
    pub async fn get_or_create_kek(&self, name: &KekName, options: impl Into<KekOptions>) -> Result<KekVersionRecord> {
        const TAKES: &[Operation] = &[Operation::Get, Operation::Create];
        self.permit(TAKES, On::Kek(name)).await?;
        let options = options.into();
        let find = || {
            let (name, options) = (name.clone(), options.clone());
            self.at_home(|keyring| async move { found_kek(&keyring, &name, &options).await })
        };
        if let Some(found) = find().await? {
            return Ok(found);
        }
        match self.make_kek(TAKES, name, options.clone()).await {
            // Somebody else was faster.
            Err(exists @ Error::Exists(_)) => find().await?.ok_or(exists),
            Err(error) => Err(error),
            Ok(_) => {
                let name = name.clone();
                self.at_home(|keyring| async move { keyring.current_kek(&name).await.map(|(_, record)| record) }).await
            }
        }
    }

    async fn make_kek(&self, takes: &[Operation], name: &KekName, options: KekOptions) -> Result<KekInfo> {
        let token = options.token.clone().unwrap_or_else(|| self.default_token().clone());
        let act = Act::new(Deed::KekCreate, takes, On::Kek(name)).token(&token);
        let name = name.clone();
        let make = self.at_home(|keyring| async move { begin_kek(&keyring, &name, &options).await });
        self.acting(act, make, |_, on| on.kek_version = Some(FIRST_KEK_VERSION)).await
    }

    /// Every KEK of the store that the caller may `get`, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`].
    pub async fn keks(&self) -> Result<Vec<KekStatus>> {
        let caller = self.who.caller.clone();
        self.at_home(|keyring| async move {
            let mut keks = Vec::new();
            let names = store::kek_names(&*keyring.store).await?;
            for name in keyring.keks_for(caller.as_ref(), names).await? {
                keks.push(kek_status(&keyring, &name).await?);
            }
            Ok(keks)
        })
        .await
    }

    /// One KEK.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`], [`Error::Corrupt`].
    pub async fn kek(&self, name: &KekName) -> Result<KekStatus> {
        self.permit(&[Operation::Get], On::Kek(name)).await?;
        let name = name.clone();
        self.at_home(|keyring| async move { kek_status(&keyring, &name).await }).await
    }

    /// Makes the next version of a KEK in the token, of the same profile, proves it and makes it current: new AEKs are
    /// wrapped by it. Older versions stay as they are, and so does what they wrap, until [`Engine::rewrap_kek`].
    ///
    /// A key that a crash left behind between the token and the store is taken, so that trying again makes no second one.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Exhausted`] with [`KEK_VERSIONS_MAX`](crate::store::record::KEK_VERSIONS_MAX) versions; [`Error::Conflict`] when somebody else
    /// rotated it meanwhile to another key: then the new key stays in the token, unused, and the error names it; else as
    /// [`Engine::create_kek`].
    pub async fn rotate_kek(&self, name: &KekName) -> Result<KekVersionRecord> {
        let act = Act::new(Deed::KekRotate, &[Operation::Rotate], On::Kek(name));
        let name = name.clone();
        let rotate = self.at_home(|keyring| async move { keyring.rotate_kek(&name).await });
        self.acting(act, rotate, |made, on| on.kek_version = Some(made.version)).await
    }

    /// As [`Engine::rotate_kek`], if the current version is `expected`; `None` when it is another one by now. However many
    /// rotate one version at once, one does.
    ///
    /// # Errors
    /// As [`Engine::rotate_kek`].
    pub async fn rotate_kek_from(&self, name: &KekName, expected: u32) -> Result<Option<KekVersionRecord>> {
        let act = Act::new(Deed::KekRotate, &[Operation::Rotate], On::Kek(name));
        let name = name.clone();
        let rotate = self.at_home(|keyring| async move { keyring.rotate_kek_from(&name, expected).await });
        self.acting(act, rotate, |made, on| on.kek_version = made.as_ref().map(|made| made.version)).await
    }

    /// Makes a key that an operator made in the token the next version of a KEK, and its current one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the KEK or the key; [`Error::Misconfigured`] when keyleash refuses the key, naming the
    /// attribute, or it is of another profile than the KEK; [`Error::Exists`] when it is a version of a KEK already;
    /// [`Error::Conflict`] when somebody else rotated the KEK meanwhile; what the token fails with.
    pub async fn adopt_kek(&self, name: &KekName, id: &KekId) -> Result<KekVersionRecord> {
        let act = Act::new(Deed::KekAdopt, &[Operation::Rotate], On::Kek(name));
        let (name, id) = (name.clone(), id.clone());
        let adopt = self.at_home(|keyring| async move { keyring.adopt_kek(&name, &id).await });
        self.acting(act, adopt, |made, on| on.kek_version = Some(made.version)).await
    }

    /// Moves every AEK that an older version of `kek` wraps to its current version. Several accounts are under way at
    /// once; the engine's on-demand unwraps go first. Live handles follow, undisturbed. Safe beside other engines and
    /// processes on the same store, account creation and rotation included; after a crash at any instant call it again.
    ///
    /// An account whose record or wrapped AEK is damaged is reported and left as it is. An outage and a store that fails stop it,
    /// and so does a denial, for what that KEK version wraps: [`RewrapReport::stopped`].
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`], [`Error::Corrupt`] for the KEK itself.
    pub async fn rewrap_kek(
        &self,
        kek: &KekName,
        options: RewrapOptions,
        progress: impl Fn(RewrapProgress) + Send,
    ) -> Result<RewrapReport> {
        if options.dry_run {
            self.permit(&[Operation::Rewrap], On::Kek(kek)).await?;
            return self.rewrapping(kek, options, progress).await;
        }
        let act = Act::new(Deed::KekRewrap, &[Operation::Rewrap], On::Kek(kek));
        let rewrap = self.rewrapping(kek, options, progress);
        self.acting(act, rewrap, |done, on| on.kek_version = Some(done.to.version)).await
    }

    async fn rewrapping(
        &self,
        kek: &KekName,
        options: RewrapOptions,
        progress: impl Fn(RewrapProgress) + Send,
    ) -> Result<RewrapReport> {
        let pace = Pace::of(options.rate, &self.keyring().clock);
        let (keyring, kek) = (self.keyring().clone(), kek.clone());
        // What the caller does with its progress holds up the caller alone.
        let (tell, mut told) = mpsc::unbounded_channel(); // one for each batch
        let rewrap = self.keyring().home.call_without_end(asked_by(asker(), async move {
            let progress = |progress| {
                let _ = tell.send(progress); // nobody hears it when the caller is about to go
            };
            keyring.rewrap_at(&kek, options.dry_run, pace, progress).await
        }));
        let mut rewrap = pin!(rewrap);
        loop {
            tokio::select! {
                biased;
                Some(news) = told.recv() => progress(news),
                report = &mut rewrap => return report,
            }
        }
    }

    /// Retires a version of a KEK that wraps nothing any more: from then on the key may be deleted in the token, which
    /// keyleash does not do. What other stores wrap by it, and what backups of this one need it for, is not known here.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Invalid`] when it is the current one, or AEKs are wrapped by it, with their number and
    /// how to see them, when its key is that of another KEK as well, or while keys that this engine has in memory cannot be taken along to the versions that wrap them now;
    /// [`Error::Corrupt`] when any account's record cannot be read, for it may be wrapped by it;
    /// [`Error::Store`], [`Error::Conflict`].
    pub async fn retire_kek(&self, kek: &KekVersion) -> Result<()> {
        let act = Act::new(Deed::KekRetire, &[Operation::Purge], On::Kek(&kek.name)).version(kek);
        let kek = kek.clone();
        self.act(act, |keyring| async move { keyring.retire_kek(&kek, None).await }).await
    }

    /// As [`Engine::retire_kek`], of what [`Engine::retirable_kek`] gave and somebody agreed to.
    ///
    /// # Errors
    /// As [`Engine::retire_kek`]; [`Error::Conflict`] also when the version is another key by now, in a store that was restored say.
    pub async fn retire_kek_as_shown(&self, name: &KekName, shown: &KekVersionRecord) -> Result<()> {
        let (kek, shown) = (KekVersion::new(name.clone(), shown.version), shown.clone());
        let act = Act::new(Deed::KekRetire, &[Operation::Purge], On::Kek(name)).version(&kek);
        self.act(act, |keyring| async move { keyring.retire_kek(&kek, Some(&shown)).await }).await
    }

    /// What [`Engine::retire_kek`] would retire. Changes nothing.
    ///
    /// # Errors
    /// As [`Engine::retire_kek`].
    pub async fn retirable_kek(&self, kek: &KekVersion) -> Result<KekVersionRecord> {
        self.permit(&[Operation::Purge], On::Kek(&kek.name)).await?;
        let kek = kek.clone();
        self.at_home(|keyring| async move { keyring.retirable_kek(&kek).await }).await
    }

    /// How many accounts have an AEK that this KEK version wraps. Reads every account's record, and no index.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Corrupt`] when an account's record cannot be read, for it may be wrapped by it.
    pub async fn count_wrapped_by(&self, kek: &KekVersion) -> Result<u64> {
        self.permit(&[Operation::Get], On::Kek(&kek.name)).await?;
        let kek = kek.clone();
        self.at_home(|keyring| async move { keyring.count_wrapped_by(&kek).await }).await
    }

    /// Writes down that an operator has a backup of a KEK version and knows how to restore it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`], [`Error::Conflict`].
    pub async fn attest_backup(&self, kek: &KekVersion) -> Result<()> {
        let act = Act::new(Deed::KekBackupAttest, &[Operation::Rotate], On::Kek(&kek.name)).version(kek);
        let kek = kek.clone();
        self.act(act, |keyring| async move { keyring.attest_backup(&kek).await }).await
    }

    /// Keys in the default token that could be KEKs but that no KEK of the store names, in the order of their labels.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Corrupt`], and what the token fails with.
    pub async fn unknown_keks(&self) -> Result<Vec<KekInfo>> {
        self.permit(&[Operation::Get], On::All).await?;
        let seat = self.keyring().tokens.default_seat().clone();
        self.at_home(|keyring| async move { keyring.unknown_keks(&seat).await }).await
    }

    /// As [`Engine::unknown_keks`], in the token of that name.
    ///
    /// # Errors
    /// As [`Engine::unknown_keks`], and [`Error::NotFound`] for the token.
    pub async fn unknown_keks_in(&self, token: &TokenName) -> Result<Vec<KekInfo>> {
        self.permit(&[Operation::Get], On::All).await?;
        let seat = self.keyring().tokens.named(token)?.clone();
        self.at_home(|keyring| async move { keyring.unknown_keks(&seat).await }).await
    }

    /// Keys in the token of that name that could be KEKs, but for a CKA_ID that no record can name, in the order of their labels.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the token, and what the token fails with.
    pub async fn unaddressable_keys_in(&self, token: &TokenName) -> Result<Vec<UnaddressableKey>> {
        self.permit(&[Operation::Get], On::All).await?;
        let seat = self.keyring().tokens.named(token)?.clone();
        self.at_home(|_| async move { Ok(seat.token(&seat.budget.on_demand(None).await).list_unaddressable().await?) })
            .await
    }
}

/// The current version of a KEK that is what `options` ask for; `None` where there is no such KEK.
async fn found_kek(keyring: &Keyring, name: &KekName, options: &KekOptions) -> Result<Option<KekVersionRecord>> {
    let found = match keyring.current_kek(name).await {
        Err(Error::NotFound(_)) => return Ok(None),
        found => found?.1,
    };
    let is = match &options.token {
        _ if found.profile != options.profile => {
            format!("is for {}, and not for {}", found.profile, options.profile)
        }
        Some(token) if found.token != *token => format!("is in token {}, and not in {token}", found.token),
        _ => return Ok(Some(found)),
    };
    Err(Error::Exists(format!("KEK {name}, which {is}: take it as it is, or choose another name")))
}

async fn begin_kek(keyring: &Keyring, name: &KekName, options: &KekOptions) -> Result<KekInfo> {
    let KekOptions { profile, destroyable, token } = options;
    let seat = match token {
        None => keyring.tokens.default_seat(),
        Some(token) => keyring.tokens.named(token)?,
    };
    keyring.begin_kek(seat, name, *profile, *destroyable).await
}

async fn kek_status(keyring: &Keyring, name: &KekName) -> Result<KekStatus> {
    let record = keyring.kek_record(name).await?;
    let mut versions = Vec::new();
    for version in record.versions {
        let in_token = keyring.find_kek(name, &version).await;
        let in_standby = match keyring.tokens.standby_of(name) {
            Some(standby) => {
                let place = standby.guests.on_demand(None).await;
                Some((standby.name.clone(), standby.token(&place).find_kek(&version.id).await))
            }
            None => None,
        };
        let current = version.version == record.current;
        versions.push(KekVersionStatus { current, record: version, in_token, in_standby });
    }
    Ok(KekStatus { name: name.clone(), versions, policy: record.policy })
}
