//! Engines.

use std::fmt::Write as _;
use std::time::Duration;

use ankole_api::objects::engine::{EnginePhase, EngineWanted};
use ankole_api::objects::{Engine, Volume};
use ankole_api::volume::{Attachment, Device, Frontend};
use ankole_blockdev::device::Driver;
use ankole_replica::admin::{
    Damage, EngineStatus, LayerRange, ReplicaAddress, ReplicaDamage, ReplicaMode, ReplicaStatus,
    RequestCounts,
};
use ankole_replica::record::{EngineGrant, InstanceId, Member, Record};
use ankole_replica::types::{Generation, Incarnation, LayerId};
use expect_test::expect_file;

use super::{doubtful, ended};
use crate::node::engine::{self, DETACH_PATIENCE, DEVICE_PATIENCE, EngineAction, EnginePlan};
use crate::node::facts::{Devices, EngineFacts, EngineProcess, History};

const REPLICAS: [&str; 3] = ["r1", "r2", "r3"];

/// Named for this node, with nothing of it running.
pub(super) fn wanted() -> EngineFacts {
    let spec = r#"{"sizeBytes": 2097152, "replicas": 3, "frontend": "socket"}"#;
    let mut volume = Volume::new("v1".parse().unwrap(), serde_json::from_str(spec).unwrap());
    volume.metadata.uid = "u1".into();
    let member = |id: &str| Member { replica: id.into(), incarnation: Incarnation(1) };
    volume.status.record = Some(Record {
        generation: Generation::FIRST,
        engine: Some(EngineGrant { node: "n1".into(), instance: InstanceId("old".into()) }),
        attach_epoch: 7,
        in_sync: REPLICAS.map(member).into(),
        salvaged: None,
    });
    volume.status.node = Some("n1".into());
    let address =
        |id: &str| ReplicaAddress { replica: id.into(), address: format!("unix:/run/{id}") };
    let spec = ankole_api::objects::EngineSpec {
        volume_uid: "u1".into(),
        node: "n1".into(),
        wanted: EngineWanted::Attached { read_only: false },
        frontend: Frontend::Socket,
        size_bytes: 2 << 20,
        replicas: REPLICAS.map(address).into(),
        in_engine: false,
        program: None,
        turn: 0,
    };
    EngineFacts {
        engine: Some(Engine::new("v1".parse().unwrap(), spec).owned_by(&volume)),
        volume: Some(volume),
        node: "n1".into(),
        boot_id: "boot".into(),
        process: None,
        history: History::default(),
        left: false,
        devices: Devices { drivers: vec![], own: None, unserved: None, patience: DEVICE_PATIENCE },
        newest: None,
        fresh_instance: InstanceId("fresh".into()),
        is_stopping: false,
    }
}

fn attached() -> EngineFacts {
    let mut facts = wanted();
    volume(&mut facts).status.attachment = Some(Attachment::new("boot", None));
    let replica = |it: &ReplicaAddress| ReplicaStatus {
        replica: it.replica.clone(),
        address: it.address.clone(),
        mode: ReplicaMode::ReadWrite,
        reason: None,
        is_older: false,
        rebuild: None,
        last_rebuild: None,
    };
    let replicas = facts.engine.as_ref().unwrap().spec.replicas.iter().map(replica).collect();
    let status = EngineStatus {
        volume: "v1".into(),
        version: None,
        instance: InstanceId("old".into()),
        generation: Generation::FIRST,
        size_bytes: 2 << 20,
        endpoint: Some("nbd+unix:///?socket=/run/v1.nbd".into()),
        replicas,
        unsettled_bytes: 0,
        repaired_blocks: 0,
        unverified_bytes: 0,
        full: vec![],
        damage: Damage::default(),
        waiting: vec![],
        clients: 0,
        snapshots: vec![],
        head_bytes: 0,
        head_parent: None,
        requests: RequestCounts::default(),
    };
    facts.process = Some(EngineProcess {
        pid: 10,
        instance: InstanceId("old".into()),
        turn: 0,
        asked_to_end: None,
        refused: None,
        status: Some(Box::new(status)),
        silent: None,
        unreachable: None,
        waits: None,
        is_watched: false,
    });
    facts
}

fn with(mut facts: EngineFacts, change: impl FnOnce(&mut EngineFacts)) -> EngineFacts {
    change(&mut facts);
    facts
}

fn volume(facts: &mut EngineFacts) -> &mut Volume {
    facts.volume.as_mut().expect("the situation has one")
}

fn object(facts: &mut EngineFacts) -> &mut ankole_api::objects::EngineSpec {
    &mut facts.engine.as_mut().expect("the situation has one").spec
}

