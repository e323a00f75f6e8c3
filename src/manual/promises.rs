//! The six promises, how each is enforced, and what each assumes.
//!
//! | | promise | how | assumes |
//! | --- | --- | --- | --- |
//! | 1 | **Revocation.** After the token would first deny, no seal and no open succeeds later than `poll_interval + call_timeout` when the token answers, and never later than `grace` (30 min) after the last proof: under one hour whatever happens | every seal and open compares CLOCK_BOOTTIME with the end of its lease, on the data path; only a proof moves that end, and an ordinary one only while the last fresh one is young; [`Settings::validate`](crate::config::Settings::validate) refuses a configuration whose sum passes the hour | CLOCK_BOOTTIME counts; the token does not grant what its owner took away |
//! | 2 | **Resumption.** When the token grants again, live handles work again without being reopened, within a poll interval (at most 60 s), and every account within 30 minutes | leases are asked for while they are denied, and AEKs unwrapped anew at `resume_rate`, those that are wanted first; [`Settings::warnings`](crate::config::Settings::warnings) says when the rate cannot do it | the token is fast enough for the accounts there are |
//! | 3 | **Outage is not revocation.** While the token is unreachable, sealing and opening go on until grace ends; then they fail closed with [`Error::Lapsed`](crate::Error::Lapsed) | return codes are sorted into denied and unreachable by one table, after diagnosis; `grace` is at least a poll and one whole proof, its wait for a turn (`call_timeout`) and its call (another) | the module tells the two apart, or is found out by diagnosis |
//! | 4 | **Denial is sticky.** Denied, then unreachable, stays denied, across restarts, engines and standbys too, until a proof, and only a record that was there before the denial proves | the state machine has no way from denied to granted but a proof, and while it is denied only the denial's witness is one; every denial is a new record in the store, and a proof ends only the one that was read before it was asked | the store can be written; where a denial cannot be read, it counts as denied |
//! | 5 | **Nothing is lost.** An acknowledged record survives a crash at any instant; what was changed, moved or cut is refused by name | a write is durable before it returns; creation of the store is all or nothing; digests, check values and additional data; limits on everything read | the disk keeps what it said it synced |
//! | 6 | **Nothing lingers.** After denial, lapse, eviction or drop no AEK, DEK or schedule is left in memory, nor in a core dump | key memory of our own: locked, left out of dumps, zero in a forked child, wiped as soon as no operation uses the key that was taken away | RLIMIT_MEMLOCK suffices (a warning or a refusal says if not); the kernel, and whoever debugs the process, are trusted |
//!
//! # What exactly is promised
//!
//! - **When an operation counts.** A seal or open counts as of its look at the clock before it touches the key. Before it
//!   reports success it looks at the lease's epoch again, so that a denial that arrived meanwhile is seen, and from 64 KiB
//!   on at the clock again too. So what can pass a bound is one block under 64 KiB per thread that was already under way.
//! - **Detection needs a proof, certainty does not.** `poll_interval + call_timeout` is the time of the watch: a proof of
//!   each KEK version in use is asked at most one `poll_interval` after the one before, and has `call_timeout` in the token.
//!   The second bound, grace after the newest proof was *asked*, is the data path's own and needs no task to run.
//! - **Proofs wait for no other work on their token**, however much of it there is: they overtake all that waits, and of several
//!   workers one is theirs alone. With a single worker (the default of the command line, not of the library) a proof waits for the one
//!   call that this is at, so that the first bound is longer by that call: a `call_timeout` at most, and where an RSA KEK is made
//!   in the running process a minute. The second stands as it is. What a call may take counts from when a worker has it, so that a
//!   token which is slow and answers is not taken for one that hangs. A proof that finds no worker for a `call_timeout` learns
//!   nothing, neither a denial nor a silence, and the lease runs on to its end;
//!   [`Event::ProofCrowdedOut`](crate::telemetry::Event::ProofCrowdedOut) tells of it. Calls that hang and are neither proofs nor
//!   unwraps take half of `hung_max` workers at most: then no more of them are made until one comes back, and keys in use go on. A
//!   call that has not begun when nobody waits for it any more is not made.
//! - **The host** can neither starve, stop nor drop the watch: the engine lives on four threads of its own, for proofs, for what a
//!   caller waits for, for upkeep, and for the store. A caller only waits, on whatever executor it has, or on none of tokio's; one
//!   that stands still, or goes away with its runtime, costs its own calls and nothing else. A store that blocks the thread it is asked
//!   on is a store that does not answer. What is left: a token of the host's own making, and whoever writes the process's log lines
//!   (its `tracing` subscriber), are called on those threads; one that blocks there holds up proofs, and leases then end by the clock.
//!   A child of `fork` has no engine: every call says so, as [`Error::Fatal`](crate::Error::Fatal), and none waits for a lock of the parent.
//! - **Whoever waits has a deadline.** A read on the way to a key has a `call_timeout` (of the library
//!   [`Settings::store_timeout`](crate::config::Settings::store_timeout)), any other call of the store one `aek_ttl` (a
//!   minute at least), a call of the token its own; what takes longer is [`Error::Store`](crate::Error::Store) or
//!   [`Error::Unreachable`](crate::Error::Unreachable).
//! - **A seal or open that is stuck** (a page of its buffer does not come, its thread was stopped) holds up nothing but the wipe of
//!   the key that it uses. A denial is in force for all that begins after it, told and written down first; every other key is
//!   wiped at once; the slot is filled anew with the resumption. The key that is used is wiped as that operation ends, which then
//!   fails. One that takes longer than a second is told
//!   ([`Event::WipeWaits`](crate::telemetry::Event::WipeWaits), `waiting_wipes` in the status), with the thread. When the last handle's
//!   drop returns, every key is wiped: an operation in flight has a handle.
//! - **How many keys are in memory**: at most `max_cached_aeks`, each AEK version counted, whoever holds handles; and beside
//!   them those that are stuck in an operation as above, two for each thread at most. A handle whose key made room for another is
//!   [`Error::Cold`](crate::Error::Cold) until it is warmed.
//! - **Which memory is locked.** With `memlock = "refuse"` no key is ever in memory that `mlock` did not lock. What the process may
//!   lock is compared with what it has locked as the engine is built; what others lock later is found out as a key finds no room,
//!   and that key is refused. The policy is the engine's own; AEKs on their way to and from a token, and PINs, belong to no engine,
//!   and are refused while there is one engine that refuses. A PIN that was read before may stand in memory that is not locked.
//! - **Back-off.** A KEK version that was refused or silent for over 10 minutes is asked less often, down to once in 60 s;
//!   a caller who opens an account of it makes the token be asked at most once a second besides.
//! - **No key becomes usable on an old proof.** A KEK version that no account in memory is under is not asked. So whoever brings the
//!   first one late (a store that took minutes to write an account or an AEK version) asks the token again first, when its KEK
//!   version's last proof is a `poll_interval` old, and the watch asks from then on.
//! - **A denial is written down** as it arrives. If the store fails just then, it is tried again with every proof; a crash
//!   in between loses the record, not the effect: after the restart nothing is in memory, and the token is asked first.
//! - **Two processes on one store** each hold leases of their own. Each writes every denial that it hears, one that repeats another
//!   too, as a new version of the record. A proof ends the version that its process had read or written before it asked, and no
//!   other: one that was written since is newer, whoever's clock says what. Nor does a proof out of a context that began before that
//!   version was known, which may hide what it tells: the next proof is a fresh one then, and a denial that the store tells of as the
//!   process meets the KEK version ends by none but a fresh one. What a proof finds that it does not end, the next one
//!   does, unless it is denied. Clocks of hosts order nothing. A crash of all of them within one poll of a denial loses the
//!   record, not the effect.
//! - **What proves a KEK.** A record that the KEK wrapped before, unwrapped and verified. What a process wraps is verified by an unwrap too,
//!   and proves nothing: another key in the KEK's place does the same. So nothing is wrapped under a KEK version (a new account, a
//!   rotated AEK, a re-wrap) unless a record that was there was unwrapped within half a `poll_interval`; where the watch has not
//!   just done so, that costs one listing, one read and one unwrap in that time, however much is wrapped. An AEK that was wrapped here counts as a proof once an older one was unwrapped after it.
//! - **A KEK version that wraps nothing yet** has no such record, and no data that a denial of it keeps. There a round trip counts: once the
//!   token unwraps what it wrapped, a remembered denial ends. And where none of the records (16 are tried) can be unwrapped, nothing
//!   new is wrapped under that version: restore the KEK or the records, or make a new version by `kek rotate`.
//! - **Another key in the KEK's place is found by the next proof**, which is by a record that was in use here before the proof before it was
//!   asked, or by the first that ever proved here. So for one poll new accounts can still be made under it. They stay under
//!   it: when the KEK is restored, they are corrupt by name, and what was sealed under them in that poll is lost with the impostor.
//!   A re-wrap asks for such a record once more before it writes, because the old wrapping goes with that write.
//! - **By what a denial ends.** By its *witness* alone: the first record that proved the KEK version in the process that noticed. The
//!   denial's record names it, so that in every process, after every restart, an account that was made in that poll ends nothing,
//!   whoever opens it first, and gets no key while the denial lasts. Where the witness was purged, moved to another KEK version or
//!   changed since, or nobody knew of one, the oldest record that is left takes its place (by the date of its making, of the first
//!   16,000 accounts that the KEK version wraps); while that does not unwrap, the denial stays, and says which account it is about.
//!   Two limits: a process that opened an account of that poll first of all, while nobody had noticed yet, has that for its witness,
//!   so that to it the return of the KEK is a denial, and to whoever reads that in the store. A witness that is refused as another
//!   key's gives way to the oldest record, if that is older and is unwrapped, for which is looked every 5 minutes; that process may go on to
//!   take each use of that account for another key, until it is started again or the account is purged (it is lost with the impostor
//!   anyway). And where the oldest takes the witness's place, a host whose clock was behind by more than that one's age may have made a
//!   younger one.
//! - **A denial that a newer release wrote** in a format that this one does not read is a denial as the process starts, until its
//!   first proof, and is left in the store for that release to end; so it is one with every start.
//! - **An account that another process re-wrapped** is followed by live handles: noticed by a proof, a refresh or an open,
//!   then all accounts of that KEK version are looked at, at `resume_rate`.
//! - **An outage of the key store is an outage.** AEKs are stored there alone, wrapped, so while it cannot be read none is
//!   unwrapped anew; the token is proved on with a record that was proved before, and denies as ever. AEKs in use whose TTL passes
//!   meanwhile go on until `grace` after the store's last word, which is a read answered within `call_timeout`; then they are cold.
//!   An account that another engine deleted, or rotated, while this one cannot read the store is used as before for no longer than
//!   that: `grace` after the store's last word, also when it comes back just before. While the token is silent as well, the lease
//!   alone ends keys, as in any outage of the token: then such an account is used until the lease ends or the token answers, or for
//!   one TTL more where the store does by then. A store that answers others and not one account's record puts that account off for
//!   one TTL, grace and one TTL at most.
//! - **A proof waits for the store for a twentieth of `call_timeout`** where there is a record that was proved before, and begins so
//!   much earlier, so that the token has all of its time. After the purge of the account whose record that was, another one is
//!   proved at once; when there is none, that is told
//!   ([`Event::NoRecordToProve`](crate::telemetry::Event::NoRecordToProve)), and the lease runs out.
//! - **Which suspend is covered.** CLOCK_BOOTTIME runs on while the machine itself is suspended (to RAM or to disk), so it never
//!   wakes with live keys. A virtual machine that its hypervisor pauses, snapshots or migrates need not be told: on most
//!   hypervisors its clock stands still meanwhile, and goes on where it stopped. Then `grace` counts the time in which the
//!   machine ran, and the keys are in its memory image for as long as that is kept. The first proof after the pause, at most
//!   one `poll_interval` later, finds a denial. Do not pause or snapshot machines that hold keys, or restart the service after it.
//! - **Dates of a KEK** that the token does not look at are looked at by keyleash, with each proof: by the machine's wall clock, and by grace
//!   where that was never set ([`operations`](mod@super::operations#dates-of-a-kek)).
//! - **Modules that hide a revocation** from a context that was open are asked from a fresh one every `fresh_proof_every`
//!   proofs (20): for them, promise 1's first bound is `fresh_proof_every * poll_interval + call_timeout` (5 min by
//!   default; a proof that renews begins earlier by what that may take, `call_timeout` or half a `poll_interval`, so that the bound of
//!   no poll is longer for it), and the second is counted from the last *fresh* proof: no seal and no open later than
//!   `fresh_proof_every * poll_interval + grace` after its context was initialised (35 min), however many ordinary proofs
//!   succeed meanwhile, on-demand unwraps included. That sum stands in the bound of one hour that the configuration is checked
//!   against. Where no context can be renewed, because a call hangs in the module, it is tried again with every proof, and told
//!   ([`Event::ContextNotRenewed`](crate::telemetry::Event::ContextNotRenewed), `fresh_ago` in the status); the lease ends then.
//!   A context that is not keyleash's to end ([`FreshContext::Never`](crate::token::pkcs11::FreshContext::Never), or one that
//!   the host initialised) is as fresh as it gets: there the program itself must renew it.
//!
//! # Several tokens
//!
//! Each token has workers, a deadline (`call_timeout`), a budget of unwraps, refreshes and proofs of its own, and each KEK
//! version a lease of its own: a token that hangs, is away or denies takes no place, no proof and no time from the accounts of
//! another, and denies none of them. The bounds above hold for each token with its own deadline. What the engine cannot keep
//! apart is what two tokens share outside of it: one PKCS#11 module
//! ([`operations`](mod@super::operations#several-tokens)), one network, one HSM.
//!
//! A KEK version is asked of the token that its record names. Where that one is not configured, its accounts are
//! [`Error::Misconfigured`](crate::Error::Misconfigured) by name, and no other token is asked: there the KEK would be missing,
//! which is a denial.
//!
//! # A standby
//!
//! A KEK may have a standby: another token that has the same key material under the same CKA_ID and profile, as HSM vendors
//! clone it (clones keep attributes). The first token is the one that the KEK's record names.
//!
//! - **Who speaks.** The first token, and the standby only while the first is unreachable (no answer, or an answer that it
//!   cannot). While the first one's last word was a denial, the standby is never asked, whatever comes after: silence, a restart
//!   (the denial is in the store, with who said it), or another process that heard it. Only a grant by the first token ends that,
//!   in each process its own.
//! - **What other engines heard.** With every proof of a KEK that has a standby an engine looks into the store. In a silence of the
//!   first token a denial that the first one said, and that was written since its last grant here was asked, takes this engine
//!   off the standby within a poll, and is a denial here: the first token cannot be asked whether it still holds. Which denials are
//!   older than the grant is told by their versions in the store, which this engine had read before it asked. What a standby said
//!   to others keeps nobody from it: it speaks for itself.
//! - **While the store does not say**, the standby is not gone over to. An engine that lives on it asks it for two more poll
//!   intervals after the store's last word; from then on this is an outage with one grace, after which the lease lapses, though
//!   the standby would grant.
//! - **A grant by the standby is a proof**: it renews the lease like any other, so that an outage of the first token alone
//!   is noticed by nobody however long it lasts. What was asked of the standby before a denial arrived re-admits nothing.
//! - **A denial by the standby is a denial**, while the first token is silent. If the first one has answered by then, its own
//!   word counts and the standby's does not. A standby that denied may grant again, which is a proof; so is a grant by the
//!   first token that comes back.
//! - **Both silent** is an outage as ever: one grace after the newest proof, then lapsed.
//! - **Promise 1 with a standby.** While the first token answers, nothing changes: `poll_interval + call_timeout`. In the
//!   silence of the first: a denial by the standby holds within `poll_interval + ` the first one's `call_timeout + ` the
//!   standby's, because the proof that meets the silence waits for the first one's deadline before it goes over; once the silence
//!   is known both are asked at once, and the standby's denial holds within `poll_interval + ` its own `call_timeout`, the
//!   first one's return or denial within `poll_interval + ` its own. So the sum of both deadlines is held against the bounds
//!   of `call_timeout`: a configuration in which it is longer than `poll_interval` is refused. The look into the store
//!   as the standby takes over has the store's own deadline, `[lease] call_timeout`; later looks run beside the proofs.
//! - **To revoke while the first token is unreachable**, disable the key on the standby too: disabling it on the first one
//!   alone is heard when that one answers again, and until then the standby grants. That is what it is for. Who takes the
//!   first token off the network and wants the data to go dark must disable the key on the standby, or the standby must be
//!   silent as well, for a grace.
//! - **A standby that is none.** One that does not have the key, or another one in its place (it gives other bytes, refuses what the
//!   first token wrapped, or is set up so that it cannot), denies nobody: the silence of the first token is then an outage with
//!   its grace, and [`Event::StandbyUnfit`](crate::telemetry::Event::StandbyUnfit) says why. A key that was seen on the standby and is
//!   gone from there in the outage is a denial; engines look for it after the first proof and with every fresh one. A key
//!   version that was rotated in and not cloned yet is one that was never seen.
//! - **Who waits.** The first caller whose key is not in memory waits for the first token's deadline, then for the standby;
//!   whoever comes after it asks the standby at once. Guests of a standby have a budget of their own there: they take no
//!   place from the accounts that are at home in it.
//! - **New wrappings** (new accounts, rotations, re-wraps) are made by the standby only in a process in which it has unwrapped
//!   what the first token wrapped (one that is there is asked for first): else another key might wrap what the first token could never give back. KEKs and their
//!   versions are made in the first token alone.
//!
//! # Not there yet
//!
//! The spool: after grace, writes are refused and not held.
