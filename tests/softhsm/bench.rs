//! What the tests stand on: the module, private tokens, tests alone in a process, and the operator.

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    session::UserType,
    slot::Slot,
    types::AuthPin,
};
use keyleash::token::pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const ALONE: &str = "KEYLEASH_TEST_ALONE";
/// The module that the operator acts through, where the one under test stands in front of it.
const REAL_MODULE: &str = "KEYLEASH_TEST_REAL_MODULE";
pub(crate) const SO_PIN: &str = "so-pin-of-a-test";
pub(crate) const PIN: &str = "pin-of-a-test";
pub(crate) const LABEL: &str = "test token";
/// A variable with [`PIN`], and the end of its line.
pub(crate) const PIN_VARIABLE: &str = "KEYLEASH_TEST_PIN";

/// Names the token that softhsm/token-matrix makes for each test, of a kind that needs more than a file of its own.
const KIND: &str = "KEYLEASH_TEST_TOKEN";
/// The user PIN of one that does not take [`PIN`].
const OWN_PIN: &str = "KEYLEASH_TEST_OWN_PIN";

/// The user PIN of the bench's token.
pub(crate) fn pin() -> String {
    std::env::var(OWN_PIN).unwrap_or_else(|_| PIN.into())
}

/// A variable that with-token sets.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: these tests need SoftHSM. Run them with `softhsm/with-token cargo test`")
    })
}

pub(crate) fn module() -> PathBuf {
    variable("KEYLEASH_MODULE").into()
}

/// The module under test, or the one behind it: the operator never goes through a shim, and no test stacks two.
pub(crate) fn real_module() -> PathBuf {
    std::env::var_os("KEYLEASH_SHIM_MODULE").map_or_else(module, PathBuf::from)
}

/// A private token directory, with one token in it.
pub(crate) struct Bench {
    pub(crate) dir: PathBuf,
}

impl Bench {
    pub(crate) fn tokens(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    pub(crate) fn pin_file(&self) -> PathBuf {
        self.dir.join("pin")
    }

    pub(crate) fn settings(&self) -> Pkcs11Settings {
        Pkcs11Settings::new(module(), Selector::Label(LABEL.into()), PinSource::File(self.pin_file()))
    }

    pub(crate) async fn open(&self) -> Pkcs11Token {
        Pkcs11Token::open(self.settings()).await.unwrap()
    }

    /// One more token in the directory, made by another process.
    pub(crate) fn add_token(&self, label: &str) {
        operator(&["init-token", label]);
    }

    /// Writes the fault shim's control file, whole at once.
    pub(crate) fn fail(&self, faults: &str) {
        let next = self.dir.join("faults.next");
        std::fs::write(&next, faults).unwrap();
        std::fs::rename(next, self.dir.join("faults")).unwrap();
    }

    /// The files of the token's objects.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        let token = std::fs::read_dir(self.tokens()).unwrap().next().unwrap().unwrap().path();
        let files = std::fs::read_dir(token).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|ext| ext == "object")).collect()
    }
}

/// Runs `test` in a process of its own with a token of its own. `name` is the test's own path.
pub(crate) fn alone<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Bench) -> F) {
    if !in_child(name, test) {
        run_alone(name, |_, _| {});
    }
}

/// As [`alone`], with the fault shim in front of the module; [`Bench::fail`] writes its control file.
pub(crate) fn alone_with_shim<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Bench) -> F) {
    if !in_child(name, test) {
        run_alone(name, with_shim);
    }
}

fn with_shim(dir: &Path, child: &mut Command) {
    child.env("KEYLEASH_MODULE", script("fault-shim/build")).env(REAL_MODULE, real_module());
    child.env("KEYLEASH_SHIM_MODULE", real_module()).env("KEYLEASH_SHIM_CONTROL", dir.join("faults"));
}

/// As [`alone`], with p11-kit's client as the module, whose server the test is to start (see `isolation.rs`) with the module
/// that KEYLEASH_TEST_SERVED names: the fault shim, which makes `rsa-oaep-sha256` of what SoftHSM can do.
pub(crate) fn alone_behind_p11_kit<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Bench) -> F) {
    if !in_child(name, test) {
        run_alone(name, |dir, child| {
            with_shim(dir, child);
            child
                .env("KEYLEASH_MODULE", script("need-p11-kit"))
                .env("KEYLEASH_TEST_SERVED", script("fault-shim/build"));
            child.env("P11_KIT_SERVER_ADDRESS", format!("unix:path={}", dir.join("p11").display()));
        });
    }
}

/// Runs a script of the repository's `softhsm` directory, which prints a path.
fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm").join(name);
    let output = Command::new(&path).output().unwrap();
    assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs the test if this is the process that was started for it.
fn in_child<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Bench) -> F) -> bool {
    if std::env::var(ALONE).is_ok_and(|alone| alone == name) {
        let dir = variable("KEYLEASH_TEST_DIR").into();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test(Bench { dir }));
        return true;
    }
    false
}

