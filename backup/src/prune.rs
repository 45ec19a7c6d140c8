//! Deleting backups, and the blocks that no backup needs any more.
//!
//! Promises that a block which some backup refers to is never deleted: the deletion lock keeps
//! uploads away, and blocks go only if every manifest could be read, none is in progress, and no
//! backup came or went meanwhile. In doubt blocks stay, and the report says why.

use std::collections::HashSet;
use std::fmt;

use crate::block::BlockChecksum;
use crate::error::Error;
use crate::layout::block_of_key;
use crate::lock::{HeldLock, LockKind, LockTimes, with_lock};
use crate::name::Name;
use crate::store::VolumeStore;
use crate::target::Target;
use crate::timestamp::Timestamp;

/// What a deletion did with the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    Blocks {
        deleted: u64,
        kept: u64,
    },
    /// Nothing was deleted; a later deletion or prune does it.
    Nothing(WhyKept),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyKept {
    /// A stub; nobody works on it, as the deletion holds its lock. Deleting it lets the next
    /// collection run.
    InProgress(Name),
    Unreadable(Name),
    /// `volume.cfg` can't be used; a backup of the volume makes it anew, if it can be.
    VolumeUnreadable,
    BackupsChanged,
}

impl fmt::Display for WhyKept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProgress(name) => {
                write!(f, "backup {name} was never completed")
            }
            Self::Unreadable(name) => {
                write!(f, "the manifest of backup {name} can't be read")
            }
            Self::VolumeUnreadable => f.write_str("the manifest of the volume can't be used"),
            Self::BackupsChanged => f.write_str("backups came or went meanwhile"),
        }
    }
}

/// Deletes one backup, complete or not, and the blocks that only it needed.
pub fn delete_backup(
    target: &dyn Target,
    volume: &Name,
    backup: &Name,
    lock_times: LockTimes,
) -> Result<Collected, Error> {
    let store = VolumeStore::new(target, volume);
    // Before the lock is written, so that a wrong name leaves no trace.
    let key = store.paths.backup_manifest(backup);
    let exists = |store: &VolumeStore<'_>| match target.exists(&key)? {
        true => Ok(()),
        false => {
            let (backup, volume) = (backup.clone(), store.volume.clone());
            Err(Error::NoSuchBackup { backup, volume, target: target.url().to_owned() })
        }
    };
    exists(&store)?;
    with_lock(&store, LockKind::Delete, lock_times, |lock| {
        exists(&store)?;
        if let Ok(Some(found)) = store.find_backup(backup)
            && !found.single_file.path.is_empty()
        {
            // Its file is Longhorn's to find and delete.
            return Err(Error::SingleFile { backup: backup.clone(), volume: volume.clone() });
        }
        lock.check()?;
        target.delete(&key)?;
        target.flush()?; // or a power cut could bring the manifest back without its blocks
        collect(&store, lock)
    })
}

/// Deletes the blocks of a volume that no backup needs: what interrupted backups left.
pub fn prune(
    target: &dyn Target,
    volume: &Name,
    lock_times: LockTimes,
) -> Result<Collected, Error> {
    let store = VolumeStore::new(target, volume);
    store.volume()?;
    with_lock(&store, LockKind::Delete, lock_times, |lock| collect(&store, lock))
}

