//! From a granted generation to a volume that may be used.
//!
//! ```text
//! read the record ─▶ greet its members ─▶ decide who stays ──all──▶ chains alike
//!                      ▲                    │   │  ▲                     │
//!                      │  all may have lost │   │  └─ Pinging those ◀─┐   ▼
//!                      └─ writes, one is ◀──┘   │                     │ Advance on all
//!                         missing: wait for     └─not all─────────────┘   │
//!                         it, or for a person                             ▼
//!                                                  what they have marked, page by page ─▶ serve
//! ```
use std::time::Instant;

use super::action::Action;
use super::config::Config;
use super::core::{Core, Phase};
use super::membership::Changing;
use super::peer::{Absence, Peer, PeerState, Purpose};
use super::slots::{Slot, Slots};
use crate::chain::{ChainChange, ChainInfo, ChainOp};
use crate::message::{Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::{REGION_BYTES, Region};

#[derive(Debug)]
pub(super) struct Opening {
    /// Until then a member that is silent is waited for, and one at whose address nobody listens.
    deadline: Instant,
    dead_deadline: Instant,
    passed: bool,
    dead_passed: bool,
    stage: OpenStage,
    /// All of them have lost power: nobody has more than what each has, until the volume is open.
    all_lost: bool,
    /// Members that have regions marked, and haven't told all of them.
    untold: Slots,
}

#[derive(Debug, PartialEq, Eq)]
enum OpenStage {
    ReadingRecord,
    Greeting,
    /// These stay, if they answer a ping of after the others were found missing (rule 5).
    Pinging {
        staying: Slots,
    },
    /// The arbiter removes those who can't open.
    Removing,
    Equalizing,
    Advancing,
    /// They tell where they may differ: nothing is read or written before that is known of all.
    Marks,
}

impl Opening {
    pub(super) fn new(now: Instant, config: &Config) -> Self {
        Self {
            deadline: now + config.open_timeout,
            dead_deadline: now + config.dead_timeout.min(config.open_timeout),
            passed: false,
            dead_passed: false,
            stage: OpenStage::ReadingRecord,
            all_lost: false,
            untold: Slots::NONE,
        }
    }

    /// Who leaves isn't asked again while those who stay are: the volume has to open once.
    pub(super) fn may_greet(&self, peer: &Peer) -> bool {
        match self.stage {
            OpenStage::ReadingRecord | OpenStage::Pinging { .. } => false,
            OpenStage::Greeting => peer.meant().is_some(),
            _ => peer.in_set.is_some(),
        }
    }

    /// The members have all their time from now on.
    pub(super) fn begin_again(&mut self, now: Instant, config: &Config) {
        self.deadline = now + config.open_timeout;
        self.dead_deadline = now + config.dead_timeout.min(config.open_timeout);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let dead = (!self.dead_passed).then_some(self.dead_deadline);
        dead.or((!self.passed).then_some(self.deadline))
    }
}

/// What to do about the members that have answered so far.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Open { staying: Slots },
    Wait,
}

impl Core {
    fn opening(&mut self) -> Option<&mut Opening> {
        match &mut self.phase {
            Phase::Opening(opening) => Some(opening),
            _ => None,
        }
    }

    /// However long the arbiter took, the members have their time.
    pub(super) fn opening_has_record(&mut self, now: Instant) {
        if let Phase::Opening(opening) = &mut self.phase {
            *opening = Opening::new(now, &self.config);
            opening.stage = OpenStage::Greeting;
            self.peers.iter_mut().for_each(|peer| peer.granted = peer.in_set);
        }
    }

    /// A member that is lost while the volume opens is greeted again, or left out.
    pub(super) fn opening_lost(&mut self, slot: Slot) {
        let member = self.peer(slot).in_set.is_some();
        if let Some(opening) = self.opening()
            && member
            && matches!(
                opening.stage,
                OpenStage::Equalizing | OpenStage::Advancing | OpenStage::Marks
            )
        {
            opening.stage = OpenStage::Greeting;
        }
    }

