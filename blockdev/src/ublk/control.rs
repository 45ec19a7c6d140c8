//! The control thread: adds, takes over, starts, stops and leaves one device.
//!
//! Commands of the driver block, some of them until requests were served, so they can't run on the
//! engine's thread; and the library keeps its control ring by thread. Owns the device's handles and
//! its queue threads. Promises never to delete a device except when asked to stop it, or when a
//! device that it has just added doesn't start.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use libublk::UblkFlags;
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::sys::ublk_params;
use tokio::sync::oneshot;

use super::error::{DeviceName, Step, UblkError, cause, check};
use super::geometry::{self, Geometry};
use super::link::{self, EngineEnd, Mailbox, QueueEnd};
use super::probe::Features;
use super::request::REQUEST_BYTES_MAX;
use super::{Options, queue};
use crate::device::{self, Origin};

pub(super) struct Opened {
    pub(super) id: u32,
    pub(super) queues: Vec<EngineEnd>,
}

pub(super) type Reply = oneshot::Sender<Result<(), UblkError>>;

pub(super) enum Order {
    Stop(Reply),
    HandOver(Reply),
    Resize(u64, Reply),
}

/// Body of the thread. Ends when the device is stopped or left; if the one who gives the orders
/// has gone, the device is left.
pub(super) fn run(
    options: &Options,
    geometry: Geometry,
    features: Features,
    opened: oneshot::Sender<Result<Opened, UblkError>>,
    started: Reply,
    orders: &mpsc::Receiver<Order>,
) {
    let (mut device, queues) = match ControlledDevice::open(options, geometry, features) {
        Ok(open) => open,
        Err(error) => return drop(opened.send(Err(error))),
    };
    let id = device.id;
    if opened.send(Ok(Opened { id, queues })).is_err() {
        return device.give_up();
    }
    if let Err(error) = device.start() {
        device.give_up();
        return drop(started.send(Err(error)));
    }
    // Whoever doesn't listen has dropped the orders too.
    let _ = started.send(Ok(()));
    for order in orders {
        let (reply, result) = match order {
            Order::Resize(size_bytes, reply) => (reply, device.resize(size_bytes)),
            Order::HandOver(reply) => {
                device.leave();
                (reply, Ok(()))
            }
            Order::Stop(reply) => (reply, device.stop()),
        };
        let _ = reply.send(result);
    }
    device.leave();
}

struct ControlledDevice {
    id: u32,
    is_new: bool,
    features: Features,
    control: UblkCtrl,
    /// `None` once left.
    data: Option<Arc<UblkDev>>,
    threads: Vec<JoinHandle<()>>,
    mailboxes: Vec<Arc<Mailbox>>,
}

impl ControlledDevice {
    fn open(
        options: &Options,
        geometry: Geometry,
        features: Features,
    ) -> Result<(Self, Vec<EngineEnd>), UblkError> {
        let (control, is_new) = match options.origin {
            Origin::New { id } => (add(id, options, features)?, true),
            Origin::Recovery { id } => (take_over(id, options, geometry)?, false),
        };
        // From here on only del_dev() deletes.
        control.disown();
        let (id, flags) = (control.dev_info().dev_id, control.dev_info().flags);
        let mut device = Self {
            id,
            is_new,
            features: Features::from_bits(flags),
            control,
            data: None,
            threads: Vec::new(),
            mailboxes: Vec::new(),
        };
        match device.set_up(geometry) {
            Ok(queues) => Ok((device, queues)),
            Err(error) => {
                device.give_up();
                Err(error)
            }
        }
    }

    fn set_up(&mut self, geometry: Geometry) -> Result<Vec<EngineEnd>, UblkError> {
        if let Some(missing) = self.features.missing() {
            return Err(UblkError::NotRecoverable { device: self.id, missing });
        }
        let prepare = |device: &mut UblkDev| {
            device.tgt.dev_size = geometry.size_bytes;
            device.tgt.params = geometry.params();
            // Room for the bell beside an answer for each tag.
            device.tgt.cq_depth = 2 * device.dev_info.queue_depth;
            Ok(())
        };
        let data = UblkDev::new("ankole".to_owned(), prepare, &self.control);
        let data = Arc::new(data.map_err(|error| self.failed(Step::Open, cause(error)))?);
        self.data = Some(data.clone());

        let (report, reports) = mpsc::channel();
        let mut engine_ends = Vec::new();
        for queue in 0..data.dev_info.nr_hw_queues {
            let (queue_end, engine_end) = link::pair(data.dev_info.queue_depth)
                .map_err(|source| UblkError::Queue { device: self.id, queue, source })?;
            self.mailboxes.push(engine_end.mailbox.clone());
            engine_ends.push(engine_end);
            let (data, report) = (data.clone(), report.clone());
            let thread = thread::Builder::new()
                .name(format!("ublk{}-q{queue}", self.id))
                .spawn(move || queue_thread(queue, &data, &queue_end, &report))
                .map_err(UblkError::Thread)?;
            self.threads.push(thread);
        }
        drop(report);
        for _ in &engine_ends {
            // A thread that panicked has dropped its sender without a report.
            let (queue, result) = reports.recv().map_err(|_| UblkError::ControlGone)?;
            let thread =
                result.map_err(|source| UblkError::Queue { device: self.id, queue, source })?;
            self.control.set_thread_affinity(queue, thread);
        }
        Ok(engine_ends)
    }

