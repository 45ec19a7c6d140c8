//! Making a backup: runs a [`BackupPlan`] against a target.
//!
//! ```text
//! lock ─▶ volume.cfg (if new) ─▶ plan ─▶ stub (in progress) ─▶ blocks, in parallel ─▶ backup.cfg ─▶ volume.cfg ─▶ unlock
//! ```
//! Promises that a complete manifest is written only when every block it lists is durable, so a
//! backup that can be seen can be restored. A backup that is interrupted anywhere costs nothing but
//! its stub; the blocks it stored are found and skipped by the next one. A failed backup removes its
//! stub; a killed one leaves it, which hides that backup and keeps garbage collection from running
//! until the stub is deleted or the backup made again under its name.
//!
//! Every block that the plan reads is stored and listed, also one of zeroes: that is what Longhorn
//! does, an increment thereby overrides what was there before, and all zero blocks of a volume are
//! one small object. Blocks that the source says are absent aren't read and aren't listed; they
//! restore as zeroes.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::block::{BLOCK_BYTES_DEFAULT, BlockChecksum, CompressionMethod, encode};
use crate::error::Error;
use crate::lock::{HeldLock, LockKind, LockTimes, with_lock};
use crate::manifest::{
    BLOCK_SIZE_PARAMETER, BLOCKS_MAX, BackupManifest, BlockMapping, MODE_PARAMETER,
    ManifestProblem, SNAPSHOT_ID_LABEL, StringMap, VolumeManifest, is_block_size,
};
use crate::name::Name;
use crate::parallel::{OnProgress, Tally, try_map};
use crate::plan::{BackupMode, BackupPlan, Basis, LastBackup};
use crate::source::Source;
use crate::store::{BlockState, VolumeStore};
use crate::target::Target;
use crate::timestamp::Timestamp;

#[derive(Clone, Debug)]
pub struct BackupRequest {
    pub backup: Name,
    /// The user's, kept with the backup.
    pub labels: StringMap,
    pub mode: BackupMode,
    /// For a volume's first backup; later ones keep to what `volume.cfg` says.
    pub compression: CompressionMethod,
    pub block_bytes: u64,
    /// Blocks in work at a time; each takes about two block sizes of memory and up to one CPU.
    pub workers: usize,
    pub lock_times: LockTimes,
}

impl BackupRequest {
    pub fn new(backup: Name) -> Self {
        Self {
            backup,
            labels: StringMap::new(),
            mode: BackupMode::default(),
            compression: CompressionMethod::default(),
            block_bytes: BLOCK_BYTES_DEFAULT,
            workers: 2,
            lock_times: LockTimes::default(),
        }
    }
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct BackupReport {
    pub plan: BackupPlan,
    pub manifest: BackupManifest,
    /// Blocks that the target didn't have, or that were written again in mode full.
    pub blocks_new: u64,
    pub blocks_reused: u64,
    /// Bytes written, as compressed.
    pub uploaded_bytes: u64,
}

/// Makes one backup of the source's snapshot.
pub fn back_up(
    target: &dyn Target,
    source: &dyn Source,
    request: &BackupRequest,
    on_progress: OnProgress<'_>,
) -> Result<BackupReport, Error> {
    let volume: Name = source.volume().parse()?;
    check_sizes(&volume, source.size_bytes(), request.block_bytes)?;
    let store = VolumeStore::new(target, &volume);
    with_lock(&store, LockKind::Use, request.lock_times, |lock| {
        let run = Run { store: &store, source, request, lock, on_progress };
        let begun = Timestamp::from(SystemTime::now());
        run.refuse_a_taken_name()?;
        let method = run.ensure_volume(&begun)?;
        let mut plan = run.plan()?;
        run.add_unsound_blocks(&mut plan)?;
        let stub = BackupManifest::stub(&request.backup, &volume, method);
        store.save_backup(&request.backup, &stub)?;
        run.complete(plan, stub, begun).inspect_err(|_| run.remove_stub())
    })
}

fn check_sizes(volume: &Name, size_bytes: u64, block_bytes: u64) -> Result<(), Error> {
    let volume = volume.clone();
    if !is_block_size(block_bytes) || !size_bytes.is_multiple_of(block_bytes) {
        return Err(Error::NotWholeBlocks { volume, size_bytes, block_bytes });
    }
    if size_bytes / block_bytes > BLOCKS_MAX {
        return Err(Error::TooManyBlocks { volume, size_bytes, block_bytes });
    }
    Ok(())
}

/// A backup while it is being made.
struct Run<'a> {
    store: &'a VolumeStore<'a>,
    source: &'a dyn Source,
    request: &'a BackupRequest,
    lock: &'a HeldLock<'a>,
    on_progress: OnProgress<'a>,
}

