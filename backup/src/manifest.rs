//! The two kinds of manifest: `volume.cfg` (one per volume) and `backup_<name>.cfg`.
//!
//! Owns their exact shape, which is Longhorn's, with its quirks: numbers as decimal strings, and in
//! `volume.cfg` JSON strings inside JSON strings. Promises that a manifest which was parsed is
//! about what its path says, that its blocks are in order, lie on block borders and are as many as
//! it says, that its map is the one that was written if Ankole wrote it, and that names and
//! checksums from it can be put into a path. Bytes of a manifest never cause a panic, nor more
//! memory than its blocks need.

mod bounded;
mod map;

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::map::MapFacts;
use crate::block::{BLOCK_BYTES_DEFAULT, BLOCK_BYTES_MAX, BLOCK_BYTES_UNIT, CompressionMethod};
use crate::json::{decimal, quoted};
use crate::name::Name;
use crate::timestamp::Timestamp;

pub use self::bounded::REST_BYTES_MAX;
pub use self::map::{BLOCKS_MAX, BlockMapping};

/// Label of a backup that tells which snapshot it holds, by the source's own unique id. A name
/// alone isn't enough to build an increment on: it may have been given to another snapshot since.
pub const SNAPSHOT_ID_LABEL: &str = "ankole.io/snapshot-id";
/// Label of a backup with the bytes of the volume at that time. The format has one size for all
/// backups of a volume.
pub const VOLUME_SIZE_LABEL: &str = "ankole.io/volume-size";
/// Label of a backup with a sum of its map and sizes, which the format doesn't have.
pub const MAP_SUM_LABEL: &str = "ankole.io/map-sum";

/// More than any volume has. Bounds what a damaged offset makes us believe.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;

pub const BLOCK_SIZE_PARAMETER: &str = "backup-block-size";
pub const MODE_PARAMETER: &str = "backup-mode";

/// Sorted, as Go writes its maps.
pub type StringMap = BTreeMap<String, String>;

/// What is wrong with the bytes of a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestProblem {
    #[error("is missing")]
    Missing,
    #[error("can't be read to its end")]
    Unreadable(#[source] io::Error),
    #[error("isn't the JSON of a manifest")]
    Json(#[source] serde_json::Error),
    #[error("has more than {REST_BYTES_MAX} bytes besides its blocks")]
    TooBig,
    #[error("is about {found:?}, not {expected}")]
    OtherName { found: String, expected: Name },
    #[error(
        "has a block size of {0:?}; \
         a multiple of {BLOCK_BYTES_UNIT} up to {BLOCK_BYTES_MAX} bytes is supported"
    )]
    BlockSize(String),
    #[error("maps a block to an offset that is no multiple of {block_bytes}")]
    Misaligned { block_bytes: u64 },
    #[error("maps two blocks to offset {0}")]
    MappedTwice(u64),
    #[error("maps a block to offset {offset_bytes}, past the end of {size_bytes} bytes")]
    PastTheEnd { offset_bytes: u64, size_bytes: u64 },
    #[error(
        "lists {listed} blocks of {block_bytes} bytes, but says that they have {stated_bytes} bytes \
         together: blocks are missing from its list"
    )]
    CutShort { listed: u64, block_bytes: u64, stated_bytes: u64 },
    #[error("has another map or size than its sum says: it was damaged")]
    WrongSum,
}