    /// Makes the device appear, or go on. Returns when the kernel has looked for partitions, so
    /// the queues and the engine must be serving.
    fn start(&self) -> Result<(), UblkError> {
        let data = self.data.as_ref().expect("a device is started before it is left");
        check(self.control.start_dev(data)).map_err(|source| self.failed(Step::Start, source))?;
        Ok(())
    }

    /// A new device that didn't start is of no use to anybody; an old one is its successor's.
    fn give_up(mut self) {
        self.leave();
        if self.is_new
            && let Err(error) = check(self.control.del_dev())
        {
            tracing::warn!(device = self.id, %error, "delete a ublk device that didn't start");
        }
    }

    /// Ends the queues and closes the device. Its requests wait in the kernel for the next server.
    fn leave(&mut self) {
        for mailbox in &self.mailboxes {
            mailbox.ask_to_leave();
        }
        self.join_queues();
    }

    fn join_queues(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic has been reported, and what the queue had is left to the next server.
            let _ = thread.join();
        }
        self.data = None;
    }

    fn stop(&mut self) -> Result<(), UblkError> {
        let users = device::users(&super::block_device_path(self.id));
        if !users.is_empty() {
            return Err(UblkError::InUse { device: self.id, users: users.join(", ") });
        }
        check(self.control.kill_dev()).map_err(|source| self.failed(Step::Stop, source))?;
        self.join_queues();
        check(self.control.del_dev()).map_err(|source| self.failed(Step::Delete, source))?;
        Ok(())
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

type QueueReport = (u16, io::Result<libc::pid_t>);

fn queue_thread(index: u16, data: &UblkDev, link: &QueueEnd, report: &mpsc::Sender<QueueReport>) {
    // Sets PR_SET_IO_FLUSHER, if that is permitted.
    let thread = UblkCtrl::init_queue_thread();
    let mut is_ready = false;
    let result = queue::serve(index, data, link, || {
        is_ready = true;
        let _ = report.send((index, Ok(thread)));
    });
    if let Err(error) = result {
        // Before the queue was ready only the control thread listens, afterwards only the engine.
        if is_ready {
            let _ = link.turns.blocking_send(Err(error));
        } else {
            let _ = report.send((index, Err(error)));
        }
    }
}

fn add(id: Option<u32>, options: &Options, features: Features) -> Result<UblkCtrl, UblkError> {
    let failed = |source| UblkError::Command { step: Step::Add, device: DeviceName(id), source };
    let number = match id {
        Some(id) => library_id(id).map_err(failed)?,
        None => -1,
    };
    let control = UblkCtrlBuilder::default()
        .name("ankole")
        .id(number)
        .nr_queues(options.queue_count())
        .depth(options.depth)
        .io_buf_bytes(REQUEST_BYTES_MAX)
        .ctrl_flags(features.device_flags())
        .ctrl_target_flags(options.identity)
        .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
        .build()
        .map_err(|error| failed(cause(error)))?;
    Ok(control)
}

fn take_over(id: u32, options: &Options, geometry: Geometry) -> Result<UblkCtrl, UblkError> {
    let failed = |step, source| UblkError::Command { step, device: DeviceName(Some(id)), source };
    let control = UblkCtrlBuilder::default()
        .name("ankole")
        .id(library_id(id).map_err(|error| failed(Step::Inspect, error))?)
        .dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV)
        .build()
        .map_err(|error| failed(Step::Inspect, cause(error)))?;
    check_identity(&control, id, options.identity)?;
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
    let number = library_id(id).map_err(|error| failed(Step::Inspect, error))?;
    let control =
        UblkCtrl::new_simple(number).map_err(|error| failed(Step::Inspect, cause(error)))?;
    check_identity(&control, id, identity)?;
    check(control.kill_dev()).map_err(|error| failed(Step::Stop, error))?;
    check(control.del_dev()).map_err(|error| failed(Step::Delete, error))?;
    Ok(())
}

fn check_identity(control: &UblkCtrl, device: u32, expected: u64) -> Result<(), UblkError> {
    match control.dev_info().ublksrv_flags {
        found if found == expected => Ok(()),
        found => Err(UblkError::OtherVolume { device, found, expected }),
    }
}