    pub(super) fn drive_opening(&mut self, now: Instant) {
        let changing = self.changing.is_some();
        let Some(opening) = self.opening() else { return };
        opening.passed |= now >= opening.deadline;
        opening.dead_passed |= now >= opening.dead_deadline;
        let passed = (opening.passed, opening.dead_passed);
        match opening.stage {
            OpenStage::ReadingRecord => {}
            OpenStage::Greeting => match self.verdict(passed) {
                Verdict::Wait => {}
                Verdict::Open { staying } if staying == self.set() => {
                    self.note_all_lost();
                    self.equalize(now);
                    self.drive_opening(now); // most often all chains are alike
                }
                Verdict::Open { staying } if mutation::is_on(Mutation::OpenWithoutPing) => {
                    self.remove_but(staying);
                }
                Verdict::Open { staying } => {
                    self.set_stage(OpenStage::Pinging { staying });
                    self.ping(now, staying);
                }
            },
            OpenStage::Pinging { staying } => {
                let still = self.verdict(passed) == Verdict::Open { staying };
                match &self.changing {
                    Some(Changing::Pinging { asked, .. }) if still && !asked.is_over() => {}
                    Some(Changing::Pinging { .. }) if still => {
                        self.remove_but(staying);
                    }
                    _ => {
                        self.changing = None;
                        self.set_stage(OpenStage::Greeting); // one is lost, or back
                        self.drive_opening(now);
                    }
                }
            }
            OpenStage::Removing if changing => {}
            OpenStage::Removing => {
                self.set_stage(OpenStage::Greeting); // look at those who stay once more
                self.drive_opening(now);
            }
            OpenStage::Equalizing => {
                if self.set().iter().all(|slot| self.peer(slot).outstanding.is_empty()) {
                    self.set_stage(OpenStage::Advancing);
                    for slot in self.set().iter() {
                        self.advance(now, slot);
                    }
                }
            }
            OpenStage::Advancing => {
                if self.all_advanced() {
                    self.set_stage(OpenStage::Marks);
                    for slot in self.untold().iter() {
                        self.ask_marks(now, slot, Region(0));
                    }
                    self.drive_opening(now); // after a clean stop there are none
                }
            }
            OpenStage::Marks => {
                if self.untold().is_empty() {
                    self.serve(now);
                }
            }
        }
    }

    fn set_stage(&mut self, stage: OpenStage) {
        if let Some(opening) = self.opening() {
            opening.stage = stage;
        }
    }

    /// If all that were granted answered and are suspect, they stay so, whatever they say once they
    /// are members again and one of them is lost and greeted anew.
    fn note_all_lost(&mut self) {
        let granted = self.slots_where(|peer| peer.granted.is_some());
        let suspect = |peer: &Peer| peer.welcome().is_some_and(|welcome| !welcome.continuous);
        let suspects = self.slots_where(suspect);
        if let Some(opening) = self.opening() {
            opening.all_lost |= suspects.intersection(granted) == granted;
        }
    }

