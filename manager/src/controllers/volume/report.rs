//! Telling what is true now, after the work.

use super::Memory;
use super::apply::Applied;
use super::seen::Seen;
use crate::api::error::chain;
use crate::api::volume::{Condition, Reason};
use crate::controllers::Context;
use crate::controllers::board::Observed;

/// Nothing is written to the store here: an idle volume costs no writes.
pub(super) fn report(context: &Context, seen: &Seen, applied: &Applied, memory: &Memory) {
    let mut conditions = applied.plan.conditions.clone();
    if let Some((action, error)) = &applied.failed {
        let message = chain(error);
        tracing::warn!(volume = %seen.volume.name, %action, error = %message, "will be tried again");
        conditions.push(Condition::new(Reason::ActionFailed, message));
    }
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
        },
    );
}
