//! What is true of an engine on this machine now.

use std::sync::Arc;
use std::time::Instant;

use ankole_api::Name;
use ankole_api::objects::engine::EngineWanted;
use ankole_api::objects::{Engine, EngineSpec, Volume};
use ankole_api::volume::{Device, Frontend};
use ankole_blockdev::device::{self, DeviceError, Driver};
use ankole_plan::node::attachment::device_of;
use ankole_plan::node::facts::{Devices, EngineFacts, EngineProcess, History};
use ankole_replica::record::InstanceId;
use ankole_replica::types::{Generation, ReplicaId};

use super::memory::Memory;
use super::{INSTANCE_LABEL, TURN_LABEL};
use crate::layout::random_hex;
use crate::node::Node;
use crate::node::part::PassError;
use crate::probe::DRIVERS;
use crate::supervisor::{Process, ProcessName};

/// Looking at the machine; waits for it.
pub(super) struct Look {
    pub(super) node: Arc<Node>,
    pub(super) name: Name,
    /// That a replica of it has seen.
    pub(super) newest: Option<(Generation, ReplicaId)>,
}

impl Look {
    pub(super) fn facts(
        &self,
        volume: Option<Volume>,
        engine: Option<Engine>,
        memory: &mut Memory,
    ) -> Result<EngineFacts, PassError> {
        let node = &self.node;
        let part = ProcessName::engine(&self.name);
        let process = node.supervisor.find(&part);
        let failed = |source: DeviceError| PassError::Look {
            what: "look for the volume's device",
            source: source.into(),
        };
        let own = match (&process, &volume) {
            // One that can be reached has the device that it was started for.
            (Some(_), _) if memory.unreachable.is_none() => memory.device,
            (_, Some(volume)) => own_device(node, volume).map_err(failed)?,
            (_, None) => memory.device,
        };
        memory.device = own;
        let unserved = memory.note_unserved(own, process.is_some());
        let random = random_hex::<8>().map_err(|source| PassError::Look {
            what: "make an instance's name",
            source: source.into(),
        })?;
        let doubt = node
            .supervisor
            .doubt(&part)
            .map(|it| ankole_plan::node::facts::Doubt { message: it.message, next: it.next });
        let may_be_shown = |spec: &EngineSpec| {
            matches!(spec.wanted, EngineWanted::Attached { .. })
                && spec.frontend != Frontend::Socket
        };
        let may_choose =
            process.is_none() && engine.as_ref().is_some_and(|it| may_be_shown(&it.spec));
        Ok(EngineFacts {
            node: node.name.clone(),
            boot_id: node.boot_id.clone(),
            history: History { doubt, ..memory.past.history() },
            left: memory.left,
            newest: self.newest.clone(),
            process: process.map(|process| seen(&process, memory)),
            devices: Devices {
                drivers: if may_choose { node.drivers.now() } else { Vec::new() },
                own,
                unserved,
                patience: node.device_patience,
            },
            fresh_instance: InstanceId(random),
            is_stopping: node.is_stopping(),
            volume,
            engine,
        })
    }
}

fn seen(process: &Process, memory: &Memory) -> EngineProcess {
    let for_how_long = |since: Option<Instant>| since.map(|since| since.elapsed());
    EngineProcess {
        pid: process.pid,
        instance: InstanceId(told(process, "--instance", INSTANCE_LABEL)),
        turn: label(process, TURN_LABEL).parse().unwrap_or_default(),
        asked_to_end: memory.past.asked_to_end(),
        refused: memory.refused.as_ref().map(|(at, why)| (at.elapsed(), why.clone())),
        status: memory.said.clone(),
        silent: for_how_long(memory.silent),
        unreachable: for_how_long(memory.unreachable),
        waits: for_how_long(memory.waits),
        is_watched: true,
    }
}

fn label(process: &Process, label: &str) -> String {
    process.spec.labels.get(label).cloned().unwrap_or_default()
}

/// By its command line: one that was found by that has no labels.
fn told(process: &Process, option: &str, name: &str) -> String {
    let mut words = process.spec.args.windows(2);
    let told = words.find(|pair| pair[0] == option).map(|pair| pair[1].clone());
    told.unwrap_or_else(|| label(process, name))
}

/// The volume's device, if this kernel has it: known by its mark. Drivers are asked only where it can
/// be: that of the attachment, if the last engine was here; all, if the volume is elsewhere by now.
pub(in crate::node) fn own_device(
    node: &Node,
    volume: &Volume,
) -> Result<Option<Device>, DeviceError> {
    let status = &volume.status;
    let last = status.record.as_ref().and_then(|record| record.engine.as_ref());
    let was_here = last.is_some_and(|engine| engine.node == node.name);
    let attachment = status.attachment.as_ref().filter(|it| it.boot_id == node.boot_id);
    let socket = node.layout.nbd(volume.name());
    let find = |driver: Driver| {
        let identity = volume.identity_of(None);
        device::find(driver, device::Volume { identity: &identity, socket: &socket })
    };
    let is_there = |it: Device| {
        let identity = volume.identity_of(Some(it));
        let marked = device::Volume { identity: &identity, socket: &socket };
        device::is_there(it.driver(), it.number(), marked)
    };
    match attachment.filter(|_| was_here) {
        Some(attachment) => return device_of(attachment, find, is_there),
        None if status.node.as_deref() == Some(&*node.name) => return Ok(None),
        None => {}
    }
    for driver in DRIVERS {
        if let Some(number) = find(driver)? {
            return Ok(Some(Device::new(driver, number)));
        }
    }
    Ok(None)
}
