//! Notices as mail: one each, over SMTP, by `lettre`.

use super::{NotTaken, Notice, NoticeSink};
use crate::{
    clock::Clock,
    config::mail::{MailConfig, MailTls, MailUser},
    error::{Error, Result},
    secret::credential::{self, PASSWORD_BYTES_MAX},
};
use async_trait::async_trait;
use lettre::{
    Address, Message,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::{
        Error as SmtpError,
        authentication::{Credentials, Mechanism},
        client::{
            AsyncSmtpConnection, AsyncTokioStream, Certificate, CertificateStore, TlsParameters, TlsParametersBuilder,
        },
        commands::{Data, Mail, Rcpt, Rset},
        extension::{ClientId, Extension, MailBodyParameter, MailParameter},
        response::Response,
    },
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use zeroize::Zeroizing;

/// Longest file of certificates, in bytes: ten times what platforms trust.
const CA_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest header of ours, in characters; the body has the whole.
const HEADER_CHARS_MAX: usize = 200;
/// Longest that is repeated of what a server says, in characters.
const SAID_CHARS_MAX: usize = 300;
/// Most that a server says before TLS begins, in bytes: a greeting, what it can, an answer.
const CLEAR_BYTES_MAX: usize = 16 * 1024;
/// What a record of TLS begins with that opens a connection: its type, a handshake. No command of SMTP does.
const TLS_HANDSHAKE: u8 = 0x16;

/// Sends each notice as a mail, over one connection for all that come together, and has it taken when the server took it.
///
/// The subject is `[keyleash] ALERT RULE: SUBJECT`, or `[keyleash] over RULE: SUBJECT`; headers `Keyleash-Rule`, `Keyleash-When`,
/// `Keyleash-State` (`begin` or `over`) and `Keyleash-Notice` (the id of the notice) are for filters. `Message-ID` is made of the id, so
/// that one that is sent again is known to be the same, and the end of a trouble is an answer to its beginning.
///
/// A mail goes to every address that the server takes it for: one that it refuses for good (`5xx`) is logged, and holds up no other. A notice
/// is taken when one address has it at least, and the server refuses all others for good. What an address has is not sent to it again. A
/// password is read for each connection, and is neither in an error nor in a log; `lettre` leaves copies of it in memory.
#[derive(Debug)]
pub struct MailSink {
    config: MailConfig,
    from: Mailbox,
    to: Vec<Mailbox>,
    hello: ClientId,
    clock: Clock,
    /// Of calls that failed: by the id of a notice, which addresses need it no more, and whether any has it.
    done: BTreeMap<String, Done>,
}

#[derive(Debug, Default)]
struct Done {
    addresses: BTreeSet<Address>,
    is_taken: bool,
}

/// What the server says to a mail, but that it took it.
struct Refusal {
    said: String,
    is_for_good: bool,
}

impl Refusal {
    fn for_plain_text() -> Self {
        Self { said: "it takes plain ASCII alone".into(), is_for_good: true }
    }
}

/// What the server said of the addresses of a mail.
#[derive(Default)]
struct Recipients {
    taken: Vec<Address>,
    /// Why the last one is not to have it now,
    later: Option<Refusal>,
    /// and never.
    refused: Option<String>,
}

impl MailSink {
    /// By this server. Asks nobody yet.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] for an address that is none.
    pub fn new(config: MailConfig) -> Result<Self> {
        let mailbox = |key: &str, address: &str| {
            let address =
                address.parse().map_err(|why| Error::Misconfigured(format!("mail.{key}: {address:?}: {why}")));
            address.map(|address| Mailbox::new(None, address))
        };
        let from = mailbox("from", &config.from)?;
        let to = config.to.iter().map(|to| mailbox("to", to)).collect::<Result<_>>()?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let is_name =
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
        let hello = if is_name { ClientId::Domain(host) } else { ClientId::default() };
        Ok(Self { config, from, to, hello, clock: Clock::default(), done: BTreeMap::new() })
    }

    /// The first refusal; an error where the server cannot be asked at all.
    async fn send(&mut self, notices: &[Notice]) -> Result<Option<Refusal>, String> {
        let mut to_send = Vec::new();
        for notice in notices.iter().filter(|notice| !self.is_taken(&notice.id())) {
            to_send.push((notice.id(), self.message(notice)?.formatted()));
        }
        if to_send.is_empty() {
            return Ok(None);
        }
        let mut server = self.within(self.connect()).await?;
        let mut first = None;
        for (id, mail) in to_send {
            let mut done = self.done.remove(&id).unwrap_or_default();
            let sent = self.within(self.mail(&mut server, &mail, &mut done)).await;
            self.done.insert(id, done);
            if let Some(refusal) = sent? {
                first.get_or_insert(refusal);
            }
        }
        // They are taken, whatever it says to that.
        let _ = self.within(async { server.quit().await.map_err(|error| said(&error)) }).await;
        Ok(first)
    }

    /// Every address has it, or never will.
    fn is_taken(&self, id: &str) -> bool {
        self.done
            .get(id)
            .is_some_and(|done| done.is_taken && self.to.iter().all(|to| done.addresses.contains(&to.email)))
    }

    /// One mail, to whom has not got it.
    async fn mail(
        &self,
        server: &mut AsyncSmtpConnection,
        mail: &[u8],
        done: &mut Done,
    ) -> Result<Option<Refusal>, String> {
        let can = |extension| server.server_info().supports_feature(extension);
        let (any_name, any_text) = (can(Extension::SmtpUtfEight), can(Extension::EightBitMime));
        let is_plain = |address: &Address| address.to_string().is_ascii();
        if !any_text && !mail.is_ascii() || !any_name && !is_plain(&self.from.email) {
            return Ok(Some(Refusal::for_plain_text()));
        }
        let left: Vec<_> = self.to.iter().map(|to| &to.email).filter(|to| !done.addresses.contains(*to)).collect();
        let mut options = Vec::new();
        if any_name && !(is_plain(&self.from.email) && left.iter().all(|to| is_plain(to))) {
            options.push(MailParameter::SmtpUtfEight);
        }
        if !mail.is_ascii() {
            options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        if let Some(refusal) = answer(server.command(Mail::new(Some(self.from.email.clone()), options)).await)? {
            return Ok(Some(refusal));
        }
        let mut asked = Recipients::default();
        for to in left {
            let refusal = match any_name || is_plain(to) {
                true => answer(server.command(Rcpt::new(to.clone(), Vec::new())).await)?,
                false => Some(Refusal::for_plain_text()),
            };
            self.recipient(to, refusal, &mut asked, done);
        }
        let Recipients { taken, mut later, refused } = asked;
        if taken.is_empty() {
            forget(server).await?;
        } else if let Some(refusal) = text(server, mail).await? {
            later = Some(refusal);
        } else {
            done.is_taken = true;
            done.addresses.extend(taken);
        }
        if later.is_none() && !done.is_taken {
            // Nobody has it, and the next time each is asked again.
            done.addresses.clear();
            later = refused.map(|said| Refusal { said, is_for_good: true });
        }
        Ok(later)
    }

    /// What the server said of an address.
    fn recipient(&self, to: &Address, refusal: Option<Refusal>, asked: &mut Recipients, done: &mut Done) {
        let Some(Refusal { said, is_for_good }) = refusal else {
            asked.taken.push(to.clone());
            return;
        };
        let said = format!("{}: {said}", visible(to.as_ref(), HEADER_CHARS_MAX));
        if is_for_good {
            tracing::error!("mail server {} refuses {said}: see mail.to", self.config.server);
            done.addresses.insert(to.clone());
            asked.refused = Some(said);
        } else {
            asked.later = Some(Refusal { said, is_for_good });
        }
    }

    /// What a server is asked for has an end.
    async fn within<T>(&self, asked: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let timeout = self.config.timeout;
        let answer = self.clock.until(self.clock.now().plus(timeout), asked).await;
        answer.unwrap_or_else(|| {
            let timeout = humantime::format_duration(timeout);
            Err(format!("it did not answer within {timeout}; mail.timeout gives it longer"))
        })
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, String> {
        let MailConfig { server, port, tls, user, .. } = &self.config;
        let (server, hello) = ((server.as_str(), *port), &self.hello);
        let mut connection = match tls {
            MailTls::Implicit => {
                let tls = self.tls().await?;
                AsyncSmtpConnection::connect_tokio1(server, None, hello, Some(tls), None)
                    .await
                    .map_err(|error| said(&error))?
            }
            MailTls::StartTls => {
                let tls = self.tls().await?;
                let stream = TcpStream::connect(server).await.map_err(|error| error.to_string())?;
                let stream = Box::new(UntilTls { stream, is_tls: false, left: CLEAR_BYTES_MAX });
                let connection = AsyncSmtpConnection::connect_with_transport(stream, hello).await;
                let mut connection = connection.map_err(|error| said(&error))?;
                if !connection.can_starttls() {
                    return Err("it offers no STARTTLS, and nothing was sent: see mail.tls and mail.port".into());
                }
                connection.starttls(tls, hello).await.map_err(|error| said(&error))?;
                connection
            }
            MailTls::Plaintext | MailTls::PlaintextAnywhere => {
                AsyncSmtpConnection::connect_tokio1(server, None, hello, None, None)
                    .await
                    .map_err(|error| said(&error))?
            }
        };
        if let Some(user) = user {
            let credentials = credentials(user).await?;
            let asked = connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials).await;
            // Not what it said: that may be what it was told.
            asked.map_err(|error| {
                let (name, file) = (visible(&user.name, HEADER_CHARS_MAX), user.password_file.display());
                match error.status() {
                    Some(code) => format!("it refuses user {name} ({code}): see mail.user, and the password in {file}"),
                    None if error.is_client() => {
                        format!("it takes no password of user {name}: see mail.user and mail.port")
                    }
                    None => "the connection ended while it was asked to take the password".into(),
                }
            })?;
        }
        Ok(connection)
    }

    async fn tls(&self) -> Result<TlsParameters, String> {
        let mut tls = TlsParametersBuilder::new(self.config.server.clone());
        if let Some(path) = &self.config.ca {
            let named = |why: String| format!("mail.ca {}: {why}", path.display());
            let pem = read(path, CA_BYTES_MAX).await.map_err(named)?;
            if !pem.windows(CERTIFICATE.len()).any(|bytes| bytes == CERTIFICATE) {
                return Err(named("it has no certificate: name a file of certificates in PEM".into()));
            }
            let certificates = Certificate::from_pem(&pem).map_err(|error| named(error.to_string()))?;
            tls = tls.certificate_store(CertificateStore::None).add_root_certificate(certificates);
        }
        // Reads those of the platform.
        let built = tokio::task::spawn_blocking(move || tls.build()).await.map_err(|error| error.to_string())?;
        built.map_err(|error| said(&error))
    }

    fn message(&self, notice: &Notice) -> Result<Message, String> {
        let Notice { rule, when, is_over, subject, .. } = notice;
        let header =
            |name: &'static str, value: &str| HeaderValue::new(HeaderName::new_from_ascii_str(name), in_header(value));
        let state = if *is_over { "over" } else { "begin" };
        let word = if *is_over { "over" } else { "ALERT" };
        let mut mail = Message::builder()
            .from(self.from.clone())
            .date(UNIX_EPOCH + Duration::from_millis(self.clock.wall_unix_ms()))
            .message_id(Some(self.message_id(&notice.id())))
            .subject(in_header(&format!("[keyleash] {word} {rule}: {subject}")))
            .raw_header(header("Keyleash-Rule", rule))
            .raw_header(header("Keyleash-When", when))
            .raw_header(header("Keyleash-State", state))
            .raw_header(header("Keyleash-Notice", &notice.id()))
            // No machine answers it (RFC 3834).
            .raw_header(header("Auto-Submitted", "auto-generated"))
            .header(ContentType::TEXT_PLAIN);
        mail = self.to.iter().fold(mail, |mail, to| mail.to(to.clone()));
        if *is_over {
            let begin = self.message_id(&notice.id_of(false));
            mail = mail.in_reply_to(begin.clone()).references(begin);
        }
        mail.body(body(notice)).map_err(|error| error.to_string())
    }

    /// Of a notice's id, whose names may have anything in them.
    fn message_id(&self, id: &str) -> String {
        let digest = Sha256::digest(id.as_bytes());
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("<{hex}@{}>", self.from.email.domain())
    }
}

#[async_trait]
impl NoticeSink for MailSink {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken> {
        let sent = self.send(notices).await;
        let named = |why| format!("mail server {}, port {}: {why}", self.config.server, self.config.port);
        match sent {
            Err(why) => Err(NotTaken::Away(named(why))),
            Ok(Some(Refusal { said, is_for_good: true })) => Err(NotTaken::ForGood(named(said))),
            Ok(Some(Refusal { said, .. })) => Err(NotTaken::Unclear(named(said))),
            Ok(None) => {
                // Nobody brings them again.
                notices.iter().for_each(|notice| drop(self.done.remove(&notice.id())));
                Ok(())
            }
        }
    }
}

/// The text of a mail that has recipients.
async fn text(server: &mut AsyncSmtpConnection, mail: &[u8]) -> Result<Option<Refusal>, String> {
    let refusal = answer(server.command(Data).await)?;
    if refusal.is_some() {
        forget(server).await?;
        return Ok(refusal);
    }
    answer(server.message(mail).await)
}

/// A mail that was begun comes to nothing, and another may follow.
async fn forget(server: &mut AsyncSmtpConnection) -> Result<(), String> {
    server.command(Rset).await.map(drop).map_err(|error| said(&error))
}

/// What it says to a command: nothing but that, or that it ends.
fn answer(answer: Result<Response, SmtpError>) -> Result<Option<Refusal>, String> {
    match answer {
        Ok(_) => Ok(None),
        // It is about to end (RFC 5321, section 3.8).
        Err(error) if error.status().is_some_and(|code| u16::from(code) != 421) => {
            Ok(Some(Refusal { said: said(&error), is_for_good: error.is_permanent() }))
        }
        Err(error) => Err(said(&error)),
    }
}

const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// For people: what, whose, when, where, and what to do.
fn body(notice: &Notice) -> String {
    let Notice { is_over, rule, when, subject, what, since, time, count, event } = notice;
    let all = |text: &str| visible(text, usize::MAX);
    let (page, remedy) = remedy(when);
    let mut body = format!("{}\n\n", all(&notice.to_string()));
    let mut line = |name: &str, value: &str| body.push_str(&format!("{name:<10}{}\n", all(value)));
    line("What", what);
    line("Whose", subject);
    line("Rule", &format!("{rule} (when = \"{when}\")"));
    line("Since", &since.to_string());
    line(if *is_over { "Over" } else { "Noticed" }, &time.to_string());
    line("Seen", &format!("{count} {}", if *count == 1 { "time" } else { "times" }));
    if let Some(event) = event {
        line("Line", &format!("{event}, of the trail: node and number"));
    }
    line("Id", &notice.id());
    if !is_over {
        body.push_str(&format!("\n{remedy}\nThe manual: src/manual/{page}, or keyleash::manual::{}.\n", module(page)));
    }
    body
}

/// The page as rustdoc has it.
fn module(page: &str) -> &str {
    page.split_once(".md").map_or(page, |(module, _)| module)
}

/// The page of the manual, and what to do.
fn remedy(when: &str) -> (&'static str, &'static str) {
    match when {
        "stranger" => (
            "grants.md",
            "See what else this caller did: keyleash audit show --caller ID. Take its grants away where it may not.",
        ),
        "forbidden" => {
            ("grants.md", "See what was refused: keyleash audit show --failed --caller ID. Grant it, or stop who asks.")
        }
        "denied" => {
            ("revoking.md", "If nobody took the key away on purpose: keyleash token check says why the token refuses.")
        }
        "lapsed" => {
            ("operations.md", "The token was silent for too long: keyleash token check says whether it answers.")
        }
        "unwraps" | "unusual-unwraps" => {
            ("operations.md", "See which accounts: keyleash audit show --operation KeyUnwrap.")
        }
        "kek-changed" => (
            "revoking.md",
            "Somebody changed keys in the token: compare keyleash kek list with what its operators know.",
        ),
        "trail-broken" => ("audit.md", "The log and the status of that process say why, and what to do."),
        "not-proved" => {
            ("operations.md", "The token does not answer, or is too slow: see keyleash token check, and its workers.")
        }
        "workers-spent" => {
            ("operations.md", "Calls hang in the PKCS#11 module: see to the token, then restart the process.")
        }
        "store-silent" => {
            ("backups.md", "Keys in use go on until their lease ends: bring it back. keyleash store check asks it.")
        }
        "secret-expired" => (
            "secrets.md",
            "Give it a new value: keyleash secret set, or keyleash secret rotate; a schedule does it by a hook.",
        ),
        _ => ("audit.md", "The alerts are described in the manual."),
    }
}

/// With nothing in it that moves what stands beside it: line ends, other controls, marks that turn the direction of text.
fn visible(text: &str, chars_max: usize) -> String {
    let is_hidden = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut seen: String =
        text.chars().take(chars_max).map(|c| if is_hidden(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(chars_max).is_some() {
        seen.push('…');
    }
    seen
}

/// Where `=?` begins an encoded word (RFC 2047), that a reader would decode to what is not to be seen.
fn in_header(text: &str) -> String {
    visible(text, HEADER_CHARS_MAX).replace("=?", "=\u{fffd}?")
}

/// What went wrong, and what to do where TLS did.
fn said(error: &SmtpError) -> String {
    // The kinds around it say nothing more, but for the code of an answer.
    let mut inner: &dyn std::error::Error = error;
    while let (None, Some(source)) = (error.status(), inner.source()) {
        inner = source;
    }
    let mut said = visible(&inner.to_string(), SAID_CHARS_MAX);
    if said.contains("certificate") {
        said.push_str("; mail.server is the name in its certificate, and mail.ca the file of who signed that");
    }
    said
}

async fn credentials(user: &MailUser) -> Result<Credentials, String> {
    let named = |why: String| format!("mail.password_file {}: {why}", user.password_file.display());
    let bytes = read(&user.password_file, PASSWORD_BYTES_MAX).await.map_err(named)?;
    if user.password_file.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o044 != 0) {
        tracing::warn!(file = %user.password_file.display(), "others may read the password of the mail server: chmod 600 it");
    }
    let password = credential::password(&bytes).map_err(named)?;
    Ok(Credentials::new(user.name.clone(), password.to_owned()))
}

async fn read(path: &Path, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || credential::read_file(&path, bytes_max))
        .await
        .map_err(|error| error.to_string())?
}

/// Reads a byte at a time until the first byte of TLS was written, so that whoever reads lines has nothing of what came behind the answer
/// to STARTTLS: what somebody put there in clear would pass for what the server says within TLS, that it took a mail too.
///
/// And it ends where the server says more than it has to say by then.
#[derive(Debug)]
struct UntilTls {
    stream: TcpStream,
    is_tls: bool,
    /// Bytes that may come in clear.
    left: usize,
}

impl AsyncTokioStream for UntilTls {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

impl AsyncRead for UntilTls {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_tls || buf.remaining() == 0 {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let Some(left) = self.left.checked_sub(1) else {
            return Poll::Ready(Err(io::Error::other("it says too much before TLS begins")));
        };
        self.left = left;
        let mut byte = [0; 1];
        let mut one = ReadBuf::new(&mut byte);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut one);
        buf.put_slice(one.filled());
        read
    }
}

impl AsyncWrite for UntilTls {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_tls |= bytes.first() == Some(&TLS_HANDSHAKE);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
