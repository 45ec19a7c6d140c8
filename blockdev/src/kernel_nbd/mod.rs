//! A disk as /dev/nbdN: the kernel's own NBD client, with this process as its server.
//!
//! Owns the connections: pairs of unix sockets of which the kernel gets one end, so that no
//! handshake is needed, and no socket has a name. Promises what ublk does: a device outlives its
//! server ([`Origin::Recovery`](crate::device::Origin)), nothing is answered once the disk has gone,
//! and a device is disconnected only by [`Device::stop`] and [`stop_device`].
//!
//! ```text
//!  kernel                                    engine thread (LocalSet)
//!  /dev/nbdN ─▶ connection 1…n ─unix socket─▶ line: nbd's transmission ─▶ Lasting ─▶ Disk
//!     ▲            when one is gone ────────▶ line: a new pair ─┐
//!     └───────── netlink: CONNECT, RECONFIGURE, DISCONNECT ◀────┘
//! ```
//!
//! **When the server dies** the kernel keeps the device, and requests wait for
//! [`Options::dead_connection`]; then they get `EIO`. The next server brings new connections. What
//! was in flight is sent again, but the driver looks for that only every [`RESEND_INTERVAL`]. **A
//! request that takes long** is left in peace, since a volume may wait for space on a disk: with a
//! time limit, or a second connection, the driver would cut its connection and send it again, and
//! again. Seen on Linux 6.1 and read in `nbd_xmit_timeout` of `drivers/block/nbd.c`.

mod driver;
mod error;
mod lines;
mod netlink;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

pub use error::{DeviceName, NbdDeviceError, Step, Unavailable};

use crate::blocking::blocking;
use crate::device::{self, Ended, Ending, Origin};
use crate::disk::Disk;
use crate::nbd::Export;
use crate::{privilege, reclaim};
use driver::{Connect, Driver};
use lines::{Lasting, Lines};

/// After a server's death its successor waits up to so long for what was in flight.
pub const RESEND_INTERVAL: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub struct Options {
    pub origin: Origin,
    /// Says whose device this is. The kernel keeps it with the device, and a
    /// device with another identity isn't taken over.
    pub identity: String,
    /// With more than one the driver takes a request that needs longer than [`RESEND_INTERVAL`]
    /// for lost: it cuts its connection and sends it again by another one.
    pub connections: usize,
    /// So long requests wait for the next server; whole seconds.
    pub dead_connection: Duration,
}

impl Options {
    pub fn new(origin: Origin, identity: impl Into<String>) -> Self {
        let dead_connection = Duration::from_secs(300);
        Self { origin, identity: identity.into(), connections: 1, dead_connection }
    }
}

/// A device that is being served. Dropping it leaves the device to a successor, without waiting.
#[must_use = "dropping it leaves the device without a server"]
pub struct Device {
    id: u32,
    identity: String,
    ended: watch::Receiver<Option<Ended>>,
    stop: watch::Sender<bool>,
    lines: Vec<JoinHandle<()>>,
}

/// Makes or takes over a device and serves it from `disk`, until [`Device`] is stopped, handed
/// over or dropped. Returns when /dev/nbdN can be used. Runs within a `LocalSet`, whose thread
/// should have nothing else to do.
pub async fn serve<D: Disk + 'static>(
    disk: Rc<D>,
    options: Options,
) -> Result<Device, NbdDeviceError> {
    is_available()?;
    if let Err(error) = reclaim::set_io_flusher() {
        tracing::warn!(%error, "set PR_SET_IO_FLUSHER: under memory pressure nbd may deadlock");
    }
    let size_bytes = disk.size_bytes();
    let grows = match options.origin {
        Origin::New { .. } => false,
        Origin::Recovery { id } => {
            let device_bytes = bytes_of_ours(id, &options.identity)?;
            if device_bytes > size_bytes {
                let disk_bytes = size_bytes;
                return Err(NbdDeviceError::LargerThanDisk {
                    device: id,
                    device_bytes,
                    disk_bytes,
                });
            }
            device_bytes < size_bytes
        }
    };

    // The kernel's first requests may come before it says that it is connected.
    let (ending, ended) = Ending::new();
    let lasting = Rc::new(Lasting { disk, ending: ending.clone() });
    let export = Export::new(options.identity.clone(), lasting);
    let transmission_flags = export.transmission_flags();
    let (stop, stopping) = watch::channel(false);
    let lines = Rc::new(Lines::new(export, options.identity.clone(), stopping, ending));
    let (ours, theirs) = pairs(options.connections.max(1))?;
    let tasks = ours.into_iter().map(|end| spawn_local(lines.clone().serve(end))).collect();
    let identity = options.identity.clone();
    let connected = blocking(move || connect(&options, size_bytes, transmission_flags, &theirs));
    let id = match connected.await {
        Ok(id) => id,
        Err(error) => {
            stop.send_replace(true);
            return Err(error);
        }
    };
    let device = Device { id, identity, ended, stop, lines: tasks };
    lines.now_device(id);
    if let Err(error) = driver::set_resend_interval(id, RESEND_INTERVAL) {
        tracing::warn!(device = id, %error, "set the device's io_timeout: after a crash its \
            requests wait longer");
    }
    if grows {
        device.resize(size_bytes).await?;
    }
    tracing::info!(device = id, "serving over kernel NBD");
    Ok(device)
}

