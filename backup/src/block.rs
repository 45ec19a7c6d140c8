//! A backup block: its name, and its bytes as they are stored.
//!
//! A block is a fixed number of bytes of the volume, named by its own content, so that equal blocks
//! are stored once. Promises: what [`decode`] returns is exactly as long as asked for and has the
//! checksum asked for; a hostile object costs no more memory than a block.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use flate2::GzBuilder;
use flate2::read::GzDecoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha512};

/// Bytes of a block unless a backup says otherwise.
pub const BLOCK_BYTES_DEFAULT: u64 = 2 << 20;
/// Longhorn offers 2 and 16 MiB. The limit bounds the memory that a manifest can make us use.
pub const BLOCK_BYTES_MAX: u64 = 64 << 20;
/// Blocks are whole numbers of these: the unit in which a source reports changes.
pub const BLOCK_BYTES_UNIT: u64 = 4096;

const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Names a block: the first 32 bytes of the SHA-512 of its uncompressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockChecksum([u8; 32]);

impl BlockChecksum {
    pub fn of(bytes: &[u8]) -> Self {
        let hash = Sha512::digest(bytes);
        Self(std::array::from_fn(|index| hash[index]))
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BlockChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a block checksum is 64 lower-case hex digits, not {0:?}")]
pub struct ChecksumError(String);

impl FromStr for BlockChecksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Self, ChecksumError> {
        let malformed = || ChecksumError(text.chars().take(80).collect());
        // Upper case is refused: the object's key is made of these digits, and keys have a case.
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 64 || !text.bytes().all(is_digit) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| malformed())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for BlockChecksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlockChecksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a volume's blocks are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressionMethod {
    #[default]
    Lz4,
    Gzip,
    None,
}

impl fmt::Display for CompressionMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::None => "none",
        })
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a compression method: lz4, gzip and none are")]
pub struct CompressionMethodError(String);

impl FromStr for CompressionMethod {
    type Err = CompressionMethodError;

    fn from_str(text: &str) -> Result<Self, CompressionMethodError> {
        match text {
            "lz4" => Ok(Self::Lz4),
            "gzip" => Ok(Self::Gzip),
            "none" => Ok(Self::None),
            other => Err(CompressionMethodError(other.chars().take(80).collect())),
        }
    }
}

/// The object that stores `block`.
pub fn encode(method: CompressionMethod, block: &[u8]) -> Vec<u8> {
    const IN_MEMORY: &str = "writing to a Vec doesn't fail";
    match method {
        CompressionMethod::Lz4 => {
            // FLG 0x64 and BD 0x70, as Longhorn writes: other readers of the store have met no
            // other header.
            let frame = FrameInfo::new()
                .block_mode(BlockMode::Independent)
                .block_size(BlockSize::Max4MB)
                .content_checksum(true);
            let mut encoder = FrameEncoder::with_frame_info(frame, Vec::with_capacity(block.len()));
            encoder.write_all(block).expect(IN_MEMORY);
            encoder.finish().expect(IN_MEMORY)
        }
        CompressionMethod::Gzip => {
            let output = Vec::with_capacity(block.len());
            let mut encoder = GzBuilder::new().write(output, flate2::Compression::default());
            encoder.write_all(block).expect(IN_MEMORY);
            encoder.finish().expect(IN_MEMORY)
        }
        CompressionMethod::None => block.to_vec(),
    }
}

/// More bytes than any object of a block can have: incompressible data grows a little.
pub const fn object_bytes_max(block_bytes: u64) -> u64 {
    block_bytes + block_bytes / 16 + 65536
}

/// Whether an object of so many bytes can be that of a block. Nothing is packed better than 1032 to
/// 1 by gzip, nor than 255 to 1 by lz4.
pub fn can_hold_a_block(object_bytes: u64, block_bytes: u64) -> bool {
    (block_bytes / 1032..=object_bytes_max(block_bytes)).contains(&object_bytes) && object_bytes > 0
}