/// `volume.cfg`: what all backups of a volume have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeManifest {
    pub name: String,
    #[serde(rename = "Size", with = "decimal")]
    pub size_bytes: u64,
    /// Those of the last backup.
    #[serde(default)]
    pub labels: Option<StringMap>,
    #[serde(default)]
    pub created_time: Timestamp,
    /// Empty until the first backup is complete.
    #[serde(default)]
    pub last_backup_name: String,
    /// The last backup's [`snapshot_created_at`](BackupManifest::snapshot_created_at).
    #[serde(default)]
    pub last_backup_at: Timestamp,
    /// Objects below `blocks/`, of all backups.
    #[serde(default, with = "decimal")]
    pub block_count: u64,
    #[serde(default, with = "quoted")]
    pub backing_image_name: String,
    #[serde(default, with = "quoted")]
    pub backing_image_checksum: String,
    #[serde(
        default = "method_before_methods",
        serialize_with = "quoted::serialize",
        deserialize_with = "quoted_method"
    )]
    pub compression_method: CompressionMethod,
    #[serde(default, with = "quoted")]
    pub storage_class_name: String,
    #[serde(default = "data_engine_before_v2", with = "quoted")]
    pub data_engine: String,
    /// Fields of a later Longhorn, kept when we rewrite the file.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl VolumeManifest {
    /// As it is written before the first block of the first backup.
    pub fn new(volume: &Name, size_bytes: u64, method: CompressionMethod, now: Timestamp) -> Self {
        Self {
            name: volume.to_string(),
            size_bytes,
            labels: None,
            created_time: now,
            last_backup_name: String::new(),
            last_backup_at: Timestamp::default(),
            block_count: 0,
            backing_image_name: String::new(),
            backing_image_checksum: String::new(),
            compression_method: method,
            storage_class_name: String::new(),
            data_engine: data_engine_before_v2(),
            unknown: BTreeMap::new(),
        }
    }

    pub fn parse(bytes: &[u8], volume: &Name) -> Result<Self, ManifestProblem> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestProblem::Json)?;
        check_name(&manifest.name, volume)?;
        Ok(manifest)
    }
}

/// `backup_<name>.cfg`: one backup, with its complete map of blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BackupManifest {
    pub name: String,
    pub volume_name: String,
    /// Empty while the backup is being made.
    #[serde(default)]
    pub snapshot_name: String,
    /// When the backup began, as in Longhorn; orders the backups of a volume.
    #[serde(default)]
    pub snapshot_created_at: Timestamp,
    /// When the backup was complete; empty while it is being made.
    #[serde(default)]
    pub created_time: Timestamp,
    /// Mapped blocks × block size.
    #[serde(rename = "Size", default, with = "decimal")]
    pub mapped_bytes: u64,
    #[serde(default)]
    pub labels: Option<StringMap>,
    #[serde(default)]
    pub parameters: Option<StringMap>,
    #[serde(default)]
    pub is_incremental: bool,
    #[serde(
        default = "method_before_methods",
        serialize_with = "plain_method::serialize",
        deserialize_with = "plain_method::deserialize"
    )]
    pub compression_method: CompressionMethod,
    /// Compressed bytes of the objects that this backup made.
    #[serde(rename = "NewlyUploadedDataSize", default, with = "decimal")]
    pub newly_uploaded_bytes: u64,
    /// Compressed bytes of the objects that were there and were written again.
    #[serde(rename = "ReUploadedDataSize", default, with = "decimal")]
    pub reuploaded_bytes: u64,
    #[serde(default)]
    pub(crate) processing_blocks: NotOurs,
    /// The whole map, by offset; what isn't listed is zero. An increment's lists everything too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Vec<BlockMapping>>,
    #[serde(default)]
    pub single_file: SingleFile,
}

/// A backup that is one file instead of blocks; only Longhorn makes those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SingleFile {
    #[serde(rename = "FilePath", default)]
    pub path: String,
}

impl BackupManifest {
    /// The stub that says "being made", stored before the first block.
    pub fn stub(backup: &Name, volume: &Name, method: CompressionMethod) -> Self {
        Self {
            name: backup.to_string(),
            volume_name: volume.to_string(),
            snapshot_name: String::new(),
            snapshot_created_at: Timestamp::default(),
            created_time: Timestamp::default(),
            mapped_bytes: 0,
            labels: None,
            parameters: None,
            is_incremental: false,
            compression_method: method,
            newly_uploaded_bytes: 0,
            reuploaded_bytes: 0,
            processing_blocks: NotOurs,
            blocks: None,
            single_file: SingleFile::default(),
        }
    }

