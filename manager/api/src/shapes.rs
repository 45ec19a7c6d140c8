//! The JSON that programs rely on, as golden files. A change here is a change of the contract.

use std::collections::BTreeMap;

use ankole_replica::admin::{Damage, LayerRange, Progress, ReplicaDamage, SnapshotStatus};
use ankole_replica::inspect::{Content, Evidence, Found, Holder, ReplicaEvidence};
use ankole_replica::record::{EngineGrant, InstanceId, Member, Record};
use ankole_replica::salvage::{Exhibit, choose, turn};
use ankole_replica::store::ReplicaState;
use ankole_replica::types::{Fence, Generation, Incarnation, LayerId, Session};
use expect_test::{ExpectFile, expect_file};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ApiError;
use super::attachment::{Ticket, TicketKind};
use super::backup::{BackupState, BackupView, Job, JobProgress, JobState};
use super::replica::{Mode, ReplicaView, seconds_left};
use super::salvage::SalvageView;
use super::snapshot::Chain;
use super::volume::{Condition, Frontend, Reason, Robustness, State, VolumeView};

/// When the golden files are looked at.
const NOW: u64 = 1_800_000_000;

fn assert_shape<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    golden: ExpectFile,
    value: &T,
) {
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    golden.assert_eq(&text);
    assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value);
}

pub(super) fn volume() -> VolumeView {
    let replica = |replica: &str, mode, in_sync| ReplicaView {
        volume: "v1".parse().unwrap(),
        replica: replica.into(),
        mode,
        in_sync,
        node: "localhost".into(),
        directory: format!("/data/disks/default/replicas/v1-{replica}").into(),
        address: Some(format!("unix:/data/run/v1.{replica}")),
        pid: Some(12),
        used_bytes: Some(3 << 20),
        reason: None,
        rebuild: None,
        rebuild_seconds_left: None,
    };
    let mut rebuilt = replica("r2", Mode::WriteOnly, false);
    rebuilt.reason = Some("it was away".into());
    rebuilt.rebuild = Some(Progress {
        done_bytes: 1 << 20,
        total_bytes: 1 << 30,
        bytes_per_second: 1 << 20,
        ..Progress::default()
    });
    rebuilt.rebuild_seconds_left = rebuilt.rebuild.as_ref().and_then(seconds_left);
    VolumeView {
        name: "v1".parse().unwrap(),
        uid: "0123456789abcdef0123456789abcdef".into(),
        state: State::Attached,
        robustness: Robustness::Degraded,
        size_bytes: 1 << 30,
        wanted_bytes: Some(2 << 30),
        frontend: Frontend::Socket,
        better_frontends: Vec::new(),
        endpoint: Some("nbd+unix:///?socket=/data/run/v1.nbd".into()),
        node: Some("localhost".into()),
        engine_pid: Some(11),
        engine_version: Some("1.2.3".into()),
        clients: 1,
        tickets: vec![Ticket { id: "user".into(), kind: TicketKind::User, read_only: false }],
        replicas: vec![replica("r1", Mode::ReadWrite, true), rebuilt],
        unsettled_bytes: 2 << 20,
        damage: Damage {
            replicas: vec![ReplicaDamage {
                replica: "r1".into(),
                waiting_blocks: 0,
                repaired_blocks: 1,
                last: LayerRange {
                    layer: LayerId(1),
                    snapshot: Some("s1".into()),
                    offset_bytes: 36864,
                    length_bytes: 4096,
                },
                repaired_from: Some("r3".into()),
                ago_s: 60,
            }],
            lost: vec![],
            lost_bytes: 0,
        },
        unverified_bytes: 0,
        waiting: vec!["the arbiter doesn't answer".into()],
        waiting_since_unix_s: Some(NOW - 42),
        conditions: vec![Condition {
            since_unix_s: Some(NOW - 3 * 3600),
            ..Condition::new(
                Reason::ReplicaEnded,
                "replica r2 ended (exit status: 1); it is started again in 4 s",
            )
            .of(&"r2".into())
            .next("look at its log")
        }],
        record: Some(Record {
            generation: Generation::FIRST,
            engine: Some(EngineGrant {
                node: "localhost".into(),
                instance: InstanceId("0123456789abcdef".into()),
            }),
            attach_epoch: 1,
            in_sync: vec![Member { replica: "r1".into(), incarnation: Incarnation(1) }],
            salvaged: None,
        }),
    }
}

