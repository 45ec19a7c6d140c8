//! What is true of a volume, as its plan is made from it.

use std::path::PathBuf;
use std::time::Duration;

use ankole_blockdev::device::Driver;
use ankole_replica::admin::EngineStatus;
use ankole_replica::inspect::Evidence;
use ankole_replica::record::InstanceId;
use ankole_replica::types::{Generation, ReplicaId};

pub use crate::node::facts::{Doubt, History, LastWords};
use ankole_api::replica::Place;
use ankole_api::volume::{Attachment, Device, Frontend, Volume};

/// Times are how long ago something was.
#[derive(Clone, Debug)]
pub struct Seen {
    pub volume: Volume,
    pub boot_id: String,
    pub engine: Option<EngineSeen>,
    pub engine_history: History,
    /// The last engine ended because it was asked to, and said goodbye.
    pub engine_left: bool,
    /// One for each place, in their order.
    pub replicas: Vec<ReplicaSeen>,
    pub devices: DevicesSeen,
    /// The newest generation that a replica has seen, while no engine lives.
    pub newest_seen: Option<(Generation, ReplicaId)>,
    /// Never used before; for an engine that may have to be granted.
    pub fresh_instance: InstanceId,
}

#[derive(Clone, Debug)]
pub struct EngineSeen {
    pub pid: u32,
    pub instance: InstanceId,
    /// Of the upgrade for which it was started.
    pub turn: u64,
    pub asked_to_end: Option<Duration>,
    /// When it last refused to detach, and why.
    pub refused: Option<(Duration, String)>,
    /// None while it doesn't answer.
    pub status: Option<Box<EngineStatus>>,
    /// How long nobody has been listening on its socket.
    pub unreachable: Option<Duration>,
    /// How long it has been waiting for something.
    pub waits: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct ReplicaSeen {
    pub place: Place,
    pub directory: DirectorySeen,
    /// What it holds, if the volume's record was lost.
    pub evidence: Option<Box<Evidence>>,
    pub process: Option<ReplicaProcess>,
    pub history: History,
    /// Why no process can open it: its files are damaged.
    pub damaged: Option<String>,
    /// Earlier directories of it that were set aside and still lie there.
    pub set_aside: Vec<PathBuf>,
}

/// An error isn't an absence: a disk that answers with EIO, or a stale mount, may still have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectorySeen {
    There,
    Missing,
    /// Whether it is there can't be told, and why.
    Unreadable(String),
}

#[derive(Clone, Debug)]
pub struct ReplicaProcess {
    pub pid: u32,
    pub asked_to_end: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct DevicesSeen {
    /// Those that could make one more device.
    pub drivers: Vec<Driver>,
    /// The device of the present attachment, if the kernel has it: known by its mark.
    pub own: Option<Device>,
    /// How long its requests have been waiting for an engine.
    pub unserved: Option<Duration>,
    /// How long they may.
    pub patience: Duration,
}

impl ReplicaSeen {
    /// Why it can't be told whether its directory is there.
    pub(super) fn unreadable(&self) -> Option<&str> {
        match &self.directory {
            DirectorySeen::Unreadable(why) => Some(why),
            DirectorySeen::There | DirectorySeen::Missing => None,
        }
    }
}

impl Seen {
    /// Somebody asked for it; a member only while another one can be read.
    pub(super) fn is_to_be_made_anew(&self, replica: &ReplicaId, in_sync: bool) -> bool {
        let status = self.engine.as_ref().and_then(|engine| engine.status.as_ref());
        let others = status.is_some_and(|status| status.has_readable_but(replica));
        self.volume.spec.rebuild.contains(replica) && (!in_sync || others)
    }

    /// Or the driver that is asked for and missing.
    pub(super) fn new_attachment(&self) -> Result<Attachment, Driver> {
        let is_there = |driver: &Driver| self.devices.drivers.contains(driver);
        let frontend = self.volume.spec.frontend;
        let driver = match frontend.forced_driver() {
            Some(driver) if !is_there(&driver) => return Err(driver),
            Some(driver) => Some(driver),
            None if frontend == Frontend::Socket => None,
            None => [Driver::Ublk, Driver::Nbd, Driver::Tgt].into_iter().find(is_there),
        };
        Ok(Attachment::new(&self.boot_id, driver))
    }
}
