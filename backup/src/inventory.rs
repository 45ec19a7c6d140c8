//! What a target holds, and whether it is whole.

use crate::error::{BadBlock, Error};
use crate::layout::{STORE_FOLDER, VOLUMES_FOLDER};
use crate::lock::with_lock_if_writable;
use crate::manifest::VolumeManifest;
use crate::name::Name;
use crate::parallel::{OnProgress, Tally, try_map};
use crate::restore::{RestoreOptions, read_mapped};
use crate::store::VolumeStore;
use crate::target::Target;

pub use crate::store::BackupDetails;
pub use crate::surroundings::{Place, Surroundings, look_around};

#[derive(Debug, Default)]
pub struct Volumes {
    /// In order.
    pub names: Vec<Name>,
    /// What couldn't be looked into. There may be more volumes there.
    pub problems: Vec<Error>,
}

/// All volumes that have something in the target: those with a manifest of their own or of a
/// backup. Longhorn keeps the locks of images in a folder that has neither.
pub fn volumes(target: &dyn Target) -> Result<Volumes, Error> {
    let mut volumes = Volumes::default();
    let is_of_hashes = |name: &String| name.len() == 2 && !name.starts_with('.');
    let mut look = |folder: &str| match target.children(folder) {
        Ok(names) => names,
        Err(error) => {
            volumes.problems.push(error.into());
            Vec::new()
        }
    };
    let mut names = Vec::new();
    for first in target.children(VOLUMES_FOLDER)?.into_iter().filter(is_of_hashes) {
        let first = format!("{VOLUMES_FOLDER}/{first}");
        for second in look(&first).into_iter().filter(is_of_hashes) {
            let found = look(&format!("{first}/{second}"));
            names.extend(found.iter().filter_map(|name| name.parse::<Name>().ok()));
        }
    }
    // One that can't be looked at is listed: then it is said why.
    names.retain(|volume| {
        let store = VolumeStore::new(target, volume);
        let has_manifest = || target.exists(&store.paths.volume_manifest());
        let has_backups = || store.backup_names().map(|names| !names.is_empty());
        has_manifest().unwrap_or(true) || has_backups().unwrap_or(true)
    });
    names.sort();
    volumes.names = names;
    Ok(volumes)
}

/// Whether objects can be put into the target; nothing stays of it.
pub fn try_to_write(target: &dyn Target) -> Result<(), Error> {
    let key = format!("{STORE_FOLDER}/write-test-{}", std::process::id());
    target.write(&key, b"")?;
    Ok(target.delete(&key)?)
}

/// What a volume's manifest says.
pub fn volume(target: &dyn Target, volume: &Name) -> Result<VolumeManifest, Error> {
    VolumeStore::new(target, volume).volume()
}

/// One backup as a list shows it.
#[derive(Debug)]
pub struct BackupEntry {
    pub name: Name,
    pub state: BackupState,
}

#[derive(Debug)]
pub enum BackupState {
    /// Without its map.
    Complete(Box<BackupDetails>),
    /// Being made, or left by a maker that died.
    InProgress,
    /// Its manifest, or what it needs of its volume's, can't be used, or it isn't made of blocks;
    /// the others can be read.
    Unreadable(Error),
}

/// All backups of a volume, by name.
pub fn backups(target: &dyn Target, volume: &Name) -> Result<Vec<BackupEntry>, Error> {
    let store = VolumeStore::new(target, volume);
    let mut entries = Vec::new();
    for name in store.backup_names()? {
        let state = match store.find_summary(&name) {
            Ok(None) => continue, // deleted since it was listed
            Ok(Some(found)) if found.manifest.is_in_progress() => BackupState::InProgress,
            Ok(Some(found)) if !found.manifest.single_file.path.is_empty() => {
                let (backup, volume) = (name.clone(), volume.clone());
                BackupState::Unreadable(Error::SingleFile { backup, volume })
            }
            Ok(Some(found)) => match store.describe(found.manifest, found.end_bytes) {
                Ok(details) => BackupState::Complete(Box::new(details)),
                Err(error) => BackupState::Unreadable(error),
            },
            Err(error) => BackupState::Unreadable(error),
        };
        entries.push(BackupEntry { name, state });
    }
    Ok(entries)
}

/// A complete backup, with its map.
pub fn inspect(target: &dyn Target, volume: &Name, backup: &Name) -> Result<BackupDetails, Error> {
    let store = VolumeStore::new(target, volume);
    let manifest = store.backup(backup)?;
    let end_bytes = manifest.end_bytes();
    store.describe(manifest, end_bytes)
}

/// What a verification found.
#[derive(Debug)]
pub struct VerifyReport {
    pub blocks: u64,
    /// In order of their offsets; empty if the backup can be restored.
    pub bad_blocks: Vec<Box<BadBlock>>,
}

/// Reads and checks every block of a backup, as a restore would.
pub fn verify(
    target: &dyn Target,
    volume: &Name,
    backup: &Name,
    options: &RestoreOptions,
    on_progress: OnProgress<'_>,
) -> Result<VerifyReport, Error> {
    let store = VolumeStore::new(target, volume);
    with_lock_if_writable(&store, options.lock_times, || {
        let BackupDetails { manifest, .. } = store.restorable(backup)?;
        let block_bytes = store.block_bytes(backup, &manifest)?;
        let tally = Tally::new(on_progress, block_bytes, manifest.mappings().len());
        let checked = try_map(options.workers, manifest.mappings(), |mapping| {
            let bad = read_mapped(&store, backup, &manifest, mapping, block_bytes).err();
            tally.count(true)?;
            Ok(bad)
        })?;
        let blocks = checked.len() as u64;
        Ok(VerifyReport { blocks, bad_blocks: checked.into_iter().flatten().collect() })
    })
}
