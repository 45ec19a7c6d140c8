//! Replicas that aren't in the set are made equal to the members while the volume goes on.
//!
//! Owns what each rebuild has yet to look at, the regions on their way, and the throttle. Promises that
//! a replica is added only when every region in which it could differ was found equal to a member's
//! under one lock, or in a layer that nobody changes. What may never happen: that the record names
//! a replica that lacks an acknowledged write, or loses one that a flush covered.
//!
//! ```text
//! Describing ─▶ Adopting ─▶ Draining ─▶ Gathering ─▶ Marking ─▶ Copying ─▶ CatchingUp ─▶ MakingReady
//! the members'  keeps what  writes from  where it     durable    compared,  confirms      fdatasync
//! chains, its   it has      before are   may differ   on it      then       what was       of all
//! own marks                 in                                   copied     answered         │
//!                                                                           without it       ▼
//!                                                           member ◀── recorded ◀────── Adding
//! ```
//! **Why the set is enough.** `base` is the generation in which the target was last told that it is
//! in sync. Then it was equal to the members outside the regions that it had marked. What it missed
//! since was marked at the members when it was removed, since a clear needs all members; the
//! `Advance` after the removal stamped those marks with a generation above `base`, and stamps stay.
//! What only the target has is marked there. So it differs only in *set* = {stamp > base at a
//! member} ∪ {marked at the target}. The set is marked at the target before the first copy: later
//! generations stamp it there too, so that the target, once a member, remembers it for others that
//! are absent; and a rebuild after this one, if it ends early, looks there again.
//!
//! **Why the walk is enough.** The stamps are asked for when every write that began before the
//! target took part is over; it takes all later ones. A region of the head is looked at under the
//! range lock, when it is settled. Sealed layers don't change. A change of the chain waits until no
//! region is under way, and the target takes part in it: a sealed head goes on as a sealed layer, a
//! new head is equal from its birth, layers that are dropped drop out of the walk. Which layers may
//! differ where is said in `chain/tree/adoption.rs`. Joins wait until no rebuild runs.
//!
//! In each region the checksums are compared first and only blocks that differ are moved, so that a
//! rebuild that begins anew doesn't move again what is equal already.
//!
//! What may be long (marks, stamps, what a layer holds) is asked for page by page, one layer after
//! another, so that no replica is held up by a question; and kept in sets whose size follows what
//! was written.

mod gather;
mod promote;
mod throttle;
mod todo;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use self::throttle::{Rate, Throttle};
use self::todo::Todo;
use self::walk::Step;
pub(super) use self::walk::StepId;
use super::action::IoId;
use super::core::{Core, Phase};
use super::fan_out::FanOut;
use super::peer::Purpose;
use super::slots::{Slot, Slots};
use crate::admin::RebuildStage;
use crate::chain::ChainInfo;
use crate::message::{Adopted, Request};
use crate::regions::RegionSet;
use crate::types::{Generation, Incarnation, LayerId, REGION_BYTES, Region};

#[derive(Debug)]
pub(super) struct Rebuilds {
    by_target: BTreeMap<Slot, Rebuild>,
    /// Regions on their way, also of rebuilds that have ended: their ranges stay locked until who
    /// was asked has answered.
    steps: BTreeMap<StepId, Step>,
    next_step: u64,
    /// Whose region began last: the next one is another's, since the throttle may admit only one.
    served: Option<Slot>,
    throttle: Throttle,
    started: u64,
    /// What the last one of each replica came to.
    ended: BTreeMap<Slot, RebuildStatus>,
}

#[derive(Debug)]
pub(super) struct Rebuild {
    /// Of all rebuilds of this engine: an answer may come when its rebuild was given up.
    number: u64,
    incarnation: Incarnation,
    /// Generation in which the target was last in sync. `None`: never, or nobody can say.
    base: Option<Generation>,
    /// Regions that the target had marked when it came.
    marked: RegionSet,
    /// Members with the same chain, and the size of each of its layers. Others may have joined
    /// some of these.
    sources: Slots,
    layers: BTreeMap<LayerId, u64>,
    stage: RebuildPhase,
    /// Where the target may differ, and isn't known to be equal yet.
    regions: Todo,
    /// Regions of which the target holds anything; of others its sums needn't be asked.
    occupied: BTreeMap<LayerId, RegionSet>,
    done_bytes: u64,
    total_bytes: u64,
    moved_bytes: u64,
    rate: Rate,
}

#[derive(Debug)]
enum RebuildPhase {
    Describing {
        asked: FanOut,
        chains: BTreeMap<Slot, ChainInfo>,
        /// The target has told all its marks: before it adopts a chain, which may be shorter.
        marks_told: bool,
    },
    Adopting {
        chain: ChainInfo,
    },
    /// Writes that were sent before the target took any.
    Draining {
        before: BTreeSet<IoId>,
        adopted: Adopted,
    },
    Gathering(gather::Gathering),
    Marking {
        marks: RegionSet,
        /// Where those begin that weren't sent yet.
        next: Option<Region>,
    },
    Copying,
    /// The target has yet to confirm writes that were acknowledged without it: its sync would miss
    /// them, and a flush that was answered before covers them.
    CatchingUp,
    MakingReady,
    Adding {
        asked: bool,
    },
}

