//! What a person would say of each success and each failure, who knows only what was true of the tokens and the store, and what
//! went over the seams: never what an engine thinks.
//!
//! Each rule is a sentence of the promises. Where the truth of a moment is disputable, the rule errs on the side that accuses nobody,
//! and says so.

use super::{
    hsm::{Grant, Hsm},
    shelf::{Health, Shelves},
};
use keyleash::{
    Error, LeaseStatus,
    clock::Instant,
    config::Settings,
    lease::Phase,
    name::{AccountId, KekName, KekVersion},
    store::record::{AccountRecord, KekRecord},
    token::{KekId, Verdict},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub(crate) const FIRST: usize = 0;
pub(crate) const STANDBY: usize = 1;
/// As in src/watch: a KEK version that was refused or silent for this long is asked less often …
const BACK_OFF_AFTER: Duration = Duration::from_secs(10 * 60);
/// … down to once in this time (or the poll interval, if that is longer).
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// More calls than an engine has under way on one token at once, proofs and all.
pub(crate) const QUEUE_MAX: u32 = 24;
/// What is due by schedule is found by the next pass (15 min) of who does the work; one that is gone is followed within 75 s, and one that gets
/// nowhere within 5 min.
pub(crate) const WORK_MAX: Duration = Duration::from_secs(25 * 60);
/// The tick of the watch and of the tending.
const TICK: Duration = Duration::from_secs(1);

/// One AEK version of an account.
pub(crate) type Aek = (AccountId, u32);

/// A thing that is so or not, and since when.
#[derive(Debug, Clone, Copy)]
struct Since {
    is: bool,
    turned: Instant,
}

impl Since {
    fn new(is: bool, turned: Instant) -> Self {
        Self { is, turned }
    }

    fn see(&mut self, is: bool, now: Instant) {
        if self.is != is {
            *self = Self { is, turned: now };
        }
    }
}

/// The truth of one KEK version.
struct Kek {
    id: KekId,
    kek: KekVersion,
    /// Each token would grant it.
    grants: Vec<Since>,
    /// Each token has it, disabled: a denial that no clone could be mistaken in.
    disabled: Vec<bool>,
    /// The first token has an impostor in its place.
    impostor: Since,
}

/// The truth of one token.
struct Reach {
    /// From each host.
    away: Vec<Since>,
    /// It is fast enough that no queue in front of it, of what an engine may ask at once, costs anybody a deadline.
    prompt: Since,
    /// The longest that a call ever waited behind as many as an engine may have under way.
    queue_max: Duration,
    hides: bool,
    dates: bool,
}

/// The truth of one process.
struct Process {
    host: usize,
    started: Instant,
    woke: Instant,
    /// Until when a fault of its own may delay what it hears.
    disturbed: Instant,
    /// When it last got no fresh context.
    renewal_refused: Instant,
    /// A call of it hangs.
    hangs: bool,
    /// The first token was silent to it once, or the script may have made it seem so.
    met_silence: bool,
    /// Commands that it is at, such as a rotation.
    commands: usize,
    /// When the store last answered it of an account.
    words: BTreeMap<AccountId, Instant>,
    /// When that was the first answer after a grace without one: what went cold in that comes back in time.
    late_words: BTreeMap<AccountId, Instant>,
    /// When it last answered it of any, commands too.
    heard: Instant,
}

/// What one process heard of one KEK version.
#[derive(Debug, Clone, Default)]
struct Line {
    /// When the last unwrap was asked that the token granted, or a context that remembers that it did, and its place in the order of
    /// all calls; of either token, and of the first one.
    granted: (u64, Instant),
    granted_by_first: (u64, Instant),
    /// When the newest context was initialised in which one was.
    fresh: Instant,
    /// When a denial of the first token arrived, in the order of all calls.
    denied_by_first: u64,
    denied_by_first_at: Instant,
    /// The first of those since the record of the denial last got a new version, and when it arrived.
    unwritten: Option<Instant>,
    /// When an unwrap was asked last that the first token granted, of what it had not just wrapped: the lease counts from that.
    proved: Instant,
    /// When one came after so long a time that the watch asked less often.
    came_late: Instant,
    /// An impostor gave back what an impostor had wrapped for another process before anybody could know: a record that was there
    /// proved it, and nobody can tell.
    is_fooled: bool,
    /// The same, of either.
    denied: u64,
}

/// What one process has of one AEK.
#[derive(Debug, Clone, Default)]
struct Own {
    /// When it last worked.
    worked: Option<Instant>,
    /// When it last failed, if it has not worked since.
    failed: Option<Instant>,
    /// It was used since its last own unwrap, and since when.
    used: bool,
    used_from: Instant,
    /// When its last own unwrap was asked that renewed its TTL, and when one was answered.
    given: Instant,
    landed: Instant,
    /// Blocks that it sealed, and how many of them the process was told that they are written down.
    sealed: u64,
    written: u64,
}

/// An unwrap under way.
pub(crate) struct Call {
    pub(crate) process: usize,
    pub(crate) hsm: usize,
    pub(crate) kek: KekId,
    pub(crate) at: Instant,
}

/// A denial that the store has.
#[derive(Debug, Clone, Copy)]
struct Noted {
    /// Its writer heard it then, in the order of all calls.
    heard: u64,
    by_first: bool,
    since: Instant,
}

pub(crate) struct Oracle {
    pub(crate) settings: Settings,
    keks: Vec<Kek>,
    tokens: Vec<Reach>,
    processes: Vec<Process>,
    reads: Since,
    writes: Since,
    /// The longest that reads ever took.
    reads_take: Duration,
    lines: BTreeMap<(usize, usize), Line>,
    owns: BTreeMap<(usize, Aek), Own>,
    /// The KEK versions that ever wrapped an AEK.
    wrapped_by: BTreeMap<Aek, BTreeSet<usize>>,
    /// Those that wrap something of an account in the store.
    under: BTreeMap<AccountId, BTreeSet<usize>>,
    /// KEK versions of which somebody was told that they wrap nothing any more, so that their keys may be destroyed.
    retired: BTreeSet<usize>,
    /// Keys in the tokens that other stores made.
    strangers: BTreeSet<KekId>,
    records: BTreeMap<Vec<u8>, (Aek, usize)>,
    /// The AEK versions that the store has of each account.
    stored: BTreeMap<AccountId, BTreeSet<u32>>,
    /// Those that it has no more, and whose write took them out, when.
    gone: BTreeMap<Aek, (usize, Instant)>,
    /// The process that took them out was told so, or that it may have.
    known_gone: BTreeSet<Aek>,
    /// Wrappings that an impostor made, and whether it had been there for so long that it was to be known.
    false_wraps: BTreeMap<Vec<u8>, bool>,
    /// AEKs that an impostor wrapped before anybody could know it, and the process that stored them: nobody can open them any more.
    lost: BTreeMap<Aek, usize>,
    /// How many blocks the store says were sealed under each AEK.
    counted: BTreeMap<Aek, u64>,
    /// The version of each KEK that wraps what is new.
    currents: BTreeMap<KekName, KekVersion>,
    /// Accounts whose policy asks for another AEK version: of the KEK that is to wrap it, and since when.
    due: BTreeMap<AccountId, (KekName, Instant)>,
    noted: BTreeMap<usize, Noted>,
    /// KEK versions that an impostor wrapped something by before they had wrapped anything: nobody can tell which of the two is the KEK.
    disputed: BTreeSet<usize>,
    /// What a process wrapped under a KEK version that wraps other things, of which it has had nothing unwrapped since: it proves nothing.
    young: BTreeSet<(usize, usize, Aek)>,
    calls: BTreeMap<u64, (Call, Option<Aek>)>,
    /// What was sealed as a process began to have it written down.
    counting: BTreeMap<u64, Vec<(Aek, u64)>>,
    order: u64,
    pub(crate) violations: Vec<String>,
}

impl Oracle {
    pub(crate) fn new(settings: Settings, hosts: usize, hsms: &[Hsm], now: Instant) -> Self {
        let reach = |hsm: &Hsm| Reach {
            away: vec![Since::new(false, now); hosts],
            prompt: Since::new(true, now),
            queue_max: Duration::ZERO,
            hides: hsm.hides,
            dates: hsm.dates,
        };
        Self {
            settings,
            keks: Vec::new(),
            tokens: hsms.iter().map(reach).collect(),
            processes: Vec::new(),
            reads: Since::new(true, now),
            writes: Since::new(true, now),
            reads_take: Duration::ZERO,
            lines: BTreeMap::new(),
            owns: BTreeMap::new(),
            wrapped_by: BTreeMap::new(),
            under: BTreeMap::new(),
            retired: BTreeSet::new(),
            strangers: BTreeSet::new(),
            records: BTreeMap::new(),
            stored: BTreeMap::new(),
            gone: BTreeMap::new(),
            known_gone: BTreeSet::new(),
            false_wraps: BTreeMap::new(),
            lost: BTreeMap::new(),
            counted: BTreeMap::new(),
            currents: BTreeMap::new(),
            due: BTreeMap::new(),
            noted: BTreeMap::new(),
            disputed: BTreeSet::new(),
            young: BTreeSet::new(),
            calls: BTreeMap::new(),
            counting: BTreeMap::new(),
            order: 0,
            violations: Vec::new(),
        }
    }

    fn broken(&mut self, what: String) {
        self.violations.push(what);
    }

    fn next(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    pub(crate) fn process_started(&mut self, host: usize, now: Instant) -> usize {
        let none = Instant::default();
        self.processes.push(Process {
            host,
            started: now,
            woke: none,
            disturbed: none,
            renewal_refused: none,
            hangs: false,
            met_silence: false,
            commands: 0,
            heard: none,
            words: BTreeMap::new(),
            late_words: BTreeMap::new(),
        });
        self.processes.len() - 1
    }

    pub(crate) fn woke(&mut self, process: usize, now: Instant) {
        self.processes[process].woke = now;
        self.silent(process);
    }

    /// What a process hears may be late until then, by the script's doing.
    pub(crate) fn disturb(&mut self, process: usize, until: Instant) {
        let disturbed = &mut self.processes[process].disturbed;
        *disturbed = until.max(*disturbed);
        self.silent(process);
    }

    /// The first token was silent to a process.
    pub(crate) fn silent(&mut self, process: usize) {
        self.processes[process].met_silence = true;
    }

    pub(crate) fn hangs(&mut self, process: usize) {
        self.processes[process].hangs = true;
    }

    pub(crate) fn released(&mut self, now: Instant) {
        for process in &mut self.processes {
            if std::mem::take(&mut process.hangs) {
                process.disturbed = process.disturbed.max(now);
            }
        }
    }

    pub(crate) fn renewal_refused(&mut self, process: usize, now: Instant) {
        self.processes[process].renewal_refused = now;
    }

    /// A process begins, or ends, what no seal and no open waits for.
    pub(crate) fn command(&mut self, process: usize, begins: bool) {
        let commands = &mut self.processes[process].commands;
        *commands = if begins { *commands + 1 } else { *commands - 1 };
    }

    /// The store answered a process's read of an account. Later than in `call_timeout` that is no answer.
    pub(crate) fn word(&mut self, process: usize, account: &AccountId, asked: Instant, now: Instant) {
        let Settings { store_timeout: call_timeout, grace, .. } = self.settings;
        if now.since(asked) > call_timeout {
            return;
        }
        let Some(process) = self.processes.get_mut(process) else { return };
        process.heard = now;
        // What a command is told is no word to the leases.
        if process.commands == 0 {
            let before = process.words.insert(account.clone(), now);
            // A word counts from when it was asked for.
            if before.is_some_and(|before| before.plus(grace) <= now.plus(call_timeout)) {
                process.late_words.insert(account.clone(), now);
            }
        }
    }

    pub(crate) fn kek_stored(&mut self, record: &KekRecord, now: Instant) {
        self.currents.insert(record.name.clone(), KekVersion::new(record.name.clone(), record.current));
        for version in &record.versions {
            if self.keks.iter().any(|kek| kek.id == version.id) {
                continue;
            }
            if self.strangers.contains(&version.id) {
                self.violations.push(format!("promise 5: KEK {} is another store's key", record.name));
            }
            // Where its token has been denying for a while, behind a context that hides it, it has denied this one from now on.
            let not_yet = Since::new(false, now);
            self.keks.push(Kek {
                id: version.id.clone(),
                kek: KekVersion::new(record.name.clone(), version.version),
                grants: vec![not_yet; self.tokens.len()],
                disabled: vec![false; self.tokens.len()],
                impostor: Since::new(false, Instant::default()),
            });
        }
    }

    /// Every KEK version that anybody may need.
    pub(crate) fn kek_ids(&self) -> Vec<KekId> {
        let is_needed = |(kek, _): &(usize, &Kek)| !self.retired.contains(kek);
        self.keks.iter().enumerate().filter(is_needed).map(|(_, kek)| kek.id.clone()).collect()
    }

    /// The KEK version of that key.
    pub(crate) fn kek_version(&self, id: &KekId) -> KekVersion {
        self.keks[self.kek(id).expect("a KEK of the store")].kek.clone()
    }

    /// Another store on the same token made this key.
    pub(crate) fn stranger(&mut self, id: KekId) {
        self.strangers.insert(id);
    }

    /// Somebody was told that the KEK version wraps nothing any more. Gives its key, which may be destroyed.
    pub(crate) fn kek_retired(&mut self, kek: &KekVersion) -> KekId {
        let of = self.keks.iter().position(|known| known.kek == *kek).expect("a KEK of the store");
        let wrapped: Vec<_> = self.under.iter().filter(|(_, keks)| keks.contains(&of)).map(|(id, _)| id).collect();
        if !wrapped.is_empty() {
            self.violations.push(format!("promise 5: {kek} is retired, and wraps AEKs of {wrapped:?}"));
        }
        self.retired.insert(of);
        self.keks[of].id.clone()
    }

    fn kek(&self, id: &KekId) -> Option<usize> {
        self.keks.iter().position(|kek| kek.id == *id)
    }

    pub(crate) fn account_stored(&mut self, process: usize, record: &AccountRecord, now: Instant) {
        let max_blocks = record.policy.max_blocks;
        match record.current().filter(|aek| max_blocks > 0 && aek.used.blocks >= max_blocks) {
            Some(aek) => {
                let since = self.due.get(&record.account).map_or(now, |(_, since)| *since);
                self.due.insert(record.account.clone(), (aek.kek.name.clone(), since));
            }
            None => _ = self.due.remove(&record.account),
        }
        let versions: BTreeSet<_> = record.versions.iter().map(|wrapped| wrapped.aek_version).collect();
        let before = self.stored.insert(record.account.clone(), versions.clone()).unwrap_or_default();
        let gone = before.difference(&versions).map(|version| ((record.account.clone(), *version), (process, now)));
        self.gone.extend(gone);
        let others: BTreeSet<_> = self.under.values().flatten().copied().collect();
        let under: BTreeSet<_> = record.versions.iter().filter_map(|wrapped| self.kek(&wrapped.kek_id)).collect();
        if let Some(kek) = under.intersection(&self.retired).next() {
            let kek = &self.keks[*kek].kek;
            self.violations.push(format!("promise 5: {} is stored under {kek}, which was retired", record.account));
        }
        self.under.insert(record.account.clone(), under);
        for wrapped in &record.versions {
            let aek = (record.account.clone(), wrapped.aek_version);
            if self.counted.insert(aek.clone(), wrapped.used.blocks) != Some(wrapped.used.blocks) {
                self.counts_are_kept(&aek);
            }
            let Some(kek) = self.kek(&wrapped.kek_id) else { continue };
            if others.contains(&kek) && !self.records.contains_key(&wrapped.wrapped.bytes) {
                self.young.insert((process, kek, aek.clone()));
            }
            let others = self.wraps_truly(kek, &aek.0);
            if let Some(known) = self.false_wraps.remove(&wrapped.wrapped.bytes) {
                let was_whole = self.wrapped_by.contains_key(&aek) && !self.lost.contains_key(&aek);
                if was_whole && others {
                    let kek = &self.keks[kek].kek;
                    self.violations
                        .push(format!("promise 5: AEK {aek:?} is re-wrapped by an impostor in the place of {kek}"));
                }
                self.lost.insert(aek.clone(), process);
                if !others {
                    self.disputed.insert(kek);
                }
                if known && others && !self.line(process, kek).is_fooled {
                    let kek = &self.keks[kek].kek;
                    self.broken(format!(
                        "promise 5: AEK {aek:?} is stored as an impostor wrapped it that stands in the place of {kek}"
                    ));
                }
            }
            self.wrapped_by.entry(aek.clone()).or_default().insert(kek);
            self.records.insert(wrapped.wrapped.bytes.clone(), (aek, kek));
        }
    }

    /// The scheduled work is done by somebody, whoever of those that did it crashed, stood still or waits for what never comes.
    pub(crate) fn what_is_due_is_done(&mut self, now: Instant) {
        let is_well = self.tokens.iter().all(|token| token.away.iter().all(|away| !away.is) && token.prompt.is)
            && self.reads.is
            && self.writes.is;
        if !is_well || self.processes.iter().any(|process| process.hangs) {
            return;
        }
        let tokens =
            self.tokens.iter().flat_map(|token| token.away.iter().chain([&token.prompt])).map(|since| since.turned);
        let processes = self.processes.iter().flat_map(|process| [process.started, process.woke, process.disturbed]);
        let well = tokens.chain(processes).chain([self.reads.turned, self.writes.turned]).max().unwrap_or_default();
        let late = self.due.iter().find(|(account, (name, since))| {
            // What is new is wrapped by the KEK's current version; by none of which the one record that there is was an impostor's: to
            // put an end to that is the operator's (`kek rotate`).
            let current = self.currents.get(name).and_then(|kek| self.keks.iter().position(|known| known.kek == *kek));
            let of_account = self.under.get(*account).into_iter().flatten().copied();
            let keks = of_account.chain(current).flat_map(|kek| &self.keks[kek].grants);
            let granted = keks.clone().map(|grants| grants.turned).max().unwrap_or_default();
            let by = well.max(*since).max(granted).plus(WORK_MAX);
            let is_disputed = current.is_some_and(|kek| self.disputed.contains(&kek));
            now > by && keks.clone().all(|grants| grants.is) && !is_disputed && !self.is_lost(account)
        });
        if let Some((account, (_, since))) = late {
            let what = format!("the rotation of {account} is due since {since:?}, and not done at {now:?}");
            self.broken(what);
        }
    }

    /// A process begins to have written down what it sealed.
    pub(crate) fn counts_are_written(&mut self, process: usize, call: u64) {
        let of_it = self.owns.iter().filter(|((of, _), own)| *of == process && own.sealed > 0);
        let sealed = of_it.map(|((_, aek), own)| (aek.clone(), own.sealed)).collect();
        self.counting.insert(call, sealed);
    }

    /// It was told that it is.
    pub(crate) fn counts_written(&mut self, process: usize, call: u64) {
        for (aek, sealed) in self.counting.remove(&call).unwrap_or_default() {
            let own = self.owns.entry((process, aek.clone())).or_default();
            own.written = own.written.max(sealed);
            self.counts_are_kept(&aek);
        }
    }

    /// Promise 5: what somebody was told is counted in the store is counted there.
    fn counts_are_kept(&mut self, aek: &Aek) {
        let written: u64 = self.owns.iter().filter(|((_, of), _)| of == aek).map(|(_, own)| own.written).sum();
        let counted = self.counted.get(aek).copied().unwrap_or_default();
        if self.is_stored(aek) && counted < written {
            self.broken(format!(
                "promise 5: {written} blocks of {aek:?} were written down, and the store says {counted}"
            ));
        }
    }

    /// True when the KEK version wraps something of another account, and no impostor in its place did: without that nobody can tell the
    /// two apart.
    fn wraps_truly(&self, kek: usize, account: &AccountId) -> bool {
        let mut others = self.under.iter().filter(|(other, _)| *other != account && !self.is_lost(other));
        others.any(|(_, keks)| keks.contains(&kek))
    }

    /// True when an AEK of the account cannot be opened any more.
    pub(crate) fn is_lost(&self, account: &AccountId) -> bool {
        let is_disputed = |keks: &BTreeSet<_>| keks.intersection(&self.disputed).next().is_some();
        self.lost.keys().any(|(lost, _)| lost == account) || self.under.get(account).is_some_and(is_disputed)
    }

    /// A process was told how its retirement of AEK versions ended.
    pub(crate) fn retirement_ended(&mut self, process: usize, account: &AccountId) {
        let of_it = self.gone.iter().filter(|((of, _), (by, _))| of == account && *by == process);
        self.known_gone.extend(of_it.map(|(aek, _)| aek.clone()));
    }

    /// A block was opened whose AEK version the store does not have any more. By whoever took it out, that was told; by others as long
    /// as they may not have heard of it: a TTL after the last silence, and one in which what passed its TTL in that is refreshed.
    pub(crate) fn opened_gone(&mut self, process: usize, aek: &Aek, now: Instant) {
        let Settings { aek_ttl, store_timeout: call_timeout, .. } = self.settings;
        let Some((by, since)) = self.gone.get(aek).copied() else { return };
        if by == process && self.known_gone.contains(aek) {
            self.broken(format!("process {process} opens under {aek:?} at {now:?}, which it retired itself"));
        }
        let own = &self.processes[process];
        let is_well = self.aways(process).all(|away| !away.is)
            && self.reads.is
            && !own.hangs
            && self.tokens.iter().all(|token| token.prompt.is);
        let turns =
            self.aways(process).map(|away| away.turned).chain(self.tokens.iter().map(|token| token.prompt.turned));
        let well = turns.chain([self.reads.turned, own.disturbed, own.woke]).fold(since, Instant::max);
        if is_well && now > well.plus(aek_ttl * 2 + call_timeout * 4 + TICK) {
            self.broken(format!(
                "process {process} opens under {aek:?} at {now:?}, which the store has no more since {since:?}"
            ));
        }
    }

    /// A process is to take an account out of memory: nothing of it is owed.
    pub(crate) fn evicted(&mut self, process: usize, account: &AccountId) {
        let of_it = self.owns.iter_mut().filter(|((by, (of, _)), _)| *by == process && of == account);
        of_it.for_each(|(_, own)| own.used = false);
    }

    /// True when the store has it: what was sealed under it can be opened.
    pub(crate) fn is_stored(&self, (account, aek_version): &Aek) -> bool {
        self.stored.get(account).is_some_and(|versions| versions.contains(aek_version))
    }

    /// An impostor wrapped.
    pub(crate) fn false_wrap(&mut self, kek: &KekId, wrapped: &[u8], now: Instant) {
        let Settings { poll_interval, store_timeout: call_timeout, .. } = self.settings;
        let known_by = |since: Since| since.turned.plus(poll_interval + call_timeout * 3);
        let known =
            self.kek(kek).is_some_and(|kek| self.keks[kek].impostor.is && now > known_by(self.keks[kek].impostor));
        self.false_wraps.insert(wrapped.to_vec(), known);
    }

    /// A KEK version that wraps nothing has no record that could prove it, and nothing that its denial keeps.
    fn is_bare(&self, kek: usize) -> bool {
        !self.under.values().any(|keks| keks.contains(&kek))
    }

    /// A denial was written down, or deleted.
    pub(crate) fn denial_stored(&mut self, process: usize, kek: &KekVersion, is_there: bool, now: Instant) {
        let Some(kek) = self.keks.iter().position(|known| known.kek == *kek) else { return };
        if is_there {
            let line = self.lines.get(&(process, kek)).cloned().unwrap_or_default();
            let (heard, by_first) = (line.denied, line.denied_by_first == line.denied);
            self.noted.insert(kek, Noted { heard, by_first, since: now });
            self.lines.iter_mut().filter(|((_, of), _)| *of == kek).for_each(|(_, line)| line.unwritten = None);
            return;
        }
        let noted = self.noted.remove(&kek).filter(|_| !self.is_bare(kek) && !self.disputed.contains(&kek));
        let Some(noted) = noted else { return };
        let granted = |line: &Line| if noted.by_first { line.granted_by_first.0 } else { line.granted.0 };
        // An answer from memory is no proof that the denial is over, but out of a context that is younger than that.
        let hides = self.tokens.iter().any(|token| token.hides);
        let shows = |line: &Line| !hides || line.fresh >= noted.since;
        let mut lines = self.lines.iter().filter(|((_, of), _)| *of == kek);
        let proved = lines.any(|(_, line)| line.is_fooled || granted(line) > noted.heard && shows(line));
        if !proved {
            let kek = &self.keks[kek].kek;
            self.broken(format!(
                "promise 4: the denial of {kek} is deleted by process {process}, and no token granted it since"
            ));
        }
    }

    /// What is true now.
    pub(crate) fn look(&mut self, hsms: &[Hsm], shelves: &Shelves, now: Instant) {
        for (hsm, token) in hsms.iter().zip(&mut self.tokens) {
            let queue = hsm.latency * QUEUE_MAX / u32::try_from(hsm.workers).unwrap();
            token.away.iter_mut().enumerate().for_each(|(host, away)| away.see(hsm.is_away(host), now));
            token.queue_max = token.queue_max.max(queue);
            token.prompt.see(queue <= self.settings.store_timeout / 2, now);
        }
        for kek in &mut self.keks {
            for (of, hsm) in hsms.iter().enumerate() {
                kek.grants[of].see(hsm.grants(&kek.id), now);
                kek.disabled[of] = hsm.key(&kek.id).is_some_and(|key| key.present && key.is_true() && !key.enabled);
            }
            kek.impostor.see(hsms[FIRST].key(&kek.id).is_some_and(|key| !key.is_true()), now);
        }
        self.reads.see(shelves.reads == Health::Healthy, now);
        if let Health::Slow(time) = shelves.reads {
            self.reads_take = self.reads_take.max(time);
        }
        self.writes.see(shelves.writes == Health::Healthy && shelves.held == 0, now);
    }

    pub(crate) fn of_record(&self, wrapped: &[u8]) -> String {
        match self.records.get(wrapped) {
            Some(((account, version), kek)) => format!("{account}/{version} under {}", self.keks[*kek].kek),
            None => "what was just wrapped".into(),
        }
    }

    /// A process asks a token for an AEK.
    pub(crate) fn begin(&mut self, call: Call, wrapped: &[u8]) -> u64 {
        if call.hsm == STANDBY && !self.processes[call.process].met_silence {
            self.broken(format!(
                "promise 4: process {} asks the standby, and the first token was never silent to it",
                call.process
            ));
        }
        let order = self.next();
        let aek = self.records.get(wrapped).map(|(aek, _)| aek.clone());
        self.calls.insert(order, (call, aek));
        order
    }

    /// It has its answer: the AEK, as the token truly grants it or not, in a context; or none.
    pub(crate) fn land(&mut self, order: u64, told: Result<(Grant, Instant), Verdict>, now: Instant) {
        let Some((Call { process, hsm, kek, at }, aek)) = self.calls.remove(&order) else { return };
        let Some(kek) = self.kek(&kek) else { return };
        let returned = self.next();
        match told {
            Ok((Grant::True | Grant::Memory, context)) => {
                let line = self.lines.entry((process, kek)).or_default();
                if now.since(line.granted.1.max(self.processes[process].started)) >= BACK_OFF_AFTER {
                    line.came_late = now;
                }
                line.granted = line.granted.max((order, at));
                if hsm == FIRST {
                    line.granted_by_first = line.granted_by_first.max((order, at));
                    let proves = |aek: &Aek| !self.young.contains(&(process, kek, aek.clone()));
                    if aek.as_ref().is_some_and(proves) {
                        line.proved = line.proved.max(at);
                        self.young.retain(|(by, of, _)| (*by, *of) != (process, kek));
                    }
                }
                line.fresh = line.fresh.max(context);
                if hsm == FIRST {
                    let of_it = self.lines.iter_mut().filter(|((_, of), _)| *of == kek).map(|(_, line)| line);
                    of_it.filter(|line| order > line.denied_by_first).for_each(|line| line.unwritten = None);
                }
                if let Some(aek) = aek {
                    // A TTL counts from the read of the record. While the store says nothing a proof asks for what it knows, and renews none.
                    let is_read = self.reads.is && self.reads.turned.plus(self.settings.store_timeout) <= at;
                    let word = self.processes[process].words.get(&aek.0).copied().unwrap_or_default();
                    let read = if is_read { at } else { at.min(word) };
                    let own = self.owns.entry((process, aek)).or_default();
                    // A proof leaves what nobody uses as it is.
                    if own.used || own.worked.is_none() {
                        own.given = read;
                    }
                    (own.used, own.landed) = (false, now);
                }
            }
            Ok((Grant::Impostor, _)) => {
                let lost = aek.and_then(|aek| Some((*self.lost.get(&aek)?, aek)));
                let fools = lost.is_some_and(|(by, aek)| by != process || !self.wraps_truly(kek, &aek.0));
                self.lines.entry((process, kek)).or_default().is_fooled |= fools;
            }
            Err(Verdict::Denied | Verdict::Replaced | Verdict::Misconfigured) => {
                let line = self.lines.entry((process, kek)).or_default();
                line.denied = returned;
                if hsm == FIRST {
                    (line.denied_by_first, line.denied_by_first_at) = (returned, now);
                    line.unwritten.get_or_insert(now);
                }
            }
            // One that says so of a record that was good denies too, as soon as the engine is sure; that is not known here.
            Err(Verdict::BadRecord) => {}
            // Not asked for by the script: a queue that is longer than it may be, say. Those rules that count on answers go on
            // counting.
            Err(_) => {}
        }
    }
}

impl Oracle {
    /// Whether a token answers a process, and since when.
    fn away(&self, process: usize, token: usize) -> Since {
        self.tokens[token].away[self.processes[process].host]
    }

    /// The same, of each token.
    fn aways(&self, process: usize) -> impl Iterator<Item = Since> {
        (0..self.tokens.len()).map(move |token| self.away(process, token))
    }

    fn line(&self, process: usize, kek: usize) -> Line {
        self.lines.get(&(process, kek)).cloned().unwrap_or_default()
    }

    /// Promise 1, first bound: the last moment at which a process may use a KEK version, because the token that speaks has been
    /// denying; `None` while that is not so, or not to be heard.
    fn denied_by(&self, process: usize, kek: usize) -> Option<Instant> {
        let Settings { poll_interval: poll, store_timeout: timeout, fresh_proof_every, .. } = self.settings;
        let (own, kek, first) = (&self.processes[process], &self.keks[kek], &self.tokens[FIRST]);
        let since = own.disturbed.max(own.started);
        let first_away = self.away(process, FIRST);
        if !first_away.is {
            if kek.grants[FIRST].is || !first.prompt.is {
                return None;
            }
            let from = since.max(kek.grants[FIRST].turned).max(first_away.turned).max(first.prompt.turned);
            let asked = match first.hides {
                // Heard by a fresh proof alone; one that could not be made is made at the next poll.
                true if own.hangs => return None,
                true => from.plus(poll * fresh_proof_every).max(own.renewal_refused.plus(poll)),
                false => from.plus(poll),
            };
            return Some(asked.max(own.woke).plus(timeout));
        }
        let (standby, grants) = (self.tokens.get(STANDBY)?, kek.grants.get(STANDBY)?);
        let standby_away = self.away(process, STANDBY);
        if standby_away.is || !standby.prompt.is || standby.hides || !kek.disabled[STANDBY] || !self.reads.is {
            return None;
        }
        let from = since.max(grants.turned).max(first_away.turned).max(standby_away.turned).max(standby.prompt.turned);
        // The proof that meets the silence waits for the first one's deadline, for the store's, and for the standby's.
        Some(from.max(self.reads.turned).plus(poll).max(own.woke).plus(timeout * 3))
    }

    /// Promise 1, second bound: a grace after the last proof, and never later than a grace after the last fresh one was due again.
    fn may_until(&self, process: usize, kek: usize) -> Instant {
        let Settings { poll_interval, grace, fresh_proof_every, .. } = self.settings;
        let line = self.line(process, kek);
        if line.granted.0 == 0 {
            return Instant::default();
        }
        let by_fresh = line.fresh.plus(poll_interval * fresh_proof_every + grace);
        if !self.tokens[FIRST].dates {
            return line.granted.1.plus(grace);
        }
        // A module that answers from memory is believed until a fresh proof is due.
        if self.tokens.iter().any(|token| token.hides) { by_fresh } else { by_fresh.min(line.granted.1.plus(grace)) }
    }

    /// Why a process may not use a KEK version at `now`; `since` is when a key of it was not usable yet, if it was not.
    fn forbids(&self, process: usize, kek: usize, since: Option<Instant>, now: Instant) -> Option<String> {
        let line = self.line(process, kek);
        if line.is_fooled || self.disputed.contains(&kek) {
            return None;
        }
        let Settings { poll_interval, store_timeout: call_timeout, .. } = self.settings;
        let until = self.may_until(process, kek);
        if now >= until {
            return Some(format!("promise 1: no proof of the token lets it work after {until:?}: {line:?}"));
        }
        if let Some(by) = self.denied_by(process, kek).filter(|by| now > *by) {
            return Some(format!("promise 1: the token has been denying, so none may from {by:?} on: {line:?}"));
        }
        if line.granted_by_first.0 <= line.denied_by_first && line.denied_by_first > 0 {
            return Some(format!("promise 4: the first token denied it, and has not granted since: {line:?}"));
        }
        let age_max = poll_interval + call_timeout;
        if let Some(since) = since.filter(|since| line.granted.1.plus(age_max) < *since) {
            return Some(format!(
                "it became usable after {since:?}, on a proof that is older than {age_max:?}: {line:?}"
            ));
        }
        // Another process was denied by the first token, which is in the store: what the standby says since then is nothing, a poll
        // after it could be read.
        let noted = self.noted.get(&kek).filter(|noted| noted.by_first && noted.heard > line.granted_by_first.0)?;
        let own = &self.processes[process];
        let from = noted.since.max(self.reads.turned).max(own.started).max(own.disturbed);
        let read_by = from.plus(poll_interval).max(own.woke).plus(call_timeout * 3);
        let hides = self.tokens.iter().any(|token| token.hides);
        let only_standby = line.granted.0 > line.granted_by_first.0 && !hides;
        let proved_anew = self.lines.iter().any(|((_, of), line)| *of == kek && line.granted_by_first.0 > noted.heard);
        (only_standby && !proved_anew && self.reads.is && now > read_by)
            .then(|| format!("promise 4: it goes by the standby alone, after the first token's denial that the store has: {noted:?} {line:?}"))
    }

    /// Promise 4: what a process was told by the first token is in the store soon after, whatever else that process waits for.
    pub(crate) fn denials_are_written_down(&mut self, process: usize, now: Instant) {
        if !self.reads.is || !self.writes.is || self.tokens.iter().any(|token| token.hides) {
            return;
        }
        let own = &self.processes[process];
        let since = self.reads.turned.max(self.writes.turned).max(own.woke).max(own.started).max(own.disturbed);
        let granted = |kek| {
            let lines = self.lines.iter().filter(move |((_, of), _)| *of == kek);
            lines.map(|(_, line)| line.granted_by_first.0).max().unwrap_or_default()
        };
        let late = (0..self.keks.len()).find(|kek| {
            let line = self.line(process, *kek);
            let within = self.settings.store_timeout * 3 + self.settings.poll_interval;
            let by = since.max(line.denied_by_first_at).plus(within);
            let is_missing = !self.noted.contains_key(kek) && now > by;
            // Each is a new one: that a record from before a grant stays there says nothing of it.
            let is_old = line.unwritten.is_some_and(|unwritten| now > since.max(unwritten).plus(within));
            let is_clear = !line.is_fooled && !self.is_bare(*kek) && !self.disputed.contains(kek);
            is_clear && line.denied_by_first > granted(*kek) && (is_missing || is_old)
        });
        if let Some(kek) = late {
            let (kek, line) = (self.keks[kek].kek.clone(), self.line(process, kek));
            self.broken(format!("promise 4: the denial of {kek} is not in the store at {now:?}: {line:?}"));
        }
    }

    /// Promise 6: of what was denied no key is left, and of what lapsed none for longer than a look of the watch takes.
    pub(crate) fn keys_are_wiped(&mut self, process: usize, lease: &LeaseStatus, (here, now): (Instant, Instant)) {
        let is_over = match lease.phase {
            Phase::Denied { .. } => true,
            Phase::Lapsed { since } => here > since.plus(TICK * 2) && now > self.processes[process].woke.plus(TICK * 2),
            _ => false,
        };
        if is_over && lease.filled_slots > 0 {
            self.broken(format!(
                "promise 6: process {process} has keys in memory at {now:?} of what is over: {lease:?}"
            ));
        }
    }

    /// Promise 4: whom the first token denied last, counted from when it was asked for what it granted, that is told so.
    pub(crate) fn denials_are_told(&mut self, process: usize, lease: &LeaseStatus, now: Instant) {
        let Some(kek) = self.keks.iter().position(|known| known.kek == lease.kek) else { return };
        let line = self.line(process, kek);
        let is_denied = line.denied_by_first > line.granted.0 && line.denied_by_first == line.denied;
        let is_clear = !line.is_fooled && !self.is_bare(kek) && !self.disputed.contains(&kek);
        // What another key in the KEK's place may have wrapped shows nothing of that: the store is looked into for another one first.
        let asks_again = self.young.iter().any(|(by, of, _)| (*by, *of) == (process, kek));
        let by =
            line.denied_by_first_at.plus(if asks_again { self.settings.store_timeout * 2 } else { Duration::ZERO });
        if is_denied && is_clear && now >= by && !matches!(lease.phase, Phase::Denied { .. }) {
            self.broken(format!("promise 4: process {process} was denied, and at {now:?} says {lease:?}: {line:?}"));
        }
    }

    /// A handle was given, or a version made, at `now`.
    pub(crate) fn delivered(&mut self, process: usize, aek: Aek, now: Instant) {
        let own = self.owns.entry((process, aek)).or_default();
        if own.worked.is_none() {
            (own.failed, own.given) = (Some(now), now);
        }
    }

    /// A seal or open succeeded.
    pub(crate) fn worked(&mut self, process: usize, aek: &Aek, seals: bool, now: Instant) {
        if seals && !self.is_stored(aek) {
            self.broken(format!(
                "promise 5: process {process} seals under {aek:?} at {now:?}, which the store does not have"
            ));
        }
        let own = self.owns.get(&(process, aek.clone())).cloned().unwrap_or_default();
        let keks = self.wrapped_by.get(aek).cloned().unwrap_or_default();
        // What an impostor wrapped is under that, and where the KEK itself wrapped nothing, nobody can know.
        if self.lost.contains_key(aek) && !keks.iter().any(|kek| self.wraps_truly(*kek, &aek.0)) {
            return;
        }
        // One that was re-wrapped may be under either, as far as is known here.
        // What it had before is usable again once a TTL is found to be over in a silence; nothing comes to it then.
        let usable_since = own.failed.filter(|failed| own.worked.is_none() || own.landed >= *failed);
        let reasons: Vec<_> = keks.iter().map(|kek| self.forbids(process, *kek, usable_since, now)).collect();
        if let Some(reasons) = reasons.into_iter().collect::<Option<Vec<_>>>() {
            self.broken(format!("process {process} uses {aek:?} at {now:?}: {}", reasons.join("; ")));
        }
        let own = self.owns.entry((process, aek.clone())).or_default();
        own.sealed += u64::from(seals);
        own.used_from = if own.used { own.used_from } else { now };
        (own.worked, own.failed, own.used) = (Some(now), None, true);
    }

    /// A seal or open failed.
    pub(crate) fn failed(&mut self, process: usize, aek: &Aek, error: &Error, now: Instant) {
        let own = self.owns.entry((process, aek.clone())).or_default();
        let before = own.clone();
        own.failed = Some(now);
        if self.is_lost(&aek.0) {
            return;
        }
        let Some(kek) = self.wrapped_by.get(aek).filter(|keks| keks.len() == 1).and_then(BTreeSet::first).copied()
        else {
            return;
        };
        // A rate that is too slow for the TTL leaves accounts cold, and nothing worse.
        let is_tolerated = matches!(error, Error::Cold { .. }) && !self.refreshes_in_time();
        let owed = self.owed_in_outage(process, kek, &aek.0, &before, is_tolerated, now);
        let owed = owed.or_else(|| self.owed_in_health(process, kek, &before, now).filter(|_| !is_tolerated));
        if let Some(why) = owed {
            let line = self.line(process, kek);
            self.broken(format!(
                "process {process} fails with {aek:?} at {now:?}: {why}: {error}; {before:?} {line:?}"
            ));
        }
    }

    /// True for what was idle until its TTL was nearly over: nothing was refreshed ahead.
    fn is_used_late(&self, own: &Own) -> bool {
        own.used_from >= own.given.plus(self.settings.aek_ttl * 60 / 100)
    }

    /// When something last happened to a process and a KEK version that is neither an outage nor its end.
    fn steady_since(&self, process: usize, kek: usize) -> Instant {
        let own = &self.processes[process];
        let turns = self.keks[kek].grants.iter().map(|grants| grants.turned);
        let turns = turns.chain(self.tokens.iter().map(|token| token.prompt.turned));
        turns.fold(own.disturbed.max(own.woke).max(own.started), Instant::max)
    }

    /// True while nothing but a silence of token or store is wrong.
    fn is_steady(&self, process: usize, kek: usize) -> bool {
        let own = &self.processes[process];
        !own.hangs
            && self.keks[kek].grants.iter().all(|grants| grants.is)
            && self.tokens.iter().all(|token| token.prompt.is)
    }

    /// Promise 3: what worked in an outage, once it was noticed, goes on until a grace after the last proof, and after the last word
    /// of a store that is silent too.
    fn owed_in_outage(
        &self,
        process: usize,
        kek: usize,
        account: &AccountId,
        own: &Own,
        is_tolerated: bool,
        now: Instant,
    ) -> Option<String> {
        let Settings { poll_interval, store_timeout: call_timeout, grace, aek_ttl, fresh_proof_every, .. } =
            self.settings;
        // Of an account that was made here the store may have said nothing yet.
        let words = &self.processes[process].words;
        let word = words.get(account).or_else(|| words.values().max()).copied();
        let (first_away, line) = (self.away(process, FIRST), self.line(process, kek));
        let is_ill = first_away.is || !self.reads.is || !self.writes.is;
        // What has stopped was judged as it did (the store was silent for longer than grace, say); to bring it back is promise 2.
        if !is_ill || !self.is_steady(process, kek) || !own.used || own.failed.is_some() {
            return None;
        }
        let turns = [first_away.turned, self.reads.turned, self.writes.turned];
        let since = turns.into_iter().fold(self.steady_since(process, kek), Instant::max);
        // Writes alone are ill, or reads are slow: TTLs bind as ever.
        let reads_on = !first_away.is && (self.reads.is || self.processes[process].heard > since);
        if reads_on && (is_tolerated || self.is_used_late(own)) {
            return None;
        }
        let noticed = since.plus(poll_interval + call_timeout * 3 + TICK);
        // While the token is silent no word of the store, however late, makes anything cold: the lease alone ends keys then.
        let late =
            self.processes[process].late_words.get(account).filter(|_| !first_away.is).copied().unwrap_or_default();
        own.worked.filter(|worked| *worked >= noticed && *worked >= late)?;
        let mut until = line.proved.plus(grace);
        // What an old context says counts from when a fresh proof was due, where none could be had: a call hung in the module, the token
        // was away, or this machine slept.
        let process = &self.processes[process];
        if self.tokens[FIRST].dates && process.renewal_refused.max(process.woke) >= line.fresh {
            until = until.min(line.fresh.plus(poll_interval * fresh_proof_every + grace));
        }
        // Nothing puts a TTL off for longer than one silence and one TTL: one that was over before this outage, in a sleep say.
        until = until.min(own.given.plus(aek_ttl + grace + aek_ttl));
        if !self.reads.is {
            until = until.min(word.unwrap_or_default().plus(grace));
        }
        // Asked a little before it was seen here, after a look into the store.
        let until = Instant::from_nanos(until.as_nanos().saturating_sub((call_timeout * 2).as_nanos() as u64));
        (now < until).then(|| {
            format!("promise 3: it worked in this outage, which goes on since {since:?}, and is owed until {until:?}")
        })
    }

    /// Promise 2: where everything has been well for long enough, what was in use works.
    fn owed_in_health(&self, process: usize, kek: usize, own: &Own, now: Instant) -> Option<String> {
        let is_well = self.aways(process).all(|away| !away.is) && self.reads.is && self.writes.is;
        if !is_well || !self.is_steady(process, kek) || !own.used {
            return None;
        }
        let turns = self.aways(process).map(|away| away.turned).chain([self.reads.turned, self.writes.turned]);
        let since = turns.fold(self.steady_since(process, kek), Instant::max).max(self.line(process, kek).came_late);
        let since = if self.is_used_late(own) { since.max(own.used_from) } else { since };
        let by = since.plus(self.recovery(process, kek, now));
        (now > by).then(|| format!("promise 2: all has been well since {since:?}, so it must work from {by:?} on"))
    }

    /// How long everything may take to come back: calls that began before, the next proof, and every account at the rate.
    pub(crate) fn recovery(&self, process: usize, kek: usize, now: Instant) -> Duration {
        let Settings {
            poll_interval: poll, store_timeout: call_timeout, resume_rate, aek_ttl, fresh_proof_every, ..
        } = self.settings;
        let proved = self.line(process, kek).granted.1.max(self.processes[process].started);
        let backed_off = now.since(proved) >= BACK_OFF_AFTER;
        let interval = if backed_off { BACK_OFF_MAX.max(poll) } else { poll };
        let queue = (Duration::from_secs(1) / resume_rate + call_timeout / QUEUE_MAX) * self.aeks_in_use();
        // A context may remember a denial, too.
        let hides = self.tokens.iter().any(|token| token.hides);
        let remembered = if hides { poll * (fresh_proof_every + 1) } else { Duration::ZERO };
        remembered + interval + call_timeout * 4 + queue + TICK * 3 + aek_ttl / 50
    }

    /// Those that may be refreshed and resumed; nobody uses what a storm made.
    fn aeks_in_use(&self) -> u32 {
        let used: BTreeSet<_> =
            self.owns.iter().filter(|(_, own)| own.worked.is_some()).map(|((_, aek), _)| aek).collect();
        u32::try_from(used.len()).unwrap()
    }

    /// True when every account can be refreshed between the latest start of its refresh (75 % of its TTL) and its end, behind a storm
    /// too.
    fn refreshes_in_time(&self) -> bool {
        let Settings { aek_ttl, resume_rate, .. } = self.settings;
        let behind = self.tokens.iter().map(|token| token.queue_max).max().unwrap_or_default();
        // Each waits for its place, and then for its worker.
        let queue = (Duration::from_secs(1) / resume_rate + behind * 2) * self.aeks_in_use();
        // The record is read first, and what falls due meanwhile waits for that.
        let queue = queue + self.reads_take * 2;
        queue + Duration::from_millis(100).max(aek_ttl / 50) * 3 < aek_ttl * 25 / 100
    }

    /// The longest of all.
    pub(crate) fn recovery_max(&self, now: Instant) -> Duration {
        let all = (0..self.processes.len()).flat_map(|process| (0..self.keks.len()).map(move |kek| (process, kek)));
        all.map(|(process, kek)| self.recovery(process, kek, now)).max().unwrap_or_default()
    }
}
