//! Changes of the chain: one at a time; all but a removal are one cut through all writes.
//!
//! ```text
//! queued ─▶ Settling ─▶ Preparing ─▶ Draining ─▶ Flushing ─▶ Applying ─▶ Describing ─▶ reported
//!           all equal   have room,   new writes  on all      on all, or  all members
//!                       or refused   are parked              they leave  have it
//! ```
//! Nobody leaves the set since its disk has no room for a change: who is in it has taken the room
//! before the first one does it, or nobody does. A snapshot exists for users once it is reported. A
//! replica that is being rebuilt takes part in every change. Removed layers are joined to their
//! children afterwards ([`joins`](super::joins)).

use std::collections::VecDeque;
use std::time::Instant;

use super::action::{Action, End, Job, JobId};
use super::core::{Core, Phase};
use super::fan_out::FanOut;
use super::io::Io;
use super::joins::Joins;
use super::peer::{FlushFor, Purpose};
use super::slots::{Slot, Slots};
use crate::chain::{ChainChange, ChainInfo, ChainOp, Seal};
use crate::message::{Refusal, Reply, Request};
use crate::mutation::{self, Mutation};
use crate::types::{ChainOpId, LayerId};

#[derive(Debug, Default)]
pub(super) struct ChainWork {
    pub(super) queue: VecDeque<(JobId, Job)>,
    current: Option<Current>,
    pub(super) joins: Joins,
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
        asked: FanOut,
        refused: Option<String>,
    },
    Draining,
    Flushing {
        asked: FanOut,
    },
    Applying {
        asked: FanOut,
        done: Slots,
        refused: Vec<(Slot, Refusal)>,
    },
    /// Those who refused are on their way out of the set.
    Removing,
    Describing {
        from: Slot,
    },
}

