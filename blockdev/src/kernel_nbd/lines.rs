//! The connections between the kernel and the disk, each kept up by a task.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::watch;

use super::driver::{self, Driver};
use super::{NbdDeviceError, Step, failed, pairs};
use crate::blocking::blocking;
use crate::device::{Ended, Ending};
use crate::disk::{Allocation, Buffer, Disk, Durability, Extent, Hold};
use crate::nbd::{self, Export, Limits};

/// Between two tries to bring a connection back; doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A disk that doesn't answer once it has gone: whoever serves the device next does.
pub(super) struct Lasting<D> {
    pub(super) disk: Rc<D>,
    pub(super) ending: Ending,
}

impl<D: Disk> Lasting<D> {
    async fn unless_gone<T>(&self, result: io::Result<T>) -> io::Result<T> {
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::ESHUTDOWN) => {
                self.ending.report(Ended::DiskGone);
                std::future::pending().await
            }
            _ => result,
        }
    }
}

impl<D: Disk> Disk for Lasting<D> {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }
    async fn read(&self, at: Extent, into: Buffer) -> (io::Result<Hold>, Buffer) {
        let (result, data) = self.disk.read(at, into).await;
        (self.unless_gone(result).await, data)
    }
    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold> {
        let result = self.disk.write(at, from, durability).await;
        self.unless_gone(result).await
    }
    async fn flush(&self) -> io::Result<()> {
        let result = self.disk.flush().await;
        self.unless_gone(result).await
    }
    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        let result = self.disk.trim(at).await;
        self.unless_gone(result).await
    }
    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold> {
        let result = self.disk.write_zeroes(at, durability).await;
        self.unless_gone(result).await
    }
    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        let result = self.disk.extents(at).await;
        self.unless_gone(result).await
    }
    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        let result = self.disk.resize(size_bytes).await;
        self.unless_gone(result).await
    }
}

/// What all connections of a device share.
pub(super) struct Lines<D> {
    export: Export<Lasting<D>>,
    limits: Limits,
    identity: String,
    /// None until the kernel has said which.
    device: Cell<Option<u32>>,
    stopping: watch::Receiver<bool>,
    ending: Ending,
}

impl<D: Disk + 'static> Lines<D> {
    pub(super) fn new(
        export: Export<Lasting<D>>,
        identity: String,
        stopping: watch::Receiver<bool>,
        ending: Ending,
    ) -> Self {
        let (limits, device) = (Limits::default(), Cell::new(None));
        Self { export, limits, identity, device, stopping, ending }
    }

    pub(super) fn now_device(&self, id: u32) {
        self.device.set(Some(id));
    }

    /// Serves one connection and those that follow it, until the device is stopped or left.
    pub(super) async fn serve(self: Rc<Self>, first: UnixStream) {
        let mut stopping = self.stopping.clone();
        let stopped = async move {
            // An error means that the device's owner is gone, which leaves the device.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        tokio::pin!(stopped);
        let (mut stream, mut pause) = (first, RETRY_MIN);
        loop {
            let began = Instant::now();
            let served =
                nbd::transmit(stream, &self.export, &self.limits, self.stopping.clone()).await;
            if began.elapsed() > RETRY_MAX {
                pause = RETRY_MIN;
            }
            if let Err(error) = served {
                tracing::warn!(device = self.device.get(), %error, "lost a connection of the kernel");
            }
            stream = loop {
                if *self.stopping.borrow() || self.ending.is_over() {
                    return;
                }
                tokio::select! {
                    () = &mut stopped => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (2 * pause).min(RETRY_MAX);
                let Some(id) = self.device.get() else { continue };
                match self.reconnect(id).await {
                    Ok(stream) => break stream,
                    Err(NbdDeviceError::NotConnected { .. }) => {
                        return self.ending.report(Ended::Stopped);
                    }
                    Err(error) => {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::warn!(%error, cause, "can't give the kernel a new connection");
                    }
                }
            };
        }
    }

    /// In place of a connection that is gone, whoever has cut it.
    async fn reconnect(&self, id: u32) -> Result<UnixStream, NbdDeviceError> {
        let (mut ours, theirs) = pairs(1)?;
        let identity = self.identity.clone();
        blocking(move || {
            let found = driver::identity(id).map_err(failed(Step::Inspect, Some(id)))?;
            if found.as_deref() != Some(&identity) {
                return Err(NbdDeviceError::NotConnected { device: id });
            }
            let done = Driver::open()?.reconnect(id, &identity, &theirs);
            done.map_err(failed(Step::Reconnect, Some(id)))
        })
        .await?;
        Ok(ours.pop().expect("one pair was made"))
    }
}
