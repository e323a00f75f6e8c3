//! `quickstart`: the whole way once, and what to try next.

use crate::{
    args::Quickstart,
    exit::Failure,
    file::{self, BLOCK_BYTES, FileHeader, Keys},
    output::{Output, columns, count, hex},
    setup::{Setup, Store},
};
use keyleash::{
    Account, Engine, Error,
    block::{BlockHeader, Suite},
    name::{AccountId, KekName, KekVersion},
    token::{KekInfo, Profile},
};
use serde_json::json;
use std::{
    env,
    fs::File,
    io::{self, Read},
    path::Path,
};
use tokio::runtime::Handle;
use zeroize::Zeroizing;

const NAME: &str = "quickstart";
/// How many names are tried before the store is called full of them.
const NAMES_MAX: u32 = 10_000;
const README: &str = "README.md";
/// Sealed where no file is given or found.
const OWN_README: &[u8] = include_bytes!("../../../README.md");
/// It is all done in memory; `seal` takes any length.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const SHOWN_BYTES: usize = 16;

pub(crate) async fn run(args: Quickstart, setup: &Setup, output: Output) -> Result<(), Failure> {
    let reading = tokio::task::spawn_blocking(move || Plain::read(args.file.as_deref()));
    let plain = reading.await.map_err(|error| Failure::io("reading", io::Error::other(error)))??;
    let engine = setup.engine(Store::Create).await?;
    let token = engine.token_info(engine.default_token()).await?;
    let place = find_place(&engine, output).await?;
    let (account, runtime) = (place.account.clone(), Handle::current());
    let sealing = tokio::task::spawn_blocking(move || seal_and_open(account, runtime, plain));
    let sealed = sealing.await.map_err(|error| Failure::io("sealing", io::Error::other(error)))??;

    let header = &sealed.first;
    let suite = match header.suite() {
        Suite::XaesGcm => "1 (XAES-256-GCM)",
        Suite::XaesGcmCommit => "2 (XAES-256-GCM with key commitment)",
        _ => "unknown",
    };
    let tag = header.as_bytes().get(32..48).unwrap_or_default();
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let made = |made: bool| if made { "made" } else { "there already" };
    let mut lines = columns(&[
        row("token", format!("{:?}: {}, serial {}", token.label, token.model, token.serial)),
        row("KEK", format!("{}: {}; CKA_ID {}, never leaves the token", place.kek, made(place.kek_made), place.kek_id)),
        row(
            "account",
            format!(
                "{}: {}; its AEK is in {}, only as wrapped by that KEK",
                place.account.id(),
                made(place.account_made),
                setup.place()
            ),
        ),
        row(
            "sealed",
            format!("{}: {} bytes in {}", sealed.plain.name, sealed.plain.bytes.len(), count(sealed.blocks, "block")),
        ),
        row(
            "file",
            format!(
                "KEYLEASH version {}, file id {}, blocks of {BLOCK_BYTES} bytes",
                file::VERSION,
                hex(&sealed.file.file_id)
            ),
        ),
        row("block 0", format!("suite {suite}, AEK version {}", header.aek_version())),
        row("  nonce", hex(&header.nonce())),
        row("  tag", hex(tag)),
        row("  plaintext", shown(&sealed.plain.bytes)),
        row("  ciphertext", shown(&sealed.first_ciphertext)),
        row("opened", format!("{} bytes, byte for byte what was sealed", sealed.plain.bytes.len())),
    ]);
    lines.push_str(&next_steps(sealed.plain.path.as_deref().unwrap_or("FILE")));
    let result = json!({
        "token": token.label,
        "kek": place.kek.name.as_str(),
        "kek_version": place.kek.version,
        "kek_id": place.kek_id,
        "kek_made": place.kek_made,
        "account": place.account.id().as_str(),
        "account_made": place.account_made,
        "file": sealed.plain.name,
        "file_id": hex(&sealed.file.file_id),
        "plaintext_bytes": sealed.plain.bytes.len(),
        "blocks": sealed.blocks,
        "suite": header.suite() as u8,
        "aek_version": header.aek_version(),
        "nonce": hex(&header.nonce()),
        "tag": hex(tag),
        "identical": true,
    });
    output.result(&result, &lines)
}

