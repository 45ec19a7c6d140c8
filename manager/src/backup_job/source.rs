//! A snapshot as the backup sees it, read from whichever in-sync replica answers.
//!
//! Promises that no byte comes from a copy that lacks something: a reader is trusted only if the
//! engine says, after the reader's session began, that the replica is in sync. From then on the
//! sealed layers of that session are those of the volume, also if the replica leaves the set; a
//! rebuild of the replica ends the session.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ankole_backup::{Changed, Source};
use ankole_replica::admin::{Answer, EngineStatus, ReplicaMode, Request};
use ankole_replica::chain::ChainInfo;
use ankole_replica::listen::Address;
use ankole_replica::reader::{ReaderError, ReplicaReader};
use ankole_replica::types::{LayerId, ReplicaId};

use super::work::Observer;
use crate::agent::admin;
use crate::api::error::chain;
use crate::api::job::VolumeAccess;
use crate::api::snapshot::SnapshotStatus;

const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// How often all replicas are tried before a read fails, and the pause between: together longer
/// than an engine takes to be replaced.
pub(super) const ROUNDS: usize = 10;
pub(super) const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct SnapshotSource<'a> {
    volume: &'a VolumeAccess,
    observer: &'a dyn Observer,
    snapshot: SnapshotStatus,
    id: String,
    replicas: Mutex<Replicas>,
}

/// Readers that nobody uses now, and which replica is asked first.
#[derive(Default)]
struct Replicas {
    preferred: usize,
    idle: Vec<(ReplicaId, ReplicaReader)>,
}

/// Why one replica gave nothing.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Reader(#[from] ReaderError),
    #[error("replica {replica} has the address {address:?}")]
    Address { replica: ReplicaId, address: String },
    #[error("replica {0} isn't in sync")]
    NotInSync(ReplicaId),
    #[error("replica {replica} has no snapshot {snapshot} any more; was it removed?")]
    NoSnapshot { replica: ReplicaId, snapshot: String },
    #[error("the engine doesn't say which replicas are in sync")]
    NoStatus,
}

impl<'a> SnapshotSource<'a> {
    pub(super) fn new(
        volume: &'a VolumeAccess,
        observer: &'a dyn Observer,
        snapshot: SnapshotStatus,
    ) -> Self {
        let id = snapshot_id(&volume.uid, snapshot.layer);
        Self { volume, observer, snapshot, id, replicas: Mutex::default() }
    }

    /// Asks one replica after the other until one answers.
    fn ask<T>(
        &self,
        mut ask: impl FnMut(&mut ReplicaReader) -> Result<T, ReaderError>,
    ) -> io::Result<T> {
        let addresses = &self.volume.replicas;
        let mut problems = Vec::new();
        for round in 0..ROUNDS {
            if round > 0 {
                std::thread::sleep(PAUSE);
            }
            if self.observer.is_stopping() {
                return Err(io::Error::other("it is to end"));
            }
            problems.clear();
            let first = self.lock().preferred;
            for at in (0..addresses.len()).map(|step| (first + step) % addresses.len()) {
                match self.ask_one(at, &mut ask) {
                    Ok(answer) => return Ok(answer),
                    Err(problem) => problems.push(chain(&problem)),
                }
            }
        }
        Err(io::Error::other(format!("no replica can be read: {}", problems.join("; "))))
    }

    fn ask_one<T>(
        &self,
        at: usize,
        ask: &mut impl FnMut(&mut ReplicaReader) -> Result<T, ReaderError>,
    ) -> Result<T, Problem> {
        let replica = &self.volume.replicas[at].replica;
        let mut reader = self.reader(at).inspect_err(|_| self.avoid(at))?;
        let answer = ask(&mut reader);
        match &answer {
            Err(error) => {
                tracing::warn!(volume = %self.volume.name, %replica, error = chain(error),
                    "a backup asks another replica");
                self.avoid(at);
            }
            Ok(_) => self.lock().idle.push((replica.clone(), reader)),
        }
        Ok(answer?)
    }

    fn reader(&self, at: usize) -> Result<ReplicaReader, Problem> {
        let wanted = &self.volume.replicas[at];
        let replica = &wanted.replica;
        {
            let idle = &mut self.lock().idle;
            if let Some(found) = idle.iter().position(|(of, _)| of == replica) {
                return Ok(idle.swap_remove(found).1);
            }
        }
        let address: Address = wanted.address.parse().map_err(|_| Problem::Address {
            replica: replica.clone(),
            address: wanted.address.clone(),
        })?;
        let mut reader = ReplicaReader::connect(&address, &self.volume.name, replica)?;
        // In this order: see the head of this file.
        let status = self.status()?;
        let is_in_sync = status
            .replicas
            .iter()
            .any(|present| present.replica == *replica && present.mode == ReplicaMode::ReadWrite);
        if !is_in_sync {
            return Err(Problem::NotInSync(replica.clone()));
        }
        let has_snapshot = reader.chain()?.layer(self.snapshot.layer).is_some_and(|layer| {
            let name = layer.seal.as_ref().and_then(|seal| seal.name.as_deref());
            !layer.removed && name == Some(&self.snapshot.name)
        });
        if !has_snapshot {
            let (replica, snapshot) = (replica.clone(), self.snapshot.name.clone());
            return Err(Problem::NoSnapshot { replica, snapshot });
        }
        Ok(reader)
    }

