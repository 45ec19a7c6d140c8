//! Which blocks a backup reads, and why.
//!
//! Pure. An increment is built only on a backup whose snapshot the source itself knows by its
//! unique id, so that a snapshot that was deleted and made again under its old name can't give a
//! backup that mixes the two.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::block::BlockChecksum;
use crate::manifest::{BackupManifest, BlockMapping};
use crate::source::Changed;

/// Asked for by the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupMode {
    /// Incremental if it can be, else full. Blocks that the target has aren't uploaded.
    #[default]
    Incremental,
    /// Everything is read and uploaded again, over what is there: repairs damaged blocks.
    Full,
}

/// What the target says about the last backup of the volume.
#[derive(Clone, Debug, PartialEq)]
pub enum LastBackup {
    None,
    /// It is named, but missing, damaged, or not complete.
    Unusable,
    Usable(Box<BackupManifest>),
}

/// What a backup starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum Basis {
    Nothing(WhyFull),
    /// A backup whose block size is that of the new one, and the id of its snapshot.
    Backup {
        manifest: Box<BackupManifest>,
        snapshot_id: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyFull {
    FirstBackup,
    Asked,
    LastBackupUnusable,
    /// Another program made the last backup: its snapshot can't be identified.
    UnknownSnapshot,
    SameSnapshot,
    OtherBlockSize,
    /// The last backup's snapshot is no ancestor of this one, or has been deleted.
    NoCommonSnapshot,
}

impl fmt::Display for WhyFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstBackup => "it is the first one",
            Self::Asked => "that was asked for",
            Self::LastBackupUnusable => "the last backup can't be used",
            Self::UnknownSnapshot => "the last backup doesn't say exactly which snapshot it holds",
            Self::SameSnapshot => "the last backup is of the same snapshot",
            Self::OtherBlockSize => "the last backup has blocks of another size",
            Self::NoCommonSnapshot => "the volume doesn't have the last backup's snapshot any more",
        })
    }
}

impl Basis {
    pub fn choose(mode: BackupMode, last: LastBackup, snapshot_id: &str, block_bytes: u64) -> Self {
        let manifest = match last {
            _ if mode == BackupMode::Full => return Self::Nothing(WhyFull::Asked),
            LastBackup::None => return Self::Nothing(WhyFull::FirstBackup),
            LastBackup::Unusable => return Self::Nothing(WhyFull::LastBackupUnusable),
            LastBackup::Usable(manifest) => manifest,
        };
        if manifest.is_in_progress() || !manifest.single_file.path.is_empty() {
            return Self::Nothing(WhyFull::LastBackupUnusable);
        }
        match (manifest.snapshot_id().map(str::to_owned), manifest.block_bytes()) {
            (None, _) => Self::Nothing(WhyFull::UnknownSnapshot),
            (Some(id), _) if id == snapshot_id => Self::Nothing(WhyFull::SameSnapshot),
            (Some(id), Ok(bytes)) if bytes == block_bytes => {
                Self::Backup { manifest, snapshot_id: id }
            }
            _ => Self::Nothing(WhyFull::OtherBlockSize),
        }
    }

    /// What to ask the source for.
    pub fn since(&self) -> Option<&str> {
        match self {
            Self::Nothing(_) => None,
            Self::Backup { snapshot_id, .. } => Some(snapshot_id),
        }
    }
}

/// The blocks that a backup reads, hashes, and stores where the target lacks them.
#[derive(Clone, Debug, PartialEq)]
pub struct BackupPlan {
    pub basis: Basis,
    pub block_bytes: u64,
    /// Offsets of the blocks to read, ascending.
    pub offsets_bytes: Vec<u64>,
}

impl BackupPlan {
    /// `changed` is the source's answer to [`Basis::since`].
    pub fn between(basis: Basis, changed: Changed, block_bytes: u64) -> Self {
        assert!(
            basis.since().is_some() || matches!(changed, Changed::Everything(_)),
            "a source that is asked for everything gives everything"
        );
        let (basis, ranges) = match (basis, changed) {
            (Basis::Backup { .. }, Changed::Everything(ranges)) => {
                (Basis::Nothing(WhyFull::NoCommonSnapshot), ranges)
            }
            (basis, Changed::Everything(ranges) | Changed::Since(ranges)) => (basis, ranges),
        };
        Self { basis, block_bytes, offsets_bytes: touched_blocks(&ranges, block_bytes) }
    }

    /// What an increment takes over from its basis without reading it, by offset.
    pub fn taken_over(&self) -> Vec<BlockMapping> {
        let Basis::Backup { manifest, .. } = &self.basis else { return Vec::new() };
        let is_read = |mapping: &&BlockMapping| {
            self.offsets_bytes.binary_search(&mapping.offset_bytes).is_ok()
        };
        manifest.mappings().iter().filter(|mapping| !is_read(mapping)).copied().collect()
    }

    /// Reads these blocks, too.
    pub fn add(&mut self, offsets_bytes: impl IntoIterator<Item = u64>) {
        self.offsets_bytes.extend(offsets_bytes);
        self.offsets_bytes.sort_unstable();
        self.offsets_bytes.dedup();
    }

    pub fn is_incremental(&self) -> bool {
        matches!(self.basis, Basis::Backup { .. })
    }

