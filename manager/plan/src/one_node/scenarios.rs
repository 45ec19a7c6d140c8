//! Situations of a volume and the plans for them, side by side in one golden file.

use std::time::Duration;

use ankole_blockdev::device::Driver;
use ankole_replica::admin::{
    Damage, EngineStatus, LayerRange, ReplicaDamage, ReplicaMode, ReplicaStatus,
};
use ankole_replica::inspect::{Evidence, Found};
use ankole_replica::record::{EngineGrant, InstanceId, Member, Record};
use ankole_replica::types::{Generation, Incarnation, LayerId};

use super::action::Action;
use super::plan::{DETACH_PATIENCE, DEVICE_PATIENCE, REPLICA_PATIENCE, plan};
use super::seen::{
    DevicesSeen, DirectorySeen, Doubt, EngineSeen, History, LastWords, ReplicaProcess, ReplicaSeen,
    Seen,
};
use super::validate::{Wanted, validate};
use ankole_api::attachment::{Ticket, TicketKind};
use ankole_api::replica::Place;
use ankole_api::volume::{Attachment, Device, Frontend, Volume, VolumeRequest, VolumeStatus};
use expect_test::expect_file;

fn detached() -> Seen {
    let request: VolumeRequest =
        serde_json::from_str(r#"{"name": "v1", "sizeBytes": 2097152, "frontend": "socket"}"#)
            .unwrap();
    let replicas: Vec<_> = ["r1", "r2", "r3"]
        .map(|replica| ReplicaSeen {
            place: Place {
                replica: replica.into(),
                directory: format!("/disk/v1-{replica}").into(),
                port: None,
            },
            directory: DirectorySeen::There,
            evidence: None,
            process: None,
            history: History::default(),
            damaged: None,
            set_aside: vec![],
        })
        .into();
    let member = |seen: &ReplicaSeen| Member {
        replica: seen.place.replica.clone(),
        incarnation: Incarnation(1),
    };
    let record = Record {
        generation: Generation::FIRST,
        engine: Some(EngineGrant { node: "n".into(), instance: InstanceId("old".into()) }),
        attach_epoch: 7,
        in_sync: replicas.iter().map(member).collect(),
        salvaged: None,
    };
    let spec = request.validate().unwrap();
    let places = replicas.iter().map(|seen| seen.place.clone()).collect();
    let size_bytes = Some(spec.size_bytes);
    let status =
        VolumeStatus { record: Some(record), size_bytes, places, ..VolumeStatus::default() };
    Seen {
        volume: Volume { name: request.name, uid: "u1".into(), spec, status },
        boot_id: "boot".into(),
        engine: None,
        engine_history: History::default(),
        engine_left: false,
        replicas,
        newest_seen: None,
        devices: DevicesSeen {
            drivers: vec![],
            own: None,
            unserved: None,
            patience: DEVICE_PATIENCE,
        },
        fresh_instance: InstanceId("fresh".into()),
    }
}

pub(super) fn wanted() -> Seen {
    let mut seen = detached();
    let ticket = Ticket { id: "user".into(), kind: TicketKind::User, read_only: false };
    seen.volume.spec.tickets.push(ticket);
    seen
}

fn attached() -> Seen {
    let mut seen = wanted();
    seen.volume.status.attachment = Some(Attachment::new("boot", None));
    for (replica, pid) in seen.replicas.iter_mut().zip(11..) {
        replica.process = Some(ReplicaProcess { pid, asked_to_end: None });
    }
    let status = EngineStatus {
        volume: "v1".into(),
        version: None,
        instance: InstanceId("old".into()),
        generation: Generation::FIRST,
        size_bytes: 2 << 20,
        endpoint: Some("nbd+unix:///?socket=/run/v1.nbd".into()),
        replicas: vec![],
        unsettled_bytes: 0,
        repaired_blocks: 0,
        unverified_bytes: 0,
        full: vec![],
        damage: Default::default(),
        waiting: vec![],
        clients: 0,
        snapshots: vec![],
        head_bytes: 0,
        head_parent: None,
        requests: Default::default(),
    };
    seen.engine = Some(EngineSeen {
        pid: 10,
        instance: InstanceId("old".into()),
        turn: 0,
        asked_to_end: None,
        refused: None,
        status: Some(Box::new(status)),
        unreachable: None,
        waits: None,
    });
    seen
}

fn with(mut seen: Seen, change: impl FnOnce(&mut Seen)) -> Seen {
    change(&mut seen);
    seen
}

fn engine(seen: &mut Seen) -> &mut EngineSeen {
    seen.engine.as_mut().expect("the scenario has one")
}

fn record(seen: &mut Seen) -> &mut Record {
    seen.volume.status.record.as_mut().expect("the scenario has one")
}

/// What the engine says of the replicas: these are in sync and can be read.
fn readable(seen: &mut Seen, replicas: &[&str]) {
    let status = engine(seen).status.as_mut().expect("it answers");
    status.replicas = replicas
        .iter()
        .map(|replica| ReplicaStatus {
            replica: (*replica).into(),
            address: String::new(),
            mode: ReplicaMode::ReadWrite,
            reason: None,
            is_older: false,
            rebuild: None,
            last_rebuild: None,
        })
        .collect();
}

fn found(replica: &ReplicaSeen, found: Found) -> Evidence {
    Evidence { directory: replica.place.directory.clone(), held: None, found }
}

/// r1's disk doesn't answer, and r3's isn't there.
fn lose_record(seen: &mut Seen) {
    seen.volume.status.record = None;
    let why = "Input/output error (os error 5)".into();
    let all = [Found::Unreadable { why }, Found::HalfFormatted, Found::Missing];
    for (replica, it) in seen.replicas.iter_mut().zip(all) {
        replica.evidence = Some(Box::new(found(replica, it)));
    }
}

fn on_ublk(seen: &mut Seen) {
    seen.volume.spec.frontend = Frontend::Ublk;
    seen.volume.status.attachment = Some(Attachment::new("boot", Some(Driver::Ublk)));
    seen.devices.own = Some(Device::Ublk(2));
}

/// As it stands in the store.
fn of_a_version_before(number: u32) -> Attachment {
    serde_json::from_str(&format!(r#"{{"bootId": "boot", "device": {{"ublk": {number}}}}}"#))
        .unwrap()
}

fn scenarios() -> Vec<(&'static str, Seen)> {
    let ended = |seconds| History {
        hold_off: Some(Duration::from_secs(seconds)),
        last_end: Some("exit status: 1".into()),
        last_words: Some(LastWords {
            error: "serve replica: it is in use by process 12".into(),
            next: Some("end that process".into()),
        }),
        doubt: None,
    };
    let doubtful = || History {
        doubt: Some(Doubt { message: "it may still run".into(), next: "end process 10".into() }),
        ..History::default()
    };
    let unwanted = |mut seen: Seen| {
        seen.volume.spec.tickets.clear();
        seen
    };
    let deleting = |mut seen: Seen| {
        seen.volume.spec.tickets.clear();
        seen.volume.spec.deleting = true;
        seen
    };
    let late = Some(DETACH_PATIENCE + Duration::from_secs(1));
    vec![
        (
            "a new volume",
            with(detached(), |s| {
                s.volume.status.record = None;
                s.volume.status.unformatted = true;
            }),
        ),
        ("the record is lost", with(wanted(), lose_record)),
        ("the record is lost, and nobody wants the volume", with(detached(), lose_record)),
        (
            "the record is lost, and nothing was ever written",
            with(detached(), |s| {
                lose_record(s);
                for replica in &mut s.replicas {
                    replica.evidence = Some(Box::new(found(replica, Found::Empty)));
                }
            }),
        ),
        ("the record is lost while the engine runs", with(attached(), lose_record)),
        ("a volume that lost its record is removed", deleting(with(detached(), lose_record))),
        ("nobody wants it", detached()),
        ("somebody wants it", wanted()),
        ("only readers want it", with(wanted(), |s| s.volume.spec.tickets[0].read_only = true)),
        (
            "auto takes kernel NBD where the node has no ublk",
            with(wanted(), |s| {
                s.volume.spec.frontend = Frontend::Auto;
                s.devices.drivers = vec![Driver::Nbd];
            }),
        ),
        (
            "auto takes tgt where the node has neither ublk nor kernel NBD",
            with(wanted(), |s| {
                s.volume.spec.frontend = Frontend::Auto;
                s.devices.drivers = vec![Driver::Tgt];
            }),
        ),
        (
            "a driver is asked for and not there any more",
            with(wanted(), |s| s.volume.spec.frontend = Frontend::Ublk),
        ),
        (
            "auto takes ublk where the node has it",
            with(wanted(), |s| {
                s.volume.spec.frontend = Frontend::Auto;
                s.devices.drivers = vec![Driver::Ublk, Driver::Nbd];
            }),
        ),
        (
            "another driver is asked for than the best",
            with(wanted(), |s| {
                s.volume.spec.frontend = Frontend::Tgt;
                s.devices.drivers = vec![Driver::Ublk, Driver::Nbd, Driver::Tgt];
            }),
        ),
        (
            "whether an engine lives can't be told",
            with(wanted(), |s| s.engine_history = doubtful()),
        ),
        (
            "whether an engine lives can't be told, and nobody wants it any more",
            with(unwanted(attached()), |s| {
                s.engine = None;
                s.engine_history = doubtful();
            }),
        ),
        (
            "whether a replica lives can't be told",
            with(wanted(), |s| s.replicas[1].history = doubtful()),
        ),
        ("attached, all is well", attached()),
        ("the engine doesn't answer yet", with(attached(), |s| engine(s).status = None)),
        (
            "the engine's socket isn't there yet",
            with(attached(), |s| {
                engine(s).status = None;
                engine(s).unreachable = Some(Duration::from_secs(1));
            }),
        ),
        (
            "the engine's socket was removed, and it has a device",
            with(attached(), |s| {
                on_ublk(s);
                engine(s).status = None;
                engine(s).unreachable = Some(Duration::from_secs(13));
            }),
        ),
        (
            "the engine's socket was removed, and its clients would lose their disk",
            with(attached(), |s| {
                engine(s).status = None;
                engine(s).unreachable = Some(Duration::from_secs(13));
            }),
        ),
        (
            "the engine waits for something",
            with(attached(), |s| {
                let status = engine(s).status.as_mut().unwrap();
                status.endpoint = None;
                status.waiting.push("replica r2 of the in-sync set doesn't answer".into());
            }),
        ),
        (
            "the engine has waited for long",
            with(attached(), |s| {
                engine(s).waits = Some(Duration::from_secs(13));
                let status = engine(s).status.as_mut().unwrap();
                status.endpoint = None;
                status.waiting.push("replica r2 of the in-sync set doesn't answer".into());
            }),
        ),
        (
            "a replica's disk is full and writes wait",
            with(attached(), |s| {
                let status = engine(s).status.as_mut().unwrap();
                status.full.push("r2".into());
            }),
        ),
        (
            "a block is rotten on all replicas, and others were repaired",
            with(attached(), |s| {
                let at = |block: u64, snapshot: Option<&str>| LayerRange {
                    layer: LayerId(1),
                    snapshot: snapshot.map(Into::into),
                    offset_bytes: block * 4096,
                    length_bytes: 4096,
                };
                let of = |replica: &str, waiting_blocks, from: Option<&str>, ago_s| ReplicaDamage {
                    replica: replica.into(),
                    waiting_blocks,
                    repaired_blocks: 3,
                    last: at(9, None),
                    repaired_from: from.map(Into::into),
                    ago_s,
                };
                engine(s).status.as_mut().unwrap().damage = Damage {
                    replicas: vec![
                        of("r1", 7, None, 0),
                        of("r2", 0, Some("r3"), 3600),
                        of("r3", 0, Some("r2"), 90_000),
                    ],
                    lost: (0..6).map(|block| at(2 * block, Some("s1"))).collect(),
                    lost_bytes: 6 * 4096,
                };
            }),
        ),
        (
            "one replica is older than it was, one was away, and both have to be rebuilt",
            with(attached(), |s| {
                readable(s, &["r1", "r2", "r3"]);
                let replicas = &mut engine(s).status.as_mut().unwrap().replicas;
                replicas[1].mode = ReplicaMode::Error;
                replicas[1].is_older = true;
                replicas[1].reason = Some("it is an older copy of itself".into());
                replicas[2].mode = ReplicaMode::WriteOnly;
            }),
        ),
        (
            "all replicas are slow at once",
            with(attached(), |s| {
                let status = engine(s).status.as_mut().unwrap();
                status.waiting.push("writes wait for r1, r2, r3: no confirmation for 2 s".into());
            }),
        ),
        (
            "no replica of an attached volume has answered for long",
            with(attached(), |s| {
                engine(s).waits = Some(Duration::from_secs(13));
            }),
        ),
        (
            "the record was rolled back",
            with(wanted(), |s| {
                let seen = Generation(9.try_into().unwrap());
                s.newest_seen = Some((seen, "r2".into()));
            }),
        ),
        (
            "the record is as new as what the replicas have seen",
            with(wanted(), |s| s.newest_seen = Some((Generation::FIRST, "r2".into()))),
        ),
        ("the volume shall be larger", with(attached(), |s| s.volume.spec.size_bytes = 4 << 20)),
        (
            "the engine has another size than is known",
            with(attached(), |s| s.volume.status.size_bytes = None),
        ),
        (
            "the wish was lowered while the engine followed it",
            with(attached(), |s| engine(s).status.as_mut().unwrap().size_bytes = 4 << 20),
        ),
        ("another engine is wanted", with(attached(), |s| s.volume.spec.engine.turn = 1)),
        (
            "it hands over to another one",
            with(attached(), |s| {
                s.volume.spec.engine.turn = 1;
                engine(s).asked_to_end = Some(Duration::from_secs(1));
            }),
        ),
        (
            "it has handed over its device",
            with(attached(), |s| {
                on_ublk(s);
                s.engine = None;
                s.engine_left = true;
            }),
        ),
        (
            "the engine died before it had a device, or somebody has taken it away",
            with(attached(), |s| {
                on_ublk(s);
                s.engine = None;
                s.devices.own = None;
            }),
        ),
        (
            "an engine of a version before died, whose device is marked with the volume's name",
            with(attached(), |s| {
                on_ublk(s);
                s.engine = None;
                s.volume.status.attachment = Some(of_a_version_before(2));
            }),
        ),
        (
            "a version before wrote down a number that is another's by now",
            with(attached(), |s| {
                on_ublk(s);
                s.engine = None;
                s.devices.own = None;
                s.volume.status.attachment = Some(of_a_version_before(2));
            }),
        ),
        ("the engine died", with(attached(), |s| s.engine = None)),
        (
            "the engine died and its ublk device waits",
            with(attached(), |s| {
                on_ublk(s);
                s.engine = None;
            }),
        ),
        (
            "no engine comes back, and soon clients have to be told",
            with(attached(), |s| {
                on_ublk(s);
                s.engine = None;
                s.engine_history = ended(4);
                s.devices.unserved = Some(Duration::from_secs(10));
            }),
        ),
        (
            "no engine comes back, and clients of the device wait",
            with(attached(), |s| {
                on_ublk(s);
                s.engine = None;
                s.engine_history = ended(4);
                s.devices.unserved = Some(Duration::from_secs(20));
            }),
        ),
        (
            "they have waited long enough",
            with(attached(), |s| {
                on_ublk(s);
                s.engine = None;
                s.engine_history = ended(4);
                s.devices.unserved = Some(DEVICE_PATIENCE);
            }),
        ),
        (
            "the engine died again and again",
            with(attached(), |s| {
                s.engine = None;
                s.engine_history = ended(4);
            }),
        ),
        (
            "the machine was rebooted",
            with(attached(), |s| {
                s.engine = None;
                s.boot_id = "next boot".into();
                s.replicas.iter_mut().for_each(|replica| replica.process = None);
            }),
        ),
        (
            "an engine that was never granted, or is fenced",
            with(attached(), |s| {
                engine(s).instance = InstanceId("stranger".into());
            }),
        ),
        ("a replica died", with(attached(), |s| s.replicas[1].process = None)),
        (
            "a replica can't start",
            with(attached(), |s| {
                s.replicas[1].process = None;
                s.replicas[1].history = ended(8);
            }),
        ),
        (
            "a replica's directory is lost while it is in sync",
            with(attached(), |s| {
                s.replicas[1].process = None;
                s.replicas[1].directory = DirectorySeen::Missing;
            }),
        ),
        (
            "a replica's directory is lost and it left the set",
            with(attached(), |s| {
                s.replicas[1].process = None;
                s.replicas[1].directory = DirectorySeen::Missing;
                s.volume.status.record.as_mut().unwrap().in_sync.remove(1);
            }),
        ),
        (
            "whether a replica's directory is there can't be told, and it left the set",
            with(attached(), |s| {
                s.replicas[1].process = None;
                let why = "Input/output error (os error 5)".into();
                s.replicas[1].directory = DirectorySeen::Unreadable(why);
                s.volume.status.record.as_mut().unwrap().in_sync.remove(1);
            }),
        ),
        (
            "a replica's files are damaged while it is in sync",
            with(attached(), |s| {
                s.replicas[1].process = None;
                s.replicas[1].history = ended(8);
                s.replicas[1].damaged = Some("chain.meta: both slots are damaged".into());
            }),
        ),
        (
            "a replica's files are damaged and it left the set",
            with(attached(), |s| {
                record(s).in_sync.remove(1);
                s.replicas[1].process = None;
                s.replicas[1].history = ended(8);
                s.replicas[1].damaged = Some("chain.meta: both slots are damaged".into());
            }),
        ),
        (
            "the only copy in sync is damaged",
            with(wanted(), |s| {
                record(s).in_sync.truncate(1);
                s.replicas[0].history = ended(8);
                s.replicas[0].damaged = Some("chain.meta: both slots are damaged".into());
            }),
        ),
        (
            "a replica is to be made anew",
            with(attached(), |s| {
                s.volume.spec.rebuild.insert("r2".into());
                readable(s, &["r1", "r2"]);
            }),
        ),
        (
            "a replica that is to be made anew is the last one",
            with(attached(), |s| {
                s.volume.spec.rebuild.insert("r2".into());
                readable(s, &["r2"]);
            }),
        ),
        (
            "a replica that is to be made anew has left the set",
            with(attached(), |s| {
                s.volume.spec.rebuild.insert("r2".into());
                record(s).in_sync.remove(1);
                s.replicas[1].process = None;
                s.replicas[2].set_aside = vec!["/disk/v1-r3.damaged-20261120-210244".into()];
            }),
        ),
        (
            "all directories are lost",
            with(wanted(), |s| {
                s.replicas
                    .iter_mut()
                    .for_each(|replica| replica.directory = DirectorySeen::Missing);
            }),
        ),
        (
            "only a replica that isn't in sync can be served",
            with(wanted(), |s| {
                s.replicas[0].history = ended(1);
                s.replicas[2].history = ended(2);
                s.volume.status.record.as_mut().unwrap().in_sync.remove(1);
            }),
        ),
        (
            "the one replica lives in the engine",
            with(wanted(), |s| {
                s.volume.spec.in_engine = true;
                s.replicas.truncate(1);
            }),
        ),
        ("the last ticket is gone", unwanted(attached())),
        (
            "the engine is detaching",
            with(unwanted(attached()), |s| {
                engine(s).asked_to_end = Some(Duration::from_secs(1));
            }),
        ),
        (
            "the engine doesn't detach",
            with(unwanted(attached()), |s| {
                engine(s).asked_to_end = late;
            }),
        ),
        (
            "it is wanted again while the engine detaches",
            with(attached(), |s| {
                engine(s).asked_to_end = Some(Duration::from_secs(1));
            }),
        ),
        (
            "it is wanted again after the engine left",
            with(attached(), |s| {
                s.engine = None;
                s.engine_left = true;
            }),
        ),
        (
            "its device is mounted: the engine has refused to detach",
            with(unwanted(attached()), |s| {
                let why = "/dev/ublkb2 is in use (mounted on /mnt): release it first";
                engine(s).refused = Some((Duration::from_millis(400), why.into()));
            }),
        ),
        (
            "it is mounted, and the engine is asked again",
            with(unwanted(attached()), |s| {
                engine(s).refused = Some((Duration::from_secs(2), "/dev/ublkb2 is in use".into()));
            }),
        ),
        ("the engine has left", with(unwanted(attached()), |s| s.engine = None)),
        (
            "the engine died before it left its ublk device",
            with(unwanted(attached()), |s| {
                on_ublk(s);
                s.engine = None;
            }),
        ),
        (
            "the replicas are ending",
            with(unwanted(attached()), |s| {
                s.engine = None;
                s.replicas[0].process = None;
                for replica in &mut s.replicas[1..] {
                    replica.process.as_mut().unwrap().asked_to_end = Some(Duration::from_secs(3));
                }
            }),
        ),
        (
            "a replica doesn't end",
            with(unwanted(attached()), |s| {
                s.engine = None;
                let since = Some(REPLICA_PATIENCE + Duration::from_secs(1));
                s.replicas[2].process.as_mut().unwrap().asked_to_end = since;
            }),
        ),
        (
            "all processes have ended",
            with(unwanted(attached()), |s| {
                s.engine = None;
                s.replicas.iter_mut().for_each(|replica| replica.process = None);
            }),
        ),
        ("deleted while processes run", with(deleting(attached()), |s| s.engine = None)),
        ("deleted", deleting(detached())),
        (
            "deleted before it was formatted",
            with(deleting(detached()), |s| {
                s.volume.status.record = None;
            }),
        ),
    ]
}

#[test]
fn each_situation_has_the_plan_that_was_agreed_on() {
    let mut text = String::new();
    for (title, seen) in scenarios() {
        let plan = plan(validate(&seen.volume, false), &seen);
        text.push_str(&format!("# {title}\n{plan}\n"));
    }
    let used = with(attached(), |s| engine(s).status.as_mut().unwrap().clients = 2);
    for (title, seen) in [("it is used", used), ("nobody uses it", attached())] {
        let plan = plan(validate(&seen.volume, true), &seen);
        text.push_str(&format!("# {title}, and the standalone ends\n{plan}\n"));
    }
    expect_file!["../../tests/golden/plans.txt"].assert_eq(&text);
}

/// What a person looks at must not change meanwhile, and nothing else of the volume either.
#[test]
fn a_volume_that_is_held_is_stopped_and_not_touched_otherwise() {
    for (title, seen) in scenarios() {
        let plan = plan(Wanted::Still, &seen);
        for action in &plan.actions {
            let ends = matches!(
                action,
                Action::KillEngine | Action::EndReplica(_) | Action::KillReplica(_)
            );
            assert!(ends, "{title}: {plan}");
        }
        let runs = seen.engine.is_some();
        assert!(!runs || plan.actions == [Action::KillEngine], "{title}: {plan}");
    }
}

/// Each grant raises the record by one: after some it would be above what the replicas have seen,
/// and one that had left the set would be read as a member.
#[test]
fn nothing_is_granted_or_formatted_by_a_record_that_was_rolled_back() {
    for (title, mut seen) in scenarios() {
        seen.newest_seen = Some((Generation(1000.try_into().unwrap()), "r1".into()));
        let plan = plan(validate(&seen.volume, false), &seen);
        let harmless =
            |action: &Action| !matches!(action, Action::Grant { .. } | Action::FormatReplica(_));
        let looked = seen.engine.is_none();
        assert!(!looked || plan.actions.iter().all(harmless), "{title}: {plan}");
    }
}

/// Rule 1, in every situation: while an engine lives, or may live, none is granted.
#[test]
fn no_engine_is_granted_beside_a_living_one() {
    for (title, seen) in scenarios() {
        for stopping in [false, true] {
            let plan = plan(validate(&seen.volume, stopping), &seen);
            let grants = |action: &Action| matches!(action, Action::Grant { .. });
            let none_lives = seen.engine.is_none() && seen.engine_history.doubt.is_none();
            assert!(
                none_lives || !plan.actions.iter().any(grants),
                "{title}, stopping {stopping}: {plan}"
            );
        }
    }
}

/// A member that is formatted is an empty copy that counts as having every acknowledged write.
#[test]
fn nothing_in_sync_is_formatted_and_nothing_in_use_is_removed() {
    for (title, seen) in scenarios() {
        let plan = plan(validate(&seen.volume, false), &seen);
        let in_sync = seen.volume.status.record.iter().flat_map(|record| &record.in_sync);
        let members: Vec<_> = in_sync.map(|member| &member.replica).collect();
        let running = seen.engine.is_some() || seen.replicas.iter().any(|r| r.process.is_some());
        for action in &plan.actions {
            match action {
                Action::FormatReplica(replica) => {
                    assert!(!members.is_empty() && !members.contains(&replica), "{title}");
                }
                Action::FormatAll => {
                    let status = &seen.volume.status;
                    assert!(status.unformatted && status.record.is_none(), "{title}");
                }
                Action::RemoveDirectories | Action::Forget => assert!(!running, "{title}"),
                _ => {}
            }
        }
    }
}
