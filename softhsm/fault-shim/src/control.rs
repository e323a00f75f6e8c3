//! The control file: what it says, and what that means for the call at hand.

use crate::front::NAMES;
use cryptoki_sys::{CK_FLAGS, CK_RV};
use std::{
    path::PathBuf,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Returned by every call while the control file cannot be understood: vendor defined, `KL`.
const NOT_UNDERSTOOD: CK_RV = 0x8000_4b4c;
/// How often a hanging call looks at the control file.
const LOOK: Duration = Duration::from_millis(10);

/// What happens to a call after any delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pass,
    Return(CK_RV),
    WrongPlaintext,
    OaepSha1,
    FindsNothing,
    Says(Told),
}

/// What C_GetTokenInfo says besides, or otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told {
    pub(crate) flags: CK_FLAGS,
    pub(crate) odd_time: bool,
    pub(crate) nul_padding: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    /// `*` is every function.
    function: String,
    after: u64,
    count: u64,
    delay: Duration,
    hang: bool,
    crash: bool,
    /// Only in the context of this number.
    context: Option<u64>,
    outcome: Outcome,
    /// Calls that reached this line.
    seen: u64,
}

#[derive(Default)]
struct State {
    content: Vec<u8>,
    faults: Vec<Fault>,
    understood: bool,
    /// Counts calls of C_Initialize.
    context: u64,
}

static CONTROL: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("KEYLEASH_SHIM_CONTROL").map(PathBuf::from));
static STATE: Mutex<Option<State>> = Mutex::new(None);

fn read() -> Vec<u8> {
    CONTROL.as_ref().and_then(|path| std::fs::read(path).ok()).unwrap_or_default()
}

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits as the control file says, and says what the call is to do.
pub(crate) fn meet(function: &str) -> Outcome {
    let content = read();
    let fault = {
        let mut state = state();
        let state = state.get_or_insert_with(|| State { understood: true, ..State::default() });
        state.context += u64::from(function == "C_Initialize");
        if state.content != content {
            state.content = content;
            match parse(&String::from_utf8_lossy(&state.content), state.context) {
                Ok(faults) => (state.faults, state.understood) = (faults, true),
                Err(error) => {
                    eprintln!("fault shim: control file: {error}");
                    state.understood = false;
                }
            }
        }
        if !state.understood {
            return Outcome::Return(NOT_UNDERSTOOD);
        }
        decide(&mut state.faults, function, state.context).map(|fault| (fault, state.content.clone()))
    };
    let Some((fault, content)) = fault else { return Outcome::Pass };
    thread::sleep(fault.delay);
    while fault.hang && read() == content {
        thread::sleep(LOOK);
    }
    if fault.crash {
        std::process::abort();
    }
    fault.outcome
}

/// The first line that has something to say about this call.
fn decide(faults: &mut [Fault], function: &str, context: u64) -> Option<Fault> {
    let concerned = |fault: &&mut Fault| {
        (fault.function == "*" || fault.function == function) && fault.context.is_none_or(|only| only == context)
    };
    for fault in faults.iter_mut().filter(concerned) {
        fault.seen = fault.seen.saturating_add(1);
        let number = fault.seen.saturating_sub(fault.after);
        if fault.seen > fault.after && number <= fault.count {
            return Some(fault.clone());
        }
    }
    None
}

fn parse(text: &str, context: u64) -> Result<Vec<Fault>, String> {
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        if !line.trim().is_empty() {
            faults.push(parse_line(line, context).map_err(|error| format!("line {number}: {error}"))?);
        }
    }
    Ok(faults)
}

fn parse_line(line: &str, context: u64) -> Result<Fault, String> {
    let mut words = line.split_whitespace();
    let function = words.next().unwrap_or_default().to_owned();
    if function != "*" && !NAMES.contains(&function.as_str()) {
        return Err(format!("{function:?} is no function that the shim stands in front of"));
    }
    let mut fault = Fault {
        function,
        after: 0,
        count: u64::MAX,
        delay: Duration::ZERO,
        hang: false,
        crash: false,
        context: None,
        outcome: Outcome::Pass,
        seen: 0,
    };
    let mut says_something = false;
    let mut told = Told::default();
    for word in words {
        let unknown = || format!("{word:?} is not understood");
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "after" => fault.after = value.parse().map_err(|_| unknown())?,
            "count" => fault.count = value.parse().map_err(|_| unknown())?,
            "delay" => fault.delay = duration(value).ok_or_else(unknown)?,
            "hang" if value.is_empty() => fault.hang = true,
            "this-context" if value.is_empty() => fault.context = Some(context),
            "rv" => fault.outcome = Outcome::Return(code(value).ok_or_else(unknown)?),
            "crash" if value.is_empty() => fault.crash = true,
            "oaep-sha1" if value.is_empty() => fault.outcome = Outcome::OaepSha1,
            "wrong-plaintext" if value.is_empty() => fault.outcome = Outcome::WrongPlaintext,
            "nothing" if value.is_empty() => fault.outcome = Outcome::FindsNothing,
            "flags" => told.flags = code(value).ok_or_else(unknown)?,
            "odd-time" if value.is_empty() => told.odd_time = true,
            "nul-padding" if value.is_empty() => told.nul_padding = true,
            _ => return Err(unknown()),
        }
        says_something |= !matches!(key, "after" | "count" | "this-context");
    }
    if told != Told::default() {
        fault.outcome = Outcome::Says(told);
    }
    if !says_something {
        return Err("it does not say what happens".into());
    }
    Ok(fault)
}

fn code(value: &str) -> Option<CK_RV> {
    match value.strip_prefix("0x") {
        Some(digits) => CK_RV::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

fn duration(value: &str) -> Option<Duration> {
    if let Some(millis) = value.strip_suffix("ms") {
        return millis.parse().ok().map(Duration::from_millis);
    }
    value.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_the_calls_that_reach_them_and_the_first_that_speaks_decides() {
        let mut faults = parse("# two\nC_Decrypt after=1 rv=0x30 count=2 # then pass\n* rv=48 after=4\n", 1).unwrap();
        let outcomes: Vec<_> =
            (0..7).map(|_| decide(&mut faults, "C_Decrypt", 1).map_or(Outcome::Pass, |fault| fault.outcome)).collect();
        let (pass, fails) = (Outcome::Pass, Outcome::Return(0x30));
        // The first, fourth and later calls reach the second line, which lets four pass.
        assert_eq!(outcomes, [pass, fails, fails, pass, pass, pass, fails]);
        assert_eq!(decide(&mut faults, "C_Login", 1).unwrap().outcome, fails);
    }

    #[test]
    fn what_is_of_this_context_ends_with_it() {
        let mut faults = parse("C_Login rv=0x102 this-context", 3).unwrap();
        assert_eq!(decide(&mut faults, "C_Login", 3).unwrap().outcome, Outcome::Return(0x102));
        assert_eq!(decide(&mut faults, "C_Login", 4), None);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for text in
            ["C_Decrypt", "C_Decrypt count=1", "C_Nothing rv=1", "C_Decrypt rv=x", "* delay=3", "* hang=1", "* wrong"]
        {
            assert!(parse(&format!("\n{text}"), 1).unwrap_err().starts_with("line 2"), "{text}");
        }
        let fault = parse("C_Sign delay=250ms hang", 1).unwrap();
        assert!(fault.iter().all(|fault| fault.hang && fault.delay.as_millis() == 250));
    }
}
