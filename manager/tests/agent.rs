//! What an agent over objects tells, and what it costs; engines and replicas are real.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use ankole_api::objects::{Condition, ReplicaSpec, Volume, VolumeSpec};
use ankole_api::volume::{Reason, Robustness, State};
use ankole_manager::agent::ProcessName;
use ankole_manager::agent::format::FormatError;
use ankole_replica::types::{Incarnation, ReplicaId};
use ankole_store::StoreError;
use rustix::process::{Pid, Signal, kill_process};

use common::cluster::Cluster;
use common::data::SIZE;
use common::mounted::Mounted;
use common::until;

impl Cluster {
    fn change(&self, name: &str, change: impl Fn(&mut Volume)) {
        let changed = self.store.modify::<VolumeSpec, _, StoreError>(name, |volume| {
            change(volume);
            Ok(())
        });
        self.runtime.block_on(changed).unwrap();
    }

    fn until_told(&self, name: &str, reason: Reason) -> Condition {
        until(&format!("{reason:?} of {name} is told"), || {
            self.volume(name)?.status.conditions.into_iter().find(|it| it.reason == reason)
        })
    }

    fn until_well(&self, name: &str) {
        until(&format!("{name} has no trouble"), || {
            self.volume(name)?.status.conditions.is_empty().then_some(())
        });
    }
}

/// It was only in the log: `ankole volume why` knew nothing of it.
#[test]
fn an_engine_that_can_not_be_started_is_told_until_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::new();
    let _node = cluster.start("n1", folder.path());
    cluster.create("v1", 1);
    let program = folder.path().join("ankole");
    cluster.change("v1", |volume| volume.spec.engine.program = Some(program.clone()));
    cluster.want("v1", None);
    let told = cluster.until_told("v1", Reason::ActionFailed);
    let why = ["start the engine", program.to_str().unwrap(), "No such file"];
    assert!(why.iter().all(|word| told.message.contains(word)), "{told:?}");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ankole"), &program).unwrap();
    cluster.until_state("v1", State::Attached);
    cluster.until_well("v1");
}

fn no_room(_: &Path, _: &str, _: &ReplicaId, _: u64) -> Result<Incarnation, FormatError> {
    Err(FormatError("no room".into()))
}

#[test]
fn a_replica_that_can_not_be_made_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::new();
    let _node = cluster.start_with("n1", folder.path(), no_room);
    cluster.make("v1", 1);
    let told = cluster.until_told("v1", Reason::ActionFailed);
    assert_eq!(told.message, "replica r1: format it: no room");
}

/// Whoever looked at the volume waited for it, each time.
#[test]
fn an_engine_that_hangs_is_told_keeps_nobody_and_is_heard_when_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::new();
    let node = cluster.start("n1", folder.path());
    cluster.create("v1", 1);
    cluster.attach("v1", None);
    let name = ProcessName::engine(&"v1".parse().unwrap());
    let engine = node.node.supervisor.find(&name).unwrap();
    let engine = Pid::from_raw(i32::try_from(engine.pid).unwrap()).unwrap();
    kill_process(engine, Signal::STOP).unwrap();
    cluster.until_told("v1", Reason::EngineUnreachable);
    cluster.until_robustness("v1", Robustness::Unknown);
    cluster.create("v2", 1);
    cluster.attach("v2", None);
    kill_process(engine, Signal::CONT).unwrap();
    cluster.until_robustness("v1", Robustness::Healthy);
    cluster.until_well("v1");
}

/// Nothing was told of it, and a thread was lost at each look.
#[test]
fn a_disk_that_hangs_is_told_and_heard_of_again() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::new();
    let _node = cluster.start("n1", folder.path());
    cluster.create("v1", 1);
    // Who opens it waits until somebody writes, as on a disk that hangs.
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let replica = cluster.runtime.block_on(cluster.store.get::<ReplicaSpec>("v1-r1")).unwrap();
    let lock = replica.spec.directory().join("lock");
    fs::rename(&lock, folder.path().join("lock")).unwrap();
    fs::hard_link(&pipe, &lock).unwrap();
    cluster.want("v1", None);
    let told = cluster.until_told("v1", Reason::ReplicaUnreadable);
    assert!(told.message.contains("the disk of replica r1 hasn't answered for 10 s"), "{told:?}");
    cluster.create("v2", 1);
    cluster.attach("v2", None);
    fs::rename(folder.path().join("lock"), &lock).unwrap();
    drop(File::options().write(true).open(&pipe).unwrap());
    cluster.until_state("v1", State::Attached);
    cluster.until_well("v1");
}

/// ext4 took all that was free before it said that it isn't enough.
#[test]
fn requires_root_a_size_for_which_there_is_no_room_takes_nothing_and_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::new(folder.path(), &["-b", "4096"]) else {
        return eprintln!("SKIPPED: mounting an ext4 image is not allowed here");
    };
    let cluster = Cluster::new();
    let _node = cluster.start("n1", &mounted.0);
    cluster.create("v1", 1);
    cluster.attach("v1", None);
    let before = mounted.used_bytes();
    cluster.change("v1", |volume| volume.spec.size_bytes = 12 << 40);
    let told = cluster.until_told("v1", Reason::CantGrow);
    let why = ["it stays at 32 MiB, though 12 TiB are wanted", "take 99 MiB at once"];
    assert!(why.iter().all(|word| told.message.contains(word)), "{told:?}");
    let next = "free some space there: it is tried again; or take the wish back: ankole volume resize v1 --size 32MiB";
    assert_eq!(told.next.as_deref(), Some(next));
    assert!(mounted.used_bytes() <= before + (1 << 20));
    cluster.change("v1", |volume| volume.spec.size_bytes = SIZE as u64);
    cluster.until_well("v1");
}
