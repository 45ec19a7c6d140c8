//! Replicas.

use std::fmt::Write as _;

use ankole_api::objects::Replica;
use ankole_api::objects::replica::{Make, ReplicaPhase};
use ankole_replica::inspect::{Content, Evidence, Found, Holder, ReplicaEvidence};
use ankole_replica::store::ReplicaState;
use ankole_replica::types::{Epoch, Fence, Generation, Incarnation, Session};
use expect_test::expect_file;

use super::{doubtful, ended};
use crate::node::facts::{History, ReplicaFacts, ReplicaProcess};
use crate::node::replica::{self, REPLICA_PATIENCE, ReplicaAction};

fn made() -> ReplicaFacts {
    let spec = r#"{"volume": "v1", "volumeUid": "u1", "id": "r1", "node": "n1", "disk": "/disk", "folder": "v1-r1",
        "sizeBytes": 2097152, "served": false, "make": "never"}"#;
    let mut replica = Replica::new("v1-r1".parse().unwrap(), serde_json::from_str(spec).unwrap());
    replica.status.phase = Some(ReplicaPhase::Stopped);
    replica.status.incarnation = Some(Incarnation(1));
    let evidence = evidence(Found::Replica(Box::new(copy(Some(Generation::FIRST)))));
    ReplicaFacts {
        replica,
        node: "n1".into(),
        evidence,
        damaged: None,
        newest: Some(Generation::FIRST),
        process: None,
        history: History::default(),
        address: "unix:/run/r1".into(),
        set_aside: vec![],
        is_stopping: false,
    }
}

fn evidence(found: Found) -> Option<Box<Evidence>> {
    Some(Box::new(Evidence { directory: "/disk/replicas/v1-r1".into(), held: None, found }))
}

fn copy(seen: Option<Generation>) -> ReplicaEvidence {
    ReplicaEvidence {
        volume: "v1".into(),
        replica: "r1".into(),
        incarnation: Incarnation(1),
        fence: seen.map(|generation| Fence { generation, session: Session(1) }),
        state: if seen.is_some() { ReplicaState::Member } else { ReplicaState::New },
        failure: None,
        synced_gen: seen,
        synced_set: vec![],
        epoch: Epoch::default(),
        content: Some(Content {
            continuous: true,
            continuity: String::new(),
            partial: false,
            marked_regions: 0,
            unverified_blocks: 0,
            size_bytes: 2 << 20,
            data_bytes: if seen.is_some() { 4096 } else { 0 },
            layers: 1,
            snapshots: vec![],
        }),
        problems: vec![],
    }
}

fn of(mut facts: ReplicaFacts, change: impl FnOnce(&mut ReplicaFacts)) -> ReplicaFacts {
    change(&mut facts);
    facts
}

fn served() -> ReplicaFacts {
    of(made(), |it| {
        it.replica.spec.served = true;
        it.replica.status.phase = Some(ReplicaPhase::Served);
        it.process = Some(ReplicaProcess { pid: 11, asked_to_end: None });
        it.evidence = None;
        it.newest = None;
    })
}

fn gone(facts: &mut ReplicaFacts) {
    facts.evidence = evidence(Found::Missing);
    facts.newest = None;
}

fn new(facts: &mut ReplicaFacts) {
    gone(facts);
    facts.replica.spec.make = Make::IfNothing;
    facts.replica.status = Default::default();
}

fn deleted(facts: &mut ReplicaFacts) {
    facts.replica.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH);
}

