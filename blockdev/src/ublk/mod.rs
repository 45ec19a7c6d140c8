//! A disk as /dev/ublkbN: block requests of the kernel, served in this process.
//!
//! Owns the device and its queue, which is served on the engine's thread: between the kernel and
//! the disk lies no other thread. A thread of control has the commands of the driver that block.
//! Promises that a device outlives its server: when this process dies, requests wait in the kernel,
//! and the next process gets them again ([`Origin::Recovery`]). A device is deleted only by
//! [`Device::stop`] and [`stop_device`]. What may never happen: an answer for a request whose disk
//! has gone; a device that continues with another volume's disk.
//!
//! ```text
//!  kernel                     engine thread (LocalSet)
//!  /dev/ublkbN ─request─▶ ring ─ data copied in ──▶ service ─▶ Disk
//!              ◀─commit── ring ◀─ data copied out ─ answer; drops the Hold once it is consumed
//!  ublk-control ◀──── control thread ◀─── Order ─── Device
//! ```
//!
//! The driver's interface comes from the crate `libublk`, which nothing outside of this module
//! sees. Data moves by USER_COPY: reading and writing /dev/ublkcN at a request's offset, into
//! buffers of ours, so that the kernel never holds a pointer to our memory.

mod command;
mod control;
mod copy;
mod error;
mod geometry;
mod probe;
mod queue;
mod request;
mod service;
mod sys;

use std::convert::Infallible;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use futures_util::FutureExt;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, spawn_local};

pub use error::{DeviceName, Step, UblkError, Unavailable};
pub use probe::{Features, Room, has_room, is_available, room};

use crate::device::{self, Ended, Ending, Origin};
use crate::disk::Disk;
use control::Order;
use geometry::Geometry;
use queue::Queue;

#[derive(Clone, Debug)]
pub struct Options {
    pub origin: Origin,
    /// Says whose device this is. The kernel keeps it with the device, and a device with another
    /// identity isn't taken over.
    pub identity: u64,
    /// Requests in flight.
    pub depth: u16,
}

impl Options {
    pub fn new(origin: Origin, identity: u64) -> Self {
        Self { origin, identity, depth: 128 }
    }
}

/// A device that is being served. Dropping it leaves the device to a successor, without waiting.
#[must_use = "dropping it leaves the device without a server"]
pub struct Device {
    id: u32,
    orders: mpsc::Sender<Order>,
    ended: watch::Receiver<Option<Ended>>,
    /// Its end says that the device is to be left.
    leave: oneshot::Sender<Infallible>,
    service: JoinHandle<()>,
}

/// Makes or takes over a device and serves it from `disk`, until [`Device`] is stopped, handed
/// over or dropped. Returns when /dev/ublkbN can be used. Runs within a `LocalSet`, whose thread
/// should have nothing else to do.
///
/// Not to be dropped half way: a device may stay behind, to be taken over or stopped.
pub async fn serve<D: Disk + 'static>(disk: Rc<D>, options: Options) -> Result<Device, UblkError> {
    let features = match options.origin {
        Origin::New { .. } => has_room()?,
        Origin::Recovery { .. } => is_available()?,
    };
    if let Err(error) = crate::reclaim::set_io_flusher() {
        tracing::warn!(%error, "set PR_SET_IO_FLUSHER: under memory pressure ublk may deadlock");
    }
    let geometry = Geometry { size_bytes: disk.size_bytes(), is_read_only: disk.is_read_only() };
    let (opened, has_opened) = oneshot::channel();
    let (orders, incoming_orders) = mpsc::channel();
    thread::Builder::new()
        .name("ublk-control".to_owned())
        .spawn(move || control::run(&options, geometry, features, opened, &incoming_orders))
        .map_err(UblkError::Thread)?;
    let opened = has_opened.await.map_err(|_| UblkError::ControlGone)??;
    let id = opened.id;
    let (ending, ended) = Ending::new();
    let (is_open, has_queue) = oneshot::channel();
    let (leave, told_to_leave) = oneshot::channel();
    let service = spawn_local(async move {
        match Queue::open(&opened.data) {
            Ok(queue) => {
                let _ = is_open.send(Ok(()));
                service::serve(disk, queue, told_to_leave.map(drop), ending).await;
            }
            Err(source) => drop(is_open.send(Err(UblkError::Queue { device: id, source }))),
        }
        drop(opened);
    });
    let device = Device { id, orders, ended, leave, service };
    let is_open = has_queue.await.map_err(|_| UblkError::ControlGone).flatten();
    let is_started = match is_open {
        Ok(()) => order(&device.orders, Order::Start).await,
        Err(error) => Err(error),
    };
    if let Err(error) = is_started {
        device.hand_over().await;
        return Err(error);
    }
    tracing::info!(device = id, "serving over ublk");
    Ok(device)
}

impl Device {
    pub fn id(&self) -> u32 {
        self.id
    }

    /// /dev/ublkbN.
    pub fn path(&self) -> PathBuf {
        block_device_path(self.id)
    }

    /// Waits until the device isn't served any more though nobody here asked for that.
    pub async fn ended(&self) -> Ended {
        device::ended(&self.ended).await
    }

    /// Waits for what is in flight and removes the device. Refuses while it is mounted or held.
    pub async fn stop(self) -> Result<(), (Self, UblkError)> {
        match order(&self.orders, Order::Stop).await {
            Ok(()) => {
                let _ = self.service.await; // it doesn't panic
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// Leaves the device to the next server: /dev/ublkbN stays, and its requests wait. Returns
    /// when the disk isn't used any more.
    pub async fn hand_over(self) {
        drop(self.leave);
        let _ = self.service.await; // it doesn't panic
        if let Err(error) = order(&self.orders, Order::Close).await {
            tracing::warn!(device = self.id, %error, "close a ublk device");
        }
    }

    /// Shows the kernel that the disk has grown.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), UblkError> {
        order(&self.orders, |reply| Order::Resize(size_bytes, reply)).await
    }
}

async fn order(
    orders: &mpsc::Sender<Order>,
    order: impl FnOnce(control::Reply) -> Order,
) -> Result<(), UblkError> {
    let (reply, answer) = oneshot::channel();
    orders.send(order(reply)).map_err(|_| UblkError::ControlGone)?;
    answer.await.map_err(|_| UblkError::ControlGone)?
}

/// For a supervisor whose engine doesn't come back: stops and deletes the device, whoever made it.
/// Requests that wait get `EIO`; a file system on it shuts down, and can be unmounted.
///
/// Blocks. Kill a server that hangs first: with one alive this waits for the requests it has.
pub fn stop_device(id: u32, identity: u64) -> Result<(), UblkError> {
    is_available()?;
    control::stop_and_delete(id, identity)
}

/// The number of the device that has this identity, if the kernel has one. Blocks briefly.
pub fn find(identity: u64) -> Result<Option<u32>, UblkError> {
    control::find(identity)
}

/// Whether there is a device of this number with this identity. Blocks briefly.
pub fn is_there(id: u32, identity: u64) -> Result<bool, UblkError> {
    control::is_there(id, identity)
}

pub(crate) fn block_device_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}
