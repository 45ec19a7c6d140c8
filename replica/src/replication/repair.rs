//! A block that a replica can't read is taken from another member (rule 19).
//!
//! Owns what is known to be bad on whom. Promises that a repair holds the range exclusively from
//! the reading of the good copy to the end of its writing, so that no older block lands on a newer
//! one; that the bad replica checks it against its own index; and that nothing is tried for ever:
//! what no member can read is named in the status and fails its reads.
//!
//! ```text
//! BadBlocks ─▶ queued ─▶ Locking ─▶ (Comparing ─▶) Fetching ─▶ Writing ─▶ readable again
//!                 ▲                 index page:     │ can't read it either: the next member;
//!                 └── for the other member too ─────┘ nobody: the block is lost
//! ```
//! Also owns which replicas have asked to be spared a read because their checksums were never
//! compared (rule 20): such a copy is shown only if no member has another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::action::{Action, Destination, IoId, PayloadRef, TransferId};
use super::core::{Core, LockOwner};
use super::damage::{DamageNews, DamageStatus, DamagedBlocks, Damages};
use super::fan_out::FanOut;
use super::io::IoStage;
use super::locks::{LockId, LockMode};
use super::lost::Lost;
use super::peer::Purpose;
use super::slots::{Slot, Slots};
use crate::chain::index::Blocks;
use crate::message::{BadRegion, Refusal, RegionSums, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_REGION, BlockIndex, BlockRange, LayerId, Region};

/// Regions with bad blocks that wait for their repair; more are found again by the next read.
const QUEUE_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Repairs {
    queue: VecDeque<Job>,
    running: Option<Running>,
    /// Reads that no member could answer whole: they are tried once more when the queue is empty.
    waiting: Vec<IoId>,
    damages: Damages,
    lost: Lost,
    /// Members differ in them and none can read its own: shown to nobody, and the marks stay.
    undecided: BTreeMap<Region, Blocks>,
    /// Who has the blocks of a read, but with checksums that were never compared.
    doubts: BTreeMap<IoId, Slots>,
    /// Regions that had only one member when they were settled: nobody's checksums are better.
    unverified: BTreeMap<Region, Blocks>,
}

#[derive(Clone, Debug)]
struct Job {
    slot: Slot,
    layer: LayerId,
    region: Region,
    blocks: Blocks,
    /// The whole region is made anew: its index page is damaged.
    index: bool,
    /// Members that can't read these blocks either, or have others.
    tried: Slots,
    /// A member has other blocks than this one's index says.
    differs: bool,
}

#[derive(Debug)]
struct Running {
    job: Job,
    lock: Option<LockId>,
    stage: RepairStage,
    /// Spoiled when the bad replica is lost: over as soon as the source has answered.
    asked: FanOut,
    transfer: Option<TransferId>,
}

#[derive(Debug)]
enum RepairStage {
    Locking,
    /// The others must agree about what the layer has there.
    Comparing {
        sums: BTreeMap<Slot, RegionSums>,
    },
    Fetching,
    Writing {
        from: Slot,
    },
}

impl Repairs {
    pub(super) fn repaired_blocks(&self) -> u64 {
        self.damages.repaired_blocks()
    }

    pub(super) fn unverified_bytes(&self) -> u64 {
        self.unverified.values().map(|blocks| blocks.count() * BLOCK_BYTES).sum()
    }

    /// A region was settled with one member, which has these blocks with rebuilt checksums.
    pub(super) fn note_unverified(&mut self, region: Region, blocks: Blocks) {
        if !blocks.is_empty() {
            self.unverified.insert(region, blocks);
        }
    }

    pub(super) fn note_undecided(&mut self, head: LayerId, region: Region, blocks: Blocks) {
        self.undecided.insert(region, blocks);
        self.lost.give_up(DamagedBlocks { layer: head, region, blocks });
    }

    pub(super) fn is_undecided(&self, range: BlockRange) -> bool {
        touches(&self.undecided, range)
    }

    /// Regions whose marks must stay.
    pub(super) fn has_undecided(&self) -> bool {
        !self.undecided.is_empty()
    }

