//! The volume's planner: from objects to objects. It decides which replicas there are and where, on
//! which node an engine may be, and what is lost; never what a node does for it.
//!
//! ```text
//! new ─▶ marked ─▶ replicas made ─▶ first record        (the mark goes last: see `Recorded`)
//! ticket    a node is chosen ─▶ its engine and the replicas are wanted
//! no ticket the engine is to end ─▶ has ended ─▶ the replicas end
//! moved     as without a ticket, then as with one; from a node that is gone: at once, the record fences
//! deleted   as without a ticket ─▶ replicas deleted ─▶ engine deleted ─▶ released
//! ```
//! What may never happen: a second node is named while the first may still name an engine; a replica
//! that may hold acknowledged data is allowed to be made anew; a volume without its record is taken
//! for a new one.

mod detach;
mod place;
pub mod replicas;
#[cfg(test)]
mod scenarios;
pub mod shown;
#[cfg(test)]
mod upgraded;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ankole_api::Name;
use ankole_api::objects::engine::EngineWanted;
use ankole_api::objects::volume::{DATA_FINALIZER, Recorded, UNFORMATTED};
use ankole_api::objects::{
    Condition, Engine, EngineSpec, Replica, ReplicaSpec, Volume, VolumeAttachment, VolumeStatus,
};
use ankole_api::volume::{Reason, State, salvage_hint};
use ankole_replica::record::Record;
use ankole_replica::types::{Generation, ReplicaId};

/// All that there is of one volume.
#[derive(Clone, Debug)]
pub struct Known {
    pub volume: Volume,
    pub attachment: Option<VolumeAttachment>,
    pub engine: Option<Engine>,
    /// By name.
    pub replicas: Vec<Replica>,
    pub nodes: Arc<Nodes>,
    /// A person chooses a copy: nothing of it may run.
    pub is_held: bool,
}

/// All that there are, by name.
pub type Nodes = BTreeMap<String, NodeSeen>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    pub life: Life,
    /// New replicas may be placed there.
    pub takes_replicas: bool,
    /// Free bytes of each disk, by its folder.
    pub disks: BTreeMap<PathBuf, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Ready,
    /// Its agent hasn't been heard of for a while. What runs there may well go on.
    Silent,
    /// For so long that its volumes are given to others.
    Gone,
}

/// Changes of objects, to be made in their order; when one fails the rest waits for the next pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub writes: Vec<Write>,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// It may have data from now on, and has none yet.
    Mark,
    /// It has a record.
    Unmark,
    /// Of the volume, without conditions, state and robustness.
    Status(VolumeStatus),
    CreateReplica(Replica),
    SetReplica(Name, ReplicaSpec),
    DeleteReplica(Name),
    CreateEngine(Engine),
    SetEngine(EngineSpec),
    DeleteEngine,
    DeleteAttachment,
    /// Nothing of the volume is left but the object.
    Release,
}

pub fn plan(known: &Known) -> Plan {
    let mut plan = Plan::default();
    if known.is_held {
        plan.still(known);
    } else if known.volume.is_ending() {
        plan.end(known);
    } else {
        match known.volume.recorded() {
            Recorded::New => plan.write(Write::Mark),
            Recorded::Unformatted => plan.make(known),
            Recorded::Lost => plan.tell_lost(known),
            Recorded::As(record) => plan.keep(known, record),
        }
    }
    plan
}

/// Node and disk of each replica, if the volume was made now; none if there is no place.
pub fn places_of_new(known: &Known) -> Vec<(String, PathBuf)> {
    place::places(known, known.volume.spec.replicas.into()).unwrap_or_default()
}

impl Plan {
    fn write(&mut self, write: Write) {
        self.writes.push(write);
    }

    fn note(&mut self, condition: Condition) {
        self.conditions.push(condition);
    }

    fn keep(&mut self, known: &Known, record: &Record) {
        if known.volume.metadata.annotations.contains_key(UNFORMATTED) {
            self.write(Write::Unmark);
        }
        if known.is_wanted() && self.may_be_attached(known, record) {
            self.attach(known, record);
        } else {
            self.detach(known);
        }
        self.keep_replicas(known, record);
        self.note_size(known);
    }

