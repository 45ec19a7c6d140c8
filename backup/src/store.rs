//! One volume's part of a target, as manifests and blocks instead of keys and bytes.

use std::io;

use crate::block::{BlockChecksum, CompressionMethod, can_hold_a_block, decode, object_bytes_max};
use crate::error::{BlockProblem, Error};
use crate::json;
use crate::layout::{self, VolumePaths};
use crate::manifest::{
    BackupManifest, BackupSummary, ManifestProblem, REST_BYTES_MAX, VolumeManifest,
};
use crate::name::Name;
use crate::target::{Access, Target, TargetError, found};

/// What an object's size says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockState {
    Missing,
    /// It has fewer or more bytes than any object of such a block.
    Impossible,
    Plausible,
}

/// A complete backup, with what it takes to restore it.
#[derive(Clone, Debug, PartialEq)]
pub struct BackupDetails {
    pub manifest: BackupManifest,
    /// Of the volume: what it had when the backup was made, if the backup says that. Else what its
    /// volume has now, or what its map needs where that is more.
    pub size_bytes: u64,
    /// Whose bytes lie below those of the backup. It can't be restored without them.
    pub backing_image: Option<String>,
}

impl BackupDetails {
    /// A volume can't be made of a part of its bytes.
    pub fn refuse_backing_image(&self) -> Result<(), Error> {
        match (&self.backing_image, self.manifest.volume_name.parse()) {
            (Some(image), Ok(volume)) => Err(Error::BackingImage { volume, image: image.clone() }),
            (Some(_), Err(error)) => Err(Error::Name(error)),
            (None, _) => Ok(()),
        }
    }
}

pub(crate) struct VolumeStore<'a> {
    pub(crate) target: &'a dyn Target,
    pub(crate) volume: &'a Name,
    pub(crate) paths: VolumePaths,
}

impl<'a> VolumeStore<'a> {
    pub(crate) fn new(target: &'a dyn Target, volume: &'a Name) -> Self {
        Self { target, volume, paths: VolumePaths::of(volume) }
    }

    /// `None` if nothing of this volume was ever stored.
    pub(crate) fn find_volume(&self) -> Result<Option<VolumeManifest>, Error> {
        let key = self.paths.volume_manifest();
        let Some(bytes) = found(self.target.read(&key, REST_BYTES_MAX))? else {
            return Ok(None);
        };
        VolumeManifest::parse(&bytes, self.volume)
            .map(Some)
            .map_err(|problem| self.manifest_error(&key, problem))
    }

    pub(crate) fn volume(&self) -> Result<VolumeManifest, Error> {
        match self.find_volume()? {
            Some(manifest) => Ok(manifest),
            None if self.backup_names()?.is_empty() => {
                let (volume, target) = (self.volume.clone(), self.target.url().to_owned());
                Err(Error::NoSuchVolume { volume, target })
            }
            None => {
                Err(self.manifest_error(&self.paths.volume_manifest(), ManifestProblem::Missing))
            }
        }
    }

    /// A `volume.cfg` in place of one that has this problem: `new`, with what the backups of the
    /// volume say themselves. Not if one of them needs what only the lost one had.
    pub(crate) fn volume_of_its_backups(
        &self,
        new: VolumeManifest,
        problem: ManifestProblem,
    ) -> Result<VolumeManifest, Error> {
        let mut volume = new;
        for name in self.backup_names()? {
            let manifest = match self.find_summary(&name)? {
                Some(found) if !found.manifest.is_in_progress() => found.manifest,
                _ => continue,
            };
            let Some(own_bytes) = manifest.own_size_bytes() else {
                return Err(self.manifest_error(&self.paths.volume_manifest(), problem));
            };
            volume.size_bytes = volume.size_bytes.max(own_bytes);
            if volume.last_backup_at <= manifest.snapshot_created_at {
                volume.compression_method = manifest.compression_method;
                volume.last_backup_name = manifest.name;
                volume.last_backup_at = manifest.snapshot_created_at;
            }
        }
        volume.block_count = self.target.objects_below(&self.paths.blocks())?.len() as u64;
        tracing::warn!(volume = self.volume.as_str(), "volume.cfg is made anew of its backups");
        Ok(volume)
    }

    pub(crate) fn save_volume(&self, manifest: &VolumeManifest) -> Result<(), Error> {
        Ok(self.target.write(&self.paths.volume_manifest(), &json::to_vec(manifest))?)
    }

    pub(crate) fn find_backup(&self, backup: &Name) -> Result<Option<BackupManifest>, Error> {
        self.parse_backup(backup, |object| BackupManifest::read(object, self.volume, backup))
    }

