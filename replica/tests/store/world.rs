//! A store on a simulated disk beside a model that is too simple to be wrong.
//!
//! The model is a flat array per view; each sector remembers what it has been since the last
//! flush, so that after a power cut it may be any of these, and after a kill only the newest.

use std::collections::BTreeMap;

use ankole_blockdev::disk::Buffer;
use ankole_replica::chain::{ChainChange, ChainOp, Seal};
use ankole_replica::store::crash::{Disk, Random};
use ankole_replica::store::{Membership, ReplicaState, Store, StoreError, StoreOptions, View};
use ankole_replica::types::{
    BLOCKS_PER_REGION, BlockIndex, BlockRange, ChainOpId, LayerId, Region, VOLUME_UNIT_BYTES,
};

use super::{BLOCK, Fill, GENERATION, identity, write_fills};

const SECTORS: usize = 8;
const SIZE: u64 = VOLUME_UNIT_BYTES;

#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Block `i` of the range gets fill `first + i`, and every fourth zeroes.
    Write {
        range: BlockRange,
        first: u64,
    },
    Zero(BlockRange),
    Flush,
    /// Flushes and clears the marks, as an engine does when all replicas have the writes.
    Clear,
    Snapshot,
    /// Of the snapshot at this place in the list, modulo its length.
    Revert(u64),
    Remove(u64),
    Join(u64),
    /// A join while others write and flush.
    JoinBesideWrites {
        choice: u64,
        first: u64,
    },
    Expand,
    Read(BlockRange),
    /// A clean stop and a new start.
    Reopen,
}

/// What happened to the process or the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    Kill,
    PowerCut,
}

/// What each of a block's sectors has been since the last flush, oldest first.
type History = Vec<[Fill; SECTORS]>;

#[derive(Clone)]
pub(crate) struct Model {
    top: Vec<History>,
    snapshots: BTreeMap<LayerId, Vec<[Fill; SECTORS]>>,
    removed: Vec<LayerId>,
    head: LayerId,
    last_op: ChainOpId,
    next_layer: u32,
}

pub(crate) struct World {
    pub(crate) disk: Disk,
    pub(crate) store: Store<Disk>,
    pub(crate) model: Model,
    /// What the operation that runs may turn the model into.
    pending: Option<Model>,
    fills: u64,
}

pub(crate) fn random_ops(seed: u64, count: usize) -> Vec<Op> {
    let mut random = Random::new(seed);
    let range = |random: &mut Random| {
        let length = [1, 2, 7, 40, 300][random.below(5) as usize];
        // Mostly the same few places, and a border of regions: operations must meet.
        let first = [0, 3, 250, 256, random.below(200)][random.below(5) as usize];
        BlockRange::new(BlockIndex(first), length.min(SIZE / BLOCK as u64 - first))
    };
    let mut op = |index: usize| match random.below(32) {
        0..=12 => Op::Write { range: range(&mut random), first: index as u64 * 1000 + 1 },
        13..=15 => Op::Zero(range(&mut random)),
        16..=18 => Op::Flush,
        19..=20 => Op::Clear,
        21..=23 => Op::Snapshot,
        24 => Op::Revert(random.number()),
        25..=26 => Op::Remove(random.number()),
        27 => Op::Join(random.number()),
        28 => Op::JoinBesideWrites { choice: random.number(), first: index as u64 * 1000 + 1 },
        29 => Op::Expand,
        30 => Op::Read(range(&mut random)),
        _ => Op::Reopen,
    };
    (0..count).map(&mut op).collect()
}

pub(crate) async fn open(disk: &Disk) -> Result<Store<Disk>, StoreError> {
    // The smallest cache: pages go in and out all the time.
    Store::open(disk.clone(), StoreOptions { index_cache_bytes: 0 }).await
}

pub(crate) fn member() -> Membership {
    Membership {
        state: ReplicaState::Member,
        synced_gen: Some(GENERATION),
        synced_set: vec![("r1".into(), identity().incarnation)],
        ..Membership::NEW
    }
}

impl Model {
    fn new() -> Self {
        let blocks = (SIZE / BLOCK as u64) as usize;
        Self {
            top: vec![vec![[Fill(0); SECTORS]]; blocks],
            snapshots: BTreeMap::new(),
            removed: Vec::new(),
            head: LayerId(1),
            last_op: ChainOpId(0),
            next_layer: 2,
        }
    }

    fn size_bytes(&self) -> u64 {
        (self.top.len() * BLOCK) as u64
    }

    fn put(&mut self, block: BlockIndex, fill: Fill) {
        self.top[block.0 as usize].push([fill; SECTORS]);
    }

    fn flushed(&mut self) {
        for history in &mut self.top {
            let newest = *history.last().expect("a history has a value");
            *history = vec![newest];
        }
    }

    fn newest(&self) -> Vec<[Fill; SECTORS]> {
        self.top.iter().map(|history| *history.last().expect("a value")).collect()
    }

    fn change(&mut self) -> ChainOpId {
        self.last_op.0 += 1;
        self.last_op
    }

