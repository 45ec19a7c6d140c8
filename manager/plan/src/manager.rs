//! The manager's memory: all objects, by the volume that they belong to, and what has to be looked at.
//! Pure: it is told what changed and what time it is, and says whose turn it is.
//!
//! ```text
//! watch ──tell──▶ volumes, nodes ──▶ queue ──next_volume──▶ Known ──plan──▶ Plan ──(the shell writes)──▶ store
//! ```
//! Each change costs the work of its own volume, whatever else there is; a node's life and death that
//! of the volumes which are on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ankole_api::Name;
use ankole_api::objects::{Engine, Node, Replica, Volume, VolumeAttachment};

use jiff::Timestamp;

use crate::volume::{Known, Life, NodeSeen, Nodes};

/// A lease is renewed three times as often.
pub const SILENT_AFTER: Duration = Duration::from_secs(6);
/// Its volumes are given to others then.
pub const GONE_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Manager {
    volumes: BTreeMap<Name, Objects>,
    /// By the names of replicas.
    volume_of: BTreeMap<Name, Name>,
    nodes: Arc<Nodes>,
    leases: BTreeMap<String, Lease>,
    /// When a node's life may have changed, by time.
    due: BTreeSet<(Duration, String)>,
    /// The volumes that have something on a node, or are wanted there.
    on_node: BTreeMap<String, BTreeSet<Name>>,
    /// Those whose plan any node could change.
    waiting: BTreeSet<Name>,
    queue: BTreeSet<Name>,
}

#[derive(Debug, Default)]
struct Objects {
    volume: Option<Volume>,
    attachment: Option<VolumeAttachment>,
    engine: Option<Engine>,
    replicas: BTreeMap<Name, Replica>,
    is_held: bool,
    /// Where `on_node` has it.
    on: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    /// When it was last seen to be renewed, by this manager's clock: those of nodes may differ.
    renewed: Duration,
    /// What it said then.
    says: Option<Timestamp>,
    /// This manager has seen it being renewed; one that lies there says nothing.
    is_heard: bool,
    due: Option<Duration>,
}

/// What was changed or made.
#[derive(Clone, Debug)]
pub enum Told {
    Volume(Volume),
    Attachment(VolumeAttachment),
    Engine(Engine),
    Replica(Replica),
    Node(Node),
    /// That its agent lives, as of then by its own clock.
    Lease(String, Timestamp),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    Volume(Name),
    Attachment(Name),
    Engine(Name),
    Replica(Name),
    Node(String),
}

impl Manager {
    pub fn applied(&mut self, told: Told, now: Duration) {
        let name = match told {
            Told::Volume(volume) => {
                let name = volume.name().clone();
                self.objects(&name).volume = Some(volume);
                name
            }
            Told::Attachment(attachment) => {
                let name = attachment.name().clone();
                self.objects(&name).attachment = Some(attachment);
                name
            }
            Told::Engine(engine) => {
                let name = engine.name().clone();
                self.objects(&name).engine = Some(engine);
                name
            }
            Told::Replica(replica) => {
                let name = replica.spec.volume.clone();
                self.volume_of.insert(replica.name().clone(), name.clone());
                self.objects(&name).replicas.insert(replica.name().clone(), replica);
                name
            }
            Told::Node(node) => return self.note_node(&node, now),
            Told::Lease(node, says) => return self.note_lease(node, says, now),
        };
        self.changed(name);
    }

    /// There is none of that name any more. The volume that it was of, if it was of one.
    pub fn gone(&mut self, gone: Gone) -> Option<Name> {
        let name = match gone {
            Gone::Volume(name) => {
                self.objects(&name).volume = None;
                name
            }
            Gone::Attachment(name) => {
                self.objects(&name).attachment = None;
                name
            }
            Gone::Engine(name) => {
                self.objects(&name).engine = None;
                name
            }
            Gone::Replica(name) => {
                let volume = self.volume_of.remove(&name)?;
                self.objects(&volume).replicas.remove(&name);
                volume
            }
            Gone::Node(node) => {
                Arc::make_mut(&mut self.nodes).remove(&node);
                self.node_changed(&node);
                return None;
            }
        };
        self.changed(name.clone());
        Some(name)
    }

