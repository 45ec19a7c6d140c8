//! Volumes that no member can open, with the real engine and replicas: what a person is told, what
//! is refused, and what is there afterwards.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use ankole_replica::store::file::{Directory, DirectoryOptions};
use ankole_replica::store::{Store, StoreOptions};
use common::data::{fill, holds};
use common::{Said, World, alive, send, until};
use rustix::process::Signal;
use serde_json::Value;

const DRY_RUN: [&str; 4] = ["volume", "salvage", "v1", "--dry-run"];

fn attached(replicas: &str) -> (World, String) {
    let world = World::real();
    let create = ["volume", "create", "v1", "--size", "32MiB", "--frontend", "socket"];
    world.well(&[&create[..], &["--replicas", replicas]].concat());
    let endpoint = attach(&world);
    (world, endpoint)
}

fn attach(world: &World) -> String {
    world.well(&["volume", "attach", "v1"]).trim().to_owned()
}

fn directory(volume: &Value, number: usize) -> PathBuf {
    volume["replicas"][number]["directory"].as_str().unwrap().into()
}

fn until_healthy(world: &World) -> Value {
    until("the volume is healthy", || {
        let volume = world.volume("v1");
        (volume["robustness"] == "healthy").then_some(volume)
    })
}

/// The last replica misses everything from now on: it hangs, and the engine takes it out.
fn leave_behind(world: &World, endpoint: &str, number: usize, value: u8) {
    let pid = until_healthy(world)["replicas"][number]["pid"].as_u64().unwrap();
    send(pid.try_into().unwrap(), Signal::STOP);
    fill(endpoint, value);
    let in_sync = world.volume("v1")["replicas"][number]["inSync"].clone();
    assert_eq!(in_sync, false, "the write was answered without it");
}

/// As a crash of the machine's processes, all at once; the file system stays.
fn kill_everything(world: &mut World) {
    let all = world.processes();
    world.kill();
    all.iter().for_each(|pid| send(*pid, Signal::KILL));
    until("all have ended", || all.iter().all(|pid| !alive(*pid)).then_some(()));
}

fn change(directory: &Path, change: impl AsyncFnOnce(Store<Directory>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let opened = Directory::open(directory, &DirectoryOptions::default()).unwrap();
        change(Store::open(opened, StoreOptions::default()).await.unwrap()).await;
    });
}

fn fail_for_good(directory: &Path) {
    change(directory, async |store| {
        drop(store.give_up("make the data durable: Input/output error").await);
    });
}

/// Nothing tells any more that its machine has run on.
fn forget_boot(directory: &Path) {
    change(directory, async |store| store.pardon().await.unwrap());
}