fn process(facts: &mut EngineFacts) -> &mut EngineProcess {
    facts.process.as_mut().expect("the situation has one")
}

fn status(facts: &mut EngineFacts) -> &mut EngineStatus {
    process(facts).status.as_mut().expect("it answers")
}

fn on_ublk(facts: &mut EngineFacts) {
    object(facts).frontend = Frontend::Ublk;
    volume(facts).status.attachment = Some(Attachment::new("boot", Some(Driver::Ublk)));
    facts.devices.own = Some(Device::Ublk(2));
}

fn unwanted(facts: &mut EngineFacts) {
    object(facts).wanted = EngineWanted::Detached;
}

fn elsewhere(facts: &mut EngineFacts) {
    object(facts).node = "n2".into();
    volume(facts).status.node = Some("n2".into());
}

fn auto(drivers: &[Driver]) -> EngineFacts {
    with(wanted(), |it| {
        object(it).frontend = Frontend::Auto;
        it.devices.drivers = drivers.into();
    })
}

fn engines() -> Vec<(&'static str, EngineFacts)> {
    let late = Some(DETACH_PATIENCE + Duration::from_secs(1));
    let long = Some(Duration::from_secs(13));
    let at = |block: u64, snapshot: Option<&str>| LayerRange {
        layer: LayerId(1),
        snapshot: snapshot.map(Into::into),
        offset_bytes: block * 4096,
        length_bytes: 4096,
    };
    let damaged = |id: &str, waiting_blocks, from: Option<&str>, ago_s| ReplicaDamage {
        replica: id.into(),
        waiting_blocks,
        repaired_blocks: 3,
        last: at(9, None),
        repaired_from: from.map(Into::into),
        ago_s,
    };
    vec![
        ("it is wanted", wanted()),
        (
            "only readers want it",
            with(wanted(), |it| {
                object(it).wanted = EngineWanted::Attached { read_only: true };
            }),
        ),
        ("auto takes ublk where the node has it", auto(&[Driver::Ublk, Driver::Nbd])),
        ("auto takes kernel NBD where the node has no ublk", auto(&[Driver::Nbd])),
        ("auto takes tgt where the node has nothing else", auto(&[Driver::Tgt])),
        ("auto takes the socket where the node has no driver", auto(&[])),
        (
            "a driver is asked for and not there any more",
            with(wanted(), |it| {
                object(it).frontend = Frontend::Ublk;
            }),
        ),
        (
            "it is wanted here, and the volume names another node",
            with(wanted(), |it| {
                volume(it).status.node = Some("n2".into());
            }),
        ),
        (
            "its record is older than what a replica has seen",
            with(wanted(), |it| it.newest = Some((Generation::FIRST.next(), "r2".into()))),
        ),
        ("whether one lives can't be told", with(wanted(), |it| it.history = doubtful())),
        ("it died a moment ago", with(wanted(), |it| it.history = ended(2))),
        ("it is attached", attached()),
        ("it doesn't answer yet", with(attached(), |it| process(it).status = None)),
        (
            "its socket was removed, and it has a device",
            with(attached(), |it| {
                on_ublk(it);
                process(it).status = None;
                process(it).unreachable = long;
            }),
        ),
        (
            "its socket was removed, and its clients would lose their disk",
            with(attached(), |it| {
                process(it).status = None;
                process(it).unreachable = long;
            }),
        ),
        (
            "it has waited for long",
            with(attached(), |it| {
                process(it).waits = long;
                status(it).endpoint = None;
                status(it).waiting.push("replica r2 of the in-sync set doesn't answer".into());
            }),
        ),
        (
            "a replica's disk is full and writes wait",
            with(attached(), |it| {
                status(it).full.push("r2".into());
            }),
        ),
        (
            "a block is rotten on all replicas, and others were repaired",
            with(attached(), |it| {
                status(it).damage = Damage {
                    replicas: vec![
                        damaged("r1", 7, None, 0),
                        damaged("r2", 0, Some("r3"), 3600),
                        damaged("r3", 0, Some("r2"), 90_000),
                    ],
                    lost: (0..6).map(|block| at(2 * block, Some("s1"))).collect(),
                    lost_bytes: 6 * 4096,
                };
            }),
        ),
        (
            "one replica is older than it was, and one is rebuilt",
            with(attached(), |it| {
                status(it).replicas[1].mode = ReplicaMode::Error;
                status(it).replicas[1].is_older = true;
                status(it).replicas[1].reason = Some("it is an older copy of itself".into());
                status(it).replicas[2].mode = ReplicaMode::WriteOnly;
            }),
        ),
        (
            "no replica has answered for long",
            with(attached(), |it| {
                process(it).waits = long;
                status(it).replicas.iter_mut().for_each(|it| it.mode = ReplicaMode::Error);
            }),
        ),
        (
            "a replica is elsewhere by now",
            with(attached(), |it| {
                object(it).replicas[1].address = "tcp:10.0.0.2:7001".into();
            }),
        ),
        ("a larger size is wanted", with(attached(), |it| object(it).size_bytes = 4 << 20)),
        ("another program is wanted", with(attached(), |it| object(it).turn = 1)),
        (
            "it hands over to another one",
            with(attached(), |it| {
                object(it).turn = 1;
                process(it).asked_to_end = Some(Duration::from_secs(1));
            }),
        ),
        (
            "it has handed over its device",
            with(attached(), |it| {
                on_ublk(it);
                it.process = None;
                it.left = true;
            }),
        ),
        (
            "it died, and its device waits",
            with(attached(), |it| {
                on_ublk(it);
                it.process = None;
            }),
        ),
        (
            "it died before it had a device",
            with(attached(), |it| {
                on_ublk(it);
                it.process = None;
                it.devices.own = None;
            }),
        ),
        (
            "its device has waited too long",
            with(attached(), |it| {
                on_ublk(it);
                it.process = None;
                it.history = ended(100);
                it.devices.unserved = Some(DEVICE_PATIENCE);
            }),
        ),
        (
            "its device has waited for a while",
            with(attached(), |it| {
                on_ublk(it);
                it.process = None;
                it.history = ended(100);
                it.devices.unserved = Some(Duration::from_secs(20));
            }),
        ),
        (
            "the machine was restarted",
            with(attached(), |it| {
                it.process = None;
                it.boot_id = "another".into();
            }),
        ),
        (
            "it was on another node before, of the same machine",
            with(attached(), |it| {
                it.process = None;
                let record = volume(it).status.record.as_mut().unwrap();
                record.engine.as_mut().unwrap().node = "n2".into();
            }),
        ),
        (
            "one runs that the record doesn't name",
            with(attached(), |it| {
                process(it).instance = InstanceId("other".into());
            }),
        ),
        ("it isn't wanted any more", with(attached(), unwanted)),
        (
            "it is asked to end",
            with(attached(), |it| {
                unwanted(it);
                process(it).asked_to_end = Some(Duration::from_secs(1));
            }),
        ),
        (
            "it is asked to end in vain",
            with(attached(), |it| {
                unwanted(it);
                process(it).asked_to_end = late;
            }),
        ),
        (
            "its device is in use",
            with(attached(), |it| {
                unwanted(it);
                process(it).refused = Some((Duration::from_millis(200), "it is mounted".into()));
            }),
        ),
        (
            "its device was in use a second ago",
            with(attached(), |it| {
                unwanted(it);
                process(it).refused = Some((Duration::from_secs(1), "it is mounted".into()));
            }),
        ),
        (
            "it has ended",
            with(attached(), |it| {
                unwanted(it);
                it.process = None;
                it.left = true;
            }),
        ),
        ("it has ended and is cleared", with(wanted(), unwanted)),
        (
            "it isn't wanted, and whether one lives can't be told",
            with(wanted(), |it| {
                unwanted(it);
                it.history = doubtful();
            }),
        ),
        (
            "it died while its device was to go",
            with(attached(), |it| {
                on_ublk(it);
                unwanted(it);
                it.process = None;
            }),
        ),
        (
            "it is elsewhere, and its device is still here",
            with(attached(), |it| {
                on_ublk(it);
                elsewhere(it);
                it.process = None;
            }),
        ),
        ("it is elsewhere, and still runs here", with(attached(), elsewhere)),
        ("a person chooses a copy", with(attached(), |it| object(it).wanted = EngineWanted::Still)),
        ("the record is lost", with(attached(), |it| volume(it).status.record = None)),
        ("the record is lost, and none runs", with(wanted(), |it| volume(it).status.record = None)),
        ("its object is lost", with(attached(), |it| it.engine = None)),
        (
            "the volume doesn't exist",
            with(attached(), |it| {
                it.engine = None;
                it.volume = None;
            }),
        ),
        ("the agent ends", with(attached(), |it| it.is_stopping = true)),
        (
            "the agent ends, and clients use its socket",
            with(attached(), |it| {
                it.is_stopping = true;
                status(it).clients = 2;
            }),
        ),
    ]
}

