//! The kinds of objects that one machine and a cluster share.
//!
//! ```text
//! Volume ◀──owns── Engine        which node may serve it, and what the engine there says
//!    ▲  ◀──owns── Replica × n    which node keeps a copy, and what lies there
//!    └──by name── VolumeAttachment   who wants it to be attached, and where
//!       ◀──by uid── Backup, Restore   work on it while it is attached, by a process of its node
//! Node                           a machine: what it can do, its disks, its life
//! BackupTarget                   a named place for backups
//! ```
//! Who writes what:
//!
//! | object | spec | status |
//! | --- | --- | --- |
//! | Volume | users | the manager; `record` and `attachment` by compare-and-swap, also the agent of `status.node` |
//! | VolumeAttachment | users and jobs, a ticket each | – |
//! | Engine, Replica | the manager | the agent of `spec.node` |
//! | Backup, Restore | users, through the service | the agent of `spec.node` |
//! | Node | users | its agent |
//! | BackupTarget | users | – |

pub mod attachment;
pub mod backup;
pub mod condition;
pub mod engine;
pub mod job;
pub mod node;
pub mod of_one_node;
pub mod replica;
pub mod restore;
pub mod target;
pub mod volume;

pub use attachment::{AttachmentSpec, VolumeAttachment};
pub use backup::{Backup, BackupSpec};
pub use condition::{Condition, ConditionStatus};
pub use engine::{Engine, EngineSpec, EngineStatus};
pub use job::{JobPhase, JobSpec, JobStatus};
pub use node::{Node, NodeSpec, NodeStatus};
pub use replica::{Replica, ReplicaSpec, ReplicaStatus};
pub use restore::{Restore, RestoreSpec};
pub use target::{BackupTarget, BackupTargetSpec};
pub use volume::{Volume, VolumeSpec, VolumeStatus};
