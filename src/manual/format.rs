//! Every byte at rest, version 1.
//!
//! This page is meant to be enough to read blocks, records and sealed files in another language, given a token that
//! holds the KEK. Integers are big-endian, but for bincode's (below). `‖` joins byte strings, `"text"` is its ASCII
//! bytes without a terminator, `u16 len ‖ x` is the length of `x` in bytes and then `x`. Slices are Python's:
//! `nonce[0..12]` are the first twelve bytes.
//!
//! # Sealed block
//!
//! A header and a ciphertext of exactly the plaintext's length, 0 bytes to 64 MiB. The header stands in front of the
//! ciphertext or is kept apart from it, as the service likes.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | format version = 1 |
//! | 1 | 1 | suite |
//! | 2 | 2 | zero; anything else is refused |
//! | 4 | 4 | AEK version, from 1 |
//! | 8 | 24 | nonce, random, new for every seal |
//! | 32 | 16 | GCM tag |
//! | 48 | 32 | key commitment, in suite 2 alone |
//!
//! | suite | name | header |
//! | --- | --- | --- |
//! | 1 | XAES-256-GCM ([C2SP](https://c2sp.org/XAES-256-GCM)) | 48 bytes |
//! | 2 | XAES-256-GCM with key commitment ([eprint 2025/758](https://eprint.iacr.org/2025/758)) | 80 bytes |
//!
//! Another version or suite is refused, never guessed.
//!
//! ## From the AEK to the DEK
//!
//! `AES(K, block)` is one block of AES-256. The AEK has 32 bytes.
//!
//! 1. `L = AES(AEK, 16 zero bytes)`.
//! 2. `K1 = L << 1`, as a big-endian 128-bit number; when L's top bit was 1, `K1 = K1 ⊕ 0x87` (CMAC's first subkey,
//!    NIST SP 800-38B).
//! 3. `M1 = 00 01 58 00 ‖ nonce[0..12]`, `M2 = 00 02 58 00 ‖ nonce[0..12]` (`58` is `"X"`).
//! 4. `DEK = AES(AEK, M1 ⊕ K1) ‖ AES(AEK, M2 ⊕ K1)`: 32 bytes.
//!
//! ## The ciphertext
//!
//! `ciphertext, tag = AES-256-GCM(key = DEK, nonce = nonce[12..24], plaintext, additional data)` with
//!
//! ```text
//! additional data = "keyleash.block.v1" ‖ header[0..8] ‖ u16 len ‖ account id ‖ u16 len ‖ address
//! ```
//!
//! The account id has 1 to 255 bytes of UTF-8. The address, 0 to 64 bytes, is what the service says the block is; it is
//! stored nowhere in the block. The nonce needs no place in the additional data, and the commitment none either: both
//! decide the DEK or are decided by it.
//!
//! ## The commitment of suite 2
//!
//! 1. `X = AES(AEK, "XCMT" ‖ nonce[0..12])`.
//! 2. `Ci = AES(AEK, X ⊕ (nonce[12..24] ‖ 00 01 00 i) ⊕ K1)` for `i` = 1, 2.
//! 3. `commitment = C1 ‖ C2`.
//!
//! Compare it in constant time, before anything is decrypted.
//!
//! # Wrapped AEK
//!
//! The token wraps the 32 bytes of the AEK and nothing else. What they are bound to is the context:
//!
//! ```text
//! context = "keyleash.aek.v1" ‖ u16 len ‖ KEK name ‖ u32 KEK version ‖ u16 len ‖ account id ‖ u32 AEK version
//! binding = SHA-256(context)
//! check   = HMAC-SHA256(key = AEK, context)
//! ```
//!
//! After every unwrap compute the check value and compare it in constant time with the record's; an AEK whose check
//! value differs was moved, changed, or comes from another KEK, and is not used.
//!
//! | profile | code | how to unwrap `wrapped` under the KEK |
//! | --- | --- | --- |
//! | `aes-gcm` | 1 | C_Decrypt, CKM_AES_GCM, IV from the record, 128-bit tag, additional data = binding. The tag stands behind the ciphertext: 48 bytes on most tokens |
//! | `rsa-oaep-sha256` | 2 | C_Decrypt, CKM_RSA_PKCS_OAEP, hash SHA-256, MGF1-SHA256, no label; the IV is empty. 384 bytes under RSA-3072 |
//! | `aes-kw` | 3 | C_UnwrapKey, CKM_AES_KEY_WRAP (0x2109, RFC 3394 with its default IV), the IV of the record is empty; 40 bytes |
//!
//! The KEK is found by its CKA_ID, which the record holds. IV and wrapped bytes are what the token gave: some tokens
//! choose the IV, or put it into the wrapped bytes, so take both as opaque.
//!
//! # Records
//!
//! A record is `u8 format version` and then one value in [bincode 2](https://docs.rs/bincode/2.0.1), standard
//! configuration. Of that, records use:
//!
//! - **unsigned integer** of any width: a value below 251 is one byte; else `fb` and 2 bytes, `fc` and 4 bytes, or `fd`
//!   and 8 bytes, **little-endian**, in the shortest of these forms. A longer form is refused.
//! - **u8** is one byte as it is, and takes no part in the above.
//! - **text** and **bytes**: the length as an unsigned integer, then the bytes.
//! - **list**: the number of elements as an unsigned integer, then the elements.
//! - **array** of a fixed length: the bytes alone.
//! - **struct**: its fields in order, nothing between them. **choice**: its number as an unsigned integer, then its fields.
//!
//! ```
//! /// The unsigned integer at the front of `bytes`, and the rest.
//! fn unsigned(bytes: &[u8]) -> Option<(u64, &[u8])> {
//!     let (first, rest) = bytes.split_first()?;
//!     let len = match first {
//!         0..=250 => return Some((u64::from(*first), rest)),
//!         0xfb => 2,
//!         0xfc => 4,
//!         0xfd => 8,
//!         _ => return None,
//!     };
//!     let (number, rest) = rest.split_at_checked(len)?;
//!     Some((number.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)), rest))
//! }
//! assert_eq!(unsigned(&[250, 9]), Some((250, &[9][..])));
//! assert_eq!(unsigned(&[0xfb, 0x2c, 0x01]), Some((300, &[][..])));
//! assert_eq!(unsigned(&[0xfc, 0x00, 0xf1, 0x53, 0x65]), Some((1_700_000_000, &[][..])));
//! ```
//!
//! The value is a choice. Nothing follows it. Accounts that remember retired AEK versions, and denials that name a witness, are written in
//! format version 3, and so are dates of stores under purge protection; other accounts, KEKs, other denials by a standby, ids and
//! other dates of stores in 2; everything else in 1.
//!
//! | format version 3, choice | fields, in order |
//! | --- | --- |
//! | 0, account | as in version 2; then the list of retired AEK versions (1 to 1024, strictly ascending, before the current one, none of those that are there) |
//! | 1, denial with a witness | as a denial of version 1; u8 1 if the KEK's standby said so, else 0; text account id of the witness; unsigned its AEK version; array of 32, its digest |
//! | 2, date of a store under purge protection | as the date of a store in version 2: an engine with `purge_protection` uses the store, or did |
//!
//! A denial ends as the token unwraps its witness, in the wrapping that has this digest; if the store has that no more, the oldest AEK version
//! that the KEK version wraps takes its place. With `x` the CKA_ID, the profile code (one byte), the IV, the wrapped bytes and the check
//! value in turn, `digest = SHA-256("keyleash.witness.v1" ‖ u16 len ‖ x ‖ …)`.
//!
//! | format version 2, choice | fields, in order |
//! | --- | --- |
//! | 0, account | text account id (1 to 255 bytes, no control characters); unsigned created (seconds since 1970); list of AEK versions (1 to 256); option of deletion; unsigned policy: most seconds of age; unsigned policy: most blocks sealed; unsigned policy: most bytes sealed (each 0: no limit) |
//! | 1, KEK | text name (1 to 64 of `A-Z a-z 0-9 . _ -`, a letter or digit first); list of KEK versions (1 to 1024); unsigned current version, which is in the list and not retired; unsigned policy: most seconds of age (0: no limit) |
//! | 2, denial by the KEK's standby | as a denial of version 1 |
//! | 3, id of the store | array of 8, random, made with the store's first KEK; as 16 hexadecimal digits behind `@` it ends the CKA_LABEL of every key that keyleash makes for the store: `keyleash/NAME/VERSION@ID` |
//! | 4, date of the store | unsigned date (seconds since 1970); array of 16, the boot of the machine that wrote it (zeros: not known); unsigned nanoseconds of CLOCK_BOOTTIME there; unsigned seconds since 1970 by the wall clock there; unsigned longest overlap of AEK versions of any engine, in seconds |
//!
//! | element | fields, in order |
//! | --- | --- |
//! | AEK version | unsigned AEK version; text KEK name; unsigned KEK version; bytes CKA_ID (1 to 64); u8 profile code; bytes IV (0 to 64); bytes wrapped (1 to 1024); array of 32, the check value; unsigned created; unsigned blocks sealed; unsigned bytes sealed |
//! | retired AEK version | unsigned AEK version; unsigned since (seconds since 1970) |
//! | deletion | unsigned since (seconds since 1970); unsigned to be purged from then on |
//! | KEK version | unsigned version; bytes CKA_ID (1 to 64); u8 profile code; unsigned created; text token name (as a KEK name); option of unsigned: retired since; option of unsigned: backup attested at |
//!
//! An **option** is u8 0, or u8 1 and then the value.
//!
//! | format version 1, choice | fields, in order |
//! | --- | --- |
//! | 0, account | read, not written: as in version 2, without what is behind the AEK versions, and in each AEK version without what is behind its creation |
//! | 1, KEK | read, not written: as in version 2, without what is behind the current version, and in each KEK version without what is behind its creation; the token is `default` |
//! | 2, denial | text KEK name; unsigned KEK version; unsigned when a token said so last (seconds since 1970); text reason (at most 1024 bytes) |
//! | 3, holder of the scheduled work | unsigned fence; array of 16, the holder; unsigned until (seconds since 1970) |
//!
//! Versions count from 1 and stand in strictly ascending order, with gaps where some were retired; the last AEK version
//! is the current one. So an AEK version that is missing before it was retired, also where no list says when: by a release that wrote
//! none, or as one of more than 1024. A record is at most 256 KiB long. Its own name must be the one that it was found under. Times decide
//! when an account may be purged, an AEK version be retired, and what is rotated by schedule, and nothing else. They are the store's
//! dates and compared with that alone, never with a wall clock. `tests/compat/records/` has one of
//! each, byte by byte with comments.
//!
//! # Key store
//!
//! A record is stored under `kind ‖ name`: `"a" ‖ account id`, `"k" ‖ KEK name`, `"d" ‖ KEK name ‖ "/" ‖ KEK version
//! in decimal` for a denial, `"w"` for the holder of the scheduled work, `"s"` for the
//! store's id, or `"c"` for its date. Keys are ordered as byte strings.
//!
//! The embedded store is one [redb](https://docs.rs/redb/4.5) file (file format 3) with three tables:
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `keyleash.meta` (`&str` → `&[u8]`) | `format` | u32 = 1 |
//! | | `revision` | u64, the last that was given to a value; never goes back |
//! | `keyleash.records` (`&[u8]` → `&[u8]`) | the key above | `u64 revision ‖ digest ‖ u16 count ‖ count × (u8 len ‖ KEK name ‖ u32 KEK version) ‖ record` |
//! | `keyleash.wrapped_by` (`&[u8]` → `()`) | `KEK name ‖ 00 ‖ u32 KEK version ‖ key above` | nothing: the index of the accounts that a KEK version wraps |
//!
//! A fourth, `keyleash.shred`, is there while what was freed is written over, and says nothing; a crash may leave it.
//!
//! `digest` is the first 16 bytes of `SHA-256(u16 len ‖ key ‖ revision ‖ everything behind the digest)`. It tells bit rot;
//! it is no MAC.
//!
//! Keys, index entries and redb's own lists stand in pages whose checksums (XXH3, 128 bits) stand in their parents, up to the
//! header. All of them are verified when the file is opened, so that nothing can be missing, renamed or of an older state; the
//! file is as redb writes it, and every release reads and keeps that up. Which of the header's two commit slots counts is one
//! bit without a checksum: where it names the older one, the newer is taken if it is whole.
//!
//! # Sealed file of the command line
//!
//! | size | field |
//! | --- | --- |
//! | 8 | `"KEYLEASH"` |
//! | 2 | version = 2 |
//! | 2 | length of the account id |
//! | 1 to 255 | account id |
//! | 16 | file id, random; what is sealed with a store that has an id ends with the first 4 bytes of SHA-256(`"keyleash.file.store.v1"` ‖ store id ‖ the 12 bytes before), by which an error tells another store from damage; readers need not look |
//! | 4 | block size = 65536 |
//! | 16 | digest: the first bytes of the SHA-256 of all before it. Version 1 does not have it, and opens for ever |
//!
//! Then blocks, each a header (whose suite tells its length) and its ciphertext. Every block but the last has plaintext of
//! the block size; the last, behind which the file ends, has 0 bytes to the block size, so that empty plaintext is one
//! empty last block. The address of a block is `file id ‖ u64 index ‖ u8 last`: the index counts from 0, `last` is 1 for
//! the last block and 0 for the others. So a file that is cut, reordered, spliced or lengthened fails to open. The header of
//! the file is in no MAC of its own: account id and file id stand in every block's additional data, and a changed
//! version or block size is refused. The digest tells a damaged account id from an account that is not there.
//!
//! # Limits
//!
//! | what | limit |
//! | --- | --- |
//! | block | 64 MiB |
//! | address | 64 bytes |
//! | account id | 255 bytes |
//! | KEK name | 64 bytes |
//! | AEK versions of an account | 256, and 256 KiB in all |
//! | KEK versions | 1024 |
//! | configuration file | 64 KiB |
//!
//! | blocks sealed under an AEK version | 2^46 |
//! | bytes sealed under an AEK version | 2^60 |
//!
//! Nonces are random: 24 bytes, of which a collision is a matter of 2^80 blocks per AEK at a risk of 2^-32 (C2SP). The 2^32 blocks
//! of plain AES-GCM with random nonces (NIST SP 800-38D) do not bind, because every half of a nonce has a DEK of its own. What
//! binds first is the derivation: each block takes two messages of CMAC under the AEK (in suite 2 five calls of AES in all), and
//! NIST SP 800-38B recommends no more than 2^48 messages. Sealing is refused behind 2^46 blocks, which leaves a factor of two for
//! what crashes keep from being counted; the engine that does the scheduled work rotates at half of it, whatever the policy
//! says. What was sealed under a version is in its record, as far as it was written down: every engine adds its own counts, at
//! the latest when they are 2^30 blocks of one thread.
//!
//! # What these formats do not protect
//!
//! - **Rollback of a block**: an older block of the same address, account and AEK version opens. Put a generation into the
//!   address where that matters.
//! - **Rollback of a record**: whoever can write the store can put an older record back, with wrapped AEKs that were
//!   retired meanwhile. It still needs a KEK that unwraps them.
//! - **Deletion**: blocks, records and files can be deleted, by whoever can write them, and nobody is told.
//! - **What is not secret**: names of accounts and KEKs, numbers and times of versions, the lengths of blocks, and which
//!   are read and written when.
