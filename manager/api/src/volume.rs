//! The volume: what is wanted of it, what is durable about it, and how it is shown.

use std::fmt;
use std::path::PathBuf;

use ankole_blockdev::device::Driver;
use ankole_replica::admin::{self, Damage, EngineStatus};
use ankole_replica::record::Record;
use ankole_replica::types::ReplicaId;
use serde::{Deserialize, Serialize};

use super::attachment::Ticket;
use super::node::Finding;
use super::replica::ReplicaView;
use super::size::VolumeSize;
use super::{ApiError, Name, objects};

/// More copies cost more than they protect; the engine's sets are small by design.
pub const REPLICAS_MAX: u8 = 8;
/// Of a volume: the least that Longhorn's backup format takes.
pub const NAME_LENGTH_MIN: usize = 2;

/// What the volume's engine is to be. One that was started for an earlier turn hands over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineProgram {
    /// The binary; the manager's own if it is left out.
    pub program: Option<PathBuf>,
    /// Rises with each upgrade.
    pub turn: u64,
}

/// How the volume is shown to clients on this node for as long as it stays attached: the successor
/// of an engine that died must find the clients of its predecessor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Another boot means that no client survived.
    pub boot_id: String,
    /// What it was shown by when it was granted. `auto`: a version before wrote `device` instead.
    #[serde(default)]
    pub frontend: Frontend,
    /// Of a version before: the device has this number, and is marked with the volume's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}

impl Attachment {
    /// Without a driver it is the socket.
    pub fn new(boot_id: &str, driver: Option<Driver>) -> Self {
        let frontend = match driver {
            Some(Driver::Ublk) => Frontend::Ublk,
            Some(Driver::Nbd) => Frontend::Nbd,
            Some(Driver::Tgt) => Frontend::Tgt,
            None => Frontend::Socket,
        };
        Self { boot_id: boot_id.into(), frontend, device: None }
    }

    /// Whose block device shows the volume.
    pub fn driver(&self) -> Option<Driver> {
        self.frontend.forced_driver().or(self.device.map(Device::driver))
    }
}

/// A block device of this node, by its driver and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// /dev/ublkbN
    Ublk(u32),
    /// /dev/nbdN
    Nbd(u32),
    /// /dev/sdX, by the port of its target
    Tgt(u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Frontend {
    /// The best that the node can do.
    #[default]
    Auto,
    /// /dev/ublkbN
    Ublk,
    /// /dev/nbdN
    Nbd,
    /// iSCSI by tgtd, /dev/sdX
    Tgt,
    /// An NBD server on a unix socket, no kernel driver
    Socket,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    #[default]
    Unix,
    Tcp,
}

/// What `POST /v1/volumes` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeRequest {
    pub name: Name,
    pub size_bytes: u64,
    #[serde(default = "three")]
    pub replicas: u8,
    #[serde(default)]
    pub frontend: Frontend,
    #[serde(default)]
    pub transport: Transport,
    #[serde(default)]
    pub in_engine: bool,
}

fn three() -> u8 {
    3
}

/// What `PUT /v1/volumes/V/size` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResizeRequest {
    pub size_bytes: u64,
}

/// What `PUT /v1/volumes/V/engine` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpgradeRequest {
    /// The manager's own if it is left out.
    #[serde(default)]
    pub program: Option<PathBuf>,
}

impl VolumeRequest {
    /// The spec, or what is wrong with the request.
    pub fn validate(&self) -> Result<objects::VolumeSpec, ApiError> {
        let volume = &self.name;
        let invalid = |text: String| Err(ApiError::invalid(format!("volume {volume}: {text}")));
        let size = VolumeSize::of(self.size_bytes)
            .map_err(|error| ApiError::invalid(format!("volume {volume}: {error}")))?;
        if volume.len() < NAME_LENGTH_MIN {
            return Err(ApiError::invalid(format!(
                "volume {volume}: a volume with so short a name could never be backed up: the backup format, which is Longhorn's, asks for {NAME_LENGTH_MIN} characters"
            ))
            .next("choose a longer name"));
        }
        if self.replicas == 0 || self.replicas > REPLICAS_MAX {
            return invalid(format!("{} replicas; it takes 1 to {REPLICAS_MAX}", self.replicas));
        }
        if self.in_engine && self.replicas != 1 {
            return invalid("only a single replica can live inside the engine's process".into());
        }
        Ok(objects::VolumeSpec {
            size_bytes: size.bytes,
            replicas: self.replicas,
            frontend: self.frontend,
            transport: self.transport,
            in_engine: self.in_engine,
            engine: EngineProgram::default(),
            from_backup: None,
        })
    }
}

