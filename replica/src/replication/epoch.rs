//! Rounds in which the members agree on how far they have come (rule 10b), so that a directory that
//! was replaced by an older copy of itself is known by what it says.
//!
//! Owns the number of the newest round and what each replica has confirmed. Promises that nobody is
//! told "agreed" before every member of the record, and who is being added, has made "begun"
//! durable; so a member that has begun less than another one knows to be agreed isn't the copy that
//! took part.
//!
//! ```text
//!              all members                     those who still live
//! wanted ──▶ Beginning: begun = k, durable ──▶ Agreeing: agreed = k, durable ──▶ agreed
//!   ▲            │ one is lost: k is never agreed on
//!   └────────────┘
//! ```
//! Wanted by the open, by each clearing of marks (they are what tells an older copy's lacks), by the
//! clean end, and now and then while the volume is written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::core::Core;
use super::fan_out::FanOut;
use super::peer::Purpose;
use super::slots::Slot;
use crate::message::{Departed, Reply, Request, Welcome};
use crate::mutation::{self, Mutation};
use crate::record::Member;
use crate::types::{Epoch, Fence, Generation};

/// While the volume is written, a round begins at least so often.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// Replicas that were removed and may come back; beyond that, who left first is rebuilt in full.
const DEPARTED_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Epochs {
    /// Of all rounds that any engine began, as far as is known.
    newest: u64,
    agreed: u64,
    wanted: u64,
    round: Option<Round>,
    /// Written since the newest round began.
    is_due: bool,
    began_at: Option<Instant>,
    /// Agreed on when the volume was opened, and what must be before it is closed.
    at_open: u64,
    at_close: u64,
    /// What those who were removed must have begun, if they are what they were.
    departed: BTreeMap<Member, u64>,
}

#[derive(Debug)]
struct Round {
    number: u64,
    stage: EpochStage,
    asked: FanOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EpochStage {
    Beginning,
    Agreeing,
}

/// What a replica has confirmed to this engine, durably.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Confirmed {
    begun: u64,
    fence: Option<Fence>,
    synced: Option<Generation>,
}

impl Confirmed {
    /// Whatever it was before, it is what it is made now.
    pub(super) fn made_ready(begun: u64, fence: Option<Fence>) -> Self {
        Self { begun, fence, synced: None }
    }

    pub(super) fn advanced(&mut self, fence: Option<Fence>, generation: Generation) {
        self.fence = self.fence.max(fence);
        self.synced = self.synced.max(Some(generation));
    }
}

impl Epochs {
    /// A round that begins after now: its number.
    pub(super) fn want(&mut self) -> u64 {
        self.wanted = self.newest + 1;
        self.wanted
    }

    pub(super) fn is_agreed(&self, number: u64) -> bool {
        self.agreed >= number
    }

    /// Whether something is due earlier than before.
    pub(super) fn note_written(&mut self) -> bool {
        !std::mem::replace(&mut self.is_due, true)
    }

    /// Whether what is wanted may still be agreed on.
    pub(super) fn is_under_way(&self) -> bool {
        self.round.is_some() || self.wanted > self.agreed
    }

    pub(super) fn want_to_close(&mut self) {
        self.at_close = self.want();
    }

    pub(super) fn may_close(&self) -> bool {
        self.is_agreed(self.at_close) || !self.is_under_way()
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    pub(super) fn departed(&self) -> Vec<Departed> {
        let departed = self.departed.iter();
        departed.map(|(member, begun)| Departed { member: member.clone(), begun: *begun }).collect()
    }

    fn note_departed(&mut self, member: Member, begun: u64) {
        let known = self.departed.entry(member).or_default();
        *known = begun.max(*known);
        if self.departed.len() > DEPARTED_MAX {
            let first = self.departed.iter().min_by_key(|(_, begun)| **begun);
            if let Some(first) = first.map(|(member, _)| member.clone()) {
                self.departed.remove(&first);
            }
        }
    }

    fn due_at(&self, every: Duration) -> Option<Instant> {
        self.began_at.filter(|_| self.is_due && !self.is_under_way()).map(|began| began + every)
    }
}

impl Core {
    pub(super) fn drive_epochs(&mut self, now: Instant) {
        if !self.is_open() {
            return;
        }
        if self.epochs.due_at(self.config.epoch_every).is_some_and(|at| at <= now) {
            self.epochs.want();
        }
        match &self.epochs.round {
            None if self.epochs.wanted > self.epochs.agreed && self.is_steady() => {
                self.begin_round(now);
            }
            Some(Round { asked, .. }) if !asked.is_over() => {}
            Some(Round { stage: EpochStage::Beginning, number, .. }) => self.agree(now, *number),
            Some(Round { stage: EpochStage::Agreeing, number, .. }) => {
                self.epochs.agreed = self.epochs.agreed.max(*number);
                self.epochs.round = None;
                self.drive_epochs(now); // another one may be wanted
            }
            None => {}
        }
    }

