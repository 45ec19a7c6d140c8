//! How a volume is shown: pure functions over its objects, true as far as its nodes can know, and
//! `Unknown since …` beyond that.

use ankole_api::objects::engine::{EnginePhase, EngineWanted};
use ankole_api::objects::replica::ReplicaPhase;
use ankole_api::objects::volume::Recorded;
use ankole_api::objects::{Condition, ConditionStatus, Engine, Replica};
use ankole_api::volume::{Reason, Robustness, State, salvage_hint};
use ankole_replica::admin::ReplicaMode;

use super::{Known, Life, is_member};

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
    let is_wanted = known.is_wanted();
    let Some(engine) = &known.engine else {
        return if is_wanted { State::Attaching } else { State::Detached };
    };
    match (is_wanted, endpoint(known).is_some()) {
        (true, true) => State::Attached,
        (true, false) => State::Attaching,
        (false, _) if known.has_left(&engine.spec.node) && !is_served(known) => State::Detached,
        (false, _) => State::Detaching,
    }
}

/// Whoever finds it detached may look into its directories.
fn is_served(known: &Known) -> bool {
    let runs = |replica: &Replica| {
        matches!(replica.status.phase, Some(ReplicaPhase::Served | ReplicaPhase::Ending))
            && known.is_ready(&replica.spec.node)
    };
    known.replicas.iter().any(runs)
}

/// Device path, or a URI that libnbd understands; only while it can be used.
pub fn endpoint(known: &Known) -> Option<&str> {
    let engine = known.engine.as_ref()?;
    let is_usable = engine.status.phase == Some(EnginePhase::Attached)
        && is_said_here(engine)
        && matches!(engine.spec.wanted, EngineWanted::Attached { .. });
    engine.status.endpoint.as_deref().filter(|_| is_usable)
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
    let engine = known.engine.iter().flat_map(|engine| of_engine(known, engine));
    let mut all: Vec<_> = planned.iter().cloned().chain(engine).collect();
    for replica in &known.replicas {
        let told = replica.status.conditions.iter().cloned();
        let is_heard = known.is_ready(&replica.spec.node);
        all.extend(told.map(|it| as_of(it, is_heard).of(&replica.spec.id)));
    }
    all.into_iter().map(|it| completed(known, it)).collect()
}

/// With what its teller can't know: an engine where replicas lie, a replica's agent who else is in sync.
fn completed(known: &Known, told: Condition) -> Condition {
    let of = |replica: &&Replica| Some(&replica.spec.id) == told.replica.as_ref();
    let Some(replica) = known.replicas.iter().find(of) else { return told };
    let name = known.volume.name();
    let record = known.volume.status.record.as_ref().filter(|record| is_member(record, replica));
    match (told.reason, record) {
        (Reason::ReplicaRepaired, _) => {
            let directory = replica.spec.directory();
            let directory = directory.display();
            told.next(format!(
                "look for errors of the disk of {directory} (the kernel's log, smartctl)"
            ))
        }
        (Reason::ReplicaDamaged, Some(record)) if record.in_sync.len() > 1 => {
            let message = format!(
                "{}; it is set aside and made anew once the engine has taken the replica out of the in-sync set",
                told.message
            );
            Condition { message, ..told }
        }
        (Reason::ReplicaDamaged, Some(_)) => {
            let message = format!("{}; no other copy is in sync", told.message);
            Condition { message, ..told }.next(salvage_hint(name))
        }
        _ => told,
    }
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
