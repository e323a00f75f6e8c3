//! A PostgreSQL on loopback, with a standby or a pooler, for the tests that name this file by its path. It is killed with the thread that
//! began it.

use keyleash::secret::fill_random;
use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/postgres");

pub(crate) struct Postgres {
    folder: TempDir,
    pub(crate) port: u16,
    args: Vec<String>,
    child: Option<Child>,
    /// Of which this is a standby.
    primary: Option<u16>,
}

/// Below those that the system gives to whoever asks for any, so that it stays free until it is used, and used again.
fn free_port() -> u16 {
    loop {
        let mut random = [0; 2];
        fill_random(&mut random).unwrap();
        let port = 10_000 + u16::from_le_bytes(random) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What a server that is another user can go into.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn script(args: &[&str]) -> Output {
    Command::new(SCRIPT).args(args).stdin(Stdio::null()).output().unwrap()
}

fn expect(run: &Output) {
    assert!(run.status.success(), "{}: run tests/servers/postgres install", String::from_utf8_lossy(&run.stderr));
}

#[allow(dead_code)] // each of the tests uses some of it
impl Postgres {
    pub(crate) fn begin() -> Self {
        Self::begin_with(&[], &[])
    }

    /// With more settings, `name=value` each, and files that are in its folder.
    pub(crate) fn begin_with(settings: &[&str], files: &[&Path]) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        let files = files.iter().map(|file| file.to_str().unwrap());
        expect(&script(&["init", data.to_str().unwrap()].into_iter().chain(files).collect::<Vec<_>>()));
        Self::new(folder, settings, None)
    }

    fn new(folder: TempDir, settings: &[&str], primary: Option<u16>) -> Self {
        let port = free_port();
        // No machine is killed: what a process wrote is there.
        let own = [&format!("port={port}"), "listen_addresses=127.0.0.1", "log_min_messages=panic", "fsync=off"];
        let args = own.iter().chain(settings).flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]).collect();
        let mut postgres = Self { folder, port, args, child: None, primary };
        postgres.restart();
        postgres
    }

    /// A standby of this one, with more settings. It asks for changes by the name `standby`.
    pub(crate) fn standby(&self, settings: &[&str]) -> Self {
        let (folder, data) = (folder(), self.data());
        let port = self.port.to_string();
        let to = folder.path().join("data");
        let from = ["--host", data.to_str().unwrap(), "--port", &port, "--username", "postgres"];
        expect(&script(&[&["copy", to.to_str().unwrap()], &from[..]].concat()));
        let from =
            format!("primary_conninfo=host={} port={port} user=postgres application_name=standby", data.display());
        Self::new(folder, &[&[from.as_str()], settings].concat(), Some(self.port))
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// In the database `postgres`.
    pub(crate) fn url(&self, schema: &str) -> String {
        format!("postgres://{}/postgres/{schema}", self.server())
    }

    pub(crate) fn try_sql(&self, sql: &str) -> Output {
        let mut command = Command::new("psql");
        command.args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--username",
            "postgres",
            "--dbname",
            "postgres",
        ]);
        command.arg("--set=ON_ERROR_STOP=1").arg("--host").arg(self.data()).arg("--port").arg(self.port.to_string());
        // Each by itself, as some have to be.
        command
            .args(sql.split("; ").flat_map(|one| ["--command", one]))
            .output()
            .expect("psql: run tests/servers/postgres install")
    }

    /// What it gives, as the server's owner.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let run = self.try_sql(sql);
        assert!(run.status.success(), "{sql}: {}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap().trim().to_owned()
    }

    /// Who may connect, and how they are known: lines of `pg_hba.conf` before those for its owner.
    pub(crate) fn admit(&self, lines: &str) {
        let text = format!("local all postgres trust\nlocal replication postgres trust\n{lines}\n");
        // In place, so that it stays its owner's.
        fs::write(self.data().join("pg_hba.conf"), text).unwrap();
        self.sql("SELECT pg_reload_conf()");
        // Who connects now is asked for by what is read by then.
        while self.sql("SELECT pg_conf_load_time() > now() - interval '1 minute' AND NOT EXISTS (SELECT FROM pg_hba_file_rules WHERE error IS NOT NULL)") != "t" {
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(100));
    }

    /// Over those in its folder, which stay its owner's.
    pub(crate) fn replace_files(&self, files: &[PathBuf]) {
        for file in files {
            fs::write(self.data().join(file.file_name().unwrap()), fs::read(file).unwrap()).unwrap();
        }
    }

    pub(crate) fn restart(&mut self) {
        let mut command = Command::new(SCRIPT);
        command.arg("run").arg(self.data()).args(&self.args).stdin(Stdio::null());
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        self.await_health();
    }

    /// Waits until it answers.
    pub(crate) fn await_health(&mut self) {
        for _ in 0..600 {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "PostgreSQL ended ({ended:?}): run tests/servers/postgres install");
            if self.try_sql("SELECT 1").status.success() {
                return;
            }
            thread::sleep(Duration::from_millis(25));
        }
        panic!("PostgreSQL does not begin");
    }

    /// It, and what it has begun.
    fn processes(&self) -> Vec<u32> {
        let id = self.child.as_ref().unwrap().id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        [id].into_iter().chain(children.split_whitespace().map(|child| child.parse().unwrap())).collect()
    }

    fn signal(&self, signal: i32) {
        for id in self.processes() {
            // One that is just ending needs none.
            let _ = Command::new("kill").arg(format!("-{signal}")).arg(id.to_string()).stderr(Stdio::null()).status();
        }
    }

    /// All of it, as the end of a machine does.
    pub(crate) fn kill(&mut self) {
        let processes = self.processes();
        self.signal(9);
        self.child.take().unwrap().wait().unwrap();
        // What somebody has still to hear of has ended.
        let state = |id: &u32| fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let runs = |id: &u32| state(id).rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']));
        while processes.iter().any(runs) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn stop(&self) {
        self.signal(19); // SIGSTOP
    }

    pub(crate) fn go_on(&self) {
        self.signal(18); // SIGCONT
    }

    /// Makes it the primary.
    pub(crate) fn promote(&mut self) {
        expect(&script(&["promote", self.data().to_str().unwrap()]));
        self.primary = None;
        while self.sql("SELECT pg_is_in_recovery()") != "f" {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A pgbouncer in front of it, that gives each transaction another connection.
    pub(crate) fn pooler(&self) -> Pooler {
        let (folder, port) = (folder(), free_port());
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\nunix_socket_dir =\n",
            self.port
        );
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let mut command = Command::new(SCRIPT);
        let child = command.arg("pooler").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut pooler = Pooler { child: child.spawn().unwrap(), port, _folder: folder };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = pooler.child.try_wait().unwrap();
            assert!(ended.is_none(), "pgbouncer ended ({ended:?}): run tests/servers/postgres install");
            thread::sleep(Duration::from_millis(25));
        }
        pooler
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

pub(crate) struct Pooler {
    child: Child,
    pub(crate) port: u16,
    _folder: TempDir,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
