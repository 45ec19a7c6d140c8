//! Situations of a volume's objects and what is planned for them, in one golden file; and what holds
//! in all of them.

use std::fmt::Write as _;
use std::sync::Arc;

use ankole_api::attachment::TicketKind;
use ankole_api::object::Object;
use ankole_api::objects::attachment::Ticket;
use ankole_api::objects::engine::{EnginePhase, EngineStatus, EngineWanted, ReplicaSeen};
use ankole_api::objects::replica::{Make, ReplicaPhase};
use ankole_api::objects::volume::{DATA_FINALIZER, Recorded, UNFORMATTED};
use ankole_api::objects::{AttachmentSpec, Engine, Replica, ReplicaStatus, Volume};
use ankole_api::volume::{Reason, Robustness, State};
use ankole_replica::admin::ReplicaMode;
use ankole_replica::record::{EngineGrant, InstanceId, Member, Record};
use ankole_replica::types::{Generation, Incarnation};
use expect_test::expect_file;
use proptest::prelude::*;

use super::replicas::REBUILD;
use super::{Known, Life, NodeSeen, Plan, Write, plan, shown};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn generation(number: u64) -> Generation {
    Generation(number.try_into().unwrap())
}

fn new() -> Known {
    let spec = r#"{"sizeBytes": 2097152, "replicas": 3, "frontend": "socket"}"#;
    let mut volume = Volume::new("v1".parse().unwrap(), serde_json::from_str(spec).unwrap());
    volume.metadata.uid = "0123456789abcdef".into();
    let node = |name: &str| {
        let disks = [("/disk".into(), 1 << 30)].into();
        (name.to_owned(), NodeSeen { life: Life::Ready, takes_replicas: true, disks })
    };
    Known {
        volume,
        attachment: None,
        engine: None,
        replicas: vec![],
        nodes: Arc::new(NODES.map(node).into()),
        is_held: false,
    }
}

/// Does what was planned, as a store would.
fn apply(known: &mut Known, plan: &Plan) {
    let volume = &mut known.volume;
    for write in &plan.writes {
        match write.clone() {
            Write::Mark => {
                volume.metadata.finalizers.insert(DATA_FINALIZER.into());
                volume.metadata.annotations.insert(UNFORMATTED.into(), String::new());
            }
            Write::Unmark => drop(volume.metadata.annotations.remove(UNFORMATTED)),
            Write::Status(status) => volume.status = status,
            Write::CreateReplica(replica) => known.replicas.push(replica),
            Write::SetReplica(name, spec) => {
                let replica = known.replicas.iter_mut().find(|it| *it.name() == name);
                replica.expect("it is there").spec = spec;
            }
            Write::DeleteReplica(name) => {
                let replica = known.replicas.iter_mut().find(|it| *it.name() == name);
                replica.expect("it is there").metadata.deletion_timestamp =
                    Some(jiff::Timestamp::UNIX_EPOCH);
            }
            Write::CreateEngine(mut engine) => {
                engine.metadata.generation = 1;
                known.engine = Some(engine);
            }
            Write::SetEngine(spec) => {
                let engine = known.engine.as_mut().expect("it is there");
                engine.spec = spec;
                engine.metadata.generation += 1;
            }
            Write::DeleteEngine => known.engine = None,
            Write::DeleteAttachment => known.attachment = None,
            Write::Release => volume.metadata.finalizers.clear(),
        }
    }
}

/// Each agent has made what it was told to make.
fn made(known: &mut Known) {
    for (number, replica) in (1..).zip(&mut known.replicas) {
        replica.status = ReplicaStatus {
            phase: Some(if replica.spec.served {
                ReplicaPhase::Served
            } else {
                ReplicaPhase::Stopped
            }),
            address: Some(format!("tcp:{}:1", replica.spec.node)),
            incarnation: replica.status.incarnation.or(Some(Incarnation(number))),
            newest_generation: replica.status.newest_generation,
            conditions: vec![],
        };
    }
}

fn detached() -> Known {
    let mut known = new();
    for _ in 0..3 {
        let plan = plan(&known);
        apply(&mut known, &plan);
        made(&mut known);
    }
    assert!(matches!(known.volume.recorded(), Recorded::As(_)), "{:?}", known.volume);
    known
}

