//! A standalone of the version before ends, and one of now takes its place: what runs goes on.
//!
//! Needs the binary of the version before, which kept a volume as one object:
//! `ANKOLE_BEFORE=PATH cargo test --locked --workspace --test upgrade`.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs::{self, File};
use std::hash::Hasher as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ankole_blockdev::disk::{Buffer, Disk, Durability, Extent};
use ankole_blockdev::nbd::Client;
use common::data::{SIZE, fill, holds};
use common::{World, alive, until};
use redb::{Database, ReadableTable as _, TableDefinition};
use serde_json::Value;
use twox_hash::XxHash3_64;

/// None: this test can do nothing, and says so.
fn before() -> Option<PathBuf> {
    let before = std::env::var_os("ANKOLE_BEFORE").map(PathBuf::from);
    if before.is_none() {
        println!("SKIPPED: ANKOLE_BEFORE names no binary of the version before");
    }
    before
}

/// The version before, until `upgrade` has been called.
fn launch(world: &World) -> Command {
    let mut command = if world.path().join("upgraded").exists() {
        world.ankole()
    } else {
        let mut command = Command::new(before().expect("the test has looked for it"));
        command.env("XDG_RUNTIME_DIR", world.path()).stdin(Stdio::null());
        command.arg("--data").arg(world.data());
        command
    };
    command.args(["standalone", "--listen", "127.0.0.1:0"]);
    command
}

fn upgrade(world: &mut World) {
    File::create(world.path().join("upgraded")).unwrap();
    world.start();
    let kept = world.data().join("ankole.redb.format-2");
    assert!(kept.exists(), "the store of the version before is kept");
}

fn create(world: &World, volume: &str, options: &[&str]) {
    let size = SIZE.to_string();
    let create = ["volume", "create", volume, "--size", &size, "--frontend", "socket"];
    world.well(&[&create, options].concat());
}

fn attach(world: &World, volume: &str) -> String {
    world.well(&["volume", "attach", volume]).trim().to_owned()
}

fn until_healthy(world: &World, volume: &str) -> Value {
    until("it is attached and healthy", || {
        let shown = world.volume(volume);
        (shown["state"] == "attached" && shown["robustness"] == "healthy").then_some(shown)
    })
}

fn pids(volume: &Value) -> Vec<Option<u64>> {
    let replicas = volume["replicas"].as_array().unwrap().iter();
    let engine = volume["enginePid"].as_u64();
    [engine].into_iter().chain(replicas.map(|it| it["pid"].as_u64())).collect()
}