#[test]
fn engine_plans() {
    let mut text = String::new();
    for (name, facts) in engines() {
        writeln!(text, "## {name}\n{}", engine::plan(&facts)).unwrap();
    }
    expect_file!["../../../tests/golden/engine.txt"].assert_eq(&text);
}

fn plans_of_engines() -> impl Iterator<Item = (&'static str, EngineFacts, EnginePlan)> {
    engines().into_iter().map(|(name, facts)| {
        let plan = engine::plan(&facts);
        (name, facts, plan)
    })
}

/// Rule 1 on this node, in every situation and with every change of who is named.
#[test]
fn none_is_granted_beside_one_that_lives_or_may_live_or_is_named_elsewhere() {
    let changes: [fn(&mut EngineFacts); 6] = [
        |_| {},
        |it| it.history = doubtful(),
        |it| it.volume.iter_mut().for_each(|it| it.status.node = Some("n2".into())),
        |it| it.volume.iter_mut().for_each(|it| it.status.node = None),
        |it| it.volume.iter_mut().for_each(|it| it.status.record = None),
        |it| it.engine.iter_mut().for_each(|it| it.spec.node = "n2".into()),
    ];
    for (name, facts) in engines() {
        for (number, change) in changes.iter().enumerate() {
            let facts = with(facts.clone(), change);
            let plan = engine::plan(&facts);
            let grants = plan.actions.iter().any(|it| matches!(it, EngineAction::Grant { .. }));
            let named = facts.volume.as_ref().and_then(|it| it.status.node.as_deref());
            let wanted = facts.engine.as_ref().map(|it| it.spec.node.as_str());
            let is_free = facts.process.is_none() && facts.history.doubt.is_none();
            let may = is_free && named == Some("n1") && wanted == Some("n1");
            assert!(may || !grants, "{name}, changed by {number}: {plan}");
        }
    }
}