fn ticket(node: Option<&str>) -> Object<AttachmentSpec> {
    let ticket = Ticket { kind: TicketKind::User, node: node.map(str::to_owned), read_only: false };
    let tickets = [("user".to_owned(), ticket)].into();
    Object::new("v1".parse().unwrap(), AttachmentSpec { tickets })
}

fn wanted(node: Option<&str>) -> Known {
    Known { attachment: Some(ticket(node)), ..detached() }
}

/// Its engine serves on `node`.
fn attached(node: &str) -> Known {
    let mut known = wanted(Some(node));
    let plan = plan(&known);
    apply(&mut known, &plan);
    made(&mut known);
    let record = known.volume.status.record.as_mut().unwrap();
    let instance = InstanceId("e1".into());
    record.generation = generation(2);
    record.engine = Some(EngineGrant { node: node.into(), instance: instance.clone() });
    let replicas = known.replicas.iter();
    let mode = ReplicaMode::ReadWrite;
    let replicas = replicas.map(|it| ReplicaSeen { replica: it.spec.id.clone(), mode }).collect();
    let engine = known.engine.as_mut().unwrap();
    engine.status = EngineStatus {
        phase: Some(EnginePhase::Attached),
        node: node.into(),
        observed_generation: engine.metadata.generation,
        instance: Some(instance),
        endpoint: Some("/dev/ublkb0".into()),
        size_bytes: Some(2 << 20),
        replicas,
        ..EngineStatus::default()
    };
    known
}

fn ended(known: &mut Known) {
    let engine = known.engine.as_mut().unwrap();
    engine.status = EngineStatus {
        phase: Some(EnginePhase::Ended),
        node: engine.spec.node.clone(),
        observed_generation: engine.metadata.generation,
        ..EngineStatus::default()
    };
}

fn with(mut known: Known, change: impl FnOnce(&mut Known)) -> Known {
    change(&mut known);
    known
}

fn lives(known: &mut Known, node: &str, life: Life) {
    Arc::make_mut(&mut known.nodes).get_mut(node).unwrap().life = life;
}

fn planned(known: Known) -> Known {
    let mut known = known;
    let plan = plan(&known);
    apply(&mut known, &plan);
    known
}

fn without_member(known: &mut Known, number: usize) {
    known.volume.status.record.as_mut().unwrap().in_sync.remove(number);
}

fn delete(known: &mut Known) {
    known.volume.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH);
    known.attachment = None;
}

