//! What a person is told of an engine's action that failed.

use std::error::Error;

use ankole_api::error::chain;
use ankole_api::objects::Condition;
use ankole_api::size::{exact, human};
use ankole_api::volume::Reason;
use ankole_plan::node::engine::EngineAction;
use ankole_plan::node::facts::EngineFacts;

use crate::node::part::PassError;

pub(super) fn told(facts: &EngineFacts, action: &EngineAction, error: &PassError) -> Condition {
    match (action, error) {
        (EngineAction::Expand { size_bytes }, _) => cant_grow(facts, *size_bytes, error),
        (EngineAction::Start(_), PassError::Action { source, .. }) => cant_start(facts, &**source),
        _ => Condition::new(Reason::ActionFailed, chain(error)),
    }
}

/// The same each time, whatever the instance.
fn cant_start(facts: &EngineFacts, error: &(dyn Error + 'static)) -> Condition {
    let program = facts.engine.as_ref().and_then(|engine| engine.spec.program.as_ref());
    let program = program.map_or(String::new(), |path| format!(", {}", path.display()));
    let message = format!("start the engine{program}: {}", chain(error));
    Condition::new(Reason::ActionFailed, message)
}

/// It is tried again, and can be taken back.
fn cant_grow(facts: &EngineFacts, to_bytes: u64, error: &PassError) -> Condition {
    let said = facts.process.as_ref().and_then(|process| process.status.as_ref());
    let from_bytes = said.map_or(0, |said| said.size_bytes);
    let (why, first) = match error {
        PassError::NoRoom(why) => {
            (why.to_string(), "free some space there: it is tried again; or ")
        }
        PassError::Action { source, .. } => (chain(&**source), ""),
        other => (chain(other), ""),
    };
    let (from, to) = (human(from_bytes), human(to_bytes));
    let message = format!("it stays at {from}, though {to} are wanted: {why}");
    let name = facts.volume.as_ref().map_or("VOLUME", |volume| volume.name());
    let back =
        format!("take the wish back: ankole volume resize {name} --size {}", exact(from_bytes));
    Condition::new(Reason::CantGrow, message).next(format!("{first}{back}"))
}
