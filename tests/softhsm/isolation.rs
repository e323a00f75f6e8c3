//! The module in a process of its own: p11-kit's server, stopped, continued, killed and started again.

use crate::{
    bench::{Bench, LABEL, alone_behind_p11_kit, variable},
    leash::at_once,
    service::{SECOND, Service, now, settings},
};
use keyleash::token::{Profile, Token};
use rustix::process::Signal;
use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

/// SoftHSM's OAEP knows SHA-1 alone.
const OAEP: &str = "C_EncryptInit oaep-sha1\nC_DecryptInit oaep-sha1\n";

/// `p11-kit server` and what it forks, one process for each connection: a process group of its own.
struct Server(Child);

impl Server {
    fn start(bench: &Bench) -> Self {
        let socket = bench.dir.join("p11");
        let _ = std::fs::remove_file(&socket);
        let child = Command::new("p11-kit")
            .args(["server", "--foreground", "--name"])
            .arg(&socket)
            .args([
                "--provider",
                &variable("KEYLEASH_TEST_SERVED"),
                &format!("pkcs11:token={}", LABEL.replace(' ', "%20")),
            ])
            .process_group(0)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self(child);
        for _ in 0..200 {
            if socket.exists() {
                return server;
            }
            std::thread::sleep(SECOND / 20);
        }
        panic!("p11-kit server made no socket");
    }

    fn signal(&self, signal: Signal) {
        let group = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process_group(group, signal).unwrap();
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
    }
}

#[test]
fn the_promises_hold_behind_p11_kit() {
    at_once(&[server_stopped_and_continued, server_killed_and_started, module_crashes]);
}

async fn start(name: &'static str, bench: &Bench) -> (Server, Service) {
    bench.fail(OAEP);
    let server = Server::start(bench);
    let token = Service::token_settings(bench, &settings());
    // The only profile whose mechanism p11-kit 0.24 carries.
    (server, Service::of(Profile::RsaOaepSha256, name, settings(), token, bench).await)
}

#[test]
#[ignore = "one of the scenarios above"]
fn server_stopped_and_continued() {
    alone_behind_p11_kit("isolation::server_stopped_and_continued", |bench| async move {
        let (mut server, service) = start("p11-kit server stopped", &bench).await;
        let short = now();
        server.signal(Signal::STOP);
        service.rest(3 * SECOND).await;
        server.signal(Signal::CONT);
        let back = now();
        service.rest(3 * SECOND).await;
        service.rides_out(short, back).await;
        let act = now();
        server.signal(Signal::STOP);
        service.lapses(act).await;
        service.say(&format!("{:?}", service.token.workers()));
        server.signal(Signal::CONT);
        service.resumes(now(), service.answer()).await;
        // What hangs in a server comes back when the server is killed.
        let short = now();
        server.signal(Signal::STOP);
        service.rest(3 * SECOND).await;
        assert!(service.token.workers().hung > 0);
        server.kill();
        let _again = Server::start(&bench);
        let back = now();
        service.rest(3 * SECOND).await;
        service.rides_out(short, back).await;
        assert_eq!(service.token.workers().hung, 0);
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn server_killed_and_started() {
    alone_behind_p11_kit("isolation::server_killed_and_started", |bench| async move {
        let (mut server, service) = start("p11-kit server killed", &bench).await;
        let short = now();
        server.kill();
        service.rest(2 * SECOND).await;
        server = Server::start(&bench);
        let back = now();
        service.rest(3 * SECOND).await;
        service.rides_out(short, back).await;
        let act = now();
        server.kill();
        service.lapses(act).await;
        let _again = Server::start(&bench);
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

/// What a crash of the module costs: the process of one connection, and no byte of the service.
#[test]
#[ignore = "one of the scenarios above"]
fn module_crashes() {
    alone_behind_p11_kit("isolation::module_crashes", |bench| async move {
        let (_server, service) = start("module crashes behind p11-kit", &bench).await;
        for number in 0..3 {
            let act = now();
            // Once in every process that serves the module from now on, for a while.
            bench.fail(&format!("# {number}\nC_Decrypt crash count=1\n{OAEP}"));
            service.rest(SECOND).await;
            bench.fail(OAEP);
            let back = now();
            service.rest(2 * SECOND).await;
            service.rides_out(act, back).await;
        }
        service.end();
    });
}