    pub fn parse(bytes: &[u8], volume: &Name, backup: &Name) -> Result<Self, ManifestProblem> {
        Self::read(bytes, volume, backup)
    }

    /// `Blocks` may come in any order and are sorted here.
    pub fn read(
        reader: impl io::Read,
        volume: &Name,
        backup: &Name,
    ) -> Result<Self, ManifestProblem> {
        let bounded::Parts { rest, map, facts } = bounded::read(reader, true)?;
        let mut manifest = Self::from_rest(rest, &facts, volume, backup)?;
        manifest.blocks = map;
        if let Some(blocks) = &mut manifest.blocks {
            blocks.sort_unstable_by_key(|mapping| mapping.offset_bytes);
            if let Some(pair) = blocks.windows(2).find(|p| p[0].offset_bytes == p[1].offset_bytes) {
                return Err(ManifestProblem::MappedTwice(pair[0].offset_bytes));
            }
        }
        Ok(manifest)
    }

    fn from_rest(
        rest: serde_json::Value,
        facts: &MapFacts,
        volume: &Name,
        backup: &Name,
    ) -> Result<Self, ManifestProblem> {
        let manifest: Self = serde_json::from_value(rest).map_err(ManifestProblem::Json)?;
        check_name(&manifest.name, backup)?;
        check_name(&manifest.volume_name, volume)?;
        manifest.check_map(facts)?;
        Ok(manifest)
    }

    fn check_map(&self, facts: &MapFacts) -> Result<(), ManifestProblem> {
        let block_bytes = self.block_bytes()?;
        if !facts.divisor_bytes.is_multiple_of(block_bytes) {
            return Err(ManifestProblem::Misaligned { block_bytes });
        }
        let size_bytes = VOLUME_BYTES_MAX;
        match facts.last_offset_bytes {
            Some(offset_bytes) if offset_bytes > size_bytes - block_bytes => {
                return Err(ManifestProblem::PastTheEnd { offset_bytes, size_bytes });
            }
            _ => {}
        }
        let (listed, stated_bytes) = (facts.blocks, self.mapped_bytes);
        let is_of_blocks = !self.is_in_progress() && self.single_file.path.is_empty();
        if is_of_blocks && stated_bytes != listed * block_bytes {
            return Err(ManifestProblem::CutShort { listed, block_bytes, stated_bytes });
        }
        let Some(sum) = self.label(MAP_SUM_LABEL) else { return Ok(()) };
        let is_right = facts.is_ascending
            && self.labelled_size().is_some_and(|size| facts.sum(block_bytes, size) == sum);
        if is_right { Ok(()) } else { Err(ManifestProblem::WrongSum) }
    }

    pub fn is_in_progress(&self) -> bool {
        self.created_time.is_empty()
    }

    pub fn mappings(&self) -> &[BlockMapping] {
        self.blocks.as_deref().unwrap_or_default()
    }

    /// The source's id of the snapshot; `None` if another program made this backup.
    pub fn snapshot_id(&self) -> Option<&str> {
        self.label(SNAPSHOT_ID_LABEL)
    }

    /// Bytes of the volume when this backup was made; `None` if another program made it, or an
    /// Ankole that didn't say it. One that says it needs nothing but its own manifest and blocks.
    pub fn own_size_bytes(&self) -> Option<u64> {
        self.labelled_size().filter(|_| self.label(MAP_SUM_LABEL).is_some())
    }

    /// Lets the manifest say the size of its volume, with a sum over that and its map.
    pub(crate) fn seal(&mut self, size_bytes: u64) -> Result<(), ManifestProblem> {
        let sum = MapFacts::of(self.mappings()).sum(self.block_bytes()?, size_bytes);
        let labels = self.labels.get_or_insert_default();
        labels.insert(VOLUME_SIZE_LABEL.to_owned(), size_bytes.to_string());
        labels.insert(MAP_SUM_LABEL.to_owned(), sum);
        Ok(())
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }

