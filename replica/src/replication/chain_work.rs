//! Changes of the chain: one at a time; all but a removal are one cut through all writes.
//!
//! ```text
//! queued ─▶ Settling ─▶ Preparing ─▶ Draining ─▶ Flushing ─▶ Applying ─▶ Describing ─▶ reported
//!           all equal   have room,   new writes  on all      on all, or  all members
//!                       or refused   are parked              they leave  have it
//! ```
//! Nobody leaves the set since its disk has no room for a change: who is in it has taken the room
//! before the first one does it, or nobody does. A snapshot exists for users once it is reported. A replica that is being rebuilt takes part in
//! every change. Removed layers are joined to their children afterwards, in the background.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::action::{Action, End, Job, JobId};
use super::core::{Closing, Core, Phase};
use super::io::Io;
use super::peer::{FlushFor, Purpose};
use super::slots::{Slot, Slots};
use crate::chain::{ChainChange, ChainInfo, ChainOp, Seal};
use crate::message::{Refusal, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::{ChainOpId, LayerId};

/// Pause before a join that found no room is tried again.
const JOIN_RETRY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct ChainWork {
    pub(super) queue: VecDeque<(JobId, Job)>,
    current: Option<Current>,
    /// Layers to be joined, per replica.
    joins: BTreeMap<Slot, BTreeSet<LayerId>>,
    joining: BTreeMap<Slot, LayerId>,
    /// A join found no room: when it is tried again.
    no_join_before: Option<Instant>,
}

#[derive(Debug)]
struct Current {
    id: JobId,
    job: Job,
    stage: ChangeStage,
    /// Who has the room for it.
    prepared: Slots,
    result: Result<(), String>,
}

#[derive(Debug, PartialEq, Eq)]
enum ChangeStage {
    Settling,
    Preparing {
        waiting: Slots,
        refused: Option<String>,
    },
    Draining,
    Flushing {
        waiting: Slots,
    },
    Applying {
        waiting: Slots,
        done: Slots,
        refused: Vec<(Slot, Refusal)>,
    },
    /// Those who refused are on their way out of the set.
    Removing,
    Describing {
        from: Slot,
    },
}

impl ChainWork {
    /// Whether a request has to wait for the change. A revert changes what is read, and not on all
    /// members at once.
    pub(super) fn parks(&self, io: &Io) -> bool {
        self.current.as_ref().is_some_and(|current| {
            let reverts = matches!(current.job, Job::Revert { .. });
            let is_before =
                matches!(current.stage, ChangeStage::Settling | ChangeStage::Preparing { .. });
            !is_before && current.job.cuts() && (io.is_write() || reverts)
        })
    }

    /// Some members have the change and others may not.
    pub(super) fn is_applying(&self) -> bool {
        self.current.as_ref().is_some_and(|current| {
            matches!(
                current.stage,
                ChangeStage::Applying { .. }
                    | ChangeStage::Removing
                    | ChangeStage::Describing { .. }
            )
        })
    }

    /// Gives up what was asked for; whom to tell.
    pub(super) fn abandon(&mut self) -> Vec<JobId> {
        let current = self.current.take().map(|current| current.id);
        let queued = std::mem::take(&mut self.queue).into_iter().map(|(id, _)| id);
        current.into_iter().chain(queued).collect()
    }

    /// From here on until it is reported, nothing else may touch the layers.
    pub(super) fn is_cutting(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.stage != ChangeStage::Settling)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.is_at_rest() && self.queue.is_empty()
    }

    /// Nothing runs; something may wait.
    pub(super) fn is_at_rest(&self) -> bool {
        self.current.is_none() && self.joining.is_empty()
    }
}

impl Job {
    /// Whether it is a point in the order of writes, and takes room. A removal is neither: it goes on
    /// beside writes, above all beside those that wait for the room that it gives back.
    fn cuts(&self) -> bool {
        !matches!(self, Self::Remove { .. })
    }
}

