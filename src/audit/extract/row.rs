//! The lines of an extract, as JSON.

use crate::{
    audit::{
        base64,
        line::Time,
        tally::Beside,
        tree::{HASH_BYTES, Hash},
    },
    error::{Corrupt, Error, Result},
};
use serde::{Deserialize, Serialize};

/// What an extract says that it is.
const FORMAT: &str = "keyleash.audit.extract.v1";
/// Longest line of an extract, in bytes.
pub(super) const ROW_BYTES_MAX: usize = 128 * 1024;
/// Most hashes of one proof: more than any tree is deep.
const PROOF_HASHES_MAX: usize = 2 * HASH_BYTES;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) origin: String,
    pub(super) account: String,
    /// `None`: the trail's beginning.
    pub(super) from: Option<Time>,
    pub(super) to: Time,
}

/// A line of an extract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Row {
    Header(Header),
    Checkpoint { note: String, consistency: Vec<Hash> },
    Tally { seq: u64, line: String, proof: Vec<Hash>, beside: Beside },
    Line { seq: u64, line: String, proof: Vec<Hash> },
}

/// The same as JSON has it: which of the names are there says which it is.
#[derive(Default, Serialize, Deserialize)]
struct Json {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extract: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Option<Time>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    consistency: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tally: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    line: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proof: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    other: Option<Other>,
}

#[derive(Serialize, Deserialize)]
struct Other {
    tag: String,
    entry: String,
}

fn texts(hashes: &[Hash]) -> Option<Vec<String>> {
    Some(hashes.iter().map(|hash| base64::encode(hash)).collect())
}

fn hashes(texts: Option<Vec<String>>) -> Option<Vec<Hash>> {
    let texts = texts.filter(|texts| texts.len() <= PROOF_HASHES_MAX)?;
    texts.iter().map(|text| base64::decode_hash(text)).collect()
}

impl Row {
    /// With its line break.
    pub(super) fn encode(&self) -> Result<String> {
        let json = match self {
            Self::Header(Header { origin, account, from, to }) => Json {
                extract: Some(FORMAT.into()),
                origin: Some(origin.clone()),
                account: Some(account.clone()),
                from: Some(*from),
                to: Some(*to),
                ..Json::default()
            },
            Self::Checkpoint { note, consistency } => {
                Json { checkpoint: Some(note.clone()), consistency: texts(consistency), ..Json::default() }
            }
            Self::Tally { seq, line, proof, beside } => Json {
                seq: Some(*seq),
                tally: Some(line.clone()),
                proof: texts(proof),
                path: Some(
                    beside
                        .hashes
                        .iter()
                        .map(|hash| hash.map(|hash| base64::encode(&hash)).unwrap_or_default())
                        .collect(),
                ),
                other: beside
                    .other
                    .map(|(tag, entry)| Other { tag: base64::encode(&tag), entry: base64::encode(&entry) }),
                ..Json::default()
            },
            Self::Line { seq, line, proof } => {
                Json { seq: Some(*seq), line: Some(line.clone()), proof: texts(proof), ..Json::default() }
            }
        };
        let text =
            serde_json::to_string(&json).map_err(|error| Error::Trail(format!("writing the extract: {error}")))?;
        Ok(text + "\n")
    }

    /// Without its line break.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let no = || Error::Corrupt(Corrupt::Extract("it is no line of an extract".into()));
        let json: Json = serde_json::from_slice(bytes).map_err(|_| no())?;
        Self::of(json).ok_or_else(no)
    }

    fn of(json: Json) -> Option<Self> {
        match json {
            Json { extract: Some(format), origin, account, from, to, .. } if format == FORMAT => {
                Some(Self::Header(Header { origin: origin?, account: account?, from: from.flatten(), to: to? }))
            }
            Json { checkpoint: Some(note), consistency, .. } => {
                Some(Self::Checkpoint { note, consistency: hashes(consistency)? })
            }
            Json { tally: Some(line), seq, proof, path, other, .. } => {
                let path = path.filter(|path| path.len() <= PROOF_HASHES_MAX)?;
                let at = |text: &String| if text.is_empty() { Some(None) } else { base64::decode_hash(text).map(Some) };
                let other = match other {
                    Some(Other { tag, entry }) => Some((base64::decode_hash(&tag)?, base64::decode_hash(&entry)?)),
                    None => None,
                };
                let beside = Beside { hashes: path.iter().map(at).collect::<Option<_>>()?, other };
                Some(Self::Tally { seq: seq?, line, proof: hashes(proof)?, beside })
            }
            Json { line: Some(line), seq, proof, .. } => Some(Self::Line { seq: seq?, line, proof: hashes(proof)? }),
            _ => None,
        }
    }
}
