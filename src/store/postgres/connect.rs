//! A connection: who asks, by which certificates, and whether it is to what it should be.

use super::{
    schema,
    servers::Servers,
    trouble::{Trouble, of_connection, of_statement},
};
use crate::{
    config::store::{PostgresConfig, Reach, StoreTls, StoreUser},
    store::remote::files::{read_password, read_pem},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{future::poll_fn, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls,
    config::{ChannelBinding, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A connection is tried after so long without a word, so often, and given up after as many without one.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);

/// It ends with this, at once.
pub(super) struct Connection {
    pub(super) client: Client,
    /// To which server.
    pub(super) at: usize,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a server says of itself.
pub(super) struct Seen {
    pub(super) is_read_only: bool,
    /// `synchronous_commit`.
    pub(super) commit: String,
    pub(super) timeline: u64,
    /// What the store there is known by, where there is one.
    pub(super) store: Option<Vec<u8>>,
}

impl Connection {
    /// Files are read for each, so that they can be replaced.
    pub(super) async fn to(servers: &Servers, at: usize) -> Result<Self, Trouble> {
        Self::telling(servers, at, None).await
    }

    /// As [`Connection::to`]; gives what is told where it listens, until it ends.
    pub(super) async fn telling(
        servers: &Servers,
        at: usize,
        told: Option<mpsc::Sender<String>>,
    ) -> Result<Self, Trouble> {
        let server = servers.config.servers.get(at).map(String::as_str).unwrap_or_default();
        let config = settings(&servers.config, server).map_err(Trouble::Refused)?;
        let failed = |error| of_connection(&error, &servers.config);
        let (client, task) = if servers.config.reach.tls == StoreTls::On {
            let tls = MakeRustlsConnect::new(tls(&servers.config.reach).map_err(Trouble::Refused)?);
            let (client, connection) = config.connect(tls).await.map_err(failed)?;
            (client, tokio::spawn(run(connection, told)))
        } else {
            let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
            (client, tokio::spawn(run(connection, told)))
        };
        let connection = Self { client, at, task };
        servers.look_at(&connection.look(servers).await?)?;
        Ok(connection)
    }

    async fn look(&self, servers: &Servers) -> Result<Seen, Trouble> {
        let failed = |error| match of_statement(&error, false, &servers.config) {
            // Nothing else was sent.
            Trouble::Unsettled(what) | Trouble::Undone(what) => Trouble::Away(what),
            trouble => trouble,
        };
        let row = self.client.query_typed_one(schema::SEEN, &[]).await.map_err(failed)?;
        let none = |_| Trouble::Refused("it says nothing of itself".into());
        let mut seen = Seen {
            is_read_only: row.try_get::<_, String>(0).map_err(none)? != "off",
            commit: row.try_get(1).map_err(none)?,
            timeline: row.try_get::<_, Option<i64>>(2).map_err(none)?.unwrap_or_default() as u64,
            store: None,
        };
        if servers.id.get().is_some() && !seen.is_read_only {
            let text = schema::id(&servers.config.schema);
            let row = self.client.query_typed_opt(&text, &[]).await.map_err(failed)?;
            seen.store = row.map(|row| row.try_get(1)).transpose().map_err(none)?;
        }
        Ok(seen)
    }
}

/// Until it ends, or nobody takes what it tells.
async fn run<S, T>(mut connection: tokio_postgres::Connection<S, T>, told: Option<mpsc::Sender<String>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let (AsyncMessage::Notification(said), Some(told)) = (message, &told)
            && told.try_send(said.payload().to_owned()).is_err()
        {
            return;
        }
    }
}

fn settings(config: &PostgresConfig, server: &str) -> Result<Config, String> {
    let (host, port) = server.rsplit_once(':').unwrap_or((server, ""));
    let Reach { tls, user, timeout, .. } = &config.reach;
    let mut settings = Config::new();
    settings
        .host(host.trim_matches(['[', ']']))
        .port(port.parse().unwrap_or_default())
        .dbname(&config.database)
        .application_name("keyleash")
        .connect_timeout(*timeout)
        .tcp_user_timeout(*timeout)
        .keepalives_idle(KEEP_ALIVE.0)
        .keepalives_interval(KEEP_ALIVE.1)
        .keepalives_retries(KEEP_ALIVE.2)
        .channel_binding(ChannelBinding::Prefer)
        .ssl_mode(if *tls == StoreTls::On { SslMode::Require } else { SslMode::Disable });
    if let Some(StoreUser { name, password }) = user {
        settings.user(name);
        if let Some(password) = password {
            settings.password(read_password(password)?);
        }
    }
    Ok(settings)
}

fn tls(reach: &Reach) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &reach.ca {
        Some(ca) => {
            for certificate in certificates("store.ca", ca)? {
                roots.add(certificate).map_err(|error| format!("store.ca {}: {error}", ca.display()))?;
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.with_root_certificates(roots);
    let Some((cert, key)) = &reach.identity else { return Ok(config.with_no_client_auth()) };
    let own = PrivateKeyDer::from_pem_slice(&read_pem("store.key", key)?);
    let own = own.map_err(|error| format!("store.key {}: {error}", key.display()))?;
    let config = config.with_client_auth_cert(certificates("store.cert", cert)?, own);
    config.map_err(|error| format!("store.cert or store.key: {error}"))
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_pem(setting, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| format!("{setting} {}: {error}", path.display()))?;
    if found.is_empty() {
        Err(format!("{setting} {}: there is no certificate in it", path.display()))
    } else {
        Ok(found)
    }
}
