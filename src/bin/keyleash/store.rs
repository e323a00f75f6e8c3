//! `store check`, `shred`, `snapshot`, `restore`.

use crate::{
    args::Store as Command,
    consent::Consent,
    exit::Failure,
    open_store::open_store,
    out_file::sync_directory_of,
    output::{Output, count, hex},
    setup::{Setup, Store},
    shared_store::{PAUSE, SharedStore, WAIT, with_holders},
    streams::is_same_file,
};
use keyleash::{
    Error,
    access::Operation,
    clock::{Clock, unix_now},
    config::StoreConfig,
    secret::fill_random,
    store::{
        KeyStore, Probe,
        check::{Check, check},
        copy::copy,
        redb::RedbStore,
    },
    telemetry::trail::{Deed, Subject},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub(crate) async fn run(command: Command, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Command::Shred => {
            let instead = Instead {
                etcd: "etcd keeps what was replaced in its history: `etcdctl compact` and `etcdctl defrag` end it",
                postgres: "PostgreSQL keeps what was replaced until its tables are vacuumed, and in its write-ahead log",
                bucket: "a bucket keeps what was replaced where it has versions or is replicated: delete these, and old versions by a lifecycle rule",
            };
            expect_file(setup, "shred", &instead)?;
            let store = setup.store(Store::Existing).await?;
            // Whoever is to read a policy that is damaged looks at it, and destroys nothing.
            setup.permit(&store, Operation::Purge, None, None).await?;
            let shred = async { Ok(store.shred(Vec::new()).await?) };
            setup.acting(&store, Deed::StoreShred, Subject::default(), shred).await?;
            let path = setup.place();
            let line = format!("store {path}: what was deleted or replaced is written over\n");
            output.result(&json!({ "store": path.to_string(), "shredded": true }), &line)
        }
        Command::Check => {
            // Opening it verifies every page of the file; asks no token.
            let store = setup.store(Store::Read).await?;
            setup.expect_over_all(store.clone(), Operation::Get).await?;
            let found = check(&*store).await?;
            let probe = store.probe().await;
            if let Ok(Some(probe)) = &probe {
                let [read, write] = [probe.read, probe.write].map(millis);
                output.note(&format!("keyleash: store {}: a read takes {read} ms, a write {write} ms", setup.place()));
                probe.lacks.iter().for_each(|lack| output.warn(lack));
            }
            let tried = probe.as_ref().ok().and_then(Option::as_ref);
            report(&format!("store {}", setup.place()), &setup.place().to_string(), &found, tried, output)?;
            // A server that takes no write is no reason not to hear what is in it.
            Ok(probe.map(drop)?)
        }
        Command::Snapshot { file } => {
            let instead = Instead {
                etcd: "`etcdctl snapshot save` copies all of etcd, and `keyleash store copy` this store",
                postgres: "`pg_dump --schema` copies its schema, and `keyleash store copy` this store",
                bucket: "`keyleash store copy` copies this store",
            };
            let path = expect_file(setup, "snapshot", &instead)?;
            let opened = SharedStore::open_to_read(path.to_owned()).await;
            let store = Arc::new(opened.map_err(its_own_to_copy)?);
            setup.expect_over_all(store.clone(), Operation::Get).await?;
            store.snapshot(file.clone()).await?;
            // A copy that nobody looked at is none.
            let found = check(&RedbStore::open(&file).await?).await?;
            report(&format!("snapshot {}", file.display()), &file.display().to_string(), &found, None, output)
        }
        Command::Copy { from, to } => copy_store(&from, &to, setup, output).await,
        Command::Restore { file, consent } => restore(&file, consent, setup, output).await,
    }
}