fn refused(said: &Said, words: &[&str]) {
    assert_eq!(said.code, 4, "{said:?}");
    for word in words {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
}

/// Two disks die, and the third has been out of sync for a while. Opening it by itself would bring
/// the past back as if nothing had happened.
#[test]
fn a_stale_copy_is_opened_only_by_the_explicit_yes() {
    let (mut world, endpoint) = attached("3");
    fill(&endpoint, 1);
    leave_behind(&world, &endpoint, 2, 2);
    let volume = world.volume("v1");
    kill_everything(&mut world);
    (0..2).for_each(|number| fs::remove_dir_all(directory(&volume, number)).unwrap());
    world.start();

    let why = until("it is said", || {
        let why = world.well(&["volume", "why", "v1"]);
        why.contains("No replica of the in-sync set can be served").then_some(why)
    });
    assert!(why.contains("The directory of replica r1 is gone"), "{why}");
    assert!(why.contains("Next: ankole volume salvage v1 --dry-run"), "{why}");
    let shown = world.well(&["volume", "show", "v1"]);
    assert!(shown.contains("ankole volume salvage v1 --dry-run"), "{shown}");

    let evidence = world.json(&DRY_RUN);
    assert_eq!((&evidence["turn"]["turn"], &evidence["done"]), (&"noMember".into(), &false.into()));
    assert_eq!(evidence["choice"]["chosen"]["replica"], "r3");
    assert_eq!(evidence["replicas"][0]["evidence"]["found"], "missing");
    let table = world.well(&DRY_RUN);
    for words in ["no directory", "1, chosen", "may be stale:", "lost:", "--accept-stale"] {
        assert!(table.contains(words), "{words}:\n{table}");
    }
    println!("{table}");

    let salvage = |options: &[&str]| world.say(&[&["volume", "salvage", "v1"], options].concat());
    refused(&salvage(&["--yes"]), &["r3 holds may be stale", "r1 was in sync", "--accept-stale"]);
    refused(&salvage(&["--accept-stale"]), &["can't be undone", "--yes"]);
    refused(&salvage(&["--accept-stale", "--yes", "--replica", "r1"]), &["directory is gone"]);
    let done = salvage(&["--accept-stale", "--yes"]);
    assert_eq!(done.code, 0, "{done:?}");

    let endpoint = attach(&world);
    assert!(holds(&endpoint, 1), "what r3 had when it was left behind");
    let volume = until_healthy(&world);
    assert!(volume["record"]["salvaged"].is_number(), "{}", volume["record"]);
    fill(&endpoint, 3);
    assert!(holds(&endpoint, 3) && holds(&endpoint, 3));
}

/// Nobody detached it: its clients wait for answers that can't come any more, and the engine is in
/// the way of those who would choose.
#[test]
fn a_volume_that_lost_its_disks_while_it_was_used_is_salvaged_under_its_engine() {
    let (world, endpoint) = attached("3");
    fill(&endpoint, 1);
    leave_behind(&world, &endpoint, 2, 2);
    let volume = world.volume("v1");
    let engine = volume["enginePid"].clone();
    // All at once: a standalone that runs would help.
    world.signal(Signal::STOP);
    for number in [0, 1, 2] {
        let pid = volume["replicas"][number]["pid"].as_u64().unwrap();
        send(pid.try_into().unwrap(), Signal::KILL);
    }
    (0..2).for_each(|number| fs::remove_dir_all(directory(&volume, number)).unwrap());
    world.signal(Signal::CONT);

    let why = until("the next step is said", || {
        let why = world.well(&["volume", "why", "v1"]);
        why.contains("Next: ankole volume salvage v1 --dry-run").then_some(why)
    });
    assert!(why.contains("no replica that is in sync answers (r1, r2) (for "), "{why}");
    assert_eq!(world.volume("v1")["enginePid"], engine);
    refused(&world.say(&["volume", "salvage", "v1", "--yes"]), &["may be stale"]);
    assert_eq!(world.volume("v1")["enginePid"], engine, "what is refused disturbs nothing");
    world.well(&["volume", "salvage", "v1", "--yes", "--accept-stale"]);
    let endpoint = attach(&world);
    assert_ne!(world.volume("v1")["enginePid"], engine);
    assert!(holds(&endpoint, 1));
    until_healthy(&world);
}

/// Every disk refused a flush at some time. They are all there, so nothing newer is missing: the
/// copy that was in sync last is trusted again.
#[test]
fn when_all_replicas_failed_the_last_that_was_in_sync_is_taken() {
    let (world, endpoint) = attached("3");
    fill(&endpoint, 1);
    let volume = until_healthy(&world);
    world.well(&["volume", "detach", "v1"]);
    (0..3).for_each(|number| fail_for_good(&directory(&volume, number)));

    let said = world.say(&["volume", "attach", "v1", "--timeout", "2"]);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.err.contains("its disk failed"), "{}", said.err);
    let why = until("the next step is said", || {
        let why = world.well(&["volume", "why", "v1"]);
        why.contains("Next: ankole volume salvage v1 --dry-run").then_some(why)
    });
    assert!(why.contains("The engine waits") && why.contains("(for "), "{why}");

    let evidence = world.json(&DRY_RUN);
    assert_eq!(evidence["choice"]["doubts"].as_array().unwrap().len(), 0, "{evidence}");
    assert_eq!(evidence["replicas"][1]["evidence"]["state"], "failed");
    world.well(&["volume", "salvage", "v1", "--yes"]);
    let endpoint = attach(&world);
    assert!(holds(&endpoint, 1));
    // The others failed for good: a person has to replace their disks.
    let volume = world.volume("v1");
    assert_eq!(volume["robustness"], "degraded");
    let others = (0..3).filter(|number| volume["replicas"][number]["inSync"] == false);
    let pids: Vec<u64> = others
        .map(|number| {
            fs::remove_dir_all(directory(&volume, number)).unwrap();
            volume["replicas"][number]["pid"].as_u64().unwrap()
        })
        .collect();
    pids.iter().for_each(|pid| send((*pid).try_into().unwrap(), Signal::KILL));
    until_healthy(&world);
    assert!(holds(&endpoint, 1) && holds(&endpoint, 1));
}

