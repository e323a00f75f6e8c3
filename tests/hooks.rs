//! Rotation of secrets by hooks, which are real processes.

// Helpers of a test may fail it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use keyleash::{
    Corrupt, Engine, Error,
    clock::{Clock, unix_now},
    name::{AccountId, KekName, SecretId, SecretName},
    secrets::{RotationPolicy, SecretValue, SecretsReport, SetOptions},
    store::{
        Key, KeyStore,
        memory::MemoryStore,
        record::{Rotation, SECRET_VERSIONS_MAX, SecretRecord, SecretVersion},
    },
    telemetry::{Event, Events},
    token::{Profile, scripted::ScriptedToken},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

const SECOND: Duration = Duration::from_secs(1);

struct Rig {
    engine: Engine,
    /// Of another process, as it were.
    other: Engine,
    store: Arc<MemoryStore>,
    directory: TempDir,
    id: SecretId,
}

impl Rig {
    async fn new() -> Self {
        let (token, _) = ScriptedToken::new(Clock::default(), 5 * SECOND, 1);
        let store = Arc::new(MemoryStore::new());
        let build = || Engine::builder(token.clone(), store.clone()).build().unwrap();
        let (engine, other) = (build(), build());
        let (kek, account) = (KekName::new("k").unwrap(), AccountId::new("a").unwrap());
        engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
        engine.create_account(&account, &kek).await.unwrap();
        let id = SecretId::new(account, SecretName::new("db/key").unwrap());
        let options = SetOptions::default().content_type("text/plain").tag("owner", "ops");
        engine.secrets().set(&id, SecretValue::new(b"first".to_vec()).unwrap(), options).await.unwrap();
        Self { engine, other, store, directory: tempfile::tempdir().unwrap(), id }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A hook of these lines of shell, which knows its directory as `$d`.
    async fn hook(&self, lines: &str, timeout: Duration) -> PathBuf {
        let path = self.path("hook");
        write_program(&path, &format!("#!/bin/sh\nd={}\n{lines}\n", self.directory.path().display()));
        self.policy(&path, timeout).await;
        path
    }

    async fn policy(&self, hook: &Path, timeout: Duration) {
        let policy = RotationPolicy::new(SECOND, hook).overlap(3600 * SECOND).timeout(timeout);
        self.engine.secrets().set_rotation(&self.id, Some(policy)).await.unwrap();
    }

    async fn get(&self, version: Option<u32>) -> (u32, String) {
        let opened = self.engine.secrets().get(&self.id, version).await.unwrap();
        (opened.version.version, String::from_utf8(opened.value.as_bytes().to_vec()).unwrap())
    }

    async fn show(&self) -> SecretRecord {
        self.engine.secrets().show(&self.id).await.unwrap()
    }

    async fn rotation(&self) -> Rotation {
        self.show().await.rotation.unwrap()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.path(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Does what is due, once something is.
    async fn run_due(&self) -> SecretsReport {
        loop {
            let report = self.engine.secrets().run_schedule().await.unwrap();
            if report != SecretsReport::default() {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Renamed into its place: a file that some fork of another test has open for writing cannot be executed.
fn write_program(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let status = std::process::Command::new("/bin/sh")
        .args(["-c", r#"printf %s "$1" > "$2"; chmod 700 "$2"; mv "$2" "$3""#, "sh", text])
        .args([&new, path])
        .status()
        .unwrap();
    assert!(status.success());
}

/// What was told of secrets.
fn told(events: &mut Events) -> Vec<Event> {
    let all = std::iter::from_fn(|| events.try_next());
    all.filter(|event| matches!(event, Event::SecretRotated { .. } | Event::ScheduleFailed { .. })).collect()
}

#[tokio::test]
async fn what_a_hook_prints_is_the_next_version_and_the_one_before_stays_valid_for_the_overlap() {
    let rig = Rig::new().await;
    let hook = r#"read value; printf %s "$value $SECRET_ACCOUNT $SECRET_NAME $SECRET_VERSION $SECRET_NEXT_VERSION""#;
    rig.hook(hook, 60 * SECOND).await;
    let mut events = rig.engine.events();
    assert_eq!(rig.rotation().await.due_unix, rig.show().await.versions[0].created_unix + 1);
    let report = rig.run_due().await;
    assert_eq!((report.rotated, report.failures, report.busy), (vec![(rig.id.clone(), 2)], vec![], 0));
    assert_eq!(rig.get(None).await, (2, "first a db/key 1 2".into()));
    assert_eq!(rig.get(Some(1)).await.1, "first");
    let shown = rig.show().await;
    let expires = shown.version(1).unwrap().expires_unix.unwrap();
    assert!(expires > unix_now() && expires <= unix_now() + 3600, "{expires}");
    let (one, two) = (shown.version(1).unwrap(), shown.version(2).unwrap());
    assert_eq!((&two.content_type, &two.tags, two.expires_unix), (&one.content_type, &one.tags, None));
    let rotation = shown.rotation.as_ref().unwrap();
    assert_eq!((rotation.making, rotation.failures, rotation.due_unix), (None, 0, two.created_unix + 1));
    assert_eq!(told(&mut events), [Event::SecretRotated { secret: rig.id.clone(), version: 2 }]);
    assert_eq!(rig.engine.secrets().rotate(&rig.id).await, Ok(3), "by hand, due or not");
    rig.engine.secrets().set_rotation(&rig.id, None).await.unwrap();
    let none = rig.engine.secrets().rotate(&rig.id).await;
    assert!(matches!(&none, Err(Error::Invalid(why)) if why.contains("secret policy db/key --account a")), "{none:?}");
}

#[tokio::test]
async fn a_hook_is_told_nothing_that_its_process_was_given() {
    let rig = Rig::new().await;
    rig.hook("env; pwd", 60 * SECOND).await;
    rig.engine.secrets().rotate(&rig.id).await.unwrap();
    let (_, printed) = rig.get(None).await;
    let names: Vec<_> = printed.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    let known = ["PATH", "SECRET_ACCOUNT", "SECRET_NAME", "SECRET_VERSION", "SECRET_NEXT_VERSION"];
    assert!(known.iter().all(|name| names.contains(name)), "{names:?}");
    let of_the_shell = ["PWD", "OLDPWD", "SHLVL", "_"];
    assert!(names.iter().all(|name| known.contains(name) || of_the_shell.contains(name)), "{names:?}");
    assert_eq!(printed.lines().last(), Some("/"));
}

#[tokio::test]
async fn a_hook_that_fails_in_any_way_changes_nothing_is_told_and_is_run_later_for_the_same_version() {
    let rig = Rig::new().await;
    let secrets = rig.engine.secrets();
    let failures = [
        ("sleep 1000", "did not end in 1 s, and was killed"),
        ("sleep 1000 & sleep 1000 & wait", "did not end in 1 s, and was killed"),
        ("trap '' TERM INT HUP; while :; do sleep 1; done", "did not end in 1 s"),
        ("", "printed nothing"),
        ("head -c 1048576 /dev/zero", "printed more than 65536 bytes"),
        ("yes", "printed more than 65536 bytes"),
        ("printf half; kill -9 $$", "was killed by signal 9"),
        ("printf all; exit 3", "ended with status 3"),
        ("exec /no/such/program", "ended with status 127"),
    ];
    for (number, (lines, words)) in failures.into_iter().enumerate() {
        rig.hook(&format!("echo $SECRET_NEXT_VERSION >> $d/versions; {lines}"), SECOND).await;
        let mut events = rig.engine.events();
        let report = rig.run_due().await;
        let [(id, Error::Invalid(why))] = report.failures.as_slice() else { panic!("{lines}: {report:?}") };
        assert!(*id == rig.id && why.contains(words) && why.contains("nothing was changed"), "{lines}: {why}");
        let told = told(&mut events);
        assert!(
            matches!(&told[..], [Event::ScheduleFailed { subject, error }] if *subject == format!("secret {id}") && error.contains(words)),
            "{told:?}"
        );
        assert_eq!(rig.get(None).await, (1, "first".into()), "{lines}");
        let shown = rig.show().await;
        assert_eq!((shown.versions.len(), shown.versions[0].expires_unix), (1, None));
        let rotation = shown.rotation.unwrap();
        let making = rotation.making.unwrap();
        assert_eq!((making.version, making.until_unix, rotation.failures), (2, 0, 1), "{lines}");
        assert_eq!(rig.lines("versions"), vec!["2"; number + 1]);
        let report = secrets.run_schedule().await.unwrap();
        assert_eq!((report.failures.len(), report.rotated.len()), (0, 0), "not again at once");
    }
    let plain = rig.path("plain");
    fs::write(&plain, "#!/bin/sh\nprintf x\n").unwrap();
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o600)).unwrap();
    for (hook, words) in [
        (plain.as_path(), "is no program that may be executed"),
        (rig.directory.path(), "is no program that may be executed"),
        (Path::new("/no/such/hook"), "No such file"),
    ] {
        rig.policy(hook, SECOND).await;
        let failed = secrets.rotate(&rig.id).await;
        assert!(matches!(&failed, Err(Error::Invalid(why)) if why.contains(words)), "{failed:?}");
        assert_eq!(rig.get(None).await, (1, "first".into()));
    }
    rig.hook("printf better", 60 * SECOND).await;
    assert_eq!(secrets.rotate(&rig.id).await, Ok(2));
    assert_eq!(rig.get(None).await, (2, "better".into()));
}

#[tokio::test]
async fn a_hook_whose_time_is_up_is_killed_with_all_that_it_started() {
    let rig = Rig::new().await;
    rig.hook("sh -c 'echo $$ > $0/child; sleep 1000' $d & echo $$ > $d/hook_pid; wait", 2 * SECOND).await;
    let failed = rig.engine.secrets().rotate(&rig.id).await;
    assert!(matches!(&failed, Err(Error::Invalid(why)) if why.contains("did not end")), "{failed:?}");
    let pids: Vec<_> = ["child", "hook_pid"].iter().flat_map(|name| rig.lines(name)).collect();
    assert!(!pids.is_empty());
    for pid in pids {
        let is_dead = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|state| state.is_empty() || state.starts_with('Z'))
        };
        for _ in 0..600 {
            if is_dead() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(is_dead(), "{pid} lives on");
    }
}

#[tokio::test]
async fn a_hook_that_went_over_to_another_group_is_killed_all_the_same() {
    let rig = Rig::new().await;
    // Into the group of this process, which nobody kills.
    rig.hook("echo $$ > $d/pid; exec perl -e 'setpgrp(0, getpgrp(getppid)) or die; sleep 1000'", SECOND).await;
    let rotated = tokio::time::timeout(300 * SECOND, rig.engine.secrets().rotate(&rig.id)).await;
    for pid in rig.lines("pid") {
        let _ = std::process::Command::new("kill").args(["-9", &pid]).status(); // so that this process can end
    }
    let failed = rotated.expect("whoever runs it waits for its time alone");
    assert!(matches!(&failed, Err(Error::Invalid(why)) if why.contains("did not end in 1 s")), "{failed:?}");
}

#[tokio::test]
async fn no_hook_is_begun_whose_version_would_find_no_room() {
    let rig = Rig::new().await;
    rig.hook("echo run >> $d/runs; printf new", 60 * SECOND).await;
    let key = Key::Secret(rig.id.clone());
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut head = SecretRecord::decode(&key, &found.value).unwrap();
    let version = head.versions[0].clone();
    let more = 2..=SECRET_VERSIONS_MAX as u32;
    head.versions.extend(more.map(|number| SecretVersion { version: number, enabled: false, ..version.clone() }));
    rig.store.replace(&key, &found.version, head.put().unwrap()).await.unwrap();
    let full = rig.engine.secrets().rotate(&rig.id).await;
    assert!(matches!(&full, Err(Error::Exhausted(why)) if why.contains("set it under a new name")), "{full:?}");
    assert!(!rig.path("runs").exists());
}

#[tokio::test]
async fn what_a_hook_neither_reads_nor_is_short_goes_through_whole() {
    let rig = Rig::new().await;
    let long = vec![b'v'; 65_536];
    rig.engine.secrets().set(&rig.id, SecretValue::new(long.clone()).unwrap(), SetOptions::default()).await.unwrap();
    rig.hook("cat", 60 * SECOND).await;
    let version = rig.engine.secrets().rotate(&rig.id).await.unwrap();
    assert_eq!(rig.get(Some(version)).await.1.as_bytes(), long, "there and back");
    rig.hook("exec <&-; printf unread", 60 * SECOND).await;
    rig.engine.secrets().rotate(&rig.id).await.unwrap();
    assert_eq!(rig.get(None).await.1, "unread");
    rig.hook("printf left; sleep 1000 &", 60 * SECOND).await;
    rig.engine.secrets().rotate(&rig.id).await.unwrap();
    assert_eq!(rig.get(None).await.1, "left", "what it leaves behind is waited for by nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_processes_one_runs_a_hook_and_a_secret_is_not_set_from_under_it() {
    let rig = Rig::new().await;
    // Two at once would meet in the folder.
    rig.hook("mkdir $d/alone || exit 9; echo run >> $d/runs; while [ ! -e $d/go ]; do sleep 0.05; done; rmdir $d/alone; printf new", 300 * SECOND)
        .await;
    let engines = [rig.engine.clone(), rig.other.clone(), rig.engine.clone(), rig.other.clone()];
    let begun = rig.path("runs");
    let runs = engines.map(|engine| {
        let begun = begun.clone();
        tokio::spawn(async move {
            loop {
                let report = engine.secrets().run_schedule().await.unwrap();
                if report != SecretsReport::default() || begun.exists() {
                    return report;
                }
                tokio::time::sleep(Duration::from_millis(50)).await; // not due yet
            }
        })
    });
    while rig.lines("runs").is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for engine in [&rig.engine, &rig.other] {
        let secrets = engine.secrets();
        let set = secrets.set(&rig.id, SecretValue::new(b"by hand".to_vec()).unwrap(), SetOptions::default()).await;
        for refused in
            [set.map(drop), secrets.rotate(&rig.id).await.map(drop), secrets.set_rotation(&rig.id, None).await]
        {
            assert!(matches!(&refused, Err(Error::Conflict(why)) if why.contains("its hook runs")), "{refused:?}");
        }
    }
    fs::write(rig.path("go"), "").unwrap();
    let (mut rotated, mut failed) = (Vec::new(), Vec::new());
    for run in runs {
        let report = run.await.unwrap();
        rotated.extend(report.rotated);
        failed.extend(report.failures);
    }
    // One that looked late may have found it due once more.
    assert_eq!(failed, []);
    let versions: Vec<_> = rotated.iter().map(|(_, version)| *version).collect();
    let mut known: Vec<_> = rig.show().await.versions.iter().map(|version| version.version).collect();
    assert_eq!(known.remove(0), 1);
    assert_eq!(known, versions, "each made once, and told once");
    assert_eq!(rig.lines("runs").len(), versions.len());
}

#[tokio::test]
async fn a_secret_set_by_hand_takes_the_number_of_a_version_whose_hook_failed() {
    let rig = Rig::new().await;
    rig.hook("exit 1", 60 * SECOND).await;
    assert!(rig.engine.secrets().rotate(&rig.id).await.is_err());
    let by_hand = SecretValue::new(b"by hand".to_vec()).unwrap();
    assert_eq!(rig.engine.secrets().set(&rig.id, by_hand, SetOptions::default()).await, Ok(2));
    let rotation = rig.rotation().await;
    assert_eq!((rotation.making, rotation.failures), (None, 0));
    rig.hook("printf $SECRET_NEXT_VERSION", 60 * SECOND).await;
    assert_eq!(rig.engine.secrets().rotate(&rig.id).await, Ok(3));
    assert_eq!(rig.get(None).await, (3, "3".into()));
}

#[tokio::test]
async fn who_writes_to_the_store_and_has_no_key_can_name_no_program() {
    let rig = Rig::new().await;
    rig.hook("printf hook", 60 * SECOND).await;
    let evil = rig.path("evil");
    write_program(&evil, &format!("#!/bin/sh\ntouch {}\nprintf evil\n", rig.path("was_run").display()));
    let key = Key::Secret(rig.id.clone());
    let change = async |change: &dyn Fn(&mut Rotation)| {
        let found = rig.store.get(&key).await.unwrap().unwrap();
        let mut head = SecretRecord::decode(&key, &found.value).unwrap();
        change(head.rotation.as_mut().unwrap());
        rig.store.replace(&key, &found.version, head.put().unwrap()).await.unwrap();
    };
    let whole = rig.rotation().await;
    for forge in [
        &(|rotation: &mut Rotation| rotation.hook = evil.to_str().unwrap().into()) as &dyn Fn(&mut Rotation),
        &|rotation| rotation.timeout_secs += 1,
        &|rotation| rotation.proof[40] ^= 1,
        &|rotation| rotation.proof.clear(),
    ] {
        change(forge).await;
        let refused = rig.engine.secrets().rotate(&rig.id).await;
        assert!(
            matches!(&refused, Err(Error::Corrupt(Corrupt::Record { record, .. })) if record == "rotation of secret db/key of account a"),
            "{refused:?}"
        );
        change(&|rotation| *rotation = whole.clone()).await;
    }
    assert!(!rig.path("was_run").exists());
    assert_eq!(rig.engine.secrets().rotate(&rig.id).await, Ok(2));
    // And it moves with the account's AEK.
    let account = &rig.id.account;
    rig.engine.rotate_account(account).await.unwrap();
    let refused = rig.engine.retire_aeks(account, &[1], keyleash::When::Now).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    rig.engine.secrets().reseal(account).await.unwrap();
    rig.engine.retire_aeks(account, &[1], keyleash::When::Now).await.unwrap();
    assert_eq!(rig.engine.secrets().rotate(&rig.id).await, Ok(3));
}

#[tokio::test]
async fn policies_out_of_bounds_are_refused() {
    let rig = Rig::new().await;
    let policy = || RotationPolicy::new(60 * SECOND, "/bin/true");
    for (policy, words) in [
        (RotationPolicy::new(Duration::ZERO, "/bin/true"), "from one version to the next is 1s to"),
        (RotationPolicy::new(Duration::from_millis(1500), "/bin/true"), "whole seconds"),
        (policy().timeout(3601 * SECOND), "the hook's time is 1s to 1h"),
        (policy().overlap(Duration::MAX), "the overlap is"),
        (RotationPolicy::new(SECOND, "true"), "absolute"),
        (RotationPolicy::new(SECOND, "/bin/\ntrue"), "control character"),
        (RotationPolicy::new(SECOND, "/".repeat(1025)), "at most 1024 bytes"),
    ] {
        let refused = rig.engine.secrets().set_rotation(&rig.id, Some(policy)).await;
        assert!(matches!(&refused, Err(Error::Invalid(why)) if why.contains(words)), "{words}: {refused:?}");
    }
}

#[tokio::test]
async fn a_two_key_swap_keeps_one_key_valid_at_every_instant() {
    let rig = Rig::new().await;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/two_key_swap/hook");
    let text = fs::read_to_string(example).unwrap();
    assert!(text.lines().filter(|line| !line.starts_with('#')).count() <= 10, "of ten lines");
    let hook = rig.path("swap");
    write_program(&hook, &text);
    fs::create_dir(rig.path("service")).unwrap();
    let key = |name: &str| fs::read_to_string(rig.path("service").join(name)).unwrap();
    for name in ["key1", "key2"] {
        fs::write(rig.path("service").join(name), format!("{name} at first")).unwrap();
    }
    let (secrets, first) = (rig.engine.secrets(), SecretValue::new(key("key1").into_bytes()).unwrap());
    secrets.set(&rig.id, first, SetOptions::default()).await.unwrap();
    rig.policy(&hook, 60 * SECOND).await;
    let before = [key("key1"), key("key2")];
    let second = secrets.rotate(&rig.id).await.unwrap();
    assert_eq!(rig.get(None).await.1, key("key2"));
    assert!(key("key1") == before[0] && key("key2") != before[1]);
    assert_eq!(rig.get(Some(second - 1)).await.1, key("key1"), "who has the one before goes on");
    secrets.rotate(&rig.id).await.unwrap();
    assert_eq!(rig.get(None).await.1, key("key1"));
    assert_eq!(rig.get(Some(second)).await.1, key("key2"));
}
