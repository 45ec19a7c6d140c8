//! From the last ticket to no process.

use std::time::Duration;

use super::{DETACH_PATIENCE, Plan, is_granted};
use crate::one_node::action::Action;
use crate::one_node::seen::{EngineSeen, Seen};
use ankole_api::attachment::TicketKind;
use ankole_api::volume::{Condition, Reason, State};

/// Before an engine is asked again that has refused to detach.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Plan {
    /// Whether no process of the volume is left.
    pub(super) fn detach(&mut self, seen: &Seen) -> bool {
        self.state = State::Detaching;
        let attachment = seen.volume.status.attachment.as_ref();
        if let Some(engine) = &seen.engine {
            let granted = seen.volume.status.record.as_ref().is_some_and(|r| is_granted(r, engine));
            if granted {
                self.detach_engine(engine);
            } else {
                self.act(Action::KillEngine);
            }
            return false;
        }
        if self.is_in_doubt(None, &seen.engine_history) {
            return false;
        }
        let same_boot = attachment.is_some_and(|attachment| attachment.boot_id == seen.boot_id);
        if let (true, true, Some(record)) =
            (same_boot, seen.devices.own.is_some(), &seen.volume.status.record)
        {
            // Only an engine can take its device out of the kernel cleanly.
            self.attach(seen, record, false);
            self.state = State::Detaching;
            return false;
        }
        if self.end_replicas(seen) {
            return false;
        }
        self.state = State::Detached;
        if attachment.is_some() {
            self.act(Action::ClearAttachment);
        }
        true
    }

    /// Whether clients of its socket would lose their disk. The engine itself knows of a device's.
    pub(super) fn leave_used(&mut self, seen: &Seen) -> bool {
        // A job is one of them, and ends with us.
        let is_users = seen.volume.spec.tickets.iter().any(|it| it.kind == TicketKind::User);
        let engine = seen.engine.as_ref();
        let engine = engine.filter(|engine| is_users && engine.asked_to_end.is_none());
        let status = engine.and_then(|engine| engine.status.as_ref());
        let Some(clients) = status.map(|status| status.clients).filter(|count| *count > 0) else {
            return false;
        };
        self.state = State::Attached;
        self.look_again = ASK_AGAIN;
        let message = format!("{clients} client(s) of its socket use it");
        let in_use = Condition::new(Reason::InUse, message);
        self.note(in_use.next("end them: it is detached then"));
        true
    }

    /// It refuses while its device is in use, and is asked again and again.
    fn detach_engine(&mut self, engine: &EngineSeen) {
        if let Some((_, why)) = &engine.refused {
            let in_use = Condition::new(Reason::InUse, why.clone());
            self.note(in_use.next("unmount it, or end who uses it: it is detached then"));
        } else if engine.asked_to_end.is_some() {
            let message = format!("the engine, pid {}, flushes and detaches", engine.pid);
            self.wait(Reason::Stopping, message);
        }
        let ago = engine.refused.as_ref().map_or(ASK_AGAIN, |(ago, _)| *ago);
        match engine.asked_to_end {
            Some(_) => self.give_up_waiting(engine),
            None if ago < ASK_AGAIN => self.look_within(ASK_AGAIN - ago),
            None => self.act(Action::DetachEngine),
        }
    }

    /// Nothing of the volume runs, and nothing else changes: an engine that waits for replicas has
    /// nothing to flush.
    pub(super) fn stand_still(&mut self, seen: &Seen) {
        let idle = seen.volume.spec.tickets.is_empty() && seen.volume.status.attachment.is_none();
        self.state = if idle { State::Detached } else { State::Attaching };
        let message = "nothing runs while a copy to trust is chosen";
        self.note(Condition::new(Reason::Salvaging, message));
        if seen.engine.is_some() {
            self.act(Action::KillEngine);
        } else {
            self.end_replicas(seen);
        }
    }

    pub(super) fn give_up_waiting(&mut self, engine: &EngineSeen) {
        match engine.asked_to_end {
            Some(since) if since > DETACH_PATIENCE => self.act(Action::KillEngine),
            Some(since) => self.look_within(DETACH_PATIENCE.saturating_sub(since)),
            None => {}
        }
    }
}
