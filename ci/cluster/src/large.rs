//! A large cluster that is at rest, one manager, and what each event costs it.

use std::time::Duration;

use ankole_api::Name;
use ankole_api::attachment::TicketKind;
use ankole_api::object::Object;
use ankole_api::objects::attachment::Ticket;
use ankole_api::objects::engine::{EnginePhase, ReplicaSeen};
use ankole_api::objects::node::{DiskStatus, LeaseSpec};
use ankole_api::objects::replica::{Make, ReplicaPhase};
use ankole_api::objects::volume::DATA_FINALIZER;
use ankole_api::objects::{
    AttachmentSpec, Engine, EngineSpec, Node, NodeSpec, Replica, ReplicaSpec, Volume,
    VolumeAttachment, VolumeSpec,
};
use ankole_api::volume::{Frontend, Transport};
use ankole_plan::volume::replicas::{folder_of, name_of};
use ankole_replica::admin::{ReplicaAddress, ReplicaMode};
use ankole_replica::record::{EngineGrant, InstanceId, Member, Record};
use ankole_replica::types::{Incarnation, ReplicaId};
use ankole_store::Selector;

use crate::agent::timestamp;
use crate::manager::Manager;
use crate::store::Store;

pub struct Large {
    pub store: Store,
    pub manager: Manager,
    pub now: Duration,
    nodes: usize,
    silent: Vec<usize>,
}

impl Large {
    /// All volumes are attached and healthy; volume `i` has its engine on node `i`, and replicas on
    /// that and the next two, round and round.
    pub fn new(volumes: usize, nodes: usize) -> Self {
        let mut large = Self {
            store: Store::default(),
            manager: Manager::default(),
            now: Duration::from_secs(1),
            nodes,
            silent: Vec::new(),
        };
        for number in 0..nodes {
            large.add_node(number);
        }
        // The manager knows a node's life by its second lease.
        large.turn();
        large.renew();
        large.turn();
        for number in 0..volumes {
            large.add_volume(number);
            // Else the history of the store would be too short.
            if number % 256 == 0 {
                large.turn();
            }
        }
        large.turn();
        large.turn();
        large
    }

    pub fn turn(&mut self) {
        self.manager.turn(&mut self.store, self.now, &mut Vec::new());
    }

    /// Time goes by in steps of three seconds, in which all nodes say that they live.
    pub fn rest(&mut self, steps: usize) {
        for _ in 0..steps {
            self.now += Duration::from_secs(3);
            self.renew();
            self.turn();
        }
    }

    pub fn die(&mut self, node: usize) {
        self.silent.push(node);
    }

    /// An engine misses one of its replicas, or has it again.
    pub fn disturb(&mut self, volume: usize, mode: ReplicaMode) {
        let name = volume_name(volume);
        let mut engine = self.store.get::<EngineSpec>(&name).expect("it is there");
        engine.status.replicas[2].mode = mode;
        self.store.replace_status(&engine).expect("nobody came in between");
    }

    fn renew(&mut self) {
        for number in (0..self.nodes).filter(|it| !self.silent.contains(it)) {
            let name = node_name(number);
            let mut lease = self.store.get::<LeaseSpec>(&name).expect("it is there");
            lease.spec.renewed = timestamp(self.now);
            self.store.replace(&lease).expect("nobody came in between");
        }
    }

    fn add_node(&mut self, number: usize) {
        let name: Name = node_name(number).parse().expect("a short name");
        self.store.create(&Node::new(name.clone(), NodeSpec::default())).expect("it is new");
        let mut node = self.store.get::<NodeSpec>(&name).expect("it was made");
        let disk = DiskStatus { capacity_bytes: 1 << 40, free_bytes: 1 << 39 };
        node.status.disks = [("/disk".into(), disk)].into();
        self.store.replace_status(&node).expect("nobody came in between");
        let renewed = timestamp(Duration::ZERO);
        self.store.create(&Object::new(name, LeaseSpec { renewed })).expect("it is new");
    }

