//! By which server, from whom and to whom notices go as mail: `[mail]`. Read by every build; what sends is `audit::alert::MailSink`.

use super::given::{bad, is_this_machine};
use crate::error::Result;
use std::{path::PathBuf, time::Duration};

/// Longest that a mail takes from the first byte to the server's word, where nothing is said.
pub const MAIL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Shortest time that a mail can be given.
pub const MAIL_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Longest time that a mail can be given.
pub const MAIL_TIMEOUT_MAX: Duration = Duration::from_secs(5 * 60);
/// Most that a mail goes to.
pub const RECIPIENTS_MAX: usize = 32;
/// Longest address of a mailbox, in bytes (RFC 5321, section 4.5.3.1.3).
pub const ADDRESS_BYTES_MAX: usize = 254;
/// Longest name of a server, in bytes (RFC 1035).
const SERVER_BYTES_MAX: usize = 253;

/// How the way to the server is kept from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MailTls {
    /// TLS from the first byte, as RFC 8314 wants it.
    #[default]
    Implicit,
    /// STARTTLS, without which nothing is sent.
    StartTls,
    /// None, to this machine alone.
    Plaintext,
    /// None, to any server, and never with a password: whoever is in between reads notices, changes them, and keeps them away.
    PlaintextAnywhere,
}

impl MailTls {
    /// Every one, by its name in a configuration.
    pub const ALL: [(&str, Self); 4] = [
        ("implicit", Self::Implicit),
        ("starttls", Self::StartTls),
        ("plaintext", Self::Plaintext),
        ("plaintext-anywhere", Self::PlaintextAnywhere),
    ];

    /// The port of servers that speak so.
    pub const fn port(self) -> u16 {
        match self {
            Self::Implicit => 465,
            Self::StartTls => 587,
            Self::Plaintext | Self::PlaintextAnywhere => 25,
        }
    }

    /// There is none.
    pub const fn is_plaintext(self) -> bool {
        matches!(self, Self::Plaintext | Self::PlaintextAnywhere)
    }
}

/// Who a mail server takes mail from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailUser {
    /// The name.
    pub name: String,
    /// The file that holds the password; read for each connection.
    pub password_file: PathBuf,
}

/// Where notices go as mail, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MailConfig {
    /// The server: the name that its certificate is of.
    pub server: String,
    /// Its port; [`MailTls::port`] where nothing was said.
    pub port: u16,
    /// How the way to it is kept.
    pub tls: MailTls,
    /// Who sends: `keyleash@example.org`.
    pub from: String,
    /// Who gets each notice, 1 to [`RECIPIENTS_MAX`].
    pub to: Vec<String>,
    /// Who the server takes mail from; `None` where it asks nobody.
    pub user: Option<MailUser>,
    /// The certificates, PEM, that one of the server's has to be signed by; `None` for those of the platform.
    pub ca: Option<PathBuf>,
    /// Longest that a mail takes, [`MAIL_TIMEOUT_MIN`] to [`MAIL_TIMEOUT_MAX`]: connecting to the server, or its word on one mail.
    pub timeout: Duration,
}

/// What a configuration says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MailItems {
    server: Option<String>,
    pub(super) port: Option<u16>,
    tls: Option<MailTls>,
    from: Option<String>,
    to: Option<Vec<String>>,
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    timeout: Option<Duration>,
}

/// Nothing in it but what can be seen: what is sent in a line has no other lines in it.
fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

impl MailItems {
    pub(super) fn set_server(&mut self, server: String, origin: &str) -> Result<()> {
        if server.len() > SERVER_BYTES_MAX || !is_visible(&server) || server.contains('/') {
            return Err(bad(origin, "is no name of a server: write it as in \"mail.example.org\", without a port"));
        }
        self.server = Some(server);
        Ok(())
    }

    pub(super) fn set_tls(&mut self, text: &str, origin: &str) -> Result<()> {
        let Some((_, tls)) = MailTls::ALL.into_iter().find(|(name, _)| *name == text) else {
            let names = "use \"implicit\" (TLS from the first byte), \"starttls\", or \"plaintext\" to this machine";
            return Err(bad(origin, &format!("is {text:?}; {names}")));
        };
        self.tls = Some(tls);
        Ok(())
    }

    fn address(text: &str, origin: &str) -> Result<String> {
        let is_whole = |(local, domain): (&str, &str)| !local.is_empty() && !domain.is_empty();
        if text.len() > ADDRESS_BYTES_MAX || !is_visible(text) || !text.rsplit_once('@').is_some_and(is_whole) {
            return Err(bad(origin, &format!("{text:?} is no address: write it as in \"ops@example.org\"")));
        }
        Ok(text.to_owned())
    }

    pub(super) fn set_from(&mut self, text: &str, origin: &str) -> Result<()> {
        self.from = Some(Self::address(text, origin)?);
        Ok(())
    }

    pub(super) fn set_to(&mut self, text: &str, origin: &str) -> Result<()> {
        let to: Vec<_> = text.split(',').map(|to| Self::address(to.trim(), origin)).collect::<Result<_>>()?;
        if to.len() > RECIPIENTS_MAX {
            return Err(bad(origin, &format!("has {} addresses; allowed are {RECIPIENTS_MAX}", to.len())));
        }
        self.to = Some(to);
        Ok(())
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration, origin: &str) -> Result<()> {
        if !(MAIL_TIMEOUT_MIN..=MAIL_TIMEOUT_MAX).contains(&timeout) {
            return Err(bad(origin, "allowed is 1s to 5min: a server that hangs must not keep other notices back"));
        }
        self.timeout = Some(timeout);
        Ok(())
    }