    fn status(&self) -> Result<Box<EngineStatus>, Problem> {
        match admin::ask(&self.volume.admin, &Request::Status, STATUS_TIMEOUT) {
            Ok(Answer::Status(status)) => Ok(status),
            _ => Err(Problem::NoStatus),
        }
    }

    /// The next request begins with another replica, and this one's other readers are closed.
    fn avoid(&self, at: usize) {
        let replica = &self.volume.replicas[at].replica;
        let mut replicas = self.lock();
        replicas.idle.retain(|(of, _)| of != replica);
        if replicas.preferred == at {
            replicas.preferred = (at + 1) % self.volume.replicas.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Replicas> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for SnapshotSource<'_> {
    fn volume(&self) -> &str {
        &self.volume.name
    }
    fn size_bytes(&self) -> u64 {
        self.snapshot.size_bytes
    }
    fn snapshot_name(&self) -> &str {
        &self.snapshot.name
    }
    fn snapshot_id(&self) -> &str {
        &self.id
    }

    fn changed(&self, since: Option<&str>) -> io::Result<Changed> {
        let upto = self.snapshot.layer;
        let since = since.and_then(|id| layer_of(id, &self.volume.uid));
        self.ask(|reader| {
            let chain = reader.chain()?;
            let since = since.filter(|since| is_below(&chain, *since, upto));
            let blocks = reader.changed(since, upto)?;
            let ranges = blocks.into_iter().map(|blocks| {
                let extent = blocks.extent();
                extent.offset_bytes..extent.end_bytes()
            });
            let ranges = joined(ranges, self.snapshot.size_bytes);
            Ok(if since.is_some() { Changed::Since(ranges) } else { Changed::Everything(ranges) })
        })
    }

    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        self.ask(|reader| reader.read(self.snapshot.layer, offset_bytes, into))
    }
}

/// Unique for ever: the volume's random id, and the number of a layer, which is never used again.
fn snapshot_id(uid: &str, layer: LayerId) -> String {
    format!("{uid}.{}", layer.0)
}

/// The layer, if it is one of this volume.
fn layer_of(id: &str, uid: &str) -> Option<LayerId> {
    let layer = id.strip_prefix(uid)?.strip_prefix('.')?;
    layer.parse().ok().map(LayerId)
}

/// Whether `below` is an ancestor of `layer`.
fn is_below(chain: &ChainInfo, below: LayerId, layer: LayerId) -> bool {
    let parent = |id: &LayerId| chain.layer(*id).and_then(|layer| layer.parent);
    // Each step goes to another layer, or the chain is a faulty replica's.
    let ancestors = std::iter::successors(parent(&layer), parent).take(chain.layers.len());
    ancestors.into_iter().any(|ancestor| ancestor == below)
}

/// Ranges that touch become one; what is past the end goes.
fn joined(ranges: impl Iterator<Item = Range<u64>>, end: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges.map(|range| range.start..range.end.min(end)) {
        match joined.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use ankole_replica::chain::LayerInfo;
    use ankole_replica::types::ChainOpId;

    use super::*;

    fn chain_of(layers: &[(u32, Option<u32>)]) -> ChainInfo {
        let layers = layers.iter().map(|&(id, parent)| LayerInfo {
            id: LayerId(id),
            parent: parent.map(LayerId),
            seal: None,
            removed: false,
            size_bytes: 2 << 20,
            data_bytes: 0,
        });
        ChainInfo { layers: layers.collect(), head: LayerId(1), last_op: ChainOpId(0) }
    }

    /// An increment over a snapshot of another branch would lack what that branch never had.
    #[test]
    fn an_increment_is_built_on_an_ancestor_only() {
        let chain = chain_of(&[(1, None), (2, Some(1)), (3, Some(1)), (4, Some(3))]);
        assert!(is_below(&chain, LayerId(1), LayerId(4)));
        assert!(is_below(&chain, LayerId(3), LayerId(4)));
        for no_ancestor in [2, 4, 9] {
            assert!(!is_below(&chain, LayerId(no_ancestor), LayerId(4)), "{no_ancestor}");
        }
        assert!(!is_below(&chain_of(&[(1, Some(2)), (2, Some(1))]), LayerId(7), LayerId(1)));
    }

    #[test]
    fn a_snapshot_of_another_volume_of_the_name_is_not_known() {
        let id = snapshot_id("aa", LayerId(7));
        assert_eq!(layer_of(&id, "aa"), Some(LayerId(7)));
        assert_eq!(layer_of(&id, "ab"), None);
        assert_eq!(layer_of("aa7", "aa"), None);
        assert_eq!(layer_of("aa.x", "aa"), None);
    }

    #[test]
    fn ranges_are_joined_and_cut_at_the_end() {
        let ranges = joined([0..4, 4..8, 12..16, 16..24].into_iter(), 20);
        assert_eq!(ranges, [0..8, 12..20]);
    }
}
