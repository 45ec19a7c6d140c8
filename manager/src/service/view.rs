//! A volume as it is shown: what its objects say, and what its agents know that isn't stored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ankole_api::objects::{Condition as Told, Engine, Replica, VolumeAttachment};
use ankole_plan::volume::{Known, plan, shown};
use ankole_replica::admin::{Answer, Damage, EngineStatus, Request};

use super::Service;
use crate::agent::node::Node;
use crate::agent::{Process, ProcessName, admin};
use crate::api::attachment::Ticket;
use crate::api::node::Finding;
use crate::api::replica::{Mode, ReplicaView, seconds_left};
use crate::api::volume::{Attachment, Condition, Frontend, Reason, Robustness, State, VolumeView};
use ankole_blockdev::device::Driver;

const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// What replicas take of their disks, by their directories.
pub(super) type Used = BTreeMap<PathBuf, u64>;

/// What a volume's engine says of itself.
#[derive(Clone, Default)]
pub(super) struct Said {
    status: Option<Arc<EngineStatus>>,
    /// It was just asked.
    is_fresh: bool,
}

impl Service {
    /// What it answers now; if it doesn't, what it was heard to say last.
    pub(super) fn ask_or_remember(&self, known: &Known) -> Said {
        match self.ask_engine(known) {
            Some(status) => Said { status: Some(status.into()), is_fresh: true },
            None => self.remember(known),
        }
    }

    pub(super) fn remember(&self, known: &Known) -> Said {
        let agent = self.agent_of(known);
        let status = agent.and_then(|agent| agent.live.engine(known.volume.name()));
        Said { status, is_fresh: false }
    }

    /// What the volume's engine says of itself, if it answers now.
    pub(super) fn ask_engine(&self, known: &Known) -> Option<EngineStatus> {
        let agent = self.agent_of(known)?;
        let name = known.volume.name();
        agent.supervisor.find(&ProcessName::engine(name))?;
        match admin::ask(&agent.layout.admin(name), &Request::Status, STATUS_TIMEOUT) {
            Ok(Answer::Status(status)) => Some(*status),
            Ok(_) | Err(_) => None,
        }
    }

    pub(super) fn view(&self, known: &Known, said: &Said, used: &Used) -> VolumeView {
        let volume = &known.volume;
        let agent = self.agent_of(known);
        let engine_process =
            agent.and_then(|agent| agent.supervisor.find(&ProcessName::engine(volume.name())));
        let is_known = said.is_fresh || !known.engine.as_ref().is_some_and(is_silent);
        let said = said.status.as_deref().filter(|_| engine_process.is_some());
        let usable = said.filter(|said| said.endpoint.is_some());
        let mut state = shown::state(known);
        let endpoint = said.and_then(|said| said.endpoint.clone());
        if state == State::Attached && endpoint.is_none() {
            state = State::Attaching;
        }
        let size_bytes = usable.map_or(volume.size_bytes(), |said| said.size_bytes);
        let wanted_bytes = volume.spec.size_bytes;
        let waiting_since = known.engine.as_ref().and_then(|engine| engine.status.waiting_since);
        let waiting = said.map_or_else(Vec::new, |said| said.waiting.clone());
        VolumeView {
            robustness: match usable {
                Some(said) if is_known => Robustness::of(volume.spec.replicas, Some(said)),
                _ => shown::robustness(known),
            },
            size_bytes,
            wanted_bytes: Some(wanted_bytes).filter(|wanted| *wanted > size_bytes),
            frontend: volume.spec.frontend,
            better_frontends: agent.map_or_else(Vec::new, |agent| better_frontends(known, agent)),
            endpoint: endpoint.filter(|_| state == State::Attached),
            node: engine_process.as_ref().and(agent).map(|agent| agent.name.clone()),
            engine_pid: engine_process.as_ref().map(|process| process.pid),
            engine_version: said.and_then(|said| said.version.clone()),
            clients: said.map_or(0, |said| said.clients),
            damage: said.map_or_else(Damage::default, |said| said.damage.clone()),
            unverified_bytes: said.map_or(0, |said| said.unverified_bytes),
            unsettled_bytes: said.map_or(0, |said| said.unsettled_bytes),
            waiting_since_unix_s: waiting_since
                .filter(|_| !waiting.is_empty())
                .and_then(|since| u64::try_from(since.as_second()).ok()),
            waiting,
            conditions: conditions(known, agent),
            tickets: known.attachment.as_ref().map_or_else(Vec::new, tickets),
            replicas: known.replicas.iter().map(|it| self.replica(known, it, said, used)).collect(),
            record: volume.status.record.clone(),
            uid: volume.metadata.uid.clone(),
            name: volume.name().clone(),
            state,
        }
    }

