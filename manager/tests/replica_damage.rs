//! Directories that can't be opened any more, and replicas that a person wants made anew.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{World, send, until};
use rustix::process::Signal;
use serde_json::Value;

fn qemu_io(endpoint: &str, command: &str) -> String {
    let done = Command::new("qemu-io").args(["-f", "raw", "-c", command, endpoint]).output();
    let done = done.expect("qemu-io is there: apt-get install qemu-utils");
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn attached(replicas: &str) -> (World, String) {
    let world = World::real();
    let create = ["volume", "create", "v1", "--size", "16MiB", "--frontend", "socket"];
    world.well(&[&create[..], &["--replicas", replicas]].concat());
    let endpoint = world.well(&["volume", "attach", "v1"]).trim().to_owned();
    qemu_io(&endpoint, "write -P 7 0 8M");
    (world, endpoint)
}

fn until_healthy(world: &World) -> Value {
    until("the volume is healthy", || {
        let volume = world.volume("v1");
        (volume["robustness"] == "healthy").then_some(volume)
    })
}

fn directory(volume: &Value, number: usize) -> PathBuf {
    volume["replicas"][number]["directory"].as_str().unwrap().into()
}

fn kill_replica(volume: &Value, number: usize) {
    let pid = volume["replicas"][number]["pid"].as_u64().unwrap();
    send(pid.try_into().unwrap(), Signal::KILL);
}

/// What is left of it under other names.
fn set_aside(directory: &std::path::Path) -> Vec<PathBuf> {
    let name = format!("{}.damaged-", directory.file_name().unwrap().to_str().unwrap());
    let entries = fs::read_dir(directory.parent().unwrap()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&name)).collect()
}

/// Its process was started again for ever, and the volume stayed degraded.
#[test]
fn a_damaged_directory_is_set_aside_and_its_replica_rebuilt() {
    let (world, endpoint) = attached("2");
    let volume = until_healthy(&world);
    let damaged = directory(&volume, 1);
    let meta = damaged.join("chain.meta");
    fs::write(&meta, vec![0x5a; meta.metadata().unwrap().len() as usize]).unwrap();
    kill_replica(&volume, 1);

    let aside = until("it is set aside", || set_aside(&damaged).pop());
    until_healthy(&world);
    assert_eq!(fs::read(aside.join("chain.meta")).unwrap()[0], 0x5a, "nothing of it is changed");
    let why = world.well(&["volume", "why", "v1"]);
    assert!(why.contains(aside.to_str().unwrap()), "{why}");
    // Only the rebuilt one remains: what is read now is its copy.
    let volume = world.volume("v1");
    fs::remove_dir_all(directory(&volume, 0)).unwrap();
    kill_replica(&volume, 0);
    qemu_io(&endpoint, "read -P 7 0 8M");
    fs::remove_dir_all(&aside).unwrap();
    until("nothing more is said of it", || {
        (!world.well(&["volume", "why", "v1"]).contains(".damaged-")).then_some(())
    });
}

/// What is left of the only copy is for a person to judge.
#[test]
fn the_only_copy_is_never_set_aside() {
    let (world, _) = attached("1");
    let volume = until_healthy(&world);
    let damaged = directory(&volume, 0);
    let meta = damaged.join("chain.meta");
    fs::write(&meta, vec![0x5a; meta.metadata().unwrap().len() as usize]).unwrap();
    kill_replica(&volume, 0);
    until("it is told", || {
        world.well(&["volume", "why", "v1"]).contains("no other copy is in sync").then_some(())
    });
    assert!(set_aside(&damaged).is_empty() && damaged.exists());
}

#[test]
fn a_replica_is_made_anew_when_it_is_asked_for_and_another_one_is_there() {
    let (world, endpoint) = attached("2");
    let volume = until_healthy(&world);
    let (pid, directory) = (volume["replicas"][1]["pid"].clone(), directory(&volume, 1));
    assert_eq!(world.say(&["replica", "rebuild", "v1", "r9", "--yes"]).code, 3);
    assert_eq!(world.say(&["replica", "rebuild", "v1", "r2"]).code, 4, "nobody can be asked");
    world.well(&["replica", "rebuild", "v1", "r2", "--yes"]);
    until("another process has an empty directory", || {
        let now = world.volume("v1")["replicas"][1]["pid"].clone();
        (now.is_u64() && now != pid && set_aside(&directory).len() == 1).then_some(())
    });
    until_healthy(&world);
    qemu_io(&endpoint, "read -P 7 0 8M");
    world.well(&["volume", "detach", "v1"]);
    let refused = world.say(&["replica", "rebuild", "v1", "r2", "--yes"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.err.contains("volume attach v1"), "{}", refused.err);
}

#[test]
fn the_last_copy_in_sync_is_not_made_anew() {
    let (world, _) = attached("1");
    until_healthy(&world);
    let refused = world.say(&["replica", "rebuild", "v1", "r1", "--yes"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.err.contains("no other copy is in sync"), "{}", refused.err);
}

/// Each command waited 60 s, and then didn't say why.
#[test]
fn a_volume_whose_only_copy_is_damaged_says_so_at_once() {
    let (world, _) = attached("1");
    let meta = directory(&world.volume("v1"), 0).join("chain.meta");
    world.well(&["volume", "detach", "v1"]);
    fs::write(&meta, vec![0x5a; meta.metadata().unwrap().len() as usize]).unwrap();
    let target = format!("file://{}", world.path().display());
    let commands: [&[&str]; 4] = [
        &["snapshot", "ls", "v1"],
        &["snapshot", "create", "v1"],
        &["backup", "create", "v1", "--target", &target],
        &["volume", "attach", "v1"],
    ];
    for command in commands {
        let said = world.say(command);
        assert_eq!(said.code, 4, "{command:?}: {said:?}");
        for word in ["volume v1 can't be attached", "r1 is damaged", "volume salvage v1"] {
            assert!(said.err.contains(word), "{command:?} doesn't say {word:?}: {}", said.err);
        }
    }
}
