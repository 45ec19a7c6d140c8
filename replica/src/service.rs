//! What becomes of one request of a session that may make it: the store's answer as a message.

use std::rc::Rc;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};

use crate::chain::ChainChange;
use crate::chain::index::{BlockSum, Blocks};
use crate::message::{Refusal, RegionSums, Reply, Request};
use crate::payload::{BlockData, Patch, Payload, Run};
use crate::server::{Replica, refusal};
use crate::store::{Membership, ReadError, ReplicaState, Storage, StoreError, View};
use crate::types::{BLOCKS_PER_REGION, BlockIndex, BlockRange, LayerId, Region};
use crate::wire::CHANGED_REGIONS_MAX;

type Outcome = Result<Reply<Rc<Payload>>, Refusal>;

const BLOCK: usize = BLOCK_BYTES as usize;

pub(crate) async fn carry_out<S: Storage>(
    replica: &Rc<Replica<S>>,
    request: Request<Rc<Payload>>,
) -> Outcome {
    let store = &replica.store;
    let generation = replica.generation.get();
    let done = |result: Result<(), StoreError>| match result {
        Ok(()) => Ok(Reply::Done),
        Err(error) => Err(refusal(&error)),
    };
    match request {
        Request::Hello(_) | Request::Advance(_) => unreachable!("the conversation answers them"),
        Request::Write { range, forced, payload } => {
            let Payload::Blocks(blocks) = &*payload else { return Err(wrong_payload()) };
            let data = blocks.data.clone();
            let written = store.write(range, data, 0, &blocks.sums, generation).await;
            done(written)?;
            if forced { done(store.flush().await) } else { Ok(Reply::Done) }
        }
        Request::Zero { range, forced } => {
            done(store.zero(range, generation).await)?;
            if forced { done(store.flush().await) } else { Ok(Reply::Done) }
        }
        Request::Read { range } => read(replica, View::Top, range).await,
        Request::Map { range } => map(replica, range).await,
        Request::ReadSnapshot { layer, range } => read(replica, View::Layer(layer), range).await,
        Request::Flush => done(store.flush().await),
        Request::Sums { layer, region } => {
            Ok(Reply::Sums(Box::new(own_sums(replica, layer, region).await?)))
        }
        Request::Occupied { layer } => occupied(replica, layer),
        Request::Fetch { layer, region, blocks } => fetch(replica, layer, region, blocks).await,
        Request::Copy { layer, region, payload } => copy(replica, layer, region, &payload).await,
        Request::Verified { layer, region } => {
            if store.chain().head == layer {
                done(store.mark_verified(region.range()).await)
            } else {
                Ok(Reply::Done) // sealed meanwhile: its sums stay unverified until a scrub
            }
        }
        Request::Chain(op) => {
            done(store.apply(&op).await)?;
            if let ChainChange::Snapshot { new_head, .. } = op.change {
                tidy_below(replica, new_head);
            }
            Ok(Reply::Done)
        }
        Request::DescribeChain => Ok(Reply::Chain(Box::new(store.chain()))),
        Request::Changed { after, upto, from } => changed(replica, after, upto, from),
        Request::Join { layer } => done(store.join(layer).await.map(|_| ())),
        Request::AdoptChain(chain) => {
            replica.adopts();
            done(store.set_membership(membership(replica, ReplicaState::Rebuilding)).await)?;
            done(store.adopt_chain(&chain).await)
        }
        Request::Ready { generation: _ } => {
            done(store.flush().await)?;
            done(store.set_membership(membership(replica, ReplicaState::Ready)).await)
        }
        Request::Ping => Ok(Reply::Done),
        Request::Bye => {
            let marked = store.marked_regions().map_err(|error| refusal(&error))?;
            let regions: Vec<Region> = marked.into_iter().map(|(region, _)| region).collect();
            done(store.clear(&regions).await)
        }
    }
}

/// In the background: gives back what a layer had reserved while it was the head.
fn tidy_below<S: Storage>(replica: &Rc<Replica<S>>, head: LayerId) {
    let chain = replica.store.chain();
    let Some(sealed) = chain.layer(head).and_then(|head| head.parent) else { return };
    let replica = replica.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = replica.store.tidy(sealed).await {
            tracing::warn!(%error, layer = %sealed, "a snapshot keeps space that it doesn't need");
        }
    });
}

/// The replica's membership with another state.
fn membership<S: Storage>(replica: &Replica<S>, state: ReplicaState) -> Membership {
    Membership { state, ..replica.store.membership() }
}

async fn read<S: Storage>(replica: &Replica<S>, view: View, range: BlockRange) -> Outcome {
    let into = Buffer::zeroed(range.length_bytes() as usize);
    let (result, data) = replica.store.read(view, range, into).await;
    result.map_err(|error| read_refusal(&error))?;
    Ok(Reply::Data(Rc::new(Payload::Blocks(BlockData::from_client(data)))))
}

/// As many runs as one answer takes; the asker goes on after the last.
const RUNS_MAX: usize = 64 << 10;

