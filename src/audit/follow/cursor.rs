//! How far events were acknowledged: a file that is replaced whole, and that one process has locked.

use crate::{
    audit::{
        base64,
        line::LINES_MAX,
        tree::Hash,
        writer::{sync_folder, temporary},
    },
    error::{Error, Result},
    name::NodeName,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// What the file says that it is;
const FORM: &str = "keyleash.audit.cursor.v1";
/// and where something of the sink's is kept with it.
const FORM_WITH_STATE: &str = "keyleash.audit.cursor.v2";
/// Longest file: a node takes some hundred bytes, and stays in it when it is gone; and what a sink keeps.
const BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The lock of a process that was just killed may be held for an instant, by a child that it was about to start.
const LOCK_TRIES: u32 = 25;
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    /// Number of the line that comes next.
    pub(super) next: u64,
    /// The leaf of the line before, by which a trail is known that was put back or begun anew.
    pub(super) leaf: Option<Hash>,
}

#[derive(Serialize, Deserialize)]
struct Text {
    cursor: String,
    /// Nothing was acknowledged yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    new: bool,
    nodes: BTreeMap<String, Node>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Node {
    next: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leaf: Option<String>,
}

#[derive(Debug)]
pub(super) struct Cursor {
    path: PathBuf,
    /// Held until this is dropped.
    _lock: File,
    pub(super) nodes: BTreeMap<NodeName, At>,
    /// There was no file, or nothing in it was acknowledged: what is there is where it begins.
    pub(super) is_new: bool,
    /// What the sink keeps with it: one value of JSON.
    pub(super) state: Option<String>,
}

impl Cursor {
    /// Takes the file, which need not be there.
    ///
    /// # Errors
    /// [`Error::Conflict`] where another process has it; [`Error::Corrupt`]-like damage is [`Error::Invalid`], with the remedy;
    /// [`Error::Trail`] where it cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::Trail(format!("cursor {}: {error}; see to the disk", path.display()));
        let lock = lock(path).map_err(failed)?.ok_or_else(|| {
            let place = path.display();
            Error::Conflict(format!(
                "cursor {place}: another process follows by it: give this one a cursor of its own, or end that one"
            ))
        })?;
        let mut bytes = Vec::new();
        let (is_new, nodes, state) = match File::open(path) {
            Ok(file) => {
                file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
                parse(&bytes)
                    .ok_or_else(|| unusable(path, "it is no cursor of a trail, or of another version of keyleash"))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => (true, BTreeMap::new(), None),
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path: path.to_owned(), _lock: lock, nodes, is_new, state })
    }

    /// It is none to go on from.
    pub(super) fn unusable(&self, why: &str) -> Error {
        unusable(&self.path, why)
    }

    /// Writes it. It is durable when this returns.
    pub(super) fn write(&self) -> Result<()> {
        let place = self.path.display();
        let failed = |error: io::Error| Error::Trail(format!("cursor {place}: {error}; make room, or see to the disk"));
        let node = |(name, at): (&NodeName, &At)| {
            (name.to_string(), Node { next: at.next, leaf: at.leaf.map(|leaf| base64::encode(&leaf)) })
        };
        let cursor = if self.state.is_some() { FORM_WITH_STATE } else { FORM }.to_owned();
        let text = Text { cursor, new: self.is_new, nodes: self.nodes.iter().map(node).collect(), state: None };
        let mut text = serde_json::to_vec(&text).map_err(|error| Error::Invalid(format!("cursor {place}: {error}")))?;
        if let (Some(state), Some(b'}')) = (&self.state, text.pop()) {
            text.extend_from_slice(b",\"state\":");
            text.extend_from_slice(state.as_bytes());
        }
        text.extend_from_slice(b"}\n");
        replace(&self.path, &text).map_err(failed)
    }
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::Invalid(format!(
        "cursor {}: {why}; put it back from a copy, or move it away, and all that is there is delivered anew",
        path.display()
    ))
}

/// Whether nothing was acknowledged, where each node is, and what the sink keeps.
type Parsed = (bool, BTreeMap<NodeName, At>, Option<String>);