/// Deletes all backups of a volume. What can't be read goes too.
pub fn delete_volume(
    target: &dyn Target,
    volume: &Name,
    lock_times: LockTimes,
) -> Result<(), Error> {
    let store = VolumeStore::new(target, volume);
    if target.objects_below(store.paths.root())?.is_empty() {
        let target = target.url().to_owned();
        return Err(Error::NoSuchVolume { volume: volume.clone(), target });
    }
    with_lock(&store, LockKind::Delete, lock_times, |lock| {
        let locks = format!("{}/", store.paths.locks());
        lock.remove_stale_ones()?;
        let mut keys = target.objects_below(store.paths.root())?;
        keys.extend(target.unfinished_below(store.paths.root())?);
        keys.retain(|key| !key.starts_with(&locks));
        // Manifests go before blocks and `volume.cfg` last: whatever is left by a kill is either
        // garbage without a manifest or still a volume that can be deleted.
        let backups = format!("{}/", store.paths.backups());
        let manifest = store.paths.volume_manifest();
        keys.sort_by_key(|key| (*key == manifest, !key.starts_with(&backups)));
        let manifests = keys.partition_point(|key| key.starts_with(&backups));
        let blocks = keys.split_off(manifests);
        for part in [keys, blocks] {
            for key in part {
                lock.check()?;
                target.delete(&key)?;
            }
            target.flush()?;
        }
        Ok(())
    })
}

fn collect(store: &VolumeStore<'_>, lock: &HeldLock<'_>) -> Result<Collected, Error> {
    let names = store.backup_names()?;
    // Manifests are as large as volumes, so only what is needed of them is kept.
    let (mut left, mut needed) = (Vec::new(), HashSet::new());
    let mut doubt = None;
    for name in &names {
        match store.find_backup(name) {
            Ok(Some(found)) if found.is_in_progress() => {
                doubt.get_or_insert(WhyKept::InProgress(name.clone()));
            }
            Ok(Some(found)) => {
                needed.extend(found.mappings().iter().map(|mapping| mapping.checksum));
                left.push((found.snapshot_created_at, found.name));
            }
            Ok(None) => doubt = Some(WhyKept::BackupsChanged),
            Err(error) => {
                tracing::warn!(volume = %store.volume, backup = %name, %error, "blocks are kept");
                doubt = Some(WhyKept::Unreadable(name.clone()));
            }
        }
    }
    match name_last_backup(store, &left) {
        Err(Error::Manifest { .. }) => doubt = doubt.or(Some(WhyKept::VolumeUnreadable)),
        named => named?,
    }
    if let Some(why) = doubt {
        return Ok(Collected::Nothing(why));
    }
    lock.remove_stale_ones()?;
    for key in store.target.unfinished_below(&store.paths.blocks())? {
        lock.check()?;
        store.target.delete(&key)?;
    }
    let keys = store.target.objects_below(&store.paths.blocks())?;
    if store.backup_names()? != names {
        return Ok(Collected::Nothing(WhyKept::BackupsChanged));
    }
    let garbage = unreferenced(&keys, &needed);
    lock.confirm()?;
    for key in &garbage {
        lock.check()?;
        store.target.delete(key)?;
    }
    let blocks = keys.iter().filter(|key| block_of_key(key).is_some()).count();
    let (deleted, kept) = (garbage.len() as u64, (blocks - garbage.len()) as u64);
    if let Some(mut volume) = store.find_volume()? {
        volume.block_count = kept;
        store.save_volume(&volume)?;
    }
    Ok(Collected::Blocks { deleted, kept })
}

/// Keys of blocks that nobody needs. Keys that name no block are somebody else's and stay.
fn unreferenced<'k>(keys: &'k [String], needed: &HashSet<BlockChecksum>) -> Vec<&'k String> {
    let is_garbage =
        |key: &&String| block_of_key(key).is_some_and(|checksum| !needed.contains(&checksum));
    keys.iter().filter(is_garbage).collect()
}

/// Lets `volume.cfg` name the newest backup that is left, if the one it names has gone.
fn name_last_backup(store: &VolumeStore<'_>, left: &[(Timestamp, String)]) -> Result<(), Error> {
    let Some(mut volume) = store.find_volume()? else { return Ok(()) };
    let named = volume.last_backup_name.as_str();
    if named.is_empty() || left.iter().any(|(_, name)| name == named) {
        return Ok(());
    }
    (volume.last_backup_at, volume.last_backup_name) =
        left.iter().max_by_key(|(begun, _)| begun).cloned().unwrap_or_default();
    store.save_volume(&volume)
}
