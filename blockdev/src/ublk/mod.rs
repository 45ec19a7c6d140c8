//! A disk as /dev/ublkbN: block requests of the kernel, served in this process.
//!
//! Owns the threads that talk to the driver, one for each queue and one for control; the disk
//! stays on the engine's thread. Promises that a device outlives its server: when this process
//! dies, requests wait in the kernel, and the next process gets them again
//! ([`Origin::Recovery`]). A device is deleted only by [`Device::stop`] and [`stop_device`].
//! What may never happen: an answer for a request whose disk has gone; a device that continues
//! with another volume's disk.
//!
//! ```text
//!  kernel                 queue threads (1…queues_max)          engine thread (LocalSet)
//!  /dev/ublkbN ─request─▶ ring ─ copy in ──── Turn ───────────▶ service ─▶ Disk
//!              ◀─commit── ring ◀ copy out ─── Mailbox, bell ◀── answer, keeps the Hold
//!                          └───────────────── Turn.committed ─▶ drops the Hold
//!  ublk-control ◀──────── control thread ◀─── Order ──────────  Device
//! ```
//!
//! The driver's interface comes from the crate `libublk`, which nothing outside of this module
//! sees. Data moves by USER_COPY: reading and writing /dev/ublkcN at a request's offset, into
//! buffers of ours, so that the kernel never holds a pointer to our memory.

mod control;
mod copy;
mod error;
mod geometry;
mod link;
mod probe;
mod queue;
mod request;
mod service;
mod sys;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, spawn_local};

pub use error::{DeviceName, Step, UblkError, Unavailable};
pub use probe::{Features, Room, has_room, is_available, room};

use crate::device::{self, Ended, Ending, Origin};
use crate::disk::Disk;
use control::{Opened, Order};
use geometry::Geometry;

#[derive(Clone, Debug)]
pub struct Options {
    pub origin: Origin,
    /// Says whose device this is, e.g. a hash of the volume's id. The kernel keeps it with the
    /// device, and a device with another identity isn't taken over.
    pub identity: u64,
    /// Queues, each with a thread: one for each processor, but not more than this.
    pub queues_max: u16,
    /// Requests that one queue has in flight.
    pub depth: u16,
}

impl Options {
    pub fn new(origin: Origin, identity: u64) -> Self {
        // More queues than this don't make one engine thread faster.
        Self { origin, identity, queues_max: 4, depth: 128 }
    }

    fn queue_count(&self) -> u16 {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        u16::try_from(processors).unwrap_or(u16::MAX).clamp(1, self.queues_max.max(1))
    }
}

/// A device that is being served. Dropping it leaves the device to a successor, without waiting.
#[must_use = "dropping it leaves the device without a server"]
pub struct Device {
    id: u32,
    orders: mpsc::Sender<Order>,
    ended: watch::Receiver<Option<Ended>>,
    services: Vec<JoinHandle<()>>,
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
    let (started, has_started) = oneshot::channel();
    let (orders, incoming_orders) = mpsc::channel();
    thread::Builder::new()
        .name("ublk-control".to_owned())
        .spawn(move || {
            control::run(&options, geometry, features, opened, started, &incoming_orders);
        })
        .map_err(UblkError::Thread)?;

    let Opened { id, queues } = has_opened.await.map_err(|_| UblkError::ControlGone)??;
    let (ending, ended) = Ending::new();
    let services = queues
        .into_iter()
        .map(|link| spawn_local(service::serve(disk.clone(), link, ending.clone())))
        .collect();
    has_started.await.map_err(|_| UblkError::ControlGone)??;
    tracing::info!(device = id, "serving over ublk");
    Ok(Device { id, orders, ended, services })
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
        match self.order(Order::Stop).await {
            Ok(()) => {
                self.services_done().await;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// Leaves the device to the next server: /dev/ublkbN stays, and its requests wait. Returns
    /// when the disk isn't used any more.
    pub async fn hand_over(self) -> Result<(), UblkError> {
        self.order(Order::HandOver).await?;
        self.services_done().await;
        Ok(())
    }

    /// Shows the kernel that the disk has grown.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), UblkError> {
        self.order(|reply| Order::Resize(size_bytes, reply)).await
    }

    async fn order(&self, order: impl FnOnce(control::Reply) -> Order) -> Result<(), UblkError> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).map_err(|_| UblkError::ControlGone)?;
        answer.await.map_err(|_| UblkError::ControlGone)?
    }

    async fn services_done(self) {
        for service in self.services {
            // A service doesn't panic: the disk's code runs in tasks of its own.
            let _ = service.await;
        }
    }
}

/// For a supervisor whose engine doesn't come back: stops and deletes the device, whoever made it.
/// Requests that wait get `EIO`; a file system on it shuts down, and can be unmounted.
///
/// Blocks. Kill a server that hangs first: with one alive this waits for the requests it has.
pub fn stop_device(id: u32, identity: u64) -> Result<(), UblkError> {
    is_available()?;
    control::stop_and_delete(id, identity)
}

fn block_device_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}
