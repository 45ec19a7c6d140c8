//! Volumes whose object says no more who is in sync, with the real engine and replicas: nothing of
//! them is formatted or removed, and their content comes back.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::path::Path;

use ankole_manager::store::{EmbeddedStore, Kind, Store};
use common::data::{SIZE, fill, holds};
use common::{World, until};
use serde_json::Value;

/// As an object that came back without its status, or a store that was edited.
fn lose_record(store: &Path, volume: &str) {
    let store = EmbeddedStore::open(store).unwrap();
    let seen = store.get(Kind::Volume, volume).unwrap().unwrap();
    let mut object: Value = serde_json::from_slice(&seen.json).unwrap();
    object["status"]["record"] = Value::Null;
    store.update(Kind::Volume, volume, seen.version, object.to_string().as_bytes()).unwrap();
}

fn without_a_record(value: u8) -> World {
    let mut world = World::real();
    let size = SIZE.to_string();
    world.well(&["volume", "create", "v1", "--size", &size, "--frontend", "socket"]);
    let endpoint = world.well(&["volume", "attach", "v1"]);
    fill(endpoint.trim(), value);
    assert_eq!(world.stop().code(), Some(0));
    lose_record(&world.data().join("ankole.redb"), "v1");
    world.start();
    world
}

/// The controller took it for a new volume: it removed the directories, formatted them, and said
/// `attached healthy 3/3`.
#[test]
fn a_volume_without_its_record_keeps_its_content_and_is_salvaged() {
    let world = without_a_record(7);
    let volume = until("it is said", || {
        let volume = world.volume("v1");
        (volume["conditions"][0]["reason"] == "RecordLost").then_some(volume)
    });
    assert_eq!(volume["enginePid"], Value::Null);
    let why = world.well(&["volume", "why", "v1"]);
    assert!(why.contains("r3: a copy, last in sync in g"), "{why}");
    assert!(why.contains("Next: ankole volume salvage v1 --dry-run"), "{why}");
    let said = world.say(&["volume", "attach", "v1"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("has lost its record"), "{}", said.err);

    let evidence = world.json(&["volume", "salvage", "v1", "--dry-run"]);
    assert_eq!(evidence["turn"]["turn"], "recordLost");
    assert_eq!(evidence["choice"]["doubts"].as_array().unwrap().len(), 0, "{evidence}");
    world.well(&["volume", "salvage", "v1", "--yes"]);
    let endpoint = world.well(&["volume", "attach", "v1"]);
    assert!(holds(endpoint.trim(), 7));
    until("the others are rebuilt", || {
        (world.volume("v1")["robustness"] == "healthy").then_some(())
    });
    assert!(holds(endpoint.trim(), 7));
}

/// Nobody knows what its directories are worth: whoever removes the volume may be mistaken.
#[test]
fn a_volume_without_its_record_is_removed_and_its_data_stays() {
    let world = without_a_record(7);
    let directories = world.volume("v1")["replicas"].clone();
    world.well(&["volume", "detach", "v1"]);
    world.well(&["volume", "rm", "v1", "--yes"]);
    for replica in directories.as_array().unwrap() {
        let directory = replica["directory"].as_str().unwrap();
        let evidence = world.json(&["replica", "inspect", directory]);
        assert_eq!(evidence["state"], "member", "{evidence}");
    }
    world.well(&["volume", "recover", "v1", "--yes", "--frontend", "socket"]);
    let endpoint = world.well(&["volume", "attach", "v1"]);
    assert!(holds(endpoint.trim(), 7));
}