/// For people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RebuildStatus {
    /// Only what was written since then; else everything.
    pub since: Option<Generation>,
    pub stage: RebuildStage,
    /// Bytes that were compared, and found or made equal; in whole regions.
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// Data that had to be moved.
    pub moved_bytes: u64,
    /// Lately.
    pub bytes_per_second: u64,
}

impl Rebuilds {
    pub(super) fn new(now: Instant, limit: Option<u64>) -> Self {
        Self {
            by_target: BTreeMap::new(),
            steps: BTreeMap::new(),
            next_step: 0,
            served: None,
            throttle: Throttle::new(now, limit),
            started: 0,
            ended: BTreeMap::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.by_target.is_empty()
    }

    /// All targets; whoever was served last comes last.
    fn in_turn(&self) -> Vec<Slot> {
        let mut targets: Vec<Slot> = self.by_target.keys().copied().collect();
        let first = targets.partition_point(|target| Some(*target) <= self.served);
        targets.rotate_left(first);
        targets
    }

    /// No region is on its way.
    pub(super) fn is_at_rest(&self) -> bool {
        self.steps.is_empty()
    }

    /// The frontend has asked for something: it goes first.
    pub(super) fn notice_foreground(&mut self, now: Instant) {
        self.throttle.notice_foreground(now);
    }

    fn forget(&mut self, target: Slot) {
        if let Some(status) = self.status(target) {
            self.ended.insert(target, status);
        }
        self.by_target.remove(&target);
    }

    /// What the last rebuild of a replica came to, complete or not.
    pub(super) fn last_status(&self, target: Slot) -> Option<RebuildStatus> {
        self.ended.get(&target).copied()
    }

    pub(super) fn status(&self, target: Slot) -> Option<RebuildStatus> {
        let rebuild = self.by_target.get(&target)?;
        Some(RebuildStatus {
            since: rebuild.base,
            stage: match rebuild.stage {
                RebuildPhase::Describing { .. }
                | RebuildPhase::Adopting { .. }
                | RebuildPhase::Draining { .. } => RebuildStage::Beginning,
                RebuildPhase::Gathering(_) | RebuildPhase::Marking { .. } => {
                    RebuildStage::Gathering
                }
                RebuildPhase::Copying => RebuildStage::Copying,
                RebuildPhase::CatchingUp | RebuildPhase::MakingReady => RebuildStage::Syncing,
                RebuildPhase::Adding { .. } => RebuildStage::Adding,
            },
            done_bytes: rebuild.done_bytes,
            total_bytes: rebuild.total_bytes,
            moved_bytes: rebuild.moved_bytes,
            bytes_per_second: rebuild.rate.bytes_per_second(),
        })
    }
}

impl Rebuild {
    /// Whether the target may hold anything there.
    fn holds(&self, layer: LayerId, region: Region) -> bool {
        self.occupied.get(&layer).is_some_and(|regions| regions.contains(region))
    }

    /// A change of the chain has dropped the layer: there is nothing to be made equal.
    fn region_gone(&mut self) {
        self.total_bytes -= REGION_BYTES;
    }

    fn region_done(&mut self, now: Instant) {
        self.done_bytes += REGION_BYTES;
        self.rate.note(now, self.done_bytes);
    }
}

impl Core {
    pub(super) fn drive_rebuild(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Serving) {
            return;
        }
        self.start_rebuilds(now);
        let targets: Vec<Slot> = self.rebuilds.by_target.keys().copied().collect();
        for target in targets {
            let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { continue };
            match &mut rebuild.stage {
                RebuildPhase::Describing { asked, marks_told: true, .. } if asked.is_over() => {
                    self.rebuild_adopts(now, target);
                }
                RebuildPhase::Draining { before, .. } => {
                    before.retain(|io| self.ios.contains_key(io));
                    if before.is_empty() {
                        self.rebuild_gathers(now, target);
                    }
                }
                RebuildPhase::Gathering(gathering) if gathering.is_complete() => {
                    self.rebuild_marks(now, target);
                }
                RebuildPhase::CatchingUp => self.rebuild_makes_ready(now, target),
                RebuildPhase::Adding { asked: false } => self.rebuild_is_added(target),
                _ => {}
            }
        }
        self.walk(now);
    }

    /// When the throttle lets the next region begin, if one waits for that. Changes with any event.
    pub fn next_rebuild_step(&self) -> Option<Instant> {
        let serves = matches!(self.phase, Phase::Serving);
        self.rebuilds.throttle.refused_until().filter(|_| serves)
    }

