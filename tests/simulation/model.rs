//! The reference model: what the promises allow and owe, kept from what went over the seams (calls of the token, the
//! hands of the script) and never from the engine's own state.
//!
//! Two kinds of bounds, each an inequality on times: *may* (an upper one: a success beyond it breaks promise 1 or 4) and
//! *owed* (a lower one: an error before it breaks promise 2 or 3). Where the model cannot know, it errs on the side that
//! accuses nobody; every such place says so.

use keyleash::{
    Error,
    clock::Instant,
    config::Settings,
    token::{KekId, TokenError, Verdict},
};
use std::{collections::BTreeMap, time::Duration};

/// Unwraps in flight that the budget allows, proofs not counted.
const IN_FLIGHT_MAX: usize = 16;
/// As in src/watch: a KEK version that was refused or silent for this long is asked less often …
const BACK_OFF_AFTER: Duration = Duration::from_secs(10 * 60);
/// … down to once in this time (or the poll interval, if that is longer).
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// As in src/watch: the records that a proof asks for before it takes the KEK for another key.
const PROOF_RECORDS: usize = 4;
/// The supervisor's and the tending's tick.
const TICK: Duration = Duration::from_secs(1);

/// What one KEK is in truth, as the script moved it.
#[derive(Debug, Clone)]
pub(crate) struct Kek {
    pub(crate) id: KekId,
    pub(crate) enabled: bool,
    pub(crate) present: bool,
    pub(crate) replaced: bool,
    /// When it last began to deny, or to grant.
    pub(crate) turned: Instant,
}

impl Kek {
    pub(crate) fn grants(&self) -> bool {
        self.enabled && self.present && !self.replaced
    }
}

/// What one engine was told about one KEK, in the order of a counter that every call moves.
#[derive(Debug, Clone, Default)]
struct Told {
    /// The last return of a denial.
    denied: u64,
    /// The same, or bytes that were not the AEK, which a proof takes for a denial.
    denial_like: u64,
    /// The highest beginning of a proof that returned.
    proof_begun: u64,
    /// The same, of those that the engine must have taken for proofs.
    proof_sure: u64,
    /// The last proof that may have begun a new lease: what was in memory before is not any more.
    anew: u64,
    /// Grace after the last proof that was begun after the last denial: nothing may succeed from then on.
    may_until: Instant,
    /// Until when at least the lease runs, while nothing but silence happens.
    owed_until: Instant,
    /// First silence since the last proof.
    silent: Option<Instant>,
    /// A call was given up since the last proof, so the engine may think that the token is silent.
    given_up: bool,
    proof_returned: Instant,
    /// One TTL after the token answered again (surely, or perhaps, after a silence): until then TTLs do not bind, so that
    /// those which passed in the silence are refreshed first.
    waived: Instant,
    perhaps_waived: Instant,
    /// When a proof returned after so long a time that the watch asked less often.
    came_late: Instant,
    /// When a record was last refused, or gave wrong bytes: a proof goes on to the next one then.
    record_failed: Instant,
    /// How many were, since the last proof.
    bad_records: usize,
}

/// What one engine was given of one account.
#[derive(Debug, Clone, Default)]
struct Own {
    /// The highest beginning of an own unwrap that returned the AEK, and its time.
    begun: u64,
    begun_at: Instant,
    /// From when on at least its TTL counts.
    fresh_from: Option<Instant>,
    /// Used since its last own unwrap.
    used: bool,
    /// When it was first.
    used_from: Instant,
    /// The last seal or open that succeeded.
    worked: u64,
    /// An own unwrap said that the record is at fault; resumption gives up on such.
    at_fault: bool,
}

#[derive(Debug)]
struct Flight {
    engine: usize,
    kek: usize,
    account: Option<usize>,
    begun: u64,
    at: Instant,
    is_proof: bool,
    /// The script has it go wrong.
    faulty: bool,
}

/// How an unwrap ended, as the engine saw it.
pub(crate) enum Landing<'a> {
    Aek,
    /// 32 bytes that are not the AEK.
    Wrong,
    Failed(&'a TokenError),
    Panicked,
    Cancelled,
}

