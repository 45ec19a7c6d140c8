//! Marks are cleared while the volume is used (rules 13 and 14), so that after an unclean stop only
//! what was written lately is compared.
//!
//! Owns the engine's idea of which regions the members have marked, and when each was written last.
//! Promises that a `Clear` goes out only when every write in its regions is confirmed by all to
//! whom it was sent (their range lock is held, shared: reads go on) and a flush that began after
//! that is done on all members; that regions which are written all the time stay marked, since
//! marking again costs a sync; and that an idle volume ends with no marks and sends nothing.
//! A replica that is being rebuilt never clears.
//!
//! ```text
//! written ──quiet for a while, or too many──▶ locked ─▶ Flushing ─▶ Clearing ─▶ forgotten
//!    ▲  ▲                                       │ all members  │          │
//!    │  └──── busy, or a member was lost ───────┴──────────────┴──────────┘
//!    └─── Marked: members say what else they have marked
//! ```
//! What the engine has lost count of (marks ahead of a sequential writer, those of a replica that
//! was rebuilt, those that a replica kept) it learns by asking when it has nothing else to clear.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::action::IoId;
use super::core::{Core, Phase};
use super::locks::{LockId, LockMode};
use super::peer::{FlushFor, Purpose};
use super::slots::{Slot, Slots};
use crate::message::{Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::Region;

/// Regions in one batch: one flush and one sync of the index for all of them. Each holds a lock.
const BATCH: usize = 128;
/// Between two batches: bounds what a load that writes everywhere costs.
const PAUSE: Duration = Duration::from_millis(100);
/// Regions that the engine keeps in mind; what is marked beyond that it asks for later.
const KNOWN_MAX: usize = 64 << 10;
/// Regions that are taken from one answer to `Marked`.
const ASKED_MAX: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Clearing {
    /// When each region that may be marked was written last.
    written: HashMap<Region, Instant>,
    /// The same by time, but not newer than when it was looked at last.
    by_age: BTreeSet<(Instant, Region)>,
    batch: Option<Batch>,
    batches: u64,
    rest_until: Option<Instant>,
    /// Members may have marks that aren't known here.
    is_unsure: bool,
    asking: Option<Asking>,
    /// Known to stay marked although they were cleared: not tried again before the next write.
    stubborn: BTreeSet<Region>,
    /// Who was a member when that was asked last.
    members: Slots,
}

#[derive(Debug)]
struct Batch {
    number: u64,
    regions: Vec<Region>,
    locks: Vec<LockId>,
    stage: Stage,
    /// Who hasn't answered.
    waiting: Slots,
    /// A member was lost on the way: the marks stay.
    abandoned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Flushing,
    Clearing,
}

#[derive(Debug)]
struct Asking {
    waiting: Slots,
    found: BTreeSet<Region>,
}

/// When a region's mark may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// So long after its last write.
    pub(super) quiet: Duration,
    /// Beyond so many regions it goes sooner, the least recently written first.
    pub(super) budget: usize,
}

impl Patience {
    /// Even beyond the budget: what was written just now will be written again.
    fn least(&self) -> Duration {
        self.quiet / 10
    }
}

impl Clearing {
    pub(super) fn note(&mut self, now: Instant, region: Region) {
        if let Some(last) = self.written.get_mut(&region) {
            *last = now;
        } else if self.written.len() < KNOWN_MAX {
            self.written.insert(region, now);
            self.by_age.insert((now, region));
        }
        self.is_unsure = true;
        self.stubborn.clear();
    }

    /// Regions whose turn it is, taken out of the order. Once one is due, those that will be soon
    /// go with it.
    fn take_due(&mut self, now: Instant, patience: Patience) -> Vec<Region> {
        let mut due = Vec::new();
        while due.len() < BATCH
            && let Some(&(seen, region)) = self.by_age.first()
        {
            let last = self.written[&region];
            if last > seen {
                self.by_age.pop_first();
                self.by_age.insert((last, region));
                continue;
            }
            let quiet = if due.is_empty() { patience.quiet } else { patience.quiet / 2 };
            let too_many = self.written.len() - due.len() > patience.budget;
            let age = now.saturating_duration_since(last);
            if age < quiet && !(too_many && age >= patience.least()) {
                break;
            }
            self.by_age.pop_first();
            due.push(region);
        }
        due
    }

    fn put_back(&mut self, region: Region) {
        if let Some(last) = self.written.get(&region) {
            self.by_age.insert((*last, region));
        }
    }

