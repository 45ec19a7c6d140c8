//! A disk as /dev/sdX: the node's iSCSI initiator, and stock tgtd with our backing store.
//!
//! Owns a tgtd for each volume, so that one that crashes stays alone, and the session with it.
//! Promises what the other drivers do: a device outlives its server, requests wait meanwhile, and it
//! goes only by [`Device::stop`] and [`stop_device`].
//!
//! ```text
//!  kernel                       tgtd of the volume            engine
//!  /dev/sdX ─ iscsi_tcp ─TCP─▶ 127.0.0.1:PORT ─ store ─NBD─▶ its socket
//!      ▲ iscsid logs in again      ▲ started again  ▲ connects again when the engine is replaced
//! ```
//!
//! **When the engine dies** tgtd keeps the session, and the store sends again what wasn't answered.
//! **When tgtd dies** the engine starts another one; iscsid logs in again, and the kernel sends what
//! wasn't answered. **When both are gone** the next engine starts tgtd.

mod account;
mod command;
mod error;
mod initiator;
mod record;
mod sys;
mod target;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

pub use error::{TgtError, Unavailable};

use crate::blocking::blocking;
use crate::device::{self, Ended, Ending, Origin};
use crate::disk::Disk;
use crate::privilege;
use crate::program;
use initiator::Session;
use target::Target;

/// The file of our backing store.
pub const PLUGIN: &str = "libbs_ankole.so";
/// How often it is looked whether somebody logged out.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const RESTART_MIN: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(5);
/// Between the end of tgtd and errors of all requests, when they are wanted.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(10);

/// Of a target whose port doesn't matter.
const NO_PORT: u16 = 0;

#[derive(Clone, Debug)]
pub struct Options {
    /// Its id is the port of 127.0.0.1 at which tgtd listens.
    pub origin: Origin,
    /// Part of the target's name, by which the device is known to be the volume's.
    pub identity: String,
    /// Where the disk is served as NBD, by this process. tgtd's folder is beside it.
    pub socket: PathBuf,
}

/// A device that is being served. Dropping it leaves the device to a successor, without waiting.
#[must_use = "dropping it leaves the device without a server"]
pub struct Device {
    target: Target,
    disk: PathBuf,
    ended: watch::Receiver<Option<Ended>>,
    watching: JoinHandle<()>,
}

/// Makes or takes over a device. `disk` must be served at the socket by now, and as long as the
/// device is there. Returns when the device can be used. Runs within a `LocalSet`.
pub async fn serve<D: Disk + 'static>(disk: Rc<D>, options: Options) -> Result<Device, TgtError> {
    if matches!(options.origin, Origin::New { .. }) {
        is_available()?;
    }
    let (size_bytes, is_read_only) = (disk.size_bytes(), disk.is_read_only());
    let (target, session, path) =
        blocking(move || open_disk(&options, size_bytes, is_read_only)).await?;
    let (ending, ended) = Ending::new();
    let watching = spawn_local(watch(target.clone(), session, is_read_only, ending));
    tracing::info!(device = %path.display(), target = target.name(), portal = target.portal(),
        "serving over iSCSI");
    Ok(Device { target, disk: path, ended, watching })
}

impl Device {
    /// Port of the target.
    pub fn id(&self) -> u32 {
        self.target.port().into()
    }

    /// /dev/sdX.
    pub fn path(&self) -> PathBuf {
        self.disk.clone()
    }

    /// Waits until the device isn't served any more though nobody here asked for that.
    pub async fn ended(&self) -> Ended {
        device::ended(&self.ended).await
    }

    /// Logs out, and ends tgtd. Refuses while the device is mounted or held.
    pub async fn stop(self) -> Result<(), (Self, TgtError)> {
        let (target, path) = (self.target.clone(), self.disk.clone());
        let stopping = blocking(move || {
            let users = device::users(&path);
            if !users.is_empty() {
                return Err(TgtError::InUse { path, users: users.join(", ") });
            }
            initiator::log_out(&target)
        });
        if let Err(error) = stopping.await {
            return Err((self, error));
        }
        let target = self.target.clone();
        self.hand_over();
        let ended = blocking(move || {
            target.end()?;
            target.remove()
        });
        if let Err(error) = ended.await {
            tracing::warn!(%error, "something of tgtd is left, and ended when the volume is attached");
        }
        Ok(())
    }

