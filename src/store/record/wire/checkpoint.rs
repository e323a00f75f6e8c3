//! The bytes of a trail's checkpoint, as `wire.rs` says of all others.

use crate::{name::NodeName, store::record::CheckpointRecord};
use bincode::{Decode, Encode};

#[derive(Encode, Decode)]
pub(super) struct CheckpointWire {
    node: String,
    note: String,
}

impl From<&CheckpointRecord> for CheckpointWire {
    fn from(record: &CheckpointRecord) -> Self {
        Self { node: record.node.to_string(), note: record.note.clone() }
    }
}

impl TryFrom<CheckpointWire> for CheckpointRecord {
    type Error = String;

    fn try_from(wire: CheckpointWire) -> Result<Self, String> {
        let node = NodeName::new(wire.node).map_err(|error| error.to_string())?;
        Ok(Self { node, note: wire.note })
    }
}
