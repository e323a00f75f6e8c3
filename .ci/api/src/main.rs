//! Prints what rustdoc's JSON says is public, one item a line.

use public_api::{Builder, Error};
use std::collections::HashSet;

/// What nobody decides of, or every type has.
const LEFT_OUT: [&str; 6] = ["Freeze", "RefUnwindSafe", "StructuralPartialEq", "Unpin", "UnsafeUnpin", "UnwindSafe"];
/// What the line of the derived trait says already.
const SAID: [&str; 4] =
    ["::clone(&self) -> ", "::eq(&self, &", "::fmt(&self, &mut core::fmt::Formatter<'_>)", "::hash<__H: "];

fn main() -> Result<(), Error> {
    let json = std::env::args_os().nth(1).unwrap_or_default();
    let listing = Builder::from_rustdoc_json(json).omit_blanket_impls(true).build()?;
    // What is exported in two places is public once.
    let mut told = HashSet::new();
    for item in listing.items() {
        // One type, whichever name a file has for it.
        let item =
            item.to_string().replace("keyleash::error::Result<", "Result<").replace("core::result::Result<", "Result<");
        let left_out = LEFT_OUT.iter().any(|kind| item.contains(&format!("::{kind} for ")));
        if !left_out && !SAID.iter().any(|method| item.contains(method)) && told.insert(item.clone()) {
            println!("{item}");
        }
    }
    Ok(())
}
