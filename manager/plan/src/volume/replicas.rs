//! Which replicas there are, who wants them, and whether they may be made anew.

use ankole_api::Name;
pub use ankole_api::objects::replica::REBUILD;
use ankole_api::objects::replica::{self, DIRECTORY_FINALIZER, Make, ReplicaPhase};
use ankole_api::objects::volume::DATA_FINALIZER;
use ankole_api::objects::{Replica, ReplicaSpec, Volume, VolumeStatus};
use ankole_api::volume::Reason;
use ankole_replica::admin::ReplicaAddress;
use ankole_replica::record::{Member, Record};
use ankole_replica::types::ReplicaId;

use super::{Condition, Known, Plan, Write, is_member, place};

impl Plan {
    /// All replicas of a new volume, and then its first record.
    pub(super) fn make(&mut self, known: &Known) {
        let volume = &known.volume;
        if !volume.metadata.finalizers.contains(DATA_FINALIZER) {
            return self.write(Write::Mark);
        }
        let missing = usize::from(volume.spec.replicas).saturating_sub(known.replicas.len());
        let places = match place::places(known, missing) {
            Ok(places) => places,
            Err(why) => {
                return self.note(Condition::new(Reason::NoNode, why).next("ankole node ls"));
            }
        };
        for (node, disk) in places {
            let taken = self.writes.iter().filter_map(|write| match write {
                Write::CreateReplica(replica) => Some(replica.spec.id.clone()),
                _ => None,
            });
            let id = free_id(known, taken.collect());
            let spec = ReplicaSpec {
                volume: volume.name().clone(),
                volume_uid: volume.metadata.uid.clone(),
                id: id.clone(),
                node,
                disk,
                folder: folder_of(volume, &id),
                size_bytes: volume.spec.size_bytes,
                transport: volume.spec.transport,
                in_engine: volume.spec.in_engine,
                served: false,
                make: Make::IfNothing,
                keeps_data: false,
            };
            let mut replica = Replica::new(name_of(volume, &id), spec).owned_by(volume);
            replica.metadata.finalizers.insert(DIRECTORY_FINALIZER.into());
            self.write(Write::CreateReplica(replica));
        }
        for replica in &known.replicas {
            self.note_obstacles(known, replica);
            self.make_damaged_anew(replica);
            self.note_used(replica);
        }
        // An engine has greeted it: whatever it holds isn't this volume's beginning.
        let is_unused = |replica: &&Replica| replica.status.newest_generation.is_none();
        let made: Vec<_> = known.replicas.iter().filter(is_unused).filter_map(member).collect();
        if missing == 0 && made.len() == known.replicas.len() {
            let record = Some(Record::first(made));
            let size_bytes = Some(volume.spec.size_bytes);
            let status = VolumeStatus { record, size_bytes, ..volume.status.clone() };
            self.write(Write::Status(status));
            self.write(Write::Unmark);
        }
    }

    /// Of a volume to which nothing was ever written.
    fn make_damaged_anew(&mut self, replica: &Replica) {
        let is_damaged = replica.status.phase == Some(ReplicaPhase::Damaged);
        if let Some(present) = replica.status.incarnation.filter(|_| is_damaged) {
            let spec = ReplicaSpec { make: Make::InPlaceOf(present), ..replica.spec.clone() };
            if spec != replica.spec {
                self.write(Write::SetReplica(replica.name().clone(), spec));
            }
        }
    }

    fn note_used(&mut self, replica: &Replica) {
        let Some(seen) = replica.status.newest_generation else { return };
        let directory = replica.spec.directory();
        let message = format!(
            "replica {} of the new volume is in {}, which was used before (it has seen {seen}) and is left as it is",
            replica.spec.id,
            directory.display()
        );
        let next = "move that directory away, or remove the volume and choose another name";
        self.note(Condition::new(Reason::ReplicaOccupied, message).next(next));
    }

    /// Of a volume that has its record.
    pub(super) fn keep_replicas(&mut self, known: &Known, record: &Record) {
        for replica in &known.replicas {
            self.note_obstacles(known, replica);
            let in_sync = is_member(record, replica);
            let make = self.may_make(known, record, replica);
            let gives_way = is_to_be_made_anew(replica);
            // A member goes on until its word isn't needed any more, and leaves the set by its silence.
            let leaves = gives_way && (!in_sync || known.has_readable_but(&replica.spec.id));
            let served = self.wants_replicas(known) && !(leaves && in_sync);
            // One that is made anew has the size that the others have.
            let size_bytes = known.volume.size_bytes();
            let spec = ReplicaSpec { served, make, size_bytes, ..replica.spec.clone() };
            if spec != replica.spec {
                self.write(Write::SetReplica(replica.name().clone(), spec));
            }
        }
    }

