//! The life of a volume with the real engine and replicas, through the command line alone.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use common::{World, send, until};
use rustix::process::Signal;
use serde_json::Value;

const SIZE: usize = 64 << 20;

/// The same bytes everywhere.
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(SIZE);
    while bytes.len() < SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn nbdcopy(from: &str, to: &str) {
    let copied = Command::new("nbdcopy").args(["--flush", from, to]).output();
    let copied = copied.expect("nbdcopy is there: apt-get install libnbd-bin");
    assert!(copied.status.success(), "{copied:?}");
}

fn write_volume(world: &World, endpoint: &str, bytes: &[u8]) {
    let path = world.path().join("in.img");
    File::create(&path).unwrap().write_all(bytes).unwrap();
    nbdcopy(path.to_str().unwrap(), endpoint);
}

fn read_volume(world: &World, endpoint: &str) -> Vec<u8> {
    let path = world.path().join("out.img");
    let _ = std::fs::remove_file(&path);
    nbdcopy(endpoint, path.to_str().unwrap());
    read(&path)
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn attached() -> (World, String) {
    let world = World::real();
    world.well(&["volume", "create", "v1", "--size", "64MiB", "--frontend", "socket"]);
    let endpoint = world.well(&["volume", "attach", "v1"]).trim().to_owned();
    assert!(endpoint.starts_with("nbd+unix:///?socket="), "{endpoint}");
    (world, endpoint)
}

fn until_healthy(world: &World) -> Value {
    until("the volume is healthy", || {
        let volume = world.volume("v1");
        (volume["robustness"] == "healthy").then_some(volume)
    })
}

#[test]
#[ignore = "needs the engine, wired at integration"]
fn what_was_written_is_there_after_detach_and_attach() {
    let (world, endpoint) = attached();
    let bytes = pattern(1);
    write_volume(&world, &endpoint, &bytes);
    world.well(&["volume", "detach", "v1"]);
    let endpoint = world.well(&["volume", "attach", "v1"]);
    assert!(read_volume(&world, endpoint.trim()) == bytes);
}

#[test]
#[ignore = "needs the engine, wired at integration"]
fn a_killed_engine_loses_nothing_that_was_flushed() {
    let (world, endpoint) = attached();
    let bytes = pattern(2);
    write_volume(&world, &endpoint, &bytes);
    let before = world.volume("v1")["enginePid"].as_u64().unwrap();
    send(before.try_into().unwrap(), Signal::KILL);
    let after = until("a successor", || {
        let volume = world.volume("v1");
        let pid = volume["enginePid"].as_u64()?;
        (pid != before && volume["state"] == "attached").then_some(volume)
    });
    assert_eq!(after["endpoint"], endpoint.as_str(), "a client reconnects where it was");
    assert!(read_volume(&world, &endpoint) == bytes);
}

#[test]
#[ignore = "needs the engine, wired at integration"]
fn a_killed_replica_is_rebuilt_with_what_it_missed() {
    let (world, endpoint) = attached();
    let pid = until_healthy(&world)["replicas"][1]["pid"].as_u64().unwrap();
    send(pid.try_into().unwrap(), Signal::KILL);
    let bytes = pattern(3);
    write_volume(&world, &endpoint, &bytes);
    let volume = until_healthy(&world);
    assert_ne!(volume["replicas"][1]["pid"].as_u64(), Some(pid));
    // Only the rebuilt one remains: what is read now is its copy.
    for number in [0, 2] {
        let directory = volume["replicas"][number]["directory"].as_str().unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        let pid = volume["replicas"][number]["pid"].as_u64().unwrap();
        send(pid.try_into().unwrap(), Signal::KILL);
    }
    assert!(read_volume(&world, &endpoint) == bytes);
}

#[test]
#[ignore = "needs the engine, wired at integration"]
fn a_volume_reverts_to_its_snapshot() {
    let (world, endpoint) = attached();
    let bytes = pattern(4);
    write_volume(&world, &endpoint, &bytes);
    assert_eq!(world.well(&["snapshot", "create", "v1", "s1"]), "s1\n");
    let twice = world.say(&["snapshot", "create", "v1", "s1"]);
    assert_eq!(twice.code, 4, "{twice:?}");
    write_volume(&world, &endpoint, &pattern(5));
    world.well(&["snapshot", "revert", "v1", "s1", "--yes"]);
    assert!(read_volume(&world, &endpoint) == bytes);
    let chain = world.json(&["snapshot", "ls", "v1", "--tree"]);
    assert_eq!(chain["headParent"], "s1");
    assert_eq!(world.say(&["snapshot", "rm", "v1", "s9", "--yes"]).code, 3);
}

#[test]
#[ignore = "needs the engine, wired at integration"]
fn io_goes_on_while_the_standalone_is_killed_and_started_again() {
    let (mut world, endpoint) = attached();
    world.kill();
    let bytes = pattern(6);
    write_volume(&world, &endpoint, &bytes);
    world.start();
    assert!(read_volume(&world, &endpoint) == bytes);
    until_healthy(&world);
    assert_eq!(world.stop().code(), Some(0));
    assert!(world.processes().is_empty());
}

#[test]
#[ignore = "needs the engine, wired at integration"]
fn an_attached_volume_grows_under_its_clients() {
    let (world, endpoint) = attached();
    world.well(&["volume", "resize", "v1", "--size", "128MiB"]);
    until("the engine has grown", || {
        let size = Command::new("nbdinfo").args(["--size", &endpoint]).output().unwrap();
        (String::from_utf8_lossy(&size.stdout).trim() == "134217728").then_some(())
    });
}

#[test]
#[ignore = "needs the engine, wired at integration"]
fn a_single_replica_lives_in_the_engine_and_three_speak_tcp() {
    let world = World::real();
    let bytes = pattern(7);
    let kinds: [(&str, &[&str]); 2] =
        [("v1", &["--replicas", "1", "--in-engine"]), ("v2", &["--transport", "tcp"])];
    for (name, options) in kinds {
        let create = ["volume", "create", name, "--size", "64MiB", "--frontend", "socket"];
        world.well(&[&create[..], options].concat());
        let endpoint = world.well(&["volume", "attach", name]);
        write_volume(&world, endpoint.trim(), &bytes);
        assert!(read_volume(&world, endpoint.trim()) == bytes, "{name}");
    }
}

#[test]
#[ignore = "needs the engine and backups, wired at integration"]
fn a_backup_is_restored_to_a_volume_and_to_a_file() {
    let (world, endpoint) = attached();
    let bytes = pattern(8);
    write_volume(&world, &endpoint, &bytes);
    world.well(&["snapshot", "create", "v1", "s1"]);
    let folder = world.path().join("backups");
    std::fs::create_dir(&folder).unwrap();
    let target = format!("file://{}", folder.display());
    let url = world.well(&["backup", "create", "v1", "--snapshot", "s1", "--target", &target]);
    let url = url.trim();
    assert_eq!(world.well(&["backup", "ls", "--target", &target, "-o", "name"]).trim(), url);
    world.well(&["backup", "verify", url]);
    world.well(&["backup", "restore", url, "--to", "v2"]);
    let restored = world.well(&["volume", "attach", "v2"]);
    assert!(read_volume(&world, restored.trim()) == bytes);
    let file = world.path().join("restored.img");
    world.well(&["backup", "restore", url, "--to-file", file.to_str().unwrap()]);
    assert!(read(&file) == bytes);
    world.well(&["backup", "rm", url, "--yes"]);
    assert_eq!(world.well(&["backup", "ls", "--target", &target, "-o", "name"]), "");
}
