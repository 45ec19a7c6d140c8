//! The client: random requests, changes of the chain, and what it makes of the answers.

use std::ops::Range;

use ankole_blockdev::disk::{Allocation, Buffer, Extent};

use super::*;
use crate::machine::{SECTOR_BYTES, fill, numbers};

/// A request of the client, and its buffer.
#[derive(Clone)]
pub(super) struct ClientOp {
    pub(super) operation: Operation,
    /// What it reads or writes.
    sectors: Range<Sector>,
    /// What it writes into each of them; 0 for zeroes.
    value: u64,
    /// Blocks that are written in part, as they are.
    pub(super) edges: BTreeMap<u64, Rc<Payload>>,
    sealed: Option<Rc<Payload>>,
    pub(super) start: u64,
    pub(super) submitted_us: u64,
    pub(super) got: Option<Rc<Payload>>,
    pub(super) answered: bool,
    pub(super) done: bool,
}

/// What is asked, apart from the bytes.
pub(super) struct Shape {
    operation: Operation,
    sectors: Range<Sector>,
}

const SECTORS_IN_BLOCK: u64 = SECTORS as u64;

impl Shape {
    /// All of the blocks that `operation` names.
    pub(super) fn whole(operation: Operation) -> Self {
        let range = match operation {
            Operation::Read { range }
            | Operation::Map { range }
            | Operation::Write { range, .. }
            | Operation::Zero { range, .. } => range,
            Operation::Flush => return Self { operation, sectors: 0..0 },
        };
        let sectors = range.first.0 * SECTORS_IN_BLOCK..range.end().0 * SECTORS_IN_BLOCK;
        Self { operation, sectors }
    }
}

