//! What an engine that lives and is the right one says of itself.

use super::{OPEN_PATIENCE, Plan, WHILE_ATTACHED, WHILE_STARTING, WHILE_WAITING};
use crate::one_node::action::Action;
use crate::one_node::seen::{EngineSeen, Seen};
use ankole_api::volume::{Condition, Reason, State, salvage_hint};

impl Plan {
    /// It may serve its clients well, but hears nobody: its socket was removed, and it hasn't made it
    /// anew. A device waits for a successor; clients of a socket would lose their disk.
    fn replace_unreachable(&mut self, seen: &Seen, engine: &EngineSeen) {
        let (pid, name) = (engine.pid, &seen.volume.name);
        let message =
            format!("the engine, pid {pid}, serves, but can't be reached: its socket is gone");
        let unreachable = Condition::new(Reason::EngineUnreachable, message);
        self.look_again = WHILE_ATTACHED;
        if seen.devices.own.is_some() {
            self.note(unreachable);
            return self.act(Action::KillEngine);
        }
        self.note(unreachable.next(format!(
            "when its clients can do without it: ankole volume detach {name}, then attach it again"
        )));
    }

    pub(super) fn follow(&mut self, seen: &Seen, engine: &EngineSeen) {
        let usable = engine.status.as_ref().filter(|status| status.endpoint.is_some());
        let Some(status) = usable else {
            if engine.unreachable.is_some_and(|since| since > OPEN_PATIENCE) {
                return self.replace_unreachable(seen, engine);
            }
            let waiting = engine.status.iter().flat_map(|status| &status.waiting).cloned();
            let mut message = waiting.collect::<Vec<_>>().join("; ");
            if message.is_empty() {
                message = format!("the engine, pid {}, starts", engine.pid);
            }
            let mut starting = Condition::new(Reason::EngineStarting, message);
            if engine.waits.is_some_and(|waits| waits > OPEN_PATIENCE) {
                starting = starting.next(salvage_hint(&seen.volume.name));
            }
            self.note(starting);
            let waits = engine.waits.is_some_and(|waits| waits > WHILE_WAITING);
            self.look_again = if waits { WHILE_WAITING } else { WHILE_STARTING };
            return;
        };
        self.state = State::Attached;
        self.look_again = WHILE_ATTACHED;
        if engine.turn != seen.volume.spec.engine.turn {
            let message = format!("the engine, pid {}, hands over to another one", engine.pid);
            self.note(Condition::new(Reason::Upgrading, message));
            return self.act(Action::HandOverEngine);
        }
        if engine.waits.is_some_and(|waits| waits > OPEN_PATIENCE) && !status.has_readable() {
            let message = "no replica can be read; requests wait";
            let hint = salvage_hint(&seen.volume.name);
            self.note(Condition::new(Reason::NoReplica, message).next(hint));
        }
        self.tell_trouble(seen, status);
        let (wanted_bytes, size_bytes) = (seen.volume.spec.size_bytes, status.size_bytes);
        if seen.volume.status.size_bytes != Some(size_bytes) || wanted_bytes < size_bytes {
            self.act(Action::NoteSize { size_bytes });
        }
        if size_bytes < wanted_bytes {
            self.act(Action::Expand { size_bytes: wanted_bytes });
        }
    }
}
