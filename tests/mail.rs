//! Notices as mail, to a real server over real TLS: aiosmtpd, which `tests/servers/smtp install` brings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests

#[path = "../examples/watched_secret.rs"]
#[allow(unreachable_pub, missing_docs)]
mod watched_example;

use self::watched_example::{APPLICATION, STRANGER, Watched};
use keyleash::{
    access::Pattern,
    audit::{
        alert::{Alerts, MailSink, NotTaken, Notice, NoticeSink, Rule, When},
        line::Line,
    },
    config::{ConfigFile, mail::MailConfig},
    token::pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};
use tempfile::TempDir;

const PASSWORD: &str = "correct horse battery";

fn openssl(directory: &Path, args: &str) {
    let run = Command::new("openssl").args(args.split(' ')).current_dir(directory).output();
    let run = run.expect("openssl: run tests/servers/smtp install");
    assert!(run.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&run.stderr));
}

/// A folder with `NAME.pem` and `NAME.key` of a new authority and of a server's certificate that it signed, for `days`.
fn certificates(host: &str, days: i32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap(); // no two are called the same
    let new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(folder.path(), &format!("{new} -x509 -keyout ca.key -out ca.pem -subj /CN=authority{name} -days 2"));
    openssl(
        folder.path(),
        &format!("{new} -keyout own.key -out own.csr -subj /CN=x -addext subjectAltName=DNS:{host}"),
    );
    let sign = "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy";
    openssl(folder.path(), &format!("{sign} -out own.pem -days {days}"));
    fs::write(folder.path().join("password"), format!("{PASSWORD}\n")).unwrap();
    folder
}

/// It ends with this.
struct Server {
    child: Child,
    _stdin: ChildStdin,
    port: u16,
    mails: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn begin(folder: &Path, tls: &str, more: &[&str]) -> Self {
        let mails = folder.join("mails.json");
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/smtp"));
        command
            .args(["run", "--tls", tls, "--cert"])
            .arg(folder.join("own.pem"))
            .arg("--key")
            .arg(folder.join("own.key"));
        command.arg("--mails").arg(&mails).args(more).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let port = port.trim().parse().expect("the server did not begin: run tests/servers/smtp install");
        Self { _stdin: child.stdin.take().unwrap(), child, port, mails }
    }

    fn mails(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.mails).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// As a configuration says it.
    fn settings(&self, folder: &Path, more: &str) -> String {
        let (port, folder) = (self.port, folder.display());
        let own = "[mail]\nserver = \"localhost\"\nfrom = \"keyleash@example.org\"\nto = \"ops@example.org, päger@example.org\"\n";
        format!("{own}port = {port}\nca = \"{folder}/ca.pem\"\ntimeout = \"10s\"\n{more}\n")
    }

    fn sink(&self, folder: &Path, more: &str) -> MailSink {
        MailSink::new(config(&self.settings(folder, more))).unwrap()
    }
}

fn config(text: &str) -> MailConfig {
    ConfigFile::parse(text, "t").unwrap().resolve().unwrap().mail.unwrap()
}

fn user(folder: &Path) -> String {
    format!("user = \"me\"\npassword_file = \"{}/password\"", folder.display())
}

/// That this caller was given a secret, and nobody knows it; and that it is over.
fn notices_of(caller: &str) -> Vec<Notice> {
    let rule = Rule::new("strangers", When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] }).unwrap();
    let mut alerts = Alerts::new(vec![rule]).unwrap();
    let line = |time: &str, caller: &str| {
        let line = json!({
            "seq": 7, "time": time, "category": "AuditEvent", "operation": "SecretGet", "result": "done", "caller": caller
        });
        Line::parse(line.to_string().as_bytes()).unwrap()
    };
    let mut at = |time: &str, caller: &str| {
        let line = line(time, caller);
        alerts.line(line.time, "web-1", &line)
    };
    let mut notices = at("2026-11-26T01:02:03.004Z", caller);
    notices.extend(at("2026-11-26T02:02:03.004Z", "web-1"));
    assert_eq!(notices.iter().map(|notice| notice.is_over).collect::<Vec<_>>(), [false, true]);
    notices
}

