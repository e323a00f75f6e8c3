//! Performance: what is measured, how, and how to read a target that was missed.
//!
//! ```text
//! benches/report             half an hour and 10 GiB of disk: the table, report.json and pictures, in target/report/
//! benches/report --quick     one minute, to see that it works; its ratios are rough
//! benches/report --readme    the whole report, and the table into benches/README.md, five lines into README.md, one picture here
//! benches/report --only blocks --only cold     some parts: blocks, cold, fleet, files
//! ```
//!
//! It builds and installs what it compares (a token, rage, gpg, OpenSSL's headers). A target that is missed is printed as missed,
//! with by how much, and the exit status is 0 all the same: a time is not a test, and CI measures none. Targets and rows are one list,
//! `benches/suite/targets.rs`; nothing in the tables of benches/README.md and README.md is written by hand.
//!
//! # How a ratio is made
//!
//! Machines are noisy, and two means that were measured one after the other compare two minutes rather than two programs. So the
//! things that are compared take turns of some milliseconds (A B, B A, A B, …) in one process, on the same buffers, pinned to the same
//! core where they use one. A ratio is the median of the ratios of the rounds, with the quartiles in parentheses: 1.02 (1.01–1.04) was
//! below 1.01 in a quarter of the rounds. What runs on one thread is timed in processor time, which stands still while somebody else
//! has the core. Wide quartiles say that the machine was busy; the report also says what its load was.
//! Ratios are speeds: 1.2 is 1.2 times as fast.
//!
//! # The rows
//!
//! - **Seal and open.** Our whole way of a block: lease, clock, nonce, derivation, AES-256-GCM, the account and the address bound in, the
//!   lease again. Against `aws-lc-rs`, which does nothing but AES-256-GCM with as much additional data: with a fresh key for each block,
//!   the ordinary way to have one, though its key comes from nowhere and its nonce is a constant; or with one fixed key, which is the limit
//!   of any design. Seals are in place, opens go into another buffer (an open in place destroys its own input; the row with both in place
//!   covers it). The ciphertext that is opened is the same bytes for both.
//! - **Two threads.** Time of one thread against two, each on a core of its own. What raw `aws-lc-rs` gains from a second thread stands
//!   beside it: where that is below 2, the machine's cores are not two (hyper-threads, a neighbour), and no program reaches 1.9.
//! - **Cold opens.** [`Engine::account`](crate::Engine::account) on an empty engine, with a store in memory and SoftHSM as the token: read
//!   and decode the record, unwrap, verify the check value, fill the slot. Against threads that do nothing but C_DecryptInit and C_Decrypt
//!   of the same wrapped AEKs, as many as the engine has workers. SoftHSM answers in some 10 µs, which no HSM on a network does: this
//!   row is keyleash's own cost at its most visible. With two workers on two cores the bare loop has both cores for itself, and all
//!   that keyleash does besides is taken from them; the row in processor time says how much that is. *One after the other* is the way there and back between threads, alone.
//! - **All at once.** Every account is asked for at the same moment; latencies count from then, so that the p99 is close to the time of
//!   the whole.
//! - **Look-up.** Accounts are drawn at random, so that each is wherever a million of them are, mostly not in a cache of the processor;
//!   with 1,000 they are. A service that keeps its [`Account`](crate::Account) handle looks nothing up.
//! - **Memory.** Growth of the resident set as accounts are opened, by account: index, slot, names, key memory. The store's records do not count.
//! - **Token calls.** On the manual clock, with accounts that nobody uses: one proof for each poll, however many accounts there are.
//!   An account in use is unwrapped anew once in 5 to 7.5 minutes besides (`aek_ttl`); that is what a TTL costs.
//! - **Wipe.** A denial empties and wipes every slot of its KEK, while two threads seal 4 KiB blocks under another. Those seals are
//!   told in three ways, because a machine with two cores has none left for the wipe and its scheduler interrupts whom it likes: the
//!   longest in processor time (what the wipe makes them spin or miss the cache), how often they waited by themselves (a lock), and the
//!   longest on the wall, beside the longest while another thread merely spins for as long.
//! - **Re-wrap.** Unwrap, verify, wrap, verify by a second unwrap, compare-and-put into the embedded store on a real disk, in batches;
//!   against the same three token calls for each account, by the same workers, with no store and nothing verified. The rows beside are
//!   against threads that call the module alone: SoftHSM takes some 20 µs for a call, as much as the way to a worker and back, and with two
//!   threads on two cores nothing is left for that way. The note says what memory it took. Each of our wraps makes a fourth call of the module,
//!   which looks whether the KEK's handle is still the KEK's; on SoftHSM that is about a tenth of a re-wrap.
//! - **Files.** `benches/suite/files.rs` says what each tool does. Until it is on the disk is the fair time: keyleash syncs before it
//!   says that it is done, the others leave that to whoever cares.
//!
//! A benchmark with a process of its own leaves its row as `KEY.json` in `$BENCH_REPORT_DIR/rows/`, which is `target/report/rows/`:
//! `{"value": 0.81, "low": 0.79, "high": 0.82, "note": "…"}`, quartiles and note where it has them. KEY is that of the list of targets.
//!
//! # What an account in memory takes
//!
//! One command measures it, with the look-ups, the token calls and the wipe: `benches/report --only fleet`. With a million accounts
//! of one AEK version, ids of 14 bytes, an account takes 975 bytes. Of 640 that is missed by half. Where they are, by the sizes of the types as
//! malloc rounds them:
//!
//! | what | bytes |
//! | --- | --- |
//! | moka's entry: six allocations, and the table of pointers to them | 320 to 336 |
//! | the cell of locked memory: epoch, AES-256 schedule, CMAC subkey | 272 |
//! | the slot of the AEK version, with the meter of what is sealed under it | 208 |
//! | the account's keys, which handles hold | 80 |
//! | the text of its id, once | 48 |
//! | the table of the living, the lease's list of its slots, the queue of the filled ones | 36 to 51 |
//!
//! So what is missed is moka's share. An index of pointers, like that of the living, would need 20 bytes of it; moka stays, because it
//! brings single-flight, bound and TTL as a library that others keep.
//!
//! A look-up in moka alone is a chain of reads that wait for one another: bucket, key, text, entry, and, when it works off what was
//! looked up, the nodes of the order in which entries leave. So it is asked once in five minutes for an account; between, the keys are
//! found in the table of the living. What is left there is six reads: table, pointer, keys, the id's text, slot, cell. An account that
//! is not looked up for five minutes still takes the long way.
//!
//! # What is missed, and why
//!
//! README.md has by how much; this is what the profiles say, on the machine of its table (`perf record -e cpu-clock`, whose virtual
//! processor has no counters of its own; the commands are at the end of this page).
//!
//! **Seal and open, 512 B and 4 KiB.** Of the time of a seal of 4 KiB, 750 ns:
//!
//! | what | seal | open |
//! | --- | --- | --- |
//! | AES-GCM itself, AWS-LC's assembly | 56 % | 57 % |
//! | the rest of AWS-LC: counter, additional data, tag | 12 % | 12 % |
//! | setting up the DEK: schedule, hash key and its powers | 13 % | 14 % |
//! | deriving it: two AES blocks | 3 % | 3 % |
//! | overwriting 4 KiB of stack behind it | 4 % | 4 % |
//! | one look at CLOCK_BOOTTIME, 28 ns | 4 % | 4 % |
//! | the nonce | 1 % | – |
//! | all else of keyleash: lease, slot, count, header, additional data | 5 % | 4 % |
//!
//! The first three rows are what `aws-lc-rs` does with a fresh key as well. It spends some 50 ns more, on a context on the heap that is
//! allocated, wiped and freed; that is all there is to pay 130 ns with, of which the clock alone takes 28. So 1.0 is out of reach on
//! this machine, and 512 B more so, where the same 130 ns stand beside less AES. What would close it, and why it is not done:
//! - A clock that is read in 10 ns (the time-stamp counter by itself). It is not CLOCK_BOOTTIME, and it may stand still in a machine that is
//!   suspended: an invariant.
//! - Overwriting less stack. All of it is needed: AWS-LC's assembly for AVX-512 leaves hash keys and round keys of the DEK 3 KiB below
//!   our frame (the test `no_call_of_a_seal_or_open_reaches_deeper_than_the_scrub` prints where). Assembly that
//!   cleans up behind itself would let a third of the 4 KiB suffice, and save 20 ns.
//! - One DEK for several blocks. It is not the format, and each block's own DEK is what lifts AES-GCM's limits.
//!
//! **Cold opens.** SoftHSM answers in 22 µs of processor time, half of it in the kernel, because it opens, locks and reads the token's files for each call. Of
//! all processor time while 64 tasks open accounts:
//!
//! | what | part |
//! | --- | --- |
//! | SoftHSM | 49 % |
//! | the worker: handing the answer over and waking the runtime, taking the next call | 6 % |
//! | the runtime: memory that is allocated and copied | 9 % |
//! | keyleash: records, check value, slot, flights, lease | 9 % |
//! | moka: single-flight, the new entry | 5 % |
//! | tokio's tasks, wake-ups, and waiting for work | 12 % |
//! | the measurement itself, and the engine's end | 10 % |
//!
//! With one worker the other core does all but the first two meanwhile, and the target is met. With two workers the bare loop has
//! both cores for itself, so every microsecond besides is lost: 0.8 would leave 5 µs for everything. With all 10,000 at once, that many
//! tasks want the two cores at the same moment as the workers do, and are in no cache any more when their turn comes; nothing in that
//! profile stands out. What would close it: a core to spare; one task fewer for each unwrap (it
//! is a task of its own so that a caller who goes away, or stops polling, takes nothing from those who wait with it). A token
//! that answers in a millisecond hides all of it.
//!
//! **Look-up.** One read of memory that waits for the one before it costs more than the whole target on this machine, when it is
//! at random among as many bytes as a million accounts take: README.md has both figures, measured one after the other. A look-up is six of
//! them, of which some overlap. Even a table of nothing but pointers takes three. With 1,000 accounts, which the processor's cache
//! holds, it takes half of the target. What would bring it down: the id's text in the account's keys, and a note there that
//! its current key is usable, instead of slot and cell; bigger pages. An [`Account`](crate::Account) that is kept needs none of it.
//!
//! **Memory.** The table above: moka's share is what is too much.
//!
//! # The peers
//!
//! `benches/peers`, in the repository, is a package of its own, with a lock file of its own, so that nobody who builds keyleash compiles them: the first
//! build takes half an hour. Each does one block, authenticated and bound to an address, as its own documentation would have it; the
//! table says with which version and what it does less or more.
//!
//! # How to read a miss
//!
//! First the quartiles and the load: repeat it on a quiet machine. Then the row beside it: raw two threads for two threads, one worker
//! for two, *returned* for files. Then a profile:
//!
//! ```text
//! cargo bench --bench block -- 'seal in place, 4096 B'                         criterion's curves, with what changed since last time
//! softhsm/with-token cargo bench --bench unwrap
//! cargo bench --bench fleet
//! perf record -e cpu-clock -F 20000 target/release/deps/block-* --bench --profile-time 10 'seal in place, 4096 B/keyleash'
//! softhsm/with-token perf record -g -e cpu-clock target/release/deps/unwrap-* --bench --profile-time 10
//! ```
