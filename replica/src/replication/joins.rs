//! Removed layers are joined to their children, on each member by itself and in the background.
//!
//! The data is safe whether a join is done or not: one that was refused is tried again after the
//! next change of the chain, and one that found no room after a while. Rebuilds go first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::core::{Core, Phase};
use super::peer::Purpose;
use super::slots::Slot;
use crate::message::{Refusal, Reply, Request};
use crate::types::LayerId;

/// Pause before a join that found no room is tried again.
const RETRY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Joins {
    /// Layers to be joined, per replica.
    queued: BTreeMap<Slot, BTreeSet<LayerId>>,
    running: BTreeMap<Slot, LayerId>,
    /// A join found no room: when it is tried again.
    not_before: Option<Instant>,
}

impl Joins {
    /// None runs; some may wait.
    pub(super) fn is_at_rest(&self) -> bool {
        self.running.is_empty()
    }

    fn are_done(&self) -> bool {
        self.running.is_empty() && self.queued.values().all(BTreeSet::is_empty)
    }

    pub(super) fn lost(&mut self, slot: Slot) {
        self.queued.remove(&slot);
        self.running.remove(&slot);
    }
}

impl Core {
    /// Every removed layer is joined on every member; where that was done already, it is nothing.
    pub(super) fn schedule_joins(&mut self) {
        let removed = self.chain.layers.iter().filter(|layer| layer.removed);
        let layers: BTreeSet<LayerId> = removed.map(|layer| layer.id).collect();
        if !layers.is_empty() {
            for slot in self.live().iter() {
                self.chain_work.joins.queued.insert(slot, layers.clone());
            }
        }
    }

    pub(super) fn drive_joins(&mut self, now: Instant) {
        self.chain_work.joins.not_before.take_if(|at| now >= *at);
        let rebuilds = !self.rebuilds.is_idle() || self.wants_rebuild();
        let rests = self.chain_work.joins.not_before.is_some();
        let serves = matches!(self.phase, Phase::Serving) && !self.chain_work.is_changing();
        if rebuilds || rests || !serves || !self.is_steady() {
            return;
        }
        for slot in self.live().iter() {
            let joins = &mut self.chain_work.joins;
            if joins.running.contains_key(&slot) {
                continue;
            }
            let next = joins.queued.get_mut(&slot).and_then(BTreeSet::pop_first);
            if let Some(layer) = next {
                joins.running.insert(slot, layer);
                self.send(now, slot, Purpose::Join(layer), Request::Join { layer }, None);
            }
        }
    }

    pub(super) fn joined(&mut self, now: Instant, slot: Slot, layer: LayerId, reply: Reply<()>) {
        let joins = &mut self.chain_work.joins;
        if joins.running.get(&slot) == Some(&layer) {
            joins.running.remove(&slot);
            if reply == Reply::Refused(Refusal::NoSpace) {
                joins.queued.entry(slot).or_default().insert(layer);
                joins.not_before = Some(now + RETRY);
                self.is_sooner = true;
            }
        }
        if self.chain_work.joins.are_done() && !self.chain_work.is_changing() {
            self.refresh_chain(now);
        }
    }

    pub(super) fn next_join(&self) -> Option<Instant> {
        self.chain_work.joins.not_before
    }
}
