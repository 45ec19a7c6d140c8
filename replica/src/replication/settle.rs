//! After an unclean stop, members may differ in what was in flight: before a range is read for the
//! first time, it is made the same on all of them.
//!
//! Owns the set of unsettled regions (the union of what the members had marked). Nothing may touch
//! an unsettled region but the settling itself, so settling needs no lock. Sealed layers were equal
//! when they were sealed; only the head is compared.
//!
//! ```text
//! unsettled ─▶ Comparing ──equal──▶ settled
//!                 ▲ └──differ──▶ Fetching ─▶ Copying ─┐   per winner: verified before unverified,
//!                 └────────── all copied ─────────────┘   then the lowest replica
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::action::{Action, Destination, IoId, Payload, TransferId};
use super::core::Core;
use super::peer::Purpose;
use super::slots::{Slot, Slots};
use crate::chain::index::{BlockSum, Blocks};
use crate::message::{RegionSums, Reply, Request};
use crate::types::{BLOCKS_PER_REGION, BlockRange, REGION_BYTES, Region};

/// Regions that are compared at once.
const WINDOW: usize = 16;
/// A region that still differs after so many repairs is blamed on the replicas that differ.
const REPAIRS_MAX: u8 = 3;

#[derive(Debug, Default)]
pub(super) struct Settle {
    unsettled: BTreeSet<Region>,
    /// Wanted by a request: these come first.
    demanded: VecDeque<Region>,
    running: BTreeMap<Region, Step>,
    waiting: Vec<(IoId, BlockRange)>,
}

#[derive(Debug)]
struct Step {
    /// Who hasn't answered the comparison or the copy.
    waiting: Slots,
    sums: BTreeMap<Slot, RegionSums>,
    repairs: VecDeque<Repair>,
    transfer: Option<TransferId>,
    rounds: u8,
    /// A replica was lost on the way: once nothing is in flight, it begins again.
    abandoned: bool,
}

/// Some blocks go from one member to all others.
#[derive(Debug, PartialEq, Eq)]
struct Repair {
    from: Slot,
    blocks: Blocks,
}

impl Settle {
    pub(super) fn add(&mut self, marked: impl IntoIterator<Item = Region>) {
        self.unsettled.extend(marked);
    }

    pub(super) fn is_done(&self) -> bool {
        self.unsettled.is_empty()
    }

    pub(super) fn unsettled_bytes(&self) -> u64 {
        self.unsettled.len() as u64 * REGION_BYTES
    }

    /// Whether `io` has to wait; then the regions of its range are settled next.
    pub(super) fn waits(&mut self, range: BlockRange, io: IoId) -> bool {
        let first = range.first.region();
        let last = Region((range.end().0 - 1) / BLOCKS_PER_REGION);
        let missing: Vec<_> = self.unsettled.range(first..=last).copied().collect();
        if missing.is_empty() {
            return false;
        }
        self.demanded.extend(missing);
        self.waiting.push((io, range));
        true
    }

    fn next(&mut self) -> Option<Region> {
        while let Some(region) = self.demanded.pop_front() {
            if self.unsettled.contains(&region) && !self.running.contains_key(&region) {
                return Some(region);
            }
        }
        self.unsettled.iter().copied().find(|region| !self.running.contains_key(region))
    }
}

impl Core {
    pub(super) fn drive_settle(&mut self, now: Instant) {
        if self.settle.is_done() || !self.is_open() || !self.is_steady() {
            return;
        }
        while self.settle.running.len() < WINDOW {
            let Some(region) = self.settle.next() else { break };
            let step = Step {
                waiting: Slots::NONE,
                sums: BTreeMap::new(),
                repairs: VecDeque::new(),
                transfer: None,
                rounds: 0,
                abandoned: false,
            };
            self.settle.running.insert(region, step);
            self.settle_compare(now, region);
        }
    }