/// Why an object isn't the block that it is named for.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("neither lz4, gzip, nor {block_bytes} plain bytes, but {object_bytes} other ones")]
    UnknownFormat { object_bytes: usize, block_bytes: u64 },
    #[error("damaged {method} data")]
    Damaged { method: CompressionMethod, source: io::Error },
    #[error("holds {held_bytes} bytes, not the {block_bytes} of a block")]
    WrongLength { held_bytes: u64, block_bytes: u64 },
    #[error("holds other bytes than its name says (they hash to {found})")]
    WrongChecksum { found: BlockChecksum },
}

/// The block that `object` stores.
///
/// `recorded` is only what the manifest says: as objects are never written again when a block is
/// met a second time, a volume may hold a mix, and the object's own header decides.
pub fn decode(
    recorded: CompressionMethod,
    object: &[u8],
    block_bytes: u64,
    checksum: &BlockChecksum,
) -> Result<Vec<u8>, DecodeError> {
    let method = method_of(recorded, object, block_bytes)
        .ok_or(DecodeError::UnknownFormat { object_bytes: object.len(), block_bytes })?;
    // One byte more than a block shows that there is too much, without reading all of it.
    let bounded = |reader: &mut dyn Read| {
        let mut block = Vec::with_capacity(block_bytes as usize + 1);
        reader.take(block_bytes + 1).read_to_end(&mut block)?;
        Ok(block)
    };
    let block = match method {
        CompressionMethod::Lz4 => bounded(&mut FrameDecoder::new(object)),
        CompressionMethod::Gzip => bounded(&mut GzDecoder::new(object)),
        CompressionMethod::None => bounded(&mut &object[..]),
    }
    .map_err(|source| DecodeError::Damaged { method, source })?;
    if block.len() as u64 != block_bytes {
        return Err(DecodeError::WrongLength { held_bytes: block.len() as u64, block_bytes });
    }
    let found = BlockChecksum::of(&block);
    if found != *checksum {
        return Err(DecodeError::WrongChecksum { found });
    }
    Ok(block)
}

