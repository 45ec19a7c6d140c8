//! The control thread: adds, takes over, starts, stops and leaves one device.
//!
//! Commands of the driver block, some of them until requests were served, so they can't run on the
//! engine's thread; and the library keeps its control ring by thread. Promises never to delete a
//! device except when asked to stop it, or when a device that it has just added doesn't start.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::sync::{Arc, mpsc};

use libublk::UblkFlags;
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::sys::{UBLK_S_DEV_DEAD, ublk_params, ublksrv_ctrl_dev_info};
use tokio::sync::oneshot;

use super::Options;
use super::command::{self, Control};
use super::error::{DeviceName, Step, UblkError, cause, check};
use super::geometry::{self, Geometry};
use super::probe::{DEVICES_PATH, Features};
use super::request::REQUEST_BYTES_MAX;
use crate::device::{self, Origin};

/// A device whose queue can be opened; to be dropped when that is closed.
pub(super) struct Opened {
    pub(super) id: u32,
    pub(super) data: Arc<UblkDev>,
    /// After `data`: its end is waited for.
    _is_open: mpsc::Sender<Infallible>,
}

pub(super) type Reply = oneshot::Sender<Result<(), UblkError>>;

pub(super) enum Order {
    /// The queue is served from now on.
    Start(Reply),
    /// The queue is closed, or about to be.
    Close(Reply),
    Stop(Reply),
    Resize(u64, Reply),
}

/// Body of the thread. Ends when the one who gives the orders has gone: then the device is closed.
pub(super) fn run(
    options: &Options,
    geometry: Geometry,
    features: Features,
    opened: oneshot::Sender<Result<Opened, UblkError>>,
    orders: &mpsc::Receiver<Order>,
) {
    let (mut device, open) = match ControlledDevice::open(options, geometry, features) {
        Ok(open) => open,
        Err(error) => return drop(opened.send(Err(error))),
    };
    // Whoever doesn't listen has dropped the orders too.
    let _ = opened.send(Ok(open));
    for order in orders {
        let (reply, result) = match order {
            Order::Start(reply) => (reply, device.start()),
            Order::Close(reply) => (reply, device.close()),
            Order::Resize(size_bytes, reply) => (reply, device.resize(size_bytes)),
            Order::Stop(reply) => (reply, device.stop()),
        };
        let _ = reply.send(result);
    }
    if let Err(error) = device.close() {
        tracing::warn!(device = device.id, %error, "close a ublk device");
    }
}

struct ControlledDevice {
    id: u32,
    /// Nobody has used it yet.
    is_new: bool,
    features: Features,
    control: UblkCtrl,
    /// `None` once its queue is closed.
    open: Option<Open>,
}

struct Open {
    data: Arc<UblkDev>,
    /// Until [`Opened`] is dropped.
    queue: mpsc::Receiver<Infallible>,
}

impl ControlledDevice {
    fn open(
        options: &Options,
        geometry: Geometry,
        features: Features,
    ) -> Result<(Self, Opened), UblkError> {
        let (control, is_new) = match options.origin {
            Origin::New { id } => (add(id, options, features)?, true),
            Origin::Recovery { id } if is_half_made(id, options.identity)? => {
                let failed = |source| UblkError::Command {
                    step: Step::Delete,
                    device: DeviceName(Some(id)),
                    source,
                };
                Control::open().and_then(|mut it| it.delete(id)).map_err(failed)?;
                (add(None, options, features)?, true)
            }
            Origin::Recovery { id } => (take_over(id, geometry)?, false),
        };
        let (id, flags) = (control.dev_info().dev_id, control.dev_info().flags);
        let features = Features::from_bits(flags);
        let mut device = Self { id, is_new, features, control, open: None };
        match device.open_data(geometry) {
            Ok(opened) => Ok((device, opened)),
            Err(error) => {
                let _worse = device.close();
                Err(error)
            }
        }
    }

