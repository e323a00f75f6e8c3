//! An S3 server on loopback, for the tests that name this file by its path. It is killed with whoever began it.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/s3");

pub(crate) struct S3 {
    pub(crate) port: u16,
    /// Of the user, where it was begun with one.
    pub(crate) key_id: String,
    pub(crate) secret: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl S3 {
    pub(crate) fn begin() -> Self {
        Self::begin_with(&[])
    }

    pub(crate) fn begin_with(args: &[&str]) -> Self {
        let mut command = Command::new(SCRIPT);
        command.arg("run").args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, mut stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).expect("no S3 server: run tests/servers/s3 install");
        let word = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        let port = said["port"].as_u64().unwrap().try_into().unwrap();
        Self { port, key_id: word("key_id"), secret: word("secret"), child, stdin, stdout }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it does from now on.
    pub(crate) fn fault(&mut self, fault: &str) {
        writeln!(self.stdin, "{fault}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), fault);
    }

    /// SIGSTOP, SIGCONT.
    pub(crate) fn stop(&self) {
        self.signal("STOP");
    }

    pub(crate) fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// What stands at a name in the bucket, by nobody's key.
    pub(crate) fn get(&self, name: &str) -> Vec<u8> {
        self.ask("GET", name, b"")
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        self.ask("PUT", name, bytes);
    }

    pub(crate) fn delete(&self, name: &str) {
        self.ask("DELETE", name, b"");
    }

    fn ask(&self, method: &str, name: &str, bytes: &[u8]) -> Vec<u8> {
        let mut server = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let name = name.replace('@', "%40");
        let (host, len) = (self.endpoint(), bytes.len());
        let head = format!(
            "{method} /vault/{name} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len}\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=setup/20200101/us-east-1/s3/aws4_request\r\n\r\n"
        );
        server.write_all(head.as_bytes()).unwrap();
        server.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        assert!(head.starts_with("HTTP/1.1 2"), "{method} {name}: {head}");
        answer.split_off(end + 4)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
