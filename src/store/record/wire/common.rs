//! The bytes of the store's date, as `wire.rs` says of all others.

use crate::{clock::BOOT_BYTES, store::record::CommonRecord};
use bincode::{Decode, Encode};

#[derive(Encode, Decode)]
pub(super) struct CommonWire {
    date_unix: u64,
    boot: [u8; BOOT_BYTES],
    boottime_ns: u64,
    wall_unix: u64,
    aek_overlap_secs: u64,
}

impl From<&CommonRecord> for CommonWire {
    fn from(record: &CommonRecord) -> Self {
        let CommonRecord { date_unix, boot, boottime_ns, wall_unix, aek_overlap_secs, .. } = *record;
        Self { date_unix, boot, boottime_ns, wall_unix, aek_overlap_secs }
    }
}

pub(super) fn common_of(wire: CommonWire, purge_protection: bool, is_governed: bool) -> CommonRecord {
    let CommonWire { date_unix, boot, boottime_ns, wall_unix, aek_overlap_secs } = wire;
    CommonRecord { date_unix, boot, boottime_ns, wall_unix, aek_overlap_secs, purge_protection, is_governed }
}