#[test]
fn a_volume() {
    assert_shape(expect_file!["../tests/golden/volume.json"], &volume());
}

#[test]
fn a_chain() {
    let snapshot = SnapshotStatus {
        name: "s1".into(),
        layer: LayerId(1),
        parent: None,
        created_unix_s: 1_800_000_000,
        labels: BTreeMap::new(),
        data_bytes: 4096,
        size_bytes: 1 << 30,
    };
    let chain = Chain {
        volume: "v1".parse().unwrap(),
        snapshots: vec![snapshot],
        head_bytes: 0,
        head_parent: Some("s1".into()),
    };
    assert_shape(expect_file!["../tests/golden/chain.json"], &chain);
}

#[test]
fn a_job_at_its_end() {
    let backup = BackupView {
        name: "backup-1".into(),
        volume: "v1".into(),
        snapshot: "s1".into(),
        state: BackupState::Complete,
        url: "file:///backups?backup=backup-1&volume=v1".into(),
        created: "2027-01-15T08:00:00Z".into(),
        size_bytes: 1 << 30,
        new_bytes: 2 << 20,
        labels: BTreeMap::new(),
        backing_image: String::new(),
        problem: String::new(),
    };
    let progress = JobProgress { done_bytes: 2 << 20, total_bytes: 2 << 20 };
    let state = JobState::Done { backup };
    let title = "back up volume v1 to file:///backups".into();
    assert_shape(
        expect_file!["../tests/golden/job.json"],
        &Job { id: 1, title, progress, waiting: vec![], state },
    );
}

#[test]
fn an_error() {
    let error = ApiError::not_found("volume v1 doesn't exist").next("ankole volume ls");
    assert_shape(expect_file!["../tests/golden/error.json"], &error);
}

/// r1 failed last; r2 left before; r3's disk isn't there.
fn salvage() -> SalvageView {
    let number = |number: u64| Generation(number.try_into().unwrap());
    let one = |replica: &str, incarnation| Member {
        replica: replica.into(),
        incarnation: Incarnation(incarnation),
    };
    let copy = |replica: &str, incarnation, synced: u64, state| ReplicaEvidence {
        volume: "v1".into(),
        replica: replica.into(),
        incarnation: Incarnation(incarnation),
        fence: Some(Fence { generation: number(synced), session: Session(1) }),
        state,
        failure: (state == ReplicaState::Failed).then(|| "make the data durable: EIO".into()),
        synced_gen: Some(number(synced)),
        synced_set: vec![one("r1", 1), one("r3", 3)],
        epoch: Default::default(),
        content: Some(Content {
            continuous: state != ReplicaState::Failed,
            continuity: "the machine lost power".into(),
            partial: false,
            marked_regions: 3,
            unverified_blocks: 4,
            size_bytes: 1 << 30,
            data_bytes: 1 << 20,
            layers: 2,
            snapshots: vec!["s1".into()],
        }),
        problems: vec!["2 pages of its index are damaged".into()],
    };
    let exhibit = |replica: &str, held, found| Exhibit {
        replica: replica.into(),
        evidence: Evidence {
            directory: format!("/data/disks/default/replicas/v1-{replica}").into(),
            held,
            found,
        },
    };
    let r1 = Found::Replica(Box::new(copy("r1", 1, 9, ReplicaState::Failed)));
    let r2 = Found::Replica(Box::new(copy("r2", 2, 5, ReplicaState::Member)));
    let replicas = vec![
        exhibit("r1", Some(Holder { pid: Some(12) }), r1),
        exhibit("r2", None, r2),
        exhibit("r3", None, Found::Missing),
    ];
    let record =
        Record { generation: number(9), ..Record::first(vec![one("r1", 1), one("r3", 3)]) };
    let choice = choose("v1", &replicas, Some(&record), None);
    let turn = turn("v1", &replicas, Some(&record), true);
    let volume = "v1".parse().unwrap();
    SalvageView { volume, record: Some(record), replicas, turn, refused: None, choice, done: false }
}

#[test]
fn the_evidence_of_a_salvage() {
    assert_shape(expect_file!["../tests/golden/salvage.json"], &salvage());
}

#[test]
fn what_a_volume_waits_for_is_said_in_sentences() {
    let why = super::why::explain(&volume(), NOW).join("\n") + "\n";
    expect_file!["../tests/golden/why.txt"].assert_eq(&why);
}
