//! The service that the drill `restart` kills: a process with an engine and a load, which tells its parent line by line what
//! comes of every operation.
//!
//! ```text
//! r ACCOUNT OUTCOME FROM FIRST TO COUNT    a run of operations
//! b BYTES                                  bytes that came out wrong
//! x OUTCOME WORDS                          a refusal in words
//! w COUNT                                  operations that waited for an unwrap
//! l AT AEKS PHASE                          the lease
//! ```

use super::{
    args::Serve,
    conduct::look,
    ground::{STORE, token_settings},
    load::{Customer, Listener, Load},
    outcome::{Outcome, Run},
    scenario::Scenario,
    timeline::{Chunk, FIRST_KEK_VERSION, Recorder},
};
use crate::{exit::Failure, setup::Setup, streams::Standard};
use keyleash::{
    Engine, Error,
    clock::{Clock, Instant},
    name::AccountId,
    store::redb::RedbStore,
    token::pkcs11::Pkcs11Token,
};
use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long the lock of a process that was just killed may stay.
const STORE_PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The file of an account's kept block, and its id.
pub(crate) fn kept_path(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("kept-{number}"))
}

/// Writes down what a service must find again.
pub(crate) fn keep(directory: &Path, customers: &[Customer]) -> Result<(), Failure> {
    for (number, customer) in customers.iter().enumerate() {
        let path = kept_path(directory, number);
        let bytes = [customer.id.as_str().as_bytes(), b"\n", &customer.kept].concat();
        fs::write(&path, bytes).map_err(|error| Failure::io(path.display(), error))?;
    }
    Ok(())
}

fn customers(serve: &Serve) -> Result<Vec<Customer>, Failure> {
    let read = |number: u32| {
        let path = kept_path(&serve.directory, number as usize);
        let bytes = fs::read(&path).map_err(|error| Failure::io(path.display(), error))?;
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let (id, kept) = bytes.split_at(end);
        Ok(Customer { id: AccountId::from_bytes(id)?, account: None, kept: kept.get(1..).unwrap_or_default().to_vec() })
    };
    (0..serve.accounts).map(read).collect()
}

/// The process: serves until standard input ends, or it is killed.
pub(crate) async fn serve(serve: Serve, setup: &Setup) -> Result<(), Failure> {
    let clock = Clock::default();
    let settings = Scenario::Restart.settings(setup.settings(), serve.fast, serve.accounts);
    let token = Pkcs11Token::open(token_settings(setup, &settings)?).await.map_err(Error::from)?;
    let path = serve.directory.join(STORE);
    let give_up = clock.now().plus(STORE_PATIENCE);
    let store = loop {
        match RedbStore::open(&path).await {
            Ok(store) => break store,
            Err(Error::Store(_)) if clock.now() < give_up => clock.sleep_until(clock.now().plus(PAUSE)).await,
            Err(error) => return Err(error.into()),
        }
    };
    let engine = Engine::builder(Arc::new(token), Arc::new(store)).settings(settings).build()?;
    let listener: Arc<dyn Listener> = Arc::new(Teller);
    let looking = tokio::spawn(look(engine.clone(), serve.accounts as usize, |at, leases| {
        for (_, phase, aeks) in leases {
            tell(&format!("l {} {aeks} {phase}\n", at.as_nanos()));
        }
    }));
    let load = Load::start(customers(&serve)?, serve.threads as usize, &engine, &listener)?;
    super::act::blocking(|| {
        // Its end is what is waited for.
        let _ = Standard::Input.file()?.read(&mut [0]);
        Ok(())
    })
    .await?;
    looking.abort();
    load.stop().await;
    Ok(())
}

/// Tells the parent.
struct Teller;

fn tell(lines: &str) {
    // A parent that is gone closed standard input too, which ends this process.
    #[allow(clippy::disallowed_methods)] // from many threads, a line at a time
    let _ = io::stdout().lock().write_all(lines.as_bytes());
}

impl Listener for Teller {
    fn absorb(&self, chunk: Chunk) {
        let mut lines = String::new();
        for (outcome, words) in chunk.examples {
            let _ = writeln!(lines, "x {} {}", outcome as usize, words.replace('\n', " "));
        }
        for (account, run) in chunk.runs {
            let Run { outcome, from, first, to, count } = run;
            let _ = writeln!(lines, "r {account} {} {from} {first} {to} {count}", outcome as usize);
        }
        if chunk.unverified_bytes > 0 {
            let _ = writeln!(lines, "b {}", chunk.unverified_bytes);
        }
        if chunk.warmed > 0 {
            let _ = writeln!(lines, "w {}", chunk.warmed);
        }
        tell(&lines);
    }
}

/// The parent's side: writes down what the process tells, until it ends.
pub(crate) fn listen(lines: impl BufRead, recorder: &Recorder) {
    let mut examples = Vec::new();
    for line in lines.lines().map_while(Result::ok) {
        // The last line of a process that was killed may be cut short.
        if let Some(chunk) = parse(&line, &mut examples, recorder) {
            recorder.absorb(chunk);
        }
    }
}

fn parse(line: &str, examples: &mut Vec<(Outcome, String)>, recorder: &Recorder) -> Option<Chunk> {
    let (kind, rest) = line.split_once(' ')?;
    let mut fields = rest.split(' ');
    let mut number = || fields.next()?.parse::<u64>().ok();
    match kind {
        "r" => {
            let account = usize::try_from(number()?).ok()?;
            let outcome = Outcome::from_number(usize::try_from(number()?).ok()?)?;
            let run = Run { outcome, from: number()?, first: number()?, to: number()?, count: number()? };
            Some(Chunk { runs: vec![(account, run)], examples: examples.clone(), ..Chunk::default() })
        }
        "b" => Some(Chunk { unverified_bytes: number()?, ..Chunk::default() }),
        "w" => Some(Chunk { warmed: number()?, ..Chunk::default() }),
        "x" => {
            let (outcome, words) = rest.split_once(' ')?;
            let outcome = Outcome::from_number(outcome.parse().ok()?)?;
            examples.retain(|(known, _)| *known != outcome);
            examples.push((outcome, words.to_owned()));
            None
        }
        "l" => {
            let (at, aeks) = (number()?, usize::try_from(number()?).ok()?);
            recorder.lease(Instant::from_nanos(at), FIRST_KEK_VERSION, fields.next()?, aeks);
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_a_process_tells_is_written_down_and_a_cut_line_is_not() {
        let recorder = Recorder::new(Instant::default(), Duration::from_nanos(10), 2);
        let told = "l 5 2 active\nr 0 0 1 2 3 4\nr 1 1 1 2 3 7\nx 1 denied: why\nb 3\nr 0 1 9";
        listen(told.as_bytes(), &recorder);
        let timeline = recorder.read(Instant::from_nanos(20));
        assert_eq!(timeline.runs[0], [Run { outcome: Outcome::Ok, from: 1, first: 2, to: 3, count: 4 }]);
        assert_eq!(timeline.operations(Outcome::Denied), 7);
        assert_eq!((timeline.unverified_bytes, timeline.lease.len()), (3, 1));
    }
}