    fn settle_compare(&mut self, now: Instant, region: Region) {
        let live = self.live();
        let Some(step) = self.settle.running.get_mut(&region) else { return };
        step.waiting = live;
        step.sums.clear();
        let layer = self.chain.head;
        for slot in live.iter() {
            let request = Request::Sums { layer, region };
            self.send(now, slot, Purpose::SettleSums(region), request, None);
        }
    }

    pub(super) fn settle_sums(
        &mut self,
        now: Instant,
        slot: Slot,
        region: Region,
        reply: Reply<()>,
    ) {
        let Reply::Sums(sums) = reply else { return self.lose_for(now, slot, &reply) };
        let Some(step) = self.settle_answer(slot, region) else { return };
        step.sums.insert(slot, *sums);
        if !step.waiting.is_empty() {
            return;
        }
        step.repairs = repairs(&step.sums);
        if step.repairs.is_empty() {
            return self.settled(now, region);
        }
        step.rounds += 1;
        if step.rounds > REPAIRS_MAX {
            let odd = step.repairs.front().map(|repair| repair.from);
            let others = step.sums.keys().copied().find(|slot| Some(*slot) != odd);
            if let Some(slot) = others {
                self.lose(now, slot, "it doesn't keep what is copied to it");
            }
            return;
        }
        self.settle_fetch(now, region);
    }

    fn settle_fetch(&mut self, now: Instant, region: Region) {
        let transfer = self.new_transfer();
        let layer = self.chain.head;
        let Some(step) = self.settle.running.get_mut(&region) else { return };
        let Some(Repair { from, blocks }) = step.repairs.pop_front() else {
            return self.settle_compare(now, region);
        };
        step.transfer = Some(transfer);
        step.waiting = Slots::NONE;
        step.waiting.insert(from);
        let request = Request::Fetch { layer, region, blocks };
        let into = Some(Destination::Transfer(transfer));
        self.send(now, from, Purpose::SettleFetch(region, transfer), request, into);
    }

    pub(super) fn settle_fetched(
        &mut self,
        now: Instant,
        slot: Slot,
        region: Region,
        transfer: TransferId,
        reply: Reply<()>,
    ) {
        let Reply::Digest(_) = reply else { return self.lose_for(now, slot, &reply) };
        let others = self.live().without([slot].into_iter().collect());
        let layer = self.chain.head;
        let Some(step) = self.settle_answer(slot, region) else { return };
        step.waiting = others;
        for slot in others.iter() {
            let payload = Payload::Transfer(transfer);
            let request = Request::Copy { layer, region, payload };
            self.send(now, slot, Purpose::SettleCopy(region), request, None);
        }
    }

    pub(super) fn settle_copied(
        &mut self,
        now: Instant,
        slot: Slot,
        region: Region,
        reply: Reply<()>,
    ) {
        let Reply::Digest(_) = reply else { return self.lose_for(now, slot, &reply) };
        let Some(step) = self.settle_answer(slot, region) else { return };
        if step.waiting.is_empty() {
            if let Some(transfer) = step.transfer.take() {
                self.act(Action::RetireTransfer { transfer });
            }
            self.settle_fetch(now, region);
        }
    }

    fn settled(&mut self, now: Instant, region: Region) {
        let Some(step) = self.settle.running.remove(&region) else { return };
        self.settle.unsettled.remove(&region);
        // With a peer's agreement a checksum that was rebuilt from data may be trusted again.
        if step.sums.len() > 1 {
            let layer = self.chain.head;
            for (slot, sums) in step.sums {
                if sums.0.iter().any(|sum| sum.is_unverified()) {
                    let request = Request::Verified { layer, region };
                    self.send(now, slot, Purpose::Verified, request, None);
                }
            }
        }
        let unsettled = &self.settle.unsettled;
        let free = |range: &BlockRange| !range.regions().any(|region| unsettled.contains(&region));
        let (ready, waiting) = std::mem::take(&mut self.settle.waiting)
            .into_iter()
            .partition(|(_, range)| free(range));
        self.settle.waiting = waiting;
        for (io, _) in ready {
            self.settle_then_lock(now, io);
        }
    }

