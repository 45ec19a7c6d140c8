//! A replica that does what the rules ask of one, in memory, with a disk cache that a power cut
//! loses. A block is two sectors, a sector one number: the write that it came from, 0 for zero.

use std::collections::{BTreeMap, BTreeSet};

use ankole_replica::chain::index::{BlockSum, Blocks};
use ankole_replica::chain::{ChainChange, ChainInfo, ChainOp, LayerInfo, Seal};
use ankole_replica::message::{BadRegion, Refusal, RegionSums, Reply, Request, Welcome};
use ankole_replica::replication::Payload;
use ankole_replica::types::{
    BLOCKS_PER_REGION, BlockIndex, BlockRange, ChainOpId, Fence, Generation, Incarnation, LayerId,
    Region,
};

pub type Block = [u64; 2];
/// Blocks as a layer holds them; `None`: it doesn't.
pub type Data = Vec<(u64, Option<Block>)>;

/// What a request touches while it is carried out.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    layer: LayerId,
    range: BlockRange,
    exclusive: bool,
}

impl Footprint {
    pub fn of(request: &Request<Payload>, head: LayerId) -> Option<Self> {
        let (layer, range, exclusive) = match *request {
            Request::Write { range, .. } | Request::Zero { range, .. } => (head, range, true),
            Request::Read { range }
            | Request::ReadUnverified { range }
            | Request::Map { range } => (head, range, false),
            Request::Copy { layer, region, .. } => (layer, region.range(), true),
            Request::Sums { layer, region } => (layer, region.range(), false),
            Request::Fetch { layer, region, blocks } => {
                let first = region.blocks().start;
                (layer, spanning(blocks.slots().map(|slot| first + slot as u64))?, false)
            }
            _ => return None,
        };
        Some(Self { layer, range, exclusive })
    }

    /// A repair touches the blocks that it brings.
    pub fn of_repair(layer: LayerId, data: &Data) -> Option<Self> {
        let range = spanning(data.iter().map(|(block, _)| *block))?;
        Some(Self { layer, range, exclusive: true })
    }

    pub fn conflicts_with(self, other: Self) -> bool {
        self.layer == other.layer
            && (self.exclusive || other.exclusive)
            && self.range.overlaps(other.range)
    }
}

/// A request that a replica has taken and not answered.
pub struct Taken {
    pub link: u64,
    pub request: Request<Payload>,
    pub data: Data,
}

pub struct Replica {
    pub incarnation: Incarnation,
    pub up: bool,
    pub hung_until: u64,
    pub full: bool,
    pub fail_writes: u32,
    pub bad: BTreeSet<(LayerId, u64)>,
    pub taken: BTreeMap<u64, Taken>,
    /// The connection that holds the fence.
    pub owner: Option<u64>,
    pub chain: ChainInfo,
    /// A power cut may have taken what it had confirmed.
    pub lost_writes: bool,
    /// The same when it was greeted last.
    pub greeted_lossy: bool,
    fence: Option<Fence>,
    pub synced: Option<Generation>,
    witness: bool,
    marks: BTreeMap<Region, Generation>,
    layers: BTreeMap<LayerId, BTreeMap<u64, Block>>,
    /// What the disk still holds of blocks that changed since the last flush.
    unflushed: BTreeMap<(LayerId, u64), Option<Block>>,
    unverified: BTreeSet<u64>,
}

impl Replica {
    pub fn new(incarnation: u128, size_bytes: u64) -> Self {
        let head = LayerId(1);
        let layer = layer(head, None, size_bytes);
        Self {
            incarnation: Incarnation(incarnation),
            up: true,
            hung_until: 0,
            full: false,
            fail_writes: 0,
            bad: BTreeSet::new(),
            taken: BTreeMap::new(),
            owner: None,
            chain: ChainInfo { layers: vec![layer], head, last_op: ChainOpId(0) },
            lost_writes: false,
            greeted_lossy: false,
            fence: None,
            synced: None,
            witness: true,
            marks: BTreeMap::new(),
            layers: BTreeMap::from([(head, BTreeMap::new())]),
            unflushed: BTreeMap::new(),
            unverified: BTreeSet::new(),
        }
    }

