//! What people are told of bytes that rot, of copies that went back in time and of requests that
//! wait, and when it is over.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{World, send, until};
use rustix::process::Signal;
use serde_json::Value;

/// Of the volume's head.
const ROTTEN_BYTE: u64 = 9 * 4096;

fn qemu_io(endpoint: &str, command: &str) -> Output {
    let done = Command::new("qemu-io").args(["-f", "raw", "-c", command, endpoint]).output();
    done.expect("qemu-io is there: apt-get install qemu-utils")
}

fn is_well(endpoint: &str, command: &str) -> bool {
    let done = qemu_io(endpoint, command);
    done.status.success() && !String::from_utf8_lossy(&done.stdout).contains("failed")
}

/// Two replicas with 8 MiB of a pattern, all of it on the disks.
fn attached() -> (World, String) {
    let world = World::real();
    world.well(&[
        "volume",
        "create",
        "v1",
        "--size",
        "16MiB",
        "--frontend",
        "socket",
        "--replicas",
        "2",
    ]);
    let endpoint = world.well(&["volume", "attach", "v1", "--wait"]).trim().to_owned();
    assert!(is_well(&endpoint, "write -P 7 0 8M") && is_well(&endpoint, "flush"));
    (world, endpoint)
}

fn directory(volume: &Value, number: usize) -> PathBuf {
    volume["replicas"][number]["directory"].as_str().unwrap().into()
}

/// The one layer that holds data.
fn rot(directory: &Path, offset_bytes: u64) {
    let is_data = |path: &PathBuf| path.extension().is_some_and(|it| it == "data");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = entries.filter(is_data).collect();
    let [file] = &files[..] else { panic!("one layer has data: {files:?}") };
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut bytes = [0; 512];
    file.read_exact_at(&mut bytes, offset_bytes).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    file.write_all_at(&bytes, offset_bytes).unwrap();
    file.sync_all().unwrap();
}

fn condition(volume: &Value, reason: &str) -> Option<Value> {
    let conditions = volume["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["reason"] == reason).cloned()
}

fn engine_log(world: &World) -> String {
    fs::read_to_string(world.data().join("logs/v1.engine.log")).unwrap()
}

/// The engine read it from the other replica and repaired it, and nobody but the engine knew.
#[test]
fn a_block_that_rots_on_one_replica_is_told_with_its_place_and_what_was_done() {
    let (world, endpoint) = attached();
    let r1 = directory(&world.volume("v1"), 0);
    rot(&r1, ROTTEN_BYTE);
    // Until both have been asked, whichever turn it is.
    let told = until("it is told", || {
        assert!(is_well(&endpoint, "read -P 7 0 8M"), "a rotten byte is returned");
        condition(&world.volume("v1"), "ReplicaRepaired")
    });
    assert_eq!(told["replica"], "r1");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("1 block(s), the last 4 KiB at byte 36864 of layer 1"), "{message}");
    assert!(message.ends_with("repaired from r2"), "{message}");
    assert!(told["next"].as_str().unwrap().contains(r1.to_str().unwrap()), "{told}");
    let volume = world.volume("v1");
    assert_eq!(volume["robustness"], "healthy", "it was repaired");
    assert_eq!(volume["damage"]["replicas"][0]["repairedBlocks"], 1);
    assert!(world.well(&["volume", "why", "v1"]).contains("repaired from r2"));
    assert!(world.well(&["volume", "show", "v1"]).contains("r1 1 block(s)"));
    assert!(world.well(&["volume", "ls"]).contains("ReplicaRepaired"));
    let log = engine_log(&world);
    assert!(log.contains("a replica can't read what it holds"), "{log}");
    assert!(log.contains("blocks are repaired"), "{log}");
    world.well(&["volume", "detach", "v1"]);
    world.well(&["replica", "verify", r1.to_str().unwrap()]);
}

#[test]
fn a_block_that_rots_on_all_replicas_is_told_until_it_is_written_anew() {
    let (world, endpoint) = attached();
    let volume = world.volume("v1");
    for number in 0..2 {
        rot(&directory(&volume, number), ROTTEN_BYTE);
    }
    assert!(!is_well(&endpoint, "read 36K 4K"), "nobody has it");
    assert!(is_well(&endpoint, "read -P 7 0 36K") && is_well(&endpoint, "read -P 7 40K 4M"));
    let told = until("it is told", || condition(&world.volume("v1"), "DataLost"));
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("4 KiB of volume v1: 4 KiB at byte 36864 of layer 1"), "{message}");
    assert!(told["next"].as_str().unwrap().contains("restore"), "{told}");
    assert_eq!(world.volume("v1")["robustness"], "degraded");
    let why = world.well(&["volume", "why", "v1"]);
    assert!(why.contains("4 KiB at byte 36864"), "{why}");
    let log = engine_log(&world);
    assert!(log.contains("no replica can read these blocks"), "{log}");

    assert!(is_well(&endpoint, "write -P 8 36K 4K") && is_well(&endpoint, "read -P 8 36K 4K"));
    until("it is over", || condition(&world.volume("v1"), "DataLost").is_none().then_some(()));
    assert_eq!(world.volume("v1")["robustness"], "healthy");
    assert!(engine_log(&world).contains("were written anew"));
}

