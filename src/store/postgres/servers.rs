//! The servers of a database, of which one is read and written: the primary.
//!
//! Every request is one transaction, and one way there and back: its statements are sent behind each other without waiting. It takes a
//! connection of its own for as long; one on which not all was answered is closed, so that no answer is taken for another's, and nothing is
//! cancelled: the server ends by itself, at the caller's deadline, what it works on for somebody who is gone. A cancelled commit that waits
//! for a replica would be one that others see and that the replica has not.
//!
//! A read goes on until it is answered. A write that may have been done is not sent again: it would be refused for its own sake.

use super::{
    connect::{Connection, Seen},
    schema,
    trouble::{Trouble, of_commit, of_statement},
};
use crate::{
    clock::{Clock, Instant},
    config::store::PostgresConfig,
    store::remote::Failure,
};
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_postgres::{
    Client, Error as PgError, Row,
    types::{ToSql, Type},
};

/// Most connections that a store has.
pub(super) const CONNECTIONS_MAX: usize = 8;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// A parameter, with what it is for the server.
pub(super) type Param = (Box<dyn ToSql + Sync + Send>, Type);

/// Of a transaction. Texts are ours, and have no value in them.
pub(super) enum Statement {
    /// With its parameters.
    Query { text: String, params: Vec<Param> },
    /// Several, which give nothing.
    Script(String),
}

pub(super) struct Servers {
    pub(super) config: PostgresConfig,
    pub(super) clock: Clock,
    /// Which one is asked first.
    current: AtomicUsize,
    /// The newest that a primary was on: each replica that becomes one begins another.
    pub(super) timeline: AtomicU64,
    /// What the store is known by, once it was found.
    pub(super) id: OnceLock<Vec<u8>>,
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

/// A server that is asked. Where it does not answer, also not before the caller gave it up, another one is asked the next time, and the
/// connections to it that are idle are closed.
struct Asking<'a> {
    servers: &'a Servers,
    at: usize,
    is_answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.servers.go_on_from(self.at);
        }
    }
}