    pub fn is_continuous(&self) -> bool {
        self.witness || self.marks.is_empty()
    }

    /// What `layer` shows of a block.
    pub fn shown(&self, layer: LayerId, block: u64) -> Block {
        let mut at = Some(layer);
        while let Some(id) = at {
            if let Some(found) = self.layers[&id].get(&block) {
                return *found;
            }
            at = self.chain.layer(id).expect("a layer's parent is there").parent;
        }
        [0; 2]
    }

    pub fn head_shows(&self, block: u64) -> Block {
        self.shown(self.chain.head, block)
    }

    /// The process died: the kernel keeps what it was given. `keep` says which of the requests
    /// that were under way reached it.
    pub fn kill(&mut self, mut keep: impl FnMut() -> bool) {
        self.up = false;
        self.end_sessions(&mut keep);
        self.owner = None;
        // Checksums of marked regions were in memory: they are made from the disk again.
        self.unverified = self.marks.keys().flat_map(|region| region.blocks()).collect();
    }

    /// `keep` says for each sector that wasn't flushed whether it reached the disk.
    pub fn cut_power(&mut self, mut keep: impl FnMut() -> bool) {
        self.kill(&mut keep);
        for ((layer, block), old) in std::mem::take(&mut self.unflushed) {
            let Some(held) = self.layers.get_mut(&layer) else { continue };
            let new = held.get(&block).copied();
            let sector = |at: usize, keep: bool| (if keep { new } else { old }).map(|it| it[at]);
            match (sector(0, keep()), sector(1, keep())) {
                (Some(a), Some(b)) => held.insert(block, [a, b]),
                _ => match old {
                    Some(old) => held.insert(block, old),
                    None => held.remove(&block),
                },
            };
        }
        self.witness = false;
        self.lost_writes |= !self.is_continuous();
    }

    /// I/O of older sessions ends before a newer one begins.
    pub fn end_sessions(&mut self, mut keep: impl FnMut() -> bool) {
        for (_, taken) in std::mem::take(&mut self.taken) {
            if keep() {
                self.execute(&taken.request, &taken.data);
            }
        }
    }

    pub fn greet(&mut self, fence: Fence, keep: impl FnMut() -> bool) -> Reply<()> {
        if let Some(seen) = self.fence.filter(|seen| *seen > fence) {
            return Reply::Refused(Refusal::StaleGeneration { seen });
        }
        self.end_sessions(keep);
        self.fence = Some(fence);
        self.greeted_lossy = self.lost_writes;
        Reply::Welcome(Box::new(Welcome {
            incarnation: self.incarnation,
            size_bytes: self.chain.size_bytes(),
            continuous: self.is_continuous(),
            synced_generation: self.synced,
            marked: self.marks.iter().map(|(region, stamp)| (*region, *stamp)).collect(),
            chain: self.chain.clone(),
        }))
    }

    pub fn stale(&self) -> Reply<()> {
        let seen = self.fence.expect("somebody was greeted");
        Reply::Refused(Refusal::StaleGeneration { seen })
    }

