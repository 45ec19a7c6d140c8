//! Marks are cleared while the volume is used (rules 13 and 14), so that after an unclean stop
//! settling ends within a bounded time ([`Budget`](super::budget::Budget)).
//!
//! Promises that a `Clear` goes out only when every write in its regions is confirmed by all to
//! whom it was sent and a flush that began after that is done on all members; that while it is
//! carried out nobody writes there (their range lock is held, shared: reads go on); that marks stay
//! until the budget needs them, since marking again costs a sync; and that an idle volume ends with
//! no marks and sends nothing. A replica that is being rebuilt never clears.
//!
//! ```text
//! written ──quiet for long, or too many──▶ Flushing ──▶ locked, Clearing ──▶ forgotten
//!    ▲  ▲                                     │ all members         │
//!    │  └─── written again, a member lost ────┴─────────────────────┘
//!    └─── Marked: members say what else they have marked
//! ```
//! What the engine has lost count of (marks of a replica that was rebuilt, those that a replica
//! kept) it learns by asking when it has nothing else to clear.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::action::IoId;
use super::core::{Core, Phase};
use super::fan_out::FanOut;
use super::locks::{LockId, LockMode};
use super::marks::{Marks, Patience};
use super::peer::{FlushFor, Purpose};
use super::slots::{Slot, Slots};
use crate::message::{Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::{BlockRange, Group, REGION_BYTES, Region};

/// Between two batches. While there are too many marks no longer than the batch took.
const PAUSE: Duration = Duration::from_millis(100);
/// Regions that are taken from one answer to `Marked`.
const ASKED_MAX: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Clearing {
    marks: Marks,
    batch: Option<Batch>,
    batches: u64,
    rest_until: Option<Instant>,
    /// Members may have marks that aren't known here.
    is_unsure: bool,
    asking: Option<Asking>,
    /// Where the next question begins: the answer to the last one had no room for all.
    ask_from: Option<Region>,
    /// Known to stay marked although they were cleared: not tried again before the next write.
    stubborn: BTreeSet<Region>,
    /// Who was a member when that was asked last.
    members: Slots,
}

#[derive(Debug)]
struct Batch {
    number: u64,
    began: Instant,
    /// Without those that were written since.
    groups: BTreeSet<Group>,
    locks: Vec<LockId>,
    stage: ClearStage,
    /// Spoiled by the loss of a member: the marks stay.
    asked: FanOut,
    /// A round of epochs that began with it: a copy from before knows less than is agreed then.
    epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClearStage {
    Flushing,
    Clearing,
}

#[derive(Debug)]
struct Asking {
    asked: FanOut,
    found: BTreeSet<Region>,
    /// Where somebody has more.
    next: Option<Region>,
}

impl Clearing {
    pub(super) fn note(&mut self, now: Instant, range: BlockRange) {
        self.marks.note(now, range);
        if let Some(batch) = &mut self.batch
            && !mutation::is_on(Mutation::ClearWithoutLock)
        {
            let groups = range.first.region().group()..=range.last_region().group();
            let again: Vec<_> = batch.groups.range(groups).copied().collect();
            for group in again {
                batch.groups.remove(&group);
                self.marks.put_back(group);
            }
        }
        self.is_unsure = true;
        self.stubborn.clear();
    }
}

impl Core {
    /// From here on the members may have the regions of this write marked.
    pub(super) fn note_written(&mut self, now: Instant, id: IoId) {
        let range = self.io(id).range().expect("a write has a range");
        self.clearing.note(now, range);
        self.repairs_overwritten(range);
        self.is_sooner |= self.epochs.note_written();
    }

    fn patience(&self) -> Patience {
        let affordable = self.budget.regions(self.config.settle_within);
        Patience {
            quiet: self.config.clear_after,
            budget: affordable.min(self.config.marked_regions_max),
        }
    }

    pub(super) fn drive_clear(&mut self, now: Instant) {
        if let Some(batch) = &self.clearing.batch {
            if !batch.asked.is_over() {
                return;
            }
            match batch.stage {
                _ if batch.asked.is_spoiled() => self.end_batch(now, false),
                ClearStage::Flushing if !self.epochs.is_agreed(batch.epoch) => {
                    if self.epochs.is_under_way() {
                        return;
                    }
                    self.end_batch(now, false);
                }
                ClearStage::Flushing => return self.send_clear(now),
                ClearStage::Clearing => self.end_batch(now, true),
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
        let mut groups = self.clearing.marks.take_due(now, self.patience());
        groups.retain(|group| {
            let is_quiet = self.is_quiet(*group);
            if !is_quiet {
                self.clearing.marks.renew(now, *group);
            }
            is_quiet
        });
        if groups.is_empty() {
            self.clearing.rest_until = Some(now + PAUSE);
            return;
        }
        self.clearing.batches += 1;
        let number = self.clearing.batches;
        let (locks, stage, epoch) = (Vec::new(), ClearStage::Flushing, self.epochs.want());
        let asked = FanOut::default();
        let batch = Batch { number, began: now, groups, locks, stage, asked, epoch };
        self.clearing.batch = Some(batch);
        if mutation::is_on(Mutation::ClearWithoutFlush) {
            return self.send_clear(now);
        }
        let purpose = Purpose::Flush(FlushFor::Clear(number));
        let asked = self.ask(now, self.live(), &purpose, &Request::Flush);
        if let Some(batch) = &mut self.clearing.batch {
            batch.asked = asked;
        }
    }

    /// No write is on its way there, and all members agree about it.
    fn is_quiet(&self, group: Group) -> bool {
        let range = group.range();
        mutation::is_on(Mutation::ClearWithoutLock)
            || self.locks.is_free(range, LockMode::Shared) && !self.repairs.is_undecided(range)
    }

    /// All is flushed that was written before; what was written since isn't in the batch any more.
    fn send_clear(&mut self, now: Instant) {
        let Some(mut batch) = self.clearing.batch.take() else { return };
        batch.groups.retain(|group| {
            let is_quiet = self.is_quiet(*group);
            if !is_quiet {
                self.clearing.marks.renew(now, *group);
            } else if !mutation::is_on(Mutation::ClearWithoutLock) {
                batch.locks.push(self.locks.acquire(group.range(), LockMode::Shared).0);
            }
            is_quiet
        });
        batch.stage = ClearStage::Clearing;
        let is_wanted = self.is_steady() && !batch.asked.is_spoiled() && !batch.groups.is_empty();
        if is_wanted {
            let end = self.chain.size_bytes() / REGION_BYTES;
            let regions = batch.groups.iter().flat_map(|group| group.range().regions());
            let regions = regions.filter(|region| region.0 < end).collect();
            let purpose = Purpose::Clear(batch.number);
            let request = Request::Clear { regions };
            batch.asked = self.ask(now, self.live(), &purpose, &request);
        }
        self.clearing.batch = Some(batch);
        if !is_wanted {
            self.end_batch(now, false);
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
            batch.asked.answered(slot);
            if reply != Reply::Done {
                batch.asked.spoil();
            }
        }
        if reply != Reply::Done && !self.is_only_member(slot) {
            self.lose_for(now, slot, &reply);
        }
    }

    fn end_batch(&mut self, now: Instant, cleared: bool) {
        let Some(batch) = self.clearing.batch.take() else { return };
        for group in batch.groups {
            if cleared {
                self.clearing.marks.forget(group);
            } else {
                self.clearing.marks.put_back(group);
            }
        }
        let too_many = cleared && self.clearing.marks.count() > self.patience().budget;
        let took = now.saturating_duration_since(batch.began);
        self.clearing.rest_until = Some(now + if too_many { took.min(PAUSE) } else { PAUSE });
        for lock in batch.locks {
            self.unlock(now, lock);
        }
    }

    /// The locks stay until the others have answered: what they were sent may not be carried out
    /// beside a new write.
    pub(super) fn clear_lost(&mut self, slot: Slot) {
        if let Some(batch) = &mut self.clearing.batch {
            batch.asked.lost(slot);
            batch.asked.spoil();
        }
        if let Some(asking) = &mut self.clearing.asking {
            self.clearing.is_unsure |= asking.asked.lost(slot); // it may come back with them
        }
    }

    fn ask_what_is_marked(&mut self, now: Instant) {
        if let Some(asking) = self.clearing.asking.take_if(|asking| asking.asked.is_over()) {
            let known = &self.clearing.marks;
            let new: Vec<_> = asking
                .found
                .into_iter()
                .filter(|region| !known.has(*region))
                .filter(|region| !self.clearing.stubborn.contains(region))
                .collect();
            let tried = std::mem::take(&mut self.clearing.stubborn);
            new.iter().for_each(|region| self.clearing.note(now, region.range()));
            self.clearing.stubborn = tried;
            self.clearing.stubborn.extend(new);
            self.clearing.is_unsure |= asking.next.is_some();
            self.clearing.ask_from = asking.next;
        }
        let members = self.live();
        let is_new = self.clearing.members != members;
        let has_time = self.clearing.is_unsure && self.clearing.marks.is_empty();
        if self.clearing.asking.is_none() && (is_new || has_time) {
            if is_new {
                self.clearing.stubborn.clear(); // who came has marks of its own
            }
            self.clearing.members = members;
            self.clearing.is_unsure = false; // a write that comes before the answer unsettles it again
            let from = self.clearing.ask_from.filter(|_| !is_new).unwrap_or(Region(0));
            let asked = self.ask(now, members, &Purpose::Marked(from), &Request::Marked { from });
            self.clearing.asking = Some(Asking { asked, found: BTreeSet::new(), next: None });
        }
    }

    pub(super) fn marked_answered(
        &mut self,
        now: Instant,
        slot: Slot,
        from: Region,
        reply: Reply<()>,
    ) {
        let Some(page) = self.expect_page(now, slot, from, reply) else { return };
        if let Some(asking) = &mut self.clearing.asking {
            asking.asked.answered(slot);
            let size = self.chain.size_bytes() / REGION_BYTES;
            let mut within = page.regions.within(0..size);
            asking.found.extend(within.by_ref().take(ASKED_MAX));
            let next = within.next().or(page.next.filter(|next| next.0 < size));
            asking.next = asking.next.into_iter().chain(next).min();
        }
    }

    pub(super) fn next_clear(&self) -> Option<Instant> {
        let busy = self.clearing.batch.is_some() || !self.may_clear();
        let due = if busy { None } else { self.clearing.marks.due_at(self.patience()) };
        due.map(|due| due.max(self.clearing.rest_until.unwrap_or(due)))
    }
}
