//! Running it: token, PIN, memory, backups, tests.
//!
//! # The token
//!
//! Any PKCS#11 module. `keyleash token check` proves each wrap profile by a whole round trip, because a list of
//! mechanisms proves nothing; take `aes-gcm` where it passes, else `rsa-oaep-sha256`, else `aes-kw`. Choose the token by
//! label or serial; slot ids change in some modules (SoftHSM's do). One of `label`, `serial` and `slot` is given, never two. Blanks and
//! NULs that a label or serial is padded with do not count, nor does what stands behind a NUL; what keyleash lists can be typed as it
//! is listed, escapes included.
//!
//! keyleash makes KEKs that are sensitive and not extractable, that an operator can disable (CKA_MODIFIABLE), and that
//! nobody destroys by accident (not CKA_DESTROYABLE, unless asked). It refuses a KEK that could leave the token, and warns of
//! what weakens one, wherever it is shown: [`tokens`](super::tokens#attributes-of-a-key) has every attribute. To
//! shred what it wraps, destroy the KEK and its backups, which cannot be undone; to revoke, which can:
//!
//! # Taking the key away
//!
//! `keyleash kek disable NAME` switches CKA_DECRYPT (CKA_UNWRAP for `aes-kw`) of every version that is not retired off in the token, and
//! `kek enable` on again; `NAME/VERSION` is one of them, `--token` a standby that has a clone. They read the store, to know the
//! CKA_ID and the token, ask no engine, and work on a KEK that is denied. A service hears of either by its next proof: nothing is sealed or
//! opened after `poll_interval + call_timeout`, and what goes on goes on within a `poll_interval`. A login that may not change keys, a
//! key with CKA_MODIFIABLE false and a token that fixes usage for good are said by name; there the vendor's tool, the PIN or the
//! network of the token is the switch. Where somebody who has the PIN is to be kept out, and not keyleash alone, CKA_ENCRYPT goes
//! off as well ([`tokens`](super::tokens#attributes-of-a-key) says why).
//!
//! The owner of a KEK needs none of keyleash for it: what sets that attribute is C_SetAttributeValue. Of the usual tools few call
//! it: `softhsm2-util` has no command for attributes, OpenSC's `pkcs11-tool` sets CKA_ID alone (`--set-id`) on a key that is there, and
//! GnuTLS's `p11tool` CKA_ID and CKA_LABEL (read in their manuals, versions 2.6, 0.23 and 3.7). Thales' `cmu setattribute` and AWS's
//! `cloudhsm-cli key set-attribute` do it (read, not run). What does it with any module is Python (run with python-pkcs11 0.10 and
//! SoftHSM 2.6; `pip install python-pkcs11`); `keyleash kek show NAME` says the CKA_ID:
//!
//! ```python
//! import os, pkcs11
//! from pkcs11 import Attribute, ObjectClass
//! token = pkcs11.lib(os.environ["KEYLEASH_MODULE"]).get_token(token_label=os.environ["KEYLEASH_TOKEN_LABEL"])
//! pin = open(os.environ["KEYLEASH_PIN_FILE"]).read().rstrip("\n")
//! with token.open(rw=True, user_pin=pin) as session:
//!     for key in session.get_objects({Attribute.ID: bytes.fromhex("82f31538d3895ee07233424748dc8e25")}):
//!         if key.object_class in (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY):
//!             key[Attribute.DECRYPT] = False  # True gives it back; Attribute.UNWRAP for aes-kw
//! ```
//!
//! # Dates of a KEK
//!
//! CKA_START_DATE and CKA_END_DATE are days, and most tokens do not look at them (SoftHSM and kryoptic do not). keyleash does: before the first
//! day and after the last one, UTC, the KEK is denied.
//!
//! - **When they are read.** With each wrap and unwrap, once the caller has asked: so a date that is set on a KEK in use is noticed
//!   by the next proof, within `poll_interval + call_timeout` as promise 1 has it, and a later one ends the denial the same way.
//!   That costs one C_GetAttributeValue for each call, or for as many as were asked for before it.
//! - **By which clock.** By the wall clock of the machine: it is as right as that. A clock that stands before 2026 was never set; then a
//!   KEK with dates is unreachable, not denied: what is in use goes on until its grace ends, and service resumes when the clock is set.
//!   A KEK without dates asks no clock.
//! - **Not readable.** A KEK whose dates the token cannot tell is refused; where that begins in use, it is denied. SoftHSM
//!   cannot tell those of a private object: any date that is set there denies until the KEK is made anew. Empty, blank and zero
//!   dates are none.
//!
//! # Trials
//!
//! For trials, `softhsm/with-token COMMAND…` makes a private SoftHSM token and runs the command with it.
//!
//! # Fresh proofs
//!
//! Some modules hide changes from a context that was open before them: tpm2-pkcs11 hides all, nShield does by default (read), and
//! SoftHSM hides a changed PIN, with which even a new login with the old PIN succeeds. So every `fresh_proof_every`th proof
//! (default 20, of each KEK version by itself: with a poll of 15 s every 5 minutes) comes from a fresh context: keyleash waits until nobody is inside the module (at most 500 ms and a quarter of `call_timeout`), calls C_Finalize and
//! C_Initialize, and logs in again. Calls that come meanwhile wait, within their own deadlines. On SoftHSM that takes some 20 ms; `call_timeout`
//! must have room for a re-initialisation, a login and an unwrap together; and for a denial. That is asked for twice, the second time on a
//! new session with the key found anew: on SoftHSM 28 calls of the module where an unwrap is 3, and 80 until another key in the KEK's
//! place is shown for what it is. What takes longer reads as a silence, and grace is longer than a poll: so 30 unwraps or more.
//!
//! - What only a fresh context shows is noticed within `fresh_proof_every` × `poll_interval` + `call_timeout`, not within one poll.
//! - A changed PIN is a denial. The old PIN is tried once by each process, then not again: put the new PIN into the PIN file,
//!   and service resumes within a poll. Where many processes share a token that locks itself after a few wrong PINs, change the
//!   PIN file before the token, or stop them. A PIN that was refused and is right again (changed back) needs a restart, or
//!   [`Pkcs11Token::reload_pin`](crate::token::pkcs11::Pkcs11Token::reload_pin).
//! - **Commands** leave a note beside the store (`keyleash.redb.refused-pins`, mode 0600) of a PIN that the token refused, and no later one
//!   sends it again: a cron job cannot lock a token. The note is a salted, slow hash; who reads it can still guess a short PIN, as who reads
//!   the PIN file need not. It ends when the token takes a PIN, when the source gives another one, when the token's flags, which told of the
//!   wrong PIN, are clear again, and when somebody removes it. Commands that start at one instant may each send it once. A service keeps none,
//!   unless it says where: [`Pkcs11Settings::refusal_notes`](crate::token::pkcs11::Pkcs11Settings::refusal_notes).
//! - **A token that is not listed** is an outage to a service, for it may come back. To a command, where the module lists others, it is a
//!   label, serial or slot that is wrong, and the command ends with 2; with 4 where it lists none. So ends SoftHSM without a `SOFTHSM2_CONF`.
//! - While a call hangs or does not end, the context is left alone; the proof is an ordinary one, and the next proof tries again.
//!   `ContextNotRenewed` tells of it once, and `status` how old the last fresh proof is (`fresh_ago_s`). When it is older than
//!   `fresh_proof_every` × `poll_interval`, ordinary proofs renew the lease no more, and it ends after `grace`, as
//!   [`Error::Lapsed`](crate::Error::Lapsed) with the words `no fresh proof`: see which call hangs, and restart the process.
//! - A context that another part of the program initialised is never finalized, neither for a fresh proof nor to get back a token
//!   that went away: that is then for the program to do. One that uses the module itself, after keyleash, must say so:
//!   [`FreshContext::Never`](crate::token::pkcs11::FreshContext::Never).
//!
//! # Outages of the key store
//!
//! While the store fails or does not answer, sealing and opening with keys in memory go on, and revocation is heard of as ever.
//! Nothing that is cold can be opened, and no account or KEK be made, rotated or deleted. When a `poll_interval` and a
//! `call_timeout` have passed without a word of it, `StoreSilent` tells of it, and `StoreAnswers` of its end; `status` has a line
//! (`.store` of its JSON: `silent_s`, `why`, and `keys_last_s` until the keys in use go cold, `grace` after the store's last word;
//! while the token is silent too, the lease's own end counts). After it TTLs that passed in it do not bind for one TTL, in which
//! they are refreshed at `resume_rate`, but never beyond those `grace`. To have a deletion or a rotation take effect at once on an
//! engine that cannot read the store, stop it, or disable the KEK.
//!
//! # Others that use the module in the process
//!
//! Context and login are the whole process's. What another part of it does to them, between two calls of keyleash's, costs this
//! (run with SoftHSM, with one worker and two, several KEKs in use: `tests/softhsm/logins.rs`):
//!
//! | what it does | what that costs keyleash |
//! | --- | --- |
//! | opens sessions and closes them again | nothing |
//! | C_Logout | one login |
//! | C_Finalize | the next call initialises the module; one login |
//! | C_Finalize and C_Initialize, with C_Login or without | a login for each worker at most |
//!
//! No call fails for it, and each such login is told in the log (`logged in to the token`): many of them one after the other mean that
//! somebody ends them.
//! The same holds where keyleash itself closes its last session, with one worker after every call that failed and every
//! probe (which each new KEK gets): by PKCS#11 the login goes with it, and so do the handles of all KEKs.
//!
//! What cannot be mended from here:
//!
//! - **C_Finalize while a call of keyleash's is inside** is a crash of most modules, SoftHSM's too. keyleash's gate holds back its own
//!   C_Finalize alone.
//! - **A context that was ended and begun again unnoticed** gives the numbers of keyleash's sessions, and of its handles, to others.
//!   Until a call fails, a worker may then use the host's session of the same number, and close it; the host sees
//!   CKR_OPERATION_ACTIVE, CKR_OPERATION_NOT_INITIALIZED or CKR_SESSION_HANDLE_INVALID. Keys are kept apart all the same: after each wrap
//!   the handle's CKA_ID is compared, an unwrapped AEK has its check value, and a worker gives up a session whose number the module
//!   gave to another worker. What two parts of a process do on one session at one instant is in nobody's hands.
//!
//! So whoever must end the context drops the engine and its tokens first, and opens them again after that; or gives keyleash a module of its
//! own: a copy of the file under another path, or p11-kit (below).
//!
//! # Several tokens
//!
//! One engine serves KEKs in several tokens. In `keyleash.toml` each is a `[[token]]` with a name, and the first is the default,
//! in which KEKs are made unless `kek create --token` names another; in a program
//! [`EngineBuilder::token`](crate::engine::EngineBuilder::token) adds them.
//!
//! ```toml
//! [[token]]
//! name = "hsm-a"
//! module = "/usr/lib/vendor/libvendor-pkcs11.so"
//! label = "production"
//! pin_file = "/run/credentials/service/pin-a"
//!
//! [[token]]
//! name = "hsm-b"
//! module = "/usr/lib/vendor-b/libvendor-pkcs11.so"
//! label = "production-b"
//! pin_file = "/run/credentials/service/pin-b"
//! call_timeout = "2s"       # its own deadline; else that of [lease]
//!
//! [[kek]]
//! name = "tenants"
//! standby = "hsm-b"         # has the same key under the same CKA_ID
//! ```
//!
//! - **Names.** The record of each KEK version names its token. The one of a single `[token]` is named `default`: a store that
//!   was made with it finds its KEKs when the first `[[token]]` is named `default` too. A token may move to another host or module
//!   under its name; the name itself stays. An account goes to a KEK in another token by `account move`, with both connected.
//! - **The variables** `KEYLEASH_*` go over the default token, and no other.
//! - **`resume_rate`** counts for each token.
//! - **A command opens a token when it first needs it**, where several are configured: one with a wrong PIN or a missing module is no
//!   trouble of a command that does not use it. A service opens them itself.
//! - **A standby** is a clone of the whole key, attributes and CKA_ID included, made with the vendor's tool;
//!   [`promises`](mod@super::promises#a-standby) says what holds. Clone each new version after `kek rotate` before `kek rewrap`:
//!   `kek show` says what the standby has. A schedule waits for that: it rotates, says what is missing
//!   ([`Event::ScheduleFailed`](crate::telemetry::Event::ScheduleFailed)), and moves nothing until the standby has the new version. In `keyleash.toml` its two deadlines together are at most `poll_interval`.
//!
//! Two tokens **in one module** share the module's context, and that cannot be undone by anybody outside of it:
//!
//! - A token that is away is looked for by C_Finalize and C_Initialize, which end the sessions of every token of the module. The
//!   others' calls that are under way end first (up to 500 ms, else it is put off), and those that come meanwhile wait at the gate and log
//!   in again: some 20 ms on SoftHSM, at most once in 800 ms however often the one that is away is asked. No call fails.
//!   A fresh proof of one token's KEK does the same.
//! - Where C_Initialize itself fails because of one token (SoftHSM: the whole directory is away), all of the module are unreachable.
//! - While a call hangs in one token, no context is ended: another token of the module that was away does not come back until
//!   the call does, and its fresh proofs are ordinary ones. Calls to the others go on where the module lets them; SoftHSM does.
//! - A module that crashes takes the process with it.
//!
//! Tokens in **modules of their own** share none of that: other vendors' modules, a `p11-kit server` each, or a copy of the module's file
//! under another path, which the loader takes for another library (run with SoftHSM; ask your vendor, for some libraries share more
//! than their code). Two copies of SoftHSM still read one directory, when it is one: a C_Initialize waits for files that are locked in it.
//!
//! A hard link, a symbolic link and a bind mount are no copies: the loader gives the same library, and so does keyleash, which knows it by
//! device and inode, by its C_GetFunctionList and by the list that this gives. A copy has memory, context and login of its own, and a gate:
//! one's C_Finalize under the other's calls harmed none of them (run with SoftHSM, `tests/softhsm/modules.rs`). What the two share
//! lies outside of it: SoftHSM locks its files by process (POSIX), so that two copies in one process do not wait for each other's writes. So
//! give each copy tokens of its own, and a directory of its own where they are written: logins, KEKs that are made, PINs.
//! Not known again is a library behind another one: a module that loads a module (p11-kit's proxy, a shim for debugging) and that
//! module itself are two to everybody. Configure one of the two.
//!
//! # Workers, and what waits for them
//!
//! A token is called by `workers` threads, each with a session. Of several, one is kept for proofs: so give a service at least 2, and
//! one more than the token should have of other calls at once. A single worker makes a proof wait for the call that it is at
//! ([`promises`](mod@super::promises#what-exactly-is-promised)).
//!
//! All but proofs has a place of the token's budget: 16 calls at once, at most 8 of them in the background. What wants a place waits
//! for it as long as its caller does; KEK versions get places in turn, and so do callers and the background, so that a thousand
//! accounts that are made at once under one KEK delay an opening under another by no more than the calls of 16. Whoever has a place
//! and still finds no worker for eight `call_timeout`s fails with [`Error::Unreachable`](crate::Error::Unreachable), which says that no
//! worker was free, and may be tried again; no lease learns of it. With one engine to a token that takes calls which last
//! longer than half of `call_timeout`.
//!
//! Proofs need `KEK versions in use × time of a call / workers` in each poll. Where that is more than `call_timeout`, some find no
//! worker in time and are asked again at once, which [`Event::ProofCrowdedOut`](crate::telemetry::Event::ProofCrowdedOut) tells: more workers, a longer
//! `poll_interval`, or fewer versions (re-wrap, and retire).
//!
//! # The module in a process of its own
//!
//! A PKCS#11 module is somebody else's code in your process: where it crashes, you crash; where it hangs, its thread is lost until it
//! comes back. p11-kit puts it into another process. As the user that owns the token:
//!
//! ```text
//! p11-kit server --foreground --name /run/keyleash/p11 --provider /usr/lib/vendor/libvendor-pkcs11.so "pkcs11:token=LABEL"
//! ```
//!
//! and for the service `P11_KIT_SERVER_ADDRESS=unix:path=/run/keyleash/p11` with `p11-kit-client.so` as the module (Debian:
//! packages `p11-kit` and `p11-kit-modules`). Let systemd start it again when it dies. Another host's module is reached by
//! `p11-kit remote` over ssh.
//!
//! What our tests saw with p11-kit 0.24.1 in front of SoftHSM (`isolation`, poll 1 s, timeout 1 s, grace 8 s):
//!
//! - **The module crashes**: the process of one connection dies. Calls fail with CKR_DEVICE_ERROR, keyleash re-initialises, and no seal and no
//!   open notices anything, several times in a row.
//! - **The server is killed**: an outage. While it is down C_Initialize succeeds and lists no token. Started again within grace: nothing is
//!   noticed; after grace: service resumes within a poll. The process need not be restarted.
//! - **The server is stopped** (SIGSTOP): every call hangs and costs a worker, until `hung_max` of them hang and `restart_needed` is told. When
//!   it is continued, the calls come back, the workers with them, and service resumes within a poll. Killing a server that hangs ends the
//!   hanging calls as well: that is what a restart of the process would otherwise have to do.
//!
//! What it costs:
//!
//! - **Of the wrap profiles only `rsa-oaep-sha256` passes through p11-kit 0.24**: it refuses CKM_AES_GCM and CKM_AES_KEY_WRAP with
//!   CKR_MECHANISM_INVALID. Newer releases carry the parameters of CKM_AES_GCM (read in their source, not run). `keyleash
//!   token check` tells. SoftHSM has no OAEP with SHA-256, so the two do not go together but in our tests.
//! - One connection for all workers: calls run one after the other, each a round trip through a socket.
//! - Its client has a new context for each C_GetFunctionList, so keyleash cannot unwrap into a buffer of its own and goes the longer way: two
//!   calls, and a copy that is wiped a moment later.
//! - The PIN and the AEKs pass through the socket and the server: guard both like the service.
//!
//! # The PIN
//!
//! From a file (`pin_file`, best on a tmpfs that the unit alone can read, such as systemd's `LoadCredential`), or from an
//! environment variable (`pin_env` names it; `KEYLEASH_PIN` needs no name). Never on a command line, never in
//! `keyleash.toml`. A refused PIN is not tried again, because tokens lock themselves.
//!
//! - One line end behind it, in the file or the variable, is not part of it. Blanks are: where a PIN is refused that begins or ends
//!   with one, or with a character that does not show, the error says so.
//! - A PIN that was refused and is right again (changed and changed back) stays refused: until the process is restarted or calls
//!   [`Pkcs11Token::reload_pin`](crate::token::pkcs11::Pkcs11Token::reload_pin). keyleash does not try it again by itself, for not every
//!   token says that it counts wrong PINs. Up to four refused ones are remembered, until another one is taken.
//! - What is known of a PIN is known of that one alone. The one that the token took last is kept in locked memory and compared, in
//!   constant time, with what the source says before each login: a new one in the file begins as an unknown one.
//! - Refused for good is what the token calls wrong (CKR_PIN_INCORRECT, CKR_PIN_INVALID, CKR_PIN_LEN_RANGE). A token that lets nobody in
//!   (CKR_PIN_LOCKED, CKR_PIN_EXPIRED, CKR_FUNCTION_REJECTED) denies, and is asked again with the same PIN, at most once a second: once it
//!   is unlocked, service resumes.
//! - A login that fails with another code (CKR_GENERAL_ERROR, CKR_DEVICE_ERROR) may have been counted as well. The same PIN then waits
//!   1 s, and twice as long after each further failure, up to 60 s; 0.8 s each time where the token took it before and its flags say,
//!   then or by the next poll, that no wrong one was counted. Meanwhile calls are unreachable. A login that does not return before its
//!   call's deadline counts as one that failed. CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT and CKR_HOST_MEMORY do not: nothing was compared. What the token's
//!   flags say then decides:
//!
//! | the token's flags | a PIN that it never took from this process | the one that it took last |
//! | --- | --- | --- |
//! | no wrong PIN counted | tried | tried |
//! | CKF_USER_PIN_COUNT_LOW | tried; refused for good after an unclear code | tried, after an unclear code too |
//! | CKF_USER_PIN_COUNT_LOW or worse since its own attempt, after an unclear code | refused for good | denied, and not tried until the flags are clear: somebody has entered the right one |
//! | CKF_USER_PIN_FINAL_TRY | not tried: denied | tried, unless a login failed with it since: then unreachable |
//! | CKF_USER_PIN_LOCKED | not tried: denied | not tried: denied |
//! | C_GetTokenInfo fails | not tried, but once where the token is chosen by slot id: unreachable | tried, until two logins in a row have failed: then unreachable, and tried every 10 minutes |
//!
//! - The flags are all that keyleash has of other processes: where a token never sets them, or C_GetTokenInfo always fails, each start
//!   of a process with a wrong PIN costs an attempt, and so many lock it. Choose such a token by slot id, and do not let the
//!   service manager restart without end. They are read apart from the rest of C_GetTokenInfo: a token that has an odd time there
//!   (opencryptoki's soft token) is no such token: of four starts with a wrong PIN two were tried, and it was not locked (run with 3.8.1). Through p11-kit's client they come with the rest or not at all.
//!
//! # SoftHSM under several processes
//!
//! SoftHSM 2.6.1 writes the file of its token (`token.object`) anew at every login, in place, and unlocks it when it is empty and not
//! yet written (read in its source, and seen with strace). Another process that looks in that instant sees a token
//! without contents. The instant is short, but a machine under load stretches it. Of 8,000 logins of 8 processes at once, without a pause:
//!
//! - **The token is not listed** (every second one): unreachable. keyleash re-initialises the module up to three times within the call.
//! - **CKR_USER_PIN_NOT_INITIALIZED** (4): the whole context took the token for one without a user PIN when it began, and neither
//!   another login nor another session changes that; C_Finalize does. keyleash believes it when the token's flags say the same
//!   (CKF_USER_PIN_INITIALIZED is off), or when two fresh contexts repeat it; else nobody is denied anything. No PIN was compared, so
//!   it does not count as refused: once an operator has set a user PIN, service resumes. Where no fresh context may be begun
//!   ([`FreshContext::Never`](crate::token::pkcs11::FreshContext::Never)) it is unreachable, until whoever owns the context re-initialises it.
//! - **CKR_GENERAL_ERROR from C_Login** (42): also how some modules answer to a wrong PIN, so it is treated like one that may
//!   have been counted: the PIN waits (above), and meanwhile the token is unreachable. A command of the command line fails with that; run it again.
//! - **A new PIN is lost** (686 of 2,182 changes beside another process that logged in without a pause): the login writes the old PIN
//!   back, C_SetPIN has succeeded, and the old PIN works on. So after a change log in with the new one, by another tool, before you
//!   take the old one for revoked. The drill `pin-changed` does so, and changes it again where it was lost.
//! - **CKR_PIN_INCORRECT: never.** The PIN's part of the file is read whole or not at all.
//!
//! A process that is killed in that instant (SIGKILL, loss of power) leaves the file empty, and with it go the token and every KEK in
//! it. So keep a copy of the token's directory, and take SoftHSM for trials and tests, which kill only what has a token of its own.
//! `softhsm/with-token --keep DIR` does so by itself: before and after each command it copies the file of each token that SoftHSM lists from that copy
//! alone, and puts it back where it is empty, saying so. KEKs stand in files of their own, and are what they were; a PIN that was changed
//! after the copy is the old one again.
//!
//! # The end of the process
//!
//! A service ends its engine by [`Engine::close`](crate::Engine::close): no key is usable from then on, what was sealed is written into
//! the accounts' records, and the calls under way are waited for, within the patience that it is given. What it left undone it says.
//!
//! Modules and what is under them (OpenSSL) have exit handlers, and a call that is still inside of the module crashes under
//! them. Where `close` says that calls are still inside, end by [`exit_at_once`](crate::token::pkcs11::exit_at_once). A program that uses a
//! token without an engine, as the command line does, asks [`end_of_process`](crate::token::pkcs11::end_of_process) instead at the end of
//! `main`, with a patience of 10 s there. A program that calls neither is held by an exit handler of keyleash's for at most 5 s; a call
//! that takes longer, the making of an RSA key on a busy machine for one, may then end it with a segmentation fault.
//!
//! # The standard streams of a command
//!
//! Exit status 0 says that everything went to where it was sent. A command that needs a standard stream which is closed (`>&-`) ends with
//! 1 before it does anything: all but `seal -o` and `open -o` need standard output, and both need standard input where no file is named.
//! /dev/null is a stream like any other, whoever opened it and however: a service manager, Python's and Node's null, `> /dev/null`. The
//! two look alike once `main` runs, because Rust's runtime opens /dev/null in the place of what is closed; so the command line looks
//! before that, in a function that the loader calls. What cannot be written (a full disk, a descriptor that is open for reading
//! alone) is 1 as well, a reader that went away 141, without a word.
//!
//! Data is never written onto what it is read from (`seal log >> log`, under another name too): that is refused, with 2, before the
//! first byte. `-o OUT --force` may replace the file that is read, because OUT takes its place when it is complete; a hard link
//! under another name keeps what it had.
//!
//! # The configuration
//!
//! `keyleash.toml`, with `KEYLEASH_*` variables over it, item by item; a token or PIN named in the environment replaces
//! the one in the file, however that was named. Relative paths are relative to the working directory. What is unknown
//! or breaks a bound is refused, with the near name or the promise.
//!
//! | key | variable | default |
//! | --- | --- | --- |
//! | `[token] module` | `KEYLEASH_MODULE` | |
//! | `[token] label`, `serial` or `slot` | `KEYLEASH_TOKEN_LABEL`, `_SERIAL`, `_SLOT` | |
//! | `[token] pin_file` or `pin_env` | `KEYLEASH_PIN_FILE`, `KEYLEASH_PIN_ENV`, or `KEYLEASH_PIN` itself | |
//! | `[token] workers` | `KEYLEASH_WORKERS` | 1 |
//! | `[token] name` | `KEYLEASH_TOKEN_NAME` | `default` |
//! | `[token] call_timeout` | `KEYLEASH_TOKEN_CALL_TIMEOUT` | that of `[lease]` |
//! | `[[token]]`, with the same keys | those above go over the first | |
//! | `[[kek]] name`, `standby` | | no standby |
//! | `[store] path` | `KEYLEASH_STORE` | `./keyleash.redb` |
//! | `[lease] poll_interval` | `KEYLEASH_POLL_INTERVAL` | 15 s |
//! | `[lease] call_timeout` | `KEYLEASH_CALL_TIMEOUT` | 5 s |
//! | `[lease] grace` | `KEYLEASH_GRACE` | 30 min |
//! | `[lease] aek_ttl` | `KEYLEASH_AEK_TTL` | 10 min |
//! | `[lease] resume_rate` | `KEYLEASH_RESUME_RATE` | 3000 unwraps/s |
//! | `[lease] fresh_proof_every` | `KEYLEASH_FRESH_PROOF_EVERY` | 20 |
//! | `[cache] max_cached_aeks` | `KEYLEASH_MAX_CACHED_AEKS` | 1,000,000 |
//! | `[cache] memlock` | `KEYLEASH_MEMLOCK` | `warn` (or `refuse`) |
//! | `[keys] require_recoverable` | `KEYLEASH_REQUIRE_RECOVERABLE` | false |
//! | `[keys] retention` | `KEYLEASH_RETENTION` | 90 d (7 d to 90 d) |
//! | `[keys] purge_protection` | `KEYLEASH_PURGE_PROTECTION` | true |
//!
//! Durations carry their unit: `"100ms"`, `"15s"`, `"30 min"`, `"1h"`, `"90d"`.
//!
//! # Memory
//!
//! An AEK in memory takes a cell of 272 bytes of locked pages: a million need 260 MiB of RLIMIT_MEMLOCK, beside what the process
//! locks for itself. No more than `max_cached_aeks` are in memory, whoever holds handles. Where the limit is too small, a warning gives
//! the number for `LimitMEMLOCK=`; `memlock = "refuse"` makes that an error instead, also for a key that later finds no room.
//!
//! A key that was taken away and is still used after a second is told
//! ([`Event::WipeWaits`](crate::telemetry::Event::WipeWaits)) with the number of the thread whose seal or open does not end:
//! `/proc/PID/task/N/stack` and `wchan` say what it waits for, most often a page of a file on a disk that is away. The key is wiped as it
//! ends; where it never will, end the process.
//!
//! # Store and backups
//!
//! The store is one file that one process has open at a time; a second one is refused, and says so. A commit is synced
//! before it is acknowledged, and writes that come together share one. After a full disk the store works again once there
//! is room, without a restart. Keep the file on a local file system that has hard links.
//!
//! Back up **both** the store and the token's KEKs: blocks need both, and either alone is worthless. `keyleash store snapshot FILE`
//! copies the store and verifies the copy while no service has it open, and names the process that has; a service copies its own
//! ([`RedbStore::snapshot`](crate::store::redb::RedbStore::snapshot)), and a snapshot of the file system will do, which is as a crash to the store.
//! Stop every process that uses the store before a restore: what still runs seals under AEK versions that the copy does not have.
//! `keyleash seal` looks at its end whether the store, as it is then, has what it sealed under, and fails if it has not or if that
//! cannot be seen, so that nothing takes the place of OUT; a program does so with [`Account::confirm`](crate::Account::confirm).
//! What was sealed before the restore, and ended, is only as safe as the copy is young.
//! `keyleash store restore FILE` verifies a copy, shows what it takes the place of, and keeps that beside it. A store that is older than a
//! backup of the blocks may miss accounts or AEK versions: back the store up last. Try a restore before it is needed.
//!
//! Commands that only read (`open`, `list`, `show`, `status`, `schedule`, `store check`, `store snapshot`, `kek disable` and `enable`) need no
//! right to write to the store's file or its directory: of a copy on read-only media, blocks are opened as of any other. What the token says
//! no to is then not written down; the next command asks it again.
//!
//! A store is opened, never made, but by `keyleash kek create` and `quickstart`, which say so (in a program:
//! [`open_or_create`](crate::store::redb::RedbStore::open_or_create)): a volume that is not mounted is no store without accounts.
//!
//! **Damage.** Opening reads and verifies the whole file: 1.5 to 3 s for 1,000,000 accounts (1.1 GB) from memory, else what the disk
//! takes to read it; a command does so once. While it is open, what is read is compared with what was verified, by digests in
//! memory (2 KiB for each MiB of the file): damage then is an outage of the store, and keys in use go on. A file that is damaged anywhere is refused as a whole, with exit status 5, and
//! keyleash does not salvage what is left of it: restore it from a copy, and until then leave the KEKs alone. `keyleash store check`
//! also decodes every record and compares the index with them. What decides that a KEK version may be destroyed (`kek retire`)
//! reads every account's record, and refuses when one cannot be read; so does `kek rewrap` before it says that all is moved, and moves
//! what the index had lost.
//!
//! **Shredding.** redb frees the pages of what was deleted or replaced, and leaves the bytes in them. `account purge` and `account retire`
//! write over all that is free, and search the file for the wrapped AEKs that they destroyed before they say that they did; the store
//! answers nobody else meanwhile (some 0.1 s for a small file; for a big one what the disk takes to write what is free and to read it all). What a re-wrap or
//! a move replaced is still there, wrapped by the KEK version before: `keyleash store shred` makes an end of that. None of it
//! reaches what the file system keeps of blocks that were written over (snapshots, a copy-on-write or log-structured file system, the spare
//! blocks of an SSD), nor the store's backups: there a wrapped AEK is opened by the KEK version that wrapped it, for as long as that is in
//! a token or in its backup. So to shred what backups hold, delete those backups, or re-wrap, retire the old KEK version, and destroy it
//! with its backups in the token. What was sealed and who has it does not matter then.
//!
//! # Schedules
//!
//! `keyleash account policy` has an account's AEK rotated by age, by sealed blocks or by sealed bytes, whichever is reached first;
//! `keyleash kek policy` has a KEK rotated by age, and whatever its older versions wrap moved to the current one, also what an
//! operator's own rotation left. Without a policy nothing is rotated, but for an AEK version that has sealed half of what the
//! suite allows. `keyleash schedule` shows what is due, what comes next, and who does the work; it changes nothing. A
//! record that cannot be read may be due: it is named, and the command ends with 5.
//!
//! - **Who does it.** Every engine whose [`scheduled_work`](crate::config::Settings::scheduled_work) is set (the default; the
//!   command line has it off) waits for its turn; one per store has the work, by a lease of 60 s in the store's work record, and
//!   is replaced some 75 s after it was last heard of. Where no service runs, call `keyleash schedule --run` from a timer: it holds
//!   the work for 10 s at a time, waits for whoever crashed before it, and leaves the work to a service that is alive.
//! - **When.** The holder passes over the store every 15 minutes, and begins when it takes over. A page of 1000 accounts at a
//!   time, it reads every record once and rests nine times as long as that took: over 1,000,000 accounts in the embedded store some
//!   35 s of one core, spread over more than five minutes. What is due by counts is rotated at once, when
//!   it is the holder that writes the count down, else with the next pass. Rotations and re-wraps run in the background share of
//!   `resume_rate`, up to eight accounts at once.
//! - **Missed.** A rotation makes a version whose age and counts begin anew, so a schedule that was missed three times is
//!   caught up once. Nothing is rotated twice: a rotation names the version that it saw as due, and whoever comes second finds
//!   another one. What the lease and clocks have to do with that is in `rotate/hold.rs`: they spare doubled work, no more. One thing
//!   is left of two engines that rotate one KEK at once: a key in the token that no KEK names, and that is told.
//! - **What fails** is told once ([`Event::ScheduleFailed`](crate::telemetry::Event::ScheduleFailed)), left as it was, and tried again
//!   with each pass; damaged records in a re-wrap once a day. Accounts under a KEK that is denied or silent wait. An account
//!   with 256 AEK versions is not rotated any further: retire those that no block uses.
//! - **A store that does not answer for one account** costs the pass a minute for it, and is told as what fails; others are done. A
//!   pass in which nothing at all is done for five minutes is told, and given up for another engine. What such an engine may still
//!   have under way is written only while nobody else has taken the work: every write rests on the record of its holder.
//! - **Dates.** Wall clocks decide nothing that is stored: one that is an hour behind or ahead, or begins in 1970, would rotate, retire
//!   or purge at its own time. The store has a date (`src/keyring/common/mod.rs`), which begins with a wall clock's and goes forward by
//!   what engines saw pass by CLOCK_BOOTTIME: every engine looks at it each minute and writes it every five, and commands of one boot
//!   of one machine see the time that passed between them. While no engine of a store runs anywhere, and across the reboot of its
//!   only machine, it stands still: what is due, retired or purged by age is so much later, and never early. `keyleash schedule` shows
//!   the store's date. A store of an earlier release begins with the newest date in its records. A new one is not begun on a
//!   machine whose clock stands before 2020, as one does that was never set; on one that was begun so with an earlier release, dates count from 1970 for ever,
//!   and ages are right all the same. No command sets the date, and none will: by it an AEK version goes under which another engine may
//!   still seal, so a date that was set forward would cost blocks, and one that was set back would purge nothing for as long.
//!
//! What is sealed is counted in memory and written into the account's record when it is 2^20 blocks, 2^36 bytes or a sixteenth of
//! what the policy allows, and after an hour at the latest: a million accounts in use cost the store some 280 writes a second. A
//! crash loses what was not written; [`Engine::write_usage`](crate::Engine::write_usage) before a clean end loses nothing. An account
//! whose write the store does not answer waits for one `call_timeout` and holds up no other. `keyleash seal` counts what it is about
//! to seal ([`Account::count_ahead`](crate::Account::count_ahead)), at first 16 blocks and then always twice as many, so that no
//! signal takes a count away, and takes off at its end what it did not seal.
//!
//! # Keys that come and go in the token
//!
//! A key that a vendor's tool rotated, without anybody telling keyleash, is the classic way to lose access. Once in 20 poll intervals
//! (by default 5 minutes) an engine asks the token for its keys, and tells each change once: a key that no KEK names, a KEK version
//! that is gone and not retired, and one that is back. Keys that were there when the engine began are told only if they bear the label
//! of a KEK, because tokens are shared. That is news and no verdict: what is denied is learned from proofs.
//!
//! # Rotating, while blocks flow
//!
//! `kek rotate`, then `kek rewrap`, then `kek retire`; `drill rotation` rehearses it. No command touches a block.
//!
//! - **When the old key may go.** `kek retire` says when nothing is wrapped by a version. Engines whose accounts are open follow a
//!   re-wrap within one `poll_interval` and the time that it takes to unwrap those accounts at `resume_rate`; until then they
//!   use their AEKs under the old version's lease, and a denial of it stops them until they have followed. So wait that long
//!   before you delete the old version in the token (the engine that is asked to retire it takes its own keys along first, and
//!   refuses while it cannot), and keep its backup for as long as backups of the store are kept that need it.
//!   Nothing comes under a version that was retired, however long a write was held up: it rests on the KEK's record, which the
//!   retirement changed, and the store compares that in the same step ([`Put::guards`](crate::store::Put::guards)). Releases before
//!   that one did not: what they left under a retired version is moved on by whoever opens it, before it is used, and by every pass
//!   of the scheduled work; where such an engine is left, `kek retire` once more, just before, says what there is.
//! - **A re-wrap that stopped** (denied, unreachable, store full, SIGKILL) goes on when it is called again. A KEK version that is denied
//!   or lost keeps only its own accounts from being moved.
//! - **When an old AEK version may go.** Another engine may not have heard of the newer version, and its next block is in nobody's count.
//!   `account retire` refuses a version until `grace + 2 × aek_ttl + 10 min` after the date of its successor (60 min by default), which is
//!   as long as an engine can go on; the ten minutes are what its write may have been held up for, behind which it is refused. The
//!   longest of all engines that ever used the store stands in the store: one whose keys live longer than by default
//!   writes that down before it opens its first account, and a command with defaults waits for it. Reseal, wait, count, retire. `--now` is for accounts that no
//!   other process has open.
//! - **A newer AEK version that an engine cannot have** (its record is damaged, its KEK version silent or not configured there): the
//!   engine seals under the one before until that one's TTL is over, and then refuses to seal, with what is wrong with the newer one
//!   as the error of the next warm. Older blocks are opened as before. An event tells of the account where its record is at fault.
//! - **Two who rotate one KEK at once** make one new version, or one of them is told that its key stays in the token, unused.
//! - **Who asks first.** `account retire`, `account purge` and `kek retire` show what goes before they ask, and destroy that and nothing
//!   else: where it is another by the time of the answer (another engine counted blocks under the AEK version, the account was
//!   brought back and deleted again), nothing is done, and exit status 7 says so.
//! - **Purge protection** is the store's, once an engine that has `purge_protection` on deletes anything there, or runs for a minute: from
//!   then on nobody purges before a retention is over, whatever its own setting, and nothing takes that back. So for trials
//!   set it off in every configuration, from the first command on. Releases that do not know of it cannot read the store's date then,
//!   and refuse what needs it by name (new accounts, rotation, retirement, deletion); but where it is off for them they still purge.
//! - **What is purged** is forgotten by every engine within one `aek_ttl`; a handle of it says so, also when the name was given anew.
//!   Its wrapped AEKs are still in backups, and in what the file system keeps of blocks that were written over: whoever has
//!   those and the use of the KEK can unwrap them. What must be gone for good goes with its KEK: give it one of its own, or
//!   rotate, re-wrap, purge, and delete the old version in the token.
//!
//! # Tests
//!
//! - `softhsm/with-token cargo test`: everything, with a real token; without its variables the tests of token and command
//!   line fail and name this command. The tests of full and read-only disks mount small file systems in a
//!   namespace of their own and say `LEFT OUT` where that is not allowed; as root they also act as another user.
//! - `cargo test --release --lib c2sp -- --ignored`: C2SP's accumulated hash over 1,000,000 iterations.
//! - `KEYLEASH_SIM_SEEDS=1000000 cargo test --release --test simulation`: the promises against a model, a million random
//!   schedules of one engine and a million of fleets, instead of 1,000 (in CI 10,000); 8 ms of a processor for both. A seed that fails is printed; `KEYLEASH_SIM_SEED=n cargo test --test simulation of_a_fleet` (or `of_one_`) repeats it with its trace.
//! - `.ci/mutants 60`: mutants of the lines that changed since the last landing, for an hour (in CI 4 minutes, where one that is missed is told; `KEYLEASH_MUTANTS=strict` fails), with cargo-mutants, which
//!   it installs; `cargo mutants -f src/lease/mod.rs --baseline=skip --timeout=120 -j1` tries those of a file. Which tests are run, and why
//!   a mutant may live, stands in `.cargo/mutants.toml`. Of the files nearest to the promises, `lease/mod.rs`, `leash/mod.rs`, `slots/slot/mod.rs`,
//!   `lease/standby.rs`, `slots/meter.rs`, `block/header.rs` and `token/pkcs11/verdict.rs` (whose command stands there), all were tried once:
//!   471 mutants, of which 95 do not compile, 371 are caught (368 by the tests of the library alone), and 5 live with a reason.
//! - `cargo rustc --locked --profile test --lib --target-dir target/loom -- --cfg keyleash_loom`, then
//!   `LOOM_MAX_PREEMPTIONS=3 target/loom/debug/deps/keyleash-* interleavings`: every order in which threads can fill, read and
//!   wipe a key with up to three interruptions, instead of two.
//! - `softhsm/token-matrix`: the conformance suite on SoftHSM, kryoptic, opencryptoki and NSS, which it installs or builds (once, below
//!   `target/`), as a table of token, profile and what holds; `--survey` prints what [`tokens`](super::tokens) has. opencryptoki runs in
//!   a namespace of its own, and touches none of the machine's tokens.
//! - `softhsm/with-token cargo test --test softhsm -- --nocapture`: the promises on real tokens alone, with what was measured. Installs p11-kit
//!   and builds the fault shim (`softhsm/fault-shim`) where they are missing. `softhsm/with-token --shim COMMAND…` runs any
//!   command on a module that fails as a control file says.
//! - `.ci/instructions/check`: counts the instructions of a seal and an open of 4 KiB under valgrind, which it installs, and compares
//!   those of keyleash with `.ci/instructions/expected`, whatever the processor; `--accept` after a change that is meant.
//! - `.ci/api/check`: compares what is public of the library with the listing `.ci/api/expected`, so that no change of it goes unseen;
//!   `--accept` after one that is meant.
//! - `benches/report`: how fast it is, beside its targets; see [`performance`](super::performance). No test, and CI measures nothing.
//! - `cargo test --features planted-faults --test planted -- --include-ignored`: what a drill prints is seen to fail, with an
//!   engine that was built to break what it says. Some fifteen minutes; without `--include-ignored` four of them. Such a build says so
//!   wherever it starts.
//! - `softhsm/with-token cargo test --test rotation`: rotation beside crashes, kills, other processes, a load, a store that holds
//!   writes up and loses answers, and clocks that differ by hours. `ROTATION_TEST_KILLS=1000`
//!   kills the real binary so often instead of 50 times, and `PROPTEST_CASES=10000` tries so many schedules of crashes instead of 64.
//! - `softhsm/with-token cargo bench --bench rewrap -- --accounts 100000`: re-wrap beside a bare loop of the same token calls.
//! - `EVERY_BIT=1 cargo test --test store damage -- --nocapture`: every single bit of a store that was closed and of one whose process
//!   was killed; without the variable, every bit of the first, and of the second those of the header and one of each byte.
//! - `cargo test --test store`: the key store alone, with its kills and damage; `PROPTEST_CASES=100000 cargo test --test store records`
//!   for long runs of the record decoder.