    /// Each grant would raise the record, until it is above what the replicas have seen: then they
    /// would take it for new, and with it a set that lacks acknowledged writes.
    fn may_be_attached(&mut self, known: &Known, record: &Record) -> bool {
        let newest = known.replicas.iter().filter_map(|replica| {
            Some((replica.status.newest_generation?, replica.spec.id.clone()))
        });
        let name = known.volume.name();
        if let Some(rolled_back) = rolled_back(name, record, newest.max()) {
            self.note(rolled_back);
            return false;
        }
        let may_serve = |replica: &Replica| {
            replica.status.is_there()
                && is_member(record, replica)
                && known.lives(&replica.spec.node)
        };
        if !known.replicas.iter().any(may_serve) {
            let message = "no replica of the in-sync set can be served";
            self.note(Condition::new(Reason::NoReplica, message).next(salvage_hint(name)));
            // One that is wanted already may still reach one of which no agent tells; it waits, and
            // two managers that know different nodes don't fight over it.
            let is_wanted =
                |engine: &Engine| matches!(engine.spec.wanted, EngineWanted::Attached { .. });
            return known.engine.as_ref().is_some_and(is_wanted);
        }
        true
    }

    fn attach(&mut self, known: &Known, record: &Record) {
        let node = match known.node_for_engine(record) {
            Ok(node) => node,
            Err(why) => {
                return self.note(Condition::new(Reason::NoNode, why).next("ankole node ls"));
            }
        };
        let present = known.volume.status.node.as_deref();
        if present == Some(node.as_str()) {
            return self.want_engine(known, &node, known.attached());
        }
        if let Some(present) = present
            && !known.has_left(present)
        {
            let message = format!("it moves from node {present} to {node}");
            self.note(Condition::new(Reason::Stopping, message));
            return self.want_engine(known, present, EngineWanted::Detached);
        }
        // First who may name an engine, then who is asked to.
        let status = VolumeStatus {
            node: Some(node.clone()),
            state: Some(State::Attaching),
            ..known.volume.status.clone()
        };
        self.write(Write::Status(status));
        self.want_engine(known, &node, known.attached());
    }

    fn want_engine(&mut self, known: &Known, node: &str, wanted: EngineWanted) {
        let is_wanted = matches!(wanted, EngineWanted::Attached { .. });
        let spec = match &known.engine {
            // What it serves with until it ends doesn't change any more.
            Some(engine) if !is_wanted => EngineSpec { wanted, ..engine.spec.clone() },
            _ => known.engine_spec(node, wanted),
        };
        match &known.engine {
            None => {
                let engine = Engine::new(known.volume.name().clone(), spec);
                self.write(Write::CreateEngine(engine.owned_by(&known.volume)));
            }
            Some(engine) if engine.spec != spec => self.write(Write::SetEngine(spec)),
            Some(_) => {}
        }
    }

    fn note_size(&mut self, known: &Known) {
        let status = &known.volume.status;
        let size_bytes = known.engine.as_ref().and_then(|engine| engine.status.size_bytes);
        if size_bytes.is_some() && size_bytes != status.size_bytes {
            let last = self.writes.iter_mut().rev();
            let changed = last.filter_map(|write| match write {
                Write::Status(status) => Some(status),
                _ => None,
            });
            match { changed }.next() {
                Some(changed) => changed.size_bytes = size_bytes,
                None => self.write(Write::Status(VolumeStatus { size_bytes, ..status.clone() })),
            }
        }
    }

    /// What runs goes on as it is while it is wanted: what it can't do without its record it says
    /// itself.
    fn tell_lost(&mut self, known: &Known) {
        if !known.is_wanted() && self.detach(known) {
            self.stop_replicas(known);
        }
        let of = |replica: &Replica| {
            let generation = replica.status.newest_generation;
            let seen = generation.map_or("unknown".into(), |newest| format!("has seen {newest}"));
            format!("{}: {seen}", replica.spec.id)
        };
        let found = known.replicas.iter().map(of).collect::<Vec<_>>().join("; ");
        let message = format!(
            "the record of who is in sync is lost, and what its directories hold is left as it is ({found})"
        );
        let hint = salvage_hint(known.volume.name());
        self.note(Condition::new(Reason::RecordLost, message).next(hint));
    }
}

impl Known {
    /// Somebody has a ticket.
    fn is_wanted(&self) -> bool {
        self.attachment.as_ref().is_some_and(|it| !it.spec.tickets.is_empty())
    }

    fn node(&self, name: &str) -> Option<&NodeSeen> {
        self.nodes.get(name)
    }

    /// As far as is known: a node that is silent for a moment isn't dead.
    fn lives(&self, node: &str) -> bool {
        self.node(node).is_some_and(|node| node.life != Life::Gone)
    }

    fn is_ready(&self, node: &str) -> bool {
        self.node(node).is_some_and(|node| node.life == Life::Ready)
    }

    /// Whether that node's agent can't name an engine any more, or what it names is fenced.
    fn has_left(&self, node: &str) -> bool {
        let ended = |engine: &Engine| engine.spec.node != node || engine.has_ended();
        !self.lives(node) || self.engine.as_ref().is_none_or(ended)
    }

    fn attached(&self) -> EngineWanted {
        let read_only = self.attachment.as_ref().is_some_and(|it| it.spec.is_read_only());
        EngineWanted::Attached { read_only }
    }