fn header<'m>(mail: &'m Value, name: &str) -> &'m str {
    mail["headers"][name].as_str().unwrap_or_else(|| panic!("no {name}: {mail}"))
}

#[tokio::test]
async fn a_notice_is_one_mail_that_says_what_when_where_and_what_to_do_over_either_kind_of_tls() {
    for tls in ["implicit", "starttls"] {
        let folder = certificates("localhost", 1);
        let folder = folder.path();
        let server = Server::begin(folder, tls, &["--user", "me", "--password", PASSWORD]);
        let mut sink = server.sink(folder, &format!("tls = \"{tls}\"\n{}", user(folder)));
        let notices = notices_of("eve");
        sink.tell(&notices).await.unwrap();
        let mails = server.mails();
        assert_eq!(mails.len(), 2);
        let (begin, over) = (&mails[0], &mails[1]);
        assert_eq!((&begin["tls"], &begin["user"]), (&json!(true), &json!("me")));
        assert_eq!(
            (&begin["from"], &begin["to"]),
            (&json!("keyleash@example.org"), &json!(["ops@example.org", "päger@example.org"]))
        );
        assert_eq!(header(begin, "subject"), "[keyleash] ALERT strangers: caller eve");
        assert_eq!(header(over, "subject"), "[keyleash] over strangers: caller eve");
        assert_eq!((header(begin, "keyleash-state"), header(over, "keyleash-state")), ("begin", "over"));
        assert_eq!((header(begin, "keyleash-rule"), header(begin, "keyleash-when")), ("strangers", "stranger"));
        assert_eq!(header(begin, "keyleash-notice"), notices[0].id());
        assert_eq!(header(begin, "auto-submitted"), "auto-generated");
        assert!(header(begin, "message-id").ends_with("@example.org>"), "{begin}");
        assert_eq!(header(over, "in-reply-to"), header(begin, "message-id"));
        assert_ne!(header(over, "message-id"), header(begin, "message-id"));
        let body = begin["body"].as_str().unwrap();
        for said in [
            "SecretGet, by a caller that is not on the list",
            "caller eve",
            "2026-11-26T01:02:03.004Z",
            "web-1/7, of the trail",
            &notices[0].id(),
            "keyleash audit show --caller",
            "src/manual/grants.md",
        ] {
            assert!(body.contains(said), "{said}: {body}");
        }
        // Sent again it is known to be the same.
        sink.tell(&notices[..1]).await.unwrap();
        assert_eq!(header(&server.mails()[2], "message-id"), header(begin, "message-id"));
    }
}

#[tokio::test]
async fn names_that_callers_chose_make_no_header_and_no_recipient() {
    let folder = certificates("localhost", 1);
    let server = Server::begin(folder.path(), "implicit", &[]);
    let mut sink = server.sink(folder.path(), "");
    let long = "x".repeat(3000);
    for caller in [
        "eve\r\nBcc: mallory@evil.example\r\nX-Evil: 1\r\n\r\nevil body\r\n.\r\nMAIL FROM:<x@evil.example>",
        "\u{202e}eve\u{2028}Bcc: mallory@evil.example\0\u{7f}\u{85}Bcc: mallory@evil.example",
        "Ünïcøde 名前 =?utf-8?q?=0d=0aBcc:_mallory=40evil.example?=",
        &long,
    ] {
        let before = server.mails().len();
        sink.tell(&notices_of(caller)).await.unwrap();
        let mails = server.mails();
        assert_eq!(mails.len(), before + 2, "{caller:?}");
        let of_ours = mails[0]["headers"].as_object().unwrap();
        for mail in &mails[before..] {
            assert_eq!(mail["to"], json!(["ops@example.org", "päger@example.org"]));
            assert!(mail["body"].as_str().unwrap().contains("\nWhose     caller "), "{mail}");
            let is_known =
                |name: &String| of_ours.contains_key(name) || ["in-reply-to", "references"].contains(&name.as_str());
            assert!(mail["headers"].as_object().unwrap().keys().all(is_known), "{mail}");
            assert!(!of_ours.contains_key("bcc") && !of_ours.contains_key("x-evil"), "{mail}");
            assert!(
                mail["headers"]
                    .as_object()
                    .unwrap()
                    .values()
                    .all(|value| !value.as_str().unwrap().contains(['\r', '\n']))
            );
        }
    }
    let subject = header(&server.mails()[4], "subject").to_owned();
    assert!(subject.starts_with("[keyleash] ALERT strangers: caller Ünïcøde 名前 =\u{fffd}?utf-8?q?"), "{subject}");
}