    /// All that waited were answered with an error.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    pub(super) fn forget_io(&mut self, id: IoId) {
        if !self.doubts.is_empty() {
            self.doubts.remove(&id);
        }
    }

    fn is_known_unverified(&self, range: BlockRange) -> bool {
        touches(&self.unverified, range)
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Its blocks that are to be repaired.
    fn waiting_blocks(&self, slot: Slot) -> u64 {
        let running = self.running.as_ref().map(|running| &running.job);
        let jobs = running.into_iter().chain(&self.queue).filter(|job| job.slot == slot);
        jobs.map(|job| job.blocks.count()).sum()
    }

    /// A member that is back, or new, may have what nobody could read.
    pub(super) fn hope_again(&mut self, head: LayerId) {
        let undecided = &self.undecided;
        self.lost.hope_again(|layer, region| layer == head && undecided.contains_key(&region));
    }

    pub(super) fn forget_layers_but(&mut self, is_there: impl Fn(LayerId) -> bool) {
        self.lost.forget_layers_but(is_there);
    }

    fn is_busy(&self) -> bool {
        self.is_running() || !self.queue.is_empty()
    }
}

fn touches(all: &BTreeMap<Region, Blocks>, range: BlockRange) -> bool {
    let touched = |region: Region| {
        let here = Blocks::span(slots_of(range.clipped_to(region)));
        all.get(&region).is_some_and(|blocks| !(*blocks & here).is_empty())
    };
    !all.is_empty() && range.regions().any(touched)
}

fn slots_of(part: BlockRange) -> std::ops::Range<usize> {
    let first = (part.first.0 % BLOCKS_PER_REGION) as usize;
    first..first + part.count as usize
}

impl Job {
    fn damaged(&self) -> DamagedBlocks {
        DamagedBlocks { layer: self.layer, region: self.region, blocks: self.blocks }
    }

    /// What is locked: the blocks and those between them.
    fn range(&self) -> BlockRange {
        if self.index {
            return self.region.range();
        }
        let first = self.blocks.slots().next().expect("a job has blocks") as u64;
        let last = self.blocks.slots().last().expect("a job has blocks") as u64;
        let start = self.region.0 * BLOCKS_PER_REGION;
        BlockRange::new(BlockIndex(start + first), last - first + 1)
    }
}

impl Core {
    // ---- what is bad -----------------------------------------------------------------------

    /// A member said that it can't read these; they are repaired in the background.
    pub(super) fn note_bad(&mut self, now: Instant, slot: Slot, bad: &[BadRegion]) {
        if !self.live().contains(slot) {
            return; // a replica that is being rebuilt is compared anyway
        }
        for bad in bad {
            let blocks = bad.blocks & !self.repairs.lost.given_up(bad.layer, bad.region);
            if blocks.is_empty() || self.repairs.queue.len() >= QUEUE_MAX {
                continue;
            }
            let (layer, region, index) = (bad.layer, bad.region, bad.index);
            let blocks = if index { Blocks::ALL } else { blocks };
            let (tried, differs) = (Slots::NONE, false);
            self.queue_repair(now, Job { slot, layer, region, blocks, index, tried, differs });
        }
    }

    fn queue_repair(&mut self, now: Instant, job: Job) {
        let same = |other: &Job| {
            (other.slot, other.layer, other.region, other.index)
                == (job.slot, job.layer, job.region, job.index)
        };
        let running = self.repairs.running.as_ref().map(|running| &running.job);
        if running.is_some_and(|running| same(running) && running.blocks == job.blocks) {
            return;
        }
        match self.repairs.queue.iter_mut().find(|other| same(other) && other.tried == job.tried) {
            Some(other) => other.blocks = other.blocks | job.blocks,
            None => {
                let (slot, damaged) = (job.slot, job.damaged());
                self.repairs.damages.note(now, slot, &damaged);
                let replica = self.peer(slot).id.clone();
                self.tell_damage(damaged, DamageNews::Found { replica });
                self.repairs.queue.push_back(job);
            }
        }
    }

    fn tell_damage(&mut self, damaged: DamagedBlocks, news: DamageNews) {
        self.act(Action::Damage { damaged, news });
    }