    /// All of the record, and who is about to be added to it.
    fn begin_round(&mut self, now: Instant) {
        let members = self.next_set();
        if members.is_empty() {
            return;
        }
        let number = self.epochs.newest.max(self.epochs.wanted - 1) + 1;
        self.epochs.newest = number;
        (self.epochs.is_due, self.epochs.began_at) = (false, Some(now));
        let epoch = Epoch { begun: number, agreed: 0 };
        let asked = self.ask(now, members, &Purpose::Epoch(epoch), &Request::Epoch(epoch));
        self.epochs.round = Some(Round { number, stage: EpochStage::Beginning, asked });
        if mutation::is_on(Mutation::AgreedBeforeBegun) {
            self.agree(now, number);
        }
    }

    fn agree(&mut self, now: Instant, number: u64) {
        let epoch = Epoch { begun: number, agreed: number };
        let asked = self.ask(now, self.live(), &Purpose::Epoch(epoch), &Request::Epoch(epoch));
        self.epochs.round = Some(Round { number, stage: EpochStage::Agreeing, asked });
    }

    pub(super) fn epoch_answered(
        &mut self,
        now: Instant,
        slot: Slot,
        epoch: Epoch,
        reply: Reply<()>,
    ) {
        if !matches!(reply, Reply::Done) && self.is_only_member(slot) {
            // What its failed disk has can still be read.
            (self.epochs.round, self.epochs.wanted) = (None, self.epochs.agreed);
            return;
        }
        if !self.expect_done(now, slot, reply) {
            return;
        }
        let confirmed = &mut self.peer_mut(slot).confirmed;
        confirmed.begun = confirmed.begun.max(epoch.begun);
        let stage = if epoch.agreed == 0 { EpochStage::Beginning } else { EpochStage::Agreeing };
        if let Some(round) = &mut self.epochs.round
            && (round.number, round.stage) == (epoch.begun, stage)
        {
            round.asked.answered(slot);
        }
    }

    /// Who is lost may be a member that has not begun: then this number is never agreed on.
    pub(super) fn epoch_lost(&mut self, slot: Slot) {
        let Some(round) = &mut self.epochs.round else { return };
        match round.stage {
            EpochStage::Beginning => self.epochs.round = None,
            EpochStage::Agreeing => {
                round.asked.lost(slot);
            }
        }
    }

    /// What a replica says of earlier rounds when it is greeted.
    pub(super) fn note_epochs_of(&mut self, slot: Slot, welcome: &Welcome) {
        let epochs = &mut self.epochs;
        epochs.newest = epochs.newest.max(welcome.epoch.begun);
        if self.peers[usize::from(slot.0)].meant().is_none() {
            return;
        }
        epochs.newest = epochs.newest.max(welcome.epoch.agreed);
        epochs.agreed = epochs.agreed.max(welcome.epoch.agreed);
        for Departed { member, begun } in &welcome.departed {
            epochs.note_departed(member.clone(), *begun);
        }
    }

    /// Rule 10b: why what answers isn't the member that it was, but an older copy of it.
    pub(super) fn why_older(&self, slot: Slot, welcome: &Welcome) -> Option<String> {
        if mutation::is_on(Mutation::OlderCopyBelieved) {
            return None;
        }
        let begun = welcome.epoch.begun;
        if begun < self.epochs.agreed {
            let agreed = self.epochs.agreed;
            return Some(format!(
                "it is an older copy of itself (epoch {begun}, the members had agreed on {agreed})"
            ));
        }
        let confirmed = self.peer(slot).confirmed;
        let is_older = begun < confirmed.begun
            || welcome.seen < confirmed.fence
            || welcome.synced_generation < confirmed.synced;
        is_older.then(|| {
            let epoch = confirmed.begun;
            format!(
                "it is an older copy of itself (epoch {begun}, it had been at {epoch} or later)"
            )
        })
    }

    /// The volume is open: what holds from here on is agreed on soon.
    pub(super) fn epochs_opened(&mut self, now: Instant) {
        self.epochs.at_open = self.epochs.agreed;
        self.epochs.began_at = Some(now);
        self.epochs.want();
    }

    pub(super) fn epochs_removed(&mut self, slot: Slot, member: Member) {
        let begun = self.epochs.agreed.max(self.peer(slot).confirmed.begun);
        self.epochs.note_departed(member, begun);
    }

    pub(super) fn epochs_added(&mut self, member: &Member) {
        self.epochs.departed.remove(member);
    }

    /// A replica that isn't in the set can't be what it was when it left: what members remember
    /// since then doesn't say what it lacks. Who left unseen had begun what was agreed on then, and
    /// nothing more was before the volume was opened.
    pub(super) fn is_older_than_it_left(&self, slot: Slot, welcome: &Welcome) -> bool {
        let replica = self.peer(slot).id.clone();
        let member = Member { replica, incarnation: welcome.incarnation };
        let begun = self.epochs.departed.get(&member).copied().unwrap_or(self.epochs.at_open);
        welcome.epoch.begun < begun && !mutation::is_on(Mutation::OlderCopyBelieved)
    }

    pub(super) fn next_epoch(&self) -> Option<Instant> {
        self.epochs.due_at(self.config.epoch_every).filter(|_| self.is_open() && self.is_steady())
    }
}