    /// The complete map of the new backup: the basis's, with what was read put over it.
    pub fn complete_map(&self, read: Vec<BlockMapping>) -> Vec<BlockMapping> {
        let Basis::Backup { manifest, .. } = &self.basis else { return read };
        let key = |mapping: &BlockMapping| (mapping.offset_bytes, mapping.checksum);
        let mut map: BTreeMap<u64, BlockChecksum> = manifest.mappings().iter().map(key).collect();
        map.extend(read.iter().map(key));
        let mapping = |(offset_bytes, checksum)| BlockMapping { offset_bytes, checksum };
        map.into_iter().map(mapping).collect()
    }
}

impl fmt::Display for BackupPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.basis {
            Basis::Nothing(why) => write!(f, "full backup, as {why}")?,
            Basis::Backup { manifest, .. } => {
                write!(f, "incremental backup since {}", manifest.name)?
            }
        }
        let blocks = self.offsets_bytes.len() as u64;
        let mebibytes = (blocks * self.block_bytes) as f64 / f64::from(1 << 20);
        write!(f, ": {blocks} blocks to read, {mebibytes} MiB")
    }
}

/// The blocks that sorted ranges touch, each once.
fn touched_blocks(ranges: &[Range<u64>], block_bytes: u64) -> Vec<u64> {
    let mut offsets = Vec::new();
    let mut next = 0;
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        let first = (range.start / block_bytes).max(next);
        next = range.end.div_ceil(block_bytes).max(next);
        offsets.extend((first..next).map(|index| index * block_bytes));
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::CompressionMethod;
    use crate::manifest::SNAPSHOT_ID_LABEL;
    use crate::timestamp::Timestamp;

    const B: u64 = 2 << 20;

    fn last(snapshot_id: Option<&str>) -> BackupManifest {
        let names = ("b1".parse().unwrap(), "v1".parse().unwrap());
        let mut manifest = BackupManifest::stub(&names.0, &names.1, CompressionMethod::Lz4);
        manifest.created_time = Timestamp::now();
        manifest.labels =
            snapshot_id.map(|id| [(SNAPSHOT_ID_LABEL.to_owned(), id.to_owned())].into());
        manifest
    }

    fn choose(mode: BackupMode, last: LastBackup, id: &str, block_bytes: u64) -> Option<WhyFull> {
        match Basis::choose(mode, last, id, block_bytes) {
            Basis::Nothing(why) => Some(why),
            Basis::Backup { .. } => None,
        }
    }

    /// Each line is a way to build an increment on the wrong bytes.
    #[test]
    fn an_increment_needs_a_backup_that_is_known_exactly() {
        let usable = |id| LastBackup::Usable(Box::new(last(id)));
        let auto = BackupMode::Incremental;
        assert_eq!(choose(auto, usable(Some("s1")), "s2", B), None);
        assert_eq!(choose(auto, LastBackup::None, "s2", B), Some(WhyFull::FirstBackup));
        assert_eq!(choose(auto, LastBackup::Unusable, "s2", B), Some(WhyFull::LastBackupUnusable));
        assert_eq!(choose(auto, usable(None), "s2", B), Some(WhyFull::UnknownSnapshot));
        assert_eq!(choose(auto, usable(Some("s1")), "s1", B), Some(WhyFull::SameSnapshot));
        assert_eq!(choose(auto, usable(Some("s1")), "s2", 2 * B), Some(WhyFull::OtherBlockSize));
        assert_eq!(choose(BackupMode::Full, usable(Some("s1")), "s2", B), Some(WhyFull::Asked));
        let mut stub = last(Some("s1"));
        stub.created_time = Timestamp::default();
        let stub = LastBackup::Usable(Box::new(stub));
        assert_eq!(choose(auto, stub, "s2", B), Some(WhyFull::LastBackupUnusable));
    }

    #[test]
    fn a_source_that_lost_the_snapshot_turns_the_plan_into_a_full_one() {
        let basis = Basis::Backup { manifest: last(Some("s1")).into(), snapshot_id: "s1".into() };
        let plan = BackupPlan::between(basis.clone(), Changed::Everything(vec![0..1, 9..10]), B);
        assert_eq!(plan.basis, Basis::Nothing(WhyFull::NoCommonSnapshot));
        assert_eq!(
            plan.to_string(),
            "full backup, as the volume doesn't have the last backup's snapshot any more: \
             1 blocks to read, 2 MiB"
        );
        let plan = BackupPlan::between(basis, Changed::Since(vec![]), B);
        assert_eq!(plan.to_string(), "incremental backup since b1: 0 blocks to read, 0 MiB");
    }

    #[test]
    fn ranges_widen_to_blocks_and_none_is_read_twice() {
        let ranges = [0..4096, 4096..8192, B - 4096..B + 4096, 3 * B..3 * B, 5 * B..7 * B];
        assert_eq!(touched_blocks(&ranges, B), [0, B, 5 * B, 6 * B]);
        assert!(touched_blocks(&[], B).is_empty());
    }

    #[test]
    fn what_was_read_overrides_the_basis_and_the_rest_stays() {
        let of = |offset_bytes, text: &str| BlockMapping {
            offset_bytes,
            checksum: BlockChecksum::of(text.as_bytes()),
        };
        let mut manifest = last(Some("s1"));
        manifest.blocks = Some(vec![of(0, "a"), of(B, "b")]);
        let basis = Basis::Backup { manifest: manifest.into(), snapshot_id: "s1".into() };
        let plan = BackupPlan::between(basis, Changed::Since(vec![B..B + 1, B + 2..B + 3]), B);
        let map = plan.complete_map(vec![of(B, "zeroes"), of(2 * B, "c")]);
        assert_eq!(map, [of(0, "a"), of(B, "zeroes"), of(2 * B, "c")]);
        assert_eq!(plan.taken_over(), [of(0, "a")]);
    }
}