    fn open_data(&mut self, geometry: Geometry) -> Result<Opened, UblkError> {
        if let Some(missing) = self.features.missing() {
            return Err(UblkError::NotRecoverable { device: self.id, missing });
        }
        if self.control.dev_info().nr_hw_queues != 1 {
            let missing = "a queue for all processors";
            return Err(UblkError::NotRecoverable { device: self.id, missing });
        }
        let prepare = |device: &mut UblkDev| {
            device.tgt.dev_size = geometry.size_bytes;
            device.tgt.params = geometry.params();
            Ok(())
        };
        let data = UblkDev::new("ankole".to_owned(), prepare, &self.control);
        let data = Arc::new(data.map_err(|error| self.failed(Step::Open, cause(error)))?);
        let (_is_open, queue) = mpsc::channel();
        self.open = Some(Open { data: data.clone(), queue });
        Ok(Opened { id: self.id, data, _is_open })
    }

    /// Makes the device appear, or go on. Returns when the kernel has looked for partitions, so
    /// the queue must be served.
    fn start(&mut self) -> Result<(), UblkError> {
        let open = self.open.as_ref().expect("a device is started before it is stopped");
        check(self.control.start_dev(&open.data))
            .map_err(|source| self.failed(Step::Start, source))?;
        self.is_new = false;
        Ok(())
    }

    /// Its requests wait in the kernel for the next server. A new device that didn't start is of no
    /// use to anybody; an old one is its successor's.
    fn close(&mut self) -> Result<(), UblkError> {
        self.let_go();
        if std::mem::take(&mut self.is_new) { self.delete() } else { Ok(()) }
    }

    fn delete(&self) -> Result<(), UblkError> {
        check(self.control.del_dev()).map_err(|source| self.failed(Step::Delete, source))?;
        Ok(())
    }

    /// As soon as its queue is closed: the driver deletes nothing that is open.
    fn let_go(&mut self) {
        if let Some(open) = self.open.take() {
            let _closed = open.queue.recv();
        }
    }

    fn stop(&mut self) -> Result<(), UblkError> {
        let users = device::users(&super::block_device_path(self.id));
        if !users.is_empty() {
            return Err(UblkError::InUse { device: self.id, users: users.join(", ") });
        }
        check(self.control.kill_dev()).map_err(|source| self.failed(Step::Stop, source))?;
        self.let_go();
        self.delete()
    }

    fn resize(&self, size_bytes: u64) -> Result<(), UblkError> {
        if !self.features.can_resize() {
            return Err(UblkError::NoResize { device: self.id });
        }
        check(self.control.update_size(size_bytes))
            .map_err(|source| self.failed(Step::Resize, source))?;
        Ok(())
    }

    fn failed(&self, step: Step, source: io::Error) -> UblkError {
        UblkError::Command { step, device: DeviceName(Some(self.id)), source }
    }
}

fn add(id: Option<u32>, options: &Options, features: Features) -> Result<UblkCtrl, UblkError> {
    let failed = |source| UblkError::Command { step: Step::Add, device: DeviceName(id), source };
    let mut control = Control::open().map_err(failed)?;
    let added = control.add(ublksrv_ctrl_dev_info {
        dev_id: id.unwrap_or(command::ANY_NUMBER),
        nr_hw_queues: 1,
        queue_depth: options.depth,
        max_io_buf_bytes: REQUEST_BYTES_MAX,
        ublksrv_pid: std::process::id().cast_signed(),
        flags: features.device_flags(),
        ublksrv_flags: options.identity,
        ..Default::default()
    });
    let id = added.map_err(failed)?.dev_id;
    control_of(id).inspect_err(|_| {
        let _worse = control.delete(id);
    })
}

/// The library's control of a device that is there. It doesn't delete it when it is dropped.
fn control_of(id: u32) -> Result<UblkCtrl, UblkError> {
    let failed =
        |source| UblkError::Command { step: Step::Inspect, device: DeviceName(Some(id)), source };
    let control = UblkCtrlBuilder::default()
        .name("ankole")
        .id(library_id(id).map_err(failed)?)
        .dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV)
        .build();
    control.map_err(|error| failed(cause(error)))
}

