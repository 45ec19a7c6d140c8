//! Sizes that can't work on the disks. Volumes are thin, so how much is free now says little about
//! them; but a file has a largest size, and the map of writes takes its room at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ankole_api::size::human;
use ankole_api::{ApiError, Name};
use ankole_replica::store::intent_map_bytes;

use crate::probe;

/// What a volume is to become.
pub struct Growth<'a> {
    pub volume: &'a Name,
    /// Of its replicas on this machine; the folders that they are in must be there, they needn't.
    pub directories: &'a [PathBuf],
    /// 0: it is to be made.
    pub from_bytes: u64,
    pub to_bytes: u64,
}

impl Growth<'_> {
    /// Before anything is made or written: ext4 would take all that is free before it says that it
    /// isn't enough, and other volumes find none meanwhile. A disk that can't be asked is no reason
    /// to refuse: who works on it will say what is wrong with it.
    pub fn refuse_impossible(&self) -> Result<(), ApiError> {
        let mut replicas_in = BTreeMap::<&Path, u64>::new();
        for folder in self.directories.iter().filter_map(|directory| directory.parent()) {
            *replicas_in.entry(folder).or_default() += 1;
        }
        replicas_in.into_iter().try_for_each(|(folder, replicas)| {
            self.refuse_too_large(folder)?;
            self.refuse_without_room(folder, replicas)
        })
    }

    fn refuse_too_large(&self, folder: &Path) -> Result<(), ApiError> {
        match probe::file_bytes_max(folder) {
            Ok(most) if self.to_bytes > most => {
                let (most, kind) = (human(most), probe::file_system_of(folder));
                let why = format!(
                    "a file on {} ({kind}) can have at most {most}, and each replica needs one of the volume's size",
                    folder.display()
                );
                let next = "or give the standalone a --disk with XFS";
                Err(self.refusal(&why).next(format!("choose at most {most}, {next}")))
            }
            _ => Ok(()),
        }
    }

    fn refuse_without_room(&self, folder: &Path, replicas: u64) -> Result<(), ApiError> {
        let more =
            intent_map_bytes(self.to_bytes).saturating_sub(intent_map_bytes(self.from_bytes));
        let needed = replicas.saturating_mul(more);
        match probe::free_bytes(folder) {
            Ok(free) if needed > free => {
                let (needed, free) = (human(needed), human(free));
                let folder = folder.display();
                let why = format!(
                    "the maps of what is written take {needed} at once in {folder}, and {free} are free there"
                );
                Err(self.refusal(&why).next("choose a smaller size, or free some space there"))
            }
            _ => Ok(()),
        }
    }

    fn refusal(&self, why: &str) -> ApiError {
        let Self { volume, to_bytes, .. } = self;
        ApiError::conflict(format!("volume {volume} can't have {}: {why}", human(*to_bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO_BYTES: u64 = 1 << 40;

    fn refused(directories: &[PathBuf], from_bytes: u64) -> Option<String> {
        let volume = "v1".parse().unwrap();
        let growth = Growth { volume: &volume, directories, from_bytes, to_bytes: TO_BYTES };
        growth.refuse_impossible().err().map(|error| error.message)
    }

    /// Each alone has room, and all together have none.
    #[test]
    fn replicas_on_one_disk_are_counted_together() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("v1-r1");
        assert_eq!(refused(std::slice::from_ref(&directory), 0), None);
        let free = probe::free_bytes(folder.path()).unwrap();
        let too_many = free / intent_map_bytes(TO_BYTES) + 1;
        let directories = vec![directory; usize::try_from(too_many).unwrap()];
        let why = refused(&directories, 0).unwrap();
        assert!(why.contains("volume v1 can't have 1 TiB: the maps of what is written"), "{why}");
        assert_eq!(refused(&directories, TO_BYTES), None, "what it has needs no more");
    }

    #[test]
    fn a_disk_that_can_not_be_asked_refuses_nothing() {
        assert_eq!(refused(&["/nowhere/at/all/v1-r1".into()], 0), None);
    }
}
