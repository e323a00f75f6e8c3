//! Every key of `keyleash.toml`, its default and bounds. Written by `src/config/page.rs`, whose test says when it is not.
//!
//! | section | key | variable | default | allowed | what it is |
//! | --- | --- | --- | --- | --- | --- |
//! | token | `module` | `KEYLEASH_MODULE` | none | a file | the PKCS#11 library |
//! | token | `label` | `KEYLEASH_TOKEN_LABEL` | none | one of label, serial and slot | the token with this label |
//! | token | `serial` | `KEYLEASH_TOKEN_SERIAL` | none | one of label, serial and slot | the token with this serial number |
//! | token | `slot` | `KEYLEASH_TOKEN_SLOT` | none | one of label, serial and slot | the token in the slot with this id; some modules renumber theirs |
//! | token | `pin_file` | `KEYLEASH_PIN_FILE` | none | one of pin_file and pin_env | the file that holds the user PIN; readable by its owner alone |
//! | token | `pin_env` | `KEYLEASH_PIN_ENV` | none | one of pin_file and pin_env | the variable that holds the user PIN (KEYLEASH_PIN is read without it) |
//! | token | `workers` | `KEYLEASH_WORKERS` | 1 | 1 to 30 | threads that call the token |
//! | token | `name` | `KEYLEASH_TOKEN_NAME` | default | as a KEK name | what the records of its KEKs call the token |
//! | token | `call_timeout` | `KEYLEASH_TOKEN_CALL_TIMEOUT` | that of `lease` | as that | deadline of a call of this token, where it has one of its own |
//! | store | `path` | `KEYLEASH_STORE` | ./keyleash.redb | a file | where the wrapped AEKs are |
//! | lease | `poll_interval` | `KEYLEASH_POLL_INTERVAL` | 15 s | 1 s to 1 min | time between two proofs of a KEK version |
//! | lease | `call_timeout` | `KEYLEASH_CALL_TIMEOUT` | 5 s | 100 ms to 1 min, at most poll_interval | deadline of a call of a token, and of a call of the store that a key waits for |
//! | lease | `grace` | `KEYLEASH_GRACE` | 30 min | at least poll_interval + 2 call_timeout; (fresh_proof_every + 1) poll_interval + grace + call_timeout at most 60 min | how long a lease lasts after its last proof while the token is unreachable |
//! | lease | `aek_ttl` | `KEYLEASH_AEK_TTL` | 10 min | at least 1 s and 2 call_timeout, at most grace | how long an AEK is used without an unwrap of its own |
//! | lease | `resume_rate` | `KEYLEASH_RESUME_RATE` | 3000 | 1 to 4294967295 | most unwraps per second of each token in the background |
//! | lease | `fresh_proof_every` | `KEYLEASH_FRESH_PROOF_EVERY` | 20 | at least 1; see grace | every so many proofs one comes from a fresh context of the module |
//! | cache | `max_cached_aeks` | `KEYLEASH_MAX_CACHED_AEKS` | 1000000 | 1 to 100000000 | most AEKs in memory |
//! | cache | `memlock` | `KEYLEASH_MEMLOCK` | warn | warn or refuse | what happens when key memory cannot be locked |
//! | keys | `require_recoverable` | `KEYLEASH_REQUIRE_RECOVERABLE` | false | true or false | refuse new accounts under a KEK version of which no backup is attested |
//! | keys | `retention` | `KEYLEASH_RETENTION` | 90 d | 7 d to 90 d | how long a deleted account can be undeleted before it may be purged |
//! | keys | `purge_protection` | `KEYLEASH_PURGE_PROTECTION` | true | true or false | nobody purges an account before its retention is over |
//!
//! A duration is a number and its unit: ms, s, min, h or d. `[[token]]` and `[[kek]]` are in
//! [`operations`](mod@super::operations#several-tokens). `keyleash config show` says what is in force, and from where;
//! `keyleash config init` writes a file with all of these.