impl Core {
    pub(super) fn drive_chain_work(&mut self, now: Instant) {
        self.chain_work.no_join_before.take_if(|at| now >= *at);
        if !self.is_open() {
            return;
        }
        let serving = matches!(self.phase, Phase::Serving);
        if serving && self.chain_work.current.is_none() && !self.is_mid_adoption() {
            let next = self.chain_work.queue.pop_front();
            self.chain_work.current = next.map(|(id, job)| {
                let (stage, prepared) = (ChangeStage::Settling, Slots::NONE);
                Current { id, job, stage, prepared, result: Ok(()) }
            });
        }
        let steady = self.is_steady();
        let live = self.live();
        let (lacks_room, unprepared) = (self.lacks_room(), self.writable());
        let is_quiet = self.writes_in_flight == 0 && !self.clears_or_repairs();
        let Some(current) = &mut self.chain_work.current else {
            return self.drive_joins(now);
        };
        let reverts = matches!(current.job, Job::Revert { .. });
        let is_read = |io: &Io| !io.answered && !io.is_write() && io.is_admitted();
        let is_drained = is_quiet && !(reverts && self.ios.values().any(is_read));
        let is_drained = is_drained || mutation::is_on(Mutation::SnapshotUndrained);
        let is_settled = self.settle.is_done() || mutation::is_on(Mutation::SnapshotUnsettled);
        let cuts = current.job.cuts();
        let is_prepared = unprepared.without(current.prepared).is_empty()
            || mutation::is_on(Mutation::ChangeWithoutRoom);
        match &mut current.stage {
            ChangeStage::Settling | ChangeStage::Draining if cuts && lacks_room.is_some() => {
                return self.refuse_change(now, lacks_room.unwrap_or_default());
            }
            ChangeStage::Settling if (is_settled || !cuts) && self.promoting.is_none() => {
                current.stage = ChangeStage::Draining;
            }
            ChangeStage::Draining if cuts && steady && !is_prepared => {
                return self.prepare_change(now);
            }
            ChangeStage::Preparing { waiting, refused } if waiting.is_empty() => {
                match refused.take() {
                    Some(why) => return self.refuse_change(now, why),
                    None => current.stage = ChangeStage::Draining,
                }
            }
            ChangeStage::Draining if !cuts && steady && self.rebuilds.is_at_rest() => {
                return self.apply_change(now);
            }
            // A member may have come back with what nobody has compared.
            ChangeStage::Draining if cuts && !is_settled => current.stage = ChangeStage::Settling,
            ChangeStage::Flushing { waiting } if waiting.is_empty() && !is_settled => {
                current.stage = ChangeStage::Settling;
            }
            ChangeStage::Draining if cuts && steady && is_drained && self.rebuilds.is_at_rest() => {
                let waiting = self.writable();
                self.set_stage_of_chain(ChangeStage::Flushing { waiting });
                for slot in waiting.iter() {
                    let purpose = Purpose::Flush(FlushFor::Chain);
                    self.send(now, slot, purpose, Request::Flush, None);
                }
                return;
            }
            ChangeStage::Flushing { waiting } if waiting.is_empty() && steady => {
                return self.apply_change(now);
            }
            ChangeStage::Applying { waiting, .. } if waiting.is_empty() => {
                return self.all_applied(now);
            }
            ChangeStage::Removing if steady => {
                let Some(from) = live.iter().next() else { return };
                current.stage = ChangeStage::Describing { from };
                self.send(now, from, Purpose::DescribeChain, Request::DescribeChain, None);
                return;
            }
            _ => return,
        }
        self.drive_chain_work(now);
    }

    fn set_stage_of_chain(&mut self, stage: ChangeStage) {
        if let Some(current) = &mut self.chain_work.current {
            current.stage = stage;
        }
    }

    pub(super) fn chain_flushed(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if self.expect_done(now, slot, reply)
            && let Some(Current { stage: ChangeStage::Flushing { waiting }, .. }) =
                &mut self.chain_work.current
        {
            waiting.remove(slot);
        }
    }

    /// What can be said without asking: a change that the chain wouldn't show couldn't be rolled
    /// forward, and replicas that have joined a removed layer and others would answer differently.
    fn foregone(&self, job: &Job) -> Option<Result<(), String>> {
        let missing = |id| Some(Err(format!("there is no snapshot in {id}")));
        match *job {
            Job::Remove { layer } => match self.chain.layer(layer) {
                Some(layer) if layer.removed => Some(Ok(())),
                Some(_) => None,
                None => missing(layer),
            },
            Job::Revert { to } if self.chain.layer(to).is_none_or(|layer| layer.removed) => {
                missing(to)
            }
            Job::Expand { size_bytes } => (size_bytes == self.chain.size_bytes()).then_some(Ok(())),
            Job::Revert { .. } | Job::Snapshot { .. } => None,
        }
    }