impl Servers {
    pub(super) fn new(config: PostgresConfig) -> Self {
        Self {
            config,
            clock: Clock::default(),
            current: AtomicUsize::new(0),
            timeline: AtomicU64::new(0),
            id: OnceLock::new(),
            permits: Semaphore::new(CONNECTIONS_MAX),
            idle: Mutex::default(),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a call that begins now is over, however many requests it makes.
    pub(super) fn deadline(&self) -> Instant {
        self.clock.now().plus(self.config.reach.timeout)
    }

    /// Asks until there is an answer, or the time is over.
    pub(super) async fn read(&self, statement: Statement, until: Instant) -> Result<Vec<Row>, Failure> {
        let mut told = None;
        loop {
            let said = match self.transact(std::slice::from_ref(&statement), until, self.each()).await {
                Ok(mut rows) => return Ok(rows.pop().unwrap_or_default()),
                Err(Trouble::Refused(what)) => return Err(Failure::Refused(what)),
                Err(Trouble::Away(what)) => return Err(Failure::Silent(format!("no PostgreSQL answers: {what}"))),
                Err(Trouble::Undone(what) | Trouble::Unsettled(what)) => what,
            };
            // What a try was too short for says less than the one before.
            let told = told.get_or_insert(said);
            if self.clock.now().plus(PAUSE) >= until {
                return Err(Failure::Silent(format!("no PostgreSQL answers: {told}")));
            }
            sleep(PAUSE).await;
        }
    }

    /// Does all of it, or nothing. It is tried again where it is known that it was not done.
    pub(super) async fn write(&self, statements: &[Statement], until: Instant) -> Result<Vec<Vec<Row>>, Failure> {
        loop {
            let what = match self.transact(statements, until, self.config.reach.timeout).await {
                Ok(rows) => return Ok(rows),
                Err(Trouble::Refused(what)) => return Err(Failure::Refused(what)),
                Err(Trouble::Away(what)) => format!("no PostgreSQL answers: {what}"),
                Err(Trouble::Unsettled(what)) => {
                    format!("no PostgreSQL answers: {what}: whether it was written is not known")
                }
                Err(Trouble::Undone(what)) => {
                    if self.clock.now().plus(PAUSE) < until {
                        sleep(PAUSE).await;
                        continue;
                    }
                    format!("{what}: nothing was written")
                }
            };
            return Err(Failure::Silent(what));
        }
    }

    /// What each server is waited for, so that there is time for all.
    fn each(&self) -> Duration {
        self.config.reach.timeout / self.config.servers.len().max(1) as u32
    }

    /// One transaction, with what each statement gave: in its time, of which it takes `limit` at most once there is a connection.
    async fn transact(
        &self,
        statements: &[Statement],
        until: Instant,
        limit: Duration,
    ) -> Result<Vec<Vec<Row>>, Trouble> {
        let left = until.since(self.clock.now());
        let Ok(permit) = timeout(left, self.permits.acquire()).await else {
            return Err(Trouble::Undone(format!("all {CONNECTIONS_MAX} connections were in use for {left:.1?}")));
        };
        let _permit = permit.map_err(|_| Trouble::Away("the store is closed".into()))?;
        // It is closed but where it is given back.
        let connection = self.connection(until).await?;
        let limit = limit.min(until.since(self.clock.now()));
        let mut asking = Asking { servers: self, at: connection.at, is_answered: false };
        let named = |what: String| format!("{}: {what}", self.server(connection.at));
        let Ok(answers) = timeout(limit, in_transaction(&connection.client, statements, limit)).await else {
            return Err(Trouble::Unsettled(named(format!("no answer within {limit:.1?}"))));
        };
        let (rows, is_over) = judge(answers, &self.config);
        let rows = rows.map_err(|trouble| trouble.map(named));
        if let Err(Trouble::Away(what)) = rows {
            // It was the primary, and is none any more.
            return Err(Trouble::Undone(what));
        }
        asking.is_answered = true;
        if is_over {
            self.idle().push(connection);
        }
        rows
    }

    /// One that nobody uses, or a new one to whichever server is the primary.
    async fn connection(&self, until: Instant) -> Result<Connection, Trouble> {
        loop {
            let idle = self.idle().pop();
            match idle {
                Some(connection) if connection.client.is_closed() => {}
                Some(connection) => return Ok(connection),
                None => break,
            }
        }
        let (servers, first) = (self.config.servers.len(), self.current.load(SeqCst));
        let (mut said, mut refused, mut is_busy) = (Vec::new(), None, false);
        for n in 0..servers {
            let (at, left) = ((first + n) % servers, until.since(self.clock.now()));
            let named = |what: String| format!("{}: {what}", self.server(at));
            let limit = self.each().min(left);
            let mut asking = Asking { servers: self, at, is_answered: false };
            let outcome = timeout(limit, Connection::to(self, at)).await;
            asking.is_answered = outcome.is_ok();
            match outcome {
                Ok(Ok(connection)) => {
                    self.current.store(at, SeqCst);
                    return Ok(connection);
                }
                Ok(Err(trouble @ Trouble::Refused(_))) => drop(refused.get_or_insert(trouble.map(named).what())),
                Ok(Err(trouble)) => {
                    is_busy |= matches!(trouble, Trouble::Undone(_));
                    said.push(trouble.map(named).what());
                }
                Err(_) => said.push(named(format!("no answer within {limit:.1?}"))),
            }
        }
        match refused {
            Some(what) => Err(Trouble::Refused(format!("PostgreSQL {what}"))),
            // One of ours may be free soon.
            None if is_busy => Err(Trouble::Undone(said.join("; "))),
            None => Err(Trouble::Away(said.join("; "))),
        }
    }

    /// A connection to the primary that gives what is told on a channel. It is none of those that are counted.
    pub(super) async fn listen(&self, channel: &str, told: mpsc::Sender<String>) -> Result<Connection, Failure> {
        let until = self.deadline();
        // Finds it.
        self.read(Statement::Query { text: schema::SEEN.into(), params: Vec::new() }, until).await?;
        let at = self.current.load(SeqCst);
        let opened = async {
            let connection = Connection::telling(self, at, Some(told)).await?;
            let listen = connection.client.batch_execute(&format!("LISTEN \"{channel}\"")).await;
            listen.map(|()| connection).map_err(|error| of_statement(&error, false, &self.config))
        };
        let opened = timeout(until.since(self.clock.now()), opened).await;
        match opened.unwrap_or_else(|_| Err(Trouble::Away("no answer".into()))) {
            Ok(connection) => Ok(connection),
            Err(trouble @ Trouble::Refused(_)) => Err(Failure::Refused(trouble.what())),
            Err(trouble) => Err(Failure::Silent(format!("PostgreSQL {}: {}", self.server(at), trouble.what()))),
        }
    }

    fn server(&self, at: usize) -> &str {
        self.config.servers.get(at).map(String::as_str).unwrap_or_default()
    }

    fn go_on_from(&self, at: usize) {
        self.idle().retain(|connection| connection.at != at);
        let _ = self.current.compare_exchange(at, (at + 1) % self.config.servers.len().max(1), SeqCst, SeqCst);
    }

    /// What a server says of itself, when a connection was made.
    pub(super) fn look_at(&self, seen: &Seen) -> Result<(), Trouble> {
        if seen.is_read_only {
            let what = "it is a standby, or takes no writes (default_transaction_read_only): name the primary in store.url too";
            return Err(Trouble::Away(what.into()));
        }
        if seen.commit == "off" {
            return Err(Trouble::Refused(crate::store::postgres::schema::NOT_DURABLE.into()));
        }
        let newest = self.timeline.fetch_max(seen.timeline, SeqCst).max(seen.timeline);
        if seen.timeline < newest {
            let what =
                "it was the primary before another one that answered: take it away, or make it a standby of that one";
            return Err(Trouble::Away(what.into()));
        }
        match (&seen.store, self.id.get()) {
            (Some(store), Some(id)) if store != id => Err(Trouble::Refused(
                "it has another store than what answered before: name servers of one database in store.url".into(),
            )),
            _ => Ok(()),
        }
    }
}

type Answer = Result<Vec<Row>, PgError>;
type Asked<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// `BEGIN`, each statement, `COMMIT`. Isolation and access are named: a role may have other defaults, and under another isolation what is
/// seen would be older than the lock that was waited for. Functions are the server's own, whatever a role's path is.
async fn in_transaction(client: &Client, statements: &[Statement], left: Duration) -> Vec<Answer> {
    let left = left.as_millis().max(1);
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = {left}; \
         SET LOCAL idle_in_transaction_session_timeout = {left}; SET LOCAL search_path = pg_catalog"
    );
    let simple = |text: String| async move { client.batch_execute(&text).await.map(|()| Vec::new()) };
    let mut asked: Vec<Asked<'_>> = vec![Box::pin(simple(begin))];
    for statement in statements {
        match statement {
            Statement::Script(text) => asked.push(Box::pin(simple(text.clone()))),
            Statement::Query { text, params } => asked.push(Box::pin(async move {
                let params = params.iter().map(|(value, of)| (&**value as &(dyn ToSql + Sync), of.clone()));
                client.query_typed(text, &params.collect::<Vec<_>>()).await
            })),
        }
    }
    asked.push(Box::pin(simple("COMMIT".into())));
    in_order(asked).await
}

/// Sends all of it in this order, as each is sent when it is polled first, and waits for all answers.
async fn in_order(mut asked: Vec<Asked<'_>>) -> Vec<Answer> {
    let mut answers: Vec<Option<Answer>> = asked.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (one, answer) in asked.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let Poll::Ready(ready) = one.as_mut().poll(context)
            {
                *answer = Some(ready);
            }
        }
        if answers.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers.into_iter().flatten().collect()
}

/// What the statements gave, or why the transaction is none; and whether the connection can be used again.
fn judge(mut answers: Vec<Answer>, config: &PostgresConfig) -> (Result<Vec<Vec<Row>>, Trouble>, bool) {
    let commit = answers.pop();
    let is_over = matches!(commit, Some(Ok(_)));
    let mut rows = Vec::with_capacity(answers.len());
    for (n, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(found) => rows.push(found),
            // The server's word on the first that fails is one that the transaction is undone.
            Err(error) => return (Err(of_statement(&error, n == 0, config)), is_over),
        }
    }
    rows.remove(0); // that of BEGIN
    match commit {
        Some(Err(error)) => (Err(of_commit(&error)), false),
        _ => (Ok(rows), is_over),
    }
}
