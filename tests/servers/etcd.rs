//! An etcd of one member or several on loopback, for the tests that name this file by its path. It is killed with the thread that began it.

use serde_json::Value;
use std::{
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/etcd");

pub(crate) struct Etcd {
    folder: TempDir,
    members: Vec<Member>,
    /// What etcdctl needs to be told to reach it.
    ctl: Vec<String>,
}

struct Member {
    port: u16,
    args: Vec<String>,
    child: Option<Child>,
}

#[allow(dead_code)] // each of the tests uses some of it
impl Etcd {
    pub(crate) fn begin(members: usize) -> Self {
        Self::begin_with(members, &[], &[])
    }

    /// With more arguments for each member, and for etcdctl; with `--cert-file` among them over TLS.
    pub(crate) fn begin_with(members: usize, args: &[&str], ctl: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listeners: Vec<_> = (0..2 * members).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
        let ports: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(listeners);
        let (clients, peers) = ports.split_at(members);
        let peer = |n: usize| format!("http://127.0.0.1:{}", peers[n]);
        let cluster: Vec<_> = (0..members).map(|n| format!("m{n}={}", peer(n))).collect();
        let scheme = if args.contains(&"--cert-file") { "https" } else { "http" };
        let member = |n: usize| {
            let client = format!("{scheme}://127.0.0.1:{}", clients[n]);
            let own = [
                ("--name", format!("m{n}")),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer(n)),
                ("--initial-advertise-peer-urls", peer(n)),
                ("--initial-cluster", cluster.join(",")),
            ];
            let own = own.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
            let args = own.chain(args.iter().map(|arg| (*arg).to_owned())).collect();
            Member { port: clients[n], args, child: None }
        };
        let ctl = ctl.iter().map(|arg| (*arg).to_owned()).collect();
        let mut etcd = Self { members: (0..members).map(member).collect(), folder, ctl };
        for n in 0..members {
            etcd.spawn(n);
        }
        etcd.await_health();
        etcd
    }

    fn spawn(&mut self, n: usize) {
        let member = &mut self.members[n];
        let mut command = Command::new(SCRIPT);
        command.arg("run").arg(self.folder.path().join(format!("m{n}"))).args(&member.args).stdin(Stdio::null());
        // Quiet, but for what is wrong.
        member.child = Some(command.stdout(Stdio::null()).spawn().unwrap());
    }

    /// Waits until every member that runs has a leader.
    pub(crate) fn await_health(&mut self) {
        for _ in 0..400 {
            for member in &mut self.members {
                let ended = member.child.as_mut().and_then(|child| child.try_wait().unwrap());
                assert!(ended.is_none(), "etcd ended ({ended:?}): run tests/servers/etcd install");
            }
            if self.try_ctl(&["endpoint", "health"]).status.success() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("etcd does not begin");
    }

    pub(crate) fn endpoints(&self) -> String {
        let endpoints: Vec<_> = self.members.iter().map(|member| format!("127.0.0.1:{}", member.port)).collect();
        endpoints.join(",")
    }

    pub(crate) fn url(&self, namespace: &str) -> String {
        format!("etcd://{}/{namespace}", self.endpoints())
    }

    fn running(&self) -> String {
        let running = self.members.iter().filter(|member| member.child.is_some());
        running.map(|member| format!("127.0.0.1:{}", member.port)).collect::<Vec<_>>().join(",")
    }

    fn try_ctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new("etcdctl");
        command.args(["--endpoints", &self.running()]).args(&self.ctl).args(args).env("ETCDCTL_API", "3");
        command.output().expect("etcdctl: run tests/servers/etcd install")
    }

    /// What etcdctl says.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let run = self.try_ctl(args);
        assert!(run.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    }

    pub(crate) fn leader(&self) -> usize {
        for _ in 0..100 {
            let status: Value = serde_json::from_str(&self.ctl(&["endpoint", "status", "-w", "json"])).unwrap();
            for one in status.as_array().unwrap() {
                let port = one["Endpoint"].as_str().unwrap().rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
                let status = &one["Status"];
                if status["leader"]
                    .as_u64()
                    .is_some_and(|id| id != 0 && Some(id) == status["header"]["member_id"].as_u64())
                {
                    return self.members.iter().position(|member| member.port == port).unwrap();
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("nobody leads");
    }

    pub(crate) fn id(&self, n: usize) -> u32 {
        self.members[n].child.as_ref().unwrap().id()
    }

    pub(crate) fn kill(&mut self, n: usize) {
        let mut child = self.members[n].child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self, n: usize) {
        self.spawn(n);
        self.await_health();
    }

    /// What the one member has is saved, and a cluster that is begun from that takes its place.
    pub(crate) fn save_and_restore(&mut self, n: usize) {
        let (copy, folder) = (self.folder.path().join("copy"), self.folder(n));
        self.ctl(&["snapshot", "save", copy.to_str().unwrap()]);
        self.kill(n);
        std::fs::remove_dir_all(&folder).unwrap();
        let known = ["--name", "--initial-cluster", "--initial-advertise-peer-urls"];
        let known: Vec<_> = self.members[n].args.chunks(2).filter(|arg| known.contains(&arg[0].as_str())).collect();
        let restore = ["snapshot", "restore", copy.to_str().unwrap(), "--initial-cluster-token", "anew", "--data-dir"];
        let mut command = Command::new("etcdctl");
        command.args(restore).arg(folder).args(known.concat()).env("ETCDCTL_API", "3");
        let run = command.output().unwrap();
        assert!(run.status.success(), "{run:?}");
        self.restart(n);
    }

    fn signal(&self, n: usize, signal: i32) {
        let child = self.members[n].child.as_ref().unwrap();
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn stop(&self, n: usize) {
        self.signal(n, 19); // SIGSTOP
    }

    pub(crate) fn go_on(&self, n: usize) {
        self.signal(n, 18); // SIGCONT
    }

    /// Where a member keeps its data.
    pub(crate) fn folder(&self, n: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("m{n}"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