    /// Whether the read waits for repairs instead of failing: each member may lack another block.
    pub(super) fn waits_for_repair(&mut self, now: Instant, id: IoId) -> bool {
        let busy = self.repairs.is_busy();
        let io = self.io(id);
        if io.retried || !busy {
            return false;
        }
        io.retried = true;
        io.stage = IoStage::Parked;
        self.repairs.waiting.push(id);
        if let Some(lock) = self.io(id).lock.take() {
            self.unlock(now, lock);
        }
        true
    }

    /// A write makes a bad block of the head good, and a doubtful one sure.
    pub(super) fn repairs_overwritten(&mut self, range: BlockRange) {
        if self.repairs.lost.is_empty() && self.repairs.unverified.is_empty() {
            return;
        }
        for region in range.regions() {
            let written = Blocks::span(slots_of(range.clipped_to(region)));
            let damaged = DamagedBlocks { layer: self.chain.head, region, blocks: written };
            let blocks = self.repairs.lost.found(damaged);
            if !blocks.is_empty() {
                let damaged = DamagedBlocks { blocks, ..damaged };
                self.tell_damage(damaged, DamageNews::Overwritten);
            }
            forget_blocks(&mut self.repairs.unverified, region, written);
            forget_blocks(&mut self.repairs.undecided, region, written);
        }
    }

    // ---- who is read -----------------------------------------------------------------------

    /// Who may be asked, and whether blocks that nobody has compared will do: only if no member
    /// has others (rule 20).
    pub(super) fn readers(&self, id: IoId, range: BlockRange, failed: Slots) -> (Slots, bool) {
        let able = self.live().without(failed);
        if self.repairs.is_known_unverified(range) {
            return (able, true);
        }
        let Some(doubts) = self.repairs.doubts.get(&id) else { return (able, false) };
        let sure = able.without(*doubts);
        if !sure.is_empty() {
            return (sure, false);
        }
        let all_here = self.set().without(self.live()).is_empty();
        (if all_here { able } else { Slots::NONE }, true)
    }

    /// Notes what a refused read tells. `false`: it could be had there if nobody has it compared.
    pub(super) fn note_unreadable(
        &mut self,
        now: Instant,
        slot: Slot,
        id: IoId,
        reply: &Reply<()>,
    ) -> bool {
        match reply {
            Reply::Refused(Refusal::Unverified) => {
                self.repairs.doubts.entry(id).or_default().insert(slot);
                return false;
            }
            Reply::Refused(Refusal::BadBlocks { regions, .. }) => {
                self.note_bad(now, slot, regions);
            }
            _ => {
                // It can't even say what it has there: made anew once, else it leaves the set.
                let (layer, blocks) = (self.chain.head, Blocks::ALL);
                let regions = self.io(id).range().into_iter().flat_map(BlockRange::regions);
                let bad = |region| BadRegion { layer, region, blocks, index: true };
                let bad: Vec<_> = regions.map(bad).collect();
                self.note_bad(now, slot, &bad);
            }
        }
        true
    }

    // ---- one after the other ---------------------------------------------------------------

    pub(super) fn drive_repair(&mut self, now: Instant) {
        while self.repairs.running.is_none() && self.is_open() {
            if self.repairs.queue.is_empty() {
                for id in std::mem::take(&mut self.repairs.waiting) {
                    self.admit(now, id);
                }
                return;
            }
            if !self.is_steady() || !self.settle.is_done() || self.chain_work.is_cutting() {
                return;
            }
            let job = self.repairs.queue.pop_front().expect("seen above");
            if self.live().contains(job.slot) {
                self.start_repair(now, job);
            }
        }
    }

    fn start_repair(&mut self, now: Instant, job: Job) {
        let range = job.range();
        let (stage, asked) = (RepairStage::Locking, FanOut::default());
        self.repairs.running = Some(Running { job, lock: None, stage, asked, transfer: None });
        if mutation::is_on(Mutation::RepairWithoutLock) {
            return self.repair_locked(now);
        }
        let (lock, free) = self.locks.acquire(range, LockMode::Exclusive);
        if let Some(running) = &mut self.repairs.running {
            running.lock = Some(lock);
        }
        if free {
            self.repair_locked(now);
        } else {
            self.lock_owners.insert(lock, LockOwner::Repair);
        }
    }