/// What happened to one block.
struct Stored {
    mapping: BlockMapping,
    outcome: Outcome,
}

enum Outcome {
    Reused,
    New { object_bytes: u64 },
    WrittenAgain { object_bytes: u64 },
}

impl Run<'_> {
    /// A stub of that name is taken over if nobody can be working on it.
    fn refuse_a_taken_name(&self) -> Result<(), Error> {
        if self.refuse_a_finished_one()?.is_some() && self.lock.has_company()? {
            let (backup, volume) = (self.request.backup.clone(), self.store.volume.clone());
            return Err(Error::InProgress { backup, volume });
        }
        Ok(())
    }

    /// Gives the stub of this name, if there is one.
    fn refuse_a_finished_one(&self) -> Result<Option<BackupManifest>, Error> {
        let found = self.store.find_backup(&self.request.backup)?;
        if found.as_ref().is_some_and(|found| !found.is_in_progress()) {
            let (backup, volume) = (self.request.backup.clone(), self.store.volume.clone());
            return Err(Error::BackupExists { backup, volume });
        }
        Ok(found)
    }

    /// Sees to a `volume.cfg`, and tells its method of compression.
    fn ensure_volume(&self, begun: &Timestamp) -> Result<CompressionMethod, Error> {
        let (volume, size_bytes) = (self.store.volume, self.source.size_bytes());
        let has_backups = !self.store.backup_names()?.is_empty();
        let (found, problem) = match self.store.find_volume() {
            Ok(found) => (found, ManifestProblem::Missing),
            Err(Error::Manifest { source, .. }) => (None, source),
            Err(error) => return Err(error),
        };
        let mut manifest = match &found {
            Some(found) => found.clone(),
            None => {
                let method = self.request.compression;
                let new = VolumeManifest::new(volume, size_bytes, method, begun.clone());
                if has_backups { self.store.volume_of_its_backups(new, problem)? } else { new }
            }
        };
        if !has_backups {
            // What an earlier volume of that name had binds nobody once its backups are gone.
            manifest.size_bytes = size_bytes;
            manifest.backing_image_name.clear();
            manifest.backing_image_checksum.clear();
        }
        if !manifest.backing_image_name.is_empty() {
            let (volume, image) = (volume.clone(), manifest.backing_image_name);
            return Err(Error::BackingImage { volume, image });
        }
        if manifest.size_bytes > size_bytes {
            let (volume, stored_bytes) = (volume.clone(), manifest.size_bytes);
            return Err(Error::Shrank { volume, size_bytes, stored_bytes });
        }
        if found.as_ref() != Some(&manifest) {
            self.store.save_volume(&manifest)?;
        }
        Ok(manifest.compression_method)
    }

    fn plan(&self) -> Result<BackupPlan, Error> {
        let (mode, block_bytes) = (self.request.mode, self.request.block_bytes);
        let last = self.last_backup()?;
        let basis = Basis::choose(mode, last, self.source.snapshot_id(), block_bytes);
        let size_bytes = self.source.size_bytes();
        let changed = self
            .source
            .changed(basis.since())
            .map_err(|source| self.source_error(0, size_bytes, source))?;
        let plan = BackupPlan::between(basis, changed, block_bytes);
        if let Some(past) = plan.offsets_bytes.last().filter(|offset| **offset >= size_bytes) {
            let source = std::io::Error::other("the store reports a change past the volume's end");
            return Err(self.source_error(*past, block_bytes, source));
        }
        tracing::info!(volume = %self.store.volume, backup = %self.request.backup, "{plan}");
        Ok(plan)
    }

    /// A block that an increment takes over, and whose object is missing or can't be it, is read and
    /// stored anew: the volume still has it, and the increment would be as bad as its basis.
    fn add_unsound_blocks(&self, plan: &mut BackupPlan) -> Result<(), Error> {
        let taken_over = plan.taken_over();
        let mut checksums: Vec<_> = taken_over.iter().map(|mapping| mapping.checksum).collect();
        checksums.sort_unstable();
        checksums.dedup();
        let block_bytes = plan.block_bytes;
        let states = try_map(self.request.workers, &checksums, |checksum| {
            self.lock.check()?;
            self.store.block_state(checksum, block_bytes)
        })?;
        let is_sound = |mapping: &&BlockMapping| {
            let at = checksums.binary_search(&mapping.checksum).expect("it is of this list");
            states[at] == BlockState::Plausible
        };
        let unsound: Vec<_> = taken_over.iter().filter(|mapping| !is_sound(mapping)).collect();
        if !unsound.is_empty() {
            let (volume, backup) = (self.store.volume.as_str(), self.request.backup.as_str());
            tracing::warn!(
                volume,
                backup,
                blocks = unsound.len(),
                "blocks of the last backup are missing or damaged, and are stored anew"
            );
            plan.add(unsound.into_iter().map(|mapping| mapping.offset_bytes));
        }
        Ok(())
    }

    fn last_backup(&self) -> Result<LastBackup, Error> {
        let volume = self.store.volume()?;
        if volume.last_backup_name.is_empty() {
            return Ok(LastBackup::None);
        }
        let Ok(name) = volume.last_backup_name.parse() else { return Ok(LastBackup::Unusable) };
        match self.store.find_backup(&name) {
            Ok(Some(manifest)) if manifest.fits(self.source.size_bytes()) => {
                Ok(LastBackup::Usable(Box::new(manifest)))
            }
            Ok(_) | Err(Error::Manifest { .. }) => Ok(LastBackup::Unusable),
            Err(error) => Err(error),
        }
    }

    fn complete(
        &self,
        plan: BackupPlan,
        stub: BackupManifest,
        begun: Timestamp,
    ) -> Result<BackupReport, Error> {
        let tally = Tally::new(self.on_progress, plan.block_bytes, plan.offsets_bytes.len());
        let claimed = Mutex::new(HashSet::new());
        let method = stub.compression_method;
        let stored = try_map(self.request.workers, &plan.offsets_bytes, |offset_bytes| {
            let stored = self.store_block(*offset_bytes, plan.block_bytes, method, &claimed)?;
            tally.count(!matches!(stored.outcome, Outcome::Reused))?;
            Ok(stored)
        })?;

        let (mut new_objects, mut new_bytes, mut again_bytes) = (0, 0, 0);
        for block in &stored {
            match block.outcome {
                Outcome::Reused => {}
                Outcome::New { object_bytes } => {
                    new_objects += 1;
                    new_bytes += object_bytes;
                }
                Outcome::WrittenAgain { object_bytes } => again_bytes += object_bytes,
            }
        }
        let map = plan.complete_map(stored.into_iter().map(|block| block.mapping).collect());
        let mut manifest = BackupManifest {
            snapshot_name: self.source.snapshot_name().to_owned(),
            snapshot_created_at: begun,
            created_time: Timestamp::from(SystemTime::now()),
            mapped_bytes: map.len() as u64 * plan.block_bytes,
            labels: Some(self.labels()),
            parameters: Some(self.parameters()),
            is_incremental: plan.is_incremental(),
            newly_uploaded_bytes: new_bytes,
            reuploaded_bytes: again_bytes,
            blocks: Some(map),
            ..stub
        };
        manifest.seal(self.source.size_bytes()).map_err(|problem| {
            let key = self.store.paths.backup_manifest(&self.request.backup);
            self.store.manifest_error(&key, problem)
        })?;
        self.store.target.flush()?; // the blocks, before the manifest that lists them
        self.lock.confirm()?;
        // Nothing in the protocol keeps two backups of one name apart; the first to finish stays.
        self.refuse_a_finished_one()?;
        self.store.save_backup(&self.request.backup, &manifest)?;
        self.update_volume(&manifest, new_objects)?;
        self.store.target.flush()?;
        let progress = tally.progress();
        Ok(BackupReport {
            plan,
            manifest,
            blocks_new: progress.blocks_new,
            blocks_reused: progress.blocks_reused,
            uploaded_bytes: new_bytes + again_bytes,
        })
    }

    /// `claimed` has the blocks that were met in this run, so that two equal ones aren't uploaded
    /// at once. Should the first one's upload fail, the whole backup does.
    fn store_block(
        &self,
        offset_bytes: u64,
        block_bytes: u64,
        method: CompressionMethod,
        claimed: &Mutex<HashSet<BlockChecksum>>,
    ) -> Result<Stored, Error> {
        self.lock.check()?;
        let mut block = vec![0; block_bytes as usize];
        self.source
            .read(offset_bytes, &mut block)
            .map_err(|source| self.source_error(offset_bytes, block_bytes, source))?;
        let checksum = BlockChecksum::of(&block);
        let stored = |outcome| Stored { mapping: BlockMapping { offset_bytes, checksum }, outcome };
        if !claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(checksum) {
            return Ok(stored(Outcome::Reused));
        }
        let key = self.store.paths.block(&checksum);
        let state = self.store.block_state(&checksum, block_bytes)?;
        if state == BlockState::Plausible && self.request.mode != BackupMode::Full {
            return Ok(stored(Outcome::Reused));
        }
        let object = encode(method, &block);
        self.store.target.write(&key, &object)?;
        let object_bytes = object.len() as u64;
        Ok(stored(match state {
            BlockState::Missing => Outcome::New { object_bytes },
            _ => Outcome::WrittenAgain { object_bytes },
        }))
    }

    /// Reads `volume.cfg` again first: another backup of the volume may have finished meanwhile.
    fn update_volume(&self, manifest: &BackupManifest, new_objects: u64) -> Result<(), Error> {
        let mut volume = self.store.volume()?;
        volume.size_bytes = volume.size_bytes.max(self.source.size_bytes());
        volume.labels = manifest.labels.clone();
        volume.last_backup_name = manifest.name.clone();
        volume.last_backup_at = manifest.snapshot_created_at.clone();
        volume.block_count = volume.block_count.saturating_add(new_objects);
        self.store.save_volume(&volume)
    }

    fn labels(&self) -> StringMap {
        let mut labels = self.request.labels.clone();
        labels.insert(SNAPSHOT_ID_LABEL.to_owned(), self.source.snapshot_id().to_owned());
        labels
    }

    fn parameters(&self) -> StringMap {
        let block_bytes = self.request.block_bytes.to_string();
        let mut parameters = StringMap::from([(BLOCK_SIZE_PARAMETER.to_owned(), block_bytes)]);
        if self.request.mode == BackupMode::Full {
            parameters.insert(MODE_PARAMETER.to_owned(), "full".to_owned());
        }
        parameters
    }

    /// Best effort: it matters for tidiness only. A manifest that has become complete stays, since
    /// then only `volume.cfg` wasn't updated.
    fn remove_stub(&self) {
        let backup = &self.request.backup;
        if !matches!(self.store.find_backup(backup), Ok(Some(found)) if found.is_in_progress()) {
            return;
        }
        if let Err(error) = self.store.target.delete(&self.store.paths.backup_manifest(backup)) {
            tracing::warn!(%backup, %error, "can't remove the stub of the failed backup");
        }
    }

    fn source_error(&self, offset_bytes: u64, length_bytes: u64, source: std::io::Error) -> Error {
        let volume = self.store.volume.clone();
        let snapshot = self.source.snapshot_name().to_owned();
        Error::Source { volume, snapshot, offset_bytes, length_bytes, source }
    }
}