/// Everything is 1; a copy of the store is taken; then r3 is left behind and everything is 2; then
/// the store is the copy again, which names r3 as in sync.
fn rolled_back() -> (World, String) {
    let (mut world, endpoint) = attached("3");
    fill(&endpoint, 1);
    until_healthy(&world);
    assert_eq!(world.stop().code(), Some(0));
    let store = world.data().join("ankole.redb");
    let copy = world.path().join("copy.redb");
    fs::copy(&store, &copy).unwrap();
    world.start();
    assert_eq!(attach(&world), endpoint);
    leave_behind(&world, &endpoint, 2, 2);
    kill_everything(&mut world);
    fs::copy(&copy, &store).unwrap();
    // Its own copy would show that it is older.
    fs::remove_file(world.data().join("ankole.redb.copy")).unwrap();
    world.start();
    (world, endpoint)
}

/// The store of the control plane came back from a backup: its record names r3, which has missed
/// everything since. Every engine that is started raises the record, so after some the replicas
/// would believe it, and r3 would be read.
#[test]
fn a_record_that_was_brought_back_from_a_copy_starts_no_engine() {
    let (world, _) = rolled_back();
    let said = world.say(&["volume", "attach", "v1", "--timeout", "3"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("brought back from an older copy"), "{}", said.err);
    let volume = world.volume("v1");
    assert_eq!(volume["enginePid"], Value::Null);
    assert_eq!(volume["conditions"][0]["reason"], "RecordRolledBack");
    let why = world.well(&["volume", "why", "v1"]);
    assert!(why.contains("Next: ankole volume salvage v1 --dry-run"), "{why}");

    let evidence = world.json(&DRY_RUN);
    assert_eq!(evidence["turn"]["turn"], "rolledBack");
    assert_eq!(evidence["record"], volume["record"], "no engine was granted meanwhile");
    assert_eq!(evidence["choice"]["doubts"].as_array().unwrap().len(), 0, "{evidence}");
    assert_ne!(evidence["choice"]["chosen"]["replica"], "r3");
    world.well(&["volume", "salvage", "v1", "--yes"]);
    let endpoint = attach(&world);
    assert!(holds(&endpoint, 2));
    until_healthy(&world);
    assert!(holds(&endpoint, 2) && holds(&endpoint, 2), "r3, too");
}

/// The others hold what the chosen one never saw, and no stamp of it remembers their regions: what
/// was written "since" they were in sync isn't what they differ in.
#[test]
fn after_the_choice_of_an_older_copy_the_newer_ones_are_rebuilt_in_full() {
    let (world, _) = rolled_back();
    let older = ["volume", "salvage", "v1", "--replica", "r3", "--yes"];
    refused(&world.say(&older), &["r3 holds may be stale", "in sync later than r3"]);
    world.well(&[&older[..], &["--accept-stale"]].concat());
    let endpoint = attach(&world);
    assert!(holds(&endpoint, 1));
    let volume = until_healthy(&world);
    world.well(&["volume", "detach", "v1"]);
    for number in 0..3 {
        let disk = directory(&volume, number);
        let report = world.json(&["replica", "verify", disk.to_str().unwrap()]);
        assert_eq!((&report["blocksChecked"], &report["blocksBad"]), (&8192.into(), &0.into()));
        let data = fs::read(data_of(&disk)).unwrap();
        assert!(data.iter().all(|byte| *byte == 1), "r{}", number + 1);
    }
}

/// The data of the one layer.
fn data_of(directory: &Path) -> PathBuf {
    let mut files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|end| end == "data")).unwrap()
}