    /// Procedure "Open", steps 3 and 4: of those who were in the set that was granted.
    fn verdict(&self, (deadline_passed, dead_passed): (bool, bool)) -> Verdict {
        let only_what_is_left = mutation::is_on(Mutation::OpenByWhatIsLeft);
        let granted = self.slots_where(|peer| match only_what_is_left {
            true => peer.in_set.is_some(),
            false => peer.meant().is_some(),
        });
        // Live ones have been welcomed before another was lost on the way.
        let live = self.live();
        let welcomed = self.slots_where(|peer| peer.welcome().is_some()).intersection(granted);
        let answered = welcomed.union(live);
        let older = self.older_copies();
        let all_lost = matches!(&self.phase, Phase::Opening(opening) if opening.all_lost);
        let says_so =
            |peer: &Peer| peer.welcome().is_some_and(|welcome| welcome.continuous || all_lost);
        let continuous = live.union(self.slots_where(says_so).intersection(granted));
        let continuous = continuous.without(older);
        let silent = granted.without(answered);
        // One that lends is alive, and answers soon: whatever the deadline is.
        let lends = |slot| matches!(self.peer(slot).absence, Absence::Lending { .. });
        if silent.iter().any(lends) && !mutation::is_on(Mutation::LenderIsSilent) {
            return Verdict::Wait;
        }
        // One that answered that it isn't fit won't become so; one may listen soon.
        let mut awaited = silent.iter().filter(|slot| match self.peer(*slot).absence {
            Absence::Brief { .. } => !deadline_passed,
            Absence::Gone => !dead_passed,
            Absence::Unfit | Absence::Lending { .. } => false,
        });
        if !continuous.is_empty() {
            return if awaited.next().is_none() {
                Verdict::Open { staying: continuous }
            } else {
                Verdict::Wait
            };
        }
        // All that answered may have lost what wasn't flushed. Together they are what a power cut
        // of all leaves behind (P1); one that is missing may still hold acknowledged writes.
        let nobody_cares = !self.config.recover || mutation::is_on(Mutation::OpenWithoutMissing);
        let nobody_remembers = deadline_passed && nobody_cares && !answered.is_empty();
        if !answered.is_empty() && (silent.is_empty() || nobody_remembers) {
            Verdict::Open { staying: answered.without(older) }
        } else {
            Verdict::Wait
        }
    }

    /// The arbiter is asked; of those that are older copies people are told so.
    fn remove_but(&mut self, staying: Slots) {
        for slot in self.older_copies().without(staying).iter() {
            self.peer_mut(slot).is_older = true;
        }
        self.set_stage(OpenStage::Removing);
        self.swap(staying);
    }

    /// Members whose directory isn't what the others know it to have been (rule 10b). Those who know
    /// aren't older themselves, so it is never all.
    fn older_copies(&self) -> Slots {
        self.slots_where(|peer| {
            peer.meant().is_some()
                && peer.welcome().is_some_and(|it| self.why_older(peer.slot, it).is_some())
        })
    }

    /// A change of the chain that one member has done and another hasn't is done there now.
    fn equalize(&mut self, now: Instant) {
        self.set_stage(OpenStage::Equalizing);
        let chains: Vec<(Slot, ChainInfo)> = self
            .set()
            .iter()
            .map(|slot| {
                let welcome = self.peer(slot).welcome();
                (slot, welcome.map_or(&self.chain, |welcome| &welcome.chain).clone())
            })
            .collect();
        let Some((_, newest)) = chains.iter().max_by_key(|(_, chain)| chain.last_op) else {
            return;
        };
        for (slot, chain) in &chains {
            if chain.last_op == newest.last_op || mutation::is_on(Mutation::ChainsNotEqualized) {
                continue;
            }
            match change_between(chain, newest) {
                Some(change) => {
                    let op = Box::new(ChainOp { id: newest.last_op, change });
                    let purpose = Purpose::Equalize(op.clone());
                    self.send(now, *slot, purpose, Request::Chain(op), None);
                    // If whoever had the change is lost now, this one has it nevertheless.
                    if let PeerState::Welcomed(welcome) = &mut self.peer_mut(*slot).state {
                        welcome.chain = newest.clone();
                    }
                }
                None => return self.lose(now, *slot, "its chain is more than one change behind"),
            }
        }
        self.chain = newest.clone();
    }

    pub(super) fn equalized(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        self.expect_done(now, slot, reply);
    }

    fn serve(&mut self, now: Instant) {
        self.phase = Phase::Serving;
        let is_back = |peer: &Peer| peer.meant().is_some() && peer.in_set.is_none();
        let late = self.slots_where(|peer| is_back(peer) && !peer.is_down());
        self.peers.iter_mut().for_each(|peer| peer.granted = None);
        for slot in late.iter() {
            self.lose(now, slot, "it was removed from the set"); // it comes anew, to be rebuilt
        }
        self.forget_the_removed(now);
        self.epochs_opened(now);
        self.act(Action::Opened { size_bytes: self.chain.size_bytes() });
        self.schedule_joins();
        self.start_waiting_ios(now);
    }

