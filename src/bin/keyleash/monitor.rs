//! What `status --watch --listen` answers: metrics for Prometheus, and health for whoever routes requests by it. Just as much HTTP/1.1 as
//! those speak: a GET or HEAD, an answer, and the connection ends.

use crate::{exit::Failure, output::Output};
use keyleash::{
    Engine, Error,
    engine::{EngineHealth, Health},
    metrics::Metrics,
};
use std::{fmt::Write, io, net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Longest request, from its first line to the empty one.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Connections at once; who comes then waits until one of them ends.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection lasts at most, whoever is slow.
const PATIENCE: Duration = Duration::from_secs(5);
/// After an error of the system's (no descriptor is left) it is tried again so much later.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Listens, and answers while it is served.
pub(crate) struct Monitor(TcpListener);

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Monitor {
    /// Where `address` says, which is this machine's own: there is neither TLS nor a password.
    pub(crate) async fn listen(address: SocketAddr, output: Output) -> Result<Self, Failure> {
        if !address.ip().is_loopback() {
            let what = format!(
                "--listen {address}: neither TLS nor a password is spoken there, so it must be an address of this machine alone, as \
                 127.0.0.1:9464; others reach it through a proxy"
            );
            return Err(Error::Invalid(what).into());
        }
        let failed = |error| Failure::io(format!("listening on {address}"), error);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        output.note(&format!("keyleash: answers http://{address}/metrics, /health and /health/KEK"));
        Ok(Self(listener))
    }

    /// For as long as it is polled.
    pub(crate) async fn serve(&self, engine: &Engine) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let engine = engine.clone();
                    // That a client went away or took too long is its own affair.
                    connections.spawn(async move { drop(timeout(PATIENCE, converse(&stream, &engine)).await) });
                }
                Err(_) => sleep(AFTER_ERROR).await,
            }
        }
    }
}

async fn converse(stream: &TcpStream, engine: &Engine) -> io::Result<()> {
    let request = read_head(stream).await?;
    let (answer, has_body) = match request.as_deref().map(line_of) {
        None => (plain("431 Request Header Fields Too Large", "too long"), true),
        Some(None) => (plain("400 Bad Request", "no HTTP/1 request"), true),
        Some(Some(("GET", path))) => (answer(path, engine), true),
        Some(Some(("HEAD", path))) => (answer(path, engine), false),
        Some(Some(_)) => (plain("405 Method Not Allowed", "GET or HEAD"), true),
    };
    let Answer { status, kind, body } = answer;
    let length = body.len();
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\nAllow: GET, HEAD\r\n\
         Connection: close\r\n\r\n"
    );
    if has_body {
        text.push_str(&body);
    }
    let mut left = text.as_bytes();
    while !left.is_empty() {
        stream.writable().await?;
        match stream.try_write(left) {
            Ok(written) => left = left.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Up to the empty line; `None` where that comes too late. It is waited for all the same: what is closed while there is something to read
/// takes the answer back.
async fn read_head(stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let (mut head, mut piece, mut is_too_long) = (Vec::new(), [0; 1024], false);
    loop {
        is_too_long |= head.len() > REQUEST_BYTES_MAX;
        if head.windows(4).any(|four| four == b"\r\n\r\n") {
            return Ok((!is_too_long).then_some(head));
        }
        if is_too_long {
            head.drain(..head.len().saturating_sub(3)); // as much of the empty line as may be there
        }
        stream.readable().await?;
        match stream.try_read(&mut piece) {
            Ok(0) => return Ok((!is_too_long).then_some(head)),
            Ok(read) => head.extend(piece.iter().take(read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Method and path of a request.
fn line_of(head: &[u8]) -> Option<(&str, &str)> {
    let (line, _) = std::str::from_utf8(head).ok()?.split_once("\r\n")?;
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_http = words.next().is_none() && version.starts_with("HTTP/1.") && target.starts_with('/');
    is_http.then(|| (method, target.split_once('?').map_or(target, |(path, _)| path)))
}

fn answer(path: &str, engine: &Engine) -> Answer {
    match path {
        "/metrics" => Answer {
            status: "200 OK",
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body: Metrics::of(engine).prometheus(),
        },
        "/health" => health(&engine.health()),
        _ => match path.strip_prefix("/health/") {
            Some(name) => match engine.health().keks.iter().find(|kek| kek.kek.as_str() == name) {
                Some(kek) => plain(status_of(kek.health), kek.health.name()),
                None => plain("404 Not Found", "no account of a KEK of this name is in use"),
            },
            None => plain("404 Not Found", "there are /metrics, /health and /health/KEK"),
        },
    }
}

/// The whole in the first line, then a line for each KEK.
fn health(of: &EngineHealth) -> Answer {
    let mut body = of.health.name().to_owned();
    for kek in &of.keks {
        let _ = write!(body, "\n{} {}", kek.kek, kek.health); // writing to a string does not fail
    }
    plain(status_of(of.health), &body)
}

fn status_of(health: Health) -> &'static str {
    match health {
        Health::Ready | Health::Degraded => "200 OK",
        Health::Dark => "503 Service Unavailable",
    }
}

fn plain(status: &'static str, body: &str) -> Answer {
    Answer { status, kind: "text/plain; charset=utf-8", body: format!("{body}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_request_of_http_1_is_taken_for_one() {
        assert_eq!(line_of(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Some(("GET", "/metrics")));
        assert_eq!(line_of(b"GET /health?from=lb HTTP/1.0\r\n\r\n"), Some(("GET", "/health")));
        for bad in ["", "GET /metrics", "GET /metrics\r\n", "GET  /metrics HTTP/1.1\r\n", "GET metrics HTTP/1.1\r\n"] {
            assert_eq!(line_of(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(line_of(b"PRI * HTTP/2.0\r\n\r\n"), None);
        assert_eq!(line_of(b"GET /\xff HTTP/1.1\r\n\r\n"), None);
    }
}
