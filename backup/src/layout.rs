//! Where things are in a target: Longhorn's layout.
//!
//! ```text
//! backupstore/volumes/<h0h1>/<h2h3>/<volume>/volume.cfg        h = hex SHA-512(volume name)
//!                                           /backups/backup_<backup>.cfg
//!                                           /blocks/<c0c1>/<c2c3>/<c>.blk    c = block checksum
//!                                           /locks/lock-<16 hex>.lck
//! ```
//!
//! A key is relative to the target and has no leading slash, as an object's key in S3.

use sha2::{Digest, Sha512};

use crate::block::BlockChecksum;
use crate::name::Name;

pub const STORE_FOLDER: &str = "backupstore";
/// Backups of images; not read here.
pub const BACKING_IMAGES_FOLDER: &str = "backupstore/backing-images/backing-images";
pub const VOLUMES_FOLDER: &str = "backupstore/volumes";

/// The keys of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePaths {
    root: String,
}

impl VolumePaths {
    pub fn of(volume: &Name) -> Self {
        let hash = Sha512::digest(volume.as_str());
        Self { root: format!("{VOLUMES_FOLDER}/{:02x}/{:02x}/{volume}", hash[0], hash[1]) }
    }

    pub fn root(&self) -> &str {
        &self.root
    }
    pub fn volume_manifest(&self) -> String {
        format!("{}/volume.cfg", self.root)
    }
    pub fn backups(&self) -> String {
        format!("{}/backups", self.root)
    }
    pub fn backup_manifest(&self, backup: &Name) -> String {
        format!("{}/backups/backup_{backup}.cfg", self.root)
    }
    pub fn blocks(&self) -> String {
        format!("{}/blocks", self.root)
    }
    pub fn block(&self, checksum: &BlockChecksum) -> String {
        let hex = checksum.to_string();
        format!("{}/blocks/{}/{}/{hex}.blk", self.root, &hex[..2], &hex[2..4])
    }
    pub fn locks(&self) -> String {
        format!("{}/locks", self.root)
    }
    pub fn lock(&self, lock: &str) -> String {
        format!("{}/locks/{lock}.lck", self.root)
    }
}

/// The backup whose manifest has this file name.
pub fn backup_of_file(file: &str) -> Option<Name> {
    file.strip_prefix("backup_")?.strip_suffix(".cfg")?.parse().ok()
}

/// The block that is stored under this key, if the key is one that we or Longhorn would choose.
pub fn block_of_key(key: &str) -> Option<BlockChecksum> {
    key.rsplit('/').next()?.strip_suffix(".blk")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder that a real Longhorn made for this volume name.
    #[test]
    fn a_volume_lies_where_longhorn_puts_it() {
        let paths = VolumePaths::of(&"sample-lz4".parse().unwrap());
        assert_eq!(paths.volume_manifest(), "backupstore/volumes/cb/1e/sample-lz4/volume.cfg");
    }

    #[test]
    fn keys_lead_back_to_what_they_hold() {
        let paths = VolumePaths::of(&"v1".parse().unwrap());
        let checksum = BlockChecksum::of(b"bytes");
        assert_eq!(block_of_key(&paths.block(&checksum)), Some(checksum));
        assert_eq!(block_of_key("blocks/00/11/readme.txt"), None);
        assert_eq!(backup_of_file("backup_b-1.cfg"), Some("b-1".parse().unwrap()));
        for stray in ["backup_.cfg", "backup_b.cfg", "notes.txt", "backup_b1.cfg.tmp.17"] {
            assert_eq!(backup_of_file(stray), None, "{stray}");
        }
    }
}
