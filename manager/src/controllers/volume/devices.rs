//! Which device of the kernel is the volume's, and by which drivers it could get one.
//!
//! A device is its volume's by what it is marked with, and by nothing else: a number that was
//! written down may be another's by now. The kernel chooses the numbers of new ones, so that no two
//! engines can be given one.

use std::path::Path;

use ankole_blockdev::device::{self, DeviceError, Driver};

use super::Memory;
use super::seen::{DevicesSeen, EngineSeen};
use crate::agent::device_link::{self, FOLDER};
use crate::agent::probe;
use crate::api::volume::{Attachment, Device, Volume};
use crate::controllers::Context;

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
    marked_as(attachment, |driver| device::find(driver, marked), is_there)
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

/// The device of an attachment. One that a version before made is marked with the volume's name, which
/// another standalone's volume may have, too: it is believed at its number only.
fn marked_as<E>(
    attachment: &Attachment,
    find: impl Fn(Driver) -> Result<Option<u32>, E>,
    is_there: impl Fn(Device) -> Result<bool, E>,
) -> Result<Option<Device>, E> {
    match (attachment.device, attachment.driver()) {
        (Some(device), _) => Ok(is_there(device)?.then_some(device)),
        (None, Some(driver)) => Ok(find(driver)?.map(|number| Device::new(driver, number))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::action::Action;
    use super::super::plan::plan;
    use super::super::scenarios::wanted;
    use super::super::validate::validate;
    use super::*;
    use crate::api::volume::Frontend;

    /// A kernel's devices of ublk and their marks. It gives a new one the lowest number that is free.
    #[derive(Default)]
    struct Kernel(BTreeMap<u32, String>);

    impl Kernel {
        fn add(&mut self, mark: &str) -> u32 {
            let number = (0..).find(|number| !self.0.contains_key(number)).unwrap();
            self.0.insert(number, mark.into());
            number
        }

        fn find(&self, mark: &str) -> Option<u32> {
            self.0.iter().find(|(_, found)| *found == mark).map(|(number, _)| *number)
        }

        fn own(&self, volume: &Volume) -> Option<Device> {
            let attachment = volume.status.attachment.as_ref()?;
            let mark = attachment.identity(volume);
            let is_there = |device: Device| Ok(self.0.get(&device.number()) == Some(&mark));
            marked_as::<()>(attachment, |_| Ok(self.find(&mark)), is_there).unwrap()
        }

        /// What an engine does that was started so: the number of its device.
        fn serve(&mut self, start: &Start) -> u32 {
            match start.device {
                Some(number) => {
                    assert_eq!(self.0.get(&number), Some(&start.mark), "another one's device");
                    number
                }
                None => self.add(&start.mark),
            }
        }
    }

    struct Start {
        mark: String,
        device: Option<u32>,
    }

    fn volume(number: u32) -> Volume {
        let mut volume = wanted().volume;
        volume.name = format!("v{number}").parse().unwrap();
        volume.uid = format!("{number:032x}");
        volume.spec.frontend = Frontend::Ublk;
        volume
    }

    /// A pass of a volume that is wanted and has no engine.
    fn pass(volume: &mut Volume, kernel: &Kernel) -> Start {
        let mut seen = wanted();
        seen.volume = volume.clone();
        seen.devices.drivers = vec![Driver::Ublk];
        seen.devices.own = kernel.own(volume);
        let mut start = None;
        for action in plan(validate(volume, false), &seen).actions {
            match action {
                Action::Grant { attachment, .. } => volume.status.attachment = Some(attachment),
                Action::StartEngine(it) => {
                    let device = it.device.map(Device::number);
                    assert_eq!(it.recover, device.is_some());
                    start = Some(Start { mark: it.identity, device });
                }
                _ => {}
            }
        }
        start.expect("an engine is started")
    }

    /// Numbers were chosen while looking and written down later: after a restart with three volumes
    /// all were granted `ublk 0`, and two attaches at once answered with one path.
    #[test]
    fn ten_volumes_that_are_granted_at_once_have_ten_devices_and_keep_them_over_a_restart() {
        let mut kernel = Kernel::default();
        let mut volumes: Vec<_> = (0..10).map(volume).collect();
        let mut serve = |kernel: &mut Kernel| -> Vec<u32> {
            let starts: Vec<_> = volumes.iter_mut().map(|it| pass(it, kernel)).collect();
            starts.iter().rev().map(|start| kernel.serve(start)).collect()
        };
        let first = serve(&mut kernel);
        assert_eq!(kernel.0.len(), 10);
        assert_eq!(serve(&mut kernel), first);
        // Some devices are gone, and a stranger was faster.
        kernel.0.remove(&first[3]);
        kernel.0.remove(&first[7]);
        let stranger = kernel.add("a stranger's");
        let then = serve(&mut kernel);
        assert_eq!(kernel.0.len(), 11);
        assert!(!then.contains(&stranger));
        assert!(
            (0..10).all(|it| it == 3 || it == 7 || then[it] == first[it]),
            "{first:?} {then:?}"
        );
    }

    /// It belongs to another volume since: it was looked at whether there is a device, not whose.
    #[test]
    fn a_number_of_a_version_before_is_believed_only_if_the_device_there_is_the_volumes() {
        let mut kernel = Kernel::default();
        let [mut ours, mut others] = [1, 2].map(volume);
        for it in [&mut ours, &mut others] {
            let stored = r#"{"bootId": "boot", "device": {"ublk": 0}}"#;
            it.status.attachment = Some(serde_json::from_str(stored).unwrap());
        }
        kernel.add("v2");
        let start = pass(&mut ours, &kernel);
        assert_eq!((start.mark, start.device), (format!("v1.{}", ours.uid), None));
        assert_eq!(pass(&mut others, &kernel).device, Some(0));
        // Another standalone's volume of that name has another number.
        kernel.0.insert(0, "a stranger's".into());
        kernel.0.insert(1, "v2".into());
        assert_eq!(pass(&mut others, &kernel).device, None);
    }

    #[test]
    fn a_volume_that_is_made_anew_is_not_the_one_before() {
        let (old, mut new) = (volume(1), volume(1));
        new.uid = "another".into();
        let attachment = Attachment::new("boot", Some(Driver::Ublk));
        assert_ne!(attachment.identity(&old), attachment.identity(&new));
    }
}
