//! An agent: its objects as it has heard of them, and the node's planner carried out on its machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ankole_api::Name;
use ankole_api::object::Object;
use ankole_api::objects::condition::dated;
use ankole_api::objects::node::{DiskStatus, LeaseSpec};
use ankole_api::objects::replica::{DIRECTORY_FINALIZER, Make};
use ankole_api::objects::{Engine, EngineSpec, Node, NodeSpec, Replica, ReplicaSpec, Volume};
use ankole_plan::node::engine::{self, DEVICE_PATIENCE, EngineAction, EngineStart};
use ankole_plan::node::facts::{
    Devices, EngineFacts, EngineProcess as Seen, History, ReplicaFacts, ReplicaProcess,
};
use ankole_plan::node::replica::{self, ReplicaAction};
use ankole_replica::admin;
use ankole_replica::record::{Change, EngineGrant, InstanceId, Record};
use ankole_replica::types::{Generation, Incarnation};
use ankole_store::Selector;
use jiff::Timestamp;

use crate::machine::{Directory, EngineProcess, Machine, Place, Stage};
use crate::random::Random;
use crate::store::{Cursor, Heard, Store};

#[derive(Default)]
pub struct Agent {
    engines: BTreeMap<Name, Engine>,
    replicas: BTreeMap<Name, Replica>,
    engines_heard: Cursor,
    replicas_heard: Cursor,
    /// Those whose engine ended as it was asked to.
    left: BTreeSet<Name>,
    renewed: Option<Duration>,
    /// Since when there was no gap.
    heard_since: Option<Duration>,
}

/// What goes around an agent.
pub struct Around<'a> {
    pub machine: &'a mut Machine,
    pub store: &'a mut Store,
    pub random: &'a mut Random,
    pub now: Duration,
    pub wrong: &'a mut Vec<String>,
    pub log: &'a mut Vec<String>,
    /// Volumes for which it named an engine in this turn.
    pub granted: &'a mut Vec<Name>,
    /// The uids of volumes whose data is given up.
    pub removed: &'a mut Vec<String>,
}

const RENEW: Duration = Duration::from_secs(3);

impl Agent {
    /// One look at everything, as far as it has heard.
    pub fn turn(&mut self, around: &mut Around<'_>) {
        self.renew(around);
        self.hear(around);
        let mut volumes: BTreeSet<Name> = self.engines.keys().cloned().collect();
        volumes.extend(around.machine.engines.keys().cloned());
        for volume in volumes {
            self.look_at_engine(around, &volume);
        }
        for name in self.replicas.keys().cloned().collect::<Vec<_>>() {
            self.look_at_replica(around, &name);
        }
    }

    fn renew(&mut self, around: &mut Around<'_>) {
        let name: Name = around.machine.name.parse().expect("a short name");
        if self.renewed.is_some_and(|last| around.now < last + RENEW) {
            return;
        }
        let gap = self.renewed.is_none_or(|last| around.now > last + 2 * RENEW);
        self.heard_since = self.heard_since.filter(|_| !gap).or(Some(around.now));
        self.renewed = Some(around.now);
        if around.store.get::<NodeSpec>(&name).is_none() {
            let node = Node::new(name.clone(), NodeSpec::default());
            around.store.create(&node).expect("there is none");
        }
        let mut node = around.store.get::<NodeSpec>(&name).expect("it was made");
        node.status.boot_id = around.machine.boot_id();
        let disk = DiskStatus { capacity_bytes: 1 << 30, free_bytes: 1 << 29 };
        node.status.disks = [("/disk".into(), disk)].into();
        let _ = around.store.replace_status(&node);
        let renewed = timestamp(around.now);
        match around.store.get::<LeaseSpec>(&name) {
            None => drop(around.store.create(&Object::new(name, LeaseSpec { renewed }))),
            Some(mut lease) => {
                lease.spec.renewed = renewed;
                let _ = around.store.replace(&lease);
            }
        }
    }

    /// A real one has a thread for its lease.
    pub fn is_late(&self, now: Duration) -> bool {
        self.renewed.is_some_and(|last| now > last + RENEW)
    }

