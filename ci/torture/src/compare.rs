//! All replicas, byte by byte: their heads and every snapshot, and the checksums of all layers.
//!
//! Two ways, in turns: with the processes gone, the directories are opened as a replica opens them;
//! or, while everything runs, a snapshot is made and read from each replica as a backup does it.

use std::fmt;
use std::path::{Path, PathBuf};

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use ankole_replica::chain::{ChainInfo, LayerInfo};
use ankole_replica::listen::Address;
use ankole_replica::reader::ReplicaReader;
use ankole_replica::store::file::{Directory, DirectoryOptions};
use ankole_replica::store::{Store, StoreOptions, View};
use ankole_replica::types::{BlockIndex, BlockRange, ReplicaId};
use anyhow::{Context, anyhow, bail, ensure};

use crate::sector::{Number, SECTOR, decode};
use crate::world::VOLUME;

const PIECE_BYTES: u64 = 4 << 20;

/// What a replica shows of itself.
pub struct Copy {
    pub replica: ReplicaId,
    /// Layers that users see, and the head; what is being joined away doesn't count.
    layers: Vec<LayerInfo>,
    /// By name; the head has none.
    pub views: Vec<(Option<String>, Vec<u8>)>,
}

/// Replicas that aren't alike where they have to be.
#[derive(Debug)]
pub struct Differ {
    /// The first one.
    pub sector: u64,
    text: String,
}

impl std::error::Error for Differ {}

impl fmt::Display for Differ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Opens the directory of a replica whose process is gone.
pub async fn open_directory(dir: &Path) -> anyhow::Result<Store<Directory>> {
    let directory = Directory::open(dir, &DirectoryOptions::default())?;
    Ok(Store::open(directory, StoreOptions::default()).await?)
}

/// Everything that is in the directory of a replica whose process is gone.
pub async fn from_directory(replica: &ReplicaId, dir: &Path) -> anyhow::Result<Copy> {
    let store = open_directory(dir).await?;
    let verified = store.verify().await?;
    if verified.blocks_bad > 0 {
        bail!("{} blocks don't match their checksums: {:?}", verified.blocks_bad, verified.bad);
    }
    let chain = store.chain();
    let layers = shown_layers(&chain);
    let mut views = Vec::new();
    for layer in &layers {
        let view = if layer.id == chain.head { View::Top } else { View::Layer(layer.id) };
        let mut content = Vec::with_capacity(layer.size_bytes as usize);
        while (content.len() as u64) < layer.size_bytes {
            let offset_bytes = content.len() as u64;
            let length_bytes = PIECE_BYTES.min(layer.size_bytes - offset_bytes);
            let range =
                BlockRange::new(BlockIndex(offset_bytes / BLOCK_BYTES), length_bytes / BLOCK_BYTES);
            let (done, data) = store.read(view, range, Buffer::zeroed(length_bytes as usize)).await;
            done.with_context(|| format!("read {} of {}", range, layer.id))?;
            content.extend_from_slice(&data);
        }
        views.push((name_of(layer), content));
    }
    store.close().await?;
    Ok(Copy { replica: replica.clone(), layers, views })
}

/// The snapshots of a replica that is served. Blocks its thread.
pub fn from_socket(replica: &ReplicaId, socket: PathBuf) -> anyhow::Result<Copy> {
    let mut reader = ReplicaReader::connect(&Address::Unix(socket), VOLUME, replica)?;
    let chain = reader.chain()?;
    let layers = shown_layers(&chain);
    let mut views = Vec::new();
    for layer in layers.iter().filter(|layer| layer.id != chain.head) {
        let mut content = vec![0; layer.size_bytes as usize];
        for (index, piece) in content.chunks_mut(PIECE_BYTES as usize).enumerate() {
            reader.read(layer.id, index as u64 * PIECE_BYTES, piece)?;
        }
        views.push((name_of(layer), content));
    }
    Ok(Copy { replica: replica.clone(), layers, views })
}

fn shown_layers(chain: &ChainInfo) -> Vec<LayerInfo> {
    let shown = chain.layers.iter().filter(|layer| !layer.removed);
    // How much space it takes may differ.
    shown.map(|layer| LayerInfo { data_bytes: 0, ..layer.clone() }).collect()
}

fn name_of(layer: &LayerInfo) -> Option<String> {
    layer.seal.as_ref().map(|seal| seal.name.clone().unwrap_or_else(|| layer.id.to_string()))
}

/// What all copies show; an error that names the sectors in which they differ.
pub fn agree(volume: u64, copies: Vec<Copy>) -> anyhow::Result<Vec<(Option<String>, Vec<Number>)>> {
    let mut copies = copies.into_iter();
    let first = copies.next().context("there are no replicas")?;
    for other in copies {
        let shape = |copy: &Copy| {
            copy.layers
                .iter()
                .map(|layer| (layer.id, layer.seal.clone(), layer.size_bytes))
                .collect::<Vec<_>>()
        };
        ensure!(
            shape(&first) == shape(&other),
            "{} and {} have different layers:\n{:#?}\n{:#?}",
            first.replica,
            other.replica,
            first.layers,
            other.layers
        );
        for ((name, content), (_, others)) in first.views.iter().zip(&other.views) {
            if content != others {
                let place =
                    name.as_deref().map_or("heads".into(), |name| format!("snapshot {name}"));
                let (sector, differences) =
                    differences(volume, (&first.replica, content), (&other.replica, others));
                let text = format!("replicas differ in their {place}:\n{differences}");
                bail!(Differ { sector, text });
            }
        }
    }
    let numbers = |(name, content): (Option<String>, Vec<u8>)| {
        let place = name.clone().unwrap_or_else(|| "head".into());
        let numbers = crate::sector::decode_all(volume, 0, &content)
            .map_err(|(sector, nonsense)| anyhow!("{place}: sector {sector} has {nonsense}"))?;
        Ok((name, numbers))
    };
    first.views.into_iter().map(numbers).collect()
}

/// The first sector that differs, and text about all of them.
fn differences(volume: u64, one: (&ReplicaId, &[u8]), other: (&ReplicaId, &[u8])) -> (u64, String) {
    const NAMED_MAX: usize = 20;
    let show = |sector: u64, bytes: &[u8]| match decode(volume, sector, bytes) {
        Ok(number) => number.to_string(),
        Err(nonsense) => nonsense.to_string(),
    };
    let sectors = one.1.chunks_exact(SECTOR).zip(other.1.chunks_exact(SECTOR)).zip(0..);
    let differ: Vec<_> = sectors.filter(|((a, b), _)| a != b).collect();
    let mut lines: Vec<_> = differ
        .iter()
        .take(NAMED_MAX)
        .map(|((a, b), sector)| {
            format!(
                "  sector {sector}: {} has {}, {} has {}",
                one.0,
                show(*sector, a),
                other.0,
                show(*sector, b)
            )
        })
        .collect();
    if differ.len() > NAMED_MAX {
        lines.push(format!("  and {} more sectors", differ.len() - NAMED_MAX));
    }
    (differ.first().map_or(0, |(_, sector)| *sector), lines.join("\n"))
}
