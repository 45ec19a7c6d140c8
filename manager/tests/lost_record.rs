//! Volumes whose object says no more who is in sync, with the real engine and replicas: nothing of
//! them is formatted or removed, and their content comes back.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use ankole_api::objects::{Volume, VolumeSpec, VolumeStatus};
use ankole_store::StoreError;
use common::data::{SIZE, fill, holds};
use common::{World, until, with_store};
use serde_json::Value;

/// As an object that came back without its status, or a store that was edited.
fn lose_record(world: &World, volume: &str) {
    with_store(world, async |store| {
        let forget = |_: &Volume, status: &mut VolumeStatus| {
            status.record = None;
            Ok::<_, StoreError>(())
        };
        store.modify_status::<VolumeSpec, _, _>(volume, forget).await.unwrap();
    });
}

fn without_a_record(value: u8) -> World {
    let mut world = World::real();
    let size = SIZE.to_string();
    world.well(&["volume", "create", "v1", "--size", &size, "--frontend", "socket"]);
    let endpoint = world.well(&["volume", "attach", "v1"]);
    fill(endpoint.trim(), value);
    assert_eq!(world.stop().code(), Some(0));
    lose_record(&world, "v1");
    world.start();
    world
}

/// The manager took it for a new volume: it removed the directories, formatted them, and said
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
    assert!(why.contains("r3: has seen g"), "{why}");
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