    fn add_volume(&mut self, number: usize) {
        let name: Name = volume_name(number).parse().expect("a short name");
        let on = |number: usize| node_name(number % self.nodes);
        let spec = VolumeSpec {
            size_bytes: 1 << 30,
            replicas: 3,
            frontend: Frontend::Socket,
            transport: Transport::Tcp,
            in_engine: false,
            engine: Default::default(),
            from_backup: None,
        };
        let mut volume = Volume::new(name.clone(), spec);
        volume.metadata.finalizers.insert(DATA_FINALIZER.into());
        self.store.create(&volume).expect("it is new");
        let mut volume = self.store.get::<VolumeSpec>(&name).expect("it was made");
        let ids: Vec<_> = (1..4).map(|it| ReplicaId::from(format!("r{it}").as_str())).collect();
        let member = |id: &ReplicaId| Member { replica: id.clone(), incarnation: Incarnation(1) };
        let mut record = Record::first(ids.iter().map(member).collect());
        let instance = InstanceId("e1".into());
        record.engine = Some(EngineGrant { node: on(number), instance: instance.clone() });
        volume.status.record = Some(record);
        volume.status.node = Some(on(number));
        volume.status.size_bytes = Some(1 << 30);

        let mut addresses = Vec::new();
        for (id, at) in ids.iter().zip(number..) {
            let address = format!("tcp:10.0.0.{}:{}", at % 256, 1024 + number);
            let replica = ReplicaSpec {
                volume: name.clone(),
                volume_uid: volume.metadata.uid.clone(),
                id: id.clone(),
                node: on(at),
                disk: "/disk".into(),
                folder: folder_of(&volume, id),
                size_bytes: 1 << 30,
                transport: Transport::Tcp,
                in_engine: false,
                served: true,
                make: Make::Never,
                keeps_data: false,
            };
            let replica = Replica::new(name_of(&volume, id), replica).owned_by(&volume);
            self.store.create(&replica).expect("it is new");
            let mut replica = self.store.get::<ReplicaSpec>(replica.name()).expect("it was made");
            replica.status.phase = Some(ReplicaPhase::Served);
            replica.status.address = Some(address.clone());
            replica.status.incarnation = Some(Incarnation(1));
            self.store.replace_status(&replica).expect("nobody came in between");
            addresses.push(ReplicaAddress { replica: id.clone(), address });
        }
        let engine = EngineSpec {
            volume_uid: volume.metadata.uid.clone(),
            node: on(number),
            wanted: ankole_api::objects::engine::EngineWanted::Attached { read_only: false },
            frontend: Frontend::Socket,
            size_bytes: 1 << 30,
            replicas: addresses,
            in_engine: false,
            program: None,
            turn: 0,
        };
        self.store.create(&Engine::new(name.clone(), engine).owned_by(&volume)).expect("it is new");
        let mut engine = self.store.get::<EngineSpec>(&name).expect("it was made");
        let seen =
            |id: &ReplicaId| ReplicaSeen { replica: id.clone(), mode: ReplicaMode::ReadWrite };
        engine.status.phase = Some(EnginePhase::Attached);
        engine.status.node = on(number);
        engine.status.observed_generation = 1;
        engine.status.instance = Some(instance);
        engine.status.endpoint = Some(format!("nbd+unix:///{name}"));
        engine.status.size_bytes = Some(1 << 30);
        engine.status.replicas = ids.iter().map(seen).collect();
        self.store.replace_status(&engine).expect("nobody came in between");
        let node = Some(on(number));
        let ticket = Ticket { kind: TicketKind::User, node, read_only: false };
        let spec = AttachmentSpec { tickets: [("user".to_owned(), ticket)].into() };
        self.store.create(&VolumeAttachment::new(name, spec)).expect("it is new");
        self.store.replace_status(&volume).expect("nobody came in between");
    }

    /// Writes since the beginning, but those that say that nodes live.
    pub fn writes(&self) -> u64 {
        let writes = self.store.writes.iter();
        writes.filter(|(kind, _)| **kind != "Lease").map(|(_, count)| count).sum()
    }

    pub fn volumes(&self) -> Vec<Volume> {
        self.store.list(&Selector::all())
    }
}

fn node_name(number: usize) -> String {
    format!("n{number}")
}

fn volume_name(number: usize) -> String {
    format!("v{number}")
}
