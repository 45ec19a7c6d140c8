//! Restoring a backup, to any [`Sink`] or to a raw file.
//!
//! Promises that every byte a sink gets comes from a block whose checksum was verified after
//! decoding, or is zero because the backup says so; and that a file appears under its name only
//! when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::block::BlockChecksum;
use crate::error::{BadBlock, Error};
use crate::lock::{LockTimes, with_lock_if_writable};
use crate::manifest::{BackupManifest, BlockMapping};
use crate::name::Name;
use crate::parallel::{OnProgress, Tally, try_map};
use crate::store::{BackupDetails, VolumeStore};
use crate::target::Target;

/// What a backup is restored into. Every byte of its size is given once, as data or as zeroes, in
/// any order and from several threads.
pub trait Sink: Send + Sync {
    fn size_bytes(&self) -> u64;

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes the range read as zeroes; nothing to do where it does already.
    fn zero_at(&self, range: Range<u64>) -> io::Result<()>;

    /// Makes what was written durable. Called once, after everything else, unless the restore fails.
    fn finish(&self) -> io::Result<()>;
}

#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    /// Blocks in work at a time; each takes about two block sizes of memory and up to one CPU.
    pub workers: usize,
    pub lock_times: LockTimes,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { workers: 2, lock_times: LockTimes::default() }
    }
}

/// What a restore did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    pub size_bytes: u64,
    pub blocks_read: u64,
    pub blocks_zero: u64,
}

/// Restores into a sink that is at least as large as the volume was. What is beyond that becomes
/// zero.
pub fn restore(
    target: &dyn Target,
    volume: &Name,
    backup: &Name,
    sink: &dyn Sink,
    options: &RestoreOptions,
    on_progress: OnProgress<'_>,
) -> Result<RestoreReport, Error> {
    let store = VolumeStore::new(target, volume);
    with_lock_if_writable(&store, options.lock_times, || {
        let BackupDetails { manifest, size_bytes, .. } = store.restorable(backup)?;
        let block_bytes = store.block_bytes(backup, &manifest)?;
        if sink.size_bytes() < size_bytes {
            let (needed_bytes, size_bytes) = (size_bytes, sink.size_bytes());
            return Err(Error::SinkTooSmall { needed_bytes, size_bytes });
        }
        let failed = |range: &Range<u64>, source| {
            let (offset_bytes, length_bytes) = (range.start, range.end - range.start);
            Error::Sink { offset_bytes, length_bytes, source }
        };
        for gap in gaps(&manifest, block_bytes, sink.size_bytes()) {
            sink.zero_at(gap.clone()).map_err(|source| failed(&gap, source))?;
        }
        // Its name says what it holds, so it needs no reading.
        let zero_block = BlockChecksum::of(&vec![0; block_bytes as usize]);
        let tally = Tally::new(on_progress, block_bytes, manifest.mappings().len());
        try_map(options.workers, manifest.mappings(), |mapping| {
            let range = mapping.offset_bytes..mapping.offset_bytes + block_bytes;
            let is_zero = mapping.checksum == zero_block;
            if is_zero {
                sink.zero_at(range.clone())
            } else {
                let block = read_mapped(&store, backup, &manifest, mapping, block_bytes)?;
                sink.write_at(range.start, &block)
            }
            .map_err(|source| failed(&range, source))?;
            tally.count(!is_zero)
        })?;
        sink.finish().map_err(|source| failed(&(0..sink.size_bytes()), source))?;
        let progress = tally.progress();
        Ok(RestoreReport {
            size_bytes,
            blocks_read: progress.blocks_new,
            blocks_zero: progress.blocks_reused,
        })
    })
}

/// A mapped block's verified bytes, or an error that says all about it.
pub(crate) fn read_mapped(
    store: &VolumeStore<'_>,
    backup: &Name,
    manifest: &BackupManifest,
    mapping: &BlockMapping,
    block_bytes: u64,
) -> Result<Vec<u8>, Box<BadBlock>> {
    let BlockMapping { offset_bytes, checksum } = *mapping;
    store.read_block(&checksum, manifest.compression_method, block_bytes).map_err(|problem| {
        Box::new(BadBlock {
            volume: store.volume.clone(),
            backup: backup.clone(),
            offset_bytes,
            checksum,
            path: store.target.locate(&store.paths.block(&checksum)),
            problem,
        })
    })
}

/// The ranges between and around the mapped blocks.
fn gaps(manifest: &BackupManifest, block_bytes: u64, size_bytes: u64) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut covered = 0;
    for mapping in manifest.mappings() {
        gaps.push(covered..mapping.offset_bytes);
        covered = mapping.offset_bytes + block_bytes;
    }
    gaps.push(covered..size_bytes);
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

/// Restores to a raw file, sparse where the backup has zeroes.
///
/// The bytes go to `<path>.restoring`, which gets its name when it is complete and on the disk. A
/// file that exists is replaced only if `overwrite` says so, and kept if the restore fails.
pub fn restore_to_file(
    target: &dyn Target,
    volume: &Name,
    backup: &Name,
    path: &Path,
    overwrite: bool,
    options: &RestoreOptions,
    on_progress: OnProgress<'_>,
) -> Result<RestoreReport, Error> {
    // Before a file is made: a wrong name shouldn't leave a trace.
    let size_bytes = VolumeStore::new(target, volume).restorable(backup)?.size_bytes;
    let sink = FileSink::create(path, size_bytes, overwrite)?;
    let report = restore(target, volume, backup, &sink, options, on_progress)?;
    sink.rename()?;
    Ok(report)
}

struct FileSink {
    file: File,
    size_bytes: u64,
    unfinished: PathBuf,
    path: PathBuf,
    overwrite: bool,
}

impl FileSink {
    fn create(path: &Path, size_bytes: u64, overwrite: bool) -> Result<Self, Error> {
        refuse_existing(path, overwrite)?;
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".restoring");
        let unfinished = PathBuf::from(unfinished);
        let failed = |source| Error::File { action: "create", path: unfinished.clone(), source };
        // Not truncated before it is locked: another restore may be writing into it.
        let mut open = OpenOptions::new();
        let file = open.write(true).create(true).truncate(false).open(&unfinished);
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::FileBusy { path: path.to_owned() });
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        // What a killed restore left goes; the file becomes one hole.
        file.set_len(0).and_then(|()| file.set_len(size_bytes)).map_err(failed)?;
        Ok(Self { file, size_bytes, unfinished, path: path.to_owned(), overwrite })
    }

    fn rename(&self) -> Result<(), Error> {
        refuse_existing(&self.path, self.overwrite)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::rename(&self.unfinished, &self.path)
            .and_then(|()| File::open(folder.unwrap_or(Path::new(".")))?.sync_all())
            .map_err(|source| Error::File { action: "rename to", path: self.path.clone(), source })
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        // After a rename there is nothing of this name. The lock is still held.
        let _ = fs::remove_file(&self.unfinished);
    }
}

fn refuse_existing(path: &Path, overwrite: bool) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(found) if overwrite && found.is_file() => Ok(()),
        Ok(_) => Err(Error::FileExists { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::File { action: "look at", path: path.to_owned(), source }),
    }
}

impl Sink for FileSink {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset_bytes)
    }
    fn zero_at(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(()) // it began as one hole
    }
    fn finish(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