    /// A member becomes live: what it has marked is still to be asked for.
    pub(super) fn note_marks(&mut self, slot: Slot) {
        let has_marks = self.peer(slot).welcome().is_some_and(|welcome| welcome.marked_regions > 0);
        if let Some(opening) = self.opening().filter(|_| has_marks) {
            opening.untold.insert(slot);
        }
    }

    fn untold(&self) -> Slots {
        match &self.phase {
            Phase::Opening(opening) => opening.untold.intersection(self.set()),
            _ => Slots::NONE,
        }
    }

    pub(super) fn ask_marks(&mut self, now: Instant, slot: Slot, from: Region) {
        self.send(now, slot, Purpose::OpenMarks(from), Request::Marked { from }, None);
    }

    pub(super) fn marks_told(&mut self, now: Instant, slot: Slot, from: Region, reply: Reply<()>) {
        let Some(page) = self.expect_page(now, slot, from, reply) else { return };
        let mut regions = page.regions;
        regions.truncate(self.chain.size_bytes() / REGION_BYTES);
        self.settle.add(&regions);
        match (page.next, self.opening()) {
            (None, None) => self.settle.expect_no_marks(slot),
            (None, Some(opening)) => opening.untold.remove(slot),
            // Asked anew from the start once the one that was lost meanwhile is back, or removed.
            (Some(_), Some(opening)) if opening.stage != OpenStage::Marks => {}
            (Some(next), _) => self.ask_marks(now, slot, next),
        }
    }

    pub(super) fn opening_waits_for(&self) -> Option<String> {
        let Phase::Opening(opening) = &self.phase else { return None };
        Some(match opening.stage {
            OpenStage::ReadingRecord => "the arbiter must say who may write".into(),
            OpenStage::Pinging { staying } => format!(
                "{} must answer once more before {} can be left out",
                self.names(staying),
                self.names(self.set().without(staying))
            ),
            OpenStage::Removing => "the arbiter must record who can't open".into(),
            OpenStage::Equalizing | OpenStage::Advancing => {
                "replicas prepare for this engine".into()
            }
            OpenStage::Marks => "replicas tell what was being written at the last stop".into(),
            OpenStage::Greeting => {
                let silent = self
                    .slots_where(|peer| peer.meant().is_some() && peer.welcome().is_none())
                    .iter()
                    .map(|slot| {
                        let peer = self.peer(slot);
                        let why = peer.reason.as_deref().unwrap_or("no answer yet");
                        format!("{} ({why})", peer.id)
                    })
                    .collect::<Vec<_>>();
                let answered = self.slots_where(|peer| peer.welcome().is_some());
                let person = if opening.passed && self.config.recover && !answered.is_empty() {
                    "; those that answered may have lost some, and a client of the engine before \
                     waits: bring them back, detach the volume, or choose what to salvage"
                } else {
                    ""
                };
                format!(
                    "replicas that may hold acknowledged writes must answer: {}{person}",
                    silent.join(", ")
                )
            }
        })
    }
}

/// The one change that leads from `before` to `after`, if it is one.
fn change_between(before: &ChainInfo, after: &ChainInfo) -> Option<ChainChange> {
    if after.last_op.0 != before.last_op.0 + 1 {
        return None;
    }
    let head = after.layer(after.head)?;
    if after.head != before.head {
        let below = head.parent?;
        if below == before.head {
            let seal = after.layer(below)?.seal.clone()?;
            return Some(ChainChange::Snapshot { seal, new_head: after.head });
        }
        return Some(ChainChange::Revert { to: below, new_head: after.head });
    }
    if head.size_bytes != before.layer(before.head)?.size_bytes {
        return Some(ChainChange::Expand { size_bytes: head.size_bytes });
    }
    // It may be gone for good already: a leaf is dropped at once, others are joined.
    let there = |id| after.layer(id).is_some_and(|layer| !layer.removed);
    let removed = before.layers.iter().find(|layer| !layer.removed && !there(layer.id))?;
    Some(ChainChange::Remove { layer: removed.id })
}
