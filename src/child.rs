//! A program that is run, with all that it begins: it leads a process group of its own, which is killed as it ends.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
#[cfg(feature = "secrets")]
use std::process::{ChildStdin, ChildStdout};
use std::{
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus},
};

/// Killed, with its group, and reaped when this is dropped.
pub(crate) struct Running {
    child: Child,
    is_reaped: bool,
}

impl Running {
    /// Begins it, in a group of its own.
    pub(crate) fn begin(mut command: Command) -> io::Result<Self> {
        Ok(Self { child: command.process_group(0).spawn()?, is_reaped: false })
    }

    /// Its standard input and output, where they are pipes.
    #[cfg(feature = "secrets")]
    pub(crate) fn streams(&mut self) -> (Option<ChildStdin>, Option<ChildStdout>) {
        (self.child.stdin.take(), self.child.stdout.take())
    }

    /// Without reaping it: until then its number, which is the group's, is nobody else's.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.pid()?), options)?.is_some())
    }

    fn pid(&self) -> io::Result<Pid> {
        let number = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        number.ok_or_else(|| io::Error::other("it has no number"))
    }

    /// Kills what is left of the group, and reaps its leader.
    pub(crate) fn end(&mut self) -> io::Result<ExitStatus> {
        if !self.is_reaped {
            // It may have left the group alone, which then has nobody to be killed.
            let _ = kill_process_group(self.pid()?, Signal::KILL);
            let _ = self.child.kill(); // it may have gone over to another one
        }
        self.is_reaped = true;
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// How it ended, in words.
pub(crate) fn said(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended in no known way".into(),
    }
}