    /// Where the ticket says; else where it is; else beside a replica that is in sync.
    fn node_for_engine(&self, record: &Record) -> Result<String, String> {
        let asked = self.attachment.as_ref().and_then(|it| it.spec.node());
        let present = self.volume.status.node.as_deref().filter(|node| self.lives(node));
        match asked {
            Some(asked) if present == Some(asked) || self.is_ready(asked) => {
                return Ok(asked.to_owned());
            }
            Some(asked) => return Err(format!("node {asked}, where it is wanted, isn't there")),
            None => {}
        }
        if let Some(present) = present {
            return Ok(present.to_owned());
        }
        let members = self.replicas.iter().filter(|replica| is_member(record, replica));
        let beside = members.map(|replica| replica.spec.node.as_str());
        let any = self.nodes.keys().map(String::as_str);
        let ready = beside.chain(any).find(|node| self.is_ready(node));
        ready.map(str::to_owned).ok_or_else(|| "no node that is ready can have its engine".into())
    }

    fn engine_spec(&self, node: &str, wanted: EngineWanted) -> EngineSpec {
        let volume = &self.volume.spec;
        EngineSpec {
            volume_uid: self.volume.metadata.uid.clone(),
            node: node.into(),
            wanted,
            frontend: volume.frontend,
            size_bytes: volume.size_bytes.max(self.volume.size_bytes()),
            replicas: self.addresses(),
            in_engine: volume.in_engine,
            program: volume.engine.program.clone(),
            turn: volume.engine.turn,
        }
    }
}

/// `newest` is what a replica has seen, the newest of all. None: the record can be trusted.
pub fn rolled_back(
    volume: &Name,
    record: &Record,
    newest: Option<(Generation, ReplicaId)>,
) -> Option<Condition> {
    let (newest, replica) = newest.filter(|(newest, _)| *newest > record.generation)?;
    let message = format!(
        "the record of who is in sync is at {}, but replica {replica} has seen {newest}: it was brought back from an older copy, and no engine may trust it",
        record.generation
    );
    Some(Condition::new(Reason::RecordRolledBack, message).next(salvage_hint(volume)))
}

/// By its name within the volume: also a directory that isn't the one that is recorded may be all
/// that there is of it.
fn is_member(record: &Record, replica: &Replica) -> bool {
    record.in_sync.iter().any(|member| member.replica == replica.spec.id)
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark => write!(f, "mark it as never formatted ({DATA_FINALIZER}, {UNFORMATTED})"),
            Self::Unmark => write!(f, "take the mark {UNFORMATTED} away"),
            Self::Status(status) => {
                f.write_str("status:")?;
                if let Some(record) = &status.record {
                    write!(f, " {}", record.generation)?;
                }
                write!(f, " node {}", status.node.as_deref().unwrap_or("none"))?;
                status.size_bytes.iter().try_for_each(|bytes| write!(f, " {bytes} bytes"))
            }
            Self::CreateReplica(replica) => write!(f, "create replica {}", Told(&replica.spec)),
            Self::SetReplica(_, spec) => write!(f, "replica {}", Told(spec)),
            Self::DeleteReplica(name) => write!(f, "delete replica {name}"),
            Self::CreateEngine(engine) => write!(f, "create engine {}", Told(&engine.spec)),
            Self::SetEngine(spec) => write!(f, "engine {}", Told(spec)),
            Self::DeleteEngine => f.write_str("delete the engine"),
            Self::DeleteAttachment => f.write_str("delete the attachment"),
            Self::Release => f.write_str("release the volume"),
        }
    }
}

struct Told<'a, T>(&'a T);

impl fmt::Display for Told<'_, ReplicaSpec> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ReplicaSpec { id, node, disk, served, make, keeps_data, .. } = self.0;
        let served = if *served { "served" } else { "stopped" };
        write!(f, "{id} on {node} in {}: {served}, make {make:?}", disk.display())?;
        f.write_str(if *keeps_data { ", keeps its data" } else { "" })
    }
}

impl fmt::Display for Told<'_, EngineSpec> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EngineSpec { node, wanted, size_bytes, replicas, turn, .. } = self.0;
        let replicas: Vec<_> = replicas.iter().map(|it| it.replica.to_string()).collect();
        let replicas = replicas.join(" ");
        write!(f, "on {node}: {wanted:?}, {size_bytes} bytes, turn {turn}, of {replicas}")
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.writes.iter().try_for_each(|write| writeln!(f, "do: {write}"))?;
        for Condition { reason, message, next, .. } in &self.conditions {
            writeln!(f, "{reason:?}: {message}")?;
            next.iter().try_for_each(|next| writeln!(f, "  next: {next}"))?;
        }
        Ok(())
    }
}