/// What the running change does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Settle,
    Drain,
    Prepare,
    Refuse(String),
    Flush,
    Apply,
    Judge,
    Describe { from: Slot },
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
        self.current.is_none() && self.joins.is_at_rest()
    }

    pub(super) fn is_changing(&self) -> bool {
        self.current.is_some()
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
        if !self.is_open() {
            return;
        }
        self.start_next_change();
        while let Some(next) = self.next_of_change() {
            match next {
                Next::Settle => self.set_change_stage(ChangeStage::Settling),
                Next::Drain => self.set_change_stage(ChangeStage::Draining),
                Next::Prepare => self.prepare_change(now),
                Next::Refuse(why) => self.refuse_change(now, why),
                Next::Flush => {
                    let purpose = Purpose::Flush(FlushFor::Chain);
                    let asked = self.ask(now, self.writable(), &purpose, &Request::Flush);
                    self.set_change_stage(ChangeStage::Flushing { asked });
                }
                Next::Apply => self.apply_change(now),
                Next::Judge => self.judge_change(now),
                Next::Describe { from } => {
                    self.set_change_stage(ChangeStage::Describing { from });
                    self.send(now, from, Purpose::DescribeChain, Request::DescribeChain, None);
                }
            }
        }
    }

    fn start_next_change(&mut self) {
        let serving = matches!(self.phase, Phase::Serving);
        if serving && self.chain_work.current.is_none() && !self.is_mid_adoption() {
            let next = self.chain_work.queue.pop_front();
            self.chain_work.current = next.map(|(id, job)| {
                let (stage, prepared) = (ChangeStage::Settling, Slots::NONE);
                Current { id, job, stage, prepared, result: Ok(()) }
            });
        }
    }

    /// `None` if it waits. A cut goes back to settling whenever a member has come back with what
    /// nobody has compared.
    fn next_of_change(&self) -> Option<Next> {
        let current = self.chain_work.current.as_ref()?;
        let cuts = current.job.cuts();
        let is_settled = self.settle.is_done() || mutation::is_on(Mutation::SnapshotUnsettled);
        let is_steady = self.is_steady();
        match &current.stage {
            ChangeStage::Settling | ChangeStage::Draining
                if cuts && let Some(why) = self.lacks_room() =>
            {
                Some(Next::Refuse(why))
            }
            ChangeStage::Settling => {
                ((is_settled || !cuts) && self.promoting.is_none()).then_some(Next::Drain)
            }
            ChangeStage::Preparing { asked, refused } => asked.is_over().then(|| {
                let refused = refused.clone();
                refused.map_or(Next::Drain, Next::Refuse)
            }),
            ChangeStage::Draining if !cuts => {
                (is_steady && self.rebuilds.is_at_rest()).then_some(Next::Apply)
            }
            ChangeStage::Draining if is_steady && !self.is_prepared(current) => Some(Next::Prepare),
            ChangeStage::Draining if !is_settled => Some(Next::Settle),
            ChangeStage::Draining => {
                let is_quiet = is_steady && self.rebuilds.is_at_rest();
                (is_quiet && self.is_drained_for(&current.job)).then_some(Next::Flush)
            }
            ChangeStage::Flushing { asked } if asked.is_over() => match is_settled {
                true => is_steady.then_some(Next::Apply),
                false => Some(Next::Settle),
            },
            ChangeStage::Applying { asked, .. } => asked.is_over().then_some(Next::Judge),
            ChangeStage::Removing if is_steady => {
                self.live().iter().next().map(|from| Next::Describe { from })
            }
            ChangeStage::Flushing { .. }
            | ChangeStage::Removing
            | ChangeStage::Describing { .. } => None,
        }
    }

    fn is_prepared(&self, current: &Current) -> bool {
        self.writable().without(current.prepared).is_empty()
            || mutation::is_on(Mutation::ChangeWithoutRoom)
    }

    /// Nothing is on its way that the cut would divide. A revert waits for reads, too.
    fn is_drained_for(&self, job: &Job) -> bool {
        let is_read = |io: &Io| !io.answered && !io.is_write() && io.is_admitted();
        let reverts = matches!(job, Job::Revert { .. });
        let is_drained = self.writes_in_flight == 0
            && !self.clears_or_repairs()
            && !(reverts && self.ios.values().any(is_read));
        is_drained || mutation::is_on(Mutation::SnapshotUndrained)
    }

    fn set_change_stage(&mut self, stage: ChangeStage) {
        if let Some(current) = &mut self.chain_work.current {
            current.stage = stage;
        }
    }

    pub(super) fn chain_flushed(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        if self.expect_done(now, slot, reply)
            && let Some(Current { stage: ChangeStage::Flushing { asked }, .. }) =
                &mut self.chain_work.current
        {
            asked.answered(slot);
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
            Ok(()) => self.set_change_stage(ChangeStage::Removing),
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
            return;
        }
        let Some(op) = self.next_op() else { return };
        let Some(current) = &self.chain_work.current else { return };
        let lacking = self.writable().without(current.prepared);
        let asked = self.ask(now, lacking, &Purpose::Prepare, &Request::Prepare(Box::new(op)));
        self.set_change_stage(ChangeStage::Preparing { asked, refused: None });
    }

    /// A member that can't stays one: the change isn't made.
    pub(super) fn chain_prepared(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let is_member = self.live().contains(slot);
        let replica = self.peer(slot).id.clone();
        let Some(Current { stage: ChangeStage::Preparing { asked, refused }, prepared, .. }) =
            &mut self.chain_work.current
        else {
            return;
        };
        asked.answered(slot);
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
        self.ask(now, prepared.intersection(writable), &Purpose::Abandon, &Request::Abandon);
    }

    fn apply_change(&mut self, now: Instant) {
        if self.is_foregone(now) {
            return;
        }
        let Some(op) = self.next_op() else { return };
        let request = Request::Chain(Box::new(op));
        let asked = self.ask(now, self.writable(), &Purpose::Chain, &request);
        let (done, refused) = (Slots::NONE, Vec::new());
        self.set_change_stage(ChangeStage::Applying { asked, done, refused });
    }

    pub(super) fn chain_applied(&mut self, now: Instant, slot: Slot, reply: Reply<()>) {
        let Some(Current { stage: ChangeStage::Applying { asked, done, refused }, .. }) =
            &mut self.chain_work.current
        else {
            return;
        };
        asked.answered(slot);
        match reply {
            Reply::Done => done.insert(slot),
            Reply::Refused(refusal) => refused.push((slot, refusal)),
            other => self.lose_for(now, slot, &other),
        }
    }

    /// If nobody could, nothing has changed and the asker is told. Otherwise those who couldn't are
    /// no longer copies of the volume.
    fn judge_change(&mut self, now: Instant) {
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
        self.repairs.forget_layers_but(|layer| self.chain.layer(layer).is_some());
        if resized {
            self.act(Action::Opened { size_bytes: self.chain.size_bytes() });
        }
    }

    /// A change goes on without the lost replica; a description is asked of another.
    pub(super) fn chain_work_lost(&mut self, slot: Slot) {
        if let Some(current) = &mut self.chain_work.current {
            current.prepared.remove(slot);
            match &mut current.stage {
                ChangeStage::Preparing { asked, .. } | ChangeStage::Applying { asked, .. } => {
                    asked.lost(slot);
                }
                // It may come back without having flushed: all flush once more.
                ChangeStage::Flushing { .. } => current.stage = ChangeStage::Draining,
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
        self.chain_work.joins.lost(slot);
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

    /// What the running change of the chain waits for.
    pub(super) fn chain_waits_for(&self) -> Option<String> {
        let current = self.chain_work.current.as_ref()?;
        (current.stage == ChangeStage::Settling)
            .then(|| "a change of the chain waits until all replicas are equal".into())
    }
}
