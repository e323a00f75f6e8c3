//! Who calls: the user of the operating system.

use crate::exit::Failure;
use keyleash::name::CallerId;
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
};

/// Where names of users are. Those of a directory service are not there, and are known by their number.
const USERS: &str = "/etc/passwd";
/// More than this is not looked through.
const USERS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The user whose the process is, by its real id: neither `$USER` nor a set-user-id bit says who calls. The first name that the id has in
/// `/etc/passwd`, or `uid:N` where it has none there; no name has a colon, so no user is called like another's number.
pub(crate) fn os_caller() -> Result<CallerId, Failure> {
    let uid = rustix::process::getuid().as_raw();
    let users = File::open(USERS).ok().map(|users| BufReader::new(users.take(USERS_BYTES_MAX)));
    let name = users.and_then(|users| name_of(users, uid)).and_then(|name| CallerId::new(name).ok());
    Ok(name.map_or_else(|| CallerId::new(format!("uid:{uid}")), Ok)?)
}

/// `name:password:uid:…`, a line each.
fn name_of(users: impl BufRead, uid: u32) -> Option<String> {
    users.split(b'\n').map_while(Result::ok).find_map(|line| {
        let line = String::from_utf8(line).ok()?;
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid) && !name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_the_first_name_of_its_number() {
        let users = b"root:x:0:0::/:/bin/sh\n\xff:x:7:7\nbroken\n:x:8:8\nann:x:7:7::/:\ntoor:x:0:0::/:" as &[u8];
        for (uid, name) in [(0, Some("root")), (7, Some("ann")), (8, None), (9, None)] {
            assert_eq!(name_of(users, uid).as_deref(), name);
        }
    }
}
