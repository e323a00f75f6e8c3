//! What stands in the schema, and the statements over it.
//!
//! | table | columns |
//! | --- | --- |
//! | `keyleash_store` | `layout`: [`LAYOUT`]; `store`: 16 bytes that the store is known by; one row |
//! | `record` | `key`: the bytes of a [`Key`]; `value`: an [`Envelope`] whose revision is 0; `version`: 16 random bytes of the last write |
//! | `wrapped_by` | `kek`: KEK name ‖ 00 ‖ u32 KEK version; `key`: of an account that is found under it |
//!
//! A version is no counter: one that is restored, or of a replica that was behind, would give the same number to another write.
//!
//! A write holds a lock on the key, and on each guard a shared one, from before it looks until it is over: advisory ones of the server, whose
//! queue is fair. Locks on rows are not: those who share one (many re-wraps rest on one KEK) would keep a writer of it (its retirement)
//! waiting for as long as there is one of them.

use super::servers::{Param, Statement};
use crate::store::{
    Filter, Key, Put, StoreVersion,
    envelope::{Envelope, index_prefix},
    remote::end_of,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tokio_postgres::types::Type;

/// What the layout's row holds. A release that lays tables out in another way counts up.
pub(super) const LAYOUT: i32 = 1;
/// Length of a version, and of what a store is known by.
pub(super) const ID_BYTES: usize = 16;
/// Most bytes of values in one answer, but for one that is longer.
const ANSWER_BYTES: i64 = 8 * 1024 * 1024;

pub(super) const NOT_DURABLE: &str = "synchronous_commit is off, by which what was acknowledged is lost with the server: set it on \
                                      (ALTER ROLE … SET synchronous_commit = on, or for the database, or the server)";

/// Whether it takes writes, when these are durable, and its timeline.
pub(super) const SEEN: &str = "SELECT pg_catalog.current_setting('transaction_read_only'), \
    pg_catalog.current_setting('synchronous_commit'), CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN \
    ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int8 END";

/// What `store check` says of a server.
pub(super) const SETTINGS: &str = "SELECT current_setting('fsync'), current_setting('full_page_writes'), \
    current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), \
    (SELECT count(*) FROM pg_catalog.pg_stat_replication)";

/// Of schema `$1`: whether it is there, how many relations are in it, and whether the store's own is.
pub(super) const LOOK: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1), \
    (SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1), \
    EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE n.nspname = $1 AND c.relname = 'keyleash_store')";

/// The layout, and what the store is known by. A schema's name is of letters, digits and `_`, so that it can stand in a text.
pub(super) fn id(schema: &str) -> String {
    format!("SELECT layout, pg_catalog.substr(store, 1, {}) FROM \"{schema}\".keyleash_store LIMIT 1", ID_BYTES + 1)
}

/// Makes the store in a schema that is empty, or with the schema.
pub(super) fn make(schema: &str, with_schema: bool) -> Statement {
    let create = if with_schema { format!("CREATE SCHEMA \"{schema}\"; ") } else { String::new() };
    Statement::Script(format!(
        "{create}\
         CREATE TABLE \"{schema}\".keyleash_store (layout int4 PRIMARY KEY, store bytea NOT NULL); \
         CREATE TABLE \"{schema}\".record (key bytea PRIMARY KEY, value bytea NOT NULL, version bytea NOT NULL); \
         CREATE TABLE \"{schema}\".wrapped_by (kek bytea, key bytea, PRIMARY KEY (kek, key)); \
         CREATE INDEX ON \"{schema}\".wrapped_by (key); \
         INSERT INTO \"{schema}\".keyleash_store (layout, store) VALUES ({LAYOUT}, uuid_send(gen_random_uuid()))"
    ))
}

pub(super) fn text(value: &str) -> Param {
    (Box::new(value.to_owned()), Type::TEXT)
}

fn bytes(value: Vec<u8>) -> Param {
    (Box::new(value), Type::BYTEA)
}

fn each(values: Vec<Vec<u8>>) -> Param {
    (Box::new(values), Type::BYTEA_ARRAY)
}

fn number(value: i64) -> Param {
    (Box::new(value), Type::INT8)
}

/// Of a lock. Two that have one by chance wait for each other, and nothing else.
fn lock_id(schema: &str, key: &[u8]) -> i64 {
    let digest: [u8; 32] = Sha256::new().chain_update(schema).chain_update([0]).chain_update(key).finalize().into();
    digest.first_chunk().copied().map(i64::from_be_bytes).unwrap_or_default()
}