async fn map<S: Storage>(replica: &Replica<S>, range: BlockRange) -> Outcome {
    let extents = replica.store.extents(View::Top, range).await;
    let extents = extents.map_err(|error| read_refusal(&error))?;
    let runs = extents.into_iter().take(RUNS_MAX);
    let runs = runs.map(|(part, allocation)| Run { blocks: part.count, allocation });
    Ok(Reply::Data(Rc::new(Payload::Map(runs.collect()))))
}

fn read_refusal(error: &ReadError) -> Refusal {
    match error {
        ReadError::BadBlocks(_) => Refusal::BadBlocks { message: error.to_string() },
        ReadError::Store(error) => refusal(error),
    }
}

async fn own_sums<S: Storage>(
    replica: &Replica<S>,
    layer: LayerId,
    region: Region,
) -> Result<RegionSums, Refusal> {
    let sums = replica.store.own_sums(layer, region.range()).await;
    sums.map(RegionSums).map_err(|error| refusal(&error))
}

fn occupied<S: Storage>(replica: &Replica<S>, layer: LayerId) -> Outcome {
    Ok(Reply::Occupied(replica.store.occupied(layer).map_err(|error| refusal(&error))?))
}

fn changed<S: Storage>(
    replica: &Replica<S>,
    after: Option<LayerId>,
    upto: LayerId,
    from: Region,
) -> Outcome {
    let end = replica.store.size_bytes().div_ceil(crate::types::REGION_BYTES);
    let stop = end.min(from.0 + CHANGED_REGIONS_MAX as u64);
    let regions = replica.store.changed(after, upto, from.0.min(stop)..stop);
    let regions = regions.map_err(|error| refusal(&error))?;
    Ok(Reply::Changed { regions, next: (stop < end).then_some(Region(stop)) })
}

/// What one layer itself holds; its data blocks are packed in ascending order.
async fn fetch<S: Storage>(
    replica: &Replica<S>,
    layer: LayerId,
    region: Region,
    blocks: Blocks,
) -> Outcome {
    let sums = own_sums(replica, layer, region).await?;
    let digest = sums.digest();
    let mut wanted_data = Blocks::NONE;
    for slot in blocks.slots() {
        wanted_data.put(slot, matches!(sums.0[slot], BlockSum::Data { .. }));
    }
    let mut data = Buffer::zeroed(wanted_data.count() as usize * BLOCK);
    let mut filled = 0;
    for run in wanted_data.runs() {
        let first = BlockIndex(region.0 * BLOCKS_PER_REGION + run.start as u64);
        let range = BlockRange::new(first, run.len() as u64);
        let into = Buffer::zeroed(run.len() * BLOCK);
        let (result, read) = replica.store.read(View::Own(layer), range, into).await;
        result.map_err(|error| read_refusal(&error))?;
        data[filled..filled + read.len()].copy_from_slice(&read);
        filled += read.len();
    }
    let sums = blocks.slots().map(|slot| sums.0[slot]).collect();
    Ok(Reply::Data(Rc::new(Payload::Patch(Patch { blocks, sums, data: Rc::new(data), digest }))))
}

/// Makes the layer's blocks what the patch says, and tells what the region is now.
async fn copy<S: Storage>(
    replica: &Replica<S>,
    layer: LayerId,
    region: Region,
    payload: &Payload,
) -> Outcome {
    let Payload::Patch(patch) = payload else { return Err(wrong_payload()) };
    let generation = replica.generation.get();
    let slots: Vec<usize> = patch.blocks.slots().collect();
    let mut offset_bytes = 0;
    // The store takes runs of neighbouring blocks whose data lies together.
    for run in patch.blocks.runs() {
        let at = slots.partition_point(|&slot| slot < run.start);
        let sums = &patch.sums[at..at + run.len()];
        let first = BlockIndex(region.0 * BLOCKS_PER_REGION + run.start as u64);
        for (part, packed) in split_at_data(sums) {
            let range = BlockRange::new(BlockIndex(first.0 + part.start as u64), part.len() as u64);
            let blocks = &sums[part.clone()];
            let copied = replica
                .store
                .copy(layer, range, blocks, patch.data.clone(), offset_bytes, generation)
                .await;
            copied.map_err(|error| refusal(&error))?;
            offset_bytes += packed * BLOCK;
        }
    }
    Ok(Reply::Digest(own_sums(replica, layer, region).await?.digest()))
}

/// Runs that are all data or all without; how many data blocks each has.
fn split_at_data(sums: &[BlockSum]) -> Vec<(std::ops::Range<usize>, usize)> {
    let is_data = |sum: &BlockSum| matches!(sum, BlockSum::Data { .. });
    let mut parts = Vec::new();
    let mut start = 0;
    for chunk in sums.chunk_by(|a, b| is_data(a) == is_data(b)) {
        let packed = if is_data(&chunk[0]) { chunk.len() } else { 0 };
        parts.push((start..start + chunk.len(), packed));
        start += chunk.len();
    }
    parts
}

fn wrong_payload() -> Refusal {
    Refusal::Invalid { message: "the message carries the wrong kind of data".into() }
}
