//! Where the replicas of a new volume go. Pure.

use std::path::PathBuf;

/// A place for replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub path: PathBuf,
    pub free_bytes: u64,
}

/// One disk for each replica: as many different disks as there are, the emptiest first. Volumes
/// are sparse, so what is free now is only an order of preference. `disks` isn't empty.
pub fn place(replicas: u8, disks: &[Disk]) -> Vec<PathBuf> {
    let mut by_room: Vec<_> = disks.iter().collect();
    by_room.sort_by(|a, b| b.free_bytes.cmp(&a.free_bytes).then_with(|| a.path.cmp(&b.path)));
    by_room.iter().cycle().take(replicas.into()).map(|disk| disk.path.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_one_volume_share_a_disk_only_when_there_are_too_few() {
        let disk = |path: &str, free_bytes| Disk { path: path.into(), free_bytes };
        let disks = [disk("/a", 1), disk("/b", 3), disk("/c", 2)];
        assert_eq!(place(2, &disks), ["/b", "/c"].map(PathBuf::from));
        assert_eq!(place(4, &disks), ["/b", "/c", "/a", "/b"].map(PathBuf::from));
        assert_eq!(place(2, &disks[..1]), ["/a", "/a"].map(PathBuf::from));
    }
}