    /// Whether the change is done, or can't be, and its asker is told so.
    fn is_foregone(&mut self, now: Instant) -> bool {
        let job = self.chain_work.current.as_ref().map(|current| &current.job);
        let Some(result) = job.and_then(|job| self.foregone(job)) else { return false };
        match result {
            Ok(()) => self.set_stage_of_chain(ChangeStage::Removing),
            Err(why) => self.refuse_change(now, why),
        }
        true
    }

    fn next_op(&self) -> Option<ChainOp> {
        let new_head = LayerId(self.chain.head.0 + 1); // the head's is always the highest
        let change = match &self.chain_work.current.as_ref()?.job {
            Job::Snapshot { seal } => {
                let seal = Seal { generation: self.generation(), ..seal.clone() };
                ChainChange::Snapshot { seal, new_head }
            }
            Job::Revert { to } => ChainChange::Revert { to: *to, new_head },
            Job::Remove { layer } => ChainChange::Remove { layer: *layer },
            Job::Expand { size_bytes } => ChainChange::Expand { size_bytes: *size_bytes },
        };
        Some(ChainOp { id: ChainOpId(self.chain.last_op.0 + 1), change })
    }

    /// Asks those for room that haven't taken it yet.
    fn prepare_change(&mut self, now: Instant) {
        if self.is_foregone(now) {
            return self.drive_chain_work(now);
        }
        let (writable, Some(op)) = (self.writable(), self.next_op()) else { return };
        let Some(current) = &mut self.chain_work.current else { return };
        let waiting = writable.without(current.prepared);
        current.stage = ChangeStage::Preparing { waiting, refused: None };
        for slot in waiting.iter() {
            self.send(now, slot, Purpose::Prepare, Request::Prepare(Box::new(op.clone())), None);
        }
    }

    /// A member that can't stays one: the change isn't made.
    pub(super) fn chain_prepared(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let is_member = self.live().contains(slot);
        let replica = self.peer(slot).id.clone();
        let Some(Current { stage: ChangeStage::Preparing { waiting, refused }, prepared, .. }) =
            &mut self.chain_work.current
        else {
            return;
        };
        waiting.remove(slot);
        match reply {
            Reply::Done => prepared.insert(slot),
            Reply::Refused(why @ (Refusal::NoSpace | Refusal::Invalid { .. })) if is_member => {
                let is_full = why == Refusal::NoSpace;
                let next =
                    if is_full { "; free some space there, or remove snapshots" } else { "" };
                *refused = Some(format!("replica {replica}: {why}{next}; nothing was changed"));
            }
            other => self.lose_for(now, slot, &other),
        }
    }

    /// Nobody has done it, and nobody will.
    fn refuse_change(&mut self, now: Instant, why: String) {
        let writable = self.writable();
        let Some(current) = &mut self.chain_work.current else { return };
        current.result = Err(why);
        current.stage = ChangeStage::Removing;
        // Whoever refused has kept nothing; an answer may have been lost.
        let prepared = std::mem::replace(&mut current.prepared, Slots::NONE);
        for slot in prepared.intersection(writable).iter() {
            self.send(now, slot, Purpose::Abandon, Request::Abandon, None);
        }
        self.drive_chain_work(now);
    }

    fn apply_change(&mut self, now: Instant) {
        if self.is_foregone(now) {
            return self.drive_chain_work(now);
        }
        let Some(op) = self.next_op() else { return };
        let waiting = self.writable();
        self.set_stage_of_chain(ChangeStage::Applying {
            waiting,
            done: Slots::NONE,
            refused: Vec::new(),
        });
        for slot in waiting.iter() {
            self.send(now, slot, Purpose::Chain, Request::Chain(Box::new(op.clone())), None);
        }
    }

    pub(super) fn chain_applied(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let Some(Current { stage: ChangeStage::Applying { waiting, done, refused }, .. }) =
            &mut self.chain_work.current
        else {
            return;
        };
        waiting.remove(slot);
        match reply {
            Reply::Done => done.insert(slot),
            Reply::Refused(refusal) => refused.push((slot, refusal)),
            other => self.lose_for(now, slot, &other),
        }
    }

