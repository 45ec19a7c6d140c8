//! What an engine that lives and is the right one says of itself.

use ankole_api::objects::engine::EnginePhase;
use ankole_api::objects::{Condition, Engine};
use ankole_api::volume::{Reason, salvage_hint};
use ankole_replica::admin::{EngineStatus, ReplicaAddress};

use super::{
    EngineAction, EnginePlan, OPEN_PATIENCE, WHILE_ATTACHED, WHILE_STARTING, WHILE_WAITING,
};
use crate::node::facts::{EngineFacts, EngineProcess};

impl EnginePlan {
    pub(super) fn follow(&mut self, facts: &EngineFacts, engine: &Engine, process: &EngineProcess) {
        let usable = process.status.as_ref().filter(|status| status.endpoint.is_some());
        let Some(status) = usable else { return self.wait_for_endpoint(facts, engine, process) };
        self.phase = EnginePhase::Attached;
        self.ask_again(process, WHILE_ATTACHED);
        if process.turn != engine.spec.turn {
            let message = format!("the engine, pid {}, hands over to another one", process.pid);
            self.note(Condition::new(Reason::Upgrading, message));
            return self.act(EngineAction::HandOver);
        }
        if process.waits.is_some_and(|waits| waits > OPEN_PATIENCE) && !status.has_readable() {
            let message = "no replica can be read; requests wait";
            let hint = salvage_hint(engine.name());
            self.note(Condition::new(Reason::NoReplica, message).next(hint));
        }
        self.tell_trouble(engine, status);
        if differs(&engine.spec.replicas, status) {
            self.act(EngineAction::SetReplicas(engine.spec.replicas.clone()));
        }
        let (wanted_bytes, size_bytes) = (engine.spec.size_bytes, status.size_bytes);
        if size_bytes < wanted_bytes {
            self.act(EngineAction::Expand { size_bytes: wanted_bytes });
        }
    }

    fn wait_for_endpoint(&mut self, facts: &EngineFacts, engine: &Engine, process: &EngineProcess) {
        if process.unreachable.is_some_and(|since| since > OPEN_PATIENCE) {
            return self.replace_unreachable(facts, engine, process);
        }
        let waiting = process.status.iter().flat_map(|status| &status.waiting).cloned();
        let mut message = waiting.collect::<Vec<_>>().join("; ");
        if message.is_empty() {
            message = format!("the engine, pid {}, starts", process.pid);
        }
        let mut starting = Condition::new(Reason::EngineStarting, message);
        if process.waits.is_some_and(|waits| waits > OPEN_PATIENCE) {
            starting = starting.next(salvage_hint(engine.name()));
        }
        self.note(starting);
        let waits = process.waits.is_some_and(|waits| waits > WHILE_WAITING);
        self.ask_again(process, if waits { WHILE_WAITING } else { WHILE_STARTING });
    }

    /// It may serve its clients well, but hears nobody: its socket was removed, and it hasn't made it
    /// anew. A device waits for a successor; clients of a socket would lose their disk.
    fn replace_unreachable(
        &mut self,
        facts: &EngineFacts,
        engine: &Engine,
        process: &EngineProcess,
    ) {
        let (pid, name) = (process.pid, engine.name());
        let message =
            format!("the engine, pid {pid}, serves, but can't be reached: its socket is gone");
        let unreachable = Condition::new(Reason::EngineUnreachable, message);
        self.phase = EnginePhase::Attached;
        self.ask_again(process, WHILE_ATTACHED);
        if facts.devices.own.is_some() {
            self.note(unreachable);
            return self.act(EngineAction::Kill);
        }
        self.note(unreachable.next(format!(
            "when its clients can do without it: ankole volume detach {name}, then attach it again"
        )));
    }
}

/// Whether it has other replicas, or looks for one elsewhere.
fn differs(wanted: &[ReplicaAddress], status: &EngineStatus) -> bool {
    let has = |it: &ReplicaAddress| {
        let mut present = status.replicas.iter();
        present.any(|replica| replica.replica == it.replica && replica.address == it.address)
    };
    !wanted.is_empty() && (wanted.len() != status.replicas.len() || !wanted.iter().all(has))
}
