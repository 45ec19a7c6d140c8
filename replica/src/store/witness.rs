//! Whether all that the kernel was given is still there: what a replica's last word is worth.
//!
//! Owns the witness: which boot of which machine ran the replica, over which mounted file system.
//! Promises that a reboot and a file system that was shut down or unmounted are told from a
//! process that merely died, and that what can't be told counts as doubt: a doubtful replica
//! gives way to others, but never falls back to older data.

use serde::{Deserialize, Serialize};

use super::meta::{Identity, ReplicaMeta};
use super::storage::{FileSystem, Storage};
use crate::mutation::{self, Mutation};

/// Says that this boot of this machine has run the replica since it became a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Witness {
    boot_id: String,
    #[serde(default)]
    file_system: Option<FileSystem>,
    /// Of a replica that an older program served: also in a file on volatile memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
}

/// What became of writes that were answered and not synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// The kernel has them.
    Unbroken,
    /// Power wasn't lost, but something may be; why.
    Doubtful(String),
    /// They are gone as in a power cut; why.
    Lost(String),
}

impl Witness {
    /// `None`: the boot can't be told.
    pub(super) fn of_now<S: Storage>(storage: &S) -> std::io::Result<Self> {
        let boot_id = storage.boot_id()?;
        Ok(Self { boot_id, file_system: storage.file_system().ok(), nonce: None })
    }

    pub(super) fn is_of_older_kind(&self) -> bool {
        self.nonce.is_some()
    }
}

impl Continuity {
    pub(super) fn of<S: Storage>(storage: &S, meta: &ReplicaMeta) -> Self {
        let Some(witness) = &meta.witness else {
            return Self::Lost("it wasn't a member, or nothing tells of its last boot".into());
        };
        if !storage.boot_id().is_ok_and(|boot_id| boot_id == witness.boot_id) {
            return Self::Lost("the machine lost power, was rebooted, or is another one".into());
        }
        let now = storage.file_system();
        match (&witness.file_system, &now) {
            (Some(before), Ok(now)) => match before.is_same(now) {
                Some(true) => {}
                Some(false) => return Self::Lost("its file system was mounted anew".into()),
                None => return Self::Doubtful(CANT_TELL.into()),
            },
            _ if witness
                .nonce
                .as_ref()
                .is_some_and(|nonce| is_remembered(&meta.identity, nonce)) => {}
            (_, Err(error)) => return Self::Doubtful(format!("{CANT_TELL}: {error}")),
            (None, _) => return Self::Doubtful(CANT_TELL.into()),
        }
        match &meta.doubt {
            Some(why) => Self::Doubtful(format!("its disk had an error: {why}")),
            None => Self::Unbroken,
        }
    }
}

const CANT_TELL: &str = "whether its file system was mounted anew can't be told";

impl FileSystem {
    /// `None`: it can't be told.
    fn is_same(&self, now: &Self) -> Option<bool> {
        match (self.superblock, now.superblock) {
            (Some(before), Some(now)) => {
                Some(before == now || mutation::is_on(Mutation::RemountIsContinuous))
            }
            // A disk that isn't the same one; others get their numbers at each mount, or at any time.
            _ if self.device != now.device && self.is_disk() && now.is_disk() => Some(false),
            _ => None,
        }
    }

    fn is_disk(&self) -> bool {
        nix::sys::stat::major(self.device) != 0
    }
}

fn is_remembered(identity: &Identity, nonce: &str) -> bool {
    let path = format!("/dev/shm/ankole-witness-{}", identity.incarnation);
    std::fs::read_to_string(path).is_ok_and(|text| text == nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(minor: u64, superblock: Option<u64>) -> FileSystem {
        FileSystem { device: nix::sys::stat::makedev(8, minor), superblock }
    }

    #[test]
    fn a_superblock_tells_and_where_it_cannot_be_seen_only_another_disk_does() {
        assert_eq!(disk(1, Some(5)).is_same(&disk(1, Some(5))), Some(true));
        assert_eq!(disk(1, Some(5)).is_same(&disk(1, Some(6))), Some(false));
        assert_eq!(disk(1, Some(5)).is_same(&disk(1, None)), None);
        assert_eq!(disk(1, None).is_same(&disk(1, None)), None);
        assert_eq!(disk(1, None).is_same(&disk(2, None)), Some(false));
        let anonymous = |device| FileSystem { device, superblock: None };
        assert_eq!(anonymous(40).is_same(&anonymous(41)), None);
    }
}