    /// If nobody could, nothing has changed and the asker is told. Otherwise those who couldn't are
    /// no longer copies of the volume.
    fn all_applied(&mut self, now: Instant) {
        let Some(current) = &mut self.chain_work.current else { return };
        let stage = std::mem::replace(&mut current.stage, ChangeStage::Removing);
        let ChangeStage::Applying { done, refused, .. } = stage else { return };
        if done.is_empty() {
            let why = refused.first().map(|(_, refusal)| refusal.to_string());
            current.result = Err(why.unwrap_or_else(|| "every replica was lost".into()));
        }
        for (slot, refusal) in refused {
            if !done.is_empty() {
                self.lose(now, slot, &refusal.to_string());
            }
        }
        self.drive_membership(now);
        self.drive_chain_work(now);
    }

    pub(super) fn chain_described(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let Reply::Chain(chain) = reply else { return self.lose_for(now, slot, &reply) };
        let asked = ChangeStage::Describing { from: slot };
        let described = |current: &mut Current| current.stage == asked;
        let Some(current) = self.chain_work.current.take_if(described) else { return };
        self.take_chain(*chain);
        self.act(Action::JobDone { job: current.id, result: current.result });
        self.schedule_joins();
        self.start_waiting_ios(now);
    }

    /// A description that was asked for before a change may come after it: the next change would
    /// get the number of one that the replicas have done.
    pub(super) fn chain_refreshed(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let Reply::Chain(chain) = reply else { return self.lose_for(now, slot, &reply) };
        if self.chain_work.current.is_none() && chain.last_op == self.chain.last_op {
            self.take_chain(*chain);
        }
    }

    fn take_chain(&mut self, chain: ChainInfo) {
        let resized = chain.size_bytes() != self.chain.size_bytes();
        self.chain = chain;
        if resized {
            self.act(Action::Opened { size_bytes: self.chain.size_bytes() });
        }
    }

    /// A change goes on without the lost replica; a description is asked of another.
    pub(super) fn chain_work_lost(&mut self, slot: Slot) {
        if let Some(current) = &mut self.chain_work.current {
            current.prepared.remove(slot);
            match &mut current.stage {
                ChangeStage::Preparing { waiting, .. } => waiting.remove(slot),
                // It may come back without having flushed: all flush once more.
                ChangeStage::Flushing { .. } => current.stage = ChangeStage::Draining,
                ChangeStage::Applying { waiting, .. } => waiting.remove(slot),
                ChangeStage::Describing { from } if *from == slot => {
                    current.stage = ChangeStage::Removing
                }
                _ => {}
            }
        }
        let applied_by_some = |current: &Current| {
            matches!(current.stage, ChangeStage::Applying { .. } | ChangeStage::Removing)
        };
        let applying = self.chain_work.current.as_ref().is_some_and(applied_by_some);
        if applying && self.live().is_empty() {
            // Some may have the change and others not: opening makes them alike.
            self.end(End::Reopen("all replicas were lost in a change of the chain".into()));
        }
        self.chain_work.joins.remove(&slot);
        self.chain_work.joining.remove(&slot);
    }

    // ---- joins -----------------------------------------------------------------------------

    /// Every removed layer is joined on every member; where that was done already, it is nothing.
    pub(super) fn schedule_joins(&mut self) {
        let removed = |chain: &ChainInfo| -> BTreeSet<LayerId> {
            chain.layers.iter().filter(|layer| layer.removed).map(|layer| layer.id).collect()
        };
        let layers = removed(&self.chain);
        if !layers.is_empty() {
            for slot in self.live().iter() {
                self.chain_work.joins.insert(slot, layers.clone());
            }
        }
    }

    fn drive_joins(&mut self, now: Instant) {
        let rebuilds = !self.rebuilds.is_idle() || self.wants_rebuild();
        let rests = self.chain_work.no_join_before.is_some();
        if rebuilds || rests || !self.is_steady() || !matches!(self.phase, Phase::Serving) {
            return;
        }
        for slot in self.live().iter() {
            if self.chain_work.joining.contains_key(&slot) {
                continue;
            }
            let next = self.chain_work.joins.get_mut(&slot).and_then(BTreeSet::pop_first);
            if let Some(layer) = next {
                self.chain_work.joining.insert(slot, layer);
                self.send(now, slot, Purpose::Join(layer), Request::Join { layer }, None);
            }
        }
    }

