//! A child of `fork` has none of the trail's threads, and its lock is the parent's.

#![allow(unsafe_code)] // fork itself

use crate::rig::{PATIENCE, Rig, admin, data, numbers};
use keyleash::{
    Error,
    telemetry::trail::{Noted, Trail},
};

#[tokio::test]
async fn a_forked_child_neither_waits_nor_writes_nor_gives_the_lock_away() {
    let rig = Rig::new();
    let writer = rig.open(rig.options()).await.unwrap();
    writer.write(admin(0)).await.unwrap();
    // SAFETY: the child takes no lock that another thread may hold, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no pointers; one that waits is killed.
        unsafe { libc::alarm(60) };
        let is_refused = matches!(writer.note(data(1)), Noted::Refused(Error::Fatal(_)))
            && matches!(writer.serves(), Err(Error::Fatal(_)))
            && writer.status().is_err();
        drop(writer);
        // SAFETY: no pointers.
        unsafe { libc::_exit(i32::from(!is_refused)) }
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child was refused, and ended");
    assert!(rig.open(rig.options().lock_patience(std::time::Duration::ZERO)).await.is_err(), "locked as before");
    writer.write(admin(2)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    assert_eq!(numbers(&rig.read().0), [0, 2]);
}
