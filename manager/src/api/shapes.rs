//! The JSON that programs rely on, as golden files. A change here is a change of the contract.

use std::collections::BTreeMap;

use ankole_replica::admin::{Progress, SnapshotStatus};
use ankole_replica::arbiter::{EngineGrant, InstanceId, Member, Record};
use ankole_replica::types::{Generation, Incarnation, LayerId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ApiError;
use super::attachment::{Ticket, TicketKind};
use super::backup::{BackupState, BackupView, Job, JobProgress, JobState};
use super::replica::{Mode, ReplicaView};
use super::snapshot::Chain;
use super::volume::{Condition, Frontend, Reason, Robustness, State, VolumeView};
use crate::golden::assert_golden;

fn assert_shape<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    name: &str,
    value: &T,
) {
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    assert_golden(name, &text);
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
        reason: None,
        rebuild: None,
    };
    let mut rebuilt = replica("r2", Mode::WriteOnly, false);
    rebuilt.reason = Some("it was away".into());
    rebuilt.rebuild =
        Some(Progress {
            done_bytes: 1 << 20,
            total_bytes: 1 << 30,
            bytes_per_second: 1 << 20,
            ..Progress::default()
        });
    VolumeView {
        name: "v1".parse().unwrap(),
        uid: "0123456789abcdef0123456789abcdef".into(),
        state: State::Attached,
        robustness: Robustness::Degraded,
        size_bytes: 1 << 30,
        frontend: Frontend::Socket,
        endpoint: Some("nbd+unix:///?socket=/data/run/v1.nbd".into()),
        node: Some("localhost".into()),
        engine_pid: Some(11),
        clients: 1,
        tickets: vec![Ticket { id: "user".into(), kind: TicketKind::User, read_only: false }],
        replicas: vec![replica("r1", Mode::ReadWrite, true), rebuilt],
        unsettled_bytes: 2 << 20,
        waiting: vec!["the arbiter doesn't answer".into()],
        conditions: vec![Condition {
            reason: Reason::ReplicaEnded,
            message: "replica r2 ended (exit status: 1); it is started again in 4 s".into(),
        }],
        record: Some(Record {
            generation: Generation::FIRST,
            engine: Some(EngineGrant {
                node: "localhost".into(),
                instance: InstanceId("0123456789abcdef".into()),
            }),
            attach_epoch: 1,
            in_sync: vec![Member { replica: "r1".into(), incarnation: Incarnation(1) }],
        }),
    }
}

#[test]
fn a_volume() {
    assert_shape("volume.json", &volume());
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
    assert_shape("chain.json", &chain);
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
    };
    let progress = JobProgress { done_bytes: 2 << 20, total_bytes: 2 << 20 };
    let state = JobState::Done { backup };
    let title = "back up volume v1 to file:///backups".into();
    assert_shape("job.json", &Job { id: 1, title, progress, state });
}

#[test]
fn an_error() {
    let error = ApiError::not_found("volume v1 doesn't exist").next("ankole volume ls");
    assert_shape("error.json", &error);
}

#[test]
fn what_a_volume_waits_for_is_said_in_sentences() {
    assert_golden("why.txt", &(super::why::explain(&volume()).join("\n") + "\n"));
}