    /// What this says, and where it says nothing, what `below` says.
    pub(super) fn over(self, below: Self) -> Self {
        Self {
            server: self.server.or(below.server),
            port: self.port.or(below.port),
            tls: self.tls.or(below.tls),
            from: self.from.or(below.from),
            to: self.to.or(below.to),
            user: self.user.or(below.user),
            password_file: self.password_file.or(below.password_file),
            ca: self.ca.or(below.ca),
            timeout: self.timeout.or(below.timeout),
        }
    }

    /// `origin` is where something was said of it, if anything was.
    pub(super) fn resolve(self, origin: Option<&str>) -> Result<Option<MailConfig>> {
        let Some(origin) = origin else { return Ok(None) };
        let Self { server, port, tls, from, to, user, password_file, ca, timeout } = self;
        let must = |key: &str| bad(origin, &format!("says how mail is sent, and mail.{key} is missing: set it"));
        let server = server.ok_or_else(|| must("server"))?;
        let (from, to) = (from.ok_or_else(|| must("from"))?, to.ok_or_else(|| must("to"))?);
        let tls = tls.unwrap_or_default();
        if tls == MailTls::Plaintext && !is_this_machine(&server) {
            return Err(bad(
                origin,
                &format!(
                    "mail.tls is \"plaintext\", and mail.server {server} is not this machine: use \"starttls\" or \"implicit\", or \
                     where all that is in between is trusted \"plaintext-anywhere\""
                ),
            ));
        }
        let user = match (user, password_file) {
            (None, None) => None,
            (Some(_), Some(_)) if tls == MailTls::PlaintextAnywhere => {
                return Err(bad(origin, "mail.tls is \"plaintext-anywhere\", by which no password is sent: use TLS"));
            }
            (Some(name), Some(password_file)) => Some(MailUser { name, password_file }),
            (Some(_), None) => return Err(must("password_file")),
            (None, Some(_)) => return Err(must("user")),
        };
        let (port, timeout) = (port.unwrap_or_else(|| tls.port()), timeout.unwrap_or(MAIL_TIMEOUT_DEFAULT));
        Ok(Some(MailConfig { server, port, tls, from, to, user, ca, timeout }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFile;

    fn mail(text: &str) -> Result<Option<MailConfig>> {
        Ok(ConfigFile::parse(text, "f")?.resolve()?.mail)
    }

    const WHOLE: &str =
        "[mail]\nserver = \"mail.example.org\"\nfrom = \"keyleash@example.org\"\nto = \"a@b.c, d@e.f\"\n";

    #[test]
    fn mail_is_read_as_it_is_written_and_is_kept_by_tls_where_nothing_is_said() {
        assert_eq!(mail("").unwrap(), None);
        let config = mail(WHOLE).unwrap().unwrap();
        assert_eq!((config.tls, config.port, config.timeout), (MailTls::Implicit, 465, MAIL_TIMEOUT_DEFAULT));
        assert_eq!((config.to, config.user), (vec!["a@b.c".to_owned(), "d@e.f".to_owned()], None));
        let more = "tls = \"starttls\"\nuser = \"me\"\npassword_file = \"p\"\nca = \"c\"\ntimeout = \"5s\"\n";
        let config = mail(&format!("{WHOLE}{more}")).unwrap().unwrap();
        assert_eq!((config.tls, config.port, config.timeout.as_secs()), (MailTls::StartTls, 587, 5));
        assert_eq!(config.user, Some(MailUser { name: "me".into(), password_file: "p".into() }));
        let here = WHOLE.replace("mail.example.org", "127.0.0.1");
        assert!(
            mail(&format!("{here}tls = \"plaintext\"\nport = 2525")).unwrap().is_some_and(|mail| mail.port == 2525)
        );
        assert!(mail(&format!("{WHOLE}tls = \"plaintext-anywhere\"")).is_ok());
    }

    #[test]
    fn what_is_wrong_with_mail_is_said_with_its_line_and_key() {
        for (keys, said) in [
            ("tls = \"plaintext\"", "mail.server mail.example.org is not this machine"),
            ("tls = \"none\"", "f line 5: mail.tls: is \"none\"; use \"implicit\""),
            ("tls = \"plaintext-anywhere\"\nuser = \"a\"\npassword_file = \"p\"", "no password is sent: use TLS"),
            ("user = \"a\"", "mail.password_file is missing: set it"),
            ("password_file = \"p\"", "mail.user is missing: set it"),
            ("password = \"p\"", "f line 5: a password does not stand in a configuration; use password_file"),
            ("timeout = \"6min\"", "f line 5: mail.timeout: allowed is 1s to 5min"),
            ("port = 0", "f line 5: mail.port: is 0; allowed are whole numbers from 1 to 65535"),
        ] {
            let error = mail(&format!("{WHOLE}{keys}\n")).unwrap_err().to_string();
            assert!(error.contains(said), "{keys}: {error}");
        }
        for (from, to, said) in [
            ("server = \"mail.example.org\"\n", "", "mail.server is missing: set it"),
            ("a@b.c, d@e.f", "ops@example.org\\r\\nBcc: eve@evil", "is no address"),
            ("a@b.c", "a", "\"a\" is no address"),
            ("mail.example.org", "mail.example.org\\r\\n", "is no name of a server"),
            ("keyleash@example.org", "@example.org", "is no address"),
        ] {
            let error = mail(&WHOLE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(said), "{from} {to}: {error}");
        }
    }
}
