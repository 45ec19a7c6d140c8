//! What becomes of one request of a session that may make it: the store's answer as a message.

use std::rc::Rc;

use ankole_blockdev::disk::Buffer;

use crate::chain::index::{BlockSum, Blocks};
use crate::message::{BAD_REGIONS_MAX, BadRegion, Refusal, RegionSums, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::payload::{BlockData, Patch, Payload, Run};
use crate::regions::RegionPage;
use crate::server::{Replica, refusal};
use crate::store::{
    BadBlock, BlockProblem, Membership, ReadError, Replacement, ReplicaState, Storage, Store,
    StoreError, View,
};
use crate::types::{BLOCKS_PER_REGION, BlockRange, Epoch, Generation, LayerId, Region};

/// Pages of the index that one message looks at: a few milliseconds.
const LOOKS_MAX: u64 = 4096;
/// Reads of the intent map for one message; what they show fits into one.
const STAMP_READS_MAX: usize = 8;

type Outcome = Result<Reply<Rc<Payload>>, Refusal>;

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
            if mutation::is_on(Mutation::ConfirmedTooEarly) {
                let (replica, sums) = (replica.clone(), blocks.sums.clone());
                tokio::task::spawn_local(async move {
                    replica.store.write(range, data, 0, &sums, generation).await
                });
                return Ok(Reply::Done);
            }
            let written = store.write(range, data, 0, &blocks.sums, generation).await;
            done(written)?;
            if forced { done(store.flush().await) } else { Ok(Reply::Done) }
        }
        Request::Zero { range, forced } => {
            done(store.zero(range, generation).await)?;
            if forced { done(store.flush().await) } else { Ok(Reply::Done) }
        }
        Request::Read { range } => read(replica, View::Top, range, Trust::Compared).await,
        Request::ReadUnverified { range } => read(replica, View::Top, range, Trust::Any).await,
        Request::Map { range } => map(replica, range).await,
        Request::ReadSnapshot { layer, range } => {
            read(replica, View::Layer(layer), range, Trust::Any).await
        }
        Request::Flush => done(store.flush().await),
        Request::Sums { layer, region, contents: false } => {
            Ok(Reply::Sums(Box::new(own_sums(replica, layer, region).await?)))
        }
        Request::Sums { layer, region, contents: true } => {
            let sums = store.contents(layer, region).await;
            let (blocks, contents) = sums.map_err(|error| sums_refused(layer, region, &error))?;
            Ok(Reply::Sums(Box::new(RegionSums { blocks, contents: Some(contents) })))
        }
        Request::Occupied { layer, from } => occupied(replica, layer, from).await,
        Request::Fetch { layer, region, blocks } => fetch(replica, layer, region, blocks).await,
        Request::Copy { layer, region, payload } => copy(replica, layer, region, &payload).await,
        Request::Verified { layer, region } => {
            if store.head_layer() == layer {
                done(store.mark_verified(region.range()).await)
            } else {
                Ok(Reply::Done) // sealed meanwhile: its sums stay unverified until a scrub
            }
        }
        Request::Repair { layer, region, payload } => {
            let Payload::Patch(patch) = &*payload else { return Err(wrong_payload()) };
            let by = Replacement { blocks: patch.blocks, sums: &patch.sums, data: &patch.data };
            match store.repair_region(layer, region, &by, generation).await {
                Err(error @ StoreError::NotWritten { .. }) => {
                    Err(Refusal::Invalid { message: error.to_string() })
                }
                other => done(other),
            }
        }
        Request::Clear { regions } => done(store.clear(&regions).await),
        Request::Marked { from } => Ok(Reply::Regions(store.marked_page(from))),
        Request::Prepare(op) => done(store.prepare(&op).await),
        Request::Abandon => done(store.abandon().await),
        Request::Chain(op) => done(store.apply(&op).await),
        Request::DescribeChain => Ok(Reply::Chain(Box::new(store.chain()))),
        Request::Changed { after, upto, from } => changed(replica, after, upto, from).await,
        Request::Join { layer } => done(store.join(layer).await.map(|_| ())),
        Request::AdoptChain(chain) => {
            replica.adopts();
            done(store.set_membership(membership(replica, ReplicaState::Rebuilding)).await)?;
            let adopted = store.adopt_chain(&chain).await.map_err(|error| refusal(&error))?;
            Ok(Reply::Adopted(Box::new(adopted)))
        }
        Request::Stamps { after, from } => stamps(replica, after, from).await,
        Request::Mark { .. } if mutation::is_on(Mutation::TargetNotMarked) => Ok(Reply::Done),
        Request::Mark { regions } => {
            let regions: Vec<Region> = regions.iter().collect();
            done(store.mark_regions(&regions, generation).await)
        }
        Request::Ready { generation: _, begun } => {
            done(store.flush().await)?;
            let ready = membership(replica, ReplicaState::Ready);
            let epoch = Epoch { begun, agreed: 0 };
            done(store.set_membership(Membership { epoch, ..ready }).await)
        }
        Request::Epoch(epoch) => done(store.raise_epoch(epoch).await),
        // Who answers may be the one that stays when others leave the set (rule 5).
        Request::Ping => done(store.check_usable()),
        Request::Bye => done(clear_all(store).await),
    }
}