    /// Since when its lease has been renewed without a gap.
    pub fn heard_since(&self, now: Duration) -> Option<Duration> {
        self.heard_since.filter(|_| self.renewed.is_some_and(|last| now <= last + 2 * RENEW))
    }

    fn hear(&mut self, around: &mut Around<'_>) {
        let own = Selector::on_node(&around.machine.name);
        for heard in around.store.hear::<EngineSpec>(&mut self.engines_heard, &own) {
            remember(&mut self.engines, heard);
        }
        for heard in around.store.hear::<ReplicaSpec>(&mut self.replicas_heard, &own) {
            remember(&mut self.replicas, heard);
        }
    }

    fn look_at_engine(&mut self, around: &mut Around<'_>, name: &Name) {
        let facts = self.engine_facts(around, name);
        let plan = engine::plan(&facts);
        for action in &plan.actions {
            let text = format!("{:?} {} {name}: {action}", around.now, around.machine.name);
            around.log.push(text);
            if !self.do_to_engine(around, &facts, name, action) {
                break;
            }
        }
        let Some(seen) = self.engines.get(name) else { return };
        let status = engine::status(&facts, &plan);
        let dated =
            dated(status.conditions.clone(), &seen.status.conditions, timestamp(around.now), 0);
        let status = ankole_api::objects::EngineStatus { conditions: dated, ..status };
        if status != seen.status {
            let written = Engine { status, ..seen.clone() };
            let _ = around.store.replace_status(&written);
        }
    }

    fn engine_facts(&self, around: &mut Around<'_>, name: &Name) -> EngineFacts {
        let machine = &*around.machine;
        let process = machine.engines.get(name).map(|it| Seen {
            pid: 1,
            instance: it.instance.clone(),
            turn: it.turn,
            asked_to_end: (it.stage == Stage::Detaching).then_some(Duration::from_secs(1)),
            refused: None,
            status: Some(Box::new(said(name, it))),
            silent: None,
            unreachable: None,
            waits: None,
            is_watched: false,
        });
        let engine = match self.engines.get(name) {
            Some(heard) => Some(heard.clone()),
            // Whose it is is asked of the store itself.
            None => around.store.get::<EngineSpec>(name),
        };
        let own = self.replicas.values().filter(|it| it.spec.volume == *name);
        let newest = own.filter(|_| process.is_none()).filter_map(|replica| {
            let id = replica.spec.id.clone();
            let place = Place {
                volume: name.clone(),
                uid: replica.spec.volume_uid.clone(),
                replica: id.clone(),
            };
            Some((machine.directory(&place)?.seen?, id))
        });
        EngineFacts {
            newest: newest.max(),
            volume: around.store.get(name),
            engine,
            node: machine.name.clone(),
            boot_id: machine.boot_id(),
            process,
            history: History::default(),
            left: self.left.contains(name),
            devices: Devices {
                drivers: vec![],
                own: None,
                unserved: None,
                patience: DEVICE_PATIENCE,
            },
            fresh_instance: InstanceId(format!("{:x}", around.random.number())),
            is_stopping: false,
        }
    }

    fn do_to_engine(
        &mut self,
        around: &mut Around<'_>,
        facts: &EngineFacts,
        name: &Name,
        action: &EngineAction,
    ) -> bool {
        match action {
            EngineAction::Grant { instance, attach_epoch, attachment } => {
                let Some(mut volume) = facts.volume.clone() else { return false };
                let Some(record) = volume.status.record.clone() else { return false };
                let engine = EngineGrant { node: facts.node.clone(), instance: instance.clone() };
                let change = Change::Grant { engine, attach_epoch: *attach_epoch };
                let Ok(record) = record.after(record.generation, change) else { return false };
                volume.status.record = Some(record);
                volume.status.attachment = Some(attachment.clone());
                let is_granted = around.store.replace_status(&volume).is_ok();
                around.granted.extend(is_granted.then(|| name.clone()));
                is_granted
            }
            EngineAction::Start(start) => self.start(around, facts, name, start),
            EngineAction::Kill => {
                around.machine.engines.remove(name);
                true
            }
            EngineAction::Detach | EngineAction::HandOver => {
                if let Some(process) = around.machine.engines.get_mut(name) {
                    process.stage = Stage::Detaching;
                }
                true
            }
            EngineAction::Expand { size_bytes } => {
                if let Some(process) = around.machine.engines.get_mut(name) {
                    process.size_bytes = *size_bytes;
                }
                true
            }
            EngineAction::SetReplicas(replicas) => {
                if let Some(process) = around.machine.engines.get_mut(name) {
                    process.replicas = replicas.iter().map(|it| it.replica.clone()).collect();
                }
                true
            }
            EngineAction::ClearAttachment => {
                let Some(mut volume) = facts.volume.clone() else { return false };
                volume.status.attachment = None;
                around.store.replace_status(&volume).is_ok()
            }
            EngineAction::StopDevice(_) => true,
        }
    }

