//! The performance section of README.md, which nobody writes by hand.

use std::{error::Error, fs, path::Path};

const BEGIN: &str = "<!-- benches/report --readme: begin -->";
const END: &str = "<!-- benches/report --readme: end -->";
/// The picture that the section shows, and where it stands in the repository.
const PICTURE: &str = "throughput.svg";

/// Puts the report between the marks, and the picture beside the manual.
pub(crate) fn fill(root: &Path, out: &Path, report: &str) -> Result<(), Box<dyn Error>> {
    let path = root.join("README.md");
    let text = fs::read_to_string(&path)?;
    let (before, rest) = text.split_once(BEGIN).ok_or("README.md has no mark where the report begins")?;
    let (_, after) = rest.split_once(END).ok_or("README.md has no mark where the report ends")?;
    fs::write(path, format!("{before}{BEGIN}\n{}\n{END}{after}", report.trim()))?;
    fs::copy(out.join(PICTURE), root.join("src/manual").join(PICTURE))?;
    Ok(())
}