pub(crate) struct Model {
    pub(crate) settings: Settings,
    pub(crate) keks: Vec<Kek>,
    /// Each account's KEK.
    pub(crate) kek_of: Vec<usize>,
    pub(crate) accounts: BTreeMap<Vec<u8>, usize>,
    pub(crate) latency: Duration,
    pub(crate) unreachable: bool,
    /// When the token last began to answer within the call timeout, or stopped to.
    pub(crate) answers_turned: Instant,
    pub(crate) store_healthy: bool,
    /// When the store last became healthy; `None` when it always was.
    pub(crate) store_healed: Option<Instant>,
    /// The last thing that was neither a grant nor a denial: a one-off fault, a panic, a call given up.
    pub(crate) troubled: Instant,
    pub(crate) woke: Instant,
    /// For how long it was suspended before that.
    pub(crate) slept: Duration,
    pub(crate) evicts: bool,
    pub(crate) engine: usize,
    engine_started: Instant,
    /// Each KEK: a denial may be in the store.
    denial_stored: Vec<bool>,
    /// Each KEK: the last that any engine heard is a denial, and the store was well, so that it is in the store.
    denial_sure: Vec<bool>,
    told: BTreeMap<(usize, usize), Told>,
    own: BTreeMap<(usize, usize), Own>,
    flights: BTreeMap<u64, Flight>,
    counter: u64,
    pub(crate) unwraps: u64,
    pub(crate) in_flight_max: usize,
    pub(crate) violations: Vec<String>,
}

/// What an asynchronous call is judged by: how things stood as it began.
#[derive(Debug, Clone)]
pub(crate) struct Began {
    at: Instant,
    /// Which call it is: they are numbered as they begin.
    pub(crate) count: u64,
    denied: bool,
    denial_sure: bool,
    silent: bool,
    owed_until: Instant,
    pub(crate) store_healthy: bool,
}

impl Model {
    pub(crate) fn new(settings: Settings, keks: Vec<Kek>, evicts: bool, now: Instant) -> Self {
        Self {
            settings,
            denial_stored: vec![false; keks.len()],
            denial_sure: vec![false; keks.len()],
            keks,
            kek_of: Vec::new(),
            accounts: BTreeMap::new(),
            latency: Duration::ZERO,
            unreachable: false,
            answers_turned: now,
            store_healthy: true,
            store_healed: None,
            troubled: now,
            woke: now,
            slept: Duration::ZERO,
            evicts,
            engine: 0,
            engine_started: now,
            told: BTreeMap::new(),
            own: BTreeMap::new(),
            flights: BTreeMap::new(),
            counter: 0,
            unwraps: 0,
            in_flight_max: 0,
            violations: Vec::new(),
        }
    }