async fn copy_store(from: &Path, to: &Path, setup: &Setup, output: Output) -> Result<(), Failure> {
    let (from, to) = (setup.store_at(from)?, setup.store_at(to)?);
    if from == to || is_one_file(&from, &to) {
        return Err(Failure::Usage(format!("{from}: it is no copy of itself: name another place for it")));
    }
    let (source, _) = open_store(&from, Store::Read).await?;
    setup.expect_over_all(source.clone(), Operation::Get).await?;
    let (target, _) = open_store(&to, Store::Create).await?;
    let copied = copy(source, target.clone()).await?;
    let found = check(&*target).await?;
    let already = count(copied.already, "record");
    output.note(&match (copied.written, copied.already) {
        // Who deleted FROM now might have nothing left.
        (0, 1..) => format!(
            "keyleash: nothing was copied from {from}: {already} are in {to} already, by an earlier copy, or because both name one store"
        ),
        (written, there) => {
            let already = if there > 0 { format!(", {already} there already") } else { String::new() };
            format!("keyleash: {} copied from {from}{already}; let nobody use that one any more", count(written, "record"))
        }
    });
    report(&format!("store {to}"), &to.to_string(), &found, None, output)
}

fn is_one_file(one: &StoreConfig, other: &StoreConfig) -> bool {
    let there = |store: &StoreConfig| fs::metadata(store.path()?).ok();
    there(one).zip(there(other)).is_some_and(|(one, other)| is_same_file(&one, &other))
}

/// What is done with a store that is in no file.
struct Instead {
    etcd: &'static str,
    postgres: &'static str,
    bucket: &'static str,
}

/// The store's file. What is done with it alone has another way elsewhere, which is said.
fn expect_file<'a>(setup: &'a Setup, command: &str, instead: &Instead) -> Result<&'a Path, Failure> {
    let place = setup.place();
    place.path().ok_or_else(|| {
        let instead = match place {
            StoreConfig::Postgres(_) => instead.postgres,
            StoreConfig::Bucket(_) => instead.bucket,
            _ => instead.etcd,
        };
        Error::Invalid(format!("store {place}: `store {command}` is for a store in a file; {instead}")).into()
    })
}

/// What has the store open for good is a service: it can copy what nobody else can.
fn its_own_to_copy(error: Error) -> Error {
    match error {
        Error::Store(what) => Error::Store(format!(
            "{what}; a service copies the store that it has open by itself (RedbStore::snapshot), and a plain copy of the file beside it \
             is none"
        )),
        error => error,
    }
}

/// To a tenth.
fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 1e4).round() / 10.0
}

fn report(name: &str, place: &str, found: &Check, probe: Option<&Probe>, output: Output) -> Result<(), Failure> {
    for error in &found.findings {
        output.note(&format!("keyleash: {error}"));
    }
    let whole = if found.found == 0 { "all of it is whole" } else { "NOT all of it is whole" };
    let mut result = report_json(place, found);
    if let (Some(fields), Some(probe)) = (result.as_object_mut(), probe) {
        fields.insert("read_ms".into(), millis(probe.read).into());
        fields.insert("write_ms".into(), millis(probe.write).into());
        fields.insert("lacks".into(), probe.lacks.clone().into());
    }
    output.result(&result, &format!("{name}: {}; {whole}\n", contents(found)))?;
    match found.findings.first() {
        None => Ok(()),
        first => Err(Failure::partial(
            format!("{} found in it: see what was said of each", count(found.found, "fault")),
            first,
        )),
    }
}

fn report_json(place: &str, found: &Check) -> Value {
    let findings: Vec<_> = found.findings.iter().map(ToString::to_string).collect();
    json!({
        "store": place, "accounts": found.accounts, "keks": found.keks, "denials": found.denials,
        "secrets": found.secrets, "found": found.found, "findings": findings,
    })
}

fn contents(found: &Check) -> String {
    let [accounts, keks, denials] = [(found.accounts, "account"), (found.keks, "KEK"), (found.denials, "denial")]
        .map(|(number, noun)| count(number, noun));
    let secrets = if found.secrets > 0 { format!(", {}", count(found.secrets, "secret")) } else { String::new() };
    format!("{accounts}, {keks}, {denials}{secrets}")
}

