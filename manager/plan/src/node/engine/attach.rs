//! From the wish to an engine that may write.

use ankole_api::objects::engine::EnginePhase;
use ankole_api::objects::{Condition, Engine, Volume};
use ankole_api::volume::{Attachment, Frontend, Reason};
use ankole_blockdev::device::Driver;
use ankole_replica::record::Record;

use super::{EngineAction, EnginePlan, EngineStart, OPEN_PATIENCE, attachment, is_granted};
use crate::node::facts::EngineFacts;
use crate::volume::rolled_back;

impl EnginePlan {
    pub(super) fn attach(
        &mut self,
        facts: &EngineFacts,
        volume: &Volume,
        engine: &Engine,
        record: &Record,
        read_only: bool,
    ) {
        self.phase = EnginePhase::Starting;
        self.free_clients(facts);
        match &facts.process {
            Some(process) if !is_granted(record, process) => self.act(EngineAction::Kill),
            Some(process) if process.asked_to_end.is_some() => {
                self.phase = EnginePhase::Ending;
                let message = format!("the engine, pid {}, is ending", process.pid);
                self.wait(Reason::Stopping, message);
                self.give_up_waiting(process);
            }
            Some(process) => self.follow(facts, engine, process),
            None if self.is_in_doubt(&facts.history) => {}
            None if facts.history.hold_off.is_some() => self.hold_off(&facts.history),
            None => self.start(facts, volume, engine, record, read_only),
        }
    }

    /// Those that wait for an engine which doesn't come.
    fn free_clients(&mut self, facts: &EngineFacts) {
        let Some((device, unserved)) = facts.devices.own.zip(facts.devices.unserved) else {
            return;
        };
        let left = facts.devices.patience.saturating_sub(unserved);
        if left.is_zero() {
            return self.act(EngineAction::StopDevice(device));
        }
        let quiet = OPEN_PATIENCE.saturating_sub(unserved);
        if quiet.is_zero() {
            let after = facts.devices.patience.as_secs();
            let message = format!(
                "requests of device {device} wait for an engine; if none comes within {after} s they get errors"
            );
            self.note(Condition::new(Reason::Unserved, message));
        }
        // Nothing else is sure to happen by then: a failing engine is tried more and more seldom.
        self.look_within(if quiet.is_zero() { left } else { quiet.min(left) });
    }

    fn start(
        &mut self,
        facts: &EngineFacts,
        volume: &Volume,
        engine: &Engine,
        record: &Record,
        read_only: bool,
    ) {
        // Each grant would raise the record, until it is above what the replicas have seen.
        if let Some(told) = rolled_back(engine.name(), record, facts.newest.clone()) {
            return self.note(told);
        }
        let own = facts.devices.own;
        let present = attachment(facts, volume);
        let kept = present.filter(|_| !facts.left || own.is_some());
        let boot_id = &facts.boot_id;
        let (granted, attach_epoch) = match (kept, new_attachment(facts, engine)) {
            // A client of the dead engine may be waiting for its successor.
            (Some(kept), _) if own.is_some() => (kept.clone(), record.attach_epoch),
            (Some(kept), _) => (Attachment::new(boot_id, kept.driver()), record.attach_epoch),
            (None, Ok(new)) => (new, record.attach_epoch + 1),
            (None, Err(missing)) => {
                let message = format!("this node can't serve {missing} any more");
                let none = Condition::new(Reason::NoFrontend, message);
                return self.note(none.next("ankole check says what is missing"));
            }
        };
        let driver = granted.driver();
        let device = own.filter(|_| kept.is_some());
        let instance = facts.fresh_instance.clone();
        let start = EngineStart {
            instance: instance.clone(),
            driver,
            identity: volume.identity_of(device),
            device,
            recover: kept.is_some() && (driver.is_none() || device.is_some()),
            read_only,
        };
        self.act(EngineAction::Grant { instance, attach_epoch, attachment: granted });
        self.act(EngineAction::Start(start));
    }
}

/// Or the driver that is asked for and missing.
fn new_attachment(facts: &EngineFacts, engine: &Engine) -> Result<Attachment, Driver> {
    let is_there = |driver: &Driver| facts.devices.drivers.contains(driver);
    let frontend = engine.spec.frontend;
    let driver = match frontend.forced_driver() {
        Some(driver) if !is_there(&driver) => return Err(driver),
        Some(driver) => Some(driver),
        None if frontend == Frontend::Socket => None,
        None => [Driver::Ublk, Driver::Nbd, Driver::Tgt].into_iter().find(is_there),
    };
    Ok(Attachment::new(&facts.boot_id, driver))
}
