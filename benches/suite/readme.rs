//! What the READMEs say of performance, which nobody writes by hand.

use std::{error::Error, fs, path::Path};

const BEGIN: &str = "<!-- benches/report --readme: begin -->";
const END: &str = "<!-- benches/report --readme: end -->";
/// The picture that benches/README.md shows.
const PICTURE: &str = "throughput.svg";

/// Puts a text between the marks of a README of the repository.
pub(crate) fn fill(root: &Path, readme: &str, report: &str) -> Result<(), Box<dyn Error>> {
    let path = root.join(readme);
    let text = fs::read_to_string(&path)?;
    let (before, rest) =
        text.split_once(BEGIN).ok_or_else(|| format!("{readme} has no mark where the report begins"))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| format!("{readme} has no mark where the report ends"))?;
    fs::write(path, format!("{before}{BEGIN}\n{}\n{END}{after}", report.trim()))?;
    Ok(())
}

/// Puts the picture beside the manual.
pub(crate) fn show_picture(root: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    fs::copy(out.join(PICTURE), root.join("src/manual").join(PICTURE))?;
    Ok(())
}
