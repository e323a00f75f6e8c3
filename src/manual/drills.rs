//! Drills: rehearsing the day the key is taken away, and their report.
//!
//! `keyleash drill SCENARIO` makes a KEK, a store and accounts of its own, puts them under load, takes the key away in a
//! scenario's way, gives it back, and holds what it measured against the [promises](crate::manual::promises). It ends with
//! exit status 0 when every promise held and with 9 when one did not. It leaves nothing behind: the KEK is destroyed, the token
//! is as it was, however the drill ended (a drill that is killed with SIGKILL may leave its KEK, and a token directory beside
//! its place under `*.away`).
//!
//! | scenario | the act (by another process) | the undoing | owed in between |
//! | --- | --- | --- | --- |
//! | `revocation` | CKA_DECRYPT (CKA_UNWRAP for `aes-kw`) set false | set true | denied within `poll_interval + call_timeout` |
//! | `destroy` | the KEK destroyed | the token restored from a backup | the same |
//! | `token-removed` | the token's own directory moved away: the module does not list it | moved back | service until grace ends, then lapsed |
//! | `pin-changed` | C_SetPIN | the service's PIN file rewritten | denied within `fresh_proof_every × poll_interval + poll_interval + call_timeout` |
//! | `outage` | the module's directory of tokens moved away, for 60 % of grace | moved back | service |
//! | `long-outage` | the same, for longer than grace | moved back | service until grace ends, then lapsed |
//! | `flapping` | the same, again and again | | service |
//! | `hang` | POSIX locks held on the token's objects for 4 poll intervals: calls do not return | released | service |
//! | `restart` | the process killed (SIGKILL) and started while active, denied, denied and unreachable, unreachable | | what was owed before the restart |
//! | `fleet` | as `revocation`, with 10,000 accounts | | the same |
//! | `rotation` | the KEK rotated by the service, which re-wraps 1000 accounts, rotates their AEKs and retires the old version; that one destroyed | | service, all the time |
//! | `all` | all of them, one after the other | | |
//!
//! `--fast` sets `poll_interval` 1 s, `call_timeout` 1 s, `grace` and `aek_ttl` 10 s (for `pin-changed` also
//! `fresh_proof_every` 3, for `fleet` `resume_rate` 5000 unwraps/s). Without it the settings in force apply.
//!
//! # On a real HSM
//!
//! `--operator`: the drill says what to do and waits for Enter; the time counts from then, so what is measured may be shorter
//! than it was by as long as the operator takes to press it. Without `--operator` a drill acts only on a token that `softhsm/with-token` made
//! (SOFTHSM2_CONF names a directory whose file `label` is the token's label, `keyleash-…`), or, where PKCS#11 alone suffices
//! (`revocation`, `fleet`, `pin-changed`, `rotation`), on the token whose serial `--token-serial` names. The destructive ones (`destroy`,
//! `token-removed`, `pin-changed`) want that serial with `--operator` too.
//!
//! `rotation --operator` has the person make the new key in the token, as vendors rotate, and adopts it; in the end the person destroys the
//! old one. Both keys are the drill's own.
//!
//! # How it measures
//!
//! All times are CLOCK_BOOTTIME, which processes share. An act is timed *before* it is done, a success when it *ended*, so that
//! errors make times longer. Load threads seal a new block of 4 KiB, open it, and open a block that was sealed before
//! everything, of one account after the other; every byte is compared. They pause for 1 ms only when everything was refused, and
//! await the unwrap of a cold account, as a service does. The lease is looked at every 10 ms (50 ms with more than 1000
//! accounts). A time is held against its bound plus the slack of the scheduler (`--slack`, 1 s unless said otherwise), which the
//! report states; a count carries none. Nothing else is judged.
//!
//! # The JSON
//!
//! `--json` prints one object. Names and units are stable; parts may be added within `keyleash.drill.v1`. Times in
//! milliseconds, `null` when what they time did not happen.
//!
//! | field | what |
//! | --- | --- |
//! | `format` | `"keyleash.drill.v1"` |
//! | `passed` | every scenario was played, and every promise held |
//! | `error` | the `scenario` of `all` that could not be played, and the `message`; `null` when all were |
//! | `drills[]` | one for each scenario, in the order in which they ran |
//! | `.scenario`, `.passed`, `.started_unix` | which, its verdict, when it began (wall clock, for people) |
//! | `.operator` | a person did the acts |
//! | `.token` | `module`, `slot`, `label`, `serial`, `model`, `mechanisms` |
//! | `.settings` | `fast`, `accounts`, `threads`, `profile`, `poll_interval_ms`, `call_timeout_ms`, `grace_ms`, `aek_ttl_ms`, `resume_rate`, `fresh_proof_every`, `slack_ms` |
//! | `.acts[]` | `kind` (`act`, `undoing`, `step`), `what`, `at_ms` from the first operation |
//! | `.measurements` | see below |
//! | `.promises[]` | `name`, `promise` (its number), `what`, `formula`, `unit` (`ms`, `count`), `relation` (`at-most`, `at-least`), `bound`, `slack_ms`, `measured`, `verdict` (`pass`, `fail`) |
//! | `.wrong_example` | the words of the first refusal that was not right at its time |
//! | `.timeline` | `interval_ms`, `end_ms`, `outcomes` (names), `operations` (per interval, one count for each outcome), `lease[]` (`at_ms`, `kek_version`, `phase`, `aeks` in memory) |
//!
//! | measurement | what |
//! | --- | --- |
//! | `last_success_ms`, `first_refusal_ms` | after the act, before the undoing |
//! | `noticed_ms` | the lease was in grace, after the act |
//! | `wiped_ms` | no AEK was in memory, after the act |
//! | `first_success_ms`, `all_back_ms` | after the undoing, of accounts that had been refused |
//! | `account_back_p50_ms`, `_p99_ms`, `_max_ms` | the same per account |
//! | `active_ms` | the lease was active again, after the undoing |
//! | `accounts_missing` | accounts whose last operation was refused |
//! | `operations`, `succeeded`, `refused` | counts of seals and opens |
//! | `wrong_outcomes` | operations with an outcome that was not right at its time: denied in an outage, lapsed after a revocation, corrupt ever |
//! | `unverified_bytes` | bytes that came out other than they went in |
//! | `warmed` | operations that waited for an unwrap of their own |
//! | `longest_operation_ms` | the longest seal or open, waiting for its unwrap included; `null` for `restart`. Never judged |
//! | `rewrap_ms`, `rewrap_accounts_per_s`, `aek_rotation_ms` | `rotation`: how long the re-wrap of all accounts took, how many it moved in a second (at most a third of `resume_rate`), how long the rotation of every AEK took. Never judged |
//! | `accounts_left_behind`, `accounts_not_rotated` | `rotation`: accounts with an AEK under the old KEK version, and that seal under the old AEK version, at the end |
//! | `unwraps_served`, `unwraps_failed` | what the token did under load; `null` for `restart`, whose processes are killed |
//!
//! `keyleash drill compare OLD NEW` puts two such reports side by side; with `--json` as `{"format":
//! "keyleash.drill-compare.v1", "worse": [..], "rows": [{"scenario", "name", "old", "new", "worse"}]}`. It ends with 9 when a
//! promise that held in OLD does not hold in NEW, and never because of a time alone.