    fn new_head(&mut self) -> LayerId {
        self.head = LayerId(self.next_layer);
        self.next_layer += 1;
        self.head
    }

    fn nth_snapshot(&self, choice: u64) -> Option<LayerId> {
        let count = self.snapshots.len() as u64;
        (count > 0).then(|| *self.snapshots.keys().nth((choice % count) as usize).expect("below"))
    }
}

impl World {
    pub(crate) async fn new(seed: u64) -> Self {
        let disk = Disk::new(seed);
        Store::format(disk.clone(), identity(), SIZE, LayerId(1)).await.expect("a new disk");
        let store = open(&disk).await.expect("just made");
        store.set_membership(member()).await.expect("a sound disk");
        Self { disk, store, model: Model::new(), pending: None, fills: 0 }
    }

    /// Does the operation on both; on an error the model knows that it may or may not be done.
    pub(crate) async fn play(&mut self, op: &Op) -> Result<(), StoreError> {
        let mut after = self.model.clone();
        let change = match op {
            Op::Write { range, first } => {
                let fill = |index: u64| {
                    let zero = (first + index).is_multiple_of(4);
                    Fill(if zero { 0 } else { first + index })
                };
                for (block, index) in range.blocks().zip(0..) {
                    after.put(block, fill(index));
                }
                self.pending = Some(after);
                write_fills(&self.store, *range, fill).await?;
                return self.done();
            }
            Op::Zero(range) => {
                range.blocks().for_each(|block| after.put(block, Fill(0)));
                self.pending = Some(after);
                self.store.zero(*range, GENERATION).await?;
                return self.done();
            }
            Op::Flush | Op::Clear => {
                after.flushed();
                self.store.flush().await?;
                self.model = after;
                if matches!(op, Op::Clear) {
                    let regions = 0..self.store.size_bytes() / (BLOCK as u64 * BLOCKS_PER_REGION);
                    self.store.clear(&regions.map(Region).collect::<Vec<_>>()).await?;
                }
                return Ok(());
            }
            Op::Read(range) => {
                let read = read_sectors(&self.store, View::Top, *range).await?;
                let newest = self.model.newest();
                for (block, sectors) in range.blocks().zip(read) {
                    assert_eq!(sectors, newest[block.0 as usize], "block {}", block.0);
                }
                return Ok(());
            }
            Op::Join(choice) => {
                if !self.model.removed.is_empty() {
                    let at = (choice % self.model.removed.len() as u64) as usize;
                    self.store.join(self.model.removed[at]).await?;
                }
                return Ok(());
            }
            Op::JoinBesideWrites { choice, first } => {
                let one = BlockRange::new(BlockIndex(0), 40);
                let other = BlockRange::new(BlockIndex(200), 100);
                one.blocks().chain(other.blocks()).for_each(|block| after.put(block, Fill(*first)));
                self.pending = Some(after);
                let removed = &self.model.removed;
                let layer = removed.get((choice % removed.len().max(1) as u64) as usize);
                let (join, flush, one, other) = tokio::join!(
                    self.store.join(layer.copied().unwrap_or(self.model.head)),
                    self.store.flush(),
                    write_fills(&self.store, one, |_| Fill(*first)),
                    write_fills(&self.store, other, |_| Fill(*first)),
                );
                join?;
                flush?;
                one?;
                other?;
                return self.done();
            }
            Op::Reopen => return self.reopen().await,
            Op::Snapshot => {
                after.flushed();
                let sealed = after.head;
                after.snapshots.insert(sealed, after.newest());
                let seal = Seal { name: Some(format!("s{}", sealed.0)), ..Seal::default() };
                ChainChange::Snapshot { seal, new_head: after.new_head() }
            }
            Op::Revert(choice) => {
                let Some(to) = self.model.nth_snapshot(*choice) else { return Ok(()) };
                let size = after.top.len();
                after.top = after.snapshots[&to].iter().map(|sectors| vec![*sectors]).collect();
                after.top.resize(size, vec![[Fill(0); SECTORS]]);
                ChainChange::Revert { to, new_head: after.new_head() }
            }
            Op::Remove(choice) => {
                let Some(layer) = self.model.nth_snapshot(*choice) else { return Ok(()) };
                after.snapshots.remove(&layer);
                after.removed.push(layer);
                ChainChange::Remove { layer }
            }
            Op::Expand => {
                if self.model.size_bytes() >= 3 * SIZE {
                    return Ok(());
                }
                let blocks = after.top.len() + (SIZE as usize / BLOCK);
                after.top.resize(blocks, vec![[Fill(0); SECTORS]]);
                ChainChange::Expand { size_bytes: after.size_bytes() }
            }
        };
        let op = ChainOp { id: after.change(), change };
        self.pending = Some(after);
        self.store.apply(&op).await?;
        self.done()
    }

    fn done(&mut self) -> Result<(), StoreError> {
        self.fills += 1;
        self.model = self.pending.take().expect("an operation ran");
        Ok(())
    }

