//! From the last ticket to no process, and from there to nothing.

use ankole_api::objects::engine::EngineWanted;
use ankole_api::objects::volume::Recorded;
use ankole_api::objects::{Replica, ReplicaSpec};
use ankole_api::volume::Reason;

use super::{Condition, Known, Plan, Write};

impl Plan {
    /// Whether no process of an engine is left.
    pub(super) fn detach(&mut self, known: &Known) -> bool {
        let Some(engine) = &known.engine else { return true };
        let node = engine.spec.node.clone();
        self.want_engine(known, &node, EngineWanted::Detached);
        known.has_left(&node)
    }

    /// Nothing of the volume runs, and nothing else changes.
    pub(super) fn still(&mut self, known: &Known) {
        let message = "nothing runs while a copy to trust is chosen";
        self.note(Condition::new(Reason::Salvaging, message));
        if let Some(engine) = &known.engine {
            let node = engine.spec.node.clone();
            self.want_engine(known, &node, EngineWanted::Still);
            if !known.has_left(&node) {
                return;
            }
        }
        self.stop_replicas(known);
    }

    /// The replicas go when no engine can use them, the objects when nothing of them is left. What may
    /// hold data stays if nobody knows what it is worth: whoever removes the volume may be mistaken.
    pub(super) fn end(&mut self, known: &Known) {
        if !self.detach(known) {
            return;
        }
        let (ending, staying): (Vec<&Replica>, Vec<_>) =
            known.replicas.iter().partition(|replica| replica.is_ending());
        let is_lost = known.volume.recorded() == Recorded::Lost;
        for replica in staying {
            if is_lost && !replica.spec.keeps_data {
                let spec = ReplicaSpec { keeps_data: true, ..replica.spec.clone() };
                self.write(Write::SetReplica(replica.name().clone(), spec));
            }
            self.write(Write::DeleteReplica(replica.name().clone()));
        }
        for replica in &ending {
            let node = &replica.spec.node;
            if !known.is_ready(node) {
                let message = format!(
                    "replica {} can't be removed: node {node} isn't there",
                    replica.spec.id
                );
                let next = format!("bring node {node} back");
                self.note(Condition::new(Reason::NoNode, message).next(next));
            }
        }
        if !known.replicas.is_empty() {
            return;
        }
        if known.engine.is_some() {
            self.write(Write::DeleteEngine);
        }
        if known.attachment.is_some() {
            self.write(Write::DeleteAttachment);
        }
        self.write(Write::Release);
    }
}
