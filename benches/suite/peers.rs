//! The table of peers: what `benches/peers` measured, in a process of its own.

use serde_json::Value;
use std::{fmt::Write as _, fs, path::Path};

/// The table in Markdown; or why there is none.
pub(crate) fn markdown(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("the peers: {}: {error}", path.display()))?;
    let peers: Value = serde_json::from_str(&text).map_err(|error| format!("the peers: {error}"))?;
    let mut table = String::from(
        "| one block, authenticated and bound to its address | seal, 4 KiB | open, 4 KiB | seal, 64 KiB | open, 64 KiB | beside keyleash |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for peer in peers["peers"].as_array().into_iter().flatten() {
        let text = |name: &str| peer[name].as_str().unwrap_or_default().to_owned();
        let _ = write!(table, "| {} {} |", text("name"), text("version"));
        for work in ["seal 4096", "open 4096", "seal 65536", "open 65536"] {
            let figure = &peer[work];
            let number = |name: &str| figure[name].as_f64().unwrap_or(f64::NAN);
            let _ = match figure {
                Value::Null => write!(table, " – |"),
                _ => write!(table, " {:.2} GB/s, keyleash {:.2} × |", number("gb_s"), number("ratio")),
            };
        }
        let _ = writeln!(table, " {} |", text("difference"));
    }
    Ok(table)
}