#[tokio::test]
async fn a_server_that_cannot_show_who_it_is_gets_nothing() {
    let (own, other) = (certificates("localhost", 1), certificates("localhost", 1));
    let (stranger, old) = (certificates("elsewhere.example", 1), certificates("localhost", -1));
    for (tls, folder, ca, said) in [
        ("implicit", &own, Some(&other), "UnknownIssuer"),
        ("implicit", &own, None, "UnknownIssuer"), // those of the platform
        ("implicit", &stranger, Some(&stranger), "not valid for name"),
        ("implicit", &old, Some(&old), "Expired"),
        ("starttls", &own, Some(&other), "UnknownIssuer"),
        ("starttls", &stranger, Some(&stranger), "not valid for name"),
    ] {
        let server = Server::begin(folder.path(), tls, &["--user", "me", "--password", PASSWORD]);
        let settings = server.settings(folder.path(), &format!("tls = \"{tls}\"\n{}", user(folder.path())));
        let own_ca = format!("ca = \"{}/ca.pem\"\n", folder.path().display());
        let ca = ca.map_or_else(String::new, |ca| format!("ca = \"{}/ca.pem\"\n", ca.path().display()));
        let mut sink = MailSink::new(config(&settings.replace(&own_ca, &ca))).unwrap();
        let why = sink.tell(&notices_of("eve")).await.unwrap_err().to_string();
        assert!(why.contains(said) && why.contains("mail.ca"), "{said}: {why}");
        assert_eq!(server.mails(), Vec::<Value>::new());
    }
    // Nor does one that has no TLS.
    let server = Server::begin(own.path(), "none", &[]);
    let why = server.sink(own.path(), "tls = \"starttls\"").tell(&notices_of("eve")).await.unwrap_err().to_string();
    assert!(why.contains("it offers no STARTTLS"), "{why}");
    assert_eq!(server.mails(), Vec::<Value>::new());
    server.sink(own.path(), "tls = \"plaintext\"").tell(&notices_of("eve")).await.unwrap();
    assert_eq!(server.mails().len(), 2);
}