fn situations() -> Vec<(&'static str, Known)> {
    let marked = || planned(new());
    let detaching = || planned(with(attached("n1"), |it| it.attachment = None));
    vec![
        ("it was just made", new()),
        ("it is marked", marked()),
        ("no node is ready", with(marked(), |it| Arc::make_mut(&mut it.nodes).clear())),
        (
            "there is one node",
            with(marked(), |it| Arc::make_mut(&mut it.nodes).retain(|name, _| name == "n1")),
        ),
        (
            "two replicas of three are made",
            with(planned(marked()), |it| {
                made(it);
                it.replicas[2].status = ReplicaStatus::default();
            }),
        ),
        ("all are made", with(planned(marked()), made)),
        (
            "it has its first record, and the mark is still there",
            with(detached(), |it| {
                it.volume.metadata.annotations.insert(UNFORMATTED.into(), String::new());
            }),
        ),
        ("nobody wants it", detached()),
        ("its status was lost", with(detached(), |it| it.volume.status = Default::default())),
        (
            "its status was lost while it is wanted and served",
            with(attached("n1"), |it| {
                it.volume.status = Default::default();
            }),
        ),
        (
            "its record was lost, and it is deleted",
            with(detached(), |it| {
                it.volume.status = Default::default();
                delete(it);
            }),
        ),
        (
            "its record was lost while it was attached, and nobody wants it any more",
            with(attached("n1"), |it| {
                it.volume.status.record = None;
                it.attachment = None;
            }),
        ),
        ("somebody wants it anywhere", wanted(None)),
        ("somebody wants it on n2", wanted(Some("n2"))),
        ("it is wanted where no such node is", wanted(Some("n9"))),
        ("it is attached", attached("n1")),
        (
            "a replica has seen a newer generation than the record",
            with(wanted(None), |it| {
                it.replicas[1].status.newest_generation = Some(generation(9));
            }),
        ),
        (
            "no member of the in-sync set is there",
            with(wanted(None), |it| {
                for replica in &mut it.replicas {
                    replica.status.phase = Some(ReplicaPhase::Missing);
                    replica.status.incarnation = None;
                }
            }),
        ),
        ("nobody wants it any more", with(attached("n1"), |it| it.attachment = None)),
        ("its engine ends", detaching()),
        ("its engine has ended", with(detaching(), ended)),
        (
            "it is wanted on another node",
            with(attached("n1"), |it| {
                it.attachment = Some(ticket(Some("n2")));
            }),
        ),
        (
            "it is wanted on another node and has ended here",
            with(
                planned(with(attached("n1"), |it| it.attachment = Some(ticket(Some("n2"))))),
                ended,
            ),
        ),
        (
            "the node of its engine is silent",
            with(attached("n1"), |it| lives(it, "n1", Life::Silent)),
        ),
        (
            "the node of its engine is gone, and it is wanted there",
            with(attached("n1"), |it| {
                lives(it, "n1", Life::Gone);
            }),
        ),
        (
            "the node of its engine is gone, and it is wanted anywhere",
            with(attached("n1"), |it| {
                lives(it, "n1", Life::Gone);
                it.attachment = Some(ticket(None));
            }),
        ),
        (
            "a replica is out of sync and its directory gone",
            with(attached("n1"), |it| {
                without_member(it, 2);
                it.replicas[2].status.phase = Some(ReplicaPhase::Missing);
                it.replicas[2].status.incarnation = None;
            }),
        ),
        (
            "a replica is out of sync and damaged",
            with(attached("n1"), |it| {
                without_member(it, 2);
                it.replicas[2].status.phase = Some(ReplicaPhase::Damaged);
            }),
        ),
        (
            "a member is damaged",
            with(attached("n1"), |it| {
                it.replicas[2].status.phase = Some(ReplicaPhase::Damaged);
            }),
        ),
        ("a member shall be made anew", with(attached("n1"), ask_rebuild)),
        (
            "a member shall be made anew, and no other can be read",
            with(attached("n1"), |it| {
                ask_rebuild(it);
                let status = &mut it.engine.as_mut().unwrap().status;
                status.replicas.retain(|replica| replica.replica.to_string() == "r3");
            }),
        ),
        (
            "one shall be made anew and has left the set",
            with(attached("n1"), |it| {
                ask_rebuild(it);
                without_member(it, 2);
            }),
        ),
        (
            "it has grown",
            with(attached("n1"), |it| {
                it.engine.as_mut().unwrap().status.size_bytes = Some(4 << 20);
            }),
        ),
        ("a larger size is wanted", with(attached("n1"), |it| it.volume.spec.size_bytes = 8 << 20)),
        ("a person chooses a copy", with(attached("n1"), |it| it.is_held = true)),
        (
            "a person chooses a copy and the engine has ended",
            with(planned(with(attached("n1"), |it| it.is_held = true)), ended),
        ),
        ("it is deleted while attached", with(attached("n1"), delete)),
        (
            "it is deleted and its engine has ended",
            with(planned(with(attached("n1"), delete)), ended),
        ),
        (
            "it is deleted, and a replica's node isn't there",
            with(planned(with(planned(with(attached("n1"), delete)), ended)), |it| {
                it.replicas.retain(|replica| replica.spec.node == "n3");
                lives(it, "n3", Life::Gone);
            }),
        ),
        (
            "it is deleted and no replica is left",
            with(with(planned(with(attached("n1"), delete)), ended), |it| it.replicas.clear()),
        ),
        ("it was deleted before anything was made", with(new(), delete)),
    ]
}

fn ask_rebuild(known: &mut Known) {
    let replica = &mut known.replicas[2];
    let incarnation = replica.status.incarnation.unwrap().to_string();
    replica.metadata.annotations.insert(REBUILD.into(), incarnation);
}

#[test]
fn plans() {
    let mut text = String::new();
    for (name, known) in situations() {
        let plan = plan(&known);
        let (state, robustness) = (shown::state(&known), shown::robustness(&known));
        writeln!(text, "## {name}\nit is {state}, {robustness}\n{plan}").unwrap();
    }
    expect_file!["../../tests/golden/volume.txt"].assert_eq(&text);
}

