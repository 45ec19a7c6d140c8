//! After an unclean stop, members may differ in what was in flight: before a range is read for the
//! first time, it is made the same on all of them.
//!
//! Owns the set of unsettled regions: what the members had marked at the open, and what one had
//! marked that came back with another process (rule 10a). Nothing begins to touch an unsettled
//! region but the settling itself; it waits for what has begun before, and locks the region. Sealed
//! layers were equal when they were sealed; only the head is compared.
//!
//! ```text
//! unsettled ─▶ Comparing ──equal──▶ settled
//!                 ▲ └──differ──▶ Fetching ─▶ Copying ─┐   per winner: verified before unverified,
//!                 └────────── all copied ─────────────┘   then the lowest replica
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::action::{Action, Destination, IoId, PayloadRef, TransferId};
use super::core::Core;
use super::fan_out::FanOut;
use super::locks::{LockId, LockMode, RangeLocks};
use super::peer::Purpose;
use super::slots::{Slot, Slots};
use crate::chain::index::{BlockSum, Blocks};
use crate::message::{BadRegion, Refusal, RegionSums, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::regions::RegionSet;
use crate::types::{BLOCK_BYTES, BLOCKS_PER_REGION, BlockRange, REGION_BYTES, Region};

/// Regions that are compared at once.
const WINDOW: usize = 16;
/// A region that still differs after so many repairs is blamed on the replicas that differ.
const REPAIRS_MAX: u8 = 3;

#[derive(Debug, Default)]
pub(super) struct Settle {
    unsettled: RegionSet,
    /// Who came back with another process, and has yet to tell what it had marked.
    untold: Slots,
    /// Wanted by a request: these come first.
    demanded: VecDeque<Region>,
    running: BTreeMap<Region, Step>,
    waiting: Vec<(IoId, BlockRange)>,
    /// A disk has no room for a copy and its owner is needed: nothing is begun.
    full: Option<Slot>,
}

#[derive(Debug)]
struct Step {
    lock: LockId,
    stage: SettleStage,
    /// Spoiled by the loss of a replica that took part: once nothing is in flight, it begins again.
    asked: FanOut,
    sums: BTreeMap<Slot, RegionSums>,
    /// Who can't say what it has: its index page is damaged.
    broken: Slots,
    /// Who was given the whole region for that reason.
    remade: Slots,
    /// Blocks that a member has and can't read: they lose against any that can be read.
    unreadable: BTreeMap<Slot, Blocks>,
    /// Those that are still to be done before the region is compared again.
    repairs: VecDeque<Repair>,
    rounds: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SettleStage {
    Comparing,
    Fetching { repair: Repair, transfer: TransferId },
    Copying { transfer: TransferId },
}

/// Some blocks go from one member to all others, or a whole region to those whose index page is
/// damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Repair {
    from: Slot,
    blocks: Blocks,
    remakes: Option<Slots>,
}

impl Settle {
    pub(super) fn add(&mut self, marked: &RegionSet) {
        self.unsettled.add(marked);
    }

    pub(super) fn is_done(&self) -> bool {
        self.unsettled.is_empty() && self.untold.is_empty()
    }

    /// Whether members may differ there.
    pub(super) fn is_unsettled(&self, region: Region) -> bool {
        self.unsettled.contains(region) || !self.untold.is_empty()
    }

    /// A member is back, and has blocks that nobody has compared where it has marks.
    pub(super) fn expect_marks(&mut self, slot: Slot) {
        self.untold.insert(slot);
    }

    pub(super) fn expects_marks(&self, slot: Slot) -> bool {
        self.untold.contains(slot)
    }

    /// It has told all of them, or isn't a member any more.
    pub(super) fn expect_no_marks(&mut self, slot: Slot) {
        self.untold.remove(slot);
    }

    pub(super) fn unsettled_bytes(&self) -> u64 {
        self.unsettled.len() * REGION_BYTES
    }

    /// Whether `io` has to wait; then the regions of its range are settled next.
    pub(super) fn waits(&mut self, range: BlockRange, io: IoId) -> bool {
        let first = range.first.region();
        let last = Region((range.end().0 - 1) / BLOCKS_PER_REGION);
        let missing: Vec<_> = self.unsettled.within(first.0..last.0 + 1).collect();
        if missing.is_empty() {
            return false;
        }
        self.demanded.extend(missing);
        self.waiting.push((io, range));
        true
    }

    /// The request has been answered with an error.
    pub(super) fn forget(&mut self, io: IoId) {
        self.waiting.retain(|(waiting, _)| *waiting != io);
    }

    pub(super) fn full_disk(&self) -> Option<Slot> {
        self.full
    }

    /// There may be room now.
    pub(super) fn look_for_room(&mut self, slot: Slot) {
        self.full.take_if(|full| *full == slot);
    }

    /// The next one to compare. Where something is under way that began before, it isn't its turn:
    /// nothing else begins there meanwhile.
    fn next(&mut self, locks: &RangeLocks) -> Option<Region> {
        let is_free = |region: Region| locks.is_free(region.range(), LockMode::Exclusive);
        for _ in 0..self.demanded.len() {
            let region = self.demanded.pop_front()?;
            if self.unsettled.contains(region) && !self.running.contains_key(&region) {
                if is_free(region) {
                    return Some(region);
                }
                self.demanded.push_back(region);
            }
        }
        let is_next = |region: &Region| !self.running.contains_key(region) && is_free(*region);
        self.unsettled.iter().find(is_next)
    }
}

impl Step {
    fn new(lock: LockId) -> Self {
        Self {
            lock,
            stage: SettleStage::Comparing,
            asked: FanOut::default(),
            sums: BTreeMap::new(),
            broken: Slots::NONE,
            remade: Slots::NONE,
            unreadable: BTreeMap::new(),
            repairs: VecDeque::new(),
            rounds: 0,
        }
    }

    fn transfer(&self) -> Option<TransferId> {
        match self.stage {
            SettleStage::Comparing => None,
            SettleStage::Fetching { transfer, .. } | SettleStage::Copying { transfer } => {
                Some(transfer)
            }
        }
    }

    fn note_sums(&mut self, slot: Slot, sums: RegionSums) {
        self.note_unreadable(slot, sums.unreadable());
        self.sums.insert(slot, sums);
    }

    fn note_unreadable(&mut self, slot: Slot, blocks: Blocks) {
        if !blocks.is_empty() {
            let known = self.unreadable.entry(slot).or_insert(Blocks::NONE);
            *known = *known | blocks;
        }
    }

    /// All members have said what they have: what is to be done about it.
    fn judge(&mut self, is_oldest: bool) -> Judgement {
        self.rounds += 1;
        self.repairs = repairs(&self.sums, &self.unreadable, is_oldest);
        if self.repairs.is_empty() && !self.broken.is_empty() {
            let sound = |slot: &&Slot| !self.unreadable.contains_key(slot);
            let Some(&from) = self.sums.keys().find(sound) else {
                return Judgement::Settled; // nobody has anything to compare with
            };
            if let Some(slot) = self.broken.intersection(self.remade).iter().next() {
                return Judgement::Unfit { slot, why: "its index can't be made anew" };
            }
            self.remade = self.remade.union(self.broken);
            self.repairs.push_back(Repair {
                from,
                blocks: Blocks::ALL,
                remakes: Some(self.broken),
            });
        }
        if self.repairs.is_empty() {
            return Judgement::Settled;
        }
        if self.rounds > REPAIRS_MAX {
            let why = "it doesn't keep what is copied to it";
            let slot = who_differs(&self.sums, &self.repairs);
            return slot.map_or(Judgement::Stuck, |slot| Judgement::Unfit { slot, why });
        }
        Judgement::Repair
    }
}

enum Judgement {
    Settled,
    Repair,
    Unfit {
        slot: Slot,
        why: &'static str,
    },
    /// The next loss of a member makes it begin again.
    Stuck,
}

impl Core {
    pub(super) fn drive_settle(&mut self, now: Instant) {
        if self.settle.unsettled.is_empty() || !self.is_open() || !self.is_steady() {
            return;
        }
        self.budget.settling_begins(now);
        while self.settle.full.is_none() && self.settle.running.len() < WINDOW {
            let Some(region) = self.settle.next(&self.locks) else { break };
            let (lock, _) = self.locks.acquire(region.range(), LockMode::Exclusive);
            self.settle.running.insert(region, Step::new(lock));
            self.settle_compare(now, region);
        }
    }

    // ---- Comparing -------------------------------------------------------------------------

    fn settle_compare(&mut self, now: Instant, region: Region) {
        let live = self.live();
        let (layer, contents) = (self.chain.head, live.len() > 1);
        let request = Request::Sums { layer, region, contents };
        let asked = self.ask(now, live, &Purpose::SettleSums(region), &request);
        let Some(step) = self.settle.running.get_mut(&region) else { return };
        (step.stage, step.asked) = (SettleStage::Comparing, asked);
        (step.sums, step.broken) = (BTreeMap::new(), Slots::NONE);
    }

    pub(super) fn settle_sums(
        &mut self,
        now: Instant,
        slot: Slot,
        region: Region,
        reply: Reply<()>,
    ) {
        let sums = match reply {
            Reply::Sums(sums) => Some(*sums),
            Reply::Refused(Refusal::BadBlocks { .. } | Refusal::Io { .. }) => None,
            other => return self.lose_for(now, slot, &other),
        };
        let is_oldest = self.chain.layer(self.chain.head).is_none_or(|head| head.parent.is_none());
        let Some(step) = self.settle_answer(now, slot, region) else { return };
        match sums {
            Some(sums) => step.note_sums(slot, sums),
            None => step.broken.insert(slot),
        }
        if !step.asked.is_over() {
            return;
        }
        match step.judge(is_oldest) {
            Judgement::Settled => self.settled(now, region),
            Judgement::Repair => self.settle_fetch(now, region),
            Judgement::Unfit { slot, why } => self.lose(now, slot, why),
            Judgement::Stuck => {}
        }
    }

    // ---- Fetching --------------------------------------------------------------------------

    /// The next repair; after the last one all is compared again.
    fn settle_fetch(&mut self, now: Instant, region: Region) {
        let Some(step) = self.settle.running.get_mut(&region) else { return };
        let Some(repair) = step.repairs.pop_front() else {
            return self.settle_compare(now, region);
        };
        let transfer = self.new_transfer();
        let Repair { from, blocks, .. } = repair;
        if let Some(step) = self.settle.running.get_mut(&region) {
            step.stage = SettleStage::Fetching { repair, transfer };
            step.asked = FanOut::to([from].into_iter().collect());
        }
        let request = Request::Fetch { layer: self.chain.head, region, blocks };
        let into = Some(Destination::Transfer(transfer));
        self.send(now, from, Purpose::SettleFetch(region), request, into);
    }

    pub(super) fn settle_fetched(
        &mut self,
        now: Instant,
        slot: Slot,
        region: Region,
        reply: Reply<()>,
    ) {
        match reply {
            Reply::Digest(_) => {}
            Reply::Refused(Refusal::BadBlocks { regions, .. }) => {
                return self.settle_unreadable(now, slot, region, &regions);
            }
            Reply::Refused(Refusal::Io { .. }) => {
                return self.settle_unreadable(now, slot, region, &[]);
            }
            other => return self.lose_for(now, slot, &other),
        }
        let others = self.live().without([slot].into_iter().collect());
        let Some(step) = self.settle_answer(now, slot, region) else { return };
        let SettleStage::Fetching { repair, transfer } = step.stage else { return };
        let (layer, payload) = (self.chain.head, PayloadRef::Transfer(transfer));
        let (to, request) = match repair.remakes {
            Some(broken) => {
                (broken.intersection(others), Request::Repair { layer, region, payload })
            }
            None => (others, Request::Copy { layer, region, payload }),
        };
        let asked = self.ask(now, to, &Purpose::SettleCopy(region), &request);
        if let Some(step) = self.settle.running.get_mut(&region) {
            (step.stage, step.asked) = (SettleStage::Copying { transfer }, asked);
        }
    }

    /// The winner can't read its copy: whoever can wins instead (rule 20 comes after that).
    fn settle_unreadable(&mut self, now: Instant, slot: Slot, region: Region, bad: &[BadRegion]) {
        let layer = self.chain.head;
        let Some(step) = self.settle_answer(now, slot, region) else { return };
        let SettleStage::Fetching { repair, transfer } = step.stage else { return };
        let here = |bad: &&BadRegion| (bad.layer, bad.region) == (layer, region);
        let listed = bad.iter().filter(here).fold(Blocks::NONE, |all, bad| all | bad.blocks);
        let is_listed = !(listed & repair.blocks).is_empty();
        step.note_unreadable(slot, if is_listed { listed } else { repair.blocks });
        step.repairs.clear();
        step.rounds -= 1; // nobody's fault that was copied to
        self.act(Action::RetireTransfer { transfer });
        // What was copied before this one failed isn't in the sums: they are looked at again.
        self.settle_compare(now, region);
    }

    // ---- Copying ---------------------------------------------------------------------------

    pub(super) fn settle_copied(
        &mut self,
        now: Instant,
        slot: Slot,
        region: Region,
        reply: Reply<()>,
    ) {
        match reply {
            Reply::Digest(_) | Reply::Done => {}
            Reply::Refused(Refusal::NoSpace) => {
                if self.waits_for_room(now, slot) {
                    self.settle.full = Some(slot);
                    if let Some(step) = self.settle.running.get_mut(&region) {
                        step.asked.spoil();
                    }
                    self.settle_answer(now, slot, region);
                }
                return;
            }
            other => return self.lose_for(now, slot, &other),
        }
        let Some(step) = self.settle_answer(now, slot, region) else { return };
        if step.asked.is_over() {
            let transfer = step.transfer();
            self.retire_transfer(transfer);
            self.settle_fetch(now, region);
        }
    }

    // ---- ends ------------------------------------------------------------------------------

    fn settled(&mut self, now: Instant, region: Region) {
        let Some(step) = self.settle.running.remove(&region) else { return };
        let lock = step.lock;
        self.settle.unsettled.remove(region);
        self.clearing.note(now, region.range());
        let data_bytes = |sums: &RegionSums| {
            let is_data = |sum: &&BlockSum| matches!(sum, BlockSum::Data { .. });
            sums.blocks.iter().filter(is_data).count() as u64 * BLOCK_BYTES
        };
        self.budget.compared(step.sums.values().map(data_bytes).max().unwrap_or(0));
        if self.settle.unsettled.is_empty() {
            self.budget.settling_ends(now);
        }
        if let [sums] = &step.sums.values().collect::<Vec<_>>()[..] {
            self.repairs.note_unverified(region, unverified(sums));
        }
        let differing = differing(&step.sums);
        if !differing.is_empty() {
            self.repairs.note_undecided(self.chain.head, region, differing);
        }
        // With a peer's agreement a checksum that was rebuilt from data may be trusted again.
        if step.sums.len() > 1 {
            let layer = self.chain.head;
            for (slot, sums) in step.sums {
                if sums.blocks.iter().any(|sum| sum.is_unverified()) {
                    let request = Request::Verified { layer, region };
                    self.send(now, slot, Purpose::Verified, request, None);
                }
            }
        }
        self.unlock(now, lock);
        let unsettled = &self.settle.unsettled;
        let free = |range: &BlockRange| !range.regions().any(|region| unsettled.contains(region));
        let (ready, waiting) = std::mem::take(&mut self.settle.waiting)
            .into_iter()
            .partition(|(_, range)| free(range));
        self.settle.waiting = waiting;
        for (io, _) in ready {
            self.settle_then_lock(now, io);
        }
    }

    /// Notes an answer; `None` if the step it belongs to was given up.
    fn settle_answer(&mut self, now: Instant, slot: Slot, region: Region) -> Option<&mut Step> {
        let step = self.settle.running.get_mut(&region)?;
        step.asked.answered(slot);
        if step.asked.is_spoiled() {
            self.drop_spoiled(now, region);
            return None;
        }
        self.settle.running.get_mut(&region)
    }

    /// Steps that the lost replica took part in begin again, when what they sent has been answered
    /// and the set is steady.
    pub(super) fn settle_lost(&mut self, now: Instant, slot: Slot) {
        self.settle.look_for_room(slot);
        let regions: Vec<_> = self.settle.running.keys().copied().collect();
        for region in regions {
            let step = self.settle.running.get_mut(&region).expect("listed above");
            let took_part = step.sums.contains_key(&slot) || step.broken.contains(slot);
            if step.asked.lost(slot) || took_part {
                step.asked.spoil();
            }
            self.drop_spoiled(now, region);
        }
    }

    fn drop_spoiled(&mut self, now: Instant, region: Region) {
        let over = |step: &Step| step.asked.is_spoiled() && step.asked.is_over();
        if self.settle.running.get(&region).is_some_and(over) {
            let step = self.settle.running.remove(&region).expect("seen above");
            self.unlock(now, step.lock);
            self.retire_transfer(step.transfer());
        }
    }
}

/// Which blocks go from whom to the others; empty if all are alike, or nobody can read what differs.
/// In the oldest layer a block that isn't there is one that was made zero, and as good as any.
fn repairs(
    sums: &BTreeMap<Slot, RegionSums>,
    unreadable: &BTreeMap<Slot, Blocks>,
    is_oldest: bool,
) -> VecDeque<Repair> {
    let mut by_winner: BTreeMap<Slot, Blocks> = BTreeMap::new();
    for block in 0..BLOCKS_PER_REGION as usize {
        let Some(first) = sums.values().next() else { break };
        if sums.values().skip(1).all(|other| other.is_like(block, first)) {
            continue;
        }
        let held = || sums.iter().map(|(slot, sums)| (*slot, sums.blocks[block]));
        let is_unreadable =
            |slot: &Slot| unreadable.get(slot).is_some_and(|blocks| blocks.has(block));
        let doubt =
            |sum: BlockSum| sum.is_unverified() != mutation::is_on(Mutation::UnverifiedWins);
        // In a newer layer zero is written down: who has nothing has missed or lost the write, and
        // below the block of who has it, a join may have freed what the others still show.
        let is_missing = |sum: BlockSum| sum == BlockSum::Absent && !is_oldest;
        let rank = |(slot, sum): &(Slot, BlockSum)| {
            (is_missing(*sum), is_unreadable(slot), doubt(*sum), *slot)
        };
        let (winner, _) = held().min_by_key(rank).expect("there is a first");
        if !is_unreadable(&winner) {
            by_winner.entry(winner).or_insert(Blocks::NONE).put(block, true);
        }
    }
    let repair = |(from, blocks)| Repair { from, blocks, remakes: None };
    by_winner.into_iter().map(repair).collect()
}

/// What isn't alike on all: only blocks that nobody can read are left so.
fn differing(sums: &BTreeMap<Slot, RegionSums>) -> Blocks {
    let mut blocks = Blocks::NONE;
    let mut all = sums.values();
    if let Some(first) = all.next() {
        for other in all {
            for block in 0..BLOCKS_PER_REGION as usize {
                blocks.put(block, blocks.has(block) || !first.is_like(block, other));
            }
        }
    }
    blocks
}

/// A member that still has something else than the winner of the first repair.
fn who_differs(sums: &BTreeMap<Slot, RegionSums>, repairs: &VecDeque<Repair>) -> Option<Slot> {
    let Repair { from, blocks, .. } = repairs.front()?;
    let winner = sums.get(from)?;
    let differs = |sums: &RegionSums| blocks.slots().any(|block| !sums.is_like(block, winner));
    sums.iter().find(|(_, sums)| differs(sums)).map(|(slot, _)| *slot)
}

fn unverified(sums: &RegionSums) -> Blocks {
    let mut blocks = Blocks::NONE;
    for (block, sum) in sums.blocks.iter().enumerate() {
        blocks.put(block, sum.is_unverified());
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Contents;

    fn region(blocks: &[(usize, BlockSum)]) -> RegionSums {
        let mut sums = vec![BlockSum::Absent; BLOCKS_PER_REGION as usize];
        for &(block, sum) in blocks {
            sums[block] = sum;
        }
        let contents = Some(Contents { hashes: vec![0; sums.len()], unreadable: Blocks::NONE });
        RegionSums { blocks: sums, contents }
    }

    fn data(sum: u32, verified: bool) -> BlockSum {
        BlockSum::Data { sum, verified }
    }

    #[test]
    fn members_that_are_alike_need_no_repair_however_sure_they_are() {
        let sums =
            [(Slot(0), region(&[(7, data(1, true))])), (Slot(1), region(&[(7, data(1, false))]))];
        assert!(repairs(&sums.into_iter().collect(), &BTreeMap::new(), true).is_empty());
    }

    /// A join frees what lies below a block that the head has. Were such a block made absent again
    /// since another member has lost it in a power cut, nothing would be left there.
    #[test]
    fn a_block_that_one_member_has_is_not_made_absent() {
        let sums = [(Slot(0), region(&[])), (Slot(1), region(&[(7, data(1, false))]))];
        let repairs = repairs(&sums.into_iter().collect(), &BTreeMap::new(), false);
        assert_eq!(repairs.len(), 1);
        assert_eq!(repairs[0].from, Slot(1));
    }

    /// In the oldest layer a zeroed block isn't there. Data won over it whoever had it, so that one
    /// stale copy undid a discard on all others.
    #[test]
    fn in_the_oldest_layer_older_data_does_not_win_over_newer_zeroes() {
        let sums = [
            (Slot(0), region(&[])),
            (Slot(1), region(&[])),
            (Slot(2), region(&[(7, data(1, true))])),
        ];
        let repairs = repairs(&sums.into_iter().collect(), &BTreeMap::new(), true);
        assert_eq!(repairs.len(), 1);
        assert_eq!(repairs[0].from, Slot(0));
    }

    /// Rot in a marked region gets a fresh checksum at open; it must not win over a good copy.
    #[test]
    fn a_verified_block_wins_over_an_unverified_one_of_a_lower_replica() {
        let sums = [
            (Slot(0), region(&[(7, data(1, false)), (9, data(5, true))])),
            (Slot(1), region(&[(7, data(2, true)), (9, BlockSum::Zero)])),
        ];
        let blocks = |block| {
            let mut blocks = Blocks::NONE;
            blocks.put(block, true);
            blocks
        };
        assert_eq!(
            repairs(&sums.into_iter().collect(), &BTreeMap::new(), false),
            [
                Repair { from: Slot(0), blocks: blocks(9), remakes: None },
                Repair { from: Slot(1), blocks: blocks(7), remakes: None }
            ]
        );
    }
}
