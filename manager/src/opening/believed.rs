//! What is believed of a store's copy, which may be older than the last change.
//!
//! A member of an in-sync set that isn't there now may be the only one to know that the set has changed
//! since. So a record stays only if every replica of the volume was looked at and none has seen anything
//! newer; else it is lost, and salvage asks the copies. Beside a record that stays, what the manager
//! allowed of replicas that aren't members stays, too. What agents have seen is seen again. A restore that
//! wasn't over is: filled again would be what its users have written since.

use std::collections::BTreeMap;
use std::path::Path;

use ankole_replica::record::Record;
use ankole_replica::types::{Fence, ReplicaId};
use ankole_store::Raw;
use ankole_store::embedded::StoredObject;

use crate::api::object::{Object, Spec};
use crate::api::objects::job::JOB_FINALIZER;
use crate::api::objects::replica::Make;
use crate::api::objects::volume::{DATA_FINALIZER, UNFORMATTED};
use crate::api::objects::{
    Engine, EngineSpec, EngineStatus, Replica, ReplicaSpec, ReplicaStatus, RestoreSpec, Volume,
    VolumeSpec,
};

/// What a replica of that volume and name has seen, if it is the one that lies in the directory.
pub(super) type LookAtFence = dyn Fn(&Path, &str, &ReplicaId) -> Option<Option<Fence>>;

pub(super) fn believed(
    objects: Vec<StoredObject>,
    node: &str,
    fence: &LookAtFence,
) -> Vec<StoredObject> {
    let replicas: Vec<Replica> = objects.iter().filter_map(read).collect();
    let volumes = objects.iter().filter_map(read).map(|volume: Volume| {
        let own: Vec<_> =
            replicas.iter().filter(|it| it.spec.volume_uid == volume.metadata.uid).collect();
        (volume.name().clone(), volume_of(volume, &own, node, fence))
    });
    let volumes: BTreeMap<_, _> = volumes.collect();
    let believe = |object: StoredObject| {
        if let Some(volume) = read::<VolumeSpec>(&object) {
            return stored(object, &volumes[volume.name()]);
        }
        if let Some(replica) = read::<ReplicaSpec>(&object) {
            let volume = volumes.get(&replica.spec.volume);
            let own = volume.filter(|it| it.metadata.uid == replica.spec.volume_uid);
            let record = own.and_then(|volume| volume.status.record.as_ref());
            return stored(object, &replica_of(replica, record));
        }
        if let Some(engine) = read::<EngineSpec>(&object) {
            return stored(object, &Engine { status: EngineStatus::default(), ..engine });
        }
        if let Some(mut restore) = read::<RestoreSpec>(&object) {
            // It may have been over, and its volume have been written since.
            restore.metadata.finalizers.remove(JOB_FINALIZER);
            return stored(object, &restore);
        }
        object
    };
    objects.into_iter().map(believe).collect()
}

fn volume_of(mut volume: Volume, replicas: &[&Replica], node: &str, fence: &LookAtFence) -> Volume {
    // It may have been formatted, and written, since.
    volume.metadata.annotations.remove(UNFORMATTED);
    volume.metadata.finalizers.insert(DATA_FINALIZER.into());
    let record = &mut volume.status.record;
    if record.as_ref().is_some_and(|record| !is_confirmed(record, replicas, node, fence)) {
        let volume = &volume.metadata.name;
        tracing::warn!(%volume, "its record in the copy may be older than its replicas");
        *record = None;
    }
    volume
}

fn is_confirmed(record: &Record, replicas: &[&Replica], node: &str, fence: &LookAtFence) -> bool {
    let is_no_newer = |replica: &&Replica| {
        let spec = &replica.spec;
        let seen = fence(&spec.directory(), &spec.volume, &spec.id);
        spec.node == node
            && seen.is_some_and(|it| it.is_none_or(|seen| seen.generation <= record.generation))
    };
    let is_known = |member: &ReplicaId| replicas.iter().any(|it| it.spec.id == *member);
    record.in_sync.iter().all(|member| is_known(&member.replica))
        && replicas.iter().all(is_no_newer)
}