fn parse(bytes: &[u8]) -> Option<Parsed> {
    let text: Text = (bytes.len() as u64 <= BYTES_MAX).then(|| serde_json::from_slice(bytes).ok()).flatten()?;
    let node = |(name, node): (String, Node)| {
        let leaf = match node.leaf {
            Some(leaf) => Some(base64::decode_hash(&leaf)?),
            None => None,
        };
        (node.next <= LINES_MAX).then_some((NodeName::new(name).ok()?, At { next: node.next, leaf }))
    };
    let form = if text.state.is_some() { FORM_WITH_STATE } else { FORM };
    let nodes: Option<_> = text.nodes.into_iter().map(node).collect();
    (text.cursor == form).then_some((text.new, nodes?, text.state.map(|state| state.to_string())))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_folder(folder(path))
}

/// Where a file is.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Locks what stands beside a file that is replaced; and removes what a crash left in its making.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it is no name of a file"))?.to_string_lossy();
    let mut options = OpenOptions::new();
    let lock = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.with_file_name(format!("{name}.lock")))?;
    for tries in 1.. {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => thread::sleep(LOCK_AGAIN),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    let begin = format!(".{name}.");
    for entry in fs::read_dir(folder(path))? {
        let left = entry?.file_name();
        // Not of a cursor beside it, whose name begins as this one's.
        let of = |left: &str| left.strip_prefix(&begin)?.strip_suffix(".new").map(|random| !random.contains('.'));
        if left.to_str().and_then(of) == Some(true) {
            fs::remove_file(path.with_file_name(left))?;
        }
    }
    Ok(Some(lock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_cursor_comes_back_as_it_was_and_one_process_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor");
        fs::write(folder.path().join(".cursor.00.new"), "torn").unwrap();
        fs::write(folder.path().join(".cursor.b.00.new"), "of another, which is just being written").unwrap();
        let mut cursor = Cursor::open(&path).unwrap();
        assert!(cursor.is_new && cursor.nodes.is_empty());
        cursor.nodes.insert(NodeName::new("web-1").unwrap(), At { next: 17, leaf: Some([7; 32]) });
        cursor.nodes.insert(NodeName::new("web-2").unwrap(), At { next: 0, leaf: None });
        let error = Cursor::open(&path).unwrap_err();
        assert!(matches!(error, Error::Conflict(_)), "{error}");
        let nodes = cursor.nodes.clone();
        for is_new in [true, false] {
            for state in [Some(r#"{"a":[1,2.5],"b":"}"}"#.to_owned()), None] {
                (cursor.is_new, cursor.state) = (is_new, state.clone());
                cursor.write().unwrap();
                drop(cursor);
                cursor = Cursor::open(&path).unwrap();
                assert_eq!((cursor.is_new, &cursor.nodes, &cursor.state), (is_new, &nodes, &state));
            }
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, [".cursor.b.00.new", "cursor", "cursor.lock"]);
    }

    #[test]
    fn as_many_nodes_as_an_extract_can_have_are_written_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor");
        let mut cursor = Cursor::open(&path).unwrap();
        for node in 0..16_384 {
            let name = NodeName::new(format!("deployment-7c9f8d6b5-{node}")).unwrap();
            cursor.nodes.insert(name, At { next: 1_000_000, leaf: Some([7; 32]) });
        }
        cursor.write().unwrap();
        let nodes = cursor.nodes.clone();
        drop(cursor);
        assert_eq!(Cursor::open(&path).unwrap().nodes, nodes);
    }

    #[test]
    fn what_is_no_cursor_is_refused_and_nothing_is_delivered_anew_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cursor");
        for text in [
            "",
            "{}",
            r#"{"cursor":"keyleash.audit.cursor.v2","nodes":{}}"#,
            r#"{"cursor":"keyleash.audit.cursor.v1","nodes":{},"state":{}}"#,
            r#"{"cursor":"keyleash.audit.cursor.v3","nodes":{},"state":{}}"#,
            r#"{"cursor":"keyleash.audit.cursor.v1","nodes":{"web 1":{"next":1}}}"#,
            r#"{"cursor":"keyleash.audit.cursor.v1","nodes":{"a":{"next":1,"leaf":"AA=="}}}"#,
            r#"{"cursor":"keyleash.audit.cursor.v1","nodes":{"a":{"next":-1}}}"#,
            r#"{"cursor":"keyleash.audit.cursor.v1","nodes":{"a":{"next":18446744073709551615}}}"#,
        ] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Cursor::open(&path), Err(Error::Invalid(_))), "{text}");
        }
    }
}
