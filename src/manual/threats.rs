//! Whom keyleash protects against, and whom it does not.
//!
//! | who | can | cannot |
//! | --- | --- | --- |
//! | has the disks of the storage service: a thief, a backup, a cloud provider's disk | see names, sizes and times; delete; put old blocks and records back | read a byte; change one unnoticed; move a block to another address or account |
//! | has the key store too | the same; bring retired wrapped AEKs back | unwrap any of it without the token; exchange wrapped AEKs between accounts, versions or KEKs |
//! | has the PIN, and no token | nothing | |
//! | owns the KEK (the customer) | take the data away from the service, within the bound of promise 1, and give it back | |
//! | has taken the service's process over | read the data of every account that is used while it is there, and unwrap what the token grants | take the KEK along; go on after a revocation, but for the AEKs and data that it copied out |
//! | has the machine's memory after the fact: a core dump, swap, a forked child | | find an AEK or its schedule in it, with `memlock = "refuse"` |
//!
//! # Not protected against
//!
//! - **The service itself.** It sees plaintext, that is its trade. What it copied out before a revocation is out.
//! - **A running kernel, hypervisor or debugger** that reads the process's memory; cold-boot attacks; side channels of
//!   the processor. AES and GHASH come from aws-lc or from RustCrypto with the processor's instructions, in constant
//!   time; without such instructions the pure-Rust code stays constant-time and is slow.
//! - **The token.** It is trusted to keep keys, and to deny what its owner forbade. A token that lies about a KEK's
//!   attributes is not found out. A look-alike KEK is: its unwraps fail the check value.
//! - **Who wrapped an AEK, under `rsa-oaep-sha256`.** Wrapping takes the public key alone, so whoever can write the store and
//!   has the public key can put a wrapped AEK that they know in the place of an account's, with a check value that fits. A live
//!   handle refuses it, and blocks that are there do not open under it; but what is sealed after the next restart is open to
//!   them. Guard the store's integrity. `aes-gcm` and `aes-kw` need the KEK itself to wrap.
//! - **A paused machine.** A virtual machine that is paused or snapshotted has its keys in the image, and its leases need
//!   not run out meanwhile; see [`promises`](mod@super::promises#what-exactly-is-promised).
//! - **Rollback and deletion**, see [`format`](mod@super::format#what-these-formats-do-not-protect).
//! - **Traffic analysis**: lengths and access patterns are visible.
//! - **Denial of service**: whoever can fill the disk, stop the token or delete the store stops the service. Data is not
//!   lost by it, but for what was deleted.
//! - **Counts that are put back.** Limits of sealed blocks and bytes stand on counts in the key store: whoever can write it can lower
//!   them, and a crash loses what was not written down yet (at most 2^30 blocks for each thread, in practice what was sealed in
//!   the last round). The limit of the suite leaves room for 500 losses of that greatest size under one AEK version.
//! - **Loss of the KEK.** A KEK without a backup that is destroyed takes every AEK with it, and every block. That is what
//!   shredding means.
