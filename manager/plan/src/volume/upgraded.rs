//! Volumes of a store of format 1 or 2, on their first pass.

use std::path::Path;
use std::sync::Arc;

use ankole_api::objects::of_one_node::OneNode;
use ankole_api::objects::replica::ReplicaPhase;
use ankole_api::objects::volume::UNFORMATTED;
use ankole_replica::types::{Generation, Incarnation};
use serde_json::{Value, json};

use super::{Known, Life, NodeSeen, Plan, Write, plan};

fn stored() -> Value {
    let place = |id: &str| json!({"replica": id, "directory": format!("/disk/replicas/v1-{id}")});
    let member = |id: &str, number| json!({"replica": id, "incarnation": incarnation(number)});
    json!({
        "name": "v1", "uid": "0123456789abcdef0123456789abcdef",
        "spec": {
            "sizeBytes": 2 << 20, "replicas": 3, "frontend": "socket", "transport": "unix",
            "inEngine": false, "tickets": [{"id": "user", "kind": "user"}], "deleting": false,
        },
        "status": {
            "record": {
                "generation": 7, "engine": {"node": "n1", "instance": "i1"}, "attachEpoch": 2,
                "inSync": [member("r1", 1), member("r2", 2), member("r3", 3)],
            },
            "places": [place("r1"), place("r2"), place("r3")],
            "attachment": {"bootId": "b1", "frontend": "socket"},
        },
    })
}

fn incarnation(number: u128) -> Incarnation {
    Incarnation(number)
}

fn known(old: &Value) -> Known {
    let node = OneNode {
        name: "n1",
        socket: &|volume, id| format!("/data/run/{volume}.{id}").into(),
        found: &|directory: &Path| directory.ends_with("v1-r3").then(|| incarnation(3)),
        now: jiff::Timestamp::UNIX_EPOCH,
    };
    let objects = node.objects_of(&serde_json::from_value(old.clone()).unwrap()).unwrap();
    let disks = [("/disk".into(), 1 << 30)].into();
    let seen = NodeSeen { life: Life::Ready, takes_replicas: true, disks };
    Known {
        volume: objects.volume,
        attachment: objects.attachment,
        engine: objects.engine,
        replicas: objects.replicas,
        nodes: Arc::new([("n1".to_owned(), seen)].into()),
        is_held: false,
    }
}

/// Each agent has looked.
fn looked(known: &mut Known) {
    for (number, replica) in (1..).zip(&mut known.replicas) {
        let phase = if replica.spec.served { ReplicaPhase::Served } else { ReplicaPhase::Stopped };
        replica.status.phase = Some(phase);
        replica.status.incarnation = Some(incarnation(number));
    }
}

fn told(plan: &Plan) -> String {
    plan.writes.iter().map(|write| format!("{write}\n")).collect()
}

/// Whatever differed from what is wanted would be changed: replicas stopped, an engine told other
/// addresses.
#[test]
fn nothing_is_changed_of_a_volume_that_runs_or_rests() {
    let mut resting = stored();
    resting["spec"]["tickets"] = json!([]);
    resting["status"]["attachment"] = Value::Null;
    let mut lost = stored();
    lost["status"]["record"] = Value::Null;
    for old in [stored(), resting, lost] {
        let mut known = known(&old);
        assert_eq!(told(&plan(&known)), "");
        looked(&mut known);
        assert_eq!(told(&plan(&known)), "");
    }
}

#[test]
fn one_that_is_deleted_loses_its_engine_first() {
    let mut old = stored();
    old["spec"]["deleting"] = true.into();
    assert_eq!(told(&plan(&known(&old))), "");
    old["status"]["attachment"] = Value::Null;
    assert!(matches!(plan(&known(&old)).writes[..], [Write::DeleteReplica(_), ..]));
}

#[test]
fn one_that_was_never_formatted_gets_its_first_record() {
    let mut old = stored();
    old["status"] = json!({
        "unformatted": true, "places": old["status"]["places"], "record": null, "attachment": null,
    });
    let mut known = known(&old);
    assert!(known.volume.metadata.annotations.contains_key(UNFORMATTED));
    assert_eq!(told(&plan(&known)), "");
    looked(&mut known);
    let plan = plan(&known);
    let [Write::Status(status), Write::Unmark] = &plan.writes[..] else { panic!("{plan}") };
    let record = status.record.as_ref().expect("it is the first");
    assert_eq!((record.generation, record.in_sync.len()), (Generation::FIRST, 3));
}

#[test]
fn a_replica_that_a_person_wants_anew_is_made_so() {
    let mut old = stored();
    old["spec"]["rebuild"] = json!(["r3"]);
    old["status"]["record"]["inSync"].as_array_mut().unwrap().pop();
    let mut known = known(&old);
    assert_eq!(told(&plan(&known)), "");
    looked(&mut known);
    let told = told(&plan(&known));
    assert!(told.starts_with("replica r3") && told.contains("InPlaceOf"), "{told}");
}