/// Where a store's changes are told. Whoever has no right to read the store does not know it: by anybody in the database it could be listened to.
pub(super) fn channel(store: &[u8]) -> String {
    let digest: [u8; 32] = Sha256::new().chain_update("keyleash.changes.v1").chain_update(store).finalize().into();
    digest.iter().take(16).fold("keyleash_".into(), |channel, byte| format!("{channel}{byte:02x}"))
}

/// Tells nothing, to see whether it is heard.
pub(super) fn notify(store: &[u8]) -> Statement {
    Statement::Query { text: "SELECT pg_notify($1, '')".into(), params: vec![text(&channel(store))] }
}

/// What somebody has in memory who did not write it. The server tells of one transaction after the other, so of as few as need it.
fn is_told(change: &Change<'_>) -> bool {
    match change.key {
        Key::Account(_) => change.expected.is_some(),
        Key::Denial(_) => true,
        _ => false,
    }
}

/// A write, not yet done.
pub(super) struct Change<'a> {
    pub(super) key: &'a Key,
    /// `None` where there must be none.
    pub(super) expected: Option<&'a StoreVersion>,
    /// `None` deletes.
    pub(super) put: Option<&'a Put>,
    /// What its version becomes.
    pub(super) version: [u8; ID_BYTES],
}

/// The statements over one schema.
pub(super) struct Schema {
    pub(super) name: String,
}

