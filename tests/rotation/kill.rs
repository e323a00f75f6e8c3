//! The real binary, killed with SIGKILL at random instants of a re-wrap, a rotation, the making of an account.

use crate::{ground::KILLS, shop::Shop};
use keyleash::{clock::Clock, secret::fill_random};
use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

const ACCOUNTS: u32 = 12;
/// A kill comes within so many percent of the time that the command takes when nobody kills it.
const SPREAD_PERCENT: u64 = 110;
/// Set where the test has a token of its own.
pub(crate) const ALONE: &str = "ROTATION_TEST_ALONE";

pub(crate) fn random(below: u64) -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes).unwrap();
    u64::from_le_bytes(bytes) % below.max(1)
}

/// SoftHSM rewrites the token's own file in place at every login: a kill just then takes the token away, as it takes no HSM.
/// It is put back then; nothing that the test does changes what is in it.
pub(crate) struct TokenFile {
    path: PathBuf,
    bytes: Vec<u8>,
    mended: u32,
}

impl TokenFile {
    pub(crate) fn find() -> Self {
        let conf = PathBuf::from(std::env::var_os("SOFTHSM2_CONF").unwrap());
        let tokens = conf.parent().unwrap().join("tokens");
        let token = fs::read_dir(tokens).unwrap().next().unwrap().unwrap().path();
        let path = token.join("token.object");
        let bytes = fs::read(&path).unwrap();
        Self { path, bytes, mended: 0 }
    }

    pub(crate) fn mend(&mut self) {
        if fs::read(&self.path).unwrap().len() < self.bytes.len() {
            fs::write(&self.path, &self.bytes).unwrap();
            self.mended += 1;
        }
    }
}

/// Kills a command at a random instant of the time that it `takes`. True when it was still running.
pub(crate) fn kill(shop: &Shop, token: &mut TokenFile, arguments: &[&str], takes: Duration) -> bool {
    let mut process = shop.command(arguments).spawn().unwrap();
    let within = takes.as_micros() as u64 * SPREAD_PERCENT / 100;
    std::thread::sleep(Duration::from_micros(random(within)));
    process.kill().unwrap();
    let output = process.wait_with_output().unwrap();
    token.mend();
    let killed = output.status.code().is_none();
    assert!(killed || output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    killed
}

/// On a token of its own, because it kills processes that are in the module.
#[test]
fn a_kill_at_any_instant_loses_and_doubles_nothing_and_the_next_command_goes_on_from_there() {
    if std::env::var_os(ALONE).is_some() {
        return kill_again_and_again();
    }
    alone("kill::a_kill_at_any_instant_loses_and_doubles_nothing_and_the_next_command_goes_on_from_there");
}

/// Runs a test in a process of its own, over a token of its own.
pub(crate) fn alone(name: &str) {
    let status = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/with-token"))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

fn kill_again_and_again() {
    let wanted = std::env::var("ROTATION_TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let shop = Shop::new("kill");
    let mut files = BTreeMap::new();
    for number in 0..ACCOUNTS {
        let account = format!("a{number:03}");
        shop.run(&["account", "create", &account, "--kek", &shop.kek]);
        shop.seal(&account, 0);
        files.insert(account, 1);
    }
    let mut token = TokenFile::find();
    let rewrap = ["kek", "rewrap", shop.kek.as_str(), "--rate", "1000000"];
    let rotate = ["kek", "rotate", shop.kek.as_str()];
    shop.run(&rotate);
    let begun = Clock::default().now();
    shop.run(&rewrap);
    let takes = Clock::default().now().since(begun);
    let (mut kills, mut made) = (0, ACCOUNTS);
    for round in 0.. {
        if kills >= wanted {
            break;
        }
        // Something to move in each third re-wrap; the others go on from where the one before was killed.
        if round % 3 == 0 {
            shop.run(&rotate);
        }
        kills += u32::from(kill(&shop, &mut token, &rewrap, takes));
        let account = format!("a{:03}", random(u64::from(made)));
        match round % 4 {
            0 => kills += u32::from(kill(&shop, &mut token, &rotate, takes)),
            1 => kills += u32::from(kill(&shop, &mut token, &["account", "rotate", &account], takes)),
            2 => {
                let account = format!("a{made:03}");
                let create = ["account", "create", account.as_str(), "--kek", shop.kek.as_str()];
                kills += u32::from(kill(&shop, &mut token, &create, takes));
                let again = shop.output(&create);
                assert!(matches!(again.status.code(), Some(0 | 7)), "{}", String::from_utf8_lossy(&again.stderr));
                shop.seal(&account, 0);
                files.insert(account, 1);
                made += 1;
            }
            _ => {
                shop.run(&["account", "rotate", &account]);
                let count = files.get_mut(&account).unwrap();
                shop.seal(&account, *count);
                *count += 1;
            }
        }
    }
    shop.run(&rotate);
    shop.run(&rewrap);
    let current = shop.current_kek();
    let all: Vec<_> = files.keys().cloned().collect();
    assert_eq!(shop.accounts(None), all);
    assert_eq!(shop.accounts(Some(current)), all, "each of them once, and under the current version");
    for version in 1..current {
        shop.run(&["kek", "retire", "--yes", &format!("{}/{version}", shop.kek)]);
    }
    for (account, count) in &files {
        (0..*count).for_each(|number| shop.assert_opens(account, number));
        shop.seal(account, *count);
        shop.assert_opens(account, *count);
    }
    // A rotation that was killed left its key in the token; the next one took it.
    let unknown = shop.json(&["kek", "list"])["unknown"].to_string();
    assert!(!unknown.contains(&shop.kek), "{unknown}");
    let mended = token.mended;
    println!("{kills} kills, {made} accounts, {current} KEK versions; SoftHSM's own file put back {mended} times");
}
