//! What a plan can ask for.

use std::fmt;

use ankole_blockdev::device::Driver;
use ankole_replica::record::InstanceId;
use ankole_replica::types::ReplicaId;

use ankole_api::volume::{Attachment, Device};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All replicas of a new volume, and then its first record.
    FormatAll,
    /// One whose directory is lost and that isn't in sync.
    FormatReplica(ReplicaId),
    /// Its directory gets another name, under which nobody uses it.
    SetAside(ReplicaId),
    StartReplica(ReplicaId),
    EndReplica(ReplicaId),
    KillReplica(ReplicaId),
    /// Makes the record name the instance, and the attachment durable with it.
    Grant {
        instance: InstanceId,
        attach_epoch: u64,
        attachment: Attachment,
    },
    StartEngine(EngineStart),
    /// Its requests get errors, and it goes.
    StopDevice(Device),
    DetachEngine,
    HandOverEngine,
    KillEngine,
    Expand {
        size_bytes: u64,
    },
    /// That the replicas have it is known from now on, attached or not.
    NoteSize {
        size_bytes: u64,
    },
    ClearAttachment,
    RemoveDirectories,
    Forget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStart {
    pub instance: InstanceId,
    /// Without one it is the socket.
    pub driver: Option<Driver>,
    /// What the device is marked with.
    pub identity: String,
    /// To be taken over; the kernel chooses the number of a new one.
    pub device: Option<Device>,
    pub recover: bool,
    pub read_only: bool,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FormatAll => f.write_str("format all replicas"),
            Self::FormatReplica(replica) => write!(f, "format replica {replica}"),
            Self::SetAside(replica) => write!(f, "set aside the directory of replica {replica}"),
            Self::StartReplica(replica) => write!(f, "start replica {replica}"),
            Self::EndReplica(replica) => write!(f, "end replica {replica}"),
            Self::KillReplica(replica) => write!(f, "kill replica {replica}"),
            Self::Grant { instance, attach_epoch, attachment } => {
                write!(f, "grant to {} in attach epoch {attach_epoch}", instance.0)?;
                match attachment.driver() {
                    Some(driver) => write!(f, ", device of {driver}"),
                    None => write!(f, ", socket"),
                }
            }
            Self::StartEngine(EngineStart {
                instance,
                driver,
                identity,
                device,
                recover,
                read_only,
            }) => {
                write!(f, "start engine {}", instance.0)?;
                match (device, driver) {
                    (Some(device), _) => write!(f, " on {device} of {identity}")?,
                    (None, Some(driver)) => write!(f, " on a new device of {driver}")?,
                    (None, None) => {}
                }
                f.write_str(if *recover { ", recovering" } else { "" })?;
                f.write_str(if *read_only { ", read-only" } else { "" })
            }
            Self::StopDevice(device) => write!(f, "stop device {device}"),
            Self::DetachEngine => f.write_str("ask the engine to detach"),
            Self::HandOverEngine => f.write_str("ask the engine to hand over"),
            Self::KillEngine => f.write_str("kill the engine and wait for its end"),
            Self::Expand { size_bytes } => write!(f, "expand to {size_bytes} bytes"),
            Self::NoteSize { size_bytes } => write!(f, "note the size, {size_bytes} bytes"),
            Self::ClearAttachment => f.write_str("clear the attachment"),
            Self::RemoveDirectories => f.write_str("remove the replicas' directories"),
            Self::Forget => f.write_str("forget the volume"),
        }
    }
}
