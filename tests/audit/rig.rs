//! A trail of a test: its directory, key and store, and what is found in it.

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use keyleash::{
    Result,
    audit::{
        Checkpoint, Expected, Keys, Note, Options, Signer, Vkey, Writer,
        line::Line,
        tree::{Frontier, leaf_hash},
        verify,
    },
    clock::{Clock, ManualClock},
    name::{AccountId, NodeName},
    store::{
        Key, KeyStore,
        memory::MemoryStore,
        record::{CommonRecord, StoreRecord},
    },
    telemetry::trail::{Asker, Correlation, Deed, Outcome, Record},
};
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

/// What a manual clock at 0 says, in milliseconds: 2023-11-14T22:13:20Z.
pub(crate) const START_MS: u64 = 1_700_000_000_000;
pub(crate) const STORE: [u8; 8] = [7; 8];
pub(crate) const NODE: &str = "node-1";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Ed25519 in memory.
#[derive(Debug)]
pub(crate) struct TestSigner {
    key: Ed25519KeyPair,
    vkey: String,
    /// The token is away.
    pub(crate) silent: AtomicBool,
}

impl TestSigner {
    pub(crate) fn new(seed: u8) -> Arc<Self> {
        Self::named(seed, "keyleash/test")
    }

    pub(crate) fn named(seed: u8, name: &str) -> Arc<Self> {
        let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let point = key.public_key().as_ref().try_into().unwrap();
        let vkey = Vkey::ed25519(name, &point).unwrap().to_string();
        Arc::new(Self { key, vkey, silent: AtomicBool::new(false) })
    }
}

#[async_trait]
impl Signer for TestSigner {
    fn vkey(&self) -> &str {
        &self.vkey
    }

    async fn sign(&self, text: &[u8]) -> Result<Vec<u8>> {
        match self.silent.load(Ordering::SeqCst) {
            true => Err(keyleash::Error::Trail("the token is away".into())),
            false => Ok(self.key.sign(text).as_ref().to_vec()),
        }
    }
}

pub(crate) struct Rig {
    pub(crate) directory: PathBuf,
    /// Removed with this.
    _owned: Option<TempDir>,
    pub(crate) store: Arc<dyn KeyStore>,
    pub(crate) signer: Arc<TestSigner>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let owned = tempfile::tempdir().unwrap();
        let rig = Self::beside(owned.path(), Arc::new(MemoryStore::new()));
        Self { _owned: Some(owned), ..rig }
    }

    /// In a directory that is somebody else's.
    pub(crate) fn beside(directory: &Path, store: Arc<dyn KeyStore>) -> Self {
        Self { directory: directory.to_owned(), _owned: None, store, signer: TestSigner::new(7) }
    }

    pub(crate) fn options(&self) -> Options {
        // A clock that stands still.
        let clock = Clock::Manual(ManualClock::default());
        // A child of another test may have the lock, between its fork and its exec.
        Options::new(&self.directory, NodeName::new(NODE).unwrap()).clock(clock).lock_patience(PATIENCE)
    }

    pub(crate) async fn open(&self, options: Options) -> Result<Writer> {
        Writer::open(options, self.store.clone(), self.signer.clone()).await
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.directory.join(NODE)
    }

    pub(crate) fn keys(&self) -> Keys {
        Keys::new().with(Vkey::parse(&self.signer.vkey).unwrap())
    }

    /// Reads the whole trail: every line in its place, every checkpoint right. The lines, and the sizes of the checkpoints.
    pub(crate) fn read(&self) -> (Vec<Line>, Vec<u64>) {
        read(&self.node(), &self.keys())
    }

    /// The files, below the node's directory.
    pub(crate) fn files(&self) -> Vec<String> {
        files(&self.node()).iter().map(|path| path.strip_prefix(self.node()).unwrap().display().to_string()).collect()
    }

    /// The one file that there is.
    pub(crate) fn file(&self) -> PathBuf {
        let files = files(&self.node());
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

/// A store of the id [`STORE`].
pub(crate) async fn known_store() -> Arc<dyn KeyStore> {
    let store = MemoryStore::new();
    store.create(&Key::Store, StoreRecord { id: STORE }.put().unwrap()).await.unwrap();
    Arc::new(store)
}

/// Writes the store's date down, by which retention goes.
pub(crate) async fn put_date(store: &dyn KeyStore, date_unix: u64) {
    let common = CommonRecord {
        date_unix,
        boot: [0; 16],
        boottime_ns: 0,
        wall_unix: 0,
        aek_overlap_secs: 3600,
        purge_protection: false,
        is_governed: false,
    };
    store.create(&Key::Common, common.put().unwrap()).await.unwrap();
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = match fs::read_dir(folder) {
        // It was empty, and was removed meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        entries => entries.unwrap(),
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            below(&path, found);
        } else if ["PT1H.json", "PT1H.json.gz"].contains(&&*path.file_name().unwrap().to_string_lossy()) {
            found.push(path);
        }
    }
}