fn take_over(id: u32, geometry: Geometry) -> Result<UblkCtrl, UblkError> {
    let failed = |step, source| UblkError::Command { step, device: DeviceName(Some(id)), source };
    let control = control_of(id)?;
    let mut params = ublk_params::default();
    check(control.get_params(&mut params)).map_err(|error| failed(Step::Inspect, error))?;
    let device_bytes = geometry::size_bytes(&params);
    if device_bytes > geometry.size_bytes {
        let disk_bytes = geometry.size_bytes;
        return Err(UblkError::LargerThanDisk { device: id, device_bytes, disk_bytes });
    }
    check(control.start_user_recover()).map_err(|error| failed(Step::Recover, error))?;
    check(control.read_dev_info()).map_err(|error| failed(Step::Inspect, error))?;
    Ok(control)
}

fn library_id(id: u32) -> io::Result<i32> {
    i32::try_from(id).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// See [`super::stop_device`].
pub(super) fn stop_and_delete(id: u32, identity: u64) -> Result<(), UblkError> {
    let failed = |step, source| UblkError::Command { step, device: DeviceName(Some(id)), source };
    info_of_ours(id, identity)?;
    let control = control_of(id)?;
    check(control.kill_dev()).map_err(|error| failed(Step::Stop, error))?;
    // What is mounted on it keeps its number until it is unmounted. Drivers before Linux 6.9 (commit
    // 13fe8e6825e4) have no command that doesn't wait for that.
    check(control.del_dev_async())
        .or_else(|_| check(control.del_dev()))
        .map_err(|error| failed(Step::Delete, error))?;
    Ok(())
}

/// Its server died before it had started it, or while it took it away: no client has ever seen it, or
/// none can any more, and nobody can take it over.
fn is_half_made(id: u32, identity: u64) -> Result<bool, UblkError> {
    Ok(u32::from(info_of_ours(id, identity)?.state) == UBLK_S_DEV_DEAD)
}

fn info_of_ours(device: u32, identity: u64) -> Result<ublksrv_ctrl_dev_info, UblkError> {
    let info = Control::open().and_then(|mut control| control.info(device));
    let info = info.map_err(|source| UblkError::Command {
        step: Step::Inspect,
        device: DeviceName(Some(device)),
        source,
    })?;
    match info.ublksrv_flags {
        found if found == identity => Ok(info),
        found => Err(UblkError::OtherVolume { device, found, expected: identity }),
    }
}

/// See [`super::is_there`].
pub(super) fn is_there(id: u32, identity: u64) -> Result<bool, UblkError> {
    let mut numbers = numbers().map_err(UblkError::List)?;
    numbers.retain(|number| *number == id);
    Ok(ours(identity, &numbers)?.is_some())
}

/// See [`super::find`].
pub(super) fn find(identity: u64) -> Result<Option<u32>, UblkError> {
    ours(identity, &numbers().map_err(UblkError::List)?)
}

/// The one of them that has the identity; one that has started before one that is half made.
fn ours(identity: u64, numbers: &[u32]) -> Result<Option<u32>, UblkError> {
    if numbers.is_empty() {
        return Ok(None);
    }
    let mut control = Control::open().map_err(UblkError::List)?;
    let mut half_made = None;
    for &number in numbers {
        match control.info(number) {
            Ok(info) if info.ublksrv_flags != identity => {}
            Ok(info) if u32::from(info.state) == UBLK_S_DEV_DEAD => half_made = Some(number),
            Ok(_) => return Ok(Some(number)),
            // It isn't there (any more), or it is an unprivileged user's.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENODEV | libc::EINVAL | libc::EACCES | libc::EPERM)
                ) => {}
            Err(error) => return Err(UblkError::List(error)),
        }
    }
    Ok(half_made)
}

/// Of all devices, whoever has made them.
fn numbers() -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(DEVICES_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    let number = |name: OsString| name.to_str()?.strip_prefix("ublkc")?.parse().ok();
    Ok(names?.into_iter().filter_map(number).collect())
}