    pub(super) fn repair_locked(&mut self, now: Instant) {
        let Some(running) = &self.repairs.running else { return };
        if running.asked.is_spoiled() {
            return self.end_repair(now);
        }
        if !running.job.index {
            return self.repair_fetch(now);
        }
        // What a layer has is the same on all members only while no join is under way.
        let joins = self.chain.layers.iter().any(|layer| layer.removed);
        let others = self.live().without([running.job.slot].into_iter().collect());
        if joins || !self.chain_work.is_idle() || others.is_empty() {
            return self.end_repair(now);
        }
        let (layer, region) = (running.job.layer, running.job.region);
        let request = Request::Sums { layer, region, contents: false };
        let asked = self.ask(now, others, &Purpose::RepairSums, &request);
        if let Some(running) = &mut self.repairs.running {
            running.stage = RepairStage::Comparing { sums: BTreeMap::new() };
            running.asked = asked;
        }
    }

    pub(super) fn repair_compared(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let sums = match reply {
            Reply::Sums(sums) => Some(*sums),
            Reply::Refused(_) => None,
            other => return self.lose_for(now, slot, &other),
        };
        let Some(running) = &mut self.repairs.running else { return };
        let RepairStage::Comparing { sums: all } = &mut running.stage else { return };
        running.asked.answered(slot);
        match sums {
            Some(sums) => drop(all.insert(slot, sums)),
            None => running.job.tried.insert(slot),
        }
        if !running.asked.is_over() {
            return;
        }
        let digests: BTreeSet<u32> = all.values().map(RegionSums::digest).collect();
        if running.asked.is_spoiled() || digests.len() != 1 {
            return self.end_repair(now); // nobody knows, or they don't agree
        }
        self.repair_fetch(now);
    }

    fn repair_fetch(&mut self, now: Instant) {
        let Some(running) = &self.repairs.running else { return };
        let Job { slot, layer, region, blocks, tried, .. } = running.job.clone();
        let mut without = tried;
        without.insert(slot);
        let Some(from) = self.live().without(without).iter().next() else {
            return self.nobody_has(now);
        };
        let transfer = self.new_transfer();
        if let Some(running) = &mut self.repairs.running {
            running.stage = RepairStage::Fetching;
            running.asked.ask([from].into_iter().collect());
            running.transfer = Some(transfer);
        }
        let request = Request::Fetch { layer, region, blocks };
        let into = Some(Destination::Transfer(transfer));
        self.send(now, from, Purpose::RepairFetch, request, into);
    }

    pub(super) fn repair_fetched(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if !matches!(reply, Reply::Digest(_) | Reply::Refused(_)) {
            return self.lose_for(now, slot, &reply);
        }
        let Some(running) = &mut self.repairs.running else { return };
        running.asked.answered(slot);
        if running.asked.is_spoiled() {
            return self.end_repair(now);
        }
        if let Reply::Refused(refusal) = reply {
            let transfer = running.transfer.take();
            self.retire_transfer(transfer);
            return self.source_lacks(now, slot, &refusal);
        }
        let Job { slot: bad, layer, region, .. } = running.job;
        running.stage = RepairStage::Writing { from: slot };
        running.asked.ask([bad].into_iter().collect());
        let Some(transfer) = running.transfer else { return };
        self.clearing.note(now, region.range());
        let payload = PayloadRef::Transfer(transfer);
        self.send(now, bad, Purpose::Repair, Request::Repair { layer, region, payload }, None);
    }

    /// The source can give some of the blocks, or none. What it lacks is repaired there too.
    fn source_lacks(&mut self, now: Instant, slot: Slot, refusal: &Refusal) {
        let listed: &[BadRegion] = match refusal {
            Refusal::BadBlocks { regions, .. } => regions,
            _ => &[],
        };
        self.note_bad(now, slot, listed);
        let Some(running) = &mut self.repairs.running else { return };
        let job = &mut running.job;
        let here = |bad: &&BadRegion| (bad.layer, bad.region) == (job.layer, job.region);
        let lacks = listed.iter().filter(here).fold(Blocks::NONE, |all, bad| all | bad.blocks);
        let good = job.blocks & !lacks;
        if job.index || good == job.blocks || good.is_empty() {
            job.tried.insert(slot);
        } else {
            let mut rest = Job { blocks: job.blocks & lacks, ..job.clone() };
            rest.tried.insert(slot);
            job.blocks = good;
            self.repairs.queue.push_front(rest);
        }
        self.repair_fetch(now);
    }