#[test]
fn a_volume_that_can_be_opened_is_not_salvaged() {
    let (mut world, endpoint) = attached("3");
    fill(&endpoint, 1);
    let before = until_healthy(&world);
    let salvage = ["volume", "salvage", "v1", "--accept-stale", "--yes"];
    refused(&world.say(&salvage), &["v1 is attached", "nothing to salvage"]);
    assert_eq!(world.volume("v1")["record"], before["record"], "it wasn't touched");
    assert!(world.well(&DRY_RUN).contains("not now:"));
    world.well(&["volume", "detach", "v1"]);
    refused(&world.say(&salvage), &["can be opened by what is in sync"]);
    // One good member is enough, however much is lost.
    kill_everything(&mut world);
    (1..3).for_each(|number| fs::remove_dir_all(directory(&before, number)).unwrap());
    world.start();
    refused(&world.say(&salvage), &["can be opened by what is in sync (r1)"]);
    assert_eq!(world.say(&["volume", "salvage", "nope", "--dry-run"]).code, 3);
    assert!(holds(&attach(&world), 1));
}

/// r1 lost power and r2's disk isn't there; a client of the killed engine may have been told of
/// writes that only r2 still has. The engine waits for r2, and goes on by itself when it is back.
#[test]
fn an_open_that_waits_for_a_missing_disk_says_so_and_goes_on_when_it_is_back() {
    let (mut world, endpoint) = attached("2");
    fill(&endpoint, 1);
    let volume = until_healthy(&world);
    kill_everything(&mut world);
    forget_boot(&directory(&volume, 0));
    let (disk, elsewhere) = (directory(&volume, 1), world.path().join("unmounted"));
    fs::rename(&disk, &elsewhere).unwrap();
    world.start();

    let why = until("the next step is said", || {
        let why = world.well(&["volume", "why", "v1"]);
        why.contains("Next: ankole volume salvage v1 --dry-run").then_some(why)
    });
    assert!(why.contains("replicas that may hold acknowledged writes must answer: r2"), "{why}");
    assert!(why.contains("Next: if its disk isn't mounted, mount it"), "{why}");
    let shown = world.well(&["volume", "show", "v1"]);
    assert!(shown.contains("may have lost acknowledged writes"), "{shown}");
    let evidence = world.json(&DRY_RUN);
    assert_eq!(evidence["turn"]["missing"], serde_json::json!(["r2"]), "{evidence}");
    refused(&world.say(&["volume", "salvage", "v1", "--yes"]), &["r1 holds may be stale", "r2"]);

    fs::rename(&elsewhere, &disk).unwrap();
    assert!(holds(&attach(&world), 1));
}

#[test]
fn a_directory_is_inspected_and_verified_without_a_server() {
    let (world, endpoint) = attached("1");
    fill(&endpoint, 1);
    let path = directory(&world.volume("v1"), 0);
    let path = path.to_str().unwrap();
    let running = world.well(&["replica", "inspect", path]);
    assert!(running.contains("in use:") && running.contains("member"), "{running}");
    refused(&world.say(&["replica", "verify", path]), &["is in use by process"]);
    world.well(&["volume", "detach", "v1"]);
    let evidence = world.json(&["replica", "inspect", path]);
    assert_eq!((&evidence["found"], &evidence["volume"]), (&"replica".into(), &"v1".into()));
    assert_eq!(
        (&evidence["held"], &evidence["content"]["continuous"]),
        (&Value::Null, &true.into())
    );
    let report = world.json(&["replica", "verify", path]);
    assert_eq!((&report["blocksChecked"], &report["blocksBad"]), (&8192.into(), &0.into()));

    let data = Path::new(path).join("layer-00000001.data");
    let mut bytes = fs::read(&data).unwrap();
    bytes[4096 * 5] ^= 1;
    fs::write(&data, bytes).unwrap();
    let said = world.say(&["replica", "verify", path]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("block 5 of layer 1"), "{}", said.out);
    assert_eq!(world.say(&["replica", "inspect", "/nowhere/r1"]).code, 3);
    assert_eq!(world.say(&["replica", "verify", "/nowhere/r1"]).code, 3);
}