    /// Notes an answer; `None` if the step it belongs to was abandoned.
    fn settle_answer(&mut self, slot: Slot, region: Region) -> Option<&mut Step> {
        let step = self.settle.running.get_mut(&region)?;
        step.waiting.remove(slot);
        if step.abandoned {
            self.drop_abandoned(region);
            return None;
        }
        self.settle.running.get_mut(&region)
    }

    /// Steps that the lost replica took part in begin again, when what they sent has been answered
    /// and the set is steady.
    pub(super) fn settle_lost(&mut self, slot: Slot) {
        let regions: Vec<_> = self.settle.running.keys().copied().collect();
        for region in regions {
            let step = self.settle.running.get_mut(&region).expect("listed above");
            step.abandoned |= step.waiting.contains(slot) || step.sums.contains_key(&slot);
            step.waiting.remove(slot);
            self.drop_abandoned(region);
        }
    }

    fn drop_abandoned(&mut self, region: Region) {
        let over = |step: &Step| step.abandoned && step.waiting.is_empty();
        if self.settle.running.get(&region).is_some_and(over) {
            let step = self.settle.running.remove(&region).expect("seen above");
            if let Some(transfer) = step.transfer {
                self.act(Action::RetireTransfer { transfer });
            }
        }
    }
}

/// Which blocks go from whom to the others; empty if all are alike.
fn repairs(sums: &BTreeMap<Slot, RegionSums>) -> VecDeque<Repair> {
    let mut by_winner: BTreeMap<Slot, Blocks> = BTreeMap::new();
    for block in 0..BLOCKS_PER_REGION as usize {
        let held = || sums.iter().map(|(slot, sums)| (*slot, sums.0[block]));
        let Some((_, first)) = held().next() else { break };
        if held().all(|(_, sum)| sum.is_like(first)) {
            continue;
        }
        // Below a block that one member has, a join may have freed what the others still show.
        let rank =
            |(slot, sum): &(Slot, BlockSum)| (*sum == BlockSum::Absent, sum.is_unverified(), *slot);
        let (winner, _) = held().min_by_key(rank).expect("there is a first");
        by_winner.entry(winner).or_insert(Blocks::NONE).put(block, true);
    }
    by_winner.into_iter().map(|(from, blocks)| Repair { from, blocks }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(blocks: &[(usize, BlockSum)]) -> RegionSums {
        let mut sums = vec![BlockSum::Absent; BLOCKS_PER_REGION as usize];
        for &(block, sum) in blocks {
            sums[block] = sum;
        }
        RegionSums(sums)
    }

    fn data(crc: u32, verified: bool) -> BlockSum {
        BlockSum::Data { crc, verified }
    }

    #[test]
    fn members_that_are_alike_need_no_repair_however_sure_they_are() {
        let sums =
            [(Slot(0), region(&[(7, data(1, true))])), (Slot(1), region(&[(7, data(1, false))]))];
        assert!(repairs(&sums.into_iter().collect()).is_empty());
    }

    /// A join frees what lies below a block that the head has. Were such a block made absent again
    /// since another member has lost it in a power cut, nothing would be left there.
    #[test]
    fn a_block_that_one_member_has_is_not_made_absent() {
        let sums = [(Slot(0), region(&[])), (Slot(1), region(&[(7, data(1, false))]))];
        let repairs = repairs(&sums.into_iter().collect());
        assert_eq!(repairs.len(), 1);
        assert_eq!(repairs[0].from, Slot(1));
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
            repairs(&sums.into_iter().collect()),
            [
                Repair { from: Slot(0), blocks: blocks(9) },
                Repair { from: Slot(1), blocks: blocks(7) }
            ]
        );
    }
}