    fn start(
        &mut self,
        around: &mut Around<'_>,
        facts: &EngineFacts,
        name: &Name,
        start: &EngineStart,
    ) -> bool {
        let (Some(volume), Some(engine)) = (&facts.volume, &facts.engine) else { return false };
        if around.machine.engines.contains_key(name) {
            around.wrong.push(format!("two engines of {name} on {}", facts.node));
        }
        self.left.remove(name);
        let process = EngineProcess {
            volume_uid: volume.metadata.uid.clone(),
            instance: start.instance.clone(),
            turn: engine.spec.turn,
            size_bytes: volume.size_bytes(),
            stage: Stage::Opening,
            members: Vec::new(),
            generation: Generation::FIRST,
            replicas: engine.spec.replicas.iter().map(|it| it.replica.clone()).collect(),
            missed: 0,
            rebuilt: BTreeMap::new(),
            last: 0,
        };
        around.machine.engines.insert(name.clone(), process);
        true
    }

    /// An engine of this machine ended.
    pub fn ended(&mut self, name: &Name, was_asked: bool) {
        if was_asked {
            self.left.insert(name.clone());
        }
    }

    fn look_at_replica(&mut self, around: &mut Around<'_>, name: &Name) {
        let Some(seen) = self.replicas.get(name).cloned() else { return };
        let place = Place {
            volume: seen.spec.volume.clone(),
            uid: seen.spec.volume_uid.clone(),
            replica: seen.spec.id.clone(),
        };
        let facts = replica_facts(around.machine, &seen, &place);
        let mut plan = replica::plan(&facts);
        for action in &plan.actions {
            let text = format!("{:?} {} {name}: {action}", around.now, around.machine.name);
            around.log.push(text);
            if !do_to_replica(around, &seen, &place, *action) {
                break;
            }
        }
        if plan.actions.contains(&ReplicaAction::Release) {
            return;
        }
        if !plan.actions.is_empty() {
            // What was done is seen at once.
            plan = replica::plan(&replica_facts(around.machine, &seen, &place));
        }
        let conditions = std::mem::take(&mut plan.status.conditions);
        plan.status.conditions =
            dated(conditions, &seen.status.conditions, timestamp(around.now), 0);
        if plan.status != seen.status {
            let written = Replica { status: plan.status, ..seen };
            let _ = around.store.replace_status(&written);
        }
    }
}

fn remember<S: ankole_api::object::Spec>(known: &mut BTreeMap<Name, Object<S>>, heard: Heard<S>) {
    match heard {
        Heard::Applied(object) => drop(known.insert(object.name().clone(), object)),
        Heard::Deleted(object) => drop(known.remove(object.name())),
        Heard::All(objects) => {
            *known = objects.into_iter().map(|it| (it.name().clone(), it)).collect();
        }
    }
}