/// A store that went back to the volume's beginning, or a directory of another volume of that name: who
/// is in sync can't be told from replicas that an engine has used.
#[test]
fn replicas_that_were_used_make_no_first_record() {
    let mut known = with(planned(planned(new())), made);
    let makes_one = |known: &Known| {
        let is_record = |it: &Write| matches!(it, Write::Status(status) if status.record.is_some());
        plan(known).writes.iter().any(is_record)
    };
    assert!(makes_one(&known));
    known.replicas[1].status.newest_generation = Some(generation(3));
    assert!(!makes_one(&known));
    let told = plan(&known).conditions;
    assert_eq!(told[0].reason, Reason::ReplicaOccupied);
}

/// What an agent said before it had seen the last wish says nothing of what it does now.
#[test]
fn an_engine_has_ended_when_its_agent_says_so_of_the_wish_that_is() {
    let mut known = detached();
    known.attachment = Some(ticket(Some("n1")));
    let mut known = planned(known);
    let engine = known.engine.as_mut().unwrap();
    engine.spec.wanted = EngineWanted::Detached;
    ended(&mut known);
    assert!(known.engine.as_ref().unwrap().has_ended());
    known.engine.as_mut().unwrap().metadata.generation += 1;
    assert!(!known.engine.as_ref().unwrap().has_ended(), "it was granted meanwhile, perhaps");
}

/// Its node died a moment ago: who reads "attached" would go to an endpoint that isn't there.
#[test]
fn a_volume_that_goes_elsewhere_is_not_shown_as_the_node_before_had_it() {
    let gone = with(attached("n1"), |it| {
        lives(it, "n1", Life::Gone);
        it.attachment = Some(ticket(None));
    });
    assert_eq!(shown::state(&gone), State::Attached, "nobody is named yet");
    let moved = planned(gone);
    assert_eq!(moved.volume.status.node.as_deref(), Some("n2"));
    assert_eq!(moved.volume.status.state, Some(State::Attaching));
    assert_eq!(shown::state(&moved), State::Attaching);
    assert_eq!(shown::robustness(&moved), Robustness::Unknown);
}

/// What a plan says again when it was carried out would be written for ever.
#[test]
fn what_was_done_is_not_planned_again() {
    for (name, known) in situations() {
        let mut known = planned(known);
        for _ in 0..4 {
            known = planned(known);
        }
        let last = plan(&known);
        let is_release = |write: &Write| matches!(write, Write::Release);
        assert!(last.writes.iter().all(is_release), "{name}: {last}");
    }
}

/// A situation, and what happens to it: by number, so that a failure is short to read.
fn arbitrary() -> impl Strategy<Value = (usize, Vec<(usize, usize)>)> {
    (0..situations().len(), prop::collection::vec((0..18usize, 0..3usize), 0..12))
}

fn disturbed(from: usize, changes: &[(usize, usize)]) -> (Known, String) {
    let (name, mut known) = situations().swap_remove(from);
    for (what, which) in changes {
        disturb(&mut known, *what, *which);
    }
    (known, format!("{name}, then {changes:?}"))
}

/// Anything that nodes, people and crashes can do to the objects.
fn disturb(known: &mut Known, what: usize, which: usize) {
    let phase = [
        ReplicaPhase::Missing,
        ReplicaPhase::Unreadable,
        ReplicaPhase::Damaged,
        ReplicaPhase::Occupied,
        ReplicaPhase::Stopped,
    ];
    match what {
        0..5 => {
            if let Some(replica) = known.replicas.get_mut(which) {
                replica.status.phase = Some(phase[what]);
                if what == 0 || what == 3 {
                    replica.status.incarnation = None;
                }
            }
        }
        5 => Arc::make_mut(&mut known.nodes).values_mut().for_each(|node| node.life = Life::Ready),
        6 if !known.nodes.is_empty() => lives_if_there(known, which, Life::Gone),
        7 => lives_if_there(known, which, Life::Silent),
        8 => known.attachment = None,
        9 => known.attachment = Some(ticket(Some(NODES[which]))),
        10 => known.attachment = Some(ticket(None)),
        11 => known.volume.status = Default::default(),
        12 => known.replicas.truncate(which + 1),
        13 => known.engine = None,
        14 if known.engine.is_some() => ended(known),
        15 => known.replicas.iter_mut().for_each(|it| it.status = ReplicaStatus::default()),
        16 => {
            if let Some(record) = &mut known.volume.status.record {
                record.in_sync.truncate(which + 1);
            }
        }
        _ => *known = planned(known.clone()),
    }
}

