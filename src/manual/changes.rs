//! What stays compatible, and where this differs from its starting design.
//!
//! # Compatibility
//!
//! Bytes at rest outlive releases: every later release opens the blocks, records, stores and sealed files of every
//! earlier one, and `tests/compat/` holds bytes of each version to prove it. A format that changes gets a new version
//! number; a release that meets a number it does not know refuses it by name and leaves the bytes alone: it neither replaces nor
//! deletes them, those of a denial or of the holder of the scheduled work too, where it would replace what is damaged. New kinds of
//! records (of schedules or leases of work, say) are new choices in the record, and new fields (a state of deletion, a
//! standby token) are a new record version; neither moves what is there.
//!
//! Before 1.0 the Rust API may change in a minor release, with a note in the changelog.
//!
//! # Differences from the starting design
//!
//! - **A record begins with its kind**, behind its format version, so that a record of another kind under a key is told
//!   by name. Records in a longer form than needed are refused, so that equal records have equal bytes.
//! - **The embedded store keeps a digest with each value**: a changed CKA_ID would read as "KEK not found", which is a denial.
//!   Damage must not pass for one.
//! - **The embedded store verifies all of redb's checksums at every opening**, not only after a crash as redb does by itself, and
//!   stands between redb and the file afterwards (`src/store/redb/pages.rs`): redb trusts what it reads, and panics over some of it.
//!   No digest of our own over all keys was added: it would be one more format, and tell no more than the root's checksum does.
//! - **Opening a store makes none**, see [`RedbStore::open_or_create`](crate::store::redb::RedbStore::open_or_create). Until now
//!   `RedbStore::open` did, and what is `open` now was `open_existing`.
//! - **Sealed files have version 2**, with a digest in the header; version 1 opens for ever, earlier releases refuse version 2 by name.
//! - **The embedded store saves redb's allocator state with each commit** ("quick repair"). That costs a second sync,
//!   which writes that come together share, and spares a walk over the whole file after a crash.
//! - **`resume_rate` is 3000 unwraps/s by default, not 200.** At 200, 360,000 accounts resume within the promised 30
//!   minutes, and the default cache holds a million; to refresh a million ahead of a TTL of 10 minutes takes 2,667 unwraps/s.
//!   The default would have warned about itself.
//! - **A denial says which of two tokens said it**, the KEK's own or its standby: else a denial by the standby that one engine wrote down
//!   would keep all others from it until the first token is back. It is a new format version for the standby's alone; releases before
//!   take it for a denial that they cannot read.
//! - **Every denial is written anew**, with each proof that is denied: an engine that was granted in between must not take it for one
//!   that its proof ended. That is one small write for each KEK version and engine in a poll interval, while it is denied.
//! - **What was wrapped here is no proof**, though it was unwrapped in the token: an impostor would end a denial by an account that it
//!   wrapped itself. Where a KEK version wraps nothing, it is one, or a denial of it could end by nothing.
//! - **A denial names the record by which it ends**, its witness, in a format version of its own: else an account that an impostor made
//!   in the poll before it was noticed would end it in a process that opens that first. Releases before take such a denial for one that
//!   they cannot read: it denies as they start, until their first proof, and they leave it alone. So let engines of both releases run
//!   side by side no longer than an update takes.
//! - **A lease may be asked of two tokens**, the KEK's own and its standby. The state machine of the lease knows nothing of it: which
//!   of the two may speak is a second, smaller one (`src/lease/standby.rs`) beside it, under the same lock.
//! - **Budgets, deadlines and refreshes are each token's own**, so `resume_rate` counts for each. The deadline of a token's calls is
//!   said by the token alone ([`Token::call_timeout`](crate::token::Token::call_timeout)); that of the store's is
//!   [`Settings::store_timeout`](crate::config::Settings::store_timeout). In the file `call_timeout` sets both.
//! - **`aek_ttl` is at least 1 s and twice `call_timeout`**: else handles in use go cold between two unwraps.
//! - **A TTL counts from when the account's record was read**, not from the unwrap that followed: many who wait for one token put
//!   minutes between the two, and a deletion or a newer AEK version that was stored in them would be heard of too late. For the same
//!   reason a proof with a record of an earlier reading, while the store does not answer, renews the lease and no AEK's TTL.
//! - **An AEK version is renewed for opening alone once a newer one is known** that cannot be had: else one engine would seal for
//!   ever under a version that another one retires. So seals stop there after one TTL, although the token of the older version
//!   answers.
//! - **A TTL is put off for no longer than grace and one more TTL.** After a silence the TTLs that passed in it do not bind
//!   for one TTL, so that an outage leaves nobody cold; a token that flaps would put them off for ever.
//! - **A silent store puts TTLs off too**, until `grace` after its last word; the design speaks of the token's silence alone, and one
//!   TTL after the store went away all I/O would stop. Nobody can hear of a deletion meanwhile, so it is the store's last word that
//!   counts, and not the token's proofs, which go on.
//! - **A proof begins `call_timeout` / 20 early**, for each token that it may ask, and waits for the store for no longer, so that a
//!   store that hangs takes nothing of the token's time.
//! - **`call_timeout` is at most `poll_interval`, and `grace` at least `poll_interval + 2 * call_timeout`**: else a proof that
//!   hangs delays the next one past promise 1, or a lease lapses between two proofs, of which one waited for its turn.
//! - **`account retire` waits for its own promise.** An AEK version is not deleted until every engine that may take it for the
//!   current one has heard of the next, an outage included; else a block that was sealed and acknowledged after the service's
//!   count would be lost.
//! - **A retired AEK version is remembered in the account's record**, which is in format version 3 from then on: who reads a block of it is
//!   told when it was retired, and not that the block is damaged. Releases that know 2 alone refuse that account by name, so retire when
//!   every engine of the store has this one.
//! - **The command line has one more room with unsafe code**, `src/bin/keyleash/streams.rs`: a function that the loader calls before
//!   Rust's runtime, to see which standard streams are closed. That runtime opens /dev/null in their place, and afterwards nothing
//!   tells it from the null of whoever started the process (Python's and Node's is open for reading and writing too).
//! - **A write may rest on a second record** ([`Put::guards`](crate::store::Put::guards)): what a KEK version wraps is stored if its KEK's
//!   record is as it was when it was chosen, and retirement changes that record. A look after the write came too late where the
//!   write was held up until the key was gone, and was never made by a process that was killed before it.
//! - **moka bounds the accounts in the index, not the keys in memory**: handles keep keys that it does not hear of. A queue of the
//!   filled slots does (`src/keyring/room.rs`), with a second chance for those that were used lately, whose use costs no more than
//!   the flag that is kept for refreshes anyway. So what goes is not exactly what was used longest ago.
//! - **A wipe waits beside the slot, not in it**: a key that is taken away leaves its slot with its cell, and the slot can be filled
//!   anew while a stuck operation still uses the old one. An account that nobody opens has no cell.
//! - **An empty store file is refused**, not filled: it may be a store that was truncated.
//! - **Sealed blocks and bytes are counted after the fact, not reserved ahead.** A reservation would cost a write of the store for
//!   every account that is opened, and make a policy of few blocks come early by what others have reserved. What a crash may
//!   lose is bounded on the data path instead, and the limit of the suite leaves a factor of two for it.
//!   The command line does reserve: it ends soon, and a signal would take all of its counts.
//! - **The store has a date, and records are dated by it**, not by the wall clock of whoever writes them: ages that decide that
//!   something may be destroyed would else rest on two clocks that nobody compared. It goes forward by what engines saw pass, so a
//!   store that nobody uses grows no older. Between two engines it is known to within when each of them saw it last: the later
//!   date is written down, and the earlier one compared with it. In the same new record stands for how long any engine may not
//!   know of a new AEK version; it never shrinks, because it costs a wait of three hours at most.
//! - **Purge protection stands in the store's date**, in a format version of its own, and is never taken back: as a setting of each
//!   caller it protected nothing from whoever had it off. Only an engine that deletes, or that stays, writes it there, so that
//!   no command of somebody who looks at a store on trial binds it. Releases before this one refuse that record by name, so let
//!   every engine of a store have this one.
//! - **A new store is not begun under a clock that was never set**: its date would say 1970 for good.
//! - **A new AEK version's write rests on the store's date** as it was when the version was dated: one that was held up for longer than
//!   `account retire` allows for is refused, and dated anew.
//! - **Whoever waits for the scheduled work goes by how long its record did not change, by CLOCK_BOOTTIME**, and by the store's date
//!   beside that.
