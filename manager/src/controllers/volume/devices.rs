//! Which device of the kernel is the volume's, and by which drivers it could get one.
//!
//! A device is its volume's by what it is marked with, and by nothing else: a number that was
//! written down may be another's by now. The kernel chooses the numbers of new ones, so that no two
//! engines can be given one.

use std::path::Path;

use ankole_blockdev::device::{self, DeviceError, Driver};
use ankole_plan::one_node::attachment::device_of;

use super::Memory;
use crate::agent::device_link::{self, FOLDER};
use crate::agent::probe;
use crate::api::volume::{Device, Volume};
use crate::controllers::Context;
use ankole_plan::one_node::seen::{DevicesSeen, EngineSeen};

const DRIVERS: [Driver; 3] = [Driver::Ublk, Driver::Nbd, Driver::Tgt];

/// The drivers are asked only while no engine can be reached. One that can has the device that it
/// was started for, or will have one that is looked for when it has ended.
pub(super) fn look(
    context: &Context,
    volume: &Volume,
    engine: Option<&EngineSeen>,
    memory: &Memory,
) -> Result<DevicesSeen, DeviceError> {
    let may_choose = engine.is_none() && !volume.spec.tickets.is_empty();
    let own = match engine {
        Some(_) if memory.unreachable.is_none() => memory.device,
        _ => own(context, volume)?,
    };
    Ok(DevicesSeen {
        drivers: DRIVERS.into_iter().filter(|it| may_choose && probe::can_serve(*it)).collect(),
        own,
        unserved: None,
        patience: context.device_patience,
    })
}

/// What the device of the present attachment is marked with.
pub(super) fn identity(volume: &Volume) -> String {
    let attachment = volume.status.attachment.as_ref();
    attachment.map(|attachment| attachment.identity(volume)).unwrap_or_default()
}

/// The volume's device, if the kernel has it.
pub fn own(context: &Context, volume: &Volume) -> Result<Option<Device>, DeviceError> {
    let attachment = volume.status.attachment.as_ref();
    let Some(attachment) = attachment.filter(|it| it.boot_id == context.boot_id) else {
        return Ok(None);
    };
    let (identity, socket) = (identity(volume), context.layout.nbd(&volume.name));
    let marked = device::Volume { identity: &identity, socket: &socket };
    let is_there = |it: Device| device::is_there(it.driver(), it.number(), marked);
    device_of(attachment, |driver| device::find(driver, marked), is_there)
}

/// Of a volume without an engine: its requests get errors, and it goes.
pub fn stop(context: &Context, volume: &Volume, it: Device) -> Result<(), DeviceError> {
    let (identity, socket) = (identity(volume), context.layout.nbd(&volume.name));
    let marked = device::Volume { identity: &identity, socket: &socket };
    // Before it goes, since another volume may get its number at once.
    if let Some(path) = device::path_of(it.driver(), it.number(), marked)
        && let Err(error) = device_link::remove(Path::new(FOLDER), &volume.name, &path)
    {
        tracing::warn!(volume = %volume.name, %error, "a link in {FOLDER} is left");
    }
    device::stop(it.driver(), it.number(), marked)
}