    fn due_at(&self, patience: Patience) -> Option<Instant> {
        let (seen, _) = self.by_age.first()?;
        let too_many = self.written.len() > patience.budget;
        let due = *seen + if too_many { patience.least() } else { patience.quiet };
        Some(due.max(self.rest_until.unwrap_or(due)))
    }
}

impl Core {
    /// From here on the members may have the regions of this write marked.
    pub(super) fn note_written(&mut self, now: Instant, id: IoId) {
        let range = self.io(id).range().expect("a write has a range");
        for region in range.regions() {
            self.clearing.note(now, region);
        }
        self.repairs_overwritten(range);
    }

    fn patience(&self) -> Patience {
        Patience { quiet: self.config.clear_after, budget: self.config.marked_regions }
    }

    pub(super) fn drive_clear(&mut self, now: Instant) {
        if let Some(batch) = &self.clearing.batch {
            if !batch.waiting.is_empty() {
                return;
            }
            match batch.stage {
                _ if batch.abandoned => self.end_batch(now, false),
                Stage::Flushing => return self.send_clear(now),
                Stage::Clearing => self.end_batch(now, true),
            }
        }
        if !self.may_clear() {
            return;
        }
        self.ask_what_is_marked(now);
        if self.clearing.rest_until.is_none_or(|until| until <= now) {
            self.start_batch(now);
        }
    }

    /// Not while a member is missing, or the set is in doubt: marks are what remembers.
    fn may_clear(&self) -> bool {
        matches!(self.phase, Phase::Serving)
            && self.is_steady()
            && self.settle.is_done()
            && self.promoting.is_none()
            && !self.chain_work.is_cutting()
            && !self.live().is_empty()
    }

    /// Whether something runs in the background that a change of the chain must not overtake.
    pub(super) fn clears_or_repairs(&self) -> bool {
        self.clearing.batch.is_some() || self.repairs.is_running()
    }

    fn start_batch(&mut self, now: Instant) {
        let due = self.clearing.take_due(now, self.patience());
        let (mut regions, mut locks) = (Vec::new(), Vec::new());
        for region in due {
            if mutation::is_on(Mutation::ClearWithoutLock) {
                regions.push(region);
                continue;
            }
            let undecided = self.repairs.is_undecided(region.range());
            let (lock, free) = self.locks.acquire(region.range(), LockMode::Shared);
            if free && !undecided {
                regions.push(region);
                locks.push(lock);
            } else {
                // It is being written: it isn't its turn after all.
                self.unlock(now, lock);
                self.clearing.note(now, region);
                self.clearing.put_back(region);
            }
        }
        if regions.is_empty() {
            return;
        }
        self.clearing.batches += 1;
        let number = self.clearing.batches;
        let waiting = self.live();
        let stage = Stage::Flushing;
        self.clearing.batch =
            Some(Batch { number, regions, locks, stage, waiting, abandoned: false });
        if mutation::is_on(Mutation::ClearWithoutFlush) {
            return self.send_clear(now);
        }
        for slot in waiting.iter() {
            let purpose = Purpose::Flush(FlushFor::Clear(number));
            self.send(now, slot, purpose, Request::Flush, None);
        }
    }

    fn send_clear(&mut self, now: Instant) {
        let (steady, members) = (self.is_steady(), self.live());
        let Some(batch) = &mut self.clearing.batch else { return };
        if !steady {
            batch.abandoned = true;
            return self.end_batch(now, false);
        }
        batch.stage = Stage::Clearing;
        batch.waiting = members;
        let (number, regions) = (batch.number, batch.regions.clone());
        for slot in members.iter() {
            let request = Request::Clear { regions: regions.clone() };
            self.send(now, slot, Purpose::Clear(number), request, None);
        }
    }

    pub(super) fn clear_answered(
        &mut self,
        now: Instant,
        slot: Slot,
        number: u64,
        reply: Reply<()>,
    ) {
        if let Some(batch) = &mut self.clearing.batch
            && batch.number == number
        {
            batch.waiting.remove(slot);
            batch.abandoned |= reply != Reply::Done;
        }
        if reply != Reply::Done && !self.is_only_member(slot) {
            self.lose_for(now, slot, &reply);
        }
    }

    fn end_batch(&mut self, now: Instant, cleared: bool) {
        let Some(batch) = self.clearing.batch.take() else { return };
        self.clearing.rest_until = Some(now + PAUSE);
        for region in batch.regions {
            if cleared {
                self.clearing.written.remove(&region);
            } else {
                self.clearing.put_back(region);
            }
        }
        for lock in batch.locks {
            self.unlock(now, lock);
        }
    }

