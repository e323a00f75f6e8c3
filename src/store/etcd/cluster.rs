//! The members of a cluster, of which one is asked at a time, and what their answers mean.
//!
//! Every request is one transaction: those that only read are linearizable, as no other read of etcd is used. A read goes from member to
//! member until one answers. A write is sent once, to the member that answered last: whether one was done that nobody answered can be
//! told by no second try, which would be refused for the first one's sake. It is sent elsewhere only where nothing took it.

use crate::{
    clock::{Clock, Instant},
    config::store::{EtcdConfig, Reach, StoreTls, StoreUser},
    store::remote::{
        Failure,
        files::{read_password, read_pem},
        why,
    },
};
use etcd_client::{
    Certificate, Client, ConnectOptions, Error as EtcdError, Identity, TlsOptions, Txn, TxnResponse, WatchOptions,
    WatchStream,
};
use std::{
    io::ErrorKind,
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

/// Longest answer: as many of the largest records as one transaction reads are half of it.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Between two rounds through the members.
const PAUSE: Duration = Duration::from_millis(50);
/// A connection on which a call waits is tried so often, and given up after as long without a word. Members take a client that asks more
/// often than every 5 s for an attack.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

pub(super) struct Cluster {
    config: EtcdConfig,
    clock: Clock,
    members: Vec<Member>,
    /// Which one is asked first.
    current: AtomicUsize,
    /// It answered the last time.
    is_well: AtomicBool,
    /// The cluster's id, once a member said it; else 0.
    id: AtomicU64,
    /// The highest that was answered.
    revision: AtomicI64,
    /// An answer was of a lower one than answers before it. For good.
    went_back: AtomicBool,
}

struct Member {
    endpoint: String,
    /// Which of its clients it is, and that.
    client: Mutex<Option<(u64, Client)>>,
    clients: AtomicU64,
}

impl Member {
    /// The next call makes a client anew. One that somebody else made meanwhile stays.
    async fn forget(&self, which: u64) {
        let _ = self.client.lock().await.take_if(|(it, _)| *it == which);
    }
}

/// A request that is under way. Where none answers, also none before the caller gave it up, another member is asked the next time.
struct Asking<'a> {
    cluster: &'a Cluster,
    at: usize,
    is_answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let Self { cluster, at, is_answered } = *self;
        if !is_answered {
            cluster.is_well.store(false, SeqCst);
            let _ = cluster.current.compare_exchange(at, (at + 1) % cluster.members.len(), SeqCst, SeqCst);
        }
    }
}

/// Why a member gave none.
enum Trouble {
    NotSent(String),
    /// It may have been done.
    Unsettled(String),
    /// It was not, and would not be by another member.
    Refused(String),
    /// What the member knows this client by is of no use any more.
    Stale(String),
    /// So may the password be: it is read anew once.
    Password(String),
}