    /// Leaves the device to the next server: its requests wait.
    pub fn hand_over(self) {
        self.watching.abort();
    }

    /// Shows the kernel that the disk has grown.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), TgtError> {
        let (target, path) = (self.target.clone(), self.disk.clone());
        blocking(move || grow(&target, &path, size_bytes)).await
    }
}

/// Whether the programs are here, and iscsid answers.
pub fn is_available() -> Result<(), Unavailable> {
    for program in ["tgtd", "tgtadm", "iscsiadm"] {
        if program::find(program).is_none() {
            return Err(Unavailable::NoProgram(program));
        }
    }
    if target::find_plugin().is_none() {
        return Err(Unavailable::NoPlugin);
    }
    if !privilege::may_administrate() {
        return Err(Unavailable::NoPrivilege);
    }
    if initiator::is_running() { Ok(()) } else { Err(Unavailable::NoInitiator) }
}

/// The port of the volume's target, if the kernel has a session with it.
pub fn find(identity: &str, socket: &Path) -> Result<Option<u32>, TgtError> {
    let name = Target::new(identity, NO_PORT, socket).name().to_owned();
    let found = initiator::sessions()?.into_iter().find(|session| session.target == name);
    Ok(found.map(|session| session.port.into()))
}

/// Whether the kernel has a session with the volume's target behind this port.
pub fn is_there(port: u32, identity: &str, socket: &Path) -> Result<bool, TgtError> {
    let target = Target::new(identity, number(port)?, socket);
    Ok(initiator::session(&target)?.is_some())
}

/// /dev/sdX, if the kernel has the volume's target behind this port.
pub fn path_of(port: u32, identity: &str, socket: &Path) -> Option<PathBuf> {
    let target = Target::new(identity, number(port).ok()?, socket);
    initiator::session(&target).ok()??.find_disk()
}

/// Whether a disk, by its folder in sysfs, says that it is a volume.
pub(crate) fn is_ours(disk: &Path) -> bool {
    let says = |what: &str| std::fs::read_to_string(disk.join("device").join(what));
    says("vendor").is_ok_and(|it| it.trim() == target::VENDOR)
        && says("model").is_ok_and(|it| it.trim() == target::PRODUCT)
}