    fn labelled_size(&self) -> Option<u64> {
        self.label(VOLUME_SIZE_LABEL)?.parse().ok()
    }

    pub fn block_bytes(&self) -> Result<u64, ManifestProblem> {
        let recorded = self.parameters.as_ref().and_then(|map| map.get(BLOCK_SIZE_PARAMETER));
        let text = recorded.map_or("", String::as_str);
        if matches!(text, "" | "0") {
            return Ok(BLOCK_BYTES_DEFAULT);
        }
        parse_quantity(text)
            .filter(|bytes| is_block_size(*bytes))
            .ok_or_else(|| ManifestProblem::BlockSize(text.chars().take(40).collect()))
    }

    /// Whether every block lies within a volume of `size_bytes`.
    pub fn fits(&self, size_bytes: u64) -> bool {
        self.end_bytes() <= size_bytes
    }

    /// Where the last mapped block ends.
    pub fn end_bytes(&self) -> u64 {
        let block_bytes = self.block_bytes().unwrap_or(BLOCK_BYTES_DEFAULT);
        self.mappings().last().map_or(0, |last| last.offset_bytes.saturating_add(block_bytes))
    }
}

/// A backup's manifest without its map: what a list needs, in the memory that labels take.
#[derive(Clone, Debug, PartialEq)]
pub struct BackupSummary {
    pub manifest: BackupManifest,
    /// As of [`BackupManifest::end_bytes`].
    pub end_bytes: u64,
}

impl BackupSummary {
    /// Checks what [`BackupManifest::read`] checks, but for two blocks at one offset in a list
    /// that isn't in order.
    pub fn read(
        reader: impl io::Read,
        volume: &Name,
        backup: &Name,
    ) -> Result<Self, ManifestProblem> {
        let bounded::Parts { rest, facts, .. } = bounded::read(reader, false)?;
        let manifest = BackupManifest::from_rest(rest, &facts, volume, backup)?;
        let block_bytes = manifest.block_bytes()?;
        let end_bytes = facts.last_offset_bytes.map_or(0, |offset| offset + block_bytes);
        Ok(Self { manifest, end_bytes })
    }
}

pub fn is_block_size(bytes: u64) -> bool {
    (1..=BLOCK_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(BLOCK_BYTES_UNIT)
}

/// A quantity as Kubernetes writes it, such as `2097152`, `16Mi` or `2M`; `None` if it isn't one.
fn parse_quantity(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let factor: u64 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn check_name(found: &str, expected: &Name) -> Result<(), ManifestProblem> {
    if found == expected.as_str() {
        return Ok(());
    }
    let found = found.chars().take(80).collect();
    Err(ManifestProblem::OtherName { found, expected: expected.clone() })
}

/// What stores that name no method are written in.
fn method_before_methods() -> CompressionMethod {
    CompressionMethod::Gzip
}

fn data_engine_before_v2() -> String {
    "v1".to_owned()
}

fn quoted_method<'de, D: Deserializer<'de>>(d: D) -> Result<CompressionMethod, D::Error> {
    plain_method::parse(&quoted::deserialize(d)?)
}

mod plain_method {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        method: &CompressionMethod,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(method)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<CompressionMethod, D::Error> {
        parse(&String::deserialize(deserializer)?)
    }

    pub(super) fn parse<E: serde::de::Error>(text: &str) -> Result<CompressionMethod, E> {
        match text {
            "" => Ok(method_before_methods()),
            text => text.parse().map_err(E::custom),
        }
    }
}

/// `ProcessingBlocks`, which only Longhorn uses: written as `{}`, ignored on read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NotOurs;

impl Serialize for NotOurs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(std::iter::empty::<((), ())>())
    }
}