impl Cluster {
    pub(super) fn new(config: EtcdConfig) -> Self {
        let member = |endpoint: &String| Member {
            endpoint: endpoint.clone(),
            client: Mutex::default(),
            clients: AtomicU64::new(0),
        };
        Self {
            members: config.endpoints.iter().map(member).collect(),
            config,
            clock: Clock::default(),
            current: AtomicUsize::new(0),
            is_well: AtomicBool::new(false),
            id: AtomicU64::new(0),
            revision: AtomicI64::new(0),
            went_back: AtomicBool::new(false),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.config.reach.timeout
    }

    /// When a call that begins now is over, however many requests it makes.
    pub(super) fn deadline(&self) -> Instant {
        self.clock.now().plus(self.config.reach.timeout)
    }

    /// Asks member by member, until one answers or the time is over.
    pub(super) async fn read(&self, txn: Txn, until: Instant) -> Result<TxnResponse, Failure> {
        let each = self.config.reach.timeout / self.members.len().max(1) as u32;
        let mut told = Vec::new();
        loop {
            let is_whole_round = until.since(self.clock.now()) >= each;
            if !told.is_empty() && self.clock.now().plus(PAUSE) >= until {
                return Err(Failure::Silent(format!("no etcd answers: {}", told.join("; "))));
            }
            let (first, mut said, mut all_away) = (self.current.load(SeqCst), Vec::new(), true);
            for n in 0..self.members.len() {
                let (at, before) = ((first + n) % self.members.len(), self.revision.load(SeqCst));
                let left = until.since(self.clock.now());
                match self.ask(at, txn.clone(), each.min(left)).await {
                    Ok(answer) => {
                        self.judge(&answer, at, before)?;
                        self.current.store(at, SeqCst);
                        self.is_well.store(true, SeqCst);
                        return Ok(answer);
                    }
                    Err(Trouble::Refused(what) | Trouble::Password(what)) => return Err(Failure::Refused(what)),
                    Err(Trouble::NotSent(what)) => said.push(what),
                    Err(Trouble::Unsettled(what) | Trouble::Stale(what)) => {
                        all_away = false;
                        said.push(what);
                    }
                }
            }
            // What a round was too short for says less than the one before.
            if is_whole_round || told.is_empty() {
                told = said;
            }
            if all_away {
                return Err(Failure::Silent(format!("no etcd answers: {}", told.join("; "))));
            }
            sleep(PAUSE).await;
        }
    }

    /// Has a member that is well do it; `look` is what tells that it is.
    pub(super) async fn write(&self, txn: Txn, look: Txn, until: Instant) -> Result<TxnResponse, Failure> {
        let mut tries = 0..=self.members.len();
        loop {
            if !self.is_well.load(SeqCst) {
                self.read(look.clone(), until).await?;
            }
            let (at, before) = (self.current.load(SeqCst), self.revision.load(SeqCst));
            self.refuse_if_back()?;
            let what = match self.ask(at, txn.clone(), until.since(self.clock.now())).await {
                Ok(answer) => {
                    self.judge(&answer, at, before)?;
                    return Ok(answer);
                }
                Err(Trouble::Refused(what) | Trouble::Password(what)) => return Err(Failure::Refused(what)),
                Err(Trouble::NotSent(what) | Trouble::Stale(what)) => {
                    if tries.next().is_some() && self.clock.now() < until {
                        continue;
                    }
                    what
                }
                Err(Trouble::Unsettled(what)) => format!("{what}: whether it was written is not known"),
            };
            return Err(Failure::Silent(format!("no etcd answers: {what}")));
        }
    }

    /// Has the member that answered last tell of what is changed under a prefix, from when this returns. It ends that where it is cut off
    /// from its leader, and so hears of nothing.
    pub(super) async fn watch(&self, prefix: Vec<u8>, look: Txn) -> Result<WatchStream, Failure> {
        let until = self.deadline();
        self.read(look, until).await?;
        let Some(member) = self.members.get(self.current.load(SeqCst)) else {
            return Err(Failure::Silent("no member".into()));
        };
        let opened = async {
            let options = self.options().map_err(Trouble::Refused)?.with_require_leader(true);
            let client = self.connect(member, options).await?.watch_client();
            let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
            let opened = async {
                let mut stream = client.watch(prefix, Some(WatchOptions::new().with_prefix())).await?;
                stream.message().await.map(|said| (stream, said))
            };
            match opened.await.map_err(|error| self.trouble(&error))? {
                (stream, Some(said)) if said.created() && !said.canceled() => Ok(stream),
                (_, said) => {
                    let why = said.map_or_else(|| "it ended it".into(), |said| said.cancel_reason().to_owned());
                    Err(Trouble::Unsettled(why))
                }
            }
        };
        let outcome = timeout(until.since(self.clock.now()), opened).await;
        outcome.unwrap_or_else(|_| Err(Trouble::Unsettled("no answer".into()))).map_err(|trouble| match trouble {
            Trouble::Refused(what) | Trouble::Password(what) => {
                Failure::Refused(format!("etcd {}: {what}", member.endpoint))
            }
            Trouble::NotSent(what) | Trouble::Unsettled(what) | Trouble::Stale(what) => {
                Failure::Silent(format!("etcd {} tells of no changes: {what}", member.endpoint))
            }
        })
    }

    /// Whether this is the cluster that answered before, and no older state of it.
    fn judge(&self, answer: &TxnResponse, at: usize, before: i64) -> Result<(), Failure> {
        let Some(header) = answer.header() else { return Err(Failure::Silent("an answer without a header".into())) };
        let id = self.id.compare_exchange(0, header.cluster_id(), SeqCst, SeqCst).unwrap_or_else(|id| id);
        if id != 0 && id != header.cluster_id() {
            let what = format!(
                "etcd {} is of another cluster than what answered before: name members of one in store.url, or if it was restored from a copy, \
                 restart whatever used it meanwhile",
                self.members.get(at).map(|member| member.endpoint.as_str()).unwrap_or_default()
            );
            return Err(Failure::Refused(what));
        }
        self.revision.fetch_max(header.revision(), SeqCst);
        if header.revision() < before {
            self.went_back.store(true, SeqCst);
        }
        self.refuse_if_back()
    }

    /// Of a cluster that was restored under its clients, what they know is of a state that never was.
    fn refuse_if_back(&self) -> Result<(), Failure> {
        if self.went_back.load(SeqCst) {
            let what = "etcd answers with an older state than before: it was restored from a copy; restart whatever used it meanwhile";
            return Err(Failure::Refused(what.into()));
        }
        Ok(())
    }

    async fn ask(&self, at: usize, txn: Txn, limit: Duration) -> Result<TxnResponse, Trouble> {
        let Some(member) = self.members.get(at) else { return Err(Trouble::NotSent("no member".into())) };
        let named = |what: String| format!("{}: {what}", member.endpoint);
        let again = async {
            match self.send(member, txn.clone()).await {
                // Nothing was done: who asks is looked at first.
                Err(Trouble::Stale(_) | Trouble::Password(_)) => self.send(member, txn).await,
                outcome => outcome,
            }
        };
        let mut asking = Asking { cluster: self, at, is_answered: false };
        let outcome = timeout(limit, again).await;
        asking.is_answered = matches!(outcome, Ok(Ok(_) | Err(Trouble::Refused(_) | Trouble::Password(_))));
        let outcome = outcome.unwrap_or_else(|_| Err(Trouble::Unsettled(format!("no answer within {limit:.1?}"))));
        outcome.map_err(|trouble| match trouble {
            Trouble::NotSent(what) => Trouble::NotSent(named(what)),
            Trouble::Unsettled(what) => Trouble::Unsettled(named(what)),
            Trouble::Stale(what) => Trouble::Stale(named(what)),
            Trouble::Refused(what) | Trouble::Password(what) => Trouble::Refused(format!("etcd {}", named(what))),
        })
    }

    async fn send(&self, member: &Member, txn: Txn) -> Result<TxnResponse, Trouble> {
        let (which, client) = self.client(member).await?;
        let answer = client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX).txn(txn).await;
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let trouble = self.trouble(&error);
        // What a member says has no cause here. A client connects again by what it was made with, which may be of no use any more.
        let is_said = matches!(&error, EtcdError::GRpcStatus(status) if std::error::Error::source(status).is_none());
        if !is_said || matches!(trouble, Trouble::Stale(_) | Trouble::Password(_)) {
            member.forget(which).await;
        }
        Err(trouble)
    }

