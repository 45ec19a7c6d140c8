//! One volume's part of a target, as manifests and blocks instead of keys and bytes.

use crate::block::{BlockChecksum, CompressionMethod, decode, object_bytes_max};
use crate::error::{BlockProblem, Error};
use crate::json;
use crate::layout::{self, VolumePaths};
use crate::manifest::{BackupManifest, ManifestProblem, VolumeManifest};
use crate::name::Name;
use crate::target::{Target, found};

/// Bounds what a garbage manifest makes us read; one of 64 TiB in 2 MiB blocks is near this.
const MANIFEST_BYTES_MAX: u64 = 4 << 30;

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
        let Some(bytes) = found(self.target.read(&key, MANIFEST_BYTES_MAX))? else {
            return Ok(None);
        };
        VolumeManifest::parse(&bytes, self.volume)
            .map(Some)
            .map_err(|problem| self.manifest_error(&key, problem))
    }

    pub(crate) fn volume(&self) -> Result<VolumeManifest, Error> {
        let (volume, target) = (self.volume.clone(), self.target.url().to_owned());
        self.find_volume()?.ok_or(Error::NoSuchVolume { volume, target })
    }

    pub(crate) fn save_volume(&self, manifest: &VolumeManifest) -> Result<(), Error> {
        Ok(self.target.write(&self.paths.volume_manifest(), &json::to_vec(manifest))?)
    }

    pub(crate) fn find_backup(&self, backup: &Name) -> Result<Option<BackupManifest>, Error> {
        let key = self.paths.backup_manifest(backup);
        let Some(bytes) = found(self.target.read(&key, MANIFEST_BYTES_MAX))? else {
            return Ok(None);
        };
        BackupManifest::parse(&bytes, self.volume, backup)
            .map(Some)
            .map_err(|problem| self.manifest_error(&key, problem))
    }

    /// A backup that can be restored: complete, and made of blocks.
    pub(crate) fn backup(&self, backup: &Name) -> Result<BackupManifest, Error> {
        let (name, volume) = (backup.clone(), self.volume.clone());
        let Some(manifest) = self.find_backup(backup)? else {
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

    /// The block size of a backup whose blocks all lie within `size_bytes`.
    pub(crate) fn check_map(
        &self,
        backup: &Name,
        manifest: &BackupManifest,
        size_bytes: u64,
    ) -> Result<u64, Error> {
        manifest
            .check_fits(size_bytes)
            .and_then(|()| manifest.block_bytes())
            .map_err(|problem| self.manifest_error(&self.paths.backup_manifest(backup), problem))
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

    pub(crate) fn manifest_error(&self, key: &str, source: ManifestProblem) -> Error {
        Error::Manifest { path: self.target.locate(key), source }
    }
}