    pub(crate) fn find_summary(&self, backup: &Name) -> Result<Option<BackupSummary>, Error> {
        self.parse_backup(backup, |object| BackupSummary::read(object, self.volume, backup))
    }

    fn parse_backup<T>(
        &self,
        backup: &Name,
        parse: impl FnOnce(Box<dyn io::Read + Send>) -> Result<T, ManifestProblem>,
    ) -> Result<Option<T>, Error> {
        let key = self.paths.backup_manifest(backup);
        let Some(object) = found(self.target.open(&key))? else { return Ok(None) };
        parse(object).map(Some).map_err(|problem| match problem {
            ManifestProblem::Unreadable(source) => {
                TargetError::from_io(Access::Read, self.target.locate(&key), source).into()
            }
            problem => self.manifest_error(&key, problem),
        })
    }

    /// A backup that can be looked at: complete, and made of blocks.
    pub(crate) fn backup(&self, backup: &Name) -> Result<BackupManifest, Error> {
        let (name, volume) = (backup.clone(), self.volume.clone());
        let Some(manifest) = self.find_backup(backup)? else {
            if let Err(error @ Error::NoSuchVolume { .. }) = self.volume() {
                return Err(error);
            }
            let target = self.target.url().to_owned();
            return Err(Error::NoSuchBackup { backup: name, volume, target });
        };
        if manifest.is_in_progress() {
            return Err(Error::InProgress { backup: name, volume });
        }
        if !manifest.single_file.path.is_empty() {
            return Err(Error::SingleFile { backup: name, volume });
        }
        Ok(manifest)
    }

    /// What a restore has to know besides the map, of which only the end is needed here.
    pub(crate) fn describe(
        &self,
        manifest: BackupManifest,
        end_bytes: u64,
    ) -> Result<BackupDetails, Error> {
        if let Some(own) = manifest.own_size_bytes() {
            let size_bytes = own.max(end_bytes);
            return Ok(BackupDetails { manifest, size_bytes, backing_image: None });
        }
        let volume = self.volume()?;
        // The volume may have been made anew since, and smaller.
        let size_bytes = volume.size_bytes.max(end_bytes);
        let backing_image = Some(volume.backing_image_name).filter(|image| !image.is_empty());
        Ok(BackupDetails { manifest, size_bytes, backing_image })
    }

    /// A backup from which a volume can be made.
    pub(crate) fn restorable(&self, backup: &Name) -> Result<BackupDetails, Error> {
        let manifest = self.backup(backup)?;
        let end_bytes = manifest.end_bytes();
        let details = self.describe(manifest, end_bytes)?;
        details.refuse_backing_image()?;
        Ok(details)
    }

    pub(crate) fn block_bytes(
        &self,
        backup: &Name,
        manifest: &BackupManifest,
    ) -> Result<u64, Error> {
        let key = || self.paths.backup_manifest(backup);
        manifest.block_bytes().map_err(|problem| self.manifest_error(&key(), problem))
    }

    pub(crate) fn save_backup(&self, name: &Name, manifest: &BackupManifest) -> Result<(), Error> {
        Ok(self.target.write(&self.paths.backup_manifest(name), &json::to_vec(manifest))?)
    }

    /// Names of all backups, complete or not, in order.
    pub(crate) fn backup_names(&self) -> Result<Vec<Name>, Error> {
        let files = self.target.children(&self.paths.backups())?;
        let mut names: Vec<_> = files.iter().filter_map(|f| layout::backup_of_file(f)).collect();
        names.sort();
        Ok(names)
    }

    /// A block's verified bytes.
    pub(crate) fn read_block(
        &self,
        checksum: &BlockChecksum,
        method: CompressionMethod,
        block_bytes: u64,
    ) -> Result<Vec<u8>, BlockProblem> {
        let key = self.paths.block(checksum);
        let object = found(self.target.read(&key, object_bytes_max(block_bytes)))
            .map_err(BlockProblem::Unreadable)?
            .ok_or(BlockProblem::Missing)?;
        decode(method, &object, block_bytes, checksum).map_err(BlockProblem::Damaged)
    }

    /// Whether the object is there, with a size that a block's can have. Only reading it would tell
    /// more: a zero-length one is what a full disk or a power cut leaves.
    pub(crate) fn block_state(
        &self,
        checksum: &BlockChecksum,
        block_bytes: u64,
    ) -> Result<BlockState, Error> {
        Ok(match self.target.object_bytes(&self.paths.block(checksum))? {
            None => BlockState::Missing,
            Some(bytes) if can_hold_a_block(bytes, block_bytes) => BlockState::Plausible,
            Some(_) => BlockState::Impossible,
        })
    }

    pub(crate) fn manifest_error(&self, key: &str, source: ManifestProblem) -> Error {
        Error::Manifest { path: self.target.locate(key), source }
    }
}