    fn broken(&mut self, what: String) {
        self.violations.push(what);
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn told(&self, account: usize) -> Told {
        self.told.get(&(self.engine, self.kek_of[account])).cloned().unwrap_or_default()
    }

    fn own(&self, account: usize) -> Own {
        self.own.get(&(self.engine, account)).cloned().unwrap_or_default()
    }

    /// The store ails: a proof that waits for it in vain counts as silence.
    pub(crate) fn store_ails(&mut self) {
        self.store_healthy = false;
        self.told.values_mut().for_each(|told| told.given_up = true);
    }

    /// A new engine over the same store and token.
    pub(crate) fn restarted(&mut self, now: Instant) {
        self.engine += 1;
        self.engine_started = now;
    }

    /// A call of the token began.
    pub(crate) fn begin(
        &mut self,
        engine: usize,
        kek: &KekId,
        wrapped: &[u8],
        (is_proof, faulty): (bool, bool),
        now: Instant,
    ) -> u64 {
        let begun = self.count();
        let kek = self.keks.iter().position(|known| known.id == *kek).expect("a KEK of this simulation");
        let account = self.accounts.get(wrapped).copied();
        self.unwraps += 1;
        let mine = self.flights.values().filter(|flight| flight.engine == engine);
        let (mut in_flight, mut same) = (1, 1);
        for flight in mine {
            in_flight += 1;
            same += usize::from(account.is_some() && flight.account == account);
        }
        self.in_flight_max = self.in_flight_max.max(in_flight);
        if in_flight > IN_FLIGHT_MAX + self.keks.len() {
            self.broken(format!("{in_flight} unwraps in flight"));
        }
        // One on behalf of whoever wants the account, and one proof.
        if same > 2 {
            self.broken(format!("account {account:?}: {same} unwraps of it at once: no single-flight"));
        }
        self.flights.insert(begun, Flight { engine, kek, account, begun, at: now, is_proof, faulty });
        begun
    }

    /// It ended.
    pub(crate) fn land(&mut self, call: u64, landing: &Landing<'_>, now: Instant) {
        let Some(flight) = self.flights.remove(&call) else { return };
        let returned = self.count();
        let settings = self.settings.clone();
        // Read from an ailing store before the token was asked; how long that took the model does not know.
        let prompt =
            self.store_healthy && self.store_healed.is_none_or(|at| at.plus(settings.store_timeout) <= flight.at);
        // Nor how long a sample before this one took, of the same proof.
        let sampled = self.told.get(&(flight.engine, flight.kek)).is_some_and(|told| told.record_failed == flight.at);
        let mut store_lag = if prompt && !sampled { Duration::ZERO } else { settings.store_timeout };
        // A deadline does not end a wait that the machine slept through.
        if !store_lag.is_zero() && self.woke.plus(settings.store_timeout) >= flight.at {
            store_lag += self.slept;
        }
        let told = self.told.entry((flight.engine, flight.kek)).or_default();
        let own = flight.account.map(|account| self.own.entry((flight.engine, account)).or_default());
        match landing {
            Landing::Aek => {
                self.denial_sure[flight.kek] = false;
                if let Some(own) = own {
                    if flight.begun > own.begun {
                        (own.begun, own.begun_at) = (flight.begun, flight.at);
                    }
                    // Admitted for sure when it was in use, whoever asked, and the store gave its record: a proof admits no idle
                    // one, and with an earlier reading, because the store ails, none. Its TTL counts from the reading, which is
                    // made anew when it has waited for a quarter of one.
                    let is_past_ttl = own.fresh_from.is_some_and(|from| flight.at >= from.plus(settings.aek_ttl));
                    // And one that was wiped for its record's fault is not in use for a proof.
                    let in_use = own.used && !(own.at_fault && is_past_ttl);
                    // Nor does the sample that decides after another one failed fill any.
                    if prompt && !sampled && (in_use || own.fresh_from.is_none()) {
                        let waited = store_lag + settings.aek_ttl / 4;
                        let read = Instant::from_nanos(flight.at.as_nanos().saturating_sub(waited.as_nanos() as u64));
                        own.fresh_from = Some(own.fresh_from.map_or(read, |from| from.max(read)));
                    }
                    // Filled perhaps, and nothing is owed for it.
                    own.fresh_from.get_or_insert_default();
                    own.used = false;
                }
                let until = flight.at.plus(settings.grace);
                // Begun before a denial, or so long ago that its lease would be over (a suspend): no proof.
                if flight.begun <= told.denied || now >= until {
                    return;
                }
                if now >= told.owed_until {
                    told.anew = returned;
                }
                let owed = Instant::from_nanos(until.as_nanos().saturating_sub(store_lag.as_nanos() as u64));
                let runs_on = now < told.owed_until && (store_lag.is_zero() || told.denied == 0);
                let begins_anew = flight.at >= told.may_until && store_lag.is_zero();
                // Else it was under way as the lease lapsed, or may have been.
                if now < owed && (runs_on || begins_anew) {
                    told.owed_until = told.owed_until.max(owed);
                }
                told.may_until = told.may_until.max(until);
                told.bad_records = 0;
                told.proof_begun = told.proof_begun.max(flight.begun);
                // A denial ends by its witness, which the watch asks for, and others may not have.
                let is_denied = told.denial_like > told.proof_sure || self.denial_stored[flight.kek];
                let is_sure = store_lag.is_zero() && (flight.is_proof || !is_denied);
                if is_sure {
                    told.proof_sure = told.proof_sure.max(flight.begun);
                }
                if now.since(told.proof_returned) >= BACK_OFF_AFTER {
                    told.came_late = now;
                }
                if told.silent.is_some() || told.given_up {
                    told.perhaps_waived = now.plus(settings.aek_ttl);
                }
                if told.silent.is_some() && store_lag.is_zero() && told.proof_sure > told.anew.max(told.denial_like) {
                    told.waived = now.plus(settings.aek_ttl);
                }
                // A proof that waits for the store in vain counts as silence.
                (told.silent, told.given_up, told.proof_returned) = (None, !self.store_healthy, now);
                if is_sure {
                    self.denial_stored[flight.kek] = false;
                }
            }
            Landing::Wrong => {
                own.into_iter().for_each(|own| own.at_fault = true);
                (told.denial_like, told.record_failed) = (returned, now);
                self.denial_stored[flight.kek] = true;
                self.troubled = now;
            }
            Landing::Failed(error) => match error.verdict {
                Verdict::Denied | Verdict::Replaced | Verdict::Misconfigured => {
                    (told.denied, told.denial_like) = (returned, returned);
                    (told.may_until, told.owed_until) = Default::default();
                    self.denial_stored[flight.kek] = true;
                    self.denial_sure[flight.kek] = store_lag.is_zero();
                    let kek = &self.keks[flight.kek];
                    if kek.grants() && kek.turned <= flight.at {
                        self.troubled = now; // a one-off that the script asked for
                    }
                }
                Verdict::BadRecord => {
                    told.record_failed = now;
                    told.bad_records += 1;
                    // As many as a proof asks for: the last was a record that had been unwrapped before.
                    if told.bad_records >= PROOF_RECORDS {
                        told.denial_like = returned;
                        self.denial_stored[flight.kek] = true;
                    }
                    own.into_iter().for_each(|own| own.at_fault = true);
                    self.troubled = now;
                }
                _ => {
                    told.silent.get_or_insert(now);
                    self.troubled = now;
                }
            },
            Landing::Panicked | Landing::Cancelled => {
                told.given_up = true;
                self.troubled = now;
            }
        }
    }

    /// The last moment of promise 1 while the token answers; `None` while that is not so, or the KEK grants.
    fn denied_by(&self, account: usize) -> Option<Instant> {
        let kek = &self.keks[self.kek_of[account]];
        let Settings { poll_interval, store_timeout: call_timeout, .. } = self.settings;
        // A store that hangs costs a proof a quarter of its time.
        let in_time = self.latency <= if self.store_healthy { call_timeout } else { call_timeout / 2 };
        if kek.grants() || self.unreachable || !in_time {
            return None;
        }
        let from = kek.turned.max(self.answers_turned).max(self.troubled).max(self.store_healed.unwrap_or_default());
        // A machine that was suspended asks as it wakes.
        Some(from.plus(poll_interval).max(self.woke).plus(call_timeout))
    }

    /// A seal or open succeeded.
    pub(crate) fn worked(&mut self, account: usize, now: Instant) {
        let (told, own) = (self.told(account), self.own(account));
        let wrong = |what: String| format!("account {account} works at {now:?}: {what}");
        if now >= told.may_until {
            self.broken(wrong(format!("promise 1: the last proof's grace ended at {:?}", told.may_until)));
        }
        if let Some(by) = self.denied_by(account).filter(|by| now > *by) {
            self.broken(wrong(format!("promise 1: the token has been denying, so none may from {by:?} on")));
        }
        if told.proof_begun <= told.denied || own.begun <= told.denied {
            self.broken(wrong(format!("promise 4: re-admitted by what was begun before a denial: {told:?} {own:?}")));
        }
        let ttl_ends = own.begun_at.plus(self.settings.aek_ttl).max(told.perhaps_waived);
        if told.silent.is_none() && !told.given_up && now >= ttl_ends {
            self.broken(wrong(format!("its TTL ended at {ttl_ends:?} while the token answers")));
        }
        let Settings { grace, aek_ttl, .. } = self.settings;
        if now >= own.begun_at.plus(aek_ttl + grace + aek_ttl) {
            self.broken(wrong("used beyond its TTL for longer than one silence and one TTL".into()));
        }
        let count = self.count();
        let own = self.own.entry((self.engine, account)).or_default();
        if !own.used {
            own.used_from = now;
        }
        (own.used, own.worked, own.at_fault) = (true, count, false);
    }

    /// A seal or open on a live handle failed.
    pub(crate) fn failed(&mut self, account: usize, error: &Error, now: Instant) {
        let (told, own) = (self.told(account), self.own(account));
        let wrong = |what: &str| format!("account {account} at {now:?}: {what}: {error}; {told:?} {own:?}");
        let denied = told.denied > told.proof_begun;
        match error {
            Error::Denied(_) if !denied && told.proof_sure > told.denial_like => {
                self.broken(wrong("Denied, without a denial since the last proof"));
            }
            Error::Denied(_) => {}
            _ if denied => self.broken(wrong("promise 4: not Denied, after a denial")),
            Error::Lapsed(_) if now < told.owed_until => self.broken(wrong("promise 3: lapsed before grace ended")),
            Error::Lapsed(_) | Error::Cold { .. } => {}
            Error::Unreachable(_) if told.silent.is_some() || told.given_up => {}
            _ => self.broken(wrong("an error of a wrong kind")),
        }
        if self.owed_through_an_outage(account, now) {
            self.broken(wrong("promise 3: an account that was in memory and in use is owed until grace ends"));
        }
        // A token or a rate that is too slow for the TTL leaves accounts cold, and nothing worse.
        let tolerated = matches!(error, Error::Cold { .. }) && !self.refreshes_in_time();
        if let Some(by) = self.owed_back_by(account, now).filter(|by| now > *by && !tolerated) {
            self.broken(wrong(&format!("promise 2: the token has been granting, so it must work from {by:?} on")));
        }
    }

    /// Promise 3: in memory and in use before the silence (or its TTL not over), and nothing but silence since.
    fn owed_through_an_outage(&self, account: usize, now: Instant) -> bool {
        let (told, own) = (self.told(account), self.own(account));
        let in_ttl = |at: Instant| own.fresh_from.is_some_and(|from| at < from.plus(self.settings.aek_ttl));
        let in_memory = match told.silent {
            // Used, it stays in memory whatever its TTL; idle, it is wiped no sooner than its TTL ends.
            // Past its TTL, one whose own unwrap found the record at fault is wiped.
            Some(silent) => own.used && !own.at_fault || in_ttl(silent),
            // The engine does not know yet that the token is silent, or it is not.
            None => in_ttl(now) || own.used && !own.at_fault && now < told.waived,
        };
        // Nothing puts a TTL off for longer than one silence and one TTL, however the token flaps.
        let Settings { grace, aek_ttl, .. } = self.settings;
        let in_memory = in_memory && own.fresh_from.is_some_and(|from| now < from.plus(aek_ttl + grace + aek_ttl));
        let there = own.worked > told.denial_like.max(told.anew);
        !self.evicts && there && now < told.owed_until && in_memory
    }

    /// Promise 2: the last moment by which an account that was in use works again; `None` when that is not owed.
    ///
    /// The honest bound, from the moment on from which the token grants, answers within half of its timeout, and nothing
    /// else happens: a call timeout for calls that began earlier; the (backed-off) interval to the next proof; a
    /// call timeout for that; then every account at the resume rate and the token's latency, up to a second of
    /// background pause after a rush of on-demand calls; and, for accounts whose TTL ended while the token was
    /// silent, the next round of the tending.
    fn owed_back_by(&self, account: usize, now: Instant) -> Option<Instant> {
        let (told, own) = (self.told(account), self.own(account));
        let kek = &self.keks[self.kek_of[account]];
        let Settings { store_timeout: call_timeout, aek_ttl, resume_rate, .. } = self.settings;
        let calm = !self.flights.values().any(|flight| flight.faulty);
        let calm = calm && kek.grants() && !self.unreachable && self.latency <= call_timeout / 2 && self.store_healthy;
        let in_use = own.used || own.fresh_from.is_some_and(|from| now < from.plus(aek_ttl));
        if !calm || self.evicts || own.at_fault || own.worked == 0 || !in_use {
            return None;
        }
        let mut from = kek.turned.max(self.answers_turned).max(self.troubled).max(self.woke).max(self.engine_started);
        from = from.max(self.store_healed.unwrap_or_default());
        if own.fresh_from.is_some_and(|fresh| own.used_from >= fresh.plus(aek_ttl * 70 / 100)) {
            from = from.max(own.used_from); // idle until its TTL was nearly over, so nothing was refreshed ahead
        }
        let interval = self.interval(self.kek_of[account], now);
        let all = self.kek_of.len() as u32;
        let queue = (Duration::from_secs(1) / resume_rate + self.latency) * all;
        let round = TICK.max(aek_ttl / 50);
        let back = from.plus(call_timeout + interval).max(told.came_late);
        Some(back.plus(call_timeout + queue + 2 * TICK + round))
    }

    /// The longest interval between two proofs of any KEK, as things stand.
    pub(crate) fn interval_max(&self, now: Instant) -> Duration {
        (0..self.keks.len()).map(|kek| self.interval(kek, now)).max().unwrap_or_default()
    }

    /// The longest interval to the next proof of a KEK: backed off, once it was not proved for long.
    fn interval(&self, kek: usize, now: Instant) -> Duration {
        let poll = self.settings.poll_interval;
        let since = self.told.get(&(self.engine, kek)).map_or(self.engine_started, |told| told.proof_returned);
        let doublings = now.since(since).as_secs() / BACK_OFF_AFTER.as_secs();
        (poll * (1 << doublings.min(6))).min(BACK_OFF_MAX.max(poll))
    }

    /// True when every account can be refreshed between the latest start of its refresh (75 % of its TTL) and its end.
    fn refreshes_in_time(&self) -> bool {
        let Settings { aek_ttl, resume_rate, .. } = self.settings;
        let queue = (Duration::from_secs(1) / resume_rate + self.latency) * self.kek_of.len() as u32;
        queue + Duration::from_millis(100).max(aek_ttl / 50) < aek_ttl * 25 / 100
    }

    /// How things stand for an asynchronous call that begins now.
    pub(crate) fn began(&mut self, account: usize, now: Instant) -> Began {
        let told = self.told(account);
        let denied =
            told.denial_like > told.proof_sure || told.proof_sure == 0 && self.denial_stored[self.kek_of[account]];
        let denial_sure = self.denial_sure[self.kek_of[account]];
        let silent = told.silent.is_some() || told.given_up;
        let (count, store_healthy) = (self.count(), self.store_healthy);
        Began { at: now, count, denied, denial_sure, silent, owed_until: told.owed_until, store_healthy }
    }

    /// An open, a warming or an asynchronous seal ended.
    pub(crate) fn ended(&mut self, account: usize, began: &Began, error: Option<&Error>, now: Instant) {
        let Some(error) = error else { return };
        let (told, own) = (self.told(account), self.own(account));
        // Or the attempt of somebody else is shared, whose read began before the store healed.
        let reads_end = |healed: Instant| healed.plus(self.settings.store_timeout);
        let store =
            began.store_healthy && self.store_healthy && self.store_healed.is_none_or(|at| reads_end(at) < began.at);
        // Anything but grants and denials since a call timeout before: somebody else's attempt may be shared.
        let trouble = self.troubled.max(self.woke) >= began.at
            || began.silent
            || told.silent.is_some()
            || told.given_up
            || !store;
        let right = match error {
            Error::Denied(_) => began.denied || told.denial_like > began.count,
            Error::Lapsed(_) => now >= told.owed_until.min(began.owed_until),
            // Promise 4: a denial outlasts a silence, and a restart.
            Error::Unreachable(_) if began.denial_sure && self.denial_sure[self.kek_of[account]] => false,
            Error::Unreachable(_) => trouble || told.proof_begun == 0,
            Error::Corrupt(_) => own.at_fault,
            Error::Fatal(_) => trouble,
            Error::Store(_) => !store,
            // Others took its room before it was used, again and again.
            Error::Cold { .. } => self.evicts,
            _ => false,
        };
        if !right {
            self.broken(format!(
                "account {account} at {now:?}: an open, begun at {:?}, fails with an error of a wrong kind: {error}; {told:?} {own:?}",
                began.at
            ));
        }
    }

    /// The unwraps that a calm stretch of `time` may cost: proofs, and refreshes of what is in use.
    pub(crate) fn calm_unwraps_max(&self, time: Duration) -> u64 {
        let times = |every: Duration| (time.as_nanos() / every.as_nanos().max(1)) as u64 + 1;
        let proofs = times(self.settings.poll_interval.mul_f64(0.8)) * self.keks.len() as u64;
        proofs + times(self.settings.aek_ttl.mul_f64(0.5)) * self.kek_of.len() as u64
    }
}
