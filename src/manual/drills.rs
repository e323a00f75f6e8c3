//! Drills: rehearsing the day the key is taken away, and their report.
//!
//! `keyleash drill SCENARIO` makes a KEK, a store and accounts of its own, puts them under load, takes the key away in a
//! scenario's way, gives it back, and holds what it measured against the [promises](crate::manual::promises). It ends with
//! exit status 0 when every promise held, with 9 when one did not, and with 10 when the machine was too busy to tell (run it
//! again). It leaves nothing behind: the KEK is destroyed, the token
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
//! `token-removed`, `pin-changed`) want that serial with `--operator` too. The processes that do the acts obey the same: a token that
//! `with-token` made, or that whose serial they were told; and they move, replace and lock nothing outside of its directory.
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
//! accounts).
//!
//! **The machine's own delay.** A thread that does nothing but look at the clock every millisecond writes down when it was kept from
//! that. A time that is over its bound by no more than that thread was late in it, and than it took until the act was certainly
//! done, is `inconclusive`: neither kept nor broken, and the drill ends with 10 where nothing failed. `--slack` (1 s unless said
//! otherwise, 0 for never) is the most that is excused so; what is over by more has failed, whatever the machine did. A count is never
//! inconclusive.
//!
//! **Service** is more than that nothing is refused. Where all has to work (`outage`, `hang`, `flapping` and `rotation` from the act on,
//! `token-removed` and `long-outage` as far as they owe it) no load thread may be without a success for longer than `call_timeout`,
//! for which an operation may wait that awaits an unwrap of its own; and in every poll interval at least 5 % as many operations must
//! succeed in a second as before the act. The load is closed, so its rate is its latency too: what others do on the machine makes it slower by a few times,
//! blocks that wait for something make it slower by hundreds.
//!
//! **Wiped** is when the engine says so, and whether that is true is seen in the memory: the drill knows every AEK that its token
//! wrapped or unwrapped (it holds them and their round keys inverted), and searches every writable mapping of the process that
//! serves (of `restart`, the other one) for each round key, at any alignment. It searches before the act as well, because a
//! search that finds no key in use shows nothing.
//!
//! **Rotated** is an account when the header of a block that the load sealed in the end names its new AEK version.
//!
//! Nothing else is judged. What remains unseen: waits shorter than `call_timeout` that leave the rate above 5 %; a key that is wiped later than the engine says, if before the search came to it.
//!
//! # The JSON
//!
//! `--json` prints one object. Names and units are stable; parts may be added within `keyleash.drill.v1`. Times in
//! milliseconds, `null` when what they time did not happen.
//!
//! | field | what |
//! | --- | --- |
//! | `format` | `"keyleash.drill.v1"` |
//! | `passed` | every scenario was played, and every promise held for certain |
//! | `error` | the `scenario` of `all` that could not be played, and the `message`; `null` when all were |
//! | `drills[]` | one for each scenario, in the order in which they ran |
//! | `.scenario`, `.passed`, `.started_unix` | which, its verdict, when it began (wall clock, for people) |
//! | `.operator` | a person did the acts |
//! | `.token` | `module`, `slot`, `label`, `serial`, `model`, `mechanisms` |
//! | `.settings` | `fast`, `accounts`, `threads`, `profile`, `poll_interval_ms`, `call_timeout_ms`, `grace_ms`, `aek_ttl_ms`, `resume_rate`, `fresh_proof_every`, `slack_ms` (the most that is excused) |
//! | `.acts[]` | `kind` (`act`, `undoing`, `step`), `what`, `at_ms` from the first operation |
//! | `.measurements` | see below |
//! | `.promises[]` | `name`, `promise` (its number), `what`, `formula`, `unit` (`ms`, `count`, `percent`), `relation` (`at-most`, `at-least`), `bound`, `slack_ms` (the machine's own delay in it; `null` for `percent`), `measured`, `verdict` (`pass`, `inconclusive`, `fail`) |
//! | `.wrong_example` | the words of the first refusal that was not right at its time |
//! | `.timeline` | `interval_ms`, `end_ms`, `outcomes` (names), `operations` (per interval, one count for each outcome), `lease[]` (`at_ms`, `kek_version`, `phase`, `aeks` in memory) |
//!
//! | measurement | what |
//! | --- | --- |
//! | `last_success_ms`, `first_refusal_ms` | after the act, before the undoing |
//! | `noticed_ms` | the lease was in grace, after the act |
//! | `wiped_ms` | the engine said that no AEK was in memory, after the act |
//! | `keys_left` | places in the memory where an AEK or a round key of one stood after that; `null` where none was sought, or the search found none before the act either |
//! | `first_success_ms`, `all_back_ms` | after the undoing, of accounts that had been refused |
//! | `account_back_p50_ms`, `_p99_ms`, `_max_ms` | the same per account |
//! | `active_ms` | the lease was active again, after the undoing |
//! | `accounts_missing` | accounts whose last operation was refused |
//! | `operations`, `succeeded`, `refused` | counts of seals and opens |
//! | `wrong_outcomes` | operations with an outcome that was not right at its time: denied in an outage, lapsed after a revocation, corrupt ever |
//! | `unverified_bytes` | bytes that came out other than they went in |
//! | `warmed` | operations that waited for an unwrap of their own |
//! | `longest_operation_ms` | the longest seal or open, waiting for its unwrap included; `null` for `restart`. Never judged |
//! | `service_gap_ms`, `service_gap_after_ms` | the longest that a load thread was without a success while all had to work, and after the undoing; `null` where nothing of that kind is owed |
//! | `service_rate_percent`, `service_rate_after_percent` | successes in a second in the slowest poll interval of the same phases, in percent of those before the act |
//! | `machine_delay_ms` | the longest that the machine kept a thread from running that only looks at the clock. Never judged |
//! | `rewrap_ms`, `rewrap_accounts_per_s`, `aek_rotation_ms` | `rotation`: how long the re-wrap of all accounts took, how many it moved in a second (at most a third of `resume_rate`), how long the rotation of every AEK took. Never judged |
//! | `accounts_left_behind`, `accounts_not_rotated` | `rotation`: accounts with an AEK under the old KEK version, and that did not seal under their new AEK version, at the end |
//! | `unwraps_served`, `unwraps_failed` | what the token did under load; `null` for `restart`, whose processes are killed |
//!
//! `keyleash drill compare OLD NEW` puts two such reports side by side; with `--json` as `{"format":
//! "keyleash.drill-compare.v1", "worse": [..], "rows": [{"scenario", "name", "old", "new", "worse"}]}`. It ends with 9
//! and names it when a promise fails in NEW, whatever it did in OLD; when one that held in OLD is inconclusive in NEW; and when a promise
//! or a scenario of OLD is missing in NEW, or NEW stopped at one. Because of a time that is longer or a rate that is lower only by more than `--threshold PERCENT`,
//! where that is given; `--common` compares the scenarios that both have.