    /// A join that was refused is tried again after the next change, and one that found no room
    /// after a while; the data is safe either way.
    pub(super) fn joined(&mut self, now: Instant, slot: Slot, layer: LayerId, reply: Reply<()>) {
        if self.chain_work.joining.get(&slot) == Some(&layer) {
            self.chain_work.joining.remove(&slot);
            if reply == Reply::Refused(Refusal::NoSpace) {
                self.chain_work.joins.entry(slot).or_default().insert(layer);
                self.chain_work.no_join_before = Some(now + JOIN_RETRY);
                self.is_sooner = true;
            }
        }
        let all_done = self.chain_work.joining.is_empty()
            && self.chain_work.joins.values().all(BTreeSet::is_empty);
        if all_done && self.chain_work.current.is_none() {
            self.refresh_chain(now);
        }
    }

    pub(super) fn next_join(&self) -> Option<Instant> {
        self.chain_work.no_join_before
    }

    /// Looks at the chain anew: joins and writes change what it takes on the disk.
    pub fn refresh_chain(&mut self, now: Instant) {
        if self.chain_work.current.is_none()
            && matches!(self.phase, Phase::Serving)
            && let Some(from) = self.live().iter().next()
        {
            self.send(now, from, Purpose::RefreshChain, Request::DescribeChain, None);
        }
    }

    // ---- the clean end ---------------------------------------------------------------------

    pub(super) fn drive_closing(&mut self, now: Instant) {
        let Phase::Closing(closing) = self.phase else { return };
        match closing {
            Closing::Draining => {
                let busy = self.writes_in_flight > 0
                    || self.chain_work.current.is_some()
                    || self.ios.values().any(|io| !io.answered);
                let early = mutation::is_on(Mutation::ClearEarly);
                if (busy && !early) || !self.is_steady() {
                    return;
                }
                let waiting = self.live();
                if early {
                    self.phase = Phase::Closing(Closing::SayingGoodbye(waiting));
                    for slot in waiting.iter() {
                        self.send(now, slot, Purpose::Bye, Request::Bye, None);
                    }
                    return;
                }
                self.phase = Phase::Closing(Closing::Flushing(waiting));
                self.epochs.want_to_close();
                for slot in waiting.iter() {
                    let purpose = Purpose::Flush(FlushFor::Closing);
                    self.send(now, slot, purpose, Request::Flush, None);
                }
            }
            Closing::Flushing(waiting) if waiting.is_empty() => {
                // With unsettled regions left the marks must stay, for the next engine.
                let is_unequal = !self.settle.is_done() || self.has_given_up();
                if is_unequal || self.repairs.has_undecided() {
                    return self.end(End::Detached);
                }
                if !self.epochs.may_close() {
                    return;
                }
                let waiting = self.live();
                self.phase = Phase::Closing(Closing::SayingGoodbye(waiting));
                for slot in waiting.iter() {
                    self.send(now, slot, Purpose::Bye, Request::Bye, None);
                }
            }
            Closing::SayingGoodbye(waiting) if waiting.is_empty() => self.end(End::Detached),
            Closing::Flushing(waiting) | Closing::SayingGoodbye(waiting) => {
                let left = waiting.intersection(self.live());
                if left != waiting {
                    self.phase = Phase::Closing(match closing {
                        Closing::Flushing(_) => Closing::Draining, // the rest must remove it first
                        _ => Closing::SayingGoodbye(left),
                    });
                    self.drive_closing(now);
                }
            }
        }
    }

    pub(super) fn closing_flushed(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if self.expect_done(now, slot, reply)
            && let Phase::Closing(Closing::Flushing(waiting)) = &mut self.phase
        {
            waiting.remove(slot);
        }
    }

    pub(super) fn said_goodbye(&mut self, slot: Slot) {
        if let Phase::Closing(Closing::SayingGoodbye(waiting)) = &mut self.phase {
            waiting.remove(slot);
        }
    }

    /// What the running change of the chain waits for.
    pub(super) fn chain_waits_for(&self) -> Option<String> {
        let current = self.chain_work.current.as_ref()?;
        (current.stage == ChangeStage::Settling)
            .then(|| "a change of the chain waits until all replicas are equal".into())
    }
}