    fn replica(
        &self,
        known: &Known,
        replica: &Replica,
        said: Option<&EngineStatus>,
        used: &Used,
    ) -> ReplicaView {
        let spec = &replica.spec;
        let process = self.process_of(replica);
        let mut seen = said.iter().flat_map(|said| &said.replicas);
        let seen = seen.find(|it| it.replica == spec.id);
        let record = known.volume.status.record.as_ref();
        let directory = spec.directory();
        ReplicaView {
            volume: spec.volume.clone(),
            replica: spec.id.clone(),
            mode: seen.map_or(Mode::None, |seen| seen.mode.into()),
            in_sync: record.is_some_and(|record| {
                record.in_sync.iter().any(|member| member.replica == spec.id)
            }),
            node: spec.node.clone(),
            address: process.as_ref().and(replica.status.address.clone()),
            pid: process.map(|process| process.pid),
            used_bytes: used.get(&directory).copied(),
            reason: seen.and_then(|seen| seen.reason.clone()),
            rebuild: seen.and_then(|seen| seen.rebuild),
            rebuild_seconds_left: seen.and_then(|seen| seconds_left(seen.rebuild.as_ref()?)),
            directory,
        }
    }

    fn process_of(&self, replica: &Replica) -> Option<Process> {
        let agent = self.agents.of(&replica.spec.node)?;
        agent.supervisor.find(&ProcessName::replica(&replica.spec.volume, &replica.spec.id))
    }

    /// Of all replicas of these that lie on disks of this machine, as far as it is known by now.
    pub(super) fn used(&self, known: &[&Known]) -> Used {
        let replicas = known.iter().flat_map(|known| &known.replicas);
        let is_here = |replica: &&Replica| self.agents.of(&replica.spec.node).is_some();
        let directories: Vec<_> =
            replicas.filter(is_here).map(|replica| replica.spec.directory()).collect();
        self.usage.of(&directories)
    }
}

/// What it said is as it was then.
fn is_silent(engine: &Engine) -> bool {
    engine.status.unknown_since.is_some()
}

fn tickets(attachment: &VolumeAttachment) -> Vec<Ticket> {
    let tickets = attachment.spec.tickets.iter();
    let shown = |(id, ticket): (&String, &ankole_api::objects::attachment::Ticket)| Ticket {
        id: id.clone(),
        kind: ticket.kind,
        read_only: ticket.read_only,
    };
    tickets.map(shown).collect()
}

/// Planned from the objects as they are now; the manager may not have come to it yet. Dated by what
/// it has written.
pub(super) fn conditions(known: &Known, agent: Option<&Arc<Node>>) -> Vec<Condition> {
    let dates = &known.volume.status.conditions;
    let since = |told: &Told| {
        let same = |it: &&Told| it.is_like(told) && it.status == told.status;
        let date = told.last_transition_time.or(dates.iter().find(same)?.last_transition_time)?;
        u64::try_from(date.as_second()).ok()
    };
    let shown = |told: Told| Condition {
        since_unix_s: since(&told),
        reason: told.reason,
        replica: told.replica,
        message: told.message,
        next: told.next,
    };
    let told = shown::conditions(known, &plan(known).conditions);
    let mut all: Vec<_> = told.into_iter().map(shown).collect();
    let lost = agent.and_then(|agent| lost_driver(known, agent));
    all.extend(lost);
    all
}

/// Empty while it isn't attached, or if its frontend was asked for.
fn better_frontends(known: &Known, agent: &Node) -> Vec<Finding> {
    let attachment = known.volume.status.attachment.as_ref();
    let Some(attachment) = attachment.filter(|_| known.volume.spec.frontend == Frontend::Auto)
    else {
        return Vec::new();
    };
    let has = attachment.driver().map_or("socket".into(), |driver| driver.to_string());
    let findings = agent.frontends.capabilities().into_iter().map(|it| it.finding);
    findings.take_while(|finding| finding.name != has).collect()
}

/// A volume's device goes on as long as its engine lives.
fn lost_driver(known: &Known, agent: &Node) -> Option<Condition> {
    let driver: Driver = known.volume.status.attachment.as_ref().and_then(Attachment::driver)?;
    let lost = agent.frontends.lost(&driver.to_string())?;
    let message = format!(
        "this node has lost {}: {}; if the engine ends, no other can take the device over",
        lost.finding.name, lost.finding.detail
    );
    let mut condition = Condition::new(Reason::NoFrontend, message);
    condition.since_unix_s = Some(lost.since_unix_s);
    Some(condition.next(lost.finding.next.unwrap_or_else(|| "bring the driver back".into())))
}