    async fn reopen(&mut self) -> Result<(), StoreError> {
        // The old store goes first: there is one lock. An empty disk stands in meanwhile.
        let parked = Disk::new(0);
        Store::format(parked.clone(), identity(), SIZE, LayerId(1)).await.expect("a new disk");
        let parked = open(&parked).await.expect("just made");
        let store = std::mem::replace(&mut self.store, parked);
        store.close().await?;
        self.model.flushed(); // a clean stop flushes
        self.store = open(&self.disk).await?;
        Ok(())
    }

    /// Ends the process or the machine, starts again and compares; what is found is the truth now.
    pub(crate) async fn crash(self, crash: Crash, seed: u64) -> Self {
        let Self { disk, store, model, pending, fills } = self;
        drop(store);
        let disk = match crash {
            Crash::Kill => disk.after_kill(),
            Crash::PowerCut => disk.after_power_cut(seed),
        };
        let store = open(&disk).await.unwrap_or_else(|error| panic!("a store opens: {error}"));
        if crash == Crash::PowerCut {
            let marked = store.marked_regions().expect("the map is sound");
            assert!(!store.continuous() || marked.is_empty(), "it may have lost writes");
        }
        let was_done = pending.as_ref().is_some_and(|after| {
            after.last_op == store.chain().last_op && after.last_op != model.last_op
        });
        let (mut model, pending) = if was_done {
            (pending.expect("it was looked at"), None)
        } else {
            assert_eq!(store.chain().last_op, model.last_op, "a change is done or never begun");
            (model, pending)
        };
        let same_chain = |after: &Model| after.last_op == model.last_op;
        let pending = pending.filter(same_chain);
        let found = read_all(&store, View::Top).await;
        assert_eq!(found.len(), model.top.len());
        for (index, sectors) in found.iter().enumerate() {
            let mut allowed = match crash {
                Crash::PowerCut => model.top[index].clone(),
                Crash::Kill => vec![*model.top[index].last().expect("a value")],
            };
            if let Some(after) = &pending {
                allowed.push(*after.top[index].last().expect("a value"));
            }
            for sector in 0..SECTORS {
                assert!(
                    allowed.iter().any(|value| value[sector] == sectors[sector]),
                    "block {index}, sector {sector} is {:?}, it may be one of {allowed:?}",
                    sectors[sector]
                );
            }
        }
        // What a crash left has been decided: no later look may differ, even after another kill.
        for (history, sectors) in model.top.iter_mut().zip(found) {
            if crash == Crash::PowerCut {
                history.clear(); // what a kill left in the kernel may still be lost
            }
            history.push(sectors);
        }
        drop(store);
        let disk = disk.after_kill();
        let store = open(&disk).await.expect("it opened before");
        let world = Self { disk, store, model, pending: None, fills };
        world.check().await;
        if world.store.failure().is_none() {
            world.store.set_membership(member()).await.expect("a sound disk");
        }
        world
    }

    pub(crate) async fn check(&self) {
        check(&self.store, &self.model).await;
    }

    /// Lets every join go as far as it can.
    pub(crate) async fn finish_joins(&self) {
        for layer in self.store.chain().layers {
            self.store.join(layer.id).await.expect("a sound disk");
        }
    }
}

/// Every view is what the model says, and every byte has its sum.
pub(crate) async fn check(store: &Store<Disk>, model: &Model) {
    assert_eq!(store.size_bytes(), model.size_bytes());
    assert_eq!(read_all(store, View::Top).await, model.newest(), "the volume");
    for (&layer, expected) in &model.snapshots {
        assert_eq!(&read_all(store, View::Layer(layer)).await, expected, "snapshot {layer}");
    }
    let report = store.verify().await.expect("it can be read");
    assert_eq!(report.blocks_bad, 0, "{report:?}");
}

async fn read_sectors(
    store: &Store<Disk>,
    view: View,
    range: BlockRange,
) -> Result<Vec<[Fill; SECTORS]>, StoreError> {
    let buffer = Buffer::zeroed(range.length_bytes() as usize);
    let (report, buffer) = store.read(view, range, buffer).await;
    match report {
        Err(ankole_replica::store::ReadError::Store(error)) => return Err(error),
        Err(bad) => {
            let source = std::io::Error::other(bad.to_string());
            return Err(StoreError::Io { doing: "read", place: store.place(), source });
        }
        Ok(_) => {}
    }
    Ok(buffer.chunks_exact(BLOCK).map(Fill::sectors_of).collect())
}

async fn read_all(store: &Store<Disk>, view: View) -> Vec<[Fill; SECTORS]> {
    let size_bytes = match view {
        View::Top => store.size_bytes(),
        View::Layer(id) | View::Own(id) => {
            let chain = store.chain();
            chain.layers.iter().find(|layer| layer.id == id).expect("it is there").size_bytes
        }
    };
    let range = BlockRange::new(BlockIndex(0), size_bytes / BLOCK as u64);
    read_sectors(store, view, range).await.unwrap_or_else(|error| panic!("{view:?}: {error}"))
}
