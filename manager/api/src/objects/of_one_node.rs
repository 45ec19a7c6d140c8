//! The objects of a volume that a store of format 1 or 2 has as one.
//!
//! Until format 2 a volume had its places, its tickets and its engine's program in it, and there was one
//! node. What comes of it is what the planners would have made: the same record, marks and directories,
//! so that processes which run are found to be right as they are. What may never happen: a replica that
//! may hold acknowledged data is allowed to be made anew; a volume without a record is taken for a new one.

pub mod older;

use std::path::{Path, PathBuf};

use ankole_replica::admin::ReplicaAddress;
use ankole_replica::types::{Incarnation, ReplicaId};
use jiff::Timestamp;

use self::older::Place;
use super::attachment::Ticket;
use super::engine::EngineWanted;
use super::replica::{DIRECTORY_FINALIZER, Make, REBUILD, REPLICAS, name_of};
use super::target::{BackupTarget, BackupTargetSpec};
use super::volume::{DATA_FINALIZER, UNFORMATTED};
use super::{
    AttachmentSpec, Engine, EngineSpec, Node, NodeSpec, Replica, ReplicaSpec, ReplicaStatus,
    Volume, VolumeAttachment, VolumeSpec, VolumeStatus,
};
use crate::attachment::TicketKind;
use crate::name::NameError;
use crate::object::{Object, Spec};
use crate::{Name, target};

/// All that comes of one volume.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeObjects {
    pub volume: Volume,
    pub attachment: Option<VolumeAttachment>,
    pub engine: Option<Engine>,
    pub replicas: Vec<Replica>,
}

/// The node that there was, as it is now.
pub struct OneNode<'a> {
    pub name: &'a str,
    /// Where a replica without a port is served.
    pub socket: &'a dyn Fn(&Name, &ReplicaId) -> PathBuf,
    /// What lies in a directory of a replica, if that can be told.
    pub found: &'a dyn Fn(&Path) -> Option<Incarnation>,
    /// When a volume that was being deleted is said to be.
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotConverted {
    #[error(
        "volume {volume}: replica {replica} is in {directory}, and not in the folder {REPLICAS} of a disk"
    )]
    Directory { volume: Name, replica: ReplicaId, directory: PathBuf },
    #[error("volume {volume}: replica {replica} can't be named")]
    ReplicaName { volume: Name, replica: ReplicaId, source: NameError },
}

/// A target is its URL.
pub fn target_of(old: &target::BackupTarget) -> BackupTarget {
    let mut target = BackupTarget::new(old.name.clone(), BackupTargetSpec { url: old.url.clone() });
    target.metadata.generation = 1;
    target.metadata.uid = format!("{}-target", old.name);
    target
}