    /// Nodes that haven't been heard of for too long.
    pub fn tick(&mut self, now: Duration) {
        while let Some((at, _)) = self.due.first()
            && *at <= now
        {
            let (_, node) = self.due.pop_first().expect("it is the first");
            self.judge(&node, now);
        }
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_tick(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }

    /// While a person chooses a copy of it. Whether that is new.
    pub fn hold(&mut self, volume: &Name, is_held: bool) -> bool {
        let was_held = std::mem::replace(&mut self.objects(volume).is_held, is_held);
        self.changed(volume.clone());
        was_held != is_held
    }

    /// The volume that is to be planned next. None of one that doesn't exist (any more).
    pub fn next_volume(&mut self) -> Option<Known> {
        loop {
            let name = self.queue.pop_first()?;
            let known = self.known(&name);
            if known.is_some() {
                return known;
            }
        }
    }

    /// Its plan couldn't be carried out, or isn't at its end.
    pub fn look_again(&mut self, volume: &Name) {
        self.queue.insert(volume.clone());
    }

    /// Whether another node could do what none does now.
    pub fn waits_for_nodes(&mut self, volume: &Name, waits: bool) {
        if waits {
            self.waiting.insert(volume.clone());
        } else {
            self.waiting.remove(volume);
        }
    }

    pub fn known(&self, name: &Name) -> Option<Known> {
        let objects = self.volumes.get(name)?;
        let (attachment, engine) = (objects.attachment.clone(), objects.engine.clone());
        Some(self.known_with(objects.volume.clone()?, attachment, engine))
    }

    /// For who has newer ones of these: what belongs to them.
    pub fn known_with(
        &self,
        volume: Volume,
        attachment: Option<VolumeAttachment>,
        engine: Option<Engine>,
    ) -> Known {
        let objects = self.volumes.get(volume.name());
        // Of a volume of that name before this one: their end is awaited.
        let is_its = |engine: &Engine| engine.spec.volume_uid == volume.metadata.uid;
        let replicas = objects.into_iter().flat_map(|objects| objects.replicas.values());
        Known {
            replicas: replicas.filter(|it| it.is_owned_by(&volume)).cloned().collect(),
            attachment,
            engine: engine.filter(is_its),
            nodes: Arc::clone(&self.nodes),
            is_held: objects.is_some_and(|objects| objects.is_held),
            volume,
        }
    }

    pub fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    fn objects(&mut self, volume: &Name) -> &mut Objects {
        self.volumes.entry(volume.clone()).or_default()
    }

    fn changed(&mut self, name: Name) {
        let Some(objects) = self.volumes.get_mut(&name) else { return };
        let nodes = objects.nodes();
        let before = std::mem::replace(&mut objects.on, nodes.clone());
        for left in before.difference(&nodes) {
            if let Some(volumes) = self.on_node.get_mut(left) {
                volumes.remove(&name);
            }
        }
        if objects.is_empty() {
            self.volumes.remove(&name);
            self.waiting.remove(&name);
            self.queue.remove(&name);
            return;
        }
        for node in nodes {
            self.on_node.entry(node).or_default().insert(name.clone());
        }
        self.queue.insert(name);
    }

    fn note_node(&mut self, node: &Node, now: Duration) {
        let name = node.name().to_string();
        let before = self.nodes.get(&name);
        let disks = node.status.disks.iter();
        let seen = NodeSeen {
            life: before.map_or(Life::Silent, |before| before.life),
            takes_replicas: node.spec.allow_scheduling && !node.is_ending(),
            disks: disks.map(|(folder, disk)| (folder.clone(), disk.free_bytes)).collect(),
        };
        if before == Some(&seen) {
            return;
        }
        Arc::make_mut(&mut self.nodes).insert(name.clone(), seen);
        self.leases.entry(name.clone()).or_insert(Lease::silent(now));
        self.judge(&name, now);
        self.node_changed(&name);
    }

    fn note_lease(&mut self, node: String, says: Timestamp, now: Duration) {
        let lease = self.leases.entry(node.clone()).or_insert(Lease::silent(now));
        match lease.says.replace(says) {
            Some(before) if before != says => (lease.renewed, lease.is_heard) = (now, true),
            _ => {}
        }
        self.judge(&node, now);
    }

    fn judge(&mut self, node: &str, now: Duration) {
        let Some(lease) = self.leases.get_mut(node) else { return };
        let since = now.saturating_sub(lease.renewed);
        let (life, next) = if since >= GONE_AFTER {
            (Life::Gone, None)
        } else if since >= SILENT_AFTER || !lease.is_heard {
            (Life::Silent, Some(GONE_AFTER))
        } else {
            (Life::Ready, Some(SILENT_AFTER))
        };
        if let Some(before) = lease.due.take() {
            self.due.remove(&(before, node.into()));
        }
        lease.due = next.map(|after| lease.renewed + after);
        self.due.extend(lease.due.map(|due| (due, node.to_owned())));
        if self.nodes.get(node).is_some_and(|seen| seen.life != life) {
            Arc::make_mut(&mut self.nodes).get_mut(node).expect("it is there").life = life;
            self.node_changed(node);
        }
    }

    fn node_changed(&mut self, node: &str) {
        self.queue.extend(self.on_node.get(node).into_iter().flatten().cloned());
        self.queue.extend(self.waiting.iter().cloned());
    }
}

impl Lease {
    /// Of a node that is known, and not heard of yet.
    fn silent(now: Duration) -> Self {
        Self { renewed: now, says: None, is_heard: false, due: None }
    }
}

impl Objects {
    fn is_empty(&self) -> bool {
        self.volume.is_none()
            && self.attachment.is_none()
            && self.engine.is_none()
            && self.replicas.is_empty()
            && !self.is_held
    }

    fn nodes(&self) -> BTreeSet<String> {
        let named = self.volume.iter().filter_map(|volume| volume.status.node.clone());
        let engine = self.engine.iter().map(|engine| engine.spec.node.clone());
        let replicas = self.replicas.values().map(|replica| replica.spec.node.clone());
        let tickets = self.attachment.iter().flat_map(|it| it.spec.tickets.values());
        let tickets = tickets.filter_map(|ticket| ticket.node.clone());
        named.chain(engine).chain(replicas).chain(tickets).collect()
    }
}
