//! Which device is an attachment's.

use ankole_api::volume::{Attachment, Device};
use ankole_blockdev::device::Driver;

/// The device of an attachment. One that a version before made is marked with the volume's name, which
/// another standalone's volume may have, too: it is believed at its number only.
pub fn device_of<E>(
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