fn said(name: &Name, process: &EngineProcess) -> admin::EngineStatus {
    let is_usable = process.stage == Stage::Open;
    let mode = |replica: &ankole_replica::types::ReplicaId| {
        let is_member = process.members.iter().any(|it| it.replica == *replica);
        match is_member {
            true => admin::ReplicaMode::ReadWrite,
            false => admin::ReplicaMode::Error,
        }
    };
    let replicas = process.replicas.iter().map(|replica| admin::ReplicaStatus {
        replica: replica.clone(),
        address: address(name, replica),
        mode: mode(replica),
        reason: None,
        is_older: false,
        rebuild: None,
        last_rebuild: None,
    });
    admin::EngineStatus {
        volume: name.to_string(),
        version: None,
        instance: process.instance.clone(),
        generation: process.generation,
        size_bytes: process.size_bytes,
        endpoint: is_usable.then(|| format!("nbd+unix:///{name}")),
        replicas: replicas.collect(),
        unsettled_bytes: 0,
        repaired_blocks: 0,
        unverified_bytes: 0,
        damage: admin::Damage::default(),
        full: Vec::new(),
        waiting: Vec::new(),
        clients: 0,
        snapshots: Vec::new(),
        head_bytes: 0,
        head_parent: None,
        requests: admin::RequestCounts::default(),
    }
}

fn address(volume: &Name, replica: &ankole_replica::types::ReplicaId) -> String {
    format!("tcp:{volume}-{replica}:1")
}

fn replica_facts(machine: &Machine, replica: &Replica, place: &Place) -> ReplicaFacts {
    let is_running = machine.replicas.contains(place);
    let directory = machine.directory(place);
    let is_looked_at = !is_running || replica.status.incarnation.is_none();
    ReplicaFacts {
        node: machine.name.clone(),
        evidence: is_looked_at.then(|| Box::new(machine.evidence(place))),
        damaged: directory.filter(|it| it.damaged && !is_running).map(|_| "a bad sum".into()),
        newest: directory.filter(|_| !is_running).and_then(|it| it.seen),
        process: is_running.then_some(ReplicaProcess { pid: 1, asked_to_end: None }),
        history: History::default(),
        address: address(&place.volume, &place.replica),
        set_aside: Vec::new(),
        is_stopping: false,
        replica: replica.clone(),
    }
}

/// As the real one: what may hold data isn't formatted whatever was planned. That it was planned is
/// wrong all the same.
fn do_to_replica(
    around: &mut Around<'_>,
    seen: &Replica,
    place: &Place,
    action: ReplicaAction,
) -> bool {
    let volume = around.store.get::<ankole_api::objects::VolumeSpec>(&place.volume);
    let record = volume.as_ref().and_then(|volume| volume.status.record.clone());
    let machine = &mut *around.machine;
    match action {
        ReplicaAction::Format => {
            if seen.spec.make == Make::Never {
                around.wrong.push(format!("{place:?} is formatted and holds all there is"));
            }
            if machine.directory(place).is_some_and(|it| it.seen.is_some()) {
                around.wrong.push(format!("{place:?} is formatted and may hold data"));
            }
            if !machine.is_unmounted {
                let incarnation = Incarnation(around.random.number().into());
                let new = Directory { incarnation, seen: None, holds: 0, damaged: false };
                machine.directories.insert(place.clone(), new);
            }
        }
        ReplicaAction::SetAside => {
            if let Some(directory) = machine.directories.remove(place) {
                let member = |record: &Record| {
                    let mut members = record.in_sync.iter();
                    members.any(|it| it.incarnation == directory.incarnation)
                };
                if record.as_ref().is_some_and(member) {
                    around.wrong.push(format!("{place:?} is in sync and set aside"));
                }
                machine.aside.push((place.clone(), directory));
            }
        }
        ReplicaAction::Start => {
            if machine.directory(place).is_none_or(|directory| directory.damaged) {
                return false;
            }
            machine.replicas.insert(place.clone());
        }
        ReplicaAction::End | ReplicaAction::Kill => drop(machine.replicas.remove(place)),
        ReplicaAction::RemoveDirectory => {
            if volume.as_ref().is_none_or(|volume: &Volume| !volume.is_ending()) {
                around.wrong.push(format!("{place:?} is removed and its volume isn't"));
            }
            machine.directories.remove(place);
            around.removed.push(place.uid.clone());
        }
        ReplicaAction::Release => {
            let mut object = seen.clone();
            object.metadata.finalizers.remove(DIRECTORY_FINALIZER);
            return around.store.replace(&object).is_ok();
        }
    }
    true
}

pub fn timestamp(now: Duration) -> Timestamp {
    Timestamp::from_second(now.as_secs() as i64).expect("a time of our days")
}