/// ```text
/// creating ──▶ detached ──ticket──▶ attaching ──endpoint──▶ attached
///                 ▲  ▲                  ▲                      │ │
///                 │  └──── detaching ◀──┼──── no ticket ───────┘ │
///                 │                     └──── engine died ───────┘
///                 └── deleting (from any; ends with the object)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Creating,
    Detached,
    Attaching,
    Attached,
    Detaching,
    Deleting,
    /// It is filled from a backup, and nobody else gets in.
    Restoring,
    /// What the store has of it can't be read.
    Unreadable,
}

/// How much of the redundancy is there; not the same as the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Robustness {
    Healthy,
    Degraded,
    Faulted,
    /// No engine has looked at the replicas.
    Unknown,
}

impl Robustness {
    pub fn of(wanted_replicas: u8, engine: Option<&EngineStatus>) -> Self {
        let Some(engine) = engine.filter(|engine| engine.endpoint.is_some()) else {
            return Self::Unknown;
        };
        let readable =
            |replica: &&admin::ReplicaStatus| replica.mode == admin::ReplicaMode::ReadWrite;
        match engine.replicas.iter().filter(readable).count() {
            0 => Self::Faulted,
            count if count < usize::from(wanted_replicas) => Self::Degraded,
            // All are equal, and none of them takes what the full one can't.
            _ if !engine.full.is_empty() => Self::Degraded,
            // All are equal, and none of them has it.
            _ if !engine.damage.lost.is_empty() => Self::Degraded,
            _ => Self::Healthy,
        }
    }
}

/// Something that a person may want to know: `reason` for programs, `message` for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub reason: Reason,
    /// That it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    pub message: String,
    /// Since when it is so, whatever the message said; in seconds of Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_s: Option<u64>,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Condition {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { reason, replica: None, message, since_unix_s: None, next: None }
    }

    #[must_use]
    pub fn of(mut self, replica: &ReplicaId) -> Self {
        self.replica = Some(replica.clone());
        self
    }

    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }
}

/// The next step when replicas that are needed don't come back.
pub fn salvage_hint(volume: &Name) -> String {
    format!("ankole volume salvage {volume} --dry-run shows what each replica holds")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// An action of the reconciler failed; it is tried again.
    ActionFailed,
    /// The engine runs, but doesn't answer or has no endpoint yet.
    EngineStarting,
    /// The engine runs, but nobody can ask it for anything.
    EngineUnreachable,
    /// The engine ended; a successor starts after a pause.
    EngineEnded,
    ReplicaEnded,
    /// Whether a process lives can't be told: none is started beside it.
    ProcessUnknown,
    ReplicaMissing,
    /// Something else lies where a replica is to be made.
    ReplicaOccupied,
    /// Whether a replica's directory is there can't be told: it is left as it is.
    ReplicaUnreadable,
    /// This node can't show volumes by the frontend that was asked for.
    NoFrontend,
    /// A node that is needed isn't there, or isn't heard of.
    NoNode,
    /// No member of the in-sync set can be served.
    NoReplica,
    /// A replica has seen a newer generation than the record has: it was brought back from a copy.
    RecordRolledBack,
    /// The object has lost who is in sync; its directories are left as they are.
    RecordLost,
    /// Nothing runs while a person chooses a copy.
    Salvaging,
    Stopping,
    /// The device's requests wait, since no engine serves them.
    Unserved,
    /// The engine hands over to another one.
    Upgrading,
    /// A replica's disk has no room for the size that is wanted.
    CantGrow,
    /// Somebody uses the device of a volume that is to be detached.
    InUse,
    /// Writes wait for room on a replica's disk.
    DiskFull,
    /// A replica's directory can't be opened since its files are damaged.
    ReplicaDamaged,
    /// An earlier directory of a replica is kept, and nobody uses it.
    SetAside,
    /// The object in the store isn't one that this version knows.
    Unreadable,
    /// No replica that is in sync can read some of the data.
    DataLost,
    /// A replica can't read some blocks, which others have.
    ReplicaCorrupt,
    /// A replica couldn't read some blocks, and has them again.
    ReplicaRepaired,
    /// A replica's directory is an older copy of itself.
    ReplicaOlder,
    /// The engine can't use a replica.
    ReplicaAbsent,
    ReplicaRebuilt,
    /// Requests, or a change of the volume, wait for something.
    RequestsWait,
    /// A backup or a restore waits until its volume is attached to its node.
    JobWaits,
    /// The process of a restore ended; another one starts after a pause.
    JobEnded,
}

