//! From the wish that none runs to no process and no device.

use std::time::Duration;

use ankole_api::objects::engine::{EnginePhase, EngineWanted};
use ankole_api::objects::{Condition, Engine, Volume};
use ankole_api::volume::Reason;

use super::{DETACH_PATIENCE, EngineAction, EnginePlan, attachment, is_granted};
use crate::node::facts::{EngineFacts, EngineProcess};

/// Before an engine is asked again that has refused to detach.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl EnginePlan {
    pub(super) fn detach(&mut self, facts: &EngineFacts, volume: &Volume) {
        self.phase = EnginePhase::Ending;
        let record = volume.status.record.as_ref();
        if let Some(process) = &facts.process {
            // Without a record nobody knows which one is fenced: it may have all there is.
            return match record {
                Some(record) if !is_granted(record, process) => self.act(EngineAction::Kill),
                _ => self.ask_to_detach(process),
            };
        }
        if self.is_in_doubt(&facts.history) {
            return;
        }
        let is_named = volume.status.node.as_deref() == Some(facts.node.as_str());
        if let Some(device) = facts.devices.own {
            // Only an engine can take its device out of the kernel cleanly.
            match (record.filter(|_| is_named), &facts.engine) {
                (Some(record), Some(engine)) if attachment(facts, volume).is_some() => {
                    self.attach(facts, volume, engine, record, false);
                }
                _ => self.act(EngineAction::StopDevice(device)),
            }
            self.phase = EnginePhase::Ending;
            return;
        }
        self.phase = EnginePhase::Ended;
        if is_named && volume.status.attachment.is_some() {
            self.act(EngineAction::ClearAttachment);
        }
    }

    /// Whether clients of its socket would lose their disk. The engine itself knows of a device's.
    pub(super) fn leave_used(&mut self, facts: &EngineFacts, engine: &Engine) -> bool {
        let is_wanted = matches!(engine.spec.wanted, EngineWanted::Attached { .. });
        let process = facts.process.as_ref().filter(|it| is_wanted && it.asked_to_end.is_none());
        let status = process.and_then(|process| process.status.as_ref());
        let Some(clients) = status.map(|status| status.clients).filter(|count| *count > 0) else {
            return false;
        };
        self.phase = EnginePhase::Attached;
        self.look_again = ASK_AGAIN;
        let message = format!("{clients} client(s) of its socket use it");
        let in_use = Condition::new(Reason::InUse, message);
        self.note(in_use.next("end them: it is detached then"));
        true
    }

    /// It refuses while its device is in use, and is asked again and again.
    fn ask_to_detach(&mut self, process: &EngineProcess) {
        if let Some((_, why)) = &process.refused {
            let in_use = Condition::new(Reason::InUse, why.clone());
            self.note(in_use.next("unmount it, or end who uses it: it is detached then"));
        } else if process.asked_to_end.is_some() {
            let message = format!("the engine, pid {}, flushes and detaches", process.pid);
            self.wait(Reason::Stopping, message);
        }
        let ago = process.refused.as_ref().map_or(ASK_AGAIN, |(ago, _)| *ago);
        match process.asked_to_end {
            Some(_) => self.give_up_waiting(process),
            None if ago < ASK_AGAIN => self.look_within(ASK_AGAIN - ago),
            None => self.act(EngineAction::Detach),
        }
    }

    pub(super) fn stand_still(&mut self, facts: &EngineFacts) {
        if facts.process.is_some() {
            self.phase = EnginePhase::Ending;
            self.act(EngineAction::Kill);
        } else if self.is_in_doubt(&facts.history) {
            self.phase = EnginePhase::Ending;
        }
    }

    /// The volume's engine is elsewhere, or the volume doesn't exist: nobody would look after this one.
    pub(super) fn end_strays(&mut self, facts: &EngineFacts) {
        if facts.process.is_some() {
            self.phase = EnginePhase::Ending;
            self.act(EngineAction::Kill);
        } else if self.is_in_doubt(&facts.history) {
            self.phase = EnginePhase::Ending;
        } else if let Some(device) = facts.devices.own {
            self.phase = EnginePhase::Ending;
            self.act(EngineAction::StopDevice(device));
        }
    }

    pub(super) fn give_up_waiting(&mut self, process: &EngineProcess) {
        match process.asked_to_end {
            Some(since) if since > DETACH_PATIENCE => self.act(EngineAction::Kill),
            Some(since) => self.look_within(DETACH_PATIENCE.saturating_sub(since)),
            None => {}
        }
    }
}
