//! What is true on this machine, as plans are made from it. Times are how long ago something was.

use std::path::PathBuf;
use std::time::Duration;

use ankole_api::Name;
use ankole_api::backup::JobProgress;
use ankole_api::job::JobResult;
use ankole_api::object::Object;
use ankole_api::objects::{Engine, JobSpec, Replica, Volume};
use ankole_blockdev::device::Driver;
use ankole_replica::admin;
use ankole_replica::inspect::Evidence;
use ankole_replica::record::InstanceId;
use ankole_replica::types::{Generation, ReplicaId};

use ankole_api::volume::Device;

/// Of one volume's engine.
#[derive(Clone, Debug)]
pub struct EngineFacts {
    /// None: the store says that there is none. Not so if the store can't be asked.
    pub volume: Option<Volume>,
    pub engine: Option<Engine>,
    /// This one's name.
    pub node: String,
    pub boot_id: String,
    pub process: Option<EngineProcess>,
    pub history: History,
    /// The last engine ended because it was asked to, and said goodbye.
    pub left: bool,
    pub devices: Devices,
    /// The newest generation that a replica of it has seen, on this node by its directory. None while
    /// an engine runs, which is told so itself.
    pub newest: Option<(Generation, ReplicaId)>,
    /// Never used before; for an engine that may have to be granted.
    pub fresh_instance: InstanceId,
    /// The agent ends, and what is used can do without it.
    pub is_stopping: bool,
}

impl EngineFacts {
    /// Of an engine and its device on this machine.
    pub fn is_nothing_left(&self) -> bool {
        self.process.is_none() && self.history.doubt.is_none() && self.devices.own.is_none()
    }
}

#[derive(Clone, Debug)]
pub struct EngineProcess {
    pub pid: u32,
    pub instance: InstanceId,
    /// Of the upgrade for which it was started.
    pub turn: u64,
    pub asked_to_end: Option<Duration>,
    /// When it last refused to detach, and why.
    pub refused: Option<(Duration, String)>,
    /// What it said last.
    pub status: Option<Box<admin::EngineStatus>>,
    /// How long it hasn't answered.
    pub silent: Option<Duration>,
    /// How long nobody has been listening on its socket.
    pub unreachable: Option<Duration>,
    /// How long it has been waiting for something.
    pub waits: Option<Duration>,
    /// It tells by itself what changes, and needn't be asked.
    pub is_watched: bool,
}

#[derive(Clone, Debug)]
pub struct Devices {
    /// Those that could make one more device.
    pub drivers: Vec<Driver>,
    /// The volume's device, if the kernel has it: known by its mark.
    pub own: Option<Device>,
    /// How long its requests have been waiting for an engine.
    pub unserved: Option<Duration>,
    /// How long they may.
    pub patience: Duration,
}

/// How the earlier processes of one part ended.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How long to wait before the next start.
    pub hold_off: Option<Duration>,
    pub last_end: Option<String>,
    /// What the last one said of why it ended.
    pub last_words: Option<LastWords>,
    /// Why it can't be told whether one of them lives still.
    pub doubt: Option<Doubt>,
}

/// What the log of a process says of why it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWords {
    pub error: String,
    pub next: Option<String>,
}

/// A process may live that nobody can look after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    pub message: String,
    pub next: String,
}

/// Of one replica.
#[derive(Clone, Debug)]
pub struct ReplicaFacts {
    pub replica: Replica,
    /// This one's name.
    pub node: String,
    /// What lies there. None while a process has it open, unless its object doesn't say what it is.
    pub evidence: Option<Box<Evidence>>,
    /// Why no process can open it: its files are damaged.
    pub damaged: Option<String>,
    pub newest: Option<Generation>,
    pub process: Option<ReplicaProcess>,
    pub history: History,
    /// Where it is, or would be, served.
    pub address: String,
    /// Earlier directories of it that were set aside and still lie there.
    pub set_aside: Vec<PathBuf>,
    /// The agent ends, and no engine uses it.
    pub is_stopping: bool,
}

#[derive(Clone, Debug)]
pub struct ReplicaProcess {
    pub pid: u32,
    pub asked_to_end: Option<Duration>,
}

/// Of one backup or restore.
#[derive(Clone, Debug)]
pub struct JobFacts<S: JobSpec> {
    /// None: what is here belongs to one that is gone, or to another of its name.
    pub job: Option<Object<S>>,
    /// None: the store says that there is none.
    pub volume: Option<Volume>,
    /// Of the volume, if it is this node's.
    pub engine: Option<Engine>,
    /// An earlier one that fills the volume and isn't over.
    pub rival: Option<Name>,
    /// This one's name.
    pub node: String,
    /// None: no process was ever started for it here.
    pub files: Option<JobFiles>,
    pub process: Option<JobProcess>,
    pub history: History,
    /// The agent ends, and what can wait shall.
    pub is_stopping: bool,
}

impl<S: JobSpec> JobFacts<S> {
    /// On this machine.
    pub fn is_nothing_left(&self) -> bool {
        self.process.is_none() && self.history.doubt.is_none() && self.files.is_none()
    }
}

/// What its process has written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFiles {
    pub progress: Option<JobProgress>,
    /// Or why it can't be read.
    pub result: Option<Result<JobResult, String>>,
}

#[derive(Clone, Debug)]
pub struct JobProcess {
    pub pid: u32,
    pub asked_to_end: Option<Duration>,
}