impl Device {
    pub fn id(&self) -> u32 {
        self.id
    }

    /// /dev/nbdN.
    pub fn path(&self) -> PathBuf {
        block_device_path(self.id)
    }

    /// Waits until the device isn't served any more though nobody here asked for that.
    pub async fn ended(&self) -> Ended {
        device::ended(&self.ended).await
    }

    /// Disconnects the device. Refuses while it is mounted or held.
    pub async fn stop(self) -> Result<(), (Self, NbdDeviceError)> {
        let (id, identity) = (self.id, self.identity.clone());
        let stopping = blocking(move || {
            let users = device::users(&block_device_path(id));
            if !users.is_empty() {
                return Err(NbdDeviceError::InUse { device: id, users: users.join(", ") });
            }
            stop_device(id, &identity)
        });
        match stopping.await {
            Ok(()) => {
                self.hand_over().await;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// Leaves the device to the next server: /dev/nbdN stays, and its requests wait. Returns when
    /// the disk isn't used any more.
    pub async fn hand_over(self) {
        self.stop.send_replace(true);
        for line in self.lines {
            // A line doesn't panic: the disk's code runs in tasks of its own.
            let _ = line.await;
        }
    }

    /// Shows the kernel that the disk has grown.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), NbdDeviceError> {
        let (id, identity) = (self.id, self.identity.clone());
        blocking(move || {
            let done = Driver::open()?.resize(id, &identity, size_bytes);
            done.map_err(failed(Step::Resize, Some(id)))
        })
        .await
    }
}

/// Whether the driver can be used here. Newer kernels load it for that.
pub fn is_available() -> Result<(), Unavailable> {
    Driver::open()?;
    if privilege::may_administrate() { Ok(()) } else { Err(Unavailable::NoPrivilege) }
}

/// What a device was connected with; None if it isn't connected.
pub fn identity_of(id: u32) -> Result<Option<String>, NbdDeviceError> {
    driver::identity(id).map_err(failed(Step::Inspect, Some(id)))
}

/// The number of the device that was connected with this identity, if there is one.
pub fn find(identity: &str) -> Result<Option<u32>, NbdDeviceError> {
    driver::find(identity).map_err(failed(Step::Inspect, None))
}

/// For a supervisor whose engine doesn't come back: disconnects the device. Requests that wait get
/// `EIO`. One that belongs to another volume, or to nobody, is left alone. Blocks.
pub fn stop_device(id: u32, identity: &str) -> Result<(), NbdDeviceError> {
    match bytes_of_ours(id, identity) {
        Ok(_) => {
            let done = Driver::open()?.disconnect(id);
            done.map_err(failed(Step::Disconnect, Some(id)))
        }
        Err(NbdDeviceError::NotConnected { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Size of a device that is connected for `identity`, in bytes.
fn bytes_of_ours(id: u32, identity: &str) -> Result<u64, NbdDeviceError> {
    let found = driver::identity(id).map_err(failed(Step::Inspect, Some(id)))?;
    match found {
        None => Err(NbdDeviceError::NotConnected { device: id }),
        Some(found) if found != identity => {
            let expected = identity.to_owned();
            Err(NbdDeviceError::OtherVolume { device: id, found, expected })
        }
        Some(_) => driver::size_bytes(id).map_err(failed(Step::Inspect, Some(id))),
    }
}

fn connect(
    options: &Options,
    size_bytes: u64,
    transmission_flags: u16,
    sockets: &[OwnedFd],
) -> Result<u32, NbdDeviceError> {
    let mut driver = Driver::open()?;
    let identity = &options.identity;
    match options.origin {
        Origin::Recovery { id } => {
            let done = driver.reconnect(id, identity, sockets);
            done.map_err(failed(Step::Reconnect, Some(id)))?;
            Ok(id)
        }
        Origin::New { id } => {
            let dead_connection = options.dead_connection;
            let with =
                Connect { id, size_bytes, transmission_flags, dead_connection, sockets, identity };
            driver.connect(&with).map_err(failed(Step::Connect, id))
        }
    }
}

/// Connected sockets: our ends, and the kernel's.
fn pairs(count: usize) -> Result<(Vec<UnixStream>, Vec<OwnedFd>), NbdDeviceError> {
    let pairs: io::Result<Vec<_>> = (0..count).map(|_| StdStream::pair()).collect();
    let pairs = pairs.map_err(NbdDeviceError::Connection)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (our_end, their_end) in pairs {
        let readied = our_end.set_nonblocking(true).and_then(|()| UnixStream::from_std(our_end));
        ours.push(readied.map_err(NbdDeviceError::Connection)?);
        theirs.push(OwnedFd::from(their_end));
    }
    Ok((ours, theirs))
}

fn failed(step: Step, id: Option<u32>) -> impl FnOnce(io::Error) -> NbdDeviceError {
    move |source| NbdDeviceError::Command { step, device: DeviceName(id), source }
}

pub(crate) fn block_device_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{id}"))
}