/// Puts a verified copy of the snapshot in the store's place. What was there stays beside it, whatever it was.
async fn restore(file: &Path, consent: Consent, setup: &Setup, output: Output) -> Result<(), Failure> {
    let copy = "`keyleash store copy` brings one into an empty namespace or schema";
    let path = expect_file(setup, "restore", &Instead { etcd: copy, postgres: copy, bucket: copy })?;
    let place = &named_place(path)?;
    let staged = Staged::copy(file, place)?;
    let copy = RedbStore::open(&staged.0).await?;
    let found = check(&copy).await?;
    if let Some(first) = found.findings.first() {
        return Err(Failure::partial(format!("{} is not whole: {first}", file.display()), Some(first)));
    }
    copy.diverge().await?;
    // The trail goes on with what the copy knows of it. Without one it is closed until it is in its place.
    let copy: Option<Arc<dyn KeyStore>> = setup.audit().map(|_| Arc::new(copy) as _);
    // Until the new one is in its place. Another command may be at it for a moment.
    let clock = Clock::default();
    let give_up = clock.now().plus(WAIT);
    let (held, was) = loop {
        match hold(place).await {
            Err(Error::Store(_)) if clock.now() < give_up => tokio::time::sleep(PAUSE).await,
            outcome => break outcome.map_err(|error| with_holders(error, place))?,
        }
    };
    let aside = was.as_ref().map(|_| free_place(place));
    let what = match (&was, &aside) {
        (Some(was), Some(aside)) => format!(
            "store {} ({was}) would be replaced by {} ({}); it would stay as {}, and what was made since the snapshot is in that one \
             alone",
            place.display(),
            file.display(),
            contents(&found),
            aside.display()
        ),
        _ => format!("store {} would be made from {} ({})", place.display(), file.display(), contents(&found)),
    };
    if let Held::Store(store) = &held {
        // Grants are put back as well.
        setup.expect_over_all(store.clone(), Operation::GrantWrite).await?;
    }
    let done = consent.given(&what, output).await?;
    if done {
        let put = async { put_in_place(&staged, place, aside.as_deref()) };
        match &copy {
            Some(copy) => setup.acting(copy, Deed::StoreRestore, Subject::default(), put).await?,
            None => put.await?,
        }
    }
    drop(held);
    let kept = aside.filter(|_| done).map(|aside| aside.display().to_string());
    let line = match (done, &kept) {
        (false, _) => format!("{what}\n"),
        (true, None) => format!("store {}: restored; {}\n", place.display(), contents(&found)),
        (true, Some(kept)) => {
            format!("store {}: restored; {}; what was there is {kept}\n", place.display(), contents(&found))
        }
    };
    let mut result = report_json(&place.display().to_string(), &found);
    if let Some(fields) = result.as_object_mut() {
        fields.insert("dry_run".into(), (!done).into());
        fields.insert("kept".into(), kept.into());
    }
    output.result(&result, &line)
}

/// There is a store at its place at every instant, and none that anybody made is written over.
fn put_in_place(staged: &Staged, place: &Path, aside: Option<&Path>) -> Result<(), Failure> {
    match aside {
        Some(aside) => {
            fs::hard_link(place, aside).map_err(|error| Failure::io(aside.display(), error))?;
            fs::rename(&staged.0, place).map_err(|error| Failure::io(place.display(), error))?;
        }
        None => fs::hard_link(&staged.0, place).map_err(|error| Failure::io(place.display(), error))?,
    }
    sync_directory_of(place).map_err(|error| Failure::io(place.display(), error))
}

/// What keeps others from writing to what is at a place.
enum Held {
    Store(Arc<RedbStore>),
    #[allow(dead_code)] // it is held, and not looked at
    File(File),
    Nothing,
}