impl ClientOp {
    pub(super) fn shape(&self) -> Shape {
        Shape { operation: self.operation, sectors: self.sectors.clone() }
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self.operation, Operation::Write { .. } | Operation::Zero { .. })
    }

    pub(super) fn written(&self) -> Range<Sector> {
        if self.is_write() { self.sectors.clone() } else { 0..0 }
    }

    pub(super) fn range(&self) -> Option<BlockRange> {
        match self.operation {
            Operation::Read { range }
            | Operation::Map { range }
            | Operation::Write { range, .. }
            | Operation::Zero { range, .. } => Some(range),
            Operation::Flush => None,
        }
    }

    fn is_forced(&self) -> bool {
        matches!(
            self.operation,
            Operation::Write { forced: true, .. } | Operation::Zero { forced: true, .. }
        )
    }

    /// The whole blocks that go out, once the edges are there.
    pub(super) fn seal(&mut self) -> Rc<Payload> {
        if let Some(sealed) = &self.sealed {
            return sealed.clone();
        }
        let length_bytes = (self.sectors.end - self.sectors.start) * SECTOR_BYTES;
        let at = Extent { offset_bytes: self.sectors.start * SECTOR_BYTES, length_bytes };
        let mut bytes = Buffer::zeroed(length_bytes as usize);
        bytes.chunks_exact_mut(SECTOR_BYTES as usize).for_each(|sector| fill(sector, self.value));
        let edges = self.edges.iter().map(|(block, payload)| (BlockIndex(*block), &**payload));
        let sealed = Rc::new(Payload::Blocks(BlockData::over_edges(at, bytes, edges)));
        self.sealed = Some(sealed.clone());
        sealed
    }

    /// What its blocks are when it is done: block and content.
    pub(super) fn content(&mut self) -> Vec<(u64, Block)> {
        match self.operation {
            Operation::Write { range, .. } => {
                let Payload::Blocks(sealed) = &*self.seal() else { return Vec::new() };
                let blocks = sealed.data.chunks_exact(BLOCK_BYTES as usize).map(numbers);
                range.blocks().map(|block| block.0).zip(blocks).collect()
            }
            Operation::Zero { range, .. } => {
                range.blocks().map(|block| (block.0, [0; SECTORS])).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl World {
    pub(super) fn client_step(&mut self) {
        let wait = 100 + self.rng.below(4 * MS);
        self.after(wait, "client", Self::client_step);
        self.check_bounds();
        let alive: Vec<_> = self
            .engines
            .iter()
            .filter(|it| it.1.alive && !it.1.detaching && it.1.thread.busy_us().is_none())
            .map(|it| *it.0)
            .collect();
        if !self.faults || alive.is_empty() {
            return self.job_step();
        }
        let id = self.rng.pick(&alive);
        let busy = self.engines[&id].ops.values().filter(|op| !op.done).count();
        if busy < 8 && !self.is_quiet && !self.wants_revert && !self.is_reverting() {
            let shape = self.random_request();
            self.submit(id, shape);
        }
        self.job_step();
    }

    /// Nobody uses a volume that is being reverted.
    pub(super) fn is_reverting(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| matches!(pending.job, Job::Revert { .. }))
    }

    fn random_request(&mut self) -> Shape {
        let is_cold = self.rng.percent(4);
        let first = if is_cold { self.rng.pick(&self.places.cold) } else { self.rng.pick(&HOT) };
        let most = if is_cold { 1 } else { 4.min(2 * REGION_BLOCKS - first) };
        let count = 1 + self.rng.below(most);
        let range = BlockRange::new(BlockIndex(first), count);
        let forced = self.rng.percent(10);
        let kind = self.rng.below(100);
        let mut sectors = first * SECTORS_IN_BLOCK..range.end().0 * SECTORS_IN_BLOCK;
        let operation = match kind {
            0..40 => Operation::Read { range },
            40..43 => Operation::Map { range },
            43..53 => Operation::Flush,
            53..60 => Operation::Zero { range, forced },
            _ => {
                if self.rng.percent(40) {
                    sectors.start += 1 + self.rng.below(SECTORS_IN_BLOCK - 1);
                }
                let last = sectors.end - SECTORS_IN_BLOCK.min(sectors.end - sectors.start) + 1;
                if self.rng.percent(40) {
                    sectors.end = last + self.rng.below(sectors.end - last + 1);
                }
                let last = BlockIndex(range.end().0 - 1);
                let starts_within = !sectors.start.is_multiple_of(SECTORS_IN_BLOCK);
                let ends_within = !sectors.end.is_multiple_of(SECTORS_IN_BLOCK);
                let edges = match (starts_within, ends_within) {
                    (true, true) if count == 1 => [Some(last), None],
                    (starts, ends) => [starts.then_some(range.first), ends.then_some(last)],
                };
                Operation::Write { range, edges, forced }
            }
        };
        Shape { operation, sectors }
    }

    pub(super) fn submit(&mut self, id: u64, shape: Shape) {
        self.next_value += 1;
        self.tick += 1;
        self.tally.ios += 1;
        let is_zero = matches!(shape.operation, Operation::Zero { .. });
        let op = ClientOp {
            operation: shape.operation,
            sectors: shape.sectors,
            value: if is_zero { 0 } else { self.next_value },
            edges: BTreeMap::new(),
            sealed: None,
            start: self.tick,
            submitted_us: self.now_us(),
            got: None,
            answered: false,
            done: false,
        };
        self.begin_writes(&op);
        let now = self.now(id);
        let engine = self.engine(id);
        let io = engine.core.submit(now, op.operation);
        engine.ops.insert(io, op);
        self.act(id);
    }

    pub(super) fn begin_writes(&mut self, op: &ClientOp) {
        for at in op.written() {
            self.history.write_begins(at, op.value, op.start, op.is_forced());
        }
    }

    /// The answer is with the client.
    pub(super) fn answer(&mut self, id: u64, io: IoId, fine: bool) {
        let tick = self.tick;
        // Before, it may have seen what a power cut or a revert took since.
        let (newest, cut_at) = (self.newest, self.cut_at);
        let Some(op) = self.engine(id).ops.get_mut(&io) else { return };
        let counts = id == newest || op.start > cut_at;
        op.done = true;
        let (operation, start, got) = (op.operation, op.start, op.got.take());
        for at in op.written() {
            self.history.write_ends(at, start, tick, fine);
        }
        // Of every engine: a late one reads only while no newer one acknowledges.
        match (operation, got.as_deref()) {
            (Operation::Flush, _) if fine => self.history.flush_ends(start),
            (Operation::Read { range }, Some(Payload::Blocks(read))) if fine && counts => {
                let mut sector = range.first.0 * SECTORS_IN_BLOCK;
                for block in read.data.chunks_exact(BLOCK_BYTES as usize) {
                    for value in numbers(block) {
                        self.history.read(sector, value, start, tick);
                        sector += 1;
                    }
                }
            }
            (Operation::Map { range }, Some(Payload::Map(runs))) if fine && counts => {
                let mut block = range.first.0;
                for run in runs {
                    let sectors = block * SECTORS_IN_BLOCK..(block + run.blocks) * SECTORS_IN_BLOCK;
                    if run.allocation == Allocation::Zero {
                        sectors.for_each(|sector| self.history.read(sector, 0, start, tick));
                    }
                    block += run.blocks;
                }
            }
            (Operation::Read { .. } | Operation::Map { .. }, got) if fine => {
                assert!(got.is_some(), "a read was answered without data");
            }
            _ => {}
        }
        self.tell(id, |core, now| core.release(now, io));
    }

    fn job_step(&mut self) {
        let id = self.newest;
        let engine = &self.engines[&id];
        let ready = engine.alive && engine.opened && !engine.detaching && self.pending.is_none();
        if !ready {
            return;
        }
        if self.wants_revert {
            if engine.ops.values().all(|op| op.done) {
                self.wants_revert = false;
                if let Some(to) = self.snapshots.keys().next_back().copied() {
                    self.start_job(Job::Revert { to });
                }
            }
            return;
        }
        if !self.faults || !self.jobs || !self.rng.percent(self.job_percent()) {
            return;
        }
        match self.rng.below(10) {
            0..5 => self.start_job(Job::Snapshot { seal: Seal::default() }),
            5..7 => {
                let ids: Vec<_> = self.snapshots.keys().copied().collect();
                if !ids.is_empty() {
                    let layer = self.rng.pick(&ids);
                    self.snapshots.remove(&layer);
                    self.start_job(Job::Remove { layer });
                }
            }
            7..9 => self.wants_revert = !self.snapshots.is_empty(),
            _ => {
                let now_is = self.engines[&id].core.status().chain.size_bytes();
                let size_bytes = now_is + self.rng.below(2) * VOLUME_UNIT_BYTES;
                self.start_job(Job::Expand { size_bytes });
            }
        }
    }

    pub(super) fn start_job(&mut self, job: Job) {
        self.log(|| format!("job {job:?}"));
        let (engine, start) = (self.newest, self.tick);
        let before = self.engines[&engine].core.status().chain;
        self.pending = Some(PendingJob { engine, id: None, job: job.clone(), start, before });
        let now = self.now(engine);
        let id = self.engine(engine).core.start_job(now, job);
        self.pending.as_mut().expect("set above").id = Some(id);
        self.act(engine);
    }

    /// A job is over, or was cut short by the engine's end and its successor has opened.
    pub(super) fn resolve_job(&mut self, id: u64, reported: bool) {
        let Some(pending) = self.pending.take() else { return };
        let chain = self.engines[&id].core.status().chain;
        match pending.job {
            Job::Snapshot { .. } if reported => {
                let sealed = pending.before.head;
                let Some(content) = self.content_of(sealed) else { return };
                let of = |at: Sector| {
                    let block = content.get(&(at / SECTORS_IN_BLOCK));
                    block.map_or(0, |block| block[(at % SECTORS_IN_BLOCK) as usize])
                };
                self.history.snapshot(of, pending.start, self.tick);
                self.snapshots.insert(sealed, content);
                self.check_snapshots();
            }
            Job::Revert { to } if chain.last_op > pending.before.last_op => {
                let content = self.snapshots[&to].clone();
                self.cut_at = self.tick;
                self.history.reset(|at| {
                    let block = content.get(&(at / SECTORS_IN_BLOCK));
                    block.map_or(0, |block| block[(at % SECTORS_IN_BLOCK) as usize])
                });
            }
            _ => assert!(
                !reported
                    || chain.last_op > pending.before.last_op
                    || chain == pending.before
                    || matches!(pending.job, Job::Remove { .. } | Job::Expand { .. }),
                "{:?} was reported and not done",
                pending.job
            ),
        }
    }
}