/// The replica's membership with another state.
fn membership<S: Storage>(replica: &Replica<S>, state: ReplicaState) -> Membership {
    Membership { state, ..replica.store.membership() }
}

/// Nobody marks anything meanwhile.
async fn clear_all<S: Storage>(store: &Store<S>) -> Result<(), StoreError> {
    let mut from = Some(Region(0));
    while let Some(at) = from {
        let page = store.marked_page(at);
        let marked: Vec<Region> = page.regions.iter().collect();
        store.clear(&marked).await?;
        from = page.next;
    }
    Ok(())
}

/// Which blocks may be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Only those whose checksum came from a client or was compared with a peer's (rule 20).
    Compared,
    /// Those too whose checksum was made from what the disk had after a crash.
    Any,
}

async fn read<S: Storage>(
    replica: &Replica<S>,
    view: View,
    range: BlockRange,
    trust: Trust,
) -> Outcome {
    let into = Buffer::for_data(range.length_bytes() as usize);
    let (result, data) = replica.store.read(view, range, into).await;
    let report = result.map_err(|error| read_refusal(&error))?;
    if trust == Trust::Compared && !report.unverified.is_empty() {
        return Err(Refusal::Unverified);
    }
    // The store has just checked the bytes against these.
    let blocks = BlockData { sums: report.sums, data: Rc::new(data) };
    Ok(Reply::Data(Rc::new(Payload::Blocks(blocks))))
}

/// As many runs as one answer takes; the asker goes on after the last.
const RUNS_MAX: usize = 64 << 10;
/// The same for the regions that are looked at.
const MAP_REGIONS_MAX: u64 = 1024;

async fn map<S: Storage>(replica: &Replica<S>, range: BlockRange) -> Outcome {
    let blocks = range.count.min(MAP_REGIONS_MAX * BLOCKS_PER_REGION);
    let extents = replica.store.extents(View::Top, BlockRange::new(range.first, blocks)).await;
    let extents = extents.map_err(|error| read_refusal(&error))?;
    let runs = extents.into_iter().take(RUNS_MAX);
    let runs = runs.map(|(part, allocation)| Run { blocks: part.count, allocation });
    Ok(Reply::Data(Rc::new(Payload::Map(runs.collect()))))
}

fn read_refusal(error: &ReadError) -> Refusal {
    match error {
        ReadError::BadBlocks(bad) => {
            Refusal::BadBlocks { message: error.to_string(), regions: bad_regions(bad) }
        }
        ReadError::Store(error) => refusal(error),
    }
}