fn method_of(
    recorded: CompressionMethod,
    object: &[u8],
    block_bytes: u64,
) -> Option<CompressionMethod> {
    let plain = (object.len() as u64 == block_bytes).then_some(CompressionMethod::None);
    let packed = if object.starts_with(&LZ4_MAGIC) {
        Some(CompressionMethod::Lz4)
    } else if object.starts_with(&GZIP_MAGIC) {
        Some(CompressionMethod::Gzip)
    } else {
        None
    };
    match recorded {
        // A plain block may begin with any bytes, so its length is the better sign.
        CompressionMethod::None => plain.or(packed),
        CompressionMethod::Lz4 | CompressionMethod::Gzip => packed.or(plain),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const METHODS: [CompressionMethod; 3] =
        [CompressionMethod::Lz4, CompressionMethod::Gzip, CompressionMethod::None];
    const BLOCK_BYTES: usize = 64 << 10;

    fn text() -> Vec<u8> {
        b"the quick brown ankole jumps over the lazy dog. ".repeat(2000)[..BLOCK_BYTES].to_vec()
    }

    #[test]
    fn every_method_gives_back_the_block() {
        for block in [text(), vec![0; BLOCK_BYTES], LZ4_MAGIC.repeat(BLOCK_BYTES / 4)] {
            let checksum = BlockChecksum::of(&block);
            for written in METHODS {
                let object = encode(written, &block);
                assert!(object.len() as u64 <= object_bytes_max(BLOCK_BYTES as u64));
                let decoded = decode(written, &object, BLOCK_BYTES as u64, &checksum).unwrap();
                assert!(decoded == block, "{written}");
            }
        }
    }

    /// A block that is sound must never be taken for one that isn't: it would be stored again and
    /// again. What can't be sound is what writers that died, and full disks, leave.
    #[test]
    fn an_objects_size_tells_what_can_not_be_a_block() {
        for block_bytes in [4096, 64 << 10, 2 << 20, 16 << 20_u64] {
            for method in METHODS {
                let object = encode(method, &vec![0; block_bytes as usize]);
                assert!(can_hold_a_block(object.len() as u64, block_bytes), "{method}");
            }
            for bad in [0, block_bytes / 2000, block_bytes * 2 + 65536] {
                assert!(!can_hold_a_block(bad, block_bytes), "{bad} of {block_bytes}");
            }
        }
    }

    /// Dedup never rewrites an object, so after a change of method a volume holds both kinds.
    #[test]
    fn the_header_decides_when_the_recorded_method_is_another() {
        let checksum = BlockChecksum::of(&text());
        for written in METHODS {
            let object = encode(written, &text());
            for recorded in METHODS {
                let decoded = decode(recorded, &object, BLOCK_BYTES as u64, &checksum);
                assert!(decoded.is_ok_and(|block| block == text()), "{written} as {recorded}");
            }
        }
    }

    /// Longhorn's reader has only ever seen these headers.
    #[test]
    fn headers_are_those_that_longhorn_writes() {
        let lz4 = encode(CompressionMethod::Lz4, &text());
        assert_eq!(lz4[..7], [0x04, 0x22, 0x4d, 0x18, 0x64, 0x70, 0xb9]);
        let gzip = encode(CompressionMethod::Gzip, &text());
        assert_eq!(gzip[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
    }

    #[test]
    fn a_bomb_stops_at_the_size_of_a_block() {
        let checksum = BlockChecksum::of(&text());
        let zeroes = vec![0; 64 << 20];
        for method in [CompressionMethod::Lz4, CompressionMethod::Gzip] {
            let bomb = encode(method, &zeroes);
            let error = decode(method, &bomb, BLOCK_BYTES as u64, &checksum).unwrap_err();
            let held = BLOCK_BYTES as u64 + 1;
            assert!(
                matches!(error, DecodeError::WrongLength { held_bytes, .. } if held_bytes == held),
                "{error}"
            );
        }
    }

    #[test]
    fn a_checksum_is_the_first_half_of_sha512_in_lower_case() {
        let hex = BlockChecksum::of(b"abc").to_string();
        assert_eq!(hex, "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a");
        assert_eq!(hex.parse(), Ok(BlockChecksum::of(b"abc")));
        assert!(hex.to_uppercase().parse::<BlockChecksum>().is_err());
        assert!("../../../../etc/passwd".parse::<BlockChecksum>().is_err());
        assert!("é".repeat(32).parse::<BlockChecksum>().is_err());
    }

    proptest! {
        /// One changed byte, or a cut, in any stored object must never pass for the block.
        #[test]
        fn damage_is_an_error_or_harmless_but_never_wrong_bytes(
            method in prop::sample::select(&METHODS[..]),
            at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<bool>(),
        ) {
            let mut object = encode(method, &text());
            let at = at.index(object.len());
            if cut { object.truncate(at) } else { object[at] ^= flip }
            if let Ok(block) = decode(method, &object, BLOCK_BYTES as u64, &BlockChecksum::of(&text())) {
                prop_assert!(block == text());
            }
        }

        #[test]
        fn garbage_behind_a_valid_header_is_refused(
            mut object in prop::collection::vec(any::<u8>(), 0..4096),
            header in prop::sample::select(vec![
                &[][..], &[0x04, 0x22, 0x4d, 0x18, 0x64, 0x70, 0xb9], &[0x04, 0x22, 0x4d, 0x18],
                &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff],
            ]),
        ) {
            object.splice(0..0, header.iter().copied());
            for method in METHODS {
                prop_assert!(
                    decode(method, &object, BLOCK_BYTES as u64, &BlockChecksum::of(&text())).is_err()
                );
            }
        }
    }
}
