//! The trails of `tests/compat/`, in places where they can be spoilt.

use keyleash::audit::{Expected, FaultKind, Keys, Report, Vkey, verify};
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

pub(crate) const NODE: &str = "web-1";
pub(crate) const KASE: &str = "käse \"7\"";

fn compat() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat")
}

pub(crate) fn vkey() -> Vkey {
    Vkey::parse(fs::read_to_string(compat().join("trail/vkey")).unwrap().trim()).unwrap()
}

pub(crate) fn expected() -> Expected {
    Expected::by(Keys::new().with(vkey()))
}

/// A copy.
pub(crate) struct Trail {
    _dir: TempDir,
    pub(crate) node: PathBuf,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

impl Trail {
    /// `trail` or `trail-retained`.
    pub(crate) fn golden(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join(NODE);
        copy(&compat().join(name).join(NODE), &node);
        Self { _dir: dir, node }
    }

    /// The same with nothing compressed.
    pub(crate) fn plain(name: &str) -> Self {
        let trail = Self::golden(name);
        for path in trail.files().into_iter().filter(|path| path.extension().is_some_and(|is| is == "gz")) {
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(fs::File::open(&path).unwrap()).read_to_end(&mut text).unwrap();
            fs::write(path.with_extension(""), text).unwrap();
            fs::remove_file(path).unwrap();
        }
        trail
    }

    /// Every file, in order: those of the hours last.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        files_below(&self.node, &mut files);
        files.sort();
        files
    }

    pub(crate) fn hours(&self) -> Vec<PathBuf> {
        let is_hour = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("PT1H");
        self.files().into_iter().filter(is_hour).collect()
    }

    /// Lines, each with its line break, by file.
    pub(crate) fn lines(&self) -> Vec<(PathBuf, String)> {
        let lines = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            text.split_inclusive('\n').map(|line| (path.clone(), line.to_owned())).collect::<Vec<_>>()
        };
        self.hours().into_iter().flat_map(lines).collect()
    }

    /// Writes other lines into the files that are there.
    pub(crate) fn put_lines(&self, lines: &[(PathBuf, String)]) {
        for path in self.hours() {
            let text: String = lines.iter().filter(|(of, _)| *of == path).map(|(_, line)| &**line).collect();
            fs::write(path, text).unwrap();
        }
    }

    /// Notes, each with the empty line behind it.
    pub(crate) fn notes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.node.join("checkpoints")).unwrap();
        let blocks: Vec<_> = text.split_inclusive("\n\n").collect();
        blocks.chunks(2).map(|note| note.concat()).collect()
    }

    pub(crate) fn put_notes(&self, notes: &[String]) {
        fs::write(self.node.join("checkpoints"), notes.concat()).unwrap();
    }

    pub(crate) fn verify(&self) -> Report {
        verify(&self.node, &expected()).unwrap()
    }
}

pub(crate) fn kinds(report: &Report) -> Vec<FaultKind> {
    report.faults.iter().map(|fault| fault.kind).collect()
}