fn lives_if_there(known: &mut Known, which: usize, life: Life) {
    if let Some(node) = Arc::make_mut(&mut known.nodes).get_mut(NODES[which]) {
        node.life = life;
    }
}

/// Of a volume whose record is lost: nothing is made anew, nothing that may hold data goes.
fn leaves_data(known: &Known, plan: &Plan, write: &Write) -> bool {
    let before = |name| known.replicas.iter().find(|it| it.name() == name);
    match write {
        Write::SetReplica(name, spec) => before(name).is_some_and(|it| it.spec.make == spec.make),
        Write::DeleteReplica(name) => {
            let keeps = |write: &Write| match write {
                Write::SetReplica(it, spec) => it == name && spec.keeps_data,
                _ => false,
            };
            before(name).is_some_and(|it| it.spec.keeps_data)
                || plan.writes.iter().take_while(|it| *it != write).any(keeps)
        }
        Write::CreateReplica(_) | Write::Status(_) => false,
        _ => true,
    }
}

fn members(record: &Record) -> Vec<&Member> {
    record.in_sync.iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn in_every_situation((from, changes) in arbitrary()) {
        let (known, told) = disturbed(from, &changes);
        let plan = plan(&known);
        let record = known.volume.status.record.as_ref();
        let members = record.map(members).unwrap_or_default();
        for write in &plan.writes {
            match write {
                Write::Status(status) => {
                    // Nobody's word of who is in sync is lost, and a second node isn't named while
                    // the first may have an engine.
                    prop_assert!(record.is_none() || status.record.as_ref() == record, "{told}\n{plan}");
                    let before = known.volume.status.node.as_deref();
                    if let Some(before) = before && status.node.as_deref() != Some(before) {
                        let gone = known.nodes.get(before).is_none_or(|it| it.life == Life::Gone);
                        let ended = known.engine.as_ref().is_none_or(|it| it.spec.node != before || it.has_ended());
                        prop_assert!(gone || ended, "{told}\n{plan}");
                    }
                    // A first record only of a volume that is known to have had none.
                    let is_new = known.volume.recorded() == Recorded::Unformatted;
                    prop_assert!(status.record.is_none() || record.is_some() || is_new, "{told}\n{plan}");
                }
                Write::CreateReplica(Replica { spec, .. }) | Write::SetReplica(_, spec) => {
                    let is_member = members.iter().any(|member| member.replica == spec.id);
                    prop_assert!(!is_member || spec.make == Make::Never, "{told}\n{plan}");
                    // What is given up has another in its place, or was never used.
                    let mut others = known.replicas.iter().filter(|it| it.spec.id != spec.id);
                    let has_source = others.any(|it| {
                        let mut members = members.iter();
                        members.any(|member| member.replica == it.spec.id) && it.status.is_there()
                    });
                    let is_given_up = matches!(spec.make, Make::InPlaceOf(_));
                    let is_new = known.volume.recorded() == Recorded::Unformatted;
                    let before = known.replicas.iter().find(|it| it.spec.id == spec.id);
                    let is_decided = is_given_up && before.is_none_or(|it| it.spec.make != spec.make);
                    prop_assert!(!is_decided || has_source || is_new, "{told}\n{plan}");
                }
                Write::CreateEngine(Engine { spec, .. }) | Write::SetEngine(spec) => {
                    let wanted = matches!(spec.wanted, EngineWanted::Attached { .. });
                    prop_assert!(!wanted || record.is_some(), "{told}\n{plan}");
                }
                Write::DeleteReplica(_) | Write::DeleteEngine | Write::DeleteAttachment | Write::Release => {
                    prop_assert!(known.volume.is_ending(), "{told}\n{plan}");
                }
                Write::Mark => prop_assert_eq!(known.volume.recorded(), Recorded::New, "{}\n{}", told, plan),
                Write::Unmark => {}
            }
        }
        if known.volume.recorded() == Recorded::Lost {
            prop_assert!(plan.writes.iter().all(|it| leaves_data(&known, &plan, it)), "{told}\n{plan}");
            let is_quiet = known.is_wanted() && !known.volume.is_ending() && !known.is_held;
            prop_assert!(!is_quiet || plan.writes.is_empty(), "{told}\n{plan}");
        }
    }
}