    /// A replica waits to be rebuilt: joins let it go first, or some replica would always have one.
    pub(super) fn wants_rebuild(&self) -> bool {
        !self.candidates().is_empty()
    }

    fn candidates(&self) -> Slots {
        let begun = &self.rebuilds.by_target;
        self.slots_where(|peer| {
            peer.in_set.is_none()
                && peer.wanted
                && peer.welcome().is_some()
                && !begun.contains_key(&peer.slot)
        })
    }

    /// Between two changes of the chain: the target takes part in all after its adoption.
    fn start_rebuilds(&mut self, now: Instant) {
        let can = self.is_steady() && self.chain_work.is_at_rest() && self.promoting.is_none();
        let members = self.live();
        if !can || members.is_empty() {
            return;
        }
        for target in self.candidates().iter() {
            // After a salvage stamps don't tell what an older member has and the chosen one lacks.
            let Some(record) = &self.record else { return };
            let remembered =
                |base: &Generation| *base < record.generation && record.remembers(Some(*base));
            self.rebuilds.started += 1;
            let number = self.rebuilds.started;
            let Some(welcome) = self.peer(target).welcome() else { continue };
            let marks_told = welcome.marked_regions == 0;
            let is_older = self.is_older_than_it_left(target, welcome);
            let incarnation = welcome.incarnation;
            let base = welcome.synced_generation.filter(remembered).filter(|_| !is_older);
            let describe = Purpose::RebuildDescribe(number);
            let asked = self.ask(now, members, &describe, &Request::DescribeChain);
            let rebuild = Rebuild {
                number,
                incarnation,
                base,
                marked: RegionSet::new(),
                sources: Slots::NONE,
                layers: BTreeMap::new(),
                stage: RebuildPhase::Describing { asked, chains: BTreeMap::new(), marks_told },
                regions: Todo::default(),
                occupied: BTreeMap::new(),
                done_bytes: 0,
                total_bytes: 0,
                moved_bytes: 0,
                rate: Rate::new(now),
            };
            self.rebuilds.by_target.insert(target, rebuild);
            if !marks_told {
                self.rebuild_asks_target(now, target, number, Region(0));
            }
        }
    }

    /// The rebuild with this number, if it hasn't ended, and its target.
    fn rebuild_numbered(&mut self, number: u64) -> Option<(Slot, &mut Rebuild)> {
        let mut rebuilds = self.rebuilds.by_target.iter_mut();
        rebuilds.find(|(_, it)| it.number == number).map(|(slot, rebuild)| (*slot, rebuild))
    }

    /// A target that has got the chain but doesn't take part in its changes yet would miss one.
    pub(super) fn is_mid_adoption(&self) -> bool {
        let mut targets = self.rebuilds.by_target.keys();
        self.promoting.is_some() || targets.any(|target| !self.peer(*target).is_write_only())
    }

    // ---- ends ------------------------------------------------------------------------------

    /// `slot` is gone, as target, source, or whatever it was.
    pub(super) fn rebuild_lost(&mut self, now: Instant, slot: Slot, reason: &str) {
        // First, since a lock that is let go below may wake a step that would ask it.
        let held_up = self.rebuilds.expect_no_more_of(slot);
        let targets: Vec<Slot> = self.rebuilds.by_target.keys().copied().collect();
        for target in targets {
            let Some(rebuild) = self.rebuilds.by_target.get_mut(&target) else { continue };
            if matches!(rebuild.stage, RebuildPhase::Adding { asked: true }) {
                continue; // once asked, the arbiter's answer decides what the target is
            }
            if target == slot {
                self.end_rebuild(now, target);
            } else if rebuild.loses_source(slot) {
                let reason = format!("its rebuild's source was lost: {reason}");
                self.lose(now, target, &reason);
            }
        }
        for step in held_up {
            self.go_on(now, step);
        }
    }

    /// The target is no part of anything any more; what is under way for it runs out.
    fn end_rebuild(&mut self, now: Instant, target: Slot) {
        self.rebuilds.forget(target);
        self.abandon_steps(now, target);
        if self.promoting != Some(target) {
            return;
        }
        self.promoting = None;
        if self.is_steady() {
            let needed = self.needed();
            let ids: Vec<_> = self.ios.keys().copied().collect();
            for id in ids {
                self.need_only(now, id, needed);
            }
            self.flushes_need_only(needed);
        }
    }
}

impl Rebuild {
    /// Whether it can't go on without `slot`.
    fn loses_source(&mut self, slot: Slot) -> bool {
        let was_source = self.sources.contains(slot);
        self.sources.remove(slot);
        match &mut self.stage {
            RebuildPhase::Describing { asked, chains, .. } => {
                asked.lost(slot);
                chains.remove(&slot);
                asked.is_over() && chains.is_empty()
            }
            RebuildPhase::Gathering(gathering) => gathering.loses(slot),
            _ => was_source && self.sources.is_empty(),
        }
    }
}