/// Holds what is at the place, and says what that is: what does not open as well, for whoever had it open before writes on, and another
/// restore may be under way.
async fn hold(place: &Path) -> Result<(Held, Option<String>), Error> {
    let what = match RedbStore::open(place).await {
        Ok(store) => {
            let was = check(&store).await.map_or_else(|error| error.to_string(), |was| contents(&was));
            return Ok((Held::Store(Arc::new(store)), Some(was)));
        }
        Err(Error::NotFound(_)) => return Ok((Held::Nothing, None)),
        Err(Error::Corrupt(what)) => what.to_string(),
        Err(Error::Misconfigured(what)) if place.is_file() => {
            what.trim_start_matches(&format!("store {} ", place.display())).to_owned()
        }
        Err(error) => return Err(error),
    };
    Ok((Held::File(lock(place)?), Some(what)))
}

/// Takes the lock that redb has on what it has open.
fn lock(place: &Path) -> Result<File, Error> {
    let failed = |error: io::Error| Error::Misconfigured(format!("store {}: {error}", place.display()));
    let file = File::open(place).map_err(failed)?;
    let is_free = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => false,
        // There are no such locks here, and redb has none either.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => true,
        Err(error) => return Err(failed(error.into())),
    };
    let (opened, there) = (file.metadata().map_err(failed)?, fs::metadata(place).map_err(failed)?);
    if is_free && is_same_file(&opened, &there) {
        return Ok(file);
    }
    Err(Error::Store(format!(
        "{}: it is open in another process, which may still write to it; stop that one",
        place.display()
    )))
}

/// The file itself, where the store is named by a link.
fn named_place(path: &Path) -> Result<PathBuf, Failure> {
    match path.is_symlink() {
        true => fs::canonicalize(path).map_err(|error| Failure::io(path.display(), error)),
        false => Ok(path.to_owned()),
    }
}

/// A name beside the store that nothing has.
fn free_place(place: &Path) -> PathBuf {
    let date = unix_now();
    let names = (0_u32..).map(|n| if n == 0 { format!(".replaced-{date}") } else { format!(".replaced-{date}-{n}") });
    let mut free = names.map(|suffix| beside(place, &suffix)).filter(|name| name.symlink_metadata().is_err());
    free.next().unwrap_or_else(|| beside(place, ".replaced"))
}

/// A copy on its way, which goes when this is dropped.
struct Staged(PathBuf);

impl Staged {
    /// Under a name that no other process takes, nor one that was killed has left.
    fn copy(from: &Path, place: &Path) -> Result<Self, Failure> {
        let mut source = File::open(from).map_err(|error| Failure::input(from, error))?;
        let mut random = [0; 8];
        fill_random(&mut random)?;
        let to = beside(place, &format!(".restoring-{}", hex(&random)));
        let failed = |error| Failure::io(to.display(), error);
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to).map_err(failed)?;
        let staged = Self(to.clone());
        io::copy(&mut source, &mut copy).map_err(failed)?;
        copy.sync_all().map_err(failed)?;
        Ok(staged)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn beside(place: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(place);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyleash::store::{Key, Put};

    #[tokio::test]
    async fn nobody_shreds_by_a_policy_that_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let (place, config) = (directory.path().join("store"), directory.path().join("config"));
        let store = RedbStore::open_or_create(&place).await.unwrap();
        let damaged = Put { value: vec![4, 0, 9], wrapped_by: vec![], guards: vec![] };
        store.create(&Key::Policy, damaged).await.unwrap();
        drop(store);
        std::fs::write(&config, format!("[store]\npath = {place:?}\n")).unwrap();
        let output = Output::new(true).quiet(true);
        let setup = Setup::read(Some(&config), output, "store shred").unwrap();
        let outcome = run(Command::Shred, &setup, output).await;
        assert!(matches!(outcome, Err(Failure::Engine(Error::Corrupt(_)))), "{outcome:?}");
    }
}