fn replica_of(mut replica: Replica, record: Option<&Record>) -> Replica {
    let is_member =
        |record: &Record| record.in_sync.iter().any(|member| member.replica == replica.spec.id);
    if record.is_none_or(is_member) {
        replica.spec.make = Make::Never;
    }
    let address = replica.status.address.take();
    replica.status = ReplicaStatus { address, ..ReplicaStatus::default() };
    replica
}

fn read<S: Spec>(stored: &StoredObject) -> Option<Object<S>> {
    let (plural, name) = stored.key.split_once('/')?;
    let is_one = plural == S::KIND.plural;
    let object: Object<S> =
        is_one.then(|| Raw::from_json(&stored.json).ok()?.parse().ok()).flatten()?;
    (**object.name() == *name).then_some(object)
}

fn stored<S: Spec>(before: StoredObject, object: &Object<S>) -> StoredObject {
    StoredObject { json: Raw::of(object).to_json(), ..before }
}

#[cfg(test)]
mod tests {
    use ankole_replica::record::Member;
    use ankole_replica::types::{Generation, Incarnation, Session};

    use super::*;
    use crate::api::objects::engine::{EnginePhase, EngineWanted};
    use crate::api::objects::replica::{REPLICAS, ReplicaPhase};
    use crate::api::objects::volume::Recorded;

    const RECORD: u64 = 7;

    fn generation(number: u64) -> Generation {
        Generation(number.try_into().unwrap())
    }

    fn volume() -> Volume {
        let spec = r#"{"sizeBytes": 2097152, "replicas": 3}"#;
        let mut volume = Volume::new("v1".parse().unwrap(), serde_json::from_str(spec).unwrap());
        volume.metadata.uid = "u1".into();
        let member = |id: &str| Member { replica: id.into(), incarnation: Incarnation(1) };
        let mut record = Record::first(vec![member("r1"), member("r2")]);
        record.generation = generation(RECORD);
        volume.status.record = Some(record);
        volume
    }

    /// r3 is out of the set, and one that isn't what it was.
    fn replica(id: &str) -> Replica {
        let make = Make::InPlaceOf(Incarnation(1));
        let spec = ReplicaSpec {
            volume: "v1".parse().unwrap(),
            volume_uid: "u1".into(),
            id: id.into(),
            node: "n1".into(),
            disk: "/disk".into(),
            folder: id.into(),
            size_bytes: 2 << 20,
            transport: Default::default(),
            in_engine: false,
            served: true,
            make,
            keeps_data: false,
        };
        let mut replica = Replica::new(format!("v1-{id}").parse().unwrap(), spec);
        replica.status.phase = Some(ReplicaPhase::Damaged);
        replica.status.incarnation = Some(Incarnation(1));
        replica.status.address = Some("tcp:127.0.0.1:1".into());
        replica
    }

    fn object<S: Spec>(object: &Object<S>) -> StoredObject {
        let key = format!("{}/{}", S::KIND.plural, object.name());
        StoredObject { key, version: 7, json: Raw::of(object).to_json() }
    }

    fn copy(volume: &Volume, ids: &[&str]) -> Vec<StoredObject> {
        let replicas = ids.iter().map(|id| object(&replica(id)));
        [object(volume)].into_iter().chain(replicas).collect()
    }

    /// By the last letter of the directory: what its replica has seen.
    fn seen(newest: [Option<Option<u64>>; 3]) -> Box<LookAtFence> {
        Box::new(move |directory, volume, _| {
            assert_eq!(volume, "v1");
            let name = directory.strip_prefix(Path::new("/disk").join(REPLICAS)).unwrap();
            let number: usize = name.to_str()?.strip_prefix('r')?.parse().ok()?;
            let fence = |number| Fence { generation: generation(number), session: Session(1) };
            newest[number - 1].map(|seen| seen.map(fence))
        })
    }

    fn first<S: Spec>(objects: &[StoredObject]) -> Vec<Object<S>> {
        objects.iter().filter_map(read).collect()
    }