fn next_steps(file: &str) -> String {
    // As it was called: under `cargo run` there is no keyleash in the PATH.
    let keyleash = env::args_os().next().map_or_else(|| "keyleash".into(), |name| quoted(&name.to_string_lossy()));
    format!(
        "
try next, in one shell, so that the token stays (softhsm/with-token --keep .token bash):
  export KEYLEASH_STORE=.token/keyleash.redb
  {keyleash} quickstart
  {keyleash} seal --account quickstart {file} -o quickstart.sealed
  {keyleash} open quickstart.sealed | cmp - {file}
  {keyleash} account show quickstart --json
  {keyleash} token check
"
    )
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "/._-".contains(char);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// A file to seal.
struct Plain {
    name: String,
    /// As a shell takes it; `None` for keyleash's own.
    path: Option<String>,
    bytes: Zeroizing<Vec<u8>>,
}

impl Plain {
    fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let path = match path {
            Some(path) => path,
            None if Path::new(README).is_file() => Path::new(README),
            None => {
                let bytes = Zeroizing::new(OWN_README.to_vec());
                return Ok(Self { name: "keyleash's README".into(), path: None, bytes });
            }
        };
        let name = path.display().to_string();
        let mut bytes = Zeroizing::new(Vec::new());
        let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
        if read.map_err(|error| Failure::input(path, error))? as u64 > FILE_BYTES_MAX {
            return Err(Failure::Usage(format!("{name}: is longer than 64 MiB; `keyleash seal` takes any length")));
        }
        let path = Some(quoted(&name));
        Ok(Self { name, path, bytes })
    }
}

/// What was sealed and opened again.
struct Sealed {
    plain: Plain,
    file: FileHeader,
    blocks: u64,
    first: BlockHeader,
    first_ciphertext: Vec<u8>,
}

fn seal_and_open(account: Account, runtime: Handle, plain: Plain) -> Result<Sealed, Failure> {
    let keys = Keys::new(account, runtime);
    let mut sealed = Vec::new();
    let (_, totals) = file::seal(&keys, &mut plain.bytes.as_slice(), &mut sealed, |_| Ok(()))?;
    let mut blocks = sealed.as_slice();
    let file = FileHeader::read(&mut blocks)?;
    let (first, rest) = BlockHeader::split(blocks)?;
    let first_ciphertext = rest.get(..SHOWN_BYTES.min(plain.bytes.len())).unwrap_or_default().to_vec();
    let mut opened = Zeroizing::new(Vec::with_capacity(plain.bytes.len()));
    file::open(&file, &keys, &mut blocks, &mut *opened, |_| Ok(()))?;
    if opened != plain.bytes {
        return Err(Failure::file("opened to other bytes than were sealed: do not use this build"));
    }
    Ok(Sealed { file, blocks: totals.blocks, first, first_ciphertext, plain })
}

fn shown(bytes: &[u8]) -> String {
    let more = if bytes.len() > SHOWN_BYTES { " …" } else { "" };
    format!("{}{more}", hex(bytes.get(..SHOWN_BYTES).unwrap_or(bytes)))
}

/// The KEK and the account of a run.
struct Place {
    kek: KekVersion,
    kek_id: String,
    kek_made: bool,
    account: Account,
    account_made: bool,
}

/// Takes the KEK and account `quickstart`, or makes them; where they belong to another token, the next free name. The
/// store stays while `with-token` makes a new token for every run.
async fn find_place(engine: &Engine, output: Output) -> Result<Place, Failure> {
    for number in 1..=NAMES_MAX {
        let name = if number == 1 { NAME.to_owned() } else { format!("{NAME}-{number}") };
        match try_place(engine, &name).await? {
            Some(place) => return Ok(place),
            None => output.note(&format!("{name} in this store belongs to another token: taking the next name")),
        }
    }
    Err(Error::Exists(format!("{NAMES_MAX} KEKs {NAME}-N: name another store with KEYLEASH_STORE")).into())
}

/// `None` when the name belongs to another token, or to somebody's own account.
async fn try_place(engine: &Engine, name: &str) -> Result<Option<Place>, Failure> {
    let (kek_name, id) = (KekName::new(name)?, AccountId::new(name)?);
    let (kek, info, kek_made) = match engine.kek(&kek_name).await {
        Ok(kek) => {
            let Some(current) = kek.versions.into_iter().find(|version| version.current) else { return Ok(None) };
            match current.in_token.map_err(Error::from)? {
                Some(info) => (KekVersion::new(kek_name, current.record.version), info, false),
                None => return Ok(None),
            }
        }
        Err(Error::NotFound(_)) => {
            let info = engine.create_kek(&kek_name, Profile::AesGcm).await?;
            (KekVersion::new(kek_name, 1), info, true)
        }
        Err(error) => return Err(error.into()),
    };
    let (account, account_made) = match engine.account_record(&id).await {
        Ok(record) if record.wrapped_by().contains(&kek) => (engine.account(&id).await?, false),
        Ok(_) => return Ok(None),
        Err(Error::NotFound(_)) => (engine.create_account(&id, &kek.name).await?, true),
        Err(error) => return Err(error.into()),
    };
    let KekInfo { id: kek_id, .. } = info;
    Ok(Some(Place { kek, kek_id: kek_id.to_string(), kek_made, account, account_made }))
}
