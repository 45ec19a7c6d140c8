//! What a backup is made from.

use std::io;
use std::ops::Range;

/// A snapshot of a volume, as the store that holds it shows it to a backup.
///
/// The content must not change while the source is in use; reads come from many threads at once.
pub trait Source: Send + Sync {
    fn volume(&self) -> &str;

    fn size_bytes(&self) -> u64;

    fn snapshot_name(&self) -> &str;

    /// Tells the snapshot from every other one there has ever been, also from one of the same name
    /// in another volume of the same name: for example the volume's random id and the layer's. An
    /// increment is built on a snapshot by this id only, never by its name.
    fn snapshot_id(&self) -> &str;

    /// What differs from the snapshot whose [id](Source::snapshot_id) is `since`. If that one isn't
    /// an ancestor of this snapshot (any more), or `since` is `None`, everything there is.
    fn changed(&self, since: Option<&str>) -> io::Result<Changed>;

    /// Fills `into` with the snapshot's bytes at `offset_bytes`, all layers resolved.
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Ranges of bytes, sorted, without overlaps, within the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// A superset of what differs. What became zero since then is in here too.
    Since(Vec<Range<u64>>),
    /// All ranges that may hold anything but zeroes.
    Everything(Vec<Range<u64>>),
}