    #[test]
    fn a_record_stays_only_if_all_replicas_were_looked_at_and_none_has_seen_a_newer_one() {
        let (at, below, newer) = (Some(Some(RECORD)), Some(Some(1)), Some(Some(RECORD + 1)));
        let cases = [
            ([at, below, Some(None)], true),
            ([at, at, newer], false),
            ([newer, at, at], false),
            ([at, at, None], false),
        ];
        for (newest, stays) in cases {
            let objects = believed(copy(&volume(), &["r1", "r2", "r3"]), "n1", &*seen(newest));
            let [volume] = &first::<VolumeSpec>(&objects)[..] else { panic!("one") };
            match stays {
                true => assert_eq!(
                    volume.recorded(),
                    Recorded::As(&self::volume().status.record.unwrap())
                ),
                false => assert_eq!(volume.recorded(), Recorded::Lost, "{newest:?}"),
            }
            let makes: Vec<_> =
                first::<ReplicaSpec>(&objects).iter().map(|it| it.spec.make).collect();
            let allowed = if stays { Make::InPlaceOf(Incarnation(1)) } else { Make::Never };
            assert_eq!(makes, [Make::Never, Make::Never, allowed], "{newest:?}");
        }
        // r2 isn't in the copy, or all of them are on another node.
        let all = [at, at, at];
        for objects in [
            believed(copy(&volume(), &["r1", "r3"]), "n1", &*seen(all)),
            believed(copy(&volume(), &["r1", "r2", "r3"]), "n2", &*seen(all)),
        ] {
            assert_eq!(first::<VolumeSpec>(&objects)[0].recorded(), Recorded::Lost);
        }
    }

    /// It would be formatted, though it may have been formatted and written since.
    #[test]
    fn a_volume_that_was_new_in_the_copy_is_not_new() {
        let mut new = volume();
        new.status.record = None;
        let mut unformatted = new.clone();
        unformatted.metadata.finalizers.insert(DATA_FINALIZER.into());
        unformatted.metadata.annotations.insert(UNFORMATTED.into(), String::new());
        for volume in [new, unformatted] {
            let objects = believed(copy(&volume, &["r1"]), "n1", &*seen([Some(None); 3]));
            assert_eq!(first::<VolumeSpec>(&objects)[0].recorded(), Recorded::Lost);
            assert_eq!(first::<ReplicaSpec>(&objects)[0].spec.make, Make::Never);
        }
    }

    /// Its volume was given to its users right after the copy was made.
    #[test]
    fn a_restore_that_was_not_over_in_the_copy_fills_nothing() {
        let spec = RestoreSpec {
            volume: "v1".parse().unwrap(),
            volume_uid: "u1".into(),
            node: "n1".into(),
            url: "file:///backups?backup=backup-1&volume=v0".into(),
            ticket: "restore-1".into(),
        };
        let mut objects = copy(&volume(), &["r1"]);
        objects.push(object(&Object::job(1, spec)));
        let objects = believed(objects, "n1", &*seen([Some(None); 3]));
        assert!(first::<RestoreSpec>(&objects)[0].is_over());
    }

    /// An engine that had ended may run again.
    #[test]
    fn what_agents_had_seen_is_not_believed_and_what_is_no_object_stays() {
        let spec = EngineSpec {
            volume_uid: "u1".into(),
            node: "n1".into(),
            wanted: EngineWanted::Detached,
            frontend: Default::default(),
            size_bytes: 2 << 20,
            replicas: vec![],
            in_engine: false,
            program: None,
            turn: 0,
        };
        let mut engine = Engine::new("v1".parse().unwrap(), spec);
        engine.metadata.generation = 1;
        engine.status.phase = Some(EnginePhase::Ended);
        (engine.status.node, engine.status.observed_generation) = ("n1".into(), 1);
        assert!(engine.has_ended());
        let strange = StoredObject { key: "volumes/v2".into(), version: 3, json: "{?".into() };
        let mut objects = copy(&volume(), &["r1", "r2"]);
        objects.extend([object(&engine), strange.clone()]);
        let objects = believed(objects, "n1", &*seen([Some(None); 3]));
        assert!(!first::<EngineSpec>(&objects)[0].has_ended());
        let status = &first::<ReplicaSpec>(&objects)[0].status;
        assert_eq!((status.phase, status.incarnation), (None, None));
        assert!(status.address.is_some(), "its process may be there");
        assert_eq!(objects.last(), Some(&strange));
        assert!(objects.iter().take(4).all(|it| it.version == 7));
    }
}