impl OneNode<'_> {
    /// None if no object can have its name, as its agent makes none then.
    pub fn object(&self) -> Option<Node> {
        let mut node = Node::new(self.name.parse().ok()?, NodeSpec::default());
        node.metadata.generation = 1;
        node.metadata.uid = format!("{}-node", self.name);
        Some(node)
    }

    pub fn objects_of(&self, old: &older::Volume) -> Result<VolumeObjects, NotConverted> {
        let volume = self.volume_of(old);
        let attachment = Self::attachment_of(&volume, old);
        // Without one nothing of it is on the node: that was seen before the attachment was cleared.
        let is_wanted = attachment.is_some() && old.status.record.is_some();
        let has_engine = is_wanted || old.status.attachment.is_some();
        let engine = has_engine.then(|| self.engine_of(&volume, attachment.as_ref(), old));
        let replicas =
            old.status.places.iter().map(|it| self.replica_of(&volume, engine.as_ref(), old, it));
        let replicas = replicas.collect::<Result<_, _>>()?;
        Ok(VolumeObjects { attachment, engine, replicas, volume })
    }

    fn volume_of(&self, old: &older::Volume) -> Volume {
        let spec = VolumeSpec {
            size_bytes: old.spec.size_bytes,
            replicas: old.spec.replicas,
            frontend: old.spec.frontend,
            transport: old.spec.transport,
            in_engine: old.spec.in_engine,
            engine: old.spec.engine.clone(),
            from_backup: None,
        };
        let mut volume = Volume::new(old.name.clone(), spec);
        volume.metadata.uid.clone_from(&old.uid);
        volume.metadata.generation = 1;
        volume.metadata.finalizers.insert(DATA_FINALIZER.into());
        if old.status.unformatted {
            volume.metadata.annotations.insert(UNFORMATTED.into(), String::new());
        }
        // The job that filled it has ended with its process.
        let was_being_restored = has_ticket(old, TicketKind::Restore);
        volume.metadata.deletion_timestamp =
            (old.spec.deleting || was_being_restored).then_some(self.now);
        let mut record = old.status.record.clone();
        // There is no other, whatever it was called.
        if let Some(engine) = record.as_mut().and_then(|record| record.engine.as_mut()) {
            engine.node = self.name.into();
        }
        volume.status = VolumeStatus {
            record,
            attachment: old.status.attachment.clone(),
            node: Some(self.name.into()),
            size_bytes: old.status.size_bytes,
            ..VolumeStatus::default()
        };
        volume
    }

    /// The tickets of jobs ended with the process that had them.
    fn attachment_of(volume: &Volume, old: &older::Volume) -> Option<VolumeAttachment> {
        if volume.is_ending() || !has_ticket(old, TicketKind::User) {
            return None;
        }
        let users = old.spec.tickets.iter().filter(|ticket| ticket.kind == TicketKind::User);
        let ticket = |it: &crate::attachment::Ticket| Ticket {
            kind: it.kind,
            node: None,
            read_only: it.read_only,
        };
        let tickets = users.map(|it| (it.id.clone(), ticket(it))).collect();
        let attachment = VolumeAttachment::new(old.name.clone(), AttachmentSpec { tickets });
        Some(made_with(volume, "attachment", attachment))
    }

    fn engine_of(
        &self,
        volume: &Volume,
        attachment: Option<&VolumeAttachment>,
        old: &older::Volume,
    ) -> Engine {
        let wanted = match attachment {
            Some(attachment) => {
                EngineWanted::Attached { read_only: attachment.spec.is_read_only() }
            }
            None => EngineWanted::Detached,
        };
        let replicas = old.status.places.iter().map(|place| ReplicaAddress {
            replica: place.replica.clone(),
            address: self.address(old, place),
        });
        let spec = EngineSpec {
            volume_uid: old.uid.clone(),
            node: self.name.into(),
            wanted,
            frontend: old.spec.frontend,
            size_bytes: old.spec.size_bytes.max(old.size_bytes()),
            replicas: replicas.collect(),
            in_engine: old.spec.in_engine,
            program: old.spec.engine.program.clone(),
            turn: old.spec.engine.turn,
        };
        made_with(volume, "engine", Engine::new(old.name.clone(), spec)).owned_by(volume)
    }

    fn replica_of(
        &self,
        volume: &Volume,
        engine: Option<&Engine>,
        old: &older::Volume,
        place: &Place,
    ) -> Result<Replica, NotConverted> {
        let (name, id) = (|| old.name.clone(), &place.replica);
        let (disk, folder) =
            disk_and_folder(&place.directory).ok_or_else(|| NotConverted::Directory {
                volume: name(),
                replica: id.clone(),
                directory: place.directory.clone(),
            })?;
        let object = name_of(volume, id).map_err(|source| NotConverted::ReplicaName {
            volume: name(),
            replica: id.clone(),
            source,
        })?;
        let member = old
            .status
            .record
            .as_ref()
            .and_then(|record| record.in_sync.iter().find(|member| member.replica == *id));
        // Nobody knows what one is worth whose volume lost its record.
        let may_hold_all = match &old.status.record {
            Some(record) => member.is_some() || record.in_sync.is_empty(),
            None => !old.status.unformatted,
        };
        let spec = ReplicaSpec {
            volume: name(),
            volume_uid: old.uid.clone(),
            id: id.clone(),
            node: self.name.into(),
            disk,
            folder,
            size_bytes: old.size_bytes(),
            transport: old.spec.transport,
            in_engine: old.spec.in_engine,
            served: engine.is_some(),
            make: if may_hold_all { Make::Never } else { Make::IfNothing },
            keeps_data: false,
        };
        let mut replica =
            made_with(volume, &id.to_string(), Replica::new(object, spec)).owned_by(volume);
        replica.metadata.finalizers.insert(DIRECTORY_FINALIZER.into());
        if old.spec.rebuild.contains(id) {
            let present = (self.found)(&place.directory).or(member.map(|it| it.incarnation));
            let wish = present.map(|it| (REBUILD.to_owned(), it.to_string()));
            replica.metadata.annotations.extend(wish);
        }
        let address = Some(self.address(old, place));
        replica.status = ReplicaStatus { address, ..ReplicaStatus::default() };
        Ok(replica)
    }

    /// As the processes that run were told it.
    fn address(&self, old: &older::Volume, place: &Place) -> String {
        match place.port {
            _ if old.spec.in_engine => format!("dir:{}", place.directory.display()),
            Some(port) => format!("tcp:127.0.0.1:{port}"),
            None => format!("unix:{}", (self.socket)(&old.name, &place.replica).display()),
        }
    }
}