    fn nobody_has(&mut self, now: Instant) {
        let joins = self.chain.layers.iter().any(|layer| layer.removed);
        let differing = self.repairs.running.as_ref().filter(|running| running.job.differs);
        if let Some(slot) = differing.map(|running| running.job.slot) {
            self.end_repair(now);
            if !joins {
                self.lose(now, slot, "what it should hold isn't what the others have");
            }
            return;
        }
        if let Some(Running { job, .. }) = &self.repairs.running {
            let damaged = job.damaged();
            let blocks = self.repairs.lost.give_up(damaged);
            if !blocks.is_empty() {
                self.tell_damage(DamagedBlocks { blocks, ..damaged }, DamageNews::Lost);
            }
        }
        self.end_repair(now);
    }

    pub(super) fn repaired(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if let Some(running) = &mut self.repairs.running {
            running.asked.answered(slot);
        }
        match reply {
            Reply::Done => {
                self.note_repaired(now);
                self.end_repair(now);
            }
            Reply::Refused(Refusal::NoSpace) => self.end_repair(now), // the next read asks again
            Reply::Refused(Refusal::Invalid { .. }) => self.try_next_source(now),
            other => {
                self.end_repair(now);
                if !self.is_only_member(slot) {
                    self.lose_for(now, slot, &other); // its disk doesn't take the block (rule 5)
                }
            }
        }
    }

    fn note_repaired(&mut self, now: Instant) {
        let Some(Running { job, stage, .. }) = &self.repairs.running else { return };
        let RepairStage::Writing { from } = *stage else { return };
        let (slot, damaged) = (job.slot, job.damaged());
        let (replica, from) = (self.peer(slot).id.clone(), self.peer(from).id.clone());
        self.repairs.lost.found(damaged);
        self.repairs.damages.note_repaired(now, slot, &damaged, from.clone());
        self.tell_damage(damaged, DamageNews::Repaired { replica, from });
    }

    /// A join may have moved the block on one of them, or one of them is wrong.
    fn try_next_source(&mut self, now: Instant) {
        let Some(running) = &mut self.repairs.running else { return };
        if let RepairStage::Writing { from } = running.stage {
            running.job.tried.insert(from);
            running.job.differs = true;
        }
        let transfer = running.transfer.take();
        self.retire_transfer(transfer);
        self.repair_fetch(now);
    }

    fn end_repair(&mut self, now: Instant) {
        let Some(running) = self.repairs.running.take() else { return };
        self.retire_transfer(running.transfer);
        if let Some(lock) = running.lock {
            self.unlock(now, lock);
        }
    }

    pub(super) fn repair_lost(&mut self, now: Instant, slot: Slot) {
        self.repairs.queue.retain(|job| job.slot != slot);
        self.repairs.doubts.values_mut().for_each(|doubts| doubts.remove(slot));
        let Some(running) = &mut self.repairs.running else { return };
        // Who agrees about what the layer has must be all members: it begins again when it is read.
        let compares = matches!(running.stage, RepairStage::Comparing { .. });
        if running.job.slot == slot || compares {
            running.asked.spoil();
        }
        if running.asked.lost(slot) && running.asked.is_over() {
            let again = (!running.asked.is_spoiled()).then(|| running.job.clone());
            self.repairs.queue.extend(again); // from another member
            self.end_repair(now);
        }
    }

    pub(super) fn damage_status(&self) -> DamageStatus {
        let describe = |slot: Slot| (self.peer(slot).id.clone(), self.repairs.waiting_blocks(slot));
        let (lost, lost_bytes) = self.repairs.lost.ranges();
        DamageStatus { replicas: self.repairs.damages.status(describe), lost, lost_bytes }
    }
}

fn forget_blocks(all: &mut BTreeMap<Region, Blocks>, region: Region, written: Blocks) {
    if let Some(blocks) = all.get_mut(&region) {
        *blocks = *blocks & !written;
        if blocks.is_empty() {
            all.remove(&region);
        }
    }
}
