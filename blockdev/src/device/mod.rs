//! A disk as a block device of the kernel, by whichever driver there is.
//!
//! ```text
//!            ┌─▶ ublk        /dev/ublkbN
//! Device ────┼─▶ kernel_nbd  /dev/nbdN
//!            └─▶ tgt         /dev/sdX
//! ```

mod life;
mod users;

use std::path::{Path, PathBuf};
use std::rc::Rc;

pub use life::{Ended, Origin};
pub(crate) use life::{Ending, ended};
pub(crate) use users::users;

use crate::blocking::blocking;
use crate::disk::Disk;
use crate::hash::fnv1a;
use crate::kernel_nbd::{self, NbdDeviceError};
use crate::tgt::{self, TgtError};
use crate::ublk::{self, UblkError};

/// Whose devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Driver {
    Ublk,
    /// The kernel's NBD client.
    Nbd,
    /// The kernel's iSCSI initiator, and tgtd.
    Tgt,
}

/// Whose device, to all drivers.
#[derive(Clone, Copy, Debug)]
pub struct Volume<'a> {
    /// What its device is marked with in the kernel, and known by: no other volume ever has it.
    pub identity: &'a str,
    /// Where its engine serves it as NBD, which is what tgtd reads from.
    pub socket: &'a Path,
}

/// A device that is being served. Dropping it leaves the device to a successor, without waiting.
#[must_use = "dropping it leaves the device without a server"]
pub enum Device {
    Ublk(ublk::Device),
    Nbd(kernel_nbd::Device),
    Tgt(tgt::Device),
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Ublk(#[from] UblkError),
    #[error(transparent)]
    Nbd(#[from] NbdDeviceError),
    #[error(transparent)]
    Tgt(#[from] TgtError),
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Ublk => "ublk",
            Self::Nbd => "nbd",
            Self::Tgt => "tgt",
        })
    }
}

impl std::str::FromStr for Driver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Ublk, Self::Nbd, Self::Tgt]
            .into_iter()
            .find(|driver| driver.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no driver of block devices: ublk, nbd or tgt"))
    }
}

/// Makes or takes over a device of `volume` and serves it from `disk`. Returns when the device can
/// be used. Runs within a `LocalSet`, whose thread should have nothing else to do. Not to be
/// dropped half way: a device may stay behind, to be taken over or stopped.
pub async fn serve<D: Disk + 'static>(
    driver: Driver,
    disk: Rc<D>,
    origin: Origin,
    volume: Volume<'_>,
) -> Result<Device, DeviceError> {
    Ok(match driver {
        Driver::Ublk => {
            let options = ublk::Options::new(origin, hash(volume.identity));
            Device::Ublk(ublk::serve(disk, options).await?)
        }
        Driver::Nbd => {
            let options = kernel_nbd::Options::new(origin, volume.identity);
            Device::Nbd(kernel_nbd::serve(disk, options).await?)
        }
        Driver::Tgt => {
            let (identity, socket) = (volume.identity.to_owned(), volume.socket.to_owned());
            Device::Tgt(tgt::serve(disk, tgt::Options { origin, identity, socket }).await?)
        }
    })
}

/// For a supervisor whose engine doesn't come back: stops the device of `volume`. Requests that
/// wait get `EIO`; a file system on it shuts down, and can be unmounted. Blocks. Kill a server that
/// hangs first.
pub fn stop(driver: Driver, id: u32, volume: Volume<'_>) -> Result<(), DeviceError> {
    match driver {
        Driver::Ublk => ublk::stop_device(id, hash(volume.identity))?,
        Driver::Nbd => kernel_nbd::stop_device(id, volume.identity)?,
        Driver::Tgt => tgt::stop_device(id, volume.identity, volume.socket)?,
    }
    Ok(())
}

/// The number of the device that has the volume's identity, if the kernel has one: what was written
/// down may be another's by now. Blocks briefly.
pub fn find(driver: Driver, volume: Volume<'_>) -> Result<Option<u32>, DeviceError> {
    Ok(match driver {
        Driver::Ublk => ublk::find(hash(volume.identity))?,
        Driver::Nbd => kernel_nbd::find(volume.identity)?,
        Driver::Tgt => tgt::find(volume.identity, volume.socket)?,
    })
}

/// Whether the device of this number has the volume's identity.
pub fn is_there(driver: Driver, id: u32, volume: Volume<'_>) -> Result<bool, DeviceError> {
    Ok(match driver {
        Driver::Ublk => ublk::is_there(id, hash(volume.identity))?,
        Driver::Nbd => kernel_nbd::identity_of(id)?.is_some_and(|found| found == volume.identity),
        Driver::Tgt => tgt::is_there(id, volume.identity, volume.socket)?,
    })
}

/// Where a device of `volume` with this number appears, or has appeared.
pub fn path_of(driver: Driver, id: u32, volume: Volume<'_>) -> Option<PathBuf> {
    match driver {
        Driver::Ublk => Some(ublk::block_device_path(id)),
        Driver::Nbd => Some(kernel_nbd::block_device_path(id)),
        Driver::Tgt => tgt::path_of(id, volume.identity, volume.socket),
    }
}

/// An identity where a driver wants a number.
pub(crate) fn hash(identity: &str) -> u64 {
    fnv1a(identity.as_bytes())
}

impl Device {
    /// /dev/ublkbN, /dev/nbdN or /dev/sdX.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Ublk(device) => device.path(),
            Self::Nbd(device) => device.path(),
            Self::Tgt(device) => device.path(),
        }
    }

    /// Waits until the device isn't served any more though nobody here asked for that.
    pub async fn ended(&self) -> Ended {
        match self {
            Self::Ublk(device) => device.ended().await,
            Self::Nbd(device) => device.ended().await,
            Self::Tgt(device) => device.ended().await,
        }
    }

    /// Who uses it, in words.
    pub async fn users(&self) -> Vec<String> {
        let path = self.path();
        blocking(move || users(&path)).await
    }

    /// Waits for what is in flight and takes the device away. Refuses while it is mounted or held.
    pub async fn stop(self) -> Result<(), (Self, DeviceError)> {
        match self {
            Self::Ublk(device) => {
                let stopped = device.stop().await;
                stopped.map_err(|(device, error)| (Self::Ublk(device), error.into()))
            }
            Self::Nbd(device) => {
                let stopped = device.stop().await;
                stopped.map_err(|(device, error)| (Self::Nbd(device), error.into()))
            }
            Self::Tgt(device) => {
                let stopped = device.stop().await;
                stopped.map_err(|(device, error)| (Self::Tgt(device), error.into()))
            }
        }
    }

    /// Leaves the device to the next server: its requests wait. Returns when the disk isn't used
    /// any more.
    pub async fn hand_over(self) {
        match self {
            Self::Ublk(device) => device.hand_over().await,
            Self::Nbd(device) => device.hand_over().await,
            Self::Tgt(device) => device.hand_over(),
        }
    }

    /// Shows the kernel that the disk has grown.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), DeviceError> {
        match self {
            Self::Ublk(device) => device.resize(size_bytes).await?,
            Self::Nbd(device) => device.resize(size_bytes).await?,
            Self::Tgt(device) => device.resize(size_bytes).await?,
        }
        Ok(())
    }
}
