//! The engine's admin socket.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ankole_blockdev::accept::next_client;
use ankole_blockdev::unix_socket;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tracing::debug;

use super::Engine;
use crate::admin::{
    Answer, Damage, EngineStatus, ErrorKind, LayerRange, Progress, ReplicaAddress, ReplicaDamage,
    ReplicaStatus, Request, SnapshotStatus,
};
use crate::chain::{ChainInfo, LAYERS_MAX, LayerInfo, Seal};
use crate::listen::Address;
use crate::replication::{DamageStatus, Job, RebuildStatus};
use crate::types::{BlockRange, LayerId, ReplicaId, VOLUME_BYTES_MAX, VOLUME_UNIT_BYTES};

/// Longest request, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Serves the socket until the engine's process ends.
pub async fn serve_admin(engine: Engine, path: &Path) -> io::Result<()> {
    // Whoever had it is gone: one engine is started per volume.
    let listener = unix_socket::Listener::bind(path)?;
    loop {
        let stream = next_client(path.display(), || listener.accept()).await;
        let engine = engine.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = converse(&engine, stream).await {
                debug!(%error, "admin connection closed");
            }
        });
    }
}

async fn converse(engine: &Engine, stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut limited = tokio::io::AsyncReadExt::take(&mut reader, LINE_BYTES_MAX);
        if limited.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(Request::Watch) => return engine.tell(&mut writer).await,
            Ok(request) => engine.administer(request).await,
            Err(error) => refuse(ErrorKind::Invalid, format!("not an admin request: {error}")),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
    }
}

fn refuse(kind: ErrorKind, message: String) -> Answer {
    Answer::Error { kind, message }
}

impl Engine {
    async fn administer(&self, request: Request) -> Answer {
        let done = match request {
            Request::Status | Request::Watch => return Answer::Status(Box::new(self.status())),
            Request::Snapshot { name, labels } => self.snapshot(name, labels).await,
            Request::Revert { name } => self.revert(&name).await,
            Request::RemoveSnapshot { name } => self.remove_snapshot(&name).await,
            Request::Expand { size_bytes } => self.expand(size_bytes).await,
            Request::SetReplicas { replicas } => self.set_replicas(replicas),
            Request::Detach => self.end_after(self.close_frontend().await).await,
            Request::HandOver => self.end_after(self.leave_frontend().await).await,
        };
        match done {
            Ok(()) => Answer::Ok,
            Err((kind, message)) => refuse(kind, message),
        }
    }

    /// Once nothing of the frontend is in the way.
    async fn end_after(&self, frontend: Result<(), String>) -> Done {
        frontend.map_err(|reason| (ErrorKind::Conflict, reason))?;
        self.detach();
        self.ended().await;
        Ok(())
    }

    /// What the volume has isn't known before it is open: a snapshot would seem to be gone.
    async fn until_open(&self) -> Done {
        self.opened().await.map_err(|_| {
            let message =
                format!("the engine of volume {} ended before it was open", self.0.volume);
            (ErrorKind::Failed, message)
        })
    }