    pub fn execute(&mut self, request: &Request<Payload>, data: &Data) -> (Reply<()>, Data) {
        let head = self.chain.head;
        let reply = match request {
            Request::Write { forced, .. } => self.put(head, data, *forced),
            Request::Zero { range, forced } => {
                let zeroes = range.blocks().map(|block| (block.0, Some([0; 2]))).collect();
                self.put(head, &zeroes, *forced)
            }
            Request::Read { range } => return self.read(*range, false),
            Request::ReadUnverified { range } | Request::Map { range } => {
                return self.read(*range, true);
            }
            Request::Flush => {
                self.unflushed.clear();
                Reply::Done
            }
            // From here on it holds what is acknowledged, whatever it had lost before.
            Request::Ready { .. } => {
                self.unflushed.clear();
                self.witness = true;
                Reply::Done
            }
            Request::Advance(advance) => {
                if self.synced.is_none_or(|synced| synced < advance.generation) {
                    self.synced = Some(advance.generation);
                    self.marks.values_mut().for_each(|stamp| *stamp = advance.generation);
                }
                self.witness = true;
                Reply::Done
            }
            Request::Sums { layer, region } => self
                .with_layer(*layer, |replica| Reply::Sums(Box::new(replica.sums(*layer, *region)))),
            Request::Occupied { layer } => self.with_layer(*layer, |replica| {
                let held = replica.layers[layer].keys();
                let regions: BTreeSet<_> =
                    held.map(|block| Region(block / BLOCKS_PER_REGION)).collect();
                Reply::Occupied(regions.into_iter().collect())
            }),
            Request::Fetch { layer, region, blocks } => return self.fetch(*layer, *region, blocks),
            Request::Copy { layer, region, .. } => {
                if !self.layers.contains_key(layer) {
                    return (no_layer(), Data::new());
                }
                match self.put(*layer, data, false) {
                    Reply::Done => Reply::Digest(self.sums(*layer, *region).digest()),
                    refused => refused,
                }
            }
            Request::Repair { layer, region, .. } => {
                if !self.layers.contains_key(layer) {
                    return (no_layer(), Data::new());
                }
                for (block, new) in data {
                    let own = self.layers[layer].get(block).copied();
                    let sure = !(*layer == head && self.unverified.contains(block));
                    if sure && own != *new {
                        let message = "it has something else".into();
                        return (Reply::Refused(Refusal::Invalid { message }), Data::new());
                    }
                }
                self.marks.insert(*region, self.fence.expect("greeted").generation);
                let same = |held: &BTreeMap<u64, Block>| {
                    data.iter().all(|(block, new)| held.get(block).copied() == *new)
                };
                if same(&self.layers[layer]) {
                    data.iter().for_each(|(block, _)| drop(self.bad.remove(&(*layer, *block))));
                    return (Reply::Done, Data::new());
                }
                self.put(*layer, data, false)
            }
            Request::Clear { regions } => {
                for region in regions {
                    let here = |block: u64| region.blocks().contains(&block);
                    let unsynced =
                        self.unflushed.keys().find(|(layer, block)| *layer == head && here(*block));
                    assert!(unsynced.is_none(), "cleared before it is synced: {unsynced:?}");
                    let range = region.range();
                    let writes =
                        self.taken.values().filter_map(|it| Footprint::of(&it.request, head));
                    let clash = writes.filter(|it| it.exclusive && it.layer == head);
                    let clash = clash.map(|it| it.range).find(|it| it.overlaps(range));
                    assert!(clash.is_none(), "cleared beside a write of {clash:?}");
                    self.marks.remove(region);
                }
                Reply::Done
            }
            Request::Marked => Reply::Occupied(self.marks.keys().copied().collect()),
            Request::Verified { region, .. } => {
                region.blocks().for_each(|block| {
                    self.unverified.remove(&block);
                });
                Reply::Done
            }
            Request::Chain(op) => self.change_chain(op),
            Request::DescribeChain => Reply::Chain(Box::new(self.chain.clone())),
            Request::Join { layer } => self.join(*layer),
            Request::AdoptChain(chain) => {
                self.layers = chain.layers.iter().map(|it| (it.id, BTreeMap::new())).collect();
                self.chain = (**chain).clone();
                self.unflushed.clear();
                self.unverified.clear();
                self.marks.clear();
                self.bad.clear();
                self.lost_writes = false;
                Reply::Done
            }
            Request::Ping => Reply::Done,
            Request::Bye => {
                assert!(self.unflushed.is_empty(), "a goodbye comes after everything is flushed");
                self.marks.clear();
                Reply::Done
            }
            Request::Hello(_) | Request::ReadSnapshot { .. } | Request::Changed { .. } => {
                unreachable!("no engine sends it here")
            }
        };
        (reply, Data::new())
    }

