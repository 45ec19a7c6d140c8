//! What clients that wait, or say nothing, take away from others: nothing.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::World;

/// A standalone with v1, which is attached, and v2, whose engine never gets ready.
fn one_volume_that_is_ready_and_one_that_is_not() -> World {
    let world = World::real();
    for volume in ["v1", "v2"] {
        world.well(&["volume", "create", volume, "--size", "2MiB", "--frontend", "socket"]);
    }
    let program = world.path().join("sleeper");
    let ankole = env!("CARGO_BIN_EXE_ankole");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--help*) exec {ankole} \"$@\";; esac\nexec sleep 600\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    world.well(&["engine", "upgrade", "v2", "--program", program.to_str().unwrap()]);
    world.well(&["volume", "attach", "v1"]);
    world
}

fn request(socket: &Path, address: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {address} HTTP/1.1\r\nhost: ankole\r\n\r\n").unwrap();
    stream
}

fn first_line(stream: UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

/// What it has said until now; None if nothing.
fn said(stream: &mut UnixStream) -> Option<String> {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(length) => Some(String::from_utf8_lossy(&bytes[..length]).into()),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            None
        }
    }
}

/// They shared the threads on which all of them waited: a replica that died held up all writes of
/// its volume until one of the 600 had its answer.
#[test]
fn six_hundred_requests_that_wait_keep_no_engine_from_the_arbiter() {
    let world = one_volume_that_is_ready_and_one_that_is_not();
    let api = world.data().join("run/api.sock");
    let mut waiting: Vec<_> = (0..600).map(|_| request(&api, "/v1/volumes/v2/snapshots")).collect();
    // Those before it in the queue are being worked on when this one is answered.
    assert!(first_line(request(&api, "/v1/version")).contains("200"));

    let mut arbiter = UnixStream::connect(world.data().join("run/arbiter.sock")).unwrap();
    arbiter.write_all(b"{\"request\":\"read\",\"volume\":\"v1\"}\n").unwrap();
    assert!(first_line(arbiter).contains("\"record\""));
    for stream in &mut waiting {
        let said = said(stream);
        let is_sent_away = said.as_ref().is_none_or(|said| said.contains(" 503 "));
        assert!(is_sent_away, "the arbiter waited for a request to be answered: {said:?}");
    }
}
