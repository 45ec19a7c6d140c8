//! Telling what is true now, after the work.

use super::Memory;
use super::apply::{Applied, ApplyError};
use crate::api::error::chain;
use crate::api::size::{exact, human};
use crate::api::volume::{Condition, Reason, Volume};
use crate::controllers::Context;
use crate::controllers::board::Observed;
use ankole_plan::one_node::action::Action;
use ankole_plan::one_node::seen::Seen;

/// Nothing is written to the store here: an idle volume costs no writes.
pub(super) fn report(context: &Context, seen: &Seen, applied: &Applied, memory: &mut Memory) {
    let mut conditions = applied.plan.conditions.clone();
    if let Some((action, error)) = &applied.failed {
        let message = chain(error);
        tracing::warn!(volume = %seen.volume.name, %action, error = %message, "will be tried again");
        conditions.push(match action {
            Action::Expand { size_bytes } => cant_grow(&seen.volume, *size_bytes, error),
            _ => Condition::new(Reason::ActionFailed, message),
        });
    }
    memory.date(&mut conditions);
    let engine = seen.engine.as_ref();
    context.board.put(
        &seen.volume.name,
        Observed {
            state: applied.plan.state,
            engine_pid: engine.map(|engine| engine.pid),
            engine: engine.and_then(|engine| engine.status.as_deref().cloned()),
            failures: memory.failures(),
            waiting_since_unix_s: memory.engine_waits.map(|(_, since)| since),
            conditions,
            used_bytes: memory.used_bytes(&seen.volume.status.places),
            spec: seen.volume.spec.clone(),
        },
    );
}

/// It is tried again, and can be taken back.
fn cant_grow(volume: &Volume, to_bytes: u64, error: &ApplyError) -> Condition {
    let (name, from_bytes) = (&volume.name, volume.size_bytes());
    let (from, to, why) = (human(from_bytes), human(to_bytes), chain(error));
    let message = format!("it stays at {from}, though {to} are wanted: {why}");
    let first = match error {
        ApplyError::NoRoom(_) => "free some space there: it is tried again; or ",
        _ => "",
    };
    let back =
        format!("take the wish back: ankole volume resize {name} --size {}", exact(from_bytes));
    Condition::new(Reason::CantGrow, message).next(format!("{first}{back}"))
}