    fn with_layer(&self, layer: LayerId, reply: impl FnOnce(&Self) -> Reply<()>) -> Reply<()> {
        if self.layers.contains_key(&layer) { reply(self) } else { no_layer() }
    }

    fn put(&mut self, layer: LayerId, data: &Data, forced: bool) -> Reply<()> {
        let held = &self.layers[&layer];
        if self.full && data.iter().any(|(block, new)| new.is_some() && !held.contains_key(block)) {
            return Reply::Refused(Refusal::NoSpace);
        }
        let fails = self.fail_writes > 0;
        self.fail_writes -= u32::from(fails);
        let stamp = self.fence.expect("somebody was greeted").generation;
        let reach = if fails { data.len() / 2 } else { data.len() };
        for &(block, new) in &data[..reach] {
            self.marks.insert(Region(block / BLOCKS_PER_REGION), stamp);
            let held = self.layers.get_mut(&layer).expect("checked by the caller");
            let old = match new {
                Some(new) => held.insert(block, new),
                None => held.remove(&block),
            };
            self.unflushed.entry((layer, block)).or_insert(old);
            if forced {
                self.unflushed.remove(&(layer, block));
            }
            self.bad.remove(&(layer, block));
            self.unverified.remove(&block);
        }
        if fails {
            return Reply::Refused(Refusal::Io { message: "medium error".into() });
        }
        Reply::Done
    }

    fn read(&self, range: BlockRange, any: bool) -> (Reply<()>, Data) {
        let head = self.chain.head;
        let bad = self.bad_of(head, range.blocks().map(|block| block.0));
        if !bad.is_empty() {
            return (bad_blocks(bad), vec![]);
        }
        let held = &self.layers[&head];
        let doubtful = |block: u64| self.unverified.contains(&block) && held.contains_key(&block);
        if !any && range.blocks().any(|block| doubtful(block.0)) {
            return (Reply::Refused(Refusal::Unverified), vec![]);
        }
        let shown = range.blocks().map(|block| (block.0, Some(self.head_shows(block.0))));
        (Reply::Data(()), shown.collect())
    }

    fn fetch(&self, layer: LayerId, region: Region, blocks: &Blocks) -> (Reply<()>, Data) {
        let Some(held) = self.layers.get(&layer) else { return (no_layer(), vec![]) };
        let first = region.blocks().start;
        let wanted = blocks.slots().map(|slot| first + slot as u64);
        let data: Data = wanted.map(|block| (block, held.get(&block).copied())).collect();
        let bad = self.bad_of(layer, data.iter().map(|(block, _)| *block));
        if !bad.is_empty() {
            return (bad_blocks(bad), vec![]);
        }
        (Reply::Digest(self.sums(layer, region).digest()), data)
    }

    fn bad_of(&self, layer: LayerId, blocks: impl Iterator<Item = u64>) -> Vec<BadRegion> {
        let mut bad: Vec<BadRegion> = Vec::new();
        for block in blocks.filter(|block| self.bad.contains(&(layer, *block))) {
            let region = Region(block / BLOCKS_PER_REGION);
            if bad.last().is_none_or(|last| last.region != region) {
                bad.push(BadRegion { layer, region, blocks: Blocks::NONE, index: false });
            }
            let last = bad.last_mut().expect("pushed above");
            last.blocks.put((block % BLOCKS_PER_REGION) as usize, true);
        }
        bad
    }

    pub fn is_marked(&self) -> bool {
        !self.marks.is_empty()
    }

    fn sums(&self, layer: LayerId, region: Region) -> RegionSums {
        let sum = |block| match self.layers[&layer].get(&block) {
            None => BlockSum::Absent,
            Some([0, 0]) => BlockSum::Zero,
            Some(&[a, b]) => BlockSum::Data {
                crc: crc32c::crc32c(&[a.to_le_bytes(), b.to_le_bytes()].concat()),
                verified: !self.unverified.contains(&block),
            },
        };
        RegionSums(region.blocks().map(sum).collect())
    }