    pub async fn snapshot(&self, name: String, labels: BTreeMap<String, String>) -> Done {
        self.until_open().await?;
        let volume = &self.0.volume;
        let chain = self.chain();
        if find(&chain, &name).is_some() {
            let message = format!("volume {volume} has a snapshot {name}; choose another name");
            return Err((ErrorKind::Conflict, message));
        }
        if chain.layers.len() + 1 >= LAYERS_MAX {
            let message = format!(
                "volume {volume} has {} layers, the most there can be; remove snapshots first",
                chain.layers.len()
            );
            return Err((ErrorKind::Conflict, message));
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seal = Seal {
            name: Some(name),
            created_unix_s: since.as_secs(),
            user_created: true,
            labels,
            generation: None, // known when it is cut
        };
        self.run_job(Job::Snapshot { seal }).await.map_err(failed)
    }

    pub async fn revert(&self, name: &str) -> Done {
        self.until_open().await?;
        let to = self.layer_of(name)?;
        let users = self.users().await;
        if !users.is_empty() {
            let message = format!(
                "volume {} is in use ({}): its content would change under them; disconnect them first",
                self.0.volume,
                users.join(", "),
            );
            return Err((ErrorKind::Conflict, message));
        }
        self.run_job(Job::Revert { to }).await.map_err(failed)
    }

    pub async fn remove_snapshot(&self, name: &str) -> Done {
        self.until_open().await?;
        let layer = self.layer_of(name)?;
        self.run_job(Job::Remove { layer }).await.map_err(failed)
    }

    pub async fn expand(&self, size_bytes: u64) -> Done {
        self.until_open().await?;
        let (volume, now) = (&self.0.volume, self.size_bytes());
        if size_bytes < now {
            let message = format!("volume {volume} has {now} bytes and can't become smaller");
            return Err((ErrorKind::Conflict, message));
        }
        if size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(VOLUME_UNIT_BYTES) {
            let message = format!(
                "{size_bytes} bytes is no size for a volume: a multiple of {VOLUME_UNIT_BYTES}, \
                 at most {VOLUME_BYTES_MAX}"
            );
            return Err((ErrorKind::Invalid, message));
        }
        if size_bytes == now {
            return Ok(());
        }
        self.run_job(Job::Expand { size_bytes }).await.map_err(failed)
    }

    pub fn set_replicas(&self, replicas: Vec<ReplicaAddress>) -> Done {
        let mut addresses = BTreeMap::new();
        for ReplicaAddress { replica, address } in replicas {
            let parsed: Address = address
                .parse()
                .map_err(|error| (ErrorKind::Invalid, format!("replica {replica}: {error}")))?;
            addresses.insert(replica, parsed);
        }
        let wanted: Vec<ReplicaId> = addresses.keys().cloned().collect();
        self.with(|state, now| {
            for id in &wanted {
                if !state.slots.contains(id) {
                    state.slots.push(id.clone());
                }
            }
            state.addresses = addresses;
            let set = state.core.set_replicas(now, &wanted);
            self.tell_news();
            set
        })
        .map_err(|message| (ErrorKind::Conflict, message))
    }

    fn chain(&self) -> ChainInfo {
        self.0.state.borrow().core.status().chain
    }

    fn layer_of(&self, name: &str) -> Result<LayerId, (ErrorKind, String)> {
        find(&self.chain(), name).map(|layer| layer.id).ok_or_else(|| {
            let message = format!(
                "volume {} has no snapshot {name}; `ankole snapshot ls {}` shows what it has",
                self.0.volume, self.0.volume
            );
            (ErrorKind::NotFound, message)
        })
    }

    pub fn status(&self) -> EngineStatus {
        self.with(|state, now| {
            state.core.refresh_chain(now); // for the next time
            state.core.look_who_is_slow(now);
        });
        let state = self.0.state.borrow();
        let status = state.core.status();
        let chain = &status.chain;
        let replicas = status.peers.iter().filter(|peer| peer.wanted).map(|peer| ReplicaStatus {
            replica: peer.replica.clone(),
            address: state.addresses.get(&peer.replica).map(Address::to_string).unwrap_or_default(),
            mode: peer.mode,
            reason: peer.reason.clone(),
            is_older: peer.is_older,
            rebuild: peer.rebuild.map(progress),
            last_rebuild: peer.last_rebuild.map(progress),
        });
        EngineStatus {
            volume: self.0.volume.clone(),
            version: Some(crate::VERSION.into()),
            instance: state.core.instance().clone(),
            generation: status.generation.unwrap_or(crate::types::Generation::FIRST),
            size_bytes: chain.size_bytes(),
            endpoint: self.0.endpoint.borrow().clone(),
            replicas: replicas.collect(),
            unsettled_bytes: status.unsettled_bytes,
            repaired_blocks: status.repaired_blocks,
            unverified_bytes: status.unverified_bytes,
            damage: damage(chain, &status.damage),
            full: status.full,
            waiting: status.waiting,
            clients: (self.0.clients.borrow())(),
            snapshots: chain.layers.iter().filter_map(|layer| snapshot(chain, layer)).collect(),
            head_bytes: chain.layer(chain.head).map_or(0, |head| head.data_bytes),
            head_parent: chain.layer(chain.head).and_then(|head| named_parent(chain, head)),
            requests: self.0.counts.get(),
        }
    }
}

/// What a change came to; the message is for people.
pub type Done = Result<(), (ErrorKind, String)>;

fn failed(message: String) -> (ErrorKind, String) {
    (ErrorKind::Failed, message)
}

/// The snapshot of this name that users can see.
fn find<'a>(chain: &'a ChainInfo, name: &str) -> Option<&'a LayerInfo> {
    chain.layers.iter().find(|layer| visible_name(layer) == Some(name))
}

fn visible_name(layer: &LayerInfo) -> Option<&str> {
    layer.seal.as_ref().filter(|_| !layer.removed)?.name.as_deref()
}

fn snapshot(chain: &ChainInfo, layer: &LayerInfo) -> Option<SnapshotStatus> {
    let seal = layer.seal.as_ref()?;
    Some(SnapshotStatus {
        name: visible_name(layer)?.to_owned(),
        layer: layer.id,
        parent: named_parent(chain, layer),
        created_unix_s: seal.created_unix_s,
        labels: seal.labels.clone(),
        data_bytes: layer.data_bytes,
        size_bytes: layer.size_bytes,
    })
}

/// The nearest snapshot below that users can see.
fn named_parent(chain: &ChainInfo, layer: &LayerInfo) -> Option<String> {
    let mut below = layer.parent;
    while let Some(layer) = below.and_then(|id| chain.layer(id)) {
        if let Some(name) = visible_name(layer) {
            return Some(name.to_owned());
        }
        below = layer.parent;
    }
    None
}

fn damage(chain: &ChainInfo, status: &DamageStatus) -> Damage {
    let at = |layer: LayerId, range: BlockRange| LayerRange {
        layer,
        snapshot: chain.layer(layer).and_then(visible_name).map(str::to_owned),
        offset_bytes: range.first.offset_bytes(),
        length_bytes: range.length_bytes(),
    };
    let replicas = status.replicas.iter().map(|of| ReplicaDamage {
        replica: of.replica.clone(),
        waiting_blocks: of.waiting_blocks,
        repaired_blocks: of.repaired_blocks,
        last: at(of.last.layer, of.last.range),
        repaired_from: of.last.repaired_from.clone(),
        ago_s: of.last.at.elapsed().as_secs(),
    });
    Damage {
        replicas: replicas.collect(),
        lost: status.lost.iter().map(|(layer, range)| at(*layer, *range)).collect(),
        lost_bytes: status.lost_bytes,
    }
}

fn progress(rebuild: RebuildStatus) -> Progress {
    let left = rebuild.total_bytes.saturating_sub(rebuild.done_bytes);
    let rate = rebuild.bytes_per_second;
    Progress {
        done_bytes: rebuild.done_bytes,
        total_bytes: rebuild.total_bytes,
        bytes_per_second: rate,
        moved_bytes: rebuild.moved_bytes,
        eta_s: (rate > 0).then(|| left.div_ceil(rate)),
        since: rebuild.since,
        stage: rebuild.stage,
    }
}