fn replicas() -> Vec<(&'static str, ReplicaFacts)> {
    let unreadable = || evidence(Found::Unreadable { why: "Input/output error".into() });
    let foreign = || evidence(Found::Foreign { file: "photo.jpg".into() });
    let in_place = Make::InPlaceOf(Incarnation(1));
    vec![
        ("it is to be made", of(made(), new)),
        (
            "it is to be made, and half of it is there",
            of(made(), |it| {
                new(it);
                it.evidence = evidence(Found::HalfFormatted);
            }),
        ),
        (
            "it is to be made where something else lies",
            of(made(), |it| {
                new(it);
                it.evidence = foreign();
            }),
        ),
        (
            "it is to be made where another volume's replica lies",
            of(made(), |it| {
                new(it);
                let other =
                    ReplicaEvidence { volume: "v2".into(), ..copy(Some(Generation::FIRST)) };
                it.evidence = evidence(Found::Replica(Box::new(other)));
            }),
        ),
        (
            "it is to be made, and its own directory is there",
            of(made(), |it| {
                it.replica.spec.make = Make::IfNothing;
                it.replica.status = Default::default();
            }),
        ),
        ("it is made", made()),
        ("its status was lost", of(made(), |it| it.replica.status = Default::default())),
        ("it is wanted", of(made(), |it| it.replica.spec.served = true)),
        (
            "it is wanted, and whether its process lives can't be told",
            of(made(), |it| {
                it.replica.spec.served = true;
                it.history = doubtful();
            }),
        ),
        (
            "it is wanted and ended a moment ago",
            of(made(), |it| {
                it.replica.spec.served = true;
                it.history = ended(2);
            }),
        ),
        ("it is served", served()),
        (
            "its directory is gone",
            of(served(), |it| {
                it.process = None;
                gone(it);
            }),
        ),
        (
            "its directory is gone and may be made anew",
            of(served(), |it| {
                it.process = None;
                gone(it);
                it.replica.spec.make = Make::IfNothing;
            }),
        ),
        (
            "its disk doesn't answer",
            of(served(), |it| {
                it.process = None;
                it.evidence = unreadable();
            }),
        ),
        (
            "its disk doesn't answer, and it may be made anew",
            of(served(), |it| {
                it.process = None;
                it.evidence = unreadable();
                it.replica.spec.make = Make::IfNothing;
            }),
        ),
        (
            "its files are damaged",
            of(made(), |it| {
                it.replica.spec.served = true;
                it.damaged = Some("chain.meta has a bad sum".into());
                it.history = ended(4);
            }),
        ),
        (
            "its files are damaged, and others have its data",
            of(made(), |it| {
                it.replica.spec.served = true;
                it.damaged = Some("chain.meta has a bad sum".into());
                it.replica.spec.make = in_place;
            }),
        ),
        (
            "it is to be made anew and is served",
            of(served(), |it| {
                it.replica.spec.make = in_place;
            }),
        ),
        (
            "it was made anew already",
            of(made(), |it| {
                it.replica.spec.make = Make::InPlaceOf(Incarnation(9));
                it.replica.spec.served = true;
            }),
        ),
        (
            "an earlier directory lies beside it",
            of(served(), |it| {
                it.set_aside.push("/disk/replicas/v1-r1.aside-1".into());
            }),
        ),
        ("it isn't wanted any more", of(served(), |it| it.replica.spec.served = false)),
        (
            "it doesn't end",
            of(served(), |it| {
                it.replica.spec.served = false;
                it.process.as_mut().unwrap().asked_to_end = Some(2 * REPLICA_PATIENCE);
            }),
        ),
        (
            "the agent ends and no engine uses it",
            of(served(), |it| {
                it.is_stopping = true;
            }),
        ),
        ("it is deleted and served", of(served(), deleted)),
        (
            "it is deleted, and nobody knows what it is worth",
            of(made(), |it| {
                deleted(it);
                it.replica.spec.keeps_data = true;
            }),
        ),
        ("it is deleted", of(made(), deleted)),
        (
            "it is deleted and damaged",
            of(made(), |it| {
                deleted(it);
                it.damaged = Some("chain.meta has a bad sum".into());
            }),
        ),
        (
            "it is deleted, and its disk doesn't answer",
            of(made(), |it| {
                deleted(it);
                it.evidence = unreadable();
            }),
        ),
        (
            "it is deleted, and something else lies there",
            of(made(), |it| {
                deleted(it);
                it.evidence = foreign();
            }),
        ),
        (
            "it is deleted, and nothing is there",
            of(made(), |it| {
                deleted(it);
                gone(it);
            }),
        ),
        (
            "it lives in the engine's process",
            of(made(), |it| {
                it.replica.spec.in_engine = true;
                it.replica.spec.served = true;
            }),
        ),
    ]
}

#[test]
fn replica_plans() {
    let mut text = String::new();
    for (name, facts) in replicas() {
        writeln!(text, "## {name}\n{}", replica::plan(&facts)).unwrap();
    }
    expect_file!["../../../tests/golden/replica.txt"].assert_eq(&text);
}

/// In every situation, with everything that may lie there, whatever may be made: what is formatted
/// holds nothing or was set aside before; what is set aside is what is named; nothing is touched while
/// a process may use it; what is removed is its own.
#[test]
fn nothing_that_may_hold_data_is_formatted_or_removed() {
    let copies = [None, Some(Generation::FIRST)].map(|it| Found::Replica(Box::new(copy(it))));
    let foreign = Found::Foreign { file: "photo.jpg".into() };
    let unreadable = Found::Unreadable { why: "Input/output error".into() };
    let found = [Found::Missing, Found::Empty, Found::HalfFormatted, foreign, unreadable];
    let makes = [
        Make::Never,
        Make::IfNothing,
        Make::InPlaceOf(Incarnation(1)),
        Make::InPlaceOf(Incarnation(9)),
    ];
    for (name, facts) in replicas() {
        for (found, make) in
            found.iter().chain(&copies).flat_map(|found| makes.map(move |make| (found, make)))
        {
            for held in [None, Some(Holder { pid: Some(12) })] {
                let lies = Evidence { directory: "/disk".into(), held, found: found.clone() };
                let facts = of(facts.clone(), |it| {
                    it.replica.spec.make = make;
                    it.evidence = Some(Box::new(lies.clone()));
                });
                let plan = replica::plan(&facts);
                let has = |action| plan.actions.contains(&action);
                let told = format!("{name}, {found:?}, {make:?}: {plan}");
                let touches = has(ReplicaAction::Format)
                    || has(ReplicaAction::SetAside)
                    || has(ReplicaAction::RemoveDirectory);
                let is_used = facts.process.is_some() || facts.history.doubt.is_some();
                assert!(!touches || !is_used, "{told}");
                let may_format = make != Make::Never && lies.holds_nothing();
                let first = plan.actions.first() == Some(&ReplicaAction::SetAside);
                assert!(!has(ReplicaAction::Format) || may_format || first, "{told}");
                let known = facts.replica.status.incarnation;
                let present = lies.replica().map(|it| it.incarnation).or(known);
                let is_named = matches!(make, Make::InPlaceOf(it) if present == Some(it));
                assert!(!has(ReplicaAction::SetAside) || is_named, "{told}");
                assert!(
                    !has(ReplicaAction::RemoveDirectory) || facts.replica.is_ending(),
                    "{told}"
                );
            }
        }
    }
}

/// It went with its disk, and is back with it: the agent's word that it was missing changes nothing.
#[test]
fn a_directory_that_comes_back_is_the_one_it_was() {
    let away = of(made(), gone);
    let status = replica::plan(&away).status;
    assert_eq!((status.phase, status.incarnation), (Some(ReplicaPhase::Missing), None));
    let back = of(made(), |it| it.replica.status = status.clone());
    let status = replica::plan(&back).status;
    assert_eq!(status.phase, Some(ReplicaPhase::Stopped));
    assert_eq!(status.incarnation, Some(Incarnation(1)));
}