/// What ended here can be started elsewhere: that nothing is left is believed by who starts it.
#[test]
fn what_is_said_to_have_ended_has() {
    for (name, facts, plan) in plans_of_engines() {
        let is_left = facts.process.is_some() || facts.history.doubt.is_some();
        let has_device = facts.devices.own.is_some();
        let says_so = plan.phase == EnginePhase::Ended;
        assert!(!says_so || !is_left && !has_device, "{name}: {plan}");
    }
}

/// A supervisor that forgets would take disks from those who use them.
#[test]
fn a_granted_engine_goes_on_when_an_object_or_the_record_is_lost() {
    for (name, facts, _) in plans_of_engines().filter(|(name, ..)| !name.contains("socket was")) {
        let is_granted = facts.process.as_ref().is_some_and(|it| it.instance.0 == "old");
        let is_its = facts.engine.as_ref().is_some_and(|it| {
            it.spec.node == "n1" && matches!(it.spec.wanted, EngineWanted::Attached { .. })
        });
        if !is_granted || !is_its || facts.is_stopping {
            continue;
        }
        let losses: [fn(&mut EngineFacts); 3] = [
            |it| it.engine = None,
            |it| volume(it).status = Default::default(),
            |it| volume(it).status.record = None,
        ];
        for lose in losses {
            let plan = engine::plan(&with(facts.clone(), lose));
            assert_eq!(plan.actions, [], "{name}: {plan}");
        }
    }
}

/// Not to be read as healthy: it was, two seconds ago.
#[test]
fn an_engine_that_is_silent_for_two_seconds_is_unknown() {
    let silent = |after| with(attached(), |it| process(it).silent = Some(after));
    assert!(!engine::is_unknown(&silent(Duration::from_millis(1900))));
    assert!(engine::is_unknown(&silent(Duration::from_secs(2))));
}

/// Hundreds of attached volumes were looked at each second, though nothing happened.
#[test]
fn an_engine_that_tells_what_changes_is_looked_at_when_time_alone_matters() {
    let look_again_ms = |change: fn(&mut EngineProcess)| {
        let facts = with(attached(), |facts| {
            process(facts).is_watched = true;
            change(process(facts));
        });
        engine::plan(&facts).look_again.as_millis()
    };
    let second = Duration::from_secs(1);
    assert_eq!(look_again_ms(|it| it.is_watched = false), 1_000, "it is asked");
    assert_eq!(look_again_ms(|_| ()), 60_000);
    assert_eq!(look_again_ms(|it| it.silent = Some(Duration::from_millis(500))), 1_510);
    assert_eq!(look_again_ms(|it| it.silent = Some(Duration::from_secs(5))), 60_000);
    assert_eq!(look_again_ms(|it| it.waits = Some(Duration::from_secs(2))), 10_010);
    let opens = |it: &mut EngineProcess| {
        it.status = None;
        it.unreachable = Some(Duration::from_secs(11));
    };
    assert_eq!(look_again_ms(opens), second.as_millis() + 10);
}