fn has_ticket(old: &older::Volume, kind: TicketKind) -> bool {
    old.spec.tickets.iter().any(|ticket| ticket.kind == kind)
}

/// Its uid is the same each time that the volume is converted.
fn made_with<S: Spec>(volume: &Volume, what: &str, mut object: Object<S>) -> Object<S> {
    object.metadata.uid = format!("{}-{what}", volume.metadata.uid);
    object.metadata.generation = 1;
    object
}

fn disk_and_folder(directory: &Path) -> Option<(PathBuf, String)> {
    let replicas = directory.parent().filter(|it| it.file_name().is_some_and(|it| it == REPLICAS));
    let disk = replicas?.parent().filter(|disk| disk.is_absolute())?;
    Some((disk.into(), directory.file_name()?.to_str()?.into()))
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;
    use serde_json::{Value, json};

    use super::super::volume::Recorded;
    use super::*;

    const fn incarnation(number: u128) -> Incarnation {
        Incarnation(number)
    }

    /// As the store has it: attached over ublk, r3 out of the set and to be made anew.
    fn stored() -> Value {
        let place = |replica: &str| json!({"replica": replica, "directory": format!("/disk/replicas/v1-{replica}"), "port": null});
        let member = |replica: &str, number| json!({"replica": replica, "incarnation": incarnation(number).to_string()});
        json!({
            "name": "v1", "uid": "0123456789abcdef0123456789abcdef",
            "spec": {
                "sizeBytes": 4 << 20, "replicas": 3, "frontend": "auto", "transport": "unix",
                "inEngine": false, "engine": {"program": "/opt/ankole", "turn": 2},
                "rebuild": ["r2", "r3"],
                "tickets": [
                    {"id": "user", "kind": "user", "readOnly": false},
                    {"id": "backup-1", "kind": "backup", "readOnly": false},
                ],
                "deleting": false,
            },
            "status": {
                "record": {
                    "generation": 7, "engine": {"node": "before", "instance": "i1"},
                    "attachEpoch": 2, "inSync": [member("r1", 1), member("r2", 2)],
                },
                "sizeBytes": 2 << 20,
                "places": [place("r1"), place("r2"), place("r3")],
                "attachment": {"bootId": "b1", "frontend": "ublk"},
            },
        })
    }

    fn convert(old: &Value) -> Result<VolumeObjects, NotConverted> {
        let socket = |volume: &Name, id: &ReplicaId| format!("/data/run/{volume}.{id}").into();
        let found = |directory: &Path| directory.ends_with("v1-r3").then(|| incarnation(3));
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let node = OneNode { name: "n1", socket: &socket, found: &found, now };
        node.objects_of(&serde_json::from_value(old.clone()).unwrap())
    }

    #[test]
    fn a_volume_that_is_attached_is_found_so() {
        let VolumeObjects { volume, attachment, engine, replicas } = convert(&stored()).unwrap();
        let objects = json!([volume, attachment, engine, replicas]);
        let text = serde_json::to_string_pretty(&objects).unwrap() + "\n";
        expect_file!["../../tests/golden/of-one-node.json"].assert_eq(&text);
        assert_eq!(convert(&stored()).unwrap().replicas, replicas, "each time the same");
    }

    #[test]
    fn what_a_job_asked_for_ended_with_its_process() {
        let mut old = stored();
        old["spec"]["tickets"].as_array_mut().unwrap().remove(0);
        let objects = convert(&old).unwrap();
        assert_eq!(objects.attachment, None);
        assert_eq!(objects.engine.expect("it may run").spec.wanted, EngineWanted::Detached);
        assert!(objects.replicas.iter().all(|it| it.spec.served), "as long as it may run");
        old["status"]["attachment"] = Value::Null;
        let objects = convert(&old).unwrap();
        assert_eq!(objects.engine, None);
        assert!(objects.replicas.iter().all(|it| !it.spec.served));
    }

    /// Half of a backup would look like a volume.
    #[test]
    fn one_that_was_being_restored_or_deleted_is_ending_and_its_replicas_are_not_yet() {
        let (mut restored, mut deleted) = (stored(), stored());
        restored["spec"]["tickets"][1]["kind"] = "restore".into();
        deleted["spec"]["deleting"] = true.into();
        for old in [restored, deleted] {
            let objects = convert(&old).unwrap();
            assert!(objects.volume.is_ending() && objects.attachment.is_none());
            assert_eq!(objects.engine.expect("it may run").spec.wanted, EngineWanted::Detached);
            assert!(objects.replicas.iter().all(|it| !it.is_ending()), "first the engine ends");
        }
    }

    #[test]
    fn one_that_lost_its_record_is_not_new_and_nothing_of_it_is_made_anew() {
        let mut old = stored();
        old["status"]["record"] = Value::Null;
        let objects = convert(&old).unwrap();
        assert_eq!(objects.volume.recorded(), Recorded::Lost);
        assert!(objects.replicas.iter().all(|it| it.spec.make == Make::Never));
        old["status"]["unformatted"] = true.into();
        let objects = convert(&old).unwrap();
        assert_eq!(objects.volume.recorded(), Recorded::Unformatted);
        assert!(objects.replicas.iter().all(|it| it.spec.make == Make::IfNothing));
    }

    #[test]
    fn replicas_are_where_they_were() {
        let mut old = stored();
        old["status"]["places"][0]["port"] = 4001.into();
        let address = |old: &Value| convert(old).unwrap().replicas[0].status.address.clone();
        assert_eq!(address(&old).as_deref(), Some("tcp:127.0.0.1:4001"));
        old["spec"]["inEngine"] = true.into();
        assert_eq!(address(&old).as_deref(), Some("dir:/disk/replicas/v1-r1"));
        for elsewhere in ["/disk/v1-r1", "replicas/v1-r1", "/disk/replicas/x/v1-r1", "/"] {
            old["status"]["places"][0]["directory"] = elsewhere.into();
            let refused = convert(&old).unwrap_err().to_string();
            assert!(refused.contains(elsewhere) && refused.contains("v1"), "{refused}");
        }
    }

    #[test]
    fn a_replica_whose_name_no_object_can_have_is_an_error() {
        let mut old = stored();
        for id in ["R_1", "", &"r".repeat(70)] {
            old["status"]["places"][0]["replica"] = id.into();
            assert!(matches!(convert(&old), Err(NotConverted::ReplicaName { .. })), "{id}");
        }
        old["name"] = "v".repeat(63).into();
        old["status"]["places"][0]["replica"] = "r1".into();
        let name = convert(&old).unwrap().replicas[0].name().to_string();
        assert_eq!(name, format!("{}-01234567-r1", "v".repeat(51)));
    }
}