/// Starts that process and sees that the test passed there.
fn run_alone(name: &str, change: impl FnOnce(&Path, &mut Command)) {
    module();
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let variables = match std::env::var(KIND) {
        Ok(kind) => made_by_script(&kind, dir.path()),
        Err(_) => {
            let (variable, conf) = configure(dir.path(), &tokens);
            let act = format!("init-token\n{LABEL}");
            let mut set_up = me("operator::acts");
            set_up.env(variable, &conf).env("KEYLEASH_TEST_ACT", act).env("KEYLEASH_MODULE", real_module());
            let set_up = set_up.output().unwrap();
            assert!(set_up.status.success(), "{}", String::from_utf8_lossy(&set_up.stderr));
            vec![(variable.to_owned(), conf.display().to_string())]
        }
    };
    let own = variables.iter().find(|(name, _)| name == OWN_PIN).map(|(_, pin)| pin.clone());
    std::fs::write(dir.path().join("pin"), format!("{}\n", own.unwrap_or_else(pin))).unwrap();
    let mut child = me(name);
    child.env(ALONE, name).env("KEYLEASH_TEST_DIR", dir.path()).envs(variables);
    child.env(PIN_VARIABLE, format!("{PIN}\r\n"));
    change(dir.path(), &mut child);
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "alone, {}:\n{said}", output.status);
    // The harness begins its own line with the test's name.
    said.lines().filter_map(|line| Some(&line[line.find(MEASURED)?..])).for_each(|line| println!("{line}"));
}

/// Marks the lines of a test's output that are shown although it passed.
pub(crate) const MEASURED: &str = "measured: ";

/// Has softhsm/token-matrix make a token, and gives the variables that lead to it.
fn made_by_script(kind: &str, dir: &Path) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/token-matrix");
    let mut script = Command::new(path);
    let output = script.args(["--make", kind]).arg(dir).args([LABEL, SO_PIN, PIN]).output().unwrap();
    assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let variables = lines.lines().map(|line| line.split_once('=').expect("NAME=VALUE"));
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Writes the configuration for the module under test: SoftHSM, or kryoptic under softhsm/token-matrix.
fn configure(dir: &Path, tokens: &Path) -> (&'static str, PathBuf) {
    if module().to_string_lossy().contains("kryoptic") {
        let conf = dir.join("kryoptic.conf");
        let database = tokens.join("token.sql");
        let text = format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", database.display());
        std::fs::write(&conf, text).unwrap();
        return ("KRYOPTIC_CONF", conf);
    }
    let conf = dir.join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    std::fs::write(&conf, text).unwrap();
    ("SOFTHSM2_CONF", conf)
}

fn me(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1", "--include-ignored"]);
    command
}

/// Lets another process do something to the token: see `operator.rs`.
pub(crate) fn operator(act: &[&str]) {
    let module = std::env::var_os(REAL_MODULE).map_or_else(module, PathBuf::from);
    let mut operator = me("operator::acts");
    let output = operator.env("KEYLEASH_TEST_ACT", act.join("\n")).env("KEYLEASH_MODULE", module).output().unwrap();
    assert!(output.status.success(), "{act:?}: {}", String::from_utf8_lossy(&output.stdout));
}

/// As [`operator`], but on a file that it holds locked until the guard is dropped.
pub(crate) struct Held(Child);

pub(crate) fn hold_lock(file: &Path) -> Held {
    use std::io::{BufRead, BufReader};
    let mut child = me("operator::acts")
        .env("KEYLEASH_TEST_ACT", format!("hold-lock\n{}", file.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("held")), "the lock is not held");
    Held(child)
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A context of this process's own on the module, for what `Token` does not offer. Initialised by whoever came first.
pub(crate) fn context() -> Pkcs11 {
    let pkcs11 = Pkcs11::new(module()).unwrap();
    let _ = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    pkcs11
}

/// The slot of the bench's token.
pub(crate) fn slot(pkcs11: &Pkcs11) -> Slot {
    let slots = pkcs11.get_slots_with_token().unwrap();
    // What the binding cannot read (opencryptoki's time) is the only token there.
    let is_it = |slot: &&Slot| match pkcs11.get_token_info(**slot) {
        Ok(token) => token.token_initialized() && token.label() == LABEL,
        Err(_) => slots.len() == 1,
    };
    *slots.iter().find(is_it).unwrap()
}

/// A logged-in session on the bench's token.
pub(crate) fn session(pkcs11: &Pkcs11) -> cryptoki::session::Session {
    let session = pkcs11.open_rw_session(slot(pkcs11)).unwrap();
    let _ = session.login(UserType::User, Some(&AuthPin::from(pin())));
    session
}

/// Waits for something that another thread brings about; gives up after a time that is no promise, only patience.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never came: {what}");
}
