//! `seal` and `open`.

use crate::{
    args::{Open, Seal, Streams},
    exit::Failure,
    file::{self, BLOCK_BYTES, FileHeader, Keys, Totals},
    out_file::OutFile,
    output::{Output, hex},
    progress::Progress,
    setup::{Setup, Store, account_id},
    streams::{OwnFiles, Standard, refuse_onto_itself},
};
use keyleash::{Account, Engine, Error, store::record::StoreRecord};
use serde_json::json;
use std::{
    fs::{File, Metadata},
    io::{self, BufReader, BufWriter, IsTerminal, Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::runtime::Handle;

/// So many blocks are counted in the account's record ahead of being sealed, so that no signal takes a count away: at first, …
const AHEAD_BLOCKS_MIN: u64 = 16;
/// … then always twice as many, up to these.
const AHEAD_BLOCKS_MAX: u64 = 4096;
/// Of reads and writes; four blocks.
const BUFFER_BYTES: usize = 4 * BLOCK_BYTES;

pub(crate) async fn seal(args: Seal, setup: &Setup, output: Output) -> Result<(), Failure> {
    let id = account_id(&args.account)?;
    let streams = Opened::new(args.streams, setup.own_files(), output).await?;
    if streams.out.is_none() && Standard::Output.file()?.is_terminal() {
        return Err(Failure::Usage(
            "a sealed file is no text: name a file with -o, or redirect standard output".into(),
        ));
    }
    let (engine, store) = setup.engine_and_store_id(Store::Existing).await?;
    let account = engine.account(&id).await?;
    let mut ahead = Ahead {
        account: account.clone(),
        left_bytes: streams.input_bytes,
        step: AHEAD_BLOCKS_MIN,
        blocks: 0,
        failed: false,
    };
    ahead.count().await;
    let sealed = streams.run(output, move |work| {
        let runtime = Handle::current();
        let keys = Keys::new(account, runtime.clone()).of_store(store);
        // Past the buffer, in which plaintext would stay.
        let (file, totals) = file::seal(&keys, work.input.get_mut(), &mut work.output, |bytes| {
            ahead.sealed();
            if ahead.is_used_up() {
                runtime.block_on(ahead.count());
            }
            work.step.done(bytes)
        })?;
        // Between two of its looks another process can have put another store in this one's place.
        Ok(Done { file, totals, at_last: Box::new(move || keys.confirm()) })
    });
    let sealed = sealed.await;
    if let (Err(error), Ok(())) = (engine.write_usage().await, &sealed) {
        // The file is whole all the same.
        output.note(&format!("keyleash: what was sealed is not counted in the account's record: {error}"));
    }
    sealed
}

/// What is counted in the account's record before it is sealed.
struct Ahead {
    account: Account,
    /// Of IN, where its length is known.
    left_bytes: Option<u64>,
    /// Blocks to count next.
    step: u64,
    /// Of those that are counted: not sealed yet.
    blocks: u64,
    /// The store takes no counts: what is sealed is counted afterwards, if it does then, and that is told.
    failed: bool,
}

impl Ahead {
    fn sealed(&mut self) {
        self.blocks = self.blocks.saturating_sub(1);
    }

    fn is_used_up(&self) -> bool {
        // Of a file that grew meanwhile nothing is known any more; one whose end was counted is at its end.
        self.blocks == 0 && self.left_bytes != Some(0)
    }

    async fn count(&mut self) {
        if self.failed {
            return;
        }
        let step_bytes = self.step * BLOCK_BYTES as u64;
        self.step = AHEAD_BLOCKS_MAX.min(2 * self.step);
        let bytes = self.left_bytes.map_or(step_bytes, |left| left.min(step_bytes));
        let blocks = bytes.div_ceil(BLOCK_BYTES as u64).max(1);
        self.left_bytes = self.left_bytes.map(|left| left - bytes);
        match self.account.count_ahead(blocks, bytes).await {
            Ok(()) => self.blocks = blocks,
            Err(_) => self.failed = true,
        }
    }
}

pub(crate) async fn open(args: Open, setup: &Setup, output: Output) -> Result<(), Failure> {
    let streams = Opened::new(args.streams, setup.own_files(), output).await?;
    let (engine, store) = setup.engine_and_store_id(Store::Read).await?;
    streams.run(output, move |work| open_with(&engine, store, work)).await
}

fn open_with(engine: &Engine, store: Option<StoreRecord>, work: &mut Work) -> Result<Done, Failure> {
    let file = FileHeader::read(&mut work.input)?;
    let runtime = Handle::current();
    let account = runtime.block_on(account_of(engine, &file, file.is_of(store.as_ref())))?;
    let keys = Keys::new(account, runtime).of_store(store);
    // Past the buffer, as when sealing.
    let totals = file::open(&file, &keys, &mut work.input, work.output.get_mut(), |bytes| work.step.done(bytes))?;
    Ok(Done { file, totals, at_last: Box::new(|| Ok(())) })
}

/// The account that a file was sealed for.
async fn account_of(engine: &Engine, file: &FileHeader, is_of_this_store: bool) -> Result<Account, Failure> {
    match engine.account(&file.account).await {
        Err(Error::NotFound(_)) if matches!(engine.account_record(&file.account).await, Err(Error::NotFound(_))) => {
            let why = match (is_of_this_store, file.has_digest) {
                (true, _) => "it was purged",
                (false, true) => "this is another store than it was sealed with, or it was purged",
                (false, false) => {
                    "it was purged, or this is another store than it was sealed with, or the file's header, which is of version 1, is damaged"
                }
            };
            Err(Error::NotFound(format!("account {}, for which the file was sealed: {why}", file.account)).into())
        }
        account => Ok(account?),
    }
}

/// Where the bytes come from and go to.
struct Opened {
    input: Box<dyn Read + Send>,
    /// What IN is called.
    source: String,
    input_bytes: Option<u64>,
    out: Option<Arc<OutFile>>,
    progress: bool,
}

/// What the thread works with that seals or opens.
struct Work {
    input: BufReader<Box<dyn Read + Send>>,
    output: BufWriter<Box<dyn Write + Send>>,
    step: Step,
}

/// What was sealed or opened.
struct Done {
    file: FileHeader,
    totals: Totals,
    /// Asked when all of it is on the disk: then it counts, or does not appear.
    at_last: Box<dyn FnOnce() -> Result<(), Failure>>,
}

/// Between two blocks: shows progress, and stops the work when it was interrupted.
struct Step {
    progress: Progress,
    stop: Arc<AtomicBool>,
}

impl Step {
    fn done(&mut self, bytes: usize) -> Result<(), Failure> {
        if self.stop.load(Ordering::Relaxed) {
            // Nobody reads this: whoever stopped the work went away.
            return Err(Failure::Interrupted(0));
        }
        self.progress.add(bytes);
        Ok(())
    }
}

/// Stops the work when it is dropped: the thread may be waiting for input that never comes, so OUT's remains go at once.
struct Interrupt {
    out: Option<Arc<OutFile>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(out) = &self.out {
            out.abandon();
        }
    }
}

impl Opened {
    /// Opens IN and begins OUT.
    async fn new(streams: Streams, own: OwnFiles, output: Output) -> Result<Self, Failure> {
        // Opening a named pipe waits for its other end, and a signal must be heard meanwhile.
        let opening = tokio::task::spawn_blocking(move || {
            let source =
                streams.input().map_or_else(|| Standard::Input.name().into(), |path| path.display().to_string());
            let (input, metadata) = open_input(streams.input())?;
            own.refuse_store(&metadata, &source)?;
            let out = match streams.output() {
                Some(place) => {
                    own.refuse_to_replace(place)?;
                    Some(Arc::new(OutFile::create(place, streams.force)?))
                }
                None => {
                    let failed = |error| Failure::io(Standard::Output.name(), error);
                    refuse_onto_itself(&metadata, &source, &Standard::Output.file()?.metadata().map_err(failed)?)?;
                    None
                }
            };
            let input_bytes = (streams.input().is_some() && metadata.is_file()).then_some(metadata.len());
            Ok(Self { input, source, input_bytes, out, progress: output.shows_progress() })
        });
        opening.await.map_err(|error| Failure::io("opening", io::Error::other(error)))?
    }

    /// Works on a thread that may block, and shows the result. When the future is dropped nothing is left of OUT.
    async fn run(
        self,
        output: Output,
        work: impl FnOnce(&mut Work) -> Result<Done, Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let Self { input, source, input_bytes, out, progress } = self;
        let stop = Arc::new(AtomicBool::new(false));
        let _interrupt = Interrupt { out: out.clone(), stop: stop.clone() };
        let job = tokio::task::spawn_blocking({
            let out = out.clone();
            move || {
                let sink: Box<dyn Write + Send> = match &out {
                    Some(out) => Box::new(out.writer()?),
                    None => Box::new(Standard::Output.file()?),
                };
                let mut job = Work {
                    input: BufReader::with_capacity(BUFFER_BYTES, input),
                    output: BufWriter::with_capacity(BUFFER_BYTES, sink),
                    step: Step { progress: Progress::begin(input_bytes, progress), stop },
                };
                let outcome = work(&mut job);
                if outcome.is_err() {
                    // What was authenticated is written all the same; why it stopped is said, not this.
                    let _ = job.output.flush();
                }
                let place = out
                    .as_ref()
                    .map_or_else(|| Standard::Output.name().into(), |out| out.place().display().to_string());
                let named =
                    |failure: Failure| failure.of_stream(file::READING, &source).of_stream(file::WRITING, &place);
                let Done { file, totals, at_last } = outcome.map_err(named)?;
                match out {
                    Some(out) => out.complete_if(at_last)?,
                    None => at_last()?,
                }
                Ok::<_, Failure>((file, totals))
            }
        });
        let (file, totals) =
            job.await.map_err(|error| Failure::io("sealing or opening", io::Error::other(error)))??;
        let result = json!({
            "account": file.account.as_str(),
            "file_id": hex(&file.file_id),
            "blocks": totals.blocks,
            "plaintext_bytes": totals.plaintext_bytes,
        });
        // A tool that did what it was told says nothing to a person.
        match out {
            Some(_) => output.result(&result, ""),
            None => output.result_beside_data(&result),
        }
    }
}

/// The stream, and what it is.
pub(crate) fn open_input(path: Option<&Path>) -> Result<(Box<dyn Read + Send>, Metadata), Failure> {
    let Some(path) = path else {
        let input = Standard::Input.file()?;
        let metadata = input.metadata().map_err(|error| Failure::io(Standard::Input.name(), error))?;
        return Ok((Box::new(input), metadata));
    };
    let failed = |error| Failure::input(path, error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(Failure::Usage(format!("{}: is a directory; use tar", path.display())));
    }
    Ok((Box::new(file), metadata))
}
