//! The client: random requests, changes of the chain, and what it makes of the answers.

use super::*;

impl World {
    pub(super) fn client_step(&mut self) {
        let wait = 100 + self.rng.below(4 * MS);
        self.after(wait, "client", Self::client_step);
        let alive: Vec<_> = self
            .engines
            .iter()
            .filter(|it| it.1.alive && !it.1.detaching)
            .map(|it| *it.0)
            .collect();
        if !self.faults || alive.is_empty() {
            return self.job_step();
        }
        let id = self.rng.pick(&alive);
        let busy = self.engines[&id].ops.values().filter(|op| !op.done).count();
        if busy < 8 && !self.wants_revert && !self.is_reverting() {
            let (operation, cells) = self.random_request();
            self.submit(id, operation, cells);
        }
        self.job_step();
    }

    /// Nobody uses a volume that is being reverted.
    pub(super) fn is_reverting(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| matches!(pending.job, Job::Revert { .. }))
    }

    pub(super) fn random_request(&mut self) -> (Operation, BTreeMap<u64, [Option<u64>; 2]>) {
        let first = self.rng.pick(&HOT);
        let count = 1 + self.rng.below(4).min(2 * REGION_BLOCKS - first - 1);
        let range = BlockRange::new(BlockIndex(first), count);
        let forced = self.rng.percent(10);
        let kind = self.rng.below(100);
        if kind < 45 {
            return (Operation::Read { range }, BTreeMap::new());
        } else if kind < 55 {
            return (Operation::Flush, BTreeMap::new());
        } else if kind < 62 {
            return (Operation::Zero { range, forced }, BTreeMap::new());
        }
        let mut cells: BTreeMap<_, _> =
            range.blocks().map(|block| (block.0, [Some(0), Some(0)])).collect();
        let mut edges = [None; 2];
        let last = BlockIndex(range.end().0 - 1);
        if self.rng.percent(40) {
            edges[0] = Some(range.first);
            cells.entry(first).and_modify(|it| it[0] = None);
        }
        if count > 1 && self.rng.percent(40) {
            edges[1] = Some(last);
            cells.entry(last.0).and_modify(|it| it[1] = None);
        }
        (Operation::Write { range, edges, forced }, cells)
    }

    pub(super) fn submit(
        &mut self,
        id: u64,
        operation: Operation,
        cells: BTreeMap<u64, [Option<u64>; 2]>,
    ) {
        self.next_value += 1;
        self.tick += 1;
        let value = self.next_value;
        let mut op = ClientOp {
            operation,
            cells,
            written: Vec::new(),
            start: self.tick,
            got: Data::new(),
            answered: false,
            done: false,
        };
        if let Operation::Zero { range, .. } = operation {
            op.written = range.blocks().flat_map(|it| [(it.0, 0), (it.0, 1)]).collect();
        }
        if let Operation::Write { range, edges, .. } = operation {
            let last = range.end().0 - 1;
            for (block, sectors) in &mut op.cells {
                let edge = |at: usize, of: u64| edges[at].is_some() && *block == of;
                *sectors =
                    [(!edge(0, range.first.0)).then_some(value), (!edge(1, last)).then_some(value)];
                let new = (0..2).filter(|at| sectors[*at].is_some());
                op.written.extend(new.map(|at| (*block, at)));
            }
        }
        self.begin_writes(&op);
        let now = self.now();
        let engine = self.engine(id);
        let io = engine.core.submit(now, operation);
        engine.ops.insert(io, op);
        self.act(id);
    }

    pub(super) fn begin_writes(&mut self, op: &ClientOp) {
        let forced = matches!(
            op.operation,
            Operation::Write { forced: true, .. } | Operation::Zero { forced: true, .. }
        );
        for at in &op.written {
            let value = op.cells.get(&at.0).map_or(0, |sectors| sectors[at.1].expect("new"));
            self.history.write_begins(*at, value, op.start, forced);
        }
    }

    /// The answer is with the client.
    pub(super) fn answer(&mut self, id: u64, io: IoId, fine: bool) {
        let tick = self.tick;
        let is_newest = id == self.newest;
        let Some(op) = self.engine(id).ops.get_mut(&io) else { return };
        op.done = true;
        let op = op.clone();
        for at in &op.written {
            self.history.write_ends(*at, op.start, tick, fine);
        }
        match op.operation {
            Operation::Flush if fine => self.history.flush_ends(op.start),
            // Of every engine: one that is late reads only while no newer one acknowledges.
            Operation::Read { .. } if fine && (is_newest || op.start > self.cut_at) => {
                for (block, sectors) in op.got {
                    for (half, value) in sectors.unwrap_or_default().into_iter().enumerate() {
                        self.history.read((block, half), value, op.start, tick);
                    }
                }
            }
            _ => {}
        }
        self.tell(id, |core, now| core.release(now, io));
    }

    pub(super) fn job_step(&mut self) {
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
        if !self.faults || !self.jobs || !self.rng.percent(3) {
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
                let now_is = engine.core.status().chain.size_bytes();
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
        let now = self.now();
        let id = self.engine(engine).core.start_job(now, job);
        self.pending.as_mut().expect("set above").id = Some(id);
        self.act(engine);
    }

    /// A job is over, or was cut short by the engine's end and its successor has opened.
    pub(super) fn resolve_job(&mut self, id: u64, reported: bool) {
        let Some(pending) = self.pending.take() else { return };
        let chain = self.engines[&id].core.status().chain;
        let from = self.members()[0];
        match pending.job {
            Job::Snapshot { .. } if reported => {
                let sealed = pending.before.head;
                let blocks: BTreeSet<_> = self.history.sectors().iter().map(|at| at.0).collect();
                let shown = |block: u64| (block, self.replicas[from].shown(sealed, block));
                let content: BTreeMap<_, _> = blocks.into_iter().map(shown).collect();
                self.history.snapshot(|at| content[&at.0][at.1], pending.start, self.tick);
                self.snapshots.insert(sealed, content);
                self.check_snapshots();
            }
            Job::Revert { to } if chain.last_op > pending.before.last_op => {
                let content = self.snapshots[&to].clone();
                self.history.reset(|at| content.get(&at.0).map_or(0, |it| it[at.1]));
                self.cut_at = self.tick;
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