async fn own_sums<S: Storage>(
    replica: &Replica<S>,
    layer: LayerId,
    region: Region,
) -> Result<RegionSums, Refusal> {
    let sums = replica.store.own_sums(layer, region.range()).await;
    let blocks = sums.map_err(|error| sums_refused(layer, region, &error))?;
    Ok(RegionSums { blocks, contents: None })
}

fn sums_refused(layer: LayerId, region: Region, error: &StoreError) -> Refusal {
    match error {
        StoreError::Damaged { .. } => {
            let bad = BadRegion { layer, region, blocks: Blocks::ALL, index: true };
            Refusal::BadBlocks { message: error.to_string(), regions: vec![bad] }
        }
        error => refusal(error),
    }
}

fn bad_regions(bad: &[BadBlock]) -> Vec<BadRegion> {
    let mut regions: Vec<BadRegion> = Vec::new();
    for bad in bad {
        let (layer, region) = (bad.layer, bad.block.region());
        let same = |known: &BadRegion| known.layer == layer && known.region == region;
        let at = match regions.iter().position(same) {
            Some(at) => at,
            None if regions.len() < BAD_REGIONS_MAX => {
                regions.push(BadRegion { layer, region, blocks: Blocks::NONE, index: false });
                regions.len() - 1
            }
            None => continue,
        };
        regions[at].blocks.put((bad.block.0 % BLOCKS_PER_REGION) as usize, true);
        regions[at].index |= matches!(bad.problem, BlockProblem::Index(_));
    }
    regions
}

// ---- lists, page by page -----------------------------------------------------------------------
//
// One page is made at a time, whoever asks for how many: a ping, a lease, a write wait for no more
// than one turn of one list.

async fn occupied<S: Storage>(replica: &Replica<S>, layer: LayerId, from: Region) -> Outcome {
    let _one_at_a_time = replica.listing.lock().await;
    let occupied = replica.store.occupied(layer, from, LOOKS_MAX).await;
    let (regions, next) = occupied.map_err(|error| refusal(&error))?;
    Ok(Reply::Regions(RegionPage { regions: regions.into_iter().collect(), next }))
}

async fn stamps<S: Storage>(
    replica: &Replica<S>,
    after: Option<Generation>,
    from: Region,
) -> Outcome {
    let _one_at_a_time = replica.listing.lock().await;
    let mut page = RegionPage { next: Some(from), ..RegionPage::default() };
    for _ in 0..STAMP_READS_MAX {
        let Some(at) = page.next else { break };
        let stamped = replica.store.regions_since_from(after, at);
        let (regions, next) = stamped.map_err(|error| refusal(&error))?;
        page.regions.extend(regions);
        page.next = next;
        tokio::task::yield_now().await;
    }
    Ok(Reply::Regions(page))
}

async fn changed<S: Storage>(
    replica: &Replica<S>,
    after: Option<LayerId>,
    upto: LayerId,
    from: Region,
) -> Outcome {
    let _one_at_a_time = replica.listing.lock().await;
    let changed = replica.store.changed(after, upto, from, LOOKS_MAX).await;
    let (regions, next) = changed.map_err(|error| refusal(&error))?;
    Ok(Reply::Changed { regions, next })
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
        wanted_data.put(slot, matches!(sums.blocks[slot], BlockSum::Data { .. }));
    }
    let data = replica.store.read_packed(layer, region, wanted_data).await;
    let data = data.map_err(|error| read_refusal(&error))?;
    if own_sums(replica, layer, region).await? != sums {
        // Whoever asked has given its lock up; what was read may belong to other sums.
        return Err(Refusal::Invalid { message: "the region was written meanwhile".into() });
    }
    let sums = blocks.slots().map(|slot| sums.blocks[slot]).collect();
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
    let data = patch.data.clone();
    let copied = replica.store.copy(layer, region, patch.blocks, &patch.sums, data, generation);
    copied.await.map_err(|error| refusal(&error))?;
    Ok(Reply::Digest(own_sums(replica, layer, region).await?.digest()))
}

fn wrong_payload() -> Refusal {
    Refusal::Invalid { message: "the message carries the wrong kind of data".into() }
}
