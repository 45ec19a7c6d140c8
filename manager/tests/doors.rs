//! What clients that wait, or say nothing, take away from others: nothing.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

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

/// Nothing of another volume was answered before the first of the 600.
#[test]
fn requests_that_wait_for_one_volume_are_sent_away_when_there_are_many_and_others_are_served() {
    let world = one_volume_that_is_ready_and_one_that_is_not();
    let api = world.data().join("run/api.sock");
    let snapshots = "/v1/volumes/v2/snapshots";
    let mut waiting: Vec<_> = (0..600).map(|_| request(&api, snapshots)).collect();
    assert!(first_line(request(&api, "/v1/volumes/v1")).contains("200"));
    world.well(&["snapshot", "create", "v1", "s1"]);
    let refused = world.say(&["snapshot", "ls", "v2"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("16 requests wait for volume v2"), "{}", refused.err);
    assert!(refused.err.contains("next: ankole volume why v2"), "{}", refused.err);
    let said: Vec<_> = waiting.iter_mut().filter_map(said).collect();
    assert!(said.iter().all(|said| said.contains(" 503 ")), "{said:?}");

    // Those who go away leave threads behind, which wait on: nobody gets further ones for them.
    drop(waiting);
    assert!(first_line(request(&api, snapshots)).contains("503"));
    assert!(first_line(request(&api, "/v1/volumes/v1")).contains("200"));
}

/// Their descriptors were those that the arbiter and the processes needed.
#[test]
fn a_stranger_who_connects_and_says_nothing_locks_nobody_out() {
    let mut world = World::new(|world| {
        let mut command = Command::new("sh");
        let ankole = world.ankole();
        command.args(["-c", "ulimit -n 600; exec \"$0\" \"$@\""]);
        command.arg(ankole.get_program()).args(ankole.get_args());
        command.args(["standalone", "--listen", "127.0.0.1:0"]);
        command.env("XDG_RUNTIME_DIR", world.path());
        command
    });
    let address = fs::read_to_string(world.data().join("run/api.addr")).unwrap();
    let address = address.trim().parse().unwrap();
    // As many as get in, and into the queue.
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok();
    let _silent: Vec<_> = (0..700).map_while(connect).collect();
    world.well(&["volume", "create", "v1", "--size", "2MiB", "--frontend", "socket"]);
    world.well(&["volume", "attach", "v1"]);
    assert!(!world.log().contains("Too many open files"), "{}", world.log());
    assert_eq!(world.stop().code(), Some(0));
}
