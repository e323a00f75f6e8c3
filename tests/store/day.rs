//! The whole command line on a store on a server, with the token of the tests; for the tests that name this file by its path.

use crate::shell::Shell;

pub(crate) fn expect_token() {
    assert!(std::env::var_os("KEYLEASH_MODULE").is_some(), "run it as softhsm/with-token cargo test");
}

/// What is said of one kind of store.
pub(crate) struct Said<'a> {
    /// Where it is, in which nothing is.
    pub(crate) url: &'a str,
    /// By another name, where it has one.
    pub(crate) alias: Option<String>,
    /// Another place, in which nothing is.
    pub(crate) elsewhere: String,
    pub(crate) nothing_there: &'a str,
    pub(crate) shred: &'a str,
    pub(crate) snapshot: &'a str,
}

/// It does there what it does on a file.
pub(crate) fn day(shell: &Shell, said: &Said) {
    expect_token();
    let Said { url, alias, elsewhere, nothing_there, shred, snapshot } = said;
    let name = url.rsplit('/').next().unwrap().to_owned();
    shell.refused("keyleash kek list", 6, &["not found", nothing_there, "keyleash kek create NAME"]);
    let made = shell.run(&format!("keyleash kek create k{name}"));
    assert!(made.contains(&format!("store {url}: made, for there was none")) && made.contains("CKA_ID"), "{made}");
    shell.run(&format!("keyleash account create alice --kek k{name}"));
    shell.run("echo attack at dawn > plan && keyleash seal --account alice plan -o plan.sealed");
    assert_eq!(shell.prints("keyleash open plan.sealed -o -"), "attack at dawn\n");
    // Two commands at once on one store.
    assert_eq!(
        shell.prints("keyleash seal --account alice plan.sealed -o - | keyleash open - -o - | keyleash open - -o -"),
        "attack at dawn\n"
    );
    shell.run("keyleash account rotate alice");
    shell.run(&format!("keyleash kek rotate k{name} && keyleash kek rewrap k{name}"));
    assert_eq!(shell.prints("keyleash open plan.sealed -o -"), "attack at dawn\n");
    shell.run(&format!("keyleash kek retire k{name}/1 --yes"));
    assert!(shell.run("keyleash account list").contains("alice"));
    let status = shell.run("keyleash status");
    assert!(status.contains(&name), "{status}");
    shell.run("printf hunter2 | keyleash secret set db/password --account alice");
    let check = shell.run("keyleash store check");
    assert!(check.contains("all of it is whole") && check.contains("a read takes"), "{check}");
    let json = shell.prints("keyleash store check --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["write_ms"].as_f64().is_some_and(|ms| ms > 0.0) && json["store"] == *url, "{json}");

    // What is for a file alone says so.
    shell.refused("keyleash store shred", 2, &["is for a store in a file", shred]);
    shell.refused("keyleash store snapshot copy.redb", 2, &["is for a store in a file", snapshot]);
    shell.refused("keyleash store restore copy.redb --yes", 2, &["is for a store in a file", "keyleash store copy"]);

    // To a file and back to another place; what is there is no place for a copy.
    let copied = shell.run(&format!("keyleash store copy {url} here.redb"));
    assert!(copied.contains("copied from") && copied.contains("all of it is whole"), "{copied}");
    assert!(shell.run(&format!("keyleash store copy {url} here.redb")).contains("nothing was copied from"));
    if let Some(alias) = alias {
        let copied = shell.run(&format!("keyleash store copy {alias} {url}"));
        assert!(copied.contains("both name one store") && !copied.contains("any more"), "{copied}");
    }
    assert_eq!(shell.prints("KEYLEASH_STORE=here.redb keyleash open plan.sealed -o -"), "attack at dawn\n");
    shell.run(&format!("keyleash store copy redb:here.redb {elsewhere}"));
    assert_eq!(shell.prints(&format!("KEYLEASH_STORE={elsewhere} keyleash open plan.sealed -o -")), "attack at dawn\n");
    shell.run("KEYLEASH_STORE=other.redb keyleash quickstart /etc/hostname >/dev/null");
    shell.refused(&format!("keyleash store copy other.redb {elsewhere}"), 7, &["a store of its own"]);
    shell.refused(&format!("keyleash store copy {url} {url}"), 2, &["no copy of itself"]);
}