impl<'de> Deserialize<'de> for NotOurs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::BlockChecksum;
    use crate::json;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn backup_json(extra: &str) -> String {
        format!(r#"{{"Name":"b1","VolumeName":"v1","CreatedTime":"2026-11-20T21:02:46Z"{extra}}}"#)
    }

    fn parse_backup(extra: &str) -> Result<BackupManifest, ManifestProblem> {
        BackupManifest::parse(backup_json(extra).as_bytes(), &name("v1"), &name("b1"))
    }

    fn block(offset: u64) -> String {
        format!(r#"{{"Offset":{offset},"BlockChecksum":"{}"}}"#, BlockChecksum::of(b"x"))
    }

    /// A store that an older Longhorn wrote has neither methods nor an engine nor a block size.
    #[test]
    fn absent_fields_mean_what_older_stores_meant() {
        let old = br#"{"Name":"v1","Size":"16777216"}"#;
        let volume = VolumeManifest::parse(old, &name("v1")).unwrap();
        assert_eq!(volume.compression_method, CompressionMethod::Gzip);
        assert_eq!(volume.data_engine, "v1");
        let backup = parse_backup("").unwrap();
        assert_eq!(backup.compression_method, CompressionMethod::Gzip);
        assert_eq!(backup.block_bytes().unwrap(), 2 << 20);
        assert!(backup.mappings().is_empty());
    }

    /// Longhorn must find again what it wrote, even what this version knows nothing of.
    #[test]
    fn fields_of_a_later_longhorn_survive_a_rewrite() {
        let bytes = br#"{"Name":"v1","Size":"1","Future":{"a":[1,2.5,null]},"Labels":{"l":"<&>"}}"#;
        let volume = VolumeManifest::parse(bytes, &name("v1")).unwrap();
        let text = String::from_utf8(json::to_vec(&volume)).unwrap();
        assert!(text.contains(r#""Future":{"a":[1,2.5,null]}"#), "{text}");
        assert!(text.contains(r#""l":"\u003c\u0026\u003e""#), "{text}");
        assert!(text.contains(r#""CompressionMethod":"\"gzip\"""#), "{text}");
        assert!(text.contains(r#""BackingImageName":"\"\"""#), "{text}");
    }

    #[test]
    fn block_sizes_are_quantities_within_limits() {
        let sized = |text: &str| {
            parse_backup(&format!(r#","Parameters":{{"backup-block-size":"{text}"}}"#))
                .and_then(|backup| backup.block_bytes())
        };
        assert_eq!(sized("16Mi").unwrap(), 16 << 20);
        assert_eq!(sized("2097152").unwrap(), 2 << 20);
        assert_eq!(sized("0").unwrap(), 2 << 20);
        assert_eq!(sized("4096k").unwrap(), 4_096_000);
        for bad in
            ["1", "4095", "-1", "1Ti", "Mi", "99999999999999999999", "18446744073709551615Gi"]
        {
            assert!(matches!(sized(bad), Err(ManifestProblem::BlockSize(_))), "{bad}");
        }
    }

    #[test]
    fn a_map_that_can_not_be_true_is_refused() {
        let unordered = format!(r#","Size":"4194304","Blocks":[{},{}]"#, block(4 << 20), block(0));
        let parsed = parse_backup(&unordered).unwrap();
        assert_eq!(parsed.mappings()[0].offset_bytes, 0);
        assert_eq!(parsed.end_bytes(), 6 << 20);
        assert!(parsed.fits(6 << 20) && !parsed.fits(4 << 20));

        let twice = format!(r#","Size":"4194304","Blocks":[{},{}]"#, block(0), block(0));
        assert!(matches!(parse_backup(&twice), Err(ManifestProblem::MappedTwice(0))));
        let odd = format!(r#","Size":"4194304","Blocks":[{},{}]"#, block(4 << 20), block(4096));
        assert!(matches!(parse_backup(&odd), Err(ManifestProblem::Misaligned { .. })));
        for far in [VOLUME_BYTES_MAX, u64::MAX - (2 << 20) + 1] {
            let far = parse_backup(&format!(r#","Size":"2097152","Blocks":[{}]"#, block(far)));
            assert!(matches!(far, Err(ManifestProblem::PastTheEnd { .. })), "{far:?}");
        }
        // Any program's backup says how many bytes its blocks have.
        for (size, listed) in [("2097152", 2), ("6291456", 2), ("", 1), ("2097152", 0)] {
            let blocks: Vec<_> = (0..listed).map(|index| block(index << 21)).collect();
            let cut = format!(r#","Size":"{size}","Blocks":[{}]"#, blocks.join(","));
            assert!(matches!(parse_backup(&cut), Err(ManifestProblem::CutShort { .. })), "{cut}");
        }
    }

    /// What a list reads is what a restore reads, but for the map.
    #[test]
    fn a_summary_is_the_manifest_without_its_map() {
        let text = format!(r#","Size":"4194304","Blocks":[{},{}]"#, block(0), block(4 << 20));
        let whole = parse_backup(&text).unwrap();
        let text = backup_json(&text);
        let summary = BackupSummary::read(text.as_bytes(), &name("v1"), &name("b1")).unwrap();
        assert_eq!(summary.end_bytes, whole.end_bytes());
        assert_eq!(summary.manifest, BackupManifest { blocks: None, ..whole });
    }

    #[test]
    fn a_manifest_must_be_about_what_its_path_says() {
        let bytes = backup_json("");
        let other = BackupManifest::parse(bytes.as_bytes(), &name("v1"), &name("b2"));
        assert!(matches!(other, Err(ManifestProblem::OtherName { .. })));
        let other = BackupManifest::parse(bytes.as_bytes(), &name("v2"), &name("b1"));
        assert!(matches!(other, Err(ManifestProblem::OtherName { .. })));
        assert!(parse_backup(r#","Blocks":[{"Offset":0,"BlockChecksum":"../../x"}]"#).is_err());
        assert!(parse_backup(r#","CompressionMethod":"zstd""#).is_err());
        assert!(parse_backup(r#","Size":"-1""#).is_err());
        assert!(parse_backup(r#","Size":"9223372036854775808""#).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..256), at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let _ = VolumeManifest::parse(&bytes, &name("v1"));
            let _ = BackupManifest::parse(&bytes, &name("v1"), &name("b1"));
            let blocks = format!(r#","Size":"2097152","Blocks":[{}]"#, block(0));
            let mut nearly = backup_json(&blocks).into_bytes();
            let at = at.index(nearly.len());
            nearly[at] = byte;
            let whole = BackupManifest::parse(&nearly, &name("v1"), &name("b1"));
            let summary = BackupSummary::read(&nearly[..], &name("v1"), &name("b1"));
            prop_assert_eq!(whole.is_ok(), summary.is_ok());
            nearly.truncate(at);
            prop_assert!(BackupManifest::parse(&nearly, &name("v1"), &name("b1")).is_err());
        }

        /// What we write is what we read.
        #[test]
        fn labels_and_names_survive_a_round_trip(labels in prop::collection::btree_map(".*", ".*", 0..4)) {
            let mut stub = BackupManifest::stub(&name("b1"), &name("v1"), CompressionMethod::Lz4);
            stub.labels = Some(labels.clone());
            let parsed = BackupManifest::parse(&json::to_vec(&stub), &name("v1"), &name("b1")).unwrap();
            prop_assert_eq!(&parsed, &stub);
            let mut volume =
                VolumeManifest::new(&name("v1"), 1 << 30, CompressionMethod::None, Timestamp::now());
            volume.labels = Some(labels);
            let parsed = VolumeManifest::parse(&json::to_vec(&volume), &name("v1")).unwrap();
            prop_assert_eq!(parsed, volume);
        }
    }
}