    fn change_chain(&mut self, op: &ChainOp) -> Reply<()> {
        if op.id <= self.chain.last_op {
            return Reply::Done;
        }
        let (head, size_bytes) = (self.chain.head, self.chain.size_bytes());
        let mut chain = self.chain.clone();
        chain.last_op = op.id;
        match &op.change {
            ChainChange::Snapshot { seal, new_head } => {
                seal_of(&mut chain, head).seal = Some(seal.clone());
                chain.layers.push(layer(*new_head, Some(head), size_bytes));
                chain.head = *new_head;
            }
            ChainChange::Revert { to, new_head } => {
                if chain.layer(*to).is_none_or(|layer| layer.removed) {
                    return no_layer();
                }
                chain.layers.retain(|layer| layer.id != head);
                chain.layers.push(layer(*new_head, Some(*to), size_bytes));
                chain.head = *new_head;
            }
            ChainChange::Remove { layer } => {
                if chain.layer(*layer).is_none() {
                    return no_layer();
                }
                seal_of(&mut chain, *layer).removed = true;
            }
            ChainChange::Expand { size_bytes } => {
                seal_of(&mut chain, head).size_bytes = *size_bytes;
            }
        }
        let is_leaf = |chain: &ChainInfo, id| chain.layers.iter().all(|it| it.parent != Some(id));
        while let Some(at) = chain.layers.iter().position(|it| it.removed && is_leaf(&chain, it.id))
        {
            chain.layers.remove(at);
        }
        self.take_chain(chain);
        Reply::Done
    }

    fn join(&mut self, id: LayerId) -> Reply<()> {
        let mut chain = self.chain.clone();
        let Some(removed) = chain.layer(id).filter(|layer| layer.removed).cloned() else {
            return Reply::Done;
        };
        let children: Vec<_> =
            chain.layers.iter().filter(|it| it.parent == Some(id)).map(|it| it.id).collect();
        if let [child] = children[..]
            && child != chain.head
        {
            let below = self.layers[&id].clone();
            let above = self.layers.get_mut(&child).expect("in the chain");
            below.into_iter().for_each(|(block, old)| {
                above.entry(block).or_insert(old);
            });
            seal_of(&mut chain, child).parent = removed.parent;
            chain.layers.retain(|layer| layer.id != id);
            self.take_chain(chain);
        }
        Reply::Done
    }

    fn take_chain(&mut self, chain: ChainInfo) {
        if chain.head != self.chain.head {
            self.unverified.clear();
        }
        self.layers.retain(|id, _| chain.layer(*id).is_some());
        for layer in &chain.layers {
            self.layers.entry(layer.id).or_default();
        }
        self.chain = chain;
    }

    /// Whether a power cut could take something from the head.
    pub fn has_unflushed_head(&self) -> bool {
        self.unflushed.keys().any(|(layer, _)| *layer == self.chain.head)
    }
}

fn layer(id: LayerId, parent: Option<LayerId>, size_bytes: u64) -> LayerInfo {
    LayerInfo { id, parent, seal: None::<Seal>, removed: false, size_bytes, data_bytes: 0 }
}

fn seal_of(chain: &mut ChainInfo, id: LayerId) -> &mut LayerInfo {
    chain.layers.iter_mut().find(|layer| layer.id == id).expect("looked up before")
}

fn spanning(mut blocks: impl Iterator<Item = u64>) -> Option<BlockRange> {
    let first = blocks.next()?;
    let last = blocks.last().unwrap_or(first);
    Some(BlockRange::new(BlockIndex(first), last - first + 1))
}

fn bad_blocks(regions: Vec<BadRegion>) -> Reply<()> {
    Reply::Refused(Refusal::BadBlocks { message: "some".into(), regions })
}

fn no_layer() -> Reply<()> {
    Reply::Refused(Refusal::Invalid { message: "there is no such layer".into() })
}