/// One that looked for objects of now found none, and would have ended every process as a stray one.
#[test]
fn engines_and_replicas_of_the_version_before_are_adopted_and_serve_on() {
    if before().is_none() {
        return;
    }
    let mut world = World::new(launch);
    let volumes: [(&str, &[&str]); 3] = [
        ("over-unix", &[]),
        ("over-tcp", &["--transport", "tcp", "--replicas", "2"]),
        ("in-engine", &["--replicas", "1", "--in-engine"]),
    ];
    for (volume, options) in volumes {
        create(&world, volume, options);
        fill(&attach(&world, volume), 1);
    }
    let old = volumes.map(|(volume, _)| until_healthy(&world, volume));
    let at = Extent { offset_bytes: 0, length_bytes: 4096 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let endpoint = old[0]["endpoint"].as_str().unwrap();
    let socket = endpoint.split_once("socket=").expect("it is a socket").1;
    let tasks = tokio::task::LocalSet::new();
    let client = tasks.block_on(&runtime, Client::connect_unix(socket.as_ref(), "")).unwrap();
    let write = |value: u8| {
        let buffer = Buffer::copy_of(&[value; 4096]);
        let writing = client.write(at, buffer, Durability::Volatile);
        let written = tasks.block_on(&runtime, writing);
        drop(written.expect("its client is served"));
    };
    write(2);
    world.kill();
    write(3);
    upgrade(&mut world);
    write(4);
    for ((volume, _), old) in volumes.into_iter().zip(&old) {
        let new = until_healthy(&world, volume);
        for field in ["uid", "endpoint", "tickets", "sizeBytes"] {
            assert_eq!(new[field], old[field], "{field} of {volume}");
        }
        assert_eq!(pids(&new), pids(old), "{volume}");
        let generation = |volume: &Value| volume["record"]["generation"].clone();
        assert_eq!(generation(&new), generation(old), "{volume}: nothing was granted");
    }
    write(5);
    tasks.block_on(&runtime, client.disconnect()).unwrap();
    until("its engine knows that it left", || {
        (world.volume("over-unix")["clients"] == 0).then_some(())
    });
    fill(endpoint, 1);
    for (volume, _) in volumes {
        world.well(&["volume", "detach", volume]);
        assert!(holds(&attach(&world, volume), 1), "{volume}");
    }
    let processes = world.processes();
    assert_eq!(world.stop().code(), Some(0));
    assert!(processes.iter().all(|pid| !alive(*pid)));
}

/// What nobody used is there, in the directories that it had; and what was asked for is done.
#[test]
fn volumes_that_rest_keep_their_content_and_what_was_asked_for_is_done() {
    if before().is_none() {
        return;
    }
    let mut world = World::new(launch);
    for volume in ["v1", "v2", "v3"] {
        create(&world, volume, &[]);
        fill(&attach(&world, volume), 7);
        world.well(&["volume", "detach", volume]);
    }
    world.well(&["volume", "resize", "v2", "--size", "64MiB"]);
    let backups = world.path().join("backups");
    fs::create_dir(&backups).unwrap();
    let url = format!("file://{}", backups.display());
    world.well(&["target", "add", "default", &url]);
    let old = world.volume("v1");
    world.kill();
    // As an attempt that was broken off leaves it.
    fs::write(world.data().join("ankole.redb.new"), "half of one").unwrap();
    upgrade(&mut world);
    assert!(world.well(&["target", "ls"]).contains(&url));
    assert_eq!(world.volume("v1")["state"], "detached");
    assert!(holds(&attach(&world, "v1"), 7));
    let new = until_healthy(&world, "v1");
    let directories = |volume: &Value| -> Vec<String> {
        let replicas = volume["replicas"].as_array().unwrap().iter();
        replicas.map(|it| it["directory"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(directories(&new), directories(&old));
    attach(&world, "v2");
    until("it has grown", || (world.volume("v2")["sizeBytes"] == 64 << 20).then_some(()));
    world.well(&["replica", "rebuild", "v2", "r2", "--yes"]);
    until_healthy(&world, "v2");
    world.well(&["volume", "rm", "v3", "--yes"]);
    until("it is gone", || (world.json(&["volume", "ls"]).as_array()?.len() == 2).then_some(()));
    assert!(!world.data().join("disks/default/replicas/v3-r1").exists());
    // Again, as any other day.
    world.kill();
    world.start();
    assert!(holds(&attach(&world, "v1"), 7));
}

/// As one that a later version wrote would be.
fn make_unreadable(store: &Path, volume: &str) {
    let table: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("volumes");
    let database = Database::open(store).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(table).unwrap();
        let value = table.get(volume).unwrap().expect("it is there").value().to_vec();
        let (version, json) = (&value[..8], String::from_utf8(value[16..].to_vec()).unwrap());
        let json = json.replace("\"spec\"", "\"specs\"");
        let mut sum = XxHash3_64::new();
        for part in [b"volumes/", volume.as_bytes(), version, json.as_bytes()] {
            sum.write(part);
        }
        let value = [version, &sum.finish().to_le_bytes(), json.as_bytes()].concat();
        table.insert(volume, value.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

/// Nothing says which replicas it has: their processes would be nobody's, and its clients without a disk.
#[test]
fn one_that_can_not_be_read_goes_on_and_hides_no_other() {
    if before().is_none() {
        return;
    }
    let mut world = World::new(launch);
    let endpoints = ["v1", "v2"].map(|volume| {
        create(&world, volume, &[]);
        attach(&world, volume)
    });
    let old = ["v1", "v2"].map(|volume| until_healthy(&world, volume));
    fill(&endpoints[0], 1);
    world.kill();
    make_unreadable(&world.data().join("ankole.redb"), "v1");
    upgrade(&mut world);
    assert_eq!(pids(&until_healthy(&world, "v2")), pids(&old[1]));
    assert_eq!(world.volume("v1")["state"], "unreadable");
    fill(&endpoints[0], 2);
    let of_v1: Vec<_> = pids(&old[0]).into_iter().flatten().collect();
    assert!(of_v1.iter().all(|pid| alive(u32::try_from(*pid).unwrap())), "{}", world.log());
    let said = world.say(&["volume", "create", "v1", "--size", "2MiB"]);
    assert!(said.code == 4 && said.err.contains("v1"), "nobody takes its name: {said:?}");
}
