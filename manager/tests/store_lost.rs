//! The store of a standalone is gone or damaged, with the real engine and replicas: it is said, and
//! every volume comes back with its content.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::data::{SIZE, fill, holds};
use common::{World, alive, send, until};
use rustix::process::Signal;

fn store(world: &World) -> PathBuf {
    world.data().join("ankole.redb")
}

fn copy(world: &World) -> PathBuf {
    world.data().join("ankole.redb.copy")
}

fn attach(world: &World, volume: &str) -> String {
    world.well(&["volume", "attach", volume]).trim().to_owned()
}

/// With volumes v1, v2, … that hold their number.
fn with_volumes(count: u8) -> World {
    let world = World::real();
    let size = SIZE.to_string();
    for number in 1..=count {
        let name = format!("v{number}");
        world.well(&["volume", "create", &name, "--size", &size, "--frontend", "socket"]);
        fill(&attach(&world, &name), number);
    }
    world
}

/// A start without the store made an empty one, without a word.
#[test]
fn a_store_that_is_gone_is_said_and_made_from_its_copy() {
    let mut world = with_volumes(2);
    assert_eq!(world.stop().code(), Some(0));
    fs::remove_file(store(&world)).unwrap();
    let said = world.is_refused();
    for words in ["ankole.redb is missing", "6 directories of replicas", "--recover-store copy"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!store(&world).exists(), "nothing was made");
    world.start_with(&["--recover-store", "copy"]);
    for (volume, value) in [("v1", 1), ("v2", 2)] {
        assert!(holds(&attach(&world, volume), value));
        until("its record was good", || {
            (world.volume(volume)["robustness"] == "healthy").then_some(())
        });
    }
    assert_eq!(world.stop().code(), Some(0));
    world.start();
}

/// The copy names r3 as in sync; r3 has missed everything since. A record that a replica knows to be
/// old, or that can't be compared with all of them, isn't taken.
#[test]
fn a_copy_that_is_older_than_its_replicas_is_not_believed() {
    let mut world = with_volumes(1);
    let endpoint = attach(&world, "v1");
    let older = until("the copy has the volume with its engine", || {
        let text = fs::read_to_string(copy(&world)).ok()?;
        text.contains("instance").then_some(text)
    });
    let volume = world.volume("v1");
    send(volume["replicas"][2]["pid"].as_u64().unwrap().try_into().unwrap(), Signal::STOP);
    fill(&endpoint, 2);
    assert_eq!(world.volume("v1")["replicas"][2]["inSync"], false);
    let all = world.processes();
    world.kill();
    all.iter().for_each(|pid| send(*pid, Signal::KILL));
    until("all have ended", || all.iter().all(|pid| !alive(*pid)).then_some(()));
    fs::write(copy(&world), older).unwrap();
    fs::write(store(&world), "").unwrap();

    assert!(world.is_refused().contains("ankole.redb has no bytes"));
    world.start_with(&["--recover-store", "copy"]);
    let why = until("it is said", || {
        let why = world.well(&["volume", "why", "v1"]);
        why.contains("The record of who is in sync is lost").then_some(why)
    });
    assert!(why.contains("ankole volume salvage v1 --dry-run"), "{why}");
    world.well(&["volume", "salvage", "v1", "--yes"]);
    assert!(holds(&attach(&world, "v1"), 2));
}

/// Neither the store nor its copy is left, and nobody knew a way back.
#[test]
fn ten_volumes_without_a_store_are_recovered_from_their_directories() {
    let mut world = with_volumes(10);
    world.well(&["snapshot", "create", "v7", "before"]);
    assert_eq!(world.stop().code(), Some(0));
    fs::remove_file(store(&world)).unwrap();
    fs::write(copy(&world), "").unwrap();
    let said = world.is_refused();
    assert!(said.contains("30 directories of replicas"), "{said}");
    assert!(said.contains("--recover-store empty"), "{said}");
    world.start_with(&["--recover-store", "empty"]);

    assert!(world.log().contains("30 directories of replicas"), "{}", world.log());
    let listed = world.say(&["volume", "ls", "-o", "json"]);
    assert_eq!(listed.out.trim(), "[]");
    assert!(listed.err.contains("no volume knows them; ankole volume recover"), "{}", listed.err);
    let check = world.say(&["check"]);
    assert!(check.out.contains("orphans") && check.code == 6, "{check:?}");
    let said = world.say(&["volume", "create", "v1", "--size", "2MiB"]);
    assert!(said.err.contains("ankole volume recover v1 --dry-run"), "{}", said.err);

    let all = world.json(&["volume", "recover", "--dry-run"]);
    assert_eq!(all.as_array().unwrap().len(), 10);
    let table = world.well(&["volume", "recover", "v7", "--dry-run"]);
    assert!(table.contains("ankole volume recover v7 --replica r1"), "{table}");
    assert_eq!(world.say(&["volume", "recover"]).code, 4, "nobody can be asked");
    assert_eq!(world.json(&["volume", "ls"]).as_array().unwrap().len(), 0, "nothing was changed");
    let again = world.say(&["volume", "recover", "v1", "--yes", "--frontend", "socket"]);
    assert_eq!(again.code, 0, "{again:?}");
    world.well(&["volume", "recover", "--yes", "--frontend", "socket"]);
    assert_eq!(world.say(&["volume", "recover", "v1", "--yes"]).code, 3, "it is there");

    for number in 1..=10 {
        let name = format!("v{number}");
        assert!(holds(&attach(&world, &name), number), "{name}");
        until("the others are rebuilt", || {
            (world.volume(&name)["robustness"] == "healthy").then_some(())
        });
    }
    let snapshots = world.well(&["snapshot", "ls", "v7"]);
    assert!(snapshots.contains("before"), "{snapshots}");
    assert!(!world.say(&["volume", "ls"]).err.contains("recover"));
}

/// r3 missed the last writes and is all that is left: it isn't taken for the volume in silence.
#[test]
fn directories_that_may_be_stale_are_recovered_only_by_the_explicit_yes() {
    let mut world = with_volumes(1);
    let endpoint = attach(&world, "v1");
    let volume = until("all are in sync", || {
        let volume = world.volume("v1");
        (volume["robustness"] == "healthy").then_some(volume)
    });
    send(volume["replicas"][2]["pid"].as_u64().unwrap().try_into().unwrap(), Signal::STOP);
    fill(&endpoint, 2);
    let all = world.processes();
    world.kill();
    all.iter().for_each(|pid| send(*pid, Signal::KILL));
    until("all have ended", || all.iter().all(|pid| !alive(*pid)).then_some(()));
    for number in 0..2 {
        fs::remove_dir_all(volume["replicas"][number]["directory"].as_str().unwrap()).unwrap();
    }
    fs::remove_file(store(&world)).unwrap();
    fs::remove_file(copy(&world)).unwrap();
    world.start_with(&["--recover-store", "empty"]);

    let said = world.say(&["volume", "recover", "--yes"]);
    assert!(said.out.contains("may be stale"), "{said:?}");
    let said = world.say(&["volume", "recover", "v1", "--yes"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("r1 was in sync with it"), "{}", said.err);
    world.well(&["volume", "recover", "v1", "--yes", "--accept-stale", "--frontend", "socket"]);
    assert!(holds(&attach(&world, "v1"), 1));
    let volume = until("the members that weren't found are made anew", || {
        let volume = world.volume("v1");
        (volume["robustness"] == "healthy").then_some(volume)
    });
    assert_eq!(volume["replicas"].as_array().unwrap().len(), 3);
}