/// A volume as it is shown: `GET /v1/volumes/V`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeView {
    pub name: Name,
    pub uid: String,
    pub state: State,
    pub robustness: Robustness,
    pub size_bytes: u64,
    /// To which it grows: at once, or when it is attached next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_bytes: Option<u64>,
    pub frontend: Frontend,
    /// What `auto` would rather have shown it by, best first, as the node is now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub better_frontends: Vec<Finding>,
    /// Device path, or a URI that libnbd understands; only while it can be used.
    pub endpoint: Option<String>,
    pub node: Option<String>,
    pub engine_pid: Option<u32>,
    /// Of the program that runs as engine: after an upgrade not necessarily the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// Clients that are connected to the frontend.
    pub clients: u32,
    pub tickets: Vec<Ticket>,
    pub replicas: Vec<ReplicaView>,
    /// After an unclean stop: what isn't known to be equal on all members yet.
    pub unsettled_bytes: u64,
    /// What replicas couldn't read since the engine started, and what became of it.
    #[serde(default)]
    pub damage: Damage,
    /// Bytes that were being written in a crash and that no second replica could confirm.
    #[serde(default)]
    pub unverified_bytes: u64,
    /// What the engine waits for, in words.
    pub waiting: Vec<String>,
    /// Since when it waits without a break, in seconds of Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since_unix_s: Option<u64>,
    pub conditions: Vec<Condition>,
    pub record: Option<Record>,
}

impl VolumeView {
    /// In the place of a volume whose object can't be read: it is there, and isn't looked after.
    pub fn unreadable(name: Name, why: String) -> Self {
        let next = "run the version of ankole that wrote it; its replicas and processes are left as they are";
        Self {
            name,
            uid: String::new(),
            state: State::Unreadable,
            robustness: Robustness::Unknown,
            size_bytes: 0,
            wanted_bytes: None,
            frontend: Frontend::default(),
            better_frontends: Vec::new(),
            endpoint: None,
            node: None,
            engine_pid: None,
            engine_version: None,
            clients: 0,
            tickets: Vec::new(),
            replicas: Vec::new(),
            unsettled_bytes: 0,
            damage: Damage::default(),
            unverified_bytes: 0,
            waiting: Vec::new(),
            waiting_since_unix_s: None,
            conditions: vec![Condition::new(Reason::Unreadable, why).next(next)],
            record: None,
        }
    }
}

impl Frontend {
    /// The driver that has to be there.
    pub fn forced_driver(self) -> Option<Driver> {
        match self {
            Self::Ublk => Some(Driver::Ublk),
            Self::Nbd => Some(Driver::Nbd),
            Self::Tgt => Some(Driver::Tgt),
            Self::Auto | Self::Socket => None,
        }
    }
}

impl Device {
    pub fn new(driver: Driver, number: u32) -> Self {
        match driver {
            Driver::Ublk => Self::Ublk(number),
            Driver::Nbd => Self::Nbd(number),
            Driver::Tgt => Self::Tgt(number),
        }
    }

    pub fn driver(self) -> Driver {
        match self {
            Self::Ublk(_) => Driver::Ublk,
            Self::Nbd(_) => Driver::Nbd,
            Self::Tgt(_) => Driver::Tgt,
        }
    }

    pub fn number(self) -> u32 {
        match self {
            Self::Ublk(number) | Self::Nbd(number) | Self::Tgt(number) => number,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.driver(), self.number())
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Ublk => "ublk",
            Self::Nbd => "nbd",
            Self::Tgt => "tgt",
            Self::Socket => "socket",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Detached => "detached",
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
            Self::Deleting => "deleting",
            Self::Restoring => "restoring",
            Self::Unreadable => "unreadable",
        })
    }
}

impl fmt::Display for Robustness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Faulted => "faulted",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> VolumeRequest {
        serde_json::from_str(r#"{"name": "v1", "sizeBytes": 1}"#).unwrap()
    }

    #[test]
    fn a_volume_has_three_replicas_unless_said_otherwise_and_whole_units() {
        let spec = request().validate().unwrap();
        assert_eq!((spec.replicas, spec.size_bytes), (3, 2 << 20));
    }

    #[test]
    fn what_a_volume_can_not_have_is_refused() {
        let refused = |change: fn(&mut VolumeRequest)| {
            let mut request = request();
            change(&mut request);
            request.validate().expect_err("it is wrong").message
        };
        assert!(refused(|r| r.size_bytes = 0).contains("size 0"));
        assert!(refused(|r| r.replicas = 0).contains("0 replicas"));
        assert!(refused(|r| r.replicas = 9).contains("9 replicas"));
        assert!(refused(|r| r.in_engine = true).contains("single replica"));
    }
}