impl Schema {
    /// Locks in the order of their numbers, so that no two transactions wait for each other, and `mark`, which tells each statement after it
    /// that it is in the same transaction.
    pub(super) fn lock(&self, changes: &[Change<'_>], mark: &str) -> Statement {
        let mut locks = BTreeMap::new();
        for change in changes {
            let guards = change.put.map(|put| put.guards.as_slice()).unwrap_or_default();
            for (key, _) in guards {
                locks.entry(lock_id(&self.name, &key.to_bytes())).or_insert(false);
            }
            locks.insert(lock_id(&self.name, &change.key.to_bytes()), true);
        }
        let (ids, whole): (Vec<i64>, Vec<bool>) = locks.into_iter().unzip();
        Statement::Query {
            text: "SELECT set_config('keyleash.mark', $1, true), \
                   CASE WHEN whole THEN pg_advisory_xact_lock(id) ELSE pg_advisory_xact_lock_shared(id) END \
                   FROM unnest($2::int8[], $3::bool[]) AS locks(id, whole)"
                .into(),
            params: vec![text(mark), (Box::new(ids), Type::INT8_ARRAY), (Box::new(whole), Type::BOOL_ARRAY)],
        }
    }

    /// Keeps others from making the store meanwhile.
    pub(super) fn lock_whole(&self) -> Statement {
        let id = number(lock_id(&self.name, &[]));
        Statement::Query { text: "SELECT pg_advisory_xact_lock($1)".into(), params: vec![id] }
    }

    /// Gives whether the store is this one, whether a commit is durable, whether the locks are held, the versions of the key and of each
    /// guard, and whether it was written.
    pub(super) fn write(&self, change: &Change<'_>, store: &[u8], mark: &str) -> Statement {
        let Self { name } = self;
        let write = match (change.expected, change.put) {
            (None, _) => format!(
                "INSERT INTO \"{name}\".record (key, value, version) SELECT $4, $8, $9 FROM may WHERE may ON CONFLICT DO NOTHING RETURNING 1"
            ),
            (Some(_), Some(_)) => format!(
                "UPDATE \"{name}\".record r SET value = $8, version = $9 FROM may WHERE may AND r.key = $4 AND r.version = $5 RETURNING 1"
            ),
            (Some(_), None) => {
                format!(
                    "DELETE FROM \"{name}\".record r USING may WHERE may AND r.key = $4 AND r.version = $5 RETURNING 1"
                )
            }
        };
        let query = format!(
            "WITH seen AS MATERIALIZED (SELECT \
               EXISTS (SELECT FROM \"{name}\".keyleash_store WHERE layout = $1 AND store = $2) AS ours, \
               current_setting('synchronous_commit') <> 'off' AS durable, \
               current_setting('keyleash.mark', true) IS NOT DISTINCT FROM $3 AS locked, \
               (SELECT substr(r.version, 1, {version_max}) FROM \"{name}\".record r WHERE r.key = $4) AS found, \
               ARRAY(SELECT substr(r.version, 1, {version_max}) FROM unnest($6) WITH ORDINALITY g(key, n) \
                     LEFT JOIN \"{name}\".record r ON r.key = g.key ORDER BY g.n) AS guards), \
             may AS MATERIALIZED (SELECT ours AND durable AND locked AND found IS NOT DISTINCT FROM $5 AND guards = $7 AS may FROM seen), \
             put AS ({write}), \
             gone AS (DELETE FROM \"{name}\".wrapped_by w WHERE w.key = $4 AND NOT w.kek = ANY ($10) AND EXISTS (SELECT FROM put)), \
             new AS (INSERT INTO \"{name}\".wrapped_by (kek, key) SELECT kek, $4 FROM unnest($10) AS kek \
                     WHERE EXISTS (SELECT FROM put) ON CONFLICT DO NOTHING) \
             SELECT ours, durable, locked, found, guards, EXISTS (SELECT FROM put), (SELECT {told} FROM put) FROM seen",
            version_max = ID_BYTES + 1,
            told = if is_told(change) { "pg_notify($11, encode($4, 'hex'))" } else { "$11" },
        );
        let put = change.put;
        let (keys, versions) = put
            .map(|put| put.guards.iter())
            .into_iter()
            .flatten()
            .map(|(key, version)| (key.to_bytes(), version.0.clone()))
            .unzip();
        let value = put.map(|put| {
            Envelope { revision: 0, wrapped_by: put.wrapped_by.clone(), record: &put.value }.encode(change.key)
        });
        let keks = put.map(|put| put.wrapped_by.iter().map(index_prefix).collect()).unwrap_or_default();
        Statement::Query {
            text: query,
            params: vec![
                (Box::new(LAYOUT), Type::INT4),
                bytes(store.to_vec()),
                text(mark),
                bytes(change.key.to_bytes()),
                (Box::new(change.expected.map(|version| version.0.clone())), Type::BYTEA),
                each(keys),
                each(versions),
                bytes(value.unwrap_or_default()),
                bytes(change.version.to_vec()),
                each(keks),
                text(&channel(store)),
            ],
        }
    }

    /// Gives of each that is there its number, its version, the length of its value, and that, unless the answer is long by then.
    pub(super) fn get(&self, keys: &[Key], value_bytes_max: usize) -> Statement {
        let Self { name } = self;
        Statement::Query {
            text: format!(
                "SELECT n, version, bytes, CASE WHEN bytes <= $2 AND (before IS NULL OR before + bytes <= $3) THEN value END FROM \
                   (SELECT g.n, substr(r.version, 1, {version_max}) AS version, octet_length(r.value)::int8 AS bytes, r.value, \
                      sum(octet_length(r.value)) OVER (ORDER BY g.n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)::int8 AS before \
                    FROM unnest($1) WITH ORDINALITY g(key, n) JOIN \"{name}\".record r ON r.key = g.key) found",
                version_max = ID_BYTES + 1,
            ),
            params: vec![
                each(keys.iter().map(Key::to_bytes).collect()),
                number(value_bytes_max as i64),
                number(ANSWER_BYTES),
            ],
        }
    }

    /// Gives the keys that a filter lets through, behind `after`.
    pub(super) fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Statement {
        let (Self { name }, after) = (self, after.map(Key::to_bytes).unwrap_or_default());
        let limit = number(limit as i64);
        match filter {
            Filter::WrappedBy(kek) => Statement::Query {
                text: format!(
                    "SELECT key FROM \"{name}\".wrapped_by WHERE kek = $1 AND key > $2 ORDER BY key LIMIT $3"
                ),
                params: vec![bytes(index_prefix(kek)), bytes(after), limit],
            },
            filter => {
                let begin = filter.prefix();
                let end = end_of(&begin);
                Statement::Query {
                    text: format!(
                        "SELECT key FROM \"{name}\".record WHERE key >= $1 AND key > $2 AND key < $3 ORDER BY key LIMIT $4"
                    ),
                    params: vec![bytes(begin), bytes(after), bytes(end), limit],
                }
            }
        }
    }

    /// Writes what is no record, and changes nothing.
    pub(super) fn probe(&self) -> Statement {
        Statement::Query {
            text: format!("UPDATE \"{}\".keyleash_store SET layout = layout", self.name),
            params: Vec::new(),
        }
    }

    /// Reads nothing.
    pub(super) fn look(&self) -> Statement {
        Statement::Query { text: format!("SELECT key FROM \"{}\".record LIMIT 0", self.name), params: Vec::new() }
    }
}
