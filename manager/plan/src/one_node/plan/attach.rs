//! From a ticket to an engine that may write.

use ankole_replica::record::Record;
use ankole_replica::types::{Generation, ReplicaId};

use super::{OPEN_PATIENCE, Plan, is_granted};
use crate::one_node::action::{Action, EngineStart};
use crate::one_node::seen::Seen;
use ankole_api::volume::{Attachment, Condition, Reason, State, salvage_hint};

impl Plan {
    pub(super) fn attach(&mut self, seen: &Seen, record: &Record, read_only: bool) {
        self.state = State::Attaching;
        if let Some((newest, replica)) = &seen.newest_seen
            && *newest > record.generation
        {
            return self.refuse_rolled_back(seen, record, *newest, replica);
        }
        let servable = self.start_replicas(seen, record);
        self.free_clients(seen);
        match &seen.engine {
            Some(engine) if !is_granted(record, engine) => {
                self.act(Action::KillEngine);
            }
            Some(engine) if engine.asked_to_end.is_some() => {
                self.wait(Reason::Stopping, format!("the engine, pid {}, is ending", engine.pid));
                self.give_up_waiting(engine);
            }
            Some(engine) => {
                self.follow(seen, engine);
                if !servable && self.state == State::Attaching {
                    self.tell_that_none_is_served(seen);
                }
            }
            None if self.is_in_doubt(None, &seen.engine_history) => {}
            None if !servable => self.tell_that_none_is_served(seen),
            None if seen.engine_history.hold_off.is_some() => {
                self.hold_off(Reason::EngineEnded, None, "the engine", &seen.engine_history);
            }
            None => self.start_engine(seen, record, read_only),
        }
    }

    fn tell_that_none_is_served(&mut self, seen: &Seen) {
        let message = "no replica of the in-sync set can be served";
        let hint = salvage_hint(&seen.volume.name);
        self.note(Condition::new(Reason::NoReplica, message).next(hint));
    }

    /// Those that wait for an engine which doesn't come.
    fn free_clients(&mut self, seen: &Seen) {
        let Some((device, unserved)) = seen.devices.own.zip(seen.devices.unserved) else { return };
        let left = seen.devices.patience.saturating_sub(unserved);
        if left.is_zero() {
            return self.act(Action::StopDevice(device));
        }
        let quiet = OPEN_PATIENCE.saturating_sub(unserved);
        if quiet.is_zero() {
            let message = format!(
                "requests of device {device} wait for an engine; in {} s they get errors",
                left.as_secs()
            );
            self.note(Condition::new(Reason::Unserved, message));
        }
        // Nothing else is sure to happen by then: a failing engine is tried more and more seldom.
        self.look_within(if quiet.is_zero() { left } else { quiet.min(left) });
    }

    /// Each grant would raise the record, until it is above what the replicas have seen: then they
    /// would take it for new, and with it a set that lacks acknowledged writes.
    fn refuse_rolled_back(
        &mut self,
        seen: &Seen,
        record: &Record,
        newest: Generation,
        replica: &ReplicaId,
    ) {
        let message = format!(
            "the record of who is in sync is at {}, but replica {replica} has seen {newest}: it was brought back from an older copy, and no engine may trust it",
            record.generation
        );
        let hint = salvage_hint(&seen.volume.name);
        self.note(Condition::new(Reason::RecordRolledBack, message).of(replica).next(hint));
    }

    fn start_engine(&mut self, seen: &Seen, record: &Record, read_only: bool) {
        let own = seen.devices.own;
        let present = seen.volume.status.attachment.as_ref();
        let kept = present.filter(|attachment| {
            attachment.boot_id == seen.boot_id && (!seen.engine_left || own.is_some())
        });
        let (attachment, attach_epoch) = match (kept, seen.new_attachment()) {
            // A client of the dead engine may be waiting for its successor.
            (Some(kept), _) if own.is_some() => (kept.clone(), record.attach_epoch),
            (Some(kept), _) => (Attachment::new(&seen.boot_id, kept.driver()), record.attach_epoch),
            (None, Ok(new)) => (new, record.attach_epoch + 1),
            (None, Err(missing)) => {
                let message = format!("this node can't serve {missing} any more");
                let none = Condition::new(Reason::NoFrontend, message);
                return self.note(none.next("ankole check says what is missing"));
            }
        };
        let driver = attachment.driver();
        let device = own.filter(|_| kept.is_some());
        let start = EngineStart {
            instance: seen.fresh_instance.clone(),
            driver,
            identity: attachment.identity(&seen.volume),
            device,
            recover: kept.is_some() && (driver.is_none() || device.is_some()),
            read_only,
        };
        let instance = start.instance.clone();
        self.act(Action::Grant { instance, attach_epoch, attachment });
        self.act(Action::StartEngine(start));
    }
}
