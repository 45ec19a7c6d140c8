//! A manager: it hears of everything, plans, and writes.

use std::collections::BTreeMap;
use std::time::Duration;

use ankole_api::Name;
use ankole_api::object::{Object, Spec};
use ankole_api::objects::condition::dated;
use ankole_api::objects::node::{Lease, LeaseSpec};
use ankole_api::objects::volume::{DATA_FINALIZER, UNFORMATTED};
use ankole_api::objects::{
    AttachmentSpec, Engine, EngineSpec, NodeSpec, Replica, ReplicaSpec, Volume, VolumeSpec,
    VolumeStatus,
};
use ankole_api::volume::Reason;
use ankole_plan::manager::{Gone, Manager as Memory, Told};
use ankole_plan::volume::{Known, Plan, Write, plan, shown};
use ankole_store::{Selector, StoreError};

use crate::agent::timestamp;
use crate::store::{Cursor, Heard, Store};

#[derive(Default)]
pub struct Manager {
    memory: Memory,
    volumes: Cache<VolumeSpec>,
    attachments: Cache<AttachmentSpec>,
    engines: Cache<EngineSpec>,
    replicas: Cache<ReplicaSpec>,
    nodes: Cache<NodeSpec>,
    leases: Cache<LeaseSpec>,
    /// Plans that it made.
    pub passes: u64,
}

impl Manager {
    pub fn turn(&mut self, store: &mut Store, now: Duration, log: &mut Vec<String>) {
        self.hear(store, now);
        self.memory.tick(now);
        while let Some(known) = self.memory.next_volume() {
            self.pass(store, &known, now, log);
        }
    }

    fn hear(&mut self, store: &Store, now: Duration) {
        let memory = &mut self.memory;
        self.nodes.hear(store, now, memory, Told::Node, |name| Some(Gone::Node(name.to_string())));
        let lease = |it: Lease| Told::Lease(it.name().to_string(), it.spec.renewed);
        self.leases.hear(store, now, memory, lease, |_| None);
        self.volumes.hear(store, now, memory, Told::Volume, |name| Some(Gone::Volume(name)));
        self.replicas.hear(store, now, memory, Told::Replica, |name| Some(Gone::Replica(name)));
        self.engines.hear(store, now, memory, Told::Engine, |name| Some(Gone::Engine(name)));
        self.attachments
            .hear(store, now, memory, Told::Attachment, |name| Some(Gone::Attachment(name)));
    }

    fn pass(&mut self, store: &mut Store, known: &Known, now: Duration, log: &mut Vec<String>) {
        self.passes += 1;
        let plan = plan(known);
        let waits = plan.conditions.iter().any(|condition| condition.reason == Reason::NoNode);
        self.memory.waits_for_nodes(known.volume.name(), waits);
        for write in &plan.writes {
            log.push(format!("{now:?} {}: {write}", known.volume.name()));
            if carry_out(store, known, write).is_err() {
                // Somebody changed it: that is heard of.
                return;
            }
        }
        if plan.writes.is_empty() {
            show(store, known, &plan, now, log);
        }
    }
}

/// What was heard of a kind.
struct Cache<S: Spec> {
    cursor: Cursor,
    known: BTreeMap<Name, Object<S>>,
}

impl<S: Spec> Default for Cache<S> {
    fn default() -> Self {
        Self { cursor: Cursor::default(), known: BTreeMap::new() }
    }
}

impl<S: Spec> Cache<S> {
    fn hear(
        &mut self,
        store: &Store,
        now: Duration,
        memory: &mut Memory,
        told: impl Fn(Object<S>) -> Told,
        gone: impl Fn(Name) -> Option<Gone>,
    ) {
        for it in store.hear::<S>(&mut self.cursor, &Selector::all()) {
            match it {
                Heard::Applied(object) => {
                    self.known.insert(object.name().clone(), object.clone());
                    memory.applied(told(object), now);
                }
                Heard::Deleted(object) => {
                    self.known.remove(object.name());
                    gone(object.name().clone()).into_iter().for_each(|it| drop(memory.gone(it)));
                }
                Heard::All(objects) => {
                    let all = objects.into_iter().map(|it| (it.name().clone(), it)).collect();
                    let before = std::mem::replace(&mut self.known, all);
                    let is_gone = |name: &Name| !self.known.contains_key(name);
                    let missing = before.into_keys().filter(is_gone).filter_map(&gone);
                    missing.for_each(|it| drop(memory.gone(it)));
                    for object in self.known.values() {
                        memory.applied(told(object.clone()), now);
                    }
                }
            }
        }
    }
}

fn carry_out(store: &mut Store, known: &Known, write: &Write) -> Result<(), StoreError> {
    let volume = || known.volume.clone();
    let replica = |name: &Name| {
        let found = known.replicas.iter().find(|replica| replica.name() == name);
        found.expect("it is known").clone()
    };
    match write {
        Write::Mark => {
            let mut volume = volume();
            volume.metadata.finalizers.insert(DATA_FINALIZER.into());
            volume.metadata.annotations.insert(UNFORMATTED.into(), String::new());
            store.replace(&volume)
        }
        Write::Unmark => {
            let mut volume = store.get::<VolumeSpec>(known.volume.name()).unwrap_or_else(volume);
            if volume.status.record.is_none() {
                return Ok(()); // it is needed again
            }
            volume.metadata.annotations.remove(UNFORMATTED);
            store.replace(&volume)
        }
        Write::Status(status) => {
            store.replace_status(&Volume { status: status.clone(), ..volume() })
        }
        Write::CreateReplica(replica) => store.create(replica),
        Write::SetReplica(name, spec) => {
            store.replace(&Replica { spec: spec.clone(), ..replica(name) })
        }
        Write::DeleteReplica(name) => store.delete::<ReplicaSpec>(name),
        Write::CreateEngine(engine) => store.create(engine),
        Write::SetEngine(spec) => {
            let engine = known.engine.clone().expect("it is known");
            store.replace(&Engine { spec: spec.clone(), ..engine })
        }
        Write::DeleteEngine => store.delete::<EngineSpec>(known.volume.name()),
        Write::DeleteAttachment => store.delete::<AttachmentSpec>(known.volume.name()),
        Write::Release => {
            let mut volume = volume();
            volume.metadata.finalizers.remove(DATA_FINALIZER);
            store.replace(&volume)
        }
    }
}

/// How it is shown, if that has changed.
fn show(store: &mut Store, known: &Known, plan: &Plan, now: Duration, log: &mut Vec<String>) {
    let before = &known.volume.status;
    let conditions = shown::conditions(known, &plan.conditions);
    let generation = known.volume.metadata.generation;
    let conditions = dated(conditions, &before.conditions, timestamp(now), generation);
    let status = VolumeStatus {
        state: Some(shown::state(known)),
        robustness: Some(shown::robustness(known)),
        conditions,
        ..before.clone()
    };
    if status != *before {
        log.push(format!(
            "{now:?} {}: shown {:?} {:?} {:?}",
            known.volume.name(),
            status.state,
            status.robustness,
            status.conditions
        ));
        let _ = store.replace_status(&Volume { status, ..known.volume.clone() });
    }
}
