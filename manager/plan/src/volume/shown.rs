//! How a volume is shown: pure functions over its objects, true as far as its nodes can know, and
//! `Unknown since …` beyond that.

use ankole_api::objects::engine::{EnginePhase, EngineWanted};
use ankole_api::objects::volume::Recorded;
use ankole_api::objects::{Condition, ConditionStatus, Engine};
use ankole_api::volume::{Reason, Robustness, State};
use ankole_replica::admin::ReplicaMode;

use super::{Known, Life};

pub fn state(known: &Known) -> State {
    let volume = &known.volume;
    if volume.is_ending() {
        return State::Deleting;
    }
    if matches!(volume.recorded(), Recorded::New | Recorded::Unformatted) {
        return State::Creating;
    }
    if volume.is_being_restored() {
        return State::Restoring;
    }
    let is_wanted = known.attachment.as_ref().is_some_and(|it| !it.spec.tickets.is_empty());
    let Some(engine) = &known.engine else {
        return if is_wanted { State::Attaching } else { State::Detached };
    };
    let is_usable = engine.status.phase == Some(EnginePhase::Attached)
        && is_said_here(engine)
        && engine.status.endpoint.is_some()
        && matches!(engine.spec.wanted, EngineWanted::Attached { .. });
    match (is_wanted, is_usable) {
        (true, true) => State::Attached,
        (true, false) => State::Attaching,
        (false, _) if known.has_left(&engine.spec.node) => State::Detached,
        (false, _) => State::Detaching,
    }
}

/// What the node before said of its engine says nothing of the one that is wanted now.
fn is_said_here(engine: &Engine) -> bool {
    engine.status.node == engine.spec.node
}

/// How much of the redundancy is there.
pub fn robustness(known: &Known) -> Robustness {
    let Some(engine) = &known.engine else { return Robustness::Unknown };
    let status = &engine.status;
    let is_known =
        is_said_here(engine) && status.endpoint.is_some() && status.unknown_since.is_none();
    if !is_known || !known.is_ready(&engine.spec.node) {
        return Robustness::Unknown;
    }
    let readable =
        |it: &&ankole_api::objects::engine::ReplicaSeen| it.mode == ReplicaMode::ReadWrite;
    let readable = status.replicas.iter().filter(readable).count();
    let is_impaired = status
        .conditions
        .iter()
        .any(|condition| matches!(condition.reason, Reason::DiskFull | Reason::DataLost));
    match readable {
        0 => Robustness::Faulted,
        count if count < usize::from(known.volume.spec.replicas) => Robustness::Degraded,
        _ if is_impaired => Robustness::Degraded,
        _ => Robustness::Healthy,
    }
}

/// All that a person may want to know: the planner's, the engine's and the replicas' conditions. What
/// was told by a node that isn't heard of is as it was then.
pub fn conditions(known: &Known, planned: &[Condition]) -> Vec<Condition> {
    let mut all = planned.to_vec();
    if let Some(engine) = &known.engine {
        all.extend(of_engine(known, engine));
    }
    for replica in &known.replicas {
        let told = replica.status.conditions.iter().cloned();
        all.extend(told.map(|it| as_of(it, known.is_ready(&replica.spec.node))));
    }
    all
}

fn of_engine(known: &Known, engine: &Engine) -> Vec<Condition> {
    let is_heard = known.is_ready(&engine.spec.node);
    let told = engine.status.conditions.iter().cloned();
    let mut all: Vec<_> = told.map(|it| as_of(it, is_heard)).collect();
    if let Some(since) = engine.status.unknown_since {
        let message = format!("the engine doesn't answer: all is as it was at {since}");
        let mut silent = Condition::new(Reason::EngineUnreachable, message);
        silent.status = ConditionStatus::Unknown;
        all.push(silent);
    }
    let node = &engine.spec.node;
    let life = known.node(node).map_or(Life::Gone, |node| node.life);
    if life != Life::Ready && !engine.has_ended() {
        let message = format!("node {node}, where its engine is, isn't heard of");
        let mut silent = Condition::new(Reason::NoNode, message).next("ankole node ls");
        silent.status = ConditionStatus::Unknown;
        all.push(silent);
    }
    all
}

fn as_of(condition: Condition, is_heard: bool) -> Condition {
    let status = if is_heard { condition.status } else { ConditionStatus::Unknown };
    Condition { status, ..condition }
}