/// For a supervisor whose engine doesn't come back: requests that wait get `EIO`, and the device
/// goes. Blocks.
pub fn stop_device(port: u32, identity: &str, socket: &Path) -> Result<(), TgtError> {
    let target = Target::new(identity, number(port)?, socket);
    if let Some(session) = initiator::session(&target)? {
        // With tgtd, requests that it has would be waited for; without it they fail.
        session.give_up()?;
        target.end()?;
        let deadline = Instant::now() + GIVE_UP_PATIENCE;
        while !session.has_given_up() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    remove(&target)
}

/// Ends what an engine may have left that died before it had made a device. Blocks.
pub fn clean_up(identity: &str, socket: &Path) -> Result<(), TgtError> {
    let target = Target::new(identity, NO_PORT, socket);
    if target.is_known() { remove(&target) } else { Ok(()) }
}

fn remove(target: &Target) -> Result<(), TgtError> {
    initiator::log_out(target)?;
    target.end()?;
    target.remove()
}

fn open_disk(
    options: &Options,
    size_bytes: u64,
    is_read_only: bool,
) -> Result<(Target, Session, PathBuf), TgtError> {
    let (target, session) = open(options, is_read_only)?;
    let shown = session.disk(&target).and_then(|path| {
        check_size(&target, &path, size_bytes)?;
        Ok(path)
    });
    if shown.is_err() && matches!(options.origin, Origin::New { .. }) {
        remove(&target)?;
    }
    Ok((target, session, shown?))
}

/// The target and a session with it.
fn open(options: &Options, is_read_only: bool) -> Result<(Target, Session), TgtError> {
    let at = |port| Target::new(&options.identity, port, &options.socket);
    match options.origin {
        Origin::New { id } => {
            // What an engine left that died half way; its port may be another one.
            let left = at(NO_PORT);
            left.end()?;
            left.remove()?;
            let target = match id {
                Some(id) => start(at(number(id)?), is_read_only)?,
                None => start_anywhere(at, is_read_only)?,
            };
            let session = target.secret().and_then(|secret| initiator::log_in(&target, &secret));
            if session.is_err() {
                target.end()?;
                target.remove()?;
            }
            Ok((target, session?))
        }
        Origin::Recovery { id } => {
            let target = at(number(id)?);
            let session = initiator::session(&target)?;
            let session =
                session.ok_or_else(|| TgtError::NoSession { target: target.name().into() })?;
            if !target.is_served()? {
                target.end()?;
                target.start(&initiator::name()?, is_read_only)?;
            }
            Ok((target, session))
        }
    }
}

fn start(target: Target, is_read_only: bool) -> Result<Target, TgtError> {
    target.start(&initiator::name()?, is_read_only)?;
    Ok(target)
}

/// Behind a port that nobody has, and for which no session waits whose tgtd has ended. Another
/// volume's tgtd may be there first: then behind the next one.
fn start_anywhere(at: impl Fn(u16) -> Target, is_read_only: bool) -> Result<Target, TgtError> {
    let sessions = initiator::sessions()?;
    let mut taken: BTreeSet<u16> = sessions.into_iter().map(|session| session.port).collect();
    loop {
        let port = target::free_port(|port| taken.contains(&port)).ok_or(TgtError::NoPort)?;
        match start(at(port), is_read_only) {
            Err(TgtError::Ended { .. }) if !target::is_free(port) => taken.insert(port),
            started => return started,
        };
    }
}

fn number(port: u32) -> Result<u16, TgtError> {
    u16::try_from(port).ok().filter(|port| *port > 0).ok_or(TgtError::Port(port))
}

/// A device that is taken over may show less than its disk has, and never more.
fn check_size(target: &Target, path: &Path, disk_bytes: u64) -> Result<(), TgtError> {
    let device_bytes = initiator::disk_bytes(path);
    if device_bytes > disk_bytes {
        let path = path.to_owned();
        return Err(TgtError::LargerThanDisk { path, device_bytes, disk_bytes });
    }
    if device_bytes < disk_bytes { grow(target, path, disk_bytes) } else { Ok(()) }
}

fn grow(target: &Target, path: &Path, disk_bytes: u64) -> Result<(), TgtError> {
    target.grow()?;
    initiator::rescan(path)?;
    let device_bytes = initiator::disk_bytes(path);
    if device_bytes < disk_bytes {
        let path = path.to_owned();
        return Err(TgtError::NotGrown { path, device_bytes, disk_bytes });
    }
    Ok(())
}

/// Starts tgtd again whenever it ends, until somebody logs out.
async fn watch(target: Target, session: Session, is_read_only: bool, ending: Ending) {
    let mut pause = RESTART_MIN;
    while !ending.is_over() {
        let (of_daemon, of_session) = (target.clone(), session.clone());
        let looked =
            blocking(move || of_daemon.daemon().map(|daemon| (daemon, of_session.is_there())));
        match looked.await {
            Ok((_, false)) => ending.report(Ended::Stopped),
            Ok((Some(daemon), true)) => {
                match tokio::time::timeout(LOOK_EVERY, daemon.ended()).await {
                    Ok(Ok(())) | Err(_) => {} // the session is looked at again
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "watch tgtd");
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                }
            }
            Ok((None, true)) => {
                tracing::warn!(target = target.name(), "tgtd has ended: starting another one");
                let target = target.clone();
                let restarted = blocking(move || target.start(&initiator::name()?, is_read_only));
                match restarted.await {
                    Ok(()) => pause = RESTART_MIN,
                    Err(error) => {
                        tracing::error!(
                            error = chain(&error),
                            "tgtd isn't started; \
                            requests wait"
                        );
                        tokio::time::sleep(pause).await;
                        pause = (2 * pause).min(RESTART_MAX);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "look for tgtd");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", chain(cause)));
    format!("{error}{}", cause.unwrap_or_default())
}

fn file_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TgtError {
    let path = path.to_owned();
    move |source| TgtError::File { step, path, source }
}
