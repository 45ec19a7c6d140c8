//! Which device is an attachment's.

pub use crate::node::attachment::device_of;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::one_node::action::Action;
    use crate::one_node::plan::plan;
    use crate::one_node::scenarios::wanted;
    use crate::one_node::validate::validate;
    use ankole_api::volume::{Attachment, Device, Frontend, Volume};
    use ankole_blockdev::device::Driver;

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
            device_of::<()>(attachment, |_| Ok(self.find(&mark)), is_there).unwrap()
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
