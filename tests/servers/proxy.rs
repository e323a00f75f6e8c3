//! What is in between a client and a server, for the tests that name this file by its path.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Passes on what is said between a client and a server, but for the server's part while `is_mute`.
pub(crate) fn proxy(to: String) -> (u16, Arc<AtomicBool>) {
    let (port, is_mute, _) = slow_proxy(to);
    (port, is_mute)
}

/// The same, and what the server says comes so many milliseconds later.
pub(crate) fn slow_proxy(to: String) -> (u16, Arc<AtomicBool>, Arc<AtomicU64>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (port, is_mute) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
    let (mute, late) = (is_mute.clone(), Arc::new(AtomicU64::new(0)));
    let lateness = late.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(&to)) else { continue };
            let ways = [
                (client.try_clone().unwrap(), server.try_clone().unwrap(), None),
                (server, client, Some(mute.clone())),
            ];
            for (mut from, mut to, mute) in ways {
                let lateness = lateness.clone();
                thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    loop {
                        // A whole answer is late once.
                        if mute.is_some() && from.peek(&mut bytes).is_ok() {
                            thread::sleep(Duration::from_millis(lateness.load(SeqCst)));
                        }
                        let Ok(n @ 1..) = from.read(&mut bytes) else { break };
                        if !mute.as_ref().is_some_and(|mute| mute.load(SeqCst)) && to.write_all(&bytes[..n]).is_err() {
                            break;
                        }
                    }
                });
            }
        }
    });
    (port, is_mute, late)
}