    /// The locks stay until the others have answered: what they were sent may not be carried out
    /// beside a new write.
    pub(super) fn clear_lost(&mut self, slot: Slot) {
        if let Some(batch) = &mut self.clearing.batch {
            batch.abandoned = true;
            batch.waiting.remove(slot);
        }
        if let Some(asking) = &mut self.clearing.asking {
            self.clearing.is_unsure |= asking.waiting.contains(slot); // it may come back with them
            asking.waiting.remove(slot);
        }
    }

    fn ask_what_is_marked(&mut self, now: Instant) {
        if let Some(asking) = self.clearing.asking.take_if(|asking| asking.waiting.is_empty()) {
            let known = &self.clearing.written;
            let new: Vec<_> = asking
                .found
                .into_iter()
                .filter(|region| !known.contains_key(region))
                .filter(|region| !self.clearing.stubborn.contains(region))
                .collect();
            let tried = std::mem::take(&mut self.clearing.stubborn);
            new.iter().for_each(|region| self.clearing.note(now, *region));
            self.clearing.stubborn = tried;
            self.clearing.stubborn.extend(new);
        }
        let members = self.live();
        let is_new = self.clearing.members != members;
        let has_time = self.clearing.is_unsure && self.clearing.written.is_empty();
        if self.clearing.asking.is_none() && (is_new || has_time) {
            if is_new {
                self.clearing.stubborn.clear(); // who came has marks of its own
            }
            self.clearing.members = members;
            self.clearing.is_unsure = false; // a write that comes before the answer unsettles it again
            self.clearing.asking = Some(Asking { waiting: members, found: BTreeSet::new() });
            for slot in members.iter() {
                self.send(now, slot, Purpose::Marked, Request::Marked, None);
            }
        }
    }

    pub(super) fn marked_answered(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let Reply::Occupied(regions) = reply else { return self.lose_for(now, slot, &reply) };
        if let Some(asking) = &mut self.clearing.asking {
            asking.waiting.remove(slot);
            let size = self.chain.size_bytes() / crate::types::REGION_BYTES;
            let within = regions.into_iter().filter(|region| region.0 < size);
            asking.found.extend(within.take(ASKED_MAX));
        }
    }

    pub(super) fn next_clear(&self) -> Option<Instant> {
        let busy = self.clearing.batch.is_some() || !self.may_clear();
        if busy { None } else { self.clearing.due_at(self.patience()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { quiet: Duration::from_secs(10), budget: 4 };

    fn seconds(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// Marking it again would cost a sync, for a mark that the next write needs anyway.
    #[test]
    fn a_region_that_is_written_all_the_time_keeps_its_mark() {
        let start = Instant::now();
        let mut clearing = Clearing::default();
        clearing.note(start, Region(1));
        clearing.note(start, Region(2));
        for second in 1..100 {
            clearing.note(seconds(start, second), Region(1));
        }
        let due = clearing.take_due(seconds(start, 99), PATIENCE);
        assert_eq!(due, [Region(2)]);
        assert_eq!(clearing.due_at(PATIENCE), Some(seconds(start, 109)));
    }

    #[test]
    fn beyond_the_budget_the_least_recently_written_go_first_and_no_more_than_that() {
        let start = Instant::now();
        let mut clearing = Clearing::default();
        for region in 0..7 {
            clearing.note(seconds(start, region), Region(region));
        }
        clearing.note(seconds(start, 7), Region(0));
        let due = clearing.take_due(seconds(start, 8), PATIENCE);
        assert_eq!(due, [Region(1), Region(2), Region(3)]);
    }

    /// A load that writes everywhere would have each mark cleared and made again.
    #[test]
    fn what_was_written_just_now_stays_marked_even_beyond_the_budget() {
        let start = Instant::now();
        let mut clearing = Clearing::default();
        (0..100).for_each(|region| clearing.note(start, Region(region)));
        assert_eq!(clearing.take_due(start, PATIENCE), []);
        assert_eq!(clearing.due_at(PATIENCE), Some(seconds(start, 1)));
    }

    /// One flush for what gets quiet about the same time.
    #[test]
    fn those_that_will_soon_be_due_go_with_the_first_that_is() {
        let start = Instant::now();
        let mut clearing = Clearing::default();
        for region in 0..4 {
            clearing.note(seconds(start, region * 3), Region(region));
        }
        let due = clearing.take_due(seconds(start, 10), PATIENCE);
        assert_eq!(due, [Region(0), Region(1)]);
        due.into_iter().for_each(|region| clearing.put_back(region));
        assert_eq!(clearing.take_due(seconds(start, 19), PATIENCE).len(), 4);
    }
}
