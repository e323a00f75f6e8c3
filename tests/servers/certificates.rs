//! Certificates for the servers of tests that name this file by its path.

use std::{path::Path, process::Command};
use tempfile::TempDir;

/// Certificates in a folder: `ca.pem` of an authority, `own.pem` and `own.key` of a host, for `days` days.
pub(crate) fn certificates(host: &str, days: i32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap(); // no two are called the same
    let new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(folder.path(), &format!("{new} -x509 -keyout ca.key -out ca.pem -subj /CN=authority{name} -days 2"));
    openssl(folder.path(), &format!("{new} -keyout own.key -out own.csr -subj /CN=x -addext subjectAltName={host}"));
    let sign = "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy";
    openssl(folder.path(), &format!("{sign} -out own.pem -days {days}"));
    folder
}

fn openssl(directory: &Path, args: &str) {
    let run = Command::new("openssl").args(args.split(' ')).current_dir(directory).output();
    let run = run.expect("openssl: run the server's script in tests/servers with install");
    assert!(run.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&run.stderr));
}