    /// A client that has this one member, connected by its first call. Files are read for each, so that they can be replaced.
    async fn client(&self, member: &Member) -> Result<(u64, Client), Trouble> {
        let mut kept = member.client.lock().await;
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let options = self.options().map_err(Trouble::Refused)?;
        let client = self.connect(member, options).await?;
        Ok(kept.insert((member.clients.fetch_add(1, SeqCst), client)).clone())
    }

    async fn connect(&self, member: &Member, options: ConnectOptions) -> Result<Client, Trouble> {
        let scheme = if self.config.reach.tls == StoreTls::On { "https" } else { "http" };
        let client = Client::connect([format!("{scheme}://{}", member.endpoint)], Some(options)).await;
        client.map_err(|error| match self.trouble(&error) {
            // Only a name and a password were sent.
            Trouble::Unsettled(what) => Trouble::NotSent(what),
            trouble => trouble,
        })
    }

    fn options(&self) -> Result<ConnectOptions, String> {
        let Reach { tls, ca, identity, user, timeout, .. } = &self.config.reach;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(*timeout)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(false)
            .with_auto_token_refresh(true);
        if *tls == StoreTls::On {
            let mut settings = match ca {
                Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read_pem("store.ca", ca)?)),
                None => TlsOptions::new().with_enabled_roots(),
            };
            if let Some((cert, key)) = identity {
                let (cert, key) = (read_pem("store.cert", cert)?, read_pem("store.key", key)?);
                settings = settings.identity(Identity::from_pem(cert, key));
            }
            options = options.with_tls(settings);
        }
        if let Some(StoreUser { name, password: Some(password) }) = user {
            options = options.with_user(name.clone(), read_password(password)?);
        }
        Ok(options)
    }

    /// What is known of the cluster that whoever set it up may want otherwise.
    pub(super) async fn lacks(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        if self.config.reach.tls == StoreTls::PlaintextAnywhere {
            lacks.push("no TLS: whoever is in between decides what the store says".into());
        }
        let Some(member) = self.members.get(self.current.load(SeqCst)) else { return lacks };
        let listed = async { self.client(member).await.ok()?.1.cluster_client().member_list().await.ok() };
        // A user may do without the right to ask.
        if let Ok(Some(listed)) = timeout(self.config.reach.timeout, listed).await {
            let (there, named) = (listed.members().len(), self.members.len());
            if there == 1 {
                lacks.push("the cluster has 1 member: with 3 it goes on while one is away".into());
            } else if named < there {
                lacks.push(format!("store.url names {named} of {there} members: name all, so that none is missed"));
            }
        }
        lacks
    }

    fn trouble(&self, error: &EtcdError) -> Trouble {
        let EtcdError::GRpcStatus(status) = error else {
            return match error {
                EtcdError::TransportError(_) => {
                    Trouble::Refused(format!("store.ca, store.cert or store.key: {}", chain(error)))
                }
                _ => Trouble::Refused(chain(error)),
            };
        };
        let (code, said) = (format!("{:?}", status.code()), status.message().trim_start_matches("etcdserver: "));
        let user = self.config.reach.user.as_ref().map_or("nobody", |user| user.name.as_str());
        match code.as_str() {
            "Unauthenticated" => Trouble::Stale(said.into()),
            "InvalidArgument" if said.contains("auth store is old") => Trouble::Stale(said.into()),
            "InvalidArgument" if said.contains("authentication failed") => {
                Trouble::Password(format!("it does not take user {user} and the password: see store.user, and where the password is from"))
            }
            "InvalidArgument" if said.contains("user name is empty") => {
                Trouble::Refused("it wants to know who asks: set store.user, and store.password_file or store.password_env".into())
            }
            "FailedPrecondition" if said.contains("authentication is not enabled") => {
                Trouble::Refused("it knows no users, and store.user is set: leave it out, or enable authentication there".into())
            }
            "PermissionDenied" => Trouble::Refused(format!(
                "user {user} may not do this ({said}): grant a role of that user readwrite on the prefix {}/",
                self.config.namespace
            )),
            "ResourceExhausted" if said.contains("database space exceeded") => Trouble::Refused(
                "its database is full, and nothing was written: compact and defragment it, or raise its quota; then disarm its alarm".into(),
            ),
            "InvalidArgument" => Trouble::Refused(format!("it takes no such request ({said}): see its --max-txn-ops and --max-request-bytes")),
            "Unavailable" | "Unknown" if was_not_reached(status) => Trouble::NotSent(why(status)),
            _ => Trouble::Unsettled(why(status)),
        }
    }
}

/// There was no connection.
fn was_not_reached(status: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        // A handshake that failed took no request.
        if error.to_string().starts_with("invalid peer certificate") {
            return true;
        }
        if let Some(ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) = kind {
            return true;
        }
        cause = error.source();
    }
    false
}

fn chain(error: &EtcdError) -> String {
    match error {
        EtcdError::TransportError(error) => why(error),
        error => error.to_string(),
    }
}