/// The hourly files, in order.
pub(crate) fn files(node: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    below(node, &mut found);
    // What is being compressed is there twice, for as long as the disk takes to sync.
    let is_twice =
        |path: &PathBuf| path.extension().is_some_and(|is| is == "gz") && found.contains(&path.with_extension(""));
    let mut files: Vec<_> = found.iter().filter(|path| !is_twice(path)).cloned().collect();
    files.sort();
    files
}

/// What stands in the files of a node, one behind the other.
pub(crate) fn bytes(node: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in files(node) {
        match fs::read(&path) {
            Ok(file) if path.extension().is_some_and(|is| is == "gz") => {
                flate2::read::GzDecoder::new(&file[..]).read_to_end(&mut bytes).unwrap();
            }
            Ok(file) => bytes.extend(file),
            // It was compressed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return self::bytes(node),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
    bytes
}

/// Every line of a node, read in the dullest way, and the sizes of its checkpoints.
pub(crate) fn read(node: &Path, keys: &Keys) -> (Vec<Line>, Vec<u64>) {
    let bytes = bytes(node);
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "a torn line");
    // What the library's own verifier says of it.
    let store = fs::read_to_string(node.join("checkpoints")).unwrap();
    if let Some(origin) = store.lines().next() {
        let mut expected = Expected::by(keys.clone());
        expected.origin = Some(origin.to_owned());
        let report = verify(node, &expected).unwrap();
        assert!(report.faults.is_empty(), "{:?}", report.faults);
    }
    let (mut frontier, mut roots, mut lines) = (Frontier::new(), Vec::new(), Vec::<Line>::new());
    for text in bytes.split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
        let line = Line::parse(text).unwrap();
        if lines.is_empty() && line.seq > 0 {
            // Retention removed what was before: the first line that is there is a tally, and says what the tree was.
            let hashes = line.frontier.as_ref().unwrap();
            let hashes = hashes.iter().map(|hash| hash_of(hash)).collect();
            frontier = Frontier::from_hashes(line.seq, hashes).unwrap();
            roots = vec![[0; 32]; usize::try_from(line.seq).unwrap()];
        }
        assert_eq!(line.seq, frontier.size(), "{line:?}");
        roots.push(frontier.root());
        frontier.append(leaf_hash(text));
        lines.push(line);
    }
    roots.push(frontier.root());
    let notes = fs::read_to_string(node.join("checkpoints")).unwrap();
    let mut sizes = Vec::new();
    let parts: Vec<_> = notes.split("\n\n").collect();
    for pair in parts.chunks_exact(2) {
        let note = Note::parse(format!("{}\n\n{}\n", pair[0], pair[1]).as_bytes()).unwrap();
        note.verify(keys).unwrap();
        let checkpoint = Checkpoint::of(&note).unwrap();
        assert!(sizes.last().is_none_or(|last| *last <= checkpoint.size));
        let first = lines.first().map_or(0, |line| line.seq);
        if checkpoint.size > first {
            assert_eq!(checkpoint.root, roots[usize::try_from(checkpoint.size).unwrap()], "size {}", checkpoint.size);
        }
        sizes.push(checkpoint.size);
    }
    (lines, sizes)
}

fn hash_of(base64: &str) -> [u8; 32] {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for char in base64.bytes().filter(|char| *char != b'=') {
        bits = bits << 6 | u32::try_from(alphabet.iter().position(|is| *is == char).unwrap()).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes.try_into().unwrap()
}

/// A record, known by its number.
pub(crate) fn record(unix_ms: u64, deed: Deed, outcome: Outcome, number: u128) -> Record {
    Record::new(unix_ms, deed, outcome, Asker::nobody(Correlation::new(number.to_be_bytes())))
}

pub(crate) fn admin(number: u128) -> Record {
    record(START_MS, Deed::KekCreate, Outcome::Asked, number)
}

pub(crate) fn data(number: u128) -> Record {
    let mut record = record(START_MS, Deed::AccountOpen, Outcome::Done, number);
    record.on.account = Some(AccountId::new(format!("tenant-{}", number % 3)).unwrap());
    record
}

/// The numbers of the records that have lines, in their order.
pub(crate) fn numbers(lines: &[Line]) -> Vec<u128> {
    let number = |line: &Line| u128::from_str_radix(line.correlation.as_ref()?, 16).ok();
    lines.iter().filter_map(number).collect()
}

pub(crate) fn operations(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.operation.as_str()).collect()
}

/// Waits until the writer has ended its turn. A clock that goes on within one makes the disk one that does not answer.
pub(crate) fn at_rest(writer: &Writer) {
    until("at rest", || writer.status().unwrap().waiting == 0);
}

/// Waits for something that comes by itself, however busy the machine is.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: not within two minutes");
}