/// With the volume detached, and nobody who could repair it.
#[test]
fn verify_names_the_layer_and_the_block() {
    let (world, _) = attached();
    let r2 = directory(&world.volume("v1"), 1);
    world.well(&["volume", "detach", "v1"]);
    rot(&r2, ROTTEN_BYTE);
    let said = world.say(&["replica", "verify", r2.to_str().unwrap()]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("block 9 of layer 1: its checksum is"), "{said:?}");
}

/// It was shown by `volume why` alone, and only by who asked at the right moment.
#[test]
fn a_replica_that_went_back_in_time_is_told_as_such() {
    let (world, endpoint) = attached();
    let r1 = directory(&world.volume("v1"), 0);
    world.well(&["volume", "detach", "v1"]);
    let saved = world.path().join("saved");
    let copy = |from: &Path, to: &Path| {
        let done = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
        assert!(done.success());
    };
    copy(&r1, &saved);
    world.well(&["volume", "attach", "v1", "--wait"]);
    assert!(is_well(&endpoint, "write -P 9 0 4M"));
    world.well(&["volume", "detach", "v1"]);
    fs::remove_dir_all(&r1).unwrap();
    copy(&saved, &r1);
    world.well(&["volume", "attach", "v1"]);
    // A small volume may be equal again before anybody looks; the log keeps it.
    let seen = until("it is told, or over", || {
        let (listed, volume) = (world.well(&["volume", "ls"]), world.volume("v1"));
        let older = condition(&volume, "ReplicaOlder");
        (older.is_some() || volume["robustness"] == "healthy").then_some((older, listed))
    });
    if let (Some(told), listed) = seen {
        assert_eq!(told["replica"], "r1");
        assert!(listed.contains("degraded"), "{listed}");
    }
    let log = engine_log(&world);
    assert!(log.contains("it is an older copy of itself"), "{log}");
    until("it is made equal, and nothing more is told", || {
        let volume = world.volume("v1");
        let over = condition(&volume, "ReplicaOlder").is_none();
        (volume["robustness"] == "healthy" && over).then_some(())
    });
    assert!(is_well(&endpoint, "read -P 9 0 4M") && is_well(&endpoint, "read -P 7 4M 4M"));
}

/// A write hung for as long as the disks did, and nothing was said of it but "attached and healthy".
#[test]
fn when_all_replicas_hang_it_is_told_that_writes_wait_and_for_whom() {
    let (world, endpoint) = attached();
    let volume = world.volume("v1");
    let replicas = volume["replicas"].as_array().unwrap();
    let signal = |signal| {
        for replica in replicas {
            send(replica["pid"].as_u64().unwrap().try_into().unwrap(), signal);
        }
    };
    signal(Signal::STOP);
    let mut write = Command::new("qemu-io");
    write.args(["-f", "raw", "-c", "write -P 9 0 4K", &endpoint]).stdout(Stdio::null());
    let mut write = write.spawn().unwrap();
    let told = until("it is told", || condition(&world.volume("v1"), "RequestsWait"));
    assert!(told["message"].as_str().unwrap().contains("writes wait for r1, r2"), "{told}");
    let why = world.well(&["volume", "why", "v1"]);
    assert!(why.contains("The engine waits: writes wait for r1, r2"), "{why}");
    assert!(world.well(&["volume", "ls"]).contains("RequestsWait"));
    signal(Signal::CONT);
    assert!(write.wait().unwrap().success());
    until("it is over", || condition(&world.volume("v1"), "RequestsWait").is_none().then_some(()));
    assert!(is_well(&endpoint, "read -P 9 0 4K"));
}

/// `why` said that it had ended with status 1, and the cause was in its log alone.
#[test]
fn a_replica_that_ends_again_and_again_is_told_with_the_cause_from_its_log() {
    let (world, _) = attached();
    let r1 = directory(&world.volume("v1"), 0);
    world.well(&["volume", "detach", "v1"]);
    let mut other = Command::new(env!("CARGO_BIN_EXE_ankole"));
    other.args(["replica", "serve", "--volume", "v1", "--replica", "r1", "--dir"]).arg(&r1);
    let socket = world.path().join("socket");
    other.arg("--listen").arg(format!("unix:{}", socket.display()));
    let mut other = other.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("it serves", || socket.exists().then_some(()));
    world.well(&["volume", "attach", "v1"]);
    let cause = format!("is in use by process {}", other.id());
    until("the cause is told", || {
        world.well(&["volume", "why", "v1"]).contains(&cause).then_some(())
    });
    let told = until("it is a condition", || condition(&world.volume("v1"), "ReplicaEnded"));
    assert!(told["message"].as_str().unwrap().contains(&cause), "{told}");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// It was shown as healthy for as long as it was stopped, or as being attached.
#[test]
fn an_engine_that_hangs_is_shown_as_it_was_and_said_to_be_unknown() {
    let (world, _) = attached();
    let pid = world.volume("v1")["enginePid"].as_u64().unwrap().try_into().unwrap();
    send(pid, Signal::STOP);
    let volume = until("nothing is known of it", || {
        let volume = world.volume("v1");
        (volume["robustness"] == "unknown").then_some(volume)
    });
    assert_eq!(volume["state"], "attached");
    let listed = world.well(&["volume", "ls"]);
    assert!(listed.contains("attached  unknown"), "{listed}");
    let told = condition(&volume, "EngineUnreachable").unwrap();
    let message = told["message"].as_str().unwrap();
    assert!(message.starts_with("the engine doesn't answer: all is as it was at 20"), "{message}");
    send(pid, Signal::CONT);
    until("it is heard again", || (world.volume("v1")["robustness"] == "healthy").then_some(()));
}