    pub(super) fn stop_replicas(&mut self, known: &Known) {
        for replica in known.replicas.iter().filter(|replica| replica.spec.served) {
            let spec = ReplicaSpec { served: false, ..replica.spec.clone() };
            self.write(Write::SetReplica(replica.name().clone(), spec));
        }
    }

    /// As long as an engine is wanted, or may still use them.
    fn wants_replicas(&self, known: &Known) -> bool {
        use ankole_api::objects::engine::EngineWanted::Attached;
        let written = self.writes.iter().rev().find_map(|write| match write {
            Write::CreateEngine(engine) => Some(&engine.spec),
            Write::SetEngine(spec) => Some(spec),
            _ => None,
        });
        let wanted = written.or(known.engine.as_ref().map(|engine| &engine.spec));
        let node = wanted.map(|engine| engine.node.as_str()).unwrap_or_default();
        wanted.is_some_and(|engine| matches!(engine.wanted, Attached { .. }))
            || !known.has_left(node)
    }

    fn may_make(&mut self, known: &Known, record: &Record, replica: &Replica) -> Make {
        if is_member(record, replica) || record.in_sync.is_empty() {
            return Make::Never;
        }
        let is_damaged = replica.status.phase == Some(ReplicaPhase::Damaged);
        let others = known.replicas.iter().filter(|other| is_member(record, other));
        let has_source = { others }.any(|other| other.status.is_there());
        match replica.status.incarnation {
            Some(present) if has_source && (is_damaged || is_to_be_made_anew(replica)) => {
                Make::InPlaceOf(present)
            }
            _ => Make::IfNothing,
        }
    }

    fn note_obstacles(&mut self, known: &Known, replica: &Replica) {
        let (id, node) = (&replica.spec.id, &replica.spec.node);
        if !known.is_ready(node) {
            let message = format!("replica {id} is out of reach: node {node} isn't heard of");
            self.note(Condition::new(Reason::NoNode, message).next("ankole node ls"));
        }
    }
}

impl Known {
    /// Of those that are made, where their agents serve them.
    pub(super) fn addresses(&self) -> Vec<ReplicaAddress> {
        let of = |replica: &Replica| {
            let address = replica.status.address.clone()?;
            Some(ReplicaAddress { replica: replica.spec.id.clone(), address })
        };
        self.replicas.iter().filter(|replica| !replica.is_ending()).filter_map(of).collect()
    }

    fn has_readable_but(&self, one: &ReplicaId) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.status.has_readable_but(one))
    }
}

/// Asked for, and not done yet: what lies there is still what the person meant.
fn is_to_be_made_anew(replica: &Replica) -> bool {
    let asked = replica.metadata.annotations.get(REBUILD);
    let present = replica.status.incarnation.map(|incarnation| incarnation.to_string());
    asked.is_some() && asked == present.as_ref()
}

fn member(replica: &Replica) -> Option<Member> {
    let incarnation = replica.status.incarnation.filter(|_| replica.status.is_there())?;
    replica.status.address.as_ref()?;
    Some(Member { replica: replica.spec.id.clone(), incarnation })
}

fn free_id(known: &Known, taken: Vec<ReplicaId>) -> ReplicaId {
    let used = known.replicas.iter().map(|replica| replica.spec.id.clone());
    let used: Vec<_> = used.chain(taken).collect();
    let id = |number: usize| ReplicaId::from(format!("r{number}").as_str());
    (1..).map(id).find(|id| !used.contains(id)).expect("numbers don't end")
}

/// `VOLUME-UID-ID`: what another volume of that name left is never taken for this one's.
pub fn folder_of(volume: &Volume, id: &ReplicaId) -> String {
    format!("{}-{:.8}-{id}", volume.name(), volume.metadata.uid)
}

/// Of the object.
pub fn name_of(volume: &Volume, id: &ReplicaId) -> Name {
    replica::name_of(volume, id).expect("ids are `r` and a number, and uids hexadecimal")
}
