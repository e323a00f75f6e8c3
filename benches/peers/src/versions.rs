//! Which release of a peer this is: out of Cargo.lock, as it was compiled.

const LOCK: &str = include_str!("../Cargo.lock");
const THIS: &str = env!("CARGO_PKG_NAME");

/// The version of a package that this one depends on; where the lock has several releases of it, the one that is named.
pub(crate) fn of(package: &str) -> String {
    if package == "openssl" {
        return format!("{} with {}", locked(package), openssl::version::version());
    }
    locked(package)
}

fn locked(package: &str) -> String {
    let mut entries = LOCK.split("[[package]]");
    let this = entries.clone().find(|entry| field(entry, "name") == Some(THIS)).unwrap_or_default();
    // `"name"`, or `"name version"` where the lock has several.
    let named = this.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","));
    let version = named.filter_map(|named| named.split_once(' ')).find(|(name, _)| *name == package);
    match version {
        Some((_, version)) => version.to_owned(),
        None => entries
            .find(|entry| field(entry, "name") == Some(package))
            .and_then(|entry| field(entry, "version"))
            .unwrap_or("unknown")
            .to_owned(),
    }
}

fn field<'a>(entry: &'a str, name: &str) -> Option<&'a str> {
    let line = entry.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
    line.strip_suffix('"')
}