#[tokio::test]
async fn what_is_said_in_clear_behind_starttls_passes_for_nothing_that_the_server_says() {
    let folder = certificates("localhost", 1);
    let server = Server::begin(folder.path(), "starttls", &["--inject"]);
    let why = server.sink(folder.path(), "tls = \"starttls\"").tell(&notices_of("eve")).await.unwrap_err().to_string();
    assert!(why.contains("InvalidContentType"), "{why}");
    assert_eq!(server.mails(), Vec::<Value>::new());
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_stands_in_no_error() {
    let folder = certificates("localhost", 1);
    let folder = folder.path();
    let server = Server::begin(folder, "implicit", &["--user", "me", "--password", "another"]);
    let mut sink = server.sink(folder, &user(folder));
    let why = sink.tell(&notices_of("eve")).await.unwrap_err().to_string();
    assert!(why.contains("it refuses user me (535)") && why.contains("password"), "{why}");
    assert!(!why.contains("horse") && !format!("{sink:?}").contains("horse"), "{why}");
    // It is read anew: once it is right, all is well.
    fs::write(folder.join("password"), "another\r\n").unwrap();
    sink.tell(&notices_of("eve")).await.unwrap();
    assert_eq!(server.mails().len(), 2);
    for (text, said) in [("", "as one line"), ("a\nb\n", "as one line"), (&*"x".repeat(2000), "more than 1024 bytes")] {
        fs::write(folder.join("password"), text).unwrap();
        let why = sink.tell(&notices_of("eve")).await.unwrap_err().to_string();
        assert!(why.contains(said) && why.contains("mail.password_file"), "{why}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_and_one_that_takes_some_gets_those_once() {
    let folder = certificates("localhost", 1);
    let folder = folder.path();
    for (tls, hang) in [("none", "greeting"), ("implicit", "greeting"), ("implicit", "mail")] {
        let server = Server::begin(folder, tls, &["--hang", hang]);
        let tls = if tls == "none" { "plaintext" } else { tls };
        let settings = server.settings(folder, &format!("tls = \"{tls}\"")).replace("10s", "1s");
        let why = MailSink::new(config(&settings)).unwrap().tell(&notices_of("eve")).await.unwrap_err().to_string();
        assert!(why.contains("did not answer within 1s"), "{hang}: {why}");
    }
    let notices = notices_of("eve");
    let server = Server::begin(folder, "implicit", &["--refuse-after", "1"]);
    let mut sink = server.sink(folder, "");
    for _ in 0..3 {
        let why = sink.tell(&notices).await.unwrap_err().to_string();
        assert!(why.contains("452"), "{why}");
    }
    assert_eq!(server.mails().len(), 1, "what it took is not brought again");
}

#[tokio::test]
async fn an_address_or_a_mail_that_is_refused_holds_up_no_other() {
    let folder = certificates("localhost", 1);
    let folder = folder.path();
    let refuse = ["--refuse", "550=gone@", "--refuse", "450=full@", "--refuse", "554=eve"];
    let server = Server::begin(folder, "implicit", &refuse);
    let to = |to: &str| {
        let settings = server.settings(folder, "").replace("ops@example.org, päger@example.org", to);
        MailSink::new(config(&settings)).unwrap()
    };
    // For good: who is there has it, and it is taken.
    to("gone@example.org, ops@example.org").tell(&notices_of("bob")).await.unwrap();
    assert_eq!(server.mails().len(), 2);
    assert_eq!(server.mails()[0]["to"], json!(["ops@example.org"]));
    // For now: it is not taken, and who has it does not get it again.
    let mut sink = to("full@example.org, ops@example.org");
    for _ in 0..2 {
        let untaken = sink.tell(&notices_of("bob")).await.unwrap_err();
        let why = untaken.to_string();
        assert!(why.contains("full@example.org: ") && why.contains("450"), "{why}");
        assert_eq!((untaken, server.mails().len()), (NotTaken::Unclear(why), 4));
    }
    // No address.
    let mut sink = to("gone@example.org");
    let untaken = sink.tell(&notices_of("bob")).await.unwrap_err();
    let why = untaken.to_string();
    assert!(why.contains("gone@example.org: ") && why.contains("550"), "{why}");
    assert_eq!((untaken, server.mails().len()), (NotTaken::ForGood(why), 4));
    // A mail: those behind it come, by the same connection.
    let mut sink = to("ops@example.org");
    let untaken = sink.tell(&[notices_of("eve"), notices_of("tom")].concat()).await.unwrap_err();
    let why = untaken.to_string();
    assert!(why.contains("554"), "{why}");
    assert_eq!((untaken, server.mails().len()), (NotTaken::ForGood(why), 6));
}

fn keyleash(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keyleash")).args(args).current_dir(folder).output().unwrap()
}

fn done(folder: &Path, args: &[&str]) -> String {
    let run = keyleash(folder, args);
    assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn while_the_server_is_away_nothing_is_lost_and_once_it_is_back_it_comes_with_the_id_that_it_has() {
    let folder = certificates("localhost", 1);
    let folder = folder.path();
    // Nobody has it, and it is not given to the next that asks.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let alert =
        "[audit]\ndirectory = \"trail\"\n[[alert]]\nname = \"strangers\"\nwhen = \"stranger\"\ncallers = [\"web-*\"]\n";
    let mail =
        "[mail]\nserver = \"localhost\"\nfrom = \"keyleash@example.org\"\nto = \"ops@example.org\"\nca = \"ca.pem\"\n";
    fs::write(folder.join("keyleash.toml"), format!("{alert}{mail}port = {port}\n")).unwrap();
    fs::create_dir(folder.join("trail")).unwrap();
    for words in ["audit key create", "kek create tenants", "account create alice --kek tenants"] {
        done(folder, &words.split(' ').collect::<Vec<_>>());
    }
    fs::write(folder.join("clear"), "hello").unwrap();
    done(folder, &["seal", "clear", "--account", "alice", "-o", "sealed"]);

    let told = done(folder, &["alert", "watch", "--cursor", "other", "--once", "--sink", "stdout"]);
    let notice: Value = serde_json::from_str(told.lines().next().expect("a notice")).unwrap();
    let watch = ["alert", "watch", "--cursor", "cursor", "--sink", "mail"];
    for _ in 0..2 {
        let away = keyleash(folder, &[&watch[..], &["--once"]].concat());
        assert!(!away.status.success());
        assert!(String::from_utf8_lossy(&away.stderr).contains("mail server localhost, port"), "{away:?}");
    }
    // One that goes on tries again by itself.
    let mut going = Command::new(env!("CARGO_BIN_EXE_keyleash"));
    let mut going = going.args(watch).current_dir(folder).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(going.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("; again in ") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended");
    }
    let server = Server::begin(folder, "implicit", &["--port", &port.to_string()]);
    while server.mails().is_empty() {
        thread::sleep(Duration::from_millis(50));
    }
    going.kill().unwrap();
    going.wait().unwrap();
    said.read_to_string(&mut line).unwrap();
    let mails = server.mails();
    assert_eq!((mails.len(), header(&mails[0], "keyleash-notice")), (1, notice["id"].as_str().unwrap()), "{line}");

    let test = keyleash(folder, &["alert", "test", "--sink", "mail"]);
    assert!(String::from_utf8_lossy(&test.stderr).contains("2 notices brought"), "{test:?}");
    let mails = server.mails();
    assert_eq!(header(&mails[2], "subject"), "[keyleash] over strangers: rehearsal");
    assert!(mails[1]["body"].as_str().unwrap().contains("this is a test, nothing has happened"));
}

/// The whole of it: KEK, secret, hook, trail, queue, rule and mail, as the example has them.
#[tokio::test]
async fn an_application_that_reads_the_secret_of_another_is_the_one_mail_that_comes() {
    let variable = |name: &str| std::env::var(name).expect("run it by softhsm/with-token");
    let (label, pin) = (variable("KEYLEASH_TOKEN_LABEL"), variable("KEYLEASH_PIN_FILE"));
    let settings =
        Pkcs11Settings::new(variable("KEYLEASH_MODULE"), Selector::Label(label), PinSource::File(pin.into()));
    let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
    let (folder, directory) = (certificates("localhost", 1), tempfile::tempdir().unwrap());
    let server = Server::begin(folder.path(), "implicit", &["--user", "me", "--password", PASSWORD]);
    let sink = server.sink(folder.path(), &user(folder.path()));
    let mut watched = Watched::new(token, directory.path(), sink).await.unwrap();

    watched.read(APPLICATION).await.unwrap();
    assert_eq!(watched.rotate().await.unwrap(), 2);
    assert_eq!(watched.read(APPLICATION).await.unwrap().1.as_bytes(), b"password-2");
    watched.follow().await.unwrap();
    assert_eq!(server.mails(), Vec::<Value>::new(), "the right one is nobody's trouble");

    for _ in 0..2 {
        watched.read(STRANGER).await.unwrap();
        watched.follow().await.unwrap();
    }
    watched.read(APPLICATION).await.unwrap();
    watched.follow().await.unwrap();
    watched.close().await.unwrap();
    let mails = server.mails();
    assert_eq!(mails.len(), 1, "{mails:?}");
    assert_eq!(header(&mails[0], "subject"), format!("[keyleash] ALERT strangers: caller {STRANGER}"));
    let body = mails[0]["body"].as_str().unwrap();
    assert!(
        body.contains("SecretGet of secret db/password of account billing") && !body.contains("password-"),
        "{body}"
    );
}
